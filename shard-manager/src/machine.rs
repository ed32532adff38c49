//! Group 0's replicated machine: the plan of the birth and the routing table.
//!
//! ```text
//! operation   kind u8 = 1 | Plan (protobuf)                    bootstrap
//! reply       0: taken, 1: the cluster exists already, 2: refused
//! state       version u8 = 1 | Plan (protobuf)                 the table follows from it
//! ```
//!
//! Invariant: the first bootstrap that commits makes the cluster; every later one changes nothing,
//! so that whoever leads may propose it again.

use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Batch, Engine, EngineError, key};
use annulus_proto::v1;
use annulus_raft::{Applying, Machine, Operation};
use annulus_types::{GroupId, RoutingTable, ShardId};
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::plan::table_of;

const BOOTSTRAP: u8 = 1;
const STATE_VERSION: u8 = 1;

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

impl ManagerMachine {
    /// Reads what the engine holds.
    ///
    /// # Errors
    /// As the engine says, or when the state does not decode.
    pub fn open(engine: &dyn Engine) -> Result<Arc<Self>, EngineError> {
        let unreadable =
            |reason: String| EngineError::Failed { action: "read the manager's state", reason };
        let stored = engine.get(&[&state_key()])?.into_iter().next().flatten();
        let state = match stored {
            None => None,
            Some(bytes) if bytes.first() == Some(&STATE_VERSION) => {
                let plan = v1::Plan::decode(bytes.slice(1..))
                    .map_err(|error| unreadable(error.to_string()))?;
                let table = table_of(&plan).map_err(|error| unreadable(error.to_string()))?;
                Some(Arc::new(ManagerState { plan, table }))
            }
            Some(_) => return Err(unreadable("unknown version".to_owned())),
        };
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
}

/// All keys of the manager's state.
#[must_use]
pub fn range() -> Range<Bytes> {
    key::records_range(GroupId::MANAGER)
}
