//! Exit codes and texts for every kind of error.

use annulus_client::OpIdText;
use annulus_types::{ClusterId, NodeId, Revision, RoutingTable, ShardId, TableVersion, Token};
use serde_json::json;

use super::*;

/// Every kind with the exit code that it has when nothing was applied, and its own fields.
fn table() -> Vec<(ErrorKind, u8, Value)> {
    let routes =
        Some(Box::new(RoutingTable { version: TableVersion(9), ..RoutingTable::default() }));
    let text = || "here".to_owned();
    vec![
        (ErrorKind::NotLeader { leader: Some(NodeId(2)) }, 3, json!({"leader": 2})),
        (ErrorKind::NotLeader { leader: None }, 3, json!({"leader": null})),
        (ErrorKind::StaleRoute { routes }, 3, json!({"table_version": 9})),
        (ErrorKind::StaleRoute { routes: None }, 3, json!({"table_version": null})),
        (ErrorKind::Moving { to: Some(NodeId(3)) }, 3, json!({"to": 3})),
        (ErrorKind::NoQuorum, 3, json!({})),
        (ErrorKind::OutcomeUnknown, 4, json!({})),
        (ErrorKind::Overloaded, 3, json!({})),
        (
            ErrorKind::TooStale { limit_us: 5, actual_us: Some(6) },
            3,
            json!({"limit_us": 5, "actual_us": 6}),
        ),
        (ErrorKind::TooStale { limit_us: 5, actual_us: None }, 3, json!({"limit_us": 5})),
        (ErrorKind::PreconditionFailed { current: Some(Revision(7)) }, 1, json!({"current": 7})),
        (ErrorKind::PreconditionFailed { current: None }, 1, json!({"current": null})),
        (ErrorKind::Fenced { current: None }, 1, json!({"current": null})),
        (ErrorKind::WriterExpired, 3, json!({})),
        (ErrorKind::OpIdReused, 3, json!({})),
        (ErrorKind::HistoryLost, 3, json!({})),
        (ErrorKind::Compacted { oldest: Revision(8) }, 3, json!({"oldest": 8})),
        (ErrorKind::Lagged { resume: text() }, 3, json!({"resume": "here"})),
        (ErrorKind::NotReady { reason: text() }, 3, json!({"reason": "here"})),
        (
            ErrorKind::ShardHalted { file: text(), offset: 512 },
            3,
            json!({"file": "here", "offset": 512}),
        ),
        (ErrorKind::DiskFull, 3, json!({})),
        (
            ErrorKind::BadRequest { field: text(), message: "too long".to_owned() },
            2,
            json!({"field": "here"}),
        ),
        (
            ErrorKind::WrongCluster { actual: ClusterId([1; 16]) },
            2,
            json!({"actual": "01010101010101010101010101010101"}),
        ),
        (ErrorKind::UnsupportedVersion, 3, json!({})),
        (ErrorKind::DeadlineExceeded { stage: text() }, 3, json!({"stage": "here"})),
        (ErrorKind::Cancelled, 3, json!({})),
        (ErrorKind::Unauthenticated, 5, json!({})),
        (ErrorKind::Forbidden, 5, json!({})),
        (ErrorKind::Unimplemented, 2, json!({})),
        (ErrorKind::Internal { id: text() }, 3, json!({"id": "here"})),
    ]
}

#[test]
fn every_kind_has_its_exit_code() {
    for (kind, code, _) in table() {
        assert_eq!(exit_code(&Error::refused(kind.clone())), code, "{kind:?}");
    }
}

#[test]
fn whatever_may_have_applied_is_an_unknown_outcome() {
    for (kind, _, _) in table() {
        assert_eq!(exit_code(&Error::unknown(kind.clone())), 4, "{kind:?}");
        let applied = Error { may_have_applied: MayHaveApplied::Yes, ..Error::refused(kind) };
        assert_eq!(exit_code(&applied), 4, "{applied:?}");
    }
}

#[test]
fn a_read_never_leaves_an_unknown_outcome() {
    let error = nothing_applied(Error::unknown(ErrorKind::Internal { id: "x".to_owned() }));
    assert_eq!(exit_code(&error), 3);
}

#[test]
fn every_kind_is_one_json_document_with_its_own_fields() {
    for (kind, code, own) in table() {
        let mut error = Error::refused(kind);
        error.retry_after_ms = 40;
        let answer = answer(&error, Format::Json, &[]);
        assert_eq!((answer.out.len(), answer.code), (0, code));
        assert_eq!(answer.err.matches('\n').count(), 1, "{}", answer.err);
        let message = match &error.kind {
            ErrorKind::BadRequest { message, .. } => message.clone(),
            kind => kind.to_string(),
        };
        let mut expected = json!({
            "kind": error.kind.name(),
            "message": message,
            "may_have_applied": "no",
            "retry_after_ms": 40,
        });
        for (name, value) in own.as_object().unwrap() {
            expected[name] = value.clone();
        }
        assert_eq!(serde_json::from_str::<Value>(&answer.err).unwrap(), expected);
    }
}

#[test]
fn every_kind_is_one_line_with_place_fate_and_advice() {
    let endpoints = ["a:1".to_owned(), "b:2".to_owned()];
    for (kind, _, _) in table() {
        let refused = Error::refused(kind.clone());
        let answer = answer(&refused, Format::Table, &endpoints);
        let parts: Vec<&str> = answer.err.trim_end().rsplitn(3, "; ").collect();
        assert_eq!(parts.len(), 3, "{}", answer.err);
        assert_eq!(parts[1], "nothing was applied", "{}", answer.err);
        assert!(answer.err.ends_with('\n') && answer.err.matches('\n').count() == 1);
        assert!(parts[2].contains(kind.name()), "{}", answer.err);
        if !matches!(kind, ErrorKind::BadRequest { .. }) {
            assert!(parts[2].contains("endpoints a:1, b:2"), "{}", answer.err);
        }
    }
}

#[test]
fn the_line_tells_what_may_have_happened() {
    let printed = |error: &Error| answer(error, Format::Table, &["n:1".to_owned()]).err;
    assert_eq!(
        printed(&Error::unknown(ErrorKind::NoQuorum)),
        "error: no majority of replicas answered in time (NoQuorum, endpoints n:1); it may have \
         been applied; read the key before repeating the command\n"
    );
    let overloaded = Error { retry_after_ms: 20, ..Error::refused(ErrorKind::Overloaded) };
    assert_eq!(
        printed(&overloaded),
        "error: the queue is full (Overloaded, endpoints n:1); nothing was applied; wait 20 ms, \
         then try again\n"
    );
    let two_lines = Error::bad_request("key", "first\r\nsecond");
    assert_eq!(
        printed(&two_lines),
        "error: key: first second (BadRequest); nothing was applied; correct the command (--help \
         explains it)\n"
    );
}

#[test]
fn an_unknown_outcome_says_whom_to_ask() {
    let op = OpIdText {
        cluster: ClusterId([7; 16]),
        shard: ShardId(5),
        writer: Revision(40),
        seq: 3,
        token: Token(9),
    };
    let unknown = Error { op: Some(op), ..Error::unknown(ErrorKind::OutcomeUnknown) };
    let table = answer(&unknown, Format::Table, &["n:1".to_owned()]);
    assert_eq!(
        table.err,
        format!(
            "error: the outcome is not known (OutcomeUnknown, endpoints n:1); it may have been \
             applied; run `kvctl op status {op}` before repeating the command\n"
        )
    );
    let json = answer(&unknown, Format::Json, &[]);
    let document: Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!((document["op"].as_str(), json.code), (Some(op.to_string().as_str()), 4));

    let applied = Error { may_have_applied: MayHaveApplied::Yes, ..unknown.clone() };
    let table = answer(&applied, Format::Table, &[]);
    assert!(table.err.contains(&format!("kvctl op status {op}")), "{}", table.err);
    assert_eq!((nothing_applied(unknown).op, table.code), (None, 4));
}
