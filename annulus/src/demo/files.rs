//! Which files the tour takes: real ones of this machine, in path order, up to a limit.
//!
//! Reads folders and files, follows no links, changes nothing. What is left out is counted, and
//! said: a tour that quietly takes less than it seems to would prove less than it claims.

use std::path::{Path, PathBuf};

use annulus_runtime::Disk;
use annulus_runtime::disk::read_file;
use annulus_types::limits::{KEY_BYTES, VALUE_BYTES};
use bytes::Bytes;

use super::text::grouped;
use crate::cluster::Usage;

/// Files taken at most.
pub(super) const FILES: usize = 5_000;
/// Bytes taken at most.
pub(super) const BYTES: u64 = 64 * 1024 * 1024;
/// Files looked at, to count what is left out.
const LOOKED_AT: u64 = 200_000;

/// A file that becomes a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Its path below the folder.
    pub(super) key: String,
    /// Its content.
    pub(super) data: Bytes,
}

/// What was left out, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Larger than a value may be.
    pub(super) too_large: u64,
    /// Beyond the limits of the tour.
    pub(super) beyond: u64,
    /// Not readable, or with a name that makes no key.
    pub(super) unreadable: u64,
    /// There is more that was not even looked at.
    pub(super) more: bool,
}

/// What the tour works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picked {
    /// Where they come from.
    pub(super) root: PathBuf,
    /// In path order.
    pub(super) files: Vec<Taken>,
    /// Of all of them.
    pub(super) bytes: u64,
    /// The rest.
    pub(super) left_out: LeftOut,
}

impl LeftOut {
    /// One line; empty when nothing was left out.
    pub(super) fn line(&self) -> String {
        let mut parts = Vec::new();
        if self.beyond > 0 {
            let more = if self.more { " or more" } else { "" };
            parts.push(format!("{}{more} beyond the limits of the tour", grouped(self.beyond)));
        }
        if self.too_large > 0 {
            parts.push(format!("{} larger than 1 MiB", grouped(self.too_large)));
        }
        if self.unreadable > 0 {
            parts.push(format!("{} that cannot be read or named", grouped(self.unreadable)));
        }
        if parts.is_empty() { String::new() } else { format!("left out: {}", parts.join(", ")) }
    }
}

/// Picks files from `from`; without it, from the crate sources that cargo unpacked, else from the
/// current folder.
pub(super) fn pick(disk: &dyn Disk, from: Option<PathBuf>) -> anyhow::Result<Picked> {
    let candidates = match from {
        Some(dir) => vec![dir],
        None => crate_sources().into_iter().chain([PathBuf::from(".")]).collect(),
    };
    for root in &candidates {
        if root.is_dir() {
            let picked = pick_from(disk, root);
            if !picked.files.is_empty() {
                return Ok(picked);
            }
        }
    }
    let places: Vec<String> = candidates.iter().map(|dir| dir.display().to_string()).collect();
    Err(Usage(format!("no file to import in {}; choose a folder with --from", places.join(" or ")))
        .into())
}

fn crate_sources() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cargo = set("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cargo")))?;
    Some(cargo.join("registry").join("src"))
}

/// A name in a folder: what is still to be looked at.
struct Entry {
    path: PathBuf,
    is_folder: bool,
}

fn pick_from(disk: &dyn Disk, root: &Path) -> Picked {
    let mut picked =
        Picked { root: root.to_owned(), files: Vec::new(), bytes: 0, left_out: LeftOut::default() };
    let mut looked_at = 0;
    let mut is_full = false;
    let mut waiting = vec![Entry { path: root.to_owned(), is_folder: true }];
    while let Some(entry) = waiting.pop() {
        if entry.is_folder {
            match entries(&entry.path) {
                Ok(entries) => waiting.extend(entries.into_iter().rev()),
                Err(_) => picked.left_out.unreadable += 1,
            }
            continue;
        }
        looked_at += 1;
        if looked_at > LOOKED_AT {
            picked.left_out.more = true;
            break;
        }
        is_full = is_full || picked.files.len() >= FILES;
        if is_full {
            picked.left_out.beyond += 1;
            continue;
        }
        let Some(key) = key_of(root, &entry.path) else {
            picked.left_out.unreadable += 1;
            continue;
        };
        let Ok(about) = std::fs::symlink_metadata(&entry.path) else {
            picked.left_out.unreadable += 1;
            continue;
        };
        if about.len() > VALUE_BYTES as u64 {
            picked.left_out.too_large += 1;
        } else if picked.bytes + about.len() > BYTES {
            is_full = true;
            picked.left_out.beyond += 1;
        } else {
            match read_file(disk, &entry.path, VALUE_BYTES as u64) {
                Ok(data) => {
                    picked.bytes += data.len() as u64;
                    picked.files.push(Taken { key, data: data.into() });
                }
                Err(_) => picked.left_out.unreadable += 1,
            }
        }
    }
    picked
}

/// The files and folders in `dir`, by name.
fn entries(dir: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    // Not through the seam: these are a person's files, with links and odd names among them.
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() || kind.is_file() {
            entries.push(Entry { path: entry.path(), is_folder: kind.is_dir() });
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn key_of(root: &Path, path: &Path) -> Option<String> {
    let below = path.strip_prefix(root).ok()?.to_str()?;
    (!below.is_empty() && below.len() <= KEY_BYTES).then(|| below.to_owned())
}

#[cfg(test)]
mod tests {
    use annulus_runtime::{Env, Open};

    use super::*;

    fn write(env: &Env, path: &Path, len: usize) {
        if let Some(dir) = path.parent() {
            env.disk.create_dir_all(dir).unwrap();
        }
        let file = env.disk.open(path, Open::CreateNew).unwrap();
        file.write_all_at(&vec![7; len], 0).unwrap();
    }

    #[test]
    fn files_are_taken_in_path_order_and_the_rest_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        for (name, len) in [("b/2", 20), ("b/1", 0), ("a", 1), ("c", VALUE_BYTES + 1)] {
            write(&env, &dir.path().join(name), len);
        }
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let picked = pick(env.disk.as_ref(), Some(dir.path().to_owned())).unwrap();
        let keys: Vec<&str> = picked.files.iter().map(|file| file.key.as_str()).collect();
        assert_eq!(keys, ["a", "b/1", "b/2"]);
        assert_eq!(picked.bytes, 21);
        assert_eq!(picked.left_out, LeftOut { too_large: 1, ..LeftOut::default() });
        assert_eq!(picked.left_out.line(), "left out: 1 larger than 1 MiB");
    }

    #[test]
    fn the_tour_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        for n in 0..66 {
            write(&env, &dir.path().join(format!("{n:02}")), VALUE_BYTES);
        }
        let picked = pick(env.disk.as_ref(), Some(dir.path().to_owned())).unwrap();
        assert_eq!((picked.files.len(), picked.bytes), (64, BYTES));
        assert_eq!(picked.left_out, LeftOut { beyond: 2, ..LeftOut::default() });
    }

    #[test]
    fn a_folder_without_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let error = pick(env.disk.as_ref(), Some(dir.path().to_owned())).unwrap_err();
        assert!(error.is::<Usage>(), "{error:#}");
    }
}
