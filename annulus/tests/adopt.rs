//! A cluster of real processes gets a new manager (H4 to H6): in place of one that works, because that is the
//! hardest case, in place of one that has lost its majority, and by a node that dies over it. What only the
//! former manager knew is lost or comes from an export; the groups with data serve all the while and keep their
//! replicas, and what is left of the former manager is put aside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use annulus_client::{Client, StatusReply};
use annulus_harness::cluster::{Cluster, Layout};
use annulus_harness::process::wait_until;
use annulus_proto::convert::error_of;
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_runtime::disk::read_file;
use annulus_runtime::{Env, RealDisk};
use annulus_types::ErrorKind;
use prost::Message as _;
use tonic::transport::Channel;

const LONG: Duration = Duration::from_secs(30);
/// For a handful of reseats.
const MOVES: Duration = Duration::from_secs(120);
/// What a user allows an operation: an election and more.
const SERVED: Duration = Duration::from_secs(5);
/// Between two rounds of what a user does.
const PACE: Duration = Duration::from_millis(20);
const KEYS: u32 = 100;
const FILE_BYTES: u64 = 1 << 20;
/// Bits of an id below the manager's incarnation.
const COUNTER_BITS: u32 = 32;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_annulus"))
}

/// Runs `annulus init --adopt` with more arguments; node 1 does it.
async fn adopt(cluster: &Cluster, more: &[&str]) -> Output {
    adopt_at(cluster, 1, more).await
}

/// The same; the node `maker` does it.
async fn adopt_at(cluster: &Cluster, maker: u16, more: &[&str]) -> Output {
    let others = cluster.nodes().filter(|node| *node != maker);
    let order = std::iter::once(maker).chain(others);
    let endpoints = order.map(|node| cluster.endpoint(node)).collect::<Vec<String>>().join(",");
    let mut command = tokio::process::Command::new(program());
    command.args(["init", "--adopt", "--endpoints", &endpoints]).args(more).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(90), command.output()).await.unwrap().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the manager keeps, if one works.
async fn export(client: &Client) -> Option<v1::ManagerState> {
    let exported = client.admin().export_manager().await.ok()?;
    v1::ManagerState::decode(exported.state).ok()
}

/// Waits until the manager of an era answers, and returns what it keeps.
async fn wait_era(client: &Client, era: u64) -> v1::ManagerState {
    wait_until("the manager of that era answers", LONG, || async {
        export(client).await.is_some_and(|state| state.era == era)
    })
    .await
    .unwrap();
    export(client).await.unwrap()
}

/// Waits until the manager takes a setting.
async fn set_down_after(client: &Client, down_after_ms: u64) {
    let change = v1::SettingsChange { down_after_ms: Some(down_after_ms), ..Default::default() };
    wait_until("the manager takes the setting", LONG, || async {
        client.admin().change_settings(change, false).await.is_ok()
    })
    .await
    .unwrap();
}

/// The members of each group with data, as (node, replica).
fn seats(status: &StatusReply) -> BTreeMap<u64, Vec<(u32, u64)>> {
    let groups = status.table.iter().flat_map(|table| &table.groups);
    let seats = groups.map(|group| {
        let mut seats: Vec<(u32, u64)> =
            group.members.iter().map(|member| (member.node, member.replica)).collect();
        seats.sort_unstable();
        (group.id, seats)
    });
    seats.collect()
}

async fn seats_now(client: &Client) -> BTreeMap<u64, Vec<(u32, u64)>> {
    seats(&client.status(false).await.unwrap())
}

/// Waits until every member of the manager's group has applied what its leader has.
async fn wait_applied(client: &Client) {
    wait_until("all managers know what one knows", LONG, || async {
        let Ok(status) = client.status(false).await else { return false };
        let replicas = status.nodes.iter().flat_map(|node| &node.replicas);
        let own: Vec<(u64, u64)> = replicas
            .filter(|replica| replica.group == 0)
            .map(|replica| (replica.last_index, replica.applied_index))
            .collect();
        own.len() == 3 && own.iter().all(|(last, applied)| last == applied && *last == own[0].0)
    })
    .await
    .unwrap();
}

async fn write(client: &Client) {
    for n in 0..KEYS {
        client.put(format!("key-{n}"), format!("value-{n}")).deadline(LONG).await.unwrap();
    }
}

async fn check_keys(client: &Client) {
    for n in 0..KEYS {
        let found = client.get(format!("key-{n}")).deadline(LONG).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(format!("value-{n}").as_bytes()), "key-{n}");
    }
}

/// Writes and reads until it is dropped; an operation that fails ends the test.
async fn serve(client: &Client, served: &Cell<u32>) {
    let mut pace = tokio::time::interval(PACE);
    for n in 0.. {
        pace.tick().await;
        let (key, value) = (format!("live-{}", n % 50), n.to_string());
        client.put(key.clone(), value.clone()).deadline(SERVED).await.unwrap();
        let found = client.get(key).deadline(SERVED).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(value.as_bytes()));
        let old = n % KEYS;
        let found = client.get(format!("key-{old}")).deadline(SERVED).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(format!("value-{old}").as_bytes()));
        served.set(n);
    }
}

/// What a node says of itself.
async fn own_status(cluster: &Cluster, node: u16) -> Option<v1::NodeStatus> {
    let env = Env::real().unwrap();
    let channel = annulus_raft::channel(&env, &cluster.endpoint(node)).await.ok()?;
    let request = v1::StatusRequest { header: None, local: true };
    let reply = AdminClient::new(channel).status(request).await.ok()?;
    reply.into_inner().nodes.into_iter().next()
}

/// What a node has kept of the manager of an era, if it has.
fn kept(cluster: &Cluster, node: u16, era: u64) -> Option<v1::ManagerState> {
    let path = cluster.data_dir(node).join(format!("manager-era-{era}.bak"));
    let bytes = read_file(&RealDisk, &path, FILE_BYTES).ok()?;
    v1::ManagerState::decode(bytes.as_slice()).ok()
}

/// Whether all replicas of the manager's group on a node are of that manager, and there is one.
async fn holds_only(cluster: &Cluster, node: u16, incarnation: u32) -> bool {
    let Some(status) = own_status(cluster, node).await else { return false };
    let mut own = status.replicas.iter().filter(|replica| replica.group == 0).peekable();
    own.peek().is_some() && own.all(|it| it.replica >> COUNTER_BITS == u64::from(incarnation))
}

/// A connection to what a node tells its peers, if it is there.
async fn peer(cluster: &Cluster, node: u16) -> Option<PeerClient<Channel>> {
    let env = Env::real().unwrap();
    let info = own_status(cluster, node).await?.info?;
    let channel = annulus_raft::channel(&env, &info.peer_addr).await.ok()?;
    Some(PeerClient::new(channel))
}

/// What a node knows of the cluster.
async fn survey(cluster: &Cluster, node: u16) -> Option<v1::SurveyReply> {
    let told = peer(cluster, node).await?.survey(v1::SurveyRequest {}).await;
    told.ok().map(tonic::Response::into_inner)
}

/// The manager that works and that all these nodes obey.
async fn one_manager(
    cluster: &Cluster,
    client: &Client,
    nodes: RangeInclusive<u16>,
) -> Option<v1::ManagerState> {
    let state = export(client).await?;
    for node in nodes {
        let told = survey(cluster, node).await?.heartbeat?;
        if (told.era, told.manager_incarnation) != (state.era, state.incarnation) {
            return None;
        }
    }
    Some(state)
}

/// What node 1 has stored as the maker of a manager.
fn plan(cluster: &Cluster) -> Option<Vec<u8>> {
    read_file(&RealDisk, &cluster.data_dir(1).join("adoption"), FILE_BYTES).ok()
}

/// Waits until one manager of that era or a later one works, everybody obeys it, and the maker on node 1 has
/// nothing else in mind.
async fn wait_one_manager(cluster: &Cluster, client: &Client, era: u64) -> v1::ManagerState {
    let settled = || async {
        let state = one_manager(cluster, client, cluster.nodes()).await?;
        // Behind version and checksum.
        let wanted = plan(cluster).and_then(|bytes| v1::Adoption::decode(bytes.get(5..)?).ok());
        let is_same = |it: v1::Adoption| (it.era, it.incarnation) == (state.era, state.incarnation);
        (state.era >= era && wanted.is_none_or(is_same)).then_some(state)
    };
    let found = RefCell::new(None);
    wait_until("everybody obeys one manager", LONG, || async {
        let now = settled().await;
        let is_settled = now.is_some();
        found.replace(now);
        is_settled
    })
    .await
    .unwrap();
    found.into_inner().unwrap()
}

/// Begins an adoption at node 1, and kills that as soon as it has stored its plan.
async fn kill_the_maker(cluster: &mut Cluster) {
    let here: &Cluster = cluster;
    let before = plan(here);
    tokio::select! {
        stored = wait_until("the plan is stored", LONG, || async { plan(here) != before }) => {
            stored.unwrap();
        }
        adopted = adopt(here, &["--yes", "--force"]) => {
            panic!("it ended before its plan was seen: {}", text(&adopted.stderr));
        }
    }
    cluster.kill(1).unwrap();
}

/// A node refuses commands of managers that were before: of an earlier era, and of the same one.
async fn refuses_the_former(cluster: &Cluster, state: &v1::ManagerState) {
    let mut peer = peer(cluster, 1).await.unwrap();
    let told = peer.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    let former = [(state.era - 1, state.incarnation + 1), (state.era, state.incarnation - 1)];
    for (era, manager_incarnation) in former {
        let request = v1::CommandRequest {
            era,
            manager_incarnation,
            term: 1_000,
            generation: 1_000,
            node: 1,
            incarnation: told.incarnation,
            group: state.groups[0].id,
            command: Some(Command::Transfer(v1::TransferLeadership { to: 2 })),
        };
        let refused = error_of(&peer.command(request).await.unwrap_err());
        let is_era = matches!(&refused.kind, ErrorKind::BadRequest { field, .. } if field == "era");
        assert!(is_era, "{refused:?}");
    }
}

#[tokio::test]
async fn a_new_manager_takes_over_while_everybody_serves_and_one_node_is_away() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "adopt", 2).await.unwrap();
    let client = cluster.client().await.unwrap();
    write(&client).await;
    set_down_after(&client, 600_000).await;
    wait_applied(&client).await;
    let former = wait_era(&client, 1).await;
    let before = seats_now(&client).await;

    // Nobody asked for that.
    let refused = adopt(&cluster, &["--yes"]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("leads the manager of era 1"));
    let refused = adopt(&cluster, &["--force"]).await;
    assert_eq!(refused.status.code(), Some(2), "nobody said yes: {}", text(&refused.stderr));
    let tried = adopt(&cluster, &["--force", "--dry-run"]).await;
    assert!(tried.status.success(), "{}", text(&tried.stderr));
    let told = text(&tried.stdout);
    assert!(
        told.contains("would be adopted: 3 nodes, 6 groups, 128 shards\nreplication: 3\n"),
        "{told}"
    );
    let tried = adopt(&cluster, &["--force", "--dry-run", "--replication", "2"]).await;
    assert!(text(&tried.stdout).contains("\nreplication: 2\n"), "{}", text(&tried.stderr));
    let refused = adopt(&cluster, &["--yes", "--force", "--replication", "8"]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("replication: must be from 1 to 7, got 8"));
    assert_eq!(wait_era(&client, 1).await.incarnation, former.incarnation);

    cluster.kill(3).unwrap();
    let served = Cell::new(0);
    let adopted = tokio::select! {
        () = serve(&client, &served) => panic!("it serves for ever"),
        adopted = adopt(&cluster, &["--yes", "--force"]) => adopted,
    };
    let told = text(&adopted.stdout);
    assert!(adopted.status.success(), "{told}{}", text(&adopted.stderr));
    assert!(told.contains("era 1 -> 2\nadopted: 2 nodes, 6 groups, 128 shards\n"), "{told}");
    assert!(told.contains("nodes that do not answer, and may come back: 3\n"), "{told}");

    let state = wait_era(&client, 2).await;
    assert_ne!(state.incarnation, former.incarnation);
    assert_eq!(state.settings.unwrap().down_after_ms, 300_000, "what only it knew is lost");
    assert_eq!(seats_now(&client).await, before);
    refuses_the_former(&cluster, &state).await;
    for node in [1, 2] {
        let kept = kept(&cluster, node, 1).unwrap();
        assert_eq!(kept.settings.unwrap().down_after_ms, 600_000, "node {node}");
    }
    // It works.
    set_down_after(&client, 700_000).await;

    // Who was away comes back with a replica of the former manager, and hears of it.
    cluster.start_node(3).unwrap();
    tokio::select! {
        () = serve(&client, &served) => panic!("it serves for ever"),
        // The new manager gives it a seat in its own group, too.
        done = wait_until("the node that was away has only the new manager's", MOVES, || {
            holds_only(&cluster, 3, state.incarnation)
        }) => done.unwrap(),
    }
    assert_eq!(kept(&cluster, 3, 1).unwrap().incarnation, former.incarnation);
    assert!(served.get() > 0);
    check_keys(&client).await;
    assert_eq!(seats_now(&client).await, before, "no replica with data came or went");
    wait_until("the status has what the new manager says", LONG, || async {
        let Ok(status) = client.status(false).await else { return false };
        status.overview.is_some_and(|overview| overview.era == 2)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn when_no_manager_works_it_needs_no_force_but_a_node_with_that_role() {
    let roles = ["manager", "manager", "manager", "storage,manager", "storage", "storage"];
    let roles = roles.map(str::to_owned).to_vec();
    let layout = Layout { nodes: 6, lanes: 1, roles, ..Layout::default() };
    let mut cluster = Cluster::start_as(program(), "adopt-unforced", &layout).await.unwrap();
    let client = cluster.client().await.unwrap();
    write(&client).await;
    let before = seats_now(&client).await;

    // Two of the three that vote for the manager are lost for good.
    cluster.kill(1).unwrap();
    cluster.kill(2).unwrap();
    wait_until("the third one does not lead alone", LONG, || async {
        survey(&cluster, 3).await.is_some_and(|told| told.leads_era == 0)
    })
    .await
    .unwrap();
    let served = Cell::new(0);
    let adopted = tokio::select! {
        () = serve(&client, &served) => panic!("it serves for ever"),
        adopted = adopt_at(&cluster, 4, &["--yes"]) => adopted,
    };
    let told = text(&adopted.stdout);
    assert!(adopted.status.success(), "{told}{}", text(&adopted.stderr));
    assert!(told.contains("era 1 -> 2\nadopted: 4 nodes, 3 groups, 128 shards\n"), "{told}");
    assert!(told.contains("nodes that do not answer, and may come back: 1, 2\n"), "{told}");
    assert!(told.contains("the manager's group: nodes 3\n"), "{told}");
    wait_until("all that are left obey the new manager", LONG, || async {
        one_manager(&cluster, &client, 3..=6).await.is_some_and(|state| state.era == 2)
    })
    .await
    .unwrap();
    set_down_after(&client, 600_000).await;
    assert_eq!(seats_now(&client).await, before);
    check_keys(&client).await;

    // Then those go as well.
    cluster.kill(3).unwrap();
    cluster.kill(4).unwrap();
    let refused = adopt_at(&cluster, 5, &["--yes", "--force"]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let why =
        "no node that answers has the manager role: start one that has it; nothing was changed";
    assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn a_maker_that_dies_goes_on_when_it_is_back_or_gives_way_to_another_one() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "adopt-killed", 1).await.unwrap();
    let client = cluster.client().await.unwrap();
    write(&client).await;
    let before = seats_now(&client).await;

    kill_the_maker(&mut cluster).await;
    cluster.start_node(1).unwrap();
    assert_eq!(wait_one_manager(&cluster, &client, 2).await.era, 2);

    // Others do not wait for it. Perhaps they take the same era: then the incarnation decides.
    kill_the_maker(&mut cluster).await;
    let adopted = adopt_at(&cluster, 2, &["--yes", "--force"]).await;
    assert!(adopted.status.success(), "{}", text(&adopted.stderr));
    cluster.start_node(1).unwrap();
    wait_one_manager(&cluster, &client, 3).await;
    set_down_after(&client, 600_000).await;
    assert_eq!(seats_now(&client).await, before);
    check_keys(&client).await;
}

#[tokio::test]
async fn an_export_brings_settings_back_and_the_nodes_know_their_groups() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "adopt-from", 1).await.unwrap();
    let client = cluster.client().await.unwrap();
    write(&client).await;
    set_down_after(&client, 123_000).await;
    let exported = wait_era(&client, 1).await;
    let file = cluster.path().join("manager.export");
    let name = file.to_str().unwrap();
    let store = |bytes: &[u8]| {
        annulus_runtime::disk::replace_file(&RealDisk, cluster.path(), "manager.export", bytes)
            .unwrap();
    };

    // What cannot be taken in changes nothing.
    store(b"no export");
    let refused = adopt(&cluster, &["--yes", "--force", "--from", name]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let foreign = v1::ManagerState { cluster_id: vec![9; 16].into(), ..exported.clone() };
    store(&foreign.encode_to_vec());
    let refused = adopt(&cluster, &["--yes", "--force", "--from", name]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("from: is of cluster"), "{}", text(&refused.stderr));
    store(&exported.encode_to_vec());

    // After the export a node comes and gets seats, and a setting changes.
    assert_eq!(cluster.add_node().unwrap(), 4);
    wait_until("the fourth node has seats, and nothing moves", MOVES, || async {
        let Some(state) = export(&client).await else { return false };
        let members = state.groups.iter().flat_map(|group| &group.members);
        let is_there = members.filter(|member| member.node == 4).count() >= 2;
        let is_over =
            |it: &v1::Move| matches!(it.state(), v1::MoveState::Done | v1::MoveState::Cancelled);
        is_there && state.moves.iter().all(is_over)
    })
    .await
    .unwrap();
    set_down_after(&client, 456_000).await;
    wait_applied(&client).await;
    let before = seats_now(&client).await;

    let served = Cell::new(0);
    let flags = ["--yes", "--force", "--from", name];
    let adopted = tokio::select! {
        () = serve(&client, &served) => panic!("it serves for ever"),
        adopted = adopt(&cluster, &flags) => adopted,
    };
    let told = text(&adopted.stdout);
    assert!(adopted.status.success(), "{told}{}", text(&adopted.stderr));
    assert!(told.contains("from the export: settings: down_after_ms 123000"), "{told}");
    assert!(told.contains("the nodes are right: node 4: the export does not have it"), "{told}");

    let client = cluster.client().await.unwrap();
    let state = wait_era(&client, 2).await;
    assert_eq!(state.settings.unwrap().down_after_ms, 123_000);
    let up = state.nodes.iter().filter(|node| node.state() == v1::NodeState::Up).count();
    assert_eq!(up, 4);
    assert_eq!(seats_now(&client).await, before);
    check_keys(&client).await;

    // Its own export is as good as any, and so is the copy that a node kept.
    assert_eq!(kept(&cluster, 1, 1).unwrap().settings.unwrap().down_after_ms, 456_000);
    let copy = cluster.data_dir(1).join("manager-era-1.bak");
    let again = adopt(&cluster, &["--yes", "--force", "--from", copy.to_str().unwrap()]).await;
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(text(&again.stdout).contains("era 2 -> 3"), "{}", text(&again.stdout));
    let state = wait_era(&client, 3).await;
    assert_eq!(state.settings.unwrap().down_after_ms, 456_000);
}
