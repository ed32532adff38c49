//! Get.

use std::time::Duration;

use annulus_proto::convert::{ConvertError, Header};
use annulus_proto::v1;
use annulus_types::{Consistency, Error, NodeId, Receipt, Revision, Token, token_of};
use bytes::Bytes;
use tonic::transport::Channel;

use super::{Call, check_key, expires_in, kv, receipt};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::retry::Access;
use crate::routes::Want;

/// The answer to a read. An absent key is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value; `None` when the key is absent.
    pub value: Option<Bytes>,
    /// The key's version; 0 when the key is absent.
    pub version: Revision,
    /// How long the key still lives, at the shard time of the receipt, which in a shard without traffic may be
    /// 10 s old; `None` when it does not end by time. For information: at zero it is there until the shard has
    /// ended it, and whoever finds it may rely on it.
    pub expires_in: Option<Duration>,
    /// Where, when and on whose word.
    pub receipt: Receipt,
    /// Attempts that it took, the successful one included.
    pub attempts: u32,
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

awaitable!(Get => Found);

impl Get {
    pub(crate) fn new(client: Client, key: Bytes) -> Self {
        let consistency = client.default_consistency();
        Self { client, deadline: None, key, consistency, strict: false, node: None }
    }

    /// The consistency asked for. Default: linearizable, in a session `session`.
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

    /// Asks this node and no other. It answers `any` reads if it holds the key's shard, `session` and
    /// `bounded` ones if its state is new enough, linearizable ones only if it leads or can be vouched for
    /// by the leader; its refusal is handed out.
    pub fn from_node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}

/// Who can answer a read.
pub(super) fn want_of(consistency: &Consistency, turn: usize) -> Want {
    match consistency {
        Consistency::Linearizable => Want::Leader,
        Consistency::Session | Consistency::Bounded(_) => Want::Replica { turn },
        Consistency::Any => Want::Anyone { turn },
    }
}

impl Call for Get {
    type Reply = v1::GetReply;
    type Output = Found;
    const ACCESS: Access = Access::Read;

    fn token(&self) -> Token {
        token_of(&self.key)
    }

    fn check(&self) -> Result<(), Error> {
        check_key(&self.key)
    }

    fn want(&self, turn: usize) -> Want {
        self.node.map_or_else(|| want_of(&self.consistency, turn), Want::Node)
    }

    fn header(&self, header: Header) -> Header {
        let session = self.client.session_for(&self.consistency);
        let consistency = self.consistency.clone();
        Header { consistency, session, strict: self.strict, ..header }
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

    fn open(&self, reply: v1::GetReply, attempts: u32) -> Result<Found, ConvertError> {
        let receipt = receipt(reply.receipt)?;
        if !reply.found {
            let version = Revision(0);
            return Ok(Found { value: None, version, expires_in: None, receipt, attempts });
        }
        let crc32 = crc32fast::hash(&reply.value);
        if crc32 != reply.value_crc32 {
            let problem = format!("{:08x} was written, {crc32:08x} arrived", reply.value_crc32);
            return Err(ConvertError { field: "value_crc32", problem });
        }
        let version = Revision(reply.version);
        let expires_in = expires_in(reply.deadline_ms, &receipt);
        Ok(Found { value: Some(reply.value), version, expires_in, receipt, attempts })
    }

    fn receipt(output: &Found) -> &Receipt {
        &output.receipt
    }
}
