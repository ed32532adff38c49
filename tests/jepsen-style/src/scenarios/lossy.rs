//! A network for clients that loses replies: the node has done what it was asked, and nobody hears of it.
//!
//! It reads the frames of the HTTP/2 connections that it makes as they arrive. A HEADERS frame that does
//! not end its stream begins the reply to a call that was carried out: a mutation was applied by then.
//! (Refusals consist of one such frame that ends its stream, and so do the trailers behind a reply; they
//! pass.) For one in so many of these the connection breaks before the frame is handed on: what came before
//! it is still read, then reading says that the connection was reset, writing fails, and the node sees the
//! connection close.
//!
//! Chosen at random, by seed, among the replies to all calls of the client: mutations, the opening of
//! writers, questions about operations, later fetches of routes. Nothing breaks before [`Losses::arm`], so
//! that a client can be made in peace.
//!
//! It parses no more than frame headers, and holds nothing back: a frame header that comes in pieces is
//! handed on in pieces, and the last of them decides.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use annulus_runtime::{Listener, Network, Random, Stream};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Before each frame (RFC 9113, 4.1): length of the payload 24 bits, type 8, flags 8, stream 32.
const HEAD_BYTES: usize = 9;
/// The type of a frame that begins a message.
const HEADERS: u8 = 1;
/// The flag of the last frame of a stream.
const END_STREAM: u8 = 1;

/// What was lost so far, on all networks that share it.
#[derive(Debug, Default)]
pub struct Losses {
    is_armed: AtomicBool,
    replies: AtomicU64,
    lost: AtomicU64,
}

impl Losses {
    /// From now on replies are lost.
    pub fn arm(&self) {
        self.is_armed.store(true, Ordering::Relaxed);
    }

    /// Replies that arrived since then, the lost ones included.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Replies that were lost, each with its connection.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// See the module.
#[derive(Debug)]
pub struct LossyNetwork {
    inner: Arc<dyn Network>,
    dice: Dice,
}

/// Decides which reply is lost.
#[derive(Clone, Debug)]
struct Dice {
    random: Random,
    one_in: u64,
    losses: Arc<Losses>,
}

impl Dice {
    /// A reply came. Whether it is lost.
    fn loses(&self) -> bool {
        if !self.losses.is_armed.load(Ordering::Relaxed) {
            return false;
        }
        self.losses.replies.fetch_add(1, Ordering::Relaxed);
        let is_lost = self.random.below(self.one_in) == 0;
        if is_lost {
            self.losses.lost.fetch_add(1, Ordering::Relaxed);
        }
        is_lost
    }
}

impl LossyNetwork {
    /// Loses one in `one_in` of the replies that come over `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Network>, random: Random, one_in: u64, losses: Arc<Losses>) -> Self {
        Self { inner, dice: Dice { random, one_in, losses } }
    }
}

impl Network for LossyNetwork {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        self.inner.listen(addr)
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let inner = self.inner.connect(addr).await?;
            let dice = self.dice.clone();
            let stream = LossyStream { inner: Some(inner), frames: Frames::default(), dice };
            Ok(Box::new(stream) as Stream)
        })
    }
}

/// Follows the frames that arrive on a connection, whatever pieces they arrive in.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of `head` that have arrived.
    have: usize,
    /// Bytes of the payload that have not.
    rest: usize,
}

impl Frames {
    /// Takes the next bytes. Where in them replies begin; 0 for one whose head began before them.
    fn replies(&mut self, bytes: &[u8]) -> Vec<usize> {
        let mut replies = Vec::new();
        let mut begin = 0;
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len() - at);
                self.rest -= passed;
                at += passed;
                continue;
            }
            if self.have == 0 {
                begin = at;
            }
            self.head[self.have] = *byte;
            self.have += 1;
            at += 1;
            if self.have == HEAD_BYTES {
                let [high, middle, low, kind, flags, ..] = self.head;
                self.have = 0;
                self.rest =
                    (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low);
                if kind == HEADERS && flags & END_STREAM == 0 {
                    replies.push(begin);
                }
            }
        }
        replies
    }
}

/// A connection that may break at a reply.
struct LossyStream {
    /// `None`: it is broken.
    inner: Option<Stream>,
    frames: Frames,
    dice: Dice,
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for LossyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(Err(broken())) };
        let before = buf.filled().len();
        ready!(Pin::new(inner).poll_read(cx, buf))?;
        let replies = this.frames.replies(&buf.filled()[before..]);
        let Some(kept) = replies.into_iter().find(|_| this.dice.loses()) else {
            return Poll::Ready(Ok(()));
        };
        this.inner = None;
        buf.set_filled(before + kept);
        // Nothing read and no error would be the orderly end of the connection.
        Poll::Ready(if kept == 0 { Err(broken()) } else { Ok(()) })
    }
}

impl AsyncWrite for LossyStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Some(inner) => Pin::new(inner).poll_write(cx, bytes),
            None => Poll::Ready(Err(broken())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Some(inner) => Pin::new(inner).poll_flush(cx),
            None => Poll::Ready(Err(broken())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Some(inner) => Pin::new(inner).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const DATA: u8 = 0;
    const SETTINGS: u8 = 4;
    const END_HEADERS: u8 = 4;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// Two replies with what else there is; where they begin.
    fn conversation() -> (Vec<u8>, [usize; 2]) {
        // Payloads that look like the head of a reply.
        let lure = frame(HEADERS, END_HEADERS, &[1; 3]);
        let reply = frame(HEADERS, END_HEADERS, &lure);
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, &lure);
        let mut bytes = frame(SETTINGS, 0, &[0; 6]);
        let first = bytes.len();
        bytes.extend_from_slice(&reply);
        bytes.extend(frame(DATA, 0, &lure));
        bytes.extend_from_slice(&trailers);
        bytes.extend(frame(DATA, 0, &[]));
        let second = bytes.len();
        bytes.extend_from_slice(&reply);
        (bytes, [first, second])
    }

    #[test]
    fn replies_are_found_and_nothing_else_is_one() {
        let (bytes, places) = conversation();
        assert_eq!(Frames::default().replies(&bytes), places);
        for cut in 0..bytes.len() {
            let (before, behind) = bytes.split_at(cut);
            let mut frames = Frames::default();
            let mut found = frames.replies(before);
            found.extend(frames.replies(behind).into_iter().map(|place| cut + place));
            // A head that was cut is known only when its end comes.
            let expected = places.map(|place| {
                if (place + 1..place + HEAD_BYTES).contains(&cut) { cut } else { place }
            });
            assert_eq!(found, expected, "cut at {cut}");
        }
        let mut frames = Frames::default();
        let found: usize = bytes.iter().map(|byte| frames.replies(&[*byte]).len()).sum();
        assert_eq!(found, 2, "byte by byte");
    }

    fn stream(inner: tokio::io::DuplexStream, losses: &Arc<Losses>) -> LossyStream {
        let dice = Dice { random: Random::seeded(1), one_in: 1, losses: Arc::clone(losses) };
        LossyStream { inner: Some(Box::new(inner)), frames: Frames::default(), dice }
    }

    #[tokio::test]
    async fn a_lost_reply_ends_its_connection_and_what_came_before_is_read() {
        let (bytes, [first, _]) = conversation();
        let losses = Arc::new(Losses::default());
        losses.arm();
        let (near, mut far) = tokio::io::duplex(1024);
        let mut lossy = stream(near, &losses);
        far.write_all(&bytes).await.unwrap();
        let mut read = Vec::new();
        let error = lossy.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(read, &bytes[..first]);
        assert!(lossy.write_all(b"more").await.is_err());
        assert_eq!((losses.replies(), losses.lost()), (1, 1));
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "the other side sees the end");
    }

    #[tokio::test]
    async fn nothing_is_lost_before_it_is_armed() {
        let (bytes, _) = conversation();
        let losses = Arc::new(Losses::default());
        let (near, mut far) = tokio::io::duplex(1024);
        let mut lossy = stream(near, &losses);
        far.write_all(&bytes).await.unwrap();
        drop(far);
        let mut read = Vec::new();
        lossy.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, bytes);
        assert_eq!((losses.replies(), losses.lost()), (0, 0));
    }
}
