//! The command line: names, options, help texts. Parsing only; what cannot be judged without the
//! other options (two encodings at once) is judged where it is used.
//!
//! The types that clap turns into commands carry no documentation of their own: clap would print
//! it as the help of the command around them.

use std::path::PathBuf;
use std::time::Duration;

use annulus_client::OpIdText;
use annulus_types::Consistency;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::Format;

mod operate;

pub use operate::{
    Consent, ExplainId, ExplainNode, Leader, LeaderWhat, Manager, ManagerWhat, Moves, MovesWhat,
    Node, NodeWhat, Rebalance, RebalanceWhat, SettingName, Settings, SettingsWhat,
};

const EXAMPLES: &str = "\
Examples:
  kvctl put user:1 Ada
  kvctl get user:1
  kvctl get user:1 --consistency any --receipt
  kvctl incr visits
  kvctl status
  kvctl shards --node 2 -o json
  kvctl explain key user:1

Exit codes: 0 done; 1 the answer is no (absent key, failed condition); 2 usage; 3 unavailable or
timed out, nothing applied; 4 outcome unknown; 5 denied.
An error of exit code 4 prints the id of the operation: kvctl op status ID says what became of it.
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
  kvctl put code:1 4711 --ttl 30s
  kvctl put report - < report.pdf
  kvctl put --hex 00ff c0ffee")]
    Put(Put),
    /// Reads a key; exit code 1 when it is absent
    #[command(after_help = "\
Examples:
  kvctl get user:1
  kvctl get user:1 --receipt
  kvctl get user:1 --consistency any -o json
  kvctl get user:1 --consistency bounded:500ms
  kvctl get user:1 --session my.session
  kvctl get report --raw > report.pdf")]
    Get(Get),
    /// Removes a key; removing an absent key is no error
    #[command(after_help = "\
Examples:
  kvctl delete user:1
  kvctl delete user:1 --if-version 12")]
    Delete(Delete),
    /// Adds to the number that a key holds; exit code 1 when that cannot be done
    #[command(after_help = "\
The value is a number in decimal digits; an absent key counts as 0.

Examples:
  kvctl incr visits
  kvctl incr stock -3 --min 0
  kvctl incr visits 0 -o json")]
    Incr(Incr),
    /// Changes several keys, all or none
    #[command(after_help = "\
FILE has one JSON document per line. \"op\" says what to do:
  put             sets \"key\" to \"value\"; with \"ttl\": \"30s\" the key ends after that
  delete          removes \"key\"
  expect_absent   nothing is changed if \"key\" exists
  expect_present  nothing is changed if \"key\" does not exist
  expect_version  nothing is changed if \"key\" is not at \"version\"
All keys must have one routing key, that is the same text in their first braces. Up to 1,000 changes,
1,000 conditions, 8 MiB of keys and values. --hex and --base64 apply to keys and values in FILE too.

Example, moving money between two accounts that nobody else has touched:
  {\"op\": \"expect_version\", \"key\": \"{bank}:ada\", \"version\": 12}
  {\"op\": \"expect_version\", \"key\": \"{bank}:bob\", \"version\": 7}
  {\"op\": \"put\", \"key\": \"{bank}:ada\", \"value\": \"90\"}
  {\"op\": \"put\", \"key\": \"{bank}:bob\", \"value\": \"60\"}

  kvctl batch -f move.jsonl
  make-changes | kvctl batch -f -")]
    Batch(Batch),
    /// About changes whose outcome was unknown
    #[command(after_help = "Example:\n  kvctl op status ID")]
    Op(Op),
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
    /// The moves that have not ended: what they do, how far they are
    #[command(
        after_help = "Examples:\n  kvctl moves\n  kvctl moves --all\n  kvctl moves cancel 12"
    )]
    Moves(Moves),
    /// Spreads the groups over the nodes
    #[command(after_help = "\
Examples:
  kvctl rebalance plan
  kvctl rebalance apply 4711
  kvctl rebalance pause --yes")]
    Rebalance(Rebalance),
    /// Drains, removes or changes a node
    #[command(after_help = "\
Examples:
  kvctl node drain 2 --dry-run
  kvctl node weight 2 1.5
  kvctl node zone 2 east --yes")]
    Node(Node),
    /// Says who leads a group
    #[command(after_help = "Examples:\n  kvctl leader move 10 2\n  kvctl leader balance")]
    Leader(Leader),
    /// The settings of the cluster
    #[command(after_help = "\
Examples:
  kvctl settings get
  kvctl settings set rebalance manual
  kvctl settings set down_after_ms 60000")]
    Settings(Settings),
    /// What the manager keeps
    #[command(after_help = "Example:\n  kvctl manager export manager.state")]
    Manager(Manager),
    /// Why something is where it is
    #[command(after_help = "Examples:\n  kvctl explain key user:1\n  kvctl explain node 2")]
    Explain(Explain),
    /// Compares the replicas of each group; exit code 1 when two of them hold different data
    #[command(after_help = "\
Of each group one entry of its log is chosen; every voter computes a digest of what its engine gives back
there, and the leader compares. Group by group all rows are read, a minute at most for each: give --timeout
what the data need. Nothing is changed, and nothing is repaired.

Examples:
  kvctl verify --timeout 10m
  kvctl verify --shard 17 -o json

Exit codes: 0 all replicas are equal; 1 some differ; 3 some could not be asked, and no difference was
found; others as everywhere.")]
    Verify(Verify),
    /// Prints a script that completes command lines in a shell
    #[command(after_help = "\
Examples:
  kvctl completions bash > ~/.local/share/bash-completion/completions/kvctl
  kvctl completions zsh > ~/.zfunc/_kvctl
  kvctl completions fish > ~/.config/fish/completions/kvctl.fish")]
    Completions(Completions),
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
    /// The key ends after this time: 500ms, 30s, 5m. Without it the key stays, also one that would have
    /// ended
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Keeps a session in this file: what this and later commands read is never older than what they have
    /// seen. One command at a time
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Get {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
    /// linearizable: the newest acknowledged value; session: at least what --session has seen;
    /// bounded:TIME: nothing acknowledged longer ago than that is missing; any: whatever a whole replica
    /// holds [default: linearizable, with --session session]
    #[arg(long, value_name = "MODE", value_parser = parse_consistency)]
    pub consistency: Option<Consistency>,
    /// Keeps a session in this file: what this and later commands read is never older than what they have
    /// seen. One command at a time; makes session the default mode
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
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
    /// Keeps a session in this file: what this and later commands read is never older than what they have
    /// seen. One command at a time
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Incr {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
    /// What is added
    #[arg(value_name = "N", allow_negative_numbers = true, default_value_t = 1)]
    pub delta: i64,
    /// Nothing is changed when the sum would be below this
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min: Option<i64>,
    /// Nothing is changed when the sum would be above this
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max: Option<i64>,
    /// Keeps a session in this file: what this and later commands read is never older than what they have
    /// seen. One command at a time
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Batch {
    /// The changes and their conditions; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Keeps a session in this file: what this and later commands read is never older than what they have
    /// seen. One command at a time
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Op {
    #[command(subcommand)]
    pub what: OpWhat,
}

#[derive(Debug, Subcommand)]
pub enum OpWhat {
    /// What became of an operation, by the id that every error of unknown outcome prints
    #[command(after_help = "\
The answer is final: an operation that was not applied is refused from then on. It is kept for ten
minutes after the last use of the operation's writer.

Exit codes: 0 applied; 1 not applied, now or later; 4 no longer known; others as everywhere.")]
    Status(OpStatus),
}

#[derive(Debug, Args)]
pub struct OpStatus {
    /// The id: op1-…
    #[arg(value_name = "ID")]
    pub id: OpIdText,
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
    /// What was decided about a shard's group
    Shard(ExplainId),
    /// What was decided about a group; 0 is the manager's own
    Group(ExplainId),
    /// What was decided about a node
    Node(ExplainNode),
    /// What was decided about a move
    Move(ExplainId),
}

#[derive(Debug, Args)]
pub struct ExplainKey {
    /// The key
    #[arg(value_name = "K", allow_negative_numbers = true)]
    pub key: String,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Only the group of this shard, and only what it holds of the shard
    #[arg(long, value_name = "N")]
    pub shard: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: ShellName,
}

/// The shells that there are scripts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShellName {
    Bash,
    Zsh,
    Fish,
}

impl Get {
    /// The consistency asked for.
    #[must_use]
    pub fn mode(&self) -> Consistency {
        match (&self.consistency, &self.session) {
            (Some(consistency), _) => consistency.clone(),
            (None, Some(_)) => Consistency::Session,
            (None, None) => Consistency::Linearizable,
        }
    }
}

impl Action {
    /// Whether the command can change something, so that its failure leaves the question what happened.
    #[must_use]
    pub fn mutates(&self) -> bool {
        matches!(self, Self::Put(_) | Self::Delete(_) | Self::Incr(_) | Self::Batch(_))
            || self.consent().is_some_and(|consent| !consent.dry_run)
    }
}

/// A whole number with its unit: `500ms`, `5s`, `1m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
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

fn parse_consistency(text: &str) -> Result<Consistency, String> {
    match text {
        "linearizable" => Ok(Consistency::Linearizable),
        "session" => Ok(Consistency::Session),
        "any" => Ok(Consistency::Any),
        _ => match text.strip_prefix("bounded:") {
            Some(limit) => parse_duration(limit).map(Consistency::Bounded),
            None => {
                Err("there are linearizable, session, bounded:TIME (as in bounded:500ms) and any"
                    .to_owned())
            }
        },
    }
}

#[cfg(test)]
mod tests;
