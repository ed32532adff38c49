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
/// Operations of one batch, and guards of one batch: at least one of the former.
pub const BATCH_ITEMS: usize = 1_000;
/// Bytes of all keys and values of one batch, its guards included.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How far a writer may run ahead of its oldest operation without an answer: `seq - lowest_unacked`
/// is below this (W3). Replicas apply by it: another number takes another state machine version
/// (W8), and so do the four below.
pub const WRITER_WINDOW: u64 = 1_024;
/// Writers of one shard; further ones are refused (W3).
pub const SHARD_WRITERS: usize = 8 * 1024;
/// Bytes of results that one shard keeps, as they are stored; above it no writer is opened (W3).
pub const SHARD_RESULT_BYTES: u64 = 64 * 1024 * 1024;
/// A writer that is not used for so much shard time ends (W3).
pub const WRITER_IDLE: Duration = Duration::from_secs(10 * 60);
/// Keys, locks and writers that end by time before the operations of one entry (W5), or twice as many as
/// its operations name, if that is more.
pub const ENDS_PER_ENTRY: usize = 1_000;
/// Longest time to live of a key, milliseconds: a hundred years. The shortest is one millisecond.
pub const TTL_MS_MOST: u64 = 36_525 * 24 * 60 * 60 * 1_000;
/// Keys of one multi-get.
pub const MULTI_GET_KEYS: usize = 1_000;
/// A multi-get ends with the value with which its values have so many bytes together.
pub const MULTI_GET_BYTES: usize = 8 * 1024 * 1024;
/// Longest session token, bytes.
pub const SESSION_TOKEN_BYTES: usize = 64 * 1024;
/// Shards of a cluster: a power of two from 1 to this.
pub const SHARDS: u32 = 1024;
/// Deadline of a request that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);
/// Longest deadline; longer ones are shortened to it.
pub const DEADLINE_MOST: Duration = Duration::from_secs(60);
