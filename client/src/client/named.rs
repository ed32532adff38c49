//! Mutations with operation ids: repeated until their outcome is known, applied once (W3).
//!
//! A call gets a name (a writer of its shard and a number), for which a writer is opened if there is none.
//! It is then sent under this name, to whatever node leads now, until the shard has judged it. The shard
//! answers a repetition with the first result. If time runs out in doubt, the rest of it goes into the
//! question what became of the operation; if that stays open too, the caller gets the id.
//!
//! # Invariants
//!
//! - Between the first doubt and the end of the call the name does not change: a mutation that may have
//!   been applied is never sent under another one. Shards may come to be divided: a call in doubt goes on
//!   asking about the shard that its name was made for, whatever the routes say of its key by then.
//! - No is reported only if every attempt said so, or the shard itself, about the operation (W4).
//! - A name is given back exactly once, by its [`Name`], also when the call is dropped.

use std::time::Duration;

use annulus_proto::convert::{OpId, OpState};
use annulus_proto::v1;
use annulus_types::{Error as AttemptError, MayHaveApplied, NodeId, Revision, ShardId, Token};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Inner;
use crate::calls::{Call, OpenWriter, Question};
use crate::channels::Deadline;
use crate::error::Error;
use crate::op_id::OpIdText;
use crate::retry::{Access, Failure, Retry, Shares, Step, concluded};
use crate::routes::{Target, Want};
use crate::writers::{Admission, Fate, Ticket, Writers};

/// The writers of a client, and a bell for those who wait for one.
#[derive(Debug, Default)]
pub(super) struct Desk {
    writers: Mutex<Writers>,
    changed: Notify,
}

impl Desk {
    pub(super) fn take_idle(&self) -> Vec<(Token, Revision)> {
        self.writers.lock().take_idle()
    }

    fn opened(&self, asked: ShardId, opened: ShardId, id: Revision, token: Token) -> Ticket {
        let ticket = self.writers.lock().opened(asked, opened, id, token);
        self.changed.notify_waiters();
        ticket
    }

    fn not_opened(&self, shard: ShardId) {
        self.writers.lock().not_opened(shard);
        self.changed.notify_waiters();
    }

    fn finish(&self, ticket: &Ticket, fate: Fate) {
        let lets_others_go = self.writers.lock().finish(ticket, fate);
        if lets_others_go {
            self.changed.notify_waiters();
        }
    }
}

/// The duty to open a writer, while others wait for it. Dropped without success, it passes on.
struct Opening<'a> {
    desk: &'a Desk,
    shard: ShardId,
    is_done: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.desk.not_opened(self.shard);
        }
    }
}

/// The name of a call, given back when it is dropped.
struct Name<'a> {
    desk: &'a Desk,
    ticket: Ticket,
    sent: u32,
    fate: Fate,
}

impl<'a> Name<'a> {
    fn new(desk: &'a Desk, ticket: Ticket) -> Self {
        // A call that is dropped has no result, but nobody has its id to ask for one either.
        Self { desk, ticket, sent: 0, fate: Fate::Settled }
    }

    /// For the next attempt.
    fn op_id(&mut self) -> v1::OpId {
        let attempt = self.sent;
        self.sent = self.sent.saturating_add(1);
        let Ticket { writer, seq, lowest_unacked, .. } = self.ticket;
        v1::OpId::from(&OpId { writer, seq, lowest_unacked, attempt })
    }
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        self.desk.finish(&self.ticket, self.fate);
    }
}

/// How far a call has come.
struct Course {
    token: Token,
    deadline: Deadline,
    shares: Shares,
    retry: Retry,
    /// The node that was asked last, and did not serve.
    last: Option<NodeId>,
    /// How often a node was asked.
    asked: u32,
}

impl Course {
    /// How long an attempt may take that begins now; `None` when it is too late for one.
    fn limit(&self) -> Option<Duration> {
        self.shares.attempt(self.deadline.left()?)
    }

    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause.min(self.deadline.left().unwrap_or_default())).await;
    }
}

/// Why the attempts under a name ended without an answer.
enum End {
    /// The writer is gone and nothing is in doubt: another name may be taken.
    Renamed,
    /// The call ends, unless it is in doubt and the question helps.
    Failed(AttemptError),
}

impl Inner {
    /// Takes a mutation from attempt to attempt.
    pub(super) async fn run_named<C: Call>(
        &self,
        call: &C,
        span: Duration,
    ) -> Result<C::Output, Error> {
        let mut course = Course {
            token: call.token(),
            deadline: Deadline::after(&self.env.clock, span),
            shares: Shares::of(span),
            retry: Retry::new(Access::Named, false),
            last: None,
            asked: 0,
        };
        loop {
            let mut name = self.name(&mut course).await?;
            match self.attempt(call, &mut name, &mut course).await {
                Ok(output) => return Ok(output),
                Err(End::Renamed) => name.fate = Fate::Expired,
                Err(End::Failed(error)) => {
                    return self.conclude(call, &mut name, error, &course).await;
                }
            }
        }
    }

    /// Gets a name, opening a writer if nobody else does. Nothing is in doubt before and after.
    async fn name(&self, course: &mut Course) -> Result<Name<'_>, AttemptError> {
        loop {
            let aimed = self.aim(course.token, Want::Leader, course.last, &course.deadline).await;
            let Some(limit) = course.limit() else { return Err(course.retry.give_up()) };
            let (failure, repaired) = match aimed {
                Err(failure) => (failure, false),
                Ok(target) => {
                    // Before the look, so that no change after it is missed.
                    let changed = self.desk.changed.notified();
                    let admission = self.desk.writers.lock().admit(target.shard);
                    match admission {
                        Admission::Go(ticket) => return Ok(Name::new(&self.desk, ticket)),
                        Admission::Wait => {
                            course.retry.waits("waiting for a writer of the shard");
                            if tokio::time::timeout(limit / 2, changed).await.is_err() {
                                // The call that opens it may have been put aside by its caller, and
                                // such a one must not hold up others. Two writers do no harm.
                                self.desk.not_opened(target.shard);
                            }
                            continue;
                        }
                        Admission::Open => match self.open(&target, course.token, limit).await {
                            Ok(ticket) => return Ok(Name::new(&self.desk, ticket)),
                            Err(told) => {
                                self.counters.attempt(&mut course.asked);
                                course.last = Some(target.node);
                                told
                            }
                        },
                    }
                }
            };
            match course.retry.after(failure, repaired, self.env.random.u64()) {
                Step::Fail(error) => return Err(error),
                Step::AtOnce => {}
                Step::After(pause) | Step::Renamed(pause) => course.pause(pause).await,
            }
        }
    }

    /// Opens a writer. A failure leaves an idle writer at most, and nothing in doubt.
    async fn open(
        &self,
        target: &Target,
        token: Token,
        limit: Duration,
    ) -> Result<Ticket, (Failure, bool)> {
        let mut opening = Opening { desk: &self.desk, shard: target.shard, is_done: false };
        match self.ask(&OpenWriter { token }, None, target, limit, 1).await {
            Ok(opened) => {
                opening.is_done = true;
                Ok(self.desk.opened(target.shard, opened.receipt.shard, opened.writer, token))
            }
            Err(failure) => {
                let (failure, repaired) = self.learn(target, failure, limit);
                Err((failure.of_opening(), repaired))
            }
        }
    }

    /// Sends the call under its name until it is judged.
    async fn attempt<C: Call>(
        &self,
        call: &C,
        name: &mut Name<'_>,
        course: &mut Course,
    ) -> Result<C::Output, End> {
        loop {
            let aimed = self.aim(course.token, Want::Leader, course.last, &course.deadline).await;
            let Some(limit) = course.limit() else {
                return Err(End::Failed(course.retry.give_up()));
            };
            let (failure, repaired) = match aimed {
                Err(failure) => (failure, false),
                Ok(target) => {
                    let attempts = course.retry.attempts() + 1;
                    self.counters.attempt(&mut course.asked);
                    match self.ask(call, Some(name.op_id()), &target, limit, attempts).await {
                        Ok(output) => return Ok(output),
                        Err(failure) => {
                            course.last = Some(target.node);
                            self.learn(&target, failure, limit)
                        }
                    }
                }
            };
            match course.retry.after(failure, repaired, self.env.random.u64()) {
                Step::Fail(error) => return Err(End::Failed(error)),
                Step::AtOnce => {}
                Step::After(pause) => course.pause(pause).await,
                Step::Renamed(pause) => {
                    course.pause(pause).await;
                    // The node was right to refuse, and is asked again.
                    course.last = None;
                    return Err(End::Renamed);
                }
            }
        }
    }

    /// The end of a call without an answer: in doubt, what the shard says of the operation.
    async fn conclude<C: Call>(
        &self,
        call: &C,
        name: &mut Name<'_>,
        error: AttemptError,
        course: &Course,
    ) -> Result<C::Output, Error> {
        if error.may_have_applied == MayHaveApplied::No {
            return Err(error.into());
        }
        let Ticket { shard, writer, seq, .. } = name.ticket;
        let cluster = self.cache.lock().cluster().unwrap_or_default();
        let id = OpIdText { cluster, shard, writer, seq, token: course.token };
        if error.may_have_applied == MayHaveApplied::Unknown {
            match self.drive(&Question { id }, Want::Leader, &course.deadline, None).await {
                Ok(report) => match report.state {
                    OpState::Applied => {
                        if let Some(output) = call.settled(&report, course.retry.attempts()) {
                            return Ok(output);
                        }
                    }
                    // What was found in place of what was expected is not told: the caller only learns that
                    // nothing was and will be changed.
                    OpState::Failed | OpState::NotApplied => {
                        return Err(concluded(error, MayHaveApplied::No).into());
                    }
                    OpState::Settled | OpState::Ended => {}
                },
                Err(problem) => tracing::debug!(%id, %problem, "the outcome stays unknown"),
            }
        }
        name.fate = Fate::InDoubt;
        let error = Error::from(error);
        Err(Error { op: Some(id), ..error })
    }
}
