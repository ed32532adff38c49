//! What is refused names its field and says NO; what is ready says what the request said.

use annulus_types::{ErrorKind, MayHaveApplied};

use super::*;

fn field(error: Error) -> (String, String) {
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
    match error.kind {
        ErrorKind::BadRequest { field, message } => (field, message),
        other => panic!("{other:?}"),
    }
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn named(writer: u64, seq: u64, lowest_unacked: u64) -> Option<v1::RequestHeader> {
    let op = Some(v1::OpId { writer, seq, lowest_unacked, attempt: 1 });
    Some(v1::RequestHeader { op, ..v1::RequestHeader::default() })
}

#[test]
fn calls_have_a_limit_that_leaves_the_answer_its_way() {
    let most = deadline::working_limit(DEADLINE_MOST);
    let mut metadata = MetadataMap::new();
    assert_eq!(working_limit(&metadata), deadline::working_limit(DEADLINE_DEFAULT));
    for (text, expected) in [
        ("100m", Duration::from_millis(90)),
        ("99999999H", most),
        ("nonsense", Duration::from_millis(4_800)),
    ] {
        metadata.insert("grpc-timeout", text.parse().unwrap());
        assert_eq!(working_limit(&metadata), expected, "{text}");
    }
}

#[test]
fn bad_input_names_field_and_limit() {
    assert_eq!(field(check_key("key", &Bytes::new()).unwrap_err()).0, "key");
    let long = Bytes::from(vec![0; KEY_BYTES + 1]);
    assert!(field(check_key("key", &long).unwrap_err()).1.contains("4096"));
    let big = Bytes::from(vec![0; VALUE_BYTES + 1]);
    assert_eq!(field(crc_of(VALUE, &big, None).unwrap_err()).0, "value");
    let value = text("v");
    assert_eq!(field(crc_of(VALUE, &value, Some(1)).unwrap_err()).0, "value_crc32");
    assert!(crc_of(VALUE, &value, Some(crc32fast::hash(b"v"))).is_ok());
}

#[test]
fn many_keys_have_their_limits_too() {
    let asked = |keys: Vec<Bytes>| multi_get(&v1::MultiGetRequest { header: None, keys });
    assert_eq!(asked(vec![text("k"); MULTI_GET_KEYS]), Ok(Header::default()));
    let many = field(asked(vec![text("k"); MULTI_GET_KEYS + 1]).unwrap_err());
    assert!(many.0 == "keys" && many.1.contains("1000"), "{many:?}");
    assert_eq!(field(asked(vec![]).unwrap_err()).0, "keys");
    assert_eq!(field(asked(vec![text("k"), text("")]).unwrap_err()).0, "keys");
    let named = v1::MultiGetRequest { header: named(9, 4, 2), keys: vec![text("k")] };
    assert_eq!(field(multi_get(&named).unwrap_err()).0, "op");
}

#[test]
fn a_named_mutation_becomes_a_named_operation() {
    let request = |header| v1::PutRequest {
        header,
        key: text("k"),
        value: text("v"),
        value_crc32: None,
        ttl_ms: None,
    };
    let plain = put(request(None)).unwrap();
    let op = Op::decode(plain.body.clone()).unwrap();
    assert!(matches!(&op, Op::Put { key, value, .. } if key == "k" && value == "v"), "{op:?}");
    assert_eq!(plain.token, token_of(b"k"));

    let ready = put(request(named(9, 4, 2))).unwrap();
    let id = operation::OpId { writer: Revision(9), seq: 4, lowest_unacked: 2 };
    let expected = Op::Named { id, token: token_of(b"k"), body: plain.body };
    assert_eq!(Op::decode(ready.body), Ok(expected));

    assert_eq!(field(put(request(named(0, 4, 2))).unwrap_err()).0, "op.writer");
    assert_eq!(field(put(request(named(9, 0, 0))).unwrap_err()).0, "op.seq");
    assert_eq!(field(put(request(named(9, 1_024, 0))).unwrap_err()).0, "op.seq");
    assert_eq!(field(put(request(named(9, 4, 5))).unwrap_err()).0, "op.lowest_unacked");
}

#[test]
fn a_time_to_live_has_limits_that_its_refusal_names() {
    let setting = |ttl_ms| {
        put(v1::PutRequest { key: text("k"), value: text("v"), ttl_ms, ..Default::default() })
    };
    let swapping = |ttl_ms| {
        cas(v1::CasRequest { key: text("k"), value: text("v"), ttl_ms, ..Default::default() })
    };
    let crc = crc32fast::hash(b"v");
    let most = NonZeroU64::new(TTL_MS_MOST);
    for (told, ttl_ms) in [(None, None), (Some(1), NonZeroU64::new(1)), (Some(TTL_MS_MOST), most)] {
        let (namespace, key, value) = (Default::default(), text("k"), text("v"));
        let op = Op::Put { namespace, key, crc, value, ttl_ms };
        assert_eq!(Op::decode(setting(told).unwrap().body), Ok(op));
        let (key, value, expect) = (text("k"), text("v"), Expect::Absent);
        let op = Op::Cas { namespace, key, expect, crc, value, ttl_ms };
        assert_eq!(Op::decode(swapping(told).unwrap().body), Ok(op));
    }
    for told in [0, TTL_MS_MOST + 1, u64::MAX] {
        for refused in [setting(Some(told)), swapping(Some(told))] {
            let (refused, message) = field(refused.unwrap_err());
            assert_eq!(refused, "ttl_ms", "{told}");
            assert!(message.contains("1 to 3155760000000 ms"), "{message}");
        }
    }
}

#[test]
fn only_mutations_have_names() {
    let opening = v1::OpenWriterRequest { header: named(9, 4, 2), token: 7 };
    assert_eq!(field(open_writer(&opening).unwrap_err()).0, "op");
    let opening = v1::OpenWriterRequest { header: None, token: 7 };
    let ready = open_writer(&opening).unwrap();
    assert_eq!(Op::decode(ready.body), Ok(Op::OpenWriter { token: Token(7) }));
}

#[test]
fn writers_and_numbers_are_checked_where_they_are_asked_about() {
    let close = |writer| close_writer(&v1::CloseWriterRequest { header: None, token: 7, writer });
    assert_eq!(field(close(0).unwrap_err()).0, "writer");
    let closing = Op::CloseWriter { token: Token(7), writer: Revision(9) };
    assert_eq!(Op::decode(close(9).unwrap().body), Ok(closing));

    let asked = |writer, seq| {
        op_status(&v1::OpStatusRequest { header: None, token: 7, writer, seq, shard: Some(3) })
    };
    assert_eq!(field(asked(1 << 53, 1).unwrap_err()).0, "writer");
    assert_eq!(field(asked(9, 0).unwrap_err()).0, "seq");
    let ready = asked(9, 4).unwrap();
    assert_eq!(ready.shard, Some(ShardId(3)));
    let asking = Op::OpStatus { token: Token(7), writer: Revision(9), seq: 4 };
    assert_eq!(Op::decode(ready.body), Ok(asking));
}

#[test]
fn the_bounds_of_an_addition_have_an_order() {
    let request = |min, max| v1::IncrRequest { header: None, key: text("k"), delta: -2, min, max };
    assert_eq!(field(incr(request(Some(2), Some(1))).unwrap_err()).0, "max");
    let ready = incr(request(Some(1), Some(1))).unwrap();
    let (namespace, key) = (ready.header.namespace, text("k"));
    let op = Op::Incr { namespace, key, delta: -2, min: Some(1), max: Some(1) };
    assert_eq!(Op::decode(ready.body), Ok(op));
}

/// Sets `{t}a` and removes `{t}b` if `{t}c` is at version 4.
fn good() -> v1::BatchRequest {
    v1::BatchRequest {
        header: None,
        keys: vec![text("{t}a"), text("{t}b")],
        kinds: vec![v1::BatchKind::Put.into(), v1::BatchKind::Delete.into()],
        values: vec![text("v"), Bytes::new()],
        value_crc32s: vec![crc32fast::hash(b"v"), 0],
        guard_keys: vec![text("{t}c")],
        guard_kinds: vec![v1::GuardKind::Version.into()],
        guard_versions: vec![4],
        ttls_ms: vec![5_000, 0],
    }
}

#[test]
fn a_batch_becomes_one_operation() {
    let (ready, sets) = batch(good()).unwrap();
    assert_eq!((ready.token, sets), (token_of(b"{t}a"), vec![true, false]));
    let op = Op::Batch {
        namespace: ready.header.namespace,
        guards: vec![Guard { key: text("{t}c"), expect: Expect::Version(Revision(4)) }],
        items: vec![
            Item::Put {
                key: text("{t}a"),
                crc: crc32fast::hash(b"v"),
                value: text("v"),
                ttl_ms: NonZeroU64::new(5_000),
            },
            Item::Delete { key: text("{t}b") },
        ],
    };
    assert_eq!(Op::decode(ready.body), Ok(op));

    let mut unchecked = good();
    unchecked.value_crc32s.clear();
    unchecked.ttls_ms.clear();
    unchecked.guard_kinds = vec![v1::GuardKind::Absent.into()];
    assert!(batch(unchecked).is_ok());
}

#[test]
fn a_batch_that_is_none_is_refused_by_field() {
    let bad = |spoil: &dyn Fn(&mut v1::BatchRequest)| {
        let mut request = good();
        spoil(&mut request);
        field(batch(request).unwrap_err()).0
    };
    assert_eq!(bad(&|r| r.keys.clear()), "keys");
    assert_eq!(bad(&|r| r.keys = vec![text("{t}a"); BATCH_ITEMS + 1]), "keys");
    assert_eq!(bad(&|r| r.keys[1] = text("{t}a")), "keys");
    assert_eq!(bad(&|r| r.keys[1] = Bytes::new()), "keys");
    assert_eq!(bad(&|r| r.keys[1] = text("{other}b")), "keys");
    assert_eq!(bad(&|r| r.guard_keys[0] = text("{t c")), "guard_keys");
    assert_eq!(bad(&|r| r.guard_keys[0] = Bytes::new()), "guard_keys");
    assert_eq!(bad(&|r| r.guard_keys = vec![text("{t}c"); BATCH_ITEMS + 1]), "guard_keys");
    assert_eq!(bad(&|r| r.kinds.truncate(1)), "kinds");
    assert_eq!(bad(&|r| r.kinds[0] = 0), "kinds");
    assert_eq!(bad(&|r| r.kinds[0] = 9), "kinds");
    assert_eq!(bad(&|r| r.values.truncate(1)), "values");
    assert_eq!(bad(&|r| r.values[1] = text("v")), "values");
    assert_eq!(bad(&|r| r.values[0] = Bytes::from(vec![0; VALUE_BYTES + 1])), "values");
    assert_eq!(bad(&|r| r.value_crc32s[0] ^= 1), "value_crc32s");
    assert_eq!(bad(&|r| r.value_crc32s.truncate(1)), "value_crc32s");
    assert_eq!(bad(&|r| r.ttls_ms.truncate(1)), "ttls_ms");
    assert_eq!(bad(&|r| r.ttls_ms[0] = TTL_MS_MOST + 1), "ttls_ms");
    assert_eq!(bad(&|r| r.ttls_ms[1] = 1), "ttls_ms");
    assert_eq!(bad(&|r| r.guard_kinds.clear()), "guard_kinds");
    assert_eq!(bad(&|r| r.guard_kinds[0] = 0), "guard_kinds");
    assert_eq!(bad(&|r| r.guard_versions.clear()), "guard_versions");
    assert_eq!(bad(&|r| r.header = named(0, 1, 1)), "op.writer");
}

/// Two keys that share a shard by chance would come apart when it is divided (W6).
#[test]
fn keys_without_a_common_tag_are_no_batch_even_if_they_share_a_shard() {
    let mut request = good();
    request.keys = vec![text("a"), text("b")];
    let (refused, message) = field(batch(request).unwrap_err());
    assert_eq!(refused, "keys");
    assert!(message.contains("{tag}"), "{message}");
}

#[test]
fn a_batch_has_a_limit_in_bytes() {
    let mut request = good();
    let places = BATCH_BYTES / VALUE_BYTES + 1;
    request.keys = (0..places).map(|place| Bytes::from(format!("{{t}}{place}"))).collect();
    request.kinds = vec![v1::BatchKind::Put.into(); places];
    request.values = vec![Bytes::from(vec![0; VALUE_BYTES]); places];
    request.value_crc32s.clear();
    request.ttls_ms.clear();
    let (refused, message) = field(batch(request).unwrap_err());
    assert_eq!(refused, "values");
    assert!(message.contains("8388608"), "{message}");
}
