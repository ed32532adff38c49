//! The JSON of data commands, from literal answers.

use annulus_types::{Epoch, Mode, NodeId, ReplicaId, Role, ServedBy, ShardId, TableVersion};
use serde_json::{Value, json};

use super::*;

fn receipt(mode: Mode, served_by: ServedBy) -> Receipt {
    Receipt {
        mode,
        shard: ShardId(5),
        epoch: Epoch(1),
        node: NodeId(2),
        replica: ReplicaId(77),
        role: Role::Leader,
        served_by,
        term: 3,
        revision: Revision(40),
        staleness_bound_us: Some(0),
        shard_time_ms: 9,
        table_version: TableVersion(4),
    }
}

/// The receipt of a change.
pub fn write_receipt() -> Receipt {
    receipt(Mode::Write, ServedBy::Log)
}

/// [`receipt`] as JSON.
pub fn receipt_json(mode: &str, served_by: &str) -> Value {
    json!({
        "mode": mode,
        "shard": 5,
        "epoch": 1,
        "node": 2,
        "replica": 77,
        "role": "leader",
        "served_by": served_by,
        "term": 3,
        "revision": 40,
        "staleness_bound_us": 0,
        "table_version": 4,
    })
}

pub fn document(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.out).unwrap()
}

pub fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.out).unwrap()
}

/// The answer to a linearizable read, with `--receipt` or without.
fn answer(
    format: Format,
    encoding: Encoding,
    key: &'static [u8],
    value: Option<&'static [u8]>,
    with_receipt: bool,
) -> Answer {
    let receipt = receipt(Mode::Linearizable, ServedBy::Lease);
    let (key, value) = (Bytes::from_static(key), value.map(Bytes::from_static));
    let read = Read {
        key: &key,
        value: value.as_ref(),
        version: Revision(12),
        expires_in: None,
        receipt: &receipt,
    };
    get_answer(format, encoding, &read, with_receipt)
}

#[test]
fn a_value_that_is_found_has_the_promised_shape() {
    let found = answer(Format::Json, Encoding::Text, b"k", Some(b"Ada"), false);
    assert_eq!(
        document(&found),
        json!({
            "key": "k",
            "found": true,
            "value": "Ada",
            "version": 12,
            "receipt": receipt_json("linearizable", "lease"),
        })
    );
    assert_eq!((found.err.as_str(), found.code), ("", 0));
}

#[test]
fn a_key_that_ends_says_when() {
    let receipt = receipt(Mode::Any, ServedBy::Local);
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"Ada"));
    for (left_ms, line) in [(29_500, "expires in       29500 ms"), (0, "expires in       0 ms")] {
        let read = Read {
            key: &key,
            value: Some(&value),
            version: Revision(12),
            expires_in: Some(Duration::from_millis(left_ms)),
            receipt: &receipt,
        };
        let found = get_answer(Format::Json, Encoding::Text, &read, false);
        assert_eq!(document(&found)["expires_in_ms"], json!(left_ms), "also when it is over");
        assert_eq!(found.code, 0);
        let found = get_answer(Format::Table, Encoding::Text, &read, true);
        assert_eq!(text(&found).lines().nth(2), Some(line));
        assert!(raw_answer(&read, true).err.contains(line));
    }
}

#[test]
fn an_absent_key_is_an_answer_with_exit_code_1() {
    let absent = answer(Format::Json, Encoding::Text, b"k", None, false);
    assert_eq!(
        document(&absent),
        json!({
            "key": "k",
            "found": false,
            "receipt": receipt_json("linearizable", "lease"),
        })
    );
    assert_eq!((absent.err.as_str(), absent.code), ("", 1));

    let absent = answer(Format::Table, Encoding::Text, b"k", None, false);
    assert_eq!((text(&absent), absent.err.as_str()), ("", "the key is absent\n"));
    assert_eq!(absent.code, 1);
}

#[test]
fn bytes_that_are_no_text_are_base64_in_json_whatever_the_option() {
    for encoding in [Encoding::Text, Encoding::Hex] {
        let found = document(&answer(Format::Json, encoding, b"\xff", Some(b"\xfe"), false));
        assert_eq!(
            (&found["key_base64"], &found["value_base64"]),
            (&json!("/w=="), &json!("/g=="))
        );
        assert!(found.get("key").is_none() && found.get("value").is_none());
    }
}

#[test]
fn an_unknown_staleness_bound_is_left_out() {
    let mut receipt = receipt(Mode::Any, ServedBy::Local);
    receipt.staleness_bound_us = None;
    let view = serde_json::to_value(ReceiptView::from(&receipt)).unwrap();
    assert!(view.get("staleness_bound_us").is_none());
    assert_eq!((&view["mode"], &view["served_by"]), (&json!("any"), &json!("local")));
}

#[test]
fn a_table_is_the_value_alone_until_the_receipt_is_asked_for() {
    let found = answer(Format::Table, Encoding::Text, b"k", Some(b"Ada"), false);
    assert_eq!((text(&found), found.err.as_str()), ("Ada\n", ""));
    let found = answer(Format::Table, Encoding::Hex, b"k", Some(b"Ada"), false);
    assert_eq!(text(&found), "416461\n");
    let found = answer(Format::Table, Encoding::Text, b"k", Some(b"\x1b[2J"), false);
    assert_eq!(text(&found), "G1sySg==\n");
    assert!(found.err.contains("--raw"), "{}", found.err);
    let found = answer(Format::Table, Encoding::Text, b"k", Some(b"Ada"), true);
    let mut lines = text(&found).lines();
    assert_eq!(lines.next(), Some("Ada"));
    assert_eq!(lines.next(), Some("version          12"));
    assert_eq!(lines.nth(2), Some("node             2 (replica 77, leader)"));
}

#[test]
fn raw_is_the_bytes_and_the_receipt_goes_elsewhere() {
    let receipt = receipt(Mode::Linearizable, ServedBy::Lease);
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"\xff\n\x00"));
    let read = Read {
        key: &key,
        value: Some(&value),
        version: Revision(12),
        expires_in: None,
        receipt: &receipt,
    };
    let plain = raw_answer(&read, false);
    assert_eq!((plain.out.as_slice(), plain.err.as_str(), plain.code), (&value[..], "", 0));
    let with_receipt = raw_answer(&read, true);
    assert_eq!(with_receipt.out, value);
    assert!(with_receipt.err.contains("lease"), "{}", with_receipt.err);
    let absent = raw_answer(&Read { value: None, ..read }, false);
    assert_eq!((absent.out.len(), absent.code), (0, 1));
}

#[test]
fn a_write_has_the_promised_shape() {
    let receipt = receipt(Mode::Write, ServedBy::Log);
    let key = Bytes::from_static(b"k");
    let put = put_answer(Format::Json, &key, Revision(40), &receipt);
    let expected = json!({"key": "k", "version": 40, "receipt": receipt_json("write", "log")});
    assert_eq!((document(&put), put.code), (expected, 0));
    let put = put_answer(Format::Table, &key, Revision(40), &receipt);
    assert_eq!(text(&put), "version 40\n");

    let delete = delete_answer(Format::Jsonl, &key, Revision(0), &receipt);
    assert_eq!(document(&delete)["version"], json!(0));
    let delete = delete_answer(Format::Table, &key, Revision(0), &receipt);
    assert_eq!(text(&delete), "absent at revision 40 of shard 5\n");
}
