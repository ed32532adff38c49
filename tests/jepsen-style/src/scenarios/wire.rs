//! A network for one client that leads to some addresses only, and knows what was written to it.
//!
//! Two uses: a client on one side of a cut cannot reach the other side although everything runs on one
//! machine; and whoever wants to know that a request lies in a socket asks for the bytes of it. What was
//! *written* was taken by the kernel: it is on its way whatever becomes of this process or of the other.
//!
//! It delays, loses and changes nothing. Only new connections are refused: cut before the client connects.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_runtime::{Listener, Network, RealNetwork, Stream};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What was written to all connections of a [`Wire`], one after another. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Forgets what was written so far.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// How often `text`, which is not empty, was written. Connections that write at the same time may
    /// break one up; it is then missed, not made up.
    #[must_use]
    pub fn count(&self, text: &[u8]) -> usize {
        self.0.lock().windows(text.len().max(1)).filter(|window| *window == text).count()
    }

    fn keep(&self, bytes: &[u8]) {
        self.0.lock().extend_from_slice(bytes);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Wire {
    cut: Vec<String>,
    written: Written,
}

impl Wire {
    /// A network on which nobody listens at the addresses `cut`, each `host:port`.
    #[must_use]
    pub fn without(cut: Vec<String>) -> Self {
        Self { cut, written: Written::default() }
    }

    /// What is written from now on. Everything is kept until [`Written::clear`].
    #[must_use]
    pub fn written(&self) -> Written {
        self.written.clone()
    }
}

impl Network for Wire {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move { RealNetwork.listen(addr).await })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            if self.cut.iter().any(|cut| cut == addr) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let stream = RealNetwork.connect(addr).await?;
            Ok(Box::new(Tapped { stream, written: self.written.clone() }) as Stream)
        })
    }
}

struct Tapped {
    stream: Stream,
    written: Written,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &wrote {
            self.written.keep(&buf[..*count]);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_counted_and_arrives() {
        let wire = Wire::default();
        let listener = wire.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let mut stream = wire.connect(&listener.local_addr().to_string()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        for part in ["one k", "ey, another key", ", ke"] {
            stream.write_all(part.as_bytes()).await.unwrap();
        }
        assert_eq!(wire.written().count(b"key"), 2);
        let mut arrived = [0; 24];
        other.read_exact(&mut arrived).await.unwrap();
        assert_eq!(&arrived, b"one key, another key, ke");
        other.write_all(b"key").await.unwrap();
        stream.read_exact(&mut arrived[..3]).await.unwrap();
        assert_eq!(wire.written().count(b"key"), 2, "what is read does not count");
        wire.written().clear();
        assert_eq!(wire.written().count(b"key"), 0);
    }

    #[tokio::test]
    async fn a_cut_address_is_refused() {
        let open = Wire::default();
        let listener = open.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().to_string();
        let refused = Wire::without(vec![addr.clone()]).connect(&addr).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(open.connect(&addr).await.is_ok());
    }
}
