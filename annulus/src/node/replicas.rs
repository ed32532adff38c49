//! Opening what a folder holds, and bringing the shards of a new cluster into being.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{Engine, EngineKind};
use annulus_proto::v1;
use annulus_raft::{Group, GroupSpec, Host, HostError, Machine, Reign};
use annulus_runtime::{Env, OnEnd};
use annulus_server::ShardMachine;
use annulus_server::operation::Op;
use annulus_shard_manager::state::from_plan;
use annulus_shard_manager::{Driver, ManagerMachine};
use annulus_types::token::MICRO_SLICES;
use annulus_types::{GroupId, MemberRoute, NodeId, ReplicaId, RoutingTable, ShardRoute};
use annulus_wal::{Wal, Writer};

use super::Node;
use crate::config::Config;

/// Opens the shared log.
pub(super) fn open_log(env: &Env, config: &Config) -> anyhow::Result<(Wal, Writer)> {
    let random = env.random.clone();
    let dir = config.data_dir.join("log");
    Ok(Wal::open(Arc::clone(&env.disk), &dir, config.wal_options(), move || random.u64())?)
}

/// Opens the engine; one that does not open is moved aside and made anew. What it held is restored
/// before a group's Raft runs: from the files of the snapshot that the replica began with, if there
/// was one, and by replaying the log. A replica for which these do not reach stays absent.
pub(super) fn open_engine(env: &Env, config: &Config) -> anyhow::Result<Arc<dyn Engine>> {
    let dir: PathBuf = config.data_dir.join(format!("engine-{}", config.engine_kind()));
    let kind: EngineKind = config.engine_kind();
    let opened = annulus_engine::open_or_move_aside(env.disk.as_ref(), kind, &dir)?;
    if let Some(aside) = opened.moved_aside {
        tracing::warn!(
            folder = %aside.display(),
            "the engine did not open and was moved aside; it is rebuilt from snapshot and log"
        );
    }
    Ok(opened.engine)
}

impl Node {
    /// Opens every replica that the folder holds. A damaged one stays closed and says so; the
    /// others serve.
    pub(super) async fn open_held(self: &Arc<Self>, host: &Arc<Host>) -> anyhow::Result<()> {
        let table = self.tables.current();
        for (group, replica) in host.held() {
            let found = table
                .as_ref()
                .map(|table| founders_if_home(table, group, self.info.id, replica))
                .unwrap_or_default();
            let spec = GroupSpec { group, replica, found };
            match self.open_replica(host, spec).await {
                Ok(_) => {}
                Err(error @ (HostError::NeedsRefill { .. } | HostError::Deposed(_))) => {
                    tracing::error!(%group, %replica, %error, "replica stays absent");
                }
                Err(HostError::Damaged { file, offset, reason }) => {
                    tracing::error!(%group, %replica, file, offset, reason, "replica is damaged");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens one replica with the machine that its group needs; one that is open already is founded
    /// if that is still to be done. The machine is kept before the group is opened with it, so that
    /// an opening that failed half-way can be repeated. Not cancel-safe.
    pub(super) async fn open_replica(
        self: &Arc<Self>,
        host: &Arc<Host>,
        spec: GroupSpec,
    ) -> Result<Arc<Group>, HostError> {
        if spec.group == GroupId::MANAGER {
            return self.open_manager(host, spec).await;
        }
        let kept = self.machines.lock().get(&spec.group).cloned();
        let machine = match kept {
            Some(machine) => machine,
            None => {
                let machine = ShardMachine::open(spec.group, Arc::clone(&self.shards))?;
                self.machines.lock().insert(spec.group, Arc::clone(&machine));
                machine
            }
        };
        host.open_group(spec, machine).await
    }

    async fn open_manager(
        self: &Arc<Self>,
        host: &Arc<Host>,
        spec: GroupSpec,
    ) -> Result<Arc<Group>, HostError> {
        let kept = self.manager.lock().clone();
        let machine = match &kept {
            Some(machine) => Arc::clone(machine),
            None => ManagerMachine::open(self.engine.as_ref())?,
        };
        *self.manager.lock() = Some(Arc::clone(&machine));
        let group = host.open_group(spec, Arc::clone(&machine) as Arc<dyn Machine>).await?;
        self.manage(host, &group, machine);
        Ok(group)
    }

    /// Puts the manager to work on a replica of its group, once. The driver of a replica that was
    /// destroyed stays and does nothing: what it looks at never leads again.
    fn manage(
        self: &Arc<Self>,
        host: &Arc<Host>,
        group: &Arc<Group>,
        machine: Arc<ManagerMachine>,
    ) {
        let mut managing = self.managing.lock();
        if managing.as_ref().is_some_and(|(replica, _)| *replica == group.replica()) {
            return;
        }
        let first = self.first_state(group.replica(), &machine);
        let (host, replica) = (Arc::clone(host), group.replica());
        let driver = Driver::new(self.env.clone(), host, Arc::clone(group), machine, first);
        *managing = Some((replica, driver.manager()));
        self.env.tasks.spawn("manager driver", OnEnd::StopNode, driver.run());
    }
}

impl Node {
    /// What the manager with this replica begins with, if this node was told and it is to begin still. A plan or
    /// state of another manager than the replica's is none of its business (H6).
    fn first_state(
        &self,
        replica: ReplicaId,
        machine: &ManagerMachine,
    ) -> Option<v1::ManagerState> {
        if machine.state().is_some() {
            return None;
        }
        let is_own = |era, incarnation| Reign { era, incarnation }.admits(replica);
        let adopted = super::adoption::stored(self);
        let adopted = adopted.filter(|it| is_own(it.era, it.incarnation)).and_then(|it| it.state);
        if adopted.is_some() {
            return adopted;
        }
        let plan = super::birth::stored_plan(self);
        let plan = plan.filter(|plan| is_own(plan.era, plan.incarnation))?;
        match from_plan(&plan) {
            Ok(first) => Some(first),
            Err(error) => {
                tracing::error!(%error, "no cluster can be made from the plan of the birth");
                None
            }
        }
    }
}

/// The members with which `replica` of `node` founds its group, if it is to do so: the home alone
/// initialises a group, so that it is the first to lead it, and only one of the founding replicas does. One
/// that came later waits for its leader's log, whatever the table makes of its node.
pub(super) fn founders_if_home(
    table: &RoutingTable,
    group: GroupId,
    node: NodeId,
    replica: ReplicaId,
) -> BTreeMap<ReplicaId, NodeId> {
    let as_founded = table.group(group).filter(|route| {
        let is_founder = |member: &MemberRoute| (member.node, member.replica) == (node, replica);
        route.home == node && route.membership_index == 0 && route.members.iter().any(is_founder)
    });
    let Some(route) = as_founded else { return BTreeMap::new() };
    route.members.iter().map(|member| (member.replica, member.node)).collect()
}

/// Proposes the shards that the first table gives to groups led here and that are not there yet: all
/// of them, or those whose entry an earlier leader did not get to. Creating one twice is refused at
/// apply. Only by a leader whose gate is open: it has applied all that earlier leaders committed, so what
/// is missing then is missing in the group, and not just unread here.
pub(super) async fn create_shards(node: Arc<Node>) {
    let mut pause = Duration::from_millis(20);
    while !node.env.tasks.is_stopping() {
        tokio::time::sleep(pause).await;
        let (Some(table), Some(host)) = (node.tables.current(), node.host()) else { continue };
        let machines: Vec<(GroupId, Arc<ShardMachine>)> =
            node.machines.lock().iter().map(|(id, machine)| (*id, Arc::clone(machine))).collect();
        let mut all_exist = !machines.is_empty();
        for (id, machine) in machines {
            if table.group(id).is_none() {
                continue;
            }
            let hosted = machine.hosted();
            let planned = table.shards.iter().filter(|shard| shard.group == id);
            let missing: Vec<&ShardRoute> =
                planned.filter(|shard| !hosted.contains(&shard.id)).collect();
            if missing.is_empty() {
                continue;
            }
            all_exist = false;
            let Some(group) = host.group(id).filter(|group| group.status().gate_open) else {
                continue;
            };
            propose_shards(&table, &missing, &group).await;
        }
        if all_exist {
            pause = Duration::from_millis(500);
        }
    }
}

async fn propose_shards(table: &RoutingTable, missing: &[&ShardRoute], group: &Group) {
    let Ok(count) = u16::try_from(MICRO_SLICES as usize / table.shards.len().max(1)) else {
        return;
    };
    let creations = missing.iter().map(|shard| async {
        let first = u16::try_from(shard.slice).unwrap_or(u16::MAX).saturating_mul(count);
        let op = Op::Create { first, count, epoch: shard.epoch };
        let created = group.propose(shard.id, op.encode(), Duration::from_secs(2)).await;
        if let Err(error) = &created {
            tracing::info!(group = %group.id(), shard = %shard.id, %error, "a shard is not created yet");
        }
        created.is_ok()
    });
    let created = futures_util::future::join_all(creations).await;
    let shards = created.iter().filter(|created| **created).count();
    tracing::info!(group = %group.id(), shards, "shards created");
}

#[cfg(test)]
mod tests {
    use annulus_types::{GroupRoute, MemberRole};

    use super::*;

    #[test]
    fn only_a_founding_replica_at_home_founds_a_group_as_it_was_planned() {
        let member = |node: u32| MemberRoute {
            node: NodeId(node),
            replica: ReplicaId(u64::from(10 + node)),
            role: MemberRole::Voter,
        };
        let group = |id: u64, membership_index: u64| GroupRoute {
            id: GroupId(id),
            home: NodeId(2),
            lane: 0,
            members: vec![member(2), member(1)],
            leader: None,
            term: 0,
            membership_index,
        };
        let table = RoutingTable { groups: vec![group(7, 0), group(8, 5)], ..Default::default() };
        let founders = |group: u64, node: u32, replica: u64| {
            founders_if_home(&table, GroupId(group), NodeId(node), ReplicaId(replica)).len()
        };
        assert_eq!(founders(7, 2, 12), 2);
        assert_eq!(founders(7, 1, 11), 0, "not the home");
        assert_eq!(founders(7, 2, 99), 0, "a replica that came later");
        assert_eq!(founders(8, 2, 12), 0, "the group has moved on");
        assert_eq!(founders(9, 2, 12), 0, "no such group");
    }
}
