//! Leaders that apply late: whoever reads there must not see less than whoever read at a follower (R2).
//!
//! Every node delays what it applies as a leader (`--unsafe-slow-apply-ms`), so its followers, once told
//! that an entry is committed, are ahead of it for up to that long. Some clients write, some read through
//! the leader's gate, some read strictly at followers, all of the same few keys, into one history; it must
//! be linearizable.
//!
//! The run shows something only if followers were ahead: reads there that saw a write at least 10 ms before
//! it was acknowledged are counted, and there must be some, as well as reads through a gate.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, Get, NodeId, Role, ServedBy};
use annulus_runtime::{Clock, Env, Random};
use annulus_types::token_of;
use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Layout, READY};
use crate::crew::Crew;
use crate::history::{Call, History, Outcome, Recorder, Value};
use crate::journal::End;
use crate::run::history_file;
use crate::workloads::register::{judge, outcome_of};
use crate::workloads::{Run, seen_in};

/// Clients of each part.
const EACH: u64 = 4;
const KEYS: u64 = 6;
/// Several delays, and an election.
const DEADLINE: Duration = Duration::from_secs(5);
/// A read that sees a write so long before its acknowledgement was not just quicker on its way.
const AHEAD_US: u64 = 10_000;

/// How a run looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub program: PathBuf,
    /// How long clients work.
    pub length: Duration,
    /// A batch of entries is applied by a leader up to so many milliseconds late.
    pub apply_ms_most: u64,
    /// Decides keys and nodes; not what the machine does.
    pub seed: u64,
}

/// What a client does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Writer,
    GateReader,
    FollowerReader,
}

impl Part {
    fn of(process: u64) -> Self {
        match process % 3 {
            0 => Self::Writer,
            1 => Self::GateReader,
            _ => Self::FollowerReader,
        }
    }
}

struct Shared {
    recorder: Recorder,
    run: Run,
    /// By key: the nodes that follow there.
    followers: Vec<Vec<NodeId>>,
    /// Reads that a gate vouched for.
    gate_reads: AtomicU64,
    /// Reads that a follower answered.
    follower_reads: AtomicU64,
}

fn key(place: u64) -> String {
    format!("slow-{place}")
}

/// Runs writers and readers against leaders that apply late, and judges their history.
///
/// # Errors
/// When the history is not linearizable, no follower was ahead of its leader, or the run itself fails.
pub async fn run(options: &Options, reports: &Path) -> Result<()> {
    let env = Env::real()?;
    let flags = vec!["--unsafe-slow-apply-ms".to_owned(), options.apply_ms_most.to_string()];
    let layout = Layout { flags, ..Layout::default() };
    let mut cluster = Cluster::start_as(&options.program, "slow-apply", &layout).await?;
    let outcome = drive(&env, &cluster, options, reports).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn drive(env: &Env, cluster: &Cluster, options: &Options, reports: &Path) -> Result<()> {
    let folder = reports.join(format!("slow-apply-{}", options.seed));
    let sink = BufWriter::new(history_file(&folder)?);
    let shared = Arc::new(Shared {
        recorder: Recorder::with_sink(Clock::real(), Box::new(sink)),
        run: Run::new(),
        followers: followers(cluster).await?,
        gate_reads: AtomicU64::new(0),
        follower_reads: AtomicU64::new(0),
    });
    let mut crew = Crew::new(&env.tasks);
    for process in 0..3 * EACH {
        let random = Random::seeded(options.seed.wrapping_add(process + 1));
        crew.add(work(process, Arc::clone(&shared), cluster.client().await?, random));
    }
    tokio::time::sleep(options.length).await;
    shared.run.stop();
    crew.ended().await?;
    let counts = shared.run.counts();
    let gate_reads = shared.gate_reads.load(Ordering::Relaxed);
    let follower_reads = shared.follower_reads.load(Ordering::Relaxed);
    let ahead = ahead(&shared.recorder.history().context("the history was not written in full")?);
    println!(
        "operations: {} answered, {} certainly not applied, {} unknown; history in {}",
        counts.answered,
        counts.failed,
        counts.unknown,
        folder.display()
    );
    println!(
        "{gate_reads} reads by a leader's gate, {follower_reads} strict ones at followers; {ahead} of these saw a write 10 ms or more before it was acknowledged"
    );
    ensure!(
        gate_reads > 0 && follower_reads > 0,
        "one of the two kinds of reads was never answered"
    );
    ensure!(ahead > 0, "no follower was ever seen ahead of its leader: the run shows nothing");
    judge(&shared.recorder)?;
    println!("linearizable");
    Ok(())
}

/// By key: the members of its group that do not lead it now.
async fn followers(cluster: &Cluster) -> Result<Vec<Vec<NodeId>>> {
    let client = cluster.client().await?;
    let table = client.routes().await?;
    let mut followers = Vec::new();
    for place in 0..KEYS {
        let name = key(place);
        let leader = client.get(name.clone()).deadline(READY).await?.receipt.node;
        let shard = table.shard_of(token_of(name.as_bytes())).context("the table is empty")?;
        let group = table.group(shard.group).context("a shard has no group")?;
        let nodes = group.members.iter().map(|member| member.node);
        let others: Vec<NodeId> = nodes.filter(|node| *node != leader).collect();
        ensure!(!others.is_empty(), "{name} has no followers");
        followers.push(others);
    }
    Ok(followers)
}

/// One client, until the run is stopped.
async fn work(process: u64, shared: Arc<Shared>, client: Client, random: Random) {
    let part = Part::of(process);
    while !shared.run.is_over() {
        let place = random.below(KEYS);
        let outcome = match part {
            Part::Writer => write(process, &shared, &client, place).await,
            Part::GateReader => read(process, &shared, place, client.get(key(place))).await,
            Part::FollowerReader => {
                let nodes = &shared.followers[place as usize];
                let node = nodes[random.below(nodes.len() as u64) as usize];
                let get = client.get(key(place)).strict(true).from_node(node);
                read(process, &shared, place, get).await
            }
        };
        shared.run.count(&End::from(outcome));
    }
}

async fn write(process: u64, shared: &Shared, client: &Client, place: u64) -> Outcome {
    let value = shared.run.fresh_value();
    let operation = shared.recorder.invoke(process, &key(place), Call::Write(value));
    let outcome = match client.put(key(place), value.to_string()).deadline(DEADLINE).await {
        Ok(_) => Outcome::Ok(Value::Done),
        Err(error) => outcome_of(&error),
    };
    shared.recorder.complete(operation, outcome);
    outcome
}

async fn read(process: u64, shared: &Shared, place: u64, get: Get) -> Outcome {
    let operation = shared.recorder.invoke(process, &key(place), Call::Read);
    let found = get.deadline(DEADLINE).await;
    let outcome = match &found {
        Ok(found) => Outcome::Ok(Value::Read(seen_in(found))),
        Err(error) => outcome_of(error),
    };
    shared.recorder.complete(operation, outcome);
    if let Ok(found) = found {
        if found.receipt.served_by == ServedBy::Lease {
            shared.gate_reads.fetch_add(1, Ordering::Relaxed);
        }
        if found.receipt.role == Role::Follower {
            shared.follower_reads.fetch_add(1, Ordering::Relaxed);
        }
    }
    outcome
}

/// Reads of the follower readers that saw a write well before its writer knew of it.
fn ahead(history: &History) -> usize {
    let acknowledged: BTreeMap<u64, u64> = history
        .operations()
        .iter()
        .filter_map(|operation| match (operation.call, operation.outcome) {
            (Call::Write(value), Outcome::Ok(_)) => Some((value, operation.completed_us?)),
            _ => None,
        })
        .collect();
    let reads = history.operations().iter().filter(|read| {
        let Outcome::Ok(Value::Read(Some(value))) = read.outcome else { return false };
        let (Some(seen_us), Some(acknowledged_us)) = (read.completed_us, acknowledged.get(&value))
        else {
            return false;
        };
        Part::of(read.process) == Part::FollowerReader && seen_us + AHEAD_US <= *acknowledged_us
    });
    reads.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Operation;

    fn operation(process: u64, call: Call, at_us: (u64, u64), value: Value) -> Operation {
        let (invoked_us, completed_us) = (at_us.0, Some(at_us.1));
        let (key, outcome) = (key(0), Outcome::Ok(value));
        Operation { process, key, call, invoked_us, completed_us, outcome }
    }

    #[test]
    fn ahead_is_who_saw_a_write_long_before_its_writer_knew() {
        let read = |process, until_us, value| {
            let seen = Value::Read(Some(value));
            operation(process, Call::Read, (until_us - 10, until_us), seen)
        };
        let wrote = |value, until_us| operation(0, Call::Write(value), (0, until_us), Value::Done);
        let history = |reads: Vec<Operation>| {
            History::new([vec![wrote(1, 50_000), wrote(2, 90_000)], reads].concat())
        };
        let (gate, follower) = (1, 2);
        assert_eq!(ahead(&history(vec![read(follower, 40_000, 1), read(follower, 70_000, 2)])), 2);
        assert_eq!(ahead(&history(vec![read(gate, 40_000, 1)])), 0, "not at a follower");
        assert_eq!(ahead(&history(vec![read(follower, 40_001, 1)])), 0, "only just before");
        assert_eq!(ahead(&history(vec![read(follower, 40_000, 3)])), 0, "never acknowledged");
    }
}
