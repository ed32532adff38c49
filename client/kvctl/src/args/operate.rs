//! The command lines of operators: what they look at and change through the manager.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Action;

#[derive(Debug, Args)]
pub struct Consent {
    /// Only tells what would be decided; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Does not ask before it acts
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Moves {
    #[command(subcommand)]
    pub what: Option<MovesWhat>,
    /// Those that have ended, too, as far back as they are kept
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
pub enum MovesWhat {
    /// Undoes a move that has not begun to change the membership
    Cancel(MovesCancel),
}

#[derive(Debug, Args)]
pub struct MovesCancel {
    /// The move
    #[arg(value_name = "ID")]
    pub id: u64,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct Rebalance {
    #[command(subcommand)]
    pub what: RebalanceWhat,
}

#[derive(Debug, Subcommand)]
pub enum RebalanceWhat {
    /// What a rebalance would do now; changes nothing
    Plan,
    /// Starts a plan, by the number that `rebalance plan` prints
    Apply(RebalanceApply),
    /// Lets no further move begin; those that have begun go on
    Pause(Consent),
    /// Lets moves begin again
    Resume(Consent),
}

#[derive(Debug, Args)]
pub struct RebalanceApply {
    /// The plan
    #[arg(value_name = "PLAN")]
    pub plan: u64,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct Node {
    #[command(subcommand)]
    pub what: NodeWhat,
}

#[derive(Debug, Subcommand)]
pub enum NodeWhat {
    /// Takes everything off a node
    Drain(NodeId),
    /// Ends a drain: the node gets its share again
    Undrain(NodeId),
    /// Takes an empty node out of the cluster for ever
    Remove(NodeId),
    /// Changes the weight of a node; plans by `rebalance plan` go by it
    Weight(NodeWeight),
    /// Changes the zone of a node; plans by `rebalance plan` go by it
    Zone(NodeZone),
}

#[derive(Debug, Args)]
pub struct NodeId {
    /// The node
    #[arg(value_name = "ID")]
    pub id: u32,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct NodeWeight {
    /// The node
    #[arg(value_name = "ID")]
    pub id: u32,
    /// A decimal from 0.01 to 100 with at most two digits after the point
    #[arg(value_name = "W", value_parser = parse_weight)]
    pub hundredths: u32,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct NodeZone {
    /// The node
    #[arg(value_name = "ID")]
    pub id: u32,
    /// The zone, at most 64 bytes
    #[arg(value_name = "Z")]
    pub zone: String,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct Leader {
    #[command(subcommand)]
    pub what: LeaderWhat,
}

#[derive(Debug, Subcommand)]
pub enum LeaderWhat {
    /// Hands the leadership of a group to a member, which keeps it until `leader balance`
    Move(LeaderMove),
    /// Lets every group be led by its home again
    Balance(Consent),
}

#[derive(Debug, Args)]
pub struct LeaderMove {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: u64,
    /// The node that shall lead it; must vote in it
    #[arg(value_name = "NODE")]
    pub node: u32,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, Args)]
pub struct Settings {
    #[command(subcommand)]
    pub what: SettingsWhat,
}

#[derive(Debug, Subcommand)]
pub enum SettingsWhat {
    /// Prints all settings, or one
    Get(SettingsGet),
    /// Changes one
    Set(SettingsSet),
}

#[derive(Debug, Args)]
pub struct SettingsGet {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub name: Option<SettingName>,
}

#[derive(Debug, Args)]
pub struct SettingsSet {
    /// The setting
    #[arg(value_name = "NAME")]
    pub name: SettingName,
    /// Its new value
    #[arg(value_name = "VALUE")]
    pub value: String,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SettingName {
    /// Milliseconds after which a node that is down is replaced, at least 1000
    #[value(name = "down_after_ms")]
    DownAfterMs,
    /// auto: a rebalance starts by itself; manual: it waits for `rebalance apply`
    #[value(name = "rebalance")]
    Rebalance,
    /// Whether moves are paused: true or false
    #[value(name = "paused")]
    Paused,
}

#[derive(Debug, Args)]
pub struct Manager {
    #[command(subcommand)]
    pub what: ManagerWhat,
}

#[derive(Debug, Subcommand)]
pub enum ManagerWhat {
    /// Writes everything that the manager keeps to a file, which is replaced if it exists
    Export(ManagerExport),
}

#[derive(Debug, Args)]
pub struct ManagerExport {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct ExplainId {
    /// Its id
    #[arg(value_name = "ID")]
    pub id: u64,
}

#[derive(Debug, Args)]
pub struct ExplainNode {
    /// The node
    #[arg(value_name = "ID")]
    pub id: u32,
}

impl Action {
    /// What the caller said about being asked, for a command that changes something through the manager.
    #[must_use]
    pub fn consent(&self) -> Option<&Consent> {
        match self {
            Self::Moves(Moves { what: Some(MovesWhat::Cancel(args)), .. }) => Some(&args.consent),
            Self::Rebalance(args) => match &args.what {
                RebalanceWhat::Plan => None,
                RebalanceWhat::Apply(args) => Some(&args.consent),
                RebalanceWhat::Pause(consent) | RebalanceWhat::Resume(consent) => Some(consent),
            },
            Self::Node(args) => Some(match &args.what {
                NodeWhat::Drain(args) | NodeWhat::Undrain(args) | NodeWhat::Remove(args) => {
                    &args.consent
                }
                NodeWhat::Weight(args) => &args.consent,
                NodeWhat::Zone(args) => &args.consent,
            }),
            Self::Leader(args) => Some(match &args.what {
                LeaderWhat::Move(args) => &args.consent,
                LeaderWhat::Balance(consent) => consent,
            }),
            Self::Settings(Settings { what: SettingsWhat::Set(args) }) => Some(&args.consent),
            _ => None,
        }
    }
}

/// A decimal with at most two digits after the point, as hundredths.
fn parse_weight(text: &str) -> Result<u32, String> {
    let wrong = || "expected a decimal from 0.01 to 100 with at most two digits, as 1.5".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.len() > 3 || part.len() > 2 {
        return Err(wrong());
    }
    let number = |digits: &str| digits.parse::<u32>().map_err(|_| wrong());
    let scale = if part.len() == 1 { 10 } else { 1 };
    let hundredths = number(whole)? * 100 + number(part)? * scale;
    if (1..=10_000).contains(&hundredths) { Ok(hundredths) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn weights_are_hundredths() {
        for (text, hundredths) in
            [("1", 100), ("1.0", 100), ("0.01", 1), ("1.5", 150), ("100", 10_000), ("2.25", 225)]
        {
            assert_eq!(parse_weight(text), Ok(hundredths), "{text}");
        }
        for bad in ["", "0", "0.00", ".5", "1.", "1.234", "-1", "+1", "100.01", "1e2", "9999"] {
            assert!(parse_weight(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exactly_the_commands_that_change_something_need_consent() {
        let action = |line: &str| Cli::try_parse_from(line.split_whitespace()).unwrap().action;
        for change in [
            "moves cancel 3",
            "rebalance apply 7",
            "rebalance pause",
            "rebalance resume",
            "node drain 2",
            "node undrain 2",
            "node remove 2",
            "node weight 2 1.5",
            "node zone 2 east",
            "leader move 10 2",
            "leader balance",
            "settings set paused true",
        ] {
            assert!(action(&format!("kvctl {change}")).mutates(), "{change}");
            let dry = action(&format!("kvctl {change} --dry-run -o json"));
            assert!(dry.consent().is_some_and(|consent| consent.dry_run), "{change}");
            assert!(!dry.mutates(), "{change}");
        }
        for look in ["moves", "moves --all", "rebalance plan", "settings get", "manager export f"] {
            let action = action(&format!("kvctl {look}"));
            assert!(action.consent().is_none() && !action.mutates(), "{look}");
        }
    }
}
