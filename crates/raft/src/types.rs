//! openraft's type parameters, and the conversions between its types, the log's and the wire's.
//!
//! openraft's node id is the *replica* id, never reused (architecture 9, rule 3): a replica that is
//! added again under an old id with an empty log would replay old memberships and forget its votes.
//! The machine behind a replica travels as openraft's `Node` ([`Seat`]); addresses are not in Raft.

use std::fmt;

use annulus_proto::v1;
use annulus_types::{NodeId, ReplicaId};
use annulus_wal as wal;
use bytes::Bytes;
use openraft::EntryPayload;

use crate::codec;

openraft::declare_raft_types!(
    /// The type parameters of every group.
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = Seat,
        AsyncRuntime = Seeded,
);

/// tokio, with every random number that openraft draws taken from a seed: its tasks inherit one from
/// the scope in which a group is built. In production the seed is random.
pub(crate) type Seeded =
    openraft_rt::deterministic_rng::DeterministicRng<openraft_rt_tokio::TokioRuntime>;

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Seat>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

/// The machine that holds a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// The machine.
    pub node: NodeId,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node)
    }
}

/// An encoded entry of ours: see [`crate::entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The replies to the operations of one entry, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply(pub Vec<Bytes>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replies", self.0.len())
    }
}

pub(crate) fn log_id(id: wal::EntryId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.leader.0 }, id.index)
}

pub(crate) fn entry_id(id: &LogId) -> wal::EntryId {
    let leader = id.committed_leader_id();
    wal::EntryId { term: leader.term, leader: ReplicaId(leader.node_id), index: id.index }
}

pub(crate) fn vote(vote: wal::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.leader.0)
    } else {
        Vote::new(vote.term, vote.leader.0)
    }
}

pub(crate) fn wal_vote(vote: &Vote) -> wal::Vote {
    wal::Vote {
        term: vote.leader_id.term,
        leader: ReplicaId(vote.leader_id.node_id),
        committed: vote.committed,
    }
}

pub(crate) fn vote_to_wire(vote: &Vote) -> v1::Vote {
    v1::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_wire(vote: Option<v1::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed("vote"))?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.leader)
    } else {
        Vote::new(vote.term, vote.leader)
    })
}

pub(crate) fn log_id_to_wire(id: &LogId) -> v1::LogId {
    let leader = id.committed_leader_id();
    v1::LogId { term: leader.term, leader: leader.node_id, index: id.index }
}

pub(crate) fn log_id_from_wire(id: v1::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.leader }, id.index)
}

/// A peer's message lacks a field or holds one that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed peer message: {0}")]
pub struct Malformed(pub &'static str);

pub(crate) fn append_to_wire(request: AppendRequest, stream: u64) -> v1::AppendRequest {
    v1::AppendRequest {
        vote: Some(vote_to_wire(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request
            .entries
            .iter()
            .map(|entry| v1::LogEntry {
                id: Some(log_id_to_wire(&entry.log_id)),
                payload: codec::encode_payload(&entry.payload),
            })
            .collect(),
        commit: request.leader_commit.as_ref().map(log_id_to_wire),
        stream,
    }
}

pub(crate) fn append_from_wire(request: v1::AppendRequest) -> Result<AppendRequest, Malformed> {
    let entries = request.entries.into_iter().map(|entry| {
        let id = entry.id.ok_or(Malformed("entry id"))?;
        // The payload is a slice of the whole frame's buffer, and it is kept: copy it (R3 of the
        // storage notes: a `Bytes` pins its buffer).
        let payload = Bytes::copy_from_slice(&entry.payload);
        Ok(Entry { log_id: log_id_from_wire(id), payload: codec::decode_payload(payload)? })
    });
    Ok(AppendRequest {
        vote: vote_from_wire(request.vote)?,
        prev_log_id: request.prev.map(log_id_from_wire),
        entries: entries.collect::<Result<_, Malformed>>()?,
        leader_commit: request.commit.map(log_id_from_wire),
    })
}

pub(crate) fn entry_to_log(entry: &Entry) -> wal::Entry {
    wal::Entry {
        id: entry_id(&entry.log_id),
        membership: matches!(entry.payload, Payload::Membership(_)),
        payload: codec::encode_payload(&entry.payload),
    }
}

pub(crate) fn entry_from_log(entry: wal::Entry) -> Result<Entry, Malformed> {
    Ok(Entry { log_id: log_id(entry.id), payload: codec::decode_payload(entry.payload)? })
}

pub(crate) type Payload = EntryPayload<Command, u64, Seat>;
