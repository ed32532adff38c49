//! The client: its construction, its calls, and those that concern the cluster as a whole.
//!
//! The decisions are made elsewhere: `routes` says whom to ask, `retry` whether to ask again, `writers`
//! which number a mutation gets, `channels` what became of a request, `session` what a session has seen.
//! `drive`, `named` and `many` only carry them out: the loops that take a call from attempt to attempt,
//! without an operation id, with one, and for several keys at once.

mod drive;
mod many;
mod named;
mod operate;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use annulus_proto::convert::cluster_of;
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_runtime::{Env, Network};
use annulus_types::{
    ClusterId, Consistency, ErrorKind, MayHaveApplied, Receipt, Revision, RoutingTable,
    SessionToken, Token, limits,
};
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tonic::transport::Channel;

use self::named::Desk;
use crate::calls::{Batch, Call, Cas, CloseWriter, Delete, Get, Incr, MultiGet, OpStatus, Put};
use crate::channels::{Channels, Deadline, Sending, timed};
use crate::error::Error;
use crate::op_id::OpIdText;
use crate::retry::{Access, Failure};
use crate::routes::{RouteCache, Want};
use crate::session::{Memory, Session};
use crate::stats::{Counters, Stats};

/// A node gathers the state of the others for up to 1 s.
const STATUS_ATTEMPT_MOST: Duration = Duration::from_millis(2_500);
/// The birth of a cluster waits for every node of it to sync its disk.
const INIT_DEADLINE: Duration = Duration::from_secs(30);
/// Writers that are closed at once: enough to hide the round trips of a client that has written to all
/// shards, few enough to be no burst.
const CLOSES_AT_ONCE: usize = 64;

/// A client of one cluster. Cheap to clone; clones share routes, connections and writers.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    /// What the session of this handle has seen; `None`: it is of no session.
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    endpoints: Vec<String>,
    deadline: Duration,
    channels: Channels,
    cache: Mutex<RouteCache>,
    /// Held by the one call that fetches routes. Held across an await, hence tokio's.
    refreshing: tokio::sync::Mutex<()>,
    /// Counts calls, from a random start, so that clients do not begin at the same member.
    turn: AtomicUsize,
    /// Whether mutations get operation ids.
    exactly_once: bool,
    desk: Desk,
    counters: Counters,
}

/// Builds a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    deadline: Duration,
    env: Option<Env>,
    network: Option<Arc<dyn Network>>,
    exactly_once: bool,
}

impl Builder {
    /// Client addresses (`host:port`) of some nodes of the cluster; others are learned from them.
    #[must_use]
    pub fn endpoints<I, S>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// The deadline of calls that name none, and of [`Builder::connect`]. Default: 5 s; at most
    /// 60 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Connects through this network. Default: the environment's.
    #[must_use]
    pub fn network(mut self, network: Arc<dyn Network>) -> Self {
        self.network = Some(network);
        self
    }

    /// Takes clock, randomness and network from here. Default: the operating system's.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Whether mutations get operation ids, so that they are repeated after an unknown outcome and take
    /// effect once all the same. Default: they do. Without ids the first mutation of each shard is spared
    /// the opening of a writer, and a mutation whose outcome is unknown is handed back at once.
    #[must_use]
    pub fn exactly_once(mut self, exactly_once: bool) -> Self {
        self.exactly_once = exactly_once;
        self
    }

    /// Fetches the routing table from the first endpoint that has one. When all that answer belong
    /// to no cluster yet, the client is returned all the same and fetches the table with its first
    /// call.
    ///
    /// # Errors
    /// When the endpoints cannot be addresses, or none of them answers before the deadline.
    pub async fn connect(self) -> Result<Client, Error> {
        let endpoints = addresses(&self.endpoints)?;
        let mut env = match self.env {
            Some(env) => env,
            None => Env::real().map_err(|error| {
                Error::refused(ErrorKind::Internal { id: format!("no randomness: {error}") })
            })?,
        };
        if let Some(network) = self.network {
            env.network = network;
        }
        let start = env.random.below(u64::from(u16::MAX));
        let inner = Inner {
            channels: Channels::new(&env),
            endpoints,
            deadline: self.deadline.min(limits::DEADLINE_MOST),
            cache: Mutex::default(),
            refreshing: tokio::sync::Mutex::new(()),
            turn: AtomicUsize::new(usize::try_from(start).unwrap_or(0)),
            exactly_once: self.exactly_once,
            desk: Desk::default(),
            counters: Counters::default(),
            env,
        };
        inner.first_contact().await?;
        Ok(Client { inner: Arc::new(inner), memory: None })
    }
}

/// The endpoints as `host:port`.
fn addresses(endpoints: &[String]) -> Result<Vec<String>, Error> {
    let refused = |message: String| Error::bad_request("endpoints", message);
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        let bare = endpoint.trim();
        let bare = bare.strip_prefix("http://").unwrap_or(bare).trim_end_matches('/');
        let is_address = bare
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            return Err(refused(format!("host:port expected, got {endpoint:?}")));
        }
        addresses.push(bare.to_owned());
    }
    if addresses.is_empty() {
        return Err(refused("at least one is needed".to_owned()));
    }
    Ok(addresses)
}

impl Client {
    /// A client with default settings for the cluster that these nodes belong to.
    ///
    /// # Errors
    /// See [`Builder::connect`].
    pub async fn connect<I, S>(endpoints: I) -> Result<Self, Error>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// Settings, with their defaults.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            endpoints: Vec::new(),
            deadline: limits::DEADLINE_DEFAULT,
            env: None,
            network: None,
            exactly_once: true,
        }
    }

    /// Sets a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put::new(self.clone(), key.into(), value.into())
    }

    /// Reads a key. An absent key is an answer, not an error.
    pub fn get(&self, key: impl Into<Bytes>) -> Get {
        Get::new(self.clone(), key.into())
    }

    /// Reads several keys, with one message to each node that answers for some of them. The answers come in
    /// the order of the keys; each has the receipt of its shard, which was read at one point as far as one
    /// message goes. Two shards have no common point. A key that cannot be read in time fails the call, and
    /// the error names it.
    pub fn multi_get<I, K>(&self, keys: I) -> MultiGet
    where
        I: IntoIterator<Item = K>,
        K: Into<Bytes>,
    {
        MultiGet::new(self.clone(), keys.into_iter().map(Into::into).collect())
    }

    /// Begins a session: its reads see all of its writes and never go back, shard by shard, on whatever
    /// replica. It shares everything else with this client.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self)
    }

    /// Removes a key. Removing an absent key changes nothing and is no error.
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete {
        Delete::new(self.clone(), key.into())
    }

    /// Sets a key if it is at the version `expected`; `None`: if it does not exist. Otherwise the
    /// call fails as [`ErrorKind::PreconditionFailed`], which names the version found.
    pub fn cas(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Revision>,
        value: impl Into<Bytes>,
    ) -> Cas {
        Cas::new(self.clone(), key.into(), expected, value.into())
    }

    /// Adds `delta` to the number that a key holds, in decimal digits; an absent key counts as 0. A sum out
    /// of the limits, or of 64 bits, and a value that is no number are answers, with nothing changed. A key
    /// that is to end ([`Put::ttl`]) still ends at that time.
    pub fn incr(&self, key: impl Into<Bytes>, delta: i64) -> Incr {
        Incr::new(self.clone(), key.into(), delta)
    }

    /// Changes several keys, all or none, with one revision. All keys, those of the conditions too, must have
    /// one routing key, that is a common `{tag}`: at most 1,000 changes, 1,000 conditions, and 8 MiB of keys
    /// and values.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// Asks what became of a mutation, by the id that its error bears. The answer is final: one that was
    /// not applied is refused from then on.
    pub fn op_status(&self, id: OpIdText) -> OpStatus {
        OpStatus::new(self.clone(), id)
    }

    /// Closes the writers of this client and its clones, within the default deadline of calls. It may be
    /// left out: writers that are not used end by themselves, ten minutes later. So do those that are not
    /// closed here: writers with a mutation under way, those with a mutation of unknown outcome, which
    /// [`Client::op_status`] can then still be asked about, and those that cannot be closed in time. The
    /// client remains usable.
    pub async fn close(&self) {
        let inner = &*self.inner;
        let deadline = Deadline::after(&inner.env.clock, inner.deadline);
        let idle = inner.desk.take_idle();
        for some in idle.chunks(CLOSES_AT_ONCE) {
            let closing = some.iter().map(|&(token, writer)| inner.close(token, writer, &deadline));
            join_all(closing).await;
        }
    }

    /// What the calls of this client and its clones have taken so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.read()
    }

    /// The routing table, fetched anew from any node that has one.
    ///
    /// # Errors
    /// When no node has one to give.
    pub async fn routes(&self) -> Result<Arc<RoutingTable>, Error> {
        Ok(self.inner.refresh(self.inner.deadline).await.map_err(Failure::into_error)?)
    }

    /// The state of the cluster as the first endpoint that answers gathers it; with `local`, of
    /// that endpoint's node alone.
    ///
    /// # Errors
    /// The most telling failure, when no endpoint answers.
    pub async fn status(&self, local: bool) -> Result<v1::StatusReply, Error> {
        let inner = &*self.inner;
        let deadline = Deadline::after(&inner.env.clock, inner.deadline);
        let header = v1::RequestHeader::from(&inner.header());
        let mut failure = None;
        for addr in &inner.endpoints {
            let Some(left) = deadline.left() else { break };
            let limit = left.min(STATUS_ATTEMPT_MOST);
            let asked = inner.channels.call(addr, limit, |channel, limit| {
                send_status(channel, header.clone(), local, limit)
            });
            match asked.await {
                Ok(reply) => return Ok(reply),
                Err(next) => failure = Some(Failure::more_telling(failure, next.of_question())),
            }
        }
        let failure = failure.unwrap_or_else(|| Failure::Unreachable("no time left".to_owned()));
        Err(failure.into_error().into())
    }

    /// Creates the cluster, through the first endpoint. Returns its id and whether this call
    /// created it: a second one changes nothing. Zeros stand for the defaults (128 shards, 4 lanes,
    /// 3 replicas). Takes up to 30 s.
    ///
    /// # Errors
    /// What the node says, or that it cannot be reached. Repeating the call is always safe.
    pub async fn init(
        &self,
        shards: u32,
        lanes: u32,
        replication: u32,
    ) -> Result<(ClusterId, bool), Error> {
        let inner = &*self.inner;
        let Some(addr) = inner.endpoints.first() else {
            return Err(Error::bad_request("endpoints", "at least one is needed"));
        };
        let request = v1::InitRequest { shards, lanes, replication };
        let asked = inner
            .channels
            .call(addr, INIT_DEADLINE, |channel, limit| send_init(channel, request, limit));
        let reply = asked.await.map_err(Failure::into_error)?;
        let cluster = cluster_of(&reply.cluster_id).map_err(|problem| {
            let id = format!("the answer of {addr}: {problem}");
            let unusable = Error::refused(ErrorKind::Internal { id });
            Error { may_have_applied: MayHaveApplied::Yes, ..unusable }
        })?;
        Ok((cluster, reply.created))
    }

    /// Carries a call out.
    pub(crate) async fn run<C: Call>(
        &self,
        call: &C,
        deadline: Option<Duration>,
    ) -> Result<C::Output, Error> {
        call.check()?;
        self.check_session()?;
        let inner = &*self.inner;
        let span = deadline.unwrap_or(inner.deadline).min(limits::DEADLINE_MOST);
        inner.counters.begin(1);
        let done = if inner.exactly_once && C::ACCESS == Access::Write {
            inner.run_named(call, span).await
        } else {
            let deadline = Deadline::after(&inner.env.clock, span);
            let want = call.want(inner.turn.fetch_add(1, Ordering::Relaxed));
            let driven = inner.drive(call, want, &deadline, Some(&inner.counters)).await;
            driven.map_err(Error::from)
        };
        let output = done.inspect_err(|error| inner.counters.failed(error))?;
        self.remember(C::receipt(&output))
            .map_err(|error| Error { may_have_applied: C::ACCESS.after_answer(), ..error })?;
        Ok(output)
    }

    /// The same client for a session.
    pub(crate) fn with_memory(&self, memory: Memory) -> Self {
        Self { inner: Arc::clone(&self.inner), memory: Some(memory) }
    }

    /// What the session of this handle has seen.
    pub(crate) fn seen(&self) -> Option<SessionToken> {
        self.memory.as_ref().and_then(Memory::token)
    }

    /// The token for a read of this consistency: with others it would be refused.
    pub(crate) fn session_for(&self, consistency: &Consistency) -> Option<SessionToken> {
        if *consistency == Consistency::Session { self.seen() } else { None }
    }

    /// That of reads which name none.
    pub(crate) fn default_consistency(&self) -> Consistency {
        match self.memory {
            Some(_) => Consistency::Session,
            None => Consistency::default(),
        }
    }

    /// Refuses a session of another cluster, as far as the cluster is known yet.
    pub(crate) fn check_session(&self) -> Result<(), Error> {
        let cluster = self.inner.cache.lock().cluster();
        match (&self.memory, cluster) {
            (Some(memory), Some(cluster)) => memory.check(cluster),
            _ => Ok(()),
        }
    }

    /// Takes an answer into the session, if there is one.
    fn remember(&self, receipt: &Receipt) -> Result<(), Error> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let cluster = self.inner.cache.lock().cluster().unwrap_or_default();
        memory.observe(cluster, receipt)
    }
}

impl Inner {
    /// Ends a writer, if that can be done in time.
    async fn close(&self, token: Token, writer: Revision, deadline: &Deadline) {
        let closing = CloseWriter { token, writer };
        if let Err(error) = self.drive(&closing, Want::Leader, deadline, None).await {
            tracing::debug!(%writer, %error, "a writer was not closed and ends by itself");
        }
    }
}

fn send_status(
    channel: Channel,
    header: v1::RequestHeader,
    local: bool,
    limit: Duration,
) -> Sending<v1::StatusReply> {
    let message = v1::StatusRequest { header: Some(header), local };
    let mut admin = AdminClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES);
    Box::pin(async move { admin.status(timed(message, limit)).await })
}

fn send_init(
    channel: Channel,
    message: v1::InitRequest,
    limit: Duration,
) -> Sending<v1::InitReply> {
    let mut admin = AdminClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES);
    Box::pin(async move { admin.init(timed(message, limit)).await })
}

#[cfg(test)]
mod tests;
