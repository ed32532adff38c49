//! Golden scripts: `testdata/planner/*.txt` hold stories of clusters and the plans that they get.
//!
//! A script is a row of blocks with an empty line between them. A block is comments (`#`), one
//! command, a line `----`, and the output; a block without a command is prose. With
//! `ANNULUS_GOLDEN=update` the scripts are rewritten with what the commands print now, and the diff
//! is reviewed. After every command all steps of its plan are done, and the next finds the table
//! that they lead to.
//!
//! - `cluster nodes=ID:WEIGHT[:ZONE],… [shards=N] [lanes=N] [replication=N]`: a fresh one
//! - `join ID:WEIGHT[:ZONE]`, `remove ID`
//! - `drain ID`, `undrain ID`, `dead ID,…`, `back ID` (with its data), `reborn ID` (without)
//! - `weight ID W`, `zone ID Z`, `replication N`
//! - `damage GROUP NODE,… [drain=ID]`
//!
//! A group has 1,000 bytes for every shard, and as many more as its number.

use std::fmt::Write;

use annulus_ring::Settings;
use annulus_types::{GroupId, NodeId};

use super::{equal_nodes, fresh};
use crate::planner::{NodeState, Plan, PlanGroup, PlanNode, Rules, plan};

macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let file = concat!(stringify!($name), ".txt");
                check(file, include_str!(concat!(
                    "../../../testdata/planner/",
                    stringify!($name),
                    ".txt"
                )));
            }
        )*
    };
}

scripts! { damaged dead drain grow handover join replication weight zone }

#[expect(clippy::disallowed_methods, reason = "a golden script is rewritten in the source tree")]
fn check(name: &str, script: &str) {
    let printed = run(script);
    if std::env::var_os("ANNULUS_GOLDEN").is_some_and(|value| value == "update") {
        let path = format!("{}/testdata/planner/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, printed).unwrap();
    } else if printed != script {
        panic!("{name}: `-` in the file, `+` printed now\n{}", diff(script, &printed));
    }
}

/// The script with the output of every command replaced by what it prints now.
fn run(script: &str) -> String {
    let mut stage =
        Stage { nodes: Vec::new(), groups: Vec::new(), rules: Rules { replication: 3, lanes: 4 } };
    let blocks: Vec<String> = script
        .trim_end()
        .split("\n\n")
        .map(|block| {
            let head = block.split("\n----").next().unwrap_or_default();
            match head.lines().find(|line| !line.starts_with('#')) {
                Some(command) => format!("{head}\n----\n{}", stage.execute(command).trim_end()),
                None => block.to_owned(),
            }
        })
        .collect();
    blocks.join("\n\n") + "\n"
}

/// The lines that differ, and the commands that they belong to.
fn diff(file: &str, now: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (file.lines().collect(), now.lines().collect());
    // How many lines the rests from here on have in common, in order.
    let mut common = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut command, mut out) = (0, 0, "", String::new());
    while i < old.len() || j < new.len() {
        let (sign, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            if old.get(i) == Some(&"----") {
                command = old[i - 1];
            }
            continue;
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', old[i - 1])
        } else {
            j += 1;
            ('+', new[j - 1])
        };
        if !command.is_empty() {
            writeln!(out, "  {command}").unwrap();
            command = "";
        }
        writeln!(out, "{sign} {line}").unwrap();
    }
    out
}

/// The cluster of a script.
struct Stage {
    nodes: Vec<PlanNode>,
    groups: Vec<PlanGroup>,
    rules: Rules,
}

impl Stage {
    fn execute(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["cluster", ..] => return self.create(command),
            ["join", node] => self.nodes.extend(nodes(node)),
            ["remove", id] => {
                let id = number::<u32>(id);
                self.nodes.retain(|node| node.id != NodeId(id));
            }
            ["drain", id] => self.node(id).state = NodeState::Draining,
            ["undrain" | "back", id] => self.node(id).state = NodeState::Up,
            ["dead", ids] => {
                for id in ids.split(',') {
                    self.node(id).state = NodeState::Dead;
                }
            }
            ["reborn", id] => {
                let node = self.node(id);
                node.state = NodeState::Up;
                let reborn = node.id;
                let seats = self.groups.iter_mut().flat_map(|group| &mut group.members);
                seats.filter(|seat| seat.node == reborn).for_each(|seat| seat.damaged = true);
            }
            ["weight", id, weight] => self.node(id).weight = number(weight),
            ["zone", id, zone] => self.node(id).zone = (*zone).to_owned(),
            ["replication", replication] => self.rules.replication = number(replication),
            ["damage", group, ids, ..] => {
                let id = GroupId(number(group));
                let group = self.groups.iter_mut().find(|group| group.id == id).unwrap();
                for node in ids.split(',').map(|id| NodeId(number(id))) {
                    let seat = group.members.iter_mut().find(|seat| seat.node == node);
                    seat.expect("a seat of that node").damaged = true;
                }
                if let Some(id) = value(command, "drain") {
                    self.node(id).state = NodeState::Draining;
                }
            }
            _ => panic!("no such command: {command:?}"),
        }
        self.settle()
    }

    fn node(&mut self, id: &str) -> &mut PlanNode {
        let id = NodeId(number(id));
        self.nodes.iter_mut().find(|node| node.id == id).expect("a node of that id")
    }

    fn create(&mut self, command: &str) -> String {
        let setting = |name: &str, default: u32| value(command, name).map_or(default, number);
        let default = Settings::default();
        let settings = Settings {
            shards: setting("shards", default.shards),
            lanes: setting("lanes", default.lanes),
            replication: setting("replication", default.replication),
        };
        self.nodes = nodes(value(command, "nodes").expect("nodes"));
        self.rules = Rules { replication: settings.replication, lanes: settings.lanes };
        self.groups = fresh(&self.nodes, &settings, |shards, id| 1000 * shards + id);
        let mut out = String::new();
        for PlanGroup { id, home, lane, members, bytes, .. } in &self.groups {
            let members: Vec<String> = members.iter().map(|seat| seat.node.to_string()).collect();
            let members = members.join(" ");
            writeln!(out, "group {id}: home {home}, lane {lane}, members {members}, bytes {bytes}")
                .unwrap();
        }
        out
    }

    /// Plans, prints, and does all steps.
    fn settle(&mut self) -> String {
        let plan = plan(&self.nodes, &self.groups, &self.rules);
        let printed = self.describe(&plan);
        self.groups = plan.apply(&self.groups);
        let again = crate::planner::plan(&self.nodes, &self.groups, &self.rules);
        assert!(again.is_empty(), "a second plan is not empty: {:?}", again.steps);
        printed
    }

    fn describe(&self, plan: &Plan) -> String {
        let mut out = String::new();
        for step in &plan.steps {
            writeln!(out, "{step}").unwrap();
        }
        for unmet in &plan.unmet {
            writeln!(out, "unmet: {unmet}").unwrap();
        }
        writeln!(out, "{} steps, {} bytes", plan.steps.len(), plan.bytes()).unwrap();
        for line in plan.summary(&self.nodes, &self.groups) {
            let (before, after) = (line.before, line.after);
            let of = |quota: Option<u64>| quota.map(|n| format!(" of {n}")).unwrap_or_default();
            writeln!(
                out,
                "node {}: groups {} -> {}{}, seats {} -> {}{}, copies {} -> {}",
                line.node,
                before.groups,
                after.groups,
                of(line.share.map(|share| share.groups)),
                before.seats,
                after.seats,
                of(line.share.map(|share| share.seats)),
                before.copies,
                after.copies,
            )
            .unwrap();
        }
        out
    }
}

/// The value of `name=value` in a command.
fn value<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    command.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number<N: std::str::FromStr>(text: &str) -> N {
    match text.parse::<N>() {
        Ok(number) => number,
        Err(_) => panic!("no number: {text:?}"),
    }
}

fn nodes(list: &str) -> Vec<PlanNode> {
    list.split(',')
        .map(|text| {
            let mut parts = text.split(':');
            let (id, weight) = (parts.next().expect("an id"), parts.next().expect("a weight"));
            super::node(number(id), number(weight), parts.next().unwrap_or_default())
        })
        .collect()
}

#[test]
fn a_difference_names_its_command() {
    let file = "join 4\n----\nsame\nold\nend\n";
    let now = "join 4\n----\nsame\nnew\nend\n";
    assert_eq!(diff(file, now), "  join 4\n- old\n+ new\n");
    assert_eq!(diff(file, file), "");
    assert_eq!(equal_nodes(2), nodes("1:100,2:100"));
}
