//! The command line: names, options, help texts. Parsing only; what cannot be judged without the
//! other options (two encodings at once) is judged where it is used.
//!
//! The types that clap turns into commands carry no documentation of their own: clap would print
//! it as the help of the command around them.

use std::time::Duration;

use annulus_types::Consistency;
use clap::{Args, Parser, Subcommand};

use crate::output::Format;

const EXAMPLES: &str = "\
Examples:
  kvctl put user:1 Ada
  kvctl get user:1
  kvctl get user:1 --consistency any --receipt
  kvctl status
  kvctl shards --node 2 -o json
  kvctl explain key user:1

Exit codes: 0 done; 1 the answer is no (absent key, failed condition); 2 usage; 3 unavailable or
timed out, nothing applied; 4 outcome unknown; 5 denied.
A key or value that begins with a dash goes behind --: kvctl put k -- -v";

#[derive(Debug, Parser)]
#[command(
    name = "kvctl",
    version,
    about = "Reads, writes and explains an Annulus cluster",
    after_help = EXAMPLES
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Client addresses of any nodes, host:port
    #[arg(
        long,
        global = true,
        env = "ANNULUS_ENDPOINTS",
        value_name = "A,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        help_heading = "Global options"
    )]
    pub endpoints: Vec<String>,
    /// How answers are printed [default: table on a terminal, else json]
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Option<Format>,
    /// Bounds the whole command: 500ms, 5s, 1m
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        value_parser = parse_duration,
        default_value = "5s",
        help_heading = "Global options"
    )]
    pub timeout: Duration,
    /// Keys and values on the command line and in tables are hexadecimal digits
    #[arg(long, global = true, help_heading = "Global options")]
    pub hex: bool,
    /// Keys and values on the command line and in tables are base64
    #[arg(long, global = true, help_heading = "Global options")]
    pub base64: bool,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Sets a key
    #[command(after_help = "\
Examples:
  kvctl put user:1 Ada
  kvctl put user:1 Ada --if-absent
  kvctl put user:1 Grace --if-version 12
  kvctl put report - < report.pdf
  kvctl put --hex 00ff c0ffee")]
    Put(Put),
    /// Reads a key; exit code 1 when it is absent
    #[command(after_help = "\
Examples:
  kvctl get user:1
  kvctl get user:1 --receipt
  kvctl get user:1 --consistency any -o json
  kvctl get report --raw > report.pdf")]
    Get(Get),
    /// Removes a key; removing an absent key is no error
    #[command(after_help = "\
Examples:
  kvctl delete user:1
  kvctl delete user:1 --if-version 12")]
    Delete(Delete),
    /// The cluster at a glance: manager, nodes, groups, shards
    #[command(after_help = "\
Examples:
  kvctl status
  kvctl status -o json --endpoints 10.0.0.1:7400,10.0.0.2:7400")]
    Status,
    /// The nodes: state, addresses, zone, weight, load
    #[command(after_help = "Example:\n  kvctl nodes")]
    Nodes,
    /// The groups: home, leader, members and how far behind they are
    #[command(after_help = "Example:\n  kvctl groups -o jsonl")]
    Groups,
    /// The shards: tokens, group, leader, revision, size, replicas
    #[command(after_help = "\
Examples:
  kvctl shards
  kvctl shards --node 2")]
    Shards(Shards),
    /// The division of the token space
    #[command(after_help = "Example:\n  kvctl ring show")]
    Ring(Ring),
    /// Why something is where it is
    #[command(after_help = "Example:\n  kvctl explain key user:1")]
    Explain(Explain),
    /// Prints the version of this program
    Version,
}

#[derive(Debug, Args)]
pub struct Put {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
    /// The value; - reads its bytes from standard input, as they are
    #[arg(value_name = "V", allow_negative_numbers = true)]
    pub value: String,
    /// Only when the key does not exist
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Only when the key is at this version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub if_version: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Get {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
    /// linearizable: the newest acknowledged value; any: whatever a whole replica holds
    #[arg(
        long,
        value_name = "MODE",
        value_parser = parse_consistency,
        default_value = "linearizable"
    )]
    pub consistency: Consistency,
    /// Also says who answered and on whose word (JSON always does)
    #[arg(long)]
    pub receipt: bool,
    /// Only the bytes of the value, whatever the output format; a receipt goes to standard error
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
    /// Only when the key is at this version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub if_version: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Shards {
    /// Only shards with a replica on this node
    #[arg(long, value_name = "N")]
    pub node: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Ring {
    #[command(subcommand)]
    pub what: RingWhat,
}

#[derive(Debug, Subcommand)]
pub enum RingWhat {
    /// Every slice with its home and its replicas
    #[command(after_help = "Example:\n  kvctl ring show -o json")]
    Show,
}

#[derive(Debug, Args)]
pub struct Explain {
    #[command(subcommand)]
    pub what: ExplainWhat,
}

#[derive(Debug, Subcommand)]
pub enum ExplainWhat {
    /// Where a key lives and which rules put it there; the key need not exist
    #[command(after_help = "\
Examples:
  kvctl explain key user:1
  kvctl explain key '{user:1}:cart' -o json")]
    Key(ExplainKey),
}

#[derive(Debug, Args)]
pub struct ExplainKey {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
}

impl Action {
    /// Whether the command can change data, so that its failure leaves the question what happened.
    #[must_use]
    pub fn mutates(&self) -> bool {
        matches!(self, Self::Put(_) | Self::Delete(_))
    }
}

/// A whole number with its unit: `500ms`, `5s`, `1m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a whole number with ms, s or m, as in 500ms, 5s or 1m".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit_ms) {
        Some(0) => Err("must be longer than nothing".to_owned()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err("too long".to_owned()),
    }
}

/// Modes that a later version brings are known by name, so that the answer is not "no such mode".
fn parse_consistency(text: &str) -> Result<Consistency, String> {
    let later = |what: &str| {
        Err(format!("{what} are not part of this version; there are linearizable and any"))
    };
    match text {
        "linearizable" => Ok(Consistency::Linearizable),
        "any" => Ok(Consistency::Any),
        "session" => later("session reads"),
        _ => match text.strip_prefix("bounded:") {
            Some(limit) => {
                parse_duration(limit)?;
                later("reads with a staleness bound")
            }
            None => Err("there are linearizable and any".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
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
        for bad in [
            "kvctl put k v --if-absent --if-version 7",
            "kvctl put k v --if-version 0",
            "kvctl put k",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn get_knows_the_modes_of_this_version() {
        for (line, expected) in [
            ("kvctl get k", Consistency::Linearizable),
            ("kvctl get k --consistency linearizable", Consistency::Linearizable),
            ("kvctl get k --consistency any", Consistency::Any),
        ] {
            let Action::Get(get) = parse(line).unwrap().action else { panic!("not a get") };
            assert_eq!(get.consistency, expected, "{line}");
        }
        for mode in ["session", "bounded:500ms"] {
            let error = parse(&format!("kvctl get k --consistency {mode}")).unwrap_err();
            assert!(error.to_string().contains("not part of this version"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        for mode in ["bounded:", "bounded:5", "strong", ""] {
            let error = parse_consistency(mode).unwrap_err();
            assert!(!error.contains("not part of this version"), "{mode}: {error}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [("1ms", 1), ("250ms", 250), ("5s", 5_000), ("2m", 120_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "5 s", "1h", "5sec", "99999999999999999999s"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration(&format!("{}m", u64::MAX)).is_err());
    }

    #[test]
    fn only_put_and_delete_change_data() {
        for (line, mutates) in [
            ("kvctl put k v", true),
            ("kvctl delete k", true),
            ("kvctl get k", false),
            ("kvctl status", false),
            ("kvctl nodes", false),
            ("kvctl groups", false),
            ("kvctl shards --node 2", false),
            ("kvctl ring show", false),
            ("kvctl explain key k", false),
            ("kvctl version", false),
        ] {
            assert_eq!(parse(line).unwrap().action.mutates(), mutates, "{line}");
        }
    }
}
