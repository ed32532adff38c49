//! Multi-get: several keys, of any shards.

use std::fmt;
use std::time::Duration;

use annulus_proto::convert::Header;
use annulus_proto::v1;
use annulus_types::Consistency;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tonic::transport::Channel;

use super::batch::shown;
use super::read::{Found, want_of};
use super::{check_key, kv};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::error::Error;
use crate::routes::Want;

/// Why several keys could not be read: what became of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// The key.
    pub key: Bytes,
    /// What went wrong with it. Nothing was changed.
    pub error: Box<Error>,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", shown(&self.key), self.error)
    }
}

impl std::error::Error for KeyError {}

impl From<KeyError> for Error {
    fn from(failed: KeyError) -> Self {
        *failed.error
    }
}

/// Reads several keys. See [`Client::multi_get`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct MultiGet {
    client: Client,
    deadline: Option<Duration>,
    keys: Vec<Bytes>,
    consistency: Consistency,
}

impl MultiGet {
    pub(crate) fn new(client: Client, keys: Vec<Bytes>) -> Self {
        let consistency = client.default_consistency();
        Self { client, deadline: None, keys, consistency }
    }

    /// The deadline of this call, all attempts included; at most 60 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The consistency asked for, of each shard by itself. Default: linearizable, in a session `session`.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    pub(crate) fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    /// Refuses what cannot be sent.
    pub(crate) fn check(&self) -> Result<(), KeyError> {
        for key in &self.keys {
            check_key(key)
                .map_err(|error| KeyError { key: key.clone(), error: Box::new(error.into()) })?;
        }
        Ok(())
    }

    pub(crate) fn want(&self, turn: usize) -> Want {
        want_of(&self.consistency, turn)
    }

    pub(crate) fn header(&self, header: Header) -> Header {
        let session = self.client.session_for(&self.consistency);
        Header { consistency: self.consistency.clone(), session, ..header }
    }

    /// Asks for some of the keys.
    pub(crate) fn send(
        channel: Channel,
        header: v1::RequestHeader,
        keys: Vec<Bytes>,
        limit: Duration,
    ) -> Sending<v1::MultiGetReply> {
        let message = v1::MultiGetRequest { header: Some(header), keys };
        let mut kv = kv(channel);
        Box::pin(async move { kv.multi_get(timed(message, limit)).await })
    }
}

impl IntoFuture for MultiGet {
    type Output = Result<Vec<Found>, KeyError>;
    type IntoFuture = BoxFuture<'static, Result<Vec<Found>, KeyError>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.read_many(&self, self.deadline).await })
    }
}
