//! The replicated machine: what a group does with committed entries, and openraft's state machine
//! around it.
//!
//! One generic adapter serves the storage groups and the manager: [`Machine`] decides what an
//! operation means, the adapter keeps the group's own state beside it in the same engine batch
//! (rules L7, W5): last applied id, membership, group time.
//!
//! # Invariants
//!
//! - One entry is one atomic engine batch: data, records and the applied id change together.
//! - Apply never fails for a local reason: an engine error stops the replica (W8); it is never
//!   turned into a reply.
//! - Replies are sent only after the batch is visible, and `applied` is raised before them, so that
//!   whoever holds a reply finds its effect.
//! - Group time never goes back: an entry's time is raised to the group's.
//!
//! A whole state leaves the machine as the files of a snapshot ([`FileSpec`]) and enters it by an
//! [`Import`]; the `snapshot` module moves them.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use annulus_engine::{Batch, Engine, EngineError, Row, key};
use annulus_runtime::Random;
use annulus_types::GroupId;
use annulus_wal::EntryId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};

use crate::entry::{Decoded, EntryBody, Operation};
use crate::log_store::LogStore;
use crate::replica::{AppliedAt, ReplicaState};
use crate::snapshot::store::SnapshotStore;
use crate::snapshot::{Builder, Content, Picture};
use crate::types::{LogId, Payload, Reply, StoredMembership, TypeConfig, entry_id};
use crate::{codec, digest};

/// Where in the log an entry stands, for the machine that applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applying {
    /// The group.
    pub group: GroupId,
    /// The entry.
    pub id: EntryId,
    /// The state machine version whose rules hold for it (W8).
    pub version: u16,
    /// The group's time at it, milliseconds (W5).
    pub group_time_ms: u64,
    /// The proposer's wall clock, for people.
    pub wall_ms: u64,
}

/// A part of a machine's state: one file of a snapshot (E2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Names the part among those of its group: the id of a shard.
    pub id: u64,
    /// The keys of the engine that belong to it. The rows of a file are in this order.
    pub ranges: Vec<Range<Bytes>>,
}

/// A snapshot on its way into a machine. Dropped before [`Import::switch`] it leaves nothing that
/// anybody would read.
pub trait Import: Send {
    /// Takes rows of one file, in the order of the file, and puts them where no reader looks (E3).
    /// Called at least once for every file. The batch is applied before the next call.
    ///
    /// # Errors
    /// When a row makes no sense, or as the engine says; it stops the replica.
    fn rows(&mut self, file: u64, rows: Vec<Row>, batch: &mut Batch) -> Result<(), EngineError>;

    /// Makes `batch` replace the machine's whole state by what came.
    ///
    /// # Errors
    /// When a part lacks what it needs, or as the engine says; it stops the replica.
    fn switch(&mut self, batch: &mut Batch) -> Result<(), EngineError>;

    /// The batch of [`Import::switch`] is visible in the engine now.
    fn switched(self: Box<Self>);
}

/// The meaning of operations. Calls come one after another, in log order; only [`Machine::export`]
/// may be called at any time.
pub trait Machine: Send + Sync + 'static {
    /// Applies the operations of one entry: changes go into `batch`, one reply each is returned.
    /// There may be none: then the entry's time is all there is to it (W5).
    /// Must be deterministic: same state, same operations, same batch and replies, on every
    /// replica. Operations are judged one by one; a refused one is a reply, not an error.
    ///
    /// # Errors
    /// Only what the engine says when state has to be read; it stops the replica.
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError>;

    /// The batch of the last [`Machine::apply`] is visible in the engine now.
    fn batch_visible(&self);

    /// The group's time at which something in the state ends by itself next, milliseconds, or an earlier one
    /// if that is not known; `None`: nothing will. An entry of that time, or later, must end what is due, or
    /// as much of it as one entry may, and find out what comes next: until then a leader without traffic goes
    /// on proposing time entries (W5). Asked after every entry, and after a snapshot.
    fn next_end_ms(&self) -> Option<u64> {
        None
    }

    /// The parts of the whole state as it is now.
    fn files(&self) -> Vec<FileSpec>;

    /// The row of a snapshot that stands for a row of the engine: name and value without what holds
    /// on this node only, so that equal states make equal files. The row may be an old one: what the
    /// machine knows of its present state says nothing about it.
    ///
    /// # Errors
    /// When the row makes no sense.
    fn export(&self, file: u64, row: Row) -> Result<Row, EngineError>;

    /// Begins to replace the whole state by a snapshot. Nothing is applied until it ends.
    fn import(self: Arc<Self>) -> Box<dyn Import>;

    /// The replica was destroyed (H4), or another begins in its place: there is no state any more, and
    /// readers find none from now on. Nothing is applied meanwhile. The rows of the group's records and
    /// its own state go in the same batch, by the caller; what else the machine knows of goes into `batch`,
    /// but data that only a record names are left to the machine's own sweeping (E3).
    fn destroy(&self, _batch: &mut Batch) {}
}

/// Part of a group's own keys that holds [`GroupState`].
const STATE: u8 = 0;
const STATE_VERSION: u8 = 1;

/// The row of the engine in which a group's replica keeps its own state. The batch of every entry sets
/// it: whoever reads it together with data, at one moment of the engine, knows the group's time at
/// exactly that state (R3).
#[must_use]
pub fn state_key(group: GroupId) -> Bytes {
    GroupState::key(group)
}

/// The group's time that such a row tells, milliseconds; 0 before there is one.
///
/// # Errors
/// When the row does not decode.
pub fn group_time_of(row: Option<&[u8]>) -> Result<u64, EngineError> {
    let Some(mut row) = row else { return Ok(0) };
    match (row.try_get_u8(), row.try_get_u8(), row.try_get_u64()) {
        (Ok(STATE_VERSION), Ok(_), Ok(group_time_ms)) => Ok(group_time_ms),
        _ => Err(EngineError::Failed {
            action: "read a group's time",
            reason: "its row does not decode".to_owned(),
        }),
    }
}

/// What a replica keeps about itself in the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GroupState {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) group_time_ms: u64,
    /// E6: it has once applied up to a read index told by a leader.
    pub(crate) whole: bool,
}

impl GroupState {
    pub(crate) fn key(group: GroupId) -> Bytes {
        key::group(group, STATE, &[])
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(STATE_VERSION);
        out.put_u8(u8::from(self.whole));
        out.put_u64(self.group_time_ms);
        codec::encode_log_id(self.applied.as_ref(), &mut out);
        codec::encode_stored(&self.membership, &mut out);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, crate::types::Malformed> {
        let short = |_| crate::types::Malformed("group state is cut short");
        if bytes.try_get_u8().map_err(short)? != STATE_VERSION {
            return Err(crate::types::Malformed("group state version"));
        }
        let whole = bytes.try_get_u8().map_err(short)? == 1;
        let group_time_ms = bytes.try_get_u64().map_err(short)?;
        let applied = codec::decode_log_id(&mut bytes)?;
        let membership = codec::decode_stored(&mut bytes)?;
        Ok(Self { applied, membership, group_time_ms, whole })
    }

    pub(crate) fn load(engine: &dyn Engine, group: GroupId) -> Result<Self, EngineError> {
        let found = engine.get(&[&Self::key(group)])?.into_iter().next().flatten();
        let Some(bytes) = found else { return Ok(Self::default()) };
        Self::decode(bytes).map_err(|error| EngineError::Failed {
            action: "read a group's state",
            reason: error.to_string(),
        })
    }
}

/// Delays what a leader applies, so that its followers are ahead of it (R2). Followers are not delayed:
/// both would only be late together.
pub(crate) struct Lag {
    most_us: u64,
    random: Random,
}

impl Lag {
    /// Pauses below `most`; `None` for none at all.
    pub(crate) fn of(most: Duration, random: &Random) -> Option<Self> {
        let most_us = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        (most_us > 0).then(|| Self { most_us, random: random.clone() })
    }

    fn pause(&self) -> Duration {
        Duration::from_micros(self.random.below(self.most_us))
    }
}

/// openraft's view of one replica's state.
pub(crate) struct StateMachine {
    pub(crate) replica: Arc<ReplicaState>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) state: GroupState,
    /// A snapshot may bring a membership that the log does not hold.
    pub(crate) log: LogStore,
    pub(crate) store: Arc<SnapshotStore>,
    /// Only in tests of whole processes.
    pub(crate) lag: Option<Lag>,
    /// The newest snapshot, as long as somebody uses it.
    picture: Weak<Picture>,
}

impl StateMachine {
    pub(crate) fn open(
        replica: Arc<ReplicaState>,
        engine: Arc<dyn Engine>,
        machine: Arc<dyn Machine>,
        log: LogStore,
        store: Arc<SnapshotStore>,
    ) -> Result<Self, EngineError> {
        let state = GroupState::load(engine.as_ref(), replica.group)?;
        if let Some(applied) = &state.applied {
            replica.entry_applied(AppliedAt {
                id: entry_id(applied),
                group_time_ms: state.group_time_ms,
                next_end_ms: machine.next_end_ms(),
            });
        }
        replica.set_whole(state.whole);
        Ok(Self { replica, engine, machine, state, log, store, lag: None, picture: Weak::new() })
    }

    /// What a snapshot of this moment holds. Only a description while nothing is applied, or while
    /// too many groups hold views.
    pub(crate) fn content(&mut self) -> io::Result<Content> {
        if self.state.applied.is_none() {
            return Ok(Content::Described);
        }
        if let Some(picture) = self.picture.upgrade()
            && *picture.state() == self.state
        {
            return Ok(Content::Taken(picture));
        }
        let group = self.replica.group;
        let taken =
            Picture::take(&self.store, self.engine.as_ref(), &self.machine, group, &self.state);
        let Some(picture) = taken.map_err(io::Error::other)? else {
            return Ok(Content::Described);
        };
        self.picture = Arc::downgrade(&picture);
        Ok(Content::Taken(picture))
    }

    fn builder(&mut self) -> Builder {
        let content = self.content().unwrap_or_else(|error| {
            self.replica.halt(&format!("no view of the engine: {error}"));
            Content::Described
        });
        Builder { meta: self.described(), content }
    }

    /// What a snapshot of this moment is called.
    fn described(&self) -> SnapshotMetaOf<TypeConfig> {
        SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.state.applied,
            last_membership: self.state.membership.clone(),
        }
    }

    /// How long the next batch is held back.
    fn pause(&self) -> Option<Duration> {
        let leads = self.replica.gate.view().leading.is_some();
        self.lag.as_ref().filter(|_| leads).map(Lag::pause)
    }

    fn operate(&mut self, id: LogId, body: EntryBody, batch: &mut Batch) -> io::Result<Vec<Bytes>> {
        self.state.group_time_ms = self.state.group_time_ms.max(body.group_time_ms);
        let at = Applying {
            group: self.replica.group,
            id: entry_id(&id),
            version: body.version,
            group_time_ms: self.state.group_time_ms,
            wall_ms: body.wall_ms,
        };
        self.machine.apply(&at, body.operations, batch).map_err(io::Error::other)
    }

    fn apply_one(&mut self, id: LogId, payload: Payload) -> Result<Reply, io::Error> {
        let mut batch = Batch::default();
        let mut replies = Vec::new();
        let mut takes_digest = false;
        match payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                self.state.membership = StoredMembership::new(Some(id), membership);
            }
            Payload::Normal(command) => match Decoded::read(command.0).map_err(io::Error::other)? {
                Decoded::Operations(body) => replies = self.operate(id, body, &mut batch)?,
                Decoded::Digest(body) => {
                    self.state.group_time_ms = self.state.group_time_ms.max(body.group_time_ms);
                    takes_digest = true;
                }
            },
        }
        self.state.applied = Some(id);
        self.state.whole |= self.replica.reaches_whole(id.index);
        batch.put(GroupState::key(self.replica.group), self.state.encode());
        self.engine.apply(batch).map_err(io::Error::other)?;
        self.machine.batch_visible();
        if takes_digest {
            digest::take(self, entry_id(&id));
        }
        self.replica.set_whole(self.state.whole);
        self.tell_applied(entry_id(&id));
        Ok(Reply(replies))
    }

    /// The state is that after an entry, and visible.
    pub(crate) fn tell_applied(&self, id: EntryId) {
        self.replica.entry_applied(AppliedAt {
            id,
            group_time_ms: self.state.group_time_ms,
            next_end_ms: self.machine.next_end_ms(),
        });
    }
}

impl Drop for StateMachine {
    /// openraft says nothing when its worker ends, and that may be after its core.
    fn drop(&mut self) {
        self.replica.machine_has_ended();
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Content;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let pause = self.pause();
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let applied = self.apply_one(entry.log_id(), entry.payload);
            if let Err(error) = &applied {
                self.replica.halt(&format!("apply failed: {error}"));
            }
            let reply = applied?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let builder = self.builder();
        // Demanded at the start of a log that begins late (L7): then a description has to do.
        let is_empty = matches!(builder.content, Content::Described);
        if is_empty && !force { None } else { Some(builder) }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder()
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: Content,
    ) -> Result<(), io::Error> {
        let installed = self.install(&snapshot).await;
        if let Err(error) = &installed {
            self.replica.halt(&format!("installing a snapshot failed: {error}"));
        }
        installed
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, Content>>, io::Error> {
        // A leader whose log begins late is asked for one, and none is fatal to it.
        if self.state.applied.is_none() {
            return Ok(None);
        }
        Ok(Some(Snapshot { meta: self.described(), snapshot: self.content()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_lags_by_less_than_it_was_told_to() {
        let random = Random::seeded(1);
        assert!(Lag::of(Duration::ZERO, &random).is_none());
        let lag = Lag::of(Duration::from_millis(2), &random).unwrap();
        let pauses: Vec<Duration> = (0..100).map(|_| lag.pause()).collect();
        assert!(pauses.iter().all(|pause| *pause < Duration::from_millis(2)));
        assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(1)));
    }

    #[test]
    fn the_row_of_a_group_tells_its_time() {
        let state = GroupState { group_time_ms: 77, whole: true, ..GroupState::default() };
        let row = state.encode();
        assert_eq!(group_time_of(Some(&row[..])).unwrap(), 77);
        assert_eq!(group_time_of(None).unwrap(), 0);
        assert!(group_time_of(Some(&row[..9])).is_err());
        let later = [&[STATE_VERSION + 1][..], &row[1..]].concat();
        assert!(group_time_of(Some(&later[..])).is_err());
    }
}
