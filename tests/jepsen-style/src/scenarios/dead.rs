//! A node killed for good is replaced without a person, and disturbs nobody when it comes back after all.
//!
//! Under load one of four nodes is killed; after the setting `down_after_ms` every group gets three live
//! members on the other three. Then the node returns, in two runs in both orders: with an empty folder,
//! which is a new life of it and gets a share again, and with the folder that it was killed with.
//!
//! # Bounds
//!
//! - No operation of the load fails, no answer is wrong.
//! - After each step the cluster comes to rest: three live members per group, seats level, every group led
//!   by its home, no moves, and no node holds a replica that nobody gave it, open or closed.
//! - The old folder changes no leader and no term of any group, the manager's own included. Once a new
//!   life was admitted (N1), the process on the old folder ends by itself, each time that it is started.
//!   Before that the folder is the node's life still: then its replicas, whose seats others have by now,
//!   are gone in the end (H4).
//!
//! While the old folder is started moves are paused: they change leaders rightly.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use annulus_client::{Client, NodeState, SettingsChange, StatusReply};
use annulus_runtime::{Env, Random};
use anyhow::{Context, Result, ensure};

use super::seats;
use super::steady::{Shape, Steady};
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;

const NODES: u16 = 4;
/// Groups per node: a handful of moves for each return.
const LANES: u32 = 2;
/// Members of a group.
const MEMBERS: usize = 3;
const DOWN_AFTER_MS: u64 = 10_000;
/// For everything that has to move after a step.
const MOVES: Duration = Duration::from_secs(240);
/// Between two looks at a node that returns: each asks the whole cluster.
const LOOK: Duration = Duration::from_millis(50);
/// Names of folders that are put aside.
const OLD: &str = "old";
const FORMER: &str = "former";
/// Leaves the machine time to spare: elections for want of it would look like a disturbance.
const LOAD: Shape = Shape {
    clients: 8,
    keys: 32,
    deadline: Duration::from_secs(5),
    pace: Some(Duration::from_millis(20)),
    seed: 0,
};

/// In which order the folders come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    WipedFirst,
    OldFirst,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WipedFirst => "with an empty folder, then with its old one",
            Self::OldFirst => "with its old folder, then with an empty one",
        })
    }
}

/// What became of a process that was started on an old folder.
enum Reception {
    /// It ended by itself.
    Refused(ExitStatus),
    /// It is a node of the cluster, and holds nothing that others have.
    TakenIn,
}

/// Runs the scenario in both orders, each on a cluster of its own.
///
/// # Errors
/// When a bound does not hold, or the run itself fails.
pub async fn run(program: &Path, seed: u64) -> Result<()> {
    let random = Random::seeded(seed);
    for order in [Order::WipedFirst, Order::OldFirst] {
        let node = u16::try_from(random.below(u64::from(NODES)) + 1)?;
        println!("node {node} is killed for good and returns {order}");
        let mut cluster = Cluster::start_in_lanes(program, NODES, "dead", LANES).await?;
        let outcome = Box::pin(one(&mut cluster, order, node, seed)).await;
        if outcome.is_err() {
            cluster.keep();
        }
        outcome?;
    }
    Ok(())
}

async fn one(cluster: &mut Cluster, order: Order, node: u16, seed: u64) -> Result<()> {
    let env = Env::real()?;
    let client = cluster.client().await?;
    let settings = SettingsChange { down_after_ms: Some(DOWN_AFTER_MS), ..Default::default() };
    client.admin().change_settings(settings, false).await?;
    let everybody: Vec<u32> = cluster.nodes().map(u32::from).collect();
    let others: Vec<u32> =
        everybody.iter().copied().filter(|other| *other != u32::from(node)).collect();
    at_rest(&client, &everybody).await?;
    let mut load = Steady::start(&env, cluster, Shape { seed, ..LOAD }).await?;
    load.more(500).await?;

    cluster.kill(node)?;
    let killed_us = env.clock.monotonic_us();
    wait_until("every group has three live members again", MOVES, || async {
        client.status(false).await.is_ok_and(|status| has_live_members(&status, &others))
    })
    .await?;
    let mended_ms = (env.clock.monotonic_us() - killed_us) / 1_000;
    println!("every group has three live members again {mended_ms} ms after the kill");
    at_rest(&client, &others).await?;
    load.none_failed()?;

    match order {
        Order::WipedFirst => Box::pin(wiped_first(cluster, &client, node, &everybody)).await?,
        Order::OldFirst => Box::pin(old_first(cluster, &client, node, &everybody)).await?,
    }
    load.more(500).await?;
    load.stop().await?;
    load.none_failed()?;
    let keys = load.check(&client).await?;
    println!("{} operations answered, 0 failed; {keys} keys read back, all right", load.answered());
    Ok(())
}

async fn wiped_first(
    cluster: &mut Cluster,
    client: &Client,
    node: u16,
    everybody: &[u32],
) -> Result<()> {
    cluster.put_aside(node, OLD)?;
    cluster.start_node(node)?;
    at_rest(client, everybody).await?;
    println!("the empty folder was let in as a new life and has its share");

    client.admin().pause_rebalance(true, false).await?;
    stop(cluster, client, node).await?;
    cluster.put_aside(node, FORMER)?;
    cluster.put_back(node, OLD)?;
    let Reception::Refused(status) = old_returns(cluster, client, node).await? else {
        anyhow::bail!("node {node} was taken in with a folder whose life is over");
    };
    println!("the old folder was refused, its process ended: {status}");
    cluster.start_node(node)?;
    let again = ended(cluster, node).await?;
    ensure!(!again.success(), "a folder that was refused ended with {again} at its next start");

    // The node is gone for good once more.
    client.admin().pause_rebalance(false, false).await?;
    let others: Vec<u32> =
        everybody.iter().copied().filter(|other| *other != u32::from(node)).collect();
    at_rest(client, &others).await
}

async fn old_first(
    cluster: &mut Cluster,
    client: &Client,
    node: u16,
    everybody: &[u32],
) -> Result<()> {
    client.admin().pause_rebalance(true, false).await?;
    match old_returns(cluster, client, node).await? {
        Reception::Refused(status) => {
            println!("the old folder was refused, its process ended: {status}");
            client.admin().pause_rebalance(false, false).await?;
        }
        Reception::TakenIn => {
            println!("the old folder was taken in; nothing of what it held is left");
            client.admin().pause_rebalance(false, false).await?;
            at_rest(client, everybody).await?;
            stop(cluster, client, node).await?;
        }
    }
    cluster.put_aside(node, OLD)?;
    cluster.start_node(node)?;
    at_rest(client, everybody).await?;
    println!("the empty folder was let in as a new life and has its share");
    Ok(())
}

/// Stops a node in order and waits until the manager knows.
async fn stop(cluster: &mut Cluster, client: &Client, node: u16) -> Result<()> {
    cluster.stop(node).await?;
    wait_until("the manager finds the stopped node down", READY, || async {
        let Ok(overview) = client.admin().overview().await else { return false };
        let mut nodes = overview.nodes.iter();
        nodes.any(|known| known.node == u32::from(node) && known.state() == NodeState::Down)
    })
    .await
}

/// Starts a node on an old folder. What becomes of it, when that has changed no leader and no term.
async fn old_returns(cluster: &mut Cluster, client: &Client, node: u16) -> Result<Reception> {
    let before = leaders(client).await?;
    cluster.start_node(node)?;
    let reception = reception(cluster, client, node).await?;
    let after = leaders(client).await?;
    ensure!(
        before == after,
        "leaders and terms by group were {before:?} before the old folder came, and are {after:?}"
    );
    println!("leaders and terms of {} groups, the manager's included, are the same", after.len());
    Ok(reception)
}

async fn reception(cluster: &mut Cluster, client: &Client, node: u16) -> Result<Reception> {
    let deadline = tokio::time::Instant::now() + READY;
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        if let Some(status) = cluster.ended(node)? {
            ensure!(!status.success(), "node {node} ended by itself with {status}");
            return Ok(Reception::Refused(status));
        }
        let status = client.status(false).await;
        if status.is_ok_and(|status| holds_its_own_only(&status, u32::from(node))) {
            return Ok(Reception::TakenIn);
        }
        let is_late = tokio::time::Instant::now() >= deadline;
        ensure!(!is_late, "node {node} was neither refused nor taken in within {READY:?}");
    }
}

async fn ended(cluster: &mut Cluster, node: u16) -> Result<ExitStatus> {
    let mut status = None;
    wait_until("the node ends by itself", READY, || {
        status = cluster.ended(node).ok().flatten();
        std::future::ready(status.is_some())
    })
    .await?;
    status.context("it has ended without a status")
}

async fn at_rest(client: &Client, nodes: &[u32]) -> Result<()> {
    wait_until("the cluster is at rest", MOVES, || async {
        client.status(false).await.is_ok_and(|status| is_at_rest(&status, nodes))
    })
    .await
}

/// Whether the node that answered holds the table that the manager's leader tells.
fn has_newest_table(status: &StatusReply) -> bool {
    let version = status.table.as_ref().map(|table| table.version);
    version.is_some() && version == status.overview.as_ref().map(|overview| overview.table_version)
}

/// Whether the node says that it holds the replica, and that it works.
fn is_held(status: &StatusReply, node: u32, group: u64, replica: u64) -> bool {
    let own =
        status.nodes.iter().filter(|own| own.info.as_ref().is_some_and(|info| info.id == node));
    own.flat_map(|own| &own.replicas)
        .any(|held| held.group == group && held.replica == replica && held.halted.is_empty())
}

/// Whether every group has all its members, as voters that work, on `nodes`.
fn has_live_members(status: &StatusReply, nodes: &[u32]) -> bool {
    let (Some(table), Some(overview)) = (&status.table, &status.overview) else { return false };
    let groups = table.groups.iter().map(|group| (group.id, &group.members));
    has_newest_table(status)
        && groups.chain([(0, &overview.manager)]).all(|(group, members)| {
            members.len() == MEMBERS
                && members.iter().all(|member| {
                    !member.learner
                        && nodes.contains(&member.node)
                        && is_held(status, member.node, group, member.replica)
                })
        })
}

/// See the module.
fn is_at_rest(status: &StatusReply, nodes: &[u32]) -> bool {
    let (Some(table), Some(overview)) = (&status.table, &status.overview) else { return false };
    let known = overview.nodes.iter().filter(|known| nodes.contains(&known.node));
    let up = known.filter(|known| known.state() == NodeState::Up);
    let seats: Vec<u32> = up.map(|known| known.seats).collect();
    let is_level = match (seats.iter().min(), seats.iter().max()) {
        (Some(least), Some(most)) => most - least <= 1,
        _ => false,
    };
    let leaders = open_gates(status);
    let is_led = |group: u64, home: u32| leaders.get(&group).is_some_and(|(node, _)| *node == home);
    seats.len() == nodes.len()
        && is_level
        && overview.moves.is_empty()
        && has_live_members(status, nodes)
        && nodes
            .iter()
            .all(|node| seats::held(status, *node) == seats::meant(status, overview, *node))
        && leaders.contains_key(&0)
        && table.groups.iter().all(|group| is_led(group.id, group.home))
}

/// Whether the manager counts the node as up, and its folder holds no replica that its group has given away.
fn holds_its_own_only(status: &StatusReply, node: u32) -> bool {
    let Some(overview) = &status.overview else { return false };
    let is_up =
        overview.nodes.iter().any(|known| known.node == node && known.state() == NodeState::Up);
    let mut nodes = status.nodes.iter();
    let has_answered = nodes.any(|own| own.info.as_ref().is_some_and(|info| info.id == node));
    is_up
        && has_newest_table(status)
        && has_answered
        && seats::held(status, node).is_subset(&seats::meant(status, overview, node))
}

/// By group: the node whose gate is open, and its term.
fn open_gates(status: &StatusReply) -> BTreeMap<u64, (u32, u64)> {
    let mut open: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    for node in &status.nodes {
        let id = node.info.as_ref().map_or(0, |info| info.id);
        for replica in node.replicas.iter().filter(|replica| replica.gate_open) {
            // Nodes tell at different moments: the later leader counts.
            let leads = open.entry(replica.group).or_insert((id, replica.term));
            if leads.1 < replica.term {
                *leads = (id, replica.term);
            }
        }
    }
    open
}

/// Leader and term of every group, the manager's included, once all have a leader whose gate is open.
async fn leaders(client: &Client) -> Result<BTreeMap<u64, (u32, u64)>> {
    let seen = RefCell::new(BTreeMap::new());
    wait_until("every group has a leader whose gate is open", READY, || async {
        let Ok(status) = client.status(false).await else { return false };
        let open = open_gates(&status);
        let is_led = |group: u64| open.contains_key(&group);
        let table = status.table.as_ref();
        let are_all = table.is_some_and(|table| table.groups.iter().all(|group| is_led(group.id)));
        let are_all = are_all && is_led(0);
        seen.replace(open);
        are_all
    })
    .await?;
    Ok(seen.into_inner())
}
