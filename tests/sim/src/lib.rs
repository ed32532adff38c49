//! The deterministic simulation: a whole cluster in one thread, in simulated time, decided by a
//! seed.
//!
//! Three nodes, their three groups and the manager's run the real log, the real openraft, the real peer
//! links, the real shards and the real manager, on a disk, a network, a clock and random numbers that a
//! seed decides. A fourth node joins, one is drained, one is wiped and comes back, and the manager loses
//! its memory, while clients work, processes die, power goes, syncs fail and paths are cut; every 20
//! simulated milliseconds, and at the end, the invariants are asked. A seed that fails is replayed by one
//! command, to the same microsecond.
//!
//! # What makes two runs equal
//!
//! One thread and tokio's paused clock, which moves only when no task can go on; tokio's own
//! choices (`select!`) from the seed (`--cfg tokio_unstable`); openraft's random numbers from the
//! node's (`crates/raft` scopes each group); every other number from sequences that the seed
//! begins. The trace names no address, no thread and no id of the operating system.
//!
//! Where else chance could come from, and why it does not:
//! - *Hash maps with random keys*: in `server` (the keys of an entry), openraft (extensions) and
//!   axum (routes). They are looked up by key; nothing is decided by an order of iteration. HTTP/2
//!   keeps its streams in an index map, openraft and we use ordered maps.
//! - *`std::time::Instant`* in h2: the age at which it forgets streams that were reset. Each link
//!   is one stream on a connection of its own, which goes with it. A heartbeat that is given up takes its
//!   connection along. Commands and tables share one for each node; `command` answers well before the
//!   manager gives up, so that only a path that is held for most of that time could break a stream off
//!   there while another one goes on. hyper reads the clock for keep-alive and adaptive windows, which
//!   are off.
//! - *`SystemTime`* in hyper: the `date` of a response, whose packed length varies. `peer` sets it.
//! - *Counters of the process*, as for tokio's task ids: nothing is decided by their values.
//! - *Threads*: none; the memory engine has none and the log is driven by a task.
//!
//! Timers of tokio have whole milliseconds, so everything here happens at one.
//!
//! # What it does not show
//!
//! - Disk engines do their own files and are not here; neither are the client library and its services, or
//!   anything that needs threads to go wrong. `tests/jepsen-style` runs real processes.
//! - The node's side of the manager is not the real one, which belongs to the binary: `command`, `obeyed`,
//!   `heartbeat` and `replicas` make the same calls in the same order. Nor is the birth: the founders begin
//!   with their replicas of the manager's group, and a newcomer's links do not wait for its admission.
//! - The manager forgets at an entry of its own group, which stays (`forgetful`), and only while nothing
//!   is under way: a replica that was created and never got a seat is nobody's afterwards, and stays. Its
//!   new state comes from all nodes; none is away.
//! - No node is removed, no weight changes, no node stays down until it is replaced, and no group loses its
//!   majority for good.
//!
//! Reading order: [`cli`], `plan` (what a seed decides), `world` (the course of a run), `machine`,
//! `process`, `replicas` and `peer` (a node), `command`, `obeyed` and `heartbeat` (how it obeys the
//! manager), `forgetful` and `operator` (what is asked of the cluster), `faults`, `clients` and `service`,
//! `observer`, `rest` and `judgement` (when the invariants are asked), `invariants` (what must hold, one
//! file each).

pub mod cli;
mod clients;
mod command;
mod faults;
mod forgetful;
mod heartbeat;
mod invariants;
mod judgement;
mod machine;
mod obeyed;
mod observer;
mod operator;
mod peer;
mod plan;
mod process;
mod replicas;
mod rest;
mod routes;
mod service;
mod trace;
mod world;

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::RngSeed;

use trace::Trace;

pub use invariants::Violation;

/// The stack of the thread that runs everything. Unoptimised futures are large.
const STACK_BYTES: usize = 32 << 20;

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How long clients work under faults, in simulated time.
    pub active: Duration,
    /// Print the trace as it grows.
    pub prints: bool,
}

impl Options {
    /// Clients work this long unless told otherwise.
    pub const ACTIVE: Duration = Duration::from_secs(24);

    /// A run of the usual length.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, active: Self::ACTIVE, prints: false }
    }

    /// The command that runs it again.
    #[must_use]
    pub fn replay(&self) -> String {
        let seed = self.seed;
        if self.active == Self::ACTIVE {
            format!("cargo xtask sim --seed {seed} --trace")
        } else {
            let seconds = self.active.as_secs();
            format!("cargo run -p annulus-sim -- --seed {seed} --seconds {seconds} --trace")
        }
    }
}

/// What a run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that were answered.
    pub answered: u64,
    /// Operations that were certainly not applied.
    pub failed: u64,
    /// Operations of which nobody can tell.
    pub unknown: u64,
    /// Faults that were inflicted.
    pub faults: u64,
    /// Moves of the manager that were done.
    pub moves: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run.
    pub options: Options,
    /// Everything that must not be.
    pub violations: Vec<Violation>,
    /// What was done.
    pub counts: Counts,
    /// The simulated time that it took.
    pub simulated: Duration,
    /// Every event, in order.
    pub trace: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { answered, failed, unknown, faults, moves } = self.counts;
        let verdict = if self.violations.is_empty() { "ok" } else { "FAILED" };
        write!(
            f,
            "seed {}: {verdict}, {answered} answered, {failed} failed, {unknown} unknown, \
             {faults} faults, {moves} moves, {} simulated ms",
            self.options.seed,
            self.simulated.as_millis()
        )
    }
}

/// Runs one simulation to its end, on a thread and a runtime of its own.
///
/// # Errors
/// When the thread or the runtime cannot be made, or the run itself panicked. What is wrong with
/// the product is in the report.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let options = options.clone();
    let runner = std::thread::Builder::new()
        .name("simulation".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || run_here(&options))
        .context("no thread for the simulation")?;
    match runner.join() {
        Ok(outcome) => outcome,
        Err(_) => anyhow::bail!("the simulation has panicked, see above"),
    }
}

fn run_here(options: &Options) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&options.seed.to_le_bytes()))
        .build()
        .context("no runtime for the simulation")?;
    runtime.block_on(Box::pin(world::simulate(options, Trace::new(options.prints))))
}
