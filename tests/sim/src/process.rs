//! A process of the simulated cluster: the parts of a real node on simulated seams.
//!
//! Real: the log and its recovery, openraft and everything around it, the peer links with tonic and
//! HTTP/2, the shards. Simulated: clock, randomness, disk, network. The engine is the memory
//! engine, which a restart empties, so that every boot replays the log.
//!
//! The log's writer is driven by a task here, not by a thread, and takes simulated time before each
//! step: what it is about to write and sync is acknowledged that much later.
//!
//! Not here: the folder's identity, the manager and its table (the routes never change), the
//! services that clients talk to (`service` does their work).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{Engine, MemoryEngine};
use annulus_raft::{AddressBook, Group, GroupSpec, Host, OnDead, Options, Timing};
use annulus_runtime::{Clock, Disk, Env, OnEnd, Random, Tasks};
use annulus_server::operation::Op;
use annulus_server::{ShardMachine, Shards};
use annulus_types::{Epoch, NodeId, Role, ShardId};
use annulus_wal::{Wal, Writer};
use tokio::sync::Notify;

use crate::invariants::alive;
use crate::machine::Machine;
use crate::peer;
use crate::routes::{GroupRoute, host_of, info_of, peer_addr};
use crate::trace::Trace;
use crate::world::World;

const DATA_DIR: &str = "/";
const LOG_DIR: &str = "/log";
/// Small, so that entries are read back from the disk.
const LOG_TAIL_BYTES: usize = 64 << 10;
/// What people would read on the wall when the run begins.
const WALL_START_MS: u64 = 1_700_000_000_000;
/// Between two looks at whether a group lacks shards.
const CREATE_TICK: Duration = Duration::from_millis(20);
/// For the creation of a shard.
const CREATE_LIMIT: Duration = Duration::from_secs(2);

pub(crate) struct Process {
    pub(crate) node: NodeId,
    /// Counts the processes of the machine.
    pub(crate) boot: u64,
    pub(crate) env: Env,
    pub(crate) host: Arc<Host>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) engine: Arc<dyn Engine>,
}

impl Process {
    /// Starts everything but the groups, without letting simulated time pass.
    pub(crate) async fn start(
        world: &Arc<World>,
        machine: &Arc<Machine>,
        boot: u64,
    ) -> anyhow::Result<Arc<Self>> {
        let node = machine.plan.node;
        let disk: Arc<dyn Disk> = Arc::new(machine.disk.process());
        let env = Env {
            clock: Clock::simulated(machine.plan.clock_per_mille, WALL_START_MS),
            random: machine.sequence(),
            network: Arc::new(world.net.network(host_of(node))),
            disk: Arc::clone(&disk),
            tasks: Tasks::new(),
        };
        let listener = env.network.listen(peer_addr(node)).await?;

        let log_options = annulus_wal::Options {
            segment_bytes: machine.plan.segment_bytes,
            tail_bytes: LOG_TAIL_BYTES,
        };
        let salts = env.random.clone();
        let (wal, writer) = Wal::open(disk, Path::new(LOG_DIR), log_options, move || salts.u64())?;
        let work = Arc::new(Notify::new());
        let ring = Arc::clone(&work);
        wal.on_work(Box::new(move || ring.notify_one()));
        let driver = LogDriver {
            writer,
            work,
            machine: Arc::clone(machine),
            times: machine.sequence(),
            tasks: env.tasks.clone(),
            trace: world.trace.clone(),
        };
        env.tasks.spawn("log writer", OnEnd::StopNode, driver.run());

        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let shards = Shards::open(Arc::clone(&engine))?;
        let book = Arc::new(AddressBook::default());
        book.from_table(&world.routes.nodes);
        // No fault of a run sets a folder back: a refused one is a violation, as any stop is.
        let tasks = env.tasks.clone();
        let on_dead = OnDead::new(move |reason| {
            tasks.request_stop(&format!("a peer refuses its data folder: {reason}"));
        });
        let options = Options::new(
            world.cluster,
            info_of(node),
            u64::from(node.0),
            (boot, env.random.u64()),
            Timing::default(),
            Path::new(DATA_DIR).to_owned(),
            on_dead,
        );
        let host = Host::start_driven(&env, options, Arc::clone(&engine), wal, book)?;
        let served = peer::serve(Arc::clone(&host), listener);
        env.tasks.spawn("peer server", OnEnd::StopNode, async move {
            if let Err(error) = served.await {
                tracing::error!(%node, %error, "the peer server ended");
            }
        });
        Ok(Arc::new(Self { node, boot, env, host, shards, engine }))
    }

    /// Opens the groups of this node, then sees to it that their shards exist.
    pub(crate) fn open_groups(self: &Arc<Self>, world: &Arc<World>) {
        let opening = open_groups(Arc::clone(world), Arc::clone(self));
        self.env.tasks.spawn("groups", OnEnd::Ignore, opening);
    }
}

struct LogDriver {
    writer: Writer,
    work: Arc<Notify>,
    machine: Arc<Machine>,
    times: Random,
    tasks: Tasks,
    trace: Trace,
}

impl LogDriver {
    /// Writes until the log fails or the process ends, whichever comes first. With the writer goes
    /// what waits for it: nobody waits for ever.
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                _ = self.tasks.stop_requested() => return,
                () = self.work.notified() => {}
            }
            let time = self.machine.sync_time(&self.times);
            tokio::select! {
                biased;
                _ = self.tasks.stop_requested() => return,
                () = tokio::time::sleep(time) => {}
            }
            // The log's own sync, not that of another file (N1's memory of peers).
            let fails = self.machine.takes_sync_failure();
            if fails {
                self.machine.disk.fail_next_syncs(1);
            }
            let stepped = self.writer.step();
            if fails && matches!(stepped, Ok(0)) {
                // Nothing was synced: the next step then.
                self.machine.disk.fail_next_syncs(0);
                self.machine.fail_next_log_sync();
            }
            if let Err(error) = stepped {
                let node = self.machine.plan.node;
                self.trace.line(format_args!("node {node}"), format_args!("log: {error}"));
                return;
            }
        }
    }
}

struct Opened<'a> {
    route: &'a GroupRoute,
    group: Arc<Group>,
    machine: Arc<ShardMachine>,
}

impl Opened<'_> {
    fn missing(&self) -> Vec<ShardId> {
        let hosted = self.machine.hosted();
        self.route.shards.iter().filter(|shard| !hosted.contains(shard)).copied().collect()
    }
}

async fn open_groups(world: Arc<World>, process: Arc<Process>) {
    let mut opened = Vec::new();
    for route in &world.routes.groups {
        match open_group(route, &process).await {
            Ok(Some(group)) => opened.push(group),
            Ok(None) => {}
            // Whatever a process that ends could not do is no news.
            Err(_) if process.env.tasks.is_stopping() => return,
            Err(error) => {
                let reason = format!("group {}: {error:#}", route.id);
                world.violation(alive::did_not_start(process.node, &reason));
                return;
            }
        }
    }
    world.trace.line(format_args!("node {}", process.node), "all groups are open");
    let mut ticker = tokio::time::interval(CREATE_TICK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        opened.retain(|group| !group.missing().is_empty());
        if opened.is_empty() || process.env.tasks.is_stopping() {
            return;
        }
        for group in &opened {
            if group.group.role().0 == Role::Leader {
                create_shards(&world, group).await;
            }
        }
    }
}

async fn open_group<'a>(
    route: &'a GroupRoute,
    process: &Process,
) -> anyhow::Result<Option<Opened<'a>>> {
    let Some(replica) = route.replica_on(process.node) else { return Ok(None) };
    let machine = ShardMachine::open(route.id, Arc::clone(&process.shards))?;
    let spec = GroupSpec { group: route.id, replica, found: route.founders(process.node) };
    let applying = Arc::clone(&machine) as Arc<dyn annulus_raft::Machine>;
    let group = Box::pin(process.host.open_group(spec, applying)).await?;
    Ok(Some(Opened { route, group, machine }))
}

/// Proposes the shards that the group lacks. One that exists in the log already is refused there.
async fn create_shards(world: &World, opened: &Opened<'_>) {
    let creations = opened.missing().into_iter().map(|shard| {
        let (first, count) = world.routes.run_of(shard);
        let op = Op::Create { first, count, epoch: Epoch(1) };
        opened.group.propose(shard, op.encode(), CREATE_LIMIT)
    });
    // What was not created now is still missing at the next look.
    drop(futures_util::future::join_all(creations).await);
}
