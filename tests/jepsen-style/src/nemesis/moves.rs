//! Moves under load: what an operator asks of the manager while clients work.
//!
//! A change is repeated until the manager's view shows it, so that an unknown outcome does no harm. It is
//! in effect when its first consequence shows, a seat or a leadership that has moved; then it is undone,
//! with moves still under way. The step ends when no move is left: a move that waits for ever fails the
//! run.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use annulus_client::{
    Admin, Client, NodeChange, NodeChangeKind, NodeOverview, NodeState, OverviewReply,
};
use anyhow::Result;

use super::{Stage, Step};
use crate::process::wait_until;

/// The manager takes a change, or leads again.
const TAKEN: Duration = Duration::from_secs(60);
/// All moves of a step: dozens of reseats, each of which waits for a few heartbeats.
const SETTLED: Duration = Duration::from_secs(300);
/// A run adds nodes up to this many: each is a process on this machine.
const NODES_MOST: u16 = 7;
/// Copies of each shard, as clusters of the harness have them.
const COPIES: usize = 3;
/// Hundredths.
const WEIGHT: u32 = 100;
const WEIGHT_HEAVY: u32 = 300;

/// A node loses its leaderships and, where there is another place for them, seats; then it may have them
/// again.
pub(super) async fn drain(stage: &mut Stage<'_>) -> Result<Step> {
    let victim = stage.victim()?;
    let client = stage.cluster.client().await?;
    let admin = client.admin();
    let before = settled(&admin).await?;
    let held = of(&before, victim).map_or(0, |node| node.seats);
    if held == 0 {
        return Ok(Step::Skipped(format!("node {victim} has no seat")));
    }
    let drains = |draining: bool| {
        change(&admin, victim, NodeChangeKind::Draining(draining), move |view| {
            of(view, victim).is_some_and(|node| node.draining == draining)
        })
    };
    drains(true).await?;
    let up = before.nodes.iter().filter(|node| node.state() == NodeState::Up).count();
    wait_until("the drained node loses something", SETTLED, || async {
        if up > COPIES {
            has_fewer(&admin, victim, held).await
        } else {
            leads_nothing(&client, victim).await
        }
    })
    .await?;
    stage.served(stage.some()).await?;
    drains(false).await?;
    settled(&admin).await?;
    Ok(Step::Installed(format!("node {victim}, of {held} seats")))
}

/// Another node comes and gets its share.
pub(super) async fn add_node(stage: &mut Stage<'_>) -> Result<Step> {
    let nodes = *stage.cluster.nodes().end();
    if nodes >= NODES_MOST {
        return Ok(Step::Skipped(format!("there are {nodes} nodes already")));
    }
    let client = stage.cluster.client().await?;
    let admin = client.admin();
    settled(&admin).await?;
    let added = stage.cluster.add_proxied_node().await?;
    wait_until("the new node is up and has a seat", SETTLED, || async {
        let Ok(view) = admin.overview().await else { return false };
        of(&view, added).is_some_and(|node| node.state() == NodeState::Up && node.seats > 0)
    })
    .await?;
    stage.served(stage.some()).await?;
    settled(&admin).await?;
    Ok(Step::Installed(format!("node {added}")))
}

/// A node gets another weight and a rebalance follows it; then back.
pub(super) async fn weight(stage: &mut Stage<'_>) -> Result<Step> {
    let victim = stage.victim()?;
    let client = stage.cluster.client().await?;
    let admin = client.admin();
    settled(&admin).await?;
    let heavy = rebalance(&admin, victim, WEIGHT_HEAVY).await?;
    stage.served(stage.some()).await?;
    settled(&admin).await?;
    let back = rebalance(&admin, victim, WEIGHT).await?;
    settled(&admin).await?;
    let about = format!("node {victim}: {heavy} moves there, {back} back");
    Ok(if heavy + back > 0 { Step::Installed(about) } else { Step::Skipped(about) })
}

/// Sets a weight, plans, and applies the plan; returns how many of its moves the manager has taken.
async fn rebalance(admin: &Admin, node: u16, hundredths: u32) -> Result<usize> {
    // The view does not show weights; the manager's answer that it stored the change is what there is.
    change(admin, node, NodeChangeKind::Weight(hundredths), |_| true).await?;
    let (steps, before) = (Cell::new(0), Cell::new(None));
    wait_until("the manager has taken a plan", TAKEN, || async {
        let Some(newest) = newest_move(admin).await else { return false };
        if before.get().is_some_and(|before| newest > before) {
            return true;
        }
        before.set(Some(newest));
        let Ok(told) = admin.plan_rebalance().await else { return false };
        steps.set(told.steps.len());
        // Whether it was taken, the next look shows; what was overtaken by another plan is planned anew.
        told.steps.is_empty() || {
            let _ = admin.apply_rebalance(told.plan, false).await;
            false
        }
    })
    .await?;
    Ok(steps.get())
}

/// The highest id of a move, also of those that have ended; 0 when there never was one.
async fn newest_move(admin: &Admin) -> Option<u64> {
    let moves = admin.moves(true).await.ok()?;
    Some(moves.iter().map(|one| one.id).max().unwrap_or(0))
}

/// Asks for a change until it was taken and the manager's view shows it.
async fn change(
    admin: &Admin,
    node: u16,
    kind: NodeChangeKind,
    shows: impl Fn(&OverviewReply) -> bool,
) -> Result<()> {
    wait_until("the manager has taken a change of a node", TAKEN, || async {
        let asked = NodeChange { node: u32::from(node), change: Some(kind.clone()) };
        let is_taken = admin.change_node(asked, false).await.is_ok();
        is_taken && admin.overview().await.is_ok_and(|view| shows(&view))
    })
    .await
}

/// Waits until no move is left; returns the manager's view then.
async fn settled(admin: &Admin) -> Result<OverviewReply> {
    let last = RefCell::new(OverviewReply::default());
    wait_until("every move has ended", SETTLED, || async {
        let Ok(view) = admin.overview().await else { return false };
        let is_settled = view.moves.is_empty();
        *last.borrow_mut() = view;
        is_settled
    })
    .await?;
    Ok(last.into_inner())
}

fn of(view: &OverviewReply, node: u16) -> Option<&NodeOverview> {
    view.nodes.iter().find(|known| known.node == u32::from(node))
}

async fn has_fewer(admin: &Admin, node: u16, seats: u32) -> bool {
    let Ok(view) = admin.overview().await else { return false };
    of(&view, node).is_some_and(|node| node.seats < seats)
}

async fn leads_nothing(client: &Client, node: u16) -> bool {
    let Ok(status) = client.status(false).await else { return false };
    let own = status
        .nodes
        .iter()
        .find(|told| told.info.as_ref().is_some_and(|info| info.id == u32::from(node)));
    own.is_some_and(|own| {
        own.replicas.iter().all(|replica| replica.group == 0 || !replica.gate_open)
    })
}
