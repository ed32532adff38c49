//! The data path never needs the manager: all managers are killed under load, and later, while they are
//! still down, all storage nodes at once.
//!
//! Three nodes have the manager role alone, three others the storage role alone. Bounds: no operation fails
//! while the storage nodes run (deadline 5 s each); a client that begins then finds its way; killed all at
//! once and started again, every group serves a write within 5 s of the first start; nothing acknowledged is
//! lost. Operations that meet the time without any storage node may fail, and are counted: those that began
//! before every group served, which have ended one deadline later. After that none fails any more.

use std::path::Path;
use std::time::Duration;

use annulus_client::{Client, RoutingTable};
use annulus_runtime::Env;
use annulus_types::{GroupId, token_of};
use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

use super::steady::{Shape, Steady};
use crate::cluster::{Cluster, Layout, READY};
use crate::process::wait_until;

/// Of nodes 1 to 6.
const ROLES: [&str; 6] = ["manager", "manager", "manager", "storage", "storage", "storage"];
const MANAGERS: [u16; 3] = [1, 2, 3];
const STORAGE: [u16; 3] = [4, 5, 6];
/// Deadline of an operation of the load.
const DEADLINE: Duration = Duration::from_secs(5);
/// What an operation may end late.
const LATENESS: Duration = Duration::from_millis(500);
/// Keys of each client: all clients' together meet every group.
const KEYS: u64 = 64;
/// From the start of the storage nodes until the last group has served.
const SERVING_MOST_MS: u64 = 5_000;
/// Names tried for a key of a group.
const NAMES_MOST: u32 = 100_000;

/// Runs the scenario; `length`: how long there is no manager before the storage nodes are killed.
///
/// # Errors
/// When a bound does not hold, or the run itself fails.
pub async fn run(program: &Path, length: Duration, clients: u64, seed: u64) -> Result<()> {
    let roles = ROLES.map(str::to_owned).to_vec();
    let layout = Layout { nodes: 6, roles, ..Layout::default() };
    let mut cluster = Cluster::start_as(program, "managerless", &layout).await?;
    let shape = Shape { clients, keys: KEYS, deadline: DEADLINE, pace: None, seed };
    let outcome = without_managers(&mut cluster, length, shape).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn without_managers(cluster: &mut Cluster, length: Duration, shape: Shape) -> Result<()> {
    let env = Env::real()?;
    let table = cluster.client().await?.routes().await?;
    let mut members = table.groups.iter().flat_map(|group| &group.members);
    let is_storage =
        members.all(|member| STORAGE.iter().any(|node| u32::from(*node) == member.node.0));
    ensure!(is_storage, "a node without the storage role has a replica: {:?}", table.groups);

    let mut load = Steady::start(&env, cluster, shape).await?;
    load.more(1_000).await?;
    let before = load.answered();
    for node in MANAGERS {
        cluster.kill(node)?;
    }
    passed(&env, length).await?;
    let client = cluster.client().await?;
    let table = client.routes().await?;
    let keys = key_of_each_group(&table)?;
    write_each(&env, &client, &keys).await?;
    load.none_failed()?;
    println!(
        "{} s without a manager: {} operations answered, 0 failed; a new client serves itself",
        length.as_secs(),
        load.answered() - before
    );

    // Nobody else runs.
    cluster.kill_all()?;
    let started_us = env.clock.monotonic_us();
    for node in STORAGE {
        cluster.start_node(node)?;
    }
    let served = write_each(&env, &client, &keys).await?;
    let after_ms = |at_us: u64| at_us.saturating_sub(started_us) / 1_000;
    let first_ms = served.iter().min().copied().map_or(0, after_ms);
    let last_ms = served.iter().max().copied().map_or(0, after_ms);
    println!(
        "all storage nodes killed and started, no manager: the first of {} groups served a write after \
         {first_ms} ms, the last after {last_ms} ms",
        keys.len()
    );
    ensure!(last_ms <= SERVING_MOST_MS, "serving took {last_ms} ms, limit {SERVING_MOST_MS} ms");

    // What met the time without storage nodes has ended by then.
    passed(&env, DEADLINE + LATENESS).await?;
    let failed = load.failed();
    load.more(1_000).await?;
    load.stop().await?;
    let since = load.failed() - failed;
    ensure!(since == 0, "{since} operations failed that began after every group had served");
    let keys = load.check(&client).await?;
    println!(
        "{} operations answered in all, {} failed while all storage nodes were down; {keys} keys read back, \
         nothing acknowledged is lost",
        load.answered(),
        load.failed()
    );
    Ok(())
}

/// Waits until so much time has passed.
async fn passed(env: &Env, span: Duration) -> Result<()> {
    let end_us = env.clock.monotonic_us() + u64::try_from(span.as_micros())?;
    wait_until("the time is over", span + READY, || {
        std::future::ready(env.clock.monotonic_us() >= end_us)
    })
    .await
}

/// A key in each group.
fn key_of_each_group(table: &RoutingTable) -> Result<Vec<String>> {
    let group_of =
        |key: &String| -> Option<GroupId> { Some(table.shard_of(token_of(key.as_bytes()))?.group) };
    let mut keys = Vec::new();
    for group in &table.groups {
        let mut names = (0..NAMES_MOST).map(|n| format!("served-{n}"));
        let key = names.find(|key| group_of(key) == Some(group.id));
        ensure!(key.is_some(), "no key of group {} was found", group.id);
        keys.extend(key);
    }
    Ok(keys)
}

/// Writes all keys at once. When each of the writes was acknowledged, microseconds of the clock.
async fn write_each(env: &Env, client: &Client, keys: &[String]) -> Result<Vec<u64>> {
    let writes = keys.iter().map(|key| async move {
        client.put(key.clone(), "served").deadline(READY).await?;
        anyhow::Ok(env.clock.monotonic_us())
    });
    try_join_all(writes).await
}
