//! Every mutation takes effect once, although one reply in three is lost after it was applied.
//!
//! Clients add 1 to a few counters over networks that lose replies ([`super::lossy`]); they repeat by
//! themselves, through whatever node they find. Meanwhile a node is drained, a leader is killed and started
//! again, and a leadership is handed over, one after the other at a quarter, half and three quarters of the
//! increments; increments go on until that is done, so there may be more than were asked for.
//!
//! # Bounds
//!
//! - No call fails or stays unknown (deadline 30 s each).
//! - Each counter is exactly the number of increments that were sent to it, and each of them was told
//!   another sum.
//! - At least one reply in five was lost (a few hundred thrown dice stay above that), one member of a
//!   counter's group replaced, one leader of one changed: else the run showed nothing.
//!
//! A client whose connection broke leaves that node alone for a second, so each has several handles, each
//! with connections and writers of its own and one increment under way.
//!
//! What it cannot show: that another mutation under a used id is refused. The client library never sends
//! one; `annulus/tests/once.rs` does.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{
    Client, Counted, MoveKind, MoveState, NodeChange, NodeChangeKind, NodeId, RoutingTable,
};
use annulus_runtime::{Env, Random};
use annulus_types::{GroupId, MemberRole, token_of};
use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;

use super::lossy::{Losses, LossyNetwork};
use crate::cluster::{Cluster, READY};
use crate::crew::Crew;
use crate::process::wait_until;

const NODES: u16 = 4;
/// Groups per node: a drain takes few moves.
const LANES: u32 = 1;
const COUNTERS: u64 = 32;
const HANDLES: u64 = 8;
/// Deadline of an increment.
const DEADLINE: Duration = Duration::from_secs(30);
/// One reply in so many is lost.
const ONE_IN: u64 = 3;
/// At least one in so many must have been.
const ONE_IN_MOST: u64 = 5;
/// For a drain, or a leadership that is handed over.
const MOVES: Duration = Duration::from_secs(240);
/// For all increments: if nothing goes on any more, a call fails long before.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Increments that show that the cluster goes on without the killed node.
const WITHOUT: u64 = 100;

/// How the scenario looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub program: PathBuf,
    /// Increments, at least.
    pub increments: u64,
    /// Clients, each with eight handles.
    pub clients: u64,
    /// Decides counters, losses, and whom faults hit; not what the machine does.
    pub seed: u64,
}

#[derive(Debug)]
struct Counter {
    key: String,
    group: GroupId,
    sent: AtomicU64,
    /// What increments were told.
    sums: Mutex<BTreeSet<i64>>,
    /// Of the leaders that answered.
    terms: Mutex<BTreeSet<u64>>,
}

/// Shared by all handles.
#[derive(Debug)]
struct Work {
    increments: u64,
    counters: Vec<Counter>,
    claimed: AtomicU64,
    done: AtomicU64,
    attempts: AtomicU64,
    /// Every fault is over.
    is_calm: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Work {
    fn new(table: &RoutingTable, increments: u64) -> Result<Self> {
        let counter = |n: u64| {
            let key = format!("counter-{n}");
            let group = table.shard_of(token_of(key.as_bytes()))?.group;
            let (sums, terms) = (Mutex::default(), Mutex::default());
            Some(Counter { key, group, sent: AtomicU64::new(0), sums, terms })
        };
        let counters: Option<Vec<Counter>> = (0..COUNTERS).map(counter).collect();
        Ok(Self {
            increments,
            counters: counters.context("the routing table is empty")?,
            claimed: AtomicU64::new(0),
            done: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            is_calm: AtomicBool::new(false),
            failures: Mutex::default(),
        })
    }

    fn groups(&self) -> BTreeSet<GroupId> {
        self.counters.iter().map(|counter| counter.group).collect()
    }

    /// Whether another increment shall be sent.
    fn goes_on(&self) -> bool {
        let is_missing = self.claimed.fetch_add(1, Ordering::Relaxed) < self.increments;
        !self.has_failed() && (is_missing || !self.is_calm.load(Ordering::Relaxed))
    }

    fn has_failed(&self) -> bool {
        !self.failures.lock().is_empty()
    }

    fn fail(&self, failure: String) {
        self.failures.lock().push(failure);
    }

    fn take(&self, counter: &Counter, counted: &Counted) {
        self.attempts.fetch_add(u64::from(counted.attempts), Ordering::Relaxed);
        counter.terms.lock().insert(counted.receipt.term);
        let is_new = counted.sum().map(|sum| counter.sums.lock().insert(sum));
        match is_new {
            Some(true) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
            Some(false) => self.fail(format!("{}: {counted:?} was answered twice", counter.key)),
            None => self.fail(format!("{}: {counted:?}", counter.key)),
        }
    }

    fn none_failed(&self) -> Result<()> {
        let failures = self.failures.lock();
        ensure!(
            failures.is_empty(),
            "{} increments failed: {}",
            failures.len(),
            failures.join("; ")
        );
        Ok(())
    }

    /// Waits until so many increments are done.
    async fn reach(&self, done: u64) -> Result<()> {
        wait_until("increments are done", LONGEST, || {
            let is_there = self.done.load(Ordering::Relaxed) >= done;
            std::future::ready(is_there || self.has_failed())
        })
        .await?;
        self.none_failed()
    }

    /// Leaders of the counters' groups that answered after the first one of each.
    fn leader_changes(&self) -> usize {
        let led = self.counters.iter().flat_map(|counter| {
            let (group, terms) = (counter.group, counter.terms.lock().clone());
            terms.into_iter().map(move |term| (group, term))
        });
        let led: BTreeSet<(GroupId, u64)> = led.collect();
        led.len().saturating_sub(self.groups().len())
    }
}

async fn count(client: Client, work: Arc<Work>, random: Random) {
    while work.goes_on() {
        let place = usize::try_from(random.below(COUNTERS)).unwrap_or(0);
        let Some(counter) = work.counters.get(place) else { return };
        counter.sent.fetch_add(1, Ordering::Relaxed);
        match client.incr(counter.key.clone(), 1).deadline(DEADLINE).await {
            Ok(counted) => work.take(counter, &counted),
            Err(error) => work.fail(format!("{}: {error}", counter.key)),
        }
    }
}

/// Runs the scenario.
///
/// # Errors
/// When a bound does not hold, or the run itself fails.
pub async fn run(options: &Options) -> Result<()> {
    let mut cluster = Cluster::start_in_lanes(&options.program, NODES, "once", LANES).await?;
    let outcome = drive(&mut cluster, options).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn drive(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let env = Env::real()?;
    let client = cluster.client().await?;
    let table = client.routes().await?;
    let work = Arc::new(Work::new(&table, options.increments)?);
    let losses = Arc::new(Losses::default());
    let crew = start(&env, cluster, options, &work, &losses).await?;
    let reseats = hurt(cluster, &client, &work, &Random::seeded(options.seed)).await?;
    work.is_calm.store(true, Ordering::Relaxed);
    crew.ended().await?;
    work.none_failed()?;
    let done = work.done.load(Ordering::Relaxed);
    let (replies, lost) = (losses.replies(), losses.lost());
    let changes = work.leader_changes();
    println!("increments: {done} on {COUNTERS} counters, 0 failed or unknown");
    println!("attempts: {}", work.attempts.load(Ordering::Relaxed));
    println!("replies: {replies}, of which {lost} were lost with their connection");
    println!("members of the counters' groups replaced: {reseats}; leader changes seen: {changes}");
    exact(&client, &work).await?;
    println!("every counter is the number of its increments, each of which was told another sum");
    ensure!(lost * ONE_IN_MOST >= replies, "only {lost} of {replies} replies were lost");
    ensure!(reseats > 0 && changes > 0, "{reseats} reseats, {changes} leader changes");
    Ok(())
}

/// Starts all handles.
async fn start(
    env: &Env,
    cluster: &Cluster,
    options: &Options,
    work: &Arc<Work>,
    losses: &Arc<Losses>,
) -> Result<Crew> {
    let random = Random::seeded(options.seed.wrapping_add(1));
    let mut clients = Vec::new();
    for _ in 0..options.clients.saturating_mul(HANDLES) {
        let dice = Random::seeded(random.u64());
        let network = LossyNetwork::new(Arc::clone(&env.network), dice, ONE_IN, Arc::clone(losses));
        let building = Client::builder().endpoints(cluster.endpoints());
        clients.push(building.network(Arc::new(network)).connect().await?);
    }
    losses.arm();
    let mut crew = Crew::new(&env.tasks);
    for client in clients {
        crew.add(count(client, Arc::clone(work), Random::seeded(random.u64())));
    }
    Ok(crew)
}

/// The faults, each when so many increments are done. Members of the counters' groups that were replaced.
async fn hurt(
    cluster: &mut Cluster,
    client: &Client,
    work: &Work,
    random: &Random,
) -> Result<usize> {
    work.reach(work.increments / 4).await?;
    let before = reseats(client, work).await?;
    let drained = u16::try_from(random.below(u64::from(NODES)) + 1)?;
    drain(client, u32::from(drained)).await?;
    let reseats = reseats(client, work).await?.saturating_sub(before);
    println!("node {drained} is drained");

    work.reach(work.increments / 2).await?;
    let place = usize::try_from(random.below(COUNTERS))?;
    let counter = work.counters.get(place).context("there is no such counter")?;
    let killed = cluster.leader_of(client, &counter.key).await?;
    cluster.kill(killed)?;
    work.reach(work.done.load(Ordering::Relaxed) + WITHOUT).await?;
    cluster.start_node(killed)?;
    cluster.wait_ready().await?;
    println!("node {killed} is killed and started again");

    work.reach(work.increments / 4 * 3).await?;
    let to = move_leader(client, counter.group).await?;
    println!("group {} is handed to node {to}", counter.group);
    Ok(reseats)
}

/// Replaced members of the counters' groups, as far back as moves are kept.
async fn reseats(client: &Client, work: &Work) -> Result<usize> {
    let groups = work.groups();
    let moves = client.admin().moves(true).await?;
    let done = moves.iter().filter(|step| {
        step.kind() == MoveKind::Reseat
            && step.state() == MoveState::Done
            && groups.contains(&GroupId(step.group))
    });
    Ok(done.count())
}

/// Takes everything off a node.
async fn drain(client: &Client, node: u32) -> Result<()> {
    let change = NodeChange { node, change: Some(NodeChangeKind::Draining(true)) };
    client.admin().change_node(change, false).await?;
    wait_until("the node is drained and nothing moves", MOVES, || async {
        let Ok(overview) = client.admin().overview().await else { return false };
        let mut nodes = overview.nodes.iter();
        overview.moves.is_empty() && nodes.any(|known| known.node == node && known.seats == 0)
    })
    .await
}

/// Has the leadership of a group handed to another member, and waits until that leads.
async fn move_leader(client: &Client, group: GroupId) -> Result<NodeId> {
    let wanted = Cell::new(None);
    // Refused as long as the manager has not heard of the member since it was killed.
    wait_until("the manager takes the change of a leader", MOVES, || async {
        wanted.set(hand_over(client, group).await);
        wanted.get().is_some()
    })
    .await?;
    wait_until("another member leads the group", MOVES, || async {
        let Ok(table) = client.routes().await else { return false };
        table.group(group).is_some_and(|route| route.leader == wanted.get())
    })
    .await?;
    wanted.get().context("nobody was chosen to lead")
}

async fn hand_over(client: &Client, group: GroupId) -> Option<NodeId> {
    let table = client.routes().await.ok()?;
    let route = table.group(group)?;
    let leader = route.leader?;
    let mut voters = route.members.iter().filter(|member| member.role == MemberRole::Voter);
    let to = voters.find(|member| member.node != leader)?.node;
    client.admin().deadline(READY).move_leader(group.0, to.0, false).await.ok()?;
    Some(to)
}

/// Compares what is there with what was sent.
async fn exact(client: &Client, work: &Work) -> Result<()> {
    for counter in &work.counters {
        let found = client.get(counter.key.clone()).deadline(DEADLINE).await?;
        let text = found.value.map(|value| String::from_utf8(value.to_vec())).transpose()?;
        let value = text.map_or(Ok(0), |text| text.parse::<u64>())?;
        let sent = counter.sent.load(Ordering::Relaxed);
        let told = counter.sums.lock().len();
        ensure!(
            value == sent && told as u64 == sent,
            "{}: {sent} increments were sent, {told} were told a sum, {value} is there",
            counter.key
        );
    }
    Ok(())
}
