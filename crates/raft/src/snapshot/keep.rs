//! Files of snapshots that stay: what a lost engine is refilled with, together with the log (E1).
//!
//! A replica that a snapshot has brought up holds no entries below it. Its engine is only a view, so
//! that the files of the snapshot are kept, beside the transient ones:
//!
//! ```text
//! kept-<group>-<replica>-<n>/      as any snapshot; of one replica the largest n counts
//! ```
//!
//! Here are the names, which folder counts, and how one comes to be kept. What is done with it is the
//! business of `install` and `refill`.
//!
//! # Invariants
//!
//! - A folder gets its name when all that it holds is durable, the manifest last, by one rename within
//!   its parent. So a power cut leaves the former kept folder or the new one, complete.
//! - A former folder is removed only after the new name is durable, in the run of the process that made
//!   it so: a name that can only be seen may still be lost.
//! - At the start the folders of replicas that the log does not know are removed, and no other kept
//!   ones.
//!
//! # Failure
//!
//! What cannot be synced is not kept, and the error is the caller's. A crash between the rename and the
//! removal of a former folder leaves both: the newer one counts, the other goes when the next is kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use annulus_runtime::{Disk, Open};
use annulus_types::{GroupId, ReplicaId};
use annulus_wal::StreamId;

use super::files::{Folder, MANIFEST, Manifest, file_name, invalid};

const KEPT: &str = "kept-";

/// The name of a kept folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    /// Whose files they are.
    pub(super) stream: StreamId,
    /// Counts the keepings of a replica.
    number: u64,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEPT}{}-{}-{}", self.stream.group, self.stream.replica, self.number)
    }
}

impl Kept {
    fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(KEPT)?.split('-').map(|part| part.parse::<u64>().ok());
        let (group, replica) = (GroupId(numbers.next()??), ReplicaId(numbers.next()??));
        let kept = Self { stream: StreamId { group, replica }, number: numbers.next()?? };
        // One folder has one name: nothing behind it, no signs, no leading zeros.
        (kept.to_string() == name).then_some(kept)
    }

    /// Of the folders of a replica the one that counts.
    fn newest(names: &[String], stream: StreamId) -> Option<Self> {
        let kept = names.iter().filter_map(|name| Self::parse(name));
        kept.filter(|kept| kept.stream == stream).max()
    }

    /// The name of the folder that is kept next.
    fn next(names: &[String], stream: StreamId) -> Self {
        let newest = Self::newest(names, stream);
        Self { stream, number: newest.map_or(1, |kept| kept.number.saturating_add(1)) }
    }
}

/// Makes the files of a snapshot survive a power cut, where they are.
pub(super) async fn sync(folder: &Folder) -> io::Result<()> {
    let (store, dir) = (folder.place().store(), folder.place().path().to_owned());
    let (disk, manifest) = (store.disk(), folder.manifest().clone());
    store.run(move || sync_files(disk.as_ref(), &dir, &manifest)).await
}

/// Makes a folder the kept one of a replica; its files are durable already ([`sync`]). Durable on
/// return. It is somewhere else then: nobody else may be reading it, or want to send it.
pub(super) async fn keep(folder: &Folder, stream: StreamId) -> io::Result<()> {
    let store = folder.place().store();
    let (disk, root) = (store.disk(), store.dir().to_owned());
    let dir = folder.place().path().to_owned();
    store.run(move || keep_dir(disk.as_ref(), &root, &dir, stream)).await
}

fn sync_files(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> io::Result<()> {
    for entry in &manifest.files {
        disk.open(&dir.join(file_name(entry.id)), Open::Write)?.sync_data()?;
    }
    disk.open(&dir.join(MANIFEST), Open::Write)?.sync_data()?;
    disk.sync_dir(dir)?;
    if Manifest::load(disk, dir)? != *manifest {
        return Err(invalid("a snapshot's manifest is not what was written"));
    }
    Ok(())
}

fn keep_dir(disk: &dyn Disk, root: &Path, dir: &Path, stream: StreamId) -> io::Result<()> {
    let kept = Kept::next(&disk.list(root)?, stream);
    disk.rename(dir, &root.join(kept.to_string()))?;
    disk.sync_dir(root)?;
    // The root itself may be new.
    match root.parent() {
        Some(parent) if parent.as_os_str().is_empty() => disk.sync_dir(Path::new("."))?,
        Some(parent) => disk.sync_dir(parent)?,
        None => {}
    }
    clear(disk, root, |other| other.is_none_or(|other| other.stream != stream || other == kept));
    Ok(())
}

/// The kept folder of a replica, if it has one. Waits on the disk.
pub(super) fn find(disk: &dyn Disk, root: &Path, stream: StreamId) -> io::Result<Option<PathBuf>> {
    let newest = Kept::newest(&list(disk, root)?, stream);
    Ok(newest.map(|kept| root.join(kept.to_string())))
}

/// Removes from `root` what does not stay; `stays` is asked with `None` about what nobody keeps. Waits
/// on the disk. What cannot be removed costs space and nothing else.
pub(super) fn clear(disk: &dyn Disk, root: &Path, stays: impl Fn(Option<Kept>) -> bool) {
    let names = list(disk, root).unwrap_or_else(|error| {
        tracing::warn!(folder = %root.display(), %error, "former snapshots are not found");
        Vec::new()
    });
    for name in names.iter().filter(|name| !stays(Kept::parse(name))) {
        let folder = root.join(name);
        if let Err(error) = disk.remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "a former snapshot is still there");
        }
    }
}

fn list(disk: &dyn Disk, root: &Path) -> io::Result<Vec<String>> {
    if disk.exists(root)? { disk.list(root) } else { Ok(Vec::new()) }
}

#[cfg(test)]
mod tests;
