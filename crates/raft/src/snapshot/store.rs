//! The node's folder of snapshots: who may use it, names in it, and how its disk is waited for.
//!
//! A snapshot is made to be sent, or was received to be installed. It does not outlive the process that
//! put it there, and is not synced; what a crash leaves behind goes at the next start. The exception
//! are files that were installed: they are kept (`keep`), and only those of replicas that the log does
//! not know any more go at the start.
//!
//! # Invariants
//!
//! - At most two groups hold views of the engine for a snapshot, at most two for a digest, and at most
//!   two snapshots are being received (E2).
//! - A [`Place`] is removed when its last holder is gone, and its name is not used again by this
//!   process: whoever still sends from an older snapshot is not disturbed. One whose files are kept has
//!   been renamed by then.
//! - No task waits for the disk on a thread that others need: see [`SnapshotStore::run`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_runtime::Disk;
use annulus_types::GroupId;
use annulus_wal::StreamId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::keep;
use crate::waits::Waits;

/// Groups whose views may be held at once (E2).
const PICTURES: usize = 2;
/// Snapshots that may be on their way in at once.
const RECEPTIONS: usize = 2;
/// Groups whose digests may be taken at once (E5).
const DIGESTS: usize = 2;

/// See the module.
pub(crate) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    waits: Waits,
    pictures: Arc<Semaphore>,
    receptions: Arc<Semaphore>,
    digests: Arc<Semaphore>,
    /// Tells folders of one group and entry apart.
    next: AtomicU64,
    /// A bit of the next part that is sent will be wrong.
    #[cfg(test)]
    spoils: std::sync::atomic::AtomicBool,
}

impl SnapshotStore {
    /// Removes what an earlier process left in `dir` and did not keep. A folder that cannot be removed
    /// costs space and nothing else.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf, waits: Waits) -> Arc<Self> {
        keep::clear(disk.as_ref(), &dir, |kept| kept.is_some());
        Arc::new(Self {
            disk,
            dir,
            waits,
            pictures: Arc::new(Semaphore::new(PICTURES)),
            receptions: Arc::new(Semaphore::new(RECEPTIONS)),
            digests: Arc::new(Semaphore::new(DIGESTS)),
            next: AtomicU64::new(0),
            #[cfg(test)]
            spoils: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Removes what was kept for replicas that are not known any more. Waits on the disk.
    pub(crate) fn forget_strangers(&self, is_known: impl Fn(StreamId) -> bool) {
        let stays = |kept: Option<keep::Kept>| kept.is_none_or(|kept| is_known(kept.stream));
        keep::clear(self.disk.as_ref(), &self.dir, stays);
    }

    /// Runs a piece of work that waits on the disk or the engine. Dropping the future does not end
    /// work that has begun, only what would have come after it.
    ///
    /// # Errors
    /// The work's own.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.waits.run(work).await
    }

    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leave to hold views of one group; `None` while too many do.
    pub(crate) fn may_view(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.pictures).try_acquire_owned().ok()
    }

    /// Leave to receive a snapshot; `None` while too many do.
    pub(crate) fn may_receive(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.receptions).try_acquire_owned().ok()
    }

    /// Leave to hold views for a digest; `None` while too many do.
    pub(crate) fn may_digest(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.digests).try_acquire_owned().ok()
    }

    /// A folder for a snapshot of `group` at entry `index`; not made yet.
    pub(crate) fn place(self: &Arc<Self>, group: GroupId, index: u64) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{group}-{index}-{number}"));
        Place { store: Arc::clone(self), path }
    }

    /// Takes the bit that a test wants wrong.
    #[cfg(test)]
    pub(crate) fn takes_spoil(&self) -> bool {
        self.spoils.swap(false, Ordering::SeqCst)
    }

    #[cfg(not(test))]
    pub(crate) fn takes_spoil(&self) -> bool {
        false
    }

    /// Makes a bit of the next part that is sent wrong.
    #[cfg(test)]
    pub(crate) fn spoil_next_part(&self) {
        self.spoils.store(true, Ordering::SeqCst);
    }

    /// Whether the wrong bit is still to come.
    #[cfg(test)]
    pub(crate) fn is_to_spoil(&self) -> bool {
        self.spoils.load(Ordering::SeqCst)
    }
}

/// The folder of one snapshot.
pub(crate) struct Place {
    store: Arc<SnapshotStore>,
    path: PathBuf,
}

impl Place {
    /// Makes the folder.
    pub(crate) async fn create(&self) -> io::Result<()> {
        let (disk, path) = (self.store.disk(), self.path.clone());
        self.store.run(move || disk.create_dir_all(&path)).await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn store(&self) -> &Arc<SnapshotStore> {
        &self.store
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (disk, path) = (self.store.disk(), std::mem::take(&mut self.path));
        let remove = move || match disk.remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It goes at the next start.
                tracing::info!(folder = %path.display(), %error, "a snapshot stays on the disk");
            }
            Ok(()) | Err(_) => {}
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.store.waits == Waits::Aside => drop(runtime.spawn_blocking(remove)),
            Ok(_) | Err(_) => remove(),
        }
    }
}
