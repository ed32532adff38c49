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
use annulus_types::{Consistency, Error, NodeId, Receipt, Revision, limits};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tonic::transport::Channel;

use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::retry::Access;
use crate::routes::Want;

/// Room that a message needs besides key and value: header, lengths, receipt.
const MESSAGE_REST_BYTES: usize = 128 * 1024;

/// What the driver in `client` must know of a call.
pub(crate) trait Call: Sync {
    /// The message that answers it.
    type Reply: Send;
    /// What the caller gets.
    type Output: Send;
    /// Whether it may change something.
    const ACCESS: Access;

    /// The key.
    fn key(&self) -> &[u8];
    /// Refuses what cannot be sent.
    fn check(&self) -> Result<(), Error> {
        check_key(self.key())
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
    fn open(reply: Self::Reply, attempts: u32) -> Result<Self::Output, ConvertError>;
    /// The receipt of an answer.
    fn receipt(output: &Self::Output) -> &Receipt;
}

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

/// The answer to a read. An absent key is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value; `None` when the key is absent.
    pub value: Option<Bytes>,
    /// The key's version; 0 when the key is absent.
    pub version: Revision,
    /// Where, when and on whose word.
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

/// Reads a key. See [`Client::get`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Get {
    client: Client,
    deadline: Option<Duration>,
    key: Bytes,
    consistency: Consistency,
    strict: bool,
    node: Option<NodeId>,
}

macro_rules! awaitable {
    ($($call:ident => $output:ident),* $(,)?) => {$(
        impl $call {
            /// The deadline of this call, all attempts included; at most 60 s.
            pub fn deadline(mut self, deadline: Duration) -> Self {
                self.deadline = Some(deadline);
                self
            }
        }

        impl IntoFuture for $call {
            type Output = Result<$output, Error>;
            type IntoFuture = BoxFuture<'static, Result<$output, Error>>;

            /// Dropping the future gives the call up; whether it is applied is then not known.
            fn into_future(self) -> Self::IntoFuture {
                Box::pin(async move { self.client.run(&self, self.deadline).await })
            }
        }
    )*};
}

awaitable!(Put => Written, Cas => Written, Delete => Written, Get => Found);

impl Put {
    pub(crate) fn new(client: Client, key: Bytes, value: Bytes) -> Self {
        let crc32 = crc32fast::hash(&value);
        Self { client, deadline: None, key, value, crc32 }
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
        Self { client, deadline: None, key, value, crc32, expected }
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

impl Get {
    pub(crate) fn new(client: Client, key: Bytes) -> Self {
        Self {
            client,
            deadline: None,
            key,
            consistency: Consistency::default(),
            strict: false,
            node: None,
        }
    }

    /// The consistency asked for. Default: linearizable.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Linearizable reads: demands a confirmation round that begins after the request arrived, in
    /// place of the leader's gate.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Asks this node and no other. It answers `any` reads if it holds the key's shard, others
    /// only if it leads or can be vouched for by the leader; its refusal is handed out.
    pub fn from_node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}

impl Call for Put {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn key(&self) -> &[u8] {
        &self.key
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        check_value(&self.value)
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
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.put(timed(message, limit)).await })
    }

    fn open(reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

impl Call for Cas {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn key(&self) -> &[u8] {
        &self.key
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        check_value(&self.value)
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
        };
        let mut kv = kv(channel);
        Box::pin(async move { kv.cas(timed(message, limit)).await })
    }

    fn open(reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

impl Call for Delete {
    type Reply = v1::WriteReply;
    type Output = Written;
    const ACCESS: Access = Access::Write;

    fn key(&self) -> &[u8] {
        &self.key
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

    fn open(reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
        written(reply, attempts)
    }

    fn receipt(output: &Written) -> &Receipt {
        &output.receipt
    }
}

impl Call for Get {
    type Reply = v1::GetReply;
    type Output = Found;
    const ACCESS: Access = Access::Read;

    fn key(&self) -> &[u8] {
        &self.key
    }

    fn want(&self, turn: usize) -> Want {
        match (self.node, &self.consistency) {
            (Some(node), _) => Want::Node(node),
            (None, Consistency::Any) => Want::Anyone { turn },
            // The leader has what any session or bound can ask for.
            (None, Consistency::Linearizable | Consistency::Session | Consistency::Bounded(_)) => {
                Want::Leader
            }
        }
    }

    fn header(&self, header: Header) -> Header {
        Header { consistency: self.consistency.clone(), strict: self.strict, ..header }
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::GetReply> {
        let message = v1::GetRequest { header: Some(header), key: self.key.clone() };
        let mut kv = kv(channel);
        Box::pin(async move { kv.get(timed(message, limit)).await })
    }

    fn open(reply: v1::GetReply, attempts: u32) -> Result<Found, ConvertError> {
        let receipt = receipt(reply.receipt)?;
        if !reply.found {
            return Ok(Found { value: None, version: Revision(0), receipt, attempts });
        }
        let crc32 = crc32fast::hash(&reply.value);
        if crc32 != reply.value_crc32 {
            let problem = format!("{:08x} was written, {crc32:08x} arrived", reply.value_crc32);
            return Err(ConvertError { field: "value_crc32", problem });
        }
        let version = Revision(reply.version);
        Ok(Found { value: Some(reply.value), version, receipt, attempts })
    }

    fn receipt(output: &Found) -> &Receipt {
        &output.receipt
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES)
}

fn written(reply: v1::WriteReply, attempts: u32) -> Result<Written, ConvertError> {
    let receipt = receipt(reply.receipt)?;
    Ok(Written { version: Revision(reply.version), receipt, attempts })
}

fn receipt(wire: Option<v1::Receipt>) -> Result<Receipt, ConvertError> {
    let missing = || ConvertError { field: "receipt", problem: "missing".to_owned() };
    Receipt::try_from(wire.ok_or_else(missing)?)
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
