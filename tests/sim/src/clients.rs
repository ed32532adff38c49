//! Clients: closed loops that write down what they did, in simulated time.
//!
//! A client asks the node that it believes to lead the key's group, follows a `NotLeader` to the
//! node that it names, and tries the next node otherwise. Answers take no time on their way: with
//! shorter operations the checkers can say more.
//!
//! Some writes are named, by a writer that the client has opened in the key's shard (W3): they are
//! repeated until somebody answers, and must take effect once all the same.
//!
//! Invariants, those of every client here (W4): an operation without a name is sent again only after an
//! attempt that said NO; it has failed only if every attempt said NO; a process that ends under an
//! attempt leaves it unknown. Values are numbers that no two operations write.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_harness::history::{Call, Outcome, Value};
use annulus_runtime::Random;
use annulus_server::operation::OpId;
use annulus_types::{ErrorKind, GroupId, MayHaveApplied, Revision, ShardId, token_of};
use bytes::Bytes;
use tokio::time::Instant;

use crate::invariants::Violation;
use crate::plan::{LARGE_BYTES, LARGE_ODDS};
use crate::routes::{NODES, machine_ids};
use crate::service::{Answer, Request, body_of};
use crate::world::World;

/// Deadline of one operation.
const LIMIT: Duration = Duration::from_millis(1500);
/// For the opening of a writer.
const OPEN_LIMIT: Duration = Duration::from_millis(500);
/// One in so many puts is named.
const NAMED_ODDS: u64 = 3;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(15);

pub(crate) struct Client {
    world: Arc<World>,
    id: u64,
    random: Random,
    /// What this client last saw of each key: number and version.
    seen: BTreeMap<u64, (u64, Revision)>,
    /// Where it asks first: a place in the list of all nodes.
    places: BTreeMap<GroupId, usize>,
    /// Its writers, with the number of the last mutation of each.
    writers: BTreeMap<ShardId, (Revision, u64)>,
    written: u64,
}

/// How one attempt ended.
enum Attempt {
    Answered(Answer),
    /// It was not and will not be applied.
    No,
    /// Nobody can tell.
    Unknown,
}

/// How an operation ended, with all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Answered(Answer),
    Failed,
    Unknown,
}

pub(crate) fn key_name(place: u64) -> String {
    format!("key-{place:02}")
}

impl Client {
    pub(crate) fn new(world: Arc<World>, id: u64, random: Random) -> Self {
        let (seen, places, writers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { world, id, random, seen, places, writers, written: 0 }
    }

    /// Works until `stop`, and ends the operation that it is at.
    pub(crate) async fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.one().await;
            let think_ms = self.world.plan.think_ms.draw(&self.random);
            tokio::time::sleep(Duration::from_millis(think_ms)).await;
        }
    }

    async fn one(&mut self) {
        let place = self.random.below(self.world.plan.keys);
        let known = self.seen.get(&place).copied();
        let (call, request) = match (self.random.below(10), known) {
            (0..4, _) => {
                let strict = self.random.below(4) == 0;
                (Call::Read, Request::Read { strict })
            }
            (4..6, Some((from, version))) => {
                let (to, body) = self.fresh();
                (Call::Cas { from, to }, Request::Cas { version, body })
            }
            (6, _) => (Call::Delete, Request::Delete),
            _ => {
                let (number, body) = self.fresh();
                (Call::Write(number), Request::Put { body })
            }
        };
        let is_put = matches!(request, Request::Put { .. });
        let name = if is_put && self.random.below(NAMED_ODDS) == 0 {
            self.name(place).await
        } else {
            None
        };
        self.operate(place, call, request, name, LIMIT).await;
    }

    /// The next name in the shard of a key; `None` when no writer could be opened there.
    async fn name(&mut self, place: u64) -> Option<OpId> {
        let key = Bytes::from(key_name(place));
        let shard = self.world.routes.shard_of(token_of(&key));
        if !self.writers.contains_key(&shard) {
            // An opening whose answer is lost leaves an idle writer.
            let opened = self.pursue(shard, &key, &Request::OpenWriter, None, OPEN_LIMIT).await;
            if let Ended::Answered(Answer::Done { revision, .. }) = opened {
                self.writers.insert(shard, (revision, 0));
            }
        }
        let (writer, last) = self.writers.get_mut(&shard)?;
        *last += 1;
        // One operation at a time: what came before is never repeated.
        Some(OpId { writer: *writer, seq: *last, lowest_unacked: *last })
    }

    /// A number that nobody else writes, in a value.
    fn fresh(&mut self) -> (u64, Bytes) {
        self.written += 1;
        let number = self.id * 1_000_000 + self.written;
        let span = if self.random.below(LARGE_ODDS) == 0 {
            LARGE_BYTES
        } else {
            self.world.plan.value_bytes
        };
        (number, body_of(number, span.draw(&self.random)))
    }

    /// One operation, from its call to its outcome, with everything that is written down about it.
    pub(crate) async fn operate(
        &mut self,
        place: u64,
        call: Call,
        request: Request,
        named: Option<OpId>,
        limit: Duration,
    ) -> Ended {
        let world = Arc::clone(&self.world);
        let name = key_name(place);
        let key = Bytes::from(name.clone());
        let shard = world.routes.shard_of(token_of(&key));
        let floor = world.seen.lock().revisions.floor(shard);
        let started = Instant::now();
        let operation = world.recorder.invoke(self.id, &name, call);
        let ended = self.pursue(shard, &key, &request, named, limit).await;
        world.recorder.complete(operation, outcome_of(call, ended));
        world.trace.line(
            format_args!("client {}", self.id),
            format_args!(
                "{name} {}{}: {} after {} ms",
                Words(call),
                if named.is_some() { ", named" } else { "" },
                Said(ended),
                started.elapsed().as_millis()
            ),
        );
        self.remember(place, call, ended);
        if let Some(violation) = note(&world, &name, shard, floor, call, ended) {
            world.violation(violation);
        }
        ended
    }

    /// Tries until there is an answer, or the deadline has passed.
    async fn pursue(
        &mut self,
        shard: ShardId,
        key: &Bytes,
        request: &Request,
        name: Option<OpId>,
        limit: Duration,
    ) -> Ended {
        let Some(group) = self.world.routes.group_of(shard).map(|route| route.id) else {
            return Ended::Failed;
        };
        let deadline = Instant::now() + limit;
        let mut may_have_applied = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.attempt(group, key, request, name, left).await {
                Attempt::Answered(answer) => return Ended::Answered(answer),
                Attempt::Unknown if name.is_none() => return Ended::Unknown,
                Attempt::Unknown => may_have_applied = true,
                Attempt::No => {}
            }
            if Instant::now() + PAUSE >= deadline {
                return if may_have_applied { Ended::Unknown } else { Ended::Failed };
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &mut self,
        group: GroupId,
        key: &Bytes,
        request: &Request,
        name: Option<OpId>,
        limit: Duration,
    ) -> Attempt {
        let place = self.places.entry(group).or_default();
        let Some(node) = machine_ids().nth(*place % NODES as usize) else { return Attempt::No };
        let running = self.world.machine(node).process();
        // One that is stopping takes no request.
        let Some(process) = running.filter(|process| !process.env.tasks.is_stopping()) else {
            *place += 1;
            return Attempt::No;
        };
        let served = tokio::select! {
            biased;
            // Whatever it was about to say, nobody hears it.
            _ = process.env.tasks.stop_requested() => {
                *place += 1;
                return Attempt::Unknown;
            }
            served = process.serve(key, request, name, limit) => served,
        };
        let error = match served {
            Ok(answer) => return Attempt::Answered(answer),
            Err(error) => error,
        };
        if let ErrorKind::Internal { id } = &error.kind {
            let what = format!("node {node}: {id}");
            self.world.violation(Violation::new("R3 what is stored is readable", what));
        }
        let named = match error.kind {
            ErrorKind::NotLeader { leader } => leader,
            _ => None,
        };
        let next = machine_ids().position(|node| Some(node) == named);
        *place = next.unwrap_or(*place + 1);
        match error.may_have_applied {
            MayHaveApplied::No => Attempt::No,
            MayHaveApplied::Yes | MayHaveApplied::Unknown => Attempt::Unknown,
        }
    }

    fn remember(&mut self, place: u64, call: Call, ended: Ended) {
        let known = match (call, ended) {
            (_, Ended::Answered(Answer::Seen { value, .. })) => value,
            (
                Call::Write(number) | Call::Cas { to: number, .. },
                Ended::Answered(Answer::Done { version, .. }),
            ) => Some((number, version)),
            _ => None,
        };
        match known {
            Some(known) => self.seen.insert(place, known),
            None => self.seen.remove(&place),
        };
    }
}

/// The outcome as the history has it.
fn outcome_of(call: Call, ended: Ended) -> Outcome {
    match (call, ended) {
        (_, Ended::Failed) => Outcome::Failed,
        (_, Ended::Unknown) => Outcome::Unknown,
        (_, Ended::Answered(Answer::Seen { value, .. })) => {
            Outcome::Ok(Value::Read(value.map(|(number, _)| number)))
        }
        (Call::Cas { .. }, Ended::Answered(Answer::Done { .. })) => {
            Outcome::Ok(Value::Swapped(true))
        }
        // Only a compare-and-swap is refused. Its version stood for its `from`, and a number is
        // written once: at another version the key has another value.
        (_, Ended::Answered(Answer::Refused)) => Outcome::Ok(Value::Swapped(false)),
        (_, Ended::Answered(Answer::Done { .. })) => Outcome::Ok(Value::Done),
    }
}

/// Counts the operation and hands it to the invariants that judge answers.
fn note(
    world: &World,
    key: &str,
    shard: ShardId,
    floor: Revision,
    call: Call,
    ended: Ended,
) -> Option<Violation> {
    let mut guard = world.seen.lock();
    let seen = &mut *guard;
    let left = match call {
        Call::Write(number) | Call::Cas { to: number, .. } => Some(number),
        Call::Read | Call::Delete => None,
    };
    match ended {
        Ended::Failed => {
            seen.counts.failed += 1;
            None
        }
        Ended::Unknown => {
            seen.counts.unknown += 1;
            if call != Call::Read {
                seen.ledger.unknown(key, left);
            }
            None
        }
        Ended::Answered(answer) => {
            seen.counts.answered += 1;
            match answer {
                Answer::Seen { revision, .. } => {
                    seen.revisions.answered(shard, floor, revision, false)
                }
                Answer::Done { revision, .. } => {
                    seen.ledger.acknowledged(key, revision, left);
                    // A delete may have found nothing to change.
                    seen.revisions.answered(shard, floor, revision, left.is_some())
                }
                Answer::Refused => None,
            }
        }
    }
}

/// A call in words.
struct Words(Call);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Call::Write(number) => write!(f, "put {number}"),
            Call::Read => f.write_str("get"),
            Call::Cas { from, to } => write!(f, "cas {from} to {to}"),
            Call::Delete => f.write_str("delete"),
        }
    }
}

/// An end in words.
struct Said(Ended);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ended::Answered(Answer::Seen { value: Some((number, version)), revision }) => {
                write!(f, "{number} of version {version} at revision {revision}")
            }
            Ended::Answered(Answer::Seen { value: None, revision }) => {
                write!(f, "absent at revision {revision}")
            }
            Ended::Answered(Answer::Done { revision, .. }) => {
                write!(f, "done at revision {revision}")
            }
            Ended::Answered(Answer::Refused) => f.write_str("at another version"),
            Ended::Failed => f.write_str("failed, not applied"),
            Ended::Unknown => f.write_str("outcome unknown"),
        }
    }
}
