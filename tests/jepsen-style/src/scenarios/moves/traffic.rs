//! What the moves of seats have cost the network, and the least that would have done, from the nodes'
//! counters.
//!
//! Beside that stands an estimate that no new replica has a part in: the live keys and values of each group,
//! as its members told before a step, once for each replica that the group has after the step and had not
//! before. It leaves out whatever else a state has rows for, and replicas that came and went within a step;
//! were it far below what was needed, the replicas would count too much.
//!
//! Counters end with their process: a node that leaves is read before it goes ([`Traffic::leaves`]), and
//! in runs that kill processes nothing of this is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Add, Sub};

use annulus_client::StatusReply;
use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::load::{metrics, sum};

/// Bytes that were sent may be at most this much of what was needed, percent.
const SENT_PERCENT_MOST: u64 = 125;

/// Bytes, summed over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    state_sent: u64,
    log_sent: u64,
    state_needed: u64,
    log_needed: u64,
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            state_sent: self.state_sent + other.state_sent,
            log_sent: self.log_sent + other.log_sent,
            state_needed: self.state_needed + other.state_needed,
            log_needed: self.log_needed + other.log_needed,
        }
    }
}

impl Sub for Bytes {
    type Output = Self;

    /// What came since `other` was read. A counter that began anew counts from zero.
    fn sub(self, other: Self) -> Self {
        Self {
            state_sent: self.state_sent.saturating_sub(other.state_sent),
            log_sent: self.log_sent.saturating_sub(other.log_sent),
            state_needed: self.state_needed.saturating_sub(other.state_needed),
            log_needed: self.log_needed.saturating_sub(other.log_needed),
        }
    }
}

impl Bytes {
    fn sent(self) -> u64 {
        self.state_sent + self.log_sent
    }

    fn needed(self) -> u64 {
        self.state_needed + self.log_needed
    }

    /// Whether it is known what was needed, and not much more was sent.
    pub(super) fn are_in_bounds(self) -> bool {
        self.needed() > 0 && self.sent() * 100 <= self.needed() * SENT_PERCENT_MOST
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state_sent, log_sent, state_needed, log_needed } = *self;
        let ratio = self.sent() as f64 / self.needed().max(1) as f64;
        write!(
            f,
            "{} bytes sent ({state_sent} of state, {log_sent} of log), {} needed ({state_needed} + \
             {log_needed}): {ratio:.3} times",
            self.sent(),
            self.needed()
        )
    }
}

/// Groups at one moment.
#[derive(Clone, Debug, Default)]
struct Scene {
    /// Live keys and values of a group.
    bytes: BTreeMap<u64, u64>,
    replicas: BTreeMap<u64, BTreeSet<u64>>,
}

impl Scene {
    fn of(status: &StatusReply) -> Self {
        let mut scene = Self::default();
        let mut shards: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for shard in status.nodes.iter().flat_map(|node| &node.shards) {
            let bytes = shards.entry((shard.group, shard.shard)).or_default();
            *bytes = shard.bytes.max(*bytes);
        }
        for ((group, _), bytes) in shards {
            *scene.bytes.entry(group).or_default() += bytes;
        }
        for group in status.table.iter().flat_map(|table| &table.groups) {
            let replicas = group.members.iter().map(|member| member.replica).collect();
            scene.replicas.insert(group.id, replicas);
        }
        scene
    }

    /// Live bytes of each group for each of its replicas that are there in `after` only.
    fn copied_by(&self, after: &Self) -> u64 {
        let copied = after.replicas.iter().map(|(group, replicas)| {
            let before = self.replicas.get(group);
            let new = replicas.iter().filter(|id| !before.is_some_and(|it| it.contains(*id)));
            new.count() as u64 * self.bytes.get(group).copied().unwrap_or(0)
        });
        copied.sum()
    }
}

/// See the module.
pub(super) struct Traffic {
    /// What counters stood at when the story began.
    before: Bytes,
    /// Of the nodes that are gone.
    gone: Bytes,
    /// Before the present step.
    scene: Scene,
    live_bytes: u64,
}

impl Traffic {
    /// Begins with what these nodes have counted so far.
    pub(super) async fn begin(cluster: &Cluster, nodes: &[u32]) -> Result<Self> {
        let (before, scene) = (read(cluster, nodes).await?, look(cluster).await?);
        Ok(Self { before, gone: Bytes::default(), scene, live_bytes: 0 })
    }

    /// A step is over, and nothing moves; the next one begins.
    pub(super) async fn step_over(&mut self, cluster: &Cluster) -> Result<()> {
        let after = look(cluster).await?;
        self.live_bytes += self.scene.copied_by(&after);
        self.scene = after;
        Ok(())
    }

    /// The estimate of what was needed, in words.
    pub(super) fn live(&self) -> String {
        format!("{} bytes of live keys and values in the groups of new replicas", self.live_bytes)
    }

    /// A node is about to go, and will count nothing more.
    pub(super) async fn leaves(&mut self, cluster: &Cluster, node: u32) -> Result<()> {
        self.gone = self.gone + read(cluster, &[node]).await?;
        Ok(())
    }

    /// Since the beginning, with these nodes being there now.
    pub(super) async fn so_far(&self, cluster: &Cluster, nodes: &[u32]) -> Result<Bytes> {
        Ok(read(cluster, nodes).await? + self.gone - self.before)
    }
}

async fn look(cluster: &Cluster) -> Result<Scene> {
    Ok(Scene::of(&cluster.client().await?.status(false).await?))
}

async fn read(cluster: &Cluster, nodes: &[u32]) -> Result<Bytes> {
    let mut all = Bytes::default();
    for node in nodes {
        let addr = cluster.http(u16::try_from(*node)?);
        let told = metrics(&addr).await.with_context(|| format!("the counters of node {node}"))?;
        let of = |name: &str| sum(&told, &format!("annulus_move_{name}_bytes_total"));
        all = all
            + Bytes {
                state_sent: of("state_sent"),
                log_sent: of("log_sent"),
                state_needed: of("state_needed"),
                log_needed: of("log_needed"),
            };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups with their live bytes and replicas.
    fn scene<const N: usize>(groups: [(u64, u64, [u64; 3]); N]) -> Scene {
        let mut scene = Scene::default();
        for (group, bytes, replicas) in groups {
            scene.bytes.insert(group, bytes);
            scene.replicas.insert(group, BTreeSet::from(replicas));
        }
        scene
    }

    #[test]
    fn each_new_replica_copies_what_its_group_held_before() {
        let before = scene([(1, 100, [11, 12, 13]), (2, 1_000, [21, 22, 23])]);
        let after = scene([(1, 150, [12, 13, 14]), (2, 1_000, [21, 22, 23])]);
        assert_eq!(before.copied_by(&after), 100);
        assert_eq!(after.copied_by(&after), 0);
        let both = scene([(1, 150, [12, 15, 16]), (2, 1_000, [21, 22, 24])]);
        assert_eq!(after.copied_by(&both), 2 * 150 + 1_000);
    }

    #[test]
    fn a_shard_counts_once_however_many_members_tell_it() {
        let mut status = StatusReply::default();
        for bytes in [[40, 7], [50, 7]] {
            status.nodes.push(Default::default());
            let node = status.nodes.last_mut().unwrap();
            for (shard, bytes) in [3, 4].into_iter().zip(bytes) {
                node.shards.push(Default::default());
                let held = node.shards.last_mut().unwrap();
                (held.shard, held.group, held.bytes) = (shard, 1, bytes);
            }
        }
        assert_eq!(Scene::of(&status).bytes, BTreeMap::from([(1, 57)]));
    }

    #[test]
    fn a_quarter_more_than_needed_is_the_most() {
        let needed = Bytes { state_needed: 900, log_needed: 100, ..Bytes::default() };
        let just = Bytes { state_sent: 1_200, log_sent: 50, ..needed };
        assert!(just.are_in_bounds());
        assert!(!Bytes { log_sent: 51, ..just }.are_in_bounds());
        assert!(!Bytes::default().are_in_bounds(), "nothing was counted");
        assert_eq!(just + needed - needed, just);
        assert!(just.to_string().ends_with("1000 needed (900 + 100): 1.250 times"), "{just}");
    }
}
