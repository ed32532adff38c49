//! Power cuts and kills at every operation of a script, with every kind of remainder.

use annulus_runtime::Random;

use super::disk::TestDisk;
use super::model::{Model, Op, Run, dice, observe, open_with, options, play, story};
use crate::weaken::{Weaken, Weakened};

/// Opens what a crash left, and checks that it is a state between what was acknowledged and what
/// was asked for, and that it stays when the power goes right after.
fn check(left: &TestDisk, run: &Run, weakened: Weakened) -> Result<(), String> {
    let opened = recover(left, weakened)?;
    if !run.allows(&opened) {
        let (acknowledged, last) = (&run.models[run.acknowledged], run.last());
        return Err(format!(
            "found {opened:#?}\nacknowledged {acknowledged:#?}\nasked for {last:#?}"
        ));
    }
    let again = recover(&left.after_power_cut(|| false), weakened)?;
    if again != opened {
        return Err(format!("told {opened:#?}\nbut after a power cut it was {again:#?}"));
    }
    Ok(())
}

fn recover(disk: &TestDisk, weakened: Weakened) -> Result<Model, String> {
    let (wal, _writer) =
        open_with(disk, &options(), weakened).map_err(|error| error.to_string())?;
    observe(&wal)
}

fn survives_crashes(script: &[Op], weakened: Weakened) -> Result<(), String> {
    let whole = TestDisk::default();
    let run = play(&whole, script, weakened);
    check(&whole.after_power_cut(|| false), &run, weakened)?;

    let random = Random::seeded(5);
    for cut in 0..whole.operations() {
        let disk = TestDisk::default();
        disk.cut_at(cut);
        let run = play(&disk, script, weakened);
        let remainders = [
            ("nothing unsynced", disk.after_power_cut(|| false)),
            ("some of it", disk.after_power_cut(|| random.below(2) == 0)),
            ("most of it", disk.after_power_cut(|| random.below(8) != 0)),
            ("all, by a kill", disk.after_kill()),
        ];
        for (remainder, left) in remainders {
            check(&left, &run, weakened)
                .map_err(|error| format!("cut at {cut}, left {remainder}: {error}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_crash_leaves_what_was_acknowledged_and_nothing_else() {
    assert_eq!(survives_crashes(&story(), Weakened::default()), Ok(()));
    for seed in 0..4 {
        let outcome = survives_crashes(&dice(seed, 45), Weakened::default());
        assert_eq!(outcome, Ok(()), "seed {seed}");
    }
}

#[test]
fn the_story_recycles_a_segment() {
    let run = play(&TestDisk::default(), &story(), Weakened::default());
    assert_eq!((run.recycled, run.acknowledged), (1, story().len() - 1));
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let weakened = Weakened::by(Weaken::CompleteBeforeSync);
    assert!(survives_crashes(&story(), weakened).is_err());
}

#[test]
fn believing_the_page_cache_is_caught() {
    let weakened = Weakened::by(Weaken::BelievePageCache);
    assert!(survives_crashes(&story(), weakened).is_err());
}

#[test]
fn segments_without_hard_state_are_caught() {
    let weakened = Weakened::by(Weaken::OmitHardState);
    assert!(survives_crashes(&story(), weakened).is_err());
}

#[test]
fn a_crash_during_recovery_loses_nothing() {
    let script = story();
    let whole = TestDisk::default();
    play(&whole, &script, Weakened::default());
    // Killed while the last batch was under way: it is in the page cache only.
    let killed = TestDisk::default();
    killed.cut_at(whole.operations() - 1);
    let run = play(&killed, &script, Weakened::default());
    assert!(run.acknowledged < script.len() - 1);

    let first = killed.after_kill();
    recover(&first, Weakened::default()).unwrap();
    for cut in 0..first.operations() {
        let disk = killed.after_kill();
        disk.cut_at(cut);
        assert!(open_with(&disk, &options(), Weakened::default()).is_err(), "cut at {cut}");
        for left in [disk.after_kill(), disk.after_power_cut(|| false)] {
            assert_eq!(check(&left, &run, Weakened::default()), Ok(()), "cut at {cut}");
            // And once more, after a recovery that was believed by others.
            let told = recover(&left, Weakened::default());
            let killed_again = left.after_kill();
            assert_eq!(recover(&killed_again, Weakened::default()), told, "cut at {cut}");
        }
    }
}

#[test]
fn restarts_without_work_do_not_grow_the_log() {
    let mut disk = TestDisk::default();
    let run = play(&disk, &story(), Weakened::default());
    let mut files = 0;
    for restart in 0..6 {
        disk = disk.after_kill();
        assert_eq!(recover(&disk, Weakened::default()).as_ref(), Ok(run.last()));
        if restart > 0 {
            assert_eq!(disk.files().len(), files, "restart {restart}");
        }
        files = disk.files().len();
    }
}
