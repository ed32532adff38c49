//! What a seed decides before the run begins: sizes, speeds, what is asked of the cluster, and which
//! faults come when.
//!
//! Pure: a plan follows from random numbers and from how long the run lasts. What it does not
//! decide is drawn during the run from sequences that the same seed begins.

use std::fmt;
use std::time::Duration;

use annulus_runtime::{Cut, Random};
use annulus_types::NodeId;

use crate::routes::{FOUNDERS, NODES, machine_ids};

/// Numbers from `least` to `most`, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

impl Span {
    pub(crate) fn draw(self, random: &Random) -> u64 {
        self.least + random.below(self.most.saturating_sub(self.least) + 1)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.least, self.most)
    }
}

/// One machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachinePlan {
    pub(crate) node: NodeId,
    /// How fast its clock runs. The rules bear a factor of 4/3 between two clocks.
    pub(crate) clock_per_mille: u64,
    /// How long a write and sync of the log take.
    pub(crate) sync_ms: Span,
    pub(crate) segment_bytes: u64,
}

/// Something that goes wrong. Every one of them ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends; its machine goes on.
    Kill { node: NodeId, down_ms: u64 },
    /// The machine ends: what was not synced may be lost. With `after_changes`, in the middle of
    /// what the disk is doing: after so many more of its steps.
    PowerCut { node: NodeId, after_changes: Option<u64>, down_ms: u64 },
    /// Power cuts of all machines at once.
    Blackout { down_ms: u64 },
    /// The next sync fails: the node must stop by itself.
    SyncFailure { node: NodeId, down_ms: u64 },
    /// A path delivers nothing, or both directions do not.
    Cut { from: NodeId, to: NodeId, both: bool, how: Cut, for_ms: u64 },
    /// All paths of a node.
    Isolate { node: NodeId, how: Cut, for_ms: u64 },
    /// Messages take longer.
    SlowNetwork { latency_ms: Span, for_ms: u64 },
    /// The log of a node takes longer.
    SlowDisk { node: NodeId, by_ms: u64, for_ms: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |how: Cut| match how {
            Cut::Hold => "held",
            Cut::Reset => "reset",
        };
        match *self {
            Self::Kill { node, down_ms } => write!(f, "kill of node {node} for {down_ms} ms"),
            Self::PowerCut { node, after_changes: None, down_ms } => {
                write!(f, "power cut at node {node} for {down_ms} ms")
            }
            Self::PowerCut { node, after_changes: Some(count), down_ms } => {
                write!(f, "power cut at node {node} after {count} steps for {down_ms} ms")
            }
            Self::Blackout { down_ms } => write!(f, "power cut at every node for {down_ms} ms"),
            Self::SyncFailure { node, down_ms } => {
                write!(f, "failing sync at node {node}, down for {down_ms} ms")
            }
            Self::Cut { from, to, both, how, for_ms } => {
                let (arrow, how) = (if both { "<->" } else { "->" }, word(how));
                write!(f, "path {from} {arrow} {to} {how} for {for_ms} ms")
            }
            Self::Isolate { node, how, for_ms } => {
                write!(f, "paths of node {node} {} for {for_ms} ms", word(how))
            }
            Self::SlowNetwork { latency_ms, for_ms } => {
                write!(f, "messages take {latency_ms} ms for {for_ms} ms")
            }
            Self::SlowDisk { node, by_ms, for_ms } => {
                write!(f, "log of node {node} slower by {by_ms} ms for {for_ms} ms")
            }
        }
    }
}

/// Something that is asked of the cluster, or that befalls it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A machine comes into service.
    Join { node: NodeId },
    /// An operator wants a node empty.
    Drain { node: NodeId },
    /// A machine loses its data folder, and comes back under its old id after a while.
    Wipe { node: NodeId, down_ms: u64 },
    /// The manager's state is gone, and is put together again from what the nodes tell.
    Forget,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Join { node } => write!(f, "node {node} joins"),
            Self::Drain { node } => write!(f, "node {node} shall be empty"),
            Self::Wipe { node, down_ms } => {
                write!(f, "node {node} is wiped, down for {down_ms} ms")
            }
            Self::Forget => f.write_str("the manager loses its memory"),
        }
    }
}

/// The plan of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) shards: u32,
    /// Of messages between nodes.
    pub(crate) latency_ms: Span,
    /// By node.
    pub(crate) machines: Vec<MachinePlan>,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// Of most values; a few are [`LARGE_BYTES`] long.
    pub(crate) value_bytes: Span,
    /// Between an answer and the client's next operation.
    pub(crate) think_ms: Span,
    /// With milliseconds since the clients began, ascending.
    pub(crate) steps: Vec<(u64, Step)>,
    /// The same.
    pub(crate) faults: Vec<(u64, Fault)>,
}

/// Values that do not fit into one piece of a peer envelope, nor into a small segment.
pub(crate) const LARGE_BYTES: Span = Span { least: 50_000, most: 90_000 };
/// One in so many values is large.
pub(crate) const LARGE_ODDS: u64 = 30;

const CLIENTS: u64 = 3;
const KEYS: u64 = 20;

impl Plan {
    pub(crate) fn draw(random: &Random, active: Duration) -> Self {
        let shards = if random.below(2) == 0 { 8 } else { 16 };
        let least = 1 + random.below(4);
        let latency_ms = Span { least, most: least + random.below(16) };
        let machines = machine_ids().map(|node| draw_machine(node, random)).collect();
        let value_bytes = Span { least: 12, most: 12 + random.below(1000) };
        let think_ms = Span { least: 5, most: 30 + random.below(60) };
        let active_ms = u64::try_from(active.as_millis()).unwrap_or(u64::MAX);
        let steps = draw_steps(random, active_ms);
        let faults = draw_faults(random, active_ms);
        let (clients, keys) = (CLIENTS, KEYS);
        Self { shards, latency_ms, machines, clients, keys, value_bytes, think_ms, steps, faults }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, latency_ms, machines, clients, keys, value_bytes, think_ms, .. } = self;
        write!(
            f,
            "{shards} shards, messages {latency_ms} ms, {clients} clients on {keys} keys, values \
             {value_bytes} bytes, think {think_ms} ms, {} faults",
            self.faults.len()
        )?;
        for (at_ms, step) in &self.steps {
            write!(f, "; after {at_ms} ms {step}")?;
        }
        for MachinePlan { node, clock_per_mille, sync_ms, segment_bytes } in machines {
            write!(
                f,
                "; node {node}: clock {clock_per_mille} per mille, sync {sync_ms} ms, segments \
                 {segment_bytes} bytes"
            )?;
        }
        Ok(())
    }
}

fn draw_machine(node: NodeId, random: &Random) -> MachinePlan {
    let clock_per_mille = Span { least: 900, most: 1100 }.draw(random);
    let least = 1 + random.below(4);
    let sync_ms = Span { least, most: least + random.below(8) };
    let segment_bytes = 65_536_u64 << random.below(4);
    MachinePlan { node, clock_per_mille, sync_ms, segment_bytes }
}

/// In this order, some seconds apart: each meets a cluster that may still be busy with the one before.
/// Those for which a short run has no time are left out.
fn draw_steps(random: &Random, active_ms: u64) -> Vec<(u64, Step)> {
    let nodes = u64::from(NODES);
    let nth = |place: u64| NodeId(u32::try_from(place % nodes).unwrap_or(0) + 1);
    let drained = random.below(u64::from(FOUNDERS));
    // Not the drained one: what it is to lose would be gone.
    let wiped = nth(drained + 1 + random.below(nodes - 1));
    let down_ms = Span { least: 200, most: 4000 }.draw(random);
    let mut steps = vec![
        (300 + random.below(700), Step::Join { node: NodeId(NODES) }),
        (6_000 + random.below(2_000), Step::Drain { node: nth(drained) }),
        (12_000 + random.below(2_000), Step::Wipe { node: wiped, down_ms }),
        (18_000 + random.below(2_000), Step::Forget),
    ];
    steps.retain(|(at_ms, _)| at_ms + 200 < active_ms);
    steps
}

fn draw_faults(random: &Random, active_ms: u64) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let mut at_ms = 200 + random.below(600);
    // The last ones leave some time to be felt.
    while at_ms + 200 < active_ms {
        faults.push((at_ms, draw_fault(random)));
        at_ms += 100 + random.below(2400);
    }
    faults
}

fn draw_fault(random: &Random) -> Fault {
    let nodes = u64::from(NODES);
    let nth = |place: u64| NodeId(u32::try_from(place % nodes).unwrap_or(0) + 1);
    let place = random.below(nodes);
    let (node, other) = (nth(place), nth(place + 1 + random.below(nodes - 1)));
    let how = if random.below(2) == 0 { Cut::Hold } else { Cut::Reset };
    let down_ms = Span { least: 50, most: 2500 }.draw(random);
    let for_ms = Span { least: 100, most: 2500 }.draw(random);
    match random.below(16) {
        0..=2 => Fault::Kill { node, down_ms },
        3 | 4 => Fault::PowerCut { node, after_changes: None, down_ms },
        5 | 6 => Fault::PowerCut { node, after_changes: Some(random.below(8)), down_ms },
        7 => Fault::Blackout { down_ms },
        8 => Fault::SyncFailure { node, down_ms },
        9 | 10 => Fault::Cut { from: node, to: other, both: true, how, for_ms },
        11 => Fault::Cut { from: node, to: other, both: false, how, for_ms },
        12 | 13 => Fault::Isolate { node, how, for_ms },
        14 => {
            let least = 5 + random.below(20);
            let latency_ms = Span { least, most: least + random.below(100) };
            Fault::SlowNetwork { latency_ms, for_ms }
        }
        _ => Fault::SlowDisk { node, by_ms: 10 + random.below(300), for_ms },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan::draw(&Random::seeded(seed), Duration::from_secs(24))
    }

    #[test]
    fn equal_seeds_give_equal_plans_and_others_do_not() {
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_step_has_its_time_and_the_drained_node_is_not_wiped() {
        for seed in 0..100 {
            let steps = plan(seed).steps;
            assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let [_, (_, Step::Drain { node }), (_, Step::Wipe { node: wiped, .. }), _] = steps[..]
            else {
                panic!("{steps:?}");
            };
            assert_ne!(node, wiped);
            let short = Plan::draw(&Random::seeded(seed), Duration::from_secs(2)).steps;
            assert_eq!(short, steps[..1]);
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn_and_names_nodes_that_exist() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let faults = plan(seed).faults;
            assert!(faults.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for (at_ms, fault) in faults {
                assert!(at_ms < 24_000);
                let kind = match fault {
                    Fault::Kill { .. } => 0,
                    Fault::PowerCut { after_changes: None, .. } => 1,
                    Fault::PowerCut { after_changes: Some(_), .. } => 2,
                    Fault::Blackout { .. } => 3,
                    Fault::SyncFailure { .. } => 4,
                    Fault::Cut { from, to, both, .. } => {
                        assert!(from != to && machine_ids().any(|node| node == to));
                        if both { 5 } else { 6 }
                    }
                    Fault::Isolate { .. } => 7,
                    Fault::SlowNetwork { .. } => 8,
                    Fault::SlowDisk { .. } => 9,
                };
                kinds.insert(kind);
            }
        }
        assert_eq!(kinds.len(), 10);
    }
}
