//! openraft's own laws for a log and a state machine, each on a store of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_engine::{Engine, MemoryEngine};
use annulus_runtime::{Clock, Disk, OnEnd, Random, SimDisk, Tasks};
use annulus_types::{GroupId, ReplicaId};
use annulus_wal::{StreamId, Wal};
use openraft::StorageError;
use openraft::testing::log::StoreBuilder;
use tokio::sync::oneshot;

use super::disk::{DiskSwitch, drive};
use super::registers::Registers;
use crate::gate::{Core, Gate, Lease, Weaken};
use crate::log_store::LogStore;
use crate::machine::StateMachine;
use crate::replica::ReplicaState;
use crate::snapshot::store::SnapshotStore;
use crate::types::TypeConfig;
use crate::waits::Waits;

type Suite = openraft::testing::log::Suite<TypeConfig, LogStore, StateMachine, Stores, ()>;

/// Many replicas on one log, as on a node.
pub(super) struct Stores {
    pub(super) disk: SimDisk,
    clock: Clock,
    wal: Wal,
    snapshots: Arc<SnapshotStore>,
    next_group: AtomicU64,
    /// Drives the log.
    _tasks: Tasks,
}

impl Stores {
    pub(super) fn new() -> Self {
        let random = Random::seeded(74);
        let sim_disk = SimDisk::new(random.clone());
        let disk: Arc<dyn Disk> = Arc::new(sim_disk.clone());
        let disk_of_snapshots = Arc::clone(&disk);
        let snapshots = SnapshotStore::open(disk_of_snapshots, "/snapshots".into(), Waits::Inline);
        let options = annulus_wal::Options { segment_bytes: 256 << 10, ..Default::default() };
        let (wal, writer) =
            Wal::open(disk, std::path::Path::new("/log"), options, move || random.u64())
                .expect("a log opens");
        let tasks = Tasks::new();
        let driven = drive(writer, wal.clone(), Arc::new(DiskSwitch::default()));
        tasks.spawn("log writer", OnEnd::Ignore, driven);
        let clock = Clock::simulated(1000, 0);
        let next_group = AtomicU64::new(1);
        Self { disk: sim_disk, clock, wal, snapshots, next_group, _tasks: tasks }
    }

    pub(super) async fn store(&self) -> (LogStore, StateMachine) {
        let group = GroupId(self.next_group.fetch_add(1, Ordering::Relaxed));
        let replica = ReplicaId(0);
        let stream = StreamId { group, replica };
        let (done, born) = oneshot::channel();
        self.wal.create(stream, Box::new(move |result| drop(done.send(result))));
        born.await.expect("the writer runs").expect("a new replica");
        let lease = Duration::from_millis(600);
        let core = Core::new(replica, Lease { lease, silence: lease * 2 }, Weaken::default());
        let clock = self.clock.clone();
        let state = ReplicaState::new(group, replica, clock, Gate::new(core), lease, false);
        let state = Arc::new(state);
        let log = self.wal.log(stream).expect("a replica that was born");
        let log = LogStore::open(log, Arc::clone(&state), None).expect("an empty log");
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let registers = Arc::new(Registers(Arc::clone(&engine)));
        let snapshots = Arc::clone(&self.snapshots);
        let machine = StateMachine::open(state, engine, registers, log.clone(), snapshots);
        (log, machine.expect("an empty engine"))
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for Stores {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TypeConfig>> {
        let (log, machine) = self.store().await;
        Ok(((), log, machine))
    }
}

macro_rules! uphold {
    ($stores:ident: $($law:ident),* $(,)?) => {$(
        let (log, machine) = $stores.store().await;
        Box::pin(Suite::$law(log, machine)).await.expect(stringify!($law));
    )*};
}

#[tokio::test(start_paused = true)]
async fn the_log_upholds_the_laws_of_openraft() {
    let stores = Stores::new();
    uphold!(stores:
        save_vote,
        get_log_entries,
        limited_get_log_entries,
        leader_bounded_stream,
        entries_stream,
        try_get_log_entry,
        log_reader_reads_new_entries,
        initial_logs,
        get_log_state,
        get_log_id,
        last_id_in_log,
        purge_logs_upto_0,
        purge_logs_upto_5,
        purge_logs_upto_20,
        delete_logs_after_11,
        delete_logs_after_5,
        delete_logs_after_0,
        delete_logs_after_none,
        append_to_log,
    );
}

#[tokio::test(start_paused = true)]
async fn the_state_machine_upholds_the_laws_of_openraft() {
    let stores = Stores::new();
    uphold!(stores: last_applied_state, apply_single, apply_multiple, snapshot_meta_optional);
}

#[tokio::test(start_paused = true)]
async fn log_and_state_machine_together_uphold_the_laws_of_openraft() {
    let stores = Stores::new();
    uphold!(stores:
        last_membership_in_log_initial,
        last_membership_in_log,
        last_membership_in_log_multi_step,
        get_membership_initial,
        get_membership_from_log_and_empty_sm,
        get_membership_from_empty_log_and_sm,
        get_membership_from_log_le_sm_last_applied,
        get_membership_from_log_gt_sm_last_applied_1,
        get_membership_from_log_gt_sm_last_applied_2,
        get_initial_state_without_init,
        get_initial_state_with_state,
        get_initial_state_last_log_gt_sm,
        get_initial_state_inverted_log_order,
        get_initial_state_conflict_at_same_index,
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_upholds_the_laws_of_openraft() {
    let stores = Stores::new();
    Box::pin(Suite::transfer_snapshot(&stores)).await.expect("transfer_snapshot");
}

/// Logs without their beginning: openraft asks the state machine to describe what stands for it.
/// Nothing is purged yet, but L7 leaves such logs.
#[tokio::test(start_paused = true)]
async fn a_log_that_begins_late_upholds_the_laws_of_openraft() {
    let stores = Stores::new();
    uphold!(stores:
        get_initial_state_membership_from_empty_log_and_sm,
        get_initial_state_membership_from_sm_inlog_is_smaller,
        get_initial_state_membership_from_log_insm_is_smaller,
        get_initial_state_last_log_lt_sm,
        get_initial_state_log_ids,
        get_initial_state_re_apply_committed,
        snapshot_meta,
    );
}
