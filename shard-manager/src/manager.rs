//! The manager as its node's services see it: heartbeats in, the state out, commands proposed.
//!
//! [`Manager`] is a cheap handle on this node's replica of group 0. Only the leader of that group
//! answers; elsewhere every call is refused with `NotLeader` and the leader, if one is known. What
//! operators ask is in `operators`, what is done without being asked in [`driver`](crate::driver).
//!
//! Invariants: what was seen belongs to one term and is forgotten with it. A heartbeat of a life
//! that is not admitted changes nothing, and says why to who sent it (N1). Nothing here is decided
//! by a follower.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::cluster_of;
use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command;
use annulus_raft::{Group, Host, Reign};
use annulus_runtime::Env;
use annulus_types::{Error, ErrorKind, Role, ShardId};
use parking_lot::{Mutex, MutexGuard};

use crate::command::Outcome;
use crate::command::nodes::{Admission, admission};
use crate::courier::Courier;
use crate::executor::Now;
use crate::machine::{ManagerMachine, operation_of, outcome_of};
use crate::sight::{FORMER_MS, Sight};
use crate::state::StateExt;

/// A command that is not applied within this is given up; its fate is then not known.
const PROPOSE_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct Manager {
    pub(crate) env: Env,
    pub(crate) host: Arc<Host>,
    pub(crate) group: Arc<Group>,
    pub(crate) machine: Arc<ManagerMachine>,
    pub(crate) courier: Courier,
    desk: Mutex<Desk>,
}

/// What the leader has before it, for one term.
#[derive(Default)]
pub(crate) struct Desk {
    pub term: u64,
    pub sight: Sight,
    /// Readings of both clocks at one moment.
    mark: Now,
}

impl Desk {
    /// Both clocks now. The group's time stands in entries, and between two entries it is counted
    /// on by the leader's clock, which is what the next entry will do.
    fn read(&mut self, mono_ms: u64, applied_ms: u64) -> Now {
        let passed_ms = mono_ms.saturating_sub(self.mark.mono_ms);
        let group_ms = applied_ms.max(self.mark.group_ms.saturating_add(passed_ms));
        self.mark = Now { mono_ms, group_ms };
        self.mark
    }
}

impl Manager {
    pub(crate) fn new(
        env: Env,
        host: Arc<Host>,
        group: Arc<Group>,
        machine: Arc<ManagerMachine>,
    ) -> Self {
        let courier = Courier::default();
        Self { env, host, group, machine, courier, desk: Mutex::default() }
    }

    /// The term in which this node leads group 0.
    ///
    /// # Errors
    /// `NotLeader` when it does not.
    pub fn leading(&self) -> Result<u64, Error> {
        if let (Role::Leader, term) = self.group.role() {
            return Ok(term);
        }
        let own = self.host.options().info.id;
        let leader = self.group.status().leader.filter(|node| *node != own);
        Err(Error::refused(ErrorKind::NotLeader { leader }))
    }

    /// The state as applied here.
    ///
    /// # Errors
    /// `NotReady` before the cluster is made.
    pub fn state(&self) -> Result<Arc<v1::ManagerState>, Error> {
        self.machine.state().ok_or_else(|| {
            Error::refused(ErrorKind::NotReady { reason: "the cluster is being made".to_owned() })
        })
    }

    /// The desk of this term, and now. A caller of an earlier term is refused: its leadership is
    /// over.
    pub(crate) fn desk(&self, term: u64) -> Result<(MutexGuard<'_, Desk>, Now), Error> {
        let mono_ms = self.env.clock.monotonic_us() / 1_000;
        let mut desk = self.desk.lock();
        if desk.term > term {
            return Err(Error::refused(ErrorKind::NotLeader { leader: None }));
        }
        if desk.term < term {
            let mark = Now { mono_ms, group_ms: 0 };
            *desk = Desk { term, sight: Sight::new(mono_ms), mark };
        }
        let now = desk.read(mono_ms, self.group.group_time_ms());
        Ok((desk, now))
    }

    /// Proposes a change and waits until it is applied. Dropping the future loses the answer, never
    /// the change.
    ///
    /// # Errors
    /// What the state refuses, with NO; as [`Group::propose`] otherwise.
    pub(crate) async fn propose(&self, command: Command) -> Result<Outcome, Error> {
        let operation = operation_of(&v1::ManagerCommand { command: Some(command) });
        let proposed = self.group.propose(ShardId(0), operation, PROPOSE_LIMIT).await?;
        let outcome = outcome_of(proposed.reply)?;
        for decision in &outcome.decisions {
            tracing::info!(what = %decision.what, why = %decision.why, "the manager decided");
        }
        Ok(outcome)
    }

    /// Takes a node's heartbeat.
    ///
    /// # Errors
    /// `NotLeader` elsewhere; `WrongCluster`; `NotReady` when the node's admission is not stored in
    /// time, or it knows a later manager. A life that is not admitted is no error: the reply says
    /// so.
    pub async fn heartbeat(
        &self,
        request: &v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatReply, Error> {
        let term = self.leading()?;
        let state = self.state()?;
        if request.cluster_id != state.cluster_id {
            let actual = cluster_of(&state.cluster_id)?;
            return Err(Error::refused(ErrorKind::WrongCluster { actual }));
        }
        let told = Reign { era: request.era, incarnation: request.manager_incarnation };
        if told > (Reign { era: state.era, incarnation: state.incarnation }) {
            let reason = format!("node knows a manager of {told}");
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        }
        let Some(info) = &request.info else {
            return Err(Error::bad_request("info", "is missing"));
        };
        let former_silent = {
            let (desk, now) = self.desk(term)?;
            let known = state.node(info.id);
            known.is_some_and(|node| desk.sight.silent_ms(node, now.mono_ms) >= FORMER_MS)
        };
        let judge = |state: &Arc<v1::ManagerState>| {
            admission(state, info, request.incarnation, former_silent)
        };
        let mut judged = (judge(&state), state);
        if judged.0 == Admission::Enter {
            let (info, incarnation) = (Some(info.clone()), request.incarnation);
            let reports = request.groups.iter().chain(&request.absent);
            let held = reports.map(|report| report.replica).collect();
            let admit = v1::AdmitNode { info, incarnation, former_silent, held };
            self.propose(Command::Admit(admit)).await?;
            let state = self.state()?;
            judged = (judge(&state), state);
        }
        let (judged, state) = judged;
        let mut reply = v1::HeartbeatReply {
            table_version: state.table_version,
            era: state.era,
            manager_incarnation: state.incarnation,
            term,
            ..Default::default()
        };
        match judged {
            Admission::Known => {
                let (mut desk, now) = self.desk(term)?;
                desk.sight.hear(request, now.mono_ms);
                reply.admitted = true;
            }
            Admission::Refused { reason, dead } => {
                tracing::info!(node = info.id, %reason, dead, "a node is not admitted");
                reply.reason = reason;
                reply.dead = dead;
            }
            // Something else about the node changed at the same time.
            Admission::Enter => {
                let reason = "the node's admission changed meanwhile".to_owned();
                return Err(Error::refused(ErrorKind::NotReady { reason }));
            }
        }
        Ok(reply)
    }

    /// The table for one node. A seat whose replica died with a former life of its folder is left
    /// out for the node itself: it must not be created again under its old id (N1).
    pub(crate) fn table_for(state: &v1::ManagerState, node: &v1::NodeRecord) -> v1::RoutingTable {
        let own = crate::state::id_of(node);
        let mut table = v1::RoutingTable::from(&state.table());
        for group in &mut table.groups {
            group
                .members
                .retain(|member| member.node != own || !node.lost.contains(&member.replica));
        }
        table
    }
}
