//! Every variant of every converted type goes to the wire, through its bytes, and back.

use std::collections::BTreeSet;
use std::fmt::Debug;

use annulus_types::{
    Epoch, GroupId, GroupRoute, MayHaveApplied, MemberRole, MemberRoute, Mode, NodeId, NodeInfo,
    Receipt, ReplicaId, Revision, Role, RoutingTable, ServedBy, ShardId, ShardRoute, limits,
};
use prost::Message;
use tonic::{Code, Status};

use super::*;

/// One line per variant, `pattern => sample`. A variant without a line does not compile, and a
/// sample that is not of its pattern fails.
macro_rules! samples {
    ($type:ty { $($pattern:pat => $sample:expr),* $(,)? }) => {{
        fn _every_variant_has_a_line(value: &$type) {
            match value { $($pattern => {})* }
        }
        $(assert!(matches!(&$sample, $pattern), "{} is not its sample", stringify!($pattern));)*
        Vec::<$type>::from([$($sample),*])
    }};
}

fn through_bytes<T: Message + Default>(message: &T) -> T {
    T::decode(message.encode_to_vec().as_slice()).expect("what was encoded can be decoded")
}

fn refused<T: Debug>(result: Result<T, ConvertError>) -> &'static str {
    result.expect_err("must be refused").field
}

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn table(shards: u32) -> RoutingTable {
    let shard = |slice: u32| ShardRoute {
        id: ShardId(u64::from(slice) + 9_000),
        slice,
        parent: (slice > 0).then_some(ShardId(8_999)),
        epoch: Epoch(3),
        group: GroupId(1 << 40),
    };
    RoutingTable {
        cluster: CLUSTER,
        version: TableVersion(17),
        shards: (0..shards).map(shard).collect(),
        groups: vec![
            GroupRoute {
                id: GroupId(1 << 40),
                home: NodeId(2),
                lane: 1,
                members: vec![
                    MemberRoute { node: NodeId(2), replica: ReplicaId(5), role: MemberRole::Voter },
                    MemberRoute {
                        node: NodeId(3),
                        replica: ReplicaId(6),
                        role: MemberRole::Learner,
                    },
                ],
                leader: Some(NodeId(2)),
                term: 4,
                membership_index: 12,
            },
            GroupRoute {
                id: GroupId((1 << 40) + 1),
                home: NodeId(3),
                lane: 0,
                members: Vec::new(),
                leader: None,
                term: 0,
                membership_index: 0,
            },
        ],
        nodes: vec![NodeInfo {
            id: NodeId(2),
            addr: "127.0.0.1:7400".to_owned(),
            peer_addr: "127.0.0.1:7401".to_owned(),
            http_addr: "127.0.0.1:7402".to_owned(),
            zone: "z1".to_owned(),
            weight: 150,
            storage: true,
            manager: false,
        }],
    }
}

fn every_error_kind() -> Vec<ErrorKind> {
    let text = || "why".to_owned();
    samples!(ErrorKind {
        ErrorKind::NotLeader { leader: None } => ErrorKind::NotLeader { leader: None },
        ErrorKind::NotLeader { leader: Some(_) } =>
            ErrorKind::NotLeader { leader: Some(NodeId(3)) },
        ErrorKind::StaleRoute { routes: None } => ErrorKind::StaleRoute { routes: None },
        ErrorKind::StaleRoute { routes: Some(_) } =>
            ErrorKind::StaleRoute { routes: Some(Box::new(table(4))) },
        ErrorKind::Moving { to: None } => ErrorKind::Moving { to: None },
        ErrorKind::Moving { to: Some(_) } => ErrorKind::Moving { to: Some(NodeId(1)) },
        ErrorKind::NoQuorum => ErrorKind::NoQuorum,
        ErrorKind::OutcomeUnknown => ErrorKind::OutcomeUnknown,
        ErrorKind::Overloaded => ErrorKind::Overloaded,
        ErrorKind::TooStale { actual_us: None, .. } =>
            ErrorKind::TooStale { limit_us: 5, actual_us: None },
        ErrorKind::TooStale { actual_us: Some(_), .. } =>
            ErrorKind::TooStale { limit_us: 5, actual_us: Some(0) },
        ErrorKind::PreconditionFailed { current: None } =>
            ErrorKind::PreconditionFailed { current: None },
        ErrorKind::PreconditionFailed { current: Some(_) } =>
            ErrorKind::PreconditionFailed { current: Some(Revision(8)) },
        ErrorKind::Fenced { current: None } => ErrorKind::Fenced { current: None },
        ErrorKind::Fenced { current: Some(_) } =>
            ErrorKind::Fenced { current: Some(Revision(9)) },
        ErrorKind::WriterExpired => ErrorKind::WriterExpired,
        ErrorKind::OpIdReused => ErrorKind::OpIdReused,
        ErrorKind::HistoryLost => ErrorKind::HistoryLost,
        ErrorKind::Compacted { .. } => ErrorKind::Compacted { oldest: Revision(10) },
        ErrorKind::Lagged { .. } => ErrorKind::Lagged { resume: text() },
        ErrorKind::NotReady { .. } => ErrorKind::NotReady { reason: text() },
        ErrorKind::ShardHalted { .. } => ErrorKind::ShardHalted { file: text(), offset: 512 },
        ErrorKind::DiskFull => ErrorKind::DiskFull,
        ErrorKind::BadRequest { .. } =>
            ErrorKind::BadRequest { field: "key".to_owned(), message: text() },
        ErrorKind::WrongCluster { .. } => ErrorKind::WrongCluster { actual: CLUSTER },
        ErrorKind::UnsupportedVersion => ErrorKind::UnsupportedVersion,
        ErrorKind::DeadlineExceeded { .. } => ErrorKind::DeadlineExceeded { stage: text() },
        ErrorKind::Cancelled => ErrorKind::Cancelled,
        ErrorKind::Unauthenticated => ErrorKind::Unauthenticated,
        ErrorKind::Forbidden => ErrorKind::Forbidden,
        ErrorKind::Unimplemented => ErrorKind::Unimplemented,
        ErrorKind::Internal { .. } => ErrorKind::Internal { id: text() },
    })
}

fn every_verdict() -> Vec<MayHaveApplied> {
    samples!(MayHaveApplied {
        MayHaveApplied::No => MayHaveApplied::No,
        MayHaveApplied::Yes => MayHaveApplied::Yes,
        MayHaveApplied::Unknown => MayHaveApplied::Unknown,
    })
}

#[test]
fn errors_survive_a_status() {
    for kind in every_error_kind() {
        for may_have_applied in every_verdict() {
            let error = Error { kind: kind.clone(), may_have_applied, retry_after_ms: 250 };
            let status = status_of(&error);
            assert_eq!(error_of(&status), error);
            assert_eq!(status.message(), error.to_string());
        }
    }
}

#[test]
fn at_most_eight_codes_are_used() {
    let codes: BTreeSet<i32> = every_error_kind()
        .into_iter()
        .map(|kind| i32::from(status_of(&Error::refused(kind)).code()))
        .collect();
    assert!(codes.len() <= 8, "{codes:?}");
    assert!(!codes.contains(&i32::from(Code::Ok)));
}

#[test]
fn an_unknown_kind_promises_nothing() {
    let wire = v1::ErrorDetail {
        may_have_applied: v1::MayHaveApplied::No.into(),
        retry_after_ms: 1,
        kind: None,
    };
    let error = Error::from(wire);
    assert!(matches!(error.kind, ErrorKind::Internal { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
}

#[test]
fn an_unknown_verdict_promises_nothing() {
    let mut wire = v1::ErrorDetail::from(&Error::refused(ErrorKind::Overloaded));
    wire.may_have_applied = 77;
    assert_eq!(Error::from(wire).may_have_applied, MayHaveApplied::Unknown);
}

#[test]
fn a_status_of_the_transport_promises_nothing() {
    for code in 1..=16 {
        let error = error_of(&Status::new(Code::from_i32(code), "broken pipe"));
        assert_eq!(error.may_have_applied, MayHaveApplied::Unknown, "code {code}");
    }
    let late = error_of(&Status::deadline_exceeded(""));
    assert!(matches!(late.kind, ErrorKind::DeadlineExceeded { .. }), "{late:?}");
    assert_eq!(error_of(&Status::cancelled("")).kind, ErrorKind::Cancelled);
    assert_eq!(error_of(&Status::unavailable("")).kind, ErrorKind::OutcomeUnknown);
    let garbled = Status::with_details(Code::Unavailable, "", Bytes::from_static(&[0xff; 3]));
    assert_eq!(error_of(&garbled).may_have_applied, MayHaveApplied::Unknown);
}

#[test]
fn routes_that_do_not_fit_into_a_status_are_left_out() {
    let routes = Some(Box::new(table(limits::SHARDS)));
    let status = status_of(&Error::refused(ErrorKind::StaleRoute { routes }));
    assert!(status.details().len() <= DETAIL_BYTES_MOST);
    assert_eq!(error_of(&status), Error::refused(ErrorKind::StaleRoute { routes: None }));

    let routes = Some(Box::new(table(128)));
    let stale = Error::refused(ErrorKind::StaleRoute { routes });
    assert_eq!(error_of(&status_of(&stale)), stale, "the default table fits");
}

#[test]
fn unreadable_routes_in_an_error_are_no_routes() {
    let mut wire = v1::RoutingTable::from(&table(4));
    wire.shards.truncate(3);
    let kind = v1::error_detail::Kind::StaleRoute(v1::StaleRoute { routes: Some(wire) });
    assert_eq!(ErrorKind::from(kind), ErrorKind::StaleRoute { routes: None });
}

#[test]
fn receipts_survive() {
    let modes = samples!(Mode {
        Mode::Write => Mode::Write,
        Mode::Linearizable => Mode::Linearizable,
        Mode::Session => Mode::Session,
        Mode::Bounded => Mode::Bounded,
        Mode::Any => Mode::Any,
    });
    let roles = samples!(Role {
        Role::Leader => Role::Leader,
        Role::Follower => Role::Follower,
        Role::Learner => Role::Learner,
    });
    let vouchers = samples!(ServedBy {
        ServedBy::Lease => ServedBy::Lease,
        ServedBy::ReadIndex => ServedBy::ReadIndex,
        ServedBy::Local => ServedBy::Local,
        ServedBy::Log => ServedBy::Log,
    });
    for (((mode, role), served_by), staleness_bound_us) in modes
        .iter()
        .flat_map(|mode| roles.iter().map(move |role| (mode, role)))
        .flat_map(|pair| vouchers.iter().map(move |voucher| (pair, voucher)))
        .zip([None, Some(0), Some(1_500)].into_iter().cycle())
    {
        let receipt = receipt(*mode, *role, *served_by, staleness_bound_us);
        let wire = through_bytes(&v1::Receipt::from(&receipt));
        assert_eq!(Receipt::try_from(wire), Ok(receipt));
    }
}

fn receipt(mode: Mode, role: Role, served_by: ServedBy, bound: Option<u64>) -> Receipt {
    Receipt {
        mode,
        shard: ShardId(1),
        epoch: Epoch(2),
        node: NodeId(3),
        replica: ReplicaId(4),
        role,
        served_by,
        term: 5,
        revision: Revision(6),
        staleness_bound_us: bound,
        shard_time_ms: 7,
        table_version: TableVersion(8),
    }
}

#[test]
fn a_receipt_that_vouches_for_nothing_is_refused() {
    let whole = || v1::Receipt::from(&receipt(Mode::Any, Role::Follower, ServedBy::Local, None));
    for meaningless in [0, -1, 99] {
        let wire = v1::Receipt { mode: meaningless, ..whole() };
        assert_eq!(refused(Receipt::try_from(wire)), "mode");
        let wire = v1::Receipt { role: meaningless, ..whole() };
        assert_eq!(refused(Receipt::try_from(wire)), "role");
        let wire = v1::Receipt { served_by: meaningless, ..whole() };
        assert_eq!(refused(Receipt::try_from(wire)), "served_by");
    }
}

#[test]
fn routing_tables_survive() {
    for table in [table(1), table(8), table(limits::SHARDS), RoutingTable::default()] {
        let wire = through_bytes(&v1::RoutingTable::from(&table));
        assert_eq!(RoutingTable::try_from(wire), Ok(table));
    }
}

#[test]
fn a_table_that_is_not_one_is_refused() {
    let good = v1::RoutingTable::from(&table(4));

    let mut wire = good.clone();
    wire.shards.pop();
    assert_eq!(refused(RoutingTable::try_from(wire)), "shards");

    let mut wire = good.clone();
    wire.shards.swap(1, 2);
    assert_eq!(refused(RoutingTable::try_from(wire)), "shards");

    let too_many = v1::RoutingTable::from(&table(2 * limits::SHARDS));
    assert_eq!(refused(RoutingTable::try_from(too_many)), "shards");

    let wire = v1::RoutingTable { cluster_id: Bytes::from_static(b"short"), ..good };
    assert_eq!(refused(RoutingTable::try_from(wire)), "cluster_id");
}

#[test]
fn headers_survive() {
    let modes = samples!(Consistency {
        Consistency::Linearizable => Consistency::Linearizable,
        Consistency::Session => Consistency::Session,
        Consistency::Bounded(_) => Consistency::Bounded(Duration::from_millis(500)),
        Consistency::Any => Consistency::Any,
    });
    for (consistency, cluster) in modes.into_iter().zip([None, Some(CLUSTER)].into_iter().cycle()) {
        let header = Header {
            cluster,
            namespace: NamespaceId(0),
            table_version: TableVersion(4),
            session: (consistency == Consistency::Session).then(session),
            consistency,
            strict: cluster.is_some(),
            yielding: cluster.is_none(),
            explain: cluster.is_some(),
        };
        let wire = through_bytes(&v1::RequestHeader::from(&header));
        assert_eq!(header_of(Some(&wire)), Ok(header));
    }
    assert_eq!(header_of(None), Ok(Header::default()));
}

#[test]
fn a_header_that_asks_for_what_is_not_there_is_refused() {
    let bad = |spoil: &dyn Fn(&mut v1::RequestHeader)| {
        let mut wire = v1::RequestHeader::from(&Header::default());
        spoil(&mut wire);
        let error = header_of(Some(&wire)).expect_err("must be refused");
        assert_eq!(error.may_have_applied, MayHaveApplied::No);
        match error.kind {
            ErrorKind::BadRequest { field, .. } => field,
            other => other.name().to_owned(),
        }
    };
    assert_eq!(bad(&|h| h.cluster_id = Bytes::from_static(&[1; 15])), "cluster_id");
    assert_eq!(bad(&|h| h.namespace = 1), "namespace");
    assert_eq!(bad(&|h| h.priority = 2), "priority");
    assert_eq!(bad(&|h| h.consistency = 9), "consistency");
    assert_eq!(bad(&|h| h.op = Some((&op_id(7, 3)).into())), "op");
    assert_eq!(bad(&|h| h.op = Some(v1::OpId::default())), "op.writer");
    assert_eq!(bad(&|h| h.fence = Some(v1::Fence::default())), "Unimplemented");
    assert_eq!(bad(&|h| h.consistency = v1::Consistency::Bounded.into()), "bound_us");
    let sessions = v1::Consistency::Session.into();
    assert_eq!(bad(&|h| h.session_token = session().encode()), "session_token");
    assert_eq!(
        bad(&|h| {
            h.consistency = sessions;
            h.session_token = session().encode().slice(1..);
        }),
        "session_token"
    );
}

fn session() -> SessionToken {
    let mut token = SessionToken::new(CLUSTER);
    token.observe(&receipt(Mode::Write, Role::Leader, ServedBy::Log, None)).expect("room for one");
    token
}

#[test]
fn a_session_that_has_seen_nothing_needs_no_token() {
    let mut wire = v1::RequestHeader::from(&Header::default());
    wire.consistency = v1::Consistency::Session.into();
    let header = header_of(Some(&wire)).expect("a read");
    assert_eq!((header.consistency, header.session), (Consistency::Session, None));
}

#[test]
fn a_mutation_has_no_session_token() {
    let mut wire = v1::RequestHeader::from(&Header::default());
    wire.consistency = v1::Consistency::Session.into();
    wire.session_token = session().encode();
    assert!(header_of(Some(&wire)).is_ok());
    match mutation_of(Some(&wire)).expect_err("must be refused").kind {
        ErrorKind::BadRequest { field, .. } => assert_eq!(field, "session_token"),
        other => panic!("{other:?}"),
    }
}

fn op_id(seq: u64, lowest_unacked: u64) -> OpId {
    OpId { writer: Revision(5), seq, lowest_unacked, attempt: 2 }
}

#[test]
fn names_of_mutations_survive_a_header() {
    let window = limits::WRITER_WINDOW;
    for op in [op_id(1, 0), op_id(7, 7), op_id(9_000, 9_001 - window)] {
        let mut header = v1::RequestHeader::from(&Header::default());
        header.op = Some((&op).into());
        let wire = through_bytes(&header);
        assert_eq!(mutation_of(Some(&wire)), Ok((Header::default(), Some(op))));
    }
    assert_eq!(mutation_of(None), Ok((Header::default(), None)));
}

#[test]
fn a_name_that_no_writer_may_use_is_refused() {
    let most = 1 << 53;
    let bad = |writer, seq, lowest_unacked| {
        refused(op_of(&v1::OpId { writer, seq, lowest_unacked, attempt: 0 }))
    };
    assert_eq!(bad(0, 1, 1), "op.writer");
    assert_eq!(bad(most, 1, 1), "op.writer");
    assert_eq!(bad(5, 0, 0), "op.seq");
    assert_eq!(bad(5, most, most), "op.seq");
    assert_eq!(bad(5, 7, 8), "op.lowest_unacked");
    assert_eq!(bad(5, limits::WRITER_WINDOW, 0), "op.seq");
    assert!(op_of(&(&op_id(limits::WRITER_WINDOW, 1)).into()).is_ok());
    assert_eq!(refused(writer_of("writer", 0)), "writer");
}

#[test]
fn what_became_of_mutations_survives() {
    let states = samples!(OpState {
        OpState::Applied => OpState::Applied,
        OpState::Failed => OpState::Failed,
        OpState::NotApplied => OpState::NotApplied,
        OpState::Settled => OpState::Settled,
        OpState::Ended => OpState::Ended,
    });
    for state in states {
        assert_eq!(op_state_of(v1::OpState::from(state).into()), Ok(state));
    }
    let results = samples!(IncrResult {
        IncrResult::Done => IncrResult::Done,
        IncrResult::OutOfBounds => IncrResult::OutOfBounds,
        IncrResult::NotANumber => IncrResult::NotANumber,
    });
    for result in results {
        assert_eq!(incr_result_of(v1::IncrResult::from(result).into()), Ok(result));
    }
    for meaningless in [0, -1, 99] {
        assert_eq!(refused(op_state_of(meaningless)), "state");
        assert_eq!(refused(incr_result_of(meaningless)), "result");
    }
}

fn many() -> Items {
    let items = samples!(Item {
        Item::Found { .. } => Item::Found {
            receipt: 1,
            version: Revision(9),
            crc: 7,
            value: Bytes::from_static(b"value"),
            deadline_ms: 8,
        },
        Item::Absent { .. } => Item::Absent { receipt: 0 },
        Item::Failed { .. } => Item::Failed { error: 0 },
        Item::LeftOut => Item::LeftOut,
    });
    let receipt = |bound| receipt(Mode::Bounded, Role::Learner, ServedBy::Local, bound);
    Items {
        receipts: vec![receipt(None), receipt(Some(3))],
        errors: vec![Error::refused(ErrorKind::NoQuorum)],
        items,
    }
}

#[test]
fn answers_about_many_keys_survive() {
    for answer in [many(), Items::default()] {
        let wire = through_bytes(&v1::MultiGetReply::from(answer.clone()));
        assert_eq!(Items::try_from(wire), Ok(answer));
    }
}

#[test]
fn an_answer_whose_arrays_do_not_fit_is_refused() {
    let bad = |spoil: &dyn Fn(&mut v1::MultiGetReply)| {
        let mut wire = v1::MultiGetReply::from(many());
        spoil(&mut wire);
        refused(Items::try_from(wire))
    };
    assert_eq!(bad(&|reply| reply.results.truncate(3)), "places");
    assert_eq!(bad(&|reply| reply.values.truncate(3)), "values");
    assert_eq!(bad(&|reply| reply.versions.push(0)), "versions");
    assert_eq!(bad(&|reply| reply.value_crc32s.clear()), "value_crc32s");
    assert_eq!(bad(&|reply| reply.deadlines_ms.push(0)), "deadlines_ms");
    assert_eq!(bad(&|reply| reply.places[0] = 2), "places");
    assert_eq!(bad(&|reply| reply.places[1] = u32::MAX), "places");
    assert_eq!(bad(&|reply| reply.errors.clear()), "places");
    assert_eq!(bad(&|reply| reply.results[3] = 0), "results");
    assert_eq!(bad(&|reply| reply.results[3] = 99), "results");
    assert_eq!(bad(&|reply| reply.receipts[0].role = 0), "role");
}
