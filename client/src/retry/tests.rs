//! What follows which failure.

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

fn named() -> Retry {
    Retry::new(Access::Named, false)
}

fn said(kind: ErrorKind) -> Failure {
    Failure::Said(Error::refused(kind))
}

#[test]
fn with_an_id_a_mutation_is_repeated_after_an_unknown_outcome() {
    let late = ErrorKind::DeadlineExceeded { stage: "waiting".to_owned() };
    let mut retry = named();
    for failure in [
        lost(),
        Failure::Silent(Error::unknown(late.clone())),
        Failure::Said(Error::unknown(ErrorKind::NoQuorum)),
        Failure::Said(Error::unknown(ErrorKind::Internal { id: String::new() })),
        no_leader(),
        unreachable(),
        said(late),
        said(ErrorKind::Overloaded),
    ] {
        let step = retry.after(failure.clone(), false, 0);
        assert!(matches!(step, Step::After(_)), "{failure:?}: {step:?}");
        assert!(retry.in_doubt(), "one doubt is not undone by later refusals");
    }
    assert_eq!(retry.give_up(), Error::unknown(ErrorKind::OutcomeUnknown));
}

#[test]
fn a_result_settles_all_attempts() {
    let failed = ErrorKind::PreconditionFailed { current: Some(annulus_types::Revision(7)) };
    let mut retry = named();
    assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
    let step = retry.after(said(failed.clone()), false, 0);
    assert_eq!(step, Step::Fail(Error::refused(failed.clone())));

    // Without an id it would be the result of the second attempt alone.
    let mut retry = Retry::new(Access::Write, false);
    assert!(matches!(retry.after(lost(), false, 0), Step::Fail(_)));
    assert_eq!(
        retry.after(said(failed.clone()), false, 0),
        Step::Fail(Error::unknown(failed)),
        "the sum of an unknown and a no is unknown"
    );
}

#[test]
fn an_ended_writer_is_replaced_only_while_nothing_is_in_doubt() {
    let mut retry = named();
    assert!(matches!(retry.after(no_leader(), false, 0), Step::After(_)));
    for _ in 0..HOPS_MOST {
        let step = retry.after(said(ErrorKind::WriterExpired), false, 0);
        assert_eq!(step, Step::Renamed(Duration::ZERO));
    }
    let step = retry.after(said(ErrorKind::WriterExpired), false, 0);
    assert!(matches!(step, Step::Renamed(pause) if pause > Duration::ZERO), "{step:?}");

    assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
    let step = retry.after(said(ErrorKind::WriterExpired), false, 0);
    assert_eq!(step, Step::Fail(Error::unknown(ErrorKind::OutcomeUnknown)));
}

#[test]
fn a_refusal_for_good_ends_the_call_with_the_doubt_that_there_was() {
    for (kind, told) in [
        (ErrorKind::DiskFull, ErrorKind::DiskFull),
        (ErrorKind::OpIdReused, ErrorKind::OpIdReused),
        (ErrorKind::Forbidden, ErrorKind::Forbidden),
    ] {
        let step = named().after(said(kind.clone()), false, 0);
        assert_eq!(step, Step::Fail(Error::refused(told.clone())));
        let mut retry = named();
        assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
        assert_eq!(retry.after(said(kind), false, 0), Step::Fail(Error::unknown(told)));
    }
    let unusable = Error {
        may_have_applied: MayHaveApplied::Yes,
        ..Error::refused(ErrorKind::Internal { id: "no receipt".to_owned() })
    };
    let mut retry = named();
    assert!(matches!(retry.after(lost(), false, 0), Step::After(_)));
    assert_eq!(retry.after(Failure::Said(unusable.clone()), false, 0), Step::Fail(unusable));
}

#[test]
fn what_is_concluded_fits_its_verdict() {
    use MayHaveApplied::{No, Unknown};
    let late = || ErrorKind::DeadlineExceeded { stage: "here".to_owned() };
    for (kind, applied, told) in [
        (ErrorKind::OutcomeUnknown, No, ErrorKind::NoQuorum),
        (ErrorKind::NotLeader { leader: None }, No, ErrorKind::NoQuorum),
        (ErrorKind::NotLeader { leader: None }, Unknown, ErrorKind::OutcomeUnknown),
        (ErrorKind::NoQuorum, Unknown, ErrorKind::OutcomeUnknown),
        (ErrorKind::Overloaded, Unknown, ErrorKind::OutcomeUnknown),
        (ErrorKind::Overloaded, No, ErrorKind::Overloaded),
        (late(), Unknown, late()),
        (late(), No, late()),
    ] {
        let concluded = concluded(Error::refused(kind.clone()), applied);
        assert_eq!((concluded.kind, concluded.may_have_applied), (told, applied), "{kind:?}");
    }
}

#[test]
fn the_reserve_is_kept_for_the_question() {
    let ms = Duration::from_millis;
    let limit = |shares: Shares, left: u64| shares.attempt(ms(left)).map(|limit| limit.as_millis());
    let shares = Shares::of(ms(5_000));
    for (left, told) in [
        (5_000, Some(2_000)),
        (2_300, Some(1_800)),
        // Near the end half is left.
        (800, Some(400)),
        (502, Some(251)),
        (500, None),
        (0, None),
    ] {
        assert_eq!(limit(shares, left), told, "{left}");
    }
    // A short call keeps a quarter.
    let shares = Shares::of(ms(100));
    assert_eq!((limit(shares, 100), limit(shares, 25)), (Some(75), None));
}

#[test]
fn the_opening_of_a_writer_leaves_no_doubt_and_is_tried_again() {
    let defect = ErrorKind::Internal { id: String::new() };
    for failure in [lost(), Failure::Said(Error::unknown(defect)), unreachable(), no_leader()] {
        let mut retry = named();
        let step = retry.after(failure.clone().of_opening(), false, 0);
        assert!(matches!(step, Step::After(_)), "{failure:?}: {step:?}");
        assert!(!retry.in_doubt(), "{failure:?}");
    }
    let wrong = said(ErrorKind::BadRequest { field: "token".to_owned(), message: String::new() });
    assert!(matches!(named().after(wrong.of_opening(), false, 0), Step::Fail(_)));
}

#[test]
fn a_call_whose_time_ends_while_it_waits_says_so() {
    let mut retry = named();
    retry.waits("waiting for a writer");
    let error = retry.give_up();
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
    assert!(
        matches!(error.kind, ErrorKind::DeadlineExceeded { ref stage } if stage.contains("writer"))
    );
}

#[test]
fn a_late_last_attempt_does_not_hide_what_the_others_said() {
    let late = || {
        let stage = "waiting for the node".to_owned();
        Failure::Silent(Error::refused(ErrorKind::DeadlineExceeded { stage }))
    };
    for kind in [ErrorKind::NoQuorum, ErrorKind::TooStale { limit_us: 1, actual_us: None }] {
        let mut retry = Retry::new(Access::Read, false);
        retry.after(Failure::Said(Error::refused(kind.clone())), false, 0);
        retry.after(late(), false, 0);
        assert_eq!(retry.give_up().kind, kind);
    }
    let mut retry = Retry::new(Access::Read, false);
    retry.after(no_leader(), false, 0);
    retry.after(late(), false, 0);
    assert!(matches!(retry.give_up().kind, ErrorKind::DeadlineExceeded { .. }));
}
