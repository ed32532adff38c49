//! The client library of Annulus.
//!
//! ```no_run
//! # async fn example() -> Result<(), annulus_client::Error> {
//! use annulus_client::{Client, Consistency};
//!
//! let client = Client::connect(["127.0.0.1:7400"]).await?;
//! let written = client.put("greeting", "hello").await?;
//! let found = client.get("greeting").consistency(Consistency::Any).await?;
//! println!("{:?} at {}", found.value, found.version);
//! client.delete("greeting").if_version(written.version).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone and is meant to be shared. Each call is a small builder that is
//! sent when it is awaited.
//!
//! # How a call finds its node
//!
//! A key hashes to a token, the token lies in a shard, the shard is hosted by a group of replicas
//! on several nodes. The client keeps a routing table, asked of any node, and sends linearizable
//! reads and all mutations to the group's leader, `any` reads to its members by turns. The table
//! decides nothing (H7): a wrong route is answered with a better one and costs a round trip. When
//! an answer tells of a newer table, the next call fetches it first.
//!
//! # What happens when an attempt fails
//!
//! Every error says whether *its* attempt may have changed something (W4). The client adds these
//! verdicts up over the attempts of a call and repeats only where that is safe:
//!
//! - a *mutation* is repeated only while every attempt said no. It carries no operation id, so
//!   after an unknown outcome nobody may repeat it (W3): the error is handed out at once, and the
//!   caller decides with knowledge that the client does not have;
//! - a *read* changes nothing and is repeated after everything that another node or moment may
//!   answer better. Its verdict is always no.
//!
//! To be certain that an attempt did not leave this process, connecting is a step of its own:
//! nothing is written before the connection stands, and a connection that breaks is never replaced
//! under a waiting request. So a node that refuses connections costs a mutation nothing but time.
//!
//! Between attempts the client waits 20 ms, doubling to 200 ms, with jitter, and asks the next
//! member; a redirect to a named node is followed at once, three times in a row at most. All of it
//! ends at the deadline of the call (default 5 s, at most 60 s), which travels with each attempt.
//! A call that until then met only nodes without a leader, or none at all, ends as
//! [`ErrorKind::NoQuorum`] with [`MayHaveApplied::No`].
//!
//! # What it does not do
//!
//! It runs no task of its own: routes are refreshed by the calls that need them. It does not cache
//! values. It does not judge answers, with one exception: a value must match the checksum that was
//! made when it was written.

#![deny(missing_docs)]

mod calls;
mod channels;
mod client;
mod retry;
mod routes;

/// The state of the cluster as [`Client::status`] returns it.
pub use annulus_proto::v1::StatusReply;
pub use annulus_types::{
    ClusterId, Consistency, Error, ErrorKind, MayHaveApplied, Mode, NodeId, Receipt, Revision,
    Role, RoutingTable, ServedBy,
};
pub use calls::{Cas, Delete, Found, Get, Put, Written};
pub use client::{Builder, Client};
pub use routes::ring_walk;
