//! A machine of the cluster: a disk that stays, and at most one process at a time.
//!
//! A machine is *in service* when processes may run on it: one that is still to join is not, nor is one
//! that is being wiped. A wiped machine goes on with another data folder, which is another life of its
//! node (N1).
//!
//! Invariants: only a machine in service boots. [`Machine::process`] is the process that runs now. Taking
//! it away and ending its disk and network happen in one step of the simulation, in `world`; from that
//! step on whatever parts of it still run reach nothing.

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

/// One boot of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Counts the processes of the machine.
    pub(crate) count: u64,
    /// Counts the lives of the data folder, from 0.
    pub(crate) life: u64,
    /// Names the life.
    pub(crate) incarnation: u64,
    /// Counts the processes of the life.
    pub(crate) starts: u64,
}

#[derive(Default)]
struct Slot {
    process: Option<Arc<Process>>,
    is_in_service: bool,
    is_booting: bool,
    boots: u64,
    life: u64,
    incarnation: u64,
    starts: u64,
    /// A fault will end the process, which may stop by itself before.
    is_doomed: bool,
}

impl Machine {
    pub(crate) fn new(plan: MachinePlan, random: &Random) -> Self {
        let disk = SimDisk::new(Random::seeded(random.u64()));
        let random = Random::seeded(random.u64());
        let slot = Slot { incarnation: draw_incarnation(&random), ..Slot::default() };
        Self {
            plan,
            disk,
            random,
            slot: Mutex::new(slot),
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

    /// The life of the data folder.
    pub(crate) fn incarnation(&self) -> u64 {
        self.slot.lock().incarnation
    }

    pub(crate) fn is_in_service(&self) -> bool {
        self.slot.lock().is_in_service
    }

    pub(crate) fn set_in_service(&self, is_in_service: bool) {
        self.slot.lock().is_in_service = is_in_service;
    }

    /// Goes on with an empty data folder. `false` when a process runs on the present one.
    pub(crate) fn wipe(&self) -> bool {
        let mut slot = self.slot.lock();
        if slot.process.is_some() || slot.is_booting {
            return false;
        }
        slot.life += 1;
        slot.incarnation = draw_incarnation(&self.random);
        slot.starts = 0;
        true
    }

    /// Begins a boot; `None` when there is a process already, or must not be one.
    pub(crate) fn begin_boot(&self) -> Option<Boot> {
        let mut slot = self.slot.lock();
        if slot.process.is_some() || slot.is_booting || !slot.is_in_service {
            return None;
        }
        slot.is_booting = true;
        slot.boots += 1;
        slot.starts += 1;
        // It was meant for the process before.
        self.sync_fails.store(false, Ordering::Relaxed);
        let Slot { boots: count, life, incarnation, starts, .. } = *slot;
        Some(Boot { count, life, incarnation, starts })
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

/// Names a life of a data folder; 0 would be none.
fn draw_incarnation(random: &Random) -> u64 {
    random.u64() | 1
}
