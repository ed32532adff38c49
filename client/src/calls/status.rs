//! The question what became of a mutation.

use std::time::Duration;

use annulus_proto::convert::{ConvertError, Header, OpState, op_state_of};
use annulus_proto::v1;
use annulus_types::{Receipt, Revision, Token};
use futures_util::future::BoxFuture;
use tonic::transport::Channel;

use super::{Call, kv, receipt};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::op_id::OpIdText;
use crate::retry::Access;

/// What is known of a mutation. Whatever it is, it stays true, but for one thing: a writer that has ended
/// makes [`OpState::Ended`] of everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpReport {
    /// What became of it.
    pub state: OpState,
    /// If it was applied: the key's version after it, 0 if it was removed. Of a batch: the version of every
    /// key that it has set.
    pub version: Revision,
    /// If it was applied: the shard's revision after it.
    pub revision: Revision,
    /// If it was applied and was an addition: the sum.
    pub value: Option<i64>,
    /// Where, when and on whose word this is said. Its revision is that of now.
    pub receipt: Receipt,
    /// Attempts that the question took, the successful one included.
    pub attempts: u32,
}

/// Asks what became of a mutation. See [`Client::op_status`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct OpStatus {
    client: Client,
    deadline: Option<Duration>,
    question: Question,
}

impl OpStatus {
    pub(crate) fn new(client: Client, id: OpIdText) -> Self {
        Self { client, deadline: None, question: Question { id } }
    }

    /// The deadline of this call, all attempts included; at most 60 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl IntoFuture for OpStatus {
    type Output = Result<OpReport, crate::Error>;
    type IntoFuture = BoxFuture<'static, Result<OpReport, crate::Error>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.run(&self.question, self.deadline).await })
    }
}

/// The question itself. It may be repeated after anything: it changes no key, and what it changes (an
/// operation that is not known is refused from then on) is the same each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) id: OpIdText,
}

impl Call for Question {
    type Reply = v1::OpStatusReply;
    type Output = OpReport;
    const ACCESS: Access = Access::Read;

    fn token(&self) -> Token {
        self.id.token
    }

    fn header(&self, header: Header) -> Header {
        // Of the id, not of the client: another cluster knows nothing of the operation.
        Header { cluster: Some(self.id.cluster), ..header }
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::OpStatusReply> {
        let message = v1::OpStatusRequest {
            header: Some(header),
            token: self.id.token.0,
            writer: self.id.writer.0,
            seq: self.id.seq,
            shard: Some(self.id.shard.0),
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.op_status(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::OpStatusReply, attempts: u32) -> Result<OpReport, ConvertError> {
        Ok(OpReport {
            state: op_state_of(reply.state)?,
            version: Revision(reply.version),
            revision: Revision(reply.revision),
            value: reply.value,
            receipt: receipt(reply.receipt)?,
            attempts,
        })
    }

    fn receipt(output: &OpReport) -> &Receipt {
        &output.receipt
    }
}
