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
