//! Every case of the decisions, and sessions that wander between replicas.

use annulus_types::MayHaveApplied;

use super::*;

fn sound() -> Weakened {
    Weakened::default()
}

#[test]
fn every_standing_has_its_step() {
    for head in 0..4 {
        for seen in 0..4 {
            for (waited, confirmed) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let (head, seen) = (Revision(head), Revision(seen));
                let at = Standing { head, seen, waited, confirmed };
                let expected = if head >= seen {
                    Step::Answer
                } else if confirmed {
                    Step::HistoryLost
                } else if waited {
                    Step::Again(Before::Confirm)
                } else {
                    Step::Again(Before::Wait)
                };
                assert_eq!(session(at, sound()), expected, "{at:?}");
            }
        }
    }
}

/// A replica of the model: what it has applied, and what its leader has.
#[derive(Clone, Copy, Debug)]
struct Replica {
    applied: u64,
    /// Entries that come while it waits.
    coming: u64,
    leader: u64,
}

/// The revision that a replica answers a session with; `None` when the history is lost. Panics when
/// the session would wait for ever.
fn answered(mut replica: Replica, seen: Revision, weakened: Weakened) -> Option<Revision> {
    let (mut waited, mut confirmed) = (false, false);
    for _ in 0..replica.coming + 3 {
        let head = Revision(replica.applied);
        match session(Standing { head, seen, waited, confirmed }, weakened) {
            Step::Answer => return Some(head),
            Step::HistoryLost => return None,
            Step::Again(Before::Wait) if replica.coming > 0 => {
                replica.applied += 1;
                replica.coming -= 1;
            }
            Step::Again(Before::Wait) => waited = true,
            Step::Again(Before::Confirm) => {
                replica.applied = replica.applied.max(replica.leader);
                confirmed = true;
            }
        }
    }
    panic!("{replica:?} does not answer a session that has seen {seen}");
}

/// All replicas whose numbers are below this.
fn replicas(limit: u64) -> impl Iterator<Item = Replica> {
    (0..limit).flat_map(move |leader| {
        (0..=leader).flat_map(move |applied| {
            (0..=leader - applied).map(move |coming| Replica { applied, coming, leader })
        })
    })
}

/// Sessions of two reads, at any two replicas. Returns the first that goes back in time.
fn one_that_goes_back(weakened: Weakened) -> Option<(Replica, Replica)> {
    for first in replicas(4) {
        for second in replicas(4) {
            let seen = answered(first, Revision(0), weakened).unwrap();
            if answered(second, seen, weakened).is_some_and(|then| then < seen) {
                return Some((first, second));
            }
        }
    }
    None
}

#[test]
fn a_session_never_goes_back_and_never_waits_for_ever() {
    assert!(one_that_goes_back(sound()).is_none());
    for replica in replicas(5) {
        for seen in 0..6 {
            let answer = answered(replica, Revision(seen), sound());
            // What the leader has is found; what it has not is lost.
            assert_eq!(answer.is_some(), seen <= replica.leader, "{replica:?} {seen}");
        }
    }
}

/// R5: the rule is what keeps a session from going back.
#[test]
fn an_answer_older_than_the_session_is_found() {
    assert!(one_that_goes_back(Weakened::by(Weaken::OlderThanSession)).is_some());
}

#[test]
fn a_bound_is_kept_or_refused() {
    for limit_us in 1..5 {
        for age_us in [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(u64::MAX)] {
            match bounded(limit_us, age_us, sound()) {
                Ok(()) => assert!(age_us.is_some_and(|age_us| age_us <= limit_us)),
                Err(error) => {
                    assert!(age_us.is_none_or(|age_us| age_us > limit_us));
                    assert_eq!(error.may_have_applied, MayHaveApplied::No);
                    assert_eq!(error.kind, ErrorKind::TooStale { limit_us, actual_us: age_us });
                }
            }
        }
    }
}

/// R4: without the rule an age that nobody vouches for passes.
#[test]
fn an_answer_older_than_its_bound_is_found() {
    let weakened = Weakened::by(Weaken::OlderThanBound);
    assert!(bounded(5, None, weakened).is_ok() && bounded(5, Some(6), weakened).is_ok());
}
