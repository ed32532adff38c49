//! Groups: what their leaders reported, and who shall lead them.
//!
//! What is observed counts only if its membership is newer than the stored one (H6). Members are
//! taken as the group says; the home is wanted, not observed, and stays.

use annulus_proto::v1;

use super::{About, Change, Refusal, moves};
use crate::state::{StateExt, is_up, order_members, seats_on};

pub(super) fn observe(change: &mut Change, observed: &v1::ObserveGroups) {
    for seen in &observed.groups {
        let Some(group) = change.group_mut(seen.group) else { continue };
        if seen.membership_index < group.membership_index {
            continue;
        }
        group.bytes = seen.bytes;
        if seen.membership_index == group.membership_index {
            continue;
        }
        let mut members = seen.members.clone();
        order_members(&mut members, group.home);
        let mut known = group.members.clone();
        order_members(&mut known, group.home);
        group.membership_index = seen.membership_index;
        group.members.clone_from(&members);
        if known != members {
            let what = format!("group {} has the members {}", seen.group, list(&members));
            let why = format!("its entry {} says so", seen.membership_index);
            change.decide(About::group(seen.group), what, why);
        }
    }
}

/// Node ids, learners in brackets.
fn list(members: &[v1::MemberRoute]) -> String {
    let one = |member: &v1::MemberRoute| {
        if member.learner { format!("({})", member.node) } else { member.node.to_string() }
    };
    members.iter().map(one).collect::<Vec<_>>().join(", ")
}

pub(super) fn transfer(change: &mut Change, wanted: v1::TransferTo) -> Result<(), Refusal> {
    let (id, node) = (wanted.group, wanted.node);
    if change.state.settings().paused {
        return Err(Refusal::wrong("group", "moves are paused"));
    }
    let Some(group) = change.state.group(id) else {
        return Err(Refusal::wrong("group", format!("there is no group {id}")));
    };
    if !seats_on(group, node).any(|seat| !seat.learner) {
        return Err(Refusal::wrong("node", format!("node {node} has no vote in group {id}")));
    }
    if !change.state.node(node).is_some_and(is_up) {
        return Err(Refusal::wrong("node", format!("node {node} is not up")));
    }
    let is_home = group.home == node;
    if let Some(step) = change.state.running().find(|step| step.group == id) {
        return Err(Refusal::wrong("group", format!("move {} of it is under way", step.id)));
    }
    if let Some(group) = change.group_mut(id).filter(|_| id != 0) {
        group.pinned = if is_home { 0 } else { node };
    }
    let step = v1::Move {
        kind: v1::MoveKind::Transfer.into(),
        group: id,
        to: Some(v1::MemberRoute { node, replica: 0, learner: false }),
        rule: "an operator asked for it".to_owned(),
        ..Default::default()
    };
    change.outcome.id = moves::push(change, step)?;
    Ok(())
}

pub(super) fn balance_leaders(change: &mut Change) {
    let mut freed = 0;
    for group in change.state.groups.iter_mut().filter(|group| group.pinned != 0) {
        group.pinned = 0;
        freed += 1;
    }
    let what = format!("homes lead their groups again; {freed} were led by others on demand");
    change.decide(About::default(), what, "an operator said so");
}
