//! Golden scripts: `testdata/*.txt` hold commands and what they print.
//!
//! A script is a row of blocks with an empty line between them. A block is comments (`#`), one
//! command, a line `----`, and the output; a block without a command is prose. With `UPDATE=1` the
//! scripts are rewritten with what the commands print now, and the diff is reviewed.
//!
//! - `quota total=N to=ID:WEIGHT:LOW..HIGH,…`
//! - `walk nodes=ID:WEIGHT,… token=N`
//! - `place nodes=ID:WEIGHT[:ZONE],… [shards=N] [lanes=N] [replication=N]`

use std::collections::BTreeMap;
use std::fmt::Write;

use annulus_types::{NodeId, Token};

use crate::{
    Candidate, Placement, PlacementNode, Ring, RingNode, Settings, place, quota, seat_quota,
};

#[test]
fn quotas() {
    check("quota.txt", include_str!("../../testdata/quota.txt"));
}

#[test]
fn walks() {
    check("walk.txt", include_str!("../../testdata/walk.txt"));
}

#[test]
fn placements() {
    check("place.txt", include_str!("../../testdata/place.txt"));
}

#[test]
fn refusals() {
    check("refused.txt", include_str!("../../testdata/refused.txt"));
}

#[expect(clippy::disallowed_methods, reason = "UPDATE=1 rewrites a script in the source tree")]
fn check(name: &str, script: &str) {
    let printed = run(script);
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, printed).unwrap();
    } else {
        assert_eq!(printed, script, "{name}: see the head of this module for UPDATE=1");
    }
}

/// The script with the output of every command replaced by what it prints now.
fn run(script: &str) -> String {
    let blocks: Vec<String> = script
        .trim_end()
        .split("\n\n")
        .map(|block| {
            let head = block.split("\n----").next().unwrap_or_default();
            match head.lines().find(|line| !line.starts_with('#')) {
                Some(command) => format!("{head}\n----\n{}", execute(command).trim_end()),
                None => block.to_owned(),
            }
        })
        .collect();
    blocks.join("\n\n") + "\n"
}

fn execute(command: &str) -> String {
    match command.split_whitespace().next() {
        Some("quota") => print_quota(command),
        Some("walk") => print_walk(command),
        Some("place") => print_place(command),
        _ => panic!("no such command: {command:?}"),
    }
}

fn print_quota(command: &str) -> String {
    let total = number(command, "total").expect("a total");
    let candidates: Vec<Candidate> = list(command, "to")
        .map(|text| {
            let [id, weight, marks] = parts::<3>(text);
            let (low, high) = marks.split_once("..").expect("LOW..HIGH");
            let [id, weight, low, high] =
                [id, weight, low, high].map(|n| n.parse::<u64>().unwrap());
            Candidate { id, weight, low, high }
        })
        .collect();
    let mut out = String::new();
    let shares = quota(total, &candidates);
    for (candidate, share) in candidates.iter().zip(&shares) {
        writeln!(out, "{}: {share}", candidate.id).unwrap();
    }
    let placed: u64 = shares.iter().sum();
    if placed != total {
        writeln!(out, "placed {placed} of {total}").unwrap();
    }
    out
}

fn print_walk(command: &str) -> String {
    let nodes: Vec<RingNode> = nodes(command)
        .into_iter()
        .map(|node| RingNode { id: node.id, weight: node.weight })
        .collect();
    let ring = Ring::new(&nodes);
    let token = Token(number(command, "token").expect("a token"));
    let walk: Vec<NodeId> = ring.walk(token).collect();
    format!("{} points, walk {}", ring.points().len(), words(&walk))
}

fn print_place(command: &str) -> String {
    let nodes = nodes(command);
    let default = Settings::default();
    let settings = Settings {
        shards: number(command, "shards").unwrap_or(default.shards),
        lanes: number(command, "lanes").unwrap_or(default.lanes),
        replication: number(command, "replication").unwrap_or(default.replication),
    };
    match place(&nodes, &settings) {
        Ok(placement) => describe(&nodes, &settings, &placement),
        Err(error) => format!("error: {error}"),
    }
}

fn describe(nodes: &[PlacementNode], settings: &Settings, placement: &Placement) -> String {
    let mut out = format!("homes {}\n", words(&placement.homes));
    let mut at_home: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut seats: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    for group in &placement.groups {
        let (members, shards) = (words(&group.members), words(&group.shards));
        writeln!(out, "group {}/{}: members {members}, shards {shards}", group.home, group.lane)
            .unwrap();
        *at_home.entry(group.home).or_default() += 1;
        for member in &group.members {
            *seats.entry(*member).or_default() += 1;
            *copies.entry(*member).or_default() += group.shards.len();
        }
    }
    let meant = seat_quota(nodes, &at_home, settings.replication);
    let taken = |node: &PlacementNode| seats.get(&node.id).copied().unwrap_or(0);
    for (zone, quota) in &meant.zones {
        let taken: u64 = nodes.iter().filter(|node| node.zone == *zone).map(taken).sum();
        writeln!(out, "zone {zone:?}: seats {taken} of {quota}").unwrap();
    }
    for node in nodes {
        let homes = placement.homes.iter().filter(|home| **home == node.id).count();
        let groups = at_home.get(&node.id).copied().unwrap_or(0);
        let (seats, quota) = (taken(node), meant.nodes[&node.id]);
        let copies = copies.get(&node.id).copied().unwrap_or(0);
        writeln!(
            out,
            "node {}: homes {homes}, groups {groups}, seats {seats} of {quota}, copies {copies}",
            node.id
        )
        .unwrap();
    }
    out
}

/// The value of `name=value` in a command.
fn value<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    command.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number<N: std::str::FromStr>(command: &str, name: &str) -> Option<N> {
    value(command, name).map(|text| match text.parse::<N>() {
        Ok(number) => number,
        Err(_) => panic!("{name} is no number in {command:?}"),
    })
}

fn list<'a>(command: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let text = value(command, name).unwrap_or_default();
    text.split(',').filter(|item| !item.is_empty())
}

fn parts<const N: usize>(text: &str) -> [&str; N] {
    let parts: Vec<&str> = text.split(':').collect();
    parts.try_into().unwrap_or_else(|_| panic!("{N} parts expected in {text:?}"))
}

fn nodes(command: &str) -> Vec<PlacementNode> {
    list(command, "nodes")
        .map(|text| {
            let text =
                if text.split(':').count() == 2 { format!("{text}:") } else { text.to_owned() };
            let [id, weight, zone] = parts::<3>(&text);
            PlacementNode {
                id: NodeId(id.parse().unwrap()),
                weight: weight.parse().unwrap(),
                zone: zone.to_owned(),
            }
        })
        .collect()
}

fn words<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
