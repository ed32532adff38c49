//! An engine that was lost is refilled before its group's Raft is built (E1).
//!
//! An engine may come back empty, because it did not open and was moved aside, or without its end. As
//! long as the log still holds what follows the state that is there, applying it again makes up for
//! that. A log that begins later does so because a snapshot was installed, whose files were kept
//! (`keep`): they become the state of the replica, and the log goes on from there.
//!
//! # Invariants
//!
//! - The kept files reach to the beginning of the log or beyond, so that no entry is missing between
//!   them and the log. What the log holds below their end is no matter; a log that ends below it begins
//!   after it (L7).
//! - The state is exactly that of the files, its flag *whole* (E6) too.
//! - It is seen whole and verified, or not at all: it goes the way of an installation.
//!
//! # Failure
//!
//! Files that are missing, do not reach or do not verify leave everything as it was. The replica then
//! stays absent, with the reason, until it is replaced: a state that begins anywhere else would have
//! holes, and an empty one would be a voter that has forgotten what it acknowledged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_engine::EngineError;
use annulus_wal::{EntryId, GroupLog, StreamId};

use super::files::{Manifest, invalid};
use super::install::{fill, switch};
use super::keep;
use crate::host::{Host, HostError};
use crate::machine::{GroupState, Machine};
use crate::types::entry_id;

/// Why a lost state is not refilled.
#[derive(Debug, thiserror::Error)]
enum Unfilled {
    #[error("no snapshot files are kept")]
    NothingKept,
    #[error("the kept snapshot files reach to entry {0} only")]
    TooOld(u64),
    #[error("the kept snapshot files in {folder} are not usable: {reason}")]
    Unusable { folder: String, reason: io::Error },
}

impl Unfilled {
    fn unusable(dir: &Path, reason: io::Error) -> Self {
        Self::Unusable { folder: dir.display().to_string(), reason }
    }
}

impl Host {
    /// The state of a replica as its engine holds it; refilled if the engine has lost what its log
    /// holds no more.
    ///
    /// # Errors
    /// `NeedsRefill` when it is lost and cannot be refilled; nothing has changed then. As the engine
    /// says.
    pub(crate) async fn load_or_refill(
        &self,
        stream: StreamId,
        log: &GroupLog,
        machine: &Arc<dyn Machine>,
    ) -> Result<GroupState, HostError> {
        let state = GroupState::load(self.engine.as_ref(), stream.group)?;
        let Some(purged) = log.state().purged else { return Ok(state) };
        if state.applied.is_some_and(|applied| applied.index >= purged.index) {
            return Ok(state);
        }
        let needs_refill = |why: Unfilled| HostError::NeedsRefill {
            begins_after: purged.index,
            reason: why.to_string(),
        };
        let (dir, manifest) = self.kept(stream, purged, log).await.map_err(needs_refill)?;
        let (store, engine) = (&self.snapshots, &self.engine);
        let import = Arc::clone(machine).import();
        let filled = fill(store, engine, &dir, &manifest.files, import)
            .await
            .map_err(|error| needs_refill(Unfilled::unusable(&dir, error)))?;
        let switched = switch(store, engine, stream.group, filled, &manifest.state).await;
        switched.map_err(|error| EngineError::Failed {
            action: "refill a group's state",
            reason: error.to_string(),
        })?;
        tracing::info!(
            group = %stream.group,
            replica = %stream.replica,
            folder = %dir.display(),
            begins_after = purged.index,
            "a lost state was refilled from kept snapshot files"
        );
        Ok(manifest.state)
    }

    /// The kept files of a replica, if they and its log leave nothing out.
    async fn kept(
        &self,
        stream: StreamId,
        purged: EntryId,
        log: &GroupLog,
    ) -> Result<(PathBuf, Manifest), Unfilled> {
        let (store, root) = (&self.snapshots, self.snapshots.dir());
        let (disk, looked_in) = (store.disk(), root.to_owned());
        let find = move || keep::find(disk.as_ref(), &looked_in, stream);
        let found = store.run(find).await.map_err(|error| Unfilled::unusable(root, error))?;
        let Some(dir) = found else { return Err(Unfilled::NothingKept) };
        let (disk, looked_in) = (store.disk(), dir.clone());
        let loaded = store.run(move || Manifest::load(disk.as_ref(), &looked_in)).await;
        let fitting = loaded.and_then(|manifest| Ok((fits(&manifest, stream, log)?, manifest)));
        let (reach, manifest) = fitting.map_err(|error| Unfilled::unusable(&dir, error))?;
        if reach < purged.index {
            return Err(Unfilled::TooOld(reach));
        }
        Ok((dir, manifest))
    }
}

/// Checks that a manifest can be of the replica whose log this is. Returns the index of its last entry.
fn fits(manifest: &Manifest, stream: StreamId, log: &GroupLog) -> io::Result<u64> {
    let last = entry_id(&manifest.last().map_err(invalid)?);
    let state = log.state();
    let settled = [state.purged, state.committed].into_iter().flatten().map(|id| id.index).max();
    // Entries that are settled never change. That the log would be dropped for such a state (L7) must
    // not happen: it says that they are another replica's.
    let differs = log.id_at(last.index).is_some_and(|held| held != last)
        && settled.is_some_and(|settled| last.index <= settled);
    if manifest.group != stream.group || differs {
        return Err(invalid("they do not belong to this replica"));
    }
    Ok(last.index)
}
