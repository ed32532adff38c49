//! A leader is lost while it is written to: what that costs, and that it costs no data.
//!
//! Several writers put counters into one group, each counter under a key of its own, and note what
//! they were told: acknowledged, refused, or not known. In the middle of it the node that leads the
//! group is killed. Afterwards every acknowledged counter must be there; one whose outcome was not
//! known may be there or not, but nothing else may be; a refused one must not be there (W4).
//!
//! The *pause* is the longest time without an acknowledgement of any writer, ending after the kill.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_client::{Client, Consistency, MayHaveApplied, NodeId, RoutingTable};
use annulus_runtime::Env;
use annulus_types::{GroupId, ShardId};
use anyhow::{Context as _, anyhow};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use parking_lot::Mutex;

use crate::cluster::{LocalCluster, key_in};

const WRITERS: u32 = 8;
/// Writing before the kill, and after the first acknowledgement that follows it.
const CALM: Duration = Duration::from_secs(1);
/// How long a new leader is waited for.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// One put: longer than an election takes.
const PUT_LIMIT: Duration = Duration::from_secs(3);
/// One question to a node that may not be there yet.
const ASK_LIMIT: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Reads under way at once.
const AT_ONCE: usize = 32;

/// The group that is hurt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// A shard of it.
    pub(super) shard: ShardId,
    /// The group.
    pub(super) group: GroupId,
    /// The node that leads it.
    pub(super) leader: NodeId,
    /// The term in which it does.
    pub(super) term: u64,
}

/// Who leads the group of `key`, by the word of its own leader.
pub(super) async fn target(
    client: &Client,
    table: &RoutingTable,
    key: &str,
) -> anyhow::Result<Target> {
    let receipt = client.get(key.to_owned()).await.context("asking for the leader")?.receipt;
    let shard = table.shards.iter().find(|shard| shard.id == receipt.shard);
    let group = shard.with_context(|| format!("shard {} has no route", receipt.shard))?.group;
    Ok(Target { shard: receipt.shard, group, leader: receipt.node, term: receipt.term })
}

/// A counter that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counter {
    key: String,
    value: u64,
}

/// One acknowledgement: when its put began, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ack {
    began_us: u64,
    came_us: u64,
}

/// What the writers were told.
#[derive(Debug, Default)]
struct Told {
    acks: Vec<Ack>,
    acknowledged: Vec<Counter>,
    unknown: Vec<Counter>,
    refused: Vec<Counter>,
}

/// What the loss of the leader did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Puts that were acknowledged, in all and after the kill.
    pub(super) acknowledged: u64,
    /// Of these, the ones that began after the kill.
    pub(super) acknowledged_after: u64,
    /// Puts of unknown outcome.
    pub(super) unknown: u64,
    /// Of these, the ones that turned out to be applied.
    pub(super) unknown_applied: u64,
    /// Puts that were refused.
    pub(super) refused: u64,
    /// See the module, microseconds; absent when no acknowledgement came any more.
    pub(super) pause_us: Option<u64>,
    /// The node that leads now, and its term.
    pub(super) leader: Option<(NodeId, u64)>,
    /// Acknowledged counters that are not there, and other broken promises.
    pub(super) problems: Vec<String>,
}

/// Kills the leader of the target under load, and looks at what is left.
pub(super) async fn lose_leader(
    env: &Env,
    client: &Client,
    cluster: &mut LocalCluster,
    table: &RoutingTable,
    target: &Target,
) -> anyhow::Result<Outcome> {
    let tags: Vec<String> = (0..WRITERS)
        .map(|writer| {
            let prefix = format!("demo-writer-{writer}");
            key_in(table, &prefix, |shard| shard.group == target.group)
        })
        .collect::<Option<Vec<String>>>()
        .context("no key was found for the group")?;
    let told = Mutex::new(Told::default());
    let is_over = AtomicBool::new(false);
    let writers = join_all(tags.iter().map(|tag| write(env, client, tag, &told, &is_over)));
    let hurting = async {
        let killed = hurt(env, cluster, target.leader.0, &told).await;
        // Also when it failed: the writers wait for it.
        is_over.store(true, Ordering::Relaxed);
        killed
    };
    let (_, killed) = tokio::join!(writers, hurting);
    let killed_us = killed?;
    let told = told.into_inner();
    let mut outcome = Outcome {
        acknowledged: told.acknowledged.len() as u64,
        acknowledged_after: acks_begun_after(&told.acks, killed_us) as u64,
        unknown: told.unknown.len() as u64,
        refused: told.refused.len() as u64,
        pause_us: longest_pause(&told.acks, killed_us),
        ..Outcome::default()
    };
    verify(client, &told, &mut outcome).await;
    if let Some(tag) = tags.first() {
        match client.get(tag.clone()).await {
            Ok(found) => outcome.leader = Some((found.receipt.node, found.receipt.term)),
            Err(error) => outcome.problems.push(format!("no new leader answers: {error}")),
        }
    }
    Ok(outcome)
}

/// Puts counters, one after the other, until it is over.
async fn write(env: &Env, client: &Client, tag: &str, told: &Mutex<Told>, is_over: &AtomicBool) {
    let mut value: u64 = 0;
    while !is_over.load(Ordering::Relaxed) {
        value += 1;
        // The tag in braces decides where the key lives.
        let key = format!("{{{tag}}}:{value:06}");
        let began_us = env.clock.monotonic_us();
        let put = client.put(key.clone(), value.to_string()).deadline(PUT_LIMIT);
        let answer = put.await;
        let came_us = env.clock.monotonic_us();
        let counter = Counter { key, value };
        let is_refused = {
            let mut told = told.lock();
            match answer {
                Ok(_) => {
                    told.acks.push(Ack { began_us, came_us });
                    told.acknowledged.push(counter);
                    false
                }
                Err(error) if error.may_have_applied == MayHaveApplied::No => {
                    told.refused.push(counter);
                    true
                }
                Err(_) => {
                    told.unknown.push(counter);
                    false
                }
            }
        };
        if is_refused {
            // A refusal may come at once; so would the next.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Lets them write for a while, kills the node, and lets them write again. Returns when the node
/// was gone.
async fn hurt(
    env: &Env,
    cluster: &mut LocalCluster,
    node: u32,
    told: &Mutex<Told>,
) -> anyhow::Result<u64> {
    tokio::time::sleep(CALM).await;
    cluster.kill9(node).await?;
    let killed_us = env.clock.monotonic_us();
    let writes_again = async {
        while acks_begun_after(&told.lock().acks, killed_us) == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // When they do not, the missing pause tells.
    if tokio::time::timeout(RECOVERY_LIMIT, writes_again).await.is_ok() {
        tokio::time::sleep(CALM).await;
    }
    Ok(killed_us)
}

fn acks_begun_after(acks: &[Ack], moment_us: u64) -> usize {
    acks.iter().filter(|ack| ack.began_us >= moment_us).count()
}

/// The longest time between two acknowledgements of which the later belongs to a put that began
/// after `killed_us`, or came after it.
fn longest_pause(acks: &[Ack], killed_us: u64) -> Option<u64> {
    if acks_begun_after(acks, killed_us) == 0 {
        return None;
    }
    let mut came: Vec<u64> = acks.iter().map(|ack| ack.came_us).collect();
    came.sort_unstable();
    let pairs = came.windows(2).filter(|pair| pair[1] >= killed_us);
    pairs.map(|pair| pair[1] - pair[0]).max()
}

/// Reads every counter and compares it with what its writer was told.
async fn verify(client: &Client, told: &Told, outcome: &mut Outcome) {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Promise {
        Kept,
        Open,
        Refused,
    }
    let all = told
        .acknowledged
        .iter()
        .map(|counter| (counter, Promise::Kept))
        .chain(told.unknown.iter().map(|counter| (counter, Promise::Open)))
        .chain(told.refused.iter().map(|counter| (counter, Promise::Refused)));
    let mut reads = stream::iter(all)
        .map(|(counter, promise)| async move {
            (counter, promise, client.get(counter.key.clone()).await)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((counter, promise, answer)) = reads.next().await {
        let key = &counter.key;
        let value = match answer {
            Ok(found) => found.value,
            Err(error) => {
                outcome.problems.push(format!("{key} cannot be read: {error}"));
                continue;
            }
        };
        let expected = counter.value.to_string();
        let is_there = value.as_deref() == Some(expected.as_bytes());
        match (promise, value.is_some()) {
            (_, true) if !is_there => outcome.problems.push(format!("{key} has a strange value")),
            (Promise::Kept, false) => {
                outcome.problems.push(format!("{key} was acknowledged and is lost"));
            }
            (Promise::Refused, true) => {
                outcome.problems.push(format!("{key} was refused and is there"));
            }
            (Promise::Open, true) => outcome.unknown_applied += 1,
            (Promise::Kept, true) | (Promise::Open | Promise::Refused, false) => {}
        }
    }
}

/// Starts the node again and waits until it answers `any` reads of `key` itself. Returns how long
/// that took, microseconds.
pub(super) async fn bring_back(
    env: &Env,
    client: &Client,
    cluster: &mut LocalCluster,
    node: NodeId,
    key: &str,
) -> anyhow::Result<u64> {
    let began_us = env.clock.monotonic_us();
    cluster.spawn(node.0)?;
    let answers = async {
        loop {
            let get = client.get(key.to_owned()).consistency(Consistency::Any);
            match get.from_node(node).deadline(ASK_LIMIT).await {
                Ok(_) => return,
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    tokio::select! {
        () = answers => Ok(env.clock.monotonic_us().saturating_sub(began_us)),
        failure = cluster.first_end() => Err(failure),
        () = tokio::time::sleep(RECOVERY_LIMIT) => {
            Err(anyhow!("node {node} did not answer within {} s", RECOVERY_LIMIT.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(times: &[(u64, u64)]) -> Vec<Ack> {
        times
            .iter()
            .map(|(began_us, came_us)| Ack { began_us: *began_us, came_us: *came_us })
            .collect()
    }

    #[test]
    fn the_pause_is_the_longest_that_ends_after_the_kill() {
        // A longer one before the kill, and out of order, as several writers note them.
        let times = acks(&[(900, 1000), (0, 10), (1000, 1020), (1030, 1500), (1510, 1550)]);
        assert_eq!(longest_pause(&times, 1025), Some(480));
        // An answer on its way when the node died is no sign of life.
        let silent = acks(&[(0, 10), (10, 30)]);
        assert_eq!(longest_pause(&silent, 20), None);
        assert_eq!(longest_pause(&[], 0), None);
        assert_eq!(acks_begun_after(&times, 1025), 2);
    }
}
