//! Raft for Annulus: everything that touches openraft, and nothing of it leaves this crate.
//!
//! A process has one [`Host`]: one log, one engine, one link per other node, and a handful of
//! groups. A [`Group`] replicates operations of many shards; what they mean is a [`Machine`]'s
//! business (the storage node's shards, or the manager's table).
//!
//! Reading order: `gate` (who may answer a linearizable read, and why not by openraft's lease),
//! [`packer`] (how operations become entries and what a caller is told), [`machine`] (how entries
//! become state), `log_store` (how they become durable), `network`, `link`, `serve` (how they
//! travel), `lives` (who is not heard), `snapshot` (what is sent instead of entries that are gone),
//! [`host`] (how it is put together), `keeper` (elections after a death), `polls` (how old a replica's
//! state may be). How a replica is replaced: `seed` (its state is sent to the new one), [`membership`]
//! (who votes), `digest` and `verify` (whether replicas hold the same), `retire` (the old one is
//! destroyed) and `remains` (what it leaves); `traffic` counts what that costs the network. `reign` tells the
//! replicas of one manager's group from those of another's.

mod book;
mod codec;
mod connect;
mod digest;
pub mod entry;
mod frames;
mod gate;
pub mod group;
pub mod host;
mod keeper;
mod link;
mod links;
mod lives;
mod log_store;
pub mod machine;
pub mod membership;
mod network;
mod options;
pub mod packer;
mod polls;
mod reign;
mod remains;
mod replica;
mod retire;
mod seed;
mod serve;
mod snapshot;
#[cfg(test)]
mod testing;
mod traffic;
mod types;
mod verify;
mod waits;

pub use book::AddressBook;
pub use connect::channel;
pub use digest::Digest;
pub use entry::Operation;
pub use group::{Group, GroupStatus, ReadGrant};
pub use host::{GroupSpec, Host, HostError};
pub use machine::{Applying, FileSpec, Import, Machine};
pub use membership::{Change, MembershipView, SeatView};
pub use options::{BadTiming, OnDead, Options, Timing};
pub use packer::Proposed;
pub use reign::{Reign, UNKNOWN_INCARNATION};
pub use serve::FrameStream;
pub use traffic::MoveTraffic;
pub use verify::{Compared, Comparison, Verdict};

/// The identity of a log entry (L1).
pub use annulus_wal::EntryId;
