//! A machine of the cluster: a disk that stays, and at most one process at a time.
//!
//! Invariant: [`Machine::process`] is the process that runs now. Taking it away and ending its disk
//! and network happen in one step of the simulation, in `world`; from that step on whatever parts
//! of it still run reach nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_runtime::{Random, SimDisk};
use parking_lot::Mutex;

use crate::plan::MachinePlan;
use crate::process::Process;

pub(crate) struct Machine {
    pub(crate) plan: MachinePlan,
    pub(crate) disk: SimDisk,
    random: Random,
    slot: Mutex<Slot>,
    /// What the log takes longer because of a fault.
    stall_ms: AtomicU64,
    /// The log's next sync fails.
    sync_fails: AtomicBool,
}

#[derive(Default)]
struct Slot {
    process: Option<Arc<Process>>,
    is_booting: bool,
    boots: u64,
    /// A fault will end the process, which may stop by itself before.
    is_doomed: bool,
}

impl Machine {
    pub(crate) fn new(plan: MachinePlan, random: &Random) -> Self {
        Self {
            plan,
            disk: SimDisk::new(Random::seeded(random.u64())),
            random: Random::seeded(random.u64()),
            slot: Mutex::default(),
            stall_ms: AtomicU64::new(0),
            sync_fails: AtomicBool::new(false),
        }
    }

    /// A sequence of random numbers for a part of the machine.
    pub(crate) fn sequence(&self) -> Random {
        Random::seeded(self.random.u64())
    }

    pub(crate) fn process(&self) -> Option<Arc<Process>> {
        self.slot.lock().process.clone()
    }

    /// Begins a boot and numbers it; `None` when there is a process already.
    pub(crate) fn begin_boot(&self) -> Option<u64> {
        let mut slot = self.slot.lock();
        if slot.process.is_some() || slot.is_booting {
            return None;
        }
        slot.is_booting = true;
        slot.boots += 1;
        // It was meant for the process before.
        self.sync_fails.store(false, Ordering::Relaxed);
        Some(slot.boots)
    }

    /// Ends a boot; without a process it has failed.
    pub(crate) fn end_boot(&self, process: Option<Arc<Process>>) {
        let mut slot = self.slot.lock();
        slot.is_booting = false;
        slot.is_doomed = false;
        slot.process = process;
    }

    /// Takes the process away; with `only`, if it is this one.
    pub(crate) fn take(&self, only: Option<&Arc<Process>>) -> Option<Arc<Process>> {
        let mut slot = self.slot.lock();
        let is_meant = match (&slot.process, only) {
            (Some(running), Some(only)) => Arc::ptr_eq(running, only),
            (running, None) => running.is_some(),
            (None, Some(_)) => false,
        };
        if is_meant { slot.process.take() } else { None }
    }

    /// Announces that a fault will end the process. `None` when there is none, or one that is
    /// doomed already.
    pub(crate) fn doom(&self) -> Option<Arc<Process>> {
        let mut slot = self.slot.lock();
        if slot.is_doomed {
            return None;
        }
        let process = slot.process.clone()?;
        slot.is_doomed = true;
        Some(process)
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.slot.lock().is_doomed
    }

    pub(crate) fn set_stall(&self, by_ms: u64) {
        self.stall_ms.store(by_ms, Ordering::Relaxed);
    }

    /// The next sync of the log fails, if there is one before the process ends.
    pub(crate) fn fail_next_log_sync(&self) {
        self.sync_fails.store(true, Ordering::Relaxed);
    }

    /// Whether a sync of the log is to fail now; it is then no more.
    pub(crate) fn takes_sync_failure(&self) -> bool {
        self.sync_fails.swap(false, Ordering::Relaxed)
    }

    /// How long the next write and sync of the log take.
    pub(crate) fn sync_time(&self, random: &Random) -> Duration {
        let stall_ms = self.stall_ms.load(Ordering::Relaxed);
        Duration::from_millis(self.plan.sync_ms.draw(random) + stall_ms)
    }
}
