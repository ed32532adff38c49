//! The simulated network: byte streams in memory between the hosts of a [`SimWorld`].
//!
//! What is written in one call travels as one message, for a time drawn from the seed, and arrives
//! in order. Time is tokio's, so that a paused clock moves from arrival to arrival; tokio's timers
//! make every arrival visible at a whole millisecond. Equal seeds and calls give equal deliveries.
//!
//! Faults, as TCP shows them:
//! - a *cut* path delivers nothing: bytes, ends and resets wait until it is healed, a writer stops
//!   when the window (256 KiB) is full, a caller waits; [`Cut::Reset`] also breaks the streams;
//! - the streams and listeners of a *killed* process are dead at once; the peers hear of it by a
//!   reset, when the path lets it through;
//! - a caller is refused when nobody listens;
//! - a stream that is dropped with unread bytes resets the other end.
//!
//! Not simulated: loss and reordering (TCP hides them), bandwidth, acknowledgements (a cut of one
//! direction leaves the other one at full window), names (addresses are numbers).
//!
//! Nothing is spawned here, and no waker is woken under the lock.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::link::{Link, Side, Way};
use self::stream::SimStream;
use crate::network::{Listener, Network, Stream};
use crate::random::Random;

mod link;
mod stream;
#[cfg(test)]
mod tests;

/// Calls that wait to be accepted, per listener; further ones are refused.
const BACKLOG: usize = 128;

/// Where the ports begin that are given to callers, and to listeners that ask for port 0.
const FIRST_FREE_PORT: u16 = 49_152;

/// What happens to the streams across a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// They wait: what is on its way is held back until the cut is healed.
    Hold,
    /// They break: both ends get `ConnectionReset` at once.
    Reset,
}

/// All hosts and what connects them. Cheap to clone; clones are the same world.
#[derive(Clone)]
pub struct SimWorld(Arc<Mutex<World>>);

/// The network as the process sees it that runs on one host now. Dead after
/// [`SimWorld::reset_host`]: the next process of the host needs another one.
#[derive(Clone, Debug)]
pub struct SimNetwork {
    world: SimWorld,
    host: IpAddr,
    /// The kills that the host had seen when the process began.
    kills: u64,
}

struct World {
    flights: Flights,
    kills: BTreeMap<IpAddr, u64>,
    next_ports: BTreeMap<IpAddr, u16>,
    /// Paths, from and to, that deliver nothing since that moment.
    cuts: BTreeMap<(IpAddr, IpAddr), Instant>,
    listeners: BTreeMap<SocketAddr, Backlog>,
    links: BTreeMap<u64, Link>,
    /// Callers that wait for a path.
    waiting: BTreeMap<u64, Waker>,
    /// For listeners, links and waiting callers. Never used again.
    next_id: u64,
}

struct Backlog {
    id: u64,
    calls: VecDeque<Call>,
    acceptors: Vec<Waker>,
}

/// A connection that was not yet accepted.
struct Call {
    link: u64,
    caller: SocketAddr,
}

/// How long messages take.
struct Flights {
    random: Random,
    shortest_us: u64,
    spread_us: u64,
}

impl Flights {
    fn set(&mut self, latency: &RangeInclusive<Duration>) {
        let micros = |span: &Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.shortest_us = micros(latency.start());
        self.spread_us = micros(latency.end()).saturating_sub(self.shortest_us);
    }

    fn draw(&self) -> Duration {
        let extra = self.random.below(self.spread_us.saturating_add(1));
        Duration::from_micros(self.shortest_us.saturating_add(extra))
    }
}

impl SimWorld {
    /// A world without hosts, whose messages take 1 to 3 ms. Draws from a sequence of its own,
    /// which `random` seeds.
    #[must_use]
    pub fn new(random: Random) -> Self {
        let mut flights =
            Flights { random: Random::seeded(random.u64()), shortest_us: 0, spread_us: 0 };
        flights.set(&(Duration::from_millis(1)..=Duration::from_millis(3)));
        Self(Arc::new(Mutex::new(World {
            flights,
            kills: BTreeMap::new(),
            next_ports: BTreeMap::new(),
            cuts: BTreeMap::new(),
            listeners: BTreeMap::new(),
            links: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_id: 0,
        })))
    }

    /// The network of a process that begins now on `host`.
    #[must_use]
    pub fn network(&self, host: IpAddr) -> SimNetwork {
        let kills = self.with(|world, _| world.kills_of(host));
        SimNetwork { world: self.clone(), host, kills }
    }

    /// How long messages take that are sent from now on.
    pub fn set_latency(&self, latency: RangeInclusive<Duration>) {
        self.with(|world, _| world.flights.set(&latency));
    }

    /// Cuts both directions between two hosts. A host always reaches itself.
    pub fn cut(&self, a: IpAddr, b: IpAddr, how: Cut) {
        self.with(|world, wakers| {
            world.cut(a, b, how, wakers);
            world.cut(b, a, how, wakers);
        });
    }

    /// Cuts one direction.
    pub fn cut_one_way(&self, from: IpAddr, to: IpAddr, how: Cut) {
        self.with(|world, wakers| world.cut(from, to, how, wakers));
    }

    /// Heals both directions between two hosts: what was held back is on its way again.
    pub fn heal(&self, a: IpAddr, b: IpAddr) {
        self.with(|world, wakers| {
            world.heal(a, b, wakers);
            world.heal(b, a, wakers);
        });
    }

    /// Heals every cut.
    pub fn heal_all(&self) {
        self.with(|world, wakers| {
            let cuts: Vec<_> = world.cuts.keys().copied().collect();
            for (from, to) in cuts {
                world.heal(from, to, wakers);
            }
        });
    }

    /// Ends the process on `host`: its streams, listeners and calls die with it.
    pub fn reset_host(&self, host: IpAddr) {
        self.with(|world, wakers| world.reset_host(host, wakers));
    }

    /// Wakers are woken after the lock is let go: a woken task may come right back.
    fn with<T>(&self, act: impl FnOnce(&mut World, &mut Vec<Waker>) -> T) -> T {
        let mut wakers = Vec::new();
        let result = act(&mut self.0.lock(), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld").finish_non_exhaustive()
    }
}

impl World {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn kills_of(&self, host: IpAddr) -> u64 {
        self.kills.get(&host).copied().unwrap_or(0)
    }

    /// Whether the process that holds the network still runs.
    fn check(&self, network: &SimNetwork) -> io::Result<()> {
        if self.kills_of(network.host) == network.kills { Ok(()) } else { Err(ended()) }
    }

    fn free_port(&mut self, host: IpAddr) -> u16 {
        let next = self.next_ports.entry(host).or_insert(FIRST_FREE_PORT);
        loop {
            let port = *next;
            *next = port.checked_add(1).unwrap_or(FIRST_FREE_PORT);
            // Some port is free: a simulation has fewer listeners than a host has ports.
            if !self.listeners.contains_key(&SocketAddr::new(host, port)) {
                return port;
            }
        }
    }

    fn way(&self, from: IpAddr, to: IpAddr) -> Way {
        let now = Instant::now();
        match self.cuts.get(&(from, to)) {
            Some(since) => Way { now, horizon: now.min(*since), is_open: false },
            None => Way { now, horizon: now, is_open: true },
        }
    }

    fn listen(&mut self, network: &SimNetwork, asked: SocketAddr) -> io::Result<(SocketAddr, u64)> {
        self.check(network)?;
        let host = network.host;
        if asked.ip() != host && !asked.ip().is_unspecified() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = if asked.port() == 0 { self.free_port(host) } else { asked.port() };
        let addr = SocketAddr::new(host, port);
        if self.listeners.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = self.next_id();
        let backlog = Backlog { id, calls: VecDeque::new(), acceptors: Vec::new() };
        self.listeners.insert(addr, backlog);
        Ok((addr, id))
    }

    /// The call of `network` has reached `target`. Returns the link.
    fn call(
        &mut self,
        network: &SimNetwork,
        target: SocketAddr,
        wakers: &mut Vec<Waker>,
    ) -> io::Result<u64> {
        self.check(network)?;
        let caller = SocketAddr::new(network.host, self.free_port(network.host));
        let link = self.next_id();
        match self.listeners.get_mut(&target) {
            Some(backlog) if backlog.calls.len() < BACKLOG => {
                backlog.calls.push_back(Call { link, caller });
                wakers.append(&mut backlog.acceptors);
            }
            _ => return Err(io::ErrorKind::ConnectionRefused.into()),
        }
        self.links.insert(link, Link::new(network.host, target.ip(), Instant::now()));
        Ok(link)
    }

    fn close(&mut self, link: u64, side: Side, wakers: &mut Vec<Waker>) {
        let due = Instant::now() + self.flights.draw();
        if self.links.get_mut(&link).is_some_and(|ends| ends.close(side, due, wakers)) {
            self.links.remove(&link);
        }
    }

    /// A listener is gone: so are those that it did not accept.
    fn discard(&mut self, backlog: Backlog, host: IpAddr, wakers: &mut Vec<Waker>) {
        wakers.extend(backlog.acceptors);
        for call in backlog.calls {
            let due = Instant::now() + self.flights.draw();
            if let Some(link) = self.links.get_mut(&call.link) {
                link.kill(host, due, wakers);
            }
            self.close(call.link, Side::Listener, wakers);
        }
    }

    fn cut(&mut self, from: IpAddr, to: IpAddr, how: Cut, wakers: &mut Vec<Waker>) {
        if from == to {
            return;
        }
        self.cuts.entry((from, to)).or_insert_with(Instant::now);
        if how == Cut::Reset {
            for link in self.links.values_mut() {
                if link.hearing(from, to).is_some() {
                    link.sever(wakers);
                }
            }
        }
    }

    fn heal(&mut self, from: IpAddr, to: IpAddr, wakers: &mut Vec<Waker>) {
        let Some(since) = self.cuts.remove(&(from, to)) else {
            return;
        };
        let now = Instant::now();
        for link in self.links.values_mut() {
            if let Some(end) = link.hearing(from, to) {
                end.release(since, now + self.flights.draw(), wakers);
            }
        }
        wakers.extend(std::mem::take(&mut self.waiting).into_values());
    }

    fn reset_host(&mut self, host: IpAddr, wakers: &mut Vec<Waker>) {
        *self.kills.entry(host).or_insert(0) += 1;
        let now = Instant::now();
        for link in self.links.values_mut() {
            if link.touches(host) {
                link.kill(host, now + self.flights.draw(), wakers);
            }
        }
        let addrs: Vec<_> =
            self.listeners.keys().filter(|addr| addr.ip() == host).copied().collect();
        for addr in addrs {
            if let Some(backlog) = self.listeners.remove(&addr) {
                self.discard(backlog, host, wakers);
            }
        }
        wakers.extend(std::mem::take(&mut self.waiting).into_values());
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the process that held this has ended")
}

impl SimNetwork {
    async fn dial(&self, addr: &str) -> io::Result<Stream> {
        let Ok(target) = addr.parse::<SocketAddr>() else {
            let message = format!("{addr} is not an address of the simulated network");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        self.travel(self.host, target.ip()).await?;
        let link = self.world.with(|world, wakers| world.call(self, target, wakers));
        // A stream from here on: giving up closes it.
        let stream = link.map(|link| SimStream::new(self, link, Side::Caller, target.ip()));
        self.travel(target.ip(), self.host).await?;
        Ok(Box::new(stream?))
    }

    /// Waits as long as a message takes from one host to the other.
    async fn travel(&self, from: IpAddr, to: IpAddr) -> io::Result<()> {
        let (flight, id) = self.world.with(|world, _| (world.flights.draw(), world.next_id()));
        tokio::time::sleep(flight).await;
        let wait = Wait { world: &self.world, id };
        poll_fn(|cx| {
            wait.world.with(|world, _| {
                if let Err(error) = world.check(self) {
                    return Poll::Ready(Err(error));
                }
                if world.way(from, to).is_open {
                    return Poll::Ready(Ok(()));
                }
                world.waiting.insert(wait.id, cx.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
}

/// A caller that may wait for a path; forgotten when it gives up.
struct Wait<'a> {
    world: &'a SimWorld,
    id: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.world.with(|world, _| world.waiting.remove(&self.id));
    }
}

impl Network for SimNetwork {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move {
            let (addr, id) = self.world.with(|world, _| world.listen(self, addr))?;
            Ok(Arc::new(SimListener { network: self.clone(), addr, id }) as Arc<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(self.dial(addr))
    }
}

#[derive(Debug)]
struct SimListener {
    network: SimNetwork,
    addr: SocketAddr,
    id: u64,
}

impl SimListener {
    fn poll_call(&self, cx: &Context<'_>) -> Poll<io::Result<Call>> {
        self.network.world.with(|world, _| {
            let Some(backlog) = world.listeners.get_mut(&self.addr).filter(|at| at.id == self.id)
            else {
                return Poll::Ready(Err(ended()));
            };
            if let Some(call) = backlog.calls.pop_front() {
                return Poll::Ready(Ok(call));
            }
            // A task that polls again and again, as a select loop does, is noted once.
            if !backlog.acceptors.iter().any(|waker| waker.will_wake(cx.waker())) {
                backlog.acceptors.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

impl Listener for SimListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async move {
            let call = poll_fn(|cx| self.poll_call(cx)).await?;
            let stream = SimStream::new(&self.network, call.link, Side::Listener, call.caller.ip());
            Ok((Box::new(stream) as Stream, call.caller))
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.network.world.with(|world, wakers| {
            // After a kill another process may listen here.
            if world.listeners.get(&self.addr).is_some_and(|backlog| backlog.id == self.id)
                && let Some(backlog) = world.listeners.remove(&self.addr)
            {
                world.discard(backlog, self.addr.ip(), wakers);
            }
        });
    }
}
