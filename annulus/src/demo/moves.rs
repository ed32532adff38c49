//! A node comes in and gets its share: what the manager does about it, seen from outside.
//!
//! Nothing is decided here. The moves are those that `kvctl moves --all` lists; the share of a node is read
//! from the routing table. A join is over when no move is left and every node has its share: seats, and
//! groups at home, that differ by one at most between nodes of one weight.
//!
//! Failure: a question that is not answered is asked again. A join that does not end in time is cut: no
//! further move begins, and what has begun is given a little time to end, so that the tour goes on with a
//! table that stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_client::{Client, NodeId, RoutingTable};
use annulus_proto::v1;
use annulus_runtime::Env;
use annulus_types::MemberRole;
use anyhow::bail;

use super::report::Report;
use super::text::{mebibytes, seconds};

/// One question.
const ASK_LIMIT: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a new node may need until the manager counts on it.
const UP_LIMIT: Duration = Duration::from_secs(15);
/// What moves that have begun get when a join is cut.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

/// What a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Votes in groups.
    pub(super) seats: u32,
    /// Groups that it is meant to lead.
    pub(super) homes: u32,
}

/// What each node of a table has.
pub(super) fn shares(table: &RoutingTable) -> BTreeMap<NodeId, Share> {
    let mut shares: BTreeMap<NodeId, Share> =
        table.nodes.iter().map(|node| (node.id, Share::default())).collect();
    for group in &table.groups {
        shares.entry(group.home).or_default().homes += 1;
        for member in group.members.iter().filter(|member| member.role == MemberRole::Voter) {
            shares.entry(member.node).or_default().seats += 1;
        }
    }
    shares
}

/// Whether each of so many nodes has its share.
fn is_even(shares: &BTreeMap<NodeId, Share>, nodes: usize) -> bool {
    let is_level = |of: fn(&Share) -> u32| {
        let (least, most) = (shares.values().map(of).min(), shares.values().map(of).max());
        least.zip(most).is_some_and(|(least, most)| most - least <= 1)
    };
    shares.len() == nodes && is_level(|share| share.seats) && is_level(|share| share.homes)
}

/// What became of a join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    /// From the start of the process until the manager counted on it, microseconds.
    pub(super) up_us: u64,
    /// From there until the last move had ended, or the join was cut.
    pub(super) moving_us: u64,
    /// Moves that were planned.
    pub(super) moves: u64,
    /// Of these, the ones that have ended.
    pub(super) ended: u64,
    /// Of the latter, the ones that were undone; others were made in their place.
    pub(super) undone: u64,
    /// Bytes that were copied, but for entries of logs.
    pub(super) bytes: u64,
    /// It took too long and was cut.
    pub(super) is_cut: bool,
}

/// The moves that are followed.
#[derive(Debug, Default)]
struct Followed {
    /// Those that were there before.
    former: BTreeSet<u64>,
    ended: BTreeSet<u64>,
}

impl Followed {
    fn new(former: &[v1::Move]) -> Self {
        Self { former: former.iter().map(|step| step.id).collect(), ended: BTreeSet::new() }
    }

    /// Takes in what is listed now. Returns the moves that have ended since the last time.
    fn take_in<'m>(&mut self, listed: &'m [v1::Move], joined: &mut Joined) -> Vec<&'m v1::Move> {
        let own = listed.iter().filter(|step| !self.former.contains(&step.id));
        let (mut moves, mut bytes) = (0, 0);
        let mut news = Vec::new();
        for step in own {
            moves += 1;
            bytes += step.bytes_done;
            if has_ended(step) && self.ended.insert(step.id) {
                joined.undone += u64::from(step.state() == v1::MoveState::Cancelled);
                news.push(step);
            }
        }
        // The list has an end: what it does not show any more was there.
        joined.moves = joined.moves.max(moves);
        joined.bytes = joined.bytes.max(bytes);
        joined.ended = self.ended.len() as u64;
        news
    }
}

fn has_ended(step: &v1::Move) -> bool {
    matches!(step.state(), v1::MoveState::Done | v1::MoveState::Cancelled)
}

fn has_begun(step: &v1::Move) -> bool {
    !has_ended(step) && step.state() != v1::MoveState::Planned
}

/// A move that has ended, for a person.
fn line(step: &v1::Move) -> String {
    let group = step.group;
    let node = |member: &Option<v1::MemberRoute>| match member {
        Some(member) => format!("node {}", member.node),
        None => "nobody".to_owned(),
    };
    let (from, to) = (node(&step.from), node(&step.to));
    let what = match step.kind() {
        v1::MoveKind::Reseat => {
            let sent = mebibytes(step.bytes_done);
            format!("group {group}: seat from {from} to {to}, {sent} copied")
        }
        v1::MoveKind::Rehome => format!("group {group}: at home on {to}"),
        v1::MoveKind::Transfer => format!("group {group}: led by {to}"),
    };
    match step.state() {
        v1::MoveState::Cancelled => format!("{what}; undone"),
        _ => what,
    }
}

/// A join under observation.
pub(super) struct Join<'a> {
    pub(super) env: &'a Env,
    pub(super) client: &'a Client,
    pub(super) report: &'a Report,
    /// The nodes there are, with the new one.
    pub(super) nodes: u32,
    /// For the moves.
    pub(super) limit: Duration,
}

impl Join<'_> {
    /// The moves there are, with those that have ended.
    pub(super) async fn listed(&self) -> anyhow::Result<Vec<v1::Move>> {
        Ok(self.client.admin().deadline(ASK_LIMIT).moves(true).await?)
    }

    /// Waits until the newest node is up, and then until every node has its share. Tells each move when it
    /// has ended. `former`: the moves that were there before the node came.
    pub(super) async fn follow(&self, former: &[v1::Move]) -> anyhow::Result<Joined> {
        let mut joined = Joined { up_us: self.until_up().await?, ..Joined::default() };
        let began_us = self.env.clock.monotonic_us();
        let passed_us = || self.env.clock.monotonic_us().saturating_sub(began_us);
        let mut followed = Followed::new(former);
        loop {
            if let Ok(listed) = self.listed().await {
                let is_first = joined.moves == 0;
                let news = followed.take_in(&listed, &mut joined);
                if is_first && joined.moves > 0 {
                    self.report.note(&format!("{} moves are planned", joined.moves));
                }
                for step in news {
                    let at = seconds(passed_us());
                    let line = line(step);
                    self.report.note(&format!("{at:>7}  {line}"));
                }
                if joined.ended > 0 && joined.ended == joined.moves && self.is_done().await {
                    break;
                }
            }
            if u128::from(passed_us()) >= self.limit.as_micros() {
                self.cut(&mut followed, &mut joined).await;
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        joined.moving_us = passed_us();
        Ok(joined)
    }

    async fn until_up(&self) -> anyhow::Result<u64> {
        let began_us = self.env.clock.monotonic_us();
        loop {
            let overview = self.client.admin().deadline(ASK_LIMIT).overview().await;
            let nodes = overview.map(|overview| overview.nodes).unwrap_or_default();
            let is_it = |node: &v1::NodeOverview| node.node == self.nodes;
            let waited_us = self.env.clock.monotonic_us().saturating_sub(began_us);
            if nodes.iter().any(|node| is_it(node) && node.state() == v1::NodeState::Up) {
                return Ok(waited_us);
            }
            if u128::from(waited_us) >= UP_LIMIT.as_micros() {
                bail!("node {} was not up after {} s", self.nodes, UP_LIMIT.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn is_done(&self) -> bool {
        match self.client.routes().await {
            Ok(table) => is_even(&shares(&table), self.nodes as usize),
            Err(_) => false,
        }
    }

    /// Lets nothing more begin, and waits for what has begun.
    async fn cut(&self, followed: &mut Followed, joined: &mut Joined) {
        joined.is_cut = true;
        // When the manager does not answer, nothing of its making begins either.
        let _ = self.client.admin().deadline(ASK_LIMIT).pause_rebalance(true, false).await;
        let ending = async {
            loop {
                if let Ok(listed) = self.listed().await {
                    followed.take_in(&listed, joined);
                    if !listed.iter().any(has_begun) {
                        return;
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // Those that have not ended by then go on; the report says how many have.
        let _ = tokio::time::timeout(ENDING_LIMIT, ending).await;
    }
}

/// The line of each node: what it had, what it has.
pub(super) fn before_and_after(
    before: &BTreeMap<NodeId, Share>,
    after: &BTreeMap<NodeId, Share>,
) -> Vec<String> {
    let nodes: BTreeSet<NodeId> = before.keys().chain(after.keys()).copied().collect();
    let of =
        |shares: &BTreeMap<NodeId, Share>, node| shares.get(&node).copied().unwrap_or_default();
    let line = |node: NodeId| {
        let (was, is) = (of(before, node), of(after, node));
        format!(
            "node {node}: {:>2} -> {:>2} seats, at home {} -> {}",
            was.seats, is.seats, was.homes, is.homes
        )
    };
    nodes.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests;
