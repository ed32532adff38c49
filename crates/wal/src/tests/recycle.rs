//! Segments: their end, their second life, and batches that do not fit.

use std::path::Path;

use annulus_runtime::Disk;

use super::disk::TestDisk;
use super::model::{
    DIR, Op, entry, id, ignored, observe, open, open_with, options, play, story, stream, vote,
};
use crate::format::{BLOCK, HEADER_BYTES, Header, file_name};
use crate::weaken::Weakened;
use crate::{Wal, WalError, Writer};

fn begin() -> (TestDisk, Wal, Writer) {
    let disk = TestDisk::default();
    let (wal, writer) = open(&disk);
    wal.create(stream(1), ignored());
    (disk, wal, writer)
}

fn append(wal: &Wal, writer: &mut Writer, index: u64, len: usize) {
    let log = wal.log(stream(1)).unwrap();
    log.append(vec![entry(id(1, 7, index), len)], ignored());
    writer.step().unwrap();
}

fn purge(wal: &Wal, writer: &mut Writer, index: u64) {
    wal.log(stream(1)).unwrap().purge(id(1, 7, index));
    writer.step().unwrap();
}

#[test]
fn a_torn_batch_before_a_former_life_is_cut() {
    // The last batch but one goes to the recycled segment, over whole batches of its former life.
    let script = story();
    let writes: Vec<usize> =
        (0..script.len()).filter(|nth| matches!(script[*nth], Op::Write)).collect();
    let script = &script[..=writes[writes.len() - 2]];
    let whole = TestDisk::default();
    assert_eq!(play(&whole, script, Weakened::default()).recycled, 1);

    let cut = TestDisk::default();
    cut.cut_at(whole.operations() - 1);
    let run = play(&cut, script, Weakened::default());
    let newest = cut.files().pop().unwrap();
    let header = Header::decode(&cut.bytes(&newest)[..BLOCK as usize]).unwrap();
    assert!(header.former.is_some());
    for lost in 1_u32..1 << 10 {
        // Of the batch's sectors, more than ten, those that are lost; never none.
        let mut nth = 0;
        let left = cut.after_power_cut(|| {
            nth += 1;
            (lost >> (nth % 10)) & 1 == 0
        });
        assert!(nth > 10, "{nth}");
        let (wal, _writer) = open(&left);
        assert_eq!(observe(&wal).as_ref(), Ok(&run.models[run.acknowledged]), "{lost:b}");
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_its_own() {
    let (disk, wal, mut writer) = begin();
    append(&wal, &mut writer, 0, 100);
    append(&wal, &mut writer, 1, 200_000);
    append(&wal, &mut writer, 2, 100);
    let lengths: Vec<usize> = disk.files().iter().map(|name| disk.bytes(name).len()).collect();
    // 200,000 bytes of content and a little more fill 50 blocks, after two of the header.
    assert_eq!(lengths, [32 << 10, 52 * 4096, 32 << 10]);
    let before = observe(&wal);
    let (wal, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(observe(&wal), before);
}

#[test]
fn a_segment_of_odd_length_is_not_recycled() {
    let (disk, wal, mut writer) = begin();
    append(&wal, &mut writer, 0, 40_000);
    // The first segment holds nothing but the birth, which the second repeats.
    append(&wal, &mut writer, 1, 100);
    assert_eq!(wal.stats().recycled, 1);
    purge(&wal, &mut writer, 1);
    assert_eq!(disk.files(), [file_name(2), file_name(3)]);
    append(&wal, &mut writer, 2, 15_000);
    append(&wal, &mut writer, 3, 9_000);
    assert_eq!(disk.files(), [file_name(2), file_name(3), file_name(4)]);
    assert_eq!(wal.stats().recycled, 1);
    purge(&wal, &mut writer, 3);
    assert_eq!(disk.files(), [file_name(3), file_name(4)]);
    append(&wal, &mut writer, 4, 22_000);
    assert_eq!(disk.files(), [file_name(4), file_name(5)]);
    assert_eq!(wal.stats().recycled, 2);
    let before = observe(&wal);
    let (wal, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(observe(&wal), before);
}

#[test]
fn what_a_reset_dropped_stays_until_a_purge_confirms_it() {
    let (disk, wal, mut writer) = begin();
    append(&wal, &mut writer, 0, 9_000);
    wal.log(stream(1)).unwrap().reset(id(1, 7, 50), ignored());
    writer.step().unwrap();
    for index in 51..=53 {
        append(&wal, &mut writer, index, 9_000);
    }
    assert_eq!((disk.files().len(), wal.stats().recycled), (3, 0));

    // A recovery does not forget it.
    let (wal, mut writer) = open(&disk);
    append(&wal, &mut writer, 54, 9_000);
    append(&wal, &mut writer, 55, 9_000);
    append(&wal, &mut writer, 56, 9_000);
    assert!(disk.files().contains(&file_name(1)));
    let log = wal.log(stream(1)).unwrap();
    assert_eq!(log.id_at(50), Some(id(1, 7, 50)));
    assert_eq!(log.entries(0..100, 1), Ok(Vec::new()));

    purge(&wal, &mut writer, 50);
    for index in 57..=59 {
        append(&wal, &mut writer, index, 9_000);
    }
    assert!(!disk.files().contains(&file_name(1)));
    assert!(wal.stats().recycled > 0);
}

#[test]
fn nothing_is_reclaimed_for_a_purge_that_is_only_queued() {
    let (disk, wal, mut writer) = begin();
    for index in 0..6 {
        append(&wal, &mut writer, index, 9_000);
    }
    let files = disk.files();
    assert_eq!(files.len(), 4);
    let log = wal.log(stream(1)).unwrap();
    disk.during_next_sync(move || log.purge(id(1, 7, 6)));
    append(&wal, &mut writer, 6, 10);
    assert_eq!(disk.files(), files);
    writer.step().unwrap();
    assert_eq!(disk.files(), files[2..]);
}

#[test]
fn the_end_of_a_damaged_life_is_not_reclaimed() {
    let (disk, wal, mut writer) = begin();
    wal.create(stream(2), ignored());
    wal.log(stream(2)).unwrap().append(vec![entry(id(1, 7, 0), 5_000)], ignored());
    append(&wal, &mut writer, 0, 9_000);
    append(&wal, &mut writer, 1, 9_000);
    disk.spoil(&file_name(1), |bytes| bytes[(HEADER_BYTES + 2 * BLOCK) as usize] ^= 1);

    let (wal, mut writer) = open(&disk);
    assert!(wal.damage(stream(2)).is_some());
    wal.create(stream(3), ignored());
    let fill = |writer: &mut Writer, index| {
        let log = wal.log(stream(3)).unwrap();
        log.append(vec![entry(id(1, 7, index), 20_000)], ignored());
        log.purge(id(1, 7, index));
        writer.step().unwrap();
    };
    fill(&mut writer, 0);
    fill(&mut writer, 1);
    assert!(disk.files().contains(&file_name(1)));
    assert_eq!(wal.stats().recycled, 0);
    for number in 1..=2 {
        wal.destroy(stream(number), ignored());
    }
    writer.step().unwrap();
    fill(&mut writer, 2);
    assert!(!disk.files().contains(&file_name(1)));
}

#[test]
fn a_value_that_looks_like_the_log_is_a_value() {
    let (disk, wal, mut writer) = begin();
    wal.create(stream(2), ignored());
    let other = wal.log(stream(2)).unwrap();
    other.save_vote(vote(1), ignored());
    writer.step().unwrap();
    let old_blocks = disk.bytes(&file_name(1));
    other.save_vote(vote(2), ignored());
    writer.step().unwrap();
    let log = wal.log(stream(1)).unwrap();
    let value = crate::Entry {
        id: id(1, 7, 0),
        membership: false,
        payload: old_blocks[HEADER_BYTES as usize..][..2 * BLOCK as usize].to_vec().into(),
    };
    log.append(vec![value], ignored());
    writer.step().unwrap();
    let before = observe(&wal);
    let (found, _writer) = open(&disk.after_power_cut(|| false));
    assert_eq!(observe(&found), before);

    // Also when the head of its batch is lost.
    disk.spoil(&file_name(1), |bytes| bytes[(HEADER_BYTES + 3 * BLOCK) as usize] ^= 1);
    let (found, _writer) = open(&disk);
    assert!(found.damage(stream(1)).is_some());
    assert_eq!(found.damage(stream(2)), None);
    assert_eq!(found.log(stream(2)).unwrap().state().vote, Some(vote(2)));
}

#[test]
fn a_segment_of_a_later_program_stops_the_node() {
    let (disk, wal, writer) = begin();
    drop((wal, writer));
    disk.spoil(&file_name(1), |bytes| {
        for block in bytes.chunks_mut(BLOCK as usize).take(2) {
            block[8] = 2;
            let crc = crc32fast::hash(&block[..33]);
            block[33..37].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let refused = open_with(&disk, &options(), Weakened::default());
    let Err(WalError::Failed { action, reason }) = refused else { panic!("{refused:?}") };
    assert_eq!(action, "read a segment");
    assert!(reason.contains("version 2"), "{reason}");
    assert_eq!(disk.files(), [file_name(1)]);
}

#[test]
fn a_shortened_segment_is_damage() {
    let (disk, wal, mut writer) = begin();
    append(&wal, &mut writer, 0, 9_000);
    append(&wal, &mut writer, 1, 9_000);
    let bytes = disk.bytes(&file_name(1));
    let path = Path::new(DIR).join(file_name(1));
    disk.remove_file(&path).unwrap();
    disk.add_file(&path, &bytes[..3 * BLOCK as usize]);
    let (wal, _writer) = open(&disk);
    assert!(wal.damage(stream(1)).is_some());
}
