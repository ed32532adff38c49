//! What a node says that its folder holds, and what the cluster means it to hold, as groups and replicas.
//! Pure.
//!
//! A replica that stays closed (damaged, without its state, half destroyed) is held, and not open. One that
//! nobody gave a seat to is an *orphan*, open or not. While moves are under way the two differ rightly: an
//! old replica is there until it has retired, a new one before it has its seat.

use std::collections::BTreeSet;

use annulus_client::{OverviewReply, StatusReply};

/// Groups and replicas.
pub(super) type Seats = BTreeSet<(u64, u64)>;

/// What the node tells of its replicas, and whether they are open; nothing when it did not answer.
fn told(status: &StatusReply, node: u32) -> impl Iterator<Item = ((u64, u64), bool)> {
    let mut nodes = status.nodes.iter();
    let own = nodes.find(|own| own.info.as_ref().is_some_and(|info| info.id == node));
    let replicas = own.into_iter().flat_map(|own| &own.replicas);
    replicas.map(|replica| ((replica.group, replica.replica), replica.halted.is_empty()))
}

/// Replicas that the node holds, closed ones too.
pub(super) fn held(status: &StatusReply, node: u32) -> Seats {
    told(status, node).map(|(seat, _)| seat).collect()
}

/// Those of them that are open and have not halted.
pub(super) fn open(status: &StatusReply, node: u32) -> Seats {
    told(status, node).filter(|(_, is_open)| *is_open).map(|(seat, _)| seat).collect()
}

/// Replicas that the routing table and the manager's group give the node.
pub(super) fn meant(status: &StatusReply, overview: &OverviewReply, node: u32) -> Seats {
    let groups = status.table.iter().flat_map(|table| &table.groups);
    let seats = groups.flat_map(|group| group.members.iter().map(move |member| (group.id, member)));
    let manager = overview.manager.iter().map(|member| (0, member));
    let own = seats.chain(manager).filter(|(_, member)| member.node == node);
    own.map(|(group, member)| (group, member.replica)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_replica_is_held_and_not_open() {
        let mut status = StatusReply::default();
        for node in [1, 2] {
            status.nodes.push(Default::default());
            let own = status.nodes.last_mut().unwrap();
            own.info = Some(Default::default());
            own.info.as_mut().unwrap().id = node;
            for (group, halted) in [(7, ""), (8, "damage")] {
                own.replicas.push(Default::default());
                let replica = own.replicas.last_mut().unwrap();
                (replica.group, replica.replica) = (group, group * 10 + u64::from(node));
                replica.halted = halted.to_owned();
            }
        }
        assert_eq!(held(&status, 1), Seats::from([(7, 71), (8, 81)]));
        assert_eq!(open(&status, 1), Seats::from([(7, 71)]));
        assert!(held(&status, 3).is_empty());
    }

    #[test]
    fn seats_are_those_of_the_table_and_of_the_manager() {
        let mut status = StatusReply::default();
        let table = status.table.insert(Default::default());
        table.groups.push(Default::default());
        let group = table.groups.last_mut().unwrap();
        group.id = 7;
        for node in [1, 2] {
            group.members.push(Default::default());
            let member = group.members.last_mut().unwrap();
            (member.node, member.replica) = (node, 70 + u64::from(node));
        }
        let mut overview = OverviewReply::default();
        overview.manager.push(Default::default());
        let member = overview.manager.last_mut().unwrap();
        (member.node, member.replica) = (2, 92);
        assert_eq!(meant(&status, &overview, 1), Seats::from([(7, 71)]));
        assert_eq!(meant(&status, &overview, 2), Seats::from([(0, 92), (7, 72)]));
    }
}
