//! The faults of the simulated disk. What it has in common with a real one is checked for both, in
//! `tests/disk_conformance.rs`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::SimDisk;
use crate::disk::{Disk, DiskFile, Open, Space, read_file, replace_file};
use crate::random::Random;

/// Enough to see every outcome that has a chance of one in forty.
const SEEDS: u64 = 500;

const SECTOR: usize = 512;

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(Random::seeded(seed))
}

fn root() -> &'static Path {
    Path::new("/")
}

fn file() -> &'static Path {
    Path::new("/file")
}

/// A durable file.
fn create(disk: &SimDisk, path: &Path, data: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, Open::CreateNew).expect("a new name");
    file.write_all_at(data, 0).expect("room");
    file.sync_data().expect("a sound disk");
    disk.sync_dir(path.parent().expect("in a folder")).expect("a sound disk");
    file
}

fn content(disk: &SimDisk, path: &Path) -> Vec<u8> {
    read_file(disk, path, 1 << 20).expect("a readable file")
}

fn names(disk: &SimDisk, path: &str) -> Vec<String> {
    disk.list(Path::new(path)).expect("a folder")
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let data: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let open = create(&disk, file(), &data[..3000]);
        open.write_all_at(&data[1000..], 1000).expect("room");
        open.sync_data().expect("a sound disk");
        disk.crash();
        disk.crash();
        assert_eq!(content(&disk, file()), data, "seed {seed}");
    }
}

#[test]
fn each_unsynced_sector_survives_whole_or_not_at_all() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; 4 * SECTOR]);
        // Starts and ends within sectors, which then hold old bytes beside new ones.
        open.write_all_at(&[2; 3 * SECTOR], 100).expect("room");
        disk.crash();
        let after = content(&disk, file());
        assert_eq!(after.len(), 4 * SECTOR, "seed {seed}");
        let survived: Vec<bool> = after.iter().map(|byte| *byte == 2).collect();
        let mut outcome = Vec::new();
        for (index, sector) in survived.chunks(SECTOR).enumerate() {
            let (start, end) =
                (if index == 0 { 100 } else { 0 }, if index == 3 { 100 } else { 512 });
            let new = sector[start];
            assert!(sector[start..end].iter().all(|byte| *byte == new), "seed {seed}: torn");
            assert!(!sector[..start].contains(&true) && !sector[end..].contains(&true));
            outcome.push(new);
        }
        outcomes.insert(outcome);
    }
    assert!(outcomes.contains(&vec![true; 4]) && outcomes.contains(&vec![false; 4]));
    assert!(outcomes.contains(&vec![false, true, false, true]), "not any subset: {outcomes:?}");
}

#[test]
fn an_overwritten_sector_may_survive_in_an_earlier_version() {
    let mut versions = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; SECTOR]);
        for version in [2, 3] {
            open.write_all_at(&[version; SECTOR], 0).expect("room");
        }
        disk.crash();
        versions.insert(content(&disk, file())[0]);
    }
    assert_eq!(versions, BTreeSet::from([1, 2, 3]));
}

#[test]
fn unsynced_growth_ends_with_a_sector_and_holes_read_as_zeros() {
    let mut lengths = BTreeSet::new();
    let mut holes = 0;
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; 300]);
        open.write_all_at(&[2; 1500], 300).expect("room");
        disk.crash();
        let after = content(&disk, file());
        assert!(after[..300].iter().all(|byte| *byte == 1), "seed {seed}: lost synced bytes");
        assert!(after[300..].iter().all(|byte| *byte == 0 || *byte == 2), "seed {seed}");
        holes += u64::from(after[300..].contains(&0) && after[300..].contains(&2));
        lengths.insert(after.len());
        // What was cut off does not come back when the file grows again.
        let open = disk.open(file(), Open::Write).expect("a durable name");
        open.write_all_at(&[3], 4000).expect("room");
        assert!(content(&disk, file())[after.len()..4000].iter().all(|byte| *byte == 0));
    }
    assert_eq!(lengths, BTreeSet::from([300, 512, 1024, 1536, 1800]));
    assert!(holes > 0);
}

#[test]
fn after_a_failed_sync_a_good_one_proves_nothing() {
    let mut survived = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; SECTOR]);
        open.write_all_at(&[2; SECTOR], 0).expect("room");
        disk.fail_next_syncs(1);
        assert!(open.sync_data().is_err());
        open.sync_data().expect("only one was to fail");
        assert_eq!(content(&disk, file()), [2; SECTOR], "the cache shows it all the same");
        disk.crash();
        survived.insert(content(&disk, file())[0]);
    }
    assert_eq!(survived, BTreeSet::from([1, 2]));
}

#[test]
fn what_is_written_anew_after_a_failed_sync_is_covered_again() {
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; SECTOR]);
        open.write_all_at(&[2; SECTOR], 0).expect("room");
        disk.fail_next_syncs(1);
        assert!(open.sync_data().is_err());
        open.write_all_at(&[3; SECTOR], 0).expect("room");
        open.sync_data().expect("only one was to fail");
        disk.crash();
        assert_eq!(content(&disk, file()), [3; SECTOR], "seed {seed}");
    }
}

#[test]
fn names_survive_only_with_their_folder_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        for name in ["/kept", "/moved", "/removed"] {
            create(&disk, Path::new(name), b"x");
        }
        disk.open(Path::new("/new"), Open::CreateNew).expect("a new name");
        disk.rename(Path::new("/moved"), Path::new("/there")).expect("no target");
        disk.remove_file(Path::new("/removed")).expect("a file");
        if seed % 2 == 0 {
            disk.sync_dir(root()).expect("a sound disk");
        }
        disk.crash();
        let found = names(&disk, "/");
        assert!(found.contains(&"kept".to_owned()));
        let (moved, there) = (found.contains(&"moved".into()), found.contains(&"there".into()));
        assert_ne!(moved, there, "seed {seed}: a rename is atomic");
        if seed % 2 == 0 {
            assert_eq!(found, ["kept", "new", "there"], "seed {seed}");
        }
        outcomes.insert(found);
    }
    assert_eq!(outcomes.len(), 8, "each change survives for itself: {outcomes:?}");
}

#[test]
fn a_failed_sync_of_a_folder_leaves_its_names_unknown() {
    let mut survived = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        disk.open(file(), Open::CreateNew).expect("a new name");
        disk.fail_next_syncs(1);
        assert!(disk.sync_dir(root()).is_err());
        disk.sync_dir(root()).expect("only one was to fail");
        disk.crash();
        survived.insert(disk.exists(file()).expect("a sound disk"));
    }
    assert_eq!(survived, BTreeSet::from([false, true]));
}

#[test]
fn a_synced_folder_is_lost_with_the_name_of_it() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        disk.create_dir_all(Path::new("/a/b")).expect("no file in the way");
        create(&disk, Path::new("/a/b/file"), b"x");
        disk.sync_dir(Path::new("/a")).expect("a sound disk");
        disk.crash();
        let there = disk.exists(Path::new("/a")).expect("a sound disk");
        assert_eq!(disk.exists(Path::new("/a/b/file")).expect("a sound disk"), there);
        outcomes.insert(there);
    }
    assert_eq!(outcomes, BTreeSet::from([false, true]));
}

#[test]
fn a_rename_between_folders_never_loses_the_file() {
    let mut places = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        disk.create_dir_all(Path::new("/old")).expect("no file in the way");
        disk.sync_dir(root()).expect("a sound disk");
        create(&disk, Path::new("/old/file"), b"x");
        disk.create_dir_all(Path::new("/new")).expect("no file in the way");
        disk.rename(Path::new("/old/file"), Path::new("/new/file")).expect("no target");
        disk.remove_dir_all(Path::new("/old")).expect("a folder");
        disk.crash();
        let found: Vec<bool> = ["/old/file", "/new/file"]
            .iter()
            .map(|path| disk.exists(Path::new(path)).expect("a sound disk"))
            .collect();
        assert_eq!(found.iter().filter(|there| **there).count(), 1, "seed {seed}");
        places.insert(found);
    }
    assert_eq!(places.len(), 2);
}

#[test]
fn a_power_cut_at_any_step_of_a_replacement_leaves_one_content_whole() {
    let (old, new) = (vec![1_u8; 2000], vec![2_u8; 3000]);
    let replace = |disk: &SimDisk| replace_file(disk, root(), "file", &new);
    let sound = disk(0);
    create(&sound, file(), &old);
    let before = sound.counters().changes();
    replace(&sound).expect("a sound disk");
    let steps = sound.counters().changes() - before;
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        for cut in 0..=steps {
            let disk = disk(seed);
            create(&disk, file(), &old);
            disk.fail_after_changes(cut);
            let done = replace(&disk).is_ok();
            assert_eq!(done, cut == steps);
            disk.crash();
            let after = content(&disk, file());
            assert!(after == new || (after == old && !done), "seed {seed}, cut {cut}");
            outcomes.insert((done, after == new));
            replace(&disk).expect("the next process finds a sound disk");
        }
    }
    assert_eq!(outcomes.len(), 3);
}

#[test]
fn a_crash_ends_handles_and_locks_and_so_does_a_kill() {
    for kill in [false, true] {
        let disk = disk(1);
        let process = disk.process();
        let open = create(&process, file(), b"x");
        let lock = process.lock_dir(root()).expect("free");
        assert_eq!(kind(disk.lock_dir(root())), Some(io::ErrorKind::WouldBlock));
        if kill {
            disk.kill();
        } else {
            disk.crash();
        }
        let changes = disk.counters().changes();
        assert!(open.read_exact_at(&mut [0], 0).is_err());
        assert!(open.write_all_at(b"y", 0).is_err());
        assert!(open.sync_data().is_err() && open.len().is_err());
        assert!(process.open(file(), Open::Write).is_err());
        assert!(process.remove_file(file()).is_err() && process.sync_dir(root()).is_err());
        assert_eq!(disk.counters().changes(), changes);

        let next = disk.process();
        let held = next.lock_dir(root()).expect("let go by the end of its holder");
        drop(lock);
        assert_eq!(kind(next.lock_dir(root())), Some(io::ErrorKind::WouldBlock));
        drop(held);
        next.lock_dir(root()).expect("dropped");
        assert_eq!(content(&disk, file()), b"x");
    }
}

#[test]
fn a_kill_loses_nothing_and_makes_nothing_durable() {
    let mut survived = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), b"old");
        open.write_all_at(b"new", 0).expect("room");
        disk.kill();
        assert_eq!(content(&disk, file()), b"new");
        disk.crash();
        survived.insert(content(&disk, file()));
    }
    assert_eq!(survived, BTreeSet::from([b"new".to_vec(), b"old".to_vec()]));
}

#[test]
fn planned_write_faults_leave_a_part_and_end_with_the_process() {
    let mut parts = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let open = create(&disk, file(), b"");
        disk.fail_after_writes(2);
        open.write_all_at(b"a", 0).expect("the first of two");
        open.write_all_at(b"b", 1).expect("the second");
        assert!(open.write_all_at(&[7; 1534], 2).is_err());
        parts.insert(open.len().expect("only writes fail"));
        open.sync_data().expect("only writes fail");
        disk.kill();
        let open = disk.open(file(), Open::Write).expect("a file");
        open.write_all_at(b"z", 0).expect("the plan has ended");
    }
    assert_eq!(parts, BTreeSet::from([2, 512, 1024]));
}

#[test]
fn rot_is_on_the_medium() {
    let disk = disk(1);
    let open = create(&disk, file(), &[7; 1000]);
    disk.flip_byte(file(), 600).expect("a durable byte");
    let mut rotten = vec![7_u8; 1000];
    rotten[600] = 7 ^ 0xff;
    assert_eq!(content(&disk, file()), rotten);
    open.write_all_at(&[8], 10).expect("room");
    disk.flip_byte(file(), 20).expect("a durable byte");
    assert_eq!(content(&disk, file())[20], 7, "hidden by a sector that is not yet written");
    assert!(disk.flip_byte(file(), 1000).is_err());
}

#[test]
fn space_is_taken_and_given_back() {
    let disk = disk(1);
    let open = create(&disk, file(), &[1; 100]);
    disk.set_space(50, 1000);
    assert_eq!(kind(open.write_all_at(&[2; 80], 90)), Some(io::ErrorKind::StorageFull));
    assert_eq!(open.len().expect("a file"), 150, "as much as there was room for");
    open.write_all_at(&[3; 150], 0).expect("no growth");
    assert_eq!(disk.space(root()).expect("a folder"), Space { free: 0, total: 1000 });
    disk.remove_file(file()).expect("a file");
    assert_eq!(disk.space(root()).expect("a folder"), Space { free: 150, total: 1000 });
}

#[test]
fn counters_count_what_was_done() {
    let disk = disk(1);
    let open = create(&disk, file(), b"abc");
    disk.fail_next_syncs(1);
    assert!(open.sync_data().is_err());
    let counters = disk.counters();
    assert_eq!((counters.writes, counters.bytes, counters.syncs, counters.names), (1, 3, 2, 1));
    assert_eq!(counters.changes(), 4);
}

#[test]
fn equal_seeds_leave_equal_disks() {
    let run = |seed| {
        let disk = disk(seed);
        let open = create(&disk, file(), &[1; 8 * SECTOR]);
        for index in 0..20_u8 {
            open.write_all_at(&[index; 700], u64::from(index) * 300).expect("room");
            disk.open(Path::new(&format!("/{index}")), Open::CreateNew).expect("a new name");
        }
        disk.crash();
        (content(&disk, file()), names(&disk, "/"))
    };
    let outcomes: BTreeSet<_> = (0..20).map(run).collect();
    assert!(outcomes.len() > 10, "seeds decide");
    assert!((0..20).all(|seed| run(seed) == run(seed)));
}
