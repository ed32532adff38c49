//! What this node remembers of the manager's commands (H6): the reign that it obeys (the highest era of all, and
//! in it the highest incarnation of a manager), and the highest term and generation per group in that reign.
//!
//! ```text
//! files fences.0, fences.1 (the same twice; one good copy is enough), numbers big-endian:
//!   version u8 = 2 | era u64 | manager's incarnation u32
//!   | per group, by id: group u64 | era u64 | term u64 | generation u64
//!   | crc32 of all before u32
//! ```
//!
//! Version 1 had no incarnation. It is read, whose era it is being unknown: the first manager of that era that
//! tells its incarnation is taken for it, and what was obeyed goes on to count.
//!
//! Invariants: what a command raises is synced before the command has any effect, and a command that is
//! lower than what was ever obeyed is refused, also after a restart. Commands come from the reign that is obeyed:
//! those of an earlier one are refused for ever, those of a later one until that is stored (by a push, a
//! heartbeat's answer, a peer's ping, the beginning of an adoption). Two managers may have one era, made by nodes
//! that did not see each other; the higher incarnation is the later reign. What was obeyed of groups belongs to
//! one reign and goes with it, since its commands are refused as a whole. Of two copies that differ the higher
//! fences count: the later one was cut short. What was read is written again before it counts: the process that
//! wrote it may have ended before its sync.
//!
//! Failure: without a readable copy, where there are copies, the node does not start. It cannot know
//! which managers it must not obey any more.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_raft::{Reign, UNKNOWN_INCARNATION};
use annulus_runtime::Disk;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_types::GroupId;
use parking_lot::Mutex;

const COPIES: [&str; 2] = ["fences.0", "fences.1"];
const VERSION: u8 = 2;
const VERSION_WITHOUT_INCARNATION: u8 = 1;
/// Version, era, incarnation, checksum.
const FRAME_BYTES: usize = 1 + 8 + 4 + 4;
/// Of one group in the file.
const GROUP_BYTES: usize = 32;
/// Groups that a file may name: far above what a cluster ever had.
const GROUPS_MOST: usize = 65_536;

/// Where a command stands among all that managers ever said about its group. The order of the fields
/// is the order of comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// Of the manager.
    pub reign: Reign,
    /// Of its leader.
    pub term: u64,
    /// Of the group.
    pub generation: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "era {}, term {}, generation {}", self.reign.era, self.term, self.generation)
    }
}

/// Why a command is not obeyed, or the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A later one was obeyed.
    #[error("group {group} obeys {known}; this command is of {told}")]
    Behind {
        /// The group.
        group: GroupId,
        /// What the command says of itself.
        told: Fence,
        /// What was obeyed.
        known: Fence,
    },
    /// A manager of a later reign has spoken to this node.
    #[error("this node obeys the manager of {known}; this one is of {told}")]
    Former {
        /// What the command says of itself.
        told: Reign,
        /// What was obeyed.
        known: Reign,
    },
    /// It is of a manager of which nothing is stored yet.
    #[error("this node has stored {known}, and not yet {told}")]
    Early {
        /// What the command says of itself.
        told: Reign,
        /// What is stored.
        known: Reign,
    },
    /// Both copies are unreadable: what was obeyed cannot be known.
    #[error("{0}: neither copy of the fences is readable")]
    Unreadable(PathBuf),
    /// The disk said no.
    #[error("the fences: {0}")]
    Io(#[from] io::Error),
}

impl FenceError {
    /// The field of the command that is too low, by its wire name; `None` when none is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Former { .. } => Some("era"),
            Self::Behind { told, known, .. } if told.term != known.term => Some("term"),
            Self::Behind { .. } => Some("generation"),
            Self::Early { .. } | Self::Unreadable(_) | Self::Io(_) => None,
        }
    }
}

/// What is remembered. Knows no disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    reign: Reign,
    /// All of that reign.
    groups: BTreeMap<GroupId, Fence>,
}

impl Memory {
    /// The memory with a command in it; `None` when it raises nothing.
    fn obey(&self, group: GroupId, told: Fence) -> Result<Option<Self>, FenceError> {
        let reign = self.reign;
        match told.reign.cmp(&reign) {
            Ordering::Less => return Err(FenceError::Former { told: told.reign, known: reign }),
            Ordering::Greater => return Err(FenceError::Early { told: told.reign, known: reign }),
            Ordering::Equal => {}
        }
        let known = self.groups.get(&group).copied().unwrap_or_default();
        if told < known {
            return Err(FenceError::Behind { group, told, known });
        }
        if told == known {
            return Ok(None);
        }
        let mut next = self.clone();
        next.groups.insert(group, told);
        Ok(Some(next))
    }

    /// The memory with a reign in it; `None` when it raises nothing.
    fn obey_reign(&self, told: Reign) -> Result<Option<Self>, FenceError> {
        let known = self.reign;
        match told.cmp(&known) {
            Ordering::Less => Err(FenceError::Former { told, known }),
            Ordering::Equal => Ok(None),
            Ordering::Greater => {
                let is_named = known.era == told.era && known.incarnation == UNKNOWN_INCARNATION;
                let kept = self.groups.iter().filter(|_| is_named);
                let renamed =
                    |(group, fence): (&GroupId, &Fence)| (*group, Fence { reign: told, ..*fence });
                Ok(Some(Self { reign: told, groups: kept.map(renamed).collect() }))
            }
        }
    }

    /// The higher of everything.
    fn merge(mut self, other: Self) -> Self {
        match other.reign.cmp(&self.reign) {
            Ordering::Less => return self,
            Ordering::Greater => return other,
            Ordering::Equal => {}
        }
        for (group, fence) in other.groups {
            let known = self.groups.entry(group).or_default();
            *known = fence.max(*known);
        }
        self
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_BYTES + self.groups.len() * GROUP_BYTES);
        out.push(VERSION);
        out.extend_from_slice(&self.reign.era.to_be_bytes());
        out.extend_from_slice(&self.reign.incarnation.to_be_bytes());
        for (group, fence) in &self.groups {
            for number in [group.0, fence.reign.era, fence.term, fence.generation] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return None;
        }
        let (version, body) = body.split_first()?;
        let (era, body) = body.split_first_chunk::<8>()?;
        let (incarnation, groups) = match *version {
            VERSION => {
                let (incarnation, groups) = body.split_first_chunk::<4>()?;
                (u32::from_be_bytes(*incarnation), groups)
            }
            VERSION_WITHOUT_INCARNATION => (UNKNOWN_INCARNATION, body),
            _ => return None,
        };
        if !groups.len().is_multiple_of(GROUP_BYTES) {
            return None;
        }
        let reign = Reign { era: u64::from_be_bytes(*era), incarnation };
        let mut memory = Self { reign, ..Self::default() };
        for row in groups.chunks_exact(GROUP_BYTES) {
            let mut numbers = row.chunks_exact(8).map(|number| {
                number.iter().fold(0, |sum: u64, byte| (sum << 8) | u64::from(*byte))
            });
            let mut next = || numbers.next().unwrap_or(0);
            let (group, era) = (GroupId(next()), next());
            let fence = Fence { reign, term: next(), generation: next() };
            // Those of former managers were kept once; they fence nothing any more.
            if era == reign.era {
                memory.groups.insert(group, fence);
            }
        }
        Some(memory)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fences {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    memory: Mutex<Memory>,
    /// Held while a change is on its way to the disk, so that `memory` need not be.
    writing: Mutex<()>,
}

impl Fences {
    /// Reads what the folder remembers. Waits on the disk.
    ///
    /// # Errors
    /// When copies exist and none is readable; otherwise as the disk says.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, FenceError> {
        let limit = (FRAME_BYTES + GROUPS_MOST * GROUP_BYTES) as u64;
        let mut found = false;
        let mut memory: Option<Memory> = None;
        for copy in COPIES {
            let path = dir.join(copy);
            if !disk.exists(&path)? {
                continue;
            }
            found = true;
            let read = read_file(disk.as_ref(), &path, limit).ok();
            if let Some(read) = read.and_then(|bytes| Memory::decode(&bytes)) {
                memory = Some(memory.unwrap_or_default().merge(read));
            }
        }
        if found && memory.is_none() {
            return Err(FenceError::Unreadable(dir.to_owned()));
        }
        let fences = Self {
            disk,
            dir: dir.to_owned(),
            memory: Mutex::new(memory.unwrap_or_default()),
            writing: Mutex::new(()),
        };
        if found {
            let read = fences.memory.lock().clone();
            fences.store(&read)?;
        }
        Ok(fences)
    }

    fn store(&self, memory: &Memory) -> io::Result<()> {
        let bytes = memory.encode();
        COPIES.iter().try_for_each(|copy| replace_file(self.disk.as_ref(), &self.dir, copy, &bytes))
    }

    /// The reign that is obeyed; of era 0 before the first.
    #[must_use]
    pub fn reign(&self) -> Reign {
        self.memory.lock().reign
    }

    /// Takes note of a command about a group, synced on return. Waits on the disk.
    ///
    /// # Errors
    /// When a later one was obeyed, its reign is not stored yet, or it cannot be stored itself; the command
    /// must then have no effect.
    pub fn obey(&self, group: GroupId, told: Fence) -> Result<(), FenceError> {
        self.change(|memory| memory.obey(group, told))
    }

    /// Judges a command once more that was obeyed and has waited since: a later one may have come.
    ///
    /// # Errors
    /// When one did.
    pub fn check(&self, group: GroupId, told: Fence) -> Result<(), FenceError> {
        self.memory.lock().obey(group, told).map(drop)
    }

    /// Takes note of a manager's reign, synced on return. Waits on the disk.
    ///
    /// # Errors
    /// When a later one was obeyed, or it cannot be stored; nothing of that manager must then have an effect.
    pub fn obey_reign(&self, told: Reign) -> Result<(), FenceError> {
        self.change(|memory| memory.obey_reign(told))
    }

    fn change(
        &self,
        judge: impl FnOnce(&Memory) -> Result<Option<Memory>, FenceError>,
    ) -> Result<(), FenceError> {
        let _one_at_a_time = self.writing.lock();
        let known = self.memory.lock().clone();
        if let Some(next) = judge(&known)? {
            self.store(&next)?;
            *self.memory.lock() = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
