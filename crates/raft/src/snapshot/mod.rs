//! Snapshots: how a replica that needs entries which its leader holds no more gets the state that
//! stands for them.
//!
//! No log is purged to save space yet, but one may begin late: a log that the engine has overtaken
//! (L7), and that of whoever was brought up by a snapshot. openraft then asks the leader's state machine
//! for a snapshot and the network to bring it to the follower. A new replica is sent one in the same way
//! before it gets a seat (`seed`).
//!
//! 1. *Picture*: between two entries, views of everything that belongs to the group are taken, with
//!    the group's own state (applied entry, membership, group time). This costs next to nothing, so
//!    that openraft may also ask only for the description, as it does at every start.
//! 2. *Folder* ([`files`]): the views are copied at the speed of the disk into checksummed files and
//!    let go (E2). Whatever is slow reads the files.
//! 3. *Transfer* ([`send`], [`receive`]): a call of its own beside the peer link. The receiver checks
//!    who sends what to whom (N2), and every file against the manifest, before openraft hears of it.
//! 4. *Installation* ([`install`]): the rows go under new prefixes, where no reader sees them, then one
//!    batch switches the records and the group's state (E3). Before that the files become the kept files
//!    of the replica ([`keep`]).
//! 5. *Refill* ([`refill`]): a replica whose engine is behind the beginning of its log, because an engine
//!    was lost, gets the state of its kept files before its Raft is built, in the same way.
//!
//! # Invariants
//!
//! - A snapshot is the state at exactly one applied entry: views are taken where nothing is applied.
//! - What is installed was complete and matched its checksums.
//! - The log is purged up to a snapshot only after its files are kept and the engine has made it
//!   durable: openraft purges when [`install`] has returned. What cannot be kept is not installed.
//!
//! # Failure
//!
//! A transfer that breaks, or is refused, is tried again by openraft after a pause, from the
//! beginning. A crash leaves files, which go at the next start unless they are kept, and perhaps rows
//! under prefixes that no record names, which the machine removes. An installation that fails stops the
//! replica (W8). A lost engine whose replica has no kept files, or none that verify or reach the log,
//! leaves the replica absent, with the reason.

pub(crate) mod files;
mod install;
mod keep;
pub(crate) mod receive;
mod refill;
pub(crate) mod send;
pub(crate) mod store;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Engine, EngineError, View};
use annulus_types::GroupId;
use bytes::{BufMut, Bytes, BytesMut};
use openraft::storage::{RaftSnapshotBuilder, Snapshot};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use self::files::{CHUNK_BYTES, FileEntry, FileWriter, Folder, Manifest, file_head, put_row};
use self::store::{Place, SnapshotStore};
use crate::machine::{GroupState, Machine};
use crate::types::TypeConfig;

/// Rows that are read from a view at once: few enough to be bounded by the longest values, many
/// enough to make short ones cheap.
const PAGE_ROWS: usize = 32;

/// What stands behind a snapshot that openraft handles.
#[derive(Clone)]
pub(crate) enum Content {
    /// Nothing: it describes the state and cannot be sent.
    Described,
    /// Views of the engine, and the files that are made of them when they are needed.
    Taken(Arc<Picture>),
    /// Files.
    Stored(Arc<Folder>),
}

impl Content {
    /// The files. Not long, or as long as copying the group's state takes. Cancel-safe.
    pub(crate) async fn folder(&self) -> io::Result<Arc<Folder>> {
        match self {
            Self::Described => Err(io::Error::other("too many snapshots are being taken")),
            Self::Taken(picture) => {
                picture.folder.get_or_try_init(|| picture.copy()).await.map(Arc::clone)
            }
            Self::Stored(folder) => Ok(Arc::clone(folder)),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Described => "Described",
            Self::Taken(_) => "Taken",
            Self::Stored(_) => "Stored",
        })
    }
}

/// A group's state at one applied entry.
pub(crate) struct Picture {
    store: Arc<SnapshotStore>,
    machine: Arc<dyn Machine>,
    group: GroupId,
    state: GroupState,
    /// Until there are files.
    views: Mutex<Option<Arc<Views>>>,
    folder: OnceCell<Arc<Folder>>,
}

struct Views {
    parts: Vec<Part>,
    _permit: OwnedSemaphorePermit,
}

/// The views of one file.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) id: u64,
    pub(crate) views: Vec<(Range<Bytes>, Arc<dyn View>)>,
}

/// Takes views of the whole state, in the order in which a manifest lists the files. The caller applies
/// nothing meanwhile.
pub(crate) fn parts(
    engine: &dyn Engine,
    machine: &Arc<dyn Machine>,
) -> Result<Vec<Part>, EngineError> {
    let mut files = machine.files();
    files.sort_unstable_by_key(|file| file.id);
    let mut parts = Vec::with_capacity(files.len());
    for file in files {
        let mut views = Vec::with_capacity(file.ranges.len());
        for range in file.ranges {
            views.push((range.clone(), engine.view(range)?));
        }
        parts.push(Part { id: file.id, views });
    }
    Ok(parts)
}

impl Picture {
    /// Takes the views. The caller applies nothing meanwhile. `None` while too many are held.
    pub(crate) fn take(
        store: &Arc<SnapshotStore>,
        engine: &dyn Engine,
        machine: &Arc<dyn Machine>,
        group: GroupId,
        state: &GroupState,
    ) -> Result<Option<Arc<Self>>, EngineError> {
        let Some(permit) = store.may_view() else { return Ok(None) };
        let parts = parts(engine, machine)?;
        Ok(Some(Arc::new(Self {
            store: Arc::clone(store),
            machine: Arc::clone(machine),
            group,
            state: state.clone(),
            views: Mutex::new(Some(Arc::new(Views { parts, _permit: permit }))),
            folder: OnceCell::new(),
        })))
    }

    pub(crate) fn state(&self) -> &GroupState {
        &self.state
    }

    /// Makes the files. One that is given up half way, or fails, leaves nothing.
    async fn copy(&self) -> io::Result<Arc<Folder>> {
        let views = self.views.lock().clone();
        let Some(views) = views else {
            return Err(io::Error::other("the views of a snapshot are gone"));
        };
        let index = self.state.applied.as_ref().map_or(0, |id| id.index);
        let place = self.store.place(self.group, index);
        place.create().await?;
        let mut files = Vec::with_capacity(views.parts.len());
        for part in &views.parts {
            files.push(self.copy_part(&place, part).await?);
        }
        let manifest = Manifest { group: self.group, state: self.state.clone(), files };
        let folder = Folder::seal(place, manifest).await?;
        *self.views.lock() = None;
        Ok(Arc::new(folder))
    }

    async fn copy_part(&self, place: &Place, part: &Part) -> io::Result<FileEntry> {
        let (disk, dir, id) = (self.store.disk(), place.path().to_owned(), part.id);
        let begin = move || -> io::Result<FileWriter> {
            let mut writer = FileWriter::create(disk.as_ref(), &dir, id)?;
            writer.write(&file_head()).map(|()| writer)
        };
        let mut writer = self.store.run(begin).await?;
        for (range, view) in &part.views {
            let mut rest = Some(range.clone());
            while let Some(range) = rest.take() {
                let (machine, view) = (Arc::clone(&self.machine), Arc::clone(view));
                let copy = move || {
                    let rest = copy_rows(machine.as_ref(), id, view.as_ref(), range, &mut writer);
                    rest.map(|rest| (writer, rest))
                };
                (writer, rest) = self.store.run(copy).await?;
            }
        }
        Ok(writer.finish(id))
    }
}

/// Copies about [`CHUNK_BYTES`] of `range`; returns what is left of it.
fn copy_rows(
    machine: &dyn Machine,
    file: u64,
    view: &dyn View,
    range: Range<Bytes>,
    writer: &mut FileWriter,
) -> io::Result<Option<Range<Bytes>>> {
    let mut out = BytesMut::new();
    let rest = read_rows(machine, file, view, range, &mut out)?;
    writer.write(&out)?;
    Ok(rest)
}

/// Appends about [`CHUNK_BYTES`] of `range` to `out`, as a file holds them; returns what is left of it.
pub(crate) fn read_rows(
    machine: &dyn Machine,
    file: u64,
    view: &dyn View,
    mut range: Range<Bytes>,
    out: &mut BytesMut,
) -> io::Result<Option<Range<Bytes>>> {
    loop {
        let rows = view.rows(range.clone(), PAGE_ROWS).map_err(io::Error::other)?;
        let is_last = rows.len() < PAGE_ROWS;
        if let Some((key, _)) = rows.last() {
            range.start = after(key);
        }
        for row in rows {
            let (name, value) = machine.export(file, row).map_err(io::Error::other)?;
            put_row(out, &name, &value)?;
        }
        if is_last || out.len() >= CHUNK_BYTES {
            return Ok((!is_last).then_some(range));
        }
    }
}

/// The first key above `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Describes the state machine as it was when the builder was made, and copies it into files.
pub(crate) struct Builder {
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
    pub(crate) content: Content,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Content;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, Content>, io::Error> {
        if !matches!(self.content, Content::Described) {
            self.content.folder().await?;
        }
        Ok(Snapshot { meta: self.meta.clone(), snapshot: self.content.clone() })
    }
}
