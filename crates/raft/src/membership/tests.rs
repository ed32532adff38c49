//! The steps of a change, one sentence each.

use super::*;

const ME: ReplicaId = ReplicaId(1);

fn config(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

/// Replicas 1 to 5 have seats on the nodes of ten times their numbers.
fn membership(configs: &[&[u64]], seats: &[u64]) -> Membership {
    let configs = configs.iter().map(|ids| config(ids)).collect();
    let seat = |id: &u64| (*id, Seat { node: node(*id) });
    let seats: BTreeMap<u64, Seat> = seats.iter().map(seat).collect();
    Membership::new(configs, seats).expect("every voter has a seat")
}

fn node(replica: u64) -> NodeId {
    NodeId(u32::try_from(replica).expect("a small number") * 10)
}

fn step(now: &Membership, change: Change) -> Option<Step> {
    next_step(ME, now, &change).expect("it makes sense")
}

/// Replica 4 takes the place of replica 2.
fn swap() -> Change {
    Change {
        add_learner: Some((ReplicaId(4), node(4))),
        promote: Some(ReplicaId(4)),
        remove: Some(ReplicaId(2)),
    }
}

#[test]
fn a_swap_takes_its_steps_in_order_wherever_it_begins() {
    let learner = BTreeMap::from([(4, Seat { node: node(4) })]);
    let before = membership(&[&[1, 2, 3]], &[1, 2, 3]);
    assert_eq!(step(&before, swap()), Some(ChangeMembers::AddNodes(learner)));
    let added = membership(&[&[1, 2, 3]], &[1, 2, 3, 4]);
    let voters = config(&[1, 3, 4]);
    assert_eq!(step(&added, swap()), Some(ChangeMembers::ReplaceAllVoters(voters)));
    let joint = membership(&[&[1, 2, 3], &[1, 3, 4]], &[1, 2, 3, 4]);
    assert_eq!(step(&joint, swap()), Some(ChangeMembers::AddVoterIds(BTreeSet::new())));
    // Somebody kept the removed voter as a learner.
    let kept = membership(&[&[1, 3, 4]], &[1, 2, 3, 4]);
    assert_eq!(step(&kept, swap()), Some(ChangeMembers::RemoveNodes(config(&[2]))));
    let after = membership(&[&[1, 3, 4]], &[1, 3, 4]);
    assert_eq!(step(&after, swap()), None);
    assert_eq!(step(&after, Change::default()), None);
}

#[test]
fn other_learners_stay() {
    let now = membership(&[&[1, 2, 3]], &[1, 2, 3, 5]);
    let remove = Change { remove: Some(ReplicaId(3)), ..Change::default() };
    assert_eq!(step(&now, remove), Some(ChangeMembers::ReplaceAllVoters(config(&[1, 2]))));
    let remove = Change { remove: Some(ReplicaId(5)), ..Change::default() };
    assert_eq!(step(&now, remove), Some(ChangeMembers::RemoveNodes(config(&[5]))));
}

/// The field that a change is refused on; `None` when the caller shall come back.
fn refused(now: &Membership, change: Change) -> Option<String> {
    match next_step(ME, now, &change).expect_err("it makes no sense").kind {
        ErrorKind::BadRequest { field, .. } => Some(field),
        ErrorKind::NotReady { .. } => None,
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn a_leader_stays_where_it_is() {
    let now = membership(&[&[1, 2, 3]], &[1, 2, 3]);
    let leave = Change { remove: Some(ME), ..Change::default() };
    assert_eq!(refused(&now, leave), None);
    // Another has begun to remove this one, and left that to it.
    let joint = membership(&[&[1, 2, 3], &[2, 3, 4]], &[1, 2, 3, 4]);
    assert_eq!(refused(&joint, Change::default()), None);
}

#[test]
fn what_makes_no_sense_is_refused_on_its_field() {
    let now = membership(&[&[1, 2, 3]], &[1, 2, 3]);
    let promote = Change { promote: Some(ReplicaId(4)), ..Change::default() };
    assert_eq!(refused(&now, promote).as_deref(), Some("promote"));
    let elsewhere = Change { add_learner: Some((ReplicaId(3), node(4))), ..Change::default() };
    assert_eq!(refused(&now, elsewhere).as_deref(), Some("add_learner"));
    for both in [
        Change { promote: Some(ReplicaId(3)), remove: Some(ReplicaId(3)), ..Change::default() },
        Change { remove: Some(ReplicaId(4)), promote: None, ..swap() },
    ] {
        assert_eq!(refused(&now, both).as_deref(), Some("remove"));
    }
    assert_eq!(refused(&Membership::default(), Change::default()), None);
}
