//! The state of the cluster as `status`, `nodes`, `groups` and `shards` show it, put together from
//! the one [`StatusReply`](v1::StatusReply) that all of them ask for. Pure: no network, no
//! printing.
//!
//! Two sources meet here and neither is trusted for the other's part. The routing table says what
//! is *meant*: which shards and groups there are, who their members and homes are. What the nodes
//! say of themselves tells what *is*: who leads, how far the replicas are, how large the shards
//! are. So a group has a leader only when a replica says that it leads and that its gate is open
//! (R1), never because the table believed so some time ago; and a seat counts as filled only when
//! its node answered and runs that very replica.
//!
//! What is not known: nodes and leaders are `None`, a lag is `None`, and sizes are 0 for a node or
//! shard that nobody spoke for (the interface promises numbers there; `state` says `down`).

use std::collections::{BTreeMap, BTreeSet};

use annulus_client::Error;
use annulus_proto::v1;
use annulus_types::{ClusterId, ErrorKind, token};
use serde::Serialize;

/// `kvctl status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatusView {
    pub cluster_id: String,
    pub table_version: u64,
    /// Whether moves are paused; `None` while the manager does not say.
    pub paused: Option<bool>,
    pub manager: ManagerView,
    pub nodes: Vec<NodeView>,
    pub groups: GroupTally,
    pub shards: ShardTally,
}

/// The manager's group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManagerView {
    pub leader: Option<u32>,
    pub members: Vec<u32>,
}

/// A node, in `status` and `nodes`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeView {
    pub id: u32,
    pub addr: String,
    pub peer_addr: String,
    pub http_addr: String,
    pub zone: String,
    pub weight: f64,
    /// `removed`, `down`, `draining` or `up`. `down`: it did not answer, or the manager does not hear it.
    /// Without the manager's word, only `up` and `down`.
    pub state: &'static str,
    /// Copies of shards.
    pub shards: usize,
    /// Shards whose group is at home here.
    pub homes: usize,
    /// Shards led.
    pub leaders: usize,
    pub bytes: u64,
    pub disk_free_bytes: u64,
}

/// Groups by health, without the manager's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupTally {
    pub total: usize,
    pub healthy: usize,
    pub no_leader: usize,
}

/// Shards by the health of their groups. A shard can be counted as under-replicated, without
/// leader and moving at once; healthy ones have a leader and all their voters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardTally {
    pub total: usize,
    pub healthy: usize,
    pub under_replicated: usize,
    pub no_leader: usize,
    pub moving: usize,
}

/// `kvctl groups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupView {
    pub id: u64,
    pub home: u32,
    pub lane: u32,
    pub leader: Option<u32>,
    pub term: u64,
    pub members: Vec<MemberView>,
    pub shards: Vec<u64>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    pub node: u32,
    pub replica_id: u64,
    pub role: &'static str,
    /// Entries that the leader has applied and this replica has not; without a leader, counted
    /// from the replica that is farthest.
    pub lag: Option<u64>,
    /// Whether everything is being taken off its node. For people.
    #[serde(skip)]
    pub draining: bool,
}

/// `kvctl shards`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardView {
    pub id: u64,
    pub slice: u32,
    pub start: u32,
    pub end: u32,
    pub epoch: u64,
    pub group: u64,
    pub leader: Option<u32>,
    pub revision: u64,
    pub bytes: u64,
    pub keys: u64,
    pub replicas: Vec<MemberView>,
}

/// A reply, indexed.
#[derive(Debug)]
pub struct Cluster<'a> {
    reply: &'a v1::StatusReply,
    table: &'a v1::RoutingTable,
    /// What nodes say of themselves, by node.
    nodes: BTreeMap<u32, &'a v1::NodeStatus>,
    /// What they say of their replicas, with the node, by group and replica.
    replicas: BTreeMap<(u64, u64), (u32, &'a v1::ReplicaStatus)>,
    /// What they say of their shards, by shard and node.
    shards: BTreeMap<(u64, u32), &'a v1::ShardStatus>,
    /// The ids of each group's shards, in slice order.
    hosted: BTreeMap<u64, Vec<u64>>,
}

/// What the health of a group's shards follows from.
#[derive(Clone, Copy, Debug)]
struct Health {
    leader: Option<u32>,
    /// Every voter's node runs its replica.
    whole: bool,
    /// A learner is being brought up, or the manager replaces a member.
    moving: bool,
}

impl Health {
    fn is_healthy(self) -> bool {
        self.leader.is_some() && self.whole
    }
}

impl<'a> Cluster<'a> {
    /// Indexes a reply.
    ///
    /// # Errors
    /// `NotReady` when the node that answered knows no routing table: there is no cluster yet.
    pub fn new(reply: &'a v1::StatusReply) -> Result<Self, Error> {
        let Some(table) = &reply.table else {
            return Err(Error::refused(ErrorKind::NotReady {
                reason: "it knows no routing table, perhaps `annulus init` was not run".to_owned(),
            }));
        };
        let mut cluster = Self {
            reply,
            table,
            nodes: BTreeMap::new(),
            replicas: BTreeMap::new(),
            shards: BTreeMap::new(),
            hosted: BTreeMap::new(),
        };
        for status in &reply.nodes {
            // A node that does not say who it is cannot be placed.
            let Some(info) = &status.info else { continue };
            cluster.nodes.insert(info.id, status);
            for replica in &status.replicas {
                cluster.replicas.insert((replica.group, replica.replica), (info.id, replica));
            }
            for shard in &status.shards {
                cluster.shards.insert((shard.shard, info.id), shard);
            }
        }
        for shard in &table.shards {
            cluster.hosted.entry(shard.group).or_default().push(shard.id);
        }
        Ok(cluster)
    }

    /// `kvctl status`.
    #[must_use]
    pub fn status(&self) -> StatusView {
        let health: BTreeMap<u64, Health> =
            self.table.groups.iter().map(|group| (group.id, self.health(group))).collect();
        let groups = |wanted: fn(Health) -> bool| {
            health.values().copied().filter(|&health| wanted(health)).count()
        };
        // A shard of a group that the table does not know has neither leader nor replicas.
        let homeless = Health { leader: None, whole: false, moving: false };
        let shards = |wanted: fn(Health) -> bool| {
            let of = |group: u64| health.get(&group).copied().unwrap_or(homeless);
            self.table.shards.iter().filter(|shard| wanted(of(shard.group))).count()
        };
        StatusView {
            cluster_id: cluster_id(&self.table.cluster_id),
            table_version: self.table.version,
            paused: self.reply.overview.as_ref().map(|overview| overview.paused),
            manager: ManagerView {
                leader: self.reply.manager_leader.or_else(|| self.leader(0).map(|(node, _)| node)),
                members: self.reply.manager.iter().map(|member| member.node).collect(),
            },
            nodes: self.nodes(),
            groups: GroupTally {
                total: health.len(),
                healthy: groups(Health::is_healthy),
                no_leader: groups(|health| health.leader.is_none()),
            },
            shards: ShardTally {
                total: self.table.shards.len(),
                healthy: shards(Health::is_healthy),
                under_replicated: shards(|health| !health.whole),
                no_leader: shards(|health| health.leader.is_none()),
                moving: shards(|health| health.moving),
            },
        }
    }

    /// `kvctl nodes`, by id: those of the table, those that answered and are not in it yet, and
    /// those that were removed: of these only the id is known, unless they still answer.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        let placed: BTreeMap<u32, &v1::NodeInfo> =
            self.table.nodes.iter().map(|info| (info.id, info)).collect();
        let ids: BTreeSet<u32> = placed
            .keys()
            .chain(self.nodes.keys())
            .copied()
            .chain(self.judged().filter(|node| is_removed(node)).map(|node| node.node))
            .collect();
        ids.into_iter().filter_map(|id| self.node(id, placed.get(&id).copied())).collect()
    }

    /// `kvctl groups`, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupView> {
        self.table.groups.iter().map(|group| self.group(group)).collect()
    }

    /// `kvctl shards`, in slice order; only those with a replica on `node` when one is given.
    ///
    /// # Errors
    /// `BadRequest` when the cluster has no such node.
    pub fn shards(&self, node: Option<u32>) -> Result<Vec<ShardView>, Error> {
        if let Some(id) = node {
            let known = self.table.nodes.iter().any(|info| info.id == id);
            if !known && !self.nodes.contains_key(&id) {
                return Err(Error::bad_request("node", format!("the cluster has no node {id}")));
            }
        }
        let groups: BTreeMap<u64, &v1::GroupRoute> =
            self.table.groups.iter().map(|group| (group.id, group)).collect();
        let here = |view: &ShardView| {
            node.is_none_or(|id| view.replicas.iter().any(|replica| replica.node == id))
        };
        let views = self
            .table
            .shards
            .iter()
            .map(|shard| self.shard(shard, groups.get(&shard.group).copied()));
        Ok(views.filter(here).collect())
    }

    fn node(&self, id: u32, placed: Option<&v1::NodeInfo>) -> Option<NodeView> {
        let status = self.nodes.get(&id).copied();
        let told = status.and_then(|status| status.info.as_ref());
        // Zone and weight are the manager's decision; an address is what the node itself says,
        // because it may have come back on another one.
        let judged = self.judged().find(|node| node.node == id);
        let unknown = v1::NodeInfo { id, ..v1::NodeInfo::default() };
        let only_removed = judged.is_some_and(is_removed).then_some(&unknown);
        let meant = placed.or(told).or(only_removed)?;
        let listens = told.unwrap_or(meant);
        let shards_where = |wanted: &dyn Fn(&v1::GroupRoute) -> bool| -> usize {
            let groups = self.table.groups.iter().filter(|group| wanted(group));
            groups.map(|group| self.hosted.get(&group.id).map_or(0, Vec::len)).sum()
        };
        Some(NodeView {
            id,
            addr: listens.addr.clone(),
            peer_addr: listens.peer_addr.clone(),
            http_addr: listens.http_addr.clone(),
            zone: meant.zone.clone(),
            weight: f64::from(meant.weight) / 100.0,
            state: node_state(status.is_some(), judged),
            shards: shards_where(&|group| group.members.iter().any(|member| member.node == id)),
            homes: shards_where(&|group| group.home == id),
            leaders: shards_where(&|group| {
                self.leader(group.id).is_some_and(|(node, _)| node == id)
            }),
            bytes: status.map_or(0, |status| status.engine_bytes),
            disk_free_bytes: status.map_or(0, |status| status.disk_free_bytes),
        })
    }

    /// What the manager thinks of the nodes, if it said so.
    fn judged(&self) -> impl Iterator<Item = &'a v1::NodeOverview> {
        self.reply.overview.iter().flat_map(|overview| &overview.nodes)
    }

    /// Whether the manager says that a member of the group is being replaced just now.
    fn is_reseated(&self, group: u64) -> bool {
        let moves = self.reply.overview.iter().flat_map(|overview| &overview.moves);
        let mut begun = moves.filter(|step| step.state() != v1::MoveState::Planned);
        begun.any(|step| step.group == group && step.kind() == v1::MoveKind::Reseat)
    }

    fn group(&self, route: &v1::GroupRoute) -> GroupView {
        let reported = self.replicas_of(route.id).map(|(_, replica)| replica.term).max();
        GroupView {
            id: route.id,
            home: route.home,
            lane: route.lane,
            leader: self.leader(route.id).map(|(node, _)| node),
            term: reported.unwrap_or(0).max(route.term),
            members: self.members(route),
            shards: self.hosted.get(&route.id).cloned().unwrap_or_default(),
        }
    }

    fn shard(&self, route: &v1::ShardRoute, group: Option<&v1::GroupRoute>) -> ShardView {
        let count = u32::try_from(self.table.shards.len()).unwrap_or(u32::MAX).max(1);
        let (start, end) = token::slice_bounds(route.slice, count);
        let leader = self.leader(route.group).map(|(node, _)| node);
        let state = self.shard_state(route, leader);
        ShardView {
            id: route.id,
            slice: route.slice,
            start: start.0,
            end: end.0,
            epoch: state.map_or(0, |state| state.epoch).max(route.epoch),
            group: route.group,
            leader,
            revision: state.map_or(0, |state| state.revision),
            bytes: state.map_or(0, |state| state.bytes),
            keys: state.map_or(0, |state| state.keys),
            replicas: group.map(|group| self.members(group)).unwrap_or_default(),
        }
    }

    /// The leader's word about a shard, or that of the replica which has seen the most of it.
    fn shard_state(
        &self,
        route: &v1::ShardRoute,
        leader: Option<u32>,
    ) -> Option<&'a v1::ShardStatus> {
        let of_leader = leader.and_then(|node| self.shards.get(&(route.id, node)).copied());
        let of_any = || {
            let told = self.shards.range((route.id, 0)..=(route.id, u32::MAX));
            told.map(|(_, state)| *state).max_by_key(|state| state.revision)
        };
        of_leader.or_else(of_any)
    }

    fn members(&self, route: &v1::GroupRoute) -> Vec<MemberView> {
        let leader = self.leader(route.id).map(|(_, replica)| replica);
        let farthest = match leader {
            Some(leader) => Some(leader.applied_index),
            None => self.replicas_of(route.id).map(|(_, replica)| replica.applied_index).max(),
        };
        let view = |member: &v1::MemberRoute| {
            let told = self.replicas.get(&(route.id, member.replica)).map(|(_, told)| *told);
            // One that is closed tells nothing of how far it is.
            let told = told.filter(|told| told.halted.is_empty());
            let role = if leader.is_some_and(|leader| leader.replica == member.replica) {
                "leader"
            } else if member.learner {
                "learner"
            } else {
                "follower"
            };
            MemberView {
                node: member.node,
                replica_id: member.replica,
                role,
                lag: told
                    .zip(farthest)
                    .map(|(told, farthest)| farthest.saturating_sub(told.applied_index)),
                draining: self.judged().any(|node| node.node == member.node && node.draining),
            }
        };
        route.members.iter().map(view).collect()
    }

    fn health(&self, route: &v1::GroupRoute) -> Health {
        let runs = |member: &v1::MemberRoute| {
            let told = self.replicas.get(&(route.id, member.replica));
            told.is_some_and(|(node, replica)| *node == member.node && replica.halted.is_empty())
        };
        Health {
            leader: self.leader(route.id).map(|(node, _)| node),
            whole: route.members.iter().filter(|member| !member.learner).all(runs),
            moving: route.members.iter().any(|member| member.learner) || self.is_reseated(route.id),
        }
    }

    /// The replica that leads `group`, and its node. Of two that say so the one of the higher term:
    /// the answers were not given at the same instant.
    fn leader(&self, group: u64) -> Option<(u32, &'a v1::ReplicaStatus)> {
        self.replicas_of(group)
            .filter(|(_, replica)| {
                replica.role() == v1::Role::Leader && replica.gate_open && replica.halted.is_empty()
            })
            .max_by_key(|(_, replica)| replica.term)
    }

    fn replicas_of(&self, group: u64) -> impl Iterator<Item = (u32, &'a v1::ReplicaStatus)> {
        self.replicas.range((group, 0)..=(group, u64::MAX)).map(|(_, told)| *told)
    }
}

fn is_removed(node: &v1::NodeOverview) -> bool {
    node.state() == v1::NodeState::Removed
}

/// The state of a node that answered or not, and of which the manager thinks so.
fn node_state(answered: bool, judged: Option<&v1::NodeOverview>) -> &'static str {
    match judged.map(|node| (node.state(), node.draining)) {
        Some((v1::NodeState::Removed, _)) => "removed",
        Some((v1::NodeState::Down, _)) => "down",
        _ if !answered => "down",
        Some((v1::NodeState::Up, true)) => "draining",
        Some((v1::NodeState::Up, false)) | None => "up",
    }
}

/// Hexadecimal digits; empty when the table carries no proper id.
fn cluster_id(bytes: &[u8]) -> String {
    <[u8; 16]>::try_from(bytes).map(|id| ClusterId(id).to_string()).unwrap_or_default()
}

#[cfg(test)]
pub mod tests;
