//! The `Peer` service: the link, snapshots, and the commands of birth and manager.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_proto::convert::{cluster_bytes, status_of};
use annulus_proto::v1;
use annulus_proto::v1::peer_server::Peer;
use annulus_raft::{FrameStream, GroupSpec};
use annulus_runtime::{OnEnd, Stream};
use annulus_types::{Error, ErrorKind, RoutingTable};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::{Node, birth, replicas};

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

/// Stores the table, then creates the replicas that it gives to this node.
async fn take_table(node: &Arc<Node>, request: v1::PushRequest) -> Result<v1::PushReply, Error> {
    let not_ready = |reason: String| Error::refused(ErrorKind::NotReady { reason });
    let _changing = node.changing.lock().await;
    let Some(host) = node.host() else { return Err(not_ready("not adopted yet".to_owned())) };
    birth::check_life(node, request.node, Some(request.incarnation))?;
    {
        let mut fence = node.fence.lock();
        if (request.era, request.term) < *fence {
            return Err(Error::bad_request("term", "a later manager has spoken"));
        }
        *fence = (request.era, request.term);
    }
    let wire = request.table.ok_or_else(|| Error::bad_request("table", "is missing"))?;
    let table = RoutingTable::try_from(wire)?;
    if table.cluster != host.options().cluster {
        let actual = host.options().cluster;
        return Err(Error::refused(ErrorKind::WrongCluster { actual }));
    }
    node.book.from_table(&table.nodes);
    let (tables, stored) = (Arc::clone(&node.tables), table.clone());
    tokio::task::spawn_blocking(move || tables.install(stored))
        .await
        .map_err(|error| not_ready(error.to_string()))?
        .map_err(|error| not_ready(format!("storing the table: {error}")))?;
    for route in &table.groups {
        let own = route.members.iter().find(|member| member.node == node.info.id);
        let Some(own) = own else { continue };
        let found = replicas::founders_if_home(&table, route.id, node.info.id);
        let spec = GroupSpec { group: route.id, replica: own.replica, found };
        let opened = node.open_replica(&host, spec).await;
        opened.map_err(|error| not_ready(error.to_string()))?;
    }
    Ok(v1::PushReply { table_version: node.tables.version().0 })
}
