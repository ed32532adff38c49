//! The route cache: which node to ask next. Pure; times are readings of the monotonic clock that
//! the caller passes in.
//!
//! Owns the newest routing table seen, what answers taught about leaders since, and which nodes
//! were lately found gone. Does not fetch anything.
//!
//! Invariants:
//! - H7: nothing here decides; a wrong entry costs a redirect. Of two routes for a shard the higher
//!   epoch wins, of two for a group the higher (membership index, term).
//! - A table of another cluster never replaces the one held.
//! - A node that is gone is asked last for a second, not never: if all are, all are asked. A connection
//!   that broke does not make a node gone, unless the next one does, too. A late answer alone does not
//!   either: under load, or with short deadlines, that would drive
//!   every caller away from a leader that is merely busy.

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_ring::placement::WEIGHT_LIMIT;
use annulus_ring::{Ring, RingNode};
use annulus_types::{
    ClusterId, GroupId, GroupRoute, MemberRole, Mode, NodeId, Receipt, Role, RoutingTable, ShardId,
    TableVersion, Token,
};

/// A node that is gone is asked last for so long. Long enough that the calls of a fail-over (1 s)
/// do not each pay for it, short enough that a restarted node is found again.
const AVOID_US: u64 = 1_000_000;
/// A node is gone when it answered nothing at all for so long although it was asked.
const QUIET_US: u64 = 1_000_000;
/// What breaks within this breaks at once: many calls share a connection.
const SAME_BREAK_US: u64 = 10_000;
/// Tables are asked for at most this often while answers go on telling of newer ones.
const REFRESH_PAUSE_US: u64 = 200_000;

/// Whom a call wants to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// The leader of the key's group.
    Leader,
    /// Any member of it; `turn` spreads the calls.
    Anyone {
        /// Counts calls.
        turn: usize,
    },
    /// Any member of it whose state is new enough; `turn` spreads the calls. Of those that are asked after
    /// the first one, the leader is the last: it has what everybody else lacks, and more to do.
    Replica {
        /// Counts calls.
        turn: usize,
    },
    /// This node and no other.
    Node(NodeId),
}

/// A node to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The shard of the key.
    pub(crate) shard: ShardId,
    /// Its group.
    pub(crate) group: GroupId,
    /// The node.
    pub(crate) node: NodeId,
    /// Its client address.
    pub(crate) addr: String,
}

/// The signs of life of a node.
#[derive(Debug, Default)]
struct Pulse {
    /// When it last answered anything.
    heard_us: u64,
    /// When the first question was asked that it left unanswered since then.
    quiet_us: Option<u64>,
    /// When a connection to it broke under a question, since it answered last.
    broken_us: Option<u64>,
    /// Until then it is asked last.
    avoided_until_us: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    table: Option<Arc<RoutingTable>>,
    /// What answers taught about a group's leader since its route last changed; `None`: the one
    /// that the table names does not answer.
    leaders: BTreeMap<GroupId, Option<NodeId>>,
    pulses: BTreeMap<NodeId, Pulse>,
    /// The newest table that any answer told of, and who told.
    newest: TableVersion,
    teller: Option<NodeId>,
    /// A node said that the table is wrong without having a better one.
    stale: bool,
    asked_us: Option<u64>,
}

impl RouteCache {
    pub(crate) fn table(&self) -> Option<&Arc<RoutingTable>> {
        self.table.as_ref()
    }

    /// The cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.table.as_ref().map(|table| table.cluster).filter(|cluster| !cluster.is_unborn())
    }

    /// The version held; 0 without a table.
    pub(crate) fn version(&self) -> TableVersion {
        self.table.as_ref().map(|table| table.version).unwrap_or_default()
    }

    /// The node to ask about `token` after `last` did not serve. `None` while the table names
    /// nobody.
    pub(crate) fn target(
        &self,
        token: Token,
        want: Want,
        last: Option<NodeId>,
        now_us: u64,
    ) -> Option<Target> {
        let table = self.table.as_ref()?;
        let shard = table.shard_of(token)?;
        let group = table.group(shard.group)?;
        let at = |node: NodeId| {
            let addr = table.node(node)?.addr.clone();
            Some(Target { shard: shard.id, group: group.id, node, addr })
        };
        let votes_only = match want {
            Want::Node(node) => return at(node),
            Want::Leader => true,
            Want::Anyone { .. } | Want::Replica { .. } => false,
        };
        let members: Vec<NodeId> = group
            .members
            .iter()
            .filter(|member| !votes_only || member.role == MemberRole::Voter)
            .map(|member| member.node)
            .filter(|node| table.node(*node).is_some())
            .collect();
        if let Want::Replica { turn } = want {
            let order = leader_last(members, turn, self.leader_of(group.id));
            let tried = last.and_then(|last| order.iter().position(|node| *node == last));
            let start = tried.map_or(0, |place| place + 1);
            return at(in_turn(&order, start, |node| self.avoids(node, now_us))?);
        }
        let known = self
            .leader_of(group.id)
            .filter(|node| votes_only && Some(*node) != last && self.is_usable(*node, now_us));
        let start = match (last, want) {
            (Some(last), _) => {
                members.iter().position(|node| *node == last).map_or(0, |place| place + 1)
            }
            (None, Want::Anyone { turn }) => turn,
            (None, _) => 0,
        };
        let node = known.or_else(|| in_turn(&members, start, |node| self.avoids(node, now_us)))?;
        at(node)
    }

    /// Addresses to ask for a table, best first: who told of a newer one, the `endpoints`, the
    /// other nodes; those that are gone last.
    pub(crate) fn sources(&self, endpoints: &[String], now_us: u64) -> Vec<String> {
        let nodes = self.table.as_ref().map(|table| table.nodes.as_slice()).unwrap_or_default();
        let teller = nodes.iter().filter(|node| Some(node.id) == self.teller);
        let mut sources: Vec<&String> = Vec::new();
        for addr in teller
            .map(|node| &node.addr)
            .chain(endpoints)
            .chain(nodes.iter().map(|node| &node.addr))
        {
            if !sources.contains(&addr) {
                sources.push(addr);
            }
        }
        // Stable: the order above holds among those that answer, and among those that do not.
        sources.sort_by_key(|addr| {
            nodes.iter().any(|node| node.addr == **addr && self.avoids(node.id, now_us))
        });
        sources.into_iter().cloned().collect()
    }

    /// Whether the next call should fetch a table first.
    pub(crate) fn refresh_due(&self, now_us: u64) -> bool {
        let Some(table) = &self.table else { return true };
        let wanted = self.stale || self.newest > table.version;
        let rested =
            self.asked_us.is_none_or(|asked| now_us.saturating_sub(asked) >= REFRESH_PAUSE_US);
        wanted && rested
    }

    /// A fetch begins.
    pub(crate) fn asking(&mut self, now_us: u64) {
        self.asked_us = Some(now_us);
    }

    /// Takes what is newer from a table. Returns whether anything was.
    pub(crate) fn adopt(&mut self, offered: RoutingTable) -> bool {
        if self.cluster().is_some_and(|cluster| cluster != offered.cluster) {
            return false;
        }
        self.stale = false;
        self.newest = self.newest.max(offered.version);
        let Some(held) = &self.table else {
            self.table = Some(Arc::new(offered));
            return true;
        };
        let merged = merge(held, offered);
        if merged == **held {
            return false;
        }
        self.leaders.retain(|group, _| held.group(*group) == merged.group(*group));
        let addr = |table: &RoutingTable, node| table.node(node).map(|info| info.addr.clone());
        self.pulses.retain(|node, _| addr(held, *node) == addr(&merged, *node));
        self.table = Some(Arc::new(merged));
        true
    }

    /// The node answered as hoped.
    pub(crate) fn answered(&mut self, target: &Target, receipt: &Receipt, now_us: u64) {
        self.alive(target.node, now_us);
        // A node that was deposed unawares still answers as leader what nobody else must vouch for.
        let is_vouched = matches!(receipt.mode, Mode::Write | Mode::Linearizable);
        if receipt.role == Role::Leader && is_vouched {
            self.leaders.insert(target.group, Some(target.node));
        }
        if receipt.table_version > self.newest {
            self.newest = receipt.table_version;
            self.teller = Some(target.node);
        }
    }

    /// The node answered, with whatever.
    pub(crate) fn alive(&mut self, node: NodeId, now_us: u64) {
        let pulse = Pulse { heard_us: now_us, ..Pulse::default() };
        self.pulses.insert(node, pulse);
    }

    /// A connection to the node broke under a question. The node may live: it is gone when it cannot be
    /// reached then, or when that happens again before it answers anything.
    pub(crate) fn broken(&mut self, target: &Target, now_us: u64) {
        // It may have come back on another address.
        self.stale = true;
        let pulse = self.pulses.entry(target.node).or_default();
        let since_us = now_us.saturating_sub(*pulse.broken_us.get_or_insert(now_us));
        if since_us > SAME_BREAK_US {
            self.gone(target, now_us);
        }
    }

    /// The node cannot be reached.
    pub(crate) fn gone(&mut self, target: &Target, now_us: u64) {
        self.pulses.entry(target.node).or_default().avoided_until_us =
            now_us.saturating_add(AVOID_US);
        self.not_leading(target);
        // It may have come back on another address, which the table's version does not tell.
        self.stale = true;
        if self.teller == Some(target.node) {
            self.teller = None;
        }
    }

    /// The node left a question unanswered for `waited_us`, until now.
    pub(crate) fn late(&mut self, target: &Target, waited_us: u64, now_us: u64) {
        let asked_us = now_us.saturating_sub(waited_us);
        let pulse = self.pulses.entry(target.node).or_default();
        if pulse.heard_us > asked_us {
            return;
        }
        let quiet_us = *pulse.quiet_us.get_or_insert(asked_us);
        if now_us.saturating_sub(quiet_us) >= QUIET_US {
            self.gone(target, now_us);
        }
    }

    /// The node does not lead and perhaps named who does. Returns whether that one can be asked.
    pub(crate) fn redirected(
        &mut self,
        target: &Target,
        leader: Option<NodeId>,
        now_us: u64,
    ) -> bool {
        match leader {
            Some(leader) if leader != target.node => {
                self.leaders.insert(target.group, Some(leader));
                self.is_usable(leader, now_us)
            }
            _ => {
                self.not_leading(target);
                false
            }
        }
    }

    /// The node does not serve the shard and perhaps knows a table that says who does. Returns
    /// whether that table taught something.
    pub(crate) fn rerouted(&mut self, offered: Option<&RoutingTable>) -> bool {
        let learned = offered.is_some_and(|table| self.adopt(table.clone()));
        self.stale |= !learned;
        learned
    }

    fn not_leading(&mut self, target: &Target) {
        if self.leader_of(target.group) == Some(target.node) {
            self.leaders.insert(target.group, None);
        }
    }

    fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        match self.leaders.get(&group) {
            Some(learned) => *learned,
            None => self.table.as_ref()?.group(group)?.leader,
        }
    }

    fn avoids(&self, node: NodeId, now_us: u64) -> bool {
        self.pulses.get(&node).is_some_and(|pulse| now_us < pulse.avoided_until_us)
    }

    fn is_usable(&self, node: NodeId, now_us: u64) -> bool {
        let has_address = self.table.as_ref().is_some_and(|table| table.node(node).is_some());
        has_address && !self.avoids(node, now_us)
    }
}

/// The first member from place `start` on, round and round, that is not avoided; the one at
/// `start` when all are.
fn in_turn(members: &[NodeId], start: usize, avoided: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    if members.is_empty() {
        return None;
    }
    let (before, from) = members.split_at(start % members.len());
    let mut turn = from.iter().chain(before).copied();
    let first = from.first().copied();
    turn.find(|node| !avoided(*node)).or(first)
}

/// The members from the one whose turn it is, with the leader behind them unless it is that one.
fn leader_last(mut members: Vec<NodeId>, turn: usize, leader: Option<NodeId>) -> Vec<NodeId> {
    if members.is_empty() {
        return members;
    }
    let places = members.len();
    members.rotate_left(turn % places);
    if let Some(place) = members.iter().skip(1).position(|node| Some(*node) == leader) {
        let node = members.remove(place + 1);
        members.push(node);
    }
    members
}

/// The table with the higher version (the offered one when equal), with those routes of the other
/// that are newer by their own measure.
fn merge(held: &RoutingTable, offered: RoutingTable) -> RoutingTable {
    let (mut newer, older) = if offered.version >= held.version {
        (offered, held.clone())
    } else {
        (held.clone(), offered)
    };
    if newer.shards.len() == older.shards.len() {
        for (route, other) in newer.shards.iter_mut().zip(&older.shards) {
            if other.epoch > route.epoch {
                *route = other.clone();
            }
        }
    }
    for route in &mut newer.groups {
        let Some(other) = older.group(route.id) else { continue };
        let age = |route: &GroupRoute| (route.membership_index, route.term);
        if age(other) > age(route) {
            *route = other.clone();
        } else if age(other) == age(route) && route.leader.is_none() {
            // One term has one leader; not to have heard of it is not news.
            route.leader = other.leader;
        }
    }
    newer
}

/// The storage nodes of `table` in the order in which the ring meets them from `token` on. The walk
/// from the first token of a shard is what the placement of a new cluster prefers for it; where
/// the shard lives is what the table says.
#[must_use]
pub fn ring_walk(table: &RoutingTable, token: Token) -> Vec<NodeId> {
    let nodes: Vec<RingNode> = table
        .nodes
        .iter()
        .filter(|node| node.storage)
        // A weight that no cluster can have must not cost memory in proportion.
        .map(|node| RingNode { id: node.id, weight: node.weight.min(WEIGHT_LIMIT) })
        .collect();
    Ring::new(&nodes).walk(token).collect()
}

#[cfg(test)]
mod tests;
