//! Which membership entry the hard state names (L6), and what it falls back to.

use super::disk::TestDisk;
use super::model::{entry, id, ignored, mixed, open, open_with, options, stream, vote};
use crate::format::file_name;
use crate::weaken::Weakened;
use crate::{Entry, EntryId, GroupLog, Options, Wal, Writer};

/// A log with one replica. Its first segment has room for a small batch and one of [`fill`].
fn begin() -> (TestDisk, Wal, Writer, GroupLog) {
    let disk = TestDisk::default();
    let (wal, mut writer) = open(&disk);
    wal.create(stream(1), ignored());
    writer.step().unwrap();
    let log = wal.log(stream(1)).unwrap();
    (disk, wal, writer, log)
}

/// Every third of them is a membership entry.
fn append(log: &GroupLog, writer: &mut Writer, indexes: std::ops::Range<u64>) {
    log.append(indexes.map(|index| mixed(id(1, 7, index), 10)).collect(), ignored());
    writer.step().unwrap();
}

/// A batch of three blocks, of the six that a segment has, with an entry that is no membership.
fn fill(log: &GroupLog, writer: &mut Writer, index: u64) {
    log.append(vec![entry(id(1, 7, index), 9_000)], ignored());
    writer.step().unwrap();
}

/// The entry with this index of the one leader.
fn at(index: u64) -> Option<EntryId> {
    Some(id(1, 7, index))
}

/// What is named, and what would be without the held entries; another process finds the same.
fn named(disk: &TestDisk, log: &GroupLog) -> (Option<EntryId>, Option<EntryId>) {
    let (wal, _writer) = open(&disk.after_power_cut(|| false));
    let found = wal.log(stream(1)).unwrap();
    assert_eq!(found.state(), log.state());
    assert_eq!(found.memberships(), log.memberships());
    assert_eq!(found.membership_below(), log.membership_below());
    (log.state().membership, log.membership_below())
}

#[test]
fn the_newest_membership_is_named_and_a_truncation_falls_back() {
    let (disk, _wal, mut writer, log) = begin();
    append(&log, &mut writer, 1..3);
    assert_eq!(named(&disk, &log), (None, None));
    append(&log, &mut writer, 3..9);
    assert_eq!(named(&disk, &log), (at(6), None));
    assert_eq!(log.memberships(), [id(1, 7, 3), id(1, 7, 6)]);
    for (after, left) in [(at(7), at(6)), (at(5), at(3)), (at(1), None)] {
        log.truncate_after(after);
        // A truncation rides with the next batch.
        log.save_vote(vote(2), ignored());
        writer.step().unwrap();
        assert_eq!(named(&disk, &log), (left, None), "{after:?}");
    }
    assert!(log.memberships().is_empty());
}

#[test]
fn entries_keep_their_flag_in_memory_and_on_disk() {
    let disk = TestDisk::default();
    let no_tail = Options { tail_bytes: 0, ..options() };
    let (wal, mut writer) = open_with(&disk, &no_tail, Weakened::default()).unwrap();
    wal.create(stream(1), ignored());
    let log = wal.log(stream(1)).unwrap();
    let entries: Vec<Entry> = (0..8).map(|index| mixed(id(1, 7, index), 10)).collect();
    log.append(entries.clone(), ignored());
    assert_eq!(log.tail().0, 8);
    assert_eq!(log.entries(0..8, usize::MAX), Ok(entries.clone()));
    writer.step().unwrap();
    assert_eq!(log.tail().0, 0);
    assert_eq!(log.entries(0..8, usize::MAX), Ok(entries));
}

#[test]
fn the_name_outlives_the_segment_that_held_the_entry() {
    let (disk, _wal, mut writer, log) = begin();
    append(&log, &mut writer, 0..4);
    for index in 4..9 {
        fill(&log, &mut writer, index);
    }
    log.purge(id(1, 7, 6));
    writer.step().unwrap();
    assert!(!disk.files().contains(&file_name(1)), "{:?}", disk.files());
    assert_eq!(named(&disk, &log), (at(3), at(3)));
    assert!(log.memberships().is_empty());

    append(&log, &mut writer, 9..10);
    assert_eq!(named(&disk, &log), (at(9), at(3)));
    log.truncate_after(at(8));
    fill(&log, &mut writer, 9);
    assert_eq!(named(&disk, &log), (at(3), at(3)));
}

#[test]
fn a_truncation_falls_back_to_an_entry_of_a_segment_that_is_gone() {
    let (disk, _wal, mut writer, log) = begin();
    append(&log, &mut writer, 0..4);
    for index in 4..8 {
        fill(&log, &mut writer, index);
    }
    // The second and the third segment begin with hard state that names entry 3.
    assert_eq!(disk.files(), [file_name(1), file_name(2), file_name(3)]);
    log.truncate_after(at(2));
    log.purge(id(1, 7, 2));
    writer.step().unwrap();
    assert_eq!(disk.files(), [file_name(2), file_name(3)]);
    assert_eq!(named(&disk, &log), (at(0), at(0)));
}

/// What stays named of 0, 3 and 6 when the log gives up its entries for one that it does not hold.
fn given_up(committed: Option<u64>, give_up: impl FnOnce(&GroupLog)) -> Option<EntryId> {
    let (disk, _wal, mut writer, log) = begin();
    append(&log, &mut writer, 0..8);
    if let Some(index) = committed {
        log.save_committed(id(1, 7, index));
    }
    give_up(&log);
    writer.step().unwrap();
    let (newest, below) = named(&disk, &log);
    assert_eq!((newest, log.memberships()), (below, Vec::new()));
    newest
}

#[test]
fn what_may_have_been_overruled_is_named_no_more() {
    let other = |index| id(2, 8, index);
    for (committed, left) in [(None, None), (Some(2), at(0)), (Some(5), at(3)), (Some(7), at(6))] {
        assert_eq!(given_up(committed, |log| log.purge(other(20))), left, "{committed:?}");
        let reset = |log: &GroupLog| log.reset(other(20), ignored());
        assert_eq!(given_up(committed, reset), left, "{committed:?}");
    }
    // In the middle of what is held.
    let reset = |log: &GroupLog| log.reset(other(4), ignored());
    assert_eq!(given_up(Some(7), reset), at(3));
    // An entry of the log vouches for all before it.
    let (disk, _wal, mut writer, log) = begin();
    append(&log, &mut writer, 0..8);
    log.purge(id(1, 7, 7));
    writer.step().unwrap();
    assert_eq!(named(&disk, &log), (at(6), at(6)));
}
