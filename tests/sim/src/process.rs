//! A process of the simulated cluster: the parts of a real node on simulated seams.
//!
//! Real: the log and its recovery, openraft and everything around it, the peer links with tonic and
//! HTTP/2, the shards, the routing table on disk, the manager. Simulated: clock, randomness, disk,
//! network. The engine is the memory engine, which a restart empties, so that every boot replays the log,
//! from the kept files of a snapshot on where it begins behind one.
//!
//! The log's writer is driven by a task here, not by a thread, and takes simulated time before each
//! step: what it is about to write and sync is acknowledged that much later.
//!
//! The node's side of the manager is here a thin one, because the real one belongs to the binary:
//! `replicas`, `command` and `obeyed`, `heartbeat`. Not here: the folder's identity (the machine knows its
//! life), the services that clients talk to (`service` does their work).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_engine::{Engine, MemoryEngine};
use annulus_raft::{AddressBook, Host, OnDead, Options, Timing};
use annulus_runtime::{Clock, Disk, Env, OnEnd, Random, Tasks};
use annulus_server::{Shards, Tables};
use annulus_types::{NodeId, NodeInfo};
use annulus_wal::{Wal, Writer};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::command::Running;
use crate::invariants::alive;
use crate::machine::{Boot, Machine};
use crate::obeyed::Obeyed;
use crate::replicas::{Kept, create_shards};
use crate::routes::{Routes, founder_ids, host_of, info_of, peer_addr};
use crate::trace::Trace;
use crate::world::World;
use crate::{heartbeat, peer};

/// Small, so that entries are read back from the disk.
const LOG_TAIL_BYTES: usize = 64 << 10;
/// What people would read on the wall when the run begins.
const WALL_START_MS: u64 = 1_700_000_000_000;

pub(crate) struct Process {
    pub(crate) node: NodeId,
    pub(crate) boot: Boot,
    pub(crate) env: Env,
    pub(crate) host: Arc<Host>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) tables: Tables,
    pub(crate) obeyed: Obeyed,
    pub(crate) routes: Arc<Routes>,
    pub(crate) trace: Trace,
    /// The last entry whose decisions are in the trace; shared by all processes.
    pub(crate) manager_told: Arc<AtomicU64>,
    pub(crate) kept: Kept,
    /// Commands under way.
    pub(crate) running: Arc<Running>,
    /// One at a time: opening, creations, tables.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Era and term of the last table that was taken.
    pub(crate) pushed: Mutex<(u64, u64)>,
    /// The node that answered the last heartbeat as the manager's leader.
    pub(crate) heard: Mutex<Option<NodeId>>,
    is_open: AtomicBool,
}

/// Times of a simulated cluster: those of a real one, with less of what costs most here and is asked least.
fn timing() -> Timing {
    let (ping, poll) = (Duration::from_millis(200), Duration::from_millis(500));
    Timing { ping, poll, ..Timing::default() }
}

impl Process {
    /// Starts everything but the groups, without letting simulated time pass.
    pub(crate) async fn start(
        world: &Arc<World>,
        machine: &Arc<Machine>,
        boot: Boot,
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

        // Of a former life nothing is found.
        let dir = PathBuf::from(format!("/life-{}", boot.life));
        disk.create_dir_all(&dir)?;
        disk.sync_dir(Path::new("/"))?;
        let log_options = annulus_wal::Options {
            segment_bytes: machine.plan.segment_bytes,
            tail_bytes: LOG_TAIL_BYTES,
        };
        let salts = env.random.clone();
        let (wal, writer) =
            Wal::open(Arc::clone(&disk), &dir.join("log"), log_options, move || salts.u64())?;
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
        let tables = Tables::open(&env, &dir)?;
        let obeyed = Obeyed::open(disk, &dir)?;
        let book = Arc::new(AddressBook::default());
        // As a join list has them.
        let founders: Vec<NodeInfo> = founder_ids().map(info_of).collect();
        book.from_table(&founders);
        if let Some(table) = tables.current() {
            book.from_table(&table.nodes);
        }
        book.told(info_of(node));
        // No fault of a run sets a folder back: a refused one is a violation, as any stop is.
        let tasks = env.tasks.clone();
        let on_dead = OnDead::new(move |reason| {
            tasks.request_stop(&format!("a peer refuses its data folder: {reason}"));
        });
        let options = Options::new(
            world.cluster,
            info_of(node),
            boot.incarnation,
            (boot.starts, env.random.u64()),
            timing(),
            dir,
            on_dead,
        );
        let host = Host::start_driven(&env, options, Arc::clone(&engine), wal, book)?;
        let process = Arc::new(Self {
            node,
            boot,
            env,
            host,
            shards,
            engine,
            tables,
            pushed: Mutex::new((obeyed.era(), 0)),
            obeyed,
            routes: Arc::clone(&world.routes),
            trace: world.trace.clone(),
            manager_told: Arc::clone(&world.manager_told),
            kept: Kept::default(),
            running: Arc::default(),
            changing: tokio::sync::Mutex::new(()),
            heard: Mutex::new(None),
            is_open: AtomicBool::new(false),
        });
        let served = peer::serve(Arc::clone(&process), listener);
        process.env.tasks.spawn("peer server", OnEnd::StopNode, async move {
            if let Err(error) = served.await {
                tracing::error!(%node, %error, "the peer server ended");
            }
        });
        Ok(process)
    }

    /// Opens the groups of this node, then tells the manager of it and obeys.
    pub(crate) fn open_groups(self: &Arc<Self>, world: &Arc<World>) {
        let opening = open_groups(Arc::clone(world), Arc::clone(self));
        self.env.tasks.spawn("groups", OnEnd::Ignore, opening);
    }

    /// Whether everything that the folder held at the start is open.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }
}

async fn open_groups(world: Arc<World>, process: Arc<Process>) {
    if let Err(error) = Box::pin(process.open_held()).await {
        // Whatever a process that ends, or is about to, could not do is no news.
        let is_ending = process.env.tasks.is_stopping() || world.machine(process.node).is_doomed();
        if !is_ending {
            world.violation(alive::did_not_start(process.node, &format!("{error:#}")));
        }
        return;
    }
    process.is_open.store(true, Ordering::Relaxed);
    world.trace.line(format_args!("node {}", process.node), "all groups are open");
    let tasks = process.env.tasks.clone();
    tasks.spawn("heartbeat", OnEnd::StopNode, heartbeat::run(Arc::clone(&process)));
    if !world.is_born() {
        Box::pin(create_shards(world, process)).await;
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
