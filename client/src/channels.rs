//! Connections: one per address, shared by all calls, made on first use.
//!
//! Invariant (W4): connecting is a step of its own, finished before a request is handed to the
//! transport. A channel holds exactly one connection and never makes a second: when it breaks,
//! requests that had not left yet are refused by [`OneConnection`], which can be told from every
//! other end, and the next call connects anew. So [`Failure::Unreachable`] is certain: not a byte
//! of the request left this process. Every other end without an answer is [`Failure::Silent`].
//!
//! A channel on which a call ended without an answer is not used for further calls; calls that are
//! under way on it go on.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use annulus_proto::convert::error_of;
use annulus_runtime::{Clock, Env, Network, Stream};
use annulus_types::{Error, ErrorKind};
use futures_util::future::{BoxFuture, FutureExt, Shared};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, ConnectError, Request, Response, Status, TimeoutExpired};
use tower_service::Service;

use crate::retry::Failure;

/// A node that does not accept in this time is treated as down. Several times the round trip of a
/// distant region, and half of what a fail-over may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// An answer under way.
pub(crate) type Sending<T> = BoxFuture<'static, Result<Response<T>, Status>>;

/// `message` as a request that tells the node its deadline.
pub(crate) fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A moment after which a call is over.
#[derive(Clone, Debug)]
pub(crate) struct Deadline {
    clock: Clock,
    end_us: u64,
}

impl Deadline {
    pub(crate) fn after(clock: &Clock, span: Duration) -> Self {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Self { clock: clock.clone(), end_us: clock.monotonic_us().saturating_add(span_us) }
    }

    /// The time left; `None` when there is none.
    pub(crate) fn left(&self) -> Option<Duration> {
        match self.end_us.saturating_sub(self.clock.monotonic_us()) {
            0 => None,
            left_us => Some(Duration::from_micros(left_us)),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Channels {
    clock: Clock,
    network: Arc<dyn Network>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_addr: BTreeMap<String, Slot>,
    made: u64,
}

/// Shared, so that calls that need the same new connection wait for one attempt together.
type Connecting = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

#[derive(Clone, Debug)]
struct Slot {
    id: u64,
    connecting: Connecting,
}

struct Link {
    id: u64,
    channel: Channel,
}

impl Channels {
    pub(crate) fn new(env: &Env) -> Self {
        Self {
            clock: env.clock.clone(),
            network: Arc::clone(&env.network),
            slots: Mutex::default(),
        }
    }

    /// Sends one request to `addr` and waits for its answer, connecting first when needed, at most
    /// `limit` in all. `send` gets the time that is left; it may be called twice, when the first
    /// request certainly did not leave.
    pub(crate) async fn call<T>(
        &self,
        addr: &str,
        limit: Duration,
        send: impl Fn(Channel, Duration) -> Sending<T>,
    ) -> Result<T, Failure> {
        let deadline = Deadline::after(&self.clock, limit);
        for _ in 0..2 {
            let Some(left) = deadline.left() else { break };
            let link = match tokio::time::timeout(left, self.link(addr)).await {
                Ok(Ok(link)) => link,
                Ok(Err(why)) => return Err(Failure::Unreachable(why)),
                Err(_) => break,
            };
            let Some(left) = deadline.left() else { break };
            let status = match tokio::time::timeout(left, send(link.channel, left)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    self.forget(addr, link.id);
                    return Err(Failure::Silent(late(addr)));
                }
            };
            if !status.details().is_empty() {
                return Err(Failure::Said(error_of(&status)));
            }
            self.forget(addr, link.id);
            if !never_left(&status) {
                tracing::debug!(addr, %status, "a call ended without an answer");
                return Err(Failure::Silent(lost(addr, &status)));
            }
        }
        Err(Failure::Unreachable(format!("no connection to {addr} in time")))
    }

    async fn link(&self, addr: &str) -> Result<Link, String> {
        let slot = self.slot(addr);
        match slot.connecting.await {
            Ok(channel) => Ok(Link { id: slot.id, channel }),
            Err(why) => {
                self.forget(addr, slot.id);
                Err(format!("cannot connect to {addr}: {why}"))
            }
        }
    }

    fn slot(&self, addr: &str) -> Slot {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.by_addr.get(addr) {
            return slot.clone();
        }
        let connecting: BoxFuture<'static, Result<Channel, Arc<str>>> =
            Box::pin(connect(Arc::clone(&self.network), addr.to_owned()));
        slots.made += 1;
        let slot = Slot { id: slots.made, connecting: connecting.shared() };
        slots.by_addr.insert(addr.to_owned(), slot.clone());
        slot
    }

    /// Lets go of a connection, unless another one has taken its place.
    fn forget(&self, addr: &str, id: u64) {
        let mut slots = self.slots.lock();
        if slots.by_addr.get(addr).is_some_and(|slot| slot.id == id) {
            slots.by_addr.remove(addr);
        }
    }
}

async fn connect(network: Arc<dyn Network>, addr: String) -> Result<Channel, Arc<str>> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect_patiently(&*network, &addr)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(explain(&*error)),
        Err(_) => Err(format!("no answer within {} ms", CONNECT_TIMEOUT.as_millis()).into()),
    }
}

async fn connect_patiently(
    network: &dyn Network,
    addr: &str,
) -> Result<Channel, Box<dyn StdError + Send + Sync>> {
    // A fixed window: the adaptive one costs pings and wins nothing for messages of 1 MiB at most.
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.http2_adaptive_window(false);
    let stream = network.connect(addr).await?;
    Ok(endpoint.connect_with_connector(OneConnection(Some(stream))).await?)
}

/// Hands out one stream, once. What asks again gets an error: see the module.
struct OneConnection(Option<Stream>);

impl Service<Uri> for OneConnection {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(match self.0.take() {
            Some(stream) => Ok(TokioIo::new(stream)),
            None => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

/// An error and all that caused it, outermost first.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The text of an error with its causes: tonic's own says no more than "transport error".
fn explain(error: &(dyn StdError + 'static)) -> Arc<str> {
    chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ").into()
}

/// Whether the request was refused by [`OneConnection`], before it left.
fn never_left(status: &Status) -> bool {
    chain(status).any(|cause| cause.is::<ConnectError>())
}

fn late(addr: &str) -> Error {
    Error::unknown(ErrorKind::DeadlineExceeded { stage: format!("waiting for {addr}") })
}

/// The error of a call that a node did not answer.
fn lost(addr: &str, status: &Status) -> Error {
    // What tonic says on either side when the deadline that a request carries has come.
    if status.code() == Code::Cancelled && status.message() == TimeoutExpired(()).to_string() {
        return late(addr);
    }
    let mut error = error_of(status);
    // Nobody here cancelled anything: that is how the transport calls a connection that broke.
    if error.kind == ErrorKind::Cancelled {
        error.kind = ErrorKind::OutcomeUnknown;
    }
    error
}

#[cfg(test)]
mod tests;
