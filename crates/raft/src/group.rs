//! One group as its node's services see it: propose, read, look.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::Env;
use annulus_types::{Error, ErrorKind, GroupId, NodeId, ReplicaId, Role, ServedBy, ShardId};
use annulus_wal::GroupLog;
use bytes::Bytes;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::frames::Lane;
use crate::link::Route;
use crate::links::Links;
use crate::machine::{Machine, StateMachine};
use crate::membership::{MembershipView, SeatView};
use crate::options::WeakenHost;
use crate::packer::{Packer, Proposed};
use crate::replica::ReplicaState;
use crate::types::TypeConfig;

/// A transfer that shows no successor within this time is made up for (H3).
const SUCCESSION: Duration = Duration::from_millis(100);

/// A replica of a group on this node. Cheap to clone behind its `Arc`.
pub struct Group {
    pub(crate) env: Env,
    pub(crate) replica: Arc<ReplicaState>,
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) packer: Arc<Packer>,
    pub(crate) links: Arc<Links>,
    pub(crate) log: GroupLog,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) weaken: WeakenHost,
}

/// Leave to read local state now: it is at least as new as everything that was acknowledged when
/// the request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadGrant {
    /// What vouches for it.
    pub served_by: ServedBy,
    /// This replica's part when it was granted.
    pub role: Role,
    /// The term in which it was granted.
    pub term: u64,
    /// The data is no older than this, microseconds; `None` when it cannot be told any more.
    pub staleness_bound_us: Option<u64>,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The node that it has reason to believe leads.
    pub leader: Option<NodeId>,
    /// Last log index.
    pub last_index: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// The group's time at it, milliseconds.
    pub group_time_ms: u64,
    /// Whether it leads and a majority said so just now.
    pub gate_open: bool,
    /// Why it serves nothing.
    pub halted: Option<String>,
    /// The members, by replica.
    pub members: Vec<SeatView>,
    /// Index of the membership entry.
    pub membership_index: u64,
    /// Whether that membership is known to be committed.
    pub membership_committed: bool,
    /// Whether it is joint: a change of voters is half done.
    pub joint: bool,
}

impl Group {
    /// The group's id.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.replica.group
    }

    /// This node's replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica.me
    }

    /// Proposes one operation on a shard and waits for the machine's reply, `limit` at most.
    /// Dropping the future loses the answer, never the operation.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum`, `Overloaded`: it was not and will not be applied.
    /// `OutcomeUnknown`: nobody can tell.
    pub async fn propose(
        &self,
        shard: ShardId,
        body: Bytes,
        limit: Duration,
    ) -> Result<Proposed, Error> {
        self.check_alive()?;
        self.packer.propose(shard, body, limit).await
    }

    /// A check of this replica's state failed: from now on it answers no read, and gives leadership
    /// away as soon as another voter can take it.
    pub fn distrust(&self, reason: &str) {
        self.replica.distrust(reason);
    }

    pub(crate) fn check_trusted(&self) -> Result<(), Error> {
        self.check_alive()?;
        match self.replica.distrusted() {
            Some(reason) => Err(Error::refused(ErrorKind::NotReady { reason })),
            None => Ok(()),
        }
    }

    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        match self.replica.halted() {
            Some(reason) => Err(Error::refused(ErrorKind::NotReady { reason })),
            None => Ok(()),
        }
    }

    /// Waits until a linearizable read may look at local state (R1, R2), `limit` at most. With
    /// `strict` a confirmation round that begins after the call must vouch for it; a replica that
    /// does not lead asks its leader for one, and answers strict reads only. After a strict grant this
    /// replica holds all that its leader had applied when it was asked: what is missing then, nobody will
    /// bring (R5). Cancel-safe.
    ///
    /// # Errors
    /// `NotLeader` at once when this replica does not lead and the read is not strict, or no leader
    /// answers it; `NoQuorum` at the limit.
    pub async fn read_grant(&self, strict: bool, limit: Duration) -> Result<ReadGrant, Error> {
        self.check_trusted()?;
        let Ok(granted) = tokio::time::timeout(limit, self.grant_while_held(strict)).await else {
            return Err(Error::refused(ErrorKind::NoQuorum));
        };
        // A check may have failed while it waited.
        self.check_trusted()?;
        granted
    }

    /// Nobody waits for a replica that is being destroyed.
    async fn grant_while_held(&self, strict: bool) -> Result<ReadGrant, Error> {
        tokio::select! {
            // What costs nothing is looked at first.
            biased;
            granted = self.grant(strict) => granted,
            () = self.replica.until_ended() => {
                let reason = "the replica is being destroyed".to_owned();
                Err(Error::refused(ErrorKind::NotReady { reason }))
            }
        }
    }

    async fn grant(&self, strict: bool) -> Result<ReadGrant, Error> {
        let gate = &self.replica.gate;
        let view = gate.view();
        let Some(vote) = view.leading else {
            return if strict { self.grant_of_leader().await } else { Err(self.not_leader()) };
        };
        if !strict && gate.is_open(self.env.clock.boot()) {
            // R2: loaded after the request arrived; whatever any follower was told is in it.
            self.replica.wait_applied(gate.published()).await;
            return Ok(self.granted(ServedBy::Lease, vote.term));
        }
        self.strict_index(vote).await?;
        Ok(self.granted(ServedBy::ReadIndex, vote.term))
    }

    /// A strict read at a follower: what the leader vouches for, applied here.
    async fn grant_of_leader(&self) -> Result<ReadGrant, Error> {
        let asked = self.env.clock.boot();
        let Some(index) = self.ask_leader().await else { return Err(self.not_leader()) };
        if !self.weaken.read_before_applied() {
            self.replica.wait_applied(index).await;
        }
        let age = self.env.clock.boot().since(asked);
        let (role, term) = self.role();
        Ok(ReadGrant {
            served_by: ServedBy::ReadIndex,
            role,
            term,
            staleness_bound_us: Some(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)),
        })
    }

    /// A read index of the leader, from a round that began after the call; `None` when no leader is
    /// known or it does not vouch. Cancel-safe.
    pub(crate) async fn ask_leader(&self) -> Option<u64> {
        if let Some(vote) = self.replica.gate.view().leading {
            return self.strict_index(vote).await.ok();
        }
        let (leader, node) = self.replica.believed_leader()?;
        let route = Route { group: self.id(), from: self.replica(), to: leader };
        let request = Body::ReadIndex(v1::ReadIndexRequest {});
        match self.links.ask(node, route, request).await {
            Ok(Body::ReadIndexReply(v1::ReadIndexReply { index })) => index,
            _ => None,
        }
    }

    /// R1 d: load the index, then a quorum of confirms of `vote` whose frames left after that, then
    /// apply up to it. Returns the index.
    pub(crate) async fn strict_index(&self, vote: annulus_wal::Vote) -> Result<u64, Error> {
        let gate = &self.replica.gate;
        let mut watch = gate.watch();
        // The first own-term entry is at or below `applied` once it is applied; before that the
        // leader may not know what is committed.
        loop {
            let view = *watch.borrow_and_update();
            if view.leading != Some(vote) || view.latched {
                return Err(self.not_leader());
            }
            if view.own_entry_applied {
                break;
            }
            if watch.changed().await.is_err() {
                return Err(self.not_leader());
            }
        }
        let index = gate.published().max(self.replica.applied().id.index);
        let loaded = self.env.clock.boot();
        if self.raft.trigger().heartbeat().await.is_err() {
            return Err(self.not_leader());
        }
        loop {
            let view = *watch.borrow_and_update();
            if view.leading != Some(vote) || view.latched {
                return Err(self.not_leader());
            }
            // Strictly later: a frame of the same microsecond may have left before the load.
            if view.horizon.is_some_and(|horizon| horizon > loaded) {
                break;
            }
            if watch.changed().await.is_err() {
                return Err(self.not_leader());
            }
        }
        self.replica.wait_applied(index).await;
        Ok(index)
    }

    fn granted(&self, served_by: ServedBy, term: u64) -> ReadGrant {
        // Deposed while it waited, a leader has no horizon left: unknown, never zero.
        let horizon = self.replica.gate.view().horizon;
        let now = self.env.clock.boot();
        let staleness_bound_us = horizon.map(|horizon| now.0.saturating_sub(horizon.0));
        ReadGrant { served_by, role: Role::Leader, term, staleness_bound_us }
    }

    /// Hands leadership to the voter on `to` (H3). Before the act proposals are held back until the
    /// target has flushed everything and the gate is latched; if the target does not get that far
    /// within `limit`, everything is as before. Once openraft has been told, nothing can be taken
    /// back: it refuses writes and sends no heartbeats until its term ends. Run it to its end.
    ///
    /// # Errors
    /// `NotLeader` when this replica does not lead; `NotReady` without a link to the target;
    /// `NoQuorum` when the target is not ready in time.
    pub async fn transfer(&self, to: NodeId, limit: Duration) -> Result<(), Error> {
        let Some(vote) = self.replica.gate.view().leading else { return Err(self.not_leader()) };
        let target = self.status().members.into_iter().find(|m| m.node == to && m.voter);
        let Some(target) = target.filter(|member| member.replica != self.replica.me) else {
            return Err(Error::bad_request("node", format!("node {to} is not another voter")));
        };
        if !self.links.is_up(to) {
            let reason = format!("no link to node {to}");
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        }
        let held = self.packer.hold();
        let ready = tokio::time::timeout(limit, async {
            self.packer.idle().await;
            self.wait_flushed(target.replica).await;
        });
        if ready.await.is_err() {
            return Err(Error::refused(ErrorKind::NoQuorum));
        }
        let latched =
            self.replica.gate.change(|core| core.view().leading == Some(vote) && core.latch());
        // From here on nothing is lifted: the act is begun, or the term is over.
        let told = latched && self.raft.trigger().transfer_leader(target.replica.0).await.is_ok();
        drop(held);
        if !told {
            return Err(self.not_leader());
        }
        let mut view = self.replica.gate.watch();
        let over = view.wait_for(|view| view.leading != Some(vote));
        if tokio::time::timeout(SUCCESSION, over).await.is_err() {
            self.call_for_campaigns(vote);
        }
        Ok(())
    }

    /// Tells the other voters that this leadership is given up.
    fn call_for_campaigns(&self, vote: annulus_wal::Vote) {
        let from_leader =
            v1::Vote { term: vote.term, leader: vote.leader.0, committed: vote.committed };
        for member in self.status().members.into_iter().filter(|member| member.voter) {
            let Some(link) = self.links.find(member.node) else { continue };
            let route = Route { group: self.id(), from: self.replica(), to: member.replica };
            let body = Body::Campaign(v1::Campaign { from_leader: Some(from_leader) });
            // Who does not hear it campaigns by its own timers.
            link.call(route, Lane::Control, body, Box::new(drop));
        }
    }

    /// Waits until `replica` has flushed the leader's whole log. Cancel-safe.
    async fn wait_flushed(&self, replica: ReplicaId) {
        let mut metrics = self.raft.metrics();
        loop {
            let now = metrics.borrow_watched().clone();
            let flushed = now
                .replication
                .as_ref()
                .and_then(|matched| matched.get(&replica.0).cloned().flatten())
                .map_or(0, |id| id.index);
            if now.last_log_index.is_some_and(|last| flushed == last)
                || metrics.changed().await.is_err()
            {
                return;
            }
        }
    }

    pub(crate) fn not_leader(&self) -> Error {
        let leader = self.replica.believed_leader();
        let other = leader.filter(|(id, _)| *id != self.replica.me).map(|(_, node)| node);
        Error::refused(ErrorKind::NotLeader { leader: other })
    }

    /// Whether an `any` read may be answered: the state is whole and verified (E6).
    ///
    /// # Errors
    /// `NotReady` with the reason.
    pub fn check_whole(&self) -> Result<(), Error> {
        self.check_trusted()?;
        if self.replica.is_whole() {
            return Ok(());
        }
        let reason = "the replica has not caught up since it was created".to_owned();
        Err(Error::refused(ErrorKind::NotReady { reason }))
    }

    /// The last entry applied here. Whoever waits for something to appear takes this *before* it looks,
    /// and then waits beyond it: nothing that is applied in between is missed.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.replica.applied().id.index
    }

    /// Waits until an entry above `index` is applied, its effects visible. Cancel-safe; has no deadline
    /// of its own.
    pub async fn wait_applied_beyond(&self, index: u64) {
        self.replica.wait_applied(index.saturating_add(1)).await;
    }

    /// The group's time as applied here, milliseconds.
    #[must_use]
    pub fn group_time_ms(&self) -> u64 {
        self.replica.applied().group_time_ms
    }

    /// This replica's part, and its term.
    #[must_use]
    pub fn role(&self) -> (Role, u64) {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let term = metrics.vote.leader_id.term;
        if self.replica.gate.view().leading.is_some() {
            return (Role::Leader, term);
        }
        let voter = metrics.membership_config.voter_ids().any(|id| id == self.replica.me.0);
        (if voter { Role::Follower } else { Role::Learner }, term)
    }

    /// What the replica says of itself. Costs two copies of small metrics.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let (role, term) = self.role();
        let membership = MembershipView::of(&metrics);
        let applied = self.replica.applied();
        GroupStatus {
            group: self.replica.group,
            replica: self.replica.me,
            role,
            term,
            leader: self.replica.believed_leader().map(|(_, node)| node),
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: applied.id.index,
            group_time_ms: applied.group_time_ms,
            gate_open: self.replica.gate.is_open(self.env.clock.boot()),
            halted: self.replica.halted().or_else(|| self.replica.distrusted()).or_else(|| {
                metrics.running_state.as_ref().err().map(std::string::ToString::to_string)
            }),
            members: membership.seats,
            membership_index: membership.index,
            membership_committed: membership.committed,
            joint: membership.joint,
        }
    }
}
