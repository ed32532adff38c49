//! From a choice to steps: who replaces whom, when the home changes, and in what order.
//!
//! A group's leaving seats are sorted by how little they are worth: dead, damaged, draining, sound.
//! The members that come replace them in that order, so that what is urgent is not kept waiting by
//! what is not; a seat that nobody left is filled with the repairs. The home, when it must come
//! first, takes the very first of these reseats: then every step that waits for it is later, and
//! no less urgent. The others prefer to replace a node of their own zone.
//!
//! A home that can lead and is replaced by the new home loses its seat in two steps, with the change
//! of leadership between them: a reseat alone would have to lead the group from a third place first.
//!
//! Invariants: those of the order in the text of the planner. What is not decided here: which table
//! to reach.

use std::collections::BTreeSet;
use std::iter::repeat_n;

use annulus_types::NodeId;

use super::choice::Choice;
use super::cluster::{Cluster, GroupView};
use super::{NodeState, Priority, Rule, Step, StepKind};

/// All steps, and what stays.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub steps: Vec<Step>,
    /// By position of the group: members that should leave, and have nobody to take their seats.
    pub stays: Vec<BTreeSet<NodeId>>,
}

/// The steps from the present table to the choices.
pub(super) fn draft(cluster: &Cluster<'_>, choices: &[Option<Choice>]) -> Drafts {
    let counts = Counts::of(cluster);
    let mut drafts = Drafts::default();
    let mut all = Vec::new();
    for (view, choice) in cluster.groups.iter().zip(choices) {
        let mut stays = BTreeSet::new();
        if let Some(choice) = choice {
            let mut draft = Draft { cluster, view, choice, counts: &counts, steps: Vec::new() };
            stays = draft.write();
            let bytes = view.group.bytes;
            all.extend(draft.steps.into_iter().map(|(copies, step)| {
                let margin = if step.priority == Priority::Repair { view.margin() } else { 0 };
                let urgency = if copies { (margin, bytes) } else { (0, 0) };
                ((step.priority, copies, urgency, view.group.id), step)
            }));
        }
        drafts.stays.push(stays);
    }
    // Stable: the steps of one group keep their order.
    all.sort_by_key(|(place, _)| *place);
    drafts.steps = all.into_iter().map(|(_, step)| step).collect();
    drafts
}

/// What the nodes that are up have now, by position.
struct Counts {
    homes: Vec<u64>,
    seats: Vec<u64>,
}

impl Counts {
    fn of(cluster: &Cluster<'_>) -> Self {
        let mut counts =
            Self { homes: vec![0; cluster.up.len()], seats: vec![0; cluster.up.len()] };
        for view in &cluster.groups {
            if let Some(at) = cluster.position(view.group.home) {
                counts.homes[at] += 1;
            }
            for at in view.seats.keys().filter_map(|node| cluster.position(*node)) {
                counts.seats[at] += 1;
            }
        }
        counts
    }
}

/// How little a leaving seat is worth; the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Dead,
    Damaged,
    Draining,
    Sound,
}

impl Grade {
    fn priority(self) -> Priority {
        match self {
            Self::Dead | Self::Damaged => Priority::Repair,
            Self::Draining => Priority::Drain,
            Self::Sound => Priority::Rebalance,
        }
    }

    fn is_live(self) -> bool {
        matches!(self, Self::Draining | Self::Sound)
    }
}

/// A member that the next table does not have.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    node: NodeId,
    grade: Grade,
}

/// Who replaces whom.
struct Pairing {
    /// Who leaves, if somebody does, and who comes.
    reseats: Vec<(Option<Leaving>, NodeId)>,
    /// Members too many.
    dropped: Vec<Leaving>,
    /// Members that nobody can replace.
    stays: BTreeSet<NodeId>,
}

impl Pairing {
    fn priority((leaving, _): &(Option<Leaving>, NodeId)) -> Priority {
        leaving.map_or(Priority::Repair, |leaving| leaving.grade.priority())
    }
}

/// How a group comes to be led by its home.
struct Handover {
    steps: Vec<(StepKind, Rule)>,
    priority: Priority,
    /// Whether it follows the reseat that gives the home its copy; otherwise it waits for nothing
    /// of its own priority.
    follows: bool,
}

/// The steps of one group, as far as they are written.
struct Draft<'a> {
    cluster: &'a Cluster<'a>,
    view: &'a GroupView<'a>,
    choice: &'a Choice,
    counts: &'a Counts,
    /// With each, whether it stands among those that copy.
    steps: Vec<(bool, Step)>,
}

impl Draft<'_> {
    /// Writes all steps and returns the members that stay.
    fn write(&mut self) -> BTreeSet<NodeId> {
        let (view, choice) = (self.view, self.choice);
        let Pairing { reseats, dropped, stays } = self.pair();
        let handover = self.handover(&reseats);
        if let Some(handover) = handover.as_ref().filter(|handover| !handover.follows) {
            self.hand_over(handover, false);
        }
        let following = handover.filter(|handover| handover.follows);
        let damaged = view.seats.iter().filter(|(_, damaged)| **damaged).map(|(node, _)| *node);
        for node in damaged.filter(|node| choice.members.contains(node)) {
            self.reseat(Some(node), Some(node), Priority::Repair, Rule::Damaged { node });
            self.arrived(node, following.as_ref());
        }
        for pair in &reseats {
            let (leaving, to) = *pair;
            let (rule, priority) = (self.reason(leaving, to), Pairing::priority(pair));
            let old_leads =
                leaving.is_some_and(|seat| seat.grade.is_live() && seat.node == view.group.home);
            let from = leaving.map(|seat| seat.node);
            if old_leads && to == choice.home {
                // In two steps: the new home leads before the old one loses its seat.
                self.reseat(None, Some(to), priority, rule.clone());
                self.arrived(to, following.as_ref());
                self.reseat(from, None, priority, rule);
            } else {
                self.reseat(from, Some(to), priority, rule);
                self.arrived(to, following.as_ref());
            }
        }
        let wanted = self.cluster.replication;
        for Leaving { node, grade } in dropped {
            let rule = Rule::Surplus { members: view.seats.len(), wanted };
            self.reseat(Some(node), None, grade.priority(), rule);
        }
        stays
    }

    fn pair(&self) -> Pairing {
        let (cluster, view, choice) = (self.cluster, self.view, self.choice);
        let mut coming: Vec<NodeId> =
            choice.members.iter().copied().filter(|node| !view.seats.contains_key(node)).collect();
        coming.sort_by_key(|node| (*node != choice.home, cluster.rank(view, *node)));
        let mut leaving: Vec<Leaving> = view
            .seats
            .iter()
            .filter(|(node, _)| !choice.members.contains(*node))
            .map(|(node, damaged)| Leaving { node: *node, grade: self.grade(*node, *damaged) })
            .collect();
        leaving.sort_by_key(|seat| (seat.grade, seat.node == view.group.home, seat.node));

        let urgent = leaving.partition_point(|seat| seat.grade.priority() == Priority::Repair);
        let empty = coming.len().saturating_sub(leaving.len());
        // The seats that nobody left are filled with the repairs.
        let later = leaving.split_off(urgent);
        let mut slots: Vec<Option<Leaving>> = leaving.into_iter().map(Some).collect();
        slots.extend(repeat_n(None, empty));
        slots.extend(later.into_iter().map(Some));

        let mut rest: Vec<Leaving> = slots.split_off(coming.len()).into_iter().flatten().collect();
        let mut reseats = Vec::new();
        for leaving in slots {
            let zone = leaving.and_then(|leaving| cluster.zone_name(leaving.node));
            let same_zone = |node: &NodeId| zone.is_some() && cluster.zone_name(*node) == zone;
            // The home stands first as long as it is there, and waits for nobody.
            let at = match coming.first() {
                Some(first) if *first == choice.home => 0,
                _ => coming.iter().position(same_zone).unwrap_or(0),
            };
            reseats.push((leaving, coming.remove(at)));
        }
        // With fewer nodes than the replication asks for, the seats of those that leave may stay.
        let may_stay = cluster.replication - cluster.size;
        let stays = rest.split_off(rest.len().saturating_sub(may_stay));
        let stays = stays.into_iter().map(|seat| seat.node).collect();
        Pairing { reseats, dropped: rest, stays }
    }

    fn grade(&self, node: NodeId, damaged: bool) -> Grade {
        match self.cluster.state(node) {
            NodeState::Dead => Grade::Dead,
            _ if damaged => Grade::Damaged,
            NodeState::Draining => Grade::Draining,
            NodeState::Up => Grade::Sound,
        }
    }

    /// What makes the home lead; nothing when it is the home already and has its data.
    fn handover(&self, reseats: &[(Option<Leaving>, NodeId)]) -> Option<Handover> {
        let (group, home) = (self.view.group.id, self.choice.home);
        let ready = self.view.has_sound(home);
        let arrives = match reseats.first() {
            Some(first) if first.1 == home => Pairing::priority(first),
            _ => Priority::Repair,
        };
        let transfer = StepKind::Transfer { group, to: home };
        if home == self.view.group.home {
            let steps = vec![(transfer, Rule::Leads { node: home })];
            return (!ready).then_some(Handover { steps, priority: arrives, follows: true });
        }
        let (rule, cause) = self.why_rehomed();
        let rehome = StepKind::Rehome { group, home, lane: self.choice.lane };
        let steps = vec![(rehome, rule.clone()), (transfer, rule)];
        let priority = if ready { cause } else { cause.max(arrives) };
        Some(Handover { steps, priority, follows: !ready && priority == arrives })
    }

    fn why_rehomed(&self) -> (Rule, Priority) {
        let old = self.view.group.home;
        let leaves = !self.choice.members.contains(&old);
        let damaged = self.view.seats.get(&old) == Some(&true);
        match self.grade(old, damaged) {
            Grade::Dead => (Rule::Dead { node: old }, Priority::Repair),
            Grade::Damaged if leaves => (Rule::HomeLeaves { node: old }, Priority::Repair),
            Grade::Draining => (Rule::Draining { node: old }, Priority::Drain),
            _ if leaves => (Rule::HomeLeaves { node: old }, Priority::Rebalance),
            _ => {
                let quotas = &self.cluster.quotas.homes;
                let uneven = self.uneven(&self.counts.homes, quotas, old, self.choice.home);
                let rule = uneven.map_or(Rule::Exchange, |(node, has, quota)| Rule::Homes {
                    node,
                    has,
                    quota,
                });
                (rule, Priority::Rebalance)
            }
        }
    }

    /// Why one node takes a seat, from another if one leaves.
    fn reason(&self, leaving: Option<Leaving>, to: NodeId) -> Rule {
        let Some(Leaving { node, grade }) = leaving else {
            let members = self.view.seats.len();
            return Rule::Undersized { members, wanted: self.cluster.size };
        };
        match grade {
            Grade::Dead => Rule::Dead { node },
            Grade::Damaged => Rule::Damaged { node },
            Grade::Draining => Rule::Draining { node },
            Grade::Sound => self.why_moved(node, to),
        }
    }

    fn why_moved(&self, from: NodeId, to: NodeId) -> Rule {
        let cluster = self.cluster;
        let zones: BTreeSet<&str> = self
            .view
            .seats
            .keys()
            .filter(|node| cluster.state(**node) == NodeState::Up)
            .filter_map(|node| cluster.zone_name(*node))
            .collect();
        let possible = cluster.zones.len().min(cluster.size);
        let widens = cluster.zone_name(to).is_some_and(|zone| !zones.contains(zone));
        if widens && zones.len() < possible {
            return Rule::Zones { used: zones.len(), possible };
        }
        self.uneven(&self.counts.seats, &cluster.quotas.targets, from, to)
            .map_or(Rule::Exchange, |(node, has, quota)| Rule::Seats { node, has, quota })
    }

    /// The one of two nodes whose quota asks for a move between them, with what it has and gets.
    fn uneven(
        &self,
        counts: &[u64],
        quotas: &[u64],
        from: NodeId,
        to: NodeId,
    ) -> Option<(NodeId, u64, u64)> {
        let told = |node: NodeId| {
            let at = self.cluster.position(node)?;
            Some((node, counts[at], quotas[at]))
        };
        let lacks = told(to).filter(|(_, has, quota)| has < quota);
        lacks.or_else(|| told(from).filter(|(_, has, quota)| has > quota))
    }

    /// A node has its copy now; if it is the home that was waited for, it takes over.
    fn arrived(&mut self, node: NodeId, following: Option<&Handover>) {
        if let Some(handover) = following.filter(|_| node == self.choice.home) {
            self.hand_over(handover, true);
        }
    }

    fn hand_over(&mut self, handover: &Handover, copies: bool) {
        for (kind, rule) in &handover.steps {
            let (rule, priority) = (rule.clone(), handover.priority);
            self.steps.push((copies, Step { kind: *kind, bytes: 0, rule, priority }));
        }
    }

    fn reseat(&mut self, from: Option<NodeId>, to: Option<NodeId>, priority: Priority, rule: Rule) {
        let kind = StepKind::Reseat { group: self.view.group.id, from, to };
        let bytes = to.map_or(0, |_| self.view.group.bytes);
        self.steps.push((true, Step { kind, bytes, rule, priority }));
    }
}
