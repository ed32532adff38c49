//! Kills under load with one write per key: what a kill costs, and that nothing acknowledged is lost.
//!
//! Each writer puts fresh keys, one after the other, so that "acknowledged is there, nothing else is"
//! can be judged key by key (`checkers::acknowledged`). The *gap* of a kill is the longest time
//! between two acknowledged writes of the keys that the dead node led, from the kill on, measured by
//! the clients' monotonic clock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, MayHaveApplied};
use annulus_runtime::{Env, Random};
use anyhow::{Result, bail, ensure};
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use crate::checkers::acknowledged;
use crate::cluster::Cluster;
use crate::crew::Crew;
use crate::process::wait_until;

/// What writers did, by fate.
#[derive(Default)]
struct Fates {
    acknowledged: BTreeMap<String, String>,
    unknown: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
}

#[derive(Default)]
struct Writers {
    stop: AtomicBool,
    next: AtomicU64,
    acknowledged: AtomicU64,
    fates: Mutex<Fates>,
    /// When writes to a group were acknowledged: (group's shard, microseconds).
    acks: Mutex<Vec<(u64, u64)>>,
}

async fn write(client: Client, writers: Arc<Writers>, env: Env, deadline: Duration) {
    while !writers.stop.load(Ordering::Relaxed) {
        let number = writers.next.fetch_add(1, Ordering::Relaxed);
        let (key, value) = (format!("kill-{number}"), format!("value-{number}"));
        let sent = client.put(key.clone(), value.clone()).deadline(deadline).await;
        let mut fates = writers.fates.lock();
        match sent {
            Ok(written) => {
                writers.acknowledged.fetch_add(1, Ordering::Relaxed);
                writers.acks.lock().push((written.receipt.shard.0, env.clock.monotonic_us()));
                fates.acknowledged.insert(key, value);
            }
            Err(error) if error.may_have_applied == MayHaveApplied::No => {
                fates.refused.insert(key, value);
            }
            Err(_) => {
                fates.unknown.insert(key, value);
            }
        }
    }
}

/// Everything that was ever put, read back linearizable.
async fn found(client: &Client, keys: u64) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for number in 0..keys {
        let key = format!("kill-{number}");
        let read = client.get(key.clone()).deadline(Duration::from_secs(30)).await?;
        if let Some(value) = read.value {
            found.insert(key, String::from_utf8(value.to_vec())?);
        }
    }
    Ok(found)
}

/// Kills a leader `kills` times under load, then everybody `kills` times, on other ports each time.
///
/// # Errors
/// When something acknowledged is lost, something else is found, or the run itself fails.
pub async fn run(program: &Path, kills: u64, seed: u64) -> Result<()> {
    let env = Env::real()?;
    let mut cluster = Cluster::start(program, 3, "kills").await?;
    let outcome = leaders_and_all(&env, &mut cluster, kills, seed).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn leaders_and_all(env: &Env, cluster: &mut Cluster, kills: u64, seed: u64) -> Result<()> {
    let random = Random::seeded(seed);
    let writers = Arc::new(Writers::default());
    for turn in 0..kills {
        let (victim, led) = a_leader(cluster, &random).await?;
        let crew = start_writers(env, cluster, &writers).await?;
        more(&writers, 300).await?;
        let killed_at = env.clock.monotonic_us();
        cluster.kill(victim)?;
        // Writes to every shard that it led, and then some: the gap is over for all of them.
        wait_until("every shard of the dead node takes writes again", READY, || async {
            let acks = writers.acks.lock();
            led.iter().all(|shard| acks.iter().any(|(s, at)| s == shard && *at > killed_at))
        })
        .await?;
        stop_writers(&writers, crew).await?;
        let gap = longest_gap(&writers, &led, killed_at);
        println!(
            "kill {} of leader node {victim} ({} shards): gap {} ms",
            turn + 1,
            led.len(),
            gap / 1000
        );
        cluster.start_node(victim)?;
        cluster.wait_ready().await?;
    }
    for turn in 0..kills {
        let crew = start_writers(env, cluster, &writers).await?;
        more(&writers, 300).await?;
        cluster.kill_all()?;
        stop_writers(&writers, crew).await?;
        cluster.move_ports()?;
        let started_at = env.clock.monotonic_us();
        for node in cluster.nodes() {
            cluster.start_node(node)?;
        }
        cluster.wait_ready().await?;
        let serving_ms = (env.clock.monotonic_us() - started_at) / 1000;
        println!("kill {} of all: every shard served {serving_ms} ms after the start", turn + 1);
    }
    let client = cluster.client().await?;
    let found = found(&client, writers.next.load(Ordering::Relaxed)).await?;
    let fates = writers.fates.lock();
    println!(
        "keys: {} acknowledged, {} unknown, {} certainly not applied; {} found",
        fates.acknowledged.len(),
        fates.unknown.len(),
        fates.refused.len(),
        found.len()
    );
    acknowledged::check(&fates.acknowledged, &fates.unknown, &fates.refused, &found)?;
    println!("nothing acknowledged is lost, nothing else is there");
    Ok(())
}

const READY: Duration = Duration::from_secs(60);

async fn led_by(cluster: &Cluster, node: u16) -> Result<Vec<u64>> {
    let status = cluster.client().await?.status(false).await?;
    let Some(table) = status.table else { return Ok(Vec::new()) };
    let own =
        status.nodes.iter().find(|n| n.info.as_ref().is_some_and(|i| i.id == u32::from(node)));
    let groups: Vec<u64> = own
        .map(|node| node.replicas.iter().filter(|r| r.gate_open).map(|r| r.group).collect())
        .unwrap_or_default();
    Ok(table.shards.iter().filter(|s| groups.contains(&s.group)).map(|s| s.id).collect())
}

/// A node that leads something, and the shards that it leads.
async fn a_leader(cluster: &Cluster, random: &Random) -> Result<(u16, Vec<u64>)> {
    let first = random.below(3);
    for step in 0..3 {
        let node = u16::try_from((first + step) % 3 + 1)?;
        let led = led_by(cluster, node).await?;
        if !led.is_empty() {
            return Ok((node, led));
        }
    }
    bail!("nobody leads anything")
}

async fn start_writers(env: &Env, cluster: &Cluster, writers: &Arc<Writers>) -> Result<Crew> {
    writers.stop.store(false, Ordering::Relaxed);
    let mut crew = Crew::new(&env.tasks);
    for _ in 0..16 {
        let client = cluster.client().await?;
        let deadline = Duration::from_secs(5);
        crew.add(write(client, Arc::clone(writers), env.clone(), deadline));
    }
    Ok(crew)
}

async fn stop_writers(writers: &Writers, crew: Crew) -> Result<()> {
    writers.stop.store(true, Ordering::Relaxed);
    crew.ended().await
}

async fn more(writers: &Writers, count: u64) -> Result<()> {
    let before = writers.acknowledged.load(Ordering::Relaxed);
    wait_until("writers are acknowledged", READY, || async {
        writers.acknowledged.load(Ordering::Relaxed) >= before + count
    })
    .await
}

/// The longest time after the kill without an acknowledged write to any of these shards, microseconds.
fn longest_gap(writers: &Writers, led: &[u64], killed_at: u64) -> u64 {
    let mut acks = std::mem::take(&mut *writers.acks.lock());
    acks.retain(|(shard, at)| led.contains(shard) && *at > killed_at);
    let mut times: Vec<u64> = acks.into_iter().map(|(_, at)| at).collect();
    times.sort_unstable();
    let mut last = killed_at;
    let mut longest = 0;
    for at in times {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// Kills two of three for good: what is sent a second or more later must be refused for good, and
/// an `any` read must answer.
///
/// # Errors
/// When a refused write is found later, fewer than 99 of 100 are refused, or the run fails.
pub async fn minority(program: &Path, writes: u64) -> Result<()> {
    let env = Env::real()?;
    let mut cluster = Cluster::start(program, 3, "minority").await?;
    let client = cluster.client().await?;
    let deadline = Duration::from_secs(2);
    client.put("seen", "before").deadline(READY).await?;
    cluster.kill(1)?;
    cluster.kill(2)?;
    let killed_at = env.clock.monotonic_us();
    let fates = Arc::new(Mutex::new(Fates::default()));
    wait_until("a second has passed", READY, || async {
        env.clock.monotonic_us() >= killed_at + 1_000_000
    })
    .await?;
    let mut longest = 0;
    // Few enough at a time that the client's own work does not eat their deadlines.
    let sent = futures_util::stream::iter(0..writes).map(|number| {
        let (client, fates, env) = (client.clone(), Arc::clone(&fates), &env);
        async move {
            let (key, value) = (format!("kill-{number}"), format!("value-{number}"));
            let began = env.clock.monotonic_us();
            let sent = client.put(key.clone(), value.clone()).deadline(deadline).await;
            let took = env.clock.monotonic_us() - began;
            let mut fates = fates.lock();
            match sent {
                Ok(_) => fates.acknowledged.insert(key, value),
                Err(error) if error.may_have_applied == MayHaveApplied::No => {
                    fates.refused.insert(key, value)
                }
                Err(_) => fates.unknown.insert(key, value),
            };
            took
        }
    });
    let mut sent = std::pin::pin!(sent.buffer_unordered(64));
    while let Some(took) = sent.next().await {
        longest = longest.max(took);
    }
    let any = client.get("seen").consistency(annulus_client::Consistency::Any).await?;
    println!("an any read answers from node {}", any.receipt.node);
    cluster.start_node(1)?;
    cluster.start_node(2)?;
    cluster.wait_ready().await?;
    let found = found(&cluster.client().await?, writes).await?;
    let fates = fates.lock();
    println!(
        "{writes} writes sent a second after the kill: {} refused for good, {} unknown, {} acknowledged; longest answer {} ms",
        fates.refused.len(),
        fates.unknown.len(),
        fates.acknowledged.len(),
        longest / 1000
    );
    acknowledged::check(&fates.acknowledged, &fates.unknown, &fates.refused, &found)?;
    ensure!(fates.refused.len() as u64 * 100 >= writes * 99, "fewer than 99 % were refused");
    println!("none of the refused is found after the restart");
    Ok(())
}
