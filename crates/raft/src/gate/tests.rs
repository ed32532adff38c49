//! One test per sentence of R1 b–d; each `Weaken` value turns the one that it belongs to red.

use super::*;

const ME: ReplicaId = ReplicaId(1);
const LEASE: Lease =
    Lease { lease: Duration::from_millis(600), silence: Duration::from_millis(1200) };

fn vote(term: u64, leader: u64) -> Vote {
    Vote { term, leader: ReplicaId(leader), committed: true }
}

fn config(ids: &[u64]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

fn ms(ms: u64) -> BootTime {
    BootTime(ms * 1000)
}

fn leader(weaken: Weaken) -> Core {
    let mut core = Core::new(ME, LEASE, weaken);
    core.membership_appended(vec![config(&[1, 2, 3])]);
    core.vote_saved(vote(5, 1), ms(0));
    core.applied(EntryId { term: 5, leader: ME, index: 9 });
    core
}

/// A late reply counts from when its frame left.
fn late_reply_opens_until(weaken: Weaken) -> u64 {
    let mut core = leader(weaken);
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(700));
    core.view().open_until_us
}

#[test]
fn a_late_reply_is_credited_with_its_own_send_time() {
    assert_eq!(late_reply_opens_until(Weaken::default()), 550_000);
    let weak = Weaken { credit_reply_time: true, ..Weaken::default() };
    assert_ne!(late_reply_opens_until(weak), 550_000);
}

fn open_after_voting_for_another(weaken: Weaken) -> bool {
    let mut core = leader(weaken);
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    core.vote_saved(Vote { committed: false, ..vote(6, 3) }, ms(102));
    core.view().open_until_us > 0
}

#[test]
fn anothers_vote_shuts_the_gate_before_it_is_saved() {
    assert!(!open_after_voting_for_another(Weaken::default()));
    assert!(open_after_voting_for_another(Weaken { no_latch_on_vote: true, ..Weaken::default() }));
}

fn open_with_confirms_of_removed_voters(weaken: Weaken) -> bool {
    let mut core = leader(weaken);
    core.membership_appended(vec![config(&[1, 2, 3]), config(&[1, 4, 5])]);
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    core.view().open_until_us > 0
}

#[test]
fn an_appended_membership_counts_before_it_is_committed() {
    assert!(!open_with_confirms_of_removed_voters(Weaken::default()));
    let weak = Weaken { ignore_membership: true, ..Weaken::default() };
    assert!(open_with_confirms_of_removed_voters(weak));
    let mut core = leader(Weaken::default());
    core.membership_appended(vec![config(&[1, 2, 3]), config(&[1, 4, 5])]);
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    core.confirmed(vote(5, 1), ReplicaId(4), ms(80), ms(101));
    assert_eq!(core.view().horizon, Some(ms(80)), "the slower half decides");
}

fn horizon_after_re_election(weaken: Weaken) -> Option<BootTime> {
    let mut core = leader(weaken);
    core.vote_saved(Vote { committed: false, ..vote(6, 3) }, ms(200));
    core.vote_saved(vote(7, 1), ms(300));
    core.confirmed(vote(5, 1), ReplicaId(2), ms(150), ms(310));
    core.view().horizon
}

#[test]
fn confirms_of_an_earlier_leadership_release_nothing() {
    assert_eq!(horizon_after_re_election(Weaken::default()), None);
    let weak = Weaken { any_vote_confirms: true, ..Weaken::default() };
    assert_ne!(horizon_after_re_election(weak), None);
}

#[test]
fn shut_until_an_entry_of_the_own_term_is_applied() {
    let mut core = Core::new(ME, LEASE, Weaken::default());
    core.membership_appended(vec![config(&[1, 2, 3])]);
    core.vote_saved(vote(5, 1), ms(0));
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    core.applied(EntryId { term: 4, leader: ME, index: 8 });
    assert_eq!(core.view().open_until_us, 0);
    core.applied(EntryId { term: 5, leader: ME, index: 9 });
    assert_eq!(core.view().open_until_us, 550_000);
}

#[test]
fn a_latched_gate_stays_shut_and_ignores_confirms() {
    let mut core = leader(Weaken::default());
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    assert!(core.latch());
    core.confirmed(vote(5, 1), ReplicaId(2), ms(200), ms(201));
    assert_eq!((core.view().open_until_us, core.view().horizon), (0, Some(ms(100))));
}

#[test]
fn a_leadership_vouches_from_its_first_applied_entry_on_and_not_beyond_its_latch() {
    let gate = Gate::new(Core::new(ME, LEASE, Weaken::default()));
    gate.change(|core| {
        core.membership_appended(vec![config(&[1, 2, 3])]);
        core.vote_saved(vote(5, 1), ms(0));
        core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    });
    assert_eq!((gate.view().horizon, gate.vouched()), (Some(ms(100)), None));
    gate.change(|core| core.applied(EntryId { term: 5, leader: ME, index: 9 }));
    assert_eq!(gate.vouched(), Some(ms(100)));
    gate.change(|core| core.confirmed(vote(5, 1), ReplicaId(3), ms(150), ms(151)));
    assert_eq!(gate.vouched(), Some(ms(150)));
    assert!(gate.change(Core::latch));
    gate.change(|core| core.confirmed(vote(5, 1), ReplicaId(2), ms(200), ms(201)));
    assert_eq!(gate.vouched(), Some(ms(150)));
    gate.change(|core| core.vote_saved(Vote { committed: false, ..vote(6, 3) }, ms(300)));
    assert_eq!(gate.vouched(), None);
}

#[test]
fn a_removed_leader_does_not_count_itself_and_one_voter_needs_nobody() {
    let mut core = leader(Weaken::default());
    core.membership_appended(vec![config(&[2, 3, 4])]);
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    assert_eq!(core.view().horizon, None);
    core.confirmed(vote(5, 1), ReplicaId(4), ms(90), ms(101));
    assert_eq!(core.view().horizon, Some(ms(90)));
    core.membership_appended(vec![config(&[1])]);
    assert_eq!(core.view().open_until_us, u64::MAX);
}

#[test]
fn a_leader_without_answers_falls_silent_and_tries_again() {
    let mut core = leader(Weaken::default());
    assert!(core.may_send(ms(600)));
    assert!(!core.may_send(ms(700)) && !core.may_send(ms(1799)));
    assert!(core.may_send(ms(1800)) && core.may_send(ms(2399)));
    assert!(!core.may_send(ms(2400)));
    core.replied(vote(5, 1), ReplicaId(3), ms(2300));
    assert!(core.may_send(ms(2400)), "one of two followers is a quorum with the leader");
}

#[test]
fn whoever_keeps_a_config_from_a_majority_is_named() {
    let mut core = leader(Weaken::default());
    core.confirmed(vote(5, 1), ReplicaId(2), ms(100), ms(101));
    core.confirmed(vote(5, 1), ReplicaId(4), ms(90), ms(101));
    let silent = |core: &Core, configs: &[&[u64]], since| {
        let configs: Vec<BTreeSet<ReplicaId>> = configs.iter().map(|ids| config(ids)).collect();
        core.silent(vote(5, 1), &configs, since)
    };
    assert_eq!(silent(&core, &[&[1, 2, 3]], ms(100)), Some(config(&[])));
    assert_eq!(silent(&core, &[&[1, 2, 3], &[1, 3, 4]], ms(90)), Some(config(&[])));
    // A frame that left before the question says nothing; one majority does not make up for another.
    assert_eq!(silent(&core, &[&[1, 2, 3], &[1, 3, 4]], ms(91)), Some(config(&[3, 4])));
    assert_eq!(silent(&core, &[&[1, 3]], ms(90)), Some(config(&[3])), "half is no majority");
    assert_eq!(silent(&core, &[&[2, 3, 4]], ms(90)), Some(config(&[])), "without the leader's own");
    assert_eq!(core.silent(vote(4, 1), &[config(&[1])], ms(0)), None);
    assert!(core.latch());
    assert_eq!(silent(&core, &[&[1, 2, 3]], ms(100)), None);
}
