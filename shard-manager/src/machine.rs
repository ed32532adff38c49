//! Group 0's replicated machine: the manager's state and the commands that change it.
//!
//! ```text
//! operation   ManagerCommand (protobuf)
//! reply       ManagerOutcome (protobuf)
//! state       version u8 = 2 | ManagerState (protobuf)
//! snapshot    one file, with at most one row: `state` -> state
//! ```
//!
//! What a command means is the business of [`command`](crate::command); here it is carried from the
//! log to the engine and to those who wait. The state is one row, written whole: it is small, and
//! it changes only when something about the cluster does.
//!
//! Invariants: what [`ManagerMachine::state`] shows is in the engine. The first bootstrap that
//! commits makes the cluster, every later one is refused, so that whoever leads may propose it
//! again. A command that does not decode is refused like any other, by every replica alike (W8).

use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Batch, Engine, EngineError, Row, key};
use annulus_proto::v1;
use annulus_raft::{Applying, FileSpec, Import, Machine, Operation};
use annulus_types::{Error, GroupId, ShardId};
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::command::{Outcome, Refusal, apply};

const STATE_VERSION: u8 = 2;
/// The one file of a snapshot, and the one row in it.
const FILE: u64 = 0;
const STATE_ROW: &[u8] = b"state";

/// A command as an operation.
#[must_use]
pub fn operation_of(command: &v1::ManagerCommand) -> Bytes {
    Bytes::from(command.encode_to_vec())
}

/// What the machine's reply to a command says.
///
/// # Errors
/// The refusal; nothing was changed.
pub fn outcome_of(reply: Bytes) -> Result<Outcome, Error> {
    let Ok(outcome) = v1::ManagerOutcome::decode(reply) else {
        // The change is made: the reply came from an applied entry.
        return Ok(Outcome::default());
    };
    match outcome.refused {
        Some(detail) => Err(Error::from(detail)),
        None => Ok(Outcome { id: outcome.id, decisions: outcome.decisions }),
    }
}

fn reply_of(result: &Result<Outcome, Refusal>) -> Bytes {
    let reply = match result {
        Ok(Outcome { id, decisions }) => {
            v1::ManagerOutcome { id: *id, decisions: decisions.clone(), refused: None }
        }
        Err(refusal) => {
            let refused = v1::ErrorDetail::from(&Error::from(refusal));
            v1::ManagerOutcome { refused: Some(refused), ..Default::default() }
        }
    };
    Bytes::from(reply.encode_to_vec())
}

/// See the module.
pub struct ManagerMachine {
    state: watch::Sender<Option<Arc<v1::ManagerState>>>,
    next: Mutex<Option<Arc<v1::ManagerState>>>,
}

fn state_key() -> Bytes {
    key::record(GroupId::MANAGER, ShardId(0), 0, &[])
}

fn unreadable(reason: impl std::fmt::Display) -> EngineError {
    EngineError::Failed { action: "read the manager's state", reason: reason.to_string() }
}

fn decode(stored: &Bytes) -> Result<v1::ManagerState, EngineError> {
    if stored.first() != Some(&STATE_VERSION) {
        return Err(unreadable("unknown version"));
    }
    v1::ManagerState::decode(stored.slice(1..)).map_err(unreadable)
}

fn encode(state: &v1::ManagerState) -> Bytes {
    let body = state.encode_to_vec();
    let mut stored = BytesMut::with_capacity(1 + body.len());
    stored.put_u8(STATE_VERSION);
    stored.put_slice(&body);
    stored.freeze()
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

    /// The state as applied here; `None` before the cluster is made.
    #[must_use]
    pub fn state(&self) -> Option<Arc<v1::ManagerState>> {
        self.state.borrow().clone()
    }

    /// The state, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<v1::ManagerState>>> {
        self.state.subscribe()
    }

    fn apply_one(&self, body: &Bytes, now_ms: u64) -> Bytes {
        let result = self.try_one(body, now_ms);
        if let Err(refusal) = &result {
            tracing::debug!(%refusal, "a command of the manager changed nothing");
        }
        reply_of(&result)
    }

    fn try_one(&self, body: &Bytes, now_ms: u64) -> Result<Outcome, Refusal> {
        // A copy: what is kept of a command must not pin the entry's buffer.
        let command = v1::ManagerCommand::decode(body.as_ref())
            .map_err(|error| Refusal::Unreadable(error.to_string()))?;
        let mut next = self.next.lock();
        let before = next.clone().or_else(|| self.state());
        let (after, outcome) = apply(before.as_deref(), &command, now_ms)?;
        *next = Some(Arc::new(after));
        Ok(outcome)
    }
}

impl Machine for ManagerMachine {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let replies = operations
            .iter()
            .map(|operation| self.apply_one(&operation.body, at.group_time_ms))
            .collect();
        if let Some(next) = self.next.lock().as_ref() {
            batch.put(state_key(), encode(next));
        }
        Ok(replies)
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
    came: Option<(Bytes, Arc<v1::ManagerState>)>,
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
    use annulus_proto::v1::manager_command::Command;
    use annulus_raft::EntryId;
    use annulus_types::{ErrorKind, ReplicaId};

    use super::*;
    use crate::state::from_plan;
    use crate::testing::plan_of;

    fn first() -> v1::ManagerCommand {
        let state = from_plan(&plan_of(1)).unwrap();
        v1::ManagerCommand { command: Some(Command::Bootstrap(state)) }
    }

    fn paused(paused: bool) -> v1::ManagerCommand {
        let change = v1::SettingsChange { paused: Some(paused), ..Default::default() };
        v1::ManagerCommand { command: Some(Command::Settings(change)) }
    }

    fn at(group_time_ms: u64) -> Applying {
        let id = EntryId { term: 1, leader: ReplicaId(1), index: 1 };
        Applying { group: GroupId::MANAGER, id, version: 1, group_time_ms, wall_ms: 0 }
    }

    /// Applies the commands as one entry.
    fn entry(
        engine: &MemoryEngine,
        machine: &ManagerMachine,
        commands: &[v1::ManagerCommand],
    ) -> Vec<Result<Outcome, Error>> {
        let operations = commands
            .iter()
            .map(|command| Operation { shard: ShardId(0), body: operation_of(command) })
            .collect();
        let mut batch = Batch::default();
        let replies = machine.apply(&at(7), operations, &mut batch).unwrap();
        engine.apply(batch).unwrap();
        machine.batch_visible();
        replies.into_iter().map(outcome_of).collect()
    }

    /// An engine that holds a state, or none.
    fn holding(made: bool) -> (MemoryEngine, Arc<ManagerMachine>) {
        let engine = MemoryEngine::new();
        let machine = ManagerMachine::open(&engine).unwrap();
        if made {
            assert!(entry(&engine, &machine, &[first()])[0].is_ok());
        }
        (engine, machine)
    }

    #[test]
    fn commands_of_one_entry_see_each_other_and_survive() {
        let (engine, machine) = holding(false);
        let results = entry(&engine, &machine, &[paused(true), first(), first(), paused(true)]);
        let refused = |result: &Result<Outcome, Error>| match result {
            Err(Error { kind: ErrorKind::NotReady { reason }, .. }) => reason.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&results[0]), "there is no cluster yet");
        assert_eq!(refused(&results[2]), "the cluster exists already");
        assert_eq!(results[3].as_ref().unwrap().decisions[0].at_ms, 7);
        let state = machine.state().unwrap();
        assert!(state.settings.unwrap().paused);
        let again = ManagerMachine::open(&engine).unwrap();
        assert_eq!(again.state(), Some(state));
    }

    #[test]
    fn what_does_not_decode_is_refused_and_changes_nothing() {
        let (engine, machine) = holding(true);
        let before = machine.state();
        let operation = Operation { shard: ShardId(0), body: Bytes::from_static(b"\xff\xff") };
        let mut batch = Batch::default();
        let replies = machine.apply(&at(9), vec![operation], &mut batch).unwrap();
        engine.apply(batch).unwrap();
        machine.batch_visible();
        assert!(outcome_of(replies[0].clone()).is_err());
        assert_eq!(machine.state(), before);
    }

    #[test]
    fn nothing_is_left_of_a_state_that_is_destroyed() {
        for state in [true, false] {
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
        for (source, target) in [(true, false), (false, true), (false, false)] {
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
            assert_eq!(importing.state(), exporting.state());
            let again = ManagerMachine::open(&into).unwrap();
            assert_eq!(again.state(), exporting.state());
        }
    }
}
