//! What a replica leaves in the engine, and whose it is (H4).
//!
//! Records and state of a group are keyed by the group: a node holds one replica of it at a time. Which
//! one wrote them is a row of its own:
//!
//! ```text
//! group | part 1      replica u64, big-endian
//! ```
//!
//! A replica that is destroyed leaves rows, if only for the moment between its tombstone and their end,
//! and a replica that can never be opened again leaves them for good. The next replica of the group on
//! this node must not take them for its own: it would start from a state that somebody else applied, and
//! the end of the former one would then be the end of this one's rows.
//!
//! # Invariants
//!
//! - A new replica begins with nothing: whatever the engine holds of its group goes in the batch that
//!   names it. An older one is opened only on rows that name it.
//! - No replica is created while another of its group is open on this node, or could be: only one that
//!   was destroyed, or whose log is damaged or state lost, gives way. One that is open and halted or not
//!   trusted is closed on demand, and then gives way too.
//! - Rows go after the tombstone of their replica is durable, or when it has given way, and only while
//!   they name it.
//!
//! # Failure
//!
//! A crash between tombstone and rows leaves the rows: they go when the host starts. Data that their
//! records named are found by the machine, as after any crash (E3). An engine that lost its last batches
//! has lost the new rows with the name, or neither.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Batch, Engine, EngineError, key};
use annulus_types::{GroupId, ReplicaId};
use annulus_wal::StreamId;
use bytes::Bytes;

use crate::host::{Host, HostError};
use crate::machine::Machine;
use crate::snapshot::after;

/// Part of a group's own keys that names the replica.
const OWNER: u8 = 1;
/// Rows that are read at once to be deleted.
const PAGE_ROWS: usize = 256;

fn owner_key(group: GroupId) -> Bytes {
    key::group(group, OWNER, &[])
}

/// The replica whose state the engine holds for a group.
pub(crate) fn owner(engine: &dyn Engine, group: GroupId) -> Result<Option<ReplicaId>, EngineError> {
    let found = engine.get(&[&owner_key(group)])?.into_iter().next().flatten();
    let Some(bytes) = found else { return Ok(None) };
    match <[u8; 8]>::try_from(&bytes[..]) {
        Ok(id) => Ok(Some(ReplicaId(u64::from_be_bytes(id)))),
        Err(error) => Err(EngineError::Failed {
            action: "read whose state a group's is",
            reason: error.to_string(),
        }),
    }
}

/// Makes `batch` delete everything that is keyed by a group.
fn clear(engine: &dyn Engine, group: GroupId, batch: &mut Batch) -> Result<(), EngineError> {
    for range in [key::records_range(group), key::group_range(group)] {
        let mut rest: Option<Range<Bytes>> = Some(range);
        while let Some(range) = rest.take() {
            let rows = engine.rows(range.clone(), PAGE_ROWS)?;
            if rows.len() == PAGE_ROWS {
                rest = rows.last().map(|(last, _)| after(last)..range.end);
            }
            for (row, _) in rows {
                batch.delete(row);
            }
        }
    }
    Ok(())
}

/// Removes the rows of a replica that was destroyed, unless they are another's by now. `machine` is the one
/// that the group was opened with, if it was. Blocks.
pub(crate) fn remove(
    engine: &dyn Engine,
    stream: StreamId,
    machine: Option<&dyn Machine>,
) -> Result<(), EngineError> {
    if owner(engine, stream.group)? != Some(stream.replica) {
        return Ok(());
    }
    let mut batch = Batch::default();
    if let Some(machine) = machine {
        machine.destroy(&mut batch);
    }
    clear(engine, stream.group, &mut batch)?;
    engine.apply(batch)
}

impl Host {
    /// Closes the replica of a group that is open here and halted or not trusted, so that `newcomer` can
    /// take its place. It is reported as absent from then on. Nothing is done when none is open, or the
    /// newcomer itself. Run it to its end.
    ///
    /// # Errors
    /// `Occupied` when the open replica is sound, or its parts do not end: then it is tried again.
    pub async fn make_room(&self, group: GroupId, newcomer: ReplicaId) -> Result<(), HostError> {
        let _one_at_a_time = self.opening.lock().await;
        let mut failed = self.closing_of(group);
        if let Some(open) = self.group(group).filter(|open| open.replica() != newcomer) {
            let replica = open.replica();
            let reason = open.replica.halted().or_else(|| open.replica.distrusted());
            // What stops with its node is not broken.
            let Some(reason) = reason.filter(|_| !self.env.tasks.is_stopping()) else {
                return Err(HostError::Occupied(replica));
            };
            self.set_absent(StreamId { group, replica }, 0, &reason);
            failed.push(replica);
        }
        for replica in failed {
            if let Err(error) = Box::pin(self.close(StreamId { group, replica })).await {
                tracing::warn!(%group, %replica, %error, "a replica does not give way yet");
                return Err(HostError::Occupied(replica));
            }
            tracing::warn!(%group, %replica, %newcomer, "a failed replica gives way");
        }
        Ok(())
    }

    /// Replicas of a group whose parts have not ended.
    fn closing_of(&self, group: GroupId) -> Vec<ReplicaId> {
        let closing = self.closing.lock();
        let streams = closing.keys().filter(|stream| stream.group == group);
        streams.map(|stream| stream.replica).collect()
    }

    /// Whether a replica may be opened beside the others of its group that this folder holds.
    pub(crate) fn make_way(&self, stream: StreamId, held: bool) -> Result<(), HostError> {
        if let Some(ending) = self.closing_of(stream.group).into_iter().next() {
            return Err(HostError::Occupied(ending));
        }
        let open = self.group(stream.group).map(|group| group.replica());
        if held {
            return open.map_or(Ok(()), |other| Err(self.given_way(stream, other)));
        }
        let mut others = self.wal.streams().into_iter().filter(|other| {
            let is_other = other.group == stream.group && *other != stream;
            is_other && self.wal.damage(*other).is_none() && !self.is_absent(*other)
        });
        match open.or(others.next().map(|other| other.replica)) {
            Some(other) => Err(HostError::Occupied(other)),
            None => Ok(()),
        }
    }

    /// An older replica stays closed for good, because another took its place.
    fn given_way(&self, stream: StreamId, other: ReplicaId) -> HostError {
        let reason = format!("replica {other} of the group has taken its place");
        self.set_absent(stream, 0, &reason);
        HostError::NeedsRefill { begins_after: 0, reason }
    }

    /// Makes what the engine holds of a group the replica's own: all of it if it is held, nothing if it is
    /// new.
    pub(crate) async fn claim(
        &self,
        stream: StreamId,
        held: bool,
        machine: &Arc<dyn Machine>,
    ) -> Result<(), HostError> {
        let StreamId { group, replica } = stream;
        if self.keeps_remains() {
            return Ok(());
        }
        match owner(self.engine.as_ref(), group)? {
            Some(found) if held && found == replica => return Ok(()),
            Some(other) if held => return Err(self.given_way(stream, other)),
            _ => {}
        }
        let (engine, machine) = (Arc::clone(&self.engine), Arc::clone(machine));
        let claim = move || -> io::Result<()> {
            let mut batch = Batch::default();
            if !held {
                machine.destroy(&mut batch);
                clear(engine.as_ref(), group, &mut batch).map_err(io::Error::other)?;
            }
            batch.put(owner_key(group), replica.0.to_be_bytes().to_vec());
            engine.apply(batch).map_err(io::Error::other)
        };
        self.snapshots.run(claim).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use annulus_engine::MemoryEngine;
    use annulus_types::ShardId;

    use super::*;

    const GROUP: GroupId = GroupId(5);

    fn put(engine: &MemoryEngine, rows: impl Iterator<Item = Bytes>) {
        let mut batch = Batch::default();
        rows.for_each(|row| batch.put(row, "x"));
        engine.apply(batch).expect("memory does not fail");
    }

    #[test]
    fn rows_go_with_their_owner_and_with_nobody_else() {
        let engine = MemoryEngine::new();
        let shards = 0..3 * PAGE_ROWS as u64;
        put(&engine, shards.map(|shard| key::record(GROUP, ShardId(shard), 0, &[])));
        let others = [key::record(GroupId(6), ShardId(1), 0, &[]), key::group(GroupId(4), 0, &[])];
        put(&engine, others.iter().cloned());
        put(&engine, [key::group(GROUP, 0, &[])].into_iter());
        let mut batch = Batch::default();
        batch.put(owner_key(GROUP), 7_u64.to_be_bytes().to_vec());
        engine.apply(batch).expect("memory does not fail");
        assert_eq!(owner(&engine, GROUP).expect("it reads"), Some(ReplicaId(7)));

        let everything = || engine.rows(Bytes::new()..Bytes::from_static(&[255]), usize::MAX);
        let before = everything().expect("memory does not fail");
        remove(&engine, StreamId { group: GROUP, replica: ReplicaId(8) }, None).expect("it works");
        assert_eq!(everything().expect("memory does not fail"), before);
        remove(&engine, StreamId { group: GROUP, replica: ReplicaId(7) }, None).expect("it works");
        let mut left: Vec<Bytes> =
            everything().expect("memory does not fail").into_iter().map(|(row, _)| row).collect();
        left.sort();
        assert_eq!(left, others);
        assert_eq!(owner(&engine, GROUP).expect("it reads"), None);
    }
}
