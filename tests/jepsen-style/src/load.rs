//! A closed loop on a fresh cluster of this machine, and what it costs: figures, no verdict.
//!
//! Counters come from the nodes' own `/metrics` and from the kernel (`/proc`), times from the
//! monotonic clock. Cluster and clients share the machine, so the figures are for comparing within
//! one run, not for quoting.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::Client;
use annulus_runtime::{Env, Random};
use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::Cluster;
use crate::crew::Crew;

/// How the loop looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary.
    pub program: PathBuf,
    /// Nodes.
    pub nodes: u16,
    /// Clients, each a closed loop.
    pub clients: u64,
    /// Linearizable gets among the operations, percent; the rest are puts.
    pub reads_percent: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// How long.
    pub length: Duration,
}

#[derive(Default)]
struct Totals {
    stop: AtomicBool,
    puts: AtomicU64,
    gets: AtomicU64,
    errors: AtomicU64,
}

/// What a node's counters say.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    cpu_us: u64,
    syncs: u64,
    wal_bytes: u64,
    resident_bytes: u64,
    terms: u64,
}

/// Keys that the loop goes over.
const KEYS: u64 = 100_000;

/// Runs the loop and prints the figures.
///
/// # Errors
/// When the cluster does not start, a node dies, or its counters cannot be read.
pub async fn run(options: &Options) -> Result<()> {
    let env = Env::real()?;
    let cluster = Cluster::start(&options.program, options.nodes, "load").await?;
    println!(
        "{} nodes, {} clients, {} % gets, values of {} bytes",
        options.nodes, options.clients, options.reads_percent, options.value_bytes
    );
    idle(&cluster).await?;
    let totals = Arc::new(Totals::default());
    let mut crew = Crew::new(&env.tasks);
    let mut latencies = Vec::new();
    for number in 0..options.clients {
        let samples = Arc::new(parking_lot::Mutex::new(Vec::new()));
        latencies.push(Arc::clone(&samples));
        crew.add(client_loop(
            cluster.client().await?,
            Random::seeded(number + 1),
            options.clone(),
            Arc::clone(&totals),
            env.clone(),
            samples,
        ));
    }
    let before = costs(&cluster).await?;
    let started = env.clock.monotonic_us();
    tokio::time::sleep(options.length).await;
    totals.stop.store(true, Ordering::Relaxed);
    crew.ended().await?;
    let seconds = (env.clock.monotonic_us() - started) as f64 / 1e6;
    let after = costs(&cluster).await?;
    let mut samples: Vec<u64> =
        latencies.iter().flat_map(|samples| std::mem::take(&mut *samples.lock())).collect();
    print_figures(&totals, seconds, &before, &after, &mut samples);
    ensure!(totals.errors.load(Ordering::Relaxed) == 0, "operations failed");
    Ok(())
}

async fn client_loop(
    client: Client,
    random: Random,
    options: Options,
    totals: Arc<Totals>,
    env: Env,
    samples: Arc<parking_lot::Mutex<Vec<u64>>>,
) {
    let value = vec![b'v'; options.value_bytes];
    while !totals.stop.load(Ordering::Relaxed) {
        let key = format!("key-{:06}", random.below(KEYS));
        let began = env.clock.monotonic_us();
        let (done, counter) = if random.below(100) < options.reads_percent {
            (client.get(key).await.map(drop), &totals.gets)
        } else {
            (client.put(key, value.clone()).await.map(drop), &totals.puts)
        };
        match done {
            Ok(()) => drop(counter.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                totals.errors.fetch_add(1, Ordering::Relaxed);
                eprintln!("an operation failed: {error}");
            }
        }
        samples.lock().push(env.clock.monotonic_us() - began);
    }
}

fn print_figures(
    totals: &Totals,
    seconds: f64,
    before: &[Cost],
    after: &[Cost],
    samples: &mut [u64],
) {
    let (puts, gets) = (totals.puts.load(Ordering::Relaxed), totals.gets.load(Ordering::Relaxed));
    let operations = (puts + gets).max(1) as f64;
    let spent = |of: fn(&Cost) -> u64| {
        let sum = |costs: &[Cost]| costs.iter().map(of).sum::<u64>();
        sum(after).saturating_sub(sum(before)) as f64
    };
    samples.sort_unstable();
    let at = |per_mille: usize| {
        let place = samples.len() * per_mille / 1000;
        samples.get(place.min(samples.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    println!(
        "{seconds:.1} s: {:.0} puts/s, {:.0} gets/s",
        puts as f64 / seconds,
        gets as f64 / seconds
    );
    println!("latency us: p50 {}, p99 {}, p999 {}, max {}", at(500), at(990), at(999), at(1000));
    println!("node CPU us per operation: {:.1}", spent(|cost| cost.cpu_us) / operations);
    println!("fdatasyncs per put: {:.3}", spent(|cost| cost.syncs) / (puts.max(1) as f64));
    println!("log bytes per put: {:.0}", spent(|cost| cost.wal_bytes) / (puts.max(1) as f64));
    println!("elections during the load (sum of term changes): {:.0}", spent(|cost| cost.terms));
    println!("errors: {}", totals.errors.load(Ordering::Relaxed));
}

/// What an idle cluster costs, over five seconds.
async fn idle(cluster: &Cluster) -> Result<()> {
    const SPAN: Duration = Duration::from_secs(5);
    let before = costs(cluster).await?;
    tokio::time::sleep(SPAN).await;
    let after = costs(cluster).await?;
    for (node, (before, after)) in cluster.nodes().zip(before.iter().zip(&after)) {
        let cpu = (after.cpu_us - before.cpu_us) as f64 / SPAN.as_micros() as f64 * 100.0;
        let mib = after.resident_bytes as f64 / f64::from(1 << 20);
        println!("idle node {node}: {cpu:.1} % of a core, {mib:.0} MiB resident");
    }
    Ok(())
}

async fn costs(cluster: &Cluster) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for node in cluster.nodes() {
        let id = cluster.process_id(node).with_context(|| format!("node {node} does not run"))?;
        let metrics = metrics(&cluster.http(node)).await?;
        let (cpu_us, resident_bytes) = of_process(id)?;
        costs.push(Cost {
            cpu_us,
            resident_bytes,
            syncs: sum(&metrics, "annulus_wal_syncs_total"),
            wal_bytes: sum(&metrics, "annulus_wal_written_bytes_total"),
            terms: sum(&metrics, "annulus_group_term"),
        });
    }
    Ok(costs)
}

/// CPU time and resident memory of a process, from the kernel.
fn of_process(id: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).context("reading /proc")?;
    // The name may hold blanks; fields are counted after its closing parenthesis.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("/proc/stat")?.1.split_whitespace().collect();
    let number = |place: usize| -> Result<u64> {
        Ok(fields.get(place).context("/proc/stat is short")?.parse()?)
    };
    // Ticks of 10 ms on every Linux that Rust runs on; pages of 4 KiB.
    Ok(((number(11)? + number(12)?) * 10_000, number(21)? * 4096))
}

/// What a node's `/metrics` say.
#[expect(clippy::disallowed_methods, reason = "the harness looks at the nodes from outside")]
pub(crate) async fn metrics(addr: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The sum over all labels of a metric.
pub(crate) fn sum(metrics: &str, name: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels_only() {
        let text = "# HELP a x\na{g=\"1\"} 3\na{g=\"2\"} 4\na_b 9\na 1\n";
        assert_eq!((sum(text, "a"), sum(text, "a_b"), sum(text, "c")), (8, 9, 0));
    }
}
