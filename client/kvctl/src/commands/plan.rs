//! Moves, plans and decisions as they are shown.

use std::collections::BTreeMap;

use annulus_proto::v1;
use serde::Serialize;

use crate::output::{Table, human_bytes, numbers, or_dash, words};

/// What a reseat is assumed to copy in a second. A guess that leaves room for traffic: no promise.
const BYTES_PER_S: u64 = 16 << 20;

/// A move.
#[derive(Debug, PartialEq, Serialize)]
pub struct MoveView {
    pub id: u64,
    pub plan: u64,
    pub kind: &'static str,
    pub group: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    pub state: &'static str,
    pub bytes_done: u64,
    pub bytes: u64,
    pub rule: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waiting: String,
}

/// A step of a plan.
#[derive(Debug, PartialEq, Serialize)]
pub struct StepView {
    pub kind: &'static str,
    pub group: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    pub bytes: u64,
    pub estimated_s: u64,
    pub rule: String,
}

/// What a node has.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct LoadView {
    pub homes: u32,
    pub seats: u32,
    pub copies: u32,
}

/// A plan. Loads are by node id.
#[derive(Debug, PartialEq, Serialize)]
pub struct PlanView {
    pub plan: u64,
    pub steps: Vec<StepView>,
    pub before: BTreeMap<u32, LoadView>,
    pub after: BTreeMap<u32, LoadView>,
    pub unmet: Vec<String>,
}

/// A decision.
#[derive(Debug, PartialEq, Serialize)]
pub struct DecisionView {
    pub at_ms: u64,
    pub what: String,
    pub why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_id: Option<u64>,
}

fn kind(step: &v1::Move) -> &'static str {
    match step.kind() {
        v1::MoveKind::Reseat => "reseat",
        v1::MoveKind::Transfer => "transfer",
        v1::MoveKind::Rehome => "rehome",
    }
}

fn state(step: &v1::Move) -> &'static str {
    match step.state() {
        v1::MoveState::Planned => "planned",
        v1::MoveState::Create => "create",
        v1::MoveState::Seed => "seed",
        v1::MoveState::CatchUp => "catch_up",
        v1::MoveState::Verify => "verify",
        v1::MoveState::Lead => "lead",
        v1::MoveState::Swap => "swap",
        v1::MoveState::Retire => "retire",
        v1::MoveState::Done => "done",
        v1::MoveState::Undo => "undo",
        v1::MoveState::Cancelled => "cancelled",
    }
}

fn node_of(member: Option<&v1::MemberRoute>) -> Option<u32> {
    member.map(|member| member.node)
}

impl From<&v1::Move> for MoveView {
    fn from(step: &v1::Move) -> Self {
        Self {
            id: step.id,
            plan: step.plan,
            kind: kind(step),
            group: step.group,
            from: node_of(step.from.as_ref()),
            to: node_of(step.to.as_ref()),
            state: state(step),
            bytes_done: step.bytes_done,
            bytes: step.bytes,
            rule: step.rule.clone(),
            waiting: step.waiting.clone(),
        }
    }
}

impl From<&v1::Move> for StepView {
    fn from(step: &v1::Move) -> Self {
        // Only a new member has something to copy; the rest takes an election at most.
        let copied =
            if step.kind() == v1::MoveKind::Reseat && step.to.is_some() { step.bytes } else { 0 };
        Self {
            kind: kind(step),
            group: step.group,
            from: node_of(step.from.as_ref()),
            to: node_of(step.to.as_ref()),
            bytes: step.bytes,
            estimated_s: 1 + copied / BYTES_PER_S,
            rule: step.rule.clone(),
        }
    }
}

fn loads(loads: &[v1::NodeLoad]) -> BTreeMap<u32, LoadView> {
    let view = |load: &v1::NodeLoad| {
        let v1::NodeLoad { node, homes, seats, copies } = *load;
        (node, LoadView { homes, seats, copies })
    };
    loads.iter().map(view).collect()
}

impl From<&v1::RebalancePlan> for PlanView {
    fn from(plan: &v1::RebalancePlan) -> Self {
        Self {
            plan: plan.plan,
            steps: plan.steps.iter().map(StepView::from).collect(),
            before: loads(&plan.before),
            after: loads(&plan.after),
            unmet: plan.unmet.clone(),
        }
    }
}

impl From<&v1::Decision> for DecisionView {
    fn from(decision: &v1::Decision) -> Self {
        Self {
            at_ms: decision.at_ms,
            what: decision.what.clone(),
            why: decision.why.clone(),
            node: (decision.node != 0).then_some(decision.node),
            group: decision.group,
            move_id: (decision.move_id != 0).then_some(decision.move_id),
        }
    }
}

/// Moves for people.
pub fn moves_table(moves: &[MoveView]) -> String {
    let mut table = Table::new([
        numbers("id"),
        numbers("plan"),
        words("kind"),
        numbers("group"),
        numbers("from"),
        numbers("to"),
        words("state"),
        numbers("done"),
        numbers("bytes"),
        words("waiting for"),
    ]);
    for step in moves {
        table.row([
            step.id.to_string(),
            step.plan.to_string(),
            step.kind.to_owned(),
            step.group.to_string(),
            or_dash(step.from),
            or_dash(step.to),
            step.state.to_owned(),
            human_bytes(step.bytes_done),
            human_bytes(step.bytes),
            or_dash((!step.waiting.is_empty()).then_some(&step.waiting)),
        ]);
    }
    table.to_string()
}

/// A plan for people.
pub fn plan_table(plan: &PlanView) -> String {
    let mut steps = Table::new([
        words("kind"),
        numbers("group"),
        numbers("from"),
        numbers("to"),
        numbers("bytes"),
        numbers("seconds"),
        words("rule"),
    ]);
    for step in &plan.steps {
        steps.row([
            step.kind.to_owned(),
            step.group.to_string(),
            or_dash(step.from),
            or_dash(step.to),
            human_bytes(step.bytes),
            step.estimated_s.to_string(),
            step.rule.clone(),
        ]);
    }
    let mut nodes = Table::new([numbers("node"), words("homes"), words("seats"), words("copies")]);
    let none = LoadView { homes: 0, seats: 0, copies: 0 };
    for (node, after) in &plan.after {
        let before = plan.before.get(node).unwrap_or(&none);
        nodes.row([
            node.to_string(),
            format!("{} -> {}", before.homes, after.homes),
            format!("{} -> {}", before.seats, after.seats),
            format!("{} -> {}", before.copies, after.copies),
        ]);
    }
    let unmet: String = plan.unmet.iter().map(|rule| format!("not reached: {rule}\n")).collect();
    let head = if plan.steps.is_empty() {
        "nothing to do\n".to_owned()
    } else {
        format!("plan {}, {} steps\n\n{steps}", plan.plan, plan.steps.len())
    };
    format!("{head}\n{nodes}{unmet}")
}

/// Decisions for people, one per line.
pub fn decisions_lines(decisions: &[DecisionView]) -> String {
    decisions.iter().map(|decision| format!("{}: {}\n", decision.what, decision.why)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    fn step() -> v1::Move {
        v1::Move {
            id: 3,
            plan: 2,
            group: 10,
            from: Some(v1::MemberRoute { node: 1, replica: 101, learner: false }),
            to: Some(v1::MemberRoute { node: 4, replica: 0, learner: false }),
            state: v1::MoveState::CatchUp.into(),
            rule: "seats".to_owned(),
            bytes: 64 << 20,
            bytes_done: 1 << 20,
            ..Default::default()
        }
    }

    #[test]
    fn moves_have_the_promised_shape() {
        assert_eq!(
            to_value(MoveView::from(&step())).unwrap(),
            json!({
                "id": 3, "plan": 2, "kind": "reseat", "group": 10, "from": 1, "to": 4,
                "state": "catch_up", "bytes_done": 1 << 20, "bytes": 64 << 20, "rule": "seats",
            })
        );
        let mut added = step();
        added.from = None;
        added.waiting = "a free slot".to_owned();
        let view = to_value(MoveView::from(&added)).unwrap();
        assert!(view.get("from").is_none());
        assert_eq!(view["waiting"], "a free slot");
    }

    #[test]
    fn a_plan_has_the_promised_shape() {
        let load = |node, seats| v1::NodeLoad { node, homes: 1, seats, copies: 2 * seats };
        let plan = PlanView::from(&v1::RebalancePlan {
            plan: 77,
            steps: vec![step()],
            before: vec![load(1, 2)],
            after: vec![load(1, 1), load(4, 1)],
            unmet: vec!["zones: only one".to_owned()],
        });
        assert_eq!(
            to_value(&plan).unwrap(),
            json!({
                "plan": 77,
                "steps": [{
                    "kind": "reseat", "group": 10, "from": 1, "to": 4, "bytes": 64 << 20,
                    "estimated_s": 5, "rule": "seats",
                }],
                "before": {"1": {"homes": 1, "seats": 2, "copies": 4}},
                "after": {
                    "1": {"homes": 1, "seats": 1, "copies": 2},
                    "4": {"homes": 1, "seats": 1, "copies": 2},
                },
                "unmet": ["zones: only one"],
            })
        );
        let expected = "\
plan 77, 1 steps

kind    group  from  to     bytes  seconds  rule
reseat     10     1   4  64.0 MiB        5  seats

node  homes   seats   copies
   1  1 -> 1  2 -> 1  4 -> 2
   4  0 -> 1  0 -> 1  0 -> 2
not reached: zones: only one
";
        assert_eq!(plan_table(&plan), expected);
    }
}
