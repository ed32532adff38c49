//! What a node's key-value service does for a client, without the wire: find the shard, ask its
//! group, look or propose.
//!
//! Values carry a number, by which every write of a run can be told apart, and padding.
//!
//! Invariants, those of the real service: what is refused before the group has it says NO, what the
//! group says is passed on (W4); a read looks at the state in the same step in which it is granted.

use std::sync::Arc;
use std::time::Duration;

use annulus_raft::Group;
use annulus_server::operation::{Expect, Op, OpId, Outcome};
use annulus_server::shards::Shard;
use annulus_types::{Error, ErrorKind, NamespaceId, Revision, Token, token_of};
use bytes::Bytes;

use crate::process::Process;

pub(crate) const NAMESPACE: NamespaceId = NamespaceId(0);

/// What a client asks of a key.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// With `strict`, not on the word of a gate.
    Read {
        strict: bool,
    },
    Put {
        body: Bytes,
    },
    Cas {
        version: Revision,
        body: Bytes,
    },
    Delete,
    /// Opens a writer in the key's shard (W3).
    OpenWriter,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The number in the value and its version, and the revision at which it was read.
    Seen { value: Option<(u64, Revision)>, revision: Revision },
    /// Applied; the version is 0 when the key does not exist now. A writer is named by its revision.
    Done { version: Revision, revision: Revision },
    /// The key is at another version.
    Refused,
}

/// A value of `bytes` bytes, or a little more, that carries `number`.
pub(crate) fn body_of(number: u64, bytes: u64) -> Bytes {
    let mut body = format!("{number}:").into_bytes();
    let padded = usize::try_from(bytes).unwrap_or(usize::MAX).max(body.len());
    body.resize(padded, b'x');
    Bytes::from(body)
}

/// The number in a value.
pub(crate) fn number_of(body: &[u8]) -> Option<u64> {
    let digits = body.split(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A defect: no error of the product, and nothing that a client could do about it.
pub(crate) fn defect(what: impl Into<String>) -> Error {
    Error::unknown(ErrorKind::Internal { id: what.into() })
}

impl Process {
    /// Serves one request, within `limit`. With a name a mutation takes effect once.
    pub(crate) async fn serve(
        &self,
        key: &Bytes,
        request: &Request,
        name: Option<OpId>,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let op = match request {
            Request::Read { strict } => return self.read(key, *strict, limit).await,
            Request::Put { body } => Op::Put {
                namespace: NAMESPACE,
                key: key.clone(),
                crc: crc32fast::hash(body),
                value: body.clone(),
                ttl_ms: None,
            },
            Request::Cas { version, body } => Op::Cas {
                namespace: NAMESPACE,
                key: key.clone(),
                expect: Expect::Version(*version),
                crc: crc32fast::hash(body),
                value: body.clone(),
                ttl_ms: None,
            },
            Request::Delete => {
                Op::Delete { namespace: NAMESPACE, key: key.clone(), expect: Expect::Anything }
            }
            Request::OpenWriter => Op::OpenWriter { token: token_of(key) },
        };
        let body = match name {
            Some(id) => op.encode_named(&id, token_of(key)),
            None => op.encode(),
        };
        let (shard, group) = self.locate(token_of(key)).ok_or_else(not_here)?;
        let proposed = group.propose(shard.id, body, limit).await?;
        match Outcome::decode(proposed.reply) {
            Ok(Outcome::Done { version, revision, .. }) => Ok(Answer::Done { version, revision }),
            Ok(Outcome::PreconditionFailed { .. }) => Ok(Answer::Refused),
            // Applied, and nothing was changed: the log proves it.
            Ok(Outcome::NotHere) => Err(not_here()),
            // A writer that was opened is known, and its names are used once; nothing here counts or asks.
            Ok(other) => Err(defect(format!("{other:?} is no answer to a request"))),
            Err(error) => Err(defect(error.to_string())),
        }
    }

    async fn read(&self, key: &Bytes, strict: bool, limit: Duration) -> Result<Answer, Error> {
        let (shard, group) = self.locate(token_of(key)).ok_or_else(not_here)?;
        group.read_grant(strict, limit).await?;
        let seen = match self.shards.read(&shard, NAMESPACE, key) {
            Ok(Some(seen)) => seen,
            Ok(None) => return Err(not_here()),
            Err(error) => return Err(defect(error.to_string())),
        };
        let value = match seen.value {
            None => None,
            Some(value) => {
                let number = number_of(&value.value);
                let number = number.ok_or_else(|| defect("a value without its number"))?;
                Some((number, value.revision))
            }
        };
        Ok(Answer::Seen { value, revision: seen.head.revision })
    }

    fn locate(&self, token: Token) -> Option<(Arc<Shard>, Arc<Group>)> {
        let shard = self.shards.find(token)?;
        let head = self.shards.head(&shard).ok().flatten()?;
        if !head.owns(token) {
            return None;
        }
        let group = self.host.group(shard.group)?;
        Some((shard, group))
    }
}

fn not_here() -> Error {
    Error::refused(ErrorKind::StaleRoute { routes: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_number_and_have_their_length() {
        for (number, bytes, length) in [(7, 0, 2), (7, 12, 12), (123_456, 3, 7)] {
            let body = body_of(number, bytes);
            assert_eq!((number_of(&body), body.len()), (Some(number), length));
        }
        assert_eq!((number_of(b""), number_of(b"x:1")), (None, None));
    }
}
