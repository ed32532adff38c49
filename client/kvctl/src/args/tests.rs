//! What command lines mean.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_anywhere_on_the_line() {
    let globals = "--endpoints a:1,b:2 -o jsonl --timeout 300ms --hex";
    for line in [
        format!("kvctl {globals} get 00"),
        format!("kvctl get {globals} 00"),
        format!("kvctl get 00 {globals}"),
        format!("kvctl {globals} explain key 00"),
        format!("kvctl explain {globals} key 00"),
        format!("kvctl explain key 00 {globals}"),
        "kvctl --endpoints a:1,b:2 --hex get -o jsonl 00 --timeout 300ms".to_owned(),
    ] {
        let global = parse(&line).unwrap().global;
        assert_eq!(global.endpoints, ["a:1", "b:2"], "{line}");
        assert_eq!(global.output, Some(Format::Jsonl), "{line}");
        assert_eq!(global.timeout, Duration::from_millis(300), "{line}");
        assert_eq!((global.hex, global.base64), (true, false), "{line}");
    }
}

#[test]
fn the_endpoints_have_a_default_and_an_environment_variable() {
    let command = Cli::command();
    let endpoints = command.get_arguments().find(|arg| arg.get_id() == "endpoints").unwrap();
    assert_eq!(endpoints.get_default_values(), ["127.0.0.1:7400"]);
    assert_eq!(endpoints.get_env(), Some("ANNULUS_ENDPOINTS".as_ref()));
}

#[test]
fn without_options_five_seconds_and_no_format() {
    let global = parse("kvctl status").unwrap().global;
    assert_eq!(global.timeout, Duration::from_secs(5));
    assert_eq!((global.output, global.hex, global.base64), (None, false, false));
}

#[test]
fn put_takes_one_condition_at_most() {
    let Action::Put(put) = parse("kvctl put k - --if-version 7").unwrap().action else {
        panic!("not a put");
    };
    assert_eq!((put.key.as_str(), put.value.as_str()), ("k", "-"));
    assert_eq!((put.if_absent, put.if_version), (false, Some(7)));
    let Action::Put(put) = parse("kvctl put k -5 --if-absent").unwrap().action else {
        panic!("not a put");
    };
    assert_eq!((put.value.as_str(), put.if_absent, put.if_version), ("-5", true, None));
    assert_eq!(put.ttl, None);
    let Action::Put(put) = parse("kvctl put k v --if-absent --ttl 30s").unwrap().action else {
        panic!("not a put");
    };
    assert_eq!((put.if_absent, put.ttl), (true, Some(Duration::from_secs(30))));
    assert_eq!(parse("kvctl put k v --ttl 0s").unwrap_err().exit_code(), 2);
    for bad in
        ["kvctl put k v --if-absent --if-version 7", "kvctl put k v --if-version 0", "kvctl put k"]
    {
        assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
    }
}

#[test]
fn get_knows_every_mode() {
    for (line, expected) in [
        ("kvctl get k", Consistency::Linearizable),
        ("kvctl get k --consistency linearizable", Consistency::Linearizable),
        ("kvctl get k --consistency any", Consistency::Any),
        ("kvctl get k --consistency session", Consistency::Session),
        ("kvctl get k --session f", Consistency::Session),
        ("kvctl get k --session f --consistency any", Consistency::Any),
        (
            "kvctl get k --consistency bounded:500ms",
            Consistency::Bounded(Duration::from_millis(500)),
        ),
    ] {
        let Action::Get(get) = parse(line).unwrap().action else { panic!("not a get") };
        assert_eq!(get.mode(), expected, "{line}");
    }
    for mode in ["bounded", "bounded:", "bounded:5", "bounded:0ms", "strong", ""] {
        assert!(parse_consistency(mode).is_err(), "{mode}");
    }
}

#[test]
fn reads_and_writes_of_keys_take_a_session() {
    for line in [
        "kvctl put k v --session f",
        "kvctl get k --session f",
        "kvctl delete k --session f",
        "kvctl incr k --session f",
        "kvctl batch -f changes --session f",
    ] {
        let session = match parse(line).unwrap().action {
            Action::Put(args) => args.session,
            Action::Get(args) => args.session,
            Action::Delete(args) => args.session,
            Action::Incr(args) => args.session,
            Action::Batch(args) => args.session,
            other => panic!("{other:?}"),
        };
        assert_eq!(session, Some(PathBuf::from("f")), "{line}");
    }
}

#[test]
fn durations_need_a_unit() {
    for (text, ms) in [("1ms", 1), ("250ms", 250), ("5s", 5_000), ("2m", 120_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for bad in ["", "5", "s", "0s", "-1s", "1.5s", "5 s", "1h", "5sec", "99999999999999999999s"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    assert!(parse_duration(&format!("{}m", u64::MAX)).is_err());
}

#[test]
fn incr_adds_one_unless_told_otherwise() {
    let incr = |line: &str| match parse(line).unwrap().action {
        Action::Incr(Incr { delta, min, max, .. }) => (delta, min, max),
        other => panic!("{other:?}"),
    };
    assert_eq!(incr("kvctl incr k"), (1, None, None));
    assert_eq!(incr("kvctl incr k -3 --min -10 --max 5"), (-3, Some(-10), Some(5)));
    for bad in ["kvctl incr", "kvctl incr k one", "kvctl incr k 9223372036854775808"] {
        assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
    }
}

#[test]
fn op_status_takes_a_whole_id_and_nothing_else() {
    let id = OpIdText {
        cluster: annulus_client::ClusterId([7; 16]),
        shard: annulus_client::ShardId(5),
        writer: annulus_client::Revision(40),
        seq: 3,
        token: annulus_client::Token(9),
    };
    let Action::Op(op) = parse(&format!("kvctl op status {id}")).unwrap().action else {
        panic!("not an op");
    };
    let OpWhat::Status(status) = op.what;
    assert_eq!(status.id, id);
    let error = parse(&format!("kvctl op status {id}0")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("mistyped"), "{error}");
    assert_eq!(parse("kvctl op").unwrap_err().exit_code(), 2);
}

#[test]
fn a_batch_needs_a_file() {
    let Action::Batch(batch) = parse("kvctl batch -f -").unwrap().action else {
        panic!("not a batch");
    };
    assert_eq!(batch.file, PathBuf::from("-"));
    assert_eq!(parse("kvctl batch").unwrap_err().exit_code(), 2);
}

#[test]
fn some_commands_change_data() {
    for (line, mutates) in [
        ("kvctl put k v", true),
        ("kvctl delete k", true),
        ("kvctl incr k", true),
        ("kvctl batch -f changes", true),
        ("kvctl get k", false),
        ("kvctl status", false),
        ("kvctl nodes", false),
        ("kvctl groups", false),
        ("kvctl shards --node 2", false),
        ("kvctl ring show", false),
        ("kvctl explain key k", false),
        ("kvctl verify --shard 3", false),
        ("kvctl completions zsh", false),
        ("kvctl version", false),
    ] {
        assert_eq!(parse(line).unwrap().action.mutates(), mutates, "{line}");
    }
}
