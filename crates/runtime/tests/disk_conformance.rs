//! What every disk promises its callers, checked for the real and the simulated one. A check that
//! only one of them can pass shows that simulations test something else than what runs.

use std::io;
use std::path::Path;

use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{Disk, Open, Random, RealDisk, SimDisk};

macro_rules! conformance {
    ($($check:ident),+ $(,)?) => {
        mod real {
            use super::*;
            $(
                #[test]
                fn $check() -> io::Result<()> {
                    let folder = tempfile::tempdir()?;
                    super::$check(&RealDisk, folder.path())
                }
            )+
        }

        mod simulated {
            use super::*;
            $(
                #[test]
                fn $check() -> io::Result<()> {
                    let disk = SimDisk::new(Random::seeded(1));
                    let folder = Path::new("/data/node");
                    disk.create_dir_all(folder)?;
                    super::$check(&disk, folder)
                }
            )+
        }
    };
}

conformance!(
    reads_show_earlier_writes,
    files_grow_and_holes_read_as_zeros,
    reads_beyond_the_end_fail,
    opening_follows_the_mode,
    names_are_created_listed_renamed_and_removed,
    missing_and_misplaced_names_are_errors,
    a_renamed_file_replaces_the_target,
    folders_move_and_go_with_all_that_they_hold,
    open_files_outlive_their_names,
    syncs_of_sound_disks_succeed,
    a_folder_has_one_lock,
    space_is_within_the_device,
    whole_files_are_replaced_and_read,
);

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

fn reads_show_earlier_writes(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let file = disk.open(&dir.join("file"), Open::CreateNew)?;
    let other = disk.open(&dir.join("file"), Open::Read)?;
    let mut expected: Vec<u8> = (0..=255).cycle().take(5000).collect();
    file.write_all_at(&expected, 0)?;
    // Within a sector, across several, and none at all.
    for (offset, data) in [(700_usize, vec![1_u8; 20]), (1000, vec![2; 2000]), (3, vec![])] {
        file.write_all_at(&data, offset as u64)?;
        expected[offset..offset + data.len()].copy_from_slice(&data);
    }
    for file in [&file, &other] {
        assert_eq!(file.len()?, 5000);
        let mut all = vec![0_u8; 5000];
        file.read_exact_at(&mut all, 0)?;
        assert_eq!(all, expected);
        let mut part = vec![0_u8; 1111];
        file.read_exact_at(&mut part, 999)?;
        assert_eq!(part, expected[999..2110]);
    }
    Ok(())
}

fn files_grow_and_holes_read_as_zeros(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let file = disk.open(&dir.join("file"), Open::CreateNew)?;
    assert!(file.is_empty()?);
    file.write_all_at(b"abc", 0)?;
    file.write_all_at(b"xyz", 2000)?;
    file.write_all_at(b"", 9000)?;
    assert_eq!(file.len()?, 2003);
    let mut data = vec![9_u8; 2003];
    file.read_exact_at(&mut data, 0)?;
    assert_eq!((&data[..3], &data[2000..]), (&b"abc"[..], &b"xyz"[..]));
    assert!(data[3..2000].iter().all(|byte| *byte == 0));
    Ok(())
}

fn reads_beyond_the_end_fail(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let file = disk.open(&dir.join("file"), Open::CreateNew)?;
    file.write_all_at(b"abc", 0)?;
    let eof = Some(io::ErrorKind::UnexpectedEof);
    assert_eq!(kind(file.read_exact_at(&mut [0; 2], 2)), eof);
    assert_eq!(kind(file.read_exact_at(&mut [0; 1], 3)), eof);
    assert_eq!(kind(file.read_exact_at(&mut [0; 1], 1 << 40)), eof);
    file.read_exact_at(&mut [], 3)
}

fn opening_follows_the_mode(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let path = dir.join("file");
    for how in [Open::Read, Open::Write] {
        assert_eq!(kind(disk.open(&path, how)), Some(io::ErrorKind::NotFound));
    }
    disk.open(&path, Open::CreateNew)?.write_all_at(b"abc", 0)?;
    assert_eq!(kind(disk.open(&path, Open::CreateNew)), Some(io::ErrorKind::AlreadyExists));
    disk.open(&path, Open::Write)?.write_all_at(b"z", 1)?;
    let reading = disk.open(&path, Open::Read)?;
    assert!(reading.write_all_at(b"y", 0).is_err());
    assert_eq!(read_file(disk, &path, 10)?, b"azc");
    assert_eq!(kind(disk.open(dir, Open::Write)), Some(io::ErrorKind::IsADirectory));
    Ok(())
}

fn names_are_created_listed_renamed_and_removed(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for name in ["b", "c", "a", "B"] {
        disk.open(&dir.join(name), Open::CreateNew)?;
    }
    disk.create_dir_all(&dir.join("folder/inner"))?;
    disk.create_dir_all(&dir.join("folder/inner"))?;
    assert_eq!(disk.list(dir)?, ["B", "a", "b", "c", "folder"]);
    assert_eq!(disk.list(&dir.join("folder"))?, ["inner"]);
    disk.rename(&dir.join("a"), &dir.join("d"))?;
    disk.rename(&dir.join("d"), &dir.join("d"))?;
    disk.remove_file(&dir.join("b"))?;
    assert_eq!(disk.list(dir)?, ["B", "c", "d", "folder"]);
    assert!(disk.exists(&dir.join("folder"))? && disk.exists(&dir.join("c"))?);
    assert!(!disk.exists(&dir.join("b"))? && !disk.exists(&dir.join("none/b"))?);
    Ok(())
}

fn missing_and_misplaced_names_are_errors(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let (file, none) = (dir.join("file"), dir.join("none"));
    disk.open(&file, Open::CreateNew)?;
    let not_found = Some(io::ErrorKind::NotFound);
    assert_eq!(kind(disk.open(&none.join("x"), Open::CreateNew)), not_found);
    assert_eq!(kind(disk.list(&none)), not_found);
    assert_eq!(kind(disk.rename(&none, &dir.join("x"))), not_found);
    assert_eq!(kind(disk.rename(&file, &none.join("x"))), not_found);
    assert_eq!(kind(disk.remove_file(&none)), not_found);
    assert_eq!(kind(disk.remove_dir_all(&none)), not_found);
    assert_eq!(kind(disk.sync_dir(&none)), not_found);
    assert_eq!(kind(disk.lock_dir(&none)), not_found);
    assert_eq!(kind(disk.space(&none)), not_found);
    let not_a_folder = Some(io::ErrorKind::NotADirectory);
    assert_eq!(kind(disk.open(&file.join("x"), Open::CreateNew)), not_a_folder);
    assert_eq!(kind(disk.list(&file)), not_a_folder);
    assert_eq!(kind(disk.exists(&file.join("x"))), not_a_folder);
    assert_eq!(kind(disk.create_dir_all(&file.join("x"))), not_a_folder);
    assert_eq!(kind(disk.create_dir_all(&file)), Some(io::ErrorKind::AlreadyExists));
    assert_eq!(kind(disk.remove_file(dir)), Some(io::ErrorKind::IsADirectory));
    assert_eq!(disk.list(dir)?, ["file"], "a refused call changes nothing");
    Ok(())
}

fn a_renamed_file_replaces_the_target(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let (from, to) = (dir.join("from"), dir.join("folder/to"));
    disk.create_dir_all(&dir.join("folder"))?;
    disk.open(&from, Open::CreateNew)?.write_all_at(b"new", 0)?;
    disk.open(&to, Open::CreateNew)?.write_all_at(b"old one", 0)?;
    let replaced = disk.open(&to, Open::Read)?;
    disk.rename(&from, &to)?;
    assert_eq!(read_file(disk, &to, 10)?, b"new");
    assert_eq!(replaced.len()?, 7, "whoever has the old file open keeps it");
    assert_eq!(disk.list(dir)?, ["folder"]);
    Ok(())
}

fn folders_move_and_go_with_all_that_they_hold(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    disk.create_dir_all(&from.join("inner"))?;
    disk.open(&from.join("inner/file"), Open::CreateNew)?.write_all_at(b"abc", 0)?;
    assert_eq!(kind(disk.rename(&from, &from.join("inner/x"))), Some(io::ErrorKind::InvalidInput));
    disk.create_dir_all(&to)?;
    disk.rename(&from, &to)?;
    assert_eq!(read_file(disk, &to.join("inner/file"), 10)?, b"abc");
    disk.create_dir_all(&from)?;
    let not_empty = Some(io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(disk.rename(&from, &to)), not_empty);
    disk.open(&dir.join("file"), Open::CreateNew)?;
    assert_eq!(kind(disk.rename(&dir.join("file"), &to)), Some(io::ErrorKind::IsADirectory));
    assert_eq!(kind(disk.rename(&to, &dir.join("file"))), Some(io::ErrorKind::NotADirectory));
    assert_eq!(kind(disk.remove_dir_all(&dir.join("file"))), Some(io::ErrorKind::NotADirectory));
    disk.remove_dir_all(&to)?;
    assert_eq!(disk.list(dir)?, ["file", "from"]);
    Ok(())
}

fn open_files_outlive_their_names(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let path = dir.join("file");
    let file = disk.open(&path, Open::CreateNew)?;
    file.write_all_at(b"abc", 0)?;
    disk.remove_file(&path)?;
    disk.open(&path, Open::CreateNew)?.write_all_at(b"new", 0)?;
    file.write_all_at(b"z", 3)?;
    file.sync_data()?;
    let mut data = [0; 4];
    file.read_exact_at(&mut data, 0)?;
    assert_eq!(&data, b"abcz");
    assert_eq!(read_file(disk, &path, 10)?, b"new");
    Ok(())
}

fn syncs_of_sound_disks_succeed(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let file = disk.open(&dir.join("file"), Open::CreateNew)?;
    file.write_all_at(b"abc", 0)?;
    file.sync_data()?;
    file.sync_data()?;
    disk.open(&dir.join("file"), Open::Read)?.sync_data()?;
    disk.sync_dir(dir)?;
    disk.sync_dir(dir)
}

fn a_folder_has_one_lock(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.create_dir_all(&dir.join("other"))?;
    let lock = disk.lock_dir(dir)?;
    assert_eq!(kind(disk.lock_dir(dir)), Some(io::ErrorKind::WouldBlock));
    let other = disk.lock_dir(&dir.join("other"))?;
    assert_eq!(disk.list(dir)?, ["LOCK", "other"]);
    drop(lock);
    let again = disk.lock_dir(dir)?;
    drop((other, again));
    Ok(())
}

fn space_is_within_the_device(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let space = disk.space(dir)?;
    assert!(space.free > 0 && space.free <= space.total, "{space:?}");
    Ok(())
}

fn whole_files_are_replaced_and_read(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for content in [&b"first"[..], b"second, longer", b""] {
        replace_file(disk, dir, "name", content)?;
        assert_eq!(read_file(disk, &dir.join("name"), 20)?, content);
        assert_eq!(disk.list(dir)?, ["name"]);
    }
    replace_file(disk, dir, "name", b"four")?;
    let too_long = read_file(disk, &dir.join("name"), 3);
    assert_eq!(kind(too_long), Some(io::ErrorKind::InvalidData));
    Ok(())
}
