//! The peer port of a simulated node: the real links over the simulated network, and what manager and nodes
//! say to each other. The calls of a birth are not served: a simulated cluster is born with its machines.
//!
//! Invariant: every answer, refusals too, brings its own `date`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_proto::convert::status_of;
use annulus_proto::v1;
use annulus_proto::v1::peer_server::{Peer, PeerServer};
use annulus_raft::FrameStream;
use annulus_runtime::{Listener, OnEnd, Stream};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::metadata::MetadataValue;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::command;
use crate::process::Process;

/// hyper puts the wall clock's date into every response that has none. Its length decides how the
/// headers are packed, so that two runs would not send equal bytes.
const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// Serves links until the listener dies with its process. Returns why it ended.
pub(crate) async fn serve(
    process: Arc<Process>,
    listener: Arc<dyn Listener>,
) -> Result<(), String> {
    let peers = PeerServer::new(PeerService(process))
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

struct PeerService(Arc<Process>);

fn dated<T>(message: T) -> Response<T> {
    let mut response = Response::new(message);
    response.metadata_mut().insert("date", MetadataValue::from_static(DATE));
    response
}

fn dated_status(mut status: Status) -> Status {
    status.metadata_mut().insert("date", MetadataValue::from_static(DATE));
    status
}

fn refuse(error: &Error) -> Status {
    dated_status(status_of(error))
}

fn not_served() -> Status {
    dated_status(Status::unimplemented(
        "a simulated cluster is born with its machines, and made anew by them",
    ))
}

impl PeerService {
    /// Runs a command in a task of its own: a caller that goes away loses the answer, and never cuts the
    /// command in two.
    async fn to_its_end<T, F>(&self, command: F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.0.env.tasks.spawn("peer command", OnEnd::Ignore, async move {
            // The caller may be gone.
            drop(done.send(command.await));
        });
        match answer.await {
            Ok(Ok(reply)) => Ok(dated(reply)),
            Ok(Err(error)) => Err(refuse(&error)),
            Err(_) => Err(dated_status(Status::unavailable("the node is stopping"))),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type LinkStream = FrameStream;

    async fn link(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        Ok(dated(self.0.host.accept_link(request.into_inner())))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let received = self.0.host.accept_snapshot(request.into_inner()).await;
        received.map(dated).map_err(dated_status)
    }

    async fn adopt(
        &self,
        _request: Request<v1::AdoptRequest>,
    ) -> Result<Response<v1::AdoptReply>, Status> {
        Err(not_served())
    }

    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        Err(not_served())
    }

    async fn found(
        &self,
        _request: Request<v1::FoundRequest>,
    ) -> Result<Response<v1::FoundReply>, Status> {
        Err(not_served())
    }

    async fn push(
        &self,
        request: Request<v1::PushRequest>,
    ) -> Result<Response<v1::PushReply>, Status> {
        let (process, request) = (Arc::clone(&self.0), request.into_inner());
        let taking = async move { Box::pin(command::take_table(&process, request)).await };
        self.to_its_end(taking).await
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let request = request.into_inner();
        let manager = self
            .0
            .lead()
            .map_err(|leader| refuse(&Error::refused(ErrorKind::NotLeader { leader })))?;
        let told = Box::pin(manager.heartbeat(&request)).await;
        let reply = told.map_err(|error| refuse(&error))?;
        if reply.admitted
            && let Some(info) = request.info
        {
            // It may be new; commands go there.
            self.0.host.book().told(info.into());
        }
        Ok(dated(reply))
    }

    async fn command(
        &self,
        request: Request<v1::CommandRequest>,
    ) -> Result<Response<v1::CommandReply>, Status> {
        let (process, request) = (Arc::clone(&self.0), request.into_inner());
        let obeying = async move { Box::pin(command::obey(&process, request)).await };
        self.to_its_end(obeying).await
    }

    async fn survey(
        &self,
        _request: Request<v1::SurveyRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(not_served())
    }

    async fn begin_era(
        &self,
        _request: Request<v1::BeginEraRequest>,
    ) -> Result<Response<v1::SurveyReply>, Status> {
        Err(not_served())
    }

    async fn appoint(
        &self,
        _request: Request<v1::AppointRequest>,
    ) -> Result<Response<v1::AppointReply>, Status> {
        Err(not_served())
    }
}
