//! Put, cas, delete.

use std::time::Duration;

use annulus_proto::convert::ConvertError;
use annulus_proto::v1;
use annulus_types::{Error, Receipt, Revision, Token, token_of};
use bytes::Bytes;
use tonic::transport::Channel;

use super::{
    Call, OpReport, check_key, check_ttl, check_value, kv, receipt, settled_receipt, ttl_ms,
};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::retry::Access;

/// The answer to a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The key's version now; 0 when the key does not exist now.
    pub version: Revision,
    /// Where, when and on whose word. Its revision is the shard's after the mutation.
    pub receipt: Receipt,
    /// Attempts that it took, the successful one included.
    pub attempts: u32,
}

/// Sets a key. See [`Client::put`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Put {
    client: Client,
    deadline: Option<Duration>,
    key: Bytes,
    value: Bytes,
    crc32: u32,
    ttl: Option<Duration>,
}

/// Sets a key if it is at an expected version. See [`Client::cas`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Cas {
    client: Client,
    deadline: Option<Duration>,
    key: Bytes,
    value: Bytes,
    crc32: u32,
    expected: Option<Revision>,
    ttl: Option<Duration>,
}

/// Removes a key. See [`Client::delete`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Delete {
    client: Client,
    deadline: Option<Duration>,
    key: Bytes,
    expected: Option<Revision>,
}

awaitable!(Put => Written, Cas => Written, Delete => Written);

impl Put {
    pub(crate) fn new(client: Client, key: Bytes, value: Bytes) -> Self {
        let crc32 = crc32fast::hash(&value);
        Self { client, deadline: None, key, value, crc32, ttl: None }
    }

    /// The key ends after this time: not earlier, and later by at most 10 s, and the time without a leader,
    /// for each change of its shard's leader. When more than 1,000 keys of a group are due at once it takes
    /// some entries to end them all. 1 ms to 100 years; without it the key does not end, also if it would
    /// have before.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

impl Cas {
    pub(crate) fn new(
        client: Client,
        key: Bytes,
        expected: Option<Revision>,
        value: Bytes,
    ) -> Self {
        let crc32 = crc32fast::hash(&value);
        Self { client, deadline: None, key, value, crc32, expected, ttl: None }
    }

    /// As [`Put::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

impl Delete {
    pub(crate) fn new(client: Client, key: Bytes) -> Self {
        Self { client, deadline: None, key, expected: None }
    }

    /// Only if the key is at this version; otherwise the call fails as `PreconditionFailed`.
    pub fn if_version(mut self, version: Revision) -> Self {
        self.expected = Some(version);
        self
    }
}

impl Call for Put {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn token(&self) -> Token {
        token_of(&self.key)
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        check_value(&self.value)?;
        check_ttl("ttl_ms", self.ttl)
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::WriteReply> {
        let message = v1::PutRequest {
            header: Some(header),
            key: self.key.clone(),
            value: self.value.clone(),
            value_crc32: Some(self.crc32),
            ttl_ms: self.ttl.map(ttl_ms),
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.put(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn settled(&self, report: &OpReport, attempts: u32) -> Option<Written> {
        Some(settled(report, attempts))
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

impl Call for Cas {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn token(&self) -> Token {
        token_of(&self.key)
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        check_value(&self.value)?;
        check_ttl("ttl_ms", self.ttl)
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::WriteReply> {
        let message = v1::CasRequest {
            header: Some(header),
            key: self.key.clone(),
            value: self.value.clone(),
            value_crc32: Some(self.crc32),
            expected_version: self.expected.map(|version| version.0),
            ttl_ms: self.ttl.map(ttl_ms),
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.cas(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn settled(&self, report: &OpReport, attempts: u32) -> Option<Written> {
        Some(settled(report, attempts))
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

impl Call for Delete {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn token(&self) -> Token {
        token_of(&self.key)
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::WriteReply> {
        let message = v1::DeleteRequest {
            header: Some(header),
            key: self.key.clone(),
            expected_version: self.expected.map(|version| version.0),
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.delete(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn settled(&self, report: &OpReport, attempts: u32) -> Option<Written> {
        Some(settled(report, attempts))
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

fn written(reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
    let receipt = receipt(reply.receipt)?;
    Ok(Written { version: Revision(reply.version), receipt, attempts })
}

fn settled(report: &OpReport, attempts: u32) -> Written {
    Written { version: report.version, receipt: settled_receipt(report), attempts }
}
