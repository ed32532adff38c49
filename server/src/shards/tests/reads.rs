//! Reads of several keys at one point (R3).

use super::*;

/// The row of the fixture's group as a replica writes it.
pub(super) fn tell_time(fixture: &Fixture, group_time_ms: u64) {
    let mut row = vec![1, 1];
    row.extend_from_slice(&group_time_ms.to_be_bytes());
    let mut batch = Batch::default();
    batch.put(state_key(GroupId(9)), row);
    fixture.engine.apply(batch).unwrap();
}

fn read(
    fixture: &Fixture,
    shard: &Shard,
    keys: &[&[u8]],
    bytes_most: usize,
) -> Result<Option<SeenAll>, EngineError> {
    fixture.shards.read_all(shard, DEFAULT, keys, bytes_most)
}

fn texts(seen: &SeenAll) -> Vec<Option<&[u8]>> {
    seen.values.iter().map(|value| value.as_ref().map(|value| &value.value[..])).collect()
}

#[test]
fn values_revision_and_time_are_those_of_one_state() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("a", "1")), (SHARD, put("b", "22"))]);
    let shard = fixture.shards.find(Token(0)).unwrap();
    let keys: [&[u8]; 3] = [b"b", b"gone", b"a"];
    let seen = read(&fixture, &shard, &keys, usize::MAX).unwrap().unwrap();
    assert_eq!(texts(&seen), [Some(&b"22"[..]), None, Some(&b"1"[..])]);
    assert_eq!((seen.head.revision, seen.shard_time_ms, seen.bytes()), (Revision(2), 0, 3));

    tell_time(&fixture, 5_000);
    let seen = read(&fixture, &shard, &[], 1).unwrap().unwrap();
    assert_eq!((seen.shard_time_ms, seen.values.len()), (5_000, 0));

    let mut batch = Batch::default();
    batch.put(state_key(GroupId(9)), "no row of a group");
    fixture.engine.apply(batch).unwrap();
    assert!(read(&fixture, &shard, &keys, 1).is_err());
}

#[test]
fn a_read_ends_with_the_value_that_fills_it() {
    let mut fixture = Fixture::new();
    for key in ["a", "b", "c", "d"] {
        fixture.apply(vec![(SHARD, put(key, "ten bytes."))]);
    }
    let shard = fixture.shards.find(Token(0)).unwrap();
    let keys: [&[u8]; 5] = [b"a", b"gone", b"b", b"c", b"d"];
    let count = |bytes_most| {
        let seen = read(&fixture, &shard, &keys, bytes_most).unwrap().unwrap();
        (seen.values.len(), seen.bytes())
    };
    assert_eq!(count(1), (1, 10), "a first one is always read");
    assert_eq!(count(40), (3, 20), "absent keys cost nothing");
    assert_eq!(count(usize::MAX), (5, 40));
}

#[test]
fn keys_of_two_shards_are_no_read() {
    let fixture = two_shards();
    let shards = fixture.shards.all();
    let keys: Vec<Bytes> = (0..20).map(|number| Bytes::from(format!("key {number}"))).collect();
    for shard in &shards {
        let (own, other): (Vec<&Bytes>, Vec<&Bytes>) =
            keys.iter().partition(|key| shard.owns(token_of(key)));
        assert!(!own.is_empty() && !other.is_empty());
        let own: Vec<&[u8]> = own.into_iter().map(AsRef::as_ref).collect();
        let seen = read(&fixture, shard, &own, usize::MAX).unwrap().unwrap();
        assert_eq!(seen.values.len(), own.len());
        let both: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        assert_eq!(read(&fixture, shard, &both, usize::MAX).unwrap(), None);
    }
}

#[test]
fn one_rotten_value_spoils_the_read() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("a", "1")), (SHARD, put("b", "2"))]);
    let shard = fixture.shards.find(Token(0)).unwrap();
    let rotten = Value { value: Bytes::from_static(b"3"), ..fixture.read("b").value.unwrap() };
    let mut batch = Batch::default();
    batch.put(key::data(shard.prefix, DEFAULT, token_of(b"b"), b"b"), rotten.encode());
    fixture.engine.apply(batch).unwrap();
    assert!(read(&fixture, &shard, &[b"a"], usize::MAX).is_ok());
    assert!(read(&fixture, &shard, &[b"a", b"b"], usize::MAX).is_err());
}
