//! What a replica holds, as a digest (E5).
//!
//! A leader proposes an entry of a kind of its own. Every replica that applies it takes views of its whole
//! state right there, as for a snapshot, and reads them in the background: what the *engine* gives back,
//! in the form in which rows travel, without what holds on one node only ([`Machine::export`]). Equal
//! states give equal digests, whatever was applied since. Here digests are made and told; `verify` asks for
//! them and compares.
//!
//! A digest is 128 bits of murmur3 (x64, seed 0): it must find rot and lost rows, not resist somebody who
//! looks for a collision. Each file of a snapshot is hashed by itself, and then the list of ids and hashes:
//!
//! ```text
//! hash of a file    over its rows as a snapshot holds them: name bytes u16 | value bytes u32 | name | value
//! digest            over the files, by id: id u64 | hash of the file, 16 bytes, big-endian
//! ```
//!
//! # Invariants
//!
//! - The views are taken between the digest entry and the next one.
//! - Applying waits for views, never for rows. At most two groups of a node are read at once; what comes
//!   then is not taken, and says so.
//! - Entries that are only applied again, at a start, take no digest: nobody waits for it.
//!
//! # Failure
//!
//! Digests are in memory, the last eight of each replica: a replica that was started since has none, and
//! says so. Rows that do not read are no digest, and the reason is kept in its place.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{Engine, View};
use annulus_proto::v1;
use annulus_proto::v1::digest_reply::Result as Told;
use annulus_proto::v1::envelope::Body;
use annulus_wal::EntryId;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::group::Group;
use crate::machine::{Machine, StateMachine};
use crate::replica::ReplicaState;
use crate::snapshot::store::SnapshotStore;
use crate::snapshot::{Part, parts, read_rows};
use crate::types::{entry_id, log_id_from_wire};

/// Digests of one replica that are remembered.
const KEPT: usize = 8;
/// A maker that was told to be late waits this long: long enough for something to come.
const LATENESS: Duration = Duration::from_millis(50);

/// What the engine of a replica gives back at one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Over all of it.
    pub whole: u128,
    /// Over each file of a snapshot, by id: in a group of shards, over each shard.
    pub files: Vec<(u64, u128)>,
}

impl Digest {
    fn of(files: Vec<(u64, u128)>) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(files.len() * 24);
        for (id, hash) in &files {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&hash.to_be_bytes());
        }
        let whole = murmur3::murmur3_x64_128(&mut bytes.as_slice(), 0)?;
        Ok(Self { whole, files })
    }

    /// As the wire has it: the whole, 16 bytes, and the files.
    #[must_use]
    pub fn to_wire(&self) -> (Bytes, Vec<v1::FileDigest>) {
        let bytes = |hash: u128| Bytes::copy_from_slice(&hash.to_be_bytes());
        let file = |&(id, hash): &(u64, u128)| v1::FileDigest { id, digest: bytes(hash) };
        (bytes(self.whole), self.files.iter().map(file).collect())
    }

    /// What [`Digest::to_wire`] made; `None` for anything that has not its lengths.
    pub(crate) fn from_wire(whole: &[u8], files: &[v1::FileDigest]) -> Option<Self> {
        let hash = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(u128::from_be_bytes);
        let files = files.iter().map(|file| Some((file.id, hash(&file.digest)?)));
        Some(Self { whole: hash(whole)?, files: files.collect::<Option<Vec<_>>>()? })
    }
}

/// What became of the digest at one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The rows are being read.
    Pending,
    Is(Arc<Digest>),
    /// Too many others were being taken.
    Busy,
    Unreadable(String),
}

/// A digest to be made.
#[derive(Debug)]
struct Job {
    at: EntryId,
    parts: Vec<Part>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Held {
    /// There is a task that makes digests.
    is_tended: bool,
    waiting: VecDeque<Job>,
    outcomes: VecDeque<(EntryId, Outcome)>,
}

/// The digests of one replica.
#[derive(Debug)]
pub(crate) struct Digests {
    held: Mutex<Held>,
    /// Counts what changed.
    news: watch::Sender<u64>,
}

impl Digests {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default(), news: watch::Sender::new(0) }
    }

    /// From now on digests are taken.
    pub(crate) fn begin(&self) {
        self.held.lock().is_tended = true;
    }

    fn is_tended(&self) -> bool {
        self.held.lock().is_tended
    }

    fn note(&self, at: EntryId, outcome: Outcome) {
        {
            let mut held = self.held.lock();
            held.outcomes.retain(|(known, _)| *known != at);
            held.outcomes.push_back((at, outcome));
            if held.outcomes.len() > KEPT {
                held.outcomes.pop_front();
            }
        }
        self.news.send_modify(|count| *count += 1);
    }

    fn queue(&self, job: Job) {
        let at = job.at;
        self.held.lock().waiting.push_back(job);
        self.note(at, Outcome::Pending);
    }

    fn next(&self) -> Option<Job> {
        self.held.lock().waiting.pop_front()
    }

    /// Follows what changes.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What became of the digest at an entry.
    pub(crate) fn find(&self, at: EntryId) -> Option<Outcome> {
        let held = self.held.lock();
        held.outcomes.iter().find(|(known, _)| *known == at).map(|(_, outcome)| outcome.clone())
    }

    /// The last digest that was made.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<u128> {
        let held = self.held.lock();
        held.outcomes.iter().rev().find_map(|(_, outcome)| match outcome {
            Outcome::Is(digest) => Some(digest.whole),
            _ => None,
        })
    }
}

/// Takes the views for the digest at an entry whose batch is visible; nothing is applied meanwhile.
pub(crate) fn take(machine: &StateMachine, at: EntryId) {
    let digests = &machine.replica.digests;
    if !digests.is_tended() {
        return;
    }
    let Some(permit) = machine.store.may_digest() else {
        return digests.note(at, Outcome::Busy);
    };
    match parts(machine.engine.as_ref(), &machine.machine) {
        Ok(parts) => digests.queue(Job { at, parts, _permit: permit }),
        Err(error) => digests.note(at, Outcome::Unreadable(error.to_string())),
    }
}

/// What makes the digests of a replica, one after another.
pub(crate) struct Maker {
    pub(crate) replica: Arc<ReplicaState>,
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) machine: Arc<dyn Machine>,
    /// Reads the engine as it is when there is time, not as it was at the entry.
    pub(crate) is_late: bool,
}

impl Maker {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let digests = &self.replica.digests;
        let mut news = digests.watch();
        loop {
            news.mark_unchanged();
            while let Some(job) = digests.next() {
                let at = job.at;
                let outcome = match self.make(job).await {
                    Ok(digest) => Outcome::Is(Arc::new(digest)),
                    Err(error) => Outcome::Unreadable(error.to_string()),
                };
                if let Outcome::Unreadable(reason) = &outcome {
                    let (group, replica) = (self.replica.group, self.replica.me);
                    tracing::error!(%group, %replica, %reason, "the replica's rows do not read");
                }
                digests.note(at, outcome);
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    async fn make(&self, job: Job) -> io::Result<Digest> {
        let Job { parts: mut views, _permit, .. } = job;
        if self.is_late {
            tokio::time::sleep(LATENESS).await;
            views = parts(self.engine.as_ref(), &self.machine).map_err(io::Error::other)?;
        }
        let mut files = Vec::with_capacity(views.len());
        for part in views {
            let (id, machine) = (part.id, Arc::clone(&self.machine));
            let hash = self.store.run(move || hash_of(machine.as_ref(), part)).await?;
            files.push((id, hash));
        }
        Digest::of(files)
    }
}

/// Reads a file's rows to their end. Lets its views go.
fn hash_of(machine: &dyn Machine, part: Part) -> io::Result<u128> {
    let Part { id, views } = part;
    let mut rows =
        Rows { machine, file: id, views: views.into(), rest: None, buffer: BytesMut::new() };
    murmur3::murmur3_x64_128(&mut rows, 0)
}

/// The rows of one file, as bytes.
struct Rows<'a> {
    machine: &'a dyn Machine,
    file: u64,
    /// Those not begun.
    views: VecDeque<(Range<Bytes>, Arc<dyn View>)>,
    /// What is left of the one that is read.
    rest: Option<(Range<Bytes>, Arc<dyn View>)>,
    buffer: BytesMut,
}

impl Read for Rows<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.buffer.is_empty() {
            let Some((range, view)) = self.rest.take().or_else(|| self.views.pop_front()) else {
                return Ok(0);
            };
            let rest = read_rows(self.machine, self.file, view.as_ref(), range, &mut self.buffer)?;
            self.rest = rest.map(|range| (range, view));
        }
        let bytes = self.buffer.len().min(out.len());
        self.buffer.copy_to_slice(&mut out[..bytes]);
        Ok(bytes)
    }
}

impl Group {
    /// What a leader is told of this replica's digest.
    pub(crate) fn tell_digest(&self, request: v1::DigestRequest) -> Body {
        let Some(at) = request.entry.map(|entry| entry_id(&log_id_from_wire(entry))) else {
            let reason = "a digest of no entry".to_owned();
            return Body::Undeliverable(v1::Undeliverable { reason });
        };
        // In this order: the outcome is there before the entry counts as applied.
        let applied = self.replica.applied().id.index;
        let mut files = Vec::new();
        let told = match self.replica.digests.find(at) {
            Some(Outcome::Is(digest)) => {
                let (whole, parts) = digest.to_wire();
                files = parts;
                Told::Digest(whole)
            }
            Some(Outcome::Unreadable(reason)) => Told::Unreadable(reason),
            Some(Outcome::Pending) => Told::Pending(v1::Plain {}),
            None if applied < at.index => Told::Pending(v1::Plain {}),
            Some(Outcome::Busy) | None => Told::Missed(v1::Plain {}),
        };
        Body::DigestReply(v1::DigestReply { result: Some(told), files })
    }
}
