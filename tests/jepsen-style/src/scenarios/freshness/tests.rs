//! The judgement of single answers, and when moves are over.

use annulus_client::{Mode, OverviewReply, Receipt, Revision, ServedBy, ShardId};
use annulus_types::{Epoch, ReplicaId, TableVersion};

use super::nemesis::is_settled;
use super::*;

fn answer(value: Option<&'static str>, bound_us: Option<u64>) -> Result<Found, Error> {
    let receipt = Receipt {
        mode: Mode::Session,
        shard: ShardId(1),
        epoch: Epoch(1),
        node: NodeId(1),
        replica: ReplicaId(1),
        role: Role::Follower,
        served_by: ServedBy::Local,
        term: 1,
        revision: Revision(1),
        staleness_bound_us: bound_us,
        shard_time_ms: 0,
        table_version: TableVersion(1),
    };
    let value = value.map(|text| text.as_bytes().into());
    Ok(Found { value, version: Revision(1), expires_in: None, receipt, attempts: 1 })
}

#[test]
fn too_old_too_new_and_unvouched_answers_are_violations() {
    let key = Key::new("k".to_owned());
    while key.next() < 5 {}
    let told = |kind, value, bound_us| judge(&key, kind, 3, &answer(value, bound_us));
    assert_eq!(told(Kind::Session, Some("3"), None), Ok(Some(3)));
    assert_eq!(told(Kind::Bounded, Some("5"), Some(BOUND_US)), Ok(Some(5)));
    for (kind, value, bound_us, problem) in [
        (Kind::Session, Some("2"), None, "3 or later"),
        (Kind::Session, None, None, "0 was found"),
        (Kind::Session, Some("6"), None, "5 was sent last"),
        (Kind::Session, Some("x"), None, "never written"),
        (Kind::Bounded, Some("4"), None, "nobody vouches"),
        (Kind::Bounded, Some("4"), Some(BOUND_US + 1), "nobody vouches"),
    ] {
        let told = told(kind, value, bound_us).unwrap_err();
        assert!(told.contains(problem), "{told}");
    }
    let lost = Err(Error::refused(ErrorKind::HistoryLost));
    assert!(judge(&key, Kind::Session, 0, &lost).is_err());
    let refused = Err(Error::refused(ErrorKind::NoQuorum));
    assert_eq!(judge(&key, Kind::Session, 3, &refused), Ok(None));
}

#[test]
fn a_key_in_doubt_gets_a_successor() {
    let shared = Shared::new(Clock::real(), 2).unwrap();
    let names = || (0..2 * KEYS_EACH).map(|place| shared.key(place).name.clone());
    let before: Vec<String> = names().collect();
    shared.renew(3);
    let after: Vec<String> = names().collect();
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(changed, 1);
    assert!(!before.contains(&after[3]));
}

#[test]
fn looks_without_a_bound_count_as_infinitely_old() {
    let bounds = |known: u64, unknown, failed| Bounds {
        known_us: (0..known).map(|at| at * 1_000).collect(),
        unknown,
        failed,
    };
    assert_eq!(bounds(200, 0, 0).percentile_us(50), 100_000);
    assert_eq!(bounds(200, 0, 0).percentile_us(99), 198_000);
    assert_eq!(bounds(199, 1, 0).percentile_us(99), 198_000);
    assert_eq!(bounds(199, 1, 0).percentile_us(100), u64::MAX);
    for (unknown, failed) in [(2, 0), (0, 2), (1, 1)] {
        assert_eq!(bounds(198, unknown, failed).report().unwrap(), u64::MAX);
    }
    assert!(bounds(0, 1, 0).report().is_err());
}

#[test]
fn faults_are_known_by_their_names() {
    assert_eq!(Fault::list("kill,moves"), Some(vec![Fault::Kill, Fault::Moves]));
    assert_eq!(Fault::list("none"), Some(Vec::new()));
    assert_eq!(Fault::list("kill,flood"), None);
}

#[test]
fn moves_are_over_when_seats_are_even_and_the_drained_have_none() {
    let overview = |seats: &[(u32, bool)]| {
        let mut overview = OverviewReply::default();
        for (seats, draining) in seats {
            overview.nodes.push(Default::default());
            let Some(node) = overview.nodes.last_mut() else { unreachable!("one was pushed") };
            (node.seats, node.draining) = (*seats, *draining);
        }
        overview
    };
    let even = overview(&[(4, false), (5, false), (0, true)]);
    assert!(is_settled(&even, 3));
    assert!(!is_settled(&even, 4), "one is not there yet");
    assert!(!is_settled(&overview(&[(4, false), (5, false), (1, true)]), 3));
    assert!(!is_settled(&overview(&[(4, false), (6, false)]), 2));
    let mut moving = even;
    moving.moves.push(Default::default());
    assert!(!is_settled(&moving, 3));
}
