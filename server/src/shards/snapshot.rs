//! How a group's shards leave this node as the files of a snapshot, and enter it as such (E3).
//!
//! One file per shard. Its rows are those of the engine without what holds on this node only:
//!
//! ```text
//! record   name 0x02 | part u8 | rest     value as stored; a head has prefix 0
//! data     name 0x01 | namespace u32 | micro-slice u16 | key     value as stored
//! deadline name 0x01 | what follows the prefix in its row        value as stored
//! ```
//!
//! Shards that come in get prefixes that were never used here, and their rows are written under them
//! while the former shards are read as before. Then the records are switched, in one batch of the
//! caller's; readers follow.
//!
//! On failure before the switch the new prefixes are graves. A switch of which nobody knows whether it
//! happened leaves both former and new prefixes alone: the next start looks what the records name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Weak};

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, EngineError, Row};
use annulus_raft::{FileSpec, Import};
use annulus_types::{GroupId, ShardId};
use bytes::{BufMut, Bytes, BytesMut};

use super::deadlines::Deadlines;
use super::records::{self, HEAD, WRITER};
use super::{Held, ShardMachine, shard_of, unreadable};
use crate::stored::Head;
use crate::writers::Writers;

const DATA: u8 = 1;
const RECORD: u8 = 2;
/// Bytes of a data key up to the end of the prefix.
const PREFIX_BYTES: usize = 9;

/// The files of a group's shards.
pub(super) fn files(group: GroupId, shards: &BTreeMap<ShardId, Held>) -> Vec<FileSpec> {
    let file = |(shard, held): (&ShardId, &Held)| FileSpec {
        id: shard.0,
        ranges: vec![key::record_range(group, *shard), key::data_range(held.head.prefix)],
    };
    shards.iter().map(file).collect()
}

/// The row of a file that stands for a row of the engine.
pub(super) fn export(
    group: GroupId,
    shard: ShardId,
    (key, value): Row,
) -> Result<Row, EngineError> {
    let record = key::record_range(group, shard).start;
    if let Some(part) = key.strip_prefix(&record[..]) {
        let value = match part {
            [HEAD] => {
                let head = Head::decode(value).map_err(unreadable)?;
                Head { prefix: Prefix(0), ..head }.encode()
            }
            _ => value,
        };
        return Ok((named(RECORD, part), value));
    }
    match key.get(PREFIX_BYTES..) {
        Some(rest) if key::user_key(&key).is_some() || key::deadline_of(&key).is_some() => {
            Ok((named(DATA, rest), value))
        }
        _ => Err(unreadable("a row belongs to no shard")),
    }
}

fn named(kind: u8, rest: &[u8]) -> Bytes {
    let mut name = BytesMut::with_capacity(1 + rest.len());
    name.put_u8(kind);
    name.put_slice(rest);
    name.freeze()
}

/// A shard on its way in.
struct Arriving {
    prefix: Prefix,
    head: Option<Head>,
    writers: Writers,
    /// Known when everything has arrived.
    deadlines: Deadlines,
}

/// A group's shards on their way in.
pub(super) struct Incoming {
    machine: Arc<ShardMachine>,
    shards: BTreeMap<ShardId, Arriving>,
    /// The switch may have happened.
    is_switching: bool,
}

impl Incoming {
    pub(super) fn new(machine: Arc<ShardMachine>) -> Self {
        Self { machine, shards: BTreeMap::new(), is_switching: false }
    }
}

impl Import for Incoming {
    fn rows(&mut self, file: u64, rows: Vec<Row>, batch: &mut Batch) -> Result<(), EngineError> {
        let shard = ShardId(file);
        let arriving = match self.shards.entry(shard) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let prefix = self.machine.shards.take_prefix()?;
                let (writers, deadlines) = (Writers::default(), Deadlines::default());
                new.insert(Arriving { prefix, head: None, writers, deadlines })
            }
        };
        for (name, value) in rows {
            match name.split_first() {
                Some((&DATA, rest)) => {
                    let prefix = key::data_range(arriving.prefix).start;
                    let mut data = BytesMut::with_capacity(prefix.len() + rest.len());
                    data.put_slice(&prefix);
                    data.put_slice(rest);
                    batch.put(data.freeze(), value);
                }
                Some((&RECORD, [HEAD])) => {
                    let head = Head::decode(value).map_err(unreadable)?;
                    arriving.head = Some(Head { prefix: arriving.prefix, ..head });
                }
                Some((&RECORD, [WRITER, writer @ ..])) => {
                    let writer = records::writer_of(writer)
                        .ok_or_else(|| unreadable("a row of a snapshot names no writer"))?;
                    arriving.writers.restore(writer, value).map_err(unreadable)?;
                }
                // A later version's; without it the shard would not be the same.
                _ => return Err(unreadable("a row of a snapshot that has no meaning here")),
            }
        }
        Ok(())
    }

    fn switch(&mut self, batch: &mut Batch) -> Result<(), EngineError> {
        let ShardMachine { group, shards, .. } = &*self.machine;
        let mut rows = Vec::new();
        for (shard, Arriving { prefix, head, writers, deadlines }) in &mut self.shards {
            *deadlines = Deadlines::load(shards.engine.as_ref(), *prefix)?;
            let head = head.ok_or_else(|| unreadable("a shard without its record"))?;
            rows.push((records::head_key(*group, *shard), head.encode()));
            let writer_key = |writer| records::writer_key(*group, *shard, writer);
            rows.extend(writers.rows().map(|(writer, row)| (writer_key(writer), row)));
        }
        records::each_row(shards.engine.as_ref(), *group, |record, _| {
            batch.delete(record);
            Ok(())
        })?;
        for (record, value) in rows {
            batch.put(record, value);
        }
        self.is_switching = true;
        Ok(())
    }

    fn switched(mut self: Box<Self>) {
        // None lacks its head, else there had been no switch.
        let arrived = std::mem::take(&mut self.shards).into_iter();
        let held = arrived.filter_map(|(shard, Arriving { head, writers, deadlines, .. })| {
            Some((shard, Held { head: head?, writers, deadlines }))
        });
        let held: BTreeMap<ShardId, Held> = held.collect();
        let group = self.machine.group;
        let shards = held.iter().map(|(shard, held)| shard_of(group, *shard, &held.head)).collect();
        {
            let mut applied = self.machine.applied.lock();
            applied.held = held;
            applied.created.clear();
        }
        self.machine.shards.switch(group, shards);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.is_switching {
            return;
        }
        for arriving in self.shards.values() {
            self.machine.shards.graves.add(arriving.prefix, Weak::new());
        }
    }
}
