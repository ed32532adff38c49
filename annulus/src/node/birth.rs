//! The birth of a cluster (H5), coming into one that is there, and finding out where the other nodes are.
//!
//! `init` goes to one node, the *founder*. It draws the cluster id and the manager's incarnation and
//! stores the whole plan, synced; every planned node then stores the cluster id, synced, or refuses;
//! only when all have, the founder has the replicas of the manager's group created, and initialises
//! it on exactly one node. All else is that group's own work.
//!
//! The groups with data are founded by the first tables of the new manager: they bring the members' replicas
//! into being. Nothing else does, and no manager of a later era ([`founds`]).
//!
//! A node that comes later is no part of a birth: it finds out which cluster the nodes of its join list
//! belong to, and stores that only when the manager has admitted it (`heartbeat`).
//!
//! ```text
//! file `birth`   version u8 = 1 | crc32 of the rest u32 | Plan (protobuf)
//! ```
//!
//! Failure: every step is idempotent and the plan is on disk before the first, so a founder that
//! crashed goes on at its next start, and a second `init` returns the same cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{cluster_bytes, cluster_of, error_of};
use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_proto::v1::routes_client::RoutesClient;
use annulus_raft::GroupSpec;
use annulus_runtime::OnEnd;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_shard_manager::{founders, table_of};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{
    ClusterId, Error, ErrorKind, GroupId, GroupRoute, MemberRole, MemberRoute, NodeId, NodeInfo,
    ReplicaId, RoutingTable,
};
use tonic::transport::Channel;

use super::Node;

const FILE: &str = "birth";
const VERSION: u8 = 1;
/// Of the manager that a birth makes.
const FIRST_ERA: u64 = 1;
/// One call to a peer during the birth.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// The plan that this node was told or made, if any. One of another cluster than the node's is what
/// is left of an `init` that lost against another: it is none.
pub(super) fn stored_plan(node: &Node) -> Option<v1::Plan> {
    let cluster = node.folder.lock().identity().cluster;
    let plan: v1::Plan = read_message(node, FILE)?;
    (cluster.is_unborn() || plan.cluster_id.as_ref() == cluster.0).then_some(plan)
}

/// A message that was stored in the node's folder; `None` for none, or one that does not read. Waits on the
/// disk.
pub(super) fn read_message<M: prost::Message + Default>(node: &Node, file: &str) -> Option<M> {
    let path = node.config.data_dir.join(file);
    let bytes = read_file(node.env.disk.as_ref(), &path, DECODE_BYTES as u64).ok()?;
    let (head, body) = bytes.split_at_checked(5)?;
    let crc = u32::from_be_bytes(head.get(1..5)?.try_into().ok()?);
    if head.first() != Some(&VERSION) || crc32fast::hash(body) != crc {
        return None;
    }
    M::decode(body).ok()
}

/// Stores a message in the node's folder, synced: a version, a checksum, and the message. Waits on the disk.
pub(super) fn store_message(
    node: &Node,
    file: &str,
    message: &impl prost::Message,
) -> std::io::Result<()> {
    let body = message.encode_to_vec();
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    replace_file(node.env.disk.as_ref(), &node.config.data_dir, file, &bytes)
}

fn not_ready(reason: impl Into<String>) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.into() })
}

/// Whether a table of a manager of this era brings the replicas of a group into being: that of the first
/// manager, while the group is as it was planned. It knows which replicas have died with a folder (N1) and
/// leaves them out. A later manager may not know that of a node that was away when it was made, and the replica
/// would come back empty, with a vote.
pub(super) fn founds(era: u64, route: &GroupRoute) -> bool {
    era <= FIRST_ERA && route.membership_index == 0
}

/// Draws a manager's incarnation (H5), 21 bits. Not 0, which stands for one that is not known.
pub(super) fn draw_incarnation(node: &Node) -> u32 {
    let others = node.env.random.below((1 << 21) - 1);
    1 + u32::try_from(others).unwrap_or(0)
}

async fn peer(node: &Node, addr: &str) -> Result<PeerClient<Channel>, Error> {
    let connecting = annulus_raft::channel(&node.env, addr);
    match tokio::time::timeout(CALL_LIMIT, connecting).await {
        Ok(Ok(channel)) => Ok(PeerClient::new(channel).max_encoding_message_size(DECODE_BYTES)),
        Ok(Err(_)) | Err(_) => Err(not_ready(format!("no node answers at {addr}"))),
    }
}

async fn limited<T>(
    addr: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error_of(&status)),
        Err(_) => Err(not_ready(format!("the node at {addr} does not answer"))),
    }
}

async fn describe(node: &Node, addr: &str) -> Result<v1::DescribeReply, Error> {
    let mut client = peer(node, addr).await?;
    limited(addr, client.describe(v1::DescribeRequest {})).await
}

/// Creates the cluster, or returns the one that this node belongs to.
pub(super) async fn init(
    node: &Arc<Node>,
    request: &v1::InitRequest,
) -> Result<v1::InitReply, Error> {
    let plan = {
        let _changing = node.changing.lock().await;
        let identity = node.folder.lock().identity();
        let begun = stored_plan(node).filter(|_| node.tables.current().is_none());
        if let Some(plan) = begun {
            // Begun before; perhaps by a call that was cut off.
            drop(_changing);
            carry_out(node, &plan).await?;
            return Ok(v1::InitReply { cluster_id: plan.cluster_id, created: false });
        }
        if !identity.cluster.is_unborn() {
            let cluster_id = cluster_bytes(identity.cluster);
            return Ok(v1::InitReply { cluster_id, created: false });
        }
        let plan = draw_plan(node, request).await?;
        store_message(node, FILE, &plan)
            .map_err(|error| not_ready(format!("storing the plan: {error}")))?;
        plan
    };
    carry_out(node, &plan).await?;
    Ok(v1::InitReply { cluster_id: plan.cluster_id, created: true })
}

async fn draw_plan(node: &Node, request: &v1::InitRequest) -> Result<v1::Plan, Error> {
    let or = |value, default| if value == 0 { default } else { value };
    let own = v1::PlannedNode {
        info: Some((&node.info).into()),
        incarnation: node.folder.lock().identity().incarnation,
    };
    let mut nodes = BTreeMap::from([(node.info.id.0, own)]);
    for addr in &node.config.join {
        if *addr == node.info.peer_addr {
            continue;
        }
        let told = describe(node, addr).await?;
        let cluster = cluster_of(&told.cluster_id)?;
        if !cluster.is_unborn() {
            return Err(Error::refused(ErrorKind::WrongCluster { actual: cluster }));
        }
        let Some(info) = told.info else { return Err(not_ready("a node without a name")) };
        let id = info.id;
        let planned = v1::PlannedNode { info: Some(info), incarnation: told.incarnation };
        let twin = nodes
            .insert(id, planned.clone())
            .filter(|twin| twin.incarnation != planned.incarnation);
        if twin.is_some() {
            return Err(Error::bad_request("join", format!("two nodes have the id {id}")));
        }
    }
    let plan = v1::Plan {
        cluster_id: cluster_bytes(ClusterId(node.env.random.identity())),
        era: FIRST_ERA,
        incarnation: draw_incarnation(node),
        shards: or(request.shards, 128),
        lanes: or(request.lanes, 4),
        replication: or(request.replication, 3),
        nodes: nodes.into_values().collect(),
    };
    // Refused here, the settings cost nothing; later they would be a cluster that cannot be made.
    table_of(&plan).map_err(|error| Error::bad_request("settings", error.to_string()))?;
    Ok(plan)
}

/// Steps two and three. Idempotent.
async fn carry_out(node: &Arc<Node>, plan: &v1::Plan) -> Result<(), Error> {
    let nodes: Vec<NodeInfo> =
        plan.nodes.iter().filter_map(|planned| planned.info.clone()).map(NodeInfo::from).collect();
    for info in &nodes {
        let mut client = peer(node, &info.peer_addr).await?;
        let request =
            v1::AdoptRequest { cluster_id: plan.cluster_id.clone(), founder: node.info.id.0 };
        limited(&info.peer_addr, client.adopt(request)).await?;
    }
    let managers: Vec<NodeId> =
        nodes.iter().filter(|info| info.manager).map(|info| info.id).collect();
    let replicas = founders(plan.incarnation, &managers);
    let members: Vec<v1::MemberRoute> = replicas
        .iter()
        .map(|(replica, node)| {
            let role = MemberRole::Voter;
            v1::MemberRoute::from(&MemberRoute { node: *node, replica: *replica, role })
        })
        .collect();
    // The one that initialises comes last: the others must exist to vote for it.
    for (position, (replica, member)) in replicas.iter().enumerate().rev() {
        let Some(info) = nodes.iter().find(|info| info.id == *member) else { continue };
        let mut client = peer(node, &info.peer_addr).await?;
        let request = v1::FoundRequest {
            plan: Some(plan.clone()),
            node: member.0,
            replica: replica.0,
            members: members.clone(),
            initialise: position == 0,
        };
        limited(&info.peer_addr, client.found(request)).await?;
    }
    Ok(())
}

/// The founder's call: the node belongs to its cluster from now on.
pub(super) async fn adopt(node: &Arc<Node>, request: &v1::AdoptRequest) -> Result<(), Error> {
    join(node, cluster_of(&request.cluster_id)?).await
}

/// Stores the cluster id, synced, and starts the host. A second call changes nothing.
pub(super) async fn join(node: &Arc<Node>, cluster: ClusterId) -> Result<(), Error> {
    let _changing = node.changing.lock().await;
    let joined = node.folder.lock().join(cluster);
    match joined {
        Ok(()) => {}
        Err(super::IdentityError::OtherCluster(actual)) => {
            return Err(Error::refused(ErrorKind::WrongCluster { actual }));
        }
        Err(error) => return Err(not_ready(error.to_string())),
    }
    node.begin(cluster).await.map_err(|error| not_ready(format!("{error:#}")))
}

/// The cluster that this node, which has none, may ask to come into: the first that a node of its join
/// list belongs to. Where the cluster's nodes are goes to the address book; nothing is stored.
pub(super) async fn joined_cluster(node: &Node) -> Option<ClusterId> {
    if !node.folder.lock().identity().cluster.is_unborn() {
        return None;
    }
    let others = node.config.join.iter().filter(|addr| **addr != node.info.peer_addr);
    let asked = others.map(|addr| async move { describe(node, addr).await.ok() });
    let told: Vec<v1::DescribeReply> =
        futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    let mut clusters = told.iter().filter_map(|told| cluster_of(&told.cluster_id).ok());
    let cluster = clusters.find(|cluster| !cluster.is_unborn())?;
    let members = told.into_iter().filter(|told| told.cluster_id.as_ref() == cluster.0);
    let members: Vec<NodeInfo> = members.filter_map(|told| told.info).map(NodeInfo::from).collect();
    // One with the id of this node is its former life, or a mistake: the manager will say which.
    for info in members.iter().filter(|info| info.id != node.info.id) {
        node.book.told(info.clone());
    }
    // The manager's leader may be at an address that the join list does not have.
    for info in &members {
        if let Some(table) = table_at(node, info).await {
            node.book.from_table(&table.nodes);
            break;
        }
    }
    Some(cluster)
}

async fn table_at(node: &Node, info: &NodeInfo) -> Option<RoutingTable> {
    let connecting = annulus_raft::channel(&node.env, &info.addr);
    let channel = tokio::time::timeout(CALL_LIMIT, connecting).await.ok()?.ok()?;
    let mut client = RoutesClient::new(channel).max_decoding_message_size(DECODE_BYTES);
    let got = limited(&info.addr, client.get(v1::GetRoutesRequest::default())).await.ok()?;
    got.try_into().ok()
}

/// Creates this node's replica of the manager's group.
pub(super) async fn found(node: &Arc<Node>, request: v1::FoundRequest) -> Result<(), Error> {
    let Some(plan) = request.plan else { return Err(Error::bad_request("plan", "is missing")) };
    let _changing = node.changing.lock().await;
    let Some(host) = node.host() else { return Err(not_ready("not adopted yet")) };
    let actual = host.options().cluster;
    if plan.cluster_id.as_ref() != actual.0 {
        return Err(Error::refused(ErrorKind::WrongCluster { actual }));
    }
    check_life(node, request.node, planned_life(&plan, request.node))?;
    if stored_plan(node).is_none() {
        store_message(node, FILE, &plan)
            .map_err(|error| not_ready(format!("storing the plan: {error}")))?;
    }
    for planned in &plan.nodes {
        if let Some(info) = &planned.info {
            node.book.from_table(&[info.clone().into()]);
        }
    }
    let found = if request.initialise {
        let member = |m: &v1::MemberRoute| (ReplicaId(m.replica), NodeId(m.node));
        request.members.iter().map(member).collect()
    } else {
        BTreeMap::new()
    };
    let spec = GroupSpec { group: GroupId::MANAGER, replica: ReplicaId(request.replica), found };
    node.open_replica(&host, spec).await.map_err(|error| not_ready(error.to_string()))?;
    Ok(())
}

fn planned_life(plan: &v1::Plan, node: u32) -> Option<u64> {
    let named =
        |planned: &&v1::PlannedNode| planned.info.as_ref().is_some_and(|info| info.id == node);
    plan.nodes.iter().find(named).map(|planned| planned.incarnation)
}

/// N1: replicas are created only in the life of the folder that was planned with: a wiped node under
/// its old id would be an empty voter.
pub(super) fn check_life(node: &Node, meant: u32, life: Option<u64>) -> Result<(), Error> {
    let identity = node.folder.lock().identity();
    if meant != identity.node.0 || life != Some(identity.incarnation) {
        let message = "meant for another node, or for another life of this node's data folder";
        return Err(Error::bad_request("incarnation", message));
    }
    Ok(())
}

/// A founder that finds its birth unfinished goes on with it, in the background.
pub(super) async fn resume(node: &Arc<Node>) -> anyhow::Result<()> {
    let Some(plan) = stored_plan(node) else { return Ok(()) };
    if node.tables.current().is_some() {
        return Ok(());
    }
    let node = Arc::clone(node);
    let tasks = node.env.tasks.clone();
    tasks.spawn("birth", OnEnd::Ignore, async move {
        let mut ticker = tokio::time::interval(Duration::from_millis(500));
        while node.tables.current().is_none() && !node.env.tasks.is_stopping() {
            ticker.tick().await;
            if let Err(error) = carry_out(&node, &plan).await {
                tracing::info!(%error, "the birth of the cluster goes on");
            }
        }
    });
    Ok(())
}

/// Asks the addresses of the join list who is there, until every one is linked: nodes may have come
/// back on other addresses than the table says.
pub(super) async fn discover(node: Arc<Node>) {
    let mut ticker = tokio::time::interval(Duration::from_millis(300));
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !node.env.tasks.is_stopping() {
        ticker.tick().await;
        let Some(host) = node.host() else { continue };
        let cluster = host.options().cluster;
        let linked: Vec<String> = node
            .book
            .all()
            .into_iter()
            .filter(|info| info.id == node.info.id || host.is_linked(info.id))
            .map(|info| info.peer_addr)
            .collect();
        let missing = node.config.join.iter().filter(|addr| !linked.contains(addr));
        let asked = missing.map(|addr| async { describe(&node, addr).await.ok() });
        for told in futures_util::future::join_all(asked).await.into_iter().flatten() {
            if told.cluster_id.as_ref() == cluster.0
                && let Some(info) = told.info
            {
                node.book.told(info.into());
            }
        }
    }
}
