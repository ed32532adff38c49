//! Scenarios: one question each, put to real processes, with figures and a verdict.
//!
//! A scenario brings its own clients, faults and bounds; what it needs to know of a cluster it sees as
//! every client does. It prints what it measured and fails when a bound is violated, when it could not
//! ask its question (nobody led, nothing was written, no follower was ahead), or when a client of it
//! ended early. A failed one keeps the folder of its cluster.
//!
//! They judge nothing that a checker over a recorded history would judge better: where operations of
//! several clients on one key meet, `run` and the checkers are the place.
//!
//! What scenarios share lies here too: [`wire`], a network that can be cut and listened to, [`lossy`], one
//! that loses replies, [`steady`], a load whose every answer is judged, and `seats`, what nodes hold and what
//! they are meant to.

pub mod dead;
pub mod deposed;
pub mod freshness;
pub mod isolated;
pub mod lossy;
pub mod managerless;
pub mod moves;
pub mod once;
mod seats;
pub mod slow;
pub mod steady;
pub mod wire;
