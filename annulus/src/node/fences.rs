//! What this node remembers of the manager's commands (H6): the highest era, term and generation per
//! group, and the reign that it obeys: the highest era of all, and the incarnation of its manager.
//!
//! ```text
//! files fences.0, fences.1 (the same twice; one good copy is enough), numbers big-endian:
//!   version u8 = 2 | era u64 | manager's incarnation u32
//!   | per group, by id: group u64 | era u64 | term u64 | generation u64
//!   | crc32 of all before u32
//! ```
//!
//! Invariants: what a command raises is synced before the command has any effect, and a command that is
//! lower than what was ever obeyed is refused, also after a restart. An era has one manager: another
//! incarnation in the same era is refused. A command does not raise the era, because it does not tell the
//! incarnation: before the first command of an era its reign is stored (a push, a heartbeat's answer, a
//! peer's ping, the beginning of an adoption). Of two copies that differ the
//! higher fences count: the later one was cut short. What was read is written again before it counts:
//! the process that wrote it may have ended before its sync.
//!
//! Failure: without a readable copy, where there are copies, the node does not start. It cannot know
//! which managers it must not obey any more.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_raft::Reign;
use annulus_runtime::Disk;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_types::GroupId;
use parking_lot::Mutex;

const COPIES: [&str; 2] = ["fences.0", "fences.1"];
const VERSION: u8 = 2;
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
    pub era: u64,
    /// Of its leader.
    pub term: u64,
    /// Of the group.
    pub generation: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "era {}, term {}, generation {}", self.era, self.term, self.generation)
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
    /// A manager of a later era has spoken to this node.
    #[error("this node obeys the manager of era {known}; this one is of era {told}")]
    Era {
        /// What the command says of itself.
        told: u64,
        /// What was obeyed.
        known: u64,
    },
    /// It is of a manager of which nothing is stored yet.
    #[error("this node has stored era {known}, and not yet era {told}")]
    Early {
        /// What the command says of itself.
        told: u64,
        /// What is stored.
        known: u64,
    },
    /// Two managers have one era, and the other one was first.
    #[error("this node obeys another manager of era {era}; make one of a later era")]
    Rival {
        /// Of both.
        era: u64,
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
            Self::Era { .. } | Self::Rival { .. } => Some("era"),
            Self::Behind { told, known, .. } if told.era != known.era => Some("era"),
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
    groups: BTreeMap<GroupId, Fence>,
}

impl Memory {
    /// The memory with a command in it; `None` when it raises nothing.
    fn obey(&self, group: GroupId, told: Fence) -> Result<Option<Self>, FenceError> {
        let era = self.reign.era;
        match told.era.cmp(&era) {
            Ordering::Less => return Err(FenceError::Era { told: told.era, known: era }),
            Ordering::Greater => return Err(FenceError::Early { told: told.era, known: era }),
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
        match told.era.cmp(&known.era) {
            Ordering::Less => Err(FenceError::Era { told: told.era, known: known.era }),
            Ordering::Equal if told == known => Ok(None),
            Ordering::Equal => Err(FenceError::Rival { era: told.era }),
            Ordering::Greater => Ok(Some(Self { reign: told, ..self.clone() })),
        }
    }

    /// The higher of everything.
    fn merge(mut self, other: Self) -> Self {
        if other.reign.era > self.reign.era {
            self.reign = other.reign;
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
            for number in [group.0, fence.era, fence.term, fence.generation] {
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
        let (incarnation, groups) = body.split_first_chunk::<4>()?;
        if *version != VERSION || !groups.len().is_multiple_of(GROUP_BYTES) {
            return None;
        }
        let (era, incarnation) = (u64::from_be_bytes(*era), u32::from_be_bytes(*incarnation));
        let mut memory = Self { reign: Reign { era, incarnation }, ..Self::default() };
        for row in groups.chunks_exact(GROUP_BYTES) {
            let mut numbers = row.chunks_exact(8).map(|number| {
                number.iter().fold(0, |sum: u64, byte| (sum << 8) | u64::from(*byte))
            });
            let mut next = || numbers.next().unwrap_or(0);
            let group = GroupId(next());
            let fence = Fence { era: next(), term: next(), generation: next() };
            memory.groups.insert(group, fence);
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

    /// The highest era of a manager that was obeyed; 0 before the first.
    #[must_use]
    pub fn era(&self) -> u64 {
        self.reign().era
    }

    /// That era, with the incarnation of its manager.
    #[must_use]
    pub fn reign(&self) -> Reign {
        self.memory.lock().reign
    }

    /// Takes note of a command about a group, synced on return. Waits on the disk.
    ///
    /// # Errors
    /// When a later one was obeyed, its era is not stored yet, or it cannot be stored itself; the command
    /// must then have no effect.
    pub fn obey(&self, group: GroupId, told: Fence) -> Result<(), FenceError> {
        self.change(|memory| memory.obey(group, told))
    }

    /// Takes note of a manager's reign, synced on return. Waits on the disk.
    ///
    /// # Errors
    /// When a later era was obeyed, or another manager of the same one, or it cannot be stored; nothing of
    /// that manager must then have an effect.
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
mod tests {
    use super::*;
    use annulus_runtime::RealDisk;
    use annulus_runtime::disk::Open;

    const GROUP: GroupId = GroupId(7);

    fn fence(era: u64, term: u64, generation: u64) -> Fence {
        Fence { era, term, generation }
    }

    fn reign(era: u64) -> Reign {
        Reign { era, incarnation: 5 }
    }

    fn begun(era: u64) -> Memory {
        Memory { reign: reign(era), groups: BTreeMap::new() }
    }

    fn open(dir: &Path) -> Result<Fences, FenceError> {
        Fences::open(Arc::new(RealDisk), dir)
    }

    #[test]
    fn era_comes_before_term_and_term_before_generation() {
        let known = fence(2, 5, 9);
        let memory = begun(2).obey(GROUP, known).unwrap().unwrap();
        let judge = |told| match memory.obey(GROUP, told) {
            Ok(Some(_)) => "raises",
            Ok(None) => "repeats",
            Err(error) => error.field().unwrap_or("later"),
        };
        assert_eq!(judge(known), "repeats");
        assert_eq!(judge(fence(2, 5, 10)), "raises");
        assert_eq!(judge(fence(2, 6, 1)), "raises");
        // Whose era that is was not told yet.
        assert_eq!(judge(fence(3, 1, 1)), "later");
        assert_eq!(judge(fence(2, 5, 8)), "generation");
        assert_eq!(judge(fence(2, 4, 10)), "term");
        assert_eq!(judge(fence(1, 6, 10)), "era");
        // A later era binds also groups that were not spoken of in it.
        let other = memory.obey(GroupId(8), fence(1, 9, 9)).unwrap_err();
        assert_eq!(other.field(), Some("era"));
        assert!(memory.obey(GroupId(8), fence(2, 1, 1)).unwrap().is_some());
        assert!(memory.obey_reign(reign(1)).is_err());
        assert_eq!(memory.obey_reign(reign(2)).unwrap(), None);
        let rival = memory.obey_reign(Reign { era: 2, incarnation: 9 }).unwrap_err();
        assert_eq!(rival.field(), Some("era"));
        let next = memory.obey_reign(reign(3)).unwrap().unwrap();
        assert_eq!(next.reign, reign(3));
        let first = next.obey(GROUP, fence(3, 1, 1)).unwrap().unwrap();
        assert_eq!(first.groups[&GROUP], fence(3, 1, 1), "a new manager begins to count anew");
    }

    #[test]
    fn what_was_obeyed_survives_and_refuses_what_is_older() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path()).unwrap();
        assert_eq!(fences.era(), 0);
        fences.obey_reign(reign(1)).unwrap();
        fences.obey(GROUP, fence(1, 5, 2)).unwrap();
        fences.obey(GROUP, fence(1, 5, 2)).unwrap();
        fences.obey(GroupId(0), fence(1, 4, 0)).unwrap();
        drop(fences);
        let fences = open(dir.path()).unwrap();
        assert_eq!(fences.era(), 1);
        let refused = fences.obey(GROUP, fence(1, 5, 1)).unwrap_err();
        let text = "group 7 obeys era 1, term 5, generation 2; this command is of era 1, term 5, \
                    generation 1";
        assert_eq!(refused.to_string(), text);
        fences.obey(GroupId(0), fence(1, 4, 0)).unwrap();
        fences.obey_reign(reign(2)).unwrap();
        assert!(fences.obey(GROUP, fence(1, 6, 3)).is_err());
    }

    #[test]
    fn one_good_copy_is_enough_the_higher_one_counts_and_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let spoil = |copy: &str| {
            let file = RealDisk.open(&dir.path().join(copy), Open::Write).unwrap();
            file.write_all_at(&[9], 3).unwrap();
        };
        let fences = open(dir.path()).unwrap();
        fences.obey_reign(reign(1)).unwrap();
        fences.obey(GROUP, fence(1, 5, 2)).unwrap();
        drop(fences);
        spoil(COPIES[0]);
        // As after a crash between the two writes.
        let older = begun(1).obey(GROUP, fence(1, 4, 9)).unwrap().unwrap();
        assert_eq!(open(dir.path()).unwrap().memory.into_inner().groups[&GROUP], fence(1, 5, 2));
        replace_file(&RealDisk, dir.path(), COPIES[1], &older.encode()).unwrap();
        assert_eq!(open(dir.path()).unwrap().memory.into_inner().groups[&GROUP], fence(1, 5, 2));
        COPIES.into_iter().for_each(spoil);
        assert!(matches!(open(dir.path()).unwrap_err(), FenceError::Unreadable(_)));
    }

    #[test]
    fn the_layout_is_pinned() {
        let mut memory = begun(3);
        memory.groups.insert(GroupId(258), fence(1, 2, 4));
        let bytes = memory.encode();
        assert_eq!(bytes.len(), FRAME_BYTES + GROUP_BYTES);
        assert_eq!(&bytes[..13], b"\x02\0\0\0\0\0\0\0\x03\0\0\0\x05");
        assert_eq!(&bytes[13..21], b"\0\0\0\0\0\0\x01\x02");
        let numbers = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04";
        assert_eq!(&bytes[21..45], numbers);
        assert_eq!(Memory::decode(&bytes), Some(memory));
        assert_eq!(Memory::decode(&bytes[..bytes.len() - 1]), None);
    }
}
