//! What a session has seen (R5): per shard the highest revision that any answer told.
//!
//! A client keeps one token per session, adds every receipt to it, and sends it with each read of mode
//! `session`; a replica answers from a state that is at least as new. To everybody else the token is
//! opaque bytes:
//!
//! ```text
//! version u8 = 1 | cluster 16 bytes | per shard: shard u64, revision u64 | CRC-32 of all before, u32
//! ```
//!
//! Numbers are big-endian, shards ascend, and a shard of which nothing was seen is left out: equal
//! tokens have equal bytes. The checksum finds what was mangled on the way; it is no protection against
//! somebody who makes tokens up, and such a token can only cost its own session a wait.
//!
//! # Invariants
//!
//! - A token never forgets and never goes back: [`SessionToken::merge`] is a join (the higher revision
//!   of every shard), [`SessionToken::observe`] the join with one receipt.
//! - A token has at most [`limits::SESSION_TOKEN_BYTES`], so it can always be sent. That is room for
//!   [`SHARDS_MOST`], 4,094 shards. A cluster has at most 1,024 shards at once, for which 16,405 bytes are
//!   enough; only a session that lives through several divisions of all shards could fill its token, and
//!   it is then told so ([`SessionError::Full`]). Dropping a shard instead would break its promise.
//! - A token belongs to one cluster: revisions of another one mean nothing (W2).

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{self, SESSION_TOKEN_BYTES};
use crate::{ClusterId, Receipt, Revision, ShardId};

const VERSION: u8 = 1;
const CLUSTER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const SHARD_BYTES: usize = 16;
/// Bytes of a token that has seen nothing.
const EMPTY_BYTES: usize = 1 + CLUSTER_BYTES + CRC_BYTES;

/// Shards that one token has room for.
pub const SHARDS_MOST: usize = (SESSION_TOKEN_BYTES - EMPTY_BYTES) / SHARD_BYTES;

// Every shard of a cluster fits, whatever the limits are changed to.
const _: () = assert!(limits::SHARDS as usize <= SHARDS_MOST);

/// Something that a token cannot take in. It is left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The other one belongs to another cluster.
    #[error("a session of cluster {own} cannot take in one of cluster {other}")]
    OtherCluster {
        /// The cluster of this token.
        own: ClusterId,
        /// The cluster of the other one.
        other: ClusterId,
    },
    /// There is no room for another shard.
    #[error("a session has room for {most} shards, and has seen as many", most = SHARDS_MOST)]
    Full,
}

/// Bytes that are no session token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSessionToken {
    /// Longer than a token may be.
    #[error("must have at most {most} bytes, has {0}", most = SESSION_TOKEN_BYTES)]
    TooLong(usize),
    /// Of no length that a token can have.
    #[error("is cut short")]
    CutShort,
    /// Made by a version that is not known here.
    #[error("has version {0}, which is not known here")]
    Version(u8),
    /// Changed since it was made.
    #[error("does not match its checksum")]
    Checksum,
    /// Shards out of order, or one of which nothing was seen.
    #[error("is not in order")]
    Order,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionToken {
    cluster: ClusterId,
    /// No revision is 0.
    seen: BTreeMap<ShardId, Revision>,
}

impl SessionToken {
    /// The token of a session that has seen nothing.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster, seen: BTreeMap::new() }
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The revision that the session has seen of a shard; 0 for none.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Revision {
        self.seen.get(&shard).copied().unwrap_or_default()
    }

    /// Shards of which it has seen anything.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.seen.len()
    }

    /// Takes in an answer, which must be one of this token's cluster.
    ///
    /// # Errors
    /// [`SessionError::Full`].
    pub fn observe(&mut self, receipt: &Receipt) -> Result<(), SessionError> {
        let Receipt { shard, revision, .. } = *receipt;
        if revision == Revision(0) {
            return Ok(());
        }
        if !self.seen.contains_key(&shard) && self.seen.len() >= SHARDS_MOST {
            return Err(SessionError::Full);
        }
        self.raise(shard, revision);
        Ok(())
    }

    /// Takes in everything that another session has seen.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn merge(&mut self, other: &Self) -> Result<(), SessionError> {
        if self.cluster != other.cluster {
            return Err(SessionError::OtherCluster { own: self.cluster, other: other.cluster });
        }
        let added = other.seen.keys().filter(|shard| !self.seen.contains_key(*shard)).count();
        if self.seen.len() + added > SHARDS_MOST {
            return Err(SessionError::Full);
        }
        for (shard, revision) in &other.seen {
            self.raise(*shard, *revision);
        }
        Ok(())
    }

    fn raise(&mut self, shard: ShardId, revision: Revision) {
        let seen = self.seen.entry(shard).or_default();
        *seen = revision.max(*seen);
    }

    /// The bytes of the token.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(EMPTY_BYTES + SHARD_BYTES * self.seen.len());
        out.put_u8(VERSION);
        out.put_slice(&self.cluster.0);
        for (shard, revision) in &self.seen {
            out.put_u64(shard.0);
            out.put_u64(revision.0);
        }
        out.put_u32(crc32fast::hash(&out));
        out.freeze()
    }

    /// Reads the bytes of a token.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadSessionToken> {
        if bytes.len() > SESSION_TOKEN_BYTES {
            return Err(BadSessionToken::TooLong(bytes.len()));
        }
        // First, because a later version may end differently.
        match bytes.first() {
            Some(&VERSION) => {}
            Some(version) => return Err(BadSessionToken::Version(*version)),
            None => return Err(BadSessionToken::CutShort),
        }
        let Some((body, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
            return Err(BadSessionToken::CutShort);
        };
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return Err(BadSessionToken::Checksum);
        }
        let cluster = body.get(1..).and_then(<[u8]>::split_first_chunk::<CLUSTER_BYTES>);
        let Some((cluster, shards)) = cluster else { return Err(BadSessionToken::CutShort) };
        let pairs = shards.chunks_exact(SHARD_BYTES);
        if !pairs.remainder().is_empty() {
            return Err(BadSessionToken::CutShort);
        }
        let mut seen: BTreeMap<ShardId, Revision> = BTreeMap::new();
        for mut pair in pairs {
            let (shard, revision) = (ShardId(pair.get_u64()), Revision(pair.get_u64()));
            let ascends = seen.last_key_value().is_none_or(|(last, _)| *last < shard);
            if !ascends || revision == Revision(0) {
                return Err(BadSessionToken::Order);
            }
            seen.insert(shard, revision);
        }
        Ok(Self { cluster: ClusterId(*cluster), seen })
    }
}

#[cfg(test)]
mod tests;
