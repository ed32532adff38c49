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
//! - *Lives*: what answers is admitted, unless others remember that its folder was given up for another
//!   one: then it is named, and nothing is adopted while it is there. A node that is known and does not
//!   answer is down, in the life that is remembered to be admitted, so that another one does not come
//!   back for it (N1). Of several memories the one that came with the newest table counts, the export's
//!   among them. Only if nobody remembers any life, the first that comes is taken at its word; what it
//!   does not hold by then is lost ([`nodes`](crate::command::nodes)).
//! - *Lost replicas*: a seat of a node that answers and does not hold the replica, open or closed. It
//!   died with a former life of the folder, and must not be created again under its id (N1). What died so
//!   at a node that does not answer is not known. It is not created either: only the manager of the birth
//!   has replicas created by its table, and a node tells a later one which of its seats it never held.
//! - *Nodes*: a node that the export has and a newer table lacks was removed since.
//! - *Era* is above every one that a node has stored, so that whatever an old manager still says is
//!   refused (H6). The *incarnation* is new, so that no id is given twice (H5).
//! - *Table version* is far above every one that is known: a former manager may have given out others
//!   to nodes that do not answer, and a table replaces lower versions only.
//! - *Moves* are forgotten. What they left behind, learners and replicas without a seat, is cleared
//!   up like any stray; nothing is destroyed because it is not known (H4).
//!
//! When the nodes are asked they must have stored the new era already: from then on no former manager
//! changes anything of what they told. That is the caller's part, as is asking.
//!
//! Failure: nodes of different clusters, shards that nobody knows, or an incarnation that was used
//! before are refused by name; then nothing was changed anywhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_types::{NodeId, RoutingTable, ShardRoute};

use crate::plan::FIRST_COUNTER;
use crate::state::{
    SETTINGS, StateExt as _, check, counter_of, id_of, manager_group, new_node, order_members,
};

mod report;

pub use report::{Report, Stray, report};

/// Members of a group where nobody says otherwise, as for a new cluster.
const REPLICATION: u32 = 3;
/// Bits of an id below the manager's incarnation.
const COUNTER_BITS: u32 = 32;
/// Table versions that a former manager may have given out to nodes that do not answer: more than any
/// gives out in years.
const VERSION_GAP: u64 = 1 << 20;

/// What a node told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// As it would tell a manager.
    pub heartbeat: v1::HeartbeatRequest,
    /// The routing table that it holds.
    pub table: Option<RoutingTable>,
    /// The lives of folders that it remembers to be admitted, by node.
    pub lives: BTreeMap<u32, u64>,
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
    /// Nobody can be the new manager.
    #[error("no node that answers has the manager role: start one that has it")]
    NoManager,
    /// A folder that must not be heard any more (N1).
    #[error("node {0} answers with a data folder that was given up for another one: stop it")]
    GivenUp(u32),
    /// What was put together makes no sense.
    #[error("the nodes do not agree: {0}")]
    Nonsense(String),
}

/// The era of a new manager: above every one that a node or the export knows (H6).
#[must_use]
pub fn next_era(told: &[Told], from: Option<&v1::ManagerState>) -> u64 {
    let stored = told.iter().map(|told| told.heartbeat.era).max().unwrap_or(0);
    stored.max(from.map_or(0, |from| from.era)) + 1
}

/// The state of a new manager for existing nodes. `era`: as [`next_era`] gave it before the nodes
/// stored it. `incarnation`: freshly drawn, 21 bits. `from`: what an earlier manager exported.
///
/// # Errors
/// See [`AdoptError`].
pub fn adopt(
    told: &[Told],
    from: Option<&v1::ManagerState>,
    era: u64,
    incarnation: u32,
) -> Result<v1::ManagerState, AdoptError> {
    let cluster_id = cluster_of_all(told)?;
    check_lives(told, from)?;
    let tables: Vec<&RoutingTable> = told.iter().filter_map(|told| told.table.as_ref()).collect();
    let newest = tables.iter().max_by_key(|table| table.version).ok_or(AdoptError::NoTable)?;
    let shards = shards_of(&tables)?;
    let groups = groups_of(told, &tables, &shards);
    check_unused(told, &groups, from, incarnation)?;

    let nodes = nodes_of(told, newest, &groups, from);
    let up = nodes.iter().filter(|node| node.state() == v1::NodeState::Up);
    let managers: Vec<NodeId> = up
        .filter_map(|node| node.info.as_ref())
        .filter(|info| info.manager)
        .map(|info| NodeId(info.id))
        .collect();
    if managers.is_empty() {
        return Err(AdoptError::NoManager);
    }
    let manager = manager_group(incarnation, &managers);
    let counter = manager.members.iter().map(|member| counter_of(member.replica)).max();
    let storage = nodes.iter().filter(|node| node.info.as_ref().is_some_and(|i| i.storage)).count();
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let known_version = from.map_or(0, |from| from.table_version);
    let state = v1::ManagerState {
        cluster_id,
        era,
        incarnation,
        counter: counter.unwrap_or(0).max(FIRST_COUNTER),
        shards_total: count(shards.len()),
        lanes: from.map_or(count(groups.len().div_ceil(storage.max(1))), |from| from.lanes),
        replication: from.map_or(replication_of(&groups, storage), |from| from.replication),
        settings: Some(from.and_then(|from| from.settings).unwrap_or(SETTINGS)),
        table_version: newest.version.0.max(known_version) + VERSION_GAP,
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

/// How many members a group shall have, as far as the groups tell: what most of them have, the fewer of
/// two as common ones. A single group may have one more for a moment, while a move replaces a member.
/// With fewer nodes than the usual number of members all have as many as there are nodes, and the usual
/// number is taken.
fn replication_of(groups: &[v1::GroupRecord], storage: usize) -> u32 {
    let mut having: BTreeMap<usize, usize> = BTreeMap::new();
    for group in groups {
        let voters = group.members.iter().filter(|member| !member.learner).count();
        *having.entry(voters).or_default() += 1;
    }
    let common = having.iter().max_by_key(|(voters, groups)| (**groups, Reverse(**voters)));
    let common =
        common.map_or(REPLICATION, |(voters, _)| u32::try_from(*voters).unwrap_or(u32::MAX));
    let has_few_nodes = u32::try_from(storage).is_ok_and(|storage| storage <= common);
    if has_few_nodes { common.max(REPLICATION) } else { common }
}

fn cluster_of_all(told: &[Told]) -> Result<bytes::Bytes, AdoptError> {
    let first = told.first().ok_or(AdoptError::Nobody)?;
    let cluster = &first.heartbeat.cluster_id;
    let other = told.iter().find(|told| told.heartbeat.cluster_id != *cluster);
    match other {
        Some(other) => Err(AdoptError::OtherCluster(teller_of(other))),
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
        // A node's own table lacks its seats of replicas that died with a former life of its folder.
        let fullest = of_group.max_by_key(|(version, route)| (*version, route.members.len()));
        fullest.map(|(_, route)| route)
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

/// The node that told it; 0 for none, which nobody is.
fn teller_of(told: &Told) -> u32 {
    told.heartbeat.info.as_ref().map_or(0, |info| info.id)
}

/// The version of the table that a node holds; 0 for none.
fn version_of(told: &Told) -> u64 {
    told.table.as_ref().map_or(0, |table| table.version.0)
}

/// The lives of a node that others remember to be admitted, each with the version of the table that the
/// memory came with: admissions come with tables. The nodes' memories come last.
fn remembered(
    told: &[Told],
    from: Option<&v1::ManagerState>,
    node: u32,
) -> impl Iterator<Item = (u64, u64)> {
    let exported = from.and_then(|from| Some((from.table_version, from.node(node)?.incarnation)));
    let peers = told.iter().filter(move |told| teller_of(told) != node);
    let by_peers = peers.filter_map(move |told| Some((version_of(told), *told.lives.get(&node)?)));
    exported.into_iter().chain(by_peers).filter(|(_, life)| *life != 0)
}

/// The life of a node that counts, as the newest memory has it; 0 for none.
fn admitted_life(told: &[Told], from: Option<&v1::ManagerState>, node: u32) -> u64 {
    let newest = remembered(told, from, node).max_by_key(|(version, _)| *version);
    newest.map_or(0, |(_, life)| life)
}

/// Refuses a folder that was given up: another life of its node was admitted by a table that is no older
/// than its own. The life that was admitted last holds no table from before its admission. One that holds
/// no table and no replica is new, and comes in place of a folder that was lost.
fn check_lives(told: &[Told], from: Option<&v1::ManagerState>) -> Result<(), AdoptError> {
    for answering in told {
        let (id, version) = (teller_of(answering), version_of(answering));
        let life = answering.heartbeat.incarnation;
        let memories = remembered(told, from, id);
        let newest = memories.max_by_key(|(version, admitted)| (*version, *admitted == life));
        let is_other = |(known, admitted): (u64, u64)| admitted != life && known >= version;
        let exported = from.and_then(|from| from.node(id));
        // A removed node stays removed, and is of no consequence.
        let exported = exported.filter(|node| node.state() != v1::NodeState::Removed);
        let is_former = exported.is_some_and(|node| node.former.contains(&life));
        let tells = &answering.heartbeat;
        let is_new =
            answering.table.is_none() && tells.groups.is_empty() && tells.absent.is_empty();
        if (!is_new && newest.is_some_and(is_other)) || is_former {
            return Err(AdoptError::GivenUp(id));
        }
    }
    Ok(())
}

/// Who answers is up; who is only known of is down.
fn nodes_of(
    told: &[Told],
    newest: &RoutingTable,
    groups: &[v1::GroupRecord],
    from: Option<&v1::ManagerState>,
) -> Vec<v1::NodeRecord> {
    let mut nodes: BTreeMap<u32, v1::NodeRecord> = BTreeMap::new();
    for info in newest.nodes.iter().map(v1::NodeInfo::from) {
        let mut record = new_node(info, 0);
        record.incarnation = admitted_life(told, from, id_of(&record));
        record.set_state(v1::NodeState::Down);
        record.down_since_ms = 1;
        nodes.insert(id_of(&record), record);
    }
    let answers =
        |id: u32| told.iter().any(|told| told.heartbeat.info.as_ref().is_some_and(|i| i.id == id));
    for known in from.iter().flat_map(|from| &from.nodes) {
        let id = id_of(known);
        let listed = nodes.get(&id).and_then(|record| record.info.clone());
        let mut record = known.clone();
        if record.state() != v1::NodeState::Removed {
            let is_newer = from.is_some_and(|from| newest.version.0 > from.table_version);
            if listed.is_none() && is_newer && !answers(id) {
                record.set_state(v1::NodeState::Removed);
                record.former.push(known.incarnation);
            } else {
                record.set_state(v1::NodeState::Down);
                record.down_since_ms = 1;
                record.incarnation = admitted_life(told, from, id);
                // What was changed since the export is in the table.
                record.info = listed.or(record.info);
            }
        }
        nodes.insert(id, record);
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
        record.lost.extend(lost_by(heartbeat, info.id, groups));
        record.lost.sort_unstable();
        record.lost.dedup();
    }
    nodes.into_values().filter(|node| id_of(node) != 0).collect()
}

/// Replicas with a seat on a node that holds nothing of them.
fn lost_by(heartbeat: &v1::HeartbeatRequest, node: u32, groups: &[v1::GroupRecord]) -> Vec<u64> {
    let held: BTreeSet<u64> =
        heartbeat.groups.iter().chain(&heartbeat.absent).map(|report| report.replica).collect();
    let seats = groups.iter().flat_map(|group| crate::state::seats_on(group, node));
    seats.map(|seat| seat.replica).filter(|replica| !held.contains(replica)).collect()
}

#[cfg(test)]
mod tests;
