//! Rot: each sector in turn, and the cases that the rules name.

use std::path::Path;

use super::disk::{SECTOR, TestDisk};
use super::model::{
    DIR, Model, ModelLog, Op, dice, entry, id, ignored, observe, observe_log, open, open_with,
    options, play, story, stream, vote,
};
use crate::format::{BLOCK, HEADER_BYTES, file_name};
use crate::weaken::{Weaken, Weakened};
use crate::{StreamId, Wal, WalError};

/// Every stream is as it was, or damaged and unusable, or a tombstone; and no other is there.
fn as_it_was_or_damaged(wal: &Wal, model: &Model) -> Result<(), String> {
    for (stream, expected) in &model.logs {
        match observe_log(wal, *stream) {
            Ok(found) if found == *expected && wal.damage(*stream).is_none() => {}
            Err(WalError::Damaged { .. }) if wal.damage(*stream).is_some() => {}
            // Its very birth is unreadable.
            Err(WalError::Unknown) if wal.damage(*stream).is_some() => {}
            found => return Err(format!("{stream}: {found:#?} instead of {expected:#?}")),
        }
    }
    for stream in &model.tombstones {
        if !wal.tombstones().contains(stream) && wal.damage(*stream).is_none() {
            return Err(format!("{stream} lives again"));
        }
    }
    let strange = |stream: &StreamId| {
        !model.logs.contains_key(stream)
            && !model.tombstones.contains(stream)
            && wal.damage(*stream).is_none()
    };
    match wal.streams().into_iter().find(strange) {
        Some(stream) => Err(format!("{stream} was never there")),
        None => Ok(()),
    }
}

/// Spoils one sector after the other, and opens what is left, twice: damage must not be forgotten.
fn survives(
    disk: &TestDisk,
    model: &Model,
    weakened: Weakened,
    which: impl Fn(&str, usize) -> bool,
    spoil: impl Fn(&mut [u8]),
) -> Result<(), String> {
    for file in disk.files() {
        for sector in 0..disk.bytes(&file).len() / SECTOR {
            if !which(&file, sector) {
                continue;
            }
            let spoiled = disk.after_kill();
            spoiled.spoil(&file, |bytes| spoil(&mut bytes[sector * SECTOR..][..SECTOR]));
            let mut damaged = Vec::new();
            for opening in 0..2 {
                let (wal, _writer) = open_with(&spoiled, &options(), weakened)
                    .map_err(|error| format!("{file}, sector {sector}: {error}"))?;
                as_it_was_or_damaged(&wal, model)
                    .map_err(|error| format!("{file}, sector {sector}: {error}"))?;
                let found: Vec<StreamId> =
                    wal.streams().into_iter().filter(|s| wal.damage(*s).is_some()).collect();
                if opening == 1 && found != damaged {
                    return Err(format!("{file}, sector {sector}: {damaged:?}, then {found:?}"));
                }
                damaged = found;
            }
        }
    }
    Ok(())
}

/// Flips one bit of each sector, at this byte of it.
fn survives_flips(script: &[Op], at: usize, weakened: Weakened) -> Result<(), String> {
    let disk = TestDisk::default();
    let run = play(&disk, script, weakened);
    survives(&disk, run.last(), weakened, |_, _| true, |sector| sector[at] ^= 0x10)
}

/// Zeros in sectors that a durable mark covers: what a disk that lost a write looks like.
fn survives_zeros(script: &[Op], weakened: Weakened) -> Result<(), String> {
    let before = TestDisk::default();
    play(&before, &script[..script.len() - 1], weakened);
    let disk = TestDisk::default();
    let run = play(&disk, script, weakened);
    let covered = |file: &str, sector: usize| {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        before.files().iter().any(|name| name == file)
            && before.bytes(file)[range.clone()] == disk.bytes(file)[range]
    };
    survives(&disk, run.last(), weakened, covered, |sector| sector.fill(0))
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    // The last one is in the tag.
    for at in [7, 300, SECTOR - 2] {
        assert_eq!(survives_flips(&story(), at, Weakened::default()), Ok(()), "byte {at}");
    }
    assert_eq!(survives_flips(&dice(11, 45), 300, Weakened::default()), Ok(()));
}

#[test]
fn no_lost_sector_below_the_durable_mark_goes_unnoticed() {
    assert_eq!(survives_zeros(&story(), Weakened::default()), Ok(()));
}

#[test]
fn cutting_any_bad_batch_is_caught() {
    assert!(survives_flips(&story(), 7, Weakened::by(Weaken::CutAnyBadBatch)).is_err());
}

#[test]
fn cutting_without_proof_is_caught() {
    assert!(survives_flips(&story(), 7, Weakened::by(Weaken::CutWithoutProof)).is_err());
}

#[test]
fn one_salt_for_all_segments_is_caught() {
    assert!(survives_flips(&story(), 7, Weakened::by(Weaken::OneSalt)).is_err());
}

#[test]
fn ignoring_durable_marks_is_caught() {
    assert!(survives_zeros(&story(), Weakened::by(Weaken::IgnoreMarks)).is_err());
}

/// One batch with a large entry of replica 1 and a vote of replica 2; replica 3 is not in it. The
/// entry rots.
fn rot_beside_a_vote(weakened: Weakened) -> (Wal, TestDisk) {
    let disk = TestDisk::default();
    let (wal, mut writer) = open_with(&disk, &options(), weakened).unwrap();
    for number in 1..=3 {
        wal.create(stream(number), ignored());
        wal.log(stream(number)).unwrap().save_vote(vote(1), ignored());
    }
    writer.step().unwrap();
    wal.log(stream(1)).unwrap().append(vec![entry(id(2, 7, 0), 9000)], ignored());
    wal.log(stream(2)).unwrap().save_vote(vote(2), ignored());
    writer.step().unwrap();

    // The first batches of this run fill a block each; this one has three, the payload in between.
    let middle = (HEADER_BYTES + 3 * BLOCK + BLOCK / 2) as usize;
    disk.spoil(&file_name(1), |bytes| bytes[middle] ^= 1);
    let (wal, _writer) = open_with(&disk, &options(), weakened).unwrap();
    (wal, disk)
}

fn finds_the_vote_beside_rot(weakened: Weakened) -> bool {
    let (wal, _) = rot_beside_a_vote(weakened);
    wal.log(stream(2)).is_ok_and(|log| log.state().vote == Some(vote(2)))
}

#[test]
fn damage_concerns_exactly_the_named_and_votes_are_adopted() {
    let (wal, disk) = rot_beside_a_vote(Weakened::default());
    let damage = wal.damage(stream(1)).unwrap();
    assert_eq!((damage.file, damage.offset), (file_name(1), HEADER_BYTES + 2 * BLOCK));
    assert!(matches!(wal.log(stream(1)), Err(WalError::Damaged { .. })));
    assert_eq!(wal.damage(stream(2)), None);
    assert_eq!(wal.damage(stream(3)), None);
    assert_eq!(wal.log(stream(3)).unwrap().state().vote, Some(vote(1)));
    assert!(finds_the_vote_beside_rot(Weakened::default()));

    // The damage is on record: it survives that the spoiled segment is healed by accident.
    disk.spoil(&file_name(1), |bytes| {
        bytes[(HEADER_BYTES + 3 * BLOCK + BLOCK / 2) as usize] ^= 1;
    });
    let (wal, mut writer) = open(&disk);
    assert!(wal.damage(stream(1)).is_some());
    assert_eq!(wal.log(stream(2)).unwrap().state().vote, Some(vote(2)));

    // A damaged replica ends like any other.
    wal.destroy(stream(1), ignored());
    writer.step().unwrap();
    let (wal, _writer) = open(&disk);
    assert_eq!((wal.damage(stream(1)), wal.tombstones()), (None, vec![stream(1)]));
}

#[test]
fn ignoring_manifests_is_caught() {
    assert!(!finds_the_vote_beside_rot(Weakened::by(Weaken::IgnoreManifests)));
}

#[test]
fn without_a_readable_manifest_everybody_is_concerned_for_good() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    // The first batch of the newest segment, both ends: the one with everybody's hard state.
    let newest = disk.files().pop().unwrap();
    disk.spoil(&newest, |bytes| {
        bytes[HEADER_BYTES as usize + 20] ^= 1;
        bytes[(HEADER_BYTES + 3 * BLOCK) as usize - 20] ^= 1;
    });
    for _ in 0..3 {
        let (wal, _writer) = open(&disk);
        for stream in run.last().logs.keys() {
            assert!(wal.damage(*stream).is_some(), "{stream}");
        }
        // Also one that nobody remembers; but a new one is sound.
        assert!(wal.damage(stream(77)).is_some());
    }
    let (wal, mut writer) = open(&disk);
    wal.create(stream(78), ignored());
    writer.step().unwrap();
    assert_eq!(wal.damage(stream(78)), None);
    let (wal, _writer) = open(&disk);
    assert_eq!(observe_log(&wal, stream(78)), Ok(ModelLog::default()));
    assert!(wal.damage(stream(77)).is_some());
}

#[test]
fn one_header_is_enough_none_is_damage() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let newest = disk.files().pop().unwrap();
    for file in disk.files() {
        for copy in 0..2 {
            let spoiled = disk.after_kill();
            spoiled.spoil(&file, |bytes| bytes[copy * BLOCK as usize + 9] ^= 1);
            let (wal, _writer) = open(&spoiled);
            assert_eq!(observe(&wal).as_ref(), Ok(run.last()), "{file}, copy {copy}");
        }
        let spoiled = disk.after_kill();
        spoiled.spoil(&file, |bytes| {
            bytes[9] ^= 1;
            bytes[BLOCK as usize + 9] ^= 1;
        });
        let (wal, _writer) = open(&spoiled);
        assert_eq!(as_it_was_or_damaged(&wal, run.last()), Ok(()), "{file}");
        let damaged = run.last().logs.keys().filter(|stream| wal.damage(**stream).is_some());
        // A newer segment repeats all that the quiet replica has, but not the other's entries.
        assert_eq!(damaged.count(), if file == newest { 2 } else { 1 }, "{file}");
    }
}

#[test]
fn an_older_segment_that_is_missing_or_empty_is_damage() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let files = disk.files();
    assert_eq!(files.len(), 2, "{files:?}");
    // A header that is gone, of a segment that a seal names.
    let spoiled = disk.after_kill();
    spoiled.spoil(&files[0], |bytes| bytes.fill(0));
    let (wal, _writer) = open(&spoiled);
    assert_eq!(as_it_was_or_damaged(&wal, run.last()), Ok(()));
    assert!(wal.damage(stream(2)).is_some());

    // A file that is gone, between others.
    let spoiled = disk.after_kill();
    drop(open(&spoiled));
    let path = Path::new(DIR).join(&files[1]);
    annulus_runtime::Disk::remove_file(&spoiled, &path).unwrap();
    let (wal, _writer) = open(&spoiled);
    assert!(run.last().logs.keys().all(|stream| wal.damage(*stream).is_some()));
}

#[test]
fn files_that_were_never_segments_are_ignored() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let newest: u64 = disk.files().pop().unwrap().trim_end_matches(".wal").parse().unwrap();
    let path = |number| Path::new(DIR).join(file_name(number));
    disk.add_file(&path(newest + 1), &[0; 100]);
    disk.add_file(&path(newest + 4), &[0; 64 << 10]);
    disk.add_file(&Path::new(DIR).join("7.wal"), b"not ours");
    let (wal, _writer) = open(&disk);
    assert_eq!(observe(&wal).as_ref(), Ok(run.last()));
    assert_eq!(wal.newest_segment(), newest + 5);
    assert!(!disk.files().contains(&file_name(newest + 4)));
}

#[test]
fn a_header_that_was_there_is_not_unborn() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let newest: u64 = disk.files().pop().unwrap().trim_end_matches(".wal").parse().unwrap();
    disk.add_file(&Path::new(DIR).join(file_name(newest + 1)), &[1; 64 << 10]);
    let (wal, _writer) = open(&disk);
    assert!(run.last().logs.keys().all(|stream| wal.damage(*stream).is_some()));
}

#[test]
fn a_damaged_segment_that_counts_no_more_is_kept_aside() {
    let disk = TestDisk::default();
    drop(open(&disk));
    disk.spoil(&file_name(1), |bytes| bytes[HEADER_BYTES as usize + 30] ^= 1);
    for newest in 2..5 {
        let (wal, _writer) = open(&disk);
        assert_eq!(wal.newest_segment(), newest);
        assert_eq!(disk.files(), [format!("{}.damaged", file_name(1)), file_name(newest)]);
    }
}

#[test]
fn replacements_born_after_damage_of_all_stay_sound() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let newest = disk.files().pop().unwrap();
    disk.spoil(&newest, |bytes| {
        bytes[9] ^= 1;
        bytes[BLOCK as usize + 9] ^= 1;
    });
    let (wal, mut writer) = open(&disk);
    wal.create(stream(50), ignored());
    wal.log(stream(50)).unwrap().save_vote(vote(6), ignored());
    writer.step().unwrap();
    for _ in 0..3 {
        let (wal, _writer) = open(&disk);
        assert!(run.last().logs.keys().all(|stream| wal.damage(*stream).is_some()));
        assert_eq!(wal.log(stream(50)).unwrap().state().vote, Some(vote(6)));
    }
}

#[test]
fn a_block_that_the_device_refuses_is_damage_not_the_end() {
    let disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let files = disk.files();
    disk.break_sector(&files[0], (HEADER_BYTES as usize + 20) / SECTOR);
    let (wal, _writer) = open(&disk);
    assert_eq!(as_it_was_or_damaged(&wal, run.last()), Ok(()));
    assert!(wal.streams().iter().any(|stream| wal.damage(*stream).is_some()));
}

#[test]
fn rot_found_while_reading_damages_the_replica_on_record() {
    let disk = TestDisk::default();
    let small_tail = crate::Options { tail_bytes: 0, ..options() };
    let (wal, mut writer) = open_with(&disk, &small_tail, Weakened::default()).unwrap();
    wal.create(stream(1), ignored());
    wal.create(stream(2), ignored());
    let log = wal.log(stream(1)).unwrap();
    log.append(vec![entry(id(1, 7, 0), 3000)], ignored());
    writer.step().unwrap();
    let at = (HEADER_BYTES + BLOCK + 2 * SECTOR as u64) as usize;
    disk.spoil(&file_name(1), |bytes| bytes[at] ^= 1);

    assert!(matches!(log.entries(0..1, 1), Err(WalError::Damaged { .. })));
    assert!(wal.damage(stream(1)).is_some());
    assert!(matches!(wal.log(stream(1)), Err(WalError::Damaged { .. })));
    wal.log(stream(2)).unwrap().save_vote(vote(1), ignored());
    writer.step().unwrap();
    disk.spoil(&file_name(1), |bytes| bytes[at] ^= 1);
    let (wal, _writer) = open(&disk);
    assert!(wal.damage(stream(1)).is_some());
    assert_eq!(wal.log(stream(2)).unwrap().state().vote, Some(vote(1)));
}
