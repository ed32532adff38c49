//! Which memberships a replica starts with (L6).

use std::path::Path;
use std::time::Duration;

use annulus_runtime::{Clock, Random, SimDisk};
use annulus_types::{GroupId, NodeId};
use annulus_wal::{StreamId, Wal, Writer};
use bytes::Bytes;

use super::*;
use crate::gate::{Core, Gate, Lease, Weaken};
use crate::types::Seat;

/// The log of a new replica, and what keeps it in use.
fn born() -> (GroupLog, Wal, Writer) {
    let random = Random::seeded(91);
    let disk = Arc::new(SimDisk::new(random.clone()));
    let options = annulus_wal::Options { segment_bytes: 64 << 10, ..Default::default() };
    let (wal, writer) = Wal::open(disk, Path::new("/log"), options, move || random.u64())
        .expect("a log opens on an empty disk");
    let stream = StreamId { group: GroupId(1), replica: ReplicaId(1) };
    wal.create(stream, Box::new(drop));
    let log = wal.log(stream).expect("a replica that was born");
    (log, wal, writer)
}

fn id(index: u64) -> EntryId {
    EntryId { term: 1, leader: ReplicaId(1), index }
}

/// An entry of a later leader, far beyond what any log here holds.
fn overruling() -> EntryId {
    EntryId { term: 2, leader: ReplicaId(2), index: 9 }
}

fn members(voters: [u64; 3]) -> Membership {
    let seats: BTreeMap<u64, Seat> =
        voters.into_iter().map(|voter| (voter, Seat { node: NodeId(1) })).collect();
    Membership::new(vec![BTreeSet::from(voters)], seats).expect("every voter has a seat")
}

fn change(index: u64, voters: [u64; 3]) -> annulus_wal::Entry {
    entry_to_log(&Entry {
        log_id: log_id(id(index)),
        payload: Payload::Membership(members(voters)),
    })
}

/// An entry that cannot be decoded: whoever reads it fails.
fn unread(index: u64) -> annulus_wal::Entry {
    let payload = Bytes::from_static(&[u8::MAX]);
    annulus_wal::Entry { id: id(index), membership: false, payload }
}

/// Five entries; 0 and 3 change the members.
fn append(log: &GroupLog) {
    let entries = vec![change(0, [1, 2, 3]), unread(1), unread(2), change(3, [1, 2, 4]), unread(4)];
    log.append(entries, Box::new(drop));
    assert_eq!(log.state().last, Some(id(4)));
}

/// Opens the store; the engine has applied the membership of entry `base`, with voters of its own.
fn open(log: &GroupLog, base: Option<u64>) -> io::Result<LogStore> {
    let lease = Duration::from_millis(600);
    let core = Core::new(ReplicaId(1), Lease { lease, silence: lease * 2 }, Weaken::default());
    let (group, gate) = (GroupId(1), Gate::new(core));
    let replica = ReplicaState::new(group, ReplicaId(1), Clock::real(), gate, lease, false);
    let base = base.map(|index| (index, members([7, 8, 9])));
    LogStore::open(log.clone(), Arc::new(replica), base)
}

/// The indexes of the memberships that the store knows, and the members that the newest makes.
fn known(store: &LogStore) -> (Vec<u64>, Vec<u64>) {
    let indexes = store.memberships.lock().keys().copied().collect();
    (indexes, store.replica.seats().into_keys().map(|member| member.0).collect())
}

#[track_caller]
fn is_refused(log: &GroupLog, base: Option<u64>, why: &str) {
    match open(log, base) {
        Ok(store) => panic!("started with {:?}", known(&store)),
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
    }
}

#[test]
fn a_start_reads_the_memberships_above_the_applied_one_and_nothing_else() {
    let (log, _wal, _writer) = born();
    assert_eq!(known(&open(&log, None).expect("an empty log")), (vec![], vec![]));
    append(&log);
    let expected = [
        (None, (vec![0, 3], vec![1, 2, 4])),
        (Some(0), (vec![0, 3], vec![1, 2, 4])),
        (Some(3), (vec![3], vec![7, 8, 9])),
        (Some(9), (vec![9], vec![7, 8, 9])),
    ];
    for (base, expected) in expected {
        let store = open(&log, base).expect("a sound log");
        assert_eq!(known(&store), expected, "{base:?}");
    }
}

#[tokio::test]
async fn a_truncation_after_a_start_falls_back_to_the_membership_before() {
    for base in [None, Some(0)] {
        let (log, _wal, _writer) = born();
        append(&log);
        let mut store = open(&log, base).expect("a sound log");
        store.truncate_after(Some(log_id(id(2)))).await.expect("the log is open");
        let before = if base.is_some() { vec![7, 8, 9] } else { vec![1, 2, 3] };
        let expected = (vec![0], before);
        assert_eq!(known(&store), expected);
        assert_eq!(known(&open(&log, base).expect("a sound log")), expected);
    }
}

#[test]
fn a_membership_that_neither_log_nor_engine_has_is_not_passed_over() {
    let (log, _wal, _writer) = born();
    append(&log);
    log.purge(id(4));
    assert_eq!(log.state().membership, Some(id(3)));
    is_refused(&log, None, "neither");
    is_refused(&log, Some(0), "neither");
    for base in [3, 4] {
        let store = open(&log, Some(base)).expect("the engine has it");
        assert_eq!(known(&store), (vec![base], vec![7, 8, 9]));
    }
}

#[test]
fn a_membership_that_may_have_been_overruled_keeps_nobody_from_starting() {
    // A snapshot was installed, or the engine was ahead of the log (L7).
    let ways: [fn(&GroupLog); 2] = [
        |log: &GroupLog| log.purge(overruling()),
        |log: &GroupLog| log.reset(overruling(), Box::new(drop)),
    ];
    for give_up in ways {
        let (log, _wal, _writer) = born();
        append(&log);
        log.save_committed(id(2));
        give_up(&log);
        assert_eq!(log.state().membership, Some(id(0)));
        let store = open(&log, Some(0)).expect("entry 3 was never known to be committed");
        assert_eq!(known(&store), (vec![0], vec![7, 8, 9]));

        // Had it been, no engine at entry 9 could be without it.
        let (log, _wal, _writer) = born();
        append(&log);
        log.save_committed(id(4));
        give_up(&log);
        is_refused(&log, Some(0), "neither");
    }
}

#[test]
fn an_entry_that_is_wrongly_said_to_be_a_membership_is_refused() {
    let (log, _wal, _writer) = born();
    let payload = crate::codec::encode_payload(&Payload::Blank);
    let entry = annulus_wal::Entry { id: id(0), membership: true, payload };
    log.append(vec![entry], Box::new(drop));
    is_refused(&log, None, "holds no membership");
}
