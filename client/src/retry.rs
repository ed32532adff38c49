//! What to do after a failed attempt: pure decisions, no clock and no network.
//!
//! Invariants:
//! - W3: a mutation without an operation id is repeated only while *every* attempt of it said no: a
//!   repetition after anything else could apply it twice. With an id it is repeated after an unknown
//!   outcome too, always under the same id. Another id is taken only when nothing is in doubt.
//! - W4: the verdict of a call is the sum of the verdicts of its attempts. Two answers are about the
//!   operation, not about the attempt, and need no sum: a result, which the shard gives to every repetition,
//!   and what `op status` says. A read changes nothing: its verdict is no, whatever became of the attempt.
//! - Attempts without a pause between them are bounded, however nodes point at each other.

use std::time::Duration;

use annulus_types::{Error, ErrorKind, MayHaveApplied};

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MOST: Duration = Duration::from_millis(200);
/// A read leaves a silent node after this: longer than an election takes (1 s), so that a leader
/// that is about to be confirmed is not left just before.
const READ_ATTEMPT_MOST: Duration = Duration::from_millis(1_500);
/// The same of a mutation with an operation id. More, because each repetition costs the log another entry,
/// and a node that is silent for long is more often slow than gone: a broken connection is noticed at once.
const NAMED_ATTEMPT_MOST: Duration = Duration::from_secs(2);
/// Of the time of a call with an operation id, what is kept for asking what became of it. A group with a
/// leader answers in milliseconds, through a wrong route in a few more; without a leader no reserve that
/// leaves room for the call itself would do.
const RESERVE_MOST: Duration = Duration::from_millis(500);
/// Redirects followed without a pause. Two nodes that both know better are old news from one of
/// them; the pause lets it arrive.
const HOPS_MOST: u32 = 3;

/// Whether a call may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It changes no key, and may be repeated after anything.
    Read,
    /// It may change something.
    Write,
    /// It may change something, and has an operation id.
    Named,
}

impl Access {
    /// How long one attempt may take when `left` remains for attempts. A mutation without an operation id
    /// cannot be repeated once it was sent, so leaving early would win nothing.
    pub(crate) fn attempt_limit(self, left: Duration) -> Duration {
        match self {
            Self::Read => left.min(READ_ATTEMPT_MOST),
            Self::Write => left,
            Self::Named => left.min(NAMED_ATTEMPT_MOST),
        }
    }

    /// The verdict on an attempt whose answer came, but cannot be used.
    pub(crate) fn after_answer(self) -> MayHaveApplied {
        match self {
            Self::Read => MayHaveApplied::No,
            Self::Write | Self::Named => MayHaveApplied::Yes,
        }
    }
}

/// How the time of a call with an operation id is divided: attempts first, then, if it is in doubt, the
/// question what became of it. The reserve for that is a quarter of the call's time, 500 ms at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    reserve: Duration,
}

impl Shares {
    /// For a call that has `span` in all.
    pub(crate) fn of(span: Duration) -> Self {
        Self { reserve: (span / 4).min(RESERVE_MOST) }
    }

    /// How long an attempt that begins now may take when `left` remains for the call; it leaves the reserve,
    /// or half of what remains if that is less. `None` once only the reserve is left, also when nothing is in
    /// doubt: what is sent so late would more likely raise a doubt than be answered.
    pub(crate) fn attempt(self, left: Duration) -> Option<Duration> {
        let usable = left.saturating_sub(self.reserve).max(left / 2);
        (left > self.reserve).then(|| Access::Named.attempt_limit(usable))
    }
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no connection: nothing left this process.
    Unreachable(String),
    /// There was one, but no answer of a node of ours.
    Silent(Error),
    /// The node said so.
    Said(Error),
}

impl Failure {
    /// As the error of a call that is not repeated.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Unreachable(reason) => Error::refused(ErrorKind::NotReady { reason }),
            Self::Silent(error) | Self::Said(error) => error,
        }
    }

    /// The same about a question that changes nothing: its outcome is never unknown.
    pub(crate) fn of_question(self) -> Self {
        match self {
            Self::Unreachable(why) => Self::Unreachable(why),
            Self::Silent(error) => Self::Unreachable(error.to_string()),
            Self::Said(error) => {
                Self::Said(Error { may_have_applied: MayHaveApplied::No, ..error })
            }
        }
    }

    /// The same about the opening of a writer, which may also be repeated after anything.
    pub(crate) fn of_opening(self) -> Self {
        match self {
            Self::Said(error) if error.may_have_applied != MayHaveApplied::No => {
                Self::Unreachable(error.to_string())
            }
            other => other.of_question(),
        }
    }

    /// Of two failures at different nodes, the one that tells more; the first when equal.
    pub(crate) fn more_telling(first: Option<Self>, second: Self) -> Self {
        let rank = |failure: &Self| match failure {
            Self::Unreachable(_) => 0,
            Self::Silent(_) => 1,
            Self::Said(_) => 2,
        };
        match first {
            Some(first) if rank(&first) >= rank(&second) => first,
            _ => second,
        }
    }
}

/// Pauses that double, with jitter, so that callers who failed together do not return together.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(BACKOFF_FIRST)
    }

    /// The next pause: between half and all of the present step, by the random number `roll`.
    pub(crate) fn pause(&mut self, roll: u64) -> Duration {
        let half_us = u64::try_from(self.0.as_micros() / 2).unwrap_or(u64::MAX - 1);
        self.0 = (self.0 * 2).min(BACKOFF_MOST);
        Duration::from_micros(half_us + roll % (half_us + 1))
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// End the call with this error; if it leaves a doubt, `op status` may know better.
    Fail(Error),
    /// Try again: it is known now whom to ask.
    AtOnce,
    /// Try the next node after this pause.
    After(Duration),
    /// The writer has ended, and nothing is in doubt: try again after this pause, with another one.
    Renamed(Duration),
}

/// The attempts of one call so far.
#[derive(Debug)]
pub(crate) struct Retry {
    access: Access,
    /// The caller named the node: other nodes are no help.
    pinned: bool,
    applied: MayHaveApplied,
    attempts: u32,
    hops: u32,
    backoff: Backoff,
    last: Option<Error>,
}

impl Retry {
    pub(crate) fn new(access: Access, pinned: bool) -> Self {
        Self {
            access,
            pinned,
            applied: MayHaveApplied::No,
            attempts: 0,
            hops: 0,
            backoff: Backoff::new(),
            last: None,
        }
    }

    /// Attempts that failed.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether an attempt may have been applied.
    pub(crate) fn in_doubt(&self) -> bool {
        self.applied != MayHaveApplied::No
    }

    /// The call waits for something in this process: what to say if its time ends there.
    pub(crate) fn waits(&mut self, stage: &str) {
        let stage = stage.to_owned();
        self.last = Some(Error::refused(ErrorKind::DeadlineExceeded { stage }));
    }

    /// Takes note of a failed attempt. `repaired`: the failure told whom to ask instead, and that
    /// node is not known to be down.
    pub(crate) fn after(&mut self, failure: Failure, repaired: bool, roll: u64) -> Step {
        self.attempts += 1;
        let error = match failure {
            Failure::Unreachable(_) => {
                // That the others have nothing new enough tells more.
                let is_known = self
                    .last
                    .as_ref()
                    .is_some_and(|last| matches!(last.kind, ErrorKind::TooStale { .. }));
                if !is_known {
                    self.last = Some(Error::refused(ErrorKind::NoQuorum));
                }
                self.hops = 0;
                return Step::After(self.backoff.pause(roll));
            }
            Failure::Silent(error) | Failure::Said(error) => error,
        };
        if self.access == Access::Named && error.may_have_applied == MayHaveApplied::No {
            match error.kind {
                // The result of the operation, which every attempt has: the first one is settled too.
                ErrorKind::PreconditionFailed { .. } => return Step::Fail(error),
                ErrorKind::WriterExpired if !self.in_doubt() => {
                    self.last = Some(error);
                    return Step::Renamed(self.hop(true, roll).unwrap_or_default());
                }
                _ => {}
            }
        }
        let repeat = self.may_repeat(&error);
        self.applied = self.applied.and_then(match self.access {
            Access::Read => MayHaveApplied::No,
            Access::Write | Access::Named => error.may_have_applied,
        });
        if !repeat {
            return Step::Fail(match self.access {
                Access::Named => concluded(error, self.applied),
                Access::Read | Access::Write => Error { may_have_applied: self.applied, ..error },
            });
        }
        let asked_to_wait = Duration::from_millis(u64::from(error.retry_after_ms));
        // That one was too slow for what was left tells less than what the others said, unless it did more.
        let is_late = matches!(error.kind, ErrorKind::DeadlineExceeded { .. });
        let tells_more =
            |last: &Error| matches!(last.kind, ErrorKind::NoQuorum | ErrorKind::TooStale { .. });
        if !(is_late && !self.in_doubt() && self.last.as_ref().is_some_and(tells_more)) {
            self.last = Some(error);
        }
        match self.hop(repaired, roll) {
            None => Step::AtOnce,
            Some(pause) => Step::After(pause.max(asked_to_wait)),
        }
    }

    /// The error of a call whose time is over.
    pub(crate) fn give_up(&self) -> Error {
        let Some(error) = self.last.clone() else {
            let stage = "looking for a node".to_owned();
            return Error::refused(ErrorKind::DeadlineExceeded { stage });
        };
        concluded(error, self.applied)
    }

    /// The pause before the next attempt, if there must be one.
    fn hop(&mut self, repaired: bool, roll: u64) -> Option<Duration> {
        if repaired && self.hops < HOPS_MOST {
            self.hops += 1;
            return None;
        }
        self.hops = 0;
        Some(self.backoff.pause(roll))
    }

    fn may_repeat(&self, error: &Error) -> bool {
        let elsewhere = matches!(
            error.kind,
            ErrorKind::NotLeader { .. } | ErrorKind::StaleRoute { .. } | ErrorKind::Moving { .. }
        );
        if self.pinned && elsewhere {
            return false;
        }
        // The node's time for an attempt is shorter than the call's.
        let is_late = matches!(error.kind, ErrorKind::DeadlineExceeded { .. });
        // Another replica may be newer, and so may this one in a moment.
        let is_too_old = matches!(error.kind, ErrorKind::TooStale { .. }) && !self.pinned;
        match (self.access, error.may_have_applied) {
            (Access::Write, applied) => applied == MayHaveApplied::No && error.is_retryable(),
            (Access::Named, MayHaveApplied::No) => error.is_retryable() || is_late,
            (Access::Read | Access::Named, MayHaveApplied::Unknown) => true,
            (Access::Named, MayHaveApplied::Yes) => false,
            (Access::Read, _) => error.is_retryable() || is_late || is_too_old,
        }
    }
}

/// `error`, the last one, as the end of a call with this verdict. In doubt, that there is a doubt says more
/// than why the last attempt was put off. Without one, a node that knows no leader says as much as one that
/// cannot be asked, and so does the lost answer to a read.
pub(crate) fn concluded(error: Error, applied: MayHaveApplied) -> Error {
    let is_passing = error.is_retryable()
        || matches!(
            error.kind,
            ErrorKind::OutcomeUnknown | ErrorKind::Cancelled | ErrorKind::WriterExpired
        );
    let kind = match (error.kind, applied) {
        (_, MayHaveApplied::Unknown) if is_passing => ErrorKind::OutcomeUnknown,
        (
            ErrorKind::NotLeader { .. } | ErrorKind::OutcomeUnknown | ErrorKind::Cancelled,
            MayHaveApplied::No,
        ) => ErrorKind::NoQuorum,
        (kind, _) => kind,
    };
    Error { kind, may_have_applied: applied, ..error }
}

#[cfg(test)]
mod tests;
