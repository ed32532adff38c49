//! The loop that takes a call from attempt to attempt, and the routes that it needs.
//!
//! Routes are fetched by the calls that need them, at most one at a time: who holds a table goes on
//! with it while another call fetches a newer one (H7: old routes only cost redirects); who holds
//! none waits. A fetch that fails is an attempt that changed nothing.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::Header;
use annulus_proto::v1;
use annulus_proto::v1::routes_client::RoutesClient;
use annulus_types::{Error, ErrorKind, NodeId, RoutingTable, Token, limits};
use tonic::transport::Channel;

use super::Inner;
use crate::calls::Call;
use crate::channels::{Deadline, Sending, timed};
use crate::retry::{Backoff, Failure, Retry, Step};
use crate::routes::{Target, Want};
use crate::stats::Counters;

/// A node that is asked for its table answers from memory.
const ROUTES_ATTEMPT_MOST: Duration = Duration::from_secs(1);
/// What a call spends on newer routes while it has some that may still do.
const REFRESH_MOST: Duration = Duration::from_millis(500);

impl Inner {
    /// Takes a call that has no operation id from attempt to attempt. Attempts are counted in `counters`,
    /// if it is a caller's call.
    pub(super) async fn drive<C: Call>(
        &self,
        call: &C,
        want: Want,
        deadline: &Deadline,
        counters: Option<&Counters>,
    ) -> Result<C::Output, Error> {
        let token = call.token();
        let mut retry = Retry::new(C::ACCESS, matches!(want, Want::Node(_)));
        let (mut last, mut asked) = (None, 0);
        while deadline.left().is_some() {
            let (failure, repaired) = match self.aim(token, want, last, deadline).await {
                Err(failure) => (failure, false),
                Ok(target) => {
                    let Some(left) = deadline.left() else { break };
                    let limit = C::ACCESS.attempt_limit(left);
                    last = Some(target.node);
                    if let Some(counters) = counters {
                        counters.attempt(&mut asked);
                    }
                    match self.ask(call, None, &target, limit, retry.attempts() + 1).await {
                        Ok(output) => return Ok(output),
                        Err(failure) => {
                            let (failure, repaired) = self.learn(&target, failure, limit);
                            let repaired = repaired || moves_on(want, &failure);
                            (failure, repaired)
                        }
                    }
                }
            };
            match retry.after(failure, repaired, self.env.random.u64()) {
                Step::Fail(error) => return Err(error),
                Step::AtOnce => {}
                Step::After(pause) | Step::Renamed(pause) => {
                    tokio::time::sleep(pause.min(deadline.left().unwrap_or_default())).await;
                }
            }
        }
        Err(retry.give_up())
    }

    pub(super) fn now_us(&self) -> u64 {
        self.env.clock.monotonic_us()
    }

    pub(super) fn header(&self) -> Header {
        let cache = self.cache.lock();
        Header { cluster: cache.cluster(), table_version: cache.version(), ..Header::default() }
    }

    /// Waits for the first endpoint that answers at all.
    pub(super) async fn first_contact(&self) -> Result<(), Error> {
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
    pub(super) async fn aim(
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
                Want::Leader | Want::Anyone { .. } | Want::Replica { .. } => {
                    Error::refused(ErrorKind::NotReady {
                        reason: "the routing table names no node for this key".to_owned(),
                    })
                }
            })
        })
    }

    /// One attempt of a call, under a name if it has one.
    pub(super) async fn ask<C: Call>(
        &self,
        call: &C,
        name: Option<v1::OpId>,
        target: &Target,
        limit: Duration,
        attempt: u32,
    ) -> Result<C::Output, Failure> {
        let mut header = v1::RequestHeader::from(&call.header(self.header()));
        header.op = name;
        let sent = self
            .channels
            .call(&target.addr, limit, |channel, limit| call.send(channel, header.clone(), limit));
        let output = call.open(sent.await?, attempt).map_err(|problem| {
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
    pub(super) fn learn(
        &self,
        target: &Target,
        failure: Failure,
        limit: Duration,
    ) -> (Failure, bool) {
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
                    cache.broken(target, now_us);
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
    pub(super) async fn refresh(&self, limit: Duration) -> Result<Arc<RoutingTable>, Failure> {
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

/// Whether the next replica is asked at once: this one has no state that is new enough, or cannot tell, and
/// another one may have.
pub(super) fn moves_on(want: Want, failure: &Failure) -> bool {
    let Failure::Said(error) = failure else { return false };
    let is_behind = matches!(
        error.kind,
        ErrorKind::TooStale { .. } | ErrorKind::NotReady { .. } | ErrorKind::NotLeader { .. }
    );
    is_behind && matches!(want, Want::Replica { .. })
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
