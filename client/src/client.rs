//! The client: its construction, the loop that takes a call from attempt to attempt, and the calls
//! that concern the cluster as a whole.
//!
//! The decisions are made elsewhere: `routes` says whom to ask, `retry` whether to ask again,
//! `channels` what became of a request. This module only carries them out.
//!
//! Routes are fetched by the calls that need them, at most one at a time: who holds a table goes on
//! with it while another call fetches a newer one (H7: old routes only cost redirects); who holds
//! none waits. A fetch that fails is an attempt that changed nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use annulus_proto::convert::{Header, cluster_of};
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::routes_client::RoutesClient;
use annulus_runtime::{Env, Network};
use annulus_types::{
    ClusterId, Error, ErrorKind, MayHaveApplied, NodeId, Revision, RoutingTable, Token, limits,
    token_of,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::calls::{Call, Cas, Delete, Get, Put};
use crate::channels::{Channels, Deadline, Sending, timed};
use crate::retry::{Backoff, Failure, Retry, Step};
use crate::routes::{RouteCache, Target, Want};

/// A node that is asked for its table answers from memory.
const ROUTES_ATTEMPT_MOST: Duration = Duration::from_secs(1);
/// What a call spends on newer routes while it has some that may still do.
const REFRESH_MOST: Duration = Duration::from_millis(500);
/// A node gathers the state of the others for up to 1 s.
const STATUS_ATTEMPT_MOST: Duration = Duration::from_millis(2_500);
/// The birth of a cluster waits for every node of it to sync its disk.
const INIT_DEADLINE: Duration = Duration::from_secs(30);

/// A client of one cluster. Cheap to clone; clones share routes and connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
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
}

/// Builds a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    deadline: Duration,
    env: Option<Env>,
    network: Option<Arc<dyn Network>>,
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
            env,
        };
        inner.first_contact().await?;
        Ok(Client { inner: Arc::new(inner) })
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

    /// The routing table, fetched anew from any node that has one.
    ///
    /// # Errors
    /// When no node has one to give.
    pub async fn routes(&self) -> Result<Arc<RoutingTable>, Error> {
        self.inner.refresh(self.inner.deadline).await.map_err(Failure::into_error)
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
        Err(failure.into_error())
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
        let cluster = cluster_of(&reply.cluster_id).map_err(|problem| Error {
            kind: ErrorKind::Internal { id: format!("the answer of {addr}: {problem}") },
            may_have_applied: MayHaveApplied::Yes,
            retry_after_ms: 0,
        })?;
        Ok((cluster, reply.created))
    }

    /// Takes a call from attempt to attempt.
    pub(crate) async fn run<C: Call>(
        &self,
        call: &C,
        deadline: Option<Duration>,
    ) -> Result<C::Output, Error> {
        call.check()?;
        let inner = &*self.inner;
        let span = deadline.unwrap_or(inner.deadline).min(limits::DEADLINE_MOST);
        let deadline = Deadline::after(&inner.env.clock, span);
        let token = token_of(call.key());
        let want = call.want(inner.turn.fetch_add(1, Ordering::Relaxed));
        let mut retry = Retry::new(C::ACCESS, matches!(want, Want::Node(_)));
        let mut last = None;
        while deadline.left().is_some() {
            let (failure, repaired) = match inner.aim(token, want, last, &deadline).await {
                Err(failure) => (failure, false),
                Ok(target) => {
                    let Some(left) = deadline.left() else { break };
                    let limit = C::ACCESS.attempt_limit(left);
                    last = Some(target.node);
                    match inner.ask(call, &target, limit, retry.attempts() + 1).await {
                        Ok(output) => return Ok(output),
                        Err(failure) => inner.learn(&target, failure, limit),
                    }
                }
            };
            match retry.after(failure, repaired, inner.env.random.u64()) {
                Step::Fail(error) => return Err(error),
                Step::AtOnce => {}
                Step::After(pause) => {
                    tokio::time::sleep(pause.min(deadline.left().unwrap_or_default())).await;
                }
            }
        }
        Err(retry.give_up())
    }
}

impl Inner {
    fn now_us(&self) -> u64 {
        self.env.clock.monotonic_us()
    }

    fn header(&self) -> Header {
        let cache = self.cache.lock();
        Header { cluster: cache.cluster(), table_version: cache.version(), ..Header::default() }
    }

    /// Waits for the first endpoint that answers at all.
    async fn first_contact(&self) -> Result<(), Error> {
        let deadline = Deadline::after(&self.env.clock, self.deadline);
        let mut backoff = Backoff::new();
        let mut failure = Failure::Unreachable("no time left".to_owned());
        while let Some(left) = deadline.left() {
            failure = match self.refresh(left).await {
                Ok(_) => return Ok(()),
                Err(Failure::Said(Error { kind: ErrorKind::NotReady { .. }, .. })) => return Ok(()),
                Err(Failure::Said(error)) if !error.is_retryable() => return Err(error),
                Err(failure) => failure,
            };
            let pause = backoff.pause(self.env.random.u64());
            tokio::time::sleep(pause.min(deadline.left().unwrap_or_default())).await;
        }
        Err(failure.into_error())
    }

    /// The node to ask after `last` did not serve, with routes fetched if they must be.
    async fn aim(
        &self,
        token: Token,
        want: Want,
        last: Option<NodeId>,
        deadline: &Deadline,
    ) -> Result<Target, Failure> {
        self.ensure_routes(deadline.left().unwrap_or_default()).await?;
        let target = self.cache.lock().target(token, want, last, self.now_us());
        if let Some(target) = target {
            return Ok(target);
        }
        // The table names nobody: it is too old, or no table will.
        self.refresh(deadline.left().unwrap_or_default()).await?;
        let target = self.cache.lock().target(token, want, last, self.now_us());
        target.ok_or_else(|| {
            Failure::Said(match want {
                Want::Node(node) => {
                    Error::bad_request("node", format!("node {node} is not in the routing table"))
                }
                Want::Leader | Want::Anyone { .. } => Error::refused(ErrorKind::NotReady {
                    reason: "the routing table names no node for this key".to_owned(),
                }),
            })
        })
    }

    /// One attempt of a call.
    async fn ask<C: Call>(
        &self,
        call: &C,
        target: &Target,
        limit: Duration,
        attempt: u32,
    ) -> Result<C::Output, Failure> {
        let header = v1::RequestHeader::from(&call.header(self.header()));
        let sent = self
            .channels
            .call(&target.addr, limit, |channel, limit| call.send(channel, header.clone(), limit));
        let output = C::open(sent.await?, attempt).map_err(|problem| {
            let id = format!("the answer of node {}: {problem}", target.node);
            Failure::Said(Error {
                kind: ErrorKind::Internal { id },
                may_have_applied: C::ACCESS.after_answer(),
                retry_after_ms: 0,
            })
        })?;
        self.cache.lock().answered(target, C::receipt(&output), self.now_us());
        Ok(output)
    }

    /// Repairs the routes by what a failure tells. Returns whether it told whom to ask instead.
    fn learn(&self, target: &Target, failure: Failure, limit: Duration) -> (Failure, bool) {
        let now_us = self.now_us();
        let mut cache = self.cache.lock();
        let repaired = match &failure {
            Failure::Unreachable(_) => {
                cache.gone(target, now_us);
                false
            }
            Failure::Silent(error) => {
                if matches!(error.kind, ErrorKind::DeadlineExceeded { .. }) {
                    let waited_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
                    cache.late(target, waited_us, now_us);
                } else {
                    cache.gone(target, now_us);
                }
                false
            }
            Failure::Said(error) => {
                cache.alive(target.node, now_us);
                match &error.kind {
                    ErrorKind::NotLeader { leader } => cache.redirected(target, *leader, now_us),
                    ErrorKind::StaleRoute { routes } => cache.rerouted(routes.as_deref()),
                    ErrorKind::Moving { .. } => cache.rerouted(None),
                    _ => false,
                }
            }
        };
        drop(cache);
        (failure, repaired)
    }

    /// Sees to it that there is a table, and asks for a newer one when answers told of one.
    async fn ensure_routes(&self, left: Duration) -> Result<(), Failure> {
        let (held, due) = {
            let cache = self.cache.lock();
            (cache.table().is_some(), cache.refresh_due(self.now_us()))
        };
        if held {
            if due && let Ok(_alone) = self.refreshing.try_lock() {
                // Without newer routes the call goes on with those that it has.
                if let Err(failure) = self.refresh(left.min(REFRESH_MOST)).await {
                    tracing::debug!(?failure, "the routes could not be refreshed");
                }
            }
            return Ok(());
        }
        let Ok(_alone) = tokio::time::timeout(left, self.refreshing.lock()).await else {
            return Err(Failure::Unreachable("waiting for routes".to_owned()));
        };
        let held = self.cache.lock().table().is_some();
        if held {
            return Ok(());
        }
        self.refresh(left).await?;
        Ok(())
    }

    /// Fetches a table from the first node that has one, and returns the routes that are known
    /// then. Its failures are those of a question: nothing is in doubt after them.
    async fn refresh(&self, limit: Duration) -> Result<Arc<RoutingTable>, Failure> {
        let deadline = Deadline::after(&self.env.clock, limit);
        let header = v1::RequestHeader::from(&self.header());
        let sources = {
            let now_us = self.now_us();
            let mut cache = self.cache.lock();
            cache.asking(now_us);
            cache.sources(&self.endpoints, now_us)
        };
        let mut failure = None;
        for addr in &sources {
            let Some(left) = deadline.left() else { break };
            let asked =
                self.channels.call(addr, left.min(ROUTES_ATTEMPT_MOST), |channel, limit| {
                    send_routes(channel, header.clone(), limit)
                });
            let next = match asked.await {
                Ok(table) => match self.take(addr, table) {
                    Ok(table) => return Ok(table),
                    Err(error) => Failure::Said(error),
                },
                Err(next) => next.of_question(),
            };
            failure = Some(Failure::more_telling(failure, next));
        }
        Err(failure.unwrap_or_else(|| Failure::Unreachable("no time left for routes".to_owned())))
    }

    /// Adds a table from `addr` to what is known.
    fn take(&self, addr: &str, table: v1::RoutingTable) -> Result<Arc<RoutingTable>, Error> {
        let table = RoutingTable::try_from(table).map_err(|problem| {
            Error::refused(ErrorKind::Internal { id: format!("the table of {addr}: {problem}") })
        })?;
        let offered = table.cluster;
        let mut cache = self.cache.lock();
        cache.adopt(table);
        match cache.table() {
            Some(held) if held.cluster == offered => Ok(Arc::clone(held)),
            _ => Err(Error::refused(ErrorKind::WrongCluster { actual: offered })),
        }
    }
}

fn send_routes(
    channel: Channel,
    header: v1::RequestHeader,
    limit: Duration,
) -> Sending<v1::RoutingTable> {
    let message = v1::GetRoutesRequest { header: Some(header) };
    let mut routes = RoutesClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES);
    Box::pin(async move { routes.get(timed(message, limit)).await })
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
