//! The bytes are pinned, the limits hold, and merging is a join.

use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;
use crate::{Epoch, Mode, NodeId, ReplicaId, Role, ServedBy, TableVersion};

const CLUSTER: ClusterId = ClusterId([0xab; 16]);

fn token(seen: impl IntoIterator<Item = (u64, u64)>) -> SessionToken {
    let mut token = SessionToken::new(CLUSTER);
    for (shard, revision) in seen {
        token.observe(&receipt(shard, revision)).unwrap();
    }
    token
}

fn receipt(shard: u64, revision: u64) -> Receipt {
    Receipt {
        mode: Mode::Session,
        shard: ShardId(shard),
        epoch: Epoch(1),
        node: NodeId(1),
        replica: ReplicaId(1),
        role: Role::Follower,
        served_by: ServedBy::Local,
        term: 1,
        revision: Revision(revision),
        staleness_bound_us: None,
        shard_time_ms: 0,
        table_version: TableVersion(0),
    }
}

fn merged(one: &SessionToken, other: &SessionToken) -> SessionToken {
    let mut merged = one.clone();
    merged.merge(other).unwrap();
    merged
}

/// The bytes with a checksum that is right for them.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(body).to_be_bytes());
    bytes
}

#[test]
fn the_layout_is_pinned() {
    let nothing = SessionToken::new(CLUSTER).encode();
    let mut expected = vec![1];
    expected.extend_from_slice(&[0xab; 16]);
    expected.extend_from_slice(&0xdb72_52a9_u32.to_be_bytes());
    assert_eq!(nothing, expected);

    let token = token([((1 << 32) + 16, 1 << 40), (3, 7)]);
    let mut expected = vec![1];
    expected.extend_from_slice(&[0xab; 16]);
    expected.extend_from_slice(b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x07");
    expected.extend_from_slice(b"\0\0\0\x01\0\0\0\x10\0\0\x01\0\0\0\0\0");
    expected.extend_from_slice(b"\x6f\x9a\x3c\x1d");
    assert_eq!(token.encode(), expected);
    assert_eq!(SessionToken::decode(&expected), Ok(token));
}

#[test]
fn a_receipt_raises_its_shard_and_no_other() {
    let mut token = token([(3, 7)]);
    token.observe(&receipt(3, 5)).unwrap();
    assert_eq!((token.get(ShardId(3)), token.get(ShardId(4))), (Revision(7), Revision(0)));
    token.observe(&receipt(3, 9)).unwrap();
    token.observe(&receipt(4, 0)).unwrap();
    assert_eq!((token.get(ShardId(3)), token.shards()), (Revision(9), 1));
}

#[test]
fn every_shard_of_a_cluster_has_room_and_a_full_token_stays_as_it_is() {
    let whole_cluster = token((0..u64::from(limits::SHARDS)).map(|shard| (shard, 1 << 52)));
    assert_eq!(whole_cluster.encode().len(), 16_405);

    assert_eq!(SHARDS_MOST, 4_094);
    let mut full = token((1..=4_094).map(|shard| (shard, shard)));
    let bytes = full.encode();
    assert!(bytes.len() <= SESSION_TOKEN_BYTES && bytes.len() + SHARD_BYTES > SESSION_TOKEN_BYTES);
    assert_eq!(SessionToken::decode(&bytes), Ok(full.clone()));

    assert_eq!(full.observe(&receipt(5_000, 1)), Err(SessionError::Full));
    assert_eq!(full.merge(&token([(1, 9), (5_000, 1)])), Err(SessionError::Full));
    assert_eq!(full.get(ShardId(1)), Revision(1), "nothing of it was taken in");
    full.observe(&receipt(1, 9)).unwrap();
    assert_eq!(full.get(ShardId(1)), Revision(9), "what it knows may rise");
}

#[test]
fn a_token_of_another_cluster_is_not_taken_in() {
    let other = ClusterId([1; 16]);
    let mut token = token([(3, 7)]);
    let expected = SessionError::OtherCluster { own: CLUSTER, other };
    assert_eq!(token.merge(&SessionToken::new(other)), Err(expected));
}

#[test]
fn what_is_no_token_is_refused_for_its_reason() {
    let good = token([(3, 7), (4, 8)]).encode();
    let body = &good[..good.len() - CRC_BYTES];
    let refused = |bytes: &[u8]| SessionToken::decode(bytes).unwrap_err();
    assert_eq!(refused(b""), BadSessionToken::CutShort);
    assert_eq!(refused(&[1, 2, 3]), BadSessionToken::CutShort);
    assert_eq!(refused(&sealed(&[1; 16])), BadSessionToken::CutShort, "half a cluster");
    assert_eq!(refused(&sealed(&body[..body.len() - 1])), BadSessionToken::CutShort);
    assert_eq!(refused(&good[..good.len() - SHARD_BYTES]), BadSessionToken::Checksum);
    let long = vec![1; SESSION_TOKEN_BYTES + 1];
    assert_eq!(refused(&long), BadSessionToken::TooLong(SESSION_TOKEN_BYTES + 1));
    let later = sealed(&[&[2][..], &body[1..]].concat());
    assert_eq!(refused(&later), BadSessionToken::Version(2));

    let (head, pairs) = body.split_at(1 + CLUSTER_BYTES);
    let (first, second) = pairs.split_at(SHARD_BYTES);
    assert_eq!(refused(&sealed(&[head, second, first].concat())), BadSessionToken::Order);
    assert_eq!(refused(&sealed(&[head, first, first].concat())), BadSessionToken::Order);
    let unseen: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(refused(&sealed(&[body, &unseen[..]].concat())), BadSessionToken::Order);
}

/// Few shards, so that tokens have some in common.
fn any_token() -> impl Strategy<Value = SessionToken> {
    btree_map(0..12_u64, 1..1_u64 << 53, 0..10).prop_map(token)
}

/// Whether whatever `one` has seen, `other` has.
fn is_within(one: &SessionToken, other: &SessionToken) -> bool {
    one.seen.iter().all(|(shard, revision)| *revision <= other.get(*shard))
}

proptest! {
    #[test]
    fn merging_is_a_join(a in any_token(), b in any_token(), c in any_token()) {
        let ab = merged(&a, &b);
        prop_assert_eq!(&ab, &merged(&b, &a));
        prop_assert_eq!(merged(&ab, &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(&merged(&a, &a), &a);
        prop_assert!(is_within(&a, &ab) && is_within(&b, &ab));
        // The least of all that hold both.
        let both = merged(&ab, &c);
        prop_assert!(is_within(&ab, &both));
        for (shard, revision) in &ab.seen {
            prop_assert!([a.get(*shard), b.get(*shard)].contains(revision));
        }
    }

    #[test]
    fn observing_is_merging(a in any_token(), shard in 0..12_u64, revision in 0..1_u64 << 53) {
        let mut observed = a.clone();
        observed.observe(&receipt(shard, revision)).unwrap();
        prop_assert_eq!(observed, merged(&a, &token([(shard, revision)])));
    }

    #[test]
    fn tokens_survive_their_bytes(a in any_token(), b in any_token()) {
        prop_assert_eq!(SessionToken::decode(&a.encode()), Ok(a.clone()));
        prop_assert_eq!(a.encode() == b.encode(), a == b);
    }

    #[test]
    fn a_flipped_bit_is_found(a in any_token(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = a.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(SessionToken::decode(&bytes).is_err());
    }
}
