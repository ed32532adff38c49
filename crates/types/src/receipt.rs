//! What a caller asks of a read, and what every answer says about itself.

use std::fmt;
use std::time::Duration;

use crate::{Epoch, NodeId, ReplicaId, Revision, ShardId, TableVersion};

/// The consistency that a read asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The newest acknowledged state, or an error.
    #[default]
    Linearizable,
    /// At least what this session has seen, by its token.
    Session,
    /// Not older than the limit, or `TooStale`.
    Bounded(Duration),
    /// Whatever a whole and verified replica has.
    Any,
}

/// How an answer was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A mutation.
    Write,
    /// See [`Consistency::Linearizable`].
    Linearizable,
    /// See [`Consistency::Session`].
    Session,
    /// See [`Consistency::Bounded`].
    Bounded,
    /// See [`Consistency::Any`].
    Any,
}

/// The part that the answering replica plays in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads the group.
    Leader,
    /// Votes, does not lead.
    Follower,
    /// Receives the log, does not vote.
    Learner,
}

/// What vouched for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// The leader's gate (R1 b).
    Lease,
    /// A confirmation round that began after the request arrived (R1 d).
    ReadIndex,
    /// Local state alone.
    Local,
    /// An applied log entry: every mutation.
    Log,
}

macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),* $(,)? }) => {
        impl $type {
            /// The word used in JSON, logs and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(Mode { Write => "write", Linearizable => "linearizable", Session => "session", Bounded => "bounded", Any => "any" });
words!(Role { Leader => "leader", Follower => "follower", Learner => "learner" });
words!(ServedBy { Lease => "lease", ReadIndex => "read_index", Local => "local", Log => "log" });

/// Where, when and on whose word an answer was given. Once per shard and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// How the answer was obtained.
    pub mode: Mode,
    /// The shard that was read or changed.
    pub shard: ShardId,
    /// The shard's epoch at that point.
    pub epoch: Epoch,
    /// The node that answered.
    pub node: NodeId,
    /// Its replica.
    pub replica: ReplicaId,
    /// That replica's part.
    pub role: Role,
    /// What vouched for the answer.
    pub served_by: ServedBy,
    /// Raft term of the group.
    pub term: u64,
    /// The shard's revision at exactly the state that was read or made (R3).
    pub revision: Revision,
    /// The data is no older than this many microseconds; `None` means unknown.
    pub staleness_bound_us: Option<u64>,
    /// The shard's time at that point, milliseconds (W5).
    pub shard_time_ms: u64,
    /// The routing table that the node knows.
    pub table_version: TableVersion,
}
