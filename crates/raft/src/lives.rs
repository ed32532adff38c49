//! What this node remembers of the lives of other nodes (N1).
//!
//! A node that was set back to an older copy of its data folder has forgotten votes and entries, and
//! does not know it. Its peers can tell: with every ping and pong it tells the incarnation of its
//! folder, how often the folder was started, a random id of the present start, and the newest segment
//! of its log. What contradicts the past is refused:
//!
//! - a lower boot counter: the folder was rolled back;
//! - the same counter with another boot id: two copies of one folder were started;
//! - a new start whose log is not beyond every segment that an earlier start told of: the log was rolled
//!   back, or the folder was started often enough to count past its former self (each start begins a
//!   segment, and numbers are never reused);
//! - another incarnation than the one remembered. Which of two counts is the manager's to say; until it
//!   does, the one that was seen first is heard.
//!
//! The first three are final: the folder is dead, and its node is told so. A segment below the highest
//! told is no offence of a start that is known: pings and pongs of one process come over two
//! connections, and nothing orders them.
//!
//! # Invariants
//!
//! - A start that is new to this node is durable here before anything of it is heard or answered. A
//!   higher segment counts at once and is written within about a second of its telling.
//! - One write at a time, each of all that is remembered when it begins: an older state never replaces
//!   a newer one.
//! - What was read at the start is on the disk for certain only when it is written again: the process
//!   that wrote it may have ended before its sync. Until then it judges, and lets nobody in.
//!
//! # Failure
//!
//! A file that is missing or damaged is an empty memory; the second is said. Other peers still remember.
//! While the file cannot be written no start that is new gets an answer.
//!
//! # The file
//!
//! ```text
//! file `peers` in the data folder, numbers big-endian:
//!   version u8 = 1
//!   | per node, by id: node u32 | incarnation u64 | boot counter u64 | boot id u64 | segment u64
//!   | crc32 of all before u32
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{BootTime, Disk, Env, OnEnd};
use annulus_types::NodeId;
use bytes::{Buf as _, BufMut as _};
use parking_lot::Mutex;

use crate::options::{OnDead, Options, WeakenHost};
use crate::waits::Waits;

#[cfg(test)]
mod tests;

const FILE: &str = "peers";
const VERSION: u8 = 1;
/// Of one node in the file.
const NODE_BYTES: usize = 36;
/// Nodes that are remembered. A bound on memory and file, far above what one cluster has.
const NODES_MOST: usize = 4096;
/// Version, nodes, checksum.
const FILE_BYTES_MOST: usize = 1 + NODES_MOST * NODE_BYTES + 4;
/// Between two writes that only higher segments ask for.
const SEGMENTS_EVERY: Duration = Duration::from_secs(1);
/// The change that stands for what was read at the start.
const FIRST_CHANGE: u64 = 1;

/// What a node tells of its data folder and of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Of the folder, drawn when it was made.
    pub(crate) incarnation: u64,
    /// Starts of the folder so far.
    pub(crate) boot_counter: u64,
    /// Random, of the present start.
    pub(crate) boot_id: u64,
    /// The newest segment of its log.
    pub(crate) segment: u64,
}

impl Life {
    /// What a ping tells that came in a frame of this incarnation.
    pub(crate) fn told(incarnation: u64, ping: &v1::Ping) -> Self {
        let v1::Ping { boot_counter, boot_id, segment, .. } = *ping;
        Self { incarnation, boot_counter, boot_id, segment }
    }
}

/// What is made of a life that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing new.
    Known,
    /// It is remembered now. Vital: a start that was not known, not only a higher segment.
    Newer { vital: bool },
    /// It contradicts what is remembered. Dead: no start of this folder can ever be heard again.
    Refused { reason: String, dead: bool },
}

/// The lives that were told, by node. Knows no disk and no time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory(BTreeMap<NodeId, Life>);

impl Memory {
    fn judge(&mut self, node: NodeId, told: Life) -> Verdict {
        let is_full = self.0.len() >= NODES_MOST;
        let Some(known) = self.0.get_mut(&node) else {
            if is_full {
                let reason = format!("{NODES_MOST} other nodes are remembered already");
                return Verdict::Refused { reason, dead: false };
            }
            self.0.insert(node, told);
            return Verdict::Newer { vital: true };
        };
        let dead = |reason| Verdict::Refused { reason, dead: true };
        let start = told.boot_counter;
        if told.incarnation != known.incarnation {
            let reason = format!(
                "node {node} is known with data folder {:016x}, not with {:016x}",
                known.incarnation, told.incarnation
            );
            return Verdict::Refused { reason, dead: false };
        }
        if start < known.boot_counter {
            let seen = known.boot_counter;
            return dead(format!(
                "this is start {start} of a data folder whose start {seen} was seen"
            ));
        }
        if start == known.boot_counter && told.boot_id != known.boot_id {
            return dead(format!("another process was seen at start {start} of this data folder"));
        }
        let vital = start > known.boot_counter;
        if vital && told.segment <= known.segment {
            return dead(format!(
                "at start {start} of the data folder its log has come to segment {} only, and segment \
                 {} was seen at an earlier start",
                told.segment, known.segment
            ));
        }
        if vital || told.segment > known.segment {
            *known = told;
            return Verdict::Newer { vital };
        }
        Verdict::Known
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + self.0.len() * NODE_BYTES + 4);
        out.put_u8(VERSION);
        for (node, life) in &self.0 {
            out.put_u32(node.0);
            out.put_u64(life.incarnation);
            out.put_u64(life.boot_counter);
            out.put_u64(life.boot_id);
            out.put_u64(life.segment);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let (version, mut nodes) = body.split_first()?;
        let is_whole = crc32fast::hash(body) == u32::from_be_bytes(*crc);
        if !is_whole || *version != VERSION || !nodes.len().is_multiple_of(NODE_BYTES) {
            return None;
        }
        let mut memory = Self::default();
        while nodes.has_remaining() {
            let node = NodeId(nodes.get_u32());
            let life = Life {
                incarnation: nodes.get_u64(),
                boot_counter: nodes.get_u64(),
                boot_id: nodes.get_u64(),
                segment: nodes.get_u64(),
            };
            memory.0.insert(node, life);
        }
        Some(memory)
    }

    /// What an earlier process of this node has written, if it can be read.
    fn read(disk: &dyn Disk, dir: &Path) -> Self {
        let path = dir.join(FILE);
        let read = match disk.exists(&path) {
            Ok(false) => return Self::default(),
            Ok(true) => read_file(disk, &path, FILE_BYTES_MOST as u64),
            Err(error) => Err(error),
        };
        let reason = match read.map(|bytes| Self::decode(&bytes)) {
            Ok(Some(memory)) => return memory,
            Ok(None) => "its bytes make no sense".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            file = %path.display(),
            reason,
            "what was remembered of other nodes is lost; other nodes still remember"
        );
        Self::default()
    }
}

/// Why a node is not heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotHeard {
    /// What it tells contradicts what is remembered.
    #[error("{reason}")]
    Refused {
        /// Why, for people.
        reason: String,
        /// Its data folder can never be heard again.
        dead: bool,
    },
    /// Its start is new and could not be made durable here.
    #[error("its start cannot be remembered")]
    NotRemembered(#[source] io::Error),
}

struct Held {
    memory: Memory,
    /// Counts the changes of `memory`.
    changes: u64,
    /// The last vital change of each node that changed in this run.
    vital: BTreeMap<NodeId, u64>,
    /// When a write for higher segments alone was last asked for.
    asked: BootTime,
}

/// The memory of one node, and its file.
pub(crate) struct Lives {
    env: Env,
    dir: PathBuf,
    waits: Waits,
    on_dead: OnDead,
    weaken: WeakenHost,
    held: Mutex<Held>,
    /// Held by whoever writes. Only threads that may wait for a disk wait for it.
    writing: Mutex<()>,
    /// The change up to which the file is known to be durable.
    durable: AtomicU64,
    is_failing: AtomicBool,
}

impl Lives {
    /// Reads what an earlier process has written. Blocks.
    pub(crate) fn open(
        env: &Env,
        options: &Options,
        waits: Waits,
        weaken: WeakenHost,
    ) -> Arc<Self> {
        let memory = Memory::read(env.disk.as_ref(), &options.dir);
        let (vital, asked) = (BTreeMap::new(), env.clock.boot());
        let held = Held { memory, changes: FIRST_CHANGE, vital, asked };
        Arc::new(Self {
            env: env.clone(),
            dir: options.dir.clone(),
            waits,
            on_dead: options.on_dead.clone(),
            weaken,
            held: Mutex::new(held),
            writing: Mutex::new(()),
            durable: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        })
    }

    /// Judges what a node tells of its life. On return it is remembered, a new start durably. Dropping
    /// the future forgets nothing: the next call waits for what this one has begun.
    ///
    /// # Errors
    /// When the node must not be heard, or not yet.
    pub(crate) async fn hear(self: &Arc<Self>, node: NodeId, told: Life) -> Result<(), NotHeard> {
        if self.weaken.forget_lives() {
            return Ok(());
        }
        let now = self.env.clock.boot();
        let (needed, held_now, is_due) = {
            let mut guard = self.held.lock();
            let held = &mut *guard;
            match held.memory.judge(node, told) {
                Verdict::Known => {}
                Verdict::Newer { vital } => {
                    held.changes += 1;
                    if vital {
                        held.vital.insert(node, held.changes);
                    }
                }
                Verdict::Refused { reason, dead } => {
                    return Err(NotHeard::Refused { reason, dead });
                }
            }
            let needed = held.vital.get(&node).copied().unwrap_or(FIRST_CHANGE);
            let durable = self.durable.load(Ordering::SeqCst);
            let is_due = needed <= durable
                && held.changes > durable
                && now.since(held.asked) >= SEGMENTS_EVERY;
            if is_due {
                held.asked = now;
            }
            (needed, held.changes, is_due)
        };
        if needed > self.durable.load(Ordering::SeqCst) {
            let lives = Arc::clone(self);
            let stored = self.waits.run(move || lives.store(needed)).await;
            return stored.map_err(NotHeard::NotRemembered);
        }
        if is_due {
            let lives = Arc::clone(self);
            self.env.tasks.spawn("peers file", OnEnd::Ignore, async move {
                let storing = Arc::clone(&lives);
                // A failure was told where it happened; the next write holds the same.
                let _ = lives.waits.run(move || storing.store(held_now)).await;
            });
        }
        Ok(())
    }

    /// Writes all that is remembered, unless a write has held `change` already. Blocks.
    fn store(&self, change: u64) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock();
        if self.durable.load(Ordering::SeqCst) >= change {
            return Ok(());
        }
        let (bytes, holds) = {
            let held = self.held.lock();
            (held.memory.encode(), held.changes)
        };
        match replace_file(self.env.disk.as_ref(), &self.dir, FILE, &bytes) {
            Ok(()) => {
                self.durable.store(holds, Ordering::SeqCst);
                self.is_failing.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                // Pings come every 100 ms; one line says it.
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        file = FILE,
                        %error,
                        "what other nodes tell of themselves cannot be written; until it can, \
                         nobody is heard whose start is new"
                    );
                }
                Err(error)
            }
        }
    }

    /// A peer says that this node's own data folder is dead.
    pub(crate) async fn told_dead(&self, peer: NodeId, reason: &str) {
        tracing::error!(%peer, reason, "a peer refuses this data folder for good");
        let (on_dead, reason) = (self.on_dead.clone(), reason.to_owned());
        let told = self.waits.run(move || {
            on_dead.act(&reason);
            Ok(())
        });
        if let Err(error) = told.await {
            tracing::error!(%error, "the end of the data folder was not dealt with");
        }
    }
}
