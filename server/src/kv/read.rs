//! Reads of shards of one group: what vouches for the state, one look at it, a receipt of exactly that.
//!
//! | mode | before the look | after it |
//! | --- | --- | --- |
//! | linearizable | the gate or a confirmation round (R1, R2) | |
//! | session | the state is whole | at least what the session has seen; else wait, ask the leader, look again (R5) |
//! | bounded | the state is whole | not older than the limit (R4) |
//! | any | the state is whole (E6) | |
//!
//! A look is one job for all shards of a group that a message asks for: each shard is read at one point,
//! with its head and the group's time, so that the receipt tells of that state and no other (R3).
//!
//! # The age of an answer (R4)
//!
//! Whoever vouches for the state does so *before* the look: everything that was acknowledged before that
//! moment is in what is read, and what is read later is only newer. The age is counted from there to
//! *after* the look, so it holds however long the disk took. [`Voucher`] carries the moment from the one
//! side to the other.
//!
//! # Invariants
//!
//! - A reader holds its [`Shard`] from check to last byte (E6), in the job too, which may outlive who asked.
//! - Looks of one message follow each other and share what the reply has room for: nothing that has no room
//!   is held.
//! - Nothing is answered that nobody vouches for. Refusals say NO: reading changes nothing.
//!
//! An engine that fails, or bytes that fail their check, are a defect: the replica answers no reads any more
//! (E6), and the caller is told an id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::EngineError;
use annulus_proto::convert::Header;
use annulus_proto::v1;
use annulus_raft::Group;
use annulus_runtime::BootTime;
use annulus_types::{
    Consistency, Error, ErrorKind, Mode, NamespaceId, Receipt, Revision, Role, ServedBy, token_of,
};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::decide::{self, Before, Standing, Step};
use super::readers::Readers;
use super::{KvService, Serving};
use crate::shards::{SeenAll, Shard, Shards};
use crate::stored::Value;
use crate::weaken::Weakened;

/// How long a session waits for entries that are on their way here, before the leader is asked. A
/// follower is behind by about a round trip and a sync; longer than this it is cut off or slow.
const SESSION_PATIENCE: Duration = Duration::from_millis(50);

/// What a message asks of one shard.
pub(super) struct Share {
    shard: Arc<Shard>,
    keys: Vec<Bytes>,
    /// The revision below which a session must not see the shard; 0 in other modes.
    seen: Revision,
}

/// What one shard answered: the values of the leading keys, for as many as there was room.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) receipt: Receipt,
    pub(super) values: Vec<Option<Value>>,
}

/// Who vouches for the state that is looked at next.
#[derive(Clone, Copy, Debug)]
struct Voucher {
    served_by: ServedBy,
    role: Role,
    term: u64,
    /// Whatever was acknowledged before this is in it; `None`: nobody can tell.
    since: Option<BootTime>,
}

/// One message's reading from one group.
pub(super) struct Reading<'a> {
    pub(super) readers: &'a Readers,
    pub(super) serving: &'a Serving,
    pub(super) header: &'a Header,
    pub(super) group: Arc<Group>,
    pub(super) deadline: Instant,
    /// Bytes of values that the reply has room for. Held over a look, which may wait for the disk: the next
    /// look must know what this one leaves.
    pub(super) room: &'a Mutex<usize>,
}

/// A read came back without what was asked.
#[derive(Debug, thiserror::Error)]
#[error("a read of one key has no answer for it")]
struct NoAnswer;

impl KvService {
    pub(super) async fn read(
        &self,
        header: &Header,
        key: &Bytes,
        limit: Duration,
    ) -> Result<v1::GetReply, Error> {
        let deadline = Instant::now() + limit;
        let serving: &Serving = self.serving.get(header)?;
        let (shard, group) = serving.locate(token_of(key))?;
        let shares = [Arc::new(Share::new(shard, vec![key.clone()], header))];
        let room = Mutex::new(usize::MAX);
        let readers = &*self.readers;
        let reading = Reading { readers, serving, header, group, deadline, room: &room };
        let answer = reading.answer(&shares).await.pop();
        let lacking = || serving.defect("a read", &NoAnswer);
        let Answer { receipt, values } = answer.ok_or_else(lacking)??;
        let value = values.into_iter().next().ok_or_else(lacking)?;
        Ok(v1::GetReply {
            receipt: Some((&receipt).into()),
            found: value.is_some(),
            version: value.as_ref().map_or(0, |value| value.revision.0),
            deadline_ms: value.as_ref().map_or(0, |value| value.deadline_ms),
            value_crc32: value.as_ref().map_or(0, |value| value.crc),
            value: value.map(|value| value.value).unwrap_or_default(),
        })
    }
}

impl Share {
    pub(super) fn new(shard: Arc<Shard>, keys: Vec<Bytes>, header: &Header) -> Self {
        let seen = header.session.as_ref().map(|token| token.get(shard.id)).unwrap_or_default();
        Self { shard, keys, seen }
    }

    /// Looks at the shard. `None` when it was switched under the read.
    fn look(
        &self,
        shards: &Shards,
        namespace: NamespaceId,
        room: usize,
    ) -> Result<Option<SeenAll>, EngineError> {
        let keys: Vec<&[u8]> = self.keys.iter().map(AsRef::as_ref).collect();
        let keys: &[&[u8]] = if room == 0 { &[] } else { &keys[..] };
        let mut found = shards.read_all(&self.shard, namespace, keys, room)?;
        if let Some(found) = &mut found
            && !decide::holds(found.head.revision, self.seen, Weakened::default())
        {
            // It is not shown to this session, and takes no room.
            found.values.clear();
        }
        Ok(found)
    }
}

impl Reading<'_> {
    /// One answer for each share, in their order.
    pub(super) async fn answer(&self, shares: &[Arc<Share>]) -> Vec<Result<Answer, Error>> {
        let answers = match &self.header.consistency {
            Consistency::Linearizable => self.linearizable(shares).await,
            Consistency::Session => Ok(self.session(shares).await),
            Consistency::Bounded(limit) => self.bounded(shares, *limit).await,
            Consistency::Any => self.any(shares).await,
        };
        answers.unwrap_or_else(|error| all_failed(shares, &error))
    }

    async fn linearizable(
        &self,
        shares: &[Arc<Share>],
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let voucher = self.granted(self.header.strict).await?;
        Ok(self.look(shares, Mode::Linearizable, voucher).await)
    }

    async fn any(&self, shares: &[Arc<Share>]) -> Result<Vec<Result<Answer, Error>>, Error> {
        let voucher = self.local()?;
        Ok(self.look(shares, Mode::Any, voucher).await)
    }

    async fn bounded(
        &self,
        shares: &[Arc<Share>],
        limit: Duration,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let judge = |age_us| decide::bounded(limit_us, age_us, Weakened::default());
        let voucher = self.local()?;
        // What is too old already only grows older.
        judge(self.age_us(voucher))?;
        let mut answers = self.look(shares, Mode::Bounded, voucher).await;
        for answer in &mut answers {
            if let Ok(Answer { receipt, .. }) = answer
                && let Err(stale) = judge(receipt.staleness_bound_us)
            {
                *answer = Err(stale);
            }
        }
        Ok(answers)
    }

    async fn session(&self, shares: &[Arc<Share>]) -> Vec<Result<Answer, Error>> {
        let mut answers = BTreeMap::new();
        if let Err(error) = self.follow_session(shares, &mut answers).await {
            for place in 0..shares.len() {
                answers.entry(place).or_insert_with(|| Err(error.clone()));
            }
        }
        answers.into_values().collect()
    }

    /// Looks until every share has its answer; they come by the places of the shares.
    ///
    /// # Errors
    /// Why those that have none will get none.
    async fn follow_session(
        &self,
        shares: &[Arc<Share>],
        answers: &mut BTreeMap<usize, Result<Answer, Error>>,
    ) -> Result<(), Error> {
        let patience = self.deadline.min(Instant::now() + SESSION_PATIENCE);
        let (mut waited, mut confirmed) = (false, None);
        let mut open: Vec<(usize, Arc<Share>)> = shares.iter().cloned().enumerate().collect();
        loop {
            // Taken before the look: what is applied during it ends the wait at once.
            let applied = self.group.applied_index();
            let voucher = match confirmed {
                Some(voucher) => voucher,
                None => self.local()?,
            };
            let asked: Vec<Arc<Share>> = open.iter().map(|(_, share)| Arc::clone(share)).collect();
            let looked = self.look(&asked, Mode::Session, voucher).await;
            let (mut behind, mut before) = (Vec::new(), None);
            for ((place, share), answer) in open.into_iter().zip(looked) {
                let step = match &answer {
                    Ok(Answer { receipt, .. }) => {
                        let (head, seen) = (receipt.revision, share.seen);
                        let at = Standing { head, seen, waited, confirmed: confirmed.is_some() };
                        decide::session(at, Weakened::default())
                    }
                    // Looking again would not mend it.
                    Err(_) => Step::Answer,
                };
                match step {
                    Step::Answer => {
                        answers.insert(place, answer);
                    }
                    Step::HistoryLost => {
                        answers.insert(place, Err(Error::refused(ErrorKind::HistoryLost)));
                    }
                    Step::Again(what) => {
                        before = Some(what);
                        behind.push((place, share));
                    }
                }
            }
            open = behind;
            match before {
                None => return Ok(()),
                Some(Before::Wait) => {
                    let newer = timeout_at(patience, self.group.wait_applied_beyond(applied)).await;
                    // In a busy group there is always something newer.
                    waited = newer.is_err() || Instant::now() >= patience;
                }
                Some(Before::Confirm) => confirmed = Some(self.granted(true).await?),
            }
        }
    }

    /// Vouched for by what this replica knows about itself.
    fn local(&self) -> Result<Voucher, Error> {
        self.group.check_whole()?;
        let since = self.group.vouched();
        let (role, term) = self.group.role();
        Ok(Voucher { served_by: ServedBy::Local, role, term, since })
    }

    /// Vouched for by a linearizable point.
    async fn granted(&self, strict: bool) -> Result<Voucher, Error> {
        let asked = self.serving.env.clock.boot();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let grant = self.group.read_grant(strict, left).await?;
        let since = grant.staleness_bound_us.map(|age_us| match grant.served_by {
            // The round began after this, and saw everything acknowledged before.
            ServedBy::ReadIndex => asked,
            ServedBy::Lease | ServedBy::Local | ServedBy::Log => {
                BootTime(asked.0.saturating_sub(age_us))
            }
        });
        Ok(Voucher { served_by: grant.served_by, role: grant.role, term: grant.term, since })
    }

    fn age_us(&self, voucher: Voucher) -> Option<u64> {
        voucher.since.map(|since| self.group.age_us(since))
    }

    /// Looks once at every share, and writes the receipts.
    async fn look(
        &self,
        shares: &[Arc<Share>],
        mode: Mode,
        voucher: Voucher,
    ) -> Vec<Result<Answer, Error>> {
        let mut room = self.room.lock().await;
        let shards = Arc::clone(&self.serving.shards);
        let (asked, namespace, mut left) = (shares.to_vec(), self.header.namespace, *room);
        let job = move || {
            let mut found = Vec::with_capacity(asked.len());
            for share in &asked {
                let seen = share.look(&shards, namespace, left);
                if let Ok(Some(seen)) = &seen {
                    left = left.saturating_sub(seen.bytes());
                }
                found.push(seen);
            }
            (found, left)
        };
        let may_block = self.serving.shards.may_block();
        let (found, left) = match self.readers.run(may_block, self.deadline, job).await {
            Ok(done) => done,
            Err(error) => return all_failed(shares, &error),
        };
        *room = left;
        drop(room);
        let age_us = self.age_us(voucher);
        let told = shares.iter().zip(found);
        told.map(|(share, seen)| self.told(share, seen, mode, voucher, age_us)).collect()
    }

    /// What was seen of a share, with its receipt.
    fn told(
        &self,
        share: &Share,
        seen: Result<Option<SeenAll>, EngineError>,
        mode: Mode,
        voucher: Voucher,
        age_us: Option<u64>,
    ) -> Result<Answer, Error> {
        let SeenAll { head, shard_time_ms, values } = self.whole(seen)?;
        let receipt = Receipt {
            mode,
            shard: share.shard.id,
            epoch: head.epoch,
            node: self.serving.node,
            replica: self.group.replica(),
            role: voucher.role,
            served_by: voucher.served_by,
            term: voucher.term,
            revision: head.revision,
            staleness_bound_us: age_us,
            shard_time_ms,
            table_version: self.serving.tables.version(),
        };
        Ok(Answer { receipt, values })
    }

    fn whole(&self, found: Result<Option<SeenAll>, EngineError>) -> Result<SeenAll, Error> {
        match found {
            Ok(Some(seen)) => Ok(seen),
            Ok(None) => Err(self.serving.stale_route()),
            Err(error) => {
                self.group.distrust(&error.to_string());
                Err(self.serving.defect("a read failed", &error))
            }
        }
    }
}

fn all_failed(shares: &[Arc<Share>], error: &Error) -> Vec<Result<Answer, Error>> {
    shares.iter().map(|_| Err(error.clone())).collect()
}
