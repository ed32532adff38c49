//! The loop that takes an operator's call from node to node.
//!
//! Any node will do: one that does not lead the manager passes the call on. So the endpoints are asked by
//! turns, then the nodes of the routing table, and a node that names the leader without reaching it is
//! followed there. W3 holds as for a mutation without an operation id: what may have changed something is
//! repeated only while every attempt said no.

use std::time::Duration;

use annulus_proto::v1;
use annulus_types::{ErrorKind, limits};
use tonic::transport::Channel;

use super::{Client, Inner};
use crate::channels::{Deadline, Sending};
use crate::error::Error;
use crate::retry::{Access, Failure, Retry, Step};

impl Client {
    /// Asks until a node answers, the answer is final, or the time is over.
    pub(crate) async fn operate<R>(
        &self,
        access: Access,
        deadline: Option<Duration>,
        send: impl Fn(Channel, v1::RequestHeader, Duration) -> Sending<R> + Send + Sync,
    ) -> Result<R, Error> {
        let inner = &*self.inner;
        let span = deadline.unwrap_or(inner.deadline).min(limits::DEADLINE_MOST);
        let deadline = Deadline::after(&inner.env.clock, span);
        let mut retry = Retry::new(access, false);
        let mut turn = 0;
        let mut told = None;
        while let Some(left) = deadline.left() {
            let addr = told.take().unwrap_or_else(|| inner.source(turn));
            turn += 1;
            let header = v1::RequestHeader::from(&inner.header());
            let limit = access.attempt_limit(left);
            let asked = inner
                .channels
                .call(&addr, limit, |channel, limit| send(channel, header.clone(), limit));
            let failure = match asked.await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            told = inner.leader_told(&failure, &addr);
            match retry.after(failure, told.is_some(), inner.env.random.u64()) {
                Step::Fail(error) => return Err(error.into()),
                Step::AtOnce => {}
                Step::After(pause) | Step::Renamed(pause) => {
                    tokio::time::sleep(pause.min(deadline.left().unwrap_or_default())).await;
                }
            }
        }
        Err(retry.give_up().into())
    }
}

impl Inner {
    /// Whom to ask at this turn.
    fn source(&self, turn: usize) -> String {
        let now_us = self.env.clock.monotonic_us();
        let mut sources = self.cache.lock().sources(&self.endpoints, now_us);
        if sources.is_empty() {
            sources.clone_from(&self.endpoints);
        }
        let at = turn % sources.len().max(1);
        sources.get(at).cloned().unwrap_or_default()
    }

    /// The address of the leader that a failure names, unless that is who failed.
    fn leader_told(&self, failure: &Failure, asked: &str) -> Option<String> {
        let Failure::Said(error) = failure else { return None };
        let ErrorKind::NotLeader { leader: Some(leader) } = &error.kind else { return None };
        let cache = self.cache.lock();
        let addr = cache.table()?.node(*leader)?.addr.clone();
        (addr != asked).then_some(addr)
    }
}
