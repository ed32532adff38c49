//! Seats move under load: 3 → 4 → 5 → 3 nodes, or moves during which processes are killed.
//!
//! **Without kills** two nodes join, then a founder and one of the newcomers are drained, removed and
//! stopped, while clients put, get and add without pause. Judged are:
//!
//! - requests: every client made some in each step, none failed within 5 s, none took longer than 6 s by the
//!   clock here, and at most 2 % were sent more than once;
//! - keys: after each step all of them are read back, none is lost and no addition was applied twice
//!   (`ledger`), and the shards' leaders count as many as were written;
//! - seats: after each step groups at home and seats are exactly by quota (`placement`), and no node's
//!   folder holds a replica that nobody gave it, open or closed;
//! - bytes: what was sent is at most 1.25 times what the new replicas needed, as they counted it (`traffic`).
//!   The live bytes of the groups that moved are printed beside it.
//!
//! The longest and the median time without an acknowledged write across a change of leader or term are
//! printed (`gaps`): of shards, under the load of all clients, and of one key per group that is written
//! without a pause.
//!
//! **With kills** (`kills`) a node of four is drained and takes its share again, over and over, and
//! in each state of a move in turn a process is killed and started again. Requests may fail then, in time,
//! and are counted; how many kills met which state is printed. Nothing acknowledged may be lost or doubled; in
//! the end every move is complete or undone, seats are by quota, and there are no orphans.
//!
//! What is violated ends the run with an error that names it, after everything was printed. A step that
//! does not come to its end ends the run at once. Either way the cluster's folder is kept.

mod gaps;
mod kills;
mod ledger;
mod load;
mod placement;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use annulus_runtime::Env;
use anyhow::{Result, bail, ensure};

pub use self::kills::Kill;
use self::load::Load;
use self::traffic::Traffic;
use crate::cluster::Cluster;

/// What the waves of moves of one step may take.
const MOVES: Duration = Duration::from_secs(600);
/// Requests may be repeated at most this often, percent of all.
const RETRIES_PERCENT_MOST: u64 = 2;

/// How the run looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary.
    pub program: PathBuf,
    /// Keys that are put and read; at least one for each client. Each client counts in 64 others.
    pub keys: u64,
    /// Bytes of a value, at least 16.
    pub value_bytes: usize,
    /// Clients, each a closed loop over keys of its own.
    pub clients: u64,
    /// For what clients do; what processes do is not repeatable.
    pub seed: u64,
    /// Who is killed, one run for each; empty: nobody, and the cluster grows and shrinks.
    pub kills: Vec<Kill>,
    /// Kills of each kind; from 7 on every state of a move has at least one.
    pub times: u64,
    /// Groups per founder.
    pub lanes: u32,
}

/// A change of the cluster.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new node comes.
    Join,
    /// A node is drained, removed and stopped.
    Leave(u32),
}

/// 3 → 4 → 5 → 4 → 3: a founder leaves, and a newcomer.
const STEPS: [Step; 4] = [Step::Join, Step::Join, Step::Leave(1), Step::Leave(4)];

/// Runs the scenario.
///
/// # Errors
/// When a bound is violated, or the run itself fails.
pub async fn run(options: &Options) -> Result<()> {
    ensure!(options.clients > 0, "--clients: at least 1");
    let (keys, clients) = (options.keys, options.clients);
    ensure!(keys >= clients, "--keys: at least one for each of the {clients} clients, got {keys}");
    let least = ledger::HEAD_BYTES;
    ensure!(
        options.value_bytes >= least,
        "--value-bytes: at least {least}, got {}",
        options.value_bytes
    );
    let env = Env::real()?;
    if options.kills.is_empty() {
        let mut cluster =
            Cluster::start_in_lanes(&options.program, 3, "moves", options.lanes).await?;
        let outcome = Box::pin(grow_and_shrink(&env, &mut cluster, options)).await;
        return kept_if_failed(&mut cluster, outcome);
    }
    let mut struck = Vec::new();
    for kill in &options.kills {
        let mut cluster =
            Cluster::start_in_lanes(&options.program, 3, "moves", options.lanes).await?;
        let outcome = Box::pin(kills::run(&env, &mut cluster, options, *kill)).await;
        struck.push((*kill, kept_if_failed(&mut cluster, outcome)?));
    }
    println!("{}", kills::table(&struck));
    Ok(())
}

fn kept_if_failed<T>(cluster: &mut Cluster, outcome: Result<T>) -> Result<T> {
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn grow_and_shrink(env: &Env, cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut nodes: Vec<u32> = vec![1, 2, 3];
    let mut load = Box::pin(Load::begin(env, cluster, options)).await?;
    println!(
        "{} nodes, {} groups, {} keys of {} bytes and counters, {} clients",
        nodes.len(),
        load.groups().len(),
        load.keys(),
        options.value_bytes,
        options.clients
    );
    let mut traffic = Traffic::begin(cluster, &nodes).await?;
    for step in STEPS {
        let began_us = env.clock.monotonic_us();
        load.start();
        match step {
            Step::Join => {
                nodes.push(u32::from(cluster.add_node()?));
                placement::wait_even(cluster, &nodes).await?;
            }
            Step::Leave(node) => {
                Box::pin(leave(cluster, &mut nodes, node, &mut traffic)).await?;
            }
        }
        let took_ms = (env.clock.monotonic_us() - began_us) / 1_000;
        load.stop().await?;
        placement::wait_no_orphans(cluster, &nodes).await?;
        cluster.wait_ready().await?;
        Box::pin(load.check(cluster)).await?;
        println!("{step:?}: nodes {nodes:?} after {took_ms} ms, homes and seats by quota");
        println!("  {}", told(&load));
        traffic.step_over(cluster).await?;
        println!("  {}", traffic.so_far(cluster, &nodes).await?);
        println!("  {}", traffic.live());
    }
    judge(cluster, &load, &traffic, &nodes).await
}

/// Takes a node out: nobody may count on it any more when it goes.
async fn leave(
    cluster: &mut Cluster,
    nodes: &mut Vec<u32>,
    node: u32,
    traffic: &mut Traffic,
) -> Result<()> {
    let client = cluster.client().await?;
    placement::drain(&client, node, true).await?;
    let all = nodes.clone();
    nodes.retain(|other| *other != node);
    placement::wait_even(cluster, nodes).await?;
    placement::wait_no_orphans(cluster, &all).await?;
    traffic.leaves(cluster, node).await?;
    placement::remove(&client, node).await?;
    // It stops by itself when it hears of it; either way it is over.
    cluster.kill(u16::try_from(node)?)
}

fn told(load: &Load) -> String {
    let load::Figures { calls, retries, refused, unknown, longest } = load.figures();
    let percent = retries as f64 * 100.0 / calls.max(1) as f64;
    let damage = load.damage();
    format!(
        "{calls} requests, {} failed ({refused} refused, {unknown} unknown), {retries} retries \
         ({percent:.3} %), the longest took {} ms; {} keys: {} lost, {} doubled, {} wrong",
        refused + unknown,
        longest.as_millis(),
        load.keys(),
        damage.lost,
        damage.doubled,
        damage.wrong
    )
}

/// Prints what is over, and names every bound that does not hold.
async fn judge(cluster: &Cluster, load: &Load, traffic: &Traffic, nodes: &[u32]) -> Result<()> {
    let (moved, undone) = placement::ended(&cluster.client().await?).await?;
    println!("{moved} seats moved, {undone} moves undone or given up");
    print_gaps("shards under the load, by change of leader or term", load.gaps());
    print_gaps(
        "keys written without a pause, one in each group, by such a change",
        load.probe_gaps(),
    );
    let bytes = traffic.so_far(cluster, nodes).await?;
    let figures = load.figures();
    let mut violated = violations_of_load(load);
    if figures.refused + figures.unknown > 0 {
        violated.push("requests failed".to_owned());
    }
    if figures.retries * 100 > figures.calls * RETRIES_PERCENT_MOST {
        violated.push(format!("more than {RETRIES_PERCENT_MOST} % of the requests were repeated"));
    }
    if !bytes.are_in_bounds() {
        violated.push("the network carried more than 1.25 times what was needed".to_owned());
    }
    if load.probe_gaps().0 == 0 {
        violated.push("no leader changed, so nothing is known of gaps".to_owned());
    }
    verdict(&violated)
}

fn print_gaps(of: &str, (count, median_us, longest_us): (usize, u64, u64)) {
    let (median_ms, longest_ms) = (median_us as f64 / 1e3, longest_us as f64 / 1e3);
    println!(
        "write gaps of {of}: {count} gaps, median {median_ms:.1} ms, longest {longest_ms:.1} ms"
    );
}

/// What is wrong with the keys, and with the time that requests took, for the verdict; examples are printed.
fn violations_of_load(load: &Load) -> Vec<String> {
    let damage = load.damage();
    for example in &damage.examples {
        eprintln!("{example}");
    }
    let mut violated = Vec::new();
    if !damage.is_none() {
        violated.push("keys were lost or doubled".to_owned());
    }
    let figures = load.figures();
    if !figures.are_in_time() {
        let longest = figures.longest;
        violated.push(format!("a request outlived its deadline: it took {longest:?}"));
    }
    violated
}

fn verdict(violated: &[String]) -> Result<()> {
    if !violated.is_empty() {
        bail!("{}", violated.join("; "));
    }
    println!("every bound holds");
    Ok(())
}
