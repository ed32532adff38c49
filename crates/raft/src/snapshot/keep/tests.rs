//! Names, power cuts and rot: whatever happens while files are being kept, those of before or the new
//! ones are there, and nothing that differs from its manifest is taken for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use annulus_runtime::{Random, SimDisk};
use annulus_wal::EntryId;

use super::*;
use crate::machine::GroupState;
use crate::snapshot::files::{FileReader, FileWriter, file_head};
use crate::snapshot::store::SnapshotStore;
use crate::types::log_id;
use crate::waits::Waits;

const ROOT: &str = "/data/snapshots";
const MINE: StreamId = StreamId { group: GroupId(5), replica: ReplicaId(13) };
const OTHERS: StreamId = StreamId { group: GroupId(6), replica: ReplicaId(13) };

fn store(disk: &SimDisk) -> Arc<SnapshotStore> {
    SnapshotStore::open(Arc::new(disk.clone()), ROOT.into(), Waits::Inline)
}

/// Writes a snapshot up to entry `index` and keeps its files.
async fn keeps(store: &Arc<SnapshotStore>, stream: StreamId, index: u8) -> io::Result<()> {
    let place = store.place(stream.group, u64::from(index));
    place.create().await?;
    let mut files = Vec::new();
    for id in [1, 2] {
        let mut writer = FileWriter::create(store.disk().as_ref(), place.path(), id)?;
        writer.write(&file_head())?;
        writer.write(&[index; 700])?;
        files.push(writer.finish(id));
    }
    let last = EntryId { term: 1, leader: ReplicaId(11), index: u64::from(index) };
    let state = GroupState { applied: Some(log_id(last)), ..GroupState::default() };
    let folder = Folder::seal(place, Manifest { group: stream.group, state, files }).await?;
    sync(&folder).await?;
    keep(&folder, stream).await
}

/// A disk that keeps the files of a snapshot up to entry 5.
async fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(Random::seeded(seed));
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    keeps(&store(&disk), MINE, 5).await.unwrap();
    assert_eq!(kept(&disk, MINE).unwrap(), Some(5));
    disk
}

/// The last entry of the files that are kept for a replica; all of them are read.
fn kept(disk: &SimDisk, stream: StreamId) -> io::Result<Option<u64>> {
    let Some(dir) = find(disk, Path::new(ROOT), stream)? else { return Ok(None) };
    let manifest = Manifest::load(disk, &dir)?;
    for entry in &manifest.files {
        let mut reader = FileReader::open(disk, &dir, *entry)?;
        while !reader.is_through() {
            reader.chunk()?;
        }
    }
    Ok(Some(manifest.last().map_err(invalid)?.index))
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(ROOT)).unwrap()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_name_tells_whose_files_they_are_and_which_are_newer() {
    let name = Kept { stream: MINE, number: 2 };
    assert_eq!(name.to_string(), "kept-5-13-2");
    assert_eq!(Kept::parse("kept-5-13-2"), Some(name));
    let others = [
        "5-40-0",
        "kept-",
        "kept-5-13",
        "kept-5-13-2-1",
        "kept-5-13-2 ",
        "kept-5-13-x",
        "kept-+5-13-2",
        "kept-05-13-2",
    ];
    for other in others {
        assert_eq!(Kept::parse(other), None, "{other}");
    }

    let all = owned(&["5-40-0", "kept-5-13-10", "kept-5-13-9", "kept-5-14-11", "kept-6-13-12"]);
    assert_eq!(Kept::newest(&all, MINE), Some(Kept { stream: MINE, number: 10 }));
    assert_eq!(Kept::next(&all, MINE).to_string(), "kept-5-13-11");
    assert_eq!(Kept::newest(&all[..1], MINE), None);
    assert_eq!(Kept::next(&all[..1], MINE).to_string(), "kept-5-13-1");
}

#[tokio::test]
async fn newer_files_take_the_place_of_older_ones_of_the_same_replica() {
    let disk = disk(1).await;
    let store = store(&disk);
    keeps(&store, OTHERS, 7).await.unwrap();
    keeps(&store, MINE, 9).await.unwrap();
    assert_eq!((kept(&disk, MINE).unwrap(), kept(&disk, OTHERS).unwrap()), (Some(9), Some(7)));
    assert_eq!(names(&disk), ["kept-5-13-2", "kept-6-13-1"]);
}

#[tokio::test]
async fn at_the_start_only_what_is_kept_for_known_replicas_stays() {
    let disk = disk(2).await;
    keeps(&store(&disk), OTHERS, 7).await.unwrap();
    disk.create_dir_all(&Path::new(ROOT).join("5-9-0")).unwrap();
    let store = store(&disk);
    assert_eq!(names(&disk), ["kept-5-13-1", "kept-6-13-1"]);
    store.forget_strangers(|stream| stream == MINE);
    assert_eq!(names(&disk), ["kept-5-13-1"]);
    assert_eq!((kept(&disk, MINE).unwrap(), kept(&disk, OTHERS).unwrap()), (Some(5), None));
}

/// Keeping files takes 16 changes of the disk, removing the former ones 4.
const STEPS: u64 = 20;

/// Cuts the power after each step of keeping the files of a snapshot up to entry 9, or kills the
/// process there and cuts the power when the next one has started. Returns what was left.
async fn left_after_each_step(seed: u64, kill_first: bool) -> Vec<(bool, u64)> {
    let mut seen = Vec::new();
    for steps in 0..=STEPS {
        let disk = disk(seed).await;
        let store_of_first = store(&disk);
        disk.fail_after_changes(steps);
        let is_done = keeps(&store_of_first, MINE, 9).await.is_ok();
        if kill_first {
            disk.kill();
            store(&disk).forget_strangers(|stream| stream == MINE);
        }
        disk.crash();
        let left = kept(&disk, MINE).unwrap();
        seen.push((is_done, left.expect("something is always kept")));
        // Whatever was left, the next files are kept, alone.
        let store = store(&disk);
        keeps(&store, MINE, 10).await.unwrap();
        assert_eq!((kept(&disk, MINE).unwrap(), names(&disk).len()), (Some(10), 1));
    }
    seen
}

#[tokio::test]
async fn a_power_cut_at_any_step_leaves_the_former_files_or_the_new_ones() {
    for kill_first in [false, true] {
        let mut seen = BTreeSet::new();
        for seed in 0..20 {
            seen.extend(left_after_each_step(seed, kill_first).await);
        }
        let possible = BTreeSet::from([(false, 5), (false, 9), (true, 9)]);
        assert_eq!(seen, possible, "the new ones are there whenever that was said");
    }
}

#[tokio::test]
async fn files_with_a_flipped_byte_are_refused() {
    let disk = disk(3).await;
    let dir = find(&disk, Path::new(ROOT), MINE).unwrap().unwrap();
    let files = disk.list(&dir).unwrap();
    assert_eq!(files, ["1.rows", "2.rows", "manifest"]);
    for file in files {
        let path = dir.join(&file);
        let bytes = disk.open(&path, Open::Read).unwrap().len().unwrap();
        for at in 0..bytes {
            disk.flip_byte(&path, at).unwrap();
            let wrong = kept(&disk, MINE).unwrap_err();
            assert_eq!(wrong.kind(), io::ErrorKind::InvalidData, "{file} {at}");
            disk.flip_byte(&path, at).unwrap();
        }
    }
    assert_eq!(kept(&disk, MINE).unwrap(), Some(5));
}
