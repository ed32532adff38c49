//! The beginning and the end of a writer. Both may be repeated after anything: a writer that was opened
//! twice idles, and one that is not there is closed.

use std::time::Duration;

use annulus_proto::convert::{ConvertError, writer_of};
use annulus_proto::v1;
use annulus_types::{Receipt, Revision, Token};
use tonic::transport::Channel;

use super::{Call, kv, receipt};
use crate::channels::{Sending, timed};
use crate::retry::Access;

/// Opens a writer in the shard that owns a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenWriter {
    pub(crate) token: Token,
}

/// A writer that was opened, in the receipt's shard.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) writer: Revision,
    pub(crate) receipt: Receipt,
}

/// Ends a writer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloseWriter {
    pub(crate) token: Token,
    pub(crate) writer: Revision,
}

impl Call for OpenWriter {
    type Reply = v1::OpenWriterReply;
    type Output = Opened;
    const ACCESS: Access = Access::Read;

    fn token(&self) -> Token {
        self.token
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::OpenWriterReply> {
        let message = v1::OpenWriterRequest { header: Some(header), token: self.token.0 };
        let mut kv = kv(channel);
        Box::pin(async move { kv.open_writer(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::OpenWriterReply, _attempts: u32) -> Result<Opened, ConvertError> {
        let writer = writer_of("writer", reply.writer)?;
        Ok(Opened { writer, receipt: receipt(reply.receipt)? })
    }

    fn receipt(output: &Opened) -> &Receipt {
        &output.receipt
    }
}

impl Call for CloseWriter {
    type Reply = v1::CloseWriterReply;
    type Output = Receipt;
    const ACCESS: Access = Access::Read;

    fn token(&self) -> Token {
        self.token
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::CloseWriterReply> {
        let message = v1::CloseWriterRequest {
            header: Some(header),
            token: self.token.0,
            writer: self.writer.0,
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.close_writer(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::CloseWriterReply, _attempts: u32) -> Result<Receipt, ConvertError> {
        receipt(reply.receipt)
    }

    fn receipt(output: &Receipt) -> &Receipt {
        output
    }
}
