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
//!
//! client.put("code", "4711").ttl(std::time::Duration::from_secs(30)).await?;
//! client.incr("visits", 1).max(1_000).await?;
//! let moved = client.batch().delete("{ada}:draft").put("{ada}:final", "text");
//! moved.expect_present("{ada}:draft").await?;
//! client.close().await;
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
//! reads and all mutations to the group's leader, other reads to its members by turns. The table
//! decides nothing (H7): a wrong route is answered with a better one and costs a round trip. When
//! an answer tells of a newer table, the next call fetches it first.
//!
//! # Reads that need no leader
//!
//! A [`Session`] remembers what its answers have told and shows it to every replica that it reads from; one
//! that is behind does not answer. A [`Consistency::Bounded`] read is answered by whoever can vouch that its
//! state is not older. In both cases the next replica is asked after a refusal, the leader last, until the
//! deadline of the call. [`Client::multi_get`] reads keys of many shards, with one message per node.
//!
//! # Exactly once
//!
//! A mutation (put, delete, cas, incr, batch) takes effect at most once, however often it is sent. The
//! client opens a *writer* in each shard that it writes to, with a request of its own before its first
//! mutation there, and gives each mutation a number. The shard remembers by writer and number what it
//! answered, and answers a repetition with the first result. Clones share their writers; at most 1,024
//! mutations per shard are under way, further ones wait.
//!
//! A writer ends ten minutes after its last use. The next mutation then opens another one, unless an
//! earlier attempt of it is in doubt: under a new writer it would be a new mutation.
//! [`Client::close`] ends writers at once. [`Builder::exactly_once`] turns all of this off.
//!
//! # Keys that end by themselves
//!
//! A key that is set with a time to live ([`Put::ttl`]) ends by an entry of its shard's log, on all replicas
//! with the same entry, as if it were deleted. Reads judge no time: whoever finds the key has found it, and
//! [`Found::expires_in`] is information. Setting a key without a time to live takes a former one away.
//!
//! # What happens when an attempt fails
//!
//! Every error says whether *its* attempt may have changed something (W4). The client adds these
//! verdicts up over the attempts of a call and repeats only where that is safe:
//!
//! - a *mutation* is repeated within its deadline after every refusal that another node or moment may
//!   answer better, and after an unknown outcome too, under the same number, through whatever node leads
//!   by then. A silent node is left after 2 s. If the outcome is still unknown near the deadline, the
//!   client asks the shard what became of the operation; a quarter of the call's time, 500 ms at most, is
//!   kept for that. The answer is then the result of the call. One that was not applied is refused from
//!   then on: the verdict is no;
//! - a mutation *without a number* (see [`Builder::exactly_once`]) is repeated only while every attempt
//!   said no. After an unknown outcome nobody may repeat it (W3): the error is handed out at once, and the
//!   caller decides with knowledge that the client does not have;
//! - a *read* changes nothing and is repeated after everything that another node or moment may
//!   answer better. Its verdict is always no.
//!
//! An error after which something may have changed has the id of the operation ([`Error::op`]):
//! [`Client::op_status`] asks what became of it, now or from another process, for ten minutes at least.
//!
//! To be certain that an attempt did not leave this process, connecting is a step of its own:
//! nothing is written before the connection stands, and a connection that breaks is never replaced
//! under a waiting request. So a node that refuses connections costs a mutation nothing but time.
//!
//! Between attempts the client waits 20 ms, doubling to 200 ms, with jitter, and asks the next
//! member; a redirect to a named node is followed at once, three times in a row at most. All of it
//! ends at the deadline of the call (default 5 s, at most 60 s), which travels with each attempt; a
//! mutation with a number makes no attempt in the reserve above, which is for the question alone.
//! A call that until then met only nodes without a leader, or none at all, ends as
//! [`ErrorKind::NoQuorum`] with [`MayHaveApplied::No`].
//!
//! # What it does not do
//!
//! It runs no task of its own: routes are refreshed by the calls that need them, and writers are opened by
//! the calls that need them. It does not cache
//! values. It does not judge answers, with one exception: a value must match the checksum that was
//! made when it was written.

#![deny(missing_docs)]

mod admin;
mod calls;
mod channels;
mod client;
mod error;
mod op_id;
mod retry;
mod routes;
mod session;
mod stats;
mod writers;

pub use admin::Admin;
pub use annulus_proto::convert::{IncrResult, OpState};
/// The state of the cluster as [`Client::status`] returns it.
pub use annulus_proto::v1::StatusReply;
/// What [`NodeChange`] may change.
pub use annulus_proto::v1::node_change::Change as NodeChangeKind;
/// What [`Admin`] is asked and answers, as far as callers name it.
pub use annulus_proto::v1::{
    Move, MoveKind, MoveState, NodeChange, NodeOverview, NodeState, OverviewReply, SettingsChange,
};
pub use annulus_types::{
    ClusterId, Consistency, ErrorKind, MayHaveApplied, Mode, NodeId, Receipt, Revision, Role,
    RoutingTable, ServedBy, ShardId, Token,
};
pub use calls::{
    Batch, BatchWritten, Cas, Counted, Delete, Found, Get, Incr, KeyError, MultiGet, OpReport,
    OpStatus, Put, Written,
};
pub use client::{Builder, Client};
pub use error::Error;
pub use op_id::{OpIdText, ParseOpIdError};
pub use routes::ring_walk;
pub use session::Session;
pub use stats::Stats;
