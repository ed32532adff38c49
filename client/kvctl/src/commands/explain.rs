//! `explain key`: where a key lives, and which placement rules put it there.
//!
//! Everything follows from the routing table, computed here: token and slice from the key, home
//! from the walk of the ring, the other members from zones and seats. The rules speak of the table
//! as it was placed; whether the nodes are up is for `status` to say.

use std::collections::BTreeSet;

use annulus_client::Error;
use annulus_types::{
    ErrorKind, GroupRoute, NodeId, RoutingTable, ShardRoute, Token, routing_key, token_of,
};
use serde::Serialize;

use crate::args::ExplainKey;
use crate::commands::Context;
use crate::output::{Answer, commas, or_dash, pairs};
use crate::values::{Encoding, json_forms};

#[derive(Debug, Serialize)]
struct KeyView {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_key_base64: Option<String>,
    token: u32,
    slice: u32,
    shard: u64,
    group: u64,
    home: u32,
    leader: Option<u32>,
    /// Home first.
    replicas: Vec<u32>,
    /// From the first token of the slice, which is what decides the home.
    ring_walk: Vec<u32>,
    rules: Vec<String>,
}

/// `kvctl explain key`.
///
/// # Errors
/// Those of the client library, and a key that cannot be decoded.
pub async fn key(context: &Context, args: &ExplainKey) -> Result<Answer, Error> {
    let key = context.encoding.decode_key(&args.key)?;
    let table = context.connect().await?.routes().await?;
    let view = key_view(&key, &table, |token| annulus_client::ring_walk(&table, token))?;
    let encoding = context.encoding;
    Ok(Answer::one(context.format, &view, |view| key_table(view, &key, encoding)))
}

fn key_view(
    key: &[u8],
    table: &RoutingTable,
    walk: impl Fn(Token) -> Vec<NodeId>,
) -> Result<KeyView, Error> {
    let token = token_of(key);
    let found = table.shard_of(token).and_then(|shard| Some((shard, table.group(shard.group)?)));
    let Some((shard, group)) = found else {
        return Err(Error::refused(ErrorKind::NotReady {
            reason: "its routing table does not say where this key lives".to_owned(),
        }));
    };
    let walk = walk(table.bounds(shard).0);
    let (key_text, key_base64) = json_forms(key);
    let (routing_key, routing_key_base64) = json_forms(routing_key(key));
    Ok(KeyView {
        key: key_text,
        key_base64,
        routing_key,
        routing_key_base64,
        token: token.0,
        slice: shard.slice,
        shard: shard.id.0,
        group: group.id.0,
        home: group.home.0,
        leader: group.leader.map(|node| node.0),
        replicas: group.members.iter().map(|member| member.node.0).collect(),
        rules: vec![
            slice_rule(key, token, table, shard),
            home_rule(table, shard, group, &walk),
            lane_rule(shard, group),
            seats_rule(group),
            zones_rule(table, group),
            leader_rule(group),
        ],
        ring_walk: walk.iter().map(|node| node.0).collect(),
    })
}

fn slice_rule(key: &[u8], token: Token, table: &RoutingTable, shard: &ShardRoute) -> String {
    let (start, end) = table.bounds(shard);
    let hashed = if routing_key(key) == key { "the key" } else { "the part between the braces" };
    format!(
        "token: {hashed} hashes to {token}, which lies in slice {} of {} (tokens {start} to {end})",
        shard.slice,
        table.shards.len()
    )
}

fn home_rule(
    table: &RoutingTable,
    shard: &ShardRoute,
    group: &GroupRoute,
    walk: &[NodeId],
) -> String {
    let (start, _) = table.bounds(shard);
    let from = format!("the walk from token {start}, the first of slice {}", shard.slice);
    match walk.iter().position(|node| *node == group.home) {
        Some(0) => format!("home: node {} is the first on {from}", group.home),
        Some(position) => {
            let (before, had) = match &walk[..position] {
                [one] => (format!("node {one}"), "had its"),
                several => (format!("nodes {}", commas(several)), "had their"),
            };
            format!(
                "home: node {} is the first with room on {from}; {before} {had} quota of homes",
                group.home
            )
        }
        None => format!("home: node {} is the home, though it is not on {from}", group.home),
    }
}

fn lane_rule(shard: &ShardRoute, group: &GroupRoute) -> String {
    format!(
        "group: {} is lane {} of node {}, the emptiest of its lanes when slice {} was placed",
        group.id, group.lane, group.home, shard.slice
    )
}

fn seats_rule(group: &GroupRoute) -> String {
    if group.members.len() == 1 {
        return "seats: one replica, on the home".to_owned();
    }
    let nodes: BTreeSet<NodeId> = group.members.iter().map(|member| member.node).collect();
    format!(
        "seats: {} replicas on {} different nodes, the home first; each further one is, of the \
         nodes whose zones the group uses least, the one with the largest share of free seats left",
        group.members.len(),
        nodes.len()
    )
}

fn zones_rule(table: &RoutingTable, group: &GroupRoute) -> String {
    let all: BTreeSet<&str> = table.nodes.iter().map(|node| node.zone.as_str()).collect();
    if all.iter().all(|zone| zone.is_empty()) {
        return "zones: no node names one, so they decide nothing".to_owned();
    }
    let members = group.members.iter().filter_map(|member| table.node(member.node));
    let used: BTreeSet<&str> = members.map(|node| node.zone.as_str()).collect();
    let names = used.iter().copied().map(|zone| if zone.is_empty() { "(unset)" } else { zone });
    format!("zones: the replicas use {} of {}: {}", used.len(), all.len(), commas(names))
}

fn leader_rule(group: &GroupRoute) -> String {
    match group.leader {
        Some(leader) if leader == group.home => {
            format!("leader: node {leader}, because the home is meant to lead")
        }
        Some(leader) => {
            format!(
                "leader: node {leader} for now; the home, node {}, is meant to lead",
                group.home
            )
        }
        None => format!(
            "leader: the routing table knows none; the home, node {}, is meant to lead",
            group.home
        ),
    }
}

fn key_table(view: &KeyView, key: &[u8], encoding: Encoding) -> String {
    let head = pairs(&[
        ("key", encoding.show(key).0),
        ("routing key", encoding.show(routing_key(key)).0),
        ("token", view.token.to_string()),
        ("slice", view.slice.to_string()),
        ("shard", view.shard.to_string()),
        ("group", view.group.to_string()),
        ("home", view.home.to_string()),
        ("leader", or_dash(view.leader)),
        ("replicas", commas(&view.replicas)),
        ("ring walk", commas(&view.ring_walk)),
    ]);
    let rules: String = view.rules.iter().map(|rule| format!("  {rule}\n")).collect();
    format!("{head}\nrules\n{rules}")
}

#[cfg(test)]
pub mod tests;
