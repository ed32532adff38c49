//! The rows of shards' records (E3): a head, and one row per writer.
//!
//! ```text
//! part 0   nothing          the head: `stored::Head`
//! part 1   writer u64       a writer: `writers`
//! ```
//!
//! All rows of a record are changed by one batch with the data that they speak of, so a record is
//! whole or not there. A part that is not known here was written by a later version: to go on without
//! it would be to lose what it says, so it is an error.

use std::collections::BTreeMap;

use annulus_engine::{Engine, EngineError, key};
use annulus_types::{GroupId, Revision, ShardId};
use bytes::{BufMut, Bytes, BytesMut};

use super::deadlines::Deadlines;
use super::{Held, unreadable};
use crate::stored::Head;
use crate::writers::Writers;

/// The part of a record that is its head.
pub(super) const HEAD: u8 = 0;
/// The part of a record that has a row for each writer.
pub(super) const WRITER: u8 = 1;

/// Rows read at once.
const PAGE: usize = 256;

/// What the key of a record's row says.
pub(super) struct Place<'a> {
    pub(super) group: GroupId,
    pub(super) shard: ShardId,
    pub(super) part: u8,
    pub(super) rest: &'a [u8],
}

/// Reads the key of a row.
pub(super) fn place_of(record: &[u8]) -> Option<Place<'_>> {
    let number = |at: usize| {
        let bytes = <[u8; 8]>::try_from(record.get(at..at + 8)?).ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    Some(Place {
        group: GroupId(number(1)?),
        shard: ShardId(number(9)?),
        part: *record.get(17)?,
        rest: record.get(18..)?,
    })
}

/// The key of a head.
pub(super) fn head_key(group: GroupId, shard: ShardId) -> Bytes {
    key::record(group, shard, HEAD, &[])
}

/// The key of a writer's row.
pub(super) fn writer_key(group: GroupId, shard: ShardId, writer: Revision) -> Bytes {
    key::record(group, shard, WRITER, &writer.0.to_be_bytes())
}

/// The writer that a row of part 1 is about.
pub(super) fn writer_of(rest: &[u8]) -> Option<Revision> {
    <[u8; 8]>::try_from(rest).ok().map(|id| Revision(u64::from_be_bytes(id)))
}

/// Shows every row of a group's records, in order.
pub(super) fn each_row(
    engine: &dyn Engine,
    group: GroupId,
    mut visit: impl FnMut(Bytes, Bytes) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut rest = key::records_range(group);
    loop {
        let page = engine.rows(rest.clone(), PAGE)?;
        let is_last = page.len() < PAGE;
        if let Some((last, _)) = page.last() {
            let mut next = BytesMut::with_capacity(last.len() + 1);
            next.put_slice(last);
            next.put_u8(0);
            rest.start = next.freeze();
        }
        for (record, value) in page {
            visit(record, value)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// The records of a group's shards, and the earliest deadline of each.
pub(super) fn load(
    engine: &dyn Engine,
    group: GroupId,
) -> Result<BTreeMap<ShardId, Held>, EngineError> {
    let mut shards: BTreeMap<ShardId, Held> = BTreeMap::new();
    each_row(engine, group, |record, value| {
        match place_of(&record) {
            Some(Place { shard, part: HEAD, rest: [], .. }) => {
                let head = Head::decode(value).map_err(unreadable)?;
                let (writers, deadlines) = (Writers::default(), Deadlines::default());
                shards.insert(shard, Held { head, writers, deadlines });
            }
            Some(Place { shard, part: WRITER, rest, .. }) => {
                let (Some(held), Some(writer)) = (shards.get_mut(&shard), writer_of(rest)) else {
                    return Err(unreadable("a writer belongs to no shard"));
                };
                held.writers.restore(writer, value).map_err(unreadable)?;
            }
            _ => return Err(unreadable("a row of a record that has no meaning here")),
        }
        Ok(())
    })?;
    for held in shards.values_mut() {
        held.deadlines = Deadlines::load(engine, held.head.prefix)?;
    }
    Ok(shards)
}
