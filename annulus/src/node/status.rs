//! The state of the cluster, put together from what the nodes say of themselves and what the manager
//! thinks of them.
//!
//! Everybody is asked at once, with a limit: who does not answer is left out, also the manager. Then
//! who leads it is what this node last heard, and all else of it is unknown.
//!
//! A node tells every replica that its folder holds. One that is not open (it is damaged, its state is lost,
//! it is being destroyed) has a reason in `halted`, no role, and nothing else: it leads and serves nothing.

use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_raft::Host;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind, GroupId, MemberRole, MemberRoute, NodeInfo, ReplicaId};

use super::{Lead, Node, admin};

/// A node that does not answer within this is left out of the state.
const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// So is the manager.
const MANAGER_LIMIT: Duration = Duration::from_millis(300);
/// Why a replica serves nothing that is closed for no reason that is kept.
const CLOSED: &str = "it is not open";

impl Node {
    /// What the `Status` call answers; with `local` only what this node knows of itself.
    pub(super) async fn status(&self, local: bool) -> Result<v1::StatusReply, Error> {
        let Some(host) = self.host() else {
            let reason = "this node belongs to no cluster yet".to_owned();
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        };
        let mut nodes = vec![self.own_status()];
        let table = self.tables.annotated(&host);
        let mut overview = None;
        if !local {
            let known = table.as_ref().map(|table| table.nodes.clone()).unwrap_or_default();
            let others = known.iter().filter(|info| info.id != self.info.id);
            let asked = others.map(|info| self.ask_status(info));
            let answers = futures_util::future::join_all(asked);
            let (answers, thought) = tokio::join!(answers, self.ask_overview());
            nodes.extend(answers.into_iter().flatten());
            nodes.sort_by_key(|node| node.info.as_ref().map_or(0, |info| info.id));
            overview = thought;
        }
        let manager_leader = match (&overview, self.lead()) {
            (Some(overview), _) => Some(overview.leader),
            (None, Lead::Here(_)) => Some(self.info.id.0),
            (None, Lead::At(node)) => Some(node.0),
            (None, Lead::Unknown) => None,
        };
        let manager = match (&overview, host.group(GroupId::MANAGER)) {
            (_, Some(group)) => group
                .status()
                .members
                .iter()
                .map(|member| {
                    let role = if member.voter { MemberRole::Voter } else { MemberRole::Learner };
                    let (node, replica) = (member.node, member.replica);
                    v1::MemberRoute::from(&MemberRoute { node, replica, role })
                })
                .collect(),
            (Some(overview), None) => overview.manager.clone(),
            (None, None) => Vec::new(),
        };
        let table = table.as_ref().map(v1::RoutingTable::from);
        Ok(v1::StatusReply { table, nodes, manager, manager_leader, overview })
    }

    async fn ask_status(&self, info: &NodeInfo) -> Option<v1::NodeStatus> {
        let asked = async {
            let channel = annulus_raft::channel(&self.env, &info.addr).await.ok()?;
            let mut client = AdminClient::new(channel).max_decoding_message_size(DECODE_BYTES);
            let request = v1::StatusRequest { header: None, local: true };
            client.status(request).await.ok()?.into_inner().nodes.into_iter().next()
        };
        tokio::time::timeout(STATUS_LIMIT, asked).await.ok().flatten()
    }

    async fn ask_overview(&self) -> Option<v1::OverviewReply> {
        let asked = async {
            match self.lead() {
                Lead::Here(manager) => manager.overview().await.ok(),
                Lead::At(leader) => {
                    let addr = self.book.find(leader)?.addr;
                    let channel = annulus_raft::channel(&self.env, &addr).await.ok()?;
                    let mut client =
                        AdminClient::new(channel).max_decoding_message_size(DECODE_BYTES);
                    let request = admin::passed_on(v1::OverviewRequest::default(), MANAGER_LIMIT);
                    Some(client.overview(request).await.ok()?.into_inner())
                }
                Lead::Unknown => None,
            }
        };
        tokio::time::timeout(MANAGER_LIMIT, asked).await.ok().flatten()
    }

    /// What this node says of itself.
    pub(super) fn own_status(&self) -> v1::NodeStatus {
        let host = self.host();
        let replicas = host.as_ref().map(|host| replicas(host)).unwrap_or_default();
        let shards = self
            .shards
            .all()
            .iter()
            .filter_map(|shard| {
                let head = self.shards.head(shard).ok().flatten()?;
                Some(v1::ShardStatus {
                    shard: shard.id.0,
                    group: shard.group.0,
                    revision: head.revision.0,
                    epoch: head.epoch.0,
                    keys: head.keys,
                    bytes: head.bytes,
                })
            })
            .collect();
        let space = self.env.disk.space(&self.config.data_dir);
        v1::NodeStatus {
            info: Some((&self.info).into()),
            replicas,
            shards,
            engine_bytes: self.engine.stats().bytes,
            disk_free_bytes: space.map_or(0, |space| space.free),
            wal_bytes: host.map_or(0, |host| host.wal().stats().bytes_on_disk),
        }
    }
}

/// Every replica that the folder holds, by group.
fn replicas(host: &Host) -> Vec<v1::ReplicaStatus> {
    // Read before the open ones: what is opened meanwhile is told once.
    let (held, reasons) = (host.held(), host.absent());
    let mut replicas: Vec<v1::ReplicaStatus> = host
        .groups()
        .iter()
        .map(|group| {
            let status = group.status();
            v1::ReplicaStatus {
                group: status.group.0,
                replica: status.replica.0,
                role: v1::Role::from(status.role).into(),
                term: status.term,
                leader: status.leader.map(|node| node.0),
                last_index: status.last_index,
                applied_index: status.applied_index,
                gate_open: status.gate_open,
                halted: status.halted.unwrap_or_default(),
            }
        })
        .collect();
    let closed = closed(&held, &reasons, &replicas);
    replicas.extend(closed);
    replicas.sort_by_key(|replica| (replica.group, replica.replica));
    replicas
}

/// Of what is held, the replicas that are not among the open ones.
fn closed(
    held: &[(GroupId, ReplicaId)],
    reasons: &[(GroupId, ReplicaId, String)],
    open: &[v1::ReplicaStatus],
) -> Vec<v1::ReplicaStatus> {
    let is_open = |group: GroupId, replica: ReplicaId| {
        open.iter().any(|it| (it.group, it.replica) == (group.0, replica.0))
    };
    let reason = |group: GroupId, replica: ReplicaId| {
        let known = reasons.iter().find(|(of, id, _)| (*of, *id) == (group, replica));
        known.map_or_else(|| CLOSED.to_owned(), |(_, _, reason)| reason.clone())
    };
    let closed = held.iter().copied().filter(|(group, replica)| !is_open(*group, *replica));
    let told = closed.map(|(group, replica)| v1::ReplicaStatus {
        group: group.0,
        replica: replica.0,
        halted: reason(group, replica),
        ..Default::default()
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_and_not_open_is_told_with_a_reason_and_leads_nothing() {
        let seat = |group, replica| (GroupId(group), ReplicaId(replica));
        let held = [seat(1, 11), seat(2, 12), seat(3, 13)];
        let reasons = [(GroupId(2), ReplicaId(12), "damage".to_owned())];
        let open = [v1::ReplicaStatus { group: 1, replica: 11, ..Default::default() }];
        let told = closed(&held, &reasons, &open);
        let seats: Vec<(u64, u64, &str)> =
            told.iter().map(|it| (it.group, it.replica, it.halted.as_str())).collect();
        assert_eq!(seats, [(2, 12, "damage"), (3, 13, CLOSED)]);
        assert!(told.iter().all(|it| !it.gate_open && it.role() == v1::Role::Unspecified));
    }
}
