//! Group 0's replicated machine: the plan of the birth and the routing table.
//!
//! ```text
//! operation   kind u8 = 1 | Plan (protobuf)                    bootstrap
//! reply       0: taken, 1: the cluster exists already, 2: refused
//! state       version u8 = 1 | Plan (protobuf)                 the table follows from it
//! snapshot    one file, with at most one row: `state` -> state
//! ```
//!
//! Invariant: the first bootstrap that commits makes the cluster; every later one changes nothing,
//! so that whoever leads may propose it again.

use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Batch, Engine, EngineError, Row, key};
use annulus_proto::v1;
use annulus_raft::{Applying, FileSpec, Import, Machine, Operation};
use annulus_types::{GroupId, RoutingTable, ShardId};
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::plan::table_of;

const BOOTSTRAP: u8 = 1;
const STATE_VERSION: u8 = 1;
/// The one file of a snapshot, and the one row in it.
const FILE: u64 = 0;
const STATE_ROW: &[u8] = b"state";

/// The operation that makes the cluster.
#[must_use]
pub fn bootstrap(plan: &v1::Plan) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + plan.encoded_len());
    out.put_u8(BOOTSTRAP);
    out.put_slice(&plan.encode_to_vec());
    out.freeze()
}

/// What the manager has decided.
#[derive(Clone, Debug, PartialEq)]
pub struct ManagerState {
    /// The plan of the birth.
    pub plan: v1::Plan,
    /// The table that follows from it.
    pub table: RoutingTable,
}

/// See the module.
pub struct ManagerMachine {
    state: watch::Sender<Option<Arc<ManagerState>>>,
    next: Mutex<Option<Arc<ManagerState>>>,
}

fn state_key() -> Bytes {
    key::record(GroupId::MANAGER, ShardId(0), 0, &[])
}

fn unreadable(reason: impl std::fmt::Display) -> EngineError {
    EngineError::Failed { action: "read the manager's state", reason: reason.to_string() }
}

fn decode(stored: &Bytes) -> Result<ManagerState, EngineError> {
    if stored.first() != Some(&STATE_VERSION) {
        return Err(unreadable("unknown version"));
    }
    let plan = v1::Plan::decode(stored.slice(1..)).map_err(unreadable)?;
    let table = table_of(&plan).map_err(unreadable)?;
    Ok(ManagerState { plan, table })
}

impl ManagerMachine {
    /// Reads what the engine holds.
    ///
    /// # Errors
    /// As the engine says, or when the state does not decode.
    pub fn open(engine: &dyn Engine) -> Result<Arc<Self>, EngineError> {
        let stored = engine.get(&[&state_key()])?.into_iter().next().flatten();
        let state = stored.as_ref().map(decode).transpose()?.map(Arc::new);
        Ok(Arc::new(Self { state: watch::Sender::new(state), next: Mutex::new(None) }))
    }

    /// The state, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<ManagerState>>> {
        self.state.subscribe()
    }

    fn apply_one(&self, body: &Bytes, batch: &mut Batch) -> u8 {
        if self.state.borrow().is_some() || self.next.lock().is_some() {
            return 1;
        }
        if body.first() != Some(&BOOTSTRAP) {
            return 2;
        }
        let Ok(plan) = v1::Plan::decode(body.slice(1..)) else { return 2 };
        let Ok(table) = table_of(&plan) else { return 2 };
        let mut stored = BytesMut::with_capacity(1 + plan.encoded_len());
        stored.put_u8(STATE_VERSION);
        stored.put_slice(&plan.encode_to_vec());
        batch.put(state_key(), stored.freeze());
        *self.next.lock() = Some(Arc::new(ManagerState { plan, table }));
        0
    }
}

impl Machine for ManagerMachine {
    fn apply(
        &self,
        _at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let replies = operations
            .iter()
            .map(|operation| Bytes::copy_from_slice(&[self.apply_one(&operation.body, batch)]));
        Ok(replies.collect())
    }

    fn batch_visible(&self) {
        if let Some(state) = self.next.lock().take() {
            self.state.send_replace(Some(state));
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        vec![FileSpec { id: FILE, ranges: vec![range()] }]
    }

    fn export(&self, _file: u64, (key, value): Row) -> Result<Row, EngineError> {
        if key != state_key() {
            return Err(unreadable("a row that is not the manager's"));
        }
        Ok((Bytes::from_static(STATE_ROW), value))
    }

    fn import(self: Arc<Self>) -> Box<dyn Import> {
        Box::new(Incoming { machine: self, came: None })
    }

    fn destroy(&self, batch: &mut Batch) {
        batch.delete(state_key());
        drop(self.next.lock().take());
        self.state.send_if_modified(|state| state.take().is_some());
    }
}

/// The state of a snapshot; it is small, and kept here until it is switched in.
struct Incoming {
    machine: Arc<ManagerMachine>,
    came: Option<(Bytes, Arc<ManagerState>)>,
}

impl Import for Incoming {
    fn rows(&mut self, file: u64, rows: Vec<Row>, _: &mut Batch) -> Result<(), EngineError> {
        for (name, stored) in rows {
            if file != FILE || name != STATE_ROW {
                return Err(unreadable("a row of a snapshot that has no meaning here"));
            }
            let state = Arc::new(decode(&stored)?);
            self.came = Some((stored, state));
        }
        Ok(())
    }

    fn switch(&mut self, batch: &mut Batch) -> Result<(), EngineError> {
        match &self.came {
            Some((stored, _)) => batch.put(state_key(), stored.clone()),
            None => batch.delete(state_key()),
        }
        Ok(())
    }

    fn switched(self: Box<Self>) {
        let Self { machine, came } = *self;
        machine.state.send_replace(came.map(|(_, state)| state));
    }
}

/// All keys of the manager's state.
#[must_use]
pub fn range() -> Range<Bytes> {
    key::records_range(GroupId::MANAGER)
}

#[cfg(test)]
mod tests {
    use annulus_engine::MemoryEngine;

    use super::*;

    fn plan() -> v1::Plan {
        let info = v1::NodeInfo { id: 1, weight: 100, storage: true, ..Default::default() };
        v1::Plan {
            cluster_id: vec![1; 16].into(),
            era: 1,
            incarnation: 5,
            shards: 8,
            lanes: 1,
            replication: 1,
            nodes: vec![v1::PlannedNode { info: Some(info), incarnation: 7 }],
        }
    }

    /// An engine with the state that follows from `plan`, if there is one.
    fn holding(plan: Option<v1::Plan>) -> (MemoryEngine, Arc<ManagerMachine>) {
        let engine = MemoryEngine::new();
        let machine = ManagerMachine::open(&engine).unwrap();
        if let Some(plan) = plan {
            let mut batch = Batch::default();
            assert_eq!(machine.apply_one(&bootstrap(&plan), &mut batch), 0);
            engine.apply(batch).unwrap();
            machine.batch_visible();
        }
        (engine, machine)
    }

    #[test]
    fn nothing_is_left_of_a_state_that_is_destroyed() {
        for state in [Some(plan()), None] {
            let (engine, machine) = holding(state);
            let mut batch = Batch::default();
            machine.destroy(&mut batch);
            engine.apply(batch).unwrap();
            assert_eq!(*machine.watch().borrow(), None);
            assert!(engine.rows(range(), 9).unwrap().is_empty());
        }
    }

    #[test]
    fn a_snapshot_brings_the_state_whatever_was_there() {
        for (source, target) in [(Some(plan()), None), (None, Some(plan())), (None, None)] {
            let (from, exporting) = holding(source);
            let (into, importing) = holding(target);
            let mut import = Arc::clone(&importing).import();
            for FileSpec { id, ranges } in exporting.files() {
                for range in ranges {
                    let rows = from.rows(range, 9).unwrap().into_iter();
                    let rows = rows.map(|row| exporting.export(id, row).unwrap()).collect();
                    import.rows(id, rows, &mut Batch::default()).unwrap();
                }
            }
            let mut batch = Batch::default();
            import.switch(&mut batch).unwrap();
            into.apply(batch).unwrap();
            import.switched();
            assert_eq!(*importing.watch().borrow(), *exporting.watch().borrow());
            let again = ManagerMachine::open(&into).unwrap();
            assert_eq!(*again.watch().borrow(), *exporting.watch().borrow());
        }
    }
}
