//! How files become the state of a replica (E3).
//!
//! Rows go into the engine in batches of about a megabyte, under prefixes that nobody reads. Then one
//! batch changes what the records name, and the group's state with it: a crash leaves the former state
//! or the new one. Readers of the former state keep it for as long as they hold it; that is the
//! machine's part (E6).
//!
//! Files come from a leader, and are installed here, or were kept, and `refill` takes the same way.
//!
//! # Invariants
//!
//! - Nothing is switched in before every file has been read to its end and matched its checksum.
//! - When an installation returns, which lets openraft purge the log up to it, its files are kept and
//!   durable ([`keep`]): the engine and the log together are not all there is. They were synced, read
//!   back and found to be what the machine can import before they took the place of former ones (E1).
//! - An installation that fails, because its files could not be kept or for another reason, has purged
//!   nothing. Before the switch it has changed nothing that anybody reads.

use std::io;
use std::path::Path;
use std::sync::Arc;

use annulus_engine::{Batch, Engine};
use annulus_types::GroupId;
use annulus_wal::StreamId;

use super::files::{FileEntry, FileReader, RowReader, invalid};
use super::store::SnapshotStore;
use super::{Content, keep};
use crate::machine::{GroupState, Import, StateMachine};
use crate::types::entry_id;

/// One file on its way into the engine.
struct Filling {
    engine: Arc<dyn Engine>,
    import: Box<dyn Import>,
    id: u64,
    file: FileReader,
    rows: RowReader,
    /// Names and values of its rows so far.
    bytes: usize,
}

impl Filling {
    /// Takes a piece of the file; returns whether it was the last.
    fn step(&mut self) -> io::Result<bool> {
        let piece = self.file.chunk()?;
        let rows = self.rows.feed(&piece).map_err(invalid)?;
        self.bytes += rows.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let mut batch = Batch::default();
        self.import.rows(self.id, rows, &mut batch).map_err(io::Error::other)?;
        self.engine.apply(batch).map_err(io::Error::other)?;
        if self.file.is_through() {
            self.rows.finish().map_err(invalid)?;
        }
        Ok(self.file.is_through())
    }
}

/// A whole state in the engine, where nobody sees it yet.
pub(super) struct Filled {
    import: Box<dyn Import>,
    /// Makes it seen.
    batch: Batch,
    /// Names and values of all rows.
    bytes: usize,
}

/// Brings the rows of the files in the folder `dir` into the engine. What was brought is left to the
/// machine if it fails.
pub(super) async fn fill(
    store: &SnapshotStore,
    engine: &Arc<dyn Engine>,
    dir: &Path,
    files: &[FileEntry],
    mut import: Box<dyn Import>,
) -> io::Result<Filled> {
    let mut bytes = 0;
    for entry in files.iter().copied() {
        let (disk, dir, engine) = (store.disk(), dir.to_owned(), Arc::clone(engine));
        let begin = move || -> io::Result<Filling> {
            let file = FileReader::open(disk.as_ref(), &dir, entry)?;
            let rows = RowReader::default();
            Ok(Filling { engine, import, id: entry.id, file, rows, bytes: 0 })
        };
        let mut filling = store.run(begin).await?;
        let mut is_through = false;
        while !is_through {
            let step = move || filling.step().map(|is_through| (filling, is_through));
            (filling, is_through) = store.run(step).await?;
        }
        bytes += filling.bytes;
        import = filling.import;
    }
    let prepare = move || -> io::Result<Filled> {
        let mut batch = Batch::default();
        import.switch(&mut batch).map_err(io::Error::other)?;
        Ok(Filled { import, batch, bytes })
    };
    store.run(prepare).await
}

/// Makes what was brought into the engine the machine's state, and `state` the group's. Durable on
/// return; after an error nobody knows which state the engine holds.
pub(super) async fn switch(
    store: &SnapshotStore,
    engine: &Arc<dyn Engine>,
    group: GroupId,
    filled: Filled,
    state: &GroupState,
) -> io::Result<()> {
    let Filled { import, mut batch, .. } = filled;
    batch.put(GroupState::key(group), state.encode());
    let applying = Arc::clone(engine);
    store.run(move || applying.apply(batch).map_err(io::Error::other)).await?;
    import.switched();
    let syncing = Arc::clone(engine);
    store.run(move || syncing.make_durable().map_err(io::Error::other)).await
}

impl StateMachine {
    /// Replaces the state of the group by a snapshot's, and keeps its files. They are somewhere else
    /// then: a snapshot that was installed here cannot be sent any more.
    pub(crate) async fn install(&mut self, content: &Content) -> io::Result<()> {
        let folder = content.folder().await?;
        let manifest = folder.manifest();
        let last = manifest.last().map_err(invalid)?;
        if self.state.applied.is_some_and(|applied| applied.index >= last.index) {
            return Err(invalid("a snapshot must be newer than the state that it replaces"));
        }
        keep::sync(&folder).await?;
        let (import, dir) = (Arc::clone(&self.machine).import(), folder.place().path());
        let filled = fill(&self.store, &self.engine, dir, &manifest.files, import).await?;
        let (group, replica) = (self.replica.group, self.replica.me);
        keep::keep(&folder, StreamId { group, replica }).await?;

        let mut state = manifest.state.clone();
        state.whole |= self.state.whole || self.replica.reaches_whole(last.index);
        // The log is purged up to here as soon as this returns.
        let bytes = filled.bytes;
        switch(&self.store, &self.engine, group, filled, &state).await?;

        self.replica.arrival.took_state(bytes);
        self.log.membership_installed(last.index, &state.membership);
        self.replica.set_whole(state.whole);
        self.state = state;
        self.tell_applied(entry_id(&last));
        tracing::info!(%group, index = last.index, "snapshot installed");
        Ok(())
    }
}
