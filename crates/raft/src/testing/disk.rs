//! Drives a log's writer in simulated time, and holds it back when a story wants a stalled disk.
//!
//! A stalled disk takes writes into its queue and syncs none of them: nothing queued is acknowledged,
//! and a power cut loses all of it.

use std::sync::Arc;
use std::time::Duration;

use annulus_wal::{Wal, Writer};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// How long a sync takes.
const SYNC: Duration = Duration::from_millis(1);

type StallWhen = Box<dyn FnMut(&Wal) -> bool + Send>;

/// The switch of one process's disk.
#[derive(Default)]
pub(super) struct DiskSwitch {
    stalled: watch::Sender<bool>,
    stall_when: Mutex<Option<StallWhen>>,
    work: Notify,
}

impl DiskSwitch {
    /// From now on nothing is synced, or what waits is.
    pub(super) fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Stalls right behind the first sync after which `when` holds.
    pub(super) fn stall_when(&self, when: impl FnMut(&Wal) -> bool + Send + 'static) {
        *self.stall_when.lock() = Some(Box::new(when));
    }
}

/// Writes until the process ends.
pub(super) async fn drive(mut writer: Writer, wal: Wal, switch: Arc<DiskSwitch>) {
    let hook = Arc::clone(&switch);
    wal.on_work(Box::new(move || hook.work.notify_one()));
    let mut stalled = switch.stalled.subscribe();
    loop {
        switch.work.notified().await;
        tokio::time::sleep(SYNC).await;
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        if writer.step().is_err() {
            return;
        }
        let stalls = switch.stall_when.lock().as_mut().is_some_and(|when| when(&wal));
        if stalls {
            *switch.stall_when.lock() = None;
            switch.stall(true);
        }
    }
}
