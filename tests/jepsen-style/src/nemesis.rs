//! What hurts the cluster during a run: one step, its heal, and the wait until everything serves again.
//!
//! - Processes: SIGKILL of one node or of all, SIGTERM, SIGSTOP.
//! - `nemesis/partition.rs`: nodes are cut from each other at the proxy between them.
//! - `nemesis/moves.rs`: replicas and leaderships move, as an operator asks.
//!
//! Invariants:
//! - A step says *installed* only when it was seen to be in effect: the process has ended or was signalled,
//!   the cut is set and nothing goes round it, the manager says so and the first effect shows.
//! - A step that makes no sense on this cluster says *skipped*, and why; it is no pass ([`Step`]).
//! - After each step the fault is healed, every group has a leader and every shard exists at it. If that
//!   takes too long, the run fails: recovery is part of what is tested.
//!
//! Clients work on meanwhile; that they are answered again is waited for, not assumed.

mod moves;
mod partition;

use std::time::Duration;

use annulus_runtime::Random;
use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::process::wait_until;
use crate::workloads::Run;

/// What hurts the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nemesis {
    /// Nothing.
    None,
    /// SIGKILL of one node, restarted a little later.
    Kill,
    /// SIGKILL of all nodes at once, restarted at once.
    KillAll,
    /// SIGTERM of one node, restarted a little later.
    Stop,
    /// SIGSTOP of one node for a few seconds.
    Pause,
    /// The nodes fall into two halves that do not reach each other.
    Halves,
    /// One node reaches no other and is reached by none.
    Isolate,
    /// What one node sends does not arrive, or nothing arrives at it.
    OneWay,
    /// A node is drained, and again not.
    Drain,
    /// A node is added.
    AddNode,
    /// A node's weight is changed, a rebalance applied, and both undone.
    Weight,
}

impl Nemesis {
    /// All of them, by the names of the command line.
    pub const NAMES: [(&'static str, Self); 11] = [
        ("none", Self::None),
        ("kill", Self::Kill),
        ("kill-all", Self::KillAll),
        ("stop", Self::Stop),
        ("pause", Self::Pause),
        ("halves", Self::Halves),
        ("isolate", Self::Isolate),
        ("one-way", Self::OneWay),
        ("drain", Self::Drain),
        ("add-node", Self::AddNode),
        ("weight", Self::Weight),
    ];

    /// The names that stand for several.
    const GROUPS: [(&'static str, [Self; 3]); 2] = [
        ("partition", [Self::Halves, Self::Isolate, Self::OneWay]),
        ("moves", [Self::Drain, Self::Weight, Self::AddNode]),
    ];

    /// Those that a list names, in its order: names, `partition` and `moves`, between commas.
    #[must_use]
    pub fn parse_list(list: &str) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        for word in list.split(',') {
            match Self::GROUPS.iter().find(|(name, _)| *name == word) {
                Some((_, several)) => all.extend(several),
                None => all.push(Self::NAMES.iter().find(|(name, _)| *name == word)?.1),
            }
        }
        Some(all)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, known)| *known == self).map_or("?", |(name, _)| name)
    }

    /// Whether the nodes must have a proxy between them.
    #[must_use]
    pub fn needs_proxy(self) -> bool {
        matches!(self, Self::Halves | Self::Isolate | Self::OneWay)
    }
}

/// What became of a step, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was seen to be in effect.
    Installed(String),
    /// It makes no sense here.
    Skipped(String),
}

/// What a step acts on.
pub struct Stage<'a> {
    /// The cluster.
    pub cluster: &'a mut Cluster,
    /// Tells whether clients are answered.
    pub run: &'a Run,
    /// Decides whom it hits, and for how long.
    pub random: &'a Random,
    /// How long clients may go without the answers that a step waits for.
    pub patience: Duration,
}

impl Stage<'_> {
    /// Waits until clients got `more` answers: proof that the cluster serves, not a guess at how long
    /// that takes.
    async fn served(&self, more: u64) -> Result<()> {
        let wanted = self.run.counts().answered + more;
        wait_until("clients are answered", self.patience, || async {
            self.run.counts().answered >= wanted
        })
        .await
    }

    /// Some answers.
    fn some(&self) -> u64 {
        200 + self.random.below(300)
    }

    /// Some time.
    fn a_while(&self) -> Duration {
        Duration::from_millis(500 + self.random.below(2500))
    }

    /// One of the nodes.
    fn victim(&self) -> Result<u16> {
        let nodes = u64::from(*self.cluster.nodes().end());
        u16::try_from(self.random.below(nodes) + 1).context("a node number")
    }
}

/// One step of a nemesis, from a quiet cluster to a quiet cluster.
///
/// # Errors
/// When the fault cannot be injected or seen, or the cluster does not recover.
pub async fn hurt(nemesis: Nemesis, stage: &mut Stage<'_>) -> Result<Step> {
    stage.served(stage.some()).await?;
    let step = match nemesis {
        Nemesis::None => return Ok(Step::Installed("nothing".to_owned())),
        Nemesis::Kill | Nemesis::Stop => end_one(nemesis, stage).await?,
        Nemesis::KillAll => {
            stage.cluster.kill_all()?;
            // Clients keep the addresses that they were made with, so the ports stay.
            for node in stage.cluster.nodes() {
                stage.cluster.start_node(node)?;
            }
            Step::Installed("all nodes".to_owned())
        }
        Nemesis::Pause => {
            let (victim, away) = (stage.victim()?, stage.a_while());
            stage.cluster.pause(victim)?;
            tokio::time::sleep(away).await;
            stage.cluster.resume(victim)?;
            Step::Installed(format!("node {victim} for {away:?}"))
        }
        Nemesis::Halves | Nemesis::Isolate | Nemesis::OneWay => {
            Box::pin(partition::step(nemesis, stage)).await?
        }
        Nemesis::Drain => Box::pin(moves::drain(stage)).await?,
        Nemesis::AddNode => Box::pin(moves::add_node(stage)).await?,
        Nemesis::Weight => Box::pin(moves::weight(stage)).await?,
    };
    stage.cluster.wait_ready().await.with_context(|| format!("after {}", nemesis.name()))?;
    Ok(step)
}

async fn end_one(nemesis: Nemesis, stage: &mut Stage<'_>) -> Result<Step> {
    let victim = stage.victim()?;
    if nemesis == Nemesis::Kill {
        stage.cluster.kill(victim)?;
    } else {
        stage.cluster.stop(victim).await?;
    }
    stage.served(stage.some()).await?;
    stage.cluster.start_node(victim)?;
    Ok(Step::Installed(format!("node {victim}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_understood() {
        let all = Nemesis::parse_list("kill,partition,pause").unwrap();
        let expected =
            [Nemesis::Kill, Nemesis::Halves, Nemesis::Isolate, Nemesis::OneWay, Nemesis::Pause];
        assert_eq!(all, expected);
        for (name, nemesis) in Nemesis::NAMES {
            assert_eq!(Nemesis::parse_list(name), Some(vec![nemesis]));
            assert_eq!(nemesis.name(), name);
        }
        for bad in ["", "kill,", "flood"] {
            assert_eq!(Nemesis::parse_list(bad), None, "{bad:?}");
        }
    }
}
