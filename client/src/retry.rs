//! What to do after a failed attempt: pure decisions, no clock and no network.
//!
//! Invariants:
//! - W3: a mutation is repeated only while *every* attempt of it said no. It has no operation id,
//!   so a repetition after anything else could apply it twice.
//! - W4: the verdict of a call is the sum of the verdicts of its attempts. A read changes nothing:
//!   its verdict is no, whatever became of the attempt.
//! - Attempts without a pause between them are bounded, however nodes point at each other.

use std::time::Duration;

use annulus_types::{Error, ErrorKind, MayHaveApplied};

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MOST: Duration = Duration::from_millis(200);
/// A read leaves a silent node after this: longer than an election takes (1 s), so that a leader
/// that is about to be confirmed is not left just before.
const READ_ATTEMPT_MOST: Duration = Duration::from_millis(1_500);
/// Redirects followed without a pause. Two nodes that both know better are old news from one of
/// them; the pause lets it arrive.
const HOPS_MOST: u32 = 3;

/// Whether a call may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads.
    Read,
    /// It may change something.
    Write,
}

impl Access {
    /// How long one attempt may take when `left` remains for the call. A mutation that was sent
    /// cannot be repeated, so leaving early would win nothing.
    pub(crate) fn attempt_limit(self, left: Duration) -> Duration {
        match self {
            Self::Read => left.min(READ_ATTEMPT_MOST),
            Self::Write => left,
        }
    }

    /// The verdict on an attempt whose answer came, but cannot be used.
    pub(crate) fn after_answer(self) -> MayHaveApplied {
        match self {
            Self::Read => MayHaveApplied::No,
            Self::Write => MayHaveApplied::Yes,
        }
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
    /// End the call with this error.
    Fail(Error),
    /// Try again: it is known now whom to ask.
    AtOnce,
    /// Try the next node after this pause.
    After(Duration),
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

    /// Takes note of a failed attempt. `repaired`: the failure told whom to ask instead, and that
    /// node is not known to be down.
    pub(crate) fn after(&mut self, failure: Failure, repaired: bool, roll: u64) -> Step {
        self.attempts += 1;
        let error = match failure {
            Failure::Unreachable(_) => {
                self.last = Some(Error::refused(ErrorKind::NoQuorum));
                self.hops = 0;
                return Step::After(self.backoff.pause(roll));
            }
            Failure::Silent(error) | Failure::Said(error) => error,
        };
        let repeat = self.may_repeat(&error);
        self.applied = self.applied.and_then(match self.access {
            Access::Read => MayHaveApplied::No,
            Access::Write => error.may_have_applied,
        });
        let error = Error { may_have_applied: self.applied, ..error };
        if !repeat {
            return Step::Fail(error);
        }
        let asked_to_wait = Duration::from_millis(u64::from(error.retry_after_ms));
        self.last = Some(error);
        if repaired && self.hops < HOPS_MOST {
            self.hops += 1;
            return Step::AtOnce;
        }
        self.hops = 0;
        Step::After(self.backoff.pause(roll).max(asked_to_wait))
    }

    /// The error of a call whose deadline has come.
    pub(crate) fn give_up(self) -> Error {
        let Some(error) = self.last else {
            let stage = "looking for a node".to_owned();
            return Error::refused(ErrorKind::DeadlineExceeded { stage });
        };
        // The last of the two kinds below can only be a read's: no answer came, and nothing else
        // is known.
        match error.kind {
            ErrorKind::NotLeader { .. }
            | ErrorKind::NoQuorum
            | ErrorKind::OutcomeUnknown
            | ErrorKind::Cancelled => Error { kind: ErrorKind::NoQuorum, ..error },
            _ => error,
        }
    }

    fn may_repeat(&self, error: &Error) -> bool {
        let elsewhere = matches!(
            error.kind,
            ErrorKind::NotLeader { .. } | ErrorKind::StaleRoute { .. } | ErrorKind::Moving { .. }
        );
        if self.pinned && elsewhere {
            return false;
        }
        match self.access {
            Access::Write => error.may_have_applied == MayHaveApplied::No && error.is_retryable(),
            Access::Read => {
                error.is_retryable()
                    || error.may_have_applied == MayHaveApplied::Unknown
                    || matches!(error.kind, ErrorKind::DeadlineExceeded { .. })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use annulus_types::NodeId;

    use super::*;

    fn no_leader() -> Failure {
        Failure::Said(Error::refused(ErrorKind::NotLeader { leader: None }))
    }

    fn redirect() -> Failure {
        Failure::Said(Error::refused(ErrorKind::NotLeader { leader: Some(NodeId(2)) }))
    }

    fn lost() -> Failure {
        Failure::Silent(Error::unknown(ErrorKind::OutcomeUnknown))
    }

    fn unreachable() -> Failure {
        Failure::Unreachable("refused".to_owned())
    }

    #[test]
    fn a_mutation_is_not_repeated_after_an_unknown_outcome() {
        for (failure, kind) in [
            (lost(), ErrorKind::OutcomeUnknown),
            (Failure::Said(Error::unknown(ErrorKind::NoQuorum)), ErrorKind::NoQuorum),
        ] {
            let mut retry = Retry::new(Access::Write, false);
            assert!(matches!(retry.after(no_leader(), false, 0), Step::After(_)));
            let step = retry.after(failure, false, 0);
            assert_eq!(step, Step::Fail(Error::unknown(kind)));
        }
    }

    #[test]
    fn a_mutation_is_repeated_after_every_retryable_no() {
        for kind in [
            ErrorKind::NotLeader { leader: None },
            ErrorKind::StaleRoute { routes: None },
            ErrorKind::Moving { to: None },
            ErrorKind::NoQuorum,
            ErrorKind::Overloaded,
            ErrorKind::NotReady { reason: String::new() },
        ] {
            let mut retry = Retry::new(Access::Write, false);
            let step = retry.after(Failure::Said(Error::refused(kind.clone())), false, 0);
            assert!(matches!(step, Step::After(_)), "{kind:?}: {step:?}");
        }
        let mut retry = Retry::new(Access::Write, false);
        assert!(matches!(retry.after(unreachable(), false, 0), Step::After(_)));
    }

    #[test]
    fn an_answer_is_not_asked_for_again() {
        for access in [Access::Read, Access::Write] {
            for kind in [
                ErrorKind::PreconditionFailed { current: None },
                ErrorKind::BadRequest { field: "key".to_owned(), message: String::new() },
                ErrorKind::DiskFull,
                ErrorKind::ShardHalted { file: String::new(), offset: 0 },
            ] {
                let error = Error::refused(kind);
                let step = Retry::new(access, false).after(Failure::Said(error.clone()), false, 0);
                assert_eq!(step, Step::Fail(error));
            }
        }
    }

    #[test]
    fn a_read_is_repeated_after_silence_and_never_reports_a_doubt() {
        let mut retry = Retry::new(Access::Read, false);
        assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
        let late = ErrorKind::DeadlineExceeded { stage: "waiting".to_owned() };
        let step = retry.after(Failure::Silent(Error::unknown(late)), false, 0);
        assert!(matches!(step, Step::After(_)));
        assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
        assert_eq!(retry.give_up(), Error::refused(ErrorKind::NoQuorum));

        let mut retry = Retry::new(Access::Read, false);
        assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
        let step = retry.after(Failure::Said(Error::refused(ErrorKind::Forbidden)), false, 0);
        assert_eq!(step, Step::Fail(Error::refused(ErrorKind::Forbidden)));
    }

    #[test]
    fn redirects_are_followed_at_once_but_not_for_ever() {
        let mut retry = Retry::new(Access::Write, false);
        for _ in 0..2 {
            for _ in 0..HOPS_MOST {
                assert_eq!(retry.after(redirect(), true, 0), Step::AtOnce);
            }
            assert!(matches!(retry.after(redirect(), true, 0), Step::After(_)));
        }
        assert_eq!(retry.attempts(), 2 * (HOPS_MOST + 1));
    }

    #[test]
    fn a_redirect_ends_a_call_to_a_named_node() {
        let mut retry = Retry::new(Access::Read, true);
        assert!(matches!(retry.after(unreachable(), false, 0), Step::After(_)));
        assert!(matches!(retry.after(redirect(), true, 0), Step::Fail(_)));
    }

    #[test]
    fn pauses_double_with_jitter_and_respect_the_node() {
        let pauses = |roll: u64| {
            let mut backoff = Backoff::new();
            (0..6).map(|_| backoff.pause(roll).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(0), [10, 20, 40, 80, 100, 100]);
        // The largest roll for a step of n microseconds is n / 2.
        let mut backoff = Backoff::new();
        assert_eq!(backoff.pause(10_000), Duration::from_millis(20));
        assert_eq!(backoff.pause(20_000), Duration::from_millis(40));

        let mut retry = Retry::new(Access::Write, false);
        let patient = Error { retry_after_ms: 700, ..Error::refused(ErrorKind::Overloaded) };
        let step = retry.after(Failure::Said(patient), false, 0);
        assert_eq!(step, Step::After(Duration::from_millis(700)));
    }

    #[test]
    fn the_deadline_names_the_last_reason() {
        let ended_after = |failures: Vec<Failure>| {
            let mut retry = Retry::new(Access::Write, false);
            for failure in failures {
                assert!(matches!(retry.after(failure, false, 0), Step::After(_)));
            }
            retry.give_up()
        };
        let full = Error::refused(ErrorKind::Overloaded);
        assert_eq!(ended_after(vec![unreachable()]), Error::refused(ErrorKind::NoQuorum));
        assert_eq!(
            ended_after(vec![Failure::Said(full.clone()), no_leader()]),
            Error::refused(ErrorKind::NoQuorum)
        );
        assert_eq!(ended_after(vec![no_leader(), Failure::Said(full.clone())]), full);
        let never_tried = ended_after(Vec::new());
        assert!(matches!(never_tried.kind, ErrorKind::DeadlineExceeded { .. }));
        assert_eq!(never_tried.may_have_applied, MayHaveApplied::No);
    }

    #[test]
    fn a_said_failure_tells_more_than_silence() {
        let said = Failure::Said(Error::refused(ErrorKind::Forbidden));
        let first = Failure::more_telling(None, unreachable());
        assert_eq!(first, unreachable());
        let second = Failure::more_telling(Some(first), said.clone());
        assert_eq!(Failure::more_telling(Some(second), lost()), said);
    }
}
