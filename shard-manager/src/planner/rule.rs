//! Why a step is taken, in words for the one who reads the plan.
//!
//! A rule carries the numbers that make it true at the time of the plan, for the whole plan: four
//! seats that go to a new node are four steps with the same reason. Nothing is decided here.

use std::fmt;

use annulus_types::NodeId;

/// What asks for a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A node has been down for too long.
    Dead {
        /// The node.
        node: NodeId,
    },
    /// A replica cannot be trusted any more, or its node came back as another one.
    Damaged {
        /// The node with the seat.
        node: NodeId,
    },
    /// A group has fewer members than it could have.
    Undersized {
        /// Members that it has.
        members: usize,
        /// Members that it could have.
        wanted: usize,
    },
    /// A node is to be emptied.
    Draining {
        /// The node.
        node: NodeId,
    },
    /// A group uses fewer zones than it could (rule 2 of the placement).
    Zones {
        /// Zones that it uses.
        used: usize,
        /// Zones that it could use.
        possible: usize,
    },
    /// A group has more members than the replication asks for.
    Surplus {
        /// Members that it has.
        members: usize,
        /// Members that it should have.
        wanted: usize,
    },
    /// A node has too few or too many seats (rule 3).
    Seats {
        /// The node.
        node: NodeId,
        /// Seats that it has.
        has: u64,
        /// Seats that it should have.
        quota: u64,
    },
    /// A node is home of too few or too many groups (rule 3).
    Homes {
        /// The node.
        node: NodeId,
        /// Groups at home there.
        has: u64,
        /// Groups that should be.
        quota: u64,
    },
    /// Neither node has too much or too little, but the step lets others reach their quotas.
    Exchange,
    /// The home of a group loses its seat in it.
    HomeLeaves {
        /// The home until now.
        node: NodeId,
    },
    /// A group is led by its home, whose seat was filled anew.
    Leads {
        /// The home.
        node: NodeId,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead { node } => {
                write!(f, "node {node} has been down for longer than the cluster waits")
            }
            Self::Damaged { node } => write!(
                f,
                "the replica on node {node} is damaged or from an earlier life of the node, \
                 a fresh copy takes its place"
            ),
            Self::Undersized { members, wanted } => {
                write!(f, "the group has {members} of the {wanted} members that it can have")
            }
            Self::Draining { node } => write!(f, "node {node} is draining"),
            Self::Zones { used, possible } => {
                write!(f, "the group uses {used} of the {possible} zones that it can use")
            }
            Self::Surplus { members, wanted } => {
                write!(f, "the group has {members} members, replication asks for {wanted}")
            }
            Self::Seats { node, has, quota } => {
                write!(f, "node {node} has {}", share(*has, *quota, "seats"))
            }
            Self::Homes { node, has, quota } => {
                write!(f, "node {node} is home of {}", share(*has, *quota, "groups"))
            }
            Self::Exchange => {
                f.write_str("an exchange that lets other nodes reach their quotas at least cost")
            }
            Self::HomeLeaves { node } => {
                write!(f, "node {node}, the home until now, keeps no seat in the group")
            }
            Self::Leads { node } => {
                write!(f, "node {node} is the home of the group, and can lead it with the new copy")
            }
        }
    }
}

/// `3 of the 7 seats that its weight gives it`, or how many are too many.
fn share(has: u64, quota: u64, unit: &str) -> String {
    if has > quota {
        let more = has - quota;
        format!("{has} {unit}, {more} more than the {quota} that its weight gives it")
    } else {
        format!("{has} of the {quota} {unit} that its weight gives it")
    }
}
