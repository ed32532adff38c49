//! The peer port of a simulated node: the real links over the simulated network. What the manager
//! would ask of a node is not there, because there is no manager.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_proto::v1;
use annulus_proto::v1::peer_server::{Peer, PeerServer};
use annulus_raft::{FrameStream, Host};
use annulus_runtime::{Listener, Stream};
use annulus_types::limits::DECODE_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::metadata::MetadataValue;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// hyper puts the wall clock's date into every response that has none. Its length decides how the
/// headers are packed, so that two runs would not send equal bytes.
const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// Serves links until the listener dies with its process. Returns why it ended.
pub(crate) async fn serve(host: Arc<Host>, listener: Arc<dyn Listener>) -> Result<(), String> {
    let peers = PeerServer::new(PeerService(host))
        .max_decoding_message_size(DECODE_BYTES)
        .max_encoding_message_size(DECODE_BYTES);
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .add_service(peers);
    router.serve_with_incoming(incoming(listener)).await.map_err(|error| error.to_string())
}

/// Connections of a listener. Its only failure is the end of its process.
fn incoming(
    listener: Arc<dyn Listener>,
) -> impl futures_util::Stream<Item = Result<Incoming, std::io::Error>> {
    futures_util::stream::unfold(listener, |listener| async move {
        let (stream, addr) = listener.accept().await.ok()?;
        Some((Ok(Incoming { stream, addr }), listener))
    })
}

/// A connection as tonic wants it.
struct Incoming {
    stream: Stream,
    addr: SocketAddr,
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

struct PeerService(Arc<Host>);

fn no_manager() -> Status {
    Status::unimplemented("a simulated cluster has no manager")
}

#[tonic::async_trait]
impl Peer for PeerService {
    type LinkStream = FrameStream;

    async fn link(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        let mut response = Response::new(self.0.accept_link(request.into_inner()));
        response.metadata_mut().insert("date", MetadataValue::from_static(DATE));
        Ok(response)
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let mut response = Response::new(self.0.accept_snapshot(request.into_inner()).await?);
        response.metadata_mut().insert("date", MetadataValue::from_static(DATE));
        Ok(response)
    }

    async fn adopt(
        &self,
        _request: Request<v1::AdoptRequest>,
    ) -> Result<Response<v1::AdoptReply>, Status> {
        Err(no_manager())
    }

    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        Err(no_manager())
    }

    async fn found(
        &self,
        _request: Request<v1::FoundRequest>,
    ) -> Result<Response<v1::FoundReply>, Status> {
        Err(no_manager())
    }

    async fn push(
        &self,
        _request: Request<v1::PushRequest>,
    ) -> Result<Response<v1::PushReply>, Status> {
        Err(no_manager())
    }

    async fn heartbeat(
        &self,
        _request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        Err(no_manager())
    }

    async fn command(
        &self,
        _request: Request<v1::CommandRequest>,
    ) -> Result<Response<v1::CommandReply>, Status> {
        Err(no_manager())
    }

    async fn survey(
        &self,
        _request: Request<v1::SurveyRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(no_manager())
    }

    async fn begin_era(
        &self,
        _request: Request<v1::BeginEraRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(no_manager())
    }

    async fn appoint(
        &self,
        _request: Request<v1::AppointRequest>,
    ) -> Result<Response<v1::AppointReply>, Status> {
        Err(no_manager())
    }
}
