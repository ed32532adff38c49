//! A new replica is sent its group's state before it gets a seat (H2).
//!
//! openraft sends a snapshot only to whoever needs entries that are gone. A learner with an empty log would
//! be sent the whole log, however long it is and however small the state. So a replica that was created
//! and holds nothing is *seeded* first: its leader takes a picture of the state, copies it into files (E2)
//! and sends them as it sends any snapshot; the receiver checks and installs them in the same way, and
//! keeps them. The replica is a stranger to the membership then, also to the one in the snapshot: it votes
//! for nobody and is counted by nobody. Its log begins behind the snapshot, and it survives a restart like
//! any that was brought up by one. When it joins as a learner it needs only what came since.
//!
//! openraft does not know that. It looks for the end of the new follower's log by sending entries from the
//! middle of its own, a thousand at a time. What a seeded replica holds already is cut out of these
//! frames: it is asked only whether it has the entry before the rest, and answers like to any frame. What
//! it is known to hold is remembered by this replica, in memory: another leader sends some entries twice.
//!
//! A group whose log goes back to its start and is smaller than the state sends the log: nothing is done.
//! To know the state's size its files are made in any case; that costs the node's disk, not the network.
//!
//! # Invariants
//!
//! - Only a leader whose gate is open seeds, only a replica that says itself that it holds nothing, and
//!   that has no seat.
//! - A cut frame says no more than the whole one: the receiver vouches for the entry before what is left,
//!   and so for all before it. One that does not have it says so; its frames are whole again then.
//!
//! # Failure
//!
//! A transfer that is given up, or breaks, leaves nothing at the receiver; whoever asked asks again. One
//! whose answer is lost may have arrived: asking again finds that the replica holds something.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::{Error, ErrorKind, NodeId, ReplicaId};

use crate::group::Group;
use crate::link::Route;
use crate::snapshot::send::Errand;
use crate::types::{AppendRequest, LogId, entry_id, vote, wal_vote};

/// Between two looks at a link that is not up yet.
const LOOK: Duration = Duration::from_millis(50);

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

/// Takes out of a frame what its receiver holds, which is everything up to `upto`. Returns whether there
/// was something to take out.
pub(crate) fn cut_held(request: &mut AppendRequest, upto: LogId) -> bool {
    let held = request.entries.iter().take_while(|entry| entry.log_id.index <= upto.index).count();
    let last = held.checked_sub(1).and_then(|at| request.entries.get(at)).map(|it| it.log_id);
    let Some(last) = last else { return false };
    if last.index == upto.index && last != upto {
        return false;
    }
    request.entries.drain(..held);
    request.prev_log_id = Some(last);
    true
}

impl Group {
    /// Sends the group's state to a replica that was created and has no seat yet, `limit` at most; returns
    /// the bytes of its files. Zero when it was not needed: the replica holds something or is a member, or
    /// the log does as well. Dropping the future gives up, and the receiver drops what came.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum` when this replica does not lead or its gate is shut; `NotReady` when the
    /// other does not answer or does not take it, or too much else is being sent. `DeadlineExceeded` when
    /// it took too long; it may have arrived.
    pub async fn seed(&self, to: (ReplicaId, NodeId), limit: Duration) -> Result<u64, Error> {
        match tokio::time::timeout(limit, Box::pin(self.send_state(to))).await {
            Ok(sent) => sent,
            Err(_) => {
                let stage = "sending the group's state".to_owned();
                Err(Error::unknown(ErrorKind::DeadlineExceeded { stage }))
            }
        }
    }

    async fn send_state(&self, (target, node): (ReplicaId, NodeId)) -> Result<u64, Error> {
        self.check_trusted()?;
        let leading = self.sure_leadership()?;
        let is_member = self.membership().seats.iter().any(|seat| seat.replica == target);
        if is_member || self.last_index_of(target, node).await?.is_some() {
            return Ok(0);
        }
        let taken = self.raft.with_state_machine(|machine| {
            let content = machine.content();
            Box::pin(async move { content })
        });
        let content = taken.await.map_err(|_| self.stopped())?;
        let content = content.map_err(|error| not_ready(error.to_string()))?;
        let folder = content.folder().await.map_err(|error| not_ready(error.to_string()))?;
        let (bytes, last) = (folder.manifest().bytes(), folder.manifest().last());
        let last = last.map_err(|error| not_ready(error.to_string()))?;
        if self.log.state().purged.is_none() && !self.log.is_larger_than(bytes) {
            return Ok(0);
        }
        let errand = Errand {
            links: Arc::clone(&self.links),
            replica: Arc::clone(&self.replica),
            node,
            target,
            vote: vote(leading),
        };
        let sent = Box::pin(errand.run(content)).await;
        let found = sent.map_err(|error| not_ready(error.to_string()))?;
        if wal_vote(&found) != leading {
            return Err(self.not_leader());
        }
        if !self.weaken.forget_seeds() {
            self.replica.set_seeded(target, entry_id(&last));
        }
        tracing::info!(group = %self.id(), replica = %target, %node, bytes, "seeded");
        Ok(bytes)
    }

    /// The last entry that another replica holds, by its own word.
    async fn last_index_of(&self, replica: ReplicaId, node: NodeId) -> Result<Option<u64>, Error> {
        if self.links.find(node).is_none() {
            return Err(not_ready(format!("there is no link to node {node}")));
        }
        while !self.links.is_up(node) {
            // It may have been made for this.
            tokio::time::sleep(LOOK).await;
        }
        let route = Route { group: self.id(), from: self.replica(), to: replica };
        let question = Body::Membership(v1::MembershipRequest {});
        match self.links.ask(node, route, question).await {
            Ok(Body::MembershipReply(reply)) => Ok(reply.last_index),
            Ok(_) => Err(not_ready(format!("node {node} makes no sense"))),
            Err(error) => Err(not_ready(format!("replica {replica} on node {node}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Command, Entry, LeaderId, Payload, Vote};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 2, node_id: 1 }, index)
    }

    fn frame(prev: Option<u64>, entries: std::ops::Range<u64>) -> AppendRequest {
        let payload = || Payload::Normal(Command(Bytes::from_static(b"x")));
        AppendRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: prev.map(id),
            entries: entries.map(|index| Entry { log_id: id(index), payload: payload() }).collect(),
            leader_commit: Some(id(3)),
        }
    }

    /// What is left of a frame for somebody who holds everything up to entry 5: the entry before, and the
    /// entries. `None` when nothing is cut out.
    fn left(mut frame: AppendRequest) -> Option<(Option<u64>, Vec<u64>)> {
        let is_cut = cut_held(&mut frame, id(5));
        let entries = frame.entries.iter().map(|entry| entry.log_id.index).collect();
        is_cut.then_some((frame.prev_log_id.map(|prev| prev.index), entries))
    }

    #[test]
    fn what_is_held_is_cut_out_and_the_entry_before_the_rest_is_named() {
        assert_eq!(left(frame(None, 0..9)), Some((Some(5), vec![6, 7, 8])));
        assert_eq!(left(frame(Some(2), 3..8)), Some((Some(5), vec![6, 7])));
        assert_eq!(left(frame(Some(1), 2..4)), Some((Some(3), vec![])), "a question is left");
        assert_eq!(left(frame(Some(4), 5..6)), Some((Some(5), vec![])));
    }

    #[test]
    fn other_frames_stay_as_they_are() {
        assert_eq!(left(frame(Some(5), 6..9)), None);
        assert_eq!(left(frame(Some(3), 0..0)), None, "a heartbeat");
        let mut other = frame(Some(4), 5..7);
        other.entries[0].log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, 5);
        assert_eq!(left(other), None, "not the entry that is held");
    }
}
