//! What this node says of its replicas, to the manager and in answers to its commands.
//!
//! Sizes are read from the engine and are for planning only, so they are read every few seconds and
//! kept; all else is as of now.
//!
//! A replica that stays closed is told with its reason, so that the manager replaces it. So is a seat
//! that the table gives to this node and that nothing here ever was: the table alone brings replicas into
//! being only at the birth ([`birth::founds`]), so one that missed that moment, or died with a former life of
//! the folder, is replaced like a damaged one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use annulus_proto::convert::cluster_bytes;
use annulus_proto::v1;
use annulus_raft::{Group, Host, MembershipView, Reign};
use annulus_types::{ClusterId, GroupId, NodeId, ReplicaId, RoutingTable};
use annulus_wal::StreamId;

use super::{Node, birth};

/// Sizes that are older are read again, microseconds.
const SIZES_US: u64 = 5_000_000;

/// Live bytes of the groups' shards on this node, and when they were read.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    read_us: u64,
    by_group: BTreeMap<GroupId, u64>,
}

impl Sizes {
    fn are_fit(&self, now_us: u64, groups: &[Arc<Group>]) -> bool {
        now_us.saturating_sub(self.read_us) < SIZES_US
            && groups.iter().all(|group| self.by_group.contains_key(&group.id()))
    }
}

impl Node {
    /// Reads the sizes again if that is due.
    async fn measure(self: &Arc<Self>, groups: &[Arc<Group>]) {
        let now_us = self.env.clock.monotonic_us();
        if self.sizes.lock().are_fit(now_us, groups) {
            return;
        }
        let mut by_group: BTreeMap<GroupId, u64> =
            groups.iter().map(|group| (group.id(), 0)).collect();
        let shards = Arc::clone(&self.shards);
        let read = tokio::task::spawn_blocking(move || {
            for shard in shards.all() {
                // One that cannot be read says so where it is served.
                if let Ok(Some(head)) = shards.head(&shard) {
                    *by_group.entry(shard.group).or_default() += head.bytes;
                }
            }
            by_group
        });
        if let Ok(by_group) = read.await {
            *self.sizes.lock() = Sizes { read_us: now_us, by_group };
        }
    }

    /// A replica as it is now; `membership` is what was just learned of it.
    pub(super) fn report(&self, group: &Group, membership: MembershipView) -> v1::GroupReport {
        let status = group.status();
        let seats = membership.seats.iter().map(|seat| v1::SeatReport {
            replica: seat.replica.0,
            node: seat.node.0,
            voter: seat.voter,
            matched: seat.matched,
        });
        v1::GroupReport {
            group: status.group.0,
            replica: status.replica.0,
            role: v1::Role::from(status.role).into(),
            term: status.term,
            leader: status.leader.map(|node| node.0),
            membership_index: membership.index,
            joint: membership.joint,
            seats: seats.collect(),
            last_index: status.last_index,
            applied_index: status.applied_index,
            gate_open: status.gate_open,
            bytes: self.sizes.lock().by_group.get(&status.group).copied().unwrap_or(0),
            halted: status.halted.unwrap_or_default(),
            membership_committed: membership.committed,
        }
    }

    /// The heartbeat of a node that belongs to no cluster yet, or of one that holds nothing.
    pub(super) fn bare_heartbeat(&self, cluster: ClusterId) -> v1::HeartbeatRequest {
        let identity = self.folder.lock().identity();
        let Reign { era, incarnation } = self.fences.reign();
        v1::HeartbeatRequest {
            cluster_id: cluster_bytes(cluster),
            info: Some((&self.info).into()),
            incarnation: identity.incarnation,
            boot_counter: identity.boot_counter,
            table_version: self.tables.version().0,
            groups: Vec::new(),
            absent: Vec::new(),
            era,
            manager_incarnation: incarnation,
        }
    }

    /// What the manager is told every half second.
    pub(super) async fn heartbeat(self: &Arc<Self>, host: &Host) -> v1::HeartbeatRequest {
        let groups = host.groups();
        self.measure(&groups).await;
        let reports = groups.iter().map(|group| self.report(group, group.membership()));
        let closed = host.absent();
        let missing = match self.tables.current() {
            Some(table) => missed(&table, self.info.id, &streams(host), self.fences.reign().era),
            None => Vec::new(),
        };
        let why = "the table gives it to this node, and it never was here";
        let missing = missing.into_iter().map(|(group, replica)| (group, replica, why.to_owned()));
        let absent = closed.into_iter().chain(missing).map(|(group, replica, halted)| {
            let (group, replica) = (group.0, replica.0);
            v1::GroupReport { group, replica, halted, ..Default::default() }
        });
        v1::HeartbeatRequest {
            groups: reports.collect(),
            absent: absent.collect(),
            ..self.bare_heartbeat(host.options().cluster)
        }
    }
}

/// Replicas that the folder holds, or held.
fn streams(host: &Host) -> BTreeSet<StreamId> {
    host.wal().streams().into_iter().chain(host.wal().tombstones()).collect()
}

/// Seats that the table gives to `node`, that the folder has never known, and that no table of the manager of
/// this era brings into being.
fn missed(
    table: &RoutingTable,
    node: NodeId,
    known: &BTreeSet<StreamId>,
    era: u64,
) -> Vec<(GroupId, ReplicaId)> {
    let kept = table.groups.iter().filter(|route| !birth::founds(era, route));
    let seats = kept.flat_map(|route| {
        let own = route.members.iter().filter(move |member| member.node == node);
        own.map(move |member| (route.id, member.replica))
    });
    seats.filter(|(group, replica)| !known.contains(&stream(*group, *replica))).collect()
}

fn stream(group: GroupId, replica: ReplicaId) -> StreamId {
    StreamId { group, replica }
}

#[cfg(test)]
mod tests {
    use annulus_types::{GroupRoute, MemberRole, MemberRoute};

    use super::*;

    #[test]
    fn a_seat_that_never_was_here_is_missed_when_no_table_founds_it_any_more() {
        let member = |node: u32| MemberRoute {
            node: NodeId(node),
            replica: ReplicaId(u64::from(10 + node)),
            role: MemberRole::Voter,
        };
        let group = |id: u64, membership_index: u64| GroupRoute {
            id: GroupId(id),
            home: NodeId(1),
            lane: 0,
            members: vec![member(1), member(2)],
            leader: None,
            term: 0,
            membership_index,
        };
        let groups = vec![group(1, 0), group(2, 9), group(3, 9)];
        let table = RoutingTable { groups, ..RoutingTable::default() };
        let known = BTreeSet::from([stream(GroupId(3), ReplicaId(12))]);
        let missing = missed(&table, NodeId(2), &known, 1);
        assert_eq!(missing, [(GroupId(2), ReplicaId(12))], "the first group is founded");
        let missing = missed(&table, NodeId(2), &known, 2);
        assert_eq!(missing, [(GroupId(1), ReplicaId(12)), (GroupId(2), ReplicaId(12))]);
        assert!(missed(&table, NodeId(3), &known, 2).is_empty());
    }
}
