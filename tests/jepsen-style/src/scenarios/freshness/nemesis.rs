//! Faults, one after the other, with calm in between.
//!
//! Each fault says when it begins and when it is over: 2 s after everything serves again. Kills and moves
//! take turns and never overlap, so that a refusal can be put down to one of them; what moves do under kills
//! is another scenario's question. Nothing is judged here; a cluster that does not become ready in time, or
//! moves that do not end, fail the run.

use std::time::Duration;

use annulus_client::NodeChangeKind as Change;
use annulus_client::{Client, NodeChange, NodeState, OverviewReply};
use annulus_runtime::Random;
use anyhow::{Context, Result};

use super::book::{Kind, Time};
use super::{Fault, Options, Shared};
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;

/// What a fault lasts longer than the cluster needs to be ready again.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Answered reads while a killed node is away.
const READS_AWAY: u64 = 2_000;
/// Of all reads, one in so many is awaited, answered, between two faults.
const CALM_ONE_IN: u64 = 20;
/// For a plan of moves.
const MOVES: Duration = Duration::from_secs(300);
/// Turns through all faults at least: a node is added, drained, and taken back.
const TURNS_LEAST: u64 = 3;

/// Hurts the cluster, one fault after the other.
pub(super) struct Nemesis<'a> {
    shared: &'a Shared,
    random: Random,
    /// The node that is drained at the moment.
    drained: Option<u16>,
    moves: u64,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(shared: &'a Shared, random: Random) -> Self {
        Self { shared, random, drained: None, moves: 0 }
    }

    /// Until there were enough answered reads of each kind, and each fault came at least three times.
    pub(super) async fn run(mut self, cluster: &mut Cluster, options: &Options) -> Result<()> {
        let least = options.faults.len() as u64 * TURNS_LEAST;
        let mut turns = 0;
        while turns < least || self.fewest_reads() < options.reads.div_ceil(2) {
            self.shared.read_on(options.reads / CALM_ONE_IN + 1, |time| time == Time::Calm).await?;
            let count = options.faults.len().max(1);
            match options.faults.get(turns as usize % count) {
                Some(Fault::Kill) => self.kill(cluster).await?,
                Some(Fault::Moves) => self.shift(cluster).await?,
                None => {}
            }
            turns += 1;
        }
        Ok(())
    }

    /// Of the kind of which there were fewer.
    fn fewest_reads(&self) -> u64 {
        let reads = |kind: Kind| self.shared.reads(|_, of| of == kind).answered;
        reads(Kind::Session).min(reads(Kind::Bounded))
    }

    async fn kill(&self, cluster: &mut Cluster) -> Result<()> {
        let victim = self.some_node(cluster)?;
        let began_us = self.shared.clock.monotonic_us();
        self.shared.begin(Time::Kill);
        cluster.kill(victim)?;
        self.shared.read_on(READS_AWAY, |time| time == Time::Kill).await?;
        cluster.start_node(victim)?;
        cluster.wait_ready().await?;
        let nodes = usize::from(*cluster.nodes().end());
        let client = cluster.client().await?;
        wait_until("every node answers", READY, || async {
            client.status(false).await.is_ok_and(|status| status.nodes.len() == nodes)
        })
        .await?;
        self.calm_down().await;
        println!("fault: node {victim} killed and back, {} ms in all", self.passed_ms(began_us));
        Ok(())
    }

    /// Adds a node the first time; then drains one and takes it back by turns.
    async fn shift(&mut self, cluster: &mut Cluster) -> Result<()> {
        let began_us = self.shared.clock.monotonic_us();
        self.shared.begin(Time::Moves);
        let what = if self.moves == 0 {
            format!("node {} added", cluster.add_node()?)
        } else {
            let (node, is_draining) = match self.drained.take() {
                Some(node) => (node, false),
                None => (self.some_node(cluster)?, true),
            };
            self.drained = is_draining.then_some(node);
            drain(&cluster.client().await?, node, is_draining).await?;
            let how = if is_draining { "drained" } else { "taken back" };
            format!("node {node} {how}")
        };
        self.moves += 1;
        let (client, nodes) = (cluster.client().await?, usize::from(*cluster.nodes().end()));
        wait_until("everything has moved", MOVES, || async {
            let status = client.status(false).await.ok();
            let overview = status.and_then(|status| status.overview);
            overview.is_some_and(|overview| is_settled(&overview, nodes))
        })
        .await?;
        cluster.wait_ready().await?;
        self.calm_down().await;
        println!("fault: {what}, {} ms in all", self.passed_ms(began_us));
        Ok(())
    }

    async fn calm_down(&self) {
        tokio::time::sleep(AFTERMATH).await;
        self.shared.begin(Time::Calm);
    }

    fn some_node(&self, cluster: &Cluster) -> Result<u16> {
        let nodes = u64::from(*cluster.nodes().end());
        u16::try_from(self.random.below(nodes) + 1).context("too many nodes")
    }

    fn passed_ms(&self, since_us: u64) -> u64 {
        (self.shared.clock.monotonic_us() - since_us) / 1000
    }
}

/// Has everything taken off a node, or lets it have its share again. Asks again while the manager has no
/// leader: what is so already is no error.
async fn drain(client: &Client, node: u16, is_draining: bool) -> Result<()> {
    let change = Some(Change::Draining(is_draining));
    let change = NodeChange { node: u32::from(node), change };
    wait_until("the manager takes the change", READY, || async {
        client.admin().change_node(change.clone(), false).await.is_ok()
    })
    .await
}

/// Whether nothing moves, everybody is up, and seats are as they should be with equal weights.
pub(super) fn is_settled(overview: &OverviewReply, nodes: usize) -> bool {
    let up = overview.nodes.iter().filter(|node| node.state() == NodeState::Up);
    let staying = up.clone().filter(|node| !node.draining).map(|node| node.seats);
    let mut leaving = up.clone().filter(|node| node.draining);
    let spread = staying.clone().max().unwrap_or(0) - staying.min().unwrap_or(0);
    overview.moves.is_empty()
        && up.count() == nodes
        && leaving.all(|node| node.seats == 0)
        && spread <= 1
}
