//! Calls against nodes that follow a script, over byte pipes, in simulated time.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use annulus_proto::convert::status_of;
use annulus_proto::v1::kv_server::{Kv, KvServer};
use annulus_proto::v1::routes_server::{Routes, RoutesServer};
use annulus_runtime::{Clock, Listener, OnEnd, Random, RealDisk, Stream, Tasks};
use annulus_types::{
    Consistency, Epoch, GroupId, GroupRoute, MemberRole, MemberRoute, Mode, NodeInfo, Receipt,
    ReplicaId, Role, ServedBy, ShardId, ShardRoute, TableVersion,
};
use futures_util::future::BoxFuture;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::*;

/// What a node does with the next request for a key; without a script it serves.
#[derive(Clone, Debug)]
enum Play {
    Refuse(Error),
    Damage,
    Hang,
}

#[derive(Clone, Debug)]
struct Node {
    id: NodeId,
    state: Arc<Mutex<NodeState>>,
}

#[derive(Debug, Default)]
struct NodeState {
    script: VecDeque<Play>,
    heard: Vec<v1::RequestHeader>,
    table: Option<RoutingTable>,
    table_asked: usize,
}

impl Node {
    async fn follow(&self, header: Option<v1::RequestHeader>) -> Result<Option<Play>, Status> {
        let play = {
            let mut state = self.state.lock();
            state.heard.push(header.unwrap_or_default());
            state.script.pop_front()
        };
        match play {
            Some(Play::Refuse(error)) => Err(status_of(&error)),
            Some(Play::Hang) => std::future::pending().await,
            other => Ok(other),
        }
    }

    fn receipt(&self, mode: Mode) -> v1::Receipt {
        let table_version = self.state.lock().table.as_ref().map(|table| table.version);
        v1::Receipt::from(&Receipt {
            mode,
            shard: ShardId(0),
            epoch: Epoch(1),
            node: self.id,
            replica: ReplicaId(u64::from(self.id.0)),
            role: if mode == Mode::Any { Role::Follower } else { Role::Leader },
            served_by: if mode == Mode::Write { ServedBy::Log } else { ServedBy::Local },
            term: 1,
            revision: Revision(5),
            staleness_bound_us: None,
            shard_time_ms: 0,
            table_version: table_version.unwrap_or_default(),
        })
    }

    async fn write(
        &self,
        header: Option<v1::RequestHeader>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        self.follow(header).await?;
        let receipt = Some(self.receipt(Mode::Write));
        Ok(Response::new(v1::WriteReply { receipt, version: 5 }))
    }
}

#[tonic::async_trait]
impl Kv for Node {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        self.write(request.into_inner().header).await
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetReply>, Status> {
        let header = request.into_inner().header;
        let any = header
            .as_ref()
            .is_some_and(|header| header.consistency == i32::from(v1::Consistency::Any));
        let play = self.follow(header).await?;
        let value = Bytes::from_static(b"value");
        let damage = u32::from(matches!(play, Some(Play::Damage)));
        Ok(Response::new(v1::GetReply {
            receipt: Some(self.receipt(if any { Mode::Any } else { Mode::Linearizable })),
            found: true,
            value_crc32: crc32fast::hash(&value) ^ damage,
            value,
            version: 5,
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        self.write(request.into_inner().header).await
    }

    async fn cas(
        &self,
        request: Request<v1::CasRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        self.write(request.into_inner().header).await
    }
}

#[tonic::async_trait]
impl Routes for Node {
    async fn get(
        &self,
        _: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::RoutingTable>, Status> {
        let mut state = self.state.lock();
        state.table_asked += 1;
        match &state.table {
            Some(table) => Ok(Response::new(v1::RoutingTable::from(table))),
            None => {
                let reason = "no cluster yet".to_owned();
                Err(status_of(&Error::refused(ErrorKind::NotReady { reason })))
            }
        }
    }
}

/// Connects to the nodes that are up; the others refuse.
#[derive(Debug, Default)]
struct Wires(Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>);

impl Network for Wires {
    fn listen(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let node = self.0.lock().get(addr).cloned().ok_or_else(refused)?;
            let (near, far) = tokio::io::duplex(64 * 1024);
            node.send(far).await.map_err(|_| refused())?;
            Ok(Box::new(near) as Stream)
        })
    }
}

/// Nodes 1, 2 and 3; one group, whose home is node 1.
struct Cluster {
    nodes: Vec<Node>,
    wires: Arc<Wires>,
    env: Env,
}

fn addr(id: u32) -> String {
    format!("node{id}:7400")
}

fn table(version: u64, leader: Option<u32>) -> RoutingTable {
    RoutingTable {
        cluster: ClusterId([1; 16]),
        version: TableVersion(version),
        shards: vec![ShardRoute {
            id: ShardId(0),
            slice: 0,
            parent: None,
            epoch: Epoch(1),
            group: GroupId(9),
        }],
        groups: vec![GroupRoute {
            id: GroupId(9),
            home: NodeId(1),
            lane: 0,
            members: (1..=3)
                .map(|id| MemberRoute {
                    node: NodeId(id),
                    replica: ReplicaId(u64::from(id)),
                    role: MemberRole::Voter,
                })
                .collect(),
            leader: leader.map(NodeId),
            term: version,
            membership_index: 1,
        }],
        nodes: (1..=3)
            .map(|id| NodeInfo { id: NodeId(id), addr: addr(id), ..NodeInfo::default() })
            .collect(),
    }
}

impl Cluster {
    fn start(table: Option<RoutingTable>) -> Self {
        let wires = Arc::new(Wires::default());
        let env = Env {
            clock: Clock::simulated(1000, 0),
            random: Random::seeded(1),
            network: Arc::clone(&wires) as Arc<dyn Network>,
            disk: Arc::new(RealDisk),
            tasks: Tasks::new(),
        };
        let nodes: Vec<Node> = (1..=3)
            .map(|id| {
                let state = NodeState { table: table.clone(), ..NodeState::default() };
                Node { id: NodeId(id), state: Arc::new(Mutex::new(state)) }
            })
            .collect();
        for node in &nodes {
            let (sender, receiver) = mpsc::channel::<DuplexStream>(8);
            let incoming = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let stream = receiver.recv().await?;
                Some((Ok::<_, io::Error>(stream), receiver))
            });
            let served = tonic::transport::Server::builder()
                .add_service(KvServer::new(node.clone()))
                .add_service(RoutesServer::new(node.clone()))
                .serve_with_incoming(incoming);
            env.tasks.spawn("node", OnEnd::Ignore, async move {
                drop(served.await);
            });
            wires.0.lock().insert(addr(node.id.0), sender);
        }
        Self { nodes, wires, env }
    }

    async fn client(&self) -> Client {
        Client::builder()
            .endpoints((1..=3).map(addr))
            .env(self.env.clone())
            .connect()
            .await
            .expect("the nodes are up")
    }

    /// Node `id` refuses new connections from now on. Connections that stand are left alone.
    fn refuse_at(&self, id: u32) {
        self.wires.0.lock().remove(&addr(id));
    }

    fn node(&self, id: u32) -> &Node {
        self.nodes.iter().find(|node| node.id == NodeId(id)).expect("a node of the cluster")
    }

    fn play(&self, id: u32, plays: impl IntoIterator<Item = Play>) {
        self.node(id).state.lock().script.extend(plays);
    }

    /// How many requests for keys each node heard.
    fn heard(&self) -> [usize; 3] {
        [1, 2, 3].map(|id| self.node(id).state.lock().heard.len())
    }

    fn table_asked(&self) -> [usize; 3] {
        [1, 2, 3].map(|id| self.node(id).state.lock().table_asked)
    }
}

fn not_leader(leader: Option<u32>) -> Play {
    Play::Refuse(Error::refused(ErrorKind::NotLeader { leader: leader.map(NodeId) }))
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed_at_once_and_remembered() {
    let cluster = Cluster::start(Some(table(1, None)));
    let client = cluster.client().await;
    cluster.play(1, [not_leader(Some(3))]);
    let start = tokio::time::Instant::now();
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.receipt.node), (2, NodeId(3)));
    assert_eq!(written.version, Revision(5));
    assert!(start.elapsed() < Duration::from_millis(10), "shorter than the shortest pause");

    let written = client.delete("k").await.unwrap();
    assert_eq!((written.attempts, cluster.heard()), (1, [1, 0, 2]));
    let header = cluster.node(3).state.lock().heard[0].clone();
    assert_eq!((&header.cluster_id[..], header.table_version), (&[1; 16][..], 1));
}

#[tokio::test(start_paused = true)]
async fn a_mutation_with_an_unknown_outcome_is_sent_once() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.play(2, [Play::Refuse(Error::unknown(ErrorKind::OutcomeUnknown)), Play::Hang]);
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error, Error::unknown(ErrorKind::OutcomeUnknown));
    assert_eq!(cluster.heard(), [0, 1, 0]);

    let error = client.cas("k", None, "v").deadline(Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::DeadlineExceeded { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
    assert_eq!(cluster.heard(), [0, 2, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_read_leaves_a_node_that_hangs() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.play(2, [Play::Hang]);
    let found = client.get("k").await.unwrap();
    assert_eq!((found.attempts, found.receipt.node), (2, NodeId(3)));
    assert_eq!(found.value.as_deref(), Some(&b"value"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_connections_is_passed_over() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.refuse_at(2);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.receipt.node), (2, NodeId(3)));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_finds_no_leader_ends_as_no_quorum_and_no() {
    let cluster = Cluster::start(Some(table(1, None)));
    let client = cluster.client().await;
    for id in 1..=3 {
        cluster.play(id, std::iter::repeat_n(not_leader(None), 1_000));
    }
    let start = tokio::time::Instant::now();
    let error = client.put("k", "v").deadline(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::NoQuorum));
    assert!(start.elapsed() >= Duration::from_secs(3));
    assert!(cluster.heard().iter().all(|heard| (2..=20).contains(heard)), "{:?}", cluster.heard());
}

#[tokio::test(start_paused = true)]
async fn the_last_reason_is_told_when_it_is_not_a_missing_leader() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    for id in 1..=3 {
        let full = Play::Refuse(Error::refused(ErrorKind::Overloaded));
        cluster.play(id, std::iter::repeat_n(full, 1_000));
    }
    let error = client.put("k", "v").deadline(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn a_failed_precondition_is_an_answer() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let current = Some(Revision(4));
    let failed = Error::refused(ErrorKind::PreconditionFailed { current });
    cluster.play(1, [Play::Refuse(failed.clone())]);
    assert_eq!(client.cas("k", Some(Revision(3)), "v").await.unwrap_err(), failed);
    assert_eq!(cluster.heard(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn any_reads_go_to_all_members() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    for _ in 0..6 {
        client.get("k").consistency(Consistency::Any).await.unwrap();
    }
    assert_eq!(cluster.heard(), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_named_node_is_asked_alone() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let found = client.get("k").consistency(Consistency::Any).from_node(NodeId(3)).await.unwrap();
    assert_eq!(found.receipt.node, NodeId(3));

    cluster.play(3, [not_leader(Some(1))]);
    let error = client.get("k").strict(true).from_node(NodeId(3)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotLeader { leader: Some(NodeId(1)) });
    assert_eq!(cluster.heard(), [0, 0, 2]);
    assert!(cluster.node(3).state.lock().heard[1].strict);

    let error = client.get("k").from_node(NodeId(9)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BadRequest { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_value_is_not_handed_out() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    cluster.play(1, [Play::Damage]);
    let error = client.get("k").await.unwrap_err();
    let ErrorKind::Internal { id } = &error.kind else { panic!("{error:?}") };
    assert!(id.contains("value_crc32") && id.contains("node 1"), "{id}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
}

#[tokio::test(start_paused = true)]
async fn newer_routes_are_fetched_before_the_next_call() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    assert_eq!(cluster.table_asked(), [1, 0, 0]);
    for node in &cluster.nodes {
        node.state.lock().table = Some(table(2, Some(2)));
    }
    client.put("k", "v").await.unwrap();
    assert_eq!(cluster.table_asked(), [1, 0, 0], "the answer told of them");
    // Tables are asked for at most every 200 ms.
    tokio::time::advance(Duration::from_millis(200)).await;
    let written = client.put("k", "v").await.unwrap();
    assert_eq!(cluster.table_asked(), [2, 0, 0]);
    assert_eq!(written.receipt.node, NodeId(2));
    assert_eq!(client.routes().await.unwrap().version, TableVersion(2));
}

#[tokio::test(start_paused = true)]
async fn an_unborn_cluster_can_be_connected_to() {
    let cluster = Cluster::start(None);
    let client = cluster.client().await;
    let error = client.put("k", "v").deadline(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NotReady { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);

    cluster.node(2).state.lock().table = Some(table(1, Some(3)));
    assert_eq!(client.put("k", "v").await.unwrap().receipt.node, NodeId(3));
}

#[tokio::test(start_paused = true)]
async fn without_any_node_connecting_fails_at_the_deadline() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    for id in 1..=3 {
        cluster.refuse_at(id);
    }
    let error = Client::builder()
        .endpoints((1..=3).map(addr))
        .env(cluster.env.clone())
        .deadline(Duration::from_secs(1))
        .connect()
        .await
        .unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NotReady { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_refused_before() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let refused = |error: Error| match error.kind {
        ErrorKind::BadRequest { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(client.get("").await.unwrap_err()), "key");
    assert_eq!(refused(client.put(vec![0_u8; 4_097], "v").await.unwrap_err()), "key");
    assert_eq!(refused(client.put("k", vec![0_u8; 16 << 20]).await.unwrap_err()), "value");
    assert_eq!(cluster.heard(), [0, 0, 0]);
}

#[test]
fn endpoints_are_host_and_port() {
    let of = |endpoint: &str| addresses(&[endpoint.to_owned()]).map(|mut all| all.remove(0));
    for (endpoint, address) in [
        ("127.0.0.1:7400", "127.0.0.1:7400"),
        (" http://db.example:1/ ", "db.example:1"),
        ("[::1]:7400", "[::1]:7400"),
    ] {
        assert_eq!(of(endpoint).as_deref(), Ok(address));
    }
    for bad in ["", "host", ":7400", "host:", "host:70000", "https://host"] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
    assert!(addresses(&[]).is_err());
}
