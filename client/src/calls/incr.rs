//! Incr: adding to a number.

use std::time::Duration;

use annulus_proto::convert::{ConvertError, IncrResult, incr_result_of};
use annulus_proto::v1;
use annulus_types::{Error, Receipt, Revision, Token, token_of};
use bytes::Bytes;
use tonic::transport::Channel;

use super::{Call, OpReport, check_key, kv, receipt, settled_receipt};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::retry::Access;

/// The answer to an addition. A refusal is an answer: see `result`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// What became of it.
    pub result: IncrResult,
    /// The number now: the sum when it was done, the number as it is when the sum would be out of its
    /// limits, 0 when the key holds no number.
    pub value: i64,
    /// The key's version now; 0 when nothing was changed.
    pub version: Revision,
    /// Where, when and on whose word. Its revision is the shard's after the addition.
    pub receipt: Receipt,
    /// Attempts that it took, the successful one included.
    pub attempts: u32,
}

impl Counted {
    /// The sum, if the addition was done.
    #[must_use]
    pub fn sum(&self) -> Option<i64> {
        (self.result == IncrResult::Done).then_some(self.value)
    }
}

/// Adds to the number that a key holds. See [`Client::incr`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Incr {
    client: Client,
    deadline: Option<Duration>,
    key: Bytes,
    delta: i64,
    min: Option<i64>,
    max: Option<i64>,
}

awaitable!(Incr => Counted);

impl Incr {
    pub(crate) fn new(client: Client, key: Bytes, delta: i64) -> Self {
        Self { client, deadline: None, key, delta, min: None, max: None }
    }

    /// The sum must not be below this; otherwise nothing is changed.
    pub fn min(mut self, min: i64) -> Self {
        self.min = Some(min);
        self
    }

    /// The sum must not be above this; otherwise nothing is changed.
    pub fn max(mut self, max: i64) -> Self {
        self.max = Some(max);
        self
    }
}

impl Call for Incr {
    type Reply = v1::IncrReply;
    type Output = Counted;
    const ACCESS: Access = Access::Write;

    fn token(&self) -> Token {
        token_of(&self.key)
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        match (self.min, self.max) {
            (Some(min), Some(max)) if min > max => {
                let message = format!("must not be below min, which is {min}; is {max}");
                Err(Error::bad_request("max", message))
            }
            _ => Ok(()),
        }
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::IncrReply> {
        let message = v1::IncrRequest {
            header: Some(header),
            key: self.key.clone(),
            delta: self.delta,
            min: self.min,
            max: self.max,
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.incr(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::IncrReply, attempts: u32) -> Result<Counted, ConvertError> {
        Ok(Counted {
            result: incr_result_of(reply.result)?,
            value: reply.value,
            version: Revision(reply.version),
            receipt: receipt(reply.receipt)?,
            attempts,
        })
    }

    fn settled(&self, report: &OpReport, attempts: u32) -> Option<Counted> {
        Some(Counted {
            result: IncrResult::Done,
            value: report.value?,
            version: report.version,
            receipt: settled_receipt(report),
            attempts,
        })
    }

    fn receipt(output: &Counted) -> &Receipt {
        &output.receipt
    }
}
