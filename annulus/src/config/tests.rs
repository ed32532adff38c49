//! The configuration as its users meet it: files, variables, flags, and what they are told.

use annulus_runtime::RealDisk;
use annulus_runtime::disk::replace_file;
use clap::Parser;
use tempfile::TempDir;
use toml::Value;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

fn flags(line: &str) -> Flags {
    Cli::try_parse_from(std::iter::once("annulus").chain(line.split_whitespace())).unwrap().flags
}

fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    replace_file(&RealDisk, dir.path(), "annulus.toml", content).unwrap();
    let path = dir.path().join("annulus.toml");
    (dir, path)
}

fn load(content: &str, env: &[(&str, &str)], line: &str) -> Result<Config, ConfigErrors> {
    let (_dir, path) = file(content.as_bytes());
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), env, flags(line))
}

/// What is wrong with settings that are otherwise sound.
fn problems(content: &str) -> Vec<Problem> {
    let sound = "--node-id 1 --data-dir data";
    load(content, &[], sound).err().map(|errors| errors.problems).unwrap_or_default()
}

fn names(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.setting.as_str()).collect()
}

/// Sound, and nothing in it is as by default.
fn unusual() -> Config {
    let ms = Duration::from_millis;
    Config {
        node_id: 7,
        data_dir: PathBuf::from("some where/\"n7\""),
        listen: "10.0.0.7:1".parse().unwrap(),
        peer_listen: "[2001:db8::7]:2".parse().unwrap(),
        http_listen: "10.0.0.7:0".parse().unwrap(),
        advertise: "db-7.example:7400".to_owned(),
        peer_advertise: "[2001:db8::70]:7401".to_owned(),
        join: vec!["db-1.example:7401".to_owned(), "[::1]:7411".to_owned()],
        roles: vec![Role::Manager],
        zone: "zürich-1".to_owned(),
        weight: Weight(7),
        engine: EngineKind::Sled,
        log_format: LogFormat::Json,
        insecure: true,
        unsafe_slow_apply_ms: 7,
        timing: Timing {
            heartbeat: ms(1_000),
            election_min: ms(3_000),
            lease: ms(60_000),
            ping: ms(1),
        },
        wal: Wal { segment_bytes: ByteSize(1_500 * 1024) },
    }
}

/// The serialised settings by their names, without the tables around them.
fn serialised(config: &Config) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (name, value) in Table::try_from(config).unwrap() {
        match value {
            Value::Table(table) => {
                found.extend(table.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)))
            }
            value => drop(found.insert(name, value)),
        }
    }
    found
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let content = "\
        zone = 'file'\n weight = 2\n engine = 'sled'\n join = ['f:1']\n\
        [timing]\n lease = '1s'\n ping = '200ms'\n";
    let env = [
        ("ANNULUS_ZONE", "variable"),
        ("ANNULUS_WEIGHT", "3.5"),
        ("ANNULUS_TIMING_PING", "300ms"),
        ("ANNULUS_NODE_ID", "4"),
        ("ANNULUS_DATA_DIR", "data"),
    ];
    let config = load(content, &env, "--zone flag --node-id 5").unwrap();
    assert_eq!((config.zone.as_str(), config.node_id), ("flag", 5));
    assert_eq!((config.weight_hundredths(), config.data_dir), (350, PathBuf::from("data")));
    assert_eq!(config.timing.ping, Duration::from_millis(300));
    assert_eq!(config.timing.lease, Duration::from_millis(1_000));
    assert_eq!((config.engine, config.join), (EngineKind::Sled, vec!["f:1".to_owned()]));
    assert_eq!(config.timing.heartbeat, Timing::default().heartbeat);
    assert_eq!(config.listen, Config::default().listen);
}

#[test]
fn the_file_may_be_named_in_three_ways() {
    let (_a, argument) = file(b"zone = 'argument'");
    let (_b, flag) = file(b"zone = 'flag'");
    let (_c, variable) = file(b"zone = 'variable'");
    let zone = |argument: Option<&Path>, with_flag: bool, with_variable: bool| {
        let mut flags = flags("--node-id 1 --data-dir data");
        flags.config = with_flag.then(|| flag.clone());
        let name = variable.to_str().unwrap().to_owned();
        let env = with_variable.then_some(("ANNULUS_CONFIG".to_owned(), name));
        Config::load(argument, env.into_iter(), flags).unwrap().zone
    };
    assert_eq!(zone(Some(argument.as_path()), true, true), "argument");
    assert_eq!(zone(None, true, true), "flag");
    assert_eq!(zone(None, false, true), "variable");
    assert_eq!(zone(None, false, false), "");
}

#[test]
fn what_is_printed_loads_as_the_same() {
    let config = unusual();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(load(&config.print(), &[], ""), Ok(config));

    let defaults = Config { node_id: 1, data_dir: PathBuf::from("data"), ..Config::default() };
    assert_eq!(load(&defaults.print(), &[], ""), Ok(defaults));
}

#[test]
fn every_setting_has_a_variable() {
    let defaults = serialised(&Config::default());
    let mut env = Vec::new();
    for (name, value) in serialised(&unusual()) {
        assert_ne!(defaults.get(&name), Some(&value), "{name} is as by default");
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            value => value.to_string(),
        };
        let variable = format!("ANNULUS_{}", name.replace(['.', '-'], "_").to_uppercase());
        env.push((variable, text));
    }
    assert_eq!(Config::load(None, env.into_iter(), Flags::default()), Ok(unusual()));
}

#[test]
fn variables_of_others_are_passed_over() {
    let env = [
        ("ANNULUS_ENDPOINTS", "127.0.0.1:7400"),
        ("ANNULUS_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
        ("ANNULUS_TIMING", "fast"),
        ("ZONE", "elsewhere"),
    ];
    let config = load("", &env, "--node-id 1 --data-dir data").unwrap();
    let expected = Config { node_id: 1, data_dir: PathBuf::from("data"), ..Config::default() };
    assert_eq!(config, expected);
}

#[test]
fn a_list_in_a_variable_may_be_empty() {
    let env = [("ANNULUS_JOIN", ""), ("ANNULUS_ROLES", "manager")];
    let config = load("join = ['a:1']", &env, "--node-id 1 --data-dir data").unwrap();
    assert_eq!((config.join.len(), config.roles.as_slice()), (0, &[Role::Manager][..]));
    assert!(config.has_manager());
    assert!(!config.has_storage());
}

#[test]
fn unknown_settings_are_refused() {
    for (content, name) in [
        ("node_id = 1", "node_id"),
        ("[timing]\nlaese = '1s'", "timing.laese"),
        ("[tls]", "tls"),
        ("[tls.client]\ncert = 'x'", "tls.client.cert"),
    ] {
        let found = problems(content);
        assert_eq!(names(&found), [name], "{content}");
        assert!(found[0].reason.contains("unknown field"), "{}", found[0]);
        assert!(found[0].reason.contains("annulus.toml"), "{}", found[0]);
    }
    assert!(problems("[timing]\n[wal]").is_empty());
}

#[test]
fn all_problems_are_told_at_once() {
    let content = "\
        nodeid = 1\n listen = 'here'\n zone = 'a b'\n weight = 1.234\n roles = ['king']\n\
        peer-listen = '10.0.0.1:7401'\n join = ['nowhere']\n\
        [timing]\n heartbeat = 100\n lease = '400ms'\n [wal]\n segment-bytes = '16MB'\n";
    let env = [("ANNULUS_INSECURE", "maybe"), ("ANNULUS_TIMING_PING", "0s")];
    let errors = load(content, &env, "--data-dir data").unwrap_err();
    let found: BTreeSet<&str> = names(&errors.problems).into_iter().collect();
    let expected = [
        "insecure",
        "join",
        "listen",
        "node-id",
        "nodeid",
        "peer-listen",
        "roles",
        "timing.heartbeat",
        "timing.lease",
        "timing.ping",
        "wal.segment-bytes",
        "weight",
        "zone",
    ];
    assert_eq!(found, BTreeSet::from(expected));
    assert_eq!(errors.problems.len(), expected.len(), "{errors}");
    assert_eq!(errors.to_string().lines().count(), expected.len(), "{errors}");
    for told in ["ANNULUS_INSECURE gives \"maybe\"", "as in 100ms, got \"100\"", "as in 16MiB"] {
        assert!(errors.to_string().contains(told), "{told}: {errors}");
    }
}

#[test]
fn each_limit_names_its_setting() {
    let long = "z".repeat(65);
    for (content, name, limit) in [
        ("node-id = -1".to_owned(), "node-id", "u32"),
        ("node-id = 4294967296".to_owned(), "node-id", "u32"),
        ("listen = '0.0.0.0:7400'".to_owned(), "listen", "--insecure"),
        ("peer-listen = '[::]:7401'".to_owned(), "peer-listen", "--insecure"),
        ("http-listen = '192.168.0.1:7402'".to_owned(), "http-listen", "--insecure"),
        ("listen = 'localhost:7400'".to_owned(), "listen", "socket address"),
        ("http-listen = '127.0.0.1:7400'".to_owned(), "http-listen", "listen = 127.0.0.1:7400"),
        ("join = ['a:7401', 'b:0']".to_owned(), "join", "from 1 to 65535"),
        ("join = 'a:7401'".to_owned(), "join", "sequence"),
        ("advertise = 'a'".to_owned(), "advertise", "from 1 to 65535"),
        ("advertise = '0.0.0.0:7400'".to_owned(), "advertise", "all addresses"),
        ("peer-advertise = '[::]:7401'".to_owned(), "peer-advertise", "all addresses"),
        ("peer-advertise = 'a:0'".to_owned(), "peer-advertise", "from 1 to 65535"),
        ("roles = []".to_owned(), "roles", "at least one"),
        ("roles = ['storage', 'storage']".to_owned(), "roles", "storage stands there twice"),
        ("roles = ['voter']".to_owned(), "roles", "`manager`"),
        (format!("zone = '{long}'"), "zone", "at most 64"),
        ("zone = 'a,b'".to_owned(), "zone", "comma"),
        ("weight = 0".to_owned(), "weight", "within 0.01 and 100.0"),
        ("weight = 100.01".to_owned(), "weight", "within 0.01 and 100.0"),
        ("weight = -1".to_owned(), "weight", "two digits"),
        ("weight = nan".to_owned(), "weight", "two digits"),
        ("weight = 1e300".to_owned(), "weight", "two digits"),
        ("weight = true".to_owned(), "weight", "boolean"),
        ("engine = 'rocksdb'".to_owned(), "engine", "fjall, sled and memory"),
        ("log-format = 'xml'".to_owned(), "log-format", "`json`"),
        ("unsafe-slow-apply-ms = 10001".to_owned(), "unsafe-slow-apply-ms", "within 0 and 10000"),
        ("timing = 3".to_owned(), "timing", "struct Timing"),
        ("timing.heartbeat = '0ms'".to_owned(), "timing.heartbeat", "at least 1ms"),
        ("timing.heartbeat = '134ms'".to_owned(), "timing.election-min", "three times"),
        ("timing.lease = '400ms'".to_owned(), "timing.lease", "timing.election-min = 400ms"),
        ("timing.lease = '60001ms'".to_owned(), "timing.lease", "within 1ms and 1m"),
        ("timing.ping = '0s'".to_owned(), "timing.ping", "within 1ms and 1m"),
        ("wal.segment-bytes = '1023KiB'".to_owned(), "wal.segment-bytes", "1MiB and 128MiB"),
        ("wal.segment-bytes = '1GiB'".to_owned(), "wal.segment-bytes", "1MiB and 128MiB"),
    ] {
        // A flag would hide the file's own.
        let line =
            if name == "node-id" { "--data-dir data" } else { "--node-id 1 --data-dir data" };
        let errors = load(&content, &[], line).unwrap_err();
        assert_eq!(names(&errors.problems), [name], "{content}");
        assert!(errors.to_string().contains(limit), "{content}: {errors}");
    }
}

#[test]
fn what_lies_at_a_limit_is_allowed() {
    for content in [
        "listen = '[::1]:7400'\n peer-listen = '127.9.9.9:7400'",
        "listen = '[::ffff:127.0.0.1]:7400'",
        "listen = '127.0.0.1:0'\n peer-listen = '127.0.0.1:0'",
        "listen = '0.0.0.0:7400'\n insecure = true",
        "advertise = 'db-1.example:7400'\n peer-advertise = '10.0.0.1:7401'",
        "advertise = ''",
        "join = ['a-b_c.d:1', '10.0.0.1:65535', '[fe80::1]:7401']",
        "weight = 0.01",
        "weight = 100",
        "weight = '99.99'",
        "timing.heartbeat = '133ms'",
        "timing = { heartbeat = '1ms', election-min = '3ms', lease = '4ms' }",
        "timing.lease = '1m'\n timing.ping = '1m'",
        "wal.segment-bytes = '1MiB'",
        "wal.segment-bytes = '128MiB'",
    ] {
        let found = problems(content);
        assert!(found.is_empty(), "{content}: {found:?}");
    }
    let zone = format!("zone = '{}'", "z".repeat(64));
    assert!(problems(&zone).is_empty());
}

#[test]
fn peer_addresses_are_looked_at_closely() {
    for bad in ["", ":", "a", "a:", ":1", "a:+1", "a:65536", "a b:1", "::1:1", "[::1]", "[a]:1"] {
        let found = problems(&format!("join = ['{bad}']"));
        assert_eq!(names(&found), ["join"], "{bad}");
    }
    let host = |len: usize| format!("join = ['{}:1']", "h".repeat(len));
    assert!(problems(&host(253)).is_empty());
    assert_eq!(names(&problems(&host(254))), ["join"]);
}

#[test]
fn a_default_configuration_lacks_only_what_nobody_can_guess() {
    let errors = Config::default().validate().unwrap_err();
    assert_eq!(names(&errors.problems), ["node-id", "data-dir"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_a, no_toml) = file(b"zone = \n");
    let (_b, no_text) = file(b"zone = '\xff'\n");
    let (_c, too_long) = file("\n".repeat((1 << 20) + 1).as_bytes());
    for (path, reason) in [
        (dir.path().join("missing.toml"), "cannot be read"),
        (no_toml, "is not TOML"),
        (no_text, "is not UTF-8"),
        (too_long, "limit 1048576"),
    ] {
        // Nothing is said about the node's id, which may well be in the file.
        let env = [("ANNULUS_WEIGHT".to_owned(), "heavy".to_owned())];
        let errors = Config::load(Some(&path), env.into_iter(), Flags::default()).unwrap_err();
        assert_eq!(names(&errors.problems), [path.to_str().unwrap(), "weight"]);
        assert!(errors.problems[0].reason.contains(reason), "{errors}");
    }
}

#[test]
fn a_folder_without_a_name_in_utf8_is_refused_but_printed() {
    use std::os::unix::ffi::OsStringExt as _;
    let data_dir = PathBuf::from(std::ffi::OsString::from_vec(b"d\xffr".to_vec()));
    let config = Config { data_dir, ..unusual() };
    let errors = config.validate().unwrap_err();
    assert_eq!(names(&errors.problems), ["data-dir"]);
    assert!(config.print().contains("d\u{fffd}r"));
}

#[test]
fn times_are_judged_as_the_host_judges_them() {
    let ms = Duration::from_millis;
    let some = [0, 1, 2, 3, 4, 100, 133, 134, 299, 300, 400, 600, 60_000];
    let (mut good, mut bad) = (0, 0);
    for heartbeat in some.map(ms) {
        for election_min in some.map(ms) {
            for lease in some.map(ms) {
                for ping in [0, 1, 100].map(ms) {
                    let timing = Timing { heartbeat, election_min, lease, ping };
                    let config = Config { timing, ..unusual() };
                    let here = config.validate().is_ok();
                    assert_eq!(here, config.timing().validate().is_ok(), "{:?}", config.timing);
                    if here { good += 1 } else { bad += 1 }
                }
            }
        }
    }
    assert!(good > 0 && bad > 0, "{good} good, {bad} bad");
}

#[test]
fn defaults_are_those_of_the_parts() {
    let config = Config::default();
    assert_eq!(config.timing(), annulus_raft::Timing::default());
    assert_eq!(config.engine_kind(), EngineKind::default());
    let (ours, theirs) = (config.wal_options(), annulus_wal::Options::default());
    assert_eq!((ours.segment_bytes, ours.tail_bytes), (theirs.segment_bytes, theirs.tail_bytes));
    assert_eq!(
        (config.weight_hundredths(), config.has_storage(), config.has_manager()),
        (100, true, true)
    );
}

#[test]
fn flags_have_the_names_of_settings() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let command = Cli::command();
    let longs: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    let all = serialised(&Config::default());
    let mut expected: BTreeSet<&str> =
        all.keys().map(String::as_str).filter(|name| !name.contains('.')).collect();
    expected.insert("config");
    assert_eq!(longs, expected);
}

#[test]
fn every_flag_is_applied() {
    let line = "--node-id 7 --data-dir d --listen 10.0.0.7:1 --peer-listen [2001:db8::7]:2 \
        --http-listen 10.0.0.7:0 --advertise db-7.example:7400 \
        --peer-advertise [2001:db8::70]:7401 --join db-1.example:7401,[::1]:7411 --roles manager \
        --zone zürich-1 --weight 0.07 --engine sled --log-format json --insecure \
        --unsafe-slow-apply-ms 7";
    let config = Config::load(None, std::iter::empty(), flags(line)).unwrap();
    let expected = Config {
        data_dir: PathBuf::from("d"),
        timing: Timing::default(),
        wal: Wal::default(),
        ..unusual()
    };
    assert_eq!(config, expected);
    let both = flags("--roles storage,manager").roles;
    assert_eq!(both, Some(vec![Role::Storage, Role::Manager]));
}

#[test]
fn flags_are_typed() {
    for bad in ["--node-id x", "--listen 7400", "--weight 1.234", "--engine rocks", "--roles king"]
    {
        let line = std::iter::once("annulus").chain(bad.split_whitespace());
        assert_eq!(Cli::try_parse_from(line).unwrap_err().exit_code(), 2, "{bad}");
    }
}

#[test]
fn the_docs_cover_every_setting() {
    let docs = Config::docs();
    let mut lines = docs.lines();
    assert_eq!(lines.next(), Some("| setting | default | flag | variable | meaning |"));
    assert_eq!(lines.next(), Some("| --- | --- | --- | --- | --- |"));
    let mut documented = BTreeSet::new();
    for line in lines {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, default, flag, variable, meaning, _] = cells[..] else {
            panic!("not five cells: {line}")
        };
        assert!(meaning.len() > 10 && meaning.ends_with('.'), "{line}");
        assert!(!meaning.contains("  "), "{line}");
        let name = name.trim_matches('`');
        if name.starts_with('[') {
            assert_eq!((default, flag, variable), ("", "", ""), "{line}");
            continue;
        }
        assert!(!default.is_empty() && variable.starts_with("`ANNULUS_"), "{line}");
        assert!(documented.insert(name.to_owned()), "twice: {line}");
    }
    let all: BTreeSet<String> = serialised(&Config::default()).into_keys().collect();
    assert_eq!(documented, all);

    for row in [
        "| `node-id` | required | `--node-id` | `ANNULUS_NODE_ID` | Number of this node",
        "| `listen` | `\"127.0.0.1:7400\"` | `--listen` | `ANNULUS_LISTEN` | ",
        "| `roles` | `[\"storage\", \"manager\"]` | `--roles` | `ANNULUS_ROLES` | ",
        "| `weight` | `1.0` | `--weight` | `ANNULUS_WEIGHT` | ",
        "| `[timing]` | | | | ",
        "| `timing.election-min` | `\"400ms\"` |  | `ANNULUS_TIMING_ELECTION_MIN` | ",
        "| `wal.segment-bytes` | `\"16MiB\"` |  | `ANNULUS_WAL_SEGMENT_BYTES` | ",
    ] {
        assert!(docs.contains(row), "{row}\n{docs}");
    }
}

#[test]
fn units_are_read_and_written() {
    for (text, millis, written) in [
        ("0ms", 0, "0ms"),
        ("0m", 0, "0ms"),
        ("1ms", 1, "1ms"),
        ("999ms", 999, "999ms"),
        ("1000ms", 1_000, "1s"),
        ("90s", 90_000, "90s"),
        ("2m", 120_000, "2m"),
    ] {
        let duration: Duration = text.parse().unwrap();
        assert_eq!(duration.get(), std::time::Duration::from_millis(millis), "{text}");
        assert_eq!(duration.to_string(), written);
        assert_eq!(written.parse(), Ok(duration));
    }
    for (text, bytes, written) in [
        ("0GiB", 0, "0B"),
        ("1023B", 1023, "1023B"),
        ("4096B", 4096, "4KiB"),
        ("1536KiB", 1536 << 10, "1536KiB"),
        ("16MiB", 16 << 20, "16MiB"),
        ("1024MiB", 1 << 30, "1GiB"),
    ] {
        let size: ByteSize = text.parse().unwrap();
        assert_eq!(size, ByteSize(bytes), "{text}");
        assert_eq!(size.to_string(), written);
        assert_eq!(written.parse(), Ok(size));
    }
    for bad in ["", "1", "ms", "-1s", "1.5s", "1 s", "1h", "1S", "s1", "18446744073709551615s"] {
        assert!(bad.parse::<Duration>().is_err(), "{bad}");
    }
    for bad in ["", "1", "16MB", "16M", "16 MiB", "1.5GiB", "17179869184GiB"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
    }
}

#[test]
fn weights_are_exact_decimals() {
    for (text, hundredths, written) in [
        ("1", 100, "1.0"),
        ("1.0", 100, "1.0"),
        ("1.5", 150, "1.5"),
        ("1.50", 150, "1.5"),
        ("0.07", 7, "0.07"),
        ("100.00", 10_000, "100.0"),
    ] {
        let weight: Weight = text.parse().unwrap();
        assert_eq!((weight, weight.to_string().as_str()), (Weight(hundredths), written), "{text}");
    }
    for bad in ["", ".", "1.", ".5", "1.005", "1.000", "-1", "+1", "1,5", "1e2", "42949673"] {
        assert!(bad.parse::<Weight>().is_err(), "{bad}");
    }
    // Through the binary fraction that TOML makes of a decimal.
    for hundredths in 1..=10_000 {
        let value = Value::try_from(Weight(hundredths)).unwrap();
        let table: Table = format!("weight = {value}").parse().unwrap();
        let read: Weight = table["weight"].clone().try_into().unwrap();
        assert_eq!(read, Weight(hundredths), "{value}");
    }
}
