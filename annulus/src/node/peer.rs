//! The `Peer` service: the link, snapshots, heartbeats, and the commands of birth and manager.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_proto::convert::{cluster_bytes, status_of};
use annulus_proto::v1;
use annulus_proto::v1::peer_server::Peer;
use annulus_raft::{FrameStream, GroupSpec, HostError, Reign};
use annulus_runtime::{OnEnd, Stream};
use annulus_server::deadline::{deadline_of, working_limit};
use annulus_types::{Error, ErrorKind, NodeId, RoutingTable};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::{Lead, Node, adoption, birth, command, replicas};

/// A connection as tonic wants it.
pub(super) struct Incoming {
    stream: Stream,
    addr: SocketAddr,
}

impl Incoming {
    pub(super) fn new(stream: Stream, addr: SocketAddr) -> Self {
        Self { stream, addr }
    }
}

impl Connected for Incoming {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.addr
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// See the module.
pub(super) struct PeerService(pub(super) Arc<Node>);

fn refuse(error: Error) -> Status {
    status_of(&error)
}

#[tonic::async_trait]
impl Peer for PeerService {
    type LinkStream = FrameStream;

    async fn link(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        let host = self.0.host().ok_or_else(|| Status::unavailable("not born yet"))?;
        Ok(Response::new(host.accept_link(request.into_inner())))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let host = self.0.host().ok_or_else(|| Status::unavailable("not born yet"))?;
        host.accept_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn adopt(
        &self,
        request: Request<v1::AdoptRequest>,
    ) -> Result<Response<v1::AdoptReply>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        self.to_its_end(async move { birth::adopt(&node, &request).await }).await?;
        Ok(Response::new(v1::AdoptReply { info: Some((&self.0.info).into()) }))
    }

    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        let identity = self.0.folder.lock().identity();
        Ok(Response::new(v1::DescribeReply {
            cluster_id: cluster_bytes(identity.cluster),
            info: Some((&self.0.info).into()),
            incarnation: identity.incarnation,
        }))
    }

    async fn found(
        &self,
        request: Request<v1::FoundRequest>,
    ) -> Result<Response<v1::FoundReply>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        self.to_its_end(async move { birth::found(&node, request).await }).await?;
        Ok(Response::new(v1::FoundReply {}))
    }

    async fn push(
        &self,
        request: Request<v1::PushRequest>,
    ) -> Result<Response<v1::PushReply>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        let taken = self.to_its_end(async move { take_table(&node, request).await });
        taken.await.map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let request = request.into_inner();
        let manager = match self.0.lead() {
            Lead::Here(manager) => manager,
            Lead::At(node) => return Err(refuse(not_leader(Some(node)))),
            Lead::Unknown => return Err(refuse(not_leader(None))),
        };
        let reply = Box::pin(manager.heartbeat(&request)).await.map_err(refuse)?;
        if reply.admitted
            && let Some(info) = request.info
        {
            // It may be new, or have come back elsewhere; commands go there.
            self.0.book.told(info.into());
        }
        Ok(Response::new(reply))
    }

    async fn command(
        &self,
        request: Request<v1::CommandRequest>,
    ) -> Result<Response<v1::CommandReply>, Status> {
        let limit = deadline_of(request.metadata()).map(working_limit);
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        let done = self.to_its_end(async move { command::run(&node, request, limit).await });
        done.await.map(Response::new)
    }

    async fn survey(
        &self,
        _request: Request<v1::SurveyRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Ok(Response::new(Box::pin(self.0.survey()).await))
    }

    async fn begin_era(
        &self,
        request: Request<v1::BeginEraRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        let begun = self.to_its_end(async move { adoption::begin_era(&node, &request).await });
        begun.await.map(Response::new)
    }

    async fn appoint(
        &self,
        request: Request<v1::AppointRequest>,
    ) -> Result<Response<v1::AppointReply>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        self.to_its_end(async move { adoption::appoint(&node, request).await }).await?;
        Ok(Response::new(v1::AppointReply {}))
    }
}

fn not_leader(leader: Option<NodeId>) -> Error {
    Error::refused(ErrorKind::NotLeader { leader })
}

impl PeerService {
    /// Runs a command in a task of its own: a caller that goes away loses the answer, and never cuts
    /// a birth in two.
    async fn to_its_end<T, F>(&self, command: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.0.env.tasks.spawn("peer command", OnEnd::Ignore, async move {
            // The caller may be gone.
            let _ = done.send(command.await);
        });
        match answer.await {
            Ok(result) => result.map_err(refuse),
            Err(_) => Err(Status::unavailable("the node is stopping")),
        }
    }
}

/// Takes the admitted lives that come with the table (N1), creates the replicas that it founds at this
/// node, then stores it: a node that says which table it holds says with it that all this is done.
///
/// Only replicas that the birth founds ([`birth::founds`]) come about in this way. All others are the business
/// of a move, which creates them by a command and knows how far it is; the table shows them afterwards. One
/// that missed the founding is told to the manager (`reports`).
async fn take_table(node: &Arc<Node>, request: v1::PushRequest) -> Result<v1::PushReply, Error> {
    let not_ready = |reason: String| Error::refused(ErrorKind::NotReady { reason });
    let _changing = node.changing.lock().await;
    let Some(host) = node.host() else { return Err(not_ready("not adopted yet".to_owned())) };
    birth::check_life(node, request.node, Some(request.incarnation))?;
    let wire = request.table.ok_or_else(|| Error::bad_request("table", "is missing"))?;
    let table = RoutingTable::try_from(wire)?;
    if table.cluster != host.options().cluster {
        let actual = host.options().cluster;
        return Err(Error::refused(ErrorKind::WrongCluster { actual }));
    }
    let reign = Reign { era: request.era, incarnation: request.manager_incarnation };
    obey(node, reign, request.term).await?;
    if table.version < node.tables.version() {
        // Overtaken on its way; what it calls founding may be long over.
        return Ok(v1::PushReply { table_version: node.tables.version().0 });
    }
    // Before the table is stored: the manager does not say it a second time to a node that holds it. In
    // order, for what is older by era, term or version has ended above.
    let lives = request.admitted.iter().map(|life| (NodeId(life.node), life.incarnation));
    let lives: Vec<(NodeId, u64)> = lives.collect();
    let admitted = host.admit(&lives).await;
    admitted.map_err(|error| not_ready(format!("storing who is admitted: {error}")))?;
    node.book.from_table(&table.nodes);
    for route in table.groups.iter().filter(|route| birth::founds(reign.era, route)) {
        let own = route.members.iter().find(|member| member.node == node.info.id);
        let Some(own) = own else { continue };
        let found = replicas::founders_if_home(&table, route.id, node.info.id, own.replica);
        let spec = GroupSpec { group: route.id, replica: own.replica, found };
        match node.open_replica(&host, spec).await {
            Ok(_) => {}
            // Heartbeats tell of it; the table is good for everything else.
            Err(
                error @ (HostError::Damaged { .. }
                | HostError::NeedsRefill { .. }
                | HostError::Occupied(_)
                | HostError::Tombstone(_)),
            ) => tracing::info!(group = %route.id, %error, "a replica of the table stays closed"),
            Err(error) => return Err(not_ready(error.to_string())),
        }
    }
    let tables = Arc::clone(&node.tables);
    tokio::task::spawn_blocking(move || tables.install(table))
        .await
        .map_err(|error| not_ready(error.to_string()))?
        .map_err(|error| not_ready(format!("storing the table: {error}")))?;
    Ok(v1::PushReply { table_version: node.tables.version().0 })
}

/// A manager that is behind another one, by its reign or in its reign by its term, is not listened to (H6).
/// Called under `changing`.
async fn obey(node: &Arc<Node>, reign: Reign, term: u64) -> Result<(), Error> {
    Box::pin(node.enter_reign(reign)).await?;
    let mut fence = node.fence.lock();
    if (reign, term) < *fence {
        return Err(Error::bad_request("term", "a later manager has spoken"));
    }
    *fence = (reign, term);
    Ok(())
}
