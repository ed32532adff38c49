//! The comparison of a group's replicas, for an operator (E5).
//!
//! Only the leader of the group compares (`annulus_raft::Group::verify_voters`). Here it is found: the node
//! that is asked leads, or knows from its own replica, from the table, or from the manager's heartbeats who
//! should. What it knows may be old; who does not lead says so, and names whom it believes to lead.

use std::sync::Arc;

use annulus_proto::v1;
use annulus_raft::{Compared, Comparison, Group, Verdict};
use annulus_types::{Error, ErrorKind, GroupId, NodeId};

use super::{Lead, Node};

/// Where the leader of a group is, as far as this node knows.
pub(super) enum Leader {
    /// On this node.
    Here(Arc<Group>),
    /// On another one.
    At(NodeId),
    /// Nobody told.
    Unknown,
}

impl Node {
    /// Who leads a group.
    ///
    /// # Errors
    /// `NotReady` before the node belongs to a cluster; `BadRequest` for a group that the cluster does not
    /// have.
    pub(super) fn leader_of(&self, id: GroupId) -> Result<Leader, Error> {
        let Some(host) = self.host() else {
            let reason = "this node belongs to no cluster yet".to_owned();
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        };
        let own = host.group(id);
        let mut believed = None;
        if let Some(group) = &own {
            let status = group.status();
            if status.gate_open {
                return Ok(Leader::Here(Arc::clone(group)));
            }
            believed = status.leader;
        }
        let table = self.tables.current();
        let route = table.as_ref().and_then(|table| table.group(id));
        if believed.is_none() {
            believed = match (route, self.lead()) {
                (Some(route), _) => Some(route.leader.unwrap_or(route.home)),
                (None, Lead::At(node)) if id == GroupId::MANAGER => Some(node),
                (None, _) => None,
            };
        }
        match believed.filter(|node| *node != self.info.id) {
            Some(node) => Ok(Leader::At(node)),
            None if own.is_some() || route.is_some() || id == GroupId::MANAGER => {
                Ok(Leader::Unknown)
            }
            None => Err(Error::bad_request("group", format!("the cluster has no group {id}"))),
        }
    }
}

/// A comparison as it is told.
pub(super) fn reply_of(comparison: &Comparison) -> v1::VerifyReply {
    v1::VerifyReply {
        index: comparison.at.index,
        leader: Some(replica_of(&comparison.leader)),
        others: comparison.others.iter().map(replica_of).collect(),
    }
}

fn replica_of(compared: &Compared) -> v1::ReplicaDigest {
    let verdict = match compared.verdict {
        Verdict::Equal => v1::Verdict::Equal,
        Verdict::Different => v1::Verdict::Different,
        Verdict::Unknown => v1::Verdict::Unknown,
    };
    let (digest, files) = match &compared.digest {
        Some(digest) => digest.to_wire(),
        None => Default::default(),
    };
    v1::ReplicaDigest {
        replica: compared.replica.0,
        node: compared.node.0,
        verdict: verdict.into(),
        digest,
        files,
        reason: compared.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use annulus_raft::{Digest, EntryId};
    use annulus_types::ReplicaId;

    use super::*;

    #[test]
    fn a_comparison_is_told_with_every_digest_and_every_reason() {
        let digest = Digest { whole: 0x0102, files: vec![(7, 1), (9, u128::MAX)] };
        let compared = |replica, verdict, digest, reason: &str| Compared {
            replica: ReplicaId(replica),
            node: NodeId(1),
            verdict,
            digest,
            reason: reason.to_owned(),
        };
        let comparison = Comparison {
            at: EntryId { term: 2, leader: ReplicaId(11), index: 40 },
            leader: compared(11, Verdict::Equal, Some(Arc::new(digest)), ""),
            others: vec![compared(12, Verdict::Unknown, None, "the link is down")],
        };
        let reply = reply_of(&comparison);
        assert_eq!(reply.index, 40);
        let leader = reply.leader.unwrap();
        assert_eq!((leader.replica, leader.verdict()), (11, v1::Verdict::Equal));
        assert_eq!(leader.digest.len(), 16);
        assert!(leader.digest.ends_with(&[1, 2]));
        let files: Vec<_> = leader.files.iter().map(|file| (file.id, file.digest[0])).collect();
        assert_eq!(files, [(7, 0), (9, 0xff)]);
        assert_eq!(reply.others.len(), 1);
        let other = &reply.others[0];
        assert_eq!((other.verdict(), other.digest.len()), (v1::Verdict::Unknown, 0));
        assert_eq!(other.reason, "the link is down");
    }
}
