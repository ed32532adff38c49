//! An engine is lost whose log does not begin at the beginning (E1).
//!
//! A follower that a snapshot has brought up holds no entries below it. When its engine is lost, the
//! files of that snapshot, which were kept, and its log make up for it. Where they do not, the replica
//! stays away and says why; the others serve.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::disk::replace_file;
use annulus_runtime::{Disk, Open};
use annulus_types::ReplicaId;
use annulus_wal::EntryId;
use bytes::{BufMut, BytesMut};

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{End, GROUP, Rows};
use super::openraft_suite::Stores;
use super::registers;
use super::snapshot::{node_3_is_left_behind, took_a_snapshot, until_node_3_is_brought_up};
use crate::host::HostError;
use crate::machine::{GroupState, StateMachine};
use crate::snapshot::Content;
use crate::snapshot::files::{FileWriter, Folder, Manifest, file_head, put_row};
use crate::types::log_id;

const SNAPSHOTS: &str = "/snapshots";

/// A cluster whose node 3 was brought up by a snapshot and has followed from there; its power was cut
/// then. And who leads the others.
async fn node_3_began_with_a_snapshot(seed: u64) -> (TestCluster, u32) {
    let (mut cluster, leader, begin) = Box::pin(node_3_is_left_behind(seed)).await;
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until_node_3_is_brought_up(&cluster, leader).await;
    until("its log begins late, too", || took_a_snapshot(&cluster, begin)).await;
    // That the first is committed is stored with the second.
    for name in ["after", "later"] {
        cluster.propose(leader, name, 1, LONG).await.expect("the cluster works");
        until("all hold it", || cluster.everyone_holds(name, 1)).await;
    }
    pass(ms(20)).await;
    cluster.end(3, End::PowerCut).await;
    (cluster, leader)
}

/// The folder that is kept at node 3.
fn kept_folder(cluster: &TestCluster) -> PathBuf {
    let names = cluster.disk(3).list(Path::new(SNAPSHOTS)).expect("a folder");
    let mut kept = names.iter().filter(|name| name.starts_with("kept-5-13-"));
    let name = kept.next().expect("a snapshot was installed");
    assert_eq!(kept.next(), None, "{names:?}");
    Path::new(SNAPSHOTS).join(name)
}

async fn an_engine_is_lost(whole: bool) {
    let (mut cluster, leader) = Box::pin(node_3_began_with_a_snapshot(80)).await;
    let folder = kept_folder(&cluster);
    let disk = cluster.disk(3);
    let mut manifest = Manifest::load(disk, &folder).expect("it was kept");
    manifest.state.whole = whole;
    replace_file(disk, &folder, "manifest", &manifest.encode()).expect("a sound disk");
    for stranger in ["kept-5-99-1", "5-1-1"] {
        disk.create_dir_all(&Path::new(SNAPSHOTS).join(stranger)).expect("a sound disk");
    }
    cluster.propose(leader, "meanwhile", 1, LONG).await.expect("two are a majority");

    // At first nobody can tell it anything.
    cluster.partition(1, 3);
    cluster.partition(2, 3);
    cluster.restart(3, Rows::Lost).await.expect("kept files and log reach");
    assert_eq!(cluster.register(3, "removed from every log"), Some(1), "the files hold it");
    assert_eq!(cluster.register(3, "after"), Some(1), "the log holds it");
    assert_eq!(cluster.register(3, "meanwhile"), None);
    assert_eq!(cluster.group(3).check_whole().is_ok(), whole, "as the files say");
    assert_eq!(kept_folder(&cluster), folder);
    let names = cluster.disk(3).list(Path::new(SNAPSHOTS)).expect("a folder");
    assert_eq!(names.len(), 1, "{names:?}");
    let begins = cluster.log_state(3).purged;

    cluster.heal(1, 3);
    cluster.heal(2, 3);
    let leader = cluster.leader_among(&[1, 2]).await;
    until_node_3_is_brought_up(&cluster, leader).await;
    assert_eq!(cluster.register(3, "meanwhile"), Some(1));
    until("it may answer", || cluster.group(3).check_whole().is_ok()).await;
    assert_eq!(cluster.log_state(3).purged, begins, "no other snapshot was needed");
    cluster.propose(leader, "last", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("last", 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_engine_is_refilled_from_kept_files_and_the_log() {
    Box::pin(an_engine_is_lost(true)).await;
}

#[tokio::test(start_paused = true)]
async fn a_refilled_replica_is_no_more_whole_than_its_files() {
    Box::pin(an_engine_is_lost(false)).await;
}

/// Why a replica stays absent.
fn absent_because(opened: Result<(), HostError>) -> String {
    match opened {
        Err(HostError::NeedsRefill { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// Inverts the last byte of a file of node 3.
fn flip_last_byte(cluster: &TestCluster, path: &Path) {
    let disk = cluster.disk(3);
    let bytes = disk.open(path, Open::Read).and_then(|file| file.len()).expect("it was kept");
    disk.flip_byte(path, bytes - 1).expect("it is durable");
}

async fn kept_files_are_damaged() {
    let (mut cluster, _) = Box::pin(node_3_began_with_a_snapshot(81)).await;
    let folder = kept_folder(&cluster);
    for name in ["1.rows", "2.rows", "manifest"] {
        flip_last_byte(&cluster, &folder.join(name));
        let reason = absent_because(cluster.restart(3, Rows::Lost).await);
        assert!(reason.contains("checksum"), "{name}: {reason}");
        assert!(cluster.registers(3).is_empty(), "{name}");
        let state = GroupState::load(cluster.host(3).engine().as_ref(), GROUP);
        assert_eq!(state.expect("it reads"), GroupState::default(), "{name}");
        assert!(cluster.host(3).group(GROUP).is_none(), "{name}");

        let leader = cluster.leader_among(&[1, 2]).await;
        cluster.propose(leader, name, 1, LONG).await.expect("two are a majority");
        // The next look is at the next start: it costs reading everything.
        flip_last_byte(&cluster, &folder.join(name));
        let again = absent_because(cluster.open_again(3).await);
        assert_eq!(again, reason, "{name}");
        assert_eq!(cluster.host(3).absent().len(), 1, "{name}");
        cluster.end(3, End::Kill).await;
    }
    cluster.restart(3, Rows::Lost).await.expect("kept files and log reach");
    let leader = cluster.leader_among(&[1, 2]).await;
    until_node_3_is_brought_up(&cluster, leader).await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_kept_files_are_damaged_stays_absent() {
    Box::pin(kept_files_are_damaged()).await;
}

async fn kept_files_do_not_reach() {
    let (mut cluster, _) = Box::pin(node_3_began_with_a_snapshot(82)).await;
    let folder = kept_folder(&cluster);
    let manifest = Manifest::load(cluster.disk(3), &folder).expect("it was kept");
    let reach = manifest.last().expect("a state").index;
    let begins = cluster.restart_late(3).await;
    assert!(begins.index > reach, "more was applied");
    pass(ms(20)).await;
    cluster.end(3, End::PowerCut).await;
    let reason = absent_because(cluster.restart(3, Rows::Lost).await);
    assert!(reason.contains(&format!("reach to entry {reach} only")), "{reason}");

    cluster.end(3, End::Kill).await;
    cluster.disk(3).remove_dir_all(&folder).expect("a sound disk");
    let reason = absent_because(cluster.restart(3, Rows::Lost).await);
    assert!(reason.contains("no snapshot files are kept"), "{reason}");
    let leader = cluster.leader_among(&[1, 2]).await;
    cluster.propose(leader, "without it", 1, LONG).await.expect("two are a majority");
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_kept_files_do_not_reach_its_log_stays_absent() {
    Box::pin(kept_files_do_not_reach()).await;
}

/// A snapshot up to entry `index` in which one register is set, as a transfer leaves it.
async fn received(machine: &StateMachine, index: u64) -> Content {
    let (store, group) = (&machine.store, machine.replica.group);
    let place = store.place(group, index);
    place.create().await.expect("a sound disk");
    let mut bytes = BytesMut::new();
    bytes.put_slice(&file_head());
    put_row(&mut bytes, b"x", index.to_string().as_bytes()).expect("a short row");
    let writer = FileWriter::create(store.disk().as_ref(), place.path(), 1);
    let mut writer = writer.expect("a sound disk");
    writer.write(&bytes).expect("a sound disk");
    let last = EntryId { term: 1, leader: ReplicaId(0), index };
    let state = GroupState { applied: Some(log_id(last)), ..GroupState::default() };
    let manifest = Manifest { group, state, files: vec![writer.finish(1)] };
    Content::Stored(Arc::new(Folder::seal(place, manifest).await.expect("a sound disk")))
}

/// Syncs of the file, the manifest and their names; the rename; syncs of its folder and of that one's.
const STEPS_OF_KEEPING: u64 = 6;

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_not_installed() {
    let stores = Stores::new();
    let (_log, mut machine) = stores.store().await;
    for steps in 0..=STEPS_OF_KEEPING {
        let content = received(&machine, 5).await;
        stores.disk.fail_after_changes(steps);
        let installed = machine.install(&content).await;
        stores.disk.fail_after_changes(u64::MAX);
        assert_eq!(installed.is_ok(), steps == STEPS_OF_KEEPING, "{steps}: {installed:?}");
        let state = GroupState::load(machine.engine.as_ref(), machine.replica.group);
        assert_eq!(state.expect("it reads"), machine.state, "{steps}");
        let held = registers::all(machine.engine.as_ref()).get("x").copied();
        assert_eq!(held, installed.is_ok().then_some(5), "{steps}");
    }
    let content = received(&machine, 9).await;
    machine.install(&content).await.expect("it is newer, and there is room");
    let names = stores.disk.list(Path::new(SNAPSHOTS)).expect("a folder");
    assert_eq!(names.len(), 1, "whatever was kept before is gone: {names:?}");
}
