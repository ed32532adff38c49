//! Whether a replica's state is good enough for a read, and what to do if it is not. Pure.
//!
//! A *session* must not see a shard older than it has seen it (R5). A replica that is behind waits a
//! little for what is on its way to it, then asks the leader, and what is missing after that does not
//! exist any more: at a linearizable point the shard holds everything that anybody was ever told, so a
//! token above it speaks of a history that was lost. The wait has an end and the leader is asked once, so
//! a session never waits for ever.
//!
//! A read with a *bound* is answered if somebody vouches that the state is not older (R4); what nobody
//! vouches for is too old for every bound.
//!
//! Invariant: what is answered is never older than the session or the bound allows; what cannot be told is
//! refused, and every refusal says NO.

use annulus_types::{Error, ErrorKind, Revision};

use crate::weaken::{Weaken, Weakened};

/// How a shard stands to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The revision of the state that was read.
    pub(super) head: Revision,
    /// What the session has seen of the shard; 0 for nothing.
    pub(super) seen: Revision,
    /// Newer entries were waited for as long as may be.
    pub(super) waited: bool,
    /// The state was read after a linearizable point.
    pub(super) confirmed: bool,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Answer with what was read.
    Answer,
    /// Do that and look again.
    Again(Before),
    /// What the session has seen does not exist any more.
    HistoryLost,
}

/// What comes before the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Wait for newer entries.
    Wait,
    /// Reach a linearizable point.
    Confirm,
}

/// Whether a state at `head` holds what a session has seen.
pub(super) fn holds(head: Revision, seen: Revision, weakened: Weakened) -> bool {
    head >= seen || weakened.is(Weaken::OlderThanSession)
}

pub(super) fn session(at: Standing, weakened: Weakened) -> Step {
    let Standing { head, seen, waited, confirmed } = at;
    match (holds(head, seen, weakened), confirmed, waited) {
        (true, _, _) => Step::Answer,
        (false, true, _) => Step::HistoryLost,
        (false, false, true) => Step::Again(Before::Confirm),
        (false, false, false) => Step::Again(Before::Wait),
    }
}

/// Whether a state of this age may be shown to who asked for at most `limit_us`.
///
/// # Errors
/// `TooStale`; nothing was changed by a read.
pub(super) fn bounded(limit_us: u64, age_us: Option<u64>, weakened: Weakened) -> Result<(), Error> {
    let is_fresh = age_us.is_some_and(|age_us| age_us <= limit_us);
    if is_fresh || weakened.is(Weaken::OlderThanBound) {
        return Ok(());
    }
    Err(Error::refused(ErrorKind::TooStale { limit_us, actual_us: age_us }))
}

#[cfg(test)]
mod tests;
