//! A small cluster: three nodes that follow scripts, over byte pipes, in simulated time. Behind all of them
//! lies one [`Shard`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use annulus_proto::convert::{Item, Items, header_of, status_of};
use annulus_proto::v1::kv_server::{Kv, KvServer};
use annulus_proto::v1::routes_server::{Routes, RoutesServer};
use annulus_runtime::{Clock, Listener, OnEnd, Random, RealDisk, Stream, Tasks};
use annulus_types::{
    Epoch, Error as Said, GroupId, GroupRoute, MemberRole, MemberRoute, Mode, NodeId, NodeInfo,
    Receipt, ReplicaId, Role, ServedBy, ShardId, ShardRoute, TableVersion, token_of,
};
use futures_util::future::BoxFuture;
use parking_lot::MutexGuard;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::super::*;
use super::shard::{Judged, Shard};

/// What a node does with the next request; without a script it serves.
#[derive(Clone, Debug)]
pub(super) enum Play {
    /// Refuses it, and does nothing else.
    Refuse(Said),
    /// Answers a read with a value that does not fit its checksum.
    Damage,
    /// Keeps it, and never says a word.
    Hang,
    /// Serves it, and says that the outcome is not known.
    LoseReply,
    /// Serves it, and never says a word.
    Swallow,
    /// Serves it after something else has happened.
    Meanwhile(fn(&mut Shard)),
}

pub(super) fn not_leader(leader: Option<u32>) -> Play {
    Play::Refuse(Said::refused(ErrorKind::NotLeader { leader: leader.map(NodeId) }))
}

pub(super) fn unknown() -> Play {
    Play::Refuse(Said::unknown(ErrorKind::OutcomeUnknown))
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    id: NodeId,
    pub(super) state: Arc<Mutex<NodeState>>,
    shard: Arc<Mutex<Shard>>,
}

#[derive(Debug, Default)]
pub(super) struct NodeState {
    /// For requests for keys.
    script: VecDeque<Play>,
    /// For requests about writers.
    asides: VecDeque<Play>,
    /// Of requests for keys.
    pub(super) heard: Vec<v1::RequestHeader>,
    pub(super) table: Option<RoutingTable>,
    table_asked: usize,
    /// What the node holds, if it is cut off from the others.
    past: Option<Shard>,
    /// What it says instead of an answer, by shard, to whom asks for many keys.
    pub(super) refused: BTreeMap<ShardId, Said>,
    /// Keys that it answers for in one message.
    pub(super) room: Option<usize>,
}

/// A request for what a node may show.
struct View {
    mode: Mode,
    /// What the session has seen.
    seen: u64,
    past: Option<Shard>,
}

impl View {
    /// The state that may be shown, by the promises of the mode.
    fn of<'a>(&'a self, present: &'a Shard) -> Result<&'a Shard, Said> {
        let shown = self.past.as_ref().unwrap_or(present);
        match self.mode {
            Mode::Session if shown.revision >= self.seen => Ok(shown),
            // Only a leader could tell whether there is more, and it cannot be asked.
            Mode::Session if self.past.is_some() => {
                Err(Said::refused(ErrorKind::NotLeader { leader: None }))
            }
            Mode::Session => Err(Said::refused(ErrorKind::HistoryLost)),
            Mode::Bounded if self.past.is_some() => {
                Err(Said::refused(ErrorKind::TooStale { limit_us: 1, actual_us: None }))
            }
            Mode::Any => Ok(shown),
            Mode::Bounded | Mode::Linearizable | Mode::Write => Ok(present),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl Node {
    /// A request for keys, by the script.
    async fn serve<T: Send>(
        &self,
        header: Option<v1::RequestHeader>,
        work: impl FnOnce(&mut Shard) -> Result<T, Said> + Send,
    ) -> Result<T, Status> {
        let header = header.unwrap_or_default();
        self.shard.lock().names.extend(header.op);
        let play = {
            let mut state = self.state.lock();
            state.heard.push(header);
            state.script.pop_front()
        };
        self.play(play, work).await
    }

    /// A request about writers.
    async fn serve_aside<T: Send>(
        &self,
        work: impl FnOnce(&mut Shard) -> Result<T, Said> + Send,
    ) -> Result<T, Status> {
        let play = self.state.lock().asides.pop_front();
        self.play(play, work).await
    }

    async fn play<T: Send>(
        &self,
        play: Option<Play>,
        work: impl FnOnce(&mut Shard) -> Result<T, Said> + Send,
    ) -> Result<T, Status> {
        match &play {
            Some(Play::Refuse(error)) => return Err(status_of(error)),
            Some(Play::Hang) => return std::future::pending().await,
            _ => {}
        }
        let done = {
            let mut shard = self.shard.lock();
            if let Some(Play::Meanwhile(happens)) = &play {
                happens(&mut shard);
            }
            work(&mut shard)
        };
        match play {
            Some(Play::LoseReply) => Err(status_of(&Said::unknown(ErrorKind::OutcomeUnknown))),
            Some(Play::Swallow) => std::future::pending().await,
            _ => done.map_err(|error| status_of(&error)),
        }
    }

    /// What a read asks for.
    fn view(&self, header: Option<&v1::RequestHeader>) -> Result<View, Said> {
        let header = header_of(header)?;
        let mode = match header.consistency {
            Consistency::Linearizable => Mode::Linearizable,
            Consistency::Session => Mode::Session,
            Consistency::Bounded(_) => Mode::Bounded,
            Consistency::Any => Mode::Any,
        };
        let seen = match header.session {
            Some(token) if token.cluster() != CLUSTER => {
                return Err(Said::refused(ErrorKind::WrongCluster { actual: CLUSTER }));
            }
            Some(token) => token.get(ShardId(0)).0,
            None => 0,
        };
        Ok(View { mode, seen, past: self.state.lock().past.clone() })
    }

    /// From now on the node hears nothing new.
    pub(super) fn cut_off(&self) {
        let past = self.shard.lock().clone();
        self.state.lock().past = Some(past);
    }

    fn receipt(&self, mode: Mode, revision: u64) -> Option<v1::Receipt> {
        Some(v1::Receipt::from(&self.receipt_of(ShardId(0), mode, revision)))
    }

    fn receipt_of(&self, shard: ShardId, mode: Mode, revision: u64) -> Receipt {
        let table_version = self.state.lock().table.as_ref().map(|table| table.version);
        Receipt {
            mode,
            shard,
            epoch: Epoch(1),
            node: self.id,
            replica: ReplicaId(u64::from(self.id.0)),
            role: match mode {
                Mode::Write | Mode::Linearizable => Role::Leader,
                Mode::Session | Mode::Bounded | Mode::Any => Role::Follower,
            },
            served_by: if mode == Mode::Write { ServedBy::Log } else { ServedBy::Local },
            term: 1,
            revision: Revision(revision),
            staleness_bound_us: None,
            shard_time_ms: 0,
            table_version: table_version.unwrap_or_default(),
        }
    }

    /// A mutation. `request` tells it from others under the same name.
    async fn mutate(
        &self,
        header: Option<v1::RequestHeader>,
        request: String,
        change: impl FnOnce(&mut Shard) -> Judged + Send,
    ) -> Result<Judged, Status> {
        let op = header.as_ref().and_then(|header| header.op);
        let judged = self.serve(header, move |shard| shard.once(op, request, change)).await?;
        match judged {
            Judged::Failed { current } => {
                let current = current.map(Revision);
                Err(status_of(&Said::refused(ErrorKind::PreconditionFailed { current })))
            }
            judged => Ok(judged),
        }
    }

    async fn write(
        &self,
        header: Option<v1::RequestHeader>,
        request: String,
        change: impl FnOnce(&mut Shard) -> Judged + Send,
    ) -> Answer<v1::WriteReply> {
        match self.mutate(header, request, change).await? {
            Judged::Written { version, revision } => {
                let receipt = self.receipt(Mode::Write, revision);
                Ok(Response::new(v1::WriteReply { receipt, version }))
            }
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Kv for Node {
    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::WriteReply> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let change = vec![(request.key.clone(), Some(request.value.clone()))];
        self.write(header, format!("{request:?}"), move |shard| shard.change(change)).await
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetReply> {
        let v1::GetRequest { header, key } = request.into_inner();
        let view = self.view(header.as_ref()).map_err(|error| status_of(&error))?;
        let mode = view.mode;
        let damage = {
            let state = self.state.lock();
            u32::from(matches!(state.script.front(), Some(Play::Damage)))
        };
        let seen = self.serve(header, move |shard| {
            let shown = view.of(shard)?;
            Ok((shown.get(&key), shown.revision))
        });
        let (held, revision) = seen.await?;
        let found = held.is_some();
        let (value, version) = held.unwrap_or_default();
        Ok(Response::new(v1::GetReply {
            receipt: self.receipt(mode, revision),
            found,
            value_crc32: crc32fast::hash(&value) ^ damage,
            value,
            version,
            deadline_ms: 0,
        }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::WriteReply> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let text = format!("{request:?}");
        let v1::DeleteRequest { key, expected_version, .. } = request;
        self.write(header, text, move |shard| {
            let current = shard.version(&key);
            let holds = expected_version.is_none() || expected_version == current;
            shard.change_if(holds, current, vec![(key, None)])
        })
        .await
    }

    async fn cas(&self, request: Request<v1::CasRequest>) -> Answer<v1::WriteReply> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let text = format!("{request:?}");
        let v1::CasRequest { key, value, expected_version, .. } = request;
        self.write(header, text, move |shard| {
            let current = shard.version(&key);
            shard.change_if(expected_version == current, current, vec![(key, Some(value))])
        })
        .await
    }

    async fn incr(&self, request: Request<v1::IncrRequest>) -> Answer<v1::IncrReply> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let text = format!("{request:?}");
        match self.mutate(header, text, move |shard| shard.count(request)).await? {
            Judged::Counted { result, value, version, revision } => {
                let receipt = self.receipt(Mode::Write, revision);
                let result = result.into();
                Ok(Response::new(v1::IncrReply { receipt, result, value, version }))
            }
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    async fn multi_get(&self, request: Request<v1::MultiGetRequest>) -> Answer<v1::MultiGetReply> {
        let v1::MultiGetRequest { header, keys } = request.into_inner();
        let view = self.view(header.as_ref()).map_err(|error| status_of(&error))?;
        let mode = view.mode;
        let (table, refused, room) = {
            let state = self.state.lock();
            let table = state.table.clone().unwrap_or_default();
            (table, state.refused.clone(), state.room.unwrap_or(usize::MAX))
        };
        let asked = keys.clone();
        let seen = self.serve(header, move |shard| {
            let shown = view.of(shard)?;
            let held: Vec<_> = asked.iter().map(|key| shown.get(key)).collect();
            Ok((held, shown.revision))
        });
        let (held, revision) = seen.await?;
        let mut answer = Items::default();
        for (number, (key, held)) in keys.iter().zip(held).enumerate() {
            let home = table.shard_of(token_of(key)).map_or(ShardId(0), |route| route.id);
            if number >= room {
                answer.items.push(Item::LeftOut);
                continue;
            }
            if let Some(error) = refused.get(&home) {
                answer.items.push(Item::Failed { error: answer.errors.len() });
                answer.errors.push(error.clone());
                continue;
            }
            let known = answer.receipts.iter().position(|receipt| receipt.shard == home);
            let receipt = known.unwrap_or(answer.receipts.len());
            if known.is_none() {
                answer.receipts.push(self.receipt_of(home, mode, revision));
            }
            answer.items.push(match held {
                Some((value, version)) => Item::Found {
                    receipt,
                    version: Revision(version),
                    crc: crc32fast::hash(&value),
                    value,
                    deadline_ms: 0,
                },
                None => Item::Absent { receipt },
            });
        }
        Ok(Response::new(answer.into()))
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::BatchReply> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let text = format!("{request:?}");
        let put = i32::from(v1::BatchKind::Put);
        let puts: Vec<bool> = request.kinds.iter().map(|kind| *kind == put).collect();
        match self.mutate(header, text, move |shard| shard.batch(request)).await? {
            Judged::Written { version, revision } => {
                let receipt = self.receipt(Mode::Write, revision);
                let versions = puts.into_iter().map(|put| if put { version } else { 0 }).collect();
                Ok(Response::new(v1::BatchReply { receipt, versions }))
            }
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    async fn open_writer(&self, _: Request<v1::OpenWriterRequest>) -> Answer<v1::OpenWriterReply> {
        let writer = self.serve_aside(|shard| Ok(shard.open_writer())).await?;
        let receipt = self.receipt(Mode::Write, writer);
        Ok(Response::new(v1::OpenWriterReply { receipt, writer }))
    }

    async fn close_writer(
        &self,
        request: Request<v1::CloseWriterRequest>,
    ) -> Answer<v1::CloseWriterReply> {
        let writer = request.into_inner().writer;
        let closed = self.serve_aside(move |shard| {
            shard.writers.remove(&writer);
            Ok(shard.revision)
        });
        let receipt = self.receipt(Mode::Write, closed.await?);
        Ok(Response::new(v1::CloseWriterReply { receipt }))
    }

    async fn op_status(&self, request: Request<v1::OpStatusRequest>) -> Answer<v1::OpStatusReply> {
        let v1::OpStatusRequest { writer, seq, .. } = request.into_inner();
        let asked = self.serve_aside(move |shard| Ok((shard.status(writer, seq), shard.revision)));
        let ((state, version, revision, value), now) = asked.await?;
        let receipt = self.receipt(Mode::Write, now);
        let state = state.into();
        Ok(Response::new(v1::OpStatusReply { receipt, state, version, revision, value }))
    }
}

#[tonic::async_trait]
impl Routes for Node {
    async fn get(&self, _: Request<v1::GetRoutesRequest>) -> Answer<v1::RoutingTable> {
        let mut state = self.state.lock();
        state.table_asked += 1;
        match &state.table {
            Some(table) => Ok(Response::new(v1::RoutingTable::from(table))),
            None => {
                let reason = "no cluster yet".to_owned();
                Err(status_of(&Said::refused(ErrorKind::NotReady { reason })))
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
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) env: Env,
    wires: Arc<Wires>,
    shard: Arc<Mutex<Shard>>,
}

pub(super) fn addr(id: u32) -> String {
    format!("node{id}:7400")
}

const CLUSTER: ClusterId = ClusterId([1; 16]);

/// Two shards: 0, which node 1 leads, and 1, which node 2 leads.
pub(super) fn two_shards() -> RoutingTable {
    let mut two = table(1, Some(1));
    if let (Some(shard), Some(group)) = (two.shards.first().cloned(), two.groups.first().cloned()) {
        two.shards.push(ShardRoute { id: ShardId(1), slice: 1, group: GroupId(10), ..shard });
        two.groups.push(GroupRoute { id: GroupId(10), leader: Some(NodeId(2)), ..group });
    }
    two
}

pub(super) fn table(version: u64, leader: Option<u32>) -> RoutingTable {
    RoutingTable {
        cluster: CLUSTER,
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
    pub(super) fn start(table: Option<RoutingTable>) -> Self {
        let wires = Arc::new(Wires::default());
        let shard = Arc::new(Mutex::new(Shard::new()));
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
                let state = Arc::new(Mutex::new(state));
                Node { id: NodeId(id), state, shard: Arc::clone(&shard) }
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
        Self { nodes, env, wires, shard }
    }

    pub(super) fn builder(&self) -> Builder {
        Client::builder().endpoints((1..=3).map(addr)).env(self.env.clone())
    }

    pub(super) async fn client(&self) -> Client {
        self.builder().connect().await.expect("the nodes are up")
    }

    /// Node `id` refuses new connections from now on. Connections that stand are left alone.
    pub(super) fn refuse_at(&self, id: u32) {
        self.wires.0.lock().remove(&addr(id));
    }

    pub(super) fn node(&self, id: u32) -> &Node {
        self.nodes.iter().find(|node| node.id == NodeId(id)).expect("a node of the cluster")
    }

    /// What node `id` does with the next requests for keys.
    pub(super) fn play(&self, id: u32, plays: impl IntoIterator<Item = Play>) {
        self.node(id).state.lock().script.extend(plays);
    }

    /// What node `id` does with the next requests about writers.
    pub(super) fn play_aside(&self, id: u32, plays: impl IntoIterator<Item = Play>) {
        self.node(id).state.lock().asides.extend(plays);
    }

    /// All nodes do this with all requests for keys.
    pub(super) fn play_everywhere(&self, play: &Play) {
        for id in 1..=3 {
            self.play(id, std::iter::repeat_n(play.clone(), 1_000));
        }
    }

    /// All nodes serve again.
    pub(super) fn calm_down(&self) {
        for node in &self.nodes {
            let mut state = node.state.lock();
            state.script.clear();
            state.asides.clear();
        }
    }

    pub(super) fn shard(&self) -> MutexGuard<'_, Shard> {
        self.shard.lock()
    }

    /// How many requests for keys each node heard.
    pub(super) fn heard(&self) -> [usize; 3] {
        [1, 2, 3].map(|id| self.node(id).state.lock().heard.len())
    }

    pub(super) fn table_asked(&self) -> [usize; 3] {
        [1, 2, 3].map(|id| self.node(id).state.lock().table_asked)
    }
}
