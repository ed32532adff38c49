//! The replicas of a simulated node: those that its folder holds, those that a table or a command brings,
//! and the manager on the one of its own group.
//!
//! The same calls of the Raft host as in the real node, without its services.
//!
//! Invariant: replicas come about by a table of founding groups or by a command, never otherwise (N1);
//! whoever opens one holds `changing`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::EngineError;
use annulus_proto::v1;
use annulus_raft::{Group, GroupSpec, HostError, Machine};
use annulus_runtime::{OnEnd, Tasks};
use annulus_server::ShardMachine;
use annulus_server::operation::Op;
use annulus_shard_manager::{Driver, Manager};
use annulus_types::{Epoch, Error, ErrorKind, GroupId, NodeId, ReplicaId, RoutingTable, ShardId};
use annulus_wal::StreamId;
use anyhow::Context as _;
use parking_lot::Mutex;

use crate::forgetful::{Forgetful, begin};
use crate::process::Process;
use crate::routes::founders;
use crate::world::World;

/// Between two looks at whether something is still to be brought into being.
const CREATE_TICK: Duration = Duration::from_millis(20);
/// For one attempt.
const CREATE_LIMIT: Duration = Duration::from_secs(2);

/// What serves the open replicas.
#[derive(Default)]
pub(crate) struct Kept {
    machines: Mutex<BTreeMap<GroupId, Arc<ShardMachine>>>,
    manager: Mutex<Option<Arc<Forgetful>>>,
    managing: Mutex<Option<(ReplicaId, Arc<Manager>)>>,
}

impl Process {
    /// Opens what the folder holds, and the replica with which a founder begins in the manager's group.
    pub(crate) async fn open_held(self: &Arc<Self>) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        let table = self.tables.current();
        for (group, replica) in self.host.held() {
            let found = match &table {
                _ if group == GroupId::MANAGER => self.routes.found_manager(replica),
                Some(table) => founders(table, group, self.node, replica),
                None => BTreeMap::new(),
            };
            self.open_replica(GroupSpec { group, replica, found }).await?;
        }
        let Some(replica) = self.routes.manager_seat(self.node) else { return Ok(()) };
        let stream = StreamId { group: GroupId::MANAGER, replica };
        let wal = self.host.wal();
        let is_known = wal.streams().contains(&stream) || wal.tombstones().contains(&stream);
        if !is_known && self.boot.life == 0 {
            let found = self.routes.found_manager(replica);
            let group = GroupId::MANAGER;
            self.open_replica(GroupSpec { group, replica, found }).await?;
        }
        Ok(())
    }

    async fn open_replica(self: &Arc<Self>, spec: GroupSpec) -> anyhow::Result<()> {
        let what = format!("replica {} of group {}", spec.replica, spec.group);
        Box::pin(self.open(spec)).await.map(drop).with_context(|| what)
    }

    /// Opens one replica with the machine that its group needs. Not cancel-safe.
    pub(crate) async fn open(self: &Arc<Self>, spec: GroupSpec) -> Result<Arc<Group>, HostError> {
        if spec.group != GroupId::MANAGER {
            let machine: Arc<dyn Machine> = self.machine_of(spec.group)?;
            return Box::pin(self.host.open_group(spec, machine)).await;
        }
        let machine = self.manager_machine()?;
        let applying: Arc<dyn Machine> = Arc::clone(&machine) as Arc<dyn Machine>;
        let group = Box::pin(self.host.open_group(spec, applying)).await?;
        self.manage(&group, &machine);
        Ok(group)
    }

    /// Kept before the group is opened with it, so that an opening that failed half-way can be repeated.
    fn machine_of(&self, group: GroupId) -> Result<Arc<ShardMachine>, EngineError> {
        let mut machines = self.kept.machines.lock();
        if let Some(machine) = machines.get(&group) {
            return Ok(Arc::clone(machine));
        }
        let machine = ShardMachine::open(group, Arc::clone(&self.shards))?;
        machines.insert(group, Arc::clone(&machine));
        Ok(machine)
    }

    fn manager_machine(&self) -> Result<Arc<Forgetful>, EngineError> {
        let mut kept = self.kept.manager.lock();
        if let Some(machine) = kept.as_ref() {
            return Ok(Arc::clone(machine));
        }
        let (trace, told) = (self.trace.clone(), Arc::clone(&self.manager_told));
        let machine = Forgetful::open(self.engine.as_ref(), trace, told)?;
        *kept = Some(Arc::clone(&machine));
        Ok(machine)
    }

    /// Puts the manager to work on a replica of its group, once.
    fn manage(&self, group: &Arc<Group>, machine: &Arc<Forgetful>) {
        let mut managing = self.kept.managing.lock();
        if managing.as_ref().is_some_and(|(replica, _)| *replica == group.replica()) {
            return;
        }
        let (env, host) = (self.env.clone(), Arc::clone(&self.host));
        let inner = Arc::clone(machine.inner());
        // The first state is proposed below: a real one begins with what `init` has left on its disk.
        let driver = Driver::new(env, host, Arc::clone(group), inner, None);
        *managing = Some((group.replica(), driver.manager()));
        self.env.tasks.spawn("manager driver", OnEnd::StopNode, driver.run());
        let beginning = Beginning {
            tasks: self.env.tasks.clone(),
            group: Arc::clone(group),
            machine: Arc::clone(machine),
            first: self.routes.first.clone(),
        };
        self.env.tasks.spawn("birth", OnEnd::Ignore, beginning.run());
    }

    /// Lets go of what served a replica that is not open any more.
    pub(crate) fn forget(&self, group: GroupId) {
        if self.host.group(group).is_some() {
            return;
        }
        self.kept.machines.lock().remove(&group);
        if group == GroupId::MANAGER {
            *self.kept.manager.lock() = None;
            *self.kept.managing.lock() = None;
        }
    }

    /// The manager on this node's replica of its group, if it has one.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.kept.managing.lock().as_ref().map(|(_, manager)| Arc::clone(manager))
    }

    /// The manager, if its leader is here; else the node that is believed to have it.
    pub(crate) fn lead(&self) -> Result<Arc<Manager>, Option<NodeId>> {
        let heard = self.heard.lock().filter(|node| *node != self.node);
        let Some(manager) = self.manager() else { return Err(heard) };
        match manager.leading() {
            Ok(_) => Ok(manager),
            Err(Error { kind: ErrorKind::NotLeader { leader }, .. }) => Err(leader.or(heard)),
            Err(_) => Err(heard),
        }
    }

    /// The manager's state as applied here.
    pub(crate) fn manager_state(&self) -> Option<Arc<v1::ManagerState>> {
        self.kept.manager.lock().as_ref().and_then(|machine| machine.inner().state())
    }
}

/// Sees to it that the manager's group has a state.
struct Beginning {
    tasks: Tasks,
    group: Arc<Group>,
    machine: Arc<Forgetful>,
    first: v1::ManagerState,
}

impl Beginning {
    /// Proposes the first state until there is one. The first that commits makes the cluster.
    async fn run(self) {
        while !self.tasks.is_stopping() && self.machine.inner().state().is_none() {
            if self.group.status().gate_open {
                // A refusal: another one was first.
                drop(Box::pin(begin(&self.group, self.first.clone(), false, CREATE_LIMIT)).await);
            }
            tokio::time::sleep(CREATE_TICK).await;
        }
    }
}

/// Proposes the shards that the first table gives to groups led here, until the cluster is born. By a leader
/// whose gate is open: it has applied what earlier leaders committed.
pub(crate) async fn create_shards(world: Arc<World>, process: Arc<Process>) {
    while !process.env.tasks.is_stopping() && !world.is_born() {
        if let Some(table) = process.tables.current() {
            for route in &world.routes.groups {
                let Some(group) = process.host.group(route.id) else { continue };
                let missing = missing(&process, &table, route.id);
                if !missing.is_empty() && group.status().gate_open {
                    propose_shards(&world, &group, &missing).await;
                }
            }
        }
        tokio::time::sleep(CREATE_TICK).await;
    }
}

fn missing(process: &Process, table: &RoutingTable, group: GroupId) -> Vec<ShardId> {
    let machine = process.kept.machines.lock().get(&group).cloned();
    let hosted = machine.map(|machine| machine.hosted()).unwrap_or_default();
    let planned = table.shards.iter().filter(|shard| shard.group == group).map(|shard| shard.id);
    planned.filter(|shard| !hosted.contains(shard)).collect()
}

/// One that exists in the log already is refused there.
async fn propose_shards(world: &World, group: &Group, missing: &[ShardId]) {
    let creations = missing.iter().map(|shard| {
        let (first, count) = world.routes.run_of(*shard);
        let op = Op::Create { first, count, epoch: Epoch(1) };
        group.propose(*shard, op.encode(), CREATE_LIMIT)
    });
    // What was not created now is still missing at the next look.
    drop(futures_util::future::join_all(creations).await);
}
