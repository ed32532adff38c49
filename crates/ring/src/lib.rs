//! Where data live: the ring of virtual nodes, the quotas, and the placement of a fresh cluster.
//!
//! A key has a token, a token lies in a slice of the token space, a slice is a *shard*, a shard is
//! hosted by a *group* of replicas. This crate answers one question: given the nodes with their
//! weights and zones, and the settings of the cluster, which node is *home* of which shard, which
//! groups exist, and which nodes sit in them?
//!
//! Two ideas divide the work, because neither is good enough alone.
//!
//! - The **ring** gives every token an order of preference among the nodes, and a node that
//!   comes or goes leaves the order of the others as it was. But a ring is uneven: taken by its
//!   word it loads the busiest node up to 1.8 times the mean.
//! - The **quota** says how many of something each node takes, as evenly as whole numbers allow and
//!   in proportion to the weights. But a quota does not say *which*.
//!
//! So the quota decides how many, and the ring decides which: a shard goes to the first node on its
//! walk that still has room, a seat to the node with the most room left, ties by the walk. One rule
//! of evenness serves homes, groups, and seats per zone and per node, so that there is one thing to
//! understand when somebody asks why a node holds what it holds.
//!
//! Everything here is a pure function: no clock, no randomness, no I/O, no floating point, and no
//! order that depends on a hash seed. The same nodes and settings give the same table on every
//! machine and in every build, whatever the order in which the nodes are listed; an independent
//! implementation agrees to the last seat (`testdata/placement.json`).
//!
//! What is deliberately absent: ids of groups and replicas (the manager allocates them, never
//! twice), addresses, liveness, and the way from a present table to a better one (the planner's
//! work, which reaches for the same quotas). Whoever holds a placement holds no authority: groups
//! themselves decide what they own (H7).
//!
//! Reading order: `quota` (the rule of evenness), `vnodes` (the ring), `seats` (who sits where),
//! `placement` (all of it put together).

pub mod quota;
pub mod vnodes;

pub mod seats;

pub mod placement;

pub use placement::{
    PlacedGroup, Placement, PlacementError, PlacementNode, Settings, SettingsError, place,
};
pub use quota::{Candidate, quota};
pub use seats::{SeatQuota, seat_quota};
pub use vnodes::{Point, Ring, RingNode};

#[cfg(test)]
mod tests;
