//! Starting the engine of a node, whatever its folder holds.
//!
//! The engine is a view of the log, so a folder that does not open is no disaster: it is renamed to
//! `<dir>.damaged-<n>`, kept for a person to look at, and an empty engine takes its place. The
//! caller refills it from the log, a checkpoint or a peer before the replicas start (E1), and finds
//! out that it must from [`Opened::moved_aside`]. Nothing here deletes a folder that was moved.
//!
//! Only damage moves a folder. One that is in use, or a disk that is full or forbids, is an error:
//! the folder may be whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::Disk;

use crate::kind::{EngineKind, open};
use crate::{Engine, EngineError};

/// A started engine.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Where the former folder went, if it did not open; the engine is then empty.
    pub moved_aside: Option<PathBuf>,
}

/// Opens the engine in `dir`, or moves a damaged folder aside and opens an empty one. `disk` must
/// be the disk that the engine writes to: the real one, except for the memory engine.
///
/// # Errors
/// [`EngineError::Failed`] when the folder cannot be opened for another reason than damage, or
/// cannot be renamed; [`EngineError::DoesNotOpen`] when not even an empty one opens.
pub fn open_or_move_aside(
    disk: &dyn Disk,
    kind: EngineKind,
    dir: &Path,
) -> Result<Opened, EngineError> {
    let reason = match open(kind, dir) {
        Ok(engine) => return Ok(Opened { engine, moved_aside: None }),
        Err(EngineError::DoesNotOpen { reason, .. }) => reason,
        Err(error) => return Err(error),
    };
    let target = move_aside(disk, dir)
        .map_err(|error| EngineError::failed("move a damaged folder aside", error))?;
    tracing::warn!(
        engine = %kind,
        folder = %dir.display(),
        moved_to = %target.display(),
        reason = %reason,
        "the engine did not open; its folder was moved aside and an empty one takes its place"
    );
    let engine = open(kind, dir)?;
    Ok(Opened { engine, moved_aside: Some(target) })
}

/// Renames the folder to the first free name, durably: otherwise a power cut could bring the
/// damaged folder back in the place of the refilled one.
fn move_aside(disk: &dyn Disk, dir: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    let target = loop {
        let mut name = dir.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        let candidate = PathBuf::from(name);
        if !disk.exists(&candidate)? {
            break candidate;
        }
        number += 1;
    };
    disk.rename(dir, &target)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => disk.sync_dir(parent)?,
        _ => disk.sync_dir(Path::new("."))?,
    }
    Ok(target)
}
