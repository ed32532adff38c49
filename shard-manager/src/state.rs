//! What the manager keeps: [`v1::ManagerState`], and what can be asked of it. Pure.
//!
//! The stored form and the working form are one: everything in it is ids, counts and texts, and a
//! second set of types would only be copied to and fro. Changes are made in one place, the
//! [`command`](crate::command) module; here is what is read from it, and how the first one comes
//! about.
//!
//! Invariants: nodes, groups and moves stand by id, shards by slice. The routing table is a
//! function of the state: [`StateExt::table`] is the only way to one. Ids come from the manager's
//! incarnation and its counter, which only grows (H5); moves are numbered by the counter alone, so
//! that people can type them.
//!
//! Failure: a plan that no cluster can be made from is refused by name; see [`PlanError`].

use annulus_proto::convert::{ConvertError, cluster_of};
use annulus_proto::v1;
use annulus_types::limits::SHARDS;
use annulus_types::{
    GroupId, GroupRoute, MemberRoute, NodeId, NodeInfo, RoutingTable, ShardRoute, TableVersion,
};

use crate::founders;
use crate::plan::{FIRST_COUNTER, PlanError, nodes_of, table_of};

/// Settings of a new cluster.
pub const SETTINGS: v1::ClusterSettings =
    v1::ClusterSettings { down_after_ms: 300_000, rebalance_manual: false, paused: false };
/// Bits of an id below the manager's incarnation.
const COUNTER_BITS: u32 = 32;

/// What can be asked of the manager's state.
pub trait StateExt {
    /// The routing table: shards, groups, and the nodes that are not removed.
    fn table(&self) -> RoutingTable;
    /// The admitted life of each node of the table, as far as one is known (N1).
    fn admitted(&self) -> Vec<v1::AdmittedLife>;
    /// The node with this id, removed ones too.
    fn node(&self, id: u32) -> Option<&v1::NodeRecord>;
    /// The group with this id; 0 is the manager's own.
    fn group(&self, id: u64) -> Option<&v1::GroupRecord>;
    /// All groups, the manager's own last.
    fn all_groups(&self) -> impl Iterator<Item = &v1::GroupRecord>;
    /// What operators may change.
    fn settings(&self) -> v1::ClusterSettings;
    /// Moves that have not ended, by id.
    fn unfinished(&self) -> impl Iterator<Item = &v1::Move>;
    /// Moves that have begun and not ended, by id.
    fn running(&self) -> impl Iterator<Item = &v1::Move>;
    /// When a move came to its state, the group's time, as far as the history goes back; else when
    /// it was planned.
    fn entered_ms(&self, step: &v1::Move) -> u64;
    /// Whether the replica died with a former life of its node's folder.
    fn is_lost(&self, replica: u64) -> bool;
    /// Whether the manager allocated the id and remembers having done so (H5).
    fn allocated(&self, id: u64) -> bool;
}

impl StateExt for v1::ManagerState {
    fn table(&self) -> RoutingTable {
        let listed = self.nodes.iter().filter(|node| node.state() != v1::NodeState::Removed);
        RoutingTable {
            cluster: cluster_of(&self.cluster_id).unwrap_or_default(),
            version: TableVersion(self.table_version),
            shards: self.shards.iter().copied().map(ShardRoute::from).collect(),
            groups: self.groups.iter().map(route_of).collect(),
            nodes: listed.filter_map(|node| node.info.clone()).map(NodeInfo::from).collect(),
        }
    }

    fn admitted(&self) -> Vec<v1::AdmittedLife> {
        let listed = self.nodes.iter().filter(|node| node.state() != v1::NodeState::Removed);
        listed
            .filter(|node| node.incarnation != 0)
            .map(|node| v1::AdmittedLife { node: id_of(node), incarnation: node.incarnation })
            .collect()
    }

    fn node(&self, id: u32) -> Option<&v1::NodeRecord> {
        self.nodes.iter().find(|node| id_of(node) == id)
    }

    fn group(&self, id: u64) -> Option<&v1::GroupRecord> {
        self.all_groups().find(|group| group.id == id)
    }

    fn all_groups(&self) -> impl Iterator<Item = &v1::GroupRecord> {
        self.groups.iter().chain(self.manager.as_ref())
    }

    fn settings(&self) -> v1::ClusterSettings {
        self.settings.unwrap_or(SETTINGS)
    }

    fn unfinished(&self) -> impl Iterator<Item = &v1::Move> {
        self.moves.iter().filter(|step| !is_ended(step.state()))
    }

    fn running(&self) -> impl Iterator<Item = &v1::Move> {
        self.unfinished().filter(|step| step.state() != v1::MoveState::Planned)
    }

    fn entered_ms(&self, step: &v1::Move) -> u64 {
        let told = self.history.iter().rev().find(|decision| decision.move_id == step.id);
        told.map_or(step.planned_ms, |told| told.at_ms)
    }

    fn is_lost(&self, replica: u64) -> bool {
        self.nodes.iter().any(|node| node.lost.contains(&replica))
    }

    fn allocated(&self, id: u64) -> bool {
        id >> COUNTER_BITS == u64::from(self.incarnation) && counter_of(id) <= self.counter
    }
}

fn route_of(group: &v1::GroupRecord) -> GroupRoute {
    GroupRoute {
        id: GroupId(group.id),
        home: NodeId(group.home),
        lane: group.lane,
        members: group.members.iter().copied().map(MemberRoute::from).collect(),
        leader: None,
        term: 0,
        membership_index: group.membership_index,
    }
}

/// The id of a node; 0 for a record without a description, which nobody makes.
#[must_use]
pub fn id_of(node: &v1::NodeRecord) -> u32 {
    node.info.as_ref().map_or(0, |info| info.id)
}

/// Whether its heartbeats arrive.
#[must_use]
pub fn is_up(node: &v1::NodeRecord) -> bool {
    node.state() == v1::NodeState::Up
}

/// Whether a move in this state is over.
#[must_use]
pub fn is_ended(state: v1::MoveState) -> bool {
    matches!(state, v1::MoveState::Done | v1::MoveState::Cancelled)
}

/// The node that a move is most about.
pub(crate) fn main_node(step: &v1::Move) -> u32 {
    step.to.or(step.from).map_or(0, |seat| seat.node)
}

/// The seat of a replica in a group.
#[must_use]
pub fn seat_of(group: &v1::GroupRecord, replica: u64) -> Option<v1::MemberRoute> {
    group.members.iter().find(|member| member.replica == replica).copied()
}

/// The seats of a node in a group: more than one while it replaces its own replica.
pub fn seats_on(group: &v1::GroupRecord, node: u32) -> impl Iterator<Item = v1::MemberRoute> {
    group.members.iter().filter(move |member| member.node == node).copied()
}

/// Puts members in the order in which they are stored: home first, then by node.
pub(crate) fn order_members(members: &mut [v1::MemberRoute], home: u32) {
    members.sort_by_key(|member| (member.node != home, member.node, member.replica));
}

pub(crate) fn counter_of(id: u64) -> u32 {
    u32::try_from(id & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// The state of the cluster that `plan` describes: the table of [`table_of`], the nodes in the
/// lives that were planned with, and the manager's group with its founders.
///
/// # Errors
/// As [`table_of`].
pub fn from_plan(plan: &v1::Plan) -> Result<v1::ManagerState, PlanError> {
    let table = table_of(plan)?;
    let infos = nodes_of(plan)?;
    let managers: Vec<NodeId> =
        infos.iter().filter(|info| info.manager).map(|info| info.id).collect();
    let manager = manager_group(plan.incarnation, &managers);
    let groups: Vec<v1::GroupRecord> = table.groups.iter().map(record_of).collect();
    let last = groups.iter().flat_map(ids_of).map(counter_of).max().unwrap_or(0);
    let nodes = plan
        .nodes
        .iter()
        .filter_map(|planned| Some(new_node(planned.info.clone()?, planned.incarnation)))
        .collect();
    Ok(v1::ManagerState {
        cluster_id: plan.cluster_id.clone(),
        era: plan.era,
        incarnation: plan.incarnation,
        counter: last.max(FIRST_COUNTER),
        shards_total: plan.shards,
        lanes: plan.lanes,
        replication: plan.replication,
        settings: Some(SETTINGS),
        table_version: table.version.0,
        nodes,
        groups,
        manager: Some(manager),
        shards: table.shards.iter().map(v1::ShardRoute::from).collect(),
        moves: Vec::new(),
        history: Vec::new(),
    })
}

/// A node that is up and holds nothing.
pub(crate) fn new_node(info: v1::NodeInfo, incarnation: u64) -> v1::NodeRecord {
    v1::NodeRecord {
        incarnation,
        state: v1::NodeState::Up.into(),
        planned_weight: info.weight,
        planned_zone: info.zone.clone(),
        info: Some(info),
        ..Default::default()
    }
}

/// The manager's group at its birth: its founders, by node.
pub(crate) fn manager_group(incarnation: u32, managers: &[NodeId]) -> v1::GroupRecord {
    let members = founders(incarnation, managers)
        .into_iter()
        .map(|(replica, node)| v1::MemberRoute { node: node.0, replica: replica.0, learner: false })
        .collect();
    v1::GroupRecord { members, ..Default::default() }
}

fn record_of(route: &GroupRoute) -> v1::GroupRecord {
    v1::GroupRecord {
        id: route.id.0,
        home: route.home.0,
        lane: route.lane,
        members: route.members.iter().map(v1::MemberRoute::from).collect(),
        membership_index: route.membership_index,
        ..Default::default()
    }
}

/// The ids that a group takes: its own and its replicas'.
pub(crate) fn ids_of(group: &v1::GroupRecord) -> impl Iterator<Item = u64> {
    std::iter::once(group.id).chain(group.members.iter().map(|member| member.replica))
}

/// What every reader of a state relies on. States come from our own functions; this is the check at
/// the one door through which a whole one enters.
///
/// # Errors
/// The first field that breaks a promise.
pub fn check(state: &v1::ManagerState) -> Result<(), ConvertError> {
    cluster_of(&state.cluster_id)?;
    let wrong = |field: &'static str, problem: String| Err(ConvertError { field, problem });
    if state.incarnation >= 1 << 21 {
        return wrong("incarnation", format!("{} needs more than 21 bits", state.incarnation));
    }
    let total = state.shards_total;
    if !total.is_power_of_two() || total > SHARDS || state.shards.len() != total as usize {
        let found = state.shards.len();
        return wrong("shards", format!("{found} shards where {total} are meant"));
    }
    let misplaced = (0u32..).zip(&state.shards).find(|(place, shard)| shard.slice != *place);
    if let Some((place, shard)) = misplaced {
        return wrong("shards", format!("slice {} stands at place {place}", shard.slice));
    }
    let homeless = state.shards.iter().find(|shard| state.group(shard.group).is_none());
    if let Some(shard) = homeless {
        return wrong("shards", format!("shard {} names group {}", shard.id, shard.group));
    }
    let ids: Vec<u32> = state.nodes.iter().map(id_of).collect();
    if ids.first() == Some(&0) || !ids.is_sorted_by(|a, b| a < b) {
        return wrong("nodes", "ids must be at least 1 and ascend".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
