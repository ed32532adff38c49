//! Whether two replicas hold the same state (E5).
//!
//! A leader proposes an entry of a kind of its own. Every replica that applies it takes views of its whole
//! state right there, as for a snapshot, and reads them in the background: what the *engine* gives back,
//! in the form in which rows travel, without what holds on one node only ([`Machine::export`]). Equal
//! states give equal digests, whatever was applied since. The leader then asks the member in question for
//! its digest at that entry and compares it with its own.
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
//! says so. Rows that do not read are no digest; the comparison then finds a difference, or, at the leader,
//! fails.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{Engine, View};
use annulus_proto::v1;
use annulus_proto::v1::digest_reply::Result as Told;
use annulus_proto::v1::envelope::Body;
use annulus_types::{Error, ErrorKind, NodeId, ReplicaId};
use annulus_wal::EntryId;
use bytes::{Buf, Bytes, BytesMut};
use openraft::errors::{ClientWriteError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::entry::{DigestBody, MACHINE_VERSION};
use crate::group::Group;
use crate::link::Route;
use crate::machine::{Machine, StateMachine};
use crate::replica::ReplicaState;
use crate::snapshot::store::SnapshotStore;
use crate::snapshot::{Part, parts, read_rows};
use crate::types::{Command, entry_id, log_id, log_id_from_wire, log_id_to_wire};

/// Digests of one replica that are remembered.
const KEPT: usize = 8;
/// Between two questions for a digest that is not there yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What became of the digest at one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The rows are being read.
    Pending,
    Is(u128),
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

    fn find(&self, at: EntryId) -> Option<Outcome> {
        let held = self.held.lock();
        held.outcomes.iter().find(|(known, _)| *known == at).map(|(_, outcome)| outcome.clone())
    }

    /// The last digest that was made.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<u128> {
        let held = self.held.lock();
        held.outcomes.iter().rev().find_map(|(_, outcome)| match outcome {
            Outcome::Is(digest) => Some(*digest),
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
        let mut news = digests.news.subscribe();
        loop {
            news.mark_unchanged();
            while let Some(job) = digests.next() {
                let at = job.at;
                let outcome = match self.make(job).await {
                    Ok(digest) => Outcome::Is(digest),
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

    async fn make(&self, job: Job) -> io::Result<u128> {
        let Job { parts: mut views, _permit, .. } = job;
        if self.is_late {
            // Long enough for something to come.
            tokio::time::sleep(ASK_AGAIN).await;
            views = parts(self.engine.as_ref(), &self.machine).map_err(io::Error::other)?;
        }
        let mut files = Vec::with_capacity(views.len() * 24);
        for part in views {
            let (id, machine) = (part.id, Arc::clone(&self.machine));
            let hash = self.store.run(move || hash_of(machine.as_ref(), part)).await?;
            files.extend_from_slice(&id.to_be_bytes());
            files.extend_from_slice(&hash.to_be_bytes());
        }
        murmur3::murmur3_x64_128(&mut files.as_slice(), 0)
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

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

impl Group {
    /// Whether a member's state is equal to this leader's: a digest entry is proposed, and both tell what
    /// they find at it. `limit` at most. Changes nothing; dropping the future gives up.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum` when this replica does not lead or its gate is shut. `BadRequest` when the
    /// seat is not that of another member. `NotReady` when one of the two has no digest of the entry, or
    /// did not tell it in time: trying again makes another entry.
    pub async fn verify(&self, seat: (ReplicaId, NodeId), limit: Duration) -> Result<bool, Error> {
        match tokio::time::timeout(limit, Box::pin(self.compare(seat))).await {
            Ok(compared) => compared,
            Err(_) => {
                let (replica, node) = seat;
                let reason =
                    format!("replica {replica} on node {node} has not told its digest yet");
                Err(not_ready(reason))
            }
        }
    }

    async fn compare(&self, (replica, node): (ReplicaId, NodeId)) -> Result<bool, Error> {
        self.check_trusted()?;
        self.sure_leadership()?;
        let mut seats = self.membership().seats.into_iter();
        let is_member = seats.any(|seat| (seat.replica, seat.node) == (replica, node));
        if !is_member || replica == self.replica() {
            let message = format!("replica {replica} on node {node} is not another member");
            return Err(Error::bad_request("seat", message));
        }
        let at = self.propose_digest().await?;
        let own = self.own_digest(at).await?;
        let equal = self.digest_of(replica, node, at).await? == Some(own);
        if !equal {
            let group = self.id();
            tracing::error!(%group, %replica, %node, at = %at, "a replica's state differs");
        }
        Ok(equal)
    }

    async fn propose_digest(&self) -> Result<EntryId, Error> {
        let body = DigestBody {
            version: MACHINE_VERSION,
            // Apply raises it to the group's: a digest lets no time pass (W5).
            group_time_ms: self.group_time_ms(),
            wall_ms: self.env.clock.wall_ms(),
        };
        match Box::pin(self.raft.client_write(Command(body.encode()))).await {
            Ok(written) => Ok(entry_id(&written.log_id)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(self.not_leader())
            }
            Err(_) => Err(not_ready("the digest entry was not applied".to_owned())),
        }
    }

    async fn own_digest(&self, at: EntryId) -> Result<u128, Error> {
        let digests = &self.replica.digests;
        let mut news = digests.news.subscribe();
        loop {
            news.mark_unchanged();
            match digests.find(at) {
                Some(Outcome::Is(digest)) => return Ok(digest),
                Some(Outcome::Pending) => {}
                Some(Outcome::Busy) | None => {
                    return Err(not_ready("the leader's node takes other digests".to_owned()));
                }
                Some(Outcome::Unreadable(reason)) => {
                    return Err(not_ready(format!("the leader's own rows do not read: {reason}")));
                }
            }
            if news.changed().await.is_err() {
                return Err(self.stopped());
            }
        }
    }

    /// What another replica finds; `None` where its rows do not read.
    async fn digest_of(
        &self,
        replica: ReplicaId,
        node: NodeId,
        at: EntryId,
    ) -> Result<Option<u128>, Error> {
        let route = Route { group: self.id(), from: self.replica(), to: replica };
        let entry = Some(log_id_to_wire(&log_id(at)));
        loop {
            let question = Body::Digest(v1::DigestRequest { entry });
            let reply = match self.links.ask(node, route, question).await {
                Ok(Body::DigestReply(v1::DigestReply { result: Some(told) })) => told,
                Ok(_) => return Err(not_ready(format!("node {node} makes no sense"))),
                // Over a new link, perhaps.
                Err(_) => Told::Pending(v1::Plain {}),
            };
            match reply {
                Told::Digest(digest) => {
                    let digest = <[u8; 16]>::try_from(&digest[..]).ok();
                    return Ok(digest.map(u128::from_be_bytes));
                }
                Told::Unreadable(reason) => {
                    tracing::warn!(group = %self.id(), %replica, %reason, "no digest");
                    return Ok(None);
                }
                Told::Missed(v1::Plain {}) => {
                    let reason = format!("replica {replica} has no digest of entry {at}");
                    return Err(not_ready(reason));
                }
                Told::Pending(v1::Plain {}) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    /// What a leader is told of this replica's digest.
    pub(crate) fn tell_digest(&self, request: v1::DigestRequest) -> Body {
        let Some(at) = request.entry.map(|entry| entry_id(&log_id_from_wire(entry))) else {
            let reason = "a digest of no entry".to_owned();
            return Body::Undeliverable(v1::Undeliverable { reason });
        };
        // In this order: the outcome is there before the entry counts as applied.
        let applied = self.replica.applied().id.index;
        let told = match self.replica.digests.find(at) {
            Some(Outcome::Is(digest)) => {
                Told::Digest(Bytes::copy_from_slice(&digest.to_be_bytes()))
            }
            Some(Outcome::Unreadable(reason)) => Told::Unreadable(reason),
            Some(Outcome::Pending) => Told::Pending(v1::Plain {}),
            None if applied < at.index => Told::Pending(v1::Plain {}),
            Some(Outcome::Busy) | None => Told::Missed(v1::Plain {}),
        };
        Body::DigestReply(v1::DigestReply { result: Some(told) })
    }
}
