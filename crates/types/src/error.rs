//! One error for every layer above the replicas: what happened, whether it may have been applied,
//! and what lets the caller repair itself.
//!
//! Invariant (W4): `may_have_applied` speaks of *one attempt*. [`MayHaveApplied::No`] is a promise:
//! it is set only before the entry can have reached any log, or after the log proves that it never
//! will. Whoever retries adds attempts up with [`MayHaveApplied::and_then`].

use std::fmt;

use crate::{ClusterId, NodeId, Revision, RoutingTable};

/// Whether an attempt changed, or may yet change, anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayHaveApplied {
    /// It did not and never will.
    No,
    /// It did.
    Yes,
    /// Nobody can tell yet.
    Unknown,
}

impl MayHaveApplied {
    /// The verdict over an earlier attempt and this later one of the same operation.
    #[must_use]
    pub fn and_then(self, later: Self) -> Self {
        match (self, later) {
            (Self::No, later) => later,
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::Unknown, _) => Self::Unknown,
        }
    }

    /// The word used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::Unknown => "unknown",
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// This replica does not lead the group; perhaps it knows who does.
    NotLeader {
        /// The node to ask instead.
        leader: Option<NodeId>,
    },
    /// The shard is not served here; newer routes if the node has any.
    StaleRoute {
        /// The table that the node knows.
        routes: Option<Box<RoutingTable>>,
    },
    /// The shard is being handed to another group.
    Moving {
        /// The node that takes it over.
        to: Option<NodeId>,
    },
    /// No majority confirmed within the deadline.
    NoQuorum,
    /// The operation was proposed and its fate is not known.
    OutcomeUnknown,
    /// A queue is full.
    Overloaded,
    /// The replica's data may be older than asked.
    TooStale {
        /// The limit asked for, microseconds.
        limit_us: u64,
        /// The bound that the replica can vouch for, microseconds.
        actual_us: Option<u64>,
    },
    /// The key is not at the version that was asked for.
    PreconditionFailed {
        /// The version found; `None` when the key is absent.
        current: Option<Revision>,
    },
    /// The lock's token is not this one.
    Fenced {
        /// The token found.
        current: Option<Revision>,
    },
    /// The writer is not known.
    WriterExpired,
    /// The operation id was used for something else, or is settled.
    OpIdReused,
    /// The session token is ahead of everything that exists.
    HistoryLost,
    /// The position is older than the history kept.
    Compacted {
        /// The oldest position kept.
        oldest: Revision,
    },
    /// The watcher fell behind.
    Lagged {
        /// Where to go on.
        resume: String,
    },
    /// The replica cannot vouch for its state yet.
    NotReady {
        /// Why.
        reason: String,
    },
    /// The shard stopped on damage that no copy can mend.
    ShardHalted {
        /// The damaged file.
        file: String,
        /// Where in it, bytes.
        offset: u64,
    },
    /// A majority of the group is short of disk.
    DiskFull,
    /// The request itself is wrong.
    BadRequest {
        /// The field, by its wire name.
        field: String,
        /// What is wrong with it, with the limit.
        message: String,
    },
    /// The request names another cluster.
    WrongCluster {
        /// The cluster of this node.
        actual: ClusterId,
    },
    /// The protocol version is not spoken here.
    UnsupportedVersion,
    /// The deadline passed.
    DeadlineExceeded {
        /// Where the request was.
        stage: String,
    },
    /// The caller gave up.
    Cancelled,
    /// Who are you?
    Unauthenticated,
    /// You may not.
    Forbidden,
    /// Not in this version.
    Unimplemented,
    /// A defect; the id finds the log line.
    Internal {
        /// The id in the node's log.
        id: String,
    },
}

impl ErrorKind {
    /// The name used on the wire, in JSON and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "NotLeader",
            Self::StaleRoute { .. } => "StaleRoute",
            Self::Moving { .. } => "Moving",
            Self::NoQuorum => "NoQuorum",
            Self::OutcomeUnknown => "OutcomeUnknown",
            Self::Overloaded => "Overloaded",
            Self::TooStale { .. } => "TooStale",
            Self::PreconditionFailed { .. } => "PreconditionFailed",
            Self::Fenced { .. } => "Fenced",
            Self::WriterExpired => "WriterExpired",
            Self::OpIdReused => "OpIdReused",
            Self::HistoryLost => "HistoryLost",
            Self::Compacted { .. } => "Compacted",
            Self::Lagged { .. } => "Lagged",
            Self::NotReady { .. } => "NotReady",
            Self::ShardHalted { .. } => "ShardHalted",
            Self::DiskFull => "DiskFull",
            Self::BadRequest { .. } => "BadRequest",
            Self::WrongCluster { .. } => "WrongCluster",
            Self::UnsupportedVersion => "UnsupportedVersion",
            Self::DeadlineExceeded { .. } => "DeadlineExceeded",
            Self::Cancelled => "Cancelled",
            Self::Unauthenticated => "Unauthenticated",
            Self::Forbidden => "Forbidden",
            Self::Unimplemented => "Unimplemented",
            Self::Internal { .. } => "Internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(node) } => write!(f, "not the leader; node {node} is"),
            Self::NotLeader { leader: None } => f.write_str("no leader is known here"),
            Self::StaleRoute { .. } => f.write_str("the shard is not served here"),
            Self::Moving { .. } => f.write_str("the shard is being handed over"),
            Self::NoQuorum => f.write_str("no majority of replicas answered in time"),
            Self::OutcomeUnknown => f.write_str("the outcome is not known"),
            Self::Overloaded => f.write_str("the queue is full"),
            Self::TooStale { limit_us, actual_us: Some(actual) } => {
                write!(f, "data may be {actual} us old, limit {limit_us} us")
            }
            Self::TooStale { limit_us, actual_us: None } => {
                write!(f, "the age of the data is unknown, limit {limit_us} us")
            }
            Self::PreconditionFailed { current: Some(version) } => {
                write!(f, "the key is at version {version}")
            }
            Self::PreconditionFailed { current: None } => f.write_str("the key is absent"),
            Self::Fenced { .. } => f.write_str("the fencing token is not current"),
            Self::WriterExpired => f.write_str("the writer has ended"),
            Self::OpIdReused => f.write_str("the operation id was already used"),
            Self::HistoryLost => f.write_str("the position is ahead of all that exists"),
            Self::Compacted { oldest } => write!(f, "history starts at {oldest}"),
            Self::Lagged { .. } => f.write_str("the watcher fell behind"),
            Self::NotReady { reason } => write!(f, "the replica is not ready: {reason}"),
            Self::ShardHalted { file, offset } => write!(f, "damage in {file} at byte {offset}"),
            Self::DiskFull => f.write_str("a majority of replicas is short of disk"),
            Self::BadRequest { field, message } => write!(f, "{field}: {message}"),
            Self::WrongCluster { actual } => write!(f, "this node belongs to cluster {actual}"),
            Self::UnsupportedVersion => f.write_str("the protocol version is not supported"),
            Self::DeadlineExceeded { stage } => write!(f, "the deadline passed while {stage}"),
            Self::Cancelled => f.write_str("cancelled by the caller"),
            Self::Unauthenticated => f.write_str("the caller is not known"),
            Self::Forbidden => f.write_str("the caller may not do this"),
            Self::Unimplemented => f.write_str("not part of this version"),
            Self::Internal { id } => write!(f, "internal error {id}; see the node's log"),
        }
    }
}

/// A failure as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Whether this attempt may have changed anything.
    pub may_have_applied: MayHaveApplied,
    /// Milliseconds to wait before another attempt makes sense; 0 means at once.
    pub retry_after_ms: u32,
}

impl Error {
    /// A failure before anything could be applied.
    #[must_use]
    pub fn refused(kind: ErrorKind) -> Self {
        Self { kind, may_have_applied: MayHaveApplied::No, retry_after_ms: 0 }
    }

    /// A failure after the operation was handed to the log.
    #[must_use]
    pub fn unknown(kind: ErrorKind) -> Self {
        Self { kind, may_have_applied: MayHaveApplied::Unknown, retry_after_ms: 0 }
    }

    /// Shorthand for [`ErrorKind::BadRequest`].
    #[must_use]
    pub fn bad_request(field: &str, message: impl Into<String>) -> Self {
        Self::refused(ErrorKind::BadRequest { field: field.to_owned(), message: message.into() })
    }

    /// Whether another attempt may succeed. Whether it is *allowed* is another question: a
    /// mutation without an operation id must not be repeated after
    /// [`MayHaveApplied::Unknown`] (W3).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::NotLeader { .. }
                | ErrorKind::StaleRoute { .. }
                | ErrorKind::Moving { .. }
                | ErrorKind::NoQuorum
                | ErrorKind::Overloaded
                | ErrorKind::NotReady { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::MayHaveApplied::{No, Unknown, Yes};

    #[test]
    fn only_a_row_of_noes_is_a_no() {
        assert_eq!(No.and_then(No), No);
        assert_eq!(No.and_then(Unknown), Unknown);
        assert_eq!(Unknown.and_then(No), Unknown);
        assert_eq!(Unknown.and_then(Yes), Yes);
        assert_eq!(Yes.and_then(No), Yes);
    }
}
