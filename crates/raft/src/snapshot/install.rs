//! How files become the state of a replica (E3).
//!
//! Rows go into the engine in batches of about a megabyte, under prefixes that nobody reads. Then one
//! batch changes what the records name, and the group's state with it: a crash leaves the former state
//! or the new one. Readers of the former state keep it for as long as they hold it; that is the
//! machine's part (E6).

use std::io;
use std::sync::Arc;

use annulus_engine::{Batch, Engine};

use super::Content;
use super::files::{FileReader, Folder, RowReader, invalid};
use super::store::SnapshotStore;
use crate::machine::{GroupState, Import, StateMachine};
use crate::types::entry_id;

/// One file on its way into the engine.
struct Filling {
    engine: Arc<dyn Engine>,
    import: Box<dyn Import>,
    id: u64,
    file: FileReader,
    rows: RowReader,
}

impl Filling {
    /// Takes a piece of the file; returns whether it was the last.
    fn step(&mut self) -> io::Result<bool> {
        let piece = self.file.chunk()?;
        let rows = self.rows.feed(&piece).map_err(invalid)?;
        let mut batch = Batch::default();
        self.import.rows(self.id, rows, &mut batch).map_err(io::Error::other)?;
        self.engine.apply(batch).map_err(io::Error::other)?;
        if self.file.is_through() {
            self.rows.finish().map_err(invalid)?;
        }
        Ok(self.file.is_through())
    }
}

/// Brings the rows of all files into the engine.
async fn fill(
    store: &SnapshotStore,
    engine: &Arc<dyn Engine>,
    folder: &Arc<Folder>,
    mut import: Box<dyn Import>,
) -> io::Result<Box<dyn Import>> {
    for entry in folder.manifest().files.clone() {
        let (folder, engine) = (Arc::clone(folder), Arc::clone(engine));
        let begin = move || -> io::Result<Filling> {
            let file = folder.read(entry)?;
            Ok(Filling { engine, import, id: entry.id, file, rows: RowReader::default() })
        };
        let mut filling = store.run(begin).await?;
        let mut is_through = false;
        while !is_through {
            let step = move || filling.step().map(|is_through| (filling, is_through));
            (filling, is_through) = store.run(step).await?;
        }
        import = filling.import;
    }
    Ok(import)
}

impl StateMachine {
    /// Replaces the state of the group by a snapshot's.
    pub(crate) async fn install(&mut self, content: &Content) -> io::Result<()> {
        let folder = content.folder().await?;
        let mut state = folder.manifest().state.clone();
        let last = folder.manifest().last().map_err(invalid)?;
        if self.state.applied.is_some_and(|applied| applied.index >= last.index) {
            return Err(invalid("a snapshot must be newer than the state that it replaces"));
        }
        let import = Arc::clone(&self.machine).import();
        let mut import = fill(&self.store, &self.engine, &folder, import).await?;

        state.whole |= self.state.whole || self.replica.reaches_whole(last.index);
        let mut batch = Batch::default();
        import.switch(&mut batch).map_err(io::Error::other)?;
        batch.put(GroupState::key(self.replica.group), state.encode());
        let engine = Arc::clone(&self.engine);
        self.store.run(move || engine.apply(batch).map_err(io::Error::other)).await?;
        import.switched();
        // The log is purged up to here as soon as this returns.
        let engine = Arc::clone(&self.engine);
        self.store.run(move || engine.make_durable().map_err(io::Error::other)).await?;

        self.log.membership_installed(last.index, &state.membership);
        self.replica.set_whole(state.whole);
        self.state = state;
        self.replica.entry_applied(entry_id(&last), self.state.group_time_ms);
        tracing::info!(group = %self.replica.group, index = last.index, "snapshot installed");
        Ok(())
    }
}
