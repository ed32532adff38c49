//! The simulated disk: files in memory that lose at a power cut what a real disk may lose.
//!
//! Owns the fault model of the log's rules L2 and L3:
//! - a *sector* of 512 bytes is on the medium whole or not at all. Of a file's unsynced sectors any
//!   subset survives a crash, each in the last version or in an earlier one; of its unsynced growth
//!   all, nothing, or a part that ends with a sector (what did not arrive there reads as zeros);
//! - names that no sync of their folder covered survive or not, each for itself, renames whole;
//! - a failed sync leaves nothing known: what it should have covered is still read, later syncs
//!   succeed and do not cover it either, and the next crash decides about it. What is written anew
//!   is covered again;
//! - a failed write leaves a part of its data that ends with a sector (systems copy into their caches
//!   by pages, and look between two whether to go on).
//!
//! Every choice is drawn from the seed, in the order of the calls: equal seeds and calls leave
//! equal disks. Not simulated: a disk that loses a flush which it reported (outside the model, L3),
//! and the time that a disk takes (a simulation decides when it calls).
//!
//! A *process* is what lives from one [`SimDisk::crash`] or [`SimDisk::kill`] to the next. Its open
//! files and locks end with it: every later call on them is an error that changes nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use self::content::{Content, SECTOR};
use self::names::{Change, Folder, Node, Tree};
use crate::disk::{Disk, DiskFile, DiskLock, Open, Space};
use crate::random::Random;

mod content;
mod names;
#[cfg(test)]
mod tests;

/// The size of a disk until [`SimDisk::set_space`] says otherwise.
const DEFAULT_BYTES: u64 = 1 << 40;

/// A disk in memory. Cheap to clone; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// The process that the handle belongs to; without one it outlives every process.
    process: Option<u64>,
}

/// What a disk has done since it was made. Failed calls do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Calls that wrote.
    pub writes: u64,
    /// Bytes that they wrote.
    pub bytes: u64,
    /// Syncs of files and folders.
    pub syncs: u64,
    /// Names created, renamed or removed.
    pub names: u64,
}

impl DiskCounters {
    /// Everything that a crash test wants to stop at.
    #[must_use]
    pub fn changes(self) -> u64 {
        self.writes + self.syncs + self.names
    }
}

struct State {
    random: Random,
    /// Counts crashes and kills.
    process: u64,
    tree: Tree,
    locks: BTreeSet<Folder>,
    faults: Faults,
    counters: DiskCounters,
    /// Bytes of the visible files, as far as known without adding them up.
    used: u64,
    /// What `used` may grow to.
    capacity: u64,
    total: u64,
}

/// What will go wrong until the process ends.
#[derive(Default)]
struct Faults {
    failing_syncs: u64,
    writes_left: Option<u64>,
    changes_left: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Write,
    Sync,
    Name,
}

impl State {
    /// Whether the planned faults let a step pass; counts it if so.
    fn passes(&mut self, step: Step) -> bool {
        let mut passes = take(&mut self.faults.changes_left);
        match step {
            Step::Write => passes &= take(&mut self.faults.writes_left),
            Step::Sync if self.faults.failing_syncs > 0 => {
                self.faults.failing_syncs -= 1;
                passes = false;
            }
            Step::Sync | Step::Name => {}
        }
        if passes {
            match step {
                Step::Write => self.counters.writes += 1,
                Step::Sync => self.counters.syncs += 1,
                Step::Name => self.counters.names += 1,
            }
        }
        passes
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        if !self.passes(Step::Name) {
            return Err(Errno::IO.into());
        }
        self.tree.make(change);
        Ok(())
    }

    fn count_used(&mut self) {
        self.used = self.tree.files().map(|content| content.lock().len()).sum();
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    fn end_process(&mut self) {
        self.process += 1;
        self.locks.clear();
        self.faults = Faults::default();
    }
}

/// Takes one of a limited number; without a limit there is always one.
fn take(left: &mut Option<u64>) -> bool {
    match left {
        None => true,
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
    }
}

impl SimDisk {
    /// An empty disk: a root folder and nothing in it. Draws from a sequence of its own, which
    /// `random` seeds.
    #[must_use]
    pub fn new(random: Random) -> Self {
        let state = State {
            random: Random::seeded(random.u64()),
            process: 0,
            tree: Tree::new(),
            locks: BTreeSet::new(),
            faults: Faults::default(),
            counters: DiskCounters::default(),
            used: 0,
            capacity: DEFAULT_BYTES,
            total: DEFAULT_BYTES,
        };
        Self { state: Arc::new(Mutex::new(state)), process: None }
    }

    /// A handle of the process that runs now: dead after the next [`Self::crash`] or
    /// [`Self::kill`]. For the parts of a node, which may run on for a while after their node was
    /// killed and must not touch what the next process does.
    #[must_use]
    pub fn process(&self) -> Self {
        let process = self.state.lock().process;
        self.of_process(process)
    }

    /// Cuts the power: ends the process, loses what is not durable, as the seed decides. Planned
    /// faults end too.
    pub fn crash(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.end_process();
        state.tree.crash(&state.random);
        for content in state.tree.files() {
            content.lock().crash(&state.random);
        }
        state.count_used();
    }

    /// Ends the process as `kill -9` does: the machine goes on, so nothing is lost, and nothing
    /// more becomes durable. Planned faults end too.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.end_process();
        state.count_used();
    }

    /// The next `count` syncs of files or folders fail.
    pub fn fail_next_syncs(&self, count: u64) {
        self.state.lock().faults.failing_syncs = count;
    }

    /// `count` more writes succeed, later ones fail until the process ends.
    pub fn fail_after_writes(&self, count: u64) {
        self.state.lock().faults.writes_left = Some(count);
    }

    /// `count` more changes (writes, syncs, names) succeed, later ones fail until the process ends.
    /// With a crash afterwards: a power cut at that point.
    pub fn fail_after_changes(&self, count: u64) {
        self.state.lock().faults.changes_left = Some(count);
    }

    /// Rot: inverts the bits of one byte on the medium. A sector that is not yet durable hides it.
    ///
    /// # Errors
    /// When there is no such file, or no such byte on the medium.
    pub fn flip_byte(&self, path: &Path, offset: u64) -> io::Result<()> {
        match self.state.lock().tree.find(path)? {
            Node::File(content) => content.lock().flip(offset),
            Node::Folder(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// From now on `free` of `total` bytes are free; files that grow take of them, removed ones
    /// give back.
    pub fn set_space(&self, free: u64, total: u64) {
        let mut state = self.state.lock();
        state.count_used();
        state.capacity = state.used.saturating_add(free);
        state.total = total;
    }

    /// What the disk has done so far.
    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        self.state.lock().counters
    }

    fn of_process(&self, process: u64) -> Self {
        Self { state: Arc::clone(&self.state), process: Some(process) }
    }

    fn enter(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        match self.process {
            Some(process) if process != state.process => {
                Err(io::Error::other("the process that held this has ended"))
            }
            _ => Ok(state),
        }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.enter()?;
        let content = match (how, state.tree.find(path)) {
            (Open::CreateNew, Ok(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Open::CreateNew, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                let slot = state.tree.slot(path)?;
                let content: Arc<Mutex<Content>> = Arc::default();
                state.change(Change::link(slot, Node::File(Arc::clone(&content))))?;
                content
            }
            (_, Ok(Node::File(content))) => content,
            (_, Ok(Node::Folder(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (_, Err(error)) => return Err(error),
        };
        let disk = self.of_process(state.process);
        Ok(Arc::new(SimFile { disk, content, writable: how != Open::Read }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        for change in state.tree.missing_folders(path)? {
            state.change(change)?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.enter()?;
        let folder = state.tree.find_folder(dir)?;
        Ok(state.tree.list(folder))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.enter()?.tree.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        if let Some(change) = state.tree.renaming(from, to)? {
            state.change(change)?;
            state.count_used();
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        if let Node::Folder(_) = state.tree.find(path)? {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let slot = state.tree.slot(path)?;
        state.change(Change::unlink(slot))?;
        state.count_used();
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        for change in state.tree.removing(path)? {
            state.change(change)?;
        }
        state.count_used();
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let folder = state.tree.find_folder(dir)?;
        if !state.passes(Step::Sync) {
            state.tree.fail_sync(folder);
            return Err(Errno::IO.into());
        }
        state.tree.sync(folder);
        Ok(())
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.enter()?;
        let folder = state.tree.find_folder(dir)?;
        // A lock of the operating system is one on a file, which stays behind.
        let path = dir.join("LOCK");
        match state.tree.find(&path) {
            Ok(Node::File(_)) => {}
            Ok(Node::Folder(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            Err(_) => {
                let slot = state.tree.slot(&path)?;
                state.change(Change::link(slot, Node::File(Arc::default())))?;
            }
        }
        if !state.locks.insert(folder) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.of_process(state.process), folder }))
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let state = self.enter()?;
        state.tree.find(dir)?;
        Ok(Space { free: state.free(), total: state.total })
    }
}

struct SimFile {
    disk: SimDisk,
    /// Locked only by holders of the disk's own lock.
    content: Arc<Mutex<Content>>,
    writable: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("writable", &self.writable).finish_non_exhaustive()
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let _state = self.disk.enter()?;
        self.content.lock().read(buf, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut guard = self.disk.enter()?;
        let state = &mut *guard;
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        if data.is_empty() {
            return Ok(());
        }
        let count = u64::try_from(data.len()).map_err(io::Error::other)?;
        let Some(end) = offset.checked_add(count) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut content = self.content.lock();
        let before = content.len();
        let room = before.saturating_add(state.free()).saturating_sub(offset);
        let (kept, outcome): (u64, io::Result<()>) = if !state.passes(Step::Write) {
            let kept = (offset + state.random.below(count)) / SECTOR * SECTOR;
            (kept.saturating_sub(offset).min(room), Err(Errno::IO.into()))
        } else if end > before && room < count {
            (room, Err(Errno::NOSPC.into()))
        } else {
            (count, Ok(()))
        };
        let kept = usize::try_from(kept).map_err(io::Error::other)?;
        content.write(&data[..kept], offset, &state.random);
        state.used += content.len() - before;
        if outcome.is_ok() {
            state.counters.bytes += count;
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.enter()?;
        let mut content = self.content.lock();
        if !state.passes(Step::Sync) {
            content.fail_sync();
            return Err(Errno::IO.into());
        }
        content.sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let _state = self.disk.enter()?;
        Ok(self.content.lock().len())
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    folder: Folder,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        // When the process has ended, the lock may be another's by now.
        if let Ok(mut state) = self.disk.enter() {
            state.locks.remove(&self.folder);
        }
    }
}
