//! The peer port of a node, with nothing behind it but links and snapshots, or somebody who answers in a
//! node's place.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_proto::v1;
use annulus_proto::v1::peer_server::{Peer, PeerServer};
use annulus_runtime::{Listener, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::callee::Callee;
use crate::host::Host;
use crate::serve::FrameStream;

/// Serves links until the listener's process ends.
pub(super) async fn serve(listener: Arc<dyn Listener>, host: Arc<Host>) {
    run(listener, Links::Host(host)).await;
}

/// As [`serve`], for somebody who is no node.
pub(super) async fn serve_callee(listener: Arc<dyn Listener>, callee: Arc<Callee>) {
    run(listener, Links::Callee(callee)).await;
}

async fn run(listener: Arc<dyn Listener>, links: Links) {
    let incoming = futures_util::stream::unfold(listener, |listener| async move {
        let (stream, _) = listener.accept().await.ok()?;
        Some((Ok::<_, io::Error>(Incoming(stream)), listener))
    });
    let server = Server::builder().add_service(PeerServer::new(links));
    // It ends when the process does, one way or the other.
    drop(server.serve_with_incoming(incoming).await);
}

enum Links {
    Host(Arc<Host>),
    Callee(Arc<Callee>),
}

#[tonic::async_trait]
impl Peer for Links {
    type LinkStream = FrameStream;

    async fn link(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        let frames = request.into_inner();
        Ok(Response::new(match self {
            Self::Host(host) => host.accept_link(frames),
            Self::Callee(callee) => callee.accept_link(frames),
        }))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        match self {
            Self::Host(host) => host.accept_snapshot(request.into_inner()).await.map(Response::new),
            Self::Callee(_) => Err(Status::unimplemented("only links")),
        }
    }

    async fn adopt(
        &self,
        _request: Request<v1::AdoptRequest>,
    ) -> Result<Response<v1::AdoptReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn found(
        &self,
        _request: Request<v1::FoundRequest>,
    ) -> Result<Response<v1::FoundReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn push(
        &self,
        _request: Request<v1::PushRequest>,
    ) -> Result<Response<v1::PushReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn heartbeat(
        &self,
        _request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn command(
        &self,
        _request: Request<v1::CommandRequest>,
    ) -> Result<Response<v1::CommandReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn survey(
        &self,
        _request: Request<v1::SurveyRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn begin_era(
        &self,
        _request: Request<v1::BeginEraRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }

    async fn appoint(
        &self,
        _request: Request<v1::AppointRequest>,
    ) -> Result<Response<v1::AppointReply>, Status> {
        Err(Status::unimplemented("only links and snapshots"))
    }
}

/// A connection as tonic wants it.
struct Incoming(Stream);

impl Connected for Incoming {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
