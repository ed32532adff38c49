//! A disk in memory that knows, sector by sector, what was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::{Disk, DiskFile, DiskLock, Open, Space};
use parking_lot::Mutex;

pub(super) const SECTOR: usize = 512;

type Names = BTreeMap<PathBuf, u64>;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct TestDisk(Arc<Mutex<Inner>>);

#[derive(Clone, Debug, Default)]
struct Inner {
    names: Names,
    /// What a power cut may leave of the names: the synced ones, then those after each change.
    kept_names: Vec<Names>,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// Calls so far that change something.
    operations: usize,
    /// The first operation that fails, with all later ones.
    cut_at: Option<usize>,
    /// The next sync fails, and never happens; the disk goes on as if nothing were dirty.
    fail_sync: bool,
    /// Sectors that cannot be read.
    broken: BTreeSet<(u64, usize)>,
    during_sync: DuringSync,
    seeds: u64,
}

/// What happens elsewhere while the next sync is under way.
#[derive(Clone, Default)]
struct DuringSync(Option<Arc<dyn Fn() + Send + Sync>>);

impl std::fmt::Debug for DuringSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DuringSync").field(&self.0.is_some()).finish()
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Inner {
    /// Counts an operation. The first one that fails may still have had an effect.
    fn operate(&mut self) -> (bool, io::Result<()>) {
        let nth = self.operations;
        self.operations += 1;
        match self.cut_at {
            Some(cut) if nth >= cut => (nth == cut, Err(io::Error::other("the power is gone"))),
            _ => (true, Ok(())),
        }
    }

    fn change_names(&mut self, change: impl FnOnce(&mut Names)) -> io::Result<()> {
        let (effective, outcome) = self.operate();
        if effective {
            if self.kept_names.is_empty() {
                self.kept_names.push(Names::new());
            }
            change(&mut self.names);
            self.kept_names.push(self.names.clone());
        }
        outcome
    }

    fn content(&mut self, name: &str) -> (u64, &mut Content) {
        let (_, file) = self
            .names
            .iter()
            .find(|(path, _)| path.file_name().is_some_and(|found| found == name))
            .unwrap();
        (*file, self.files.get_mut(file).unwrap())
    }
}

impl TestDisk {
    /// Lets the operation `nth` and all later ones fail.
    pub(super) fn cut_at(&self, nth: usize) {
        self.0.lock().cut_at = Some(nth);
    }

    pub(super) fn fail_next_sync(&self) {
        self.0.lock().fail_sync = true;
    }

    pub(super) fn during_next_sync(&self, happens: impl Fn() + Send + Sync + 'static) {
        self.0.lock().during_sync = DuringSync(Some(Arc::new(happens)));
    }

    pub(super) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    /// A seed that no earlier life of the disk has seen.
    pub(super) fn next_seed(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.seeds += 1;
        inner.seeds
    }

    /// What another process finds when this one was killed: also what was never synced.
    pub(super) fn after_kill(&self) -> Self {
        let mut inner = self.0.lock().clone();
        inner.operations = 0;
        inner.cut_at = None;
        inner.fail_sync = false;
        Self(Arc::new(Mutex::new(inner)))
    }

    /// What is left after a power cut: `keep` decides about each sector and name not yet synced.
    pub(super) fn after_power_cut(&self, mut keep: impl FnMut() -> bool) -> Self {
        let mut inner = self.after_kill().0.lock().clone();
        let mut kept = 0;
        while kept + 1 < inner.kept_names.len() && keep() {
            kept += 1;
        }
        inner.names = inner.kept_names.get(kept).cloned().unwrap_or_default();
        inner.kept_names = vec![inner.names.clone()];
        for content in inner.files.values_mut() {
            let mut left = std::mem::take(&mut content.durable);
            for sector in std::mem::take(&mut content.dirty) {
                if keep() {
                    let start = sector * SECTOR;
                    let end = (start + SECTOR).min(content.now.len());
                    left.resize(left.len().max(end), 0);
                    left[start..end].copy_from_slice(&content.now[start..end]);
                }
            }
            content.now.clone_from(&left);
            content.durable = left;
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Names of the files, sorted.
    pub(super) fn files(&self) -> Vec<String> {
        let inner = self.0.lock();
        let names = inner.names.keys().filter_map(|path| path.file_name());
        names.map(|name| name.to_str().unwrap().to_owned()).collect()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().content(name).1.now.clone()
    }

    /// Changes bytes at rest.
    pub(super) fn spoil(&self, name: &str, spoil: impl FnOnce(&mut [u8])) {
        let mut inner = self.0.lock();
        let (_, content) = inner.content(name);
        spoil(&mut content.now);
        content.durable.clone_from(&content.now);
        content.dirty.clear();
    }

    pub(super) fn add_file(&self, path: &Path, bytes: &[u8]) {
        let file = self.open(path, Open::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
        self.sync_dir(path.parent().unwrap()).unwrap();
    }

    /// Makes a sector unreadable for the device.
    pub(super) fn break_sector(&self, name: &str, sector: usize) {
        let mut inner = self.0.lock();
        let (file, _) = inner.content(name);
        inner.broken.insert((file, sector));
    }
}

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    file: u64,
}

fn sectors(offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = offset as usize;
    start / SECTOR..(start + len).div_ceil(SECTOR)
}

impl DiskFile for TestFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = self.disk.0.lock();
        if sectors(offset, buf.len()).any(|sector| inner.broken.contains(&(self.file, sector))) {
            return Err(io::Error::other("the medium is broken"));
        }
        let now = &inner.files[&self.file].now;
        let end = offset as usize + buf.len();
        match now.get(offset as usize..end) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let (effective, outcome) = inner.operate();
        if effective {
            let content = inner.files.get_mut(&self.file).unwrap();
            let start = offset as usize;
            let end = start + data.len();
            content.now.resize(content.now.len().max(end), 0);
            content.now[start..end].copy_from_slice(data);
            content.dirty.extend(sectors(offset, data.len()));
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        let happens = self.disk.0.lock().during_sync.0.take();
        if let Some(happens) = happens {
            happens();
        }
        let mut inner = self.disk.0.lock();
        let (_, outcome) = inner.operate();
        outcome?;
        let failed = std::mem::take(&mut inner.fail_sync);
        let content = inner.files.get_mut(&self.file).unwrap();
        if failed {
            // As kernels do: the pages are clean now, and what they held is not on the medium.
            content.dirty.clear();
            return Err(io::Error::other("the sync failed"));
        }
        content.durable.clone_from(&content.now);
        content.dirty.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.file].now.len() as u64)
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for TestDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        let file = match (inner.names.get(path).copied(), how) {
            (Some(_), Open::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::CreateNew) => {
                let file = inner.next_file;
                inner.next_file += 1;
                inner.files.insert(file, Content::default());
                inner.change_names(|names| {
                    names.insert(path.to_owned(), file);
                })?;
                file
            }
            (found, Open::Read | Open::Write) => found.ok_or_else(not_found)?,
        };
        Ok(Arc::new(TestFile { disk: self.clone(), file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.lock().folders.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        Ok(names.collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let inner = self.0.lock();
        Ok(inner.names.contains_key(path) || inner.folders.contains(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let file = *inner.names.get(from).ok_or_else(not_found)?;
        inner.change_names(|names| {
            names.remove(from);
            names.insert(to.to_owned(), file);
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.names.get(path).ok_or_else(not_found)?;
        inner.change_names(|names| {
            names.remove(path);
        })
    }

    fn remove_dir_all(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let (_, outcome) = inner.operate();
        outcome?;
        inner.kept_names = vec![inner.names.clone()];
        Ok(())
    }

    fn lock_dir(&self, _dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(Space { free: u64::MAX, total: u64::MAX })
    }
}
