//! Whether a cluster has come to rest, and what its leaders say of their groups.
//!
//! A look at all processes in one step of the simulation; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use annulus_proto::v1;
use annulus_raft::GroupStatus;
use annulus_shard_manager::planning::{Figures, plan};
use annulus_shard_manager::state::{StateExt as _, id_of, is_up};
use annulus_shard_manager::{Manager, voters};
use annulus_types::{GroupId, ReplicaId};

use crate::process::Process;
use crate::world::World;

/// The manager whose leader is sure that it leads, with its node.
pub(crate) fn manager(world: &World) -> Option<(Arc<Process>, Arc<Manager>)> {
    let leads = |process: &Arc<Process>| {
        let group = process.host.group(GroupId::MANAGER)?;
        group.status().gate_open.then(|| process.lead().ok()).flatten()
    };
    world.processes().into_iter().find_map(|process| leads(&process).map(|it| (process, it)))
}

/// What the leaders with open gates say, by group.
pub(crate) fn leaders(processes: &[Arc<Process>]) -> BTreeMap<GroupId, GroupStatus> {
    let groups = processes.iter().flat_map(|process| process.host.groups());
    let statuses = groups.map(|group| group.status()).filter(|status| status.gate_open);
    statuses.map(|status| (status.group, status)).collect()
}

/// The first group that has no leader or whose membership is not settled, or the first replica on a node
/// that no group has a seat for; `None` when there is none of these.
pub(crate) fn disorder(world: &World, processes: &[Arc<Process>]) -> Option<String> {
    let leaders = leaders(processes);
    let all = world.routes.groups.iter().map(|route| route.id).chain([GroupId::MANAGER]);
    for group in all {
        let Some(leader) = leaders.get(&group) else {
            return Some(format!("group {group} has no leader"));
        };
        if leader.joint || !leader.membership_committed {
            return Some(format!("the membership of group {group} is not settled"));
        }
    }
    let seats: BTreeSet<ReplicaId> =
        leaders.values().flat_map(|leader| &leader.members).map(|member| member.replica).collect();
    processes.iter().find_map(|process| {
        let held = process.host.held();
        let (group, replica) = held.into_iter().find(|(_, replica)| !seats.contains(replica))?;
        let node = process.node;
        Some(format!("node {node} holds replica {replica}, for which group {group} has no seat"))
    })
}

/// Why something may still be under way or to be done; `None` when the cluster rests.
pub(crate) fn unrest(world: &World) -> Option<String> {
    let processes = world.processes();
    if processes.len() < world.node_ids().len() || !processes.iter().all(|it| it.is_open()) {
        return Some("not every node is up".to_owned());
    }
    if let Some(what) = disorder(world, &processes) {
        return Some(what);
    }
    let Some((leader, _)) = manager(world) else { return Some("no manager leads".to_owned()) };
    let Some(state) = leader.manager_state() else {
        return Some("the manager knows nothing".to_owned());
    };
    unrest_of(&state).or_else(|| {
        let held = |process: &&Arc<Process>| process.tables.version().0 != state.table_version;
        let behind = processes.iter().find(held)?;
        Some(format!("node {} does not hold the table", behind.node))
    })
}

/// What the manager has still to do, by its own rules.
fn unrest_of(state: &v1::ManagerState) -> Option<String> {
    if let Some(step) = state.unfinished().next() {
        let (id, group, now) = (step.id, step.group, step.state().as_str_name());
        return Some(format!(
            "move {id} of group {group} is in {now}, waiting for {:?}",
            step.waiting
        ));
    }
    if let Some(node) = state.nodes.iter().find(|node| !is_up(node)) {
        return Some(format!("node {} is not up for the manager", id_of(node)));
    }
    let damaged = BTreeSet::new();
    if let Some(step) = plan(state, &damaged, 0, Figures::Applied).steps.first() {
        return Some(format!("group {} is still to be moved: {}", step.group, step.rule));
    }
    let step = voters::next_step(state, &damaged, 0)?;
    Some(format!("the manager's group is still to be moved: {}", step.rule))
}
