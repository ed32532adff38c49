//! The handles, one behaviour each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use parking_lot::Mutex;

use super::disk::TestDisk;
use super::model::{counted, entry, id, ignored, observe, open, open_with, options, stream, vote};
use crate::weaken::Weakened;
use crate::{Completion, Entry, GroupLog, LogState, Options, Wal, WalError, Writer};

fn begin() -> (TestDisk, Wal, Writer, GroupLog) {
    let disk = TestDisk::default();
    let (wal, mut writer) = open(&disk);
    wal.create(stream(1), ignored());
    writer.step().unwrap();
    let log = wal.log(stream(1)).unwrap();
    (disk, wal, writer, log)
}

fn entries(term: u64, leader: u64, indexes: std::ops::Range<u64>, len: usize) -> Vec<Entry> {
    indexes.map(|index| entry(id(term, leader, index), len)).collect()
}

type Outcome = Result<(), WalError>;
type Outcomes = Arc<Mutex<Vec<(&'static str, Outcome)>>>;

/// A completion that writes down its name and its outcome.
fn told(outcomes: &Outcomes, name: &'static str) -> Completion {
    let outcomes = Arc::clone(outcomes);
    Box::new(move |outcome| outcomes.lock().push((name, outcome)))
}

fn all(names: &[&'static str], outcome: &Outcome) -> Vec<(&'static str, Outcome)> {
    names.iter().map(|name| (*name, outcome.clone())).collect()
}

#[test]
fn handles_and_writer_go_to_other_threads() {
    fn check<T: Send>() {}
    check::<Wal>();
    check::<GroupLog>();
    check::<Writer>();
}

#[test]
fn entries_are_readable_at_once_and_acknowledged_when_durable() {
    let (disk, _wal, mut writer, log) = begin();
    let done = Arc::new(AtomicUsize::new(0));
    log.append(entries(1, 7, 0..3, 10), counted(&done));
    assert_eq!(log.entries(0..3, usize::MAX), Ok(entries(1, 7, 0..3, 10)));
    assert_eq!(log.state().last, Some(id(1, 7, 2)));
    assert_eq!(done.load(Ordering::SeqCst), 0);
    let (found, _writer) = open(&disk.after_kill());
    assert_eq!(found.log(stream(1)).unwrap().state(), LogState::default());
    assert_eq!(writer.step(), Ok(3));
    assert_eq!(done.load(Ordering::SeqCst), 1);
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(found.log(stream(1)).unwrap().state().last, Some(id(1, 7, 2)));
}

#[test]
fn the_size_of_a_log_is_that_of_the_entries_held() {
    let (_disk, _wal, mut writer, log) = begin();
    assert!(!log.is_larger_than(0));
    log.append(entries(1, 7, 0..4, 1000), ignored());
    assert!(log.is_larger_than(3999) && !log.is_larger_than(4000));
    writer.step().unwrap();
    assert!(log.is_larger_than(4000) && !log.is_larger_than(5000), "records take a little more");
    log.purge(id(1, 7, 1));
    log.truncate_after(Some(id(1, 7, 2)));
    assert!(log.is_larger_than(1000) && !log.is_larger_than(1500));
}

#[test]
fn one_write_and_one_sync_serve_everybody_in_order() {
    let (_disk, wal, mut writer, log) = begin();
    wal.create(stream(2), ignored());
    let other = wal.log(stream(2)).unwrap();
    let before = wal.stats();
    let outcomes = Outcomes::default();
    log.append(entries(1, 7, 0..2, 10), told(&outcomes, "append"));
    other.save_vote(vote(3), told(&outcomes, "vote"));
    log.append(Vec::new(), told(&outcomes, "nothing"));
    log.append(entries(2, 7, 2..3, 10), told(&outcomes, "later term"));
    assert_eq!(writer.step(), Ok(5));
    let names = ["append", "vote", "nothing", "later term"];
    assert_eq!(*outcomes.lock(), all(&names, &Ok(())));
    let after = wal.stats();
    assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
    assert_eq!((after.records - before.records, after.segments), (5, 1));
    assert_eq!(after.bytes_on_disk, 32 << 10);
    assert_eq!(writer.step(), Ok(0));
}

#[test]
fn a_failed_sync_is_the_end() {
    let (disk, wal, mut writer, log) = begin();
    let outcomes = Outcomes::default();
    log.append(entries(1, 7, 0..1, 10), told(&outcomes, "first"));
    let late = log.clone();
    let in_completion = told(&outcomes, "from a completion");
    log.append(
        entries(1, 7, 1..2, 10),
        Box::new(move |_| late.append(entries(1, 7, 2..3, 10), in_completion)),
    );
    disk.fail_next_sync();
    let error = writer.step().unwrap_err();
    assert!(matches!(error, WalError::Failed { action: "sync a segment", .. }), "{error:?}");
    // The disk would work again; the log does not.
    log.save_vote(vote(1), told(&outcomes, "later"));
    wal.create(stream(2), told(&outcomes, "birth"));
    assert_eq!(writer.step(), Err(error.clone()));
    let names = ["first", "from a completion", "later", "birth"];
    assert_eq!(*outcomes.lock(), all(&names, &Err(error)));

    // What is read from the page cache by the next process is written again before it counts.
    let killed = disk.after_kill();
    let (found, _writer) = open(&killed);
    assert_eq!(found.log(stream(1)).unwrap().state().last, Some(id(1, 7, 1)));
    let (found, _writer) = open(&killed.after_power_cut(|| false));
    assert_eq!(found.log(stream(1)).unwrap().state().last, Some(id(1, 7, 1)));
}

#[test]
fn commit_hints_and_truncations_ride_along() {
    let (disk, _wal, mut writer, log) = begin();
    log.append(entries(1, 7, 0..3, 10), ignored());
    writer.step().unwrap();
    log.save_committed(id(1, 7, 1));
    log.truncate_after(Some(id(1, 7, 1)));
    assert_eq!(writer.step(), Ok(0));
    log.save_vote(vote(3), ignored());
    assert_eq!(writer.step(), Ok(3));
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    let state = LogState {
        vote: Some(vote(3)),
        committed: Some(id(1, 7, 1)),
        purged: None,
        last: Some(id(1, 7, 1)),
        membership: None,
    };
    assert_eq!((found.log(stream(1)).unwrap().state(), log.state()), (state.clone(), state));
}

#[test]
fn another_leader_of_the_same_term_replaces_entries() {
    let (disk, _wal, mut writer, log) = begin();
    log.append(entries(7, 11, 0..5, 600), ignored());
    writer.step().unwrap();
    log.truncate_after(Some(id(7, 11, 1)));
    assert_eq!((log.id_at(1), log.id_at(2)), (Some(id(7, 11, 1)), None));
    log.append(entries(7, 12, 2..4, 300), ignored());
    assert_eq!(log.id_at(2), Some(id(7, 12, 2)));
    writer.step().unwrap();
    let expected: Vec<Entry> =
        entries(7, 11, 0..2, 600).into_iter().chain(entries(7, 12, 2..4, 300)).collect();
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    let found = found.log(stream(1)).unwrap();
    for log in [&log, &found] {
        assert_eq!(log.entries(0..9, usize::MAX), Ok(expected.clone()));
        assert_eq!(log.id_at(4), None);
    }
}

#[test]
fn a_purge_may_go_beyond_the_end_and_a_reset_begins_anew() {
    let (disk, _wal, mut writer, log) = begin();
    log.append(entries(1, 7, 0..5, 10), ignored());
    log.purge(id(1, 7, 2));
    assert_eq!((log.id_at(1), log.id_at(2)), (None, Some(id(1, 7, 2))));
    assert_eq!(log.entries(0..9, usize::MAX), Ok(Vec::new()));
    assert_eq!(log.entries(3..9, usize::MAX), Ok(entries(1, 7, 3..5, 10)));
    log.purge(id(3, 8, 9));
    assert_eq!(log.state().last, Some(id(3, 8, 9)));
    log.append(entries(3, 8, 10..12, 10), ignored());
    log.save_committed(id(3, 8, 11));
    log.reset(id(3, 9, 10), ignored());
    log.append(entries(4, 9, 11..12, 10), ignored());
    writer.step().unwrap();
    let state = LogState {
        vote: None,
        committed: Some(id(3, 9, 10)),
        purged: Some(id(3, 9, 10)),
        last: Some(id(4, 9, 11)),
        membership: None,
    };
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    let found = found.log(stream(1)).unwrap();
    for log in [&log, &found] {
        assert_eq!(log.state(), state);
        assert_eq!(log.id_at(10), Some(id(3, 9, 10)));
        assert_eq!(log.entries(11..12, 0), Ok(entries(4, 9, 11..12, 10)));
    }
}

#[test]
fn what_does_not_follow_is_refused() {
    let (_disk, _wal, mut writer, log) = begin();
    log.append(entries(1, 7, 0..2, 10), ignored());
    let outcomes = Outcomes::default();
    let mut holed = entries(1, 7, 2..3, 10);
    holed.extend(entries(1, 7, 4..5, 10));
    log.append(holed, told(&outcomes, "holed"));
    log.append(entries(1, 7, 1..2, 10), told(&outcomes, "again"));
    let outcomes = std::mem::take(&mut *outcomes.lock());
    assert_eq!(outcomes.len(), 2);
    for (name, outcome) in outcomes {
        assert!(matches!(outcome, Err(WalError::Refused { .. })), "{name}: {outcome:?}");
    }
    assert_eq!(log.state().last, Some(id(1, 7, 1)));
    assert_eq!(writer.step(), Ok(2));
}

#[test]
fn births_and_deaths() {
    let (disk, wal, mut writer, log) = begin();
    assert!(matches!(wal.log(stream(2)), Err(WalError::Unknown)));
    let outcomes = Outcomes::default();
    log.append(entries(1, 7, 0..1, 10), ignored());
    wal.create(stream(1), told(&outcomes, "again"));
    wal.destroy(stream(3), told(&outcomes, "never born"));
    assert_eq!(writer.step(), Ok(2));
    assert_eq!(log.state().last, Some(id(1, 7, 0)));
    wal.destroy(stream(1), told(&outcomes, "death"));
    wal.destroy(stream(1), told(&outcomes, "death again"));
    assert_eq!(writer.step(), Ok(1));
    let names = ["again", "never born", "death", "death again"];
    assert_eq!(*outcomes.lock(), all(&names, &Ok(())));

    let (found, _writer) = open(&disk.after_power_cut(|| false));
    for wal in [&wal, &found] {
        assert_eq!((wal.streams(), wal.tombstones()), (vec![], vec![stream(1), stream(3)]));
        assert!(matches!(wal.log(stream(1)), Err(WalError::Destroyed)));
        let outcomes = Outcomes::default();
        wal.create(stream(3), told(&outcomes, "reborn"));
        assert_eq!(*outcomes.lock(), all(&["reborn"], &Err(WalError::Destroyed)));
    }
    assert_eq!(log.entries(0..1, 1), Err(WalError::Destroyed));
    let outcomes = Outcomes::default();
    log.save_vote(vote(1), told(&outcomes, "vote"));
    assert_eq!(*outcomes.lock(), all(&["vote"], &Err(WalError::Destroyed)));
}

#[test]
fn reads_end_at_their_limits_from_memory_and_from_disk() {
    let disk = TestDisk::default();
    let small = Options { tail_bytes: 2500, ..options() };
    let (wal, mut writer) = open_with(&disk, &small, Weakened::default()).unwrap();
    wal.create(stream(1), ignored());
    let log = wal.log(stream(1)).unwrap();
    log.append(entries(1, 7, 0..20, 1000), ignored());
    assert_eq!(log.tail(), (20, 20_000, 0));
    writer.step().unwrap();
    // Durable ones are dropped, the oldest first.
    assert_eq!(log.tail(), (2, 2000, 2));
    for from in [0, 5, 17, 18, 19] {
        let all = log.entries(from..u64::MAX, usize::MAX).unwrap();
        assert_eq!(all, entries(1, 7, from..20, 1000));
        assert_eq!(
            log.entries(from..from + 1, usize::MAX),
            Ok(entries(1, 7, from..from + 1, 1000))
        );
        assert_eq!(log.entries(from..20, 0), Ok(entries(1, 7, from..from + 1, 1000)));
    }
    assert_eq!(log.entries(18..20, 1999), Ok(entries(1, 7, 18..19, 1000)));
    assert_eq!(log.entries(18..20, 2000), Ok(entries(1, 7, 18..20, 1000)));
    assert_eq!(log.entries(20..30, usize::MAX), Ok(Vec::new()));
    assert_eq!(log.entries(3..3, usize::MAX), Ok(Vec::new()));

    log.truncate_after(Some(id(1, 7, 18)));
    log.purge(id(1, 7, 18));
    let (payloads, bytes, _) = log.tail();
    assert_eq!((payloads, bytes), (0, 0));
}

#[test]
fn names_of_dropped_payloads_do_not_pile_up() {
    let (_disk, _wal, mut writer, log) = begin();
    log.append(entries(1, 7, 0..3000, 0), ignored());
    writer.step().unwrap();
    assert_eq!(log.tail(), (3000, 0, 3000));
    log.purge(id(1, 7, 2999));
    log.append(entries(1, 7, 3000..3001, 0), ignored());
    writer.step().unwrap();
    assert_eq!(log.tail(), (1, 0, 1));
}

#[test]
fn the_hook_is_called_when_work_begins() {
    let (_disk, wal, mut writer, log) = begin();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    wal.on_work(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    let so_far = || calls.load(Ordering::SeqCst);
    log.save_committed(id(0, 0, 0));
    assert_eq!(so_far(), 0);
    log.save_vote(vote(1), ignored());
    log.save_vote(vote(2), ignored());
    assert_eq!(so_far(), 1);
    writer.step().unwrap();
    log.save_vote(vote(3), ignored());
    assert_eq!(so_far(), 2);
    wal.on_work(Box::new(|| {}));
    wal.close();
    assert_eq!(so_far(), 2);
}

#[test]
fn a_closed_log_finishes_what_it_took() {
    let (disk, wal, writer, log) = begin();
    let done = Arc::new(AtomicUsize::new(0));
    log.append(entries(1, 7, 0..1, 10), counted(&done));
    log.save_committed(id(1, 7, 0));
    wal.close();
    let outcomes = Outcomes::default();
    log.save_vote(vote(1), told(&outcomes, "late"));
    assert_eq!(*outcomes.lock(), all(&["late"], &Err(WalError::Closed)));
    writer.run();
    assert_eq!(done.load(Ordering::SeqCst), 1);
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(found.log(stream(1)).unwrap().state().committed, Some(id(1, 7, 0)));
}

#[test]
fn without_a_writer_nothing_waits() {
    let (_disk, _wal, writer, log) = begin();
    let outcomes = Outcomes::default();
    log.append(entries(1, 7, 0..1, 10), told(&outcomes, "waiting"));
    drop(writer);
    log.append(entries(1, 7, 1..2, 10), told(&outcomes, "late"));
    assert_eq!(*outcomes.lock(), all(&["waiting", "late"], &Err(WalError::Closed)));
}

#[test]
fn threads_share_the_writer() {
    let disk = TestDisk::default();
    let (wal, writer) = open(&disk);
    let running = std::thread::spawn(move || writer.run());
    let groups: Vec<_> = (1..=4)
        .map(|number| {
            let wal = wal.clone();
            std::thread::spawn(move || {
                wal.create(stream(number), ignored());
                let log = wal.log(stream(number)).unwrap();
                for index in 0..50 {
                    let (sender, receiver) = mpsc::channel();
                    let done = move |outcome: Outcome| sender.send(outcome).unwrap();
                    log.append(entries(1, number, index..index + 1, 500), Box::new(done));
                    assert_eq!(receiver.recv().unwrap(), Ok(()));
                }
            })
        })
        .collect();
    for group in groups {
        group.join().unwrap();
    }
    wal.close();
    running.join().unwrap();
    assert!(wal.stats().records >= 204);
    let before = observe(&wal).unwrap();
    assert!(before.logs.values().all(|log| log.entries.len() == 50));
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(observe(&found), Ok(before));
}
