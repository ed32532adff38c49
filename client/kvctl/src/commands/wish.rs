//! What a command line asks the manager to change, in words and as a call.

use std::fmt;

use annulus_client::{Admin, Error};
use annulus_proto::v1;
use annulus_proto::v1::node_change::Change;

use crate::args::{
    Action, Leader, LeaderWhat, Moves, MovesWhat, Node, NodeWhat, Rebalance, RebalanceWhat,
    SettingName, Settings, SettingsWhat,
};

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// See [`Admin::cancel_move`].
    Cancel(u64),
    /// See [`Admin::apply_rebalance`].
    Apply(u64),
    /// See [`Admin::pause_rebalance`].
    Pause(bool),
    /// Of this node. See [`Admin::change_node`].
    Node(u32, Change),
    /// The group and the node that shall lead it. See [`Admin::move_leader`].
    Leader(u64, u32),
    /// See [`Admin::balance_leaders`].
    Balance,
    /// See [`Admin::change_settings`].
    Settings(v1::SettingsChange),
}

/// What a command asks for; `None`: it only looks.
///
/// # Errors
/// `BadRequest` for the value of a setting that cannot be.
pub fn wish(action: &Action) -> Result<Option<Wish>, Error> {
    match action {
        Action::Moves(args) => Ok(of_moves(args)),
        Action::Rebalance(args) => Ok(of_rebalance(args)),
        Action::Node(args) => Ok(Some(of_node(args))),
        Action::Leader(args) => Ok(Some(of_leader(args))),
        Action::Settings(args) => of_settings(args),
        _ => Ok(None),
    }
}

/// Of `moves`.
#[must_use]
pub fn of_moves(args: &Moves) -> Option<Wish> {
    args.what.as_ref().map(|MovesWhat::Cancel(args)| Wish::Cancel(args.id))
}

/// Of `rebalance`.
#[must_use]
pub fn of_rebalance(args: &Rebalance) -> Option<Wish> {
    match &args.what {
        RebalanceWhat::Plan => None,
        RebalanceWhat::Apply(args) => Some(Wish::Apply(args.plan)),
        RebalanceWhat::Pause(_) => Some(Wish::Pause(true)),
        RebalanceWhat::Resume(_) => Some(Wish::Pause(false)),
    }
}

/// Of `node`.
#[must_use]
pub fn of_node(args: &Node) -> Wish {
    match &args.what {
        NodeWhat::Drain(args) => Wish::Node(args.id, Change::Draining(true)),
        NodeWhat::Undrain(args) => Wish::Node(args.id, Change::Draining(false)),
        NodeWhat::Remove(args) => Wish::Node(args.id, Change::Remove(v1::Plain {})),
        NodeWhat::Weight(args) => Wish::Node(args.id, Change::Weight(args.hundredths)),
        NodeWhat::Zone(args) => Wish::Node(args.id, Change::Zone(args.zone.clone())),
    }
}

/// Of `leader`.
#[must_use]
pub fn of_leader(args: &Leader) -> Wish {
    match &args.what {
        LeaderWhat::Move(args) => Wish::Leader(args.group, args.node),
        LeaderWhat::Balance(_) => Wish::Balance,
    }
}

/// Of `settings`.
///
/// # Errors
/// `BadRequest` for a value that cannot be.
pub fn of_settings(args: &Settings) -> Result<Option<Wish>, Error> {
    let args = match &args.what {
        SettingsWhat::Get(_) => return Ok(None),
        SettingsWhat::Set(args) => args,
    };
    let value = args.value.as_str();
    let wrong = |expected: &str| {
        Err(Error::bad_request("value", format!("expected {expected}, got {value:?}")))
    };
    let mut settings = v1::SettingsChange::default();
    match (args.name, value) {
        (SettingName::DownAfterMs, _) => match value.parse() {
            Ok(ms) => settings.down_after_ms = Some(ms),
            Err(_) => return wrong("a whole number of milliseconds"),
        },
        (SettingName::Rebalance, "auto") => settings.rebalance_manual = Some(false),
        (SettingName::Rebalance, "manual") => settings.rebalance_manual = Some(true),
        (SettingName::Rebalance, _) => return wrong("auto or manual"),
        (SettingName::Paused, "true") => settings.paused = Some(true),
        (SettingName::Paused, "false") => settings.paused = Some(false),
        (SettingName::Paused, _) => return wrong("true or false"),
    }
    Ok(Some(Wish::Settings(settings)))
}

impl Wish {
    /// Asks for it.
    ///
    /// # Errors
    /// Those of the client library.
    pub async fn ask(&self, admin: &Admin, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        match self {
            Self::Cancel(id) => admin.cancel_move(*id, dry_run).await,
            Self::Apply(plan) => admin.apply_rebalance(*plan, dry_run).await,
            Self::Pause(paused) => admin.pause_rebalance(*paused, dry_run).await,
            Self::Node(node, change) => {
                let change = v1::NodeChange { node: *node, change: Some(change.clone()) };
                admin.change_node(change, dry_run).await
            }
            Self::Leader(group, node) => admin.move_leader(*group, *node, dry_run).await,
            Self::Balance => admin.balance_leaders(dry_run).await,
            Self::Settings(settings) => admin.change_settings(*settings, dry_run).await,
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancel(id) => write!(f, "cancel move {id}"),
            Self::Apply(plan) => write!(f, "apply plan {plan}"),
            Self::Pause(true) => f.write_str("pause all moves"),
            Self::Pause(false) => f.write_str("let moves go on"),
            Self::Node(node, change) => match change {
                Change::Draining(true) => write!(f, "drain node {node}"),
                Change::Draining(false) => write!(f, "end the drain of node {node}"),
                Change::Remove(_) => write!(f, "remove node {node} for ever"),
                Change::Weight(weight) => {
                    write!(f, "give node {node} the weight {:?}", f64::from(*weight) / 100.0)
                }
                Change::Zone(zone) => write!(f, "put node {node} into zone {zone:?}"),
            },
            Self::Leader(group, node) => write!(f, "let node {node} lead group {group}"),
            Self::Balance => f.write_str("let every group be led by its home"),
            Self::Settings(settings) => {
                f.write_str("set")?;
                if let Some(ms) = settings.down_after_ms {
                    write!(f, " down_after_ms to {ms}")?;
                }
                if let Some(manual) = settings.rebalance_manual {
                    write!(f, " rebalance to {}", mode(manual))?;
                }
                if let Some(paused) = settings.paused {
                    write!(f, " paused to {paused}")?;
                }
                Ok(())
            }
        }
    }
}

/// The setting `rebalance`.
#[must_use]
pub fn mode(manual: bool) -> &'static str {
    if manual { "manual" } else { "auto" }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_change_is_said_in_words() {
        for (line, words) in [
            ("moves cancel 3", "cancel move 3"),
            ("rebalance apply 7", "apply plan 7"),
            ("rebalance pause", "pause all moves"),
            ("rebalance resume", "let moves go on"),
            ("node drain 2", "drain node 2"),
            ("node undrain 2", "end the drain of node 2"),
            ("node remove 2", "remove node 2 for ever"),
            ("node weight 2 1.5", "give node 2 the weight 1.5"),
            ("node zone 2 east", "put node 2 into zone \"east\""),
            ("leader move 10 2", "let node 2 lead group 10"),
            ("leader balance", "let every group be led by its home"),
            ("settings set down_after_ms 60000", "set down_after_ms to 60000"),
            ("settings set rebalance manual", "set rebalance to manual"),
            ("settings set paused true", "set paused to true"),
        ] {
            let line = format!("kvctl {line}");
            let action = Cli::try_parse_from(line.split_whitespace()).unwrap().action;
            let wish = wish(&action).unwrap().unwrap();
            assert_eq!(wish.to_string(), words, "{line}");
            assert!(action.consent().is_some(), "{line}");
        }
    }
}
