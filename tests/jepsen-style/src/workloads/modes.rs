//! Reads of the consistencies that need no leader: `session`, `bounded` and `any`.
//!
//! Each client is one session. It alone writes some of the keys, with the numbers 1, 2, 3 …, and reads
//! all of them. After a write of unknown outcome it leaves the key for a new one, so that the key's writes
//! keep one order. Keys with one tag are in one shard, and a client writes several of them, so that the
//! order between keys of a shard shows, too. That what a session has seen is said not to exist is an answer,
//! for the checker to judge, and not a failure.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Consistency, ErrorKind, Session};
use annulus_runtime::Clock;
use anyhow::{Context, Result};
use futures_util::future::BoxFuture;

use super::{NO_NUMBER, Seat, Shape, Workload, end_of, number_of};
use crate::checkers::modes::{self, Answer, Call, Mode};
use crate::journal::{End, Journal};

/// Tags, each a shard.
const TAGS: u64 = 4;
/// The bounds asked for, milliseconds.
const LIMITS_MS: [u64; 3] = [200, 500, 1000];

/// See the module.
pub struct Modes {
    journal: Journal<Call, Answer>,
    /// For each place, how often its key was left.
    left: Arc<Vec<AtomicU64>>,
}

impl Modes {
    /// A run whose events go to `sink`.
    #[must_use]
    pub fn new(shape: Shape, clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        let left = (0..shape.keys).map(|_| AtomicU64::new(0)).collect();
        Self { journal: Journal::new(clock, sink), left: Arc::new(left) }
    }
}

impl Workload for Modes {
    fn client(&self, seat: Seat) -> BoxFuture<'static, ()> {
        let own: Vec<u64> = (0..seat.shape.keys)
            .filter(|place| place % seat.shape.clients == seat.process)
            .collect();
        let session = seat.client.session();
        let written = vec![0; self.left.len()];
        let (journal, left) = (self.journal.clone(), Arc::clone(&self.left));
        Box::pin(Hand { seat, session, journal, left, own, written }.work())
    }

    fn judge(&self) -> Result<String> {
        let entries = self.journal.entries().context("the history was not written in full")?;
        let modes::Counts { any, bounded, session } = modes::check(&entries)?;
        Ok(format!("{session} session, {bounded} bounded and {any} any reads saw what they may"))
    }
}

/// A client.
struct Hand {
    seat: Seat,
    session: Session,
    journal: Journal<Call, Answer>,
    left: Arc<Vec<AtomicU64>>,
    /// The places that it writes.
    own: Vec<u64>,
    /// The number of its last write, by place.
    written: Vec<u64>,
}

impl Hand {
    async fn work(mut self) {
        while !self.seat.run.is_over() {
            let (random, owned) = (&self.seat.random, self.own.len() as u64);
            let own = usize::try_from(random.below(owned)).ok().and_then(|at| self.own.get(at));
            let any_place = random.below(self.seat.shape.keys);
            let limit_ms = LIMITS_MS[random.below(LIMITS_MS.len() as u64) as usize];
            let end = match (random.below(10), own.copied()) {
                (0..3, Some(place)) => self.write(place).await,
                (0..6, _) => self.read(any_place, Mode::Session).await,
                (6..8, _) => self.read(any_place, Mode::Bounded { limit_ms }).await,
                _ => self.read(any_place, Mode::Any).await,
            };
            self.seat.run.count(&end);
        }
    }

    fn key_of(&self, place: u64) -> String {
        let left = usize::try_from(place).ok().and_then(|place| self.left.get(place));
        let left = left.map_or(0, |left| left.load(Ordering::Relaxed));
        format!("{{modes-{}}}:{place}-{left}", place % TAGS)
    }

    async fn write(&mut self, place: u64) -> End<Answer> {
        let key = self.key_of(place);
        let at = usize::try_from(place).unwrap_or(0);
        self.written[at] += 1;
        let sequence = self.written[at];
        let call = Call::Write { key: key.clone(), sequence };
        let ticket = self.journal.invoke(self.seat.process, call);
        let put = self.session.put(key, sequence.to_string());
        let end = match put.deadline(self.seat.shape.deadline).await {
            Ok(_) => End::Ok(Answer::Written),
            Err(error) => end_of(&error),
        };
        self.journal.complete(ticket, end.clone());
        if end == End::Unknown {
            self.written[at] = 0;
            self.left[at].fetch_add(1, Ordering::Relaxed);
        }
        end
    }

    async fn read(&self, place: u64, mode: Mode) -> End<Answer> {
        let key = self.key_of(place);
        let consistency = match mode {
            Mode::Any => Consistency::Any,
            Mode::Bounded { limit_ms } => Consistency::Bounded(Duration::from_millis(limit_ms)),
            Mode::Session => Consistency::Session,
        };
        let ticket = self.journal.invoke(self.seat.process, Call::Read { key: key.clone(), mode });
        let get = self.session.get(key).consistency(consistency);
        let end = match get.deadline(self.seat.shape.deadline).await {
            Ok(found) if found.value.is_none() => End::Ok(Answer::Saw(0)),
            // What is no number was written by nobody, and no write has this one.
            Ok(found) => End::Ok(Answer::Saw(number_of(&found).unwrap_or(NO_NUMBER))),
            Err(error) if error.kind == ErrorKind::HistoryLost => End::Ok(Answer::HistoryLost),
            Err(error) => end_of(&error),
        };
        self.journal.complete(ticket, end.clone());
        end
    }
}
