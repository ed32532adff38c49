//! How far the log was durable, as others were told (N1): a sound log never ends below that, and one that
//! was set back does.

use annulus_runtime::Random;

use super::disk::{SECTOR, TestDisk};
use super::model::{Op, dice, entry, id, ignored, open, open_with, options, play, story, stream};
use crate::format::{BLOCK, HEADER_BYTES};
use crate::weaken::{Weaken, Weakened};
use crate::{Position, Wal};

/// Opens what is left of a log, and checks that it ends where it was told to be durable, or behind.
fn check(left: &TestDisk, told: Position, weakened: Weakened) -> Result<Wal, String> {
    let (wal, _writer) =
        open_with(left, &options(), weakened).map_err(|error| error.to_string())?;
    let (end, position) = (wal.recovered_end(), wal.durable_position());
    if end < told {
        return Err(format!("{told:?} was told, and the log ended at {end:?}"));
    }
    if position <= end {
        return Err(format!("it ended at {end:?} and is durable up to {position:?} only"));
    }
    Ok(wal)
}

/// Power cuts and kills at every operation of a script, and again after the recovery.
fn holds_after_crashes(script: &[Op], weakened: Weakened) -> Result<(), String> {
    let whole = TestDisk::default();
    play(&whole, script, weakened);
    let random = Random::seeded(6);
    for cut in 0..=whole.operations() {
        let disk = TestDisk::default();
        disk.cut_at(cut);
        let told = play(&disk, script, weakened).told;
        let remainders = [
            ("nothing unsynced", disk.after_power_cut(|| false)),
            ("some of it", disk.after_power_cut(|| random.below(2) == 0)),
            ("all, by a kill", disk.after_kill()),
        ];
        for (remainder, left) in remainders {
            let checked = check(&left, told, weakened).and_then(|wal| {
                let told_next = wal.durable_position();
                check(&left.after_power_cut(|| false), told_next, weakened)
            });
            checked.map_err(|error| format!("cut at {cut}, left {remainder}: {error}"))?;
        }
    }
    Ok(())
}

#[test]
fn no_crash_takes_back_how_far_the_log_was_durable() {
    assert_eq!(holds_after_crashes(&story(), Weakened::default()), Ok(()));
    for seed in 0..3 {
        let outcome = holds_after_crashes(&dice(seed, 45), Weakened::default());
        assert_eq!(outcome, Ok(()), "seed {seed}");
    }
}

#[test]
fn telling_before_the_sync_is_caught() {
    assert!(holds_after_crashes(&story(), Weakened::by(Weaken::TellBeforeSync)).is_err());
}

#[test]
fn a_crash_during_recovery_takes_nothing_back() {
    let whole = TestDisk::default();
    play(&whole, &story(), Weakened::default());
    // Killed while the last batch was under way: it is in the page cache only.
    let killed = TestDisk::default();
    killed.cut_at(whole.operations() - 1);
    let told = play(&killed, &story(), Weakened::default()).told;
    let first = killed.after_kill();
    drop(open(&first));
    for cut in 0..first.operations() {
        let disk = killed.after_kill();
        disk.cut_at(cut);
        drop(open_with(&disk, &options(), Weakened::default()));
        for left in [disk.after_power_cut(|| false), disk.after_kill()] {
            let checked = check(&left, told, Weakened::default()).map(drop);
            assert_eq!(checked, Ok(()), "cut at {cut}");
        }
    }
}

/// One bit of each sector flips.
fn holds_after_rot(at: usize, weakened: Weakened) -> Result<(), String> {
    let disk = TestDisk::default();
    let told = play(&disk, &story(), weakened).told;
    for file in disk.files() {
        for sector in 0..disk.bytes(&file).len() / SECTOR {
            let spoiled = disk.after_kill();
            spoiled.spoil(&file, |bytes| bytes[sector * SECTOR + at] ^= 0x10);
            check(&spoiled, told, weakened)
                .map_err(|error| format!("{file}, sector {sector}: {error}"))?;
        }
    }
    Ok(())
}

#[test]
fn rot_does_not_shorten_the_log() {
    // The last one is in the tag.
    for at in [7, 300, SECTOR - 2] {
        assert_eq!(holds_after_rot(at, Weakened::default()), Ok(()), "byte {at}");
    }
    assert!(holds_after_rot(7, Weakened::by(Weaken::CutAnyBadBatch)).is_err());
}

#[test]
fn a_segment_whose_header_is_lost_counts_to_the_end_of_its_file() {
    let disk = TestDisk::default();
    let told = play(&disk, &story(), Weakened::default()).told;
    let newest = disk.files().pop().unwrap();
    disk.spoil(&newest, |bytes| {
        bytes[9] ^= 1;
        bytes[BLOCK as usize + 9] ^= 1;
    });
    let offset = disk.bytes(&newest).len() as u64;
    let wal = check(&disk, told, Weakened::default()).unwrap();
    assert_eq!(wal.recovered_end(), Position { segment: told.segment, offset });
}

#[test]
fn a_segment_that_was_born_and_not_written_ends_at_its_header() {
    let disk = TestDisk::default();
    let (wal, writer) = open(&disk);
    assert_eq!(wal.recovered_end(), Position::default(), "there was no log");
    let first = wal.durable_position();
    drop((wal, writer));
    // The power goes in the first sync of a batch in the segment that the next opening begins.
    let reopened = disk.after_kill();
    drop(open(&reopened));
    let last_write = reopened.operations() - 1;
    let ends = (0..=last_write).map(|cut| {
        let left = disk.after_kill();
        left.cut_at(cut);
        drop(open_with(&left, &options(), Weakened::default()));
        check(&left.after_power_cut(|| false), first, Weakened::default()).unwrap().recovered_end()
    });
    let ends: Vec<Position> = ends.collect();
    let empty = Position { segment: first.segment + 1, offset: HEADER_BYTES };
    assert!(ends.contains(&first) && ends.contains(&empty), "{ends:?}");
}

#[test]
fn a_log_that_was_set_back_ends_below_what_it_told() {
    let disk = TestDisk::default();
    let (wal, mut writer) = open(&disk);
    wal.create(stream(1), ignored());
    writer.step().unwrap();
    let (before, image) = (wal.durable_position(), disk.after_kill());
    wal.log(stream(1)).unwrap().append(vec![entry(id(1, 7, 0), 100)], ignored());
    assert_eq!(wal.durable_position(), before, "it is queued only");
    writer.step().unwrap();
    let after = wal.durable_position();
    assert!(before.segment == after.segment && before < after, "{before:?}, {after:?}");

    let (set_back, _writer) = open(&image);
    assert_eq!(set_back.recovered_end(), before);
    let (sound, _writer) = open(&disk.after_kill());
    assert_eq!(sound.recovered_end(), after);
}
