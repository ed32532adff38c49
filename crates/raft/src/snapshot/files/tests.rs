//! The layout, pinned by bytes that an independent implementation of the module's head made, and
//! what happens to bytes that are not what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use annulus_runtime::{Random, SimDisk};
use annulus_types::NodeId;

use super::*;
use crate::snapshot::store::SnapshotStore;
use crate::types::{LeaderId, Membership, Seat, StoredMembership};
use crate::waits::Waits;

const MANIFEST_BYTES: &str = concat!(
    "011c2de073000000000000000500000055010100000000000001f401000000000000000200000000000000",
    "07000000000000002801000000000000000100000000000000070000000000000001010001000000000000",
    "00070001000000000000000700000003000000010000000000000003000000000000000b01020304",
);
const FILE_BYTES: &[u8] = b"\x01\x00\x01\x00\x00\x00\x02kvw\x00\x02\x00\x00\x00\x00kk";
const FILE_CRC: u32 = 0x1d8c_2788;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 7 }, index)
}

fn manifest(files: Vec<FileEntry>) -> Manifest {
    let seats = BTreeMap::from([(7, Seat { node: NodeId(3) })]);
    let membership = Membership::new(vec![BTreeSet::from([7])], seats).unwrap();
    let state = GroupState {
        applied: Some(log_id(2, 40)),
        membership: StoredMembership::new(Some(log_id(1, 1)), membership),
        group_time_ms: 500,
        whole: true,
    };
    Manifest { group: GroupId(5), state, files }
}

fn store() -> (SimDisk, Arc<SnapshotStore>) {
    let disk = SimDisk::new(Random::seeded(3));
    let store = SnapshotStore::open(Arc::new(disk.clone()), "/snapshots".into(), Waits::Inline);
    (disk, store)
}

/// A snapshot of one file, which holds the pinned bytes.
async fn folder(store: &Arc<SnapshotStore>) -> Folder {
    let place = store.place(GroupId(5), 40);
    place.create().await.unwrap();
    let mut writer = FileWriter::create(store.disk().as_ref(), place.path(), 3).unwrap();
    writer.write(&file_head()).unwrap();
    let mut rows = BytesMut::new();
    put_row(&mut rows, b"k", b"vw").unwrap();
    put_row(&mut rows, b"kk", b"").unwrap();
    writer.write(&rows).unwrap();
    let entry = writer.finish(3);
    Folder::seal(place, manifest(vec![entry])).await.unwrap()
}

fn path_of(folder: &Folder, name: &str) -> PathBuf {
    folder.place().path().join(name)
}

#[test]
fn the_manifest_is_pinned() {
    let one = manifest(vec![FileEntry { id: 3, bytes: 11, crc: 0x0102_0304 }]);
    assert_eq!(hex(&one.encode()), MANIFEST_BYTES);
    assert_eq!(Manifest::decode(one.encode()).unwrap(), one);
    assert_eq!((one.bytes(), one.meta().last_log_id), (11, Some(log_id(2, 40))));
}

#[test]
fn no_manifest_is_read_that_differs_in_a_byte_or_a_length() {
    let whole = manifest(vec![FileEntry { id: 3, bytes: 11, crc: 0 }]).encode();
    for end in 0..whole.len() {
        assert!(Manifest::decode(whole.slice(..end)).is_err(), "{end}");
        let mut wrong = BytesMut::from(&whole[..]);
        wrong[end] ^= 0x40;
        assert!(Manifest::decode(wrong.freeze()).is_err(), "{end}");
    }
    let file = FileEntry { id: 3, bytes: 11, crc: 0 };
    assert!(Manifest::decode(manifest(vec![file, file]).encode()).is_err());
    let mut nothing = manifest(Vec::new());
    nothing.state.applied = None;
    assert!(nothing.last().is_err());
}

#[tokio::test]
async fn files_are_pinned_and_go_with_their_folder() {
    let (disk, store) = store();
    let folder = folder(&store).await;
    let entry = FileEntry { id: 3, bytes: FILE_BYTES.len() as u64, crc: FILE_CRC };
    assert_eq!(folder.manifest().files, [entry]);
    assert_eq!(disk.list(Path::new("/snapshots")).unwrap(), ["5-40-0"]);
    assert_eq!(disk.list(folder.place().path()).unwrap(), ["3.rows", "manifest"]);
    let read = |name| annulus_runtime::disk::read_file(&disk, &path_of(&folder, name), 1000);
    assert_eq!(read("3.rows").unwrap(), FILE_BYTES);
    assert_eq!(read("manifest").unwrap(), folder.manifest().encode());

    folder.verify().await.unwrap();
    let mut reader = folder.read(entry).unwrap();
    assert_eq!(reader.chunk().unwrap(), FILE_BYTES);
    assert!(reader.is_through() && reader.chunk().unwrap().is_empty());
    drop(folder);
    assert!(disk.list(Path::new("/snapshots")).unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_changed_on_the_disk_is_not_read_to_its_end() {
    let (disk, store) = store();
    let folder = folder(&store).await;
    let entry = folder.manifest().files[0];
    let file = disk.open(&path_of(&folder, "3.rows"), Open::Write).unwrap();
    for (at, byte) in FILE_BYTES.iter().enumerate() {
        file.write_all_at(&[byte ^ 1], at as u64).unwrap();
        let wrong = folder.read(entry).unwrap().chunk().unwrap_err();
        assert_eq!(wrong.kind(), io::ErrorKind::InvalidData, "{at}");
        assert!(folder.verify().await.is_err(), "{at}");
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    folder.verify().await.unwrap();
    file.write_all_at(&[0], entry.bytes).unwrap();
    assert!(folder.read(entry).is_err(), "it is longer than the manifest says");
}

#[tokio::test]
async fn what_an_earlier_process_left_goes_at_the_start() {
    let (disk, store) = store();
    let left = folder(&store).await;
    drop(SnapshotStore::open(store.disk(), "/snapshots".into(), Waits::Inline));
    assert!(!disk.exists(left.place().path()).unwrap());
    // Its own end finds nothing to remove.
    drop(left);
}

#[test]
fn rows_are_found_however_the_bytes_are_cut() {
    let rows: Vec<Row> = vec![
        (Bytes::from_static(b"k"), Bytes::from_static(b"vw")),
        (Bytes::from_static(b"kk"), Bytes::new()),
    ];
    for size in 1..=FILE_BYTES.len() {
        let mut reader = RowReader::default();
        let mut found = Vec::new();
        for piece in FILE_BYTES.chunks(size) {
            found.extend(reader.feed(piece).unwrap());
        }
        assert_eq!(found, rows, "in pieces of {size}");
        reader.finish().unwrap();
    }
}

#[test]
fn a_file_that_ends_inside_of_a_row_or_is_of_a_later_version_is_refused() {
    for end in [0, 5, 9, FILE_BYTES.len() - 1] {
        let mut reader = RowReader::default();
        reader.feed(&FILE_BYTES[..end]).unwrap();
        assert!(reader.finish().is_err(), "{end}");
    }
    assert!(RowReader::default().feed(&[2]).is_err());
    let endless = b"\x01\x00\x01\xff\xff\xff\xff";
    assert!(RowReader::default().feed(endless).is_err(), "nobody waits for four gigabytes");
}
