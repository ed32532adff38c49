//! The one Raft host of a process: its groups, its log and engine, its peer links.
//!
//! Storage and manager roles borrow the same host: separate logs would double every sync.
//!
//! # Invariants
//!
//! - A replica exists here only because [`Host::open_group`] was called for it: by a command of the
//!   manager, or because the folder held it at the start. A peer's message never creates one (N1).
//! - The birth of a replica is durable in the log before its Raft is built, and an engine that lost
//!   what the log no longer holds is refilled, or the replica stays closed (E1).
//! - A replica that the folder held starts without elections and in quarantine for one lease (N3).
//! - Of a group one replica at a time is open, and the engine's rows of it are that one's (`remains`).
//! - `enable_leader_restore` is off (architecture 9, rule 1): with an asynchronous log a restored
//!   leader may reuse log ids for other entries.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{Engine, EngineError};
use annulus_runtime::{Env, OnEnd};
use annulus_types::{GroupId, NodeId, ReplicaId};
use annulus_wal::{Damage, StreamId, Wal, WalError, Writer};
use futures_util::FutureExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::book::AddressBook;
use crate::digest::Maker;
use crate::gate::{Core, Gate, Lease};
use crate::group::Group;
use crate::links::Links;
use crate::lives::Lives;
use crate::log_store::LogStore;
use crate::machine::{GroupState, Lag, Machine, StateMachine};
use crate::network::NetworkFactory;
use crate::options::{BadTiming, Options, WeakenHost};
use crate::packer::Packer;
use crate::replica::ReplicaState;
use crate::snapshot::store::SnapshotStore;
use crate::traffic::{Meter, MoveTraffic};
use crate::types::{Seat, Seeded, entry_id};
use crate::waits::Waits;
use crate::{keeper, polls, remains};

/// Why a host or a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The shared log said no.
    #[error("the log: {0}")]
    Wal(#[from] WalError),
    /// The engine said no.
    #[error("the engine: {0}")]
    Engine(#[from] EngineError),
    /// openraft said no.
    #[error("raft: {0}")]
    Raft(String),
    /// Reading the log failed.
    #[error("reading the log: {0}")]
    Io(#[from] std::io::Error),
    /// A timing inequality does not hold.
    #[error("{0}")]
    BadTiming(#[from] BadTiming),
    /// The replica's log is damaged (L5).
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// Where, bytes.
        offset: u64,
        /// How it was seen.
        reason: String,
    },
    /// The engine lost state that neither the log nor kept snapshot files restore.
    #[error("the engine was lost and the log begins only after entry {begins_after}: {reason}")]
    NeedsRefill {
        /// The last entry that the log does not hold.
        begins_after: u64,
        /// Why kept files do not make up for it.
        reason: String,
    },
    /// What was remembered of other nodes does not read, or is of another version. Without it a node
    /// that was set back would be heard (N1).
    #[error("{file}: {reason}")]
    Peers {
        /// The file, with its folder.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The replica was destroyed here before.
    #[error("replica {0} was destroyed on this node and its id is never reused")]
    Tombstone(ReplicaId),
    /// Another replica of the group is held here.
    #[error("replica {0} of the group is held here")]
    Occupied(ReplicaId),
    /// The replica is of another manager than the present one (H6).
    #[error("replica {0} belongs to the group of another manager than the present one")]
    Deposed(ReplicaId),
}

/// A replica to be opened.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The group.
    pub group: GroupId,
    /// This node's replica.
    pub replica: ReplicaId,
    /// The members of a group that has no log yet; empty to wait for a leader's log.
    pub found: BTreeMap<ReplicaId, NodeId>,
}

/// See the module.
pub struct Host {
    pub(crate) env: Env,
    pub(crate) options: Arc<Options>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) wal: Wal,
    pub(crate) book: Arc<AddressBook>,
    pub(crate) links: Arc<Links>,
    pub(crate) lives: Arc<Lives>,
    pub(crate) snapshots: Arc<SnapshotStore>,
    meter: Arc<Meter>,
    pub(crate) groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// Replicas whose state is lost, with the reason: trying again would read all files again.
    absent: Mutex<BTreeMap<StreamId, (u64, String)>>,
    /// Replicas that are closed and whose parts have not ended yet.
    pub(crate) closing: Mutex<BTreeMap<StreamId, Arc<Group>>>,
    /// Replicas are opened and destroyed one after another.
    pub(crate) opening: tokio::sync::Mutex<()>,
    weaken: WeakenHost,
}

impl Host {
    /// Starts the log's writer and the tasks that keep elections and links going. Groups are opened
    /// one by one afterwards.
    ///
    /// # Errors
    /// When a thread cannot be started, the timing does not hold together, or what was remembered of
    /// other nodes cannot be read.
    pub fn start(
        env: &Env,
        options: Options,
        engine: Arc<dyn Engine>,
        wal: Wal,
        writer: Writer,
        book: Arc<AddressBook>,
    ) -> Result<Arc<Self>, HostError> {
        env.tasks.spawn_thread("wal", OnEnd::StopNode, move || writer.run())?;
        Self::assemble(env, options, engine, wal, book, WeakenHost::default(), Waits::Aside)
    }

    /// As [`Host::start`], for a caller that drives the log's writer itself: a simulation, whose
    /// time no thread may share.
    ///
    /// # Errors
    /// When the timing does not hold together, or what was remembered of other nodes cannot be read.
    pub fn start_driven(
        env: &Env,
        options: Options,
        engine: Arc<dyn Engine>,
        wal: Wal,
        book: Arc<AddressBook>,
    ) -> Result<Arc<Self>, HostError> {
        Self::with_weaken(env, options, engine, wal, book, WeakenHost::default())
    }

    pub(crate) fn with_weaken(
        env: &Env,
        options: Options,
        engine: Arc<dyn Engine>,
        wal: Wal,
        book: Arc<AddressBook>,
        weaken: WeakenHost,
    ) -> Result<Arc<Self>, HostError> {
        Self::assemble(env, options, engine, wal, book, weaken, Waits::Inline)
    }

    fn assemble(
        env: &Env,
        options: Options,
        engine: Arc<dyn Engine>,
        wal: Wal,
        book: Arc<AddressBook>,
        weaken: WeakenHost,
        waits: Waits,
    ) -> Result<Arc<Self>, HostError> {
        options.timing.validate()?;
        let disk = Arc::clone(&env.disk);
        let snapshots = SnapshotStore::open(disk, options.dir.join("snapshots"), waits);
        // A replica whose birth damage may have swallowed is not known to be a stranger.
        let born = wal.streams();
        snapshots.forget_strangers(|stream| born.contains(&stream) || wal.damage(stream).is_some());
        if !weaken.keep_remains() {
            // Those of which a crash has left more than the tombstone.
            for destroyed in wal.tombstones() {
                remains::remove(engine.as_ref(), destroyed, None)?;
            }
        }
        let options = Arc::new(options);
        let lives = Lives::open(env, &options, waits, weaken)?;
        let links = Arc::new(Links::new(
            env.clone(),
            Arc::clone(&options),
            Arc::clone(&book),
            wal.clone(),
            Arc::clone(&lives),
        ));
        let host = Arc::new(Self {
            env: env.clone(),
            options,
            engine,
            wal,
            book,
            links,
            lives,
            snapshots,
            meter: Arc::default(),
            groups: RwLock::new(BTreeMap::new()),
            absent: Mutex::default(),
            closing: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
            weaken,
        });
        keeper::spawn(&host);
        polls::spawn(&host);
        Ok(host)
    }

    /// Always false outside tests.
    pub(crate) fn trusts_every_frame(&self) -> bool {
        self.weaken.trust_every_frame()
    }

    /// Always false outside tests.
    pub(crate) fn polls_without_gate(&self) -> bool {
        self.weaken.poll_without_gate()
    }

    /// Always false outside tests.
    pub(crate) fn destroys_without_proof(&self) -> bool {
        self.weaken.destroy_without_proof()
    }

    /// Always false outside tests.
    pub(crate) fn keeps_remains(&self) -> bool {
        self.weaken.keep_remains()
    }

    pub(crate) fn is_absent(&self, stream: StreamId) -> bool {
        self.absent.lock().contains_key(&stream)
    }

    pub(crate) fn set_absent(&self, stream: StreamId, begins_after: u64, reason: &str) {
        self.absent.lock().insert(stream, (begins_after, reason.to_owned()));
    }

    pub(crate) fn clear_absent(&self, stream: StreamId) {
        self.absent.lock().remove(&stream);
    }

    /// The group, if this node has a replica of it.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.read().get(&id).cloned()
    }

    /// All groups, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    /// What the folder holds: replicas that must be opened at the start.
    #[must_use]
    pub fn held(&self) -> Vec<(GroupId, ReplicaId)> {
        self.wal.streams().into_iter().map(|stream| (stream.group, stream.replica)).collect()
    }

    /// Replicas that the folder holds and that stay closed, with the reason.
    #[must_use]
    pub fn absent(&self) -> Vec<(GroupId, ReplicaId, String)> {
        let lost = self.absent.lock();
        let streams = self.wal.streams().into_iter();
        let reason = |stream: StreamId| match self.wal.damage(stream) {
            Some(damage) => {
                let Damage { file, offset, reason } = damage;
                Some(format!("{file} is damaged at byte {offset}: {reason}"))
            }
            None => lost.get(&stream).map(|(_, reason)| format!("its state is lost: {reason}")),
        };
        let absent = streams.filter_map(|s| Some((s.group, s.replica, reason(s)?)));
        absent.collect()
    }

    /// The shared log, for its counters.
    #[must_use]
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// What bringing up new replicas has cost, and needed, at this node since its process began.
    #[must_use]
    pub fn move_traffic(&self) -> MoveTraffic {
        self.meter.read()
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The address book.
    #[must_use]
    pub fn book(&self) -> &Arc<AddressBook> {
        &self.book
    }

    /// Whether the link to `node` is up.
    #[must_use]
    pub fn is_linked(&self, node: NodeId) -> bool {
        self.links.is_up(node)
    }

    /// Takes the incarnation that the manager admits of each node: from now on no other one is heard, and
    /// one that was admitted before is refused for ever (N1). They are durable on return. The caller
    /// takes them only from a table that is not older than any that it took before.
    ///
    /// # Errors
    /// When they cannot be written; the table must then not count as taken.
    pub async fn admit(&self, admitted: &[(NodeId, u64)]) -> std::io::Result<()> {
        let own = self.options.info.id;
        let others: Vec<(NodeId, u64)> =
            admitted.iter().copied().filter(|(node, _)| *node != own).collect();
        self.lives.admit(&others).await
    }

    /// The lives that are remembered of other nodes: the admitted one of each, else the one that was seen.
    #[must_use]
    pub fn lives(&self) -> Vec<(NodeId, u64)> {
        self.lives.counted()
    }

    /// Who this node is.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Opens a replica; one that is open already is returned as it is. A new one's birth is durable
    /// before it takes part in anything. Not cancel-safe: run it to its end.
    ///
    /// # Errors
    /// When the replica was destroyed, another of its group has its place, or it is of a former manager;
    /// when its log is damaged, or log, engine or openraft refuse.
    pub async fn open_group(
        &self,
        spec: GroupSpec,
        machine: Arc<dyn Machine>,
    ) -> Result<Arc<Group>, HostError> {
        let _one_at_a_time = self.opening.lock().await;
        if spec.group == GroupId::MANAGER && !self.reign().admits(spec.replica) {
            return Err(HostError::Deposed(spec.replica));
        }
        let same = |group: &Arc<Group>| group.replica() == spec.replica;
        if let Some(group) = self.group(spec.group).filter(same) {
            // An earlier opening may have been cut off before this.
            Self::initialise(&group, &spec).await?;
            return Ok(group);
        }
        let stream = StreamId { group: spec.group, replica: spec.replica };
        if self.wal.tombstones().contains(&stream) {
            return Err(HostError::Tombstone(spec.replica));
        }
        let held = self.wal.streams().contains(&stream);
        self.make_way(stream, held)?;
        if !held {
            let (done, durable) = oneshot::channel();
            self.wal.create(stream, Box::new(move |result| drop(done.send(result))));
            durable.await.map_err(|_| WalError::Closed)??;
        }
        if let Some(damage) = self.wal.damage(stream) {
            let (file, offset, reason) = (damage.file, damage.offset, damage.reason);
            return Err(HostError::Damaged { file, offset, reason });
        }
        let group = self.build(&spec, machine, held).await?;
        self.groups.write().insert(spec.group, Arc::clone(&group));
        Seeded::scope(self.env.random.u64(), async { group.raft.run() }).await;
        self.tend(&group, held);
        Self::initialise(&group, &spec).await?;
        Ok(group)
    }

    /// Founds a group that has no log yet, if this replica is told to.
    async fn initialise(group: &Group, spec: &GroupSpec) -> Result<(), HostError> {
        let initialised =
            group.raft.is_initialized().await.map_err(|e| HostError::Raft(e.to_string()))?;
        if spec.found.is_empty() || initialised {
            return Ok(());
        }
        let members: BTreeMap<u64, Seat> =
            spec.found.iter().map(|(id, node)| (id.0, Seat { node: *node })).collect();
        let founded = group.raft.initialize(members).await;
        founded.map_err(|error| HostError::Raft(error.to_string()))
    }

    async fn build(
        &self,
        spec: &GroupSpec,
        machine: Arc<dyn Machine>,
        held: bool,
    ) -> Result<Arc<Group>, HostError> {
        let stream = StreamId { group: spec.group, replica: spec.replica };
        let log = self.wal.log(stream)?;
        if let Some((begins_after, reason)) = self.absent.lock().get(&stream).cloned() {
            return Err(HostError::NeedsRefill { begins_after, reason });
        }
        self.claim(stream, held, &machine).await?;
        let loaded = Box::pin(self.load_or_refill(stream, &log, &machine)).await;
        if let Err(HostError::NeedsRefill { begins_after, reason }) = &loaded {
            self.set_absent(stream, *begins_after, reason);
        }
        let state = loaded?;
        if !self.weaken.keep_log_below_applied() {
            self.begin_after_applied(&log, &state).await?;
        }
        let timing = self.options.timing;
        let lease = Lease { lease: timing.lease, silence: timing.lease * 2 };
        let gate = Gate::new(Core::new(spec.replica, lease, self.weaken.gate));
        let quarantined = held && !self.weaken.no_quarantine();
        let replica = ReplicaState::new(
            spec.group,
            spec.replica,
            self.env.clock.clone(),
            gate,
            timing.lease,
            quarantined,
        );
        let replica = Arc::new(replica.with_meter(Arc::clone(&self.meter)));
        let base = state
            .membership
            .log_id()
            .as_ref()
            .map(|id| (id.index, state.membership.membership().clone()));
        let store = LogStore::open(log.clone(), Arc::clone(&replica), base)?;
        let (engine, snapshots) = (Arc::clone(&self.engine), Arc::clone(&self.snapshots));
        let (own, applying) = (Arc::clone(&replica), Arc::clone(&machine));
        let mut state_machine =
            StateMachine::open(own, engine, applying, store.clone(), snapshots)?;
        state_machine.lag = Lag::of(self.options.slow_apply, &self.env.random);
        let network = NetworkFactory {
            links: Arc::clone(&self.links),
            replica: Arc::clone(&replica),
            streams: Arc::new(std::sync::atomic::AtomicU64::new(1)),
        };
        let config = Arc::new(self.config(spec.group, quarantined)?);
        let building = Raft::build(spec.replica.0, config, network, store, state_machine);
        let raft = Seeded::scope(self.env.random.u64(), building)
            .await
            .map_err(|error| HostError::Raft(error.to_string()))?;
        let packer = Arc::new(Packer::new(self.env.clone(), Arc::clone(&replica), self.weaken));
        let links = Arc::clone(&self.links);
        Ok(Arc::new(Group {
            env: self.env.clone(),
            replica,
            raft,
            packer,
            links,
            log,
            machine,
            weaken: self.weaken,
        }))
    }

    /// L7: openraft applies what is committed, also before the local flush. A log that ends below
    /// the engine, or holds another entry at that index, begins after what the engine holds.
    async fn begin_after_applied(
        &self,
        log: &annulus_wal::GroupLog,
        state: &GroupState,
    ) -> Result<(), HostError> {
        let Some(applied) = state.applied.as_ref().map(entry_id) else { return Ok(()) };
        if log.id_at(applied.index) == Some(applied) {
            return Ok(());
        }
        // From the reset on only the engine has these entries: a power cut must not take them.
        if !self.weaken.reset_before_durable() {
            let engine = Arc::clone(&self.engine);
            let sync = move || engine.make_durable().map_err(std::io::Error::other);
            self.snapshots.run(sync).await?;
        }
        let (done, durable) = oneshot::channel();
        log.reset(applied, Box::new(move |result| drop(done.send(result))));
        durable.await.map_err(|_| WalError::Closed)??;
        Ok(())
    }

    fn config(&self, group: GroupId, quarantined: bool) -> Result<Config, HostError> {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let timing = self.options.timing;
        let config = Config {
            cluster_name: format!("group {group}"),
            heartbeat_interval: millis(timing.heartbeat),
            // Never skipped: the answers are the gate.
            heartbeat_min_interval: Some(0),
            election_timeout_min: millis(timing.election_min),
            election_timeout_max: millis(timing.lease),
            enable_elect: !quarantined,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(self.weaken.leader_restore()),
            max_payload_entries: 1024,
            max_append_entries: Some(4096),
            api_channel_size: Some(4096),
            notification_channel_size: Some(8192),
            state_machine_channel_size: Some(256),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            install_snapshot_timeout: 60_000,
            ..Config::default()
        };
        config.validate().map_err(|error| HostError::Raft(error.to_string()))
    }

    /// The tasks of one replica.
    fn tend(&self, group: &Arc<Group>, held: bool) {
        let (packer, raft) = (Arc::clone(&group.packer), group.raft.clone());
        let (replica, tasks) = (Arc::clone(&group.replica), self.env.tasks.clone());
        self.env.tasks.spawn("packer", OnEnd::Ignore, async move {
            let packing = AssertUnwindSafe(packer.run(raft)).catch_unwind();
            tokio::select! {
                // However it ended: a part is missing.
                _ = packing => tasks.request_stop("task packer ended"),
                // Its replica does not need it any more.
                () = replica.until_ended() => {}
            }
        });

        let leading = Arc::clone(group);
        self.env.tasks.spawn("leadership log", OnEnd::Ignore, async move {
            let replica = Arc::clone(&leading.replica);
            tokio::select! {
                () = tell_leadership(leading) => {}
                () = replica.until_ended() => {}
            }
        });

        group.replica.digests.begin();
        let maker = Maker {
            replica: Arc::clone(&group.replica),
            store: Arc::clone(&self.snapshots),
            engine: Arc::clone(&self.engine),
            machine: Arc::clone(&group.machine),
            is_late: self.weaken.late_digest(),
        };
        let replica = Arc::clone(&group.replica);
        self.env.tasks.spawn("digests", OnEnd::Ignore, async move {
            tokio::select! {
                () = maker.run() => {}
                () = replica.until_ended() => {}
            }
        });

        let watched = Arc::clone(group);
        self.env.tasks.spawn("group supervisor", OnEnd::Ignore, async move {
            let mut metrics = watched.raft.metrics();
            loop {
                let state = metrics.borrow_watched().running_state.clone();
                if let Err(fatal) = state {
                    // That it stops with its node is no news.
                    if !watched.env.tasks.is_stopping() {
                        watched.replica.halt(&fatal.to_string());
                    }
                    return;
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });

        if held {
            let raft = group.raft.clone();
            let lease = self.options.timing.lease;
            self.env.tasks.spawn("vote quarantine", OnEnd::Ignore, async move {
                // N3: a promise given before the restart may still hold for one lease.
                tokio::time::sleep(lease).await;
                raft.runtime_config().elect(true);
            });
        }
    }

    /// Gives every leadership away to a voter whose link is up, as far as that goes within `limit`
    /// for each group.
    pub async fn hand_over(&self, limit: Duration) {
        let handed = self
            .groups()
            .into_iter()
            .map(|group| async move { self.give_away(&group, limit).await });
        futures_util::future::join_all(handed).await;
        let over = self.groups().into_iter().map(|group| async move {
            let mut view = group.replica.gate.watch();
            // Another's vote ends the leadership; a deadline ends the wait.
            let led = view.wait_for(|view| view.leading.is_none() || !view.latched);
            let _ = tokio::time::timeout(limit, led).await;
        });
        futures_util::future::join_all(over).await;
    }

    /// Gives the leadership of one group to a voter whose link is up.
    pub(crate) async fn give_away(&self, group: &Group, limit: Duration) {
        if group.replica.gate.view().leading.is_none() {
            return;
        }
        let seats = group.replica.seats();
        let voters = group.status().members.into_iter().filter(|member| member.voter);
        let target = voters
            .filter_map(|member| seats.get(&member.replica).copied())
            .find(|node| *node != self.options.info.id && self.links.is_up(*node));
        let Some(target) = target else { return };
        match group.transfer(target, limit).await {
            Ok(()) => {
                tracing::info!(group = %group.id(), to = %target, "leadership handed over");
            }
            Err(error) => tracing::info!(group = %group.id(), %error, "leadership stays"),
        }
    }

    /// Stops every group: gates are latched first, so that nothing is answered while they end.
    pub async fn shut_down(&self) {
        for group in self.groups() {
            group.replica.gate.change(crate::gate::Core::latch);
        }
        for group in self.groups() {
            // The core has ended either way.
            let _ = group.raft.shutdown().await;
            group.replica.end();
        }
        self.wal.close();
    }
}

/// Logs when this replica begins and ceases to lead.
async fn tell_leadership(group: Arc<Group>) {
    let (replica, id) = (group.replica(), group.id());
    let mut gate = group.replica.gate.watch();
    let mut led = None;
    loop {
        let leading = gate.borrow_and_update().leading.map(|vote| vote.term);
        if leading != led {
            match (led, leading) {
                (_, Some(term)) => tracing::info!(group = %id, %replica, term, "leads"),
                (Some(term), None) => tracing::info!(group = %id, %replica, term, "leads no more"),
                (None, None) => {}
            }
            led = leading;
        }
        if gate.changed().await.is_err() {
            return;
        }
    }
}
