//! The vocabulary of Annulus: ids, tokens, the words for order, consistency modes, receipts,
//! routes, errors and limits.
//!
//! Pure data. This crate does no I/O, spawns nothing and reads no clock, so that every other crate
//! may depend on it. Wire conversions live in `annulus-proto`, on-disk encodings beside the code
//! that owns the file. The one exception is the session token ([`session`]), whose bytes are its
//! meaning: client and server read the same ones, and nobody between them looks inside.

pub mod error;
pub mod ids;
pub mod limits;
pub mod receipt;
pub mod routes;
pub mod session;
pub mod token;

pub use error::{Error, ErrorKind, MayHaveApplied};
pub use ids::{
    ClusterId, Epoch, GroupId, NamespaceId, NodeId, ReplicaId, Revision, ShardId, TableVersion,
};
pub use receipt::{Consistency, Mode, Receipt, Role, ServedBy};
pub use routes::{GroupRoute, MemberRole, MemberRoute, NodeInfo, RoutingTable, ShardRoute};
pub use session::{BadSessionToken, SessionError, SessionToken};
pub use token::{Token, routing_key, token_of};
