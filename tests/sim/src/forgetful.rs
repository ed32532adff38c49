//! The machine of the manager's group, with one operation more than the real one: to forget everything and
//! begin with another state.
//!
//! It stands for a manager whose group was lost and made anew with what the nodes told. Here the group
//! stays and its content goes, at one entry and on every replica alike, so that nodes see the same: a
//! manager of a later era that knows nothing of what was under way.
//!
//! Also writes into the trace what the manager decided, once, when the first replica applies it.
//!
//! Invariant: all other operations are the real machine's, in the order of the entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_engine::{Batch, Engine, EngineError, Row};
use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command;
use annulus_raft::{Applying, FileSpec, Group, Import, Machine, Operation};
use annulus_shard_manager::ManagerMachine;
use annulus_shard_manager::machine::{operation_of, outcome_of};
use annulus_types::{Error, ShardId};
use bytes::Bytes;

use crate::trace::Trace;

/// The manager's group has no shards; an operation on this one forgets before it is carried out.
const FORGET: ShardId = ShardId(1);

/// See the module.
pub(crate) struct Forgetful {
    inner: Arc<ManagerMachine>,
    trace: Trace,
    /// The last entry whose decisions are in the trace; shared by all replicas.
    told: Arc<AtomicU64>,
}

impl Forgetful {
    /// Reads what the engine holds.
    pub(crate) fn open(
        engine: &dyn Engine,
        trace: Trace,
        told: Arc<AtomicU64>,
    ) -> Result<Arc<Self>, EngineError> {
        let inner = ManagerMachine::open(engine)?;
        Ok(Arc::new(Self { inner, trace, told }))
    }

    /// The real machine.
    pub(crate) fn inner(&self) -> &Arc<ManagerMachine> {
        &self.inner
    }

    fn tell(&self, at: &Applying, replies: &[Bytes]) {
        if self.told.fetch_max(at.id.index, Ordering::Relaxed) >= at.id.index {
            return;
        }
        for outcome in replies.iter().filter_map(|reply| outcome_of(reply.clone()).ok()) {
            for decision in outcome.decisions {
                let v1::Decision { what, why, .. } = decision;
                self.trace.line("manager", format_args!("{what} ({why})"));
            }
        }
    }
}

/// Proposes the first state of a cluster; with `forgets`, in the place of the present one.
pub(crate) async fn begin(
    group: &Group,
    first: v1::ManagerState,
    forgets: bool,
    limit: Duration,
) -> Result<(), Error> {
    let shard = if forgets { FORGET } else { ShardId(0) };
    let command = v1::ManagerCommand { command: Some(Command::Bootstrap(first)) };
    let proposed = Box::pin(group.propose(shard, operation_of(&command), limit)).await?;
    outcome_of(proposed.reply).map(drop)
}

impl Machine for Forgetful {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let mut replies = Vec::with_capacity(operations.len());
        for operation in operations {
            if operation.shard == FORGET {
                self.inner.destroy(batch);
            }
            replies.extend(self.inner.apply(at, vec![operation], batch)?);
        }
        self.tell(at, &replies);
        Ok(replies)
    }

    fn batch_visible(&self) {
        self.inner.batch_visible();
    }

    fn files(&self) -> Vec<FileSpec> {
        self.inner.files()
    }

    fn export(&self, file: u64, row: Row) -> Result<Row, EngineError> {
        self.inner.export(file, row)
    }

    fn import(self: Arc<Self>) -> Box<dyn Import> {
        Arc::clone(&self.inner).import()
    }

    fn destroy(&self, batch: &mut Batch) {
        self.inner.destroy(batch);
    }
}
