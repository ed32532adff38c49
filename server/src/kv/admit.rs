//! Checks what requests say before anything else looks at it, and makes them ready for the log. Pure.
//!
//! Invariants: every refusal names the field and its limit, and says NO; a value is checked against the
//! client's checksum before it is proposed. What is ready holds nothing of the request's own buffer.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use annulus_proto::convert::{Header, OpId, header_of, mutation_of, number_of, writer_of};
use annulus_proto::v1;
use annulus_types::limits::{
    BATCH_BYTES, BATCH_ITEMS, DEADLINE_DEFAULT, DEADLINE_MOST, KEY_BYTES, MULTI_GET_KEYS,
    TTL_MS_MOST, VALUE_BYTES,
};
use annulus_types::{Error, Revision, ShardId, Token, routing_key, token_of};
use bytes::Bytes;
use tonic::metadata::MetadataMap;

use crate::deadline::{self, deadline_of};
use crate::operation::{self, Expect, Guard, Item, Op};

/// Fields of a single value and its checksum.
const VALUE: [&str; 2] = ["value", "value_crc32"];

/// A request that may be proposed.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) header: Header,
    /// The shard that the caller means, if it says so.
    pub(super) shard: Option<ShardId>,
    pub(super) token: Token,
    /// The operation, encoded.
    pub(super) body: Bytes,
}

/// Leaves time for the answer to travel before the caller's own clock runs out.
pub(super) fn working_limit(metadata: &MetadataMap) -> Duration {
    deadline::working_limit(deadline_of(metadata).unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MOST))
}

/// Checks a key.
pub(super) fn check_key(field: &str, key: &Bytes) -> Result<(), Error> {
    if key.is_empty() || key.len() > KEY_BYTES {
        let message = format!("must have 1 to {KEY_BYTES} bytes, has {}", key.len());
        return Err(Error::bad_request(field, message));
    }
    Ok(())
}

pub(super) fn multi_get(request: &v1::MultiGetRequest) -> Result<Header, Error> {
    let header = header_of(request.header.as_ref())?;
    let count = request.keys.len();
    if count == 0 || count > MULTI_GET_KEYS {
        let message = format!("must be 1 to {MULTI_GET_KEYS}, are {count}");
        return Err(Error::bad_request("keys", message));
    }
    for key in &request.keys {
        check_key("keys", key)?;
    }
    Ok(header)
}

/// Checks a value, and returns its checksum. `fields` are those of value and checksum.
fn crc_of(fields: [&str; 2], value: &Bytes, told: Option<u32>) -> Result<u32, Error> {
    let [field, crc_field] = fields;
    if value.len() > VALUE_BYTES {
        let message = format!("must have at most {VALUE_BYTES} bytes, has {}", value.len());
        return Err(Error::bad_request(field, message));
    }
    let crc = crc32fast::hash(value);
    match told {
        Some(told) if told != crc => {
            let message = format!("the value's checksum is {crc:08x}, the request says {told:08x}");
            Err(Error::bad_request(crc_field, message))
        }
        _ => Ok(crc),
    }
}

/// Checks a time to live, milliseconds.
fn ttl_of(field: &str, told: Option<u64>) -> Result<Option<NonZeroU64>, Error> {
    let Some(told) = told else { return Ok(None) };
    match NonZeroU64::new(told).filter(|ttl_ms| ttl_ms.get() <= TTL_MS_MOST) {
        Some(ttl_ms) => Ok(Some(ttl_ms)),
        None => {
            let message = format!("must be 1 to {TTL_MS_MOST} ms, is {told}");
            Err(Error::bad_request(field, message))
        }
    }
}

/// A mutation, with its name if the request has one.
fn ready(header: Header, name: Option<OpId>, token: Token, op: &Op) -> Ready {
    let body = match name {
        None => op.encode(),
        Some(OpId { writer, seq, lowest_unacked, .. }) => {
            let id = operation::OpId { writer, seq, lowest_unacked };
            op.encode_named(&id, token)
        }
    };
    Ready { header, shard: None, token, body }
}

pub(super) fn put(request: v1::PutRequest) -> Result<Ready, Error> {
    let (header, name) = mutation_of(request.header.as_ref())?;
    check_key("key", &request.key)?;
    let crc = crc_of(VALUE, &request.value, request.value_crc32)?;
    let ttl_ms = ttl_of("ttl_ms", request.ttl_ms)?;
    let token = token_of(&request.key);
    let namespace = header.namespace;
    let op = Op::Put { namespace, key: request.key, crc, value: request.value, ttl_ms };
    Ok(ready(header, name, token, &op))
}

pub(super) fn cas(request: v1::CasRequest) -> Result<Ready, Error> {
    let (header, name) = mutation_of(request.header.as_ref())?;
    check_key("key", &request.key)?;
    let crc = crc_of(VALUE, &request.value, request.value_crc32)?;
    let ttl_ms = ttl_of("ttl_ms", request.ttl_ms)?;
    let token = token_of(&request.key);
    let expect = match request.expected_version {
        Some(version) => Expect::Version(Revision(version)),
        None => Expect::Absent,
    };
    let namespace = header.namespace;
    let op = Op::Cas { namespace, key: request.key, expect, crc, value: request.value, ttl_ms };
    Ok(ready(header, name, token, &op))
}

pub(super) fn delete(request: v1::DeleteRequest) -> Result<Ready, Error> {
    let (header, name) = mutation_of(request.header.as_ref())?;
    check_key("key", &request.key)?;
    let token = token_of(&request.key);
    let expect = request
        .expected_version
        .map_or(Expect::Anything, |version| Expect::Version(Revision(version)));
    let op = Op::Delete { namespace: header.namespace, key: request.key, expect };
    Ok(ready(header, name, token, &op))
}

pub(super) fn incr(request: v1::IncrRequest) -> Result<Ready, Error> {
    let (header, name) = mutation_of(request.header.as_ref())?;
    check_key("key", &request.key)?;
    let v1::IncrRequest { key, delta, min, max, .. } = request;
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        let message = format!("must not be below min, which is {min}; is {max}");
        return Err(Error::bad_request("max", message));
    }
    let token = token_of(&key);
    let op = Op::Incr { namespace: header.namespace, key, delta, min, max };
    Ok(ready(header, name, token, &op))
}

pub(super) fn open_writer(request: &v1::OpenWriterRequest) -> Result<Ready, Error> {
    let header = header_of(request.header.as_ref())?;
    let token = Token(request.token);
    Ok(ready(header, None, token, &Op::OpenWriter { token }))
}

pub(super) fn close_writer(request: &v1::CloseWriterRequest) -> Result<Ready, Error> {
    let header = header_of(request.header.as_ref())?;
    let token = Token(request.token);
    let writer = writer_of("writer", request.writer)?;
    Ok(ready(header, None, token, &Op::CloseWriter { token, writer }))
}

pub(super) fn op_status(request: &v1::OpStatusRequest) -> Result<Ready, Error> {
    let header = header_of(request.header.as_ref())?;
    let token = Token(request.token);
    let writer = writer_of("writer", request.writer)?;
    let seq = number_of("seq", request.seq)?;
    let asked = ready(header, None, token, &Op::OpStatus { token, writer, seq });
    Ok(Ready { shard: request.shard.map(ShardId), ..asked })
}

/// Reads a batch; returns also which of its items set their keys.
pub(super) fn batch(request: v1::BatchRequest) -> Result<(Ready, Vec<bool>), Error> {
    let (header, name) = mutation_of(request.header.as_ref())?;
    check_lengths(&request)?;
    let token = check_keys(&request)?;
    let guards = guards_of(&request)?;
    let items = items_of(&request)?;
    let sets = items.iter().map(|item| matches!(item, Item::Put { .. })).collect();
    let op = Op::Batch { namespace: header.namespace, guards, items };
    Ok((ready(header, name, token, &op), sets))
}

/// The arrays of a batch belong together, and have their limits.
fn check_lengths(request: &v1::BatchRequest) -> Result<(), Error> {
    let items = request.keys.len();
    if items == 0 || items > BATCH_ITEMS {
        let message = format!("must be 1 to {BATCH_ITEMS}, are {items}");
        return Err(Error::bad_request("keys", message));
    }
    let guards = request.guard_keys.len();
    if guards > BATCH_ITEMS {
        let message = format!("must be at most {BATCH_ITEMS}, are {guards}");
        return Err(Error::bad_request("guard_keys", message));
    }
    let (crcs, ttls) = (request.value_crc32s.len(), request.ttls_ms.len());
    for (field, length, expected) in [
        ("kinds", request.kinds.len(), items),
        ("values", request.values.len(), items),
        ("value_crc32s", crcs, if crcs == 0 { 0 } else { items }),
        ("ttls_ms", ttls, if ttls == 0 { 0 } else { items }),
        ("guard_kinds", request.guard_kinds.len(), guards),
        ("guard_versions", request.guard_versions.len(), guards),
    ] {
        if length != expected {
            let message = format!("must be {expected}, as many as keys, are {length}");
            return Err(Error::bad_request(field, message));
        }
    }
    let arrays = [&request.keys, &request.values, &request.guard_keys];
    let bytes: usize = arrays.into_iter().flatten().map(Bytes::len).sum();
    if bytes > BATCH_BYTES {
        let message = format!("a batch has at most {BATCH_BYTES} bytes in all, this has {bytes}");
        return Err(Error::bad_request("values", message));
    }
    Ok(())
}

/// Every key may be one, items have different ones, and all have one routing key (W6), whose token is
/// returned.
fn check_keys(request: &v1::BatchRequest) -> Result<Token, Error> {
    let mut seen = BTreeSet::new();
    for (place, key) in request.keys.iter().enumerate() {
        check_key("keys", key)?;
        if !seen.insert(key) {
            let message = format!("every key once; item {place} repeats an earlier one");
            return Err(Error::bad_request("keys", message));
        }
    }
    for key in &request.guard_keys {
        check_key("guard_keys", key)?;
    }
    let Some(first) = request.keys.first() else {
        return Err(Error::bad_request("keys", "must be at least one"));
    };
    for (field, keys) in [("keys", &request.keys), ("guard_keys", &request.guard_keys)] {
        let other = keys.iter().position(|key| routing_key(key) != routing_key(first));
        if let Some(place) = other {
            let message = format!(
                "all keys of a batch must have one routing key, so that they stay together; the one \
                 at {place} has another than the first item: give them a common {{tag}}"
            );
            return Err(Error::bad_request(field, message));
        }
    }
    Ok(token_of(first))
}

fn guards_of(request: &v1::BatchRequest) -> Result<Vec<Guard>, Error> {
    let kinds = request.guard_kinds.iter().zip(&request.guard_versions);
    let guards = request.guard_keys.iter().zip(kinds).map(|(key, (kind, version))| {
        let expect = match v1::GuardKind::try_from(*kind) {
            Ok(v1::GuardKind::Absent) => Expect::Absent,
            Ok(v1::GuardKind::Present) => Expect::Present,
            Ok(v1::GuardKind::Version) => Expect::Version(Revision(*version)),
            Ok(v1::GuardKind::Unspecified) | Err(_) => {
                let message = format!("the kind {kind} has no meaning here");
                return Err(Error::bad_request("guard_kinds", message));
            }
        };
        Ok(Guard { key: key.clone(), expect })
    });
    guards.collect()
}

fn items_of(request: &v1::BatchRequest) -> Result<Vec<Item>, Error> {
    let mut items = Vec::with_capacity(request.keys.len());
    let kinds = request.kinds.iter().zip(&request.values);
    for (place, (key, (kind, value))) in request.keys.iter().zip(kinds).enumerate() {
        let ttl_ms = request.ttls_ms.get(place).copied().filter(|ttl_ms| *ttl_ms != 0);
        let ttl_ms = ttl_of("ttls_ms", ttl_ms)?;
        items.push(match v1::BatchKind::try_from(*kind) {
            Ok(v1::BatchKind::Put) => {
                let told = request.value_crc32s.get(place).copied();
                let crc = crc_of(["values", "value_crc32s"], value, told)?;
                Item::Put { key: key.clone(), crc, value: value.clone(), ttl_ms }
            }
            Ok(v1::BatchKind::Delete) if ttl_ms.is_some() => {
                let message = format!("item {place} removes its key and must have 0 here");
                return Err(Error::bad_request("ttls_ms", message));
            }
            Ok(v1::BatchKind::Delete) if value.is_empty() => Item::Delete { key: key.clone() },
            Ok(v1::BatchKind::Delete) => {
                let message = format!("item {place} removes its key and must have an empty value");
                return Err(Error::bad_request("values", message));
            }
            Ok(v1::BatchKind::Unspecified) | Err(_) => {
                let message = format!("the kind {kind} has no meaning here");
                return Err(Error::bad_request("kinds", message));
            }
        });
    }
    Ok(items)
}

#[cfg(test)]
mod tests;
