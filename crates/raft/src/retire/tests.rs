//! What is a proof, and what is none.

use super::*;

const ME: ReplicaId = ReplicaId(11);
/// Of the membership by which it had a seat.
const SEATED_AT: u64 = 20;

fn seat(replica: u64, voter: bool) -> v1::MemberSeat {
    v1::MemberSeat { replica, node: u32::try_from(replica).expect("a small number") - 10, voter }
}

/// What replica 12 on node 2 tells after replica 14 has taken the place of replica 11.
fn told() -> v1::MembershipReply {
    v1::MembershipReply {
        replica: 12,
        index: 22,
        committed: true,
        joint: false,
        seats: vec![seat(12, true), seat(13, true), seat(14, true)],
        last_index: Some(30),
    }
}

fn judged(told: &v1::MembershipReply) -> Result<(), NoProof> {
    judge(told, NodeId(2), ME, SEATED_AT)
}

#[test]
fn a_later_uniform_committed_membership_told_by_a_voter_is_a_proof() {
    assert_eq!(judged(&told()), Ok(()));
}

#[test]
fn whatever_lacks_a_part_is_none() {
    let with_seat = [seat(11, false), seat(12, true), seat(13, true)].to_vec();
    let as_learner = [seat(12, false), seat(13, true), seat(14, true)].to_vec();
    let cases = [
        (v1::MembershipReply { seats: with_seat, ..told() }, NoProof::HasSeat),
        (v1::MembershipReply { joint: true, ..told() }, NoProof::Joint),
        (v1::MembershipReply { committed: false, ..told() }, NoProof::Uncommitted),
        (v1::MembershipReply { index: SEATED_AT, ..told() }, NoProof::TooOld),
        (v1::MembershipReply { index: 3, ..told() }, NoProof::TooOld),
        (v1::MembershipReply { seats: as_learner, ..told() }, NoProof::NotAVoter),
        (v1::MembershipReply { replica: 15, ..told() }, NoProof::NotAVoter),
        (v1::MembershipReply { seats: Vec::new(), ..told() }, NoProof::NotAVoter),
    ];
    for (told, why) in cases {
        assert_eq!(judged(&told), Err(why), "{told:?}");
    }
}

#[test]
fn a_voter_is_believed_over_its_own_link_only() {
    assert_eq!(judge(&told(), NodeId(3), ME, SEATED_AT), Err(NoProof::NotAVoter));
    assert_eq!(judge(&told(), NodeId(9), ME, SEATED_AT), Err(NoProof::NotAVoter));
}

#[test]
fn only_a_lost_testimony_is_made_up_for_by_the_caller() {
    let own = |seated_at, is_partial| Testimony { seated_at, is_partial, ..Default::default() };
    assert_eq!(own(None, true).bar(22), Some(21));
    assert_eq!(own(None, true).bar(0), None);
    assert_eq!(own(None, false).bar(22), None);
    assert_eq!(own(Some(30), true).bar(22), Some(30));
    assert_eq!(judge(&told(), NodeId(2), ME, 21), Ok(()), "told at the floor itself");
    assert_eq!(judge(&told(), NodeId(2), ME, 22), Err(NoProof::TooOld));
}

#[test]
fn the_newest_membership_with_a_seat_counts() {
    let members = |ids: &[u64]| {
        let seats: std::collections::BTreeMap<u64, crate::types::Seat> = ids
            .iter()
            .map(|id| (*id, crate::types::Seat { node: NodeId(seat(*id, true).node) }))
            .collect();
        Membership::new(vec![ids.iter().copied().collect()], seats).expect("all have seats")
    };
    let mut own = Testimony::default();
    own.hear(ME, 9, &members(&[11, 12]));
    own.hear(ME, 5, &members(&[11, 13]));
    own.hear(ME, 12, &members(&[12, 14]));
    let nodes = BTreeSet::from([NodeId(1), NodeId(2), NodeId(3), NodeId(4)]);
    assert_eq!(own, Testimony { seated_at: Some(9), nodes, is_partial: false });
}
