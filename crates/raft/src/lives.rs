//! What this node remembers of the lives of other nodes (N1).
//!
//! A node that was set back to an older copy of its data folder has forgotten votes and entries, and
//! does not know it. Its peers can tell: with every ping and pong it tells the incarnation of its
//! folder, how often the folder was started, a random id of the present start, up to where its log is
//! durable, and where the log ended when this start read it. What contradicts the past is refused:
//!
//! - a lower boot counter: the folder was set back;
//! - the same counter with another boot id: two copies of one folder were started;
//! - a new start whose log ended below what an earlier start told to be durable: the log was set back;
//! - a pong of a known start that tells less than was known of it when the ping left: the machine was
//!   set back together with its memory;
//! - another incarnation than the one remembered, or admitted. Which of two counts is the manager's to
//!   say ([`Lives::admit`]); until it does, the one that was seen first is heard.
//! - an incarnation that the manager had admitted and gave up for another one.
//!
//! All but the last but one are final: the folder is dead, and its node is told so. The first three
//! concern a start, beside which another one of the same folder may be sound. The fourth concerns all
//! that comes of the folder, and is remembered: the next thing that it says may fit again.
//!
//! # Admission
//!
//! The manager's table comes with the incarnation that it admits of each node. One that differs from what
//! is remembered takes its place: the remembered start is forgotten, and nothing but the admitted
//! incarnation is heard from then on, also if it was never heard yet. The one that had been admitted before
//! is refused for ever, whatever is said of it later. One that was only seen first is refused, and not told
//! that it is dead: it may be the next one that is admitted, which this node has heard early.
//!
//! This module takes admissions in the order in which they come. That a late one never undoes a newer
//! one is the work of the node that takes the table: it listens to no era, term or table version that is
//! lower than one that it obeyed (H6), and every admission raises the table's version.
//!
//! # No sound node is refused
//!
//! A node tells a position only after the sync that made it durable, and a sound log never ends below
//! such a position when it is read again, whatever was torn, damaged, written again or recycled
//! ([`annulus_wal::Wal::recovered_end`] has the argument). So the third does not happen to it. Nor does
//! the fourth: what one process tells only grows, and it answers a ping after it was sent, so after
//! everything that was known by then had been told. Pings are no answers: they and pongs come over two
//! connections, which nothing orders, and a ping of a known start may tell less than is known.
//!
//! # What is not seen
//!
//! Only what was told can be missed. So a node is heard that was set back
//!
//! - behind its last ping: what it has promised after that (pings come every 100 ms), or what every
//!   peer has forgotten by losing its power within about a second;
//! - and started a second time before a peer heard the first one: each start begins a segment, and the
//!   second finds its log to end there;
//! - together with its memory, until a pong of it is judged, which is the first thing that a link to it
//!   waits for; and for good if its log has grown as far again by then.
//!
//! A copy of the folder of a running node is refused once the original has told of anything written
//! since. Until then it looks like the original after a restart: the first of the two that is heard at
//! the next start counts, and the other one is dead. That is the original if it was not started again. Two
//! machines with one memory are one start: when one of them is refused for good, both are.
//!
//! # Invariants
//!
//! - A start that is new to this node is durable here before anything of it is heard or answered. A
//!   higher position counts at once and is written within about a second of its telling.
//! - An admission is durable here before anything of the admitted life is heard, and before the manager
//!   is told that the table was taken: it does not come a second time.
//! - What was said over a link before an admission counts; nothing that comes later does.
//! - One write at a time, each of all that is remembered when it begins: an older state never replaces
//!   a newer one.
//! - What was read at the start is on the disk for certain only when it is written again: the process
//!   that wrote it may have ended before its sync. Until then it judges, and lets nobody in.
//!
//! # Failure
//!
//! A file that is missing, or whose bytes make no sense, is an empty memory; the second is said. Other
//! peers still remember, and the next table says again who is admitted. A file that does not read, or is
//! of another version, is no empty memory, which would replace it: the host does not start. While the
//! file cannot be written no start that is new gets an answer.
//!
//! # The file
//!
//! ```text
//! file `peers` in the data folder, numbers big-endian:
//!   version u8 = 1
//!   | per node, by id: node u32 | admitted incarnation u64, 0: not told yet
//!                      | count u8 | so many former incarnations u64 each, in the order of their end
//!                      | heard u8: 0 nothing, 1 a start, 2 a start of a dead folder; unless 0:
//!                        | incarnation u64 | boot counter u64 | boot id u64 | segment u64 | offset u64
//!   | crc32 of all before u32
//! ```
//!
//! Segment and offset are the highest position that the start told. A dead folder is the fourth case
//! above. Version and checksum stay where they are in every version.

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{BootTime, Disk, Env, OnEnd};
use annulus_types::NodeId;
use annulus_wal::Position;
use bytes::BufMut as _;
use parking_lot::Mutex;

use crate::host::HostError;
use crate::options::{OnDead, Options, WeakenHost};
use crate::waits::Waits;

#[cfg(test)]
mod tests;

const FILE: &str = "peers";
const VERSION: u8 = 1;
/// Former incarnations of a node that are remembered; of more than these the last ones.
const FORMER_MOST: usize = 64;
/// Of one node in the file.
const NODE_BYTES_MOST: usize = 4 + 8 + 1 + FORMER_MOST * 8 + 1 + 5 * 8;
/// Nodes that are remembered. A bound on memory and file, far above what one cluster has.
const NODES_MOST: usize = 4096;
/// Version, nodes, checksum.
const FILE_BYTES_MOST: usize = 1 + NODES_MOST * NODE_BYTES_MOST + 4;
/// Refused starts of which it is known that they were said. Beyond that some are said again.
const SAID_MOST: usize = 4096;
/// Between two writes that only higher positions ask for.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);
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
    /// Up to here its log is durable.
    pub(crate) position: Position,
    /// Where its log ended when this start read it.
    pub(crate) recovered: Position,
}

impl Life {
    /// What a ping tells that came in a frame of this incarnation.
    pub(crate) fn told(incarnation: u64, ping: &v1::Ping) -> Self {
        let v1::Ping { boot_counter, boot_id, .. } = *ping;
        let position = |at: Option<&v1::LogPosition>| {
            at.map_or_else(Position::default, |at| Position {
                segment: at.segment,
                offset: at.offset,
            })
        };
        Self {
            incarnation,
            boot_counter,
            boot_id,
            position: position(ping.position.as_ref()),
            recovered: position(ping.recovered.as_ref()),
        }
    }
}

/// What is remembered of the newest start of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    incarnation: u64,
    boot_counter: u64,
    boot_id: u64,
    /// The highest that this start told.
    position: Position,
    /// No start of the folder is ever heard again.
    is_dead: bool,
}

impl Known {
    fn begin(told: Life) -> Self {
        let Life { incarnation, boot_counter, boot_id, position, .. } = told;
        Self { incarnation, boot_counter, boot_id, position, is_dead: false }
    }

    fn is_start_of(&self, told: &Life) -> bool {
        let start = (told.incarnation, told.boot_counter, told.boot_id);
        start == (self.incarnation, self.boot_counter, self.boot_id)
    }
}

/// What is remembered of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Past {
    /// The incarnation that the manager admits, once it was told; the only one that is heard then.
    admitted: Option<u64>,
    /// Those that were admitted before, in the order in which they were given up.
    former: Vec<u64>,
    /// What was heard, of the admitted incarnation if there is one.
    known: Option<Known>,
}

/// For people.
fn place(Position { segment, offset }: Position) -> String {
    format!("segment {segment}, byte {offset}")
}

/// What is made of a life that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing new.
    Known,
    /// It is remembered now. Vital: a start that was not known, not only a higher position.
    Newer { vital: bool },
    /// The log went back while the process ran. It is remembered now that the folder is dead.
    WentBack { reason: String },
    /// It contradicts what is remembered. Dead: no start of this folder can ever be heard again.
    Refused { reason: String, dead: bool },
}

/// The lives that were told, by node. Knows no disk and no time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory(BTreeMap<NodeId, Past>);

fn take_u8(rows: &mut &[u8]) -> Option<u8> {
    let (number, rest) = rows.split_first()?;
    *rows = rest;
    Some(*number)
}

fn take_u32(rows: &mut &[u8]) -> Option<u32> {
    let (number, rest) = rows.split_first_chunk::<4>()?;
    *rows = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_u64(rows: &mut &[u8]) -> Option<u64> {
    let (number, rest) = rows.split_first_chunk::<8>()?;
    *rows = rest;
    Some(u64::from_be_bytes(*number))
}

impl Past {
    /// Why an incarnation is not heard, whatever it tells, and whether it never will be.
    fn keeps_out(&self, node: NodeId, incarnation: u64) -> Option<(String, bool)> {
        if self.former.contains(&incarnation) {
            let reason = format!(
                "node {node} goes on with another data folder, for which {incarnation:016x} was given up"
            );
            return Some((reason, true));
        }
        let admitted = self.admitted.filter(|admitted| *admitted != incarnation)?;
        let reason = format!(
            "node {node} is admitted with data folder {admitted:016x}, not with {incarnation:016x}"
        );
        Some((reason, false))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.admitted.unwrap_or(0));
        // No more than `FORMER_MOST`.
        out.put_u8(u8::try_from(self.former.len()).unwrap_or(u8::MAX));
        for former in &self.former {
            out.put_u64(*former);
        }
        let Some(known) = &self.known else { return out.put_u8(0) };
        out.put_u8(1 + u8::from(known.is_dead));
        out.put_u64(known.incarnation);
        out.put_u64(known.boot_counter);
        out.put_u64(known.boot_id);
        out.put_u64(known.position.segment);
        out.put_u64(known.position.offset);
    }

    fn take(rows: &mut &[u8]) -> Option<Self> {
        let admitted = Some(take_u64(rows)?).filter(|admitted| *admitted != 0);
        let count = usize::from(take_u8(rows)?);
        if count > FORMER_MOST {
            return None;
        }
        let mut former = Vec::with_capacity(count);
        for _ in 0..count {
            former.push(take_u64(rows)?);
        }
        let is_dead = match take_u8(rows)? {
            0 => return Some(Self { admitted, former, known: None }),
            1 => false,
            2 => true,
            _ => return None,
        };
        let known = Known {
            incarnation: take_u64(rows)?,
            boot_counter: take_u64(rows)?,
            boot_id: take_u64(rows)?,
            position: Position { segment: take_u64(rows)?, offset: take_u64(rows)? },
            is_dead,
        };
        Some(Self { admitted, former, known: Some(known) })
    }
}

/// Why bytes are no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undecoded {
    Damaged,
    /// Intact, and not of this program.
    Version(u8),
}

impl Memory {
    /// For an answer, `asked` is what was remembered of the node when the question left.
    fn judge(&mut self, node: NodeId, told: Life, asked: Option<Known>) -> Verdict {
        if self.is_full_for(node) {
            let reason = format!("{NODES_MOST} other nodes are remembered already");
            return Verdict::Refused { reason, dead: false };
        }
        let past = self.0.entry(node).or_default();
        if let Some((reason, dead)) = past.keeps_out(node, told.incarnation) {
            return Verdict::Refused { reason, dead };
        }
        let dead = |reason| Verdict::Refused { reason, dead: true };
        let Some(known) = &mut past.known else {
            past.known = Some(Known::begin(told));
            return Verdict::Newer { vital: true };
        };
        let start = told.boot_counter;
        if told.incarnation != known.incarnation {
            let reason = format!(
                "node {node} is known with data folder {:016x}, not with {:016x}",
                known.incarnation, told.incarnation
            );
            return Verdict::Refused { reason, dead: false };
        }
        if known.is_dead {
            let start = known.boot_counter;
            return dead(format!("the log of this data folder went back during its start {start}"));
        }
        match start.cmp(&known.boot_counter) {
            Order::Less => {
                let seen = known.boot_counter;
                dead(format!("this is start {start} of a data folder whose start {seen} was seen"))
            }
            Order::Equal if told.boot_id != known.boot_id => {
                dead(format!("another process was seen at start {start} of this data folder"))
            }
            Order::Equal => {
                if let Some(asked) = asked
                    && asked.is_start_of(&told)
                    && told.position < asked.position
                {
                    known.is_dead = true;
                    let reason = format!(
                        "start {start} of the data folder says that its log is durable up to {}, and \
                         has said before that it is up to {}",
                        place(told.position),
                        place(asked.position)
                    );
                    return Verdict::WentBack { reason };
                }
                if told.position <= known.position {
                    return Verdict::Known;
                }
                known.position = told.position;
                Verdict::Newer { vital: false }
            }
            Order::Greater if told.recovered < known.position => dead(format!(
                "start {start} found the log of the data folder to end at {}, and an earlier start said \
                 that it was durable up to {}",
                place(told.recovered),
                place(known.position)
            )),
            Order::Greater => {
                *known = Known::begin(told);
                Verdict::Newer { vital: true }
            }
        }
    }

    /// Whether there is no room for one more node, and this would be one.
    fn is_full_for(&self, node: NodeId) -> bool {
        self.0.len() >= NODES_MOST && !self.0.contains_key(&node)
    }

    /// Takes what the manager says of a node; returns whether that is new. A former incarnation does not
    /// come back, whoever says so.
    fn admit(&mut self, node: NodeId, incarnation: u64) -> bool {
        // 0: the manager does not know which.
        if incarnation == 0 || self.is_full_for(node) {
            return false;
        }
        let past = self.0.entry(node).or_default();
        if past.admitted == Some(incarnation) || past.former.contains(&incarnation) {
            return false;
        }
        if let Some(former) = past.admitted.replace(incarnation) {
            if past.former.len() >= FORMER_MOST {
                past.former.remove(0);
            }
            past.former.push(former);
        }
        past.known = past.known.filter(|known| known.incarnation == incarnation);
        true
    }

    /// Whether the manager admits another incarnation of the node than this one.
    fn is_replaced(&self, node: NodeId, incarnation: u64) -> bool {
        let admitted = self.0.get(&node).and_then(|past| past.admitted);
        admitted.is_some_and(|admitted| admitted != incarnation)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for (node, past) in &self.0 {
            out.put_u32(node.0);
            past.encode(&mut out);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Undecoded> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Undecoded::Damaged)?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return Err(Undecoded::Damaged);
        }
        let (version, mut nodes) = body.split_first().ok_or(Undecoded::Damaged)?;
        if *version != VERSION {
            return Err(Undecoded::Version(*version));
        }
        let mut memory = Self::default();
        while !nodes.is_empty() {
            let node = NodeId(take_u32(&mut nodes).ok_or(Undecoded::Damaged)?);
            let past = Past::take(&mut nodes).ok_or(Undecoded::Damaged)?;
            memory.0.insert(node, past);
        }
        Ok(memory)
    }

    /// What an earlier process of this node has written.
    fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, HostError> {
        let path = dir.join(FILE);
        let file = || path.display().to_string();
        let unread =
            |error: io::Error| HostError::Peers { file: file(), reason: error.to_string() };
        if !disk.exists(&path).map_err(unread)? {
            return Ok(Self::default());
        }
        let bytes = read_file(disk, &path, FILE_BYTES_MOST as u64).map_err(unread)?;
        match Self::decode(&bytes) {
            Ok(memory) => Ok(memory),
            Err(Undecoded::Version(version)) => {
                let reason = format!("its format has version {version}, which is unknown here");
                Err(HostError::Peers { file: file(), reason })
            }
            Err(Undecoded::Damaged) => {
                tracing::warn!(
                    file = %path.display(),
                    "what was remembered of other nodes is damaged and lost; other nodes still remember"
                );
                Ok(Self::default())
            }
        }
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
    /// When a write for higher positions alone was last asked for.
    asked: BootTime,
    /// The refused starts that were said: node, incarnation and boot id.
    said: BTreeSet<(NodeId, u64, u64)>,
}

impl Held {
    /// As [`Memory::judge`], and counts what changes.
    fn judge(&mut self, node: NodeId, told: Life, asked: Option<Known>) -> Verdict {
        let verdict = self.memory.judge(node, told, asked);
        match verdict {
            Verdict::Known | Verdict::Refused { .. } => {}
            Verdict::Newer { vital } => {
                self.changes += 1;
                if vital {
                    self.vital.insert(node, self.changes);
                }
            }
            Verdict::WentBack { .. } => self.changes += 1,
        }
        verdict
    }

    /// As [`Memory::admit`] for each of them, and counts what changes. Returns the change that must be
    /// durable for them.
    fn admit(&mut self, admitted: &[(NodeId, u64)]) -> u64 {
        let mut needed = FIRST_CHANGE;
        for (node, incarnation) in admitted {
            if self.memory.admit(*node, *incarnation) {
                let folder = format!("{incarnation:016x}");
                tracing::info!(peer = %node, folder, "a peer's data folder is admitted");
                self.changes += 1;
                self.vital.insert(*node, self.changes);
            }
            needed = needed.max(self.vital.get(node).copied().unwrap_or(FIRST_CHANGE));
        }
        needed
    }

    /// Whether it was not said yet that this start is refused. A refused node tries again and again.
    fn is_news(&mut self, node: NodeId, told: Life) -> bool {
        if self.said.len() >= SAID_MOST {
            self.said.clear();
        }
        self.said.insert((node, told.incarnation, told.boot_id))
    }
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
    ///
    /// # Errors
    /// When there is a file that cannot be read, or one of another version.
    pub(crate) fn open(
        env: &Env,
        options: &Options,
        waits: Waits,
        weaken: WeakenHost,
    ) -> Result<Arc<Self>, HostError> {
        let memory = Memory::read(env.disk.as_ref(), &options.dir)?;
        let (vital, asked) = (BTreeMap::new(), env.clock.boot());
        let said = BTreeSet::new();
        let held = Held { memory, changes: FIRST_CHANGE, vital, asked, said };
        Ok(Arc::new(Self {
            env: env.clone(),
            dir: options.dir.clone(),
            waits,
            on_dead: options.on_dead.clone(),
            weaken,
            held: Mutex::new(held),
            writing: Mutex::new(()),
            durable: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        }))
    }

    /// What is remembered of a node now, for a question that leaves after this.
    pub(crate) fn remembered(&self, node: NodeId) -> Option<Known> {
        self.held.lock().memory.0.get(&node).and_then(|past| past.known)
    }

    /// Whether the manager admits another life of the node than this one: what still comes of it over a
    /// link that was accepted before is not heard any more.
    pub(crate) fn is_replaced(&self, node: NodeId, incarnation: u64) -> bool {
        self.held.lock().memory.is_replaced(node, incarnation)
    }

    /// Takes the incarnations that the manager admits; see the module for what becomes of others. On
    /// return they are durable. They must come from a table that is not older than the one that the last
    /// call's came with.
    ///
    /// # Errors
    /// When they cannot be written. They count all the same, and nobody of them is heard who is new.
    pub(crate) async fn admit(self: &Arc<Self>, admitted: &[(NodeId, u64)]) -> io::Result<()> {
        if self.weaken.forget_lives() {
            return Ok(());
        }
        let needed = self.held.lock().admit(admitted);
        if needed <= self.durable.load(Ordering::SeqCst) {
            return Ok(());
        }
        let lives = Arc::clone(self);
        self.waits.run(move || lives.store(needed)).await
    }

    /// Judges what a node tells of its life, unasked. On return it is remembered, a new start durably.
    /// Dropping the future forgets nothing: the next call waits for what this one has begun.
    ///
    /// # Errors
    /// When the node must not be heard, or not yet.
    pub(crate) async fn hear(self: &Arc<Self>, node: NodeId, told: Life) -> Result<(), NotHeard> {
        self.hear_answer(node, told, None).await
    }

    /// As [`Self::hear`], for the answer to a question; `asked` is what was remembered of the node when
    /// the question left.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn hear_answer(
        self: &Arc<Self>,
        node: NodeId,
        told: Life,
        asked: Option<Known>,
    ) -> Result<(), NotHeard> {
        if self.weaken.forget_lives() {
            return Ok(());
        }
        let (verdict, is_news, change) = {
            let mut held = self.held.lock();
            let verdict = held.judge(node, told, asked);
            let is_refused = matches!(verdict, Verdict::Refused { .. } | Verdict::WentBack { .. });
            (verdict, is_refused && held.is_news(node, told), held.changes)
        };
        let (reason, dead) = match verdict {
            Verdict::Known | Verdict::Newer { .. } => return self.remember(node).await,
            Verdict::Refused { reason, dead } => (reason, dead),
            Verdict::WentBack { reason } => {
                self.write_aside(change);
                (reason, true)
            }
        };
        if is_news {
            tracing::warn!(peer = %node, reason, dead, "a peer is refused");
        }
        Err(NotHeard::Refused { reason, dead })
    }

    /// Makes durable what was told of a node, at once if it is vital.
    async fn remember(self: &Arc<Self>, node: NodeId) -> Result<(), NotHeard> {
        let now = self.env.clock.boot();
        let (needed, held_now, is_due) = {
            let mut held = self.held.lock();
            let needed = held.vital.get(&node).copied().unwrap_or(FIRST_CHANGE);
            let durable = self.durable.load(Ordering::SeqCst);
            let is_due = needed <= durable
                && held.changes > durable
                && now.since(held.asked) >= POSITIONS_EVERY;
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
            self.write_aside(held_now);
        }
        Ok(())
    }

    /// Has a task write all that is remembered.
    fn write_aside(self: &Arc<Self>, change: u64) {
        let lives = Arc::clone(self);
        self.env.tasks.spawn("peers file", OnEnd::Ignore, async move {
            let storing = Arc::clone(&lives);
            // A failure was told where it happened; the next write holds the same.
            let _ = lives.waits.run(move || storing.store(change)).await;
        });
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
