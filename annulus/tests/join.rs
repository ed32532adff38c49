//! A cluster of real processes changes its nodes: a fourth one comes and gets its share, a founder is
//! drained, holds nothing in the end, and is removed for ever. Somebody writes all the while. And one
//! whose folder was lost gets everything again under its old id.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use annulus_client::{Client, StatusReply};
use annulus_harness::cluster::Cluster;
use annulus_harness::process::wait_until;
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::node_change::Change;
use annulus_runtime::Env;
use tonic::transport::Channel;

const LONG: Duration = Duration::from_secs(30);
/// For a whole plan: a handful of reseats, each of which waits for a few heartbeats.
const MOVES: Duration = Duration::from_secs(240);
/// Between two writes.
const PACE: Duration = Duration::from_millis(20);
/// Groups per founder.
const LANES: u32 = 2;
const GROUPS: u32 = 6;
const SEATS: u32 = 18;
const DRAINED: u32 = 1;
const WIPED: u32 = 3;
const KEYS: u32 = 200;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_annulus"))
}

async fn admin(cluster: &Cluster, node: u16) -> AdminClient<Channel> {
    let env = Env::real().unwrap();
    AdminClient::new(annulus_raft::channel(&env, &cluster.endpoint(node)).await.unwrap())
}

fn change_of(node: u32, change: Change, dry_run: bool) -> v1::ChangeNodeRequest {
    let change = Some(v1::NodeChange { node, change: Some(change) });
    v1::ChangeNodeRequest { header: None, change, dry_run }
}

/// Has the manager change a node, through a node that need not lead it; asks again while nobody leads.
async fn change_node(cluster: &Cluster, through: u16, node: u32, change: Change) {
    let admin = admin(cluster, through).await;
    wait_until("the manager takes the change", LONG, || {
        let (mut admin, request) = (admin.clone(), change_of(node, change.clone(), false));
        async move { admin.change_node(request).await.is_ok() }
    })
    .await
    .unwrap();
}

async fn status(client: &Client) -> Option<(StatusReply, v1::OverviewReply)> {
    let status = client.status(false).await.ok()?;
    let overview = status.overview.clone()?;
    Some((status, overview))
}

/// Seats per node that is up, in groups other than the manager's, once nothing moves any more.
fn seats_at_rest(overview: &v1::OverviewReply) -> Option<Vec<(u32, u32)>> {
    let up = overview.nodes.iter().filter(|node| node.state() == v1::NodeState::Up);
    let seats = up.map(|node| (node.node, node.seats)).collect();
    overview.moves.is_empty().then_some(seats)
}

/// Whether nodes and groups are as the quotas want them: seats and homes differ by one at most.
fn is_even(status: &StatusReply, overview: &v1::OverviewReply, nodes: &[u32]) -> bool {
    let (Some(seats), Some(table)) = (seats_at_rest(overview), &status.table) else { return false };
    let seats: Vec<u32> = nodes
        .iter()
        .map(|id| seats.iter().find(|(node, _)| node == id).map_or(0, |(_, seats)| *seats))
        .collect();
    let homes: Vec<usize> = nodes
        .iter()
        .map(|id| table.groups.iter().filter(|group| group.home == *id).count())
        .collect();
    let is_level = |least: Option<u32>, most: Option<u32>| match (least, most) {
        (Some(least), Some(most)) => most - least <= 1,
        _ => false,
    };
    let many = |count: usize| u32::try_from(count).unwrap();
    let homes: Vec<u32> = homes.into_iter().map(many).collect();
    seats.iter().sum::<u32>() == SEATS
        && homes.iter().sum::<u32>() == GROUPS
        && is_level(seats.iter().min().copied(), seats.iter().max().copied())
        && is_level(homes.iter().min().copied(), homes.iter().max().copied())
}

async fn wait_even(client: &Client, nodes: &[u32]) {
    wait_until("seats and homes are as the quotas want them", MOVES, || async {
        match status(client).await {
            Some((status, overview)) => is_even(&status, &overview, nodes),
            None => false,
        }
    })
    .await
    .unwrap();
}

/// What a node says of itself.
async fn own_status(cluster: &Cluster, node: u16) -> v1::NodeStatus {
    let request = v1::StatusRequest { header: None, local: true };
    let reply = admin(cluster, node).await.status(request).await.unwrap().into_inner();
    reply.nodes.into_iter().next().unwrap()
}

/// Writes one key after another until it is dropped; `acknowledged` says which.
async fn write(client: &Client, acknowledged: &RefCell<Vec<u32>>) {
    let mut pace = tokio::time::interval(PACE);
    for n in 0.. {
        pace.tick().await;
        let put = client.put(format!("key-{n}"), format!("value-{n}")).deadline(LONG);
        if put.await.is_ok() {
            acknowledged.borrow_mut().push(n);
        }
    }
}

/// The fourth node comes in by itself and gets its share.
async fn join(cluster: &mut Cluster, client: &Client) {
    assert_eq!(cluster.add_node().unwrap(), 4);
    wait_until("the fourth node is up", LONG, || async {
        let nodes = status(client).await.map(|(_, overview)| overview.nodes).unwrap_or_default();
        nodes.iter().any(|node| node.node == 4 && node.state() == v1::NodeState::Up)
    })
    .await
    .unwrap();
    wait_even(client, &[1, 2, 3, 4]).await;
    let held = own_status(cluster, 4).await;
    assert!(held.replicas.iter().filter(|replica| replica.group != 0).count() >= 4, "{held:?}");
    assert!(!held.shards.is_empty(), "{held:?}");
}

/// A founder is emptied, and then taken out for ever.
async fn leave(cluster: &Cluster, client: &Client) {
    let drain = Change::Draining(true);
    let tried = change_of(DRAINED, drain.clone(), true);
    let told = admin(cluster, 4).await.change_node(tried).await.unwrap().into_inner();
    assert_eq!(told.decisions.len(), 1, "{told:?}");
    let told = admin(cluster, 2).await.overview(v1::OverviewRequest::default()).await.unwrap();
    let nodes = told.into_inner().nodes;
    assert!(!nodes.iter().any(|node| node.draining), "a dry run changes nothing");

    let remove = Change::Remove(v1::Plain {});
    let early = change_of(DRAINED, remove.clone(), false);
    let refused = admin(cluster, 2).await.change_node(early).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "it has seats: {refused}");

    change_node(cluster, 4, DRAINED, drain).await;
    wait_even(client, &[2, 3, 4]).await;
    wait_until("the drained node holds nothing", MOVES, || async {
        let held = own_status(cluster, 1).await;
        held.replicas.is_empty() && held.shards.is_empty()
    })
    .await
    .unwrap();

    change_node(cluster, 3, DRAINED, remove).await;
    let env = Env::real().unwrap();
    wait_until("the removed node stops", LONG, || async {
        annulus_raft::channel(&env, &cluster.endpoint(1)).await.is_err()
    })
    .await
    .unwrap();
    assert!(cluster.data_dir(1).join("dead").exists());
    wait_until("nobody counts on the removed node", LONG, || async {
        let Some((status, overview)) = status(client).await else { return false };
        let removed = |node: &v1::NodeOverview| {
            node.node == DRAINED && node.state() == v1::NodeState::Removed
        };
        let table = status.table.unwrap_or_default();
        overview.nodes.iter().any(removed)
            && overview.manager.iter().all(|member| member.node != DRAINED)
            && table.nodes.iter().all(|node| node.id != DRAINED)
            && table.groups.iter().flat_map(|group| &group.members).all(|it| it.node != DRAINED)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_node_joins_and_another_leaves_while_somebody_writes() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "join", LANES).await.unwrap();
    let client = cluster.client().await.unwrap();
    let acknowledged = RefCell::new(Vec::new());
    tokio::select! {
        () = write(&client, &acknowledged) => panic!("it writes for ever"),
        () = join(&mut cluster, &client) => {}
    }
    let joined = acknowledged.borrow().len();
    // From here on the fourth node is asked, too.
    let client = cluster.client().await.unwrap();
    let later = RefCell::new(Vec::new());
    tokio::select! {
        () = write(&client, &later) => panic!("it writes for ever"),
        () = leave(&cluster, &client) => {}
    }
    let left = later.borrow().len();
    assert!(joined > 50 && left > 50, "{joined} and {left} writes were acknowledged");

    let mut acknowledged = acknowledged.into_inner();
    acknowledged.append(&mut later.into_inner());
    acknowledged.sort_unstable();
    acknowledged.dedup();
    for n in acknowledged {
        let found = client.get(format!("key-{n}")).deadline(LONG).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(format!("value-{n}").as_bytes()), "key-{n}");
    }
}

/// Waits until the manager thinks that of the node whose folder is lost.
async fn wait_state(client: &Client, state: v1::NodeState) {
    wait_until("the manager knows how the node is", LONG, || async {
        let nodes = status(client).await.map(|(_, overview)| overview.nodes).unwrap_or_default();
        nodes.iter().any(|node| node.node == WIPED && node.state() == state)
    })
    .await
    .unwrap();
}

/// The votes of the node whose folder is lost, as replicas; `None` while something moves.
async fn votes(client: &Client) -> Option<Vec<u64>> {
    let (status, overview) = status(client).await?;
    let table = status.table.filter(|_| overview.moves.is_empty())?;
    let members = table.groups.iter().flat_map(|group| &group.members);
    let votes = members.filter(|member| member.node == WIPED && !member.learner);
    Some(votes.map(|member| member.replica).collect())
}

#[tokio::test]
async fn a_node_whose_folder_is_lost_gets_everything_again_under_its_id() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "wiped", LANES).await.unwrap();
    let client = cluster.client().await.unwrap();
    for n in 0..KEYS {
        client.put(format!("key-{n}"), format!("value-{n}")).deadline(LONG).await.unwrap();
    }
    let groups = usize::try_from(GROUPS).unwrap();
    let former = votes(&client).await.unwrap();
    assert_eq!(former.len(), groups);

    cluster.kill(3).unwrap();
    wait_state(&client, v1::NodeState::Down).await;
    Env::real().unwrap().disk.remove_dir_all(&cluster.data_dir(3)).unwrap();
    cluster.start_node(3).unwrap();
    wait_state(&client, v1::NodeState::Up).await;
    wait_until("its seats have new replicas", MOVES, || async {
        let Some(votes) = votes(&client).await else { return false };
        votes.len() == groups && votes.iter().all(|replica| !former.contains(replica))
    })
    .await
    .unwrap();

    // Without another founder every answer needs what the new folder holds.
    cluster.kill(1).unwrap();
    let client = cluster.client().await.unwrap();
    for n in 0..KEYS {
        let found = client.get(format!("key-{n}")).deadline(LONG).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(format!("value-{n}").as_bytes()), "key-{n}");
    }
}
