//! Packing: all operations that wait for a group become one Raft entry (W9).
//!
//! One entry is in flight per group; the next one holds everything queued meanwhile, up to 1 MiB.
//! Two entries in flight, or a fixed linger, were measured to be slower.
//!
//! # The fate of an operation
//!
//! An operation is *queued*, then *in flight*, then answered. The step from queued to in flight is
//! one compare-and-swap, and so is giving up while queued: exactly one of them wins, so that
//! [`MayHaveApplied::No`](annulus_types::MayHaveApplied::No) after a deadline is the truth and not
//! a guess. Once in flight, only the log can say no.
//!
//! - gate open: proposed;
//! - leader with a shut gate: waits for it, for another leader, or for the deadline (`NoQuorum`, NO);
//! - not the leader: `NotLeader`, NO, at once, with the leader that it hears if any;
//! - in flight when the deadline passes, or when the term ends: `OutcomeUnknown`, UNKNOWN.
//!
//! # Time entries
//!
//! Time in the state machine is what entries carry (W5), and without entries it stands still. So a leader
//! without traffic proposes an entry without operations when something is due; and while anything has a
//! deadline it does so every 10 s, for the time that no entry has told is lost with its leadership: what
//! ends by time ends no earlier than it should, and later by at most that and the time without a leader.
//! A group in which nothing has a deadline proposes nothing by itself. What fails is tried again while this
//! replica leads. An entry's time is read after its operations were taken: a deadline that counts from it
//! then counts from no moment before the request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use annulus_runtime::Env;
use annulus_types::limits::{ENTRY_BYTES, GROUP_QUEUE_BYTES, GROUP_QUEUE_OPERATIONS};
use annulus_types::{Error, ErrorKind, ShardId};
use annulus_wal::Vote;
use bytes::Bytes;
use openraft::Raft;
use openraft::errors::{ClientWriteError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::entry::{EntryBody, MACHINE_VERSION, OPERATION_OVERHEAD, Operation};
use crate::machine::StateMachine;
use crate::options::WeakenHost;
use crate::replica::{AppliedAt, ReplicaState};
use crate::types::{Command, Reply, TypeConfig};

const QUEUED: u8 = 0;
const IN_FLIGHT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A group with deadlines and without traffic gets an entry so often (W5).
const TIME_STEP_MS: u64 = 10_000;
/// The pause of time entries after an entry that was not applied, microseconds: leadership was just lost, or
/// is about to be.
const TIME_RETRY_US: u64 = 100_000;

/// What a proposer learns: the machine's reply, and the term it was applied in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The machine's reply.
    pub reply: Bytes,
    /// The term of the entry.
    pub term: u64,
}

/// What openraft says of a write.
type Written = Result<
    openraft::raft::ClientWriteResponse<TypeConfig>,
    RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
>;

struct Waiting {
    operation: Operation,
    fate: Arc<AtomicU8>,
    answer: oneshot::Sender<Result<Proposed, Error>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl Queue {
    fn is_full(&self, more: usize) -> bool {
        self.waiting.len() >= GROUP_QUEUE_OPERATIONS || self.bytes + more > GROUP_QUEUE_BYTES
    }

    /// Drops what nobody waits for any more, so that it keeps nobody out.
    fn forget_given_up(&mut self) {
        let Self { waiting, bytes } = self;
        waiting.retain(|next| {
            let alive = next.fate.load(Ordering::Acquire) == QUEUED;
            if !alive {
                *bytes -= next.operation.body.len() + OPERATION_OVERHEAD;
            }
            alive
        });
    }
}

/// New proposals are held back while this lives.
pub(crate) struct Held<'a>(&'a Packer);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::SeqCst);
        self.0.wake.notify_one();
    }
}

/// The queue of one group and the task that empties it.
pub(crate) struct Packer {
    env: Env,
    replica: Arc<ReplicaState>,
    queue: Mutex<Queue>,
    wake: Notify,
    /// New proposals are held back: a transfer is being prepared (H3).
    held: AtomicBool,
    /// An entry is on its way.
    in_flight: watch::Sender<bool>,
    weaken: WeakenHost,
}

/// The leader's clock for group time (W5): set when its leadership begins.
struct GroupClock {
    vote: Vote,
    base_ms: u64,
    started_us: u64,
    last_ms: u64,
}

/// How long a leader without traffic leaves the group without an entry; `None`: for ever. `now_ms` is the
/// group's time that an entry would carry, `step_ms` the longest time that may be lost with a leader.
fn until_time_entry(applied: AppliedAt, now_ms: u64, step_ms: u64) -> Option<Duration> {
    let due_ms = applied.next_end_ms?;
    let next_ms = due_ms.min(applied.group_time_ms.saturating_add(step_ms));
    Some(Duration::from_millis(next_ms.saturating_sub(now_ms)))
}

/// Waits, for ever if there is nothing to wait for. Cancel-safe.
async fn pass(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

impl Packer {
    pub(crate) fn new(env: Env, replica: Arc<ReplicaState>, weaken: WeakenHost) -> Self {
        Self {
            env,
            replica,
            queue: Mutex::default(),
            wake: Notify::new(),
            held: AtomicBool::new(false),
            in_flight: watch::Sender::new(false),
            weaken,
        }
    }

    /// Holds new proposals back until the guard is dropped, also by a caller that is cancelled.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.held.store(true, Ordering::SeqCst);
        Held(self)
    }

    /// Whether new proposals are held back.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Waits until no entry is on its way. Cancel-safe.
    pub(crate) async fn idle(&self) {
        let mut in_flight = self.in_flight.subscribe();
        // The sender lives as long as `self`.
        let _ = in_flight.wait_for(|flying| !flying).await;
    }

    /// Proposes one operation and waits for its reply, `limit` at most. Dropping the future loses
    /// the answer, never the operation.
    pub(crate) async fn propose(
        &self,
        shard: ShardId,
        body: Bytes,
        limit: Duration,
    ) -> Result<Proposed, Error> {
        if self.replica.gate.view().leading.is_none() {
            return Err(self.not_leader());
        }
        let fate = Arc::new(AtomicU8::new(QUEUED));
        let (answer, mut answered) = oneshot::channel();
        let size = body.len() + OPERATION_OVERHEAD;
        {
            let mut queue = self.queue.lock();
            if queue.is_full(size) {
                queue.forget_given_up();
            }
            if queue.is_full(size) {
                let refused = Error::refused(ErrorKind::Overloaded);
                return Err(Error { retry_after_ms: 20, ..refused });
            }
            queue.bytes += size;
            let operation = Operation { shard, body };
            queue.waiting.push_back(Waiting { operation, fate: Arc::clone(&fate), answer });
        }
        self.wake.notify_one();
        match tokio::time::timeout(limit, &mut answered).await {
            Ok(Ok(result)) => result,
            // The packer dropped it: the node stops.
            Ok(Err(_)) => Err(self.give_up(&fate)),
            Err(_) => match answered.try_recv() {
                Ok(result) => result,
                Err(_) => Err(self.give_up(&fate)),
            },
        }
    }

    fn give_up(&self, fate: &AtomicU8) -> Error {
        let queued =
            fate.compare_exchange(QUEUED, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if queued {
            Error::refused(ErrorKind::NoQuorum)
        } else {
            Error::unknown(ErrorKind::OutcomeUnknown)
        }
    }

    fn not_leader(&self) -> Error {
        let leader = self.replica.believed_leader();
        let other = leader.filter(|(id, _)| *id != self.replica.me).map(|(_, node)| node);
        Error::refused(ErrorKind::NotLeader { leader: other })
    }

    /// Takes what fits into one entry, and the operations that are proposed by it.
    fn take(&self) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.waiting.front() {
            let size = next.operation.body.len() + OPERATION_OVERHEAD;
            if !taken.is_empty() && bytes + size > ENTRY_BYTES {
                break;
            }
            let Some(next) = queue.waiting.pop_front() else { break };
            queue.bytes -= size;
            let won =
                next.fate.compare_exchange(QUEUED, IN_FLIGHT, Ordering::AcqRel, Ordering::Acquire);
            if won.is_ok() {
                bytes += size;
                taken.push(next);
            }
        }
        taken
    }

    /// What fits into one entry, and the group's time that the entry carries, milliseconds: not that of a
    /// moment before the last of it was queued.
    fn take_timed(&self, clock: &mut Option<GroupClock>, vote: Vote) -> (Vec<Waiting>, u64) {
        let taken = self.take();
        let group_time_ms = self.group_time(clock, vote);
        (taken, group_time_ms)
    }

    /// Refuses everything that is queued: this replica does not lead.
    fn refuse_all(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.bytes = 0;
            std::mem::take(&mut queue.waiting)
        };
        if waiting.is_empty() {
            return;
        }
        let refusal = self.not_leader();
        for next in waiting {
            // Whoever gave up has its answer already.
            let _ = next.answer.send(Err(refusal.clone()));
        }
    }

    /// Runs until the node stops.
    pub(crate) async fn run(self: Arc<Self>, raft: Raft<TypeConfig, StateMachine>) {
        let mut gate = self.replica.gate.watch();
        let mut clock: Option<GroupClock> = None;
        // No time entry before this moment of the monotonic clock.
        let mut rests_until_us: u64 = 0;
        loop {
            let view = *gate.borrow_and_update();
            let mut pause = None;
            match view.leading {
                None => self.refuse_all(),
                Some(vote) if !self.is_held() && self.may_propose() => {
                    let time_ms = self.group_time(&mut clock, vote);
                    let now_us = self.env.clock.monotonic_us();
                    let rest = Duration::from_micros(rests_until_us.saturating_sub(now_us));
                    // What a leader applies went through here, so that no deadline comes unseen.
                    pause = until_time_entry(self.replica.applied(), time_ms, self.step_ms())
                        .map(|pause| pause.max(rest));
                    let is_due = pause.is_some_and(|pause| pause.is_zero());
                    let is_empty = self.queue.lock().waiting.is_empty();
                    if is_due || !is_empty {
                        self.in_flight.send_replace(true);
                        // `hold` is set before `idle` is asked, and this is the other order: one of
                        // the two sees the other.
                        if !self.is_held() {
                            let (taken, time_ms) = self.take_timed(&mut clock, vote);
                            let is_needed = is_due || !taken.is_empty();
                            if is_needed
                                && !self.propose_one(&raft, taken, time_ms, &mut gate).await
                            {
                                rests_until_us = self.env.clock.monotonic_us() + TIME_RETRY_US;
                            }
                        }
                        self.in_flight.send_replace(false);
                        continue;
                    }
                }
                // A confirm reopens the gate and changes the view; expiry needs no action here.
                Some(_) => {}
            }
            tokio::select! {
                () = self.wake.notified() => {}
                changed = gate.changed() => if changed.is_err() { return },
                () = pass(pause) => {}
            }
        }
    }

    fn may_propose(&self) -> bool {
        self.replica.gate.is_open(self.env.clock.boot()) || self.weaken.propose_with_shut_gate()
    }

    fn step_ms(&self) -> u64 {
        if self.weaken.no_time_steps() { u64::MAX } else { TIME_STEP_MS }
    }

    fn group_time(&self, clock: &mut Option<GroupClock>, vote: Vote) -> u64 {
        let now_us = self.env.clock.monotonic_us();
        let applied = self.replica.applied().group_time_ms;
        let clock = match clock {
            Some(clock) if clock.vote == vote => clock,
            // The gate was open, so an entry of this term is applied: its time is the base.
            _ => clock.insert(GroupClock {
                vote,
                base_ms: applied,
                started_us: now_us,
                last_ms: applied,
            }),
        };
        let elapsed_ms = now_us.saturating_sub(clock.started_us) / 1000;
        clock.last_ms = clock.last_ms.max(clock.base_ms + elapsed_ms);
        clock.last_ms
    }

    /// Proposes an entry with what was taken, a time entry if that is nothing. Returns whether it was
    /// applied, as far as is known.
    async fn propose_one(
        &self,
        raft: &Raft<TypeConfig, StateMachine>,
        taken: Vec<Waiting>,
        group_time_ms: u64,
        gate: &mut tokio::sync::watch::Receiver<crate::gate::View>,
    ) -> bool {
        let mut answers = Vec::with_capacity(taken.len());
        let mut operations = Vec::with_capacity(taken.len());
        for next in taken {
            operations.push(next.operation);
            answers.push(next.answer);
        }
        let body = EntryBody {
            version: MACHINE_VERSION,
            group_time_ms,
            wall_ms: self.env.clock.wall_ms(),
            operations,
        };
        let write = raft.client_write(Command(body.encode()));
        tokio::pin!(write);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut write => break Some(outcome),
                changed = gate.changed() => {
                    // Deposed: what is queued must not wait for the entry in flight, whose fate
                    // only the new leader's log decides.
                    let leading = gate.borrow_and_update().leading;
                    if leading.is_none() {
                        self.refuse_all();
                    }
                    if changed.is_err() {
                        break None;
                    }
                }
                () = self.wake.notified() => {
                    if gate.borrow().leading.is_none() {
                        self.refuse_all();
                    }
                }
            }
        };
        let is_applied = matches!(outcome, Some(Ok(_)));
        self.answer(answers, outcome);
        is_applied
    }

    fn answer(
        &self,
        answers: Vec<oneshot::Sender<Result<Proposed, Error>>>,
        outcome: Option<Written>,
    ) {
        let error = match outcome {
            Some(Ok(response)) => {
                let term = response.log_id.committed_leader_id().term;
                let Reply(replies) = response.data;
                assert_eq!(replies.len(), answers.len(), "one reply for each operation");
                for (answer, reply) in answers.into_iter().zip(replies) {
                    let _ = answer.send(Ok(Proposed { reply, term }));
                }
                return;
            }
            // openraft says this only of a request that was never appended.
            Some(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                self.not_leader()
            }
            Some(Err(_)) | None => Error::unknown(ErrorKind::OutcomeUnknown),
        };
        for answer in answers {
            let _ = answer.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use annulus_runtime::{Clock, Random, SimDisk, SimWorld, Tasks};
    use annulus_types::{GroupId, ReplicaId};

    use super::*;
    use crate::gate::{Core, Gate, Lease, Weaken};

    const ME: ReplicaId = ReplicaId(1);

    fn packer() -> Packer {
        let (clock, random) = (Clock::simulated(1000, 0), Random::seeded(1));
        let world = SimWorld::new(random.clone());
        let env = Env {
            clock: clock.clone(),
            random: random.clone(),
            network: Arc::new(world.network(IpAddr::from([10, 0, 0, 1]))),
            disk: Arc::new(SimDisk::new(random)),
            tasks: Tasks::new(),
        };
        let span = Duration::from_millis(600);
        let lease = Lease { lease: span, silence: span };
        let gate = Gate::new(Core::new(ME, lease, Weaken::default()));
        let replica = ReplicaState::new(GroupId(1), ME, clock, gate, span, false);
        Packer::new(env, Arc::new(replica), WeakenHost::default())
    }

    fn queue(packer: &Packer) {
        let operation = Operation { shard: ShardId(1), body: Bytes::from_static(b"x") };
        let (fate, (answer, _)) = (Arc::new(AtomicU8::new(QUEUED)), oneshot::channel());
        let mut queue = packer.queue.lock();
        queue.bytes += operation.body.len() + OPERATION_OVERHEAD;
        queue.waiting.push_back(Waiting { operation, fate, answer });
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_carries_no_time_before_its_operations_were_queued() {
        let (packer, mut clock) = (packer(), None);
        let vote = Vote { term: 1, leader: ME, committed: true };
        assert_eq!(packer.group_time(&mut clock, vote), 0, "whether something is due");
        tokio::time::advance(Duration::from_millis(7)).await;
        queue(&packer);
        let (taken, time_ms) = packer.take_timed(&mut clock, vote);
        assert_eq!((taken.len(), time_ms), (1, 7));
        assert_eq!(packer.group_time(&mut clock, vote), 7);
    }

    #[test]
    fn a_time_entry_is_due_with_what_ends_next_and_in_steps_until_then() {
        let at = |group_time_ms, next_end_ms| AppliedAt {
            next_end_ms,
            group_time_ms,
            ..AppliedAt::default()
        };
        let wait = |applied, now_ms| until_time_entry(applied, now_ms, TIME_STEP_MS);
        let ms = |span| Some(Duration::from_millis(span));
        assert_eq!(wait(at(5_000, None), 99_000), None, "nothing ends: nothing is proposed");
        assert_eq!(wait(at(5_000, Some(7_500)), 6_000), ms(1_500));
        assert_eq!(wait(at(5_000, Some(7_500)), 7_500), ms(0));
        assert_eq!(wait(at(5_000, Some(90_000)), 6_000), ms(9_000), "a step");
        assert_eq!(wait(at(5_000, Some(90_000)), 16_000), ms(0));
        // More was due than one entry may end.
        assert_eq!(wait(at(5_000, Some(4_000)), 5_000), ms(0));
        assert_eq!(until_time_entry(at(5_000, Some(90_000)), 6_000, u64::MAX), ms(84_000));
    }
}
