//! The network seam: listening and connecting, as small object-safe traits over byte streams.
//!
//! tonic runs on the streams handed out here, so that the same code serves production, the
//! simulation and a fault proxy. Connecting has no deadline of its own: callers set one.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected byte stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connected byte stream, boxed.
pub type Stream = Box<dyn ByteStream>;

/// Accepts connections on one address.
pub trait Listener: Send + Sync + Debug {
    /// Waits for the next connection. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>>;
    /// The address listened on; with port 0 asked for, the port that was given.
    fn local_addr(&self) -> SocketAddr;
}

/// A network.
pub trait Network: Send + Sync + Debug {
    /// Starts to listen.
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>>;
    /// Connects to `addr`, `host:port`. Dropping the future gives up.
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
}

/// TCP of the operating system.
#[derive(Debug, Default)]
pub struct RealNetwork;

#[derive(Debug)]
struct RealListener {
    listener: tokio::net::TcpListener,
    addr: SocketAddr,
}

impl Listener for RealListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async {
            let (stream, peer) = self.listener.accept().await?;
            // Frames are written whole; waiting for more would only add latency.
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Stream, peer))
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
impl Network for RealNetwork {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(addr).await?;
            let addr = listener.local_addr()?;
            Ok(Arc::new(RealListener { listener, addr }) as Arc<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }
}
