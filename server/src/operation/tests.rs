//! The bytes of operations and replies.

use super::*;

const DEFAULT: NamespaceId = NamespaceId(0);

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn value() -> Bytes {
    Bytes::from_static(b"v")
}

fn put() -> Op {
    Op::Put { namespace: DEFAULT, key: key(), crc: 9, value: value(), ttl_ms: None }
}

fn id() -> OpId {
    OpId { writer: Revision(7), seq: 3, lowest_unacked: 2 }
}

fn pin(op: Op, bytes: &'static [u8]) -> (Op, &'static [u8]) {
    (op, bytes)
}

/// Every kind, with the bytes that it has in a log.
fn pinned() -> Vec<(Op, &'static [u8])> {
    let (token, writer) = (Token(0x0102_0304), Revision(7));
    let guards = vec![
        Guard { key: key(), expect: Expect::Version(Revision(3)) },
        Guard { key: key(), expect: Expect::Present },
    ];
    let set = |ttl_ms| Item::Put { key: key(), crc: 9, value: value(), ttl_ms };
    let items = vec![set(None), Item::Delete { key: key() }];
    let ttl_ms = NonZeroU64::new(0x0102);
    let expect = Expect::Version(Revision(3));
    let incr = |min, max| Op::Incr { namespace: DEFAULT, key: key(), delta: -1, min, max };
    vec![
        pin(put(), b"\x01\0\0\0\0\0\x01k\0\0\0\x09v"),
        pin(
            Op::Delete { namespace: DEFAULT, key: key(), expect: Expect::Anything },
            b"\x02\0\0\0\0\0\0\x01k",
        ),
        pin(
            Op::Delete { namespace: DEFAULT, key: key(), expect: Expect::Absent },
            b"\x02\0\0\0\0\x01\0\x01k",
        ),
        pin(
            Op::Cas {
                namespace: DEFAULT,
                key: key(),
                expect,
                crc: 9,
                value: value(),
                ttl_ms: None,
            },
            b"\x03\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\x01k\0\0\0\x09v",
        ),
        pin(
            Op::Create { first: 8, count: 8, epoch: Epoch(1) },
            b"\x04\0\x08\0\x08\0\0\0\0\0\0\0\x01",
        ),
        pin(
            Op::Named { id: id(), token, body: put().encode() },
            b"\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\x01\x02\x03\x04\
              \x01\0\0\0\0\0\x01k\0\0\0\x09v",
        ),
        pin(Op::OpenWriter { token }, b"\x06\x01\x02\x03\x04"),
        pin(Op::CloseWriter { token, writer }, b"\x07\x01\x02\x03\x04\0\0\0\0\0\0\0\x07"),
        pin(
            Op::OpStatus { token, writer, seq: 3 },
            b"\x08\x01\x02\x03\x04\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x03",
        ),
        pin(incr(None, None), b"\x09\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\x01k"),
        pin(
            incr(None, Some(5)),
            b"\x09\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\0\0\0\x05\0\x01k",
        ),
        pin(
            incr(Some(1), Some(5)),
            b"\x09\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x03\0\0\0\0\0\0\0\x01\
              \0\0\0\0\0\0\0\x05\0\x01k",
        ),
        pin(
            Op::Batch { namespace: DEFAULT, guards, items },
            b"\x0a\0\0\0\0\0\x02\x02\0\0\0\0\0\0\0\x03\0\x01k\x03\0\x01k\
              \0\x02\x01\0\x01k\0\0\0\x09\0\0\0\x01v\x02\0\x01k",
        ),
        pin(
            Op::Batch { namespace: DEFAULT, guards: Vec::new(), items: vec![set(ttl_ms)] },
            b"\x0a\0\0\0\0\0\0\0\x01\x03\0\0\0\0\0\0\x01\x02\0\x01k\0\0\0\x09\
              \0\0\0\x01v",
        ),
        pin(
            Op::Put { namespace: DEFAULT, key: key(), crc: 9, value: value(), ttl_ms },
            b"\x0b\0\0\0\0\0\0\0\0\0\0\x01\x02\0\x01k\0\0\0\x09v",
        ),
        pin(
            Op::Cas { namespace: DEFAULT, key: key(), expect, crc: 9, value: value(), ttl_ms },
            b"\x0c\0\0\0\0\0\0\0\0\0\0\x01\x02\x02\0\0\0\0\0\0\0\x03\0\x01k\
              \0\0\0\x09v",
        ),
    ]
}

#[test]
fn operations_round_trip_and_their_bytes_are_pinned() {
    for (op, bytes) in pinned() {
        assert_eq!(op.encode(), bytes, "{op:?}");
        assert_eq!(Op::decode(Bytes::from_static(bytes)), Ok(op));
    }
    assert!(Op::decode(Bytes::new()).is_err());
    assert!(Op::decode(Bytes::from_static(b"\x0d")).is_err());
    let at_once = b"\x0b\0\0\0\0\0\0\0\0\0\0\0\0\0\x01k\0\0\0\x09v";
    assert_eq!(Op::decode(Bytes::from_static(at_once)), Err(Undecodable("time to live")));
}

#[test]
fn what_is_cut_short_or_too_long_does_not_decode() {
    for (op, bytes) in pinned() {
        // These end in something that may have any length.
        let open_end = match op {
            Op::Put { .. } | Op::Cas { .. } => Some(1),
            Op::Named { .. } => Some(put().encode().len()),
            _ => None,
        };
        for length in 0..bytes.len() - open_end.unwrap_or(0) {
            let cut = Op::decode(Bytes::from_static(&bytes[..length]));
            assert!(cut.is_err(), "{length} bytes of {op:?} are {cut:?}");
        }
        let longer = Op::decode(Bytes::from([bytes, &b"\0"[..]].concat()));
        assert_eq!(longer.is_err(), open_end.is_none(), "{longer:?}");
    }
}

#[test]
fn a_name_goes_before_the_bytes_of_its_mutation() {
    let token = Token(0x0102_0304);
    for (op, _) in pinned().into_iter().filter(|(op, _)| op.is_mutation()) {
        let named = Op::Named { id: id(), token, body: op.encode() };
        assert_eq!(op.encode_named(&id(), token), named.encode());
    }
}

#[test]
fn no_encoding_outgrows_what_was_set_aside_for_it() {
    for (op, bytes) in pinned() {
        assert!(op.bytes_most() >= bytes.len(), "{op:?}");
    }
}

#[test]
fn replies_round_trip_and_their_bytes_are_pinned() {
    let at = Point { revision: Revision(7), epoch: Epoch(1), shard_time_ms: 8 };
    let point = b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x08";
    let status = |finding| Outcome::Status { finding, at };
    let applied = |number| Finding::Applied { version: Revision(5), revision: Revision(6), number };
    let with_point = |before: &[u8], after: &[u8]| [before, &point[..], after].concat();
    let pinned = [
        (Outcome::done(Revision(5), at), with_point(b"\0\0\0\0\0\0\0\0\x05", b"")),
        (Outcome::PreconditionFailed { current: None }, b"\x01\0\0\0\0\0\0\0\0\0".to_vec()),
        (
            Outcome::PreconditionFailed { current: Some(Revision(3)) },
            b"\x01\x01\0\0\0\0\0\0\0\x03".to_vec(),
        ),
        (Outcome::NotHere, b"\x02".to_vec()),
        (Outcome::OpIdReused, b"\x03".to_vec()),
        (Outcome::WriterExpired, b"\x04".to_vec()),
        (Outcome::OutsideWindow, b"\x05".to_vec()),
        (Outcome::WritersFull, b"\x06".to_vec()),
        (
            Outcome::Counted { number: -2, at },
            with_point(b"\x07\xff\xff\xff\xff\xff\xff\xff\xfe", b""),
        ),
        (Outcome::OutOfBounds { number: 2, at }, with_point(b"\x08\0\0\0\0\0\0\0\x02", b"")),
        (Outcome::NotANumber { at }, with_point(b"\x09", b"")),
        (
            status(applied(Some(4))),
            with_point(b"\x0a", b"\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\x01\0\0\0\0\0\0\0\x04"),
        ),
        (
            status(applied(None)),
            with_point(b"\x0a", b"\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\0\0"),
        ),
        (status(Finding::Failed), with_point(b"\x0a", b"\x01")),
        (status(Finding::NotApplied), with_point(b"\x0a", b"\x02")),
        (status(Finding::NotKept), with_point(b"\x0a", b"\x03")),
        (status(Finding::Ended), with_point(b"\x0a", b"\x04")),
    ];
    for (outcome, bytes) in pinned {
        assert_eq!(outcome.encode(), bytes, "{outcome:?}");
        assert_eq!(outcome.encoded_len(), bytes.len(), "{outcome:?}");
        for length in 0..bytes.len() {
            assert!(Outcome::decode(Bytes::copy_from_slice(&bytes[..length])).is_err());
        }
        assert_eq!(Outcome::decode(Bytes::from(bytes)), Ok(outcome));
    }
    assert!(Outcome::decode(Bytes::from_static(b"\x0b")).is_err());
}
