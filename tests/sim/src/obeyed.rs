//! What a simulated node remembers of the manager's commands (H6): the highest era of all, and the
//! highest era, term and generation of each group. A command that is lower than one that was obeyed is
//! refused, also after a restart.
//!
//! ```text
//! file `obeyed`, numbers big-endian: era u64 | per group, by id: group u64 | era u64 | term u64
//!                                    | generation u64
//! ```
//!
//! The real node has two checked copies; no simulated disk rots, and a file is replaced whole.
//!
//! Invariant: what a command raises is synced before the command has any effect. What was read is written
//! again before it counts: the process that wrote it may have ended before its sync.
//!
//! Failure: a command that cannot be stored is refused. A file that does not read ends the boot.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::Disk;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_types::GroupId;
use parking_lot::Mutex;

const FILE: &str = "obeyed";
const FILE_BYTES_MOST: u64 = 1 << 20;
/// Numbers of one group in the file.
const GROUP_NUMBERS: usize = 4;

/// Era, term and generation: the order of comparison.
pub(crate) type Fence = (u64, u64, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    era: u64,
    groups: BTreeMap<GroupId, Fence>,
}

impl Memory {
    /// The memory with a command in it.
    fn obey(&self, group: GroupId, told: Fence) -> Result<Self, String> {
        let known = self.groups.get(&group).copied().unwrap_or_default();
        if told.0 < self.era || told < known {
            return Err(format!("group {group} obeys {known:?} in era {}, not {told:?}", self.era));
        }
        let mut next = Self { era: told.0, ..self.clone() };
        next.groups.insert(group, told);
        Ok(next)
    }

    /// The memory with a manager's era in it.
    fn obey_era(&self, told: u64) -> Result<Self, String> {
        if told < self.era {
            return Err(format!("the manager of era {} is obeyed, not that of {told}", self.era));
        }
        Ok(Self { era: told, ..self.clone() })
    }

    fn encode(&self) -> Vec<u8> {
        let mut numbers = vec![self.era];
        for (group, (era, term, generation)) in &self.groups {
            numbers.extend([group.0, *era, *term, *generation]);
        }
        numbers.into_iter().flat_map(u64::to_be_bytes).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |chunk: &[u8]| Some(u64::from_be_bytes(chunk.try_into().ok()?));
        let numbers: Vec<u64> = bytes.chunks(8).map(number).collect::<Option<_>>()?;
        let (era, rows) = numbers.split_first()?;
        let mut memory = Self { era: *era, ..Self::default() };
        for row in rows.chunks(GROUP_NUMBERS) {
            let [group, era, term, generation] = *row else { return None };
            memory.groups.insert(GroupId(group), (era, term, generation));
        }
        Some(memory)
    }
}

/// See the module.
pub(crate) struct Obeyed {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    memory: Mutex<Memory>,
}

impl Obeyed {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let mut memory = Memory::default();
        if disk.exists(&path)? {
            let bytes = read_file(disk.as_ref(), &path, FILE_BYTES_MOST)?;
            let read = Memory::decode(&bytes);
            memory = read.ok_or_else(|| anyhow::anyhow!("the file {FILE} does not read"))?;
        }
        let obeyed = Self { disk, dir: dir.to_owned(), memory: Mutex::new(memory.clone()) };
        obeyed.store(&memory)?;
        Ok(obeyed)
    }

    fn store(&self, memory: &Memory) -> io::Result<()> {
        replace_file(self.disk.as_ref(), &self.dir, FILE, &memory.encode())
    }

    /// The highest era of a manager that was obeyed; 0 before the first.
    pub(crate) fn era(&self) -> u64 {
        self.memory.lock().era
    }

    /// Takes note of a command about a group, synced on return. An error says why it must have no effect.
    pub(crate) fn obey(&self, group: GroupId, told: Fence) -> Result<(), String> {
        self.change(|memory| memory.obey(group, told))
    }

    /// The same for what concerns no group.
    pub(crate) fn obey_era(&self, told: u64) -> Result<(), String> {
        self.change(|memory| memory.obey_era(told))
    }

    fn change(&self, judge: impl FnOnce(&Memory) -> Result<Memory, String>) -> Result<(), String> {
        let mut memory = self.memory.lock();
        let next = judge(&memory)?;
        if next != *memory {
            self.store(&next).map_err(|error| format!("storing it: {error}"))?;
            *memory = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use annulus_runtime::{Random, SimDisk};

    use super::*;

    #[test]
    fn what_was_obeyed_is_remembered_and_refuses_what_is_lower() {
        let machine = SimDisk::new(Random::seeded(1));
        let open = || Obeyed::open(Arc::new(machine.process()), Path::new("/")).unwrap();
        let obeyed = open();
        assert_eq!(obeyed.era(), 0);
        obeyed.obey(GroupId(7), (1, 5, 2)).unwrap();
        obeyed.obey(GroupId(7), (1, 5, 2)).unwrap();
        assert!(obeyed.obey(GroupId(7), (1, 5, 1)).is_err());
        machine.crash();
        let obeyed = open();
        assert!(obeyed.obey(GroupId(7), (1, 4, 9)).is_err());
        obeyed.obey(GroupId(7), (1, 6, 0)).unwrap();
        obeyed.obey_era(2).unwrap();
        assert!(obeyed.obey(GroupId(8), (1, 9, 9)).is_err(), "an era binds all groups");
        assert!(obeyed.obey_era(1).is_err());
        assert_eq!(obeyed.era(), 2);
        assert_eq!(Memory::decode(&[0; 12]), None);
    }
}
