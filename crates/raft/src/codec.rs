//! How an entry's payload is stored in the log and sent to peers, and how a membership is stored.
//!
//! ```text
//! payload      kind u8 | body          kind 0: blank, no body; 1: a command; 2: a membership
//! membership   configs u8 | per config: voters u16 | replica u64 ...
//!              seats u16 | per seat: replica u64 | node u32
//! stored       has log id u8 | term u64 | leader u64 | index u64 | membership
//! ```
//!
//! Numbers are big-endian. The kind byte doubles as a version: a new layout takes a new kind.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::NodeId;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{
    Command, LeaderId, LogId, Malformed, Membership, Payload, Seat, StoredMembership,
};

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub(crate) fn encode_payload(payload: &Payload) -> Bytes {
    let mut out = BytesMut::new();
    match payload {
        Payload::Blank => out.put_u8(BLANK),
        Payload::Normal(command) => {
            out.reserve(1 + command.0.len());
            out.put_u8(COMMAND);
            out.put_slice(&command.0);
        }
        Payload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            encode_membership(membership, &mut out);
        }
    }
    out.freeze()
}

pub(crate) fn decode_payload(mut bytes: Bytes) -> Result<Payload, Malformed> {
    match bytes.try_get_u8().map_err(|_| Malformed("empty payload"))? {
        BLANK => Ok(Payload::Blank),
        COMMAND => Ok(Payload::Normal(Command(bytes))),
        MEMBERSHIP => Ok(Payload::Membership(decode_membership(&mut bytes)?)),
        _ => Err(Malformed("payload kind")),
    }
}

fn encode_membership(membership: &Membership, out: &mut BytesMut) {
    let configs = membership.get_joint_config();
    out.put_u8(u8::try_from(configs.len()).unwrap_or(u8::MAX));
    for config in configs {
        out.put_u16(u16::try_from(config.len()).unwrap_or(u16::MAX));
        config.iter().for_each(|replica| out.put_u64(*replica));
    }
    out.put_u16(u16::try_from(membership.nodes().count()).unwrap_or(u16::MAX));
    for (replica, seat) in membership.nodes() {
        out.put_u64(*replica);
        out.put_u32(seat.node.0);
    }
}

fn decode_membership(bytes: &mut Bytes) -> Result<Membership, Malformed> {
    let short = |_| Malformed("membership is cut short");
    let mut configs = Vec::new();
    for _ in 0..bytes.try_get_u8().map_err(short)? {
        let mut config = BTreeSet::new();
        for _ in 0..bytes.try_get_u16().map_err(short)? {
            config.insert(bytes.try_get_u64().map_err(short)?);
        }
        configs.push(config);
    }
    let mut seats = BTreeMap::new();
    for _ in 0..bytes.try_get_u16().map_err(short)? {
        let replica = bytes.try_get_u64().map_err(short)?;
        let node = NodeId(bytes.try_get_u32().map_err(short)?);
        seats.insert(replica, Seat { node });
    }
    Membership::new(configs, seats).map_err(|_| Malformed("membership without its seats"))
}

pub(crate) fn encode_log_id(id: Option<&LogId>, out: &mut BytesMut) {
    out.put_u8(u8::from(id.is_some()));
    let (term, leader, index) = id.map_or((0, 0, 0), |id| {
        let leader = id.committed_leader_id();
        (leader.term, leader.node_id, id.index)
    });
    out.put_u64(term);
    out.put_u64(leader);
    out.put_u64(index);
}

pub(crate) fn decode_log_id(bytes: &mut Bytes) -> Result<Option<LogId>, Malformed> {
    let short = |_| Malformed("log id is cut short");
    let present = bytes.try_get_u8().map_err(short)? == 1;
    let term = bytes.try_get_u64().map_err(short)?;
    let node_id = bytes.try_get_u64().map_err(short)?;
    let index = bytes.try_get_u64().map_err(short)?;
    Ok(present.then(|| LogId::new(LeaderId { term, node_id }, index)))
}

pub(crate) fn encode_stored(stored: &StoredMembership, out: &mut BytesMut) {
    encode_log_id(stored.log_id().as_ref(), out);
    encode_membership(stored.membership(), out);
}

pub(crate) fn decode_stored(bytes: &mut Bytes) -> Result<StoredMembership, Malformed> {
    let id = decode_log_id(bytes)?;
    if bytes.is_empty() {
        return Err(Malformed("stored membership is cut short"));
    }
    Ok(StoredMembership::new(id, decode_membership(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Membership {
        let seats: BTreeMap<u64, Seat> =
            (1..=4).map(|id| (id, Seat { node: NodeId(id as u32 * 10) })).collect();
        Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])], seats).unwrap()
    }

    #[test]
    fn payloads_round_trip_and_their_bytes_are_pinned() {
        for payload in [
            Payload::Blank,
            Payload::Normal(Command(Bytes::from_static(b"abc"))),
            Payload::Membership(joint()),
        ] {
            assert_eq!(decode_payload(encode_payload(&payload)).unwrap(), payload);
        }
        assert_eq!(encode_payload(&Payload::Blank).as_ref(), [0]);
        let one = Membership::new(
            vec![BTreeSet::from([7])],
            BTreeMap::from([(7, Seat { node: NodeId(3) })]),
        );
        assert_eq!(
            encode_payload(&Payload::Membership(one.unwrap())).as_ref(),
            [2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3]
        );
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = encode_payload(&Payload::Membership(joint()));
        for end in 0..whole.len() {
            assert!(decode_payload(whole.slice(..end)).is_err(), "{end}");
        }
        let mut out = BytesMut::new();
        let id = LogId::new(LeaderId { term: 3, node_id: 9 }, 12);
        encode_stored(&StoredMembership::new(Some(id), joint()), &mut out);
        let whole = out.freeze();
        for end in 0..whole.len() {
            assert!(decode_stored(&mut whole.slice(..end)).is_err(), "{end}");
        }
        let stored = decode_stored(&mut whole.clone()).unwrap();
        assert_eq!((*stored.log_id(), stored.membership()), (Some(id), &joint()));
    }
}
