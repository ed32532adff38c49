//! A TCP proxy between the nodes, so that pairs of them can be cut from each other.
//!
//! Each node has a listener here whose address it advertises to its peers; what connects there is carried
//! on to the node's true address. Who connects is told by a function that the maker hands in, once per
//! connection, so that a connection belongs to a pair of nodes and each of its two directions to a *way*,
//! from one node to the other.
//!
//! # What a cut does
//!
//! - [`Cut::Hold`]: no byte passes on the way, nor the end of a connection. Connections stay open; what is
//!   sent is kept, at most [`BUFFER_BYTES`] per direction and what the kernel's buffers take, and goes on
//!   after the heal: frames that arrive late are part of the test.
//! - [`Cut::Reset`]: established connections of the pair are closed on both sides.
//!
//! New connections of a pair are not served while either of its ways is cut. One that meets a hold is
//! kept open without an answer, as one into a network that swallows everything, and closed at the heal;
//! one that meets a reset is closed at once.
//!
//! # Invariants
//!
//! - When [`Proxy::cut`] has returned, no byte passes: each write is made under a borrow of the cuts,
//!   and setting them waits for those borrows. Nobody sleeps or hopes.
//! - A connection whose maker is not known is not served: it might be one of a pair that is cut.
//! - Buffers are bounded, and so are the connections that wait behind a hold, [`WAITING_MOST`] per node.
//!
//! Failure: an error on either side of a connection ends it on both. Dropping the proxy ends everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use annulus_runtime::{Env, Listener, Network, OnEnd, Stream};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};

/// What one direction of a connection keeps while it is held.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// Connections to one node that are kept open unanswered; more are closed at once. Each is a descriptor.
pub const WAITING_MOST: usize = 64;

/// Tells the node that has connected, from its own address of the connection and that of the listener.
/// It may block for some milliseconds.
pub type Identify = Arc<dyn Fn(SocketAddr, SocketAddr) -> Option<u16> + Send + Sync>;

/// A direction: from one node to another.
pub type Way = (u16, u16);

/// What a cut does to the connections that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing passes any more on the way.
    Hold,
    /// Connections of the pair are closed.
    Reset,
}

/// What is cut now.
#[derive(Clone, Debug, Default)]
struct Cuts {
    held: BTreeSet<Way>,
    /// Pairs, in both orders.
    reset: BTreeSet<Way>,
}

impl Cuts {
    fn passes(&self, way: Way) -> bool {
        !self.held.contains(&way) && !self.resets(way)
    }

    fn resets(&self, way: Way) -> bool {
        self.reset.contains(&way)
    }

    fn serves(&self, way: Way) -> bool {
        self.passes(way) && self.passes(back(way))
    }
}

fn back((from, to): Way) -> Way {
    (to, from)
}

/// See the module.
pub struct Proxy {
    env: Env,
    shared: Arc<Shared>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("cuts", &*self.shared.cuts.borrow()).finish_non_exhaustive()
    }
}

struct Shared {
    network: Arc<dyn Network>,
    identify: Identify,
    cuts: watch::Sender<Cuts>,
    /// Connections by the way from who made them.
    carried: Mutex<BTreeMap<Way, usize>>,
}

/// Where a node is reached.
struct Place {
    node: u16,
    addr: SocketAddr,
    target: String,
    waiting: Semaphore,
}

impl Proxy {
    /// A proxy without nodes and without cuts.
    #[must_use]
    pub fn new(env: Env, identify: Identify) -> Self {
        let shared = Shared {
            network: Arc::clone(&env.network),
            identify,
            cuts: watch::Sender::new(Cuts::default()),
            carried: Mutex::default(),
        };
        Self { env, shared: Arc::new(shared) }
    }

    /// Listens on `listen` for `node`, whose true address is `target`; returns the address listened on.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn add(
        &self,
        node: u16,
        listen: SocketAddr,
        target: String,
    ) -> io::Result<SocketAddr> {
        let listener = self.env.network.listen(listen).await?;
        let addr = listener.local_addr();
        let place = Arc::new(Place { node, addr, target, waiting: Semaphore::new(WAITING_MOST) });
        let serving = serve(listener, place, Arc::clone(&self.shared));
        self.env.tasks.spawn("proxy", OnEnd::Ignore, serving);
        Ok(addr)
    }

    /// Cuts these ways, besides those that are cut; a reset concerns both ways of each pair. From the
    /// return on no byte passes; the closing of connections takes a moment ([`Proxy::connections`]).
    pub fn cut(&self, ways: &[Way], cut: Cut) {
        self.shared.cuts.send_modify(|cuts| match cut {
            Cut::Hold => cuts.held.extend(ways.iter().copied()),
            Cut::Reset => cuts.reset.extend(ways.iter().flat_map(|way| [*way, back(*way)])),
        });
    }

    /// Ends every cut.
    pub fn heal(&self) {
        self.shared.cuts.send_replace(Cuts::default());
    }

    /// The connections that are carried between two nodes, whoever made them.
    #[must_use]
    pub fn connections(&self, one: u16, other: u16) -> usize {
        let carried = self.shared.carried.lock();
        [(one, other), (other, one)].iter().filter_map(|way| carried.get(way)).sum()
    }
}

/// All connections of a listener, in one task: they end with it.
async fn serve(listener: Arc<dyn Listener>, place: Arc<Place>, shared: Arc<Shared>) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, caller)) => {
                    open.push(carry(Arc::clone(&shared), Arc::clone(&place), stream, caller));
                }
                // Out of file descriptors, most likely: let some close.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(()) = open.next() => {}
        }
    }
}

/// One connection, from its acceptance to its end.
async fn carry(shared: Arc<Shared>, place: Arc<Place>, stream: Stream, caller: SocketAddr) {
    let (identify, addr) = (Arc::clone(&shared.identify), place.addr);
    let told = tokio::task::spawn_blocking(move || identify(caller, addr)).await;
    let Ok(Some(from)) = told else { return };
    let way = (from, place.node);
    let mut cuts = shared.cuts.subscribe();
    let (is_served, is_reset) = {
        let now = cuts.borrow();
        (now.serves(way), now.resets(way))
    };
    if !is_served {
        if let Ok(_waiting) = place.waiting.try_acquire()
            && !is_reset
        {
            until(&mut cuts, |cuts| cuts.serves(way) || cuts.resets(way)).await;
        }
        return;
    }
    let Ok(callee) = shared.network.connect(&place.target).await else { return };
    let _carried = Carried::new(&shared, way);
    tokio::select! {
        // Its errors are those of the two sides, which notice by themselves.
        _ = relay(stream, callee, way, &shared) => {}
        () = until(&mut cuts, |cuts| cuts.resets(way)) => {}
    }
}

/// Counts a connection as long as it lives.
struct Carried<'a>(&'a Shared, Way);

impl<'a> Carried<'a> {
    fn new(shared: &'a Shared, way: Way) -> Self {
        *shared.carried.lock().entry(way).or_default() += 1;
        Self(shared, way)
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0.carried.lock().get_mut(&self.1) {
            *count -= 1;
        }
    }
}

/// Waits until the cuts are so.
async fn until(cuts: &mut watch::Receiver<Cuts>, are_so: impl Fn(&Cuts) -> bool) {
    let is_over = cuts.wait_for(are_so).await.is_err();
    if is_over {
        // The proxy goes, and with it whoever waits here.
        std::future::pending::<()>().await;
    }
}

async fn relay(caller: Stream, callee: Stream, way: Way, shared: &Shared) -> io::Result<()> {
    let (from_caller, to_caller) = tokio::io::split(caller);
    let (from_callee, to_callee) = tokio::io::split(callee);
    let there = pump(from_caller, to_callee, way, shared.cuts.subscribe());
    let here = pump(from_callee, to_caller, back(way), shared.cuts.subscribe());
    tokio::try_join!(there, here).map(|_| ())
}

/// Carries the bytes of one direction, and its end.
async fn pump<R, W>(
    mut from: R,
    mut to: W,
    way: Way,
    mut cuts: watch::Receiver<Cuts>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            until(&mut cuts, |cuts| cuts.passes(way)).await;
            return to.shutdown().await;
        }
        let mut sent = 0;
        while sent < length {
            let wrote = poll_fn(|cx| {
                let now = cuts.borrow();
                if !now.passes(way) {
                    return Poll::Ready(Ok(None));
                }
                // Under the borrow, which whoever sets a cut waits for. It does not block.
                Pin::new(&mut to).poll_write(cx, &buffer[sent..length]).map_ok(Some)
            });
            match wrote.await? {
                None => until(&mut cuts, |cuts| cuts.passes(way)).await,
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(bytes) => sent += bytes,
            }
        }
    }
}

#[cfg(test)]
mod tests;
