//! Items and what they point to.

use annulus_types::{Epoch, Mode, NodeId, Receipt, ReplicaId, Revision, Role, ServedBy};

use super::*;

fn answer(shard: u64, values: Vec<Option<&'static str>>) -> Answer {
    let receipt = Receipt {
        mode: Mode::Any,
        shard: ShardId(shard),
        epoch: Epoch(1),
        node: NodeId(1),
        replica: ReplicaId(1),
        role: Role::Follower,
        served_by: ServedBy::Local,
        term: 1,
        revision: Revision(9),
        staleness_bound_us: None,
        shard_time_ms: 0,
        table_version: Default::default(),
    };
    let value = |text: &'static str| Value {
        revision: Revision(7),
        deadline_ms: 6,
        crc: 5,
        value: Bytes::from_static(text.as_bytes()),
    };
    Answer { receipt, values: values.into_iter().map(|text| text.map(value)).collect() }
}

fn found(receipt: usize, text: &'static str) -> Item {
    let value = Bytes::from_static(text.as_bytes());
    Item::Found { receipt, version: Revision(7), crc: 5, value, deadline_ms: 6 }
}

#[test]
fn items_point_to_the_receipt_of_their_shard() {
    let mut gathered = Gathered::of(5);
    gathered.answered(&[1, 4], answer(8, vec![Some("one"), None]));
    gathered.answered(&[3, 0], answer(6, vec![Some(""), Some("zero")]));
    let Items { receipts, errors, items } = gathered.0;
    let shards: Vec<ShardId> = receipts.iter().map(|receipt| receipt.shard).collect();
    assert_eq!((shards, errors), (vec![ShardId(8), ShardId(6)], vec![]));
    let absent = Item::Absent { receipt: 0 };
    assert_eq!(items, [found(1, "zero"), found(0, "one"), Item::LeftOut, found(1, ""), absent]);
}

#[test]
fn what_had_no_room_is_left_out_and_a_shard_without_any_has_no_receipt() {
    let mut gathered = Gathered::of(3);
    gathered.answered(&[0, 2], answer(8, vec![Some("zero")]));
    gathered.answered(&[1], answer(6, vec![]));
    assert_eq!(gathered.0.receipts.len(), 1);
    assert_eq!(gathered.0.items, [found(0, "zero"), Item::LeftOut, Item::LeftOut]);
}

#[test]
fn one_reason_is_told_once() {
    let mut gathered = Gathered::of(4);
    let stale = || Error::refused(ErrorKind::StaleRoute { routes: None });
    let newer = Error { retry_after_ms: 7, ..stale() };
    gathered.failed(&[0], Error::refused(ErrorKind::NoQuorum));
    gathered.failed(&[1], stale());
    gathered.failed(&[2], Error::refused(ErrorKind::NoQuorum));
    gathered.failed(&[3], newer);
    assert_eq!(gathered.0.errors, [Error::refused(ErrorKind::NoQuorum), stale()]);
    let failed = |error| Item::Failed { error };
    assert_eq!(gathered.0.items, [failed(0), failed(1), failed(0), failed(1)]);
}
