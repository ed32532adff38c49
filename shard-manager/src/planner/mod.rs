//! The planner: from a table, the nodes and the rules to the steps that make the table right.
//!
//! A cluster is never quite as its rules want it: a node joined, one is to be emptied, one is gone,
//! somebody changed a weight. The planner looks at what is and answers with *reseats* (one member of
//! one group in, another out), *transfers* of leadership and *rehomes* (a group is meant to be led
//! from elsewhere). It is level-triggered: it knows no events and no earlier plan, so that a plan
//! that was cancelled half-way, or a manager that lost its memory, needs no special care.
//!
//! The rules of the placement, in their order:
//!
//! 1. one replica of a group per node;
//! 2. as many zones as are live, up to the number of members, each used as evenly as it can be;
//! 3. homes, and seats per zone and node, by quota: to the last unit, from any table;
//! 4. the fewest bytes over the network, then the fewest copies;
//! 5. the order of the walk from the token of `lane{home}-{lane}`, as the group is named now.
//!
//! How it is done:
//!
//! - `cluster` brings the input into one order. Only nodes that are up are counted and may receive:
//!   a draining or dead node has a quota of nothing. (A node that has been down for a short time is
//!   up to the planner; its state is the caller's judgement.)
//! - `quotas` says how many homes and seats every such node should have. With more than three
//!   replicas and a small zone the quotas of the seats cannot all be met beside rules 1 and 2: they
//!   then add up to less than all seats. The rest goes beyond quota by the rule of `ring::place`.
//! - `choice` finds the table to reach, by flows of least cost (`flow`): rules 1 and 2 are the shape
//!   of the network, rule 3 is the room of its edges, rules 4 and 5 are the costs. It takes every
//!   group at once, so bytes are weighed for the cluster, not for one group after another.
//! - `steps` turns the difference into steps and brings them into an order.
//!
//! **Order.** Repair comes before drain, drain before rebalance. Within each, the steps that copy
//! nothing and wait for nothing come first, then the groups that copy: those nearest to losing
//! their majority first (for repairs), then the smallest. The steps of one group keep their order:
//!
//! - a reseat adds `to` before it drops `from`, and the worst seats are replaced first. So after any
//!   prefix of the steps a group has at least as many live members (not damaged, on nodes that are
//!   up or draining) as before, unless a member is dropped because there are too many; that is the
//!   last thing to happen, and as many live members as the group should have are left;
//! - a home has a seat, and leadership leaves a member before the member leaves (H3): a group is
//!   rehomed and led by its new home as soon as that has the data, and the old home loses its seat
//!   after that. Where one is to replace the other, the new home is added first and the old one
//!   dropped last. Only a home that is dead or damaged, and leads nothing, may be replaced before
//!   the rehome, which then follows at once;
//! - a transfer goes to a live member on a node that is up.
//!
//! **What is not planned** is told in [`Plan::unmet`], never passed over:
//!
//! - a *lost* group, of which no majority lives, can agree on no membership. It stays as it is until
//!   nodes come back or it is recovered by force (H8);
//! - a seat on a dead or draining node stays while there is no node to take it. Dropping it would
//!   make the group smaller and no safer.
//!
//! Invariants: the plan is a pure function of the set of nodes, the set of groups and the rules, in
//! whole numbers; the order in which they are listed changes nothing. A second plan, made when all
//! steps are done, is empty. Bytes cross the network only as the copy of a whole group (H1).
//!
//! What is deliberately absent: when to act, how fast, and whether a person has to agree (the
//! executor's); who leads at this moment (a plan speaks of homes); the voters of the manager's own
//! group (H9), which is not in the table; handing shards from one group to another.
//!
//! Nothing here fails. Ids of nodes are distinct, and so are ids of groups; what else may be wrong
//! with a table (a home without a seat, members on unknown nodes, too many members) is planned away.

mod choice;
mod cluster;
mod flow;
mod outcome;
mod quotas;
mod rule;
mod steps;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use annulus_types::{GroupId, NodeId};

pub use outcome::{Load, NodeSummary};
pub use rule::Rule;

use cluster::Cluster;

/// What may be planned for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It holds data and may receive more. Also one that went down a short time ago.
    Up,
    /// It serves what it holds and is to be emptied.
    Draining,
    /// Down for longer than `down_after`: what it holds is made good elsewhere.
    Dead,
}

/// A node with the storage role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNode {
    /// Distinct.
    pub id: NodeId,
    /// Hundredths; a weight out of the ring's bounds counts as the nearest bound.
    pub weight: u32,
    /// Failure domain; unset is the zone `""`.
    pub zone: String,
    /// What may be planned for it.
    pub state: NodeState,
}

/// A seat of a group, with a voter on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node; one that is not listed counts as dead.
    pub node: NodeId,
    /// The replica cannot be trusted, or its node came back as a new incarnation. Where the node
    /// keeps its seat, it is reseated in place: a fresh replica on the same node.
    pub damaged: bool,
}

/// A group as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanGroup {
    /// Distinct; never the manager's.
    pub id: GroupId,
    /// The node that is meant to lead it.
    pub home: NodeId,
    /// Its number among the groups of its home.
    pub lane: u32,
    /// The voters, in any order.
    pub members: Vec<Seat>,
    /// Live data: what a copy costs.
    pub bytes: u64,
    /// Shards that it hosts.
    pub shards: u32,
}

/// The settings of the cluster that a plan obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Members of a group, as far as there are nodes.
    pub replication: u32,
    /// Groups per node at the birth of the cluster. A plan makes no groups and ends none, so no
    /// quota depends on it.
    pub lanes: u32,
}

/// How urgent a step is; the more urgent is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Data have fewer copies than they could have.
    Repair,
    /// A node is to be emptied.
    Drain,
    /// Evenness, or zones.
    Rebalance,
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repair => "repair",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
        })
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Changes the members of a group by one. With both nodes it replaces `from` by `to`; with the
    /// same node twice it replaces the replica in place; without `from` it adds a member, without
    /// `to` it drops one.
    Reseat {
        /// The group.
        group: GroupId,
        /// The member that leaves.
        from: Option<NodeId>,
        /// The member that comes.
        to: Option<NodeId>,
    },
    /// Gives the leadership of a group to a member.
    Transfer {
        /// The group.
        group: GroupId,
        /// The member.
        to: NodeId,
    },
    /// Makes another node the home of a group; nothing moves by that.
    Rehome {
        /// The group.
        group: GroupId,
        /// The new home.
        home: NodeId,
        /// Its lane there.
        lane: u32,
    },
}

impl StepKind {
    /// The group that is changed.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match self {
            Self::Reseat { group, .. }
            | Self::Transfer { group, .. }
            | Self::Rehome { group, .. } => *group,
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reseat { group, from, to } => match (from, to) {
                (Some(from), Some(to)) if from == to => {
                    write!(f, "reseat group {group} on node {to} in place")
                }
                (Some(from), Some(to)) => write!(f, "reseat group {group} from {from} to {to}"),
                (None, Some(to)) => write!(f, "reseat group {group} to {to}"),
                (Some(from), None) => write!(f, "reseat group {group} off {from}"),
                (None, None) => write!(f, "reseat group {group} nowhere"),
            },
            Self::Transfer { group, to } => write!(f, "transfer group {group} to {to}"),
            Self::Rehome { group, home, lane } => {
                write!(f, "rehome group {group} to {home}, lane {lane}")
            }
        }
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// Bytes that it sends over the network; 0 unless a member comes.
    pub bytes: u64,
    /// Why it is taken.
    pub rule: Rule,
    /// How urgent it is.
    pub priority: Priority,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, bytes, rule, priority } = self;
        match bytes {
            0 => write!(f, "{priority}: {kind}: {rule}"),
            bytes => write!(f, "{priority}: {kind}, {bytes} bytes: {rule}"),
        }
    }
}

/// A group as it is when all steps are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGroup {
    /// The group.
    pub id: GroupId,
    /// The node that is meant to lead it.
    pub home: NodeId,
    /// Its number among the groups of its home.
    pub lane: u32,
    /// Home first, then by id. Seats that had to stay are among them.
    pub members: Vec<NodeId>,
}

/// What a node gets by quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Groups at home.
    pub groups: u64,
    /// Seats, homes included.
    pub seats: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are to be begun.
    pub steps: Vec<Step>,
    /// The table that they lead to, by id.
    pub after: Vec<PlannedGroup>,
    /// What the rules ask for and the plan does not reach, with the reason.
    pub unmet: Vec<String>,
    /// What every node that is up gets by quota.
    pub shares: BTreeMap<NodeId, Share>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes over the network, of all steps.
    #[must_use]
    pub fn bytes(&self) -> u128 {
        self.steps.iter().map(|step| u128::from(step.bytes)).sum()
    }
}

/// Plans the way from `groups`, the table as it is, to the one that `nodes` and `rules` ask for.
#[must_use]
pub fn plan(nodes: &[PlanNode], groups: &[PlanGroup], rules: &Rules) -> Plan {
    let cluster = Cluster::new(nodes, groups, rules);
    let choices = choice::choose(&cluster);
    let drafts = steps::draft(&cluster, &choices);
    outcome::tell(&cluster, &choices, drafts)
}
