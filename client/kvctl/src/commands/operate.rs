//! The commands of operators: what they ask the manager, and how its answers are printed. What a change is
//! called is in [`super::wish`], whether it may be made in [`super::consent`].

use std::path::Path;

use annulus_client::{Admin, Error, ErrorKind};
use annulus_proto::v1;
use annulus_proto::v1::explain_request::About;
use annulus_runtime::{RealDisk, disk};
use serde::Serialize;

use crate::args::{
    Consent, ExplainWhat, Leader, LeaderWhat, Manager, ManagerWhat, Moves, MovesWhat, Node,
    NodeWhat, Rebalance, RebalanceWhat, SettingName, Settings, SettingsWhat,
};
use crate::commands::Context;
use crate::commands::plan::{
    DecisionView, MoveView, PlanView, decisions_lines, moves_table, plan_table,
};
use crate::commands::wish::{Wish, mode, of_leader, of_node, of_settings};
use crate::output::{Answer, Format, pairs};

#[derive(Debug, Serialize)]
struct ChangeView {
    /// What was asked for, in words.
    asked: String,
    dry_run: bool,
    /// The plan or move that it made.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    decisions: Vec<DecisionView>,
}

#[derive(Debug, Serialize)]
struct SettingsView {
    #[serde(skip_serializing_if = "Option::is_none")]
    down_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rebalance: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<bool>,
}

#[derive(Debug, Serialize)]
struct ExportView {
    file: String,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct ExplainView {
    about: &'static str,
    id: u64,
    decisions: Vec<DecisionView>,
    moves: Vec<MoveView>,
}

async fn admin(context: &Context) -> Result<Admin, Error> {
    let client = context.connect().await?;
    Ok(client.admin().deadline(context.budget()))
}

/// Asks for a change, or in a dry run what it would decide.
async fn change(context: &Context, wish: &Wish, consent: &Consent) -> Result<Answer, Error> {
    let admin = admin(context).await?;
    let budget = if consent.dry_run { context.budget() } else { context.mutation_budget() };
    let reply = wish.ask(&admin.deadline(budget), consent.dry_run).await?;
    Ok(changed(context.format, wish, consent.dry_run, &reply))
}

fn changed(format: Format, wish: &Wish, dry_run: bool, reply: &v1::ChangeReply) -> Answer {
    let view = ChangeView {
        asked: wish.to_string(),
        dry_run,
        id: (reply.id != 0).then_some(reply.id),
        decisions: reply.decisions.iter().map(DecisionView::from).collect(),
    };
    Answer::one(format, &view, |view| {
        let head = if view.dry_run { "would " } else { "done: " };
        let id = view.id.map(|id| format!(" ({id})")).unwrap_or_default();
        format!("{head}{}{id}\n{}", view.asked, decisions_lines(&view.decisions))
    })
}

/// `kvctl moves`.
///
/// # Errors
/// Those of the client library.
pub async fn moves(context: &Context, args: &Moves) -> Result<Answer, Error> {
    if let Some(MovesWhat::Cancel(args)) = &args.what {
        return change(context, &Wish::Cancel(args.id), &args.consent).await;
    }
    let moves = admin(context).await?.moves(args.all).await?;
    let views: Vec<MoveView> = moves.iter().map(MoveView::from).collect();
    Ok(Answer::list(context.format, &views, moves_table))
}

/// `kvctl rebalance`.
///
/// # Errors
/// Those of the client library.
pub async fn rebalance(context: &Context, args: &Rebalance) -> Result<Answer, Error> {
    match &args.what {
        RebalanceWhat::Plan => {
            let plan = admin(context).await?.plan_rebalance().await?;
            Ok(Answer::one(context.format, &PlanView::from(&plan), plan_table))
        }
        RebalanceWhat::Apply(args) => change(context, &Wish::Apply(args.plan), &args.consent).await,
        RebalanceWhat::Pause(consent) => change(context, &Wish::Pause(true), consent).await,
        RebalanceWhat::Resume(consent) => change(context, &Wish::Pause(false), consent).await,
    }
}

/// `kvctl node`.
///
/// # Errors
/// Those of the client library.
pub async fn node(context: &Context, args: &Node) -> Result<Answer, Error> {
    let consent = match &args.what {
        NodeWhat::Drain(args) | NodeWhat::Undrain(args) | NodeWhat::Remove(args) => &args.consent,
        NodeWhat::Weight(args) => &args.consent,
        NodeWhat::Zone(args) => &args.consent,
    };
    change(context, &of_node(args), consent).await
}

/// `kvctl leader`.
///
/// # Errors
/// Those of the client library.
pub async fn leader(context: &Context, args: &Leader) -> Result<Answer, Error> {
    let consent = match &args.what {
        LeaderWhat::Move(args) => &args.consent,
        LeaderWhat::Balance(consent) => consent,
    };
    change(context, &of_leader(args), consent).await
}

/// `kvctl settings`.
///
/// # Errors
/// Those of the client library; a value that cannot be.
pub async fn settings(context: &Context, args: &Settings) -> Result<Answer, Error> {
    let name = match &args.what {
        SettingsWhat::Set(set) => {
            return match of_settings(args)? {
                Some(wish) => change(context, &wish, &set.consent).await,
                None => Err(Error::bad_request("name", "nothing to set")),
            };
        }
        SettingsWhat::Get(args) => args.name,
    };
    let settings = admin(context).await?.settings().await?;
    Ok(Answer::one(context.format, &settings_view(&settings, name), settings_table))
}

fn settings_view(settings: &v1::ClusterSettings, name: Option<SettingName>) -> SettingsView {
    let wanted = |one| name.is_none_or(|name| name == one);
    SettingsView {
        down_after_ms: wanted(SettingName::DownAfterMs).then_some(settings.down_after_ms),
        rebalance: wanted(SettingName::Rebalance).then(|| mode(settings.rebalance_manual)),
        paused: wanted(SettingName::Paused).then_some(settings.paused),
    }
}

fn settings_table(view: &SettingsView) -> String {
    let mut lines = Vec::new();
    lines.extend(view.down_after_ms.map(|ms| ("down_after_ms", ms.to_string())));
    lines.extend(view.rebalance.map(|mode| ("rebalance", mode.to_owned())));
    lines.extend(view.paused.map(|paused| ("paused", paused.to_string())));
    pairs(&lines)
}

/// `kvctl manager`.
///
/// # Errors
/// Those of the client library; `BadRequest` for a file that cannot be written.
pub async fn manager(context: &Context, args: &Manager) -> Result<Answer, Error> {
    let ManagerWhat::Export(args) = &args.what;
    let exported = admin(context).await?.export_manager().await?;
    write_file(&args.file, &exported.state)?;
    let view = ExportView { file: args.file.display().to_string(), bytes: exported.state.len() };
    Ok(Answer::one(context.format, &view, |view| {
        format!("{} bytes written to {}\n", view.bytes, view.file)
    }))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |why: String| Error::bad_request("file", format!("{}: {why}", path.display()));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(failed("not the name of a file".to_owned()));
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    disk::replace_file(&RealDisk, dir, name, bytes).map_err(|error| failed(error.to_string()))
}

/// `kvctl explain shard|group|node|move`.
///
/// # Errors
/// Those of the client library; `BadRequest` for what does not exist.
pub async fn explain(context: &Context, what: &ExplainWhat) -> Result<Answer, Error> {
    let (about, id, asked) = match what {
        ExplainWhat::Shard(args) => ("shard", args.id, About::Shard(args.id)),
        ExplainWhat::Group(args) => ("group", args.id, About::Group(args.id)),
        ExplainWhat::Node(args) => ("node", u64::from(args.id), About::Node(args.id)),
        ExplainWhat::Move(args) => ("move", args.id, About::MoveId(args.id)),
        // It follows from the routing table, not from the manager.
        ExplainWhat::Key(_) => return Err(Error::refused(ErrorKind::Unimplemented)),
    };
    let reply = admin(context).await?.explain(Some(asked)).await?;
    let view = ExplainView {
        about,
        id,
        decisions: reply.decisions.iter().map(DecisionView::from).collect(),
        moves: reply.moves.iter().map(MoveView::from).collect(),
    };
    Ok(Answer::one(context.format, &view, explain_table))
}

fn explain_table(view: &ExplainView) -> String {
    let decisions = if view.decisions.is_empty() {
        format!("nothing is on record about {} {}\n", view.about, view.id)
    } else {
        decisions_lines(&view.decisions)
    };
    if view.moves.is_empty() {
        return decisions;
    }
    format!("{decisions}\n{}", moves_table(&view.moves))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reply() -> v1::ChangeReply {
        let decision = v1::Decision {
            at_ms: 9,
            what: "node 2 drains".to_owned(),
            why: "an operator asked".to_owned(),
            node: 2,
            ..Default::default()
        };
        v1::ChangeReply { id: 0, decisions: vec![decision] }
    }

    #[test]
    fn a_dry_run_says_what_would_be_done() {
        let wish = Wish::Cancel(3);
        let text = |dry_run| {
            String::from_utf8(changed(Format::Table, &wish, dry_run, &reply()).out).unwrap()
        };
        assert_eq!(text(true), "would cancel move 3\nnode 2 drains: an operator asked\n");
        assert_eq!(text(false), "done: cancel move 3\nnode 2 drains: an operator asked\n");
        let printed = changed(Format::Json, &wish, true, &reply()).out;
        let view: Value = serde_json::from_slice(&printed).unwrap();
        assert_eq!(
            view,
            json!({
                "asked": "cancel move 3",
                "dry_run": true,
                "decisions": [{
                    "at_ms": 9, "what": "node 2 drains", "why": "an operator asked", "node": 2,
                }],
            })
        );
    }

    #[test]
    fn settings_are_shown_all_or_one() {
        let settings =
            v1::ClusterSettings { down_after_ms: 300_000, rebalance_manual: true, paused: false };
        let all = settings_view(&settings, None);
        assert_eq!(
            serde_json::to_value(&all).unwrap(),
            json!({"down_after_ms": 300_000, "rebalance": "manual", "paused": false})
        );
        let one = settings_view(&settings, Some(SettingName::Paused));
        assert_eq!(settings_table(&one), "paused  false\n");
    }
}
