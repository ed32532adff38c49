//! Batch: several keys of one routing key, all or none.
//!
//! Invariant (W6): a batch whose keys have different routing keys is refused here, at once, also when they
//! share a shard today: after the shard was divided it could never be applied again.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_proto::convert::ConvertError;
use annulus_proto::v1;
use annulus_types::limits::{BATCH_BYTES, BATCH_ITEMS, KEY_BYTES};
use annulus_types::{Error, Receipt, Revision, Token, routing_key, token_of};
use bytes::Bytes;
use tonic::transport::Channel;

use super::{Call, OpReport, check_ttl, kv, receipt, settled_receipt, ttl_ms};
use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::retry::Access;

/// Characters of a key that an error shows: enough to know it by.
const SHOWN: usize = 64;

/// The answer to a batch that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchWritten {
    /// Of each change, in the order in which they were given, the key's version now; 0 when the key does not
    /// exist now.
    pub versions: Vec<Revision>,
    /// Where, when and on whose word. Its revision is the shard's after the batch.
    pub receipt: Receipt,
    /// Attempts that it took, the successful one included.
    pub attempts: u32,
}

/// Changes several keys, all or none. See [`Client::batch`].
#[derive(Clone, Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Batch {
    client: Client,
    deadline: Option<Duration>,
    changes: Vec<Change>,
    guards: Vec<Guard>,
}

#[derive(Clone, Debug)]
struct Change {
    key: Bytes,
    /// `None` removes the key.
    value: Option<Bytes>,
    /// Of a value.
    ttl: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Guard {
    key: Bytes,
    kind: v1::GuardKind,
    version: Revision,
}

awaitable!(Batch => BatchWritten);

impl Batch {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, deadline: None, changes: Vec::new(), guards: Vec::new() }
    }

    /// Sets a key. A key is changed once in a batch.
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.changes.push(Change { key: key.into(), value: Some(value.into()), ttl: None });
        self
    }

    /// Sets a key that ends after some time. See [`Put::ttl`](super::Put::ttl).
    pub fn put_with_ttl(
        mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Self {
        let (key, value) = (key.into(), Some(value.into()));
        self.changes.push(Change { key, value, ttl: Some(ttl) });
        self
    }

    /// Removes a key. Removing an absent key changes nothing and is no error.
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.changes.push(Change { key: key.into(), value: None, ttl: None });
        self
    }

    /// Only if this key does not exist; otherwise nothing is changed, and the call fails as
    /// `PreconditionFailed`. So it is with the other conditions.
    pub fn expect_absent(self, key: impl Into<Bytes>) -> Self {
        self.expect(key.into(), v1::GuardKind::Absent, Revision(0))
    }

    /// Only if this key exists.
    pub fn expect_present(self, key: impl Into<Bytes>) -> Self {
        self.expect(key.into(), v1::GuardKind::Present, Revision(0))
    }

    /// Only if this key is at this version.
    pub fn expect_version(self, key: impl Into<Bytes>, version: Revision) -> Self {
        self.expect(key.into(), v1::GuardKind::Version, version)
    }

    fn expect(mut self, key: Bytes, kind: v1::GuardKind, version: Revision) -> Self {
        self.guards.push(Guard { key, kind, version });
        self
    }

    /// All keys: those that are changed, then those of the conditions.
    fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let changed = self.changes.iter().map(|change| &change.key);
        changed.chain(self.guards.iter().map(|guard| &guard.key))
    }

    fn check_amounts(&self) -> Result<(), Error> {
        let (changes, guards) = (self.changes.len(), self.guards.len());
        if changes == 0 || changes > BATCH_ITEMS {
            let message = format!("1 to {BATCH_ITEMS} changes, got {changes}");
            return Err(Error::bad_request("keys", message));
        }
        if guards > BATCH_ITEMS {
            let message = format!("at most {BATCH_ITEMS} conditions, got {guards}");
            return Err(Error::bad_request("guard_keys", message));
        }
        let values = self.changes.iter().filter_map(|change| change.value.as_ref());
        let bytes: usize = self.keys().chain(values).map(Bytes::len).sum();
        if bytes > BATCH_BYTES {
            let message = format!("at most {BATCH_BYTES} bytes of keys and values, got {bytes}");
            return Err(Error::bad_request("values", message));
        }
        self.changes.iter().try_for_each(|change| check_ttl("ttls_ms", change.ttl))
    }

    fn check_keys(&self) -> Result<(), Error> {
        let mut first: Option<&Bytes> = None;
        for key in self.keys() {
            if key.is_empty() || key.len() > KEY_BYTES {
                let message = format!("1 to {KEY_BYTES} bytes each, got {}", key.len());
                return Err(Error::bad_request("keys", message));
            }
            let first = *first.get_or_insert(key);
            if routing_key(first) != routing_key(key) {
                let message = format!(
                    "all keys of a batch must have one routing key, so that they stay together; {} \
                     and {} have not: give them a common {{tag}}",
                    shown(first),
                    shown(key)
                );
                return Err(Error::bad_request("keys", message));
            }
        }
        let mut seen = BTreeSet::new();
        for change in &self.changes {
            if !seen.insert(&change.key) {
                let message = format!("each key once, got {} twice", shown(&change.key));
                return Err(Error::bad_request("keys", message));
            }
        }
        Ok(())
    }
}

/// A key for a person: quoted, and cut when it is long.
pub(super) fn shown(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    let cut: String = text.chars().take(SHOWN).collect();
    let rest = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{rest}")
}

impl Call for Batch {
    type Reply = v1::BatchReply;
    type Output = BatchWritten;
    const ACCESS: Access = Access::Write;

    fn token(&self) -> Token {
        self.changes.first().map(|change| token_of(&change.key)).unwrap_or_default()
    }

    fn check(&self) -> Result<(), Error> {
        self.check_amounts()?;
        self.check_keys()
    }

    fn send(
        &self,
        channel: Channel,
        header: v1::RequestHeader,
        limit: Duration,
    ) -> Sending<v1::BatchReply> {
        let mut message = v1::BatchRequest { header: Some(header), ..Default::default() };
        for Change { key, value, ttl } in &self.changes {
            let kind = match value {
                Some(_) => v1::BatchKind::Put,
                None => v1::BatchKind::Delete,
            };
            let value = value.clone().unwrap_or_default();
            message.keys.push(key.clone());
            message.kinds.push(kind.into());
            message.value_crc32s.push(crc32fast::hash(&value));
            message.values.push(value);
            // 0 is none.
            message.ttls_ms.push(ttl.map_or(0, ttl_ms));
        }
        for Guard { key, kind, version } in &self.guards {
            message.guard_keys.push(key.clone());
            message.guard_kinds.push((*kind).into());
            message.guard_versions.push(version.0);
        }
        let mut kv = kv(channel);
        Box::pin(async move { kv.batch(timed(message, limit)).await })
    }

    fn open(&self, reply: v1::BatchReply, attempts: u32) -> Result<BatchWritten, ConvertError> {
        let (told, asked) = (reply.versions.len(), self.changes.len());
        if told != asked {
            let problem = format!("{asked} expected, got {told}");
            return Err(ConvertError { field: "versions", problem });
        }
        Ok(BatchWritten {
            versions: reply.versions.into_iter().map(Revision).collect(),
            receipt: receipt(reply.receipt)?,
            attempts,
        })
    }

    fn settled(&self, report: &OpReport, attempts: u32) -> Option<BatchWritten> {
        let version = |change: &Change| match change.value {
            Some(_) => report.version,
            None => Revision(0),
        };
        Some(BatchWritten {
            versions: self.changes.iter().map(version).collect(),
            receipt: settled_receipt(report),
            attempts,
        })
    }

    fn receipt(output: &BatchWritten) -> &Receipt {
        &output.receipt
    }
}
