//! Reads of several keys: who is asked for which of them, until each has an answer.
//!
//! A round sends one message to each node that has keys to answer for (more when they are more than a
//! message may have), all at the same time. Keys that came back without an answer go into the next round,
//! each with what its own attempts have taught: one that was refused elsewhere, or after a pause; one that
//! was left out because the reply was full, at once.
//!
//! Invariants: an answer is given to the key that was asked for, by its place in the message. A call ends with
//! an answer for every key or with the failure of one. A reply without anything for anybody is a defect and
//! ends the call, so left-out keys cannot go round for ever.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::Ordering;
use std::time::Duration;

use annulus_proto::convert::{Item, Items};
use annulus_proto::v1;
use annulus_types::{
    Error as AttemptError, ErrorKind, GroupId, NodeId, Receipt, Revision, Token, limits, token_of,
};
use bytes::Bytes;
use futures_util::future::join_all;

use super::drive::moves_on;
use super::{Client, Inner};
use crate::calls::{Found, KeyError, MultiGet, expires_in};
use crate::channels::Deadline;
use crate::error::Error;
use crate::retry::{Access, Failure, Retry, Step};
use crate::routes::{Target, Want};

/// A key without an answer.
#[derive(Debug)]
struct Open {
    place: usize,
    token: Token,
    retry: Retry,
    /// The node that was asked last, and did not serve.
    last: Option<NodeId>,
    /// How often a node was asked.
    asked: u32,
}

/// A key and whom to ask for it.
type Aimed = (Open, Target);

/// A failed attempt for a key.
struct Lost {
    item: Open,
    failure: Failure,
    repaired: bool,
}

/// What a message brought.
struct Told {
    lot: Vec<Aimed>,
    outcome: Result<Items, Failure>,
    limit: Duration,
}

/// What is known after a round.
struct Round<'a> {
    asked: &'a MultiGet,
    answers: Vec<Option<Found>>,
    /// Keys that a full reply had no room for.
    left_out: Vec<Open>,
    lost: Vec<Lost>,
}

fn defect(node: NodeId, problem: &str) -> AttemptError {
    let id = format!("the answer of node {node}: {problem}");
    AttemptError::refused(ErrorKind::Internal { id })
}

/// A failure for each of many keys: the routes in it, which were looked at, are not copied for them all.
fn without_routes(failure: Failure) -> Failure {
    match failure {
        Failure::Said(AttemptError {
            kind: ErrorKind::StaleRoute { .. },
            may_have_applied,
            retry_after_ms,
        }) => Failure::Said(AttemptError {
            kind: ErrorKind::StaleRoute { routes: None },
            may_have_applied,
            retry_after_ms,
        }),
        other => other,
    }
}

impl Client {
    /// Carries out a multi-get.
    pub(crate) async fn read_many(
        &self,
        asked: &MultiGet,
        deadline: Option<Duration>,
    ) -> Result<Vec<Found>, KeyError> {
        asked.check()?;
        let Some(first) = asked.keys().first() else { return Ok(Vec::new()) };
        self.check_session()
            .map_err(|error| KeyError { key: first.clone(), error: Box::new(error) })?;
        let inner = &*self.inner;
        inner.counters.begin(asked.keys().len());
        let span = deadline.unwrap_or(inner.deadline).min(limits::DEADLINE_MOST);
        let deadline = Deadline::after(&inner.env.clock, span);
        let want = asked.want(inner.turn.fetch_add(1, Ordering::Relaxed));
        let mut round = Round {
            asked,
            answers: vec![None; asked.keys().len()],
            left_out: Vec::new(),
            lost: Vec::new(),
        };
        let mut open = round.everything();
        while !open.is_empty() {
            if deadline.left().is_none() {
                return Err(round.too_late(&open));
            }
            let lots = inner.sort(mem::take(&mut open), want, &deadline, &mut round.lost).await;
            let asking = lots.into_iter().map(|lot| inner.ask_lot(asked, lot, &deadline));
            for told in join_all(asking).await {
                self.take_in(told, want, &mut round)?;
            }
            let (again, pause) = round.next(inner.env.random.u64())?;
            open = again;
            if !pause.is_zero() {
                tokio::time::sleep(pause.min(deadline.left().unwrap_or_default())).await;
            }
        }
        // No key is open, so each has an answer.
        Ok(round.answers.into_iter().flatten().collect())
    }

    /// Gives the keys of a message their answers.
    fn take_in(&self, told: Told, want: Want, round: &mut Round<'_>) -> Result<(), KeyError> {
        let Told { lot, outcome, limit } = told;
        let inner = &*self.inner;
        let items = match outcome {
            Ok(items) => items,
            Err(failure) => {
                round.nothing(inner, lot, failure, want, limit);
                return Ok(());
            }
        };
        inner.answered_all(&lot, &items.receipts);
        // By error, and by group where that matters: whether it told whom to ask instead.
        let mut taught: BTreeMap<(usize, Option<GroupId>), (Failure, bool)> = BTreeMap::new();
        for ((mut item, target), became) in lot.into_iter().zip(items.items) {
            let place = item.place;
            if became != Item::LeftOut {
                inner.counters.attempt(&mut item.asked);
            }
            let attempts = item.retry.attempts() + 1;
            let answer = match became {
                Item::LeftOut => {
                    round.left_out.push(item);
                    continue;
                }
                Item::Failed { error } => {
                    let Some(said) = items.errors.get(error) else {
                        return Err(round.failed(place, defect(target.node, "an error is missing")));
                    };
                    let is_stale = matches!(said.kind, ErrorKind::StaleRoute { .. });
                    let about = (error, (!is_stale).then_some(target.group));
                    let (failure, repaired) = taught.entry(about).or_insert_with(|| {
                        let said = Failure::Said(said.clone());
                        let (failure, repaired) = inner.learn(&target, said, limit);
                        let repaired = repaired || moves_on(want, &failure);
                        (without_routes(failure), repaired)
                    });
                    item.last = Some(target.node);
                    round.lost.push(Lost { item, failure: failure.clone(), repaired: *repaired });
                    continue;
                }
                Item::Absent { receipt } => {
                    items.receipts.get(receipt).map(|receipt| (None, Revision(0), 0, receipt))
                }
                Item::Found { receipt, version, crc, value, deadline_ms } => {
                    let arrived = crc32fast::hash(&value);
                    if arrived != crc {
                        let problem =
                            format!("value_crc32s: {crc:08x} was written, {arrived:08x} arrived");
                        return Err(round.failed(place, defect(target.node, &problem)));
                    }
                    let receipt = items.receipts.get(receipt);
                    receipt.map(|receipt| (Some(value), version, deadline_ms, receipt))
                }
            };
            let Some((value, version, deadline_ms, receipt)) = answer else {
                return Err(round.failed(place, defect(target.node, "a receipt is missing")));
            };
            self.remember(receipt).map_err(|error| round.named(place, error))?;
            let expires_in = expires_in(deadline_ms, receipt);
            let receipt = receipt.clone();
            let found = Found { value, version, expires_in, receipt, attempts };
            if let Some(slot) = round.answers.get_mut(place) {
                *slot = Some(found);
            }
        }
        Ok(())
    }
}

impl Inner {
    /// One message for each node, with the keys that it is to be asked for; keys that nobody can be asked
    /// for are lost for this round.
    async fn sort(
        &self,
        open: Vec<Open>,
        want: Want,
        deadline: &Deadline,
        lost: &mut Vec<Lost>,
    ) -> Vec<Vec<Aimed>> {
        let mut nodes: BTreeMap<NodeId, Vec<Aimed>> = BTreeMap::new();
        let mut missing: Option<Failure> = None;
        for item in open {
            let aimed = match &missing {
                None => self.aim(item.token, want, item.last, deadline).await,
                // Routes were asked for in vain, and are not asked for again for every key.
                Some(failure) => {
                    let target =
                        self.cache.lock().target(item.token, want, item.last, self.now_us());
                    target.ok_or_else(|| failure.clone())
                }
            };
            match aimed {
                Ok(target) => nodes.entry(target.node).or_default().push((item, target)),
                Err(failure) => {
                    missing = Some(failure.clone());
                    lost.push(Lost { item, failure, repaired: false });
                }
            }
        }
        let mut lots = Vec::with_capacity(nodes.len());
        for mut lot in nodes.into_values() {
            while lot.len() > limits::MULTI_GET_KEYS {
                let rest = lot.split_off(limits::MULTI_GET_KEYS);
                lots.push(mem::replace(&mut lot, rest));
            }
            lots.push(lot);
        }
        lots
    }

    /// Asks a node for some keys.
    async fn ask_lot(&self, asked: &MultiGet, lot: Vec<Aimed>, deadline: &Deadline) -> Told {
        let limit = Access::Read.attempt_limit(deadline.left().unwrap_or_default());
        let Some((_, target)) = lot.first() else {
            return Told { lot, outcome: Ok(Items::default()), limit };
        };
        let keys: Vec<Bytes> =
            lot.iter().filter_map(|(item, _)| asked.keys().get(item.place).cloned()).collect();
        let header = v1::RequestHeader::from(&asked.header(self.header()));
        let sent = self.channels.call(&target.addr, limit, |channel, limit| {
            MultiGet::send(channel, header.clone(), keys.clone(), limit)
        });
        let outcome = match sent.await {
            Ok(reply) => opened(reply, keys.len())
                .map_err(|problem| Failure::Said(defect(target.node, &problem))),
            Err(failure) => Err(failure),
        };
        Told { lot, outcome, limit }
    }

    fn answered_all(&self, lot: &[Aimed], receipts: &[Receipt]) {
        let now_us = self.now_us();
        let mut cache = self.cache.lock();
        if let Some((_, target)) = lot.first() {
            cache.alive(target.node, now_us);
        }
        for receipt in receipts {
            // A shard that was asked for under another route teaches nothing about that one's group.
            let target = lot.iter().find(|(_, target)| target.shard == receipt.shard);
            if let Some((_, target)) = target {
                cache.answered(target, receipt, now_us);
            }
        }
    }
}

/// The items of a reply to a message with so many keys.
fn opened(reply: v1::MultiGetReply, keys: usize) -> Result<Items, String> {
    let items = Items::try_from(reply).map_err(|problem| problem.to_string())?;
    let told = items.items.len();
    if told != keys {
        return Err(format!("results: {keys} expected, got {told}"));
    }
    if items.items.iter().all(|item| *item == Item::LeftOut) {
        return Err("results: nothing is said of any key".to_owned());
    }
    Ok(items)
}

impl Round<'_> {
    fn everything(&self) -> Vec<Open> {
        let keys = self.asked.keys().iter().enumerate();
        keys.map(|(place, key)| Open {
            place,
            token: token_of(key),
            retry: Retry::new(Access::Read, false),
            last: None,
            asked: 0,
        })
        .collect()
    }

    /// A message failed, for all of its keys.
    fn nothing(
        &mut self,
        inner: &Inner,
        lot: Vec<Aimed>,
        failure: Failure,
        want: Want,
        limit: Duration,
    ) {
        let Some((_, target)) = lot.first() else { return };
        let (failure, repaired) = inner.learn(target, failure, limit);
        let repaired = repaired || moves_on(want, &failure);
        let failure = without_routes(failure);
        for (mut item, target) in lot {
            inner.counters.attempt(&mut item.asked);
            item.last = Some(target.node);
            self.lost.push(Lost { item, failure: failure.clone(), repaired });
        }
    }

    /// The keys of the next round, in their order, and the pause before it.
    fn next(&mut self, roll: u64) -> Result<(Vec<Open>, Duration), KeyError> {
        let mut again = mem::take(&mut self.left_out);
        let mut longest = Duration::ZERO;
        let mut lost = mem::take(&mut self.lost);
        // So that of several failures the first key's is told.
        lost.sort_by_key(|lost| lost.item.place);
        for Lost { mut item, failure, repaired } in lost {
            match item.retry.after(failure, repaired, roll) {
                Step::Fail(error) => return Err(self.failed(item.place, error)),
                Step::AtOnce => {}
                Step::After(pause) | Step::Renamed(pause) => longest = longest.max(pause),
            }
            again.push(item);
        }
        again.sort_by_key(|item| item.place);
        Ok((again, longest))
    }

    /// Time is over: the first key that failed speaks for the call.
    fn too_late(&self, open: &[Open]) -> KeyError {
        let failed = open.iter().find(|item| item.retry.attempts() > 0).or(open.first());
        let retry = failed.map(|item| item.retry.give_up());
        let error = retry.unwrap_or_else(|| Retry::new(Access::Read, false).give_up());
        self.failed(failed.map_or(0, |item| item.place), error)
    }

    fn failed(&self, place: usize, error: AttemptError) -> KeyError {
        self.named(place, error.into())
    }

    fn named(&self, place: usize, error: Error) -> KeyError {
        let key = self.asked.keys().get(place).cloned().unwrap_or_default();
        KeyError { key, error: Box::new(error) }
    }
}
