//! Where seats and homes are, and where they must be: the quotas of equal nodes without zones, and that no
//! node holds anything else, open or closed (`seats`).
//!
//! The quota is written here a second time, from its definition: units go one by one to whoever has the
//! fewest, the lower id first, from a low mark on and up to a high one. What the manager says is compared
//! with that, and what the nodes hold with what the table and the manager say.

use std::collections::BTreeMap;

use annulus_client::NodeChangeKind as Change;
use annulus_client::{
    Client, Move, MoveKind, MoveState, NodeChange, NodeState, OverviewReply, StatusReply,
};
use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;

use super::MOVES;
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;
use crate::scenarios::seats;

/// Members of a group.
const REPLICATION: usize = 3;

/// Groups at home and seats, by node; nodes without any are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shares {
    homes: BTreeMap<u32, usize>,
    seats: BTreeMap<u32, usize>,
}

/// Shares `total` units out; each node has its `low` mark in any case and takes no more than `high`.
fn quota(total: usize, low: &BTreeMap<u32, usize>, high: usize) -> BTreeMap<u32, usize> {
    let mut shares = low.clone();
    for _ in low.values().sum::<usize>()..total {
        // Of equal ones the first, which has the lowest id.
        let next = shares.iter_mut().filter(|(_, has)| **has < high).min_by_key(|(_, has)| **has);
        let Some((_, has)) = next else { break };
        *has += 1;
    }
    shares
}

impl Shares {
    /// What so many groups come to on these nodes.
    fn wanted(groups: usize, nodes: &[u32]) -> Self {
        let none: BTreeMap<u32, usize> = nodes.iter().map(|node| (*node, 0)).collect();
        let homes = quota(groups, &none, groups);
        let seats = quota(groups * REPLICATION.min(nodes.len()), &homes, groups);
        Self { homes, seats }.without_zeros()
    }

    /// What the table says.
    fn found(status: &StatusReply) -> Self {
        let mut found = Self::default();
        for group in status.table.iter().flat_map(|table| &table.groups) {
            *found.homes.entry(group.home).or_default() += 1;
            for member in &group.members {
                *found.seats.entry(member.node).or_default() += 1;
            }
        }
        found
    }

    fn without_zeros(mut self) -> Self {
        self.homes.retain(|_, has| *has > 0);
        self.seats.retain(|_, has| *has > 0);
        self
    }
}

/// What is not yet as it must be with these nodes; `None`: everything is.
fn unsettled(status: &StatusReply, overview: &OverviewReply, nodes: &[u32]) -> Option<String> {
    if let Some(step) = overview.moves.first() {
        let (moves, state) = (overview.moves.len(), step.state().as_str_name());
        let (id, group, waiting) = (step.id, step.group, &step.waiting);
        return Some(format!(
            "{moves} moves have not ended, move {id} of group {group} is in {state} ({waiting})"
        ));
    }
    let Some(table) = &status.table else { return Some("there is no table".to_owned()) };
    if table.version != overview.table_version {
        let (held, newest) = (table.version, overview.table_version);
        return Some(format!("table {held} is held and {newest} is the newest"));
    }
    let learners = table.groups.iter().flat_map(|group| &group.members).filter(|it| it.learner);
    let learners = learners.count();
    if learners > 0 {
        return Some(format!("{learners} learners without a move"));
    }
    let (found, wanted) = (Shares::found(status), Shares::wanted(table.groups.len(), nodes));
    (found != wanted).then(|| format!("found {found:?}, the quotas are {wanted:?}"))
}

/// What nodes and manager say, if they both do.
async fn look(client: &Client) -> Option<(StatusReply, OverviewReply)> {
    let status = client.status(false).await.ok()?;
    status.table.as_ref()?;
    let overview = status.overview.clone()?;
    Some((status, overview))
}

/// Whether nothing moves, and homes and seats are exactly by quota among these nodes.
pub(super) async fn is_even(client: &Client, nodes: &[u32]) -> bool {
    match look(client).await {
        Some((status, overview)) => unsettled(&status, &overview, nodes).is_none(),
        None => false,
    }
}

/// Waits until [`is_even`].
///
/// # Errors
/// When that takes longer than [`MOVES`]; the text says what is missing.
pub(super) async fn wait_even(cluster: &Cluster, nodes: &[u32]) -> Result<()> {
    let client = cluster.client().await?;
    let last = Mutex::new("nobody answers".to_owned());
    let waited = wait_until("homes and seats are exactly by quota", MOVES, || async {
        let Some((status, overview)) = look(&client).await else { return false };
        let missing = unsettled(&status, &overview, nodes);
        let is_even = missing.is_none();
        *last.lock() = missing.unwrap_or_default();
        is_even
    });
    let waited = waited.await;
    waited.map_err(|error| anyhow!("{error}: {}", last.into_inner()))
}

/// Waits until each of these nodes holds the replicas that the table and the manager's group give it, all of
/// them open, and no others, not even closed ones. They must be running, and nothing may move: a replica
/// that retires is held until it has.
///
/// # Errors
/// When that takes longer than [`MOVES`]; the text names what is missing or left over.
pub(super) async fn wait_no_orphans(cluster: &Cluster, nodes: &[u32]) -> Result<()> {
    let client = cluster.client().await?;
    let mut locals = Vec::new();
    for node in nodes {
        let endpoint = cluster.endpoint(u16::try_from(*node)?);
        let local = Client::builder().endpoints([endpoint]).deadline(READY).connect().await;
        locals.push((*node, local.with_context(|| format!("connecting to node {node}"))?));
    }
    let last = Mutex::new("nobody answers".to_owned());
    let waited = wait_until("every node holds its seats and nothing else", MOVES, || async {
        let Some((status, overview)) = look(&client).await else { return false };
        for (node, local) in &locals {
            let Ok(own) = local.status(true).await else { return false };
            let (held, open) = (seats::held(&own, *node), seats::open(&own, *node));
            let meant = seats::meant(&status, &overview, *node);
            if held != meant || open != meant {
                let over: Vec<_> = held.difference(&meant).collect();
                let missing: Vec<_> = meant.difference(&open).collect();
                *last.lock() = format!(
                    "node {node} holds {over:?} (group, replica) and should not, and {missing:?} is \
                     missing or closed"
                );
                return false;
            }
        }
        true
    });
    let waited = waited.await;
    waited.map_err(|error| anyhow!("{error}: {}", last.into_inner()))
}

/// Waits until the manager counts a node as up, and every seat that it has then is open there. Moves may be
/// under way.
///
/// # Errors
/// When that takes longer than [`MOVES`]; the text says what is missing.
pub(super) async fn wait_back(client: &Client, node: u32) -> Result<()> {
    let last = Mutex::new("nobody answers".to_owned());
    let waited = wait_until("a node is up with all of its seats open", MOVES, || async {
        let Some((status, overview)) = look(client).await else { return false };
        let mut known = overview.nodes.iter().filter(|known| known.node == node);
        if !known.any(|known| known.state() == NodeState::Up) {
            *last.lock() = format!("node {node} is not up");
            return false;
        }
        let (open, meant) = (seats::open(&status, node), seats::meant(&status, &overview, node));
        let missing: Vec<_> = meant.difference(&open).collect();
        *last.lock() = format!("node {node} has not opened {missing:?} (group, replica)");
        missing.is_empty()
    });
    let waited = waited.await;
    waited.map_err(|error| anyhow!("{error}: {}", last.into_inner()))
}

/// Begins or ends to drain a node.
///
/// # Errors
/// When the manager does not take that in time.
pub(super) async fn drain(client: &Client, node: u32, draining: bool) -> Result<()> {
    let change = NodeChange { node, change: Some(Change::Draining(draining)) };
    wait_until("the manager takes a drain or the end of one", READY, || async {
        // Saying it again changes nothing.
        client.admin().change_node(change.clone(), false).await.is_ok()
    })
    .await
}

/// Takes an empty node out for ever.
///
/// # Errors
/// When the manager does not let it go in time.
pub(super) async fn remove(client: &Client, node: u32) -> Result<()> {
    let change = NodeChange { node, change: Some(Change::Remove(Default::default())) };
    wait_until("the manager has removed the empty node", READY, || async {
        // Its answer may be lost, so that only the state tells.
        let _ = client.admin().change_node(change.clone(), false).await;
        let nodes = client.admin().overview().await.map(|told| told.nodes).unwrap_or_default();
        nodes.iter().any(|told| told.node == node && told.state() == NodeState::Removed)
    })
    .await
}

/// Seats that were moved so far, and moves that were given up or undone, as far back as the manager
/// keeps them.
///
/// # Errors
/// When the manager's leader cannot be asked in time.
pub(super) async fn ended(client: &Client) -> Result<(usize, usize)> {
    let moves = client.admin().moves(true).await?;
    let is =
        |step: &Move, state: MoveState| step.kind() == MoveKind::Reseat && step.state() == state;
    let count = |state: MoveState| moves.iter().filter(|step| is(step, state)).count();
    Ok((count(MoveState::Done), count(MoveState::Cancelled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(groups: usize, nodes: &[u32]) -> (Vec<usize>, Vec<usize>) {
        let shares = Shares::wanted(groups, nodes);
        (shares.homes.into_values().collect(), shares.seats.into_values().collect())
    }

    #[test]
    fn equal_nodes_differ_by_one_at_most_and_lower_ids_come_first() {
        assert_eq!(shares(12, &[1, 2, 3]), (vec![4, 4, 4], vec![12, 12, 12]));
        assert_eq!(shares(12, &[1, 2, 3, 4]), (vec![3, 3, 3, 3], vec![9, 9, 9, 9]));
        assert_eq!(shares(12, &[1, 2, 3, 4, 5]), (vec![3, 3, 2, 2, 2], vec![8, 7, 7, 7, 7]));
        assert_eq!(shares(12, &[5, 2, 3]), (vec![4, 4, 4], vec![12, 12, 12]));
    }

    #[test]
    fn nodes_without_a_share_are_left_out() {
        assert_eq!(shares(1, &[1, 2, 3, 4]), (vec![1], vec![1, 1, 1]));
        assert_eq!(shares(3, &[7]), (vec![3], vec![3]));
    }
}
