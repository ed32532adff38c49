//! Judges one operation on one key: does its condition hold, and what changes. Pure; what the engine
//! holds for the key is given.

use annulus_engine::Batch;
use annulus_engine::key::{self, Prefix};
use annulus_types::{Revision, Token, token_of};
use bytes::Bytes;

use crate::operation::{Expect, Op, Outcome};
use crate::stored::{Head, Value};

/// What is known of a key while an entry is applied.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) version: Revision,
    pub(super) bytes: u64,
}

impl Op {
    /// The token and physical key that the operation is about.
    pub(super) fn physical(&self, prefix: Prefix) -> Option<(Token, Bytes)> {
        let (namespace, user_key) = match self {
            Self::Put { namespace, key, .. }
            | Self::Delete { namespace, key, .. }
            | Self::Cas { namespace, key, .. } => (*namespace, key),
            Self::Create { .. } => return None,
        };
        let token = token_of(user_key);
        Some((token, key::data(prefix, namespace, token, user_key)))
    }

    fn user_key_bytes(&self) -> u64 {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Cas { key, .. } => {
                key.len() as u64
            }
            Self::Create { .. } => 0,
        }
    }
}

fn holds(expect: Expect, found: Option<Known>) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::Absent => found.is_none(),
        Expect::Version(version) => found.is_some_and(|known| known.version == version),
    }
}

/// Judges one operation on a key and puts its change into the batch.
pub(super) fn apply_to_key(
    op: Op,
    physical: Bytes,
    found: Option<Known>,
    head: &mut Head,
    shard_time_ms: u64,
    batch: &mut Batch,
) -> (Outcome, Option<Known>) {
    let key_bytes = op.user_key_bytes();
    let done = |head: &Head, version| Outcome::Done {
        version,
        revision: head.revision,
        epoch: head.epoch,
        shard_time_ms,
    };
    let (expect, value) = match op {
        Op::Put { crc, value, .. } => (Expect::Anything, Some((crc, value))),
        Op::Cas { expect, crc, value, .. } => (expect, Some((crc, value))),
        Op::Delete { expect, .. } => (expect, None),
        Op::Create { .. } => return (Outcome::NotHere, found),
    };
    if !holds(expect, found) {
        let current = found.map(|known| known.version);
        return (Outcome::PreconditionFailed { current }, found);
    }
    if let Some(known) = found {
        head.bytes = head.bytes.saturating_sub(known.bytes + key_bytes);
        head.keys = head.keys.saturating_sub(1);
    }
    match value {
        Some((crc, value)) => {
            head.revision.0 += 1;
            head.keys += 1;
            let held = value.len() as u64;
            head.bytes += held + key_bytes;
            let stored = Value { revision: head.revision, deadline_ms: 0, crc, value };
            batch.put(physical, stored.encode());
            let known = Known { version: head.revision, bytes: held };
            (done(head, head.revision), Some(known))
        }
        None if found.is_none() => (done(head, Revision(0)), None),
        None => {
            head.revision.0 += 1;
            batch.delete(physical);
            (done(head, Revision(0)), None)
        }
    }
}
