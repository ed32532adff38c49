//! The world of one run: machines, network, clients, faults, and what was seen of them.
//!
//! # The course of a run
//!
//! 1. *Birth*: the founders boot, the manager makes the cluster, every shard comes to exist everywhere.
//! 2. *Trouble*: clients work in closed loops and the operator takes his steps while the planned faults
//!    come and go.
//! 3. *Calm*: no new faults; paths are healed, machines boot, clients stop.
//! 4. *Judgement*: the cluster comes to rest, every key can be read again, all replicas come to the same
//!    state, and the invariants look at everything once more.
//!
//! # Invariants of the simulation itself
//!
//! - One thread, one runtime, paused time: time moves only when every task waits for it.
//! - A process ends in one step: its place on the machine, its disk, its network and its clients'
//!   waiting. What still runs of it afterwards reaches nothing, and is buried.
//! - A stage that does not come to its end in time is a violation, not a hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_harness::history::Recorder;
use annulus_proto::v1;
use annulus_runtime::{Clock, OnEnd, Random, SimWorld, Tasks};
use annulus_types::{ClusterId, NodeId};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clients::Client;
use crate::invariants::acknowledged::Ledger;
use crate::invariants::revisions::Revisions;
use crate::invariants::voters::Voters;
use crate::invariants::{Violation, alive};
use crate::machine::{Boot, Machine};
use crate::plan::{Plan, Span};
use crate::process::Process;
use crate::routes::{Routes, founder_ids, host_of};
use crate::trace::Trace;
use crate::{Counts, Options, Report, faults, judgement, observer, operator};

/// A cluster that takes longer than this to be born will not be.
const BIRTH_LIMIT: Duration = Duration::from_secs(20);
/// What is left of a process gets this long to end by itself.
const BURIAL_LIMIT: Duration = Duration::from_secs(2);
/// Before a process that stopped without a reason is started again.
const RESTART_MS: u64 = 500;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself or by a signal: nothing is lost but what was in its memory.
    Kill,
    /// With its machine.
    PowerCut,
}

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) revisions: Revisions,
    pub(crate) ledger: Ledger,
    pub(crate) voters: Voters,
    pub(crate) counts: Counts,
    violations: Vec<Violation>,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) routes: Arc<Routes>,
    pub(crate) cluster: ClusterId,
    pub(crate) net: SimWorld,
    pub(crate) clock: Clock,
    pub(crate) trace: Trace,
    pub(crate) recorder: Recorder,
    pub(crate) seen: Mutex<Seen>,
    /// The manager's last entry whose decisions are in the trace.
    pub(crate) manager_told: Arc<AtomicU64>,
    machines: Vec<Arc<Machine>>,
    /// The simulation's own: clients, operator, faults, observer, burials.
    pub(crate) tasks: Tasks,
    pub(crate) random: Random,
    is_born: AtomicBool,
    is_calm: AtomicBool,
    is_operated: AtomicBool,
    is_over: AtomicBool,
}

/// Runs the simulation that `options` describe, on a runtime with paused time.
pub(crate) async fn simulate(options: &Options, trace: Trace) -> anyhow::Result<Report> {
    let world = World::new(options, trace)?;
    world.trace.line("plan", &world.plan);
    if world.birth().await {
        world.trouble(options.active).await;
        judgement::judge(&world).await;
    }
    world.end().await;
    Ok(world.report(options))
}

impl World {
    /// A world in which nothing has happened, decided by the seed alone.
    pub(crate) fn new(options: &Options, trace: Trace) -> anyhow::Result<Arc<Self>> {
        let random = Random::seeded(options.seed);
        let clock = Clock::simulated(1000, 0);
        trace.begin(clock.clone());
        let plan = Plan::draw(&Random::seeded(random.u64()), options.active);
        let machines: Vec<Arc<Machine>> = plan
            .machines
            .iter()
            .map(|machine| Arc::new(Machine::new(*machine, &Random::seeded(random.u64()))))
            .collect();
        for machine in &machines {
            machine.set_in_service(founder_ids().any(|node| node == machine.plan.node));
        }
        let lives = machines.iter().map(|it| (it.plan.node, it.incarnation())).collect();
        let net = SimWorld::new(Random::seeded(random.u64()));
        let cluster = ClusterId(random.identity());
        let routes = Routes::new(plan.shards, cluster, manager_incarnation(&random), &lives)?;
        let world = Self {
            routes: Arc::new(routes),
            cluster,
            net,
            recorder: Recorder::new(clock.clone()),
            clock,
            trace,
            seen: Mutex::default(),
            manager_told: Arc::default(),
            machines,
            tasks: Tasks::new(),
            random,
            is_born: AtomicBool::new(false),
            is_calm: AtomicBool::new(false),
            is_operated: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            plan,
        };
        world.set_latency(world.plan.latency_ms);
        Ok(Arc::new(world))
    }

    /// The machine of a node.
    ///
    /// # Panics
    /// For a node that is not in the plan: a defect of the simulation.
    pub(crate) fn machine(&self, node: NodeId) -> &Arc<Machine> {
        let found = self.machines.iter().find(|machine| machine.plan.node == node);
        found.expect("every node has a machine")
    }

    pub(crate) fn machines(&self) -> &[Arc<Machine>] {
        &self.machines
    }

    /// The processes that run now, by node.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        self.machines.iter().filter_map(|machine| machine.process()).collect()
    }

    pub(crate) fn set_latency(&self, span_ms: Span) {
        let (least, most) =
            (Duration::from_millis(span_ms.least), Duration::from_millis(span_ms.most));
        self.net.set_latency(least..=most);
    }

    /// Whether every shard has come to exist.
    pub(crate) fn is_born(&self) -> bool {
        self.is_born.load(Ordering::Relaxed)
    }

    /// Whether the operator has taken all of his steps.
    pub(crate) fn is_operated(&self) -> bool {
        self.is_operated.load(Ordering::Relaxed)
    }

    /// Counts what a manager has done, before it forgets or when the run ends.
    pub(crate) fn count_moves(&self, state: &v1::ManagerState) {
        let done = state.moves.iter().filter(|it| it.state() == v1::MoveState::Done).count();
        self.seen.lock().counts.moves += u64::try_from(done).unwrap_or(u64::MAX);
    }

    /// Whether the faults are over.
    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Relaxed)
    }

    /// Notes what must not be; the same thing once.
    pub(crate) fn violation(&self, violation: Violation) {
        let mut seen = self.seen.lock();
        if !seen.violations.contains(&violation) {
            self.trace.line("violation", &violation);
            seen.violations.push(violation);
        }
    }

    /// Starts a process on the machine of `node`, unless there is one or the run is over. Boxed
    /// because a process that stops is started again by a task that this starts.
    pub(crate) fn boot(self: &Arc<Self>, node: NodeId) -> BoxFuture<'static, ()> {
        let world = Arc::clone(self);
        Box::pin(async move {
            if world.is_over.load(Ordering::Relaxed) {
                return;
            }
            let machine = Arc::clone(world.machine(node));
            let Some(boot) = machine.begin_boot() else { return };
            let process = match Process::start(&world, &machine, boot).await {
                Ok(process) => process,
                Err(error) => {
                    machine.end_boot(None);
                    world.violation(alive::did_not_start(node, &format!("{error:#}")));
                    return;
                }
            };
            machine.end_boot(Some(Arc::clone(&process)));
            let Boot { count, life, .. } = boot;
            world.trace.line(
                format_args!("node {node}"),
                format_args!("boot {count}, life {life} of its folder"),
            );
            process.open_groups(&world);
            let watching = Arc::clone(&world);
            world.tasks.spawn("supervisor", OnEnd::Ignore, async move {
                let reason = process.env.tasks.stop_requested().await;
                watching.stopped(&process, &reason).await;
            });
        })
    }

    /// A process shall stop. When nobody here ended it, and no fault is about to, it did so by
    /// itself.
    async fn stopped(self: &Arc<Self>, process: &Arc<Process>, reason: &str) {
        let node = process.node;
        let is_expected = self.machine(node).is_doomed();
        if is_expected || !self.end_process(node, Some(process), End::Kill) {
            return;
        }
        self.violation(alive::stopped(node, reason));
        tokio::time::sleep(Duration::from_millis(RESTART_MS)).await;
        self.boot(node).await;
    }

    /// Ends the process of a node, in one step; with `only`, if it is this one. `false` when there
    /// was none to end.
    pub(crate) fn end_process(
        self: &Arc<Self>,
        node: NodeId,
        only: Option<&Arc<Process>>,
        how: End,
    ) -> bool {
        let machine = self.machine(node);
        let Some(process) = machine.take(only) else { return false };
        match how {
            End::Kill => machine.disk.kill(),
            End::PowerCut => machine.disk.crash(),
        }
        self.net.reset_host(host_of(node));
        process.env.tasks.request_stop("its process was ended");
        self.trace.line(format_args!("node {node}"), format_args!("ended by {how:?}"));
        self.tasks.spawn("burial", OnEnd::Ignore, bury(process));
        true
    }

    /// Waits, `limit` at most, until `condition` holds. Returns whether it does.
    pub(crate) async fn wait_until(
        &self,
        limit: Duration,
        mut condition: impl FnMut() -> bool + Send,
    ) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if condition() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn birth(self: &Arc<Self>) -> bool {
        self.tasks.spawn("observer", OnEnd::StopNode, observer::run(Arc::clone(self)));
        for node in self.node_ids() {
            self.boot(node).await;
        }
        let shards = self.routes.shards as usize;
        let founders = self.node_ids().len();
        let born = self.wait_until(BIRTH_LIMIT, || {
            let processes = self.processes();
            processes.len() == founders
                && processes.iter().all(|process| process.shards.all().len() == shards)
        });
        let is_born = born.await;
        if is_born {
            self.is_born.store(true, Ordering::Relaxed);
            self.trace.line("world", "every shard exists everywhere");
        } else {
            self.violation(Violation::new("H5 birth", "the shards did not come to exist in time"));
        }
        is_born
    }

    async fn trouble(self: &Arc<Self>, active: Duration) {
        let stop = Arc::new(AtomicBool::new(false));
        let (done, mut dones) = mpsc::channel(1);
        for id in 1..=self.plan.clients {
            let client = Client::new(Arc::clone(self), id, Random::seeded(self.random.u64()));
            let (stop, done) = (Arc::clone(&stop), done.clone());
            self.tasks.spawn("client", OnEnd::Ignore, async move {
                client.run(&stop).await;
                // The receiver waits for every client.
                let _ = done.send(()).await;
            });
        }
        drop(done);
        let operated = Arc::clone(self);
        self.tasks.spawn("operator", OnEnd::Ignore, async move {
            Box::pin(operator::run(&operated)).await;
            operated.is_operated.store(true, Ordering::Relaxed);
        });
        self.tasks.spawn("faults", OnEnd::Ignore, faults::run(Arc::clone(self)));
        tokio::time::sleep(active).await;

        self.is_calm.store(true, Ordering::Relaxed);
        self.trace.line("world", "calm");
        self.net.heal_all();
        self.set_latency(self.plan.latency_ms);
        for machine in &self.machines {
            machine.set_stall(0);
        }
        for node in self.node_ids() {
            self.boot(node).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut ended = 0;
        // Until the last client has dropped its sender; operations have deadlines.
        while dones.recv().await.is_some() {
            ended += 1;
        }
        self.trace.line("world", format_args!("{ended} clients have ended"));
        if ended < self.plan.clients || self.tasks.is_stopping() {
            self.violation(Violation::new("simulation", "a client or the observer has panicked"));
        }
    }

    /// Ends every process and every task.
    async fn end(self: &Arc<Self>) {
        self.is_over.store(true, Ordering::Relaxed);
        for node in self.node_ids() {
            self.end_process(node, None, End::Kill);
        }
        // Burials first: they end by themselves.
        tokio::time::sleep(BURIAL_LIMIT).await;
        self.tasks.request_stop("the run is over");
        self.tasks.wind_down(Duration::ZERO).await;
    }

    /// The nodes whose machines are in service.
    pub(crate) fn node_ids(&self) -> Vec<NodeId> {
        let in_service = self.machines.iter().filter(|machine| machine.is_in_service());
        in_service.map(|machine| machine.plan.node).collect()
    }

    fn report(&self, options: &Options) -> Report {
        let seen = self.seen.lock();
        Report {
            options: options.clone(),
            violations: seen.violations.clone(),
            counts: seen.counts,
            simulated: Duration::from_micros(self.clock.monotonic_us()),
            trace: self.trace.lines(),
        }
    }
}

/// The upper part of the ids that a manager gives out (H5).
pub(crate) fn manager_incarnation(random: &Random) -> u32 {
    u32::try_from(random.below(1 << 21)).unwrap_or(0)
}

/// Lets the groups of an ended process end in order, then whatever is left of it.
async fn bury(process: Arc<Process>) {
    // At the limit the tasks are aborted below.
    let _ = tokio::time::timeout(BURIAL_LIMIT, process.host.shut_down()).await;
    process.env.tasks.wind_down(Duration::ZERO).await;
}
