//! The calls: builders that are sent when they are awaited, and what each of them puts on the wire
//! and reads from it. Which node gets it, and when again, is not decided here.
//!
//! Failure: a call whose key or value cannot be sent at all is refused before the first attempt.
//! An answer that cannot be used (no receipt, a value that does not match its checksum) is an
//! `Internal` error that says so; it is not asked for again, because damage wants to be
//! seen.

use std::time::Duration;

use annulus_proto::convert::{ConvertError, Header};
use annulus_proto::v1;
use annulus_proto::v1::kv_client::KvClient;
use annulus_types::{Error, Receipt, Token, limits};
use tonic::transport::Channel;

use crate::channels::Sending;
use crate::retry::Access;
use crate::routes::Want;

/// Makes the builder `$call`, which has the fields `client` and `deadline`, a future of `$output`.
macro_rules! awaitable {
    ($($call:ident => $output:ident),* $(,)?) => {$(
        impl $call {
            /// The deadline of this call, all attempts included; at most 60 s.
            pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
                self.deadline = Some(deadline);
                self
            }
        }

        impl IntoFuture for $call {
            type Output = Result<$output, crate::Error>;
            type IntoFuture =
                futures_util::future::BoxFuture<'static, Result<$output, crate::Error>>;

            /// Dropping the future gives the call up; whether it is applied is then not known.
            fn into_future(self) -> Self::IntoFuture {
                Box::pin(async move { self.client.run(&self, self.deadline).await })
            }
        }
    )*};
}

mod batch;
mod incr;
mod multi;
mod read;
mod status;
mod write;
mod writer;

pub use batch::{Batch, BatchWritten};
pub use incr::{Counted, Incr};
pub use multi::{KeyError, MultiGet};
pub use read::{Found, Get};
pub use status::{OpReport, OpStatus};
pub use write::{Cas, Delete, Put, Written};

pub(crate) use status::Question;
pub(crate) use writer::{CloseWriter, OpenWriter};

/// Room that a message needs besides key and value: header, lengths, receipt.
const MESSAGE_REST_BYTES: usize = 128 * 1024;

/// What the driver in `client` must know of a call.
pub(crate) trait Call: Sync {
    /// The message that answers it.
    type Reply: Send;
    /// What the caller gets.
    type Output: Send;
    /// Whether it may change something. What has [`Access::Write`] gets an operation id if the client
    /// gives any.
    const ACCESS: Access;

    /// Of its key.
    fn token(&self) -> Token;
    /// Refuses what cannot be sent.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Whom to ask; `turn` counts the calls of the client.
    fn want(&self, _turn: usize) -> Want {
        Want::Leader
    }
    /// Completes the header.
    fn header(&self, header: Header) -> Header {
        header
    }
    /// Sends it.
    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<Self::Reply>;
    /// Reads the answer, which came after so many attempts.
    fn open(&self, reply: Self::Reply, attempts: u32) -> Result<Self::Output, ConvertError>;
    /// The answer of an operation whose own one was lost, from what is known of it since.
    fn settled(&self, _report: &OpReport, _attempts: u32) -> Option<Self::Output> {
        None
    }
    /// The receipt of an answer.
    fn receipt(output: &Self::Output) -> &Receipt;
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES)
}

fn receipt(wire: Option<v1::Receipt>) -> Result<Receipt, ConvertError> {
    let missing = || ConvertError { field: "receipt", problem: "missing".to_owned() };
    Receipt::try_from(wire.ok_or_else(missing)?)
}

/// The receipt of a mutation whose own one was lost: that of the question, at the revision of the mutation.
fn settled_receipt(report: &OpReport) -> Receipt {
    Receipt { revision: report.revision, ..report.receipt.clone() }
}

/// A time to live in the wire's unit. Rounded up: nothing ends before its time.
fn ttl_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn check_ttl(field: &str, ttl: Option<Duration>) -> Result<(), Error> {
    let most = limits::TTL_MS_MOST;
    match ttl.map(ttl_ms) {
        Some(told) if told == 0 || told > most => {
            Err(Error::bad_request(field, format!("1 to {most} ms, got {told}")))
        }
        _ => Ok(()),
    }
}

/// What is left until a deadline, at the state that a receipt tells of; 0 on the wire is none.
pub(crate) fn expires_in(deadline_ms: u64, receipt: &Receipt) -> Option<Duration> {
    let left_ms = deadline_ms.saturating_sub(receipt.shard_time_ms);
    (deadline_ms != 0).then(|| Duration::from_millis(left_ms))
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() || key.len() > limits::KEY_BYTES {
        let message = format!("1 to {} bytes, got {}", limits::KEY_BYTES, key.len());
        return Err(Error::bad_request("key", message));
    }
    Ok(())
}

/// The limit of a value is the cluster's to judge. But a message beyond the decode limit would
/// break the call without an answer, and that would leave the outcome unknown.
fn check_value(value: &[u8]) -> Result<(), Error> {
    let most = limits::DECODE_BYTES - MESSAGE_REST_BYTES;
    if value.len() > most {
        return Err(Error::bad_request(
            "value",
            format!("at most {most} bytes, got {}", value.len()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use annulus_types::{
        Epoch, ErrorKind, Mode, NodeId, ReplicaId, Revision, Role, ServedBy, ShardId, TableVersion,
    };

    use super::*;

    #[test]
    fn a_time_to_live_is_rounded_up_and_has_limits() {
        let ms = Duration::from_millis;
        for (ttl, told) in [(Duration::from_nanos(1), 1), (ms(30_000), 30_000)] {
            assert_eq!(ttl_ms(ttl), told);
        }
        assert_eq!(ttl_ms(ms(7) + Duration::from_nanos(1)), 8);
        for good in [None, Some(ms(1)), Some(ms(limits::TTL_MS_MOST))] {
            assert_eq!(check_ttl("ttl_ms", good), Ok(()), "{good:?}");
        }
        for bad in [Duration::ZERO, ms(limits::TTL_MS_MOST + 1), Duration::MAX] {
            let refused = check_ttl("ttl_ms", Some(bad)).unwrap_err().kind;
            let ErrorKind::BadRequest { field, message } = &refused else { panic!("{refused:?}") };
            assert_eq!(field, "ttl_ms");
            assert!(message.contains("3155760000000"), "{message}");
        }
    }

    #[test]
    fn what_is_left_is_told_at_the_time_of_the_receipt_and_never_below_nothing() {
        let receipt = Receipt {
            mode: Mode::Any,
            shard: ShardId(1),
            epoch: Epoch(1),
            node: NodeId(1),
            replica: ReplicaId(1),
            role: Role::Follower,
            served_by: ServedBy::Local,
            term: 1,
            revision: Revision(1),
            staleness_bound_us: None,
            shard_time_ms: 500,
            table_version: TableVersion(1),
        };
        let ms = |left| Some(Duration::from_millis(left));
        assert_eq!(expires_in(0, &receipt), None);
        assert_eq!(expires_in(730, &receipt), ms(230));
        assert_eq!(expires_in(400, &receipt), ms(0), "its time is over and it is there");
    }
}
