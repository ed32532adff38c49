//! A manager that lost its memory: its state rebuilt from what the nodes tell. Pure.
//!
//! Groups know their members and nodes know the routing table, so all that is really lost is what
//! the manager alone kept: settings, admitted lives, moves, history. An exported state may bring
//! some of it back; where it and the nodes disagree, the nodes are right, because theirs is
//! committed.
//!
//! - *Members* come from the committed membership with the highest index that any replica reports,
//!   else from the newest table.
//! - *Shards* come from all tables, the higher epoch winning (H7).
//! - *Lives*: what answers is admitted. A node that is known and does not answer is down, in a life
//!   that nobody knows; the first that comes is taken at its word.
//! - *Era* is above every one that a node has stored, so that whatever an old manager still says is
//!   refused (H6). The *incarnation* is new, so that no id is given twice (H5).
//! - *Moves* are forgotten. What they left behind, learners and replicas without a seat, is cleared
//!   up like any stray; nothing is destroyed because it is not known (H4).
//!
//! Failure: nodes of different clusters, shards that nobody knows, or an incarnation that was used
//! before are refused by name; then nothing was changed anywhere.

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_types::{NodeId, RoutingTable, ShardRoute};

use crate::plan::FIRST_COUNTER;
use crate::state::{SETTINGS, check, counter_of, id_of, manager_group, new_node, order_members};

/// Bits of an id below the manager's incarnation.
const COUNTER_BITS: u32 = 32;

/// What a node told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// As it would tell a manager.
    pub heartbeat: v1::HeartbeatRequest,
    /// The routing table that it holds.
    pub table: Option<RoutingTable>,
}

/// No state can be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Nobody told anything.
    #[error("no node answered")]
    Nobody,
    /// They do not belong together.
    #[error("node {0} belongs to another cluster than the others")]
    OtherCluster(u32),
    /// Ids of this incarnation exist.
    #[error("ids of the manager's incarnation {0} exist already; draw another one")]
    Incarnation(u32),
    /// The tables have holes.
    #[error("nobody knows which group hosts slice {0}")]
    Slice(u32),
    /// No node knows a table.
    #[error("no node holds a routing table")]
    NoTable,
    /// What was put together makes no sense.
    #[error("the nodes do not agree: {0}")]
    Nonsense(String),
}

/// The state of a new manager for existing nodes. `incarnation`: freshly drawn, 21 bits. `from`:
/// what an earlier manager exported.
///
/// # Errors
/// See [`AdoptError`].
pub fn adopt(
    told: &[Told],
    from: Option<&v1::ManagerState>,
    incarnation: u32,
) -> Result<v1::ManagerState, AdoptError> {
    let cluster_id = cluster_of_all(told)?;
    let tables: Vec<&RoutingTable> = told.iter().filter_map(|told| told.table.as_ref()).collect();
    let newest = tables.iter().max_by_key(|table| table.version).ok_or(AdoptError::NoTable)?;
    let shards = shards_of(&tables)?;
    let groups = groups_of(told, &tables, &shards);
    check_unused(told, &groups, from, incarnation)?;

    let nodes = nodes_of(told, newest, from);
    let managers: Vec<NodeId> = told
        .iter()
        .filter_map(|told| told.heartbeat.info.as_ref())
        .filter(|info| info.manager)
        .map(|info| NodeId(info.id))
        .collect();
    let manager = manager_group(incarnation, &managers);
    let counter = manager.members.iter().map(|member| counter_of(member.replica)).max();
    let largest = groups.iter().map(|group| group.members.len()).max().unwrap_or(1);
    let storage = nodes.iter().filter(|node| node.info.as_ref().is_some_and(|i| i.storage)).count();
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let known_era = told.iter().map(|told| told.heartbeat.era).max().unwrap_or(0);
    let known_version = from.map_or(0, |from| from.table_version);
    let state = v1::ManagerState {
        cluster_id,
        era: known_era.max(from.map_or(0, |from| from.era)) + 1,
        incarnation,
        counter: counter.unwrap_or(0).max(FIRST_COUNTER),
        shards_total: count(shards.len()),
        lanes: from.map_or(count(groups.len().div_ceil(storage.max(1))), |from| from.lanes),
        replication: from.map_or(count(largest), |from| from.replication),
        settings: Some(from.and_then(|from| from.settings).unwrap_or(SETTINGS)),
        table_version: newest.version.0.max(known_version) + 1,
        nodes,
        groups,
        manager: Some(manager),
        shards: shards.iter().map(v1::ShardRoute::from).collect(),
        moves: Vec::new(),
        history: from.map(|from| from.history.clone()).unwrap_or_default(),
    };
    check(&state).map_err(|error| AdoptError::Nonsense(error.to_string()))?;
    Ok(state)
}

fn cluster_of_all(told: &[Told]) -> Result<bytes::Bytes, AdoptError> {
    let first = told.first().ok_or(AdoptError::Nobody)?;
    let cluster = &first.heartbeat.cluster_id;
    let other = told.iter().find(|told| told.heartbeat.cluster_id != *cluster);
    match other {
        Some(other) => {
            let id = other.heartbeat.info.as_ref().map_or(0, |info| info.id);
            Err(AdoptError::OtherCluster(id))
        }
        None => Ok(cluster.clone()),
    }
}

/// By slice; of several opinions the one of the higher epoch (H7).
fn shards_of(tables: &[&RoutingTable]) -> Result<Vec<ShardRoute>, AdoptError> {
    let mut by_slice: BTreeMap<u32, &ShardRoute> = BTreeMap::new();
    for shard in tables.iter().flat_map(|table| &table.shards) {
        let known = by_slice.entry(shard.slice).or_insert(shard);
        if shard.epoch > known.epoch {
            *known = shard;
        }
    }
    let total = tables.iter().map(|table| table.shards.len()).max().unwrap_or(0);
    for slice in 0..u32::try_from(total).unwrap_or(0) {
        if !by_slice.contains_key(&slice) {
            return Err(AdoptError::Slice(slice));
        }
    }
    Ok(by_slice.into_values().cloned().collect())
}

/// Every group that a shard names, with the newest that is known of it.
fn groups_of(
    told: &[Told],
    tables: &[&RoutingTable],
    shards: &[ShardRoute],
) -> Vec<v1::GroupRecord> {
    let named: BTreeSet<u64> = shards.iter().map(|shard| shard.group.0).collect();
    let reports = |id: u64| {
        told.iter()
            .flat_map(|told| &told.heartbeat.groups)
            .filter(move |report| report.group == id)
            .filter(|report| {
                report.membership_committed && !report.joint && !report.seats.is_empty()
            })
    };
    let route = |id: u64| {
        let routes = tables
            .iter()
            .flat_map(|table| table.groups.iter().map(move |route| (table.version, route)));
        let of_group = routes.filter(|(_, route)| route.id.0 == id);
        of_group.max_by_key(|(version, _)| *version).map(|(_, route)| route)
    };
    let mut groups = Vec::new();
    for id in named {
        let route = route(id);
        let report = reports(id).max_by_key(|report| report.membership_index);
        let mut record = v1::GroupRecord { id, ..Default::default() };
        if let Some(route) = route {
            record.home = route.home.0;
            record.lane = route.lane;
            record.members = route.members.iter().map(v1::MemberRoute::from).collect();
            record.membership_index = route.membership_index;
        }
        if let Some(report) = report.filter(|r| r.membership_index >= record.membership_index) {
            let member = |seat: &v1::SeatReport| v1::MemberRoute {
                node: seat.node,
                replica: seat.replica,
                learner: !seat.voter,
            };
            record.members = report.seats.iter().map(member).collect();
            record.membership_index = report.membership_index;
            record.bytes = report.bytes;
        }
        if record.home == 0 {
            record.home = record.members.first().map_or(0, |member| member.node);
        }
        order_members(&mut record.members, record.home);
        groups.push(record);
    }
    groups
}

/// An incarnation of which a node still knows an id would give ids out twice (H5).
fn check_unused(
    told: &[Told],
    groups: &[v1::GroupRecord],
    from: Option<&v1::ManagerState>,
    incarnation: u32,
) -> Result<(), AdoptError> {
    let reports = told
        .iter()
        .flat_map(|told| told.heartbeat.groups.iter().chain(&told.heartbeat.absent))
        .flat_map(|report| {
            let seats = report.seats.iter().map(|seat| seat.replica);
            seats.chain([report.group, report.replica])
        });
    let mut ids = reports.chain(groups.iter().flat_map(crate::state::ids_of));
    let is_used = ids.any(|id| id >> COUNTER_BITS == u64::from(incarnation));
    if is_used || from.is_some_and(|from| from.incarnation == incarnation) {
        return Err(AdoptError::Incarnation(incarnation));
    }
    Ok(())
}

/// Who answers is up; who is only known of is down, in a life that nobody knows.
fn nodes_of(
    told: &[Told],
    newest: &RoutingTable,
    from: Option<&v1::ManagerState>,
) -> Vec<v1::NodeRecord> {
    let mut nodes: BTreeMap<u32, v1::NodeRecord> = BTreeMap::new();
    for info in newest.nodes.iter().map(v1::NodeInfo::from) {
        let mut record = new_node(info, 0);
        record.set_state(v1::NodeState::Down);
        record.down_since_ms = 1;
        nodes.insert(id_of(&record), record);
    }
    for known in from.iter().flat_map(|from| &from.nodes) {
        let mut record = known.clone();
        if record.state() != v1::NodeState::Removed {
            record.set_state(v1::NodeState::Down);
            record.down_since_ms = 1;
            record.incarnation = 0;
        }
        nodes.insert(id_of(known), record);
    }
    for heartbeat in told.iter().map(|told| &told.heartbeat) {
        let Some(info) = &heartbeat.info else { continue };
        let record =
            nodes.entry(info.id).or_insert_with(|| new_node(info.clone(), heartbeat.incarnation));
        if record.state() == v1::NodeState::Removed {
            continue;
        }
        // What operators chose for it is in the table and in the export.
        let (zone, weight) = match &record.info {
            Some(known) => (known.zone.clone(), known.weight),
            None => (info.zone.clone(), info.weight),
        };
        record.info = Some(v1::NodeInfo { zone, weight, ..info.clone() });
        record.incarnation = heartbeat.incarnation;
        record.set_state(v1::NodeState::Up);
        record.down_since_ms = 0;
    }
    nodes.into_values().filter(|node| id_of(node) != 0).collect()
}

#[cfg(test)]
mod tests;
