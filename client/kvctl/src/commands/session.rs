//! A session that outlives its command: kept in a file, read before the command asks anything and replaced
//! after its answer. The content is the session's token and nothing else.
//!
//! One command at a time may use a file: of two at once, the later one forgets what the other has seen.
//!
//! Failure: a file that cannot be read, or is no token, ends the command before anything is sent. One that
//! cannot be written ends it with an error in place of the answer, because the next command would not know
//! what this one has seen; after a change the error says that it was applied.

use std::path::Path;

use annulus_client::{Error, MayHaveApplied, Session};
use annulus_types::limits::SESSION_TOKEN_BYTES;

use crate::commands::Context;
use crate::values::{read_file_if_any, replace_file};

/// The option, in errors.
const FIELD: &str = "session";

/// The session of a command.
#[derive(Debug)]
pub struct Kept<'a> {
    /// What the command reads and writes with.
    pub session: Session,
    file: Option<&'a Path>,
}

impl<'a> Kept<'a> {
    /// Connects, and goes on with the session in `file`, or begins one if it is not there. Without a file the
    /// session ends with the command.
    ///
    /// # Errors
    /// Those of the client library, and a file without a session of this cluster.
    pub async fn open(context: &Context, file: Option<&'a Path>) -> Result<Self, Error> {
        let token = match file {
            Some(path) => Some(read_file_if_any(FIELD, path, SESSION_TOKEN_BYTES as u64).await?),
            None => None,
        };
        let client = context.connect().await?;
        let session = Session::from_token(&client, &token.unwrap_or_default())?;
        Ok(Self { session, file })
    }

    /// Keeps what the session has seen. `applied`: whether the command has changed data by now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn save(&self, applied: MayHaveApplied) -> Result<(), Error> {
        let Some(path) = self.file else { return Ok(()) };
        replace_file(FIELD, path, self.session.token())
            .await
            .map_err(|error| Error { may_have_applied: applied, ..error })
    }
}
