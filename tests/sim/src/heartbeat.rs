//! A simulated node tells the manager's leader every half second that it is there, and how its replicas are.
//!
//! The leader is found by asking: whoever answered last, else whom another one names, else the nodes one
//! after another. An attempt has a deadline and a connection that goes with it when it fails.
//!
//! Failure: a lost answer costs time. A life that the manager does not admit goes on asking; one that is
//! refused for ever stops its process, which no fault of a run is a reason for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{cluster_bytes, error_of};
use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_raft::{Group, MembershipView};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind, GroupId, NodeId, ReplicaId};
use annulus_wal::StreamId;
use tonic::transport::Channel;

use crate::command::not_ready;
use crate::process::Process;
use crate::routes::info_of;

/// Between two heartbeats that are answered.
const EVERY: Duration = Duration::from_millis(500);
/// One attempt, the connection included.
const LIMIT: Duration = Duration::from_millis(400);
/// Behind an attempt that failed.
const PAUSE: Duration = Duration::from_millis(150);
/// Redirects in a row that are followed at once.
const REDIRECTS: u32 = 2;

/// Runs until the process ends.
pub(crate) async fn run(process: Arc<Process>) {
    let mut caller = Caller { process, hint: None, last: None, redirects: 0, line: None };
    while !caller.process.env.tasks.is_stopping() {
        let pause = Box::pin(caller.round()).await;
        tokio::time::sleep(pause).await;
    }
}

struct Caller {
    process: Arc<Process>,
    /// Named by another node.
    hint: Option<NodeId>,
    /// Asked last.
    last: Option<NodeId>,
    redirects: u32,
    /// The connection to the node that was asked last.
    line: Option<(NodeId, Channel)>,
}

impl Caller {
    /// One attempt; returns the pause behind it.
    async fn round(&mut self) -> Duration {
        let Some(asked) = self.choose() else { return EVERY };
        self.last = Some(asked);
        let called = tokio::time::timeout(LIMIT, Box::pin(self.call(asked))).await;
        let answered = matches!(called, Ok(Ok(_)));
        *self.process.heard.lock() = answered.then_some(asked);
        match called {
            Ok(Ok(reply)) => {
                self.redirects = 0;
                self.take(&reply);
                EVERY
            }
            Ok(Err(Error { kind: ErrorKind::NotLeader { leader }, .. })) => {
                self.hint = leader.filter(|leader| *leader != asked);
                self.redirects += 1;
                if self.hint.is_some() && self.redirects <= REDIRECTS {
                    return Duration::ZERO;
                }
                self.redirects = 0;
                PAUSE
            }
            Ok(Err(_)) | Err(_) => {
                self.line = None;
                PAUSE
            }
        }
    }

    fn choose(&mut self) -> Option<NodeId> {
        let known = *self.process.heard.lock();
        if let Some(next) = self.hint.take().or(known) {
            return Some(next);
        }
        let own = self.process.node;
        let asks_itself = self.process.manager().is_some();
        let all = self.process.host.book().all().into_iter().map(|info| info.id);
        let managers: Vec<NodeId> = all.filter(|id| *id != own || asks_itself).collect();
        let later = managers.iter().find(|id| self.last.is_none_or(|last| **id > last));
        later.or(managers.first()).copied()
    }

    async fn call(&mut self, asked: NodeId) -> Result<v1::HeartbeatReply, Error> {
        let channel = match self.line.take() {
            Some((at, channel)) if at == asked => channel,
            _ => {
                let Some(info) = self.process.host.book().find(asked) else {
                    return Err(not_ready("no address is known"));
                };
                let connecting = annulus_raft::channel(&self.process.env, &info.peer_addr);
                connecting.await.map_err(|_| not_ready("no node answers"))?
            }
        };
        self.line = Some((asked, channel.clone()));
        let mut client = PeerClient::new(channel).max_encoding_message_size(DECODE_BYTES);
        let request = self.process.heartbeat();
        let answered = client.heartbeat(request).await.map_err(|status| error_of(&status))?;
        Ok(answered.into_inner())
    }

    fn take(&self, reply: &v1::HeartbeatReply) {
        if reply.dead {
            let reason = format!("the manager refuses its data folder: {}", reply.reason);
            self.process.env.tasks.request_stop(&reason);
            return;
        }
        if reply.admitted && reply.era > self.process.obeyed.era() {
            // What is not stored now is stored with the next one.
            drop(self.process.obeyed.obey_era(reply.era));
        }
    }
}

impl Process {
    /// A replica as it is now; `membership` is what was just learned of it.
    pub(crate) fn report(&self, group: &Group, membership: MembershipView) -> v1::GroupReport {
        let status = group.status();
        let seats = membership.seats.iter().map(|seat| v1::SeatReport {
            replica: seat.replica.0,
            node: seat.node.0,
            voter: seat.voter,
            matched: seat.matched,
        });
        v1::GroupReport {
            group: status.group.0,
            replica: status.replica.0,
            role: v1::Role::from(status.role).into(),
            term: status.term,
            leader: status.leader.map(|node| node.0),
            membership_index: membership.index,
            joint: membership.joint,
            seats: seats.collect(),
            last_index: status.last_index,
            applied_index: status.applied_index,
            gate_open: status.gate_open,
            bytes: self.bytes_of(status.group),
            halted: status.halted.unwrap_or_default(),
            membership_committed: membership.committed,
        }
    }

    /// Live bytes of a group's shards here.
    fn bytes_of(&self, group: GroupId) -> u64 {
        let shards = self.shards.all().into_iter().filter(|shard| shard.group == group);
        // One that cannot be read is found by the observer.
        shards.filter_map(|shard| self.shards.head(&shard).ok().flatten()).map(|it| it.bytes).sum()
    }

    /// What the manager is told.
    pub(crate) fn heartbeat(&self) -> v1::HeartbeatRequest {
        let groups = self.host.groups();
        let reports = groups.iter().map(|group| self.report(group, group.membership()));
        let missed = self.missed().into_iter().map(|(group, replica)| {
            (group, replica, "the table gives it to this node, and it never was here".to_owned())
        });
        let absent = self.host.absent().into_iter().chain(missed);
        let absent = absent.map(|(group, replica, halted)| {
            let (group, replica) = (group.0, replica.0);
            v1::GroupReport { group, replica, halted, ..Default::default() }
        });
        v1::HeartbeatRequest {
            cluster_id: cluster_bytes(self.host.options().cluster),
            info: Some(v1::NodeInfo::from(&info_of(self.node))),
            incarnation: self.boot.incarnation,
            boot_counter: self.boot.starts,
            table_version: self.tables.version().0,
            groups: reports.collect(),
            absent: absent.collect(),
            era: self.obeyed.era(),
            // Eras alone tell its managers apart.
            manager_incarnation: 0,
        }
    }

    /// Seats that the table gives to this node in groups that have moved on since they were founded, and
    /// that its folder never knew.
    fn missed(&self) -> Vec<(GroupId, ReplicaId)> {
        let Some(table) = self.tables.current() else { return Vec::new() };
        let wal = self.host.wal();
        let known: BTreeSet<StreamId> = wal.streams().into_iter().chain(wal.tombstones()).collect();
        let moved = table.groups.iter().filter(|route| route.membership_index > 0);
        let seats = moved.flat_map(|route| {
            let own = route.members.iter().filter(|member| member.node == self.node);
            own.map(|member| (route.id, member.replica))
        });
        let is_missed = |seat: &(GroupId, ReplicaId)| {
            let (group, replica) = *seat;
            !known.contains(&StreamId { group, replica })
        };
        seats.filter(is_missed).collect()
    }
}
