//! The storage node: shards on top of Raft groups, and the services that clients talk to.
//!
//! [`operation`] and [`stored`] are pure encodings (what an entry says, what the engine holds), and
//! [`writers`] is the pure table by which a repeated mutation takes effect once. [`shards`] is the
//! replicated machine: it owns the shards of every group of this node. [`kv`] and [`routes`] are the
//! gRPC services; [`tables`] keeps the routing table on disk.
//!
//! Invariant (H7): a route decides nothing here. Whether a request is served follows from what the
//! groups of this node say about themselves.

pub mod deadline;
pub mod kv;
pub mod operation;
pub mod routes;
pub mod shards;
pub mod stored;
pub mod tables;
pub mod writers;

mod weaken;

pub use kv::KvService;
pub use routes::RoutesService;
pub use shards::{ShardMachine, Shards};
pub use tables::Tables;
