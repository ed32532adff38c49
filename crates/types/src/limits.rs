//! Limits that are part of the contract, with their units.

use std::time::Duration;

/// Longest key, bytes. A key is never empty.
pub const KEY_BYTES: usize = 4 * 1024;
/// Longest value by default, bytes.
pub const VALUE_BYTES: usize = 1024 * 1024;
/// Largest gRPC message that is decoded, bytes.
pub const DECODE_BYTES: usize = 16 * 1024 * 1024;
/// A peer envelope travels in pieces of at most this many bytes (N2).
pub const PEER_PIECE_BYTES: usize = 64 * 1024;
/// One Raft entry holds at most this many bytes of operations, or one operation if it is larger (W9).
pub const ENTRY_BYTES: usize = 1024 * 1024;
/// One replication frame holds at most this many bytes of entries, at least one entry (W9).
pub const FRAME_BYTES: usize = 1024 * 1024;
/// Operations that may wait for one group.
pub const GROUP_QUEUE_OPERATIONS: usize = 8 * 1024;
/// Bytes of operations that may wait for one group.
pub const GROUP_QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Shards of a cluster: a power of two from 1 to this.
pub const SHARDS: u32 = 1024;
/// Deadline of a request that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);
/// Longest deadline; longer ones are shortened to it.
pub const DEADLINE_MOST: Duration = Duration::from_secs(60);
