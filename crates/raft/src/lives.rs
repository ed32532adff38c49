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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_runtime::disk::replace_file;
use annulus_runtime::{BootTime, Env, OnEnd};
use annulus_types::NodeId;
use parking_lot::Mutex;

use crate::host::HostError;
use crate::options::{OnDead, Options, WeakenHost};
use crate::waits::Waits;

mod memory;
#[cfg(test)]
mod tests;

use memory::{FILE, Memory, Verdict};
pub(crate) use memory::{Known, Life};

/// Refused starts of which it is known that they were said. Beyond that some are said again.
const SAID_MOST: usize = 4096;
/// Between two writes that only higher positions ask for.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);
/// The change that stands for what was read at the start.
const FIRST_CHANGE: u64 = 1;

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

    /// The life of each node that counts: the admitted one, else the one that was seen first.
    pub(crate) fn counted(&self) -> Vec<(NodeId, u64)> {
        let held = self.held.lock();
        let lives = held.memory.0.iter().filter_map(|(node, past)| {
            let seen = past.known.map(|known| known.incarnation);
            Some((*node, past.admitted.or(seen)?))
        });
        lives.collect()
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
