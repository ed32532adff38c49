//! From a failure to what the caller sees: the exit code, one line for people, or one JSON
//! document.
//!
//! Invariant (W4): every exit code of a failure but 4 says that nothing was applied, and it is only
//! given when the error promises that. An error that promises nothing, and one that says that the change
//! *was* made although its result got lost, both exit with 4: repeating the command blindly would
//! be wrong in both cases. Commands that only read cannot apply anything, whatever an error that
//! lost its details says: their errors pass through [`nothing_applied`] first.
//!
//! A change with an unknown outcome has an id, and every form of its error says it, together with the
//! command that asks what became of it.

use annulus_client::Error;
use annulus_types::{ErrorKind, MayHaveApplied};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::{Answer, Format, json_line};

/// The exit codes.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// The answer is "no": an absent key, a failed condition.
    pub const NO: u8 = 1;
    /// The command line, or what it asks for, is wrong.
    pub const USAGE: u8 = 2;
    /// Unavailable or timed out; nothing was applied.
    pub const UNAVAILABLE: u8 = 3;
    /// The outcome is not known.
    pub const UNKNOWN: u8 = 4;
    /// The caller may not do this.
    pub const DENIED: u8 = 5;
}

/// The exit code that tells a script what to do about `error`.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    if error.may_have_applied != MayHaveApplied::No {
        return exit::UNKNOWN;
    }
    match error.kind {
        ErrorKind::PreconditionFailed { .. } | ErrorKind::Fenced { .. } => exit::NO,
        ErrorKind::BadRequest { .. }
        | ErrorKind::WrongCluster { .. }
        | ErrorKind::Unimplemented => exit::USAGE,
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => exit::DENIED,
        ErrorKind::OutcomeUnknown => exit::UNKNOWN,
        ErrorKind::NotLeader { .. }
        | ErrorKind::StaleRoute { .. }
        | ErrorKind::Moving { .. }
        | ErrorKind::NoQuorum
        | ErrorKind::Overloaded
        | ErrorKind::TooStale { .. }
        | ErrorKind::WriterExpired
        | ErrorKind::OpIdReused
        | ErrorKind::HistoryLost
        | ErrorKind::Compacted { .. }
        | ErrorKind::Lagged { .. }
        | ErrorKind::NotReady { .. }
        | ErrorKind::ShardHalted { .. }
        | ErrorKind::DiskFull
        | ErrorKind::UnsupportedVersion
        | ErrorKind::DeadlineExceeded { .. }
        | ErrorKind::Cancelled
        | ErrorKind::Internal { .. } => exit::UNAVAILABLE,
    }
}

/// The same failure of something that cannot have changed data.
#[must_use]
pub fn nothing_applied(error: Error) -> Error {
    Error { may_have_applied: MayHaveApplied::No, op: None, ..error }
}

/// The failure as it is printed.
#[must_use]
pub fn answer(error: &Error, format: Format, endpoints: &[String]) -> Answer {
    let err = match format {
        Format::Table => line(error, endpoints),
        Format::Json | Format::Jsonl => document(error),
    };
    Answer { err, code: exit_code(error), ..Answer::default() }
}

/// What clap has to say: help on standard output, or a refused command line.
#[must_use]
pub fn arguments(error: &clap::Error, json: bool) -> Answer {
    if !error.use_stderr() {
        return Answer::text(error.to_string());
    }
    let full = error.to_string();
    let err = if json {
        let what = full.split("\n\n").next().unwrap_or_default();
        let what = one_line(what.strip_prefix("error: ").unwrap_or(what));
        document(&Error::bad_request("arguments", what))
    } else {
        full
    };
    Answer { err, code: exit::USAGE, ..Answer::default() }
}

/// One line: what, where, whether it may have happened, what to do.
fn line(error: &Error, endpoints: &[String]) -> String {
    let kind = error.kind.name();
    let place = match error.kind {
        ErrorKind::BadRequest { .. } => kind.to_owned(),
        _ => format!("{kind}, endpoints {}", endpoints.join(", ")),
    };
    let what = one_line(&error.kind.to_string());
    let happened = match error.may_have_applied {
        MayHaveApplied::No => "nothing was applied",
        MayHaveApplied::Yes => "it was applied",
        MayHaveApplied::Unknown => "it may have been applied",
    };
    format!("error: {what} ({place}); {happened}; {}\n", what_to_do(error))
}

/// `text` without line ends: whatever a node puts into an error, it stays one line.
fn one_line(text: &str) -> String {
    let lines = text.split(char::is_control).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

fn what_to_do(error: &Error) -> String {
    match (error.may_have_applied, &error.op) {
        (MayHaveApplied::No, _) => {}
        (MayHaveApplied::Yes, None) => return "read the key to see its version".to_owned(),
        (MayHaveApplied::Yes, Some(op)) => {
            return format!("run `kvctl op status {op}` to see its version");
        }
        (MayHaveApplied::Unknown, None) => {
            return "read the key before repeating the command".to_owned();
        }
        (MayHaveApplied::Unknown, Some(op)) => {
            return format!("run `kvctl op status {op}` before repeating the command");
        }
    }
    let advice = match &error.kind {
        ErrorKind::NotLeader { .. }
        | ErrorKind::StaleRoute { .. }
        | ErrorKind::Moving { .. }
        | ErrorKind::NoQuorum
        | ErrorKind::NotReady { .. } => "try again, or look at `kvctl status`",
        ErrorKind::OutcomeUnknown => "read the key before repeating the command",
        ErrorKind::Overloaded
        | ErrorKind::WriterExpired
        | ErrorKind::OpIdReused
        | ErrorKind::Cancelled => "try again",
        ErrorKind::TooStale { .. } => "try again, or ask for another --consistency",
        ErrorKind::PreconditionFailed { .. } => "read the key and decide again",
        ErrorKind::Fenced { .. } => "take the lock again",
        ErrorKind::HistoryLost => "begin a new session (another file for --session)",
        ErrorKind::Compacted { .. } | ErrorKind::Lagged { .. } => {
            "start again from the present state"
        }
        ErrorKind::ShardHalted { .. } => "see the log of the node that answered",
        ErrorKind::DiskFull => "free disk space (deletes are still accepted)",
        ErrorKind::BadRequest { .. } => "correct the command (--help explains it)",
        ErrorKind::WrongCluster { .. } => "give endpoints of one cluster",
        ErrorKind::UnsupportedVersion => "use the kvctl of the cluster's version",
        ErrorKind::DeadlineExceeded { .. } => {
            "check the endpoints, or try again with a longer --timeout"
        }
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => "ask whoever runs the cluster",
        ErrorKind::Unimplemented => "use a cluster of a newer version",
        ErrorKind::Internal { .. } => "look for that id in the logs of the nodes",
    };
    match error.retry_after_ms {
        0 => advice.to_owned(),
        ms => format!("wait {ms} ms, then {advice}"),
    }
}

/// The fields of `ErrorDetail`, as one JSON document on one line.
fn document(error: &Error) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        kind: &'a str,
        message: String,
        may_have_applied: &'a str,
        retry_after_ms: u32,
        /// The operation to ask about when it may have been applied.
        #[serde(skip_serializing_if = "Option::is_none")]
        op: Option<String>,
        #[serde(flatten)]
        own: Map<String, Value>,
    }
    let message = match &error.kind {
        // It has the field in a field of its own.
        ErrorKind::BadRequest { message, .. } => message.clone(),
        kind => kind.to_string(),
    };
    json_line(&Document {
        kind: error.kind.name(),
        message,
        may_have_applied: error.may_have_applied.as_str(),
        retry_after_ms: error.retry_after_ms,
        op: error.op.map(|op| op.to_string()),
        own: own_fields(&error.kind),
    })
}

/// What the kind carries besides its name. An absent node or version is null; a bound that is not
/// known is left out.
fn own_fields(kind: &ErrorKind) -> Map<String, Value> {
    let pairs: Vec<(&str, Value)> = match kind {
        ErrorKind::NotLeader { leader } => vec![("leader", leader.map(|node| node.0).into())],
        // The table itself is for programs that route; a person wants to know that it is newer.
        ErrorKind::StaleRoute { routes } => {
            vec![("table_version", routes.as_ref().map(|table| table.version.0).into())]
        }
        ErrorKind::Moving { to } => vec![("to", to.map(|node| node.0).into())],
        ErrorKind::TooStale { limit_us, actual_us } => {
            let mut pairs = vec![("limit_us", Value::from(*limit_us))];
            pairs.extend(actual_us.map(|actual| ("actual_us", Value::from(actual))));
            pairs
        }
        ErrorKind::PreconditionFailed { current } | ErrorKind::Fenced { current } => {
            vec![("current", current.map(|revision| revision.0).into())]
        }
        ErrorKind::Compacted { oldest } => vec![("oldest", oldest.0.into())],
        ErrorKind::Lagged { resume } => vec![("resume", resume.as_str().into())],
        ErrorKind::NotReady { reason } => vec![("reason", reason.as_str().into())],
        ErrorKind::ShardHalted { file, offset } => {
            vec![("file", file.as_str().into()), ("offset", (*offset).into())]
        }
        ErrorKind::BadRequest { field, .. } => vec![("field", field.as_str().into())],
        ErrorKind::WrongCluster { actual } => vec![("actual", actual.to_string().into())],
        ErrorKind::DeadlineExceeded { stage } => vec![("stage", stage.as_str().into())],
        ErrorKind::Internal { id } => vec![("id", id.as_str().into())],
        ErrorKind::NoQuorum
        | ErrorKind::OutcomeUnknown
        | ErrorKind::Overloaded
        | ErrorKind::WriterExpired
        | ErrorKind::OpIdReused
        | ErrorKind::HistoryLost
        | ErrorKind::DiskFull
        | ErrorKind::UnsupportedVersion
        | ErrorKind::Cancelled
        | ErrorKind::Unauthenticated
        | ErrorKind::Forbidden
        | ErrorKind::Unimplemented => Vec::new(),
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests;
