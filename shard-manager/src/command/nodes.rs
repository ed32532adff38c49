//! Nodes: which life of a folder is admitted (N1), who is down, what operators want.
//!
//! One life per node id. Another one is let in only when the admitted life is down or silent; from
//! then on the former is refused for ever, and the replicas that it held are lost, whatever their
//! disk may say: a wiped node under its old replica ids would be an empty voter. Of a node of which
//! nobody remembers the admitted life (a manager that was made anew) the first life that comes is let
//! in; what it does not hold then is lost, for it may be a wiped one.

use annulus_proto::v1;
use annulus_proto::v1::node_change::Change as Wanted;
use annulus_ring::placement::WEIGHT_LIMIT;

use super::{About, Change, Refusal};
use crate::state::{StateExt, id_of, is_up, new_node, seats_on};

/// Longest zone, bytes.
const ZONE_BYTES: usize = 64;

/// What a life of a folder that knocks is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It belongs to the cluster, and everything about it is known.
    Known,
    /// It may come in, come back, or tell its new addresses: that takes a command.
    Enter,
    /// It may not.
    Refused {
        /// Why, for people.
        reason: String,
        /// For ever.
        dead: bool,
    },
}

/// Judges a life of a folder. `former_silent`: the admitted life said nothing for 10 s.
#[must_use]
pub fn admission(
    state: &v1::ManagerState,
    info: &v1::NodeInfo,
    incarnation: u64,
    former_silent: bool,
) -> Admission {
    let id = info.id;
    let refused = |dead: bool, reason: String| Admission::Refused { reason, dead };
    if id == 0 || incarnation == 0 {
        return refused(false, "a node needs an id and a life of its folder".to_owned());
    }
    let Some(known) = state.node(id) else {
        return match check_new(info) {
            Ok(()) => Admission::Enter,
            Err(reason) => refused(false, reason),
        };
    };
    if known.state() == v1::NodeState::Removed {
        return refused(true, format!("node {id} was removed, and no node gets its id again"));
    }
    if known.former.contains(&incarnation) {
        let here = peer_addr(known);
        return refused(true, format!("node {id} goes on with another data folder, at {here}"));
    }
    if known.incarnation == incarnation {
        let news = updated(known, info);
        let is_news = !is_up(known) || known.info.as_ref() != Some(&news);
        return if is_news { Admission::Enter } else { Admission::Known };
    }
    // 0: nobody remembers which life it was, so the first that comes is taken at its word.
    if known.incarnation == 0 || !is_up(known) || former_silent {
        return Admission::Enter;
    }
    let (here, there) = (peer_addr(known), &info.peer_addr);
    refused(
        false,
        format!("node {id} is alive at {here}; the one at {there} has another data folder"),
    )
}

fn check_new(info: &v1::NodeInfo) -> Result<(), String> {
    if info.weight == 0 || info.weight > WEIGHT_LIMIT {
        return Err(format!("the weight must be from 1 to {WEIGHT_LIMIT}, got {}", info.weight));
    }
    if info.zone.len() > ZONE_BYTES {
        return Err(format!("a zone has at most {ZONE_BYTES} bytes, got {}", info.zone.len()));
    }
    if !info.storage && !info.manager {
        return Err("a node needs a role".to_owned());
    }
    Ok(())
}

fn peer_addr(node: &v1::NodeRecord) -> &str {
    node.info.as_ref().map_or("", |info| info.peer_addr.as_str())
}

/// What is told of a known node, with what only an operator changes as it was.
fn updated(known: &v1::NodeRecord, told: &v1::NodeInfo) -> v1::NodeInfo {
    let Some(info) = &known.info else { return told.clone() };
    v1::NodeInfo { zone: info.zone.clone(), weight: info.weight, ..told.clone() }
}

pub(super) fn admit(change: &mut Change, admit: &v1::AdmitNode) -> Result<(), Refusal> {
    let Some(told) = &admit.info else {
        return Err(Refusal::Unreadable("a node without a description".to_owned()));
    };
    match admission(&change.state, told, admit.incarnation, admit.former_silent) {
        Admission::Known => return Ok(()),
        Admission::Enter => {}
        Admission::Refused { reason, .. } => return Err(Refusal::Stale(reason)),
    }
    let (id, addr) = (told.id, &told.peer_addr);
    let Some(known) = change.state.node(id).cloned() else {
        change.state.nodes.push(new_node(told.clone(), admit.incarnation));
        change.state.nodes.sort_by_key(id_of);
        change.decide(About::node(id), format!("node {id} joins at {addr}"), "it is new");
        return Ok(());
    };
    let mut next = known.clone();
    next.info = Some(updated(&known, told));
    next.set_state(v1::NodeState::Up);
    next.down_since_ms = 0;
    let (what, why) = if known.incarnation == admit.incarnation {
        let why = if is_up(&known) { "its description changed" } else { "it is heard again" };
        (format!("node {id} is up at {addr}"), why)
    } else if known.incarnation == 0 {
        let seats = held_by(&change.state, id).into_iter();
        next.lost.extend(seats.filter(|replica| !admit.held.contains(replica)));
        next.lost.sort_unstable();
        next.lost.dedup();
        (format!("node {id} is up at {addr}"), "nobody remembers which data folder it had")
    } else {
        next.former.push(known.incarnation);
        next.lost.extend(held_by(&change.state, id));
        let why = "the data folder that was admitted before is silent";
        (format!("node {id} begins anew at {addr}; its seats are damaged"), why)
    };
    next.incarnation = admit.incarnation;
    if let Some(record) = change.node_mut(id) {
        *record = next;
    }
    change.decide(About::node(id), what, why);
    Ok(())
}

/// Replicas that a node holds or is being given.
fn held_by(state: &v1::ManagerState, node: u32) -> Vec<u64> {
    let seated = state.all_groups().flat_map(|group| seats_on(group, node));
    let coming = state.unfinished().filter_map(|step| step.to).filter(|seat| seat.node == node);
    seated.chain(coming).map(|seat| seat.replica).filter(|replica| *replica != 0).collect()
}

pub(super) fn silent(change: &mut Change, silent: v1::NodeSilent) -> Result<(), Refusal> {
    let id = silent.node;
    let now_ms = change.now_ms;
    let record = change.node_mut(id).filter(|node| is_up(node));
    let Some(record) = record.filter(|node| node.incarnation == silent.incarnation) else {
        return Err(Refusal::Stale(format!("node {id} is not up in that life")));
    };
    record.set_state(v1::NodeState::Down);
    record.down_since_ms = now_ms.max(1);
    change.decide(About::node(id), format!("node {id} is down"), "it was not heard for 3 s");
    Ok(())
}

pub(super) fn change_node(change: &mut Change, wanted: &v1::NodeChange) -> Result<(), Refusal> {
    let id = wanted.node;
    let Some(record) = change.state.node(id) else {
        return Err(Refusal::wrong("node", format!("there is no node {id}")));
    };
    if record.state() == v1::NodeState::Removed {
        return Err(Refusal::wrong("node", format!("node {id} is removed")));
    }
    let Some(wanted) = &wanted.change else {
        return Err(Refusal::wrong("change", "is missing"));
    };
    let mut next = record.clone();
    let mut info = next.info.take().unwrap_or_default();
    let what = match wanted {
        Wanted::Draining(true) => {
            next.draining = true;
            format!("everything is taken off node {id}")
        }
        Wanted::Draining(false) => {
            next.draining = false;
            format!("node {id} takes its share again")
        }
        Wanted::Weight(weight) => {
            if *weight == 0 || *weight > WEIGHT_LIMIT {
                let message = format!("must be from 1 to {WEIGHT_LIMIT}, got {weight}");
                return Err(Refusal::wrong("weight", message));
            }
            info.weight = *weight;
            format!("node {id} weighs {weight} hundredths from the next rebalance on")
        }
        Wanted::Zone(zone) => {
            check_zone(zone)?;
            info.zone.clone_from(zone);
            format!("node {id} is in the zone {zone:?} from the next rebalance on")
        }
        Wanted::Remove(_) => {
            check_empty(&change.state, id)?;
            next.set_state(v1::NodeState::Removed);
            next.former.push(next.incarnation);
            format!("node {id} is removed for ever")
        }
    };
    next.info = Some(info);
    if *record == next {
        return Ok(());
    }
    if let Some(record) = change.node_mut(id) {
        *record = next;
    }
    change.decide(About::node(id), what, "an operator said so");
    Ok(())
}

fn check_zone(zone: &str) -> Result<(), Refusal> {
    let plain = |c: char| c != ',' && !c.is_whitespace() && !c.is_control();
    if zone.len() > ZONE_BYTES {
        let message = format!("at most {ZONE_BYTES} bytes, got {}", zone.len());
        return Err(Refusal::wrong("zone", message));
    }
    if !zone.chars().all(plain) {
        let message = format!("{zone:?} has a comma, white space or a control character");
        return Err(Refusal::wrong("zone", message));
    }
    Ok(())
}

/// A node leaves only when no group counts on it: what it holds may be the last copy.
fn check_empty(state: &v1::ManagerState, id: u32) -> Result<(), Refusal> {
    let seats = state.groups.iter().filter(|group| seats_on(group, id).next().is_some()).count();
    if seats > 0 {
        let message = format!(
            "node {id} has a seat in {seats} groups: drain it first, or let it be replaced when it \
             is down"
        );
        return Err(Refusal::wrong("node", message));
    }
    if state.manager.as_ref().is_some_and(|group| seats_on(group, id).next().is_some()) {
        let message = format!("node {id} has a seat in the manager's group: drain it first");
        return Err(Refusal::wrong("node", message));
    }
    let comes = |step: &&v1::Move| step.to.is_some_and(|to| to.node == id);
    if let Some(step) = state.unfinished().find(comes) {
        let message = format!("move {} is about to use node {id}: cancel it first", step.id);
        return Err(Refusal::wrong("node", message));
    }
    Ok(())
}
