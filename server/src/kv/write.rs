//! What goes through the log: mutations, and the life of writers (W3).
//!
//! Invariant (W4): a reply that refuses was applied, and the log proves that nothing was changed by this
//! attempt: NO. A repetition is answered as its original was, with the original's revision.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{IncrResult, OpState};
use annulus_proto::v1;
use annulus_raft::Group;
use annulus_types::{Error, ErrorKind, Mode, Receipt, Revision, Role, ServedBy};

use super::admit::Ready;
use super::{KvService, Serving};
use crate::operation::{Finding, Outcome, Point};
use crate::shards::Shard;

/// How long a client waits before it asks a full table again.
const FULL_RETRY_MS: u32 = 1_000;

/// What the log has made of an operation.
struct Judged<'a> {
    serving: &'a Serving,
    shard: Arc<Shard>,
    group: Arc<Group>,
    term: u64,
    outcome: Outcome,
}

impl KvService {
    async fn judged(&self, ready: Ready, limit: Duration) -> Result<Judged<'_>, Error> {
        let Ready { header, shard: meant, token, body } = ready;
        let serving: &Serving = self.serving.get(&header)?;
        let (shard, group) = serving.locate(token)?;
        if let Some(meant) = meant
            && meant != shard.id
        {
            let message = format!("token {token} belongs to shard {}, not to {meant}", shard.id);
            return Err(Error::bad_request("shard", message));
        }
        let proposed = group.propose(shard.id, body, limit).await?;
        let outcome = Outcome::decode(proposed.reply)
            .map_err(|error| serving.defect("a reply does not decode", &error))?;
        Ok(Judged { serving, shard, group, term: proposed.term, outcome })
    }

    /// Put, cas, delete.
    pub(super) async fn write(
        &self,
        ready: Ready,
        limit: Duration,
    ) -> Result<v1::WriteReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (version, at) = judged.done()?;
        Ok(v1::WriteReply { receipt: Some(judged.receipt(at)), version: version.0 })
    }

    pub(super) async fn count(
        &self,
        ready: Ready,
        limit: Duration,
    ) -> Result<v1::IncrReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (result, value, version, at) = match judged.outcome {
            Outcome::Counted { number, at } => (IncrResult::Done, number, at.revision, at),
            Outcome::OutOfBounds { number, at } => {
                (IncrResult::OutOfBounds, number, Revision(0), at)
            }
            Outcome::NotANumber { at } => (IncrResult::NotANumber, 0, Revision(0), at),
            _ => return Err(judged.refusal()),
        };
        Ok(v1::IncrReply {
            receipt: Some(judged.receipt(at)),
            result: v1::IncrResult::from(result).into(),
            value,
            version: version.0,
        })
    }

    /// `sets` says of each item whether it sets its key.
    pub(super) async fn write_all(
        &self,
        ready: Ready,
        sets: Vec<bool>,
        limit: Duration,
    ) -> Result<v1::BatchReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (version, at) = judged.done()?;
        let versions = sets.into_iter().map(|sets| if sets { version.0 } else { 0 });
        Ok(v1::BatchReply { receipt: Some(judged.receipt(at)), versions: versions.collect() })
    }

    pub(super) async fn open(
        &self,
        ready: Ready,
        limit: Duration,
    ) -> Result<v1::OpenWriterReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (_, at) = judged.done()?;
        let writer = at.revision.0;
        Ok(v1::OpenWriterReply { receipt: Some(judged.receipt(at)), writer })
    }

    pub(super) async fn close(
        &self,
        ready: Ready,
        limit: Duration,
    ) -> Result<v1::CloseWriterReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (_, at) = judged.done()?;
        Ok(v1::CloseWriterReply { receipt: Some(judged.receipt(at)) })
    }

    pub(super) async fn status(
        &self,
        ready: Ready,
        limit: Duration,
    ) -> Result<v1::OpStatusReply, Error> {
        let judged = self.judged(ready, limit).await?;
        let (finding, at) = match judged.outcome {
            Outcome::Status { finding, at } => (finding, at),
            Outcome::OutsideWindow => {
                let message = "no writer of this shard can have used it yet, or too many others \
                               of this writer are asked about";
                return Err(Error::bad_request("seq", message));
            }
            _ => return Err(judged.refusal()),
        };
        let none = (Revision(0), Revision(0), None);
        let (state, (version, revision, value)) = match finding {
            Finding::Applied { version, revision, number } => {
                (OpState::Applied, (version, revision, number))
            }
            Finding::Failed => (OpState::Failed, none),
            Finding::NotApplied => (OpState::NotApplied, none),
            Finding::NotKept => (OpState::Settled, none),
            Finding::Ended => (OpState::Ended, none),
        };
        Ok(v1::OpStatusReply {
            receipt: Some(judged.receipt(at)),
            state: v1::OpState::from(state).into(),
            version: version.0,
            revision: revision.0,
            value,
        })
    }
}

impl Judged<'_> {
    /// The version, and the point of the receipt, of an operation that was done.
    fn done(&self) -> Result<(Revision, Point), Error> {
        match self.outcome {
            Outcome::Done { version, revision, epoch, shard_time_ms } => {
                Ok((version, Point { revision, epoch, shard_time_ms }))
            }
            _ => Err(self.refusal()),
        }
    }

    fn receipt(&self, at: Point) -> v1::Receipt {
        let receipt = Receipt {
            mode: Mode::Write,
            shard: self.shard.id,
            epoch: at.epoch,
            node: self.serving.node,
            replica: self.group.replica(),
            role: Role::Leader,
            served_by: ServedBy::Log,
            term: self.term,
            revision: at.revision,
            staleness_bound_us: None,
            shard_time_ms: at.shard_time_ms,
            table_version: self.serving.tables.version(),
        };
        (&receipt).into()
    }

    /// The error of an operation that changed nothing.
    fn refusal(&self) -> Error {
        match self.outcome {
            Outcome::PreconditionFailed { current } => {
                Error::refused(ErrorKind::PreconditionFailed { current })
            }
            Outcome::NotHere => self.serving.stale_route(),
            Outcome::OpIdReused => Error::refused(ErrorKind::OpIdReused),
            Outcome::WriterExpired => Error::refused(ErrorKind::WriterExpired),
            Outcome::OutsideWindow => {
                let message = "no number that this writer may use now";
                Error::bad_request("op.seq", message)
            }
            Outcome::WritersFull => {
                let full = Error::refused(ErrorKind::Overloaded);
                Error { retry_after_ms: FULL_RETRY_MS, ..full }
            }
            Outcome::Done { .. }
            | Outcome::Counted { .. }
            | Outcome::OutOfBounds { .. }
            | Outcome::NotANumber { .. }
            | Outcome::Status { .. } => self.serving.defect("a reply of another kind", &Unexpected),
        }
    }
}

/// The machine answered one operation with the result of another kind.
#[derive(Debug, thiserror::Error)]
#[error("the machine's answer does not fit the operation")]
struct Unexpected;
