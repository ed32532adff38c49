//! How a call failed, over all of its attempts. Errors of the nodes speak of one attempt each
//! ([`annulus_types::Error`]); this one is their sum (W4).

use std::fmt;

use annulus_types::{ErrorKind, MayHaveApplied};

use crate::op_id::OpIdText;

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, at the last attempt that tells something.
    pub kind: ErrorKind,
    /// Whether the call may have changed anything. No is a promise: every attempt said so, or the shard
    /// that the operation was for.
    pub may_have_applied: MayHaveApplied,
    /// Milliseconds to wait before another call makes sense; 0 means at once.
    pub retry_after_ms: u32,
    /// The operation whose outcome is not known, if it has an id: what
    /// [`Client::op_status`](crate::Client::op_status) can be asked about. Absent when nothing was applied.
    pub op: Option<OpIdText>,
}

impl Error {
    /// A failure that changed nothing.
    #[must_use]
    pub fn refused(kind: ErrorKind) -> Self {
        annulus_types::Error::refused(kind).into()
    }

    /// A failure after which nobody can tell yet whether something was changed.
    #[must_use]
    pub fn unknown(kind: ErrorKind) -> Self {
        annulus_types::Error::unknown(kind).into()
    }

    /// Shorthand for [`ErrorKind::BadRequest`].
    #[must_use]
    pub fn bad_request(field: &str, message: impl Into<String>) -> Self {
        annulus_types::Error::bad_request(field, message).into()
    }

    /// Whether another call may succeed. Whether a mutation *may* be sent again is another question: see
    /// [`Error::may_have_applied`].
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        annulus_types::Error::refused(self.kind.clone()).is_retryable()
    }
}

impl From<annulus_types::Error> for Error {
    fn from(error: annulus_types::Error) -> Self {
        let annulus_types::Error { kind, may_have_applied, retry_after_ms } = error;
        Self { kind, may_have_applied, retry_after_ms, op: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match &self.op {
            Some(op) => write!(f, " (operation {op})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
