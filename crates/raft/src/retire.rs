//! Replicas are destroyed, and only on proof (H4).
//!
//! Whoever tells this node to destroy a replica may be wrong: a manager that was restored from yesterday
//! does not know half of what it made. So the group itself must say that the replica is not needed. Its
//! members are asked for their membership, over the links between the nodes; a link knows who is at its
//! other end.
//!
//! # The proof
//!
//! A membership that is *uniform*, without a seat for the replica, *committed*, of a higher index than one
//! that is known here to have had a seat for it, told by a replica that votes in it and sits, by that very
//! membership, on the node that the link leads to. Committed is final, and a replica that has lost its seat
//! does not get it back, because ids are never used twice; so one that was a member at some entry and is
//! none at a later one is none for ever. The index matters: a member that lags behind tells a membership
//! from before the replica came, which lacks it as well.
//!
//! A replica whose own log and state show no membership with a seat for it falls by a *cancellation*: its
//! reseat was given up before it began. If it had a seat that counts, it would have acknowledged an entry
//! at or above the one that gave it, and would know.
//!
//! A replica whose own log or state is lost cannot tell when it had a seat. For such a one the caller names
//! the entry from which on its group is known to have removed it; a membership below that proves nothing.
//! Without that entry the replica stays.
//!
//! One kind of replica needs no proof: of the manager's group, once a later manager's era is stored on the
//! node (H6, `reign`). Its group is over, whatever it would say.
//!
//! # The order
//!
//! 1. The group leaves the host, so that nobody reaches it; its gate is shut for good, readers and
//!    proposers that wait are told.
//! 2. openraft is shut down. Its worker may apply entries for a moment longer: its end is waited for.
//! 3. The tombstone is written to the log, and durable: the id is not born here again, nor opened.
//! 4. The rows of records and group go, in one batch (`remains`), and kept snapshot files.
//!
//! # Failure
//!
//! Without proof nothing has happened. Once there is proof the rest runs to its end, whoever waits for it;
//! asking again waits too, or does what is left. A crash before 3 leaves a replica that opens as before,
//! one after 3 leaves rows and files without an owner: both go when the host starts.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::{BootTime, OnEnd};
use annulus_types::{Error, ErrorKind, GroupId, NodeId, ReplicaId};
use annulus_wal::{StreamId, WalError};
use tokio::sync::oneshot;

use crate::gate::Core;
use crate::group::Group;
use crate::host::Host;
use crate::link::Route;
use crate::log_store::membership_of;
use crate::machine::GroupState;
use crate::remains;
use crate::types::Membership;

#[cfg(test)]
mod tests;

/// Between two rounds of questions.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// One question waits so long for its answer.
const ANSWER: Duration = Duration::from_millis(500);
/// openraft's parts get so long to end.
const WIND_DOWN: Duration = Duration::from_secs(10);

/// Why what a node tells is no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoProof {
    #[error("the replica has a seat")]
    HasSeat,
    #[error("the membership is joint")]
    Joint,
    #[error("the membership is not known to be committed")]
    Uncommitted,
    #[error("the membership is no newer than one with a seat for the replica")]
    TooOld,
    #[error("who tells it has no vote in it")]
    NotAVoter,
}

/// Judges what `teller` says about a replica that had a seat by entry `seated_at`.
fn judge(
    told: &v1::MembershipReply,
    teller: NodeId,
    replica: ReplicaId,
    seated_at: u64,
) -> Result<(), NoProof> {
    if told.seats.iter().any(|seat| seat.replica == replica.0) {
        return Err(NoProof::HasSeat);
    }
    if told.joint {
        return Err(NoProof::Joint);
    }
    if !told.committed {
        return Err(NoProof::Uncommitted);
    }
    if told.index <= seated_at {
        return Err(NoProof::TooOld);
    }
    let is_tellers = |seat: &v1::MemberSeat| seat.node == teller.0 && seat.replica == told.replica;
    if !told.seats.iter().any(|seat| seat.voter && is_tellers(seat)) {
        return Err(NoProof::NotAVoter);
    }
    Ok(())
}

/// What a replica's own log and state say of its seat.
#[derive(Debug, Default, PartialEq, Eq)]
struct Testimony {
    /// Index of the newest membership with a seat for it.
    seated_at: Option<u64>,
    /// Nodes with a seat in any membership.
    nodes: BTreeSet<NodeId>,
    /// Some of it is lost: what it does not say means nothing.
    is_partial: bool,
}

impl Testimony {
    /// A membership without a seat for it proves that it has lost it when its index is above this.
    fn bar(&self, floor: u64) -> Option<u64> {
        let told = if self.is_partial { floor.checked_sub(1) } else { None };
        self.seated_at.or(told)
    }

    fn hear(&mut self, replica: ReplicaId, index: u64, membership: &Membership) {
        self.nodes.extend(membership.nodes().map(|(_, seat)| seat.node));
        if membership.get_node(&replica.0).is_some() {
            self.seated_at = self.seated_at.max(Some(index));
        }
    }
}

/// Why a replica is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfinished {
    #[error("openraft does not let go of it")]
    AtWork,
    #[error("it has got a seat")]
    Seated,
    #[error("the log: {0}")]
    Wal(#[from] WalError),
    #[error("the engine: {0}")]
    Engine(#[from] io::Error),
}

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

impl Host {
    /// Destroys this node's replica of a group that has removed it, as soon as a member proves that,
    /// `limit` at most. Asks the nodes that the replica knows, and those in `also`. `floor` is an entry at
    /// or above which no membership has had a seat for it, 0 if the caller knows of none: it counts when
    /// the replica's own log or state is lost. A replica that was destroyed already is no error. Dropping
    /// the future stops the asking, not the destroying.
    ///
    /// # Errors
    /// `NotReady` without proof, with what each node said: nothing has happened. `OutcomeUnknown` when it
    /// was proved and is not done yet.
    pub async fn retire(
        self: &Arc<Self>,
        group: GroupId,
        replica: ReplicaId,
        also: &[NodeId],
        floor: u64,
        limit: Duration,
    ) -> Result<(), Error> {
        let stream = StreamId { group, replica };
        let deadline = self.env.clock.boot().plus(limit);
        if !self.wal.tombstones().contains(&stream) && !self.destroys_without_proof() {
            let own = self.testimony(stream)?;
            let Some(seated_at) = own.bar(floor) else {
                let reason = if own.is_partial {
                    format!("what replica {replica} was cannot be read any more")
                } else {
                    format!("nothing here says that replica {replica} ever had a seat")
                };
                return Err(not_ready(reason));
            };
            let me = self.options.info.id;
            let nodes: BTreeSet<NodeId> =
                own.nodes.iter().chain(also).copied().filter(|node| *node != me).collect();
            self.prove(stream, seated_at, &nodes, deadline).await?;
        }
        let left = deadline.since(self.env.clock.boot());
        match tokio::time::timeout(left, self.destroy(stream, false)).await {
            Ok(destroyed) => destroyed,
            Err(_) => Err(Error::unknown(ErrorKind::OutcomeUnknown)),
        }
    }

    /// Destroys this node's replica that never had a seat in its group; one that was never created here
    /// never will be. Whoever asks has made sure that the group does not give it one meanwhile. A replica
    /// that was destroyed already is no error. Dropping the future loses the answer only.
    ///
    /// # Errors
    /// `NotReady` when its log or state show that it had a seat, or may have: nothing has happened, unless
    /// the error says otherwise. Then it was given one meanwhile, and is closed until the node starts again.
    pub async fn cancel(self: &Arc<Self>, group: GroupId, replica: ReplicaId) -> Result<(), Error> {
        let stream = StreamId { group, replica };
        if self.wal.streams().contains(&stream) {
            let own = self.testimony(stream)?;
            if own.seated_at.is_some() {
                let reason = format!("replica {replica} had a seat: its group must prove its end");
                return Err(not_ready(reason));
            }
            if own.is_partial {
                let reason = format!("what replica {replica} was cannot be read any more");
                return Err(not_ready(reason));
            }
        }
        self.destroy(stream, true).await
    }

    /// Ends this node's replica of a former manager's group: the one end that needs no proof of the group,
    /// because a later era was stored here (H6). One that was ended already is no error. Dropping the future
    /// loses the answer only.
    ///
    /// # Errors
    /// `NotReady` for a replica of the present reign: nothing has happened. Otherwise it is not done yet, and
    /// to be asked for again; no peer is heard by the replica meanwhile.
    pub async fn depose(self: &Arc<Self>, replica: ReplicaId) -> Result<(), Error> {
        if self.reign().admits(replica) {
            return Err(not_ready(format!("replica {replica} is of the present manager's group")));
        }
        self.destroy(StreamId { group: GroupId::MANAGER, replica }, false).await
    }

    /// What a replica of this folder says of its seat, open or not.
    fn testimony(&self, stream: StreamId) -> Result<Testimony, Error> {
        if let Some(group) = self.group(stream.group).filter(|it| it.replica() == stream.replica) {
            return Ok(Testimony {
                seated_at: group.replica.seated_at(),
                nodes: group.replica.seats().into_values().collect(),
                is_partial: false,
            });
        }
        if !self.wal.streams().contains(&stream) {
            return Err(not_ready(format!("replica {} is not held here", stream.replica)));
        }
        self.testimony_of_closed(stream).map_err(|error| not_ready(error.to_string()))
    }

    fn testimony_of_closed(&self, stream: StreamId) -> io::Result<Testimony> {
        let mut own = Testimony::default();
        let engine = self.engine.as_ref();
        let holder = remains::owner(engine, stream.group).map_err(io::Error::other)?;
        let mut state = GroupState::default();
        if holder == Some(stream.replica) {
            state = GroupState::load(engine, stream.group).map_err(io::Error::other)?;
        }
        if let Some(id) = state.membership.log_id() {
            own.hear(stream.replica, id.index, state.membership.membership());
        }
        let Ok(log) = self.wal.log(stream) else {
            own.is_partial = true;
            return Ok(own);
        };
        let applied = state.applied.map(|id| id.index);
        own.is_partial = log.state().purged.map(|id| id.index) > applied;
        for id in log.memberships() {
            match membership_of(&log, id) {
                Ok(membership) => own.hear(stream.replica, id.index, &membership),
                Err(_) => own.is_partial = true,
            }
        }
        Ok(own)
    }

    /// Asks until somebody proves that the replica has lost its seat.
    async fn prove(
        &self,
        stream: StreamId,
        seated_at: u64,
        nodes: &BTreeSet<NodeId>,
        deadline: BootTime,
    ) -> Result<(), Error> {
        let replica = stream.replica;
        loop {
            let questions = nodes.iter().map(|node| self.ask_for_proof(stream, seated_at, *node));
            let answers = futures_util::future::join_all(questions).await;
            let mut reasons = Vec::with_capacity(nodes.len());
            for (node, answer) in nodes.iter().zip(answers) {
                match answer {
                    Ok(index) => {
                        let group = stream.group;
                        tracing::info!(%group, %replica, teller = %node, index, "has no seat");
                        return Ok(());
                    }
                    Err(reason) => reasons.push(format!("node {node}: {reason}")),
                }
            }
            if self.env.clock.boot() >= deadline {
                let told = reasons.join("; ");
                let reason = format!("nobody proves that replica {replica} has no seat: {told}");
                return Err(not_ready(reason));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Asks one node. Returns the index of the membership that proves it.
    async fn ask_for_proof(
        &self,
        stream: StreamId,
        seated_at: u64,
        node: NodeId,
    ) -> Result<u64, String> {
        let route = Route { group: stream.group, from: stream.replica, to: ReplicaId(0) };
        let question = Body::Membership(v1::MembershipRequest {});
        let asked = self.links.ask(node, route, question);
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(Body::MembershipReply(told))) => {
                let judged = judge(&told, node, stream.replica, seated_at);
                judged.map(|()| told.index).map_err(|why| why.to_string())
            }
            Ok(Ok(_)) => Err("it makes no sense".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Destroys a replica in a task of its own, and waits for that. With `unless_seated` one that has got
    /// a seat by the time that nothing more reaches it stays.
    async fn destroy(self: &Arc<Self>, stream: StreamId, unless_seated: bool) -> Result<(), Error> {
        let (done, destroyed) = oneshot::channel();
        let host = Arc::clone(self);
        self.env.tasks.spawn("destroying a replica", OnEnd::Ignore, async move {
            let ended = Box::pin(host.take_down(stream, unless_seated)).await;
            let StreamId { group, replica } = stream;
            match &ended {
                Ok(()) => tracing::info!(%group, %replica, "replica destroyed"),
                Err(error) => {
                    tracing::warn!(%group, %replica, %error, "a replica is not destroyed yet");
                }
            }
            // Who asked may have given up.
            let _ = done.send(ended);
        });
        let reason = match destroyed.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the node stops".to_owned(),
        };
        Err(Error::unknown(ErrorKind::NotReady { reason }))
    }

    async fn take_down(&self, stream: StreamId, unless_seated: bool) -> Result<(), Unfinished> {
        let _one_at_a_time = self.opening.lock().await;
        let mut closed = Box::pin(self.close(stream)).await;
        let has_seat = |group: &Arc<Group>| group.replica.seated_at().is_some();
        if unless_seated && matches!(&closed, Ok(Some(group)) if has_seat(group)) {
            closed = Err(Unfinished::Seated);
        }
        if closed.is_err() {
            // It is not open any more, and must be seen nevertheless.
            self.set_absent(stream, 0, "being destroyed");
        }
        let group = closed?;
        let (done, durable) = oneshot::channel();
        self.wal.destroy(stream, Box::new(move |result| drop(done.send(result))));
        durable.await.map_err(|_| WalError::Closed)??;
        self.clear_absent(stream);

        let machine = group.map(|group| Arc::clone(&group.machine));
        let engine = Arc::clone(&self.engine);
        let remove = move || {
            let removed = remains::remove(engine.as_ref(), stream, machine.as_deref());
            removed.map_err(io::Error::other)
        };
        self.snapshots.run(remove).await?;
        let store = Arc::clone(&self.snapshots);
        let forget = move || {
            store.forget_strangers(|kept| kept != stream);
            Ok(())
        };
        self.snapshots.run(forget).await?;
        Ok(())
    }

    /// Closes a replica, if it is open, and waits for the end of its parts. One whose parts did not end in
    /// time is out of the host, and the next call waits for them. Whoever calls holds `opening`.
    pub(crate) async fn close(&self, stream: StreamId) -> Result<Option<Arc<Group>>, Unfinished> {
        let Some(group) = self.take_out(stream) else { return Ok(None) };
        group.replica.gate.change(Core::latch);
        group.replica.end();
        let ended = async {
            // However the core has ended: it is the end that counts.
            let _ = group.raft.shutdown().await;
            group.replica.until_machine_ended().await;
        };
        tokio::time::timeout(WIND_DOWN, ended).await.map_err(|_| Unfinished::AtWork)?;
        self.closing.lock().remove(&stream);
        Ok(Some(group))
    }

    /// Takes a replica's group out of the host, if it is open or is still ending.
    fn take_out(&self, stream: StreamId) -> Option<Arc<Group>> {
        let mut closing = self.closing.lock();
        if let Some(group) = closing.get(&stream) {
            return Some(Arc::clone(group));
        }
        let mut groups = self.groups.write();
        let is_open = groups.get(&stream.group).is_some_and(|it| it.replica() == stream.replica);
        if !is_open {
            return None;
        }
        let group = groups.remove(&stream.group)?;
        closing.insert(stream, Arc::clone(&group));
        Some(group)
    }
}
