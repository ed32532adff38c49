//! Reads operations back. Keys and values share the buffer that they are read from. What is cut short,
//! has bytes left over or is of an unknown kind is an error, the same on every replica.

use std::num::NonZeroU64;

use annulus_types::{Epoch, NamespaceId, Revision, Token};
use bytes::{Buf, Bytes, TryGetError};

use super::{
    BATCH, CAS, CAS_TTL, CLOSE_WRITER, CREATE, DELETE, Expect, Guard, HAS_MAX, HAS_MIN, INCR,
    ITEM_DELETE, ITEM_PUT, ITEM_PUT_TTL, Item, NAMED, OP_STATUS, OPEN_WRITER, Op, OpId, PUT,
    PUT_TTL, Undecodable,
};

fn short(_: TryGetError) -> Undecodable {
    Undecodable("operation")
}

fn take_namespace(bytes: &mut Bytes) -> Result<NamespaceId, Undecodable> {
    bytes.try_get_u32().map(NamespaceId).map_err(short)
}

fn take_token(bytes: &mut Bytes) -> Result<Token, Undecodable> {
    bytes.try_get_u32().map(Token).map_err(short)
}

fn take_revision(bytes: &mut Bytes) -> Result<Revision, Undecodable> {
    bytes.try_get_u64().map(Revision).map_err(short)
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, Undecodable> {
    if bytes.len() < length { Err(Undecodable("operation")) } else { Ok(bytes.split_to(length)) }
}

fn take_key(bytes: &mut Bytes) -> Result<Bytes, Undecodable> {
    let length = usize::from(bytes.try_get_u16().map_err(short)?);
    take(bytes, length)
}

fn take_expect(bytes: &mut Bytes) -> Result<Expect, Undecodable> {
    match bytes.try_get_u8().map_err(short)? {
        0 => Ok(Expect::Anything),
        1 => Ok(Expect::Absent),
        2 => Ok(Expect::Version(take_revision(bytes)?)),
        3 => Ok(Expect::Present),
        _ => Err(Undecodable("expected version")),
    }
}

fn take_ttl(bytes: &mut Bytes, is_given: bool) -> Result<Option<NonZeroU64>, Undecodable> {
    if !is_given {
        return Ok(None);
    }
    let ttl_ms = NonZeroU64::new(bytes.try_get_u64().map_err(short)?);
    ttl_ms.map(Some).ok_or(Undecodable("time to live"))
}

fn take_incr(bytes: &mut Bytes) -> Result<Op, Undecodable> {
    let namespace = take_namespace(bytes)?;
    let delta = bytes.try_get_i64().map_err(short)?;
    let bounds = bytes.try_get_u8().map_err(short)?;
    if bounds & !(HAS_MIN | HAS_MAX) != 0 {
        return Err(Undecodable("bounds"));
    }
    let mut bound = |flag: u8| {
        let is_given = bounds & flag != 0;
        is_given.then(|| bytes.try_get_i64().map_err(short)).transpose()
    };
    let (min, max) = (bound(HAS_MIN)?, bound(HAS_MAX)?);
    Ok(Op::Incr { namespace, key: take_key(bytes)?, delta, min, max })
}

fn take_batch(bytes: &mut Bytes) -> Result<Op, Undecodable> {
    let namespace = take_namespace(bytes)?;
    let mut guards = Vec::new();
    for _ in 0..bytes.try_get_u16().map_err(short)? {
        let expect = take_expect(bytes)?;
        guards.push(Guard { key: take_key(bytes)?, expect });
    }
    let mut items = Vec::new();
    for _ in 0..bytes.try_get_u16().map_err(short)? {
        items.push(match bytes.try_get_u8().map_err(short)? {
            kind @ (ITEM_PUT | ITEM_PUT_TTL) => {
                let ttl_ms = take_ttl(bytes, kind == ITEM_PUT_TTL)?;
                let key = take_key(bytes)?;
                let crc = bytes.try_get_u32().map_err(short)?;
                let length = bytes.try_get_u32().map_err(short)? as usize;
                Item::Put { key, crc, value: take(bytes, length)?, ttl_ms }
            }
            ITEM_DELETE => Item::Delete { key: take_key(bytes)? },
            _ => return Err(Undecodable("item kind")),
        });
    }
    Ok(Op::Batch { namespace, guards, items })
}

impl Op {
    /// Reads the stored form; keys and values share its buffer.
    ///
    /// # Errors
    /// When it is cut short, has bytes left over, or is of an unknown kind. What a name stands
    /// before is not looked at.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        let op = match bytes.try_get_u8().map_err(short)? {
            kind @ (PUT | PUT_TTL) => {
                let namespace = take_namespace(&mut bytes)?;
                let ttl_ms = take_ttl(&mut bytes, kind == PUT_TTL)?;
                let key = take_key(&mut bytes)?;
                let crc = bytes.try_get_u32().map_err(short)?;
                Self::Put { namespace, key, crc, value: std::mem::take(&mut bytes), ttl_ms }
            }
            DELETE => {
                let namespace = take_namespace(&mut bytes)?;
                let expect = take_expect(&mut bytes)?;
                Self::Delete { namespace, expect, key: take_key(&mut bytes)? }
            }
            kind @ (CAS | CAS_TTL) => {
                let namespace = take_namespace(&mut bytes)?;
                let ttl_ms = take_ttl(&mut bytes, kind == CAS_TTL)?;
                let expect = take_expect(&mut bytes)?;
                let key = take_key(&mut bytes)?;
                let crc = bytes.try_get_u32().map_err(short)?;
                let value = std::mem::take(&mut bytes);
                Self::Cas { namespace, key, expect, crc, value, ttl_ms }
            }
            CREATE => {
                let first = bytes.try_get_u16().map_err(short)?;
                let count = bytes.try_get_u16().map_err(short)?;
                Self::Create { first, count, epoch: Epoch(bytes.try_get_u64().map_err(short)?) }
            }
            NAMED => {
                let writer = take_revision(&mut bytes)?;
                let seq = bytes.try_get_u64().map_err(short)?;
                let lowest_unacked = bytes.try_get_u64().map_err(short)?;
                let id = OpId { writer, seq, lowest_unacked };
                let token = take_token(&mut bytes)?;
                Self::Named { id, token, body: std::mem::take(&mut bytes) }
            }
            OPEN_WRITER => Self::OpenWriter { token: take_token(&mut bytes)? },
            CLOSE_WRITER => {
                let token = take_token(&mut bytes)?;
                Self::CloseWriter { token, writer: take_revision(&mut bytes)? }
            }
            OP_STATUS => {
                let token = take_token(&mut bytes)?;
                let writer = take_revision(&mut bytes)?;
                Self::OpStatus { token, writer, seq: bytes.try_get_u64().map_err(short)? }
            }
            INCR => take_incr(&mut bytes)?,
            BATCH => take_batch(&mut bytes)?,
            _ => return Err(Undecodable("operation kind")),
        };
        if bytes.has_remaining() { Err(Undecodable("operation")) } else { Ok(op) }
    }
}
