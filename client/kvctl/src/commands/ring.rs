//! `ring show`: the division of the token space among the nodes, from the routing table alone, so
//! that it works whoever is down.

use annulus_client::Error;
use annulus_types::{NodeId, RoutingTable, Token};
use serde::Serialize;

use crate::commands::Context;
use crate::output::{Answer, Table, commas, numbers, or_dash, words};

#[derive(Debug, Serialize)]
struct RingView {
    table_version: u64,
    nodes: Vec<RingNode>,
    slices: Vec<SliceView>,
}

#[derive(Debug, Serialize)]
struct RingNode {
    id: u32,
    zone: String,
    weight: f64,
    /// Shards whose group is at home here.
    homes: usize,
    /// Copies of shards.
    shards: usize,
}

#[derive(Debug, Serialize)]
struct SliceView {
    slice: u32,
    start: u32,
    end: u32,
    shard: u64,
    group: u64,
    home: Option<u32>,
    /// The node that the walk from `start` meets first: another one than the home where quotas
    /// decided.
    walk_first: Option<u32>,
    /// Nodes, home first.
    replicas: Vec<u32>,
}

/// `kvctl ring show`.
///
/// # Errors
/// Those of the client library.
pub async fn show(context: &Context) -> Result<Answer, Error> {
    let table = context.connect().await?.routes().await?;
    let view = ring_view(&table, |token| annulus_client::ring_walk(&table, token));
    Ok(Answer::one(context.format, &view, ring_table))
}

fn ring_view(table: &RoutingTable, walk: impl Fn(Token) -> Vec<NodeId>) -> RingView {
    let slice = |shard: &annulus_types::ShardRoute| {
        let (start, end) = table.bounds(shard);
        let group = table.group(shard.group);
        let members = group.map(|group| group.members.as_slice()).unwrap_or_default();
        SliceView {
            slice: shard.slice,
            start: start.0,
            end: end.0,
            shard: shard.id.0,
            group: shard.group.0,
            home: group.map(|group| group.home.0),
            walk_first: walk(start).first().map(|node| node.0),
            replicas: members.iter().map(|member| member.node.0).collect(),
        }
    };
    let slices: Vec<SliceView> = table.shards.iter().map(slice).collect();
    let node = |info: &annulus_types::NodeInfo| {
        let id = info.id.0;
        RingNode {
            id,
            zone: info.zone.clone(),
            weight: f64::from(info.weight) / 100.0,
            homes: slices.iter().filter(|slice| slice.home == Some(id)).count(),
            shards: slices.iter().filter(|slice| slice.replicas.contains(&id)).count(),
        }
    };
    let nodes = table.nodes.iter().map(node).collect();
    RingView { table_version: table.version.0, nodes, slices }
}

fn ring_table(ring: &RingView) -> String {
    let copies = |view: &SliceView| view.replicas.len();
    let least = ring.slices.iter().map(copies).min().unwrap_or(0);
    let most = ring.slices.iter().map(copies).max().unwrap_or(0);
    let replicas = if least == most { most.to_string() } else { format!("{least} to {most}") };
    let mut nodes = Table::new([
        numbers("node"),
        words("zone"),
        numbers("weight"),
        numbers("homes"),
        numbers("shards"),
    ]);
    for node in &ring.nodes {
        nodes.row([
            node.id.to_string(),
            or_dash((!node.zone.is_empty()).then_some(&node.zone)),
            format!("{:?}", node.weight),
            node.homes.to_string(),
            node.shards.to_string(),
        ]);
    }
    let mut slices = Table::new([
        numbers("slice"),
        numbers("start"),
        numbers("end"),
        numbers("shard"),
        numbers("group"),
        numbers("home"),
        numbers("walk first"),
        words("replicas"),
    ]);
    for view in &ring.slices {
        slices.row([
            view.slice.to_string(),
            view.start.to_string(),
            view.end.to_string(),
            view.shard.to_string(),
            view.group.to_string(),
            or_dash(view.home),
            or_dash(view.walk_first),
            commas(&view.replicas),
        ]);
    }
    format!(
        "{} shards x {replicas} replicas, table version {}\n\n{nodes}\n{slices}",
        ring.slices.len(),
        ring.table_version
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::explain::tests::table;

    fn walk(token: Token) -> Vec<NodeId> {
        let mut nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        nodes.rotate_left(usize::from(token.0 != 0));
        nodes
    }

    #[test]
    fn every_slice_has_home_walk_and_replicas() {
        let view = serde_json::to_value(ring_view(&table(), walk)).unwrap();
        assert_eq!(
            view["slices"][1],
            json!({
                "slice": 1,
                "start": 2_147_483_648u32,
                "end": 4_294_967_295u32,
                "shard": 1,
                "group": 11,
                "home": 1,
                "walk_first": 2,
                "replicas": [1, 3, 2],
            })
        );
        assert_eq!(
            view["nodes"][0],
            json!({"id": 1, "zone": "a", "weight": 1.0, "homes": 2, "shards": 2})
        );
        assert_eq!(
            (&view["table_version"], view["slices"].as_array().unwrap().len()),
            (&json!(6), 2)
        );
    }

    #[test]
    fn the_table_begins_with_shards_times_replicas() {
        let printed = ring_table(&ring_view(&table(), walk));
        assert_eq!(printed.lines().next(), Some("2 shards x 3 replicas, table version 6"));
        assert_eq!(printed.lines().count(), 10);
        let mut uneven = table();
        uneven.groups[0].members.pop();
        let printed = ring_table(&ring_view(&uneven, walk));
        assert!(printed.starts_with("2 shards x 2 to 3 replicas"), "{printed}");
    }
}
