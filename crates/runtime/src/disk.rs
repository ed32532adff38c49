//! The disk seam: files and folders, as small object-safe traits.
//!
//! What callers may rely on, of every implementation:
//! - a write that returned is visible to later reads of the same process;
//! - it survives a crash of the machine only after [`DiskFile::sync_data`] returned `Ok`;
//! - a created, renamed or removed name survives only after [`Disk::sync_dir`] of its folder;
//! - after a failed sync nothing is known about what is on disk, and a second sync proves nothing:
//!   the caller must stop (architecture 8).
//!
//! Every call may block on the device; callers run on threads of their own.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Offsets and lengths in bytes.
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buf` from `offset`; an error of kind `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`, extending the file when needed.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all earlier writes of this file, and its length, survive a power cut (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// The length of the file.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

/// How [`Disk::open`] treats a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Must exist; reading only.
    Read,
    /// Must exist; reading and writing.
    Write,
    /// Must not exist; reading and writing.
    CreateNew,
}

/// Held for the life of the process that owns a folder; dropping it lets go.
pub trait DiskLock: Send + Sync + Debug {}

/// A disk. Paths are used as given; folders are never created implicitly.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a folder and its missing parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether the path names a file or folder.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Renames; an existing target file is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with all that it holds.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock of a folder; an error of kind `WouldBlock` when another process
    /// holds it.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>>;
    /// Bytes of the device that are free, and its size.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// Room on a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free for this process.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// As the disk says, or `InvalidData` when the file is longer than `limit`.
pub fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::Read)?;
    let len = file.len()?;
    if len > limit {
        let message = format!("{} has {len} bytes, limit {limit}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut data = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut data, 0)?;
    Ok(data)
}

/// Replaces the file `dir/name` by `data` so that a power cut leaves the old content or the new
/// one, whole. Both the file and its name are durable on return.
///
/// # Errors
/// As the disk says; the old content is then still in place, or the new one whole.
pub fn replace_file(disk: &dyn Disk, dir: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    if disk.exists(&temporary)? {
        disk.remove_file(&temporary)?;
    }
    let file = disk.open(&temporary, Open::CreateNew)?;
    file.write_all_at(data, 0)?;
    file.sync_data()?;
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// A disk of the operating system.
#[derive(Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(std::fs::File);

#[derive(Debug)]
struct RealLock {
    _file: std::fs::File,
}

impl DiskLock for RealLock {}

impl DiskFile for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|meta| meta.len())
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(how != Open::Read)
            .create_new(how == Open::CreateNew)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // Names of ours are ASCII; others are not ours to read.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let path: PathBuf = dir.join("LOCK");
        let file =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
    }
}
