//! gRPC channels over the network seam.

use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_runtime::{Env, Network};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

/// Opens connections through the seam; what tonic calls a connector.
#[derive(Clone, Debug)]
struct Connector {
    network: Arc<dyn Network>,
    addr: Arc<str>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<annulus_runtime::Stream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { network, addr } = self.clone();
        Box::pin(async move { network.connect(&addr).await.map(TokioIo::new) })
    }
}

/// Connects to `addr` (`host:port`). Dropping the future gives up.
///
/// # Errors
/// When the address is malformed or nobody answers.
pub async fn channel(env: &Env, addr: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?
        // One frame of 256 KiB in flight per stream and more for the connection; not adaptive: its
        // probes compete with heartbeats.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .tcp_nodelay(true);
    let connector = Connector { network: Arc::clone(&env.network), addr: Arc::from(addr) };
    endpoint.connect_with_connector(connector).await
}
