//! `status`, `nodes`, `groups`, `shards`: one question to the cluster, several ways to look at the
//! answer. What the numbers mean is in [`crate::cluster`].

use annulus_client::Error;
use annulus_proto::v1::StatusReply;

use crate::args::Shards;
use crate::cluster::{Cluster, GroupView, MemberView, NodeView, ShardView, StatusView};
use crate::commands::Context;
use crate::output::{Answer, Table, commas, human_bytes, numbers, or_dash, pairs, words};

async fn ask(context: &Context) -> Result<StatusReply, Error> {
    context.connect().await?.status(false).await
}

/// `kvctl status`.
///
/// # Errors
/// Those of the client library; `NotReady` while there is no cluster.
pub async fn status(context: &Context) -> Result<Answer, Error> {
    let reply = ask(context).await?;
    Ok(Answer::one(context.format, &Cluster::new(&reply)?.status(), status_table))
}

/// `kvctl nodes`.
///
/// # Errors
/// Those of the client library; `NotReady` while there is no cluster.
pub async fn nodes(context: &Context) -> Result<Answer, Error> {
    let reply = ask(context).await?;
    Ok(Answer::list(context.format, &Cluster::new(&reply)?.nodes(), nodes_table))
}

/// `kvctl groups`.
///
/// # Errors
/// Those of the client library; `NotReady` while there is no cluster.
pub async fn groups(context: &Context) -> Result<Answer, Error> {
    let reply = ask(context).await?;
    Ok(Answer::list(context.format, &Cluster::new(&reply)?.groups(), groups_table))
}

/// `kvctl shards`.
///
/// # Errors
/// Those of the client library; `NotReady` while there is no cluster; `BadRequest` for a node that
/// the cluster does not have.
pub async fn shards(context: &Context, args: &Shards) -> Result<Answer, Error> {
    let reply = ask(context).await?;
    let shards = Cluster::new(&reply)?.shards(args.node)?;
    Ok(Answer::list(context.format, &shards, shards_table))
}

fn status_table(status: &StatusView) -> String {
    let manager = match status.manager.leader {
        Some(node) => format!("node {node} leads"),
        None => "no leader".to_owned(),
    };
    let moves = match status.paused {
        Some(true) => "paused",
        Some(false) => "not paused",
        None => "unknown, the manager did not answer",
    };
    let groups = &status.groups;
    let shards = &status.shards;
    let head = pairs(&[
        ("cluster", status.cluster_id.clone()),
        ("table version", status.table_version.to_string()),
        ("manager", format!("{manager}, members {}", commas(&status.manager.members))),
        ("moves", moves.to_owned()),
        (
            "groups",
            format!(
                "{} healthy of {}, {} without leader",
                groups.healthy, groups.total, groups.no_leader
            ),
        ),
        (
            "shards",
            format!(
                "{} healthy of {}, {} under-replicated, {} without leader, {} moving",
                shards.healthy,
                shards.total,
                shards.under_replicated,
                shards.no_leader,
                shards.moving
            ),
        ),
    ]);
    let mut nodes = Table::new([
        numbers("node"),
        words("state"),
        words("address"),
        words("zone"),
        numbers("shards"),
        numbers("homes"),
        numbers("leaders"),
        numbers("bytes"),
        numbers("disk free"),
    ]);
    for node in &status.nodes {
        nodes.row([
            node.id.to_string(),
            node.state.to_owned(),
            node.addr.clone(),
            zone(node),
            node.shards.to_string(),
            node.homes.to_string(),
            node.leaders.to_string(),
            size(node, node.bytes),
            size(node, node.disk_free_bytes),
        ]);
    }
    format!("{head}\n{nodes}")
}

fn nodes_table(nodes: &[NodeView]) -> String {
    let mut table = Table::new([
        numbers("id"),
        words("state"),
        words("client"),
        words("peer"),
        words("http"),
        words("zone"),
        numbers("weight"),
        numbers("shards"),
        numbers("homes"),
        numbers("leaders"),
        numbers("bytes"),
        numbers("disk free"),
    ]);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.state.to_owned(),
            node.addr.clone(),
            node.peer_addr.clone(),
            node.http_addr.clone(),
            zone(node),
            format!("{:?}", node.weight),
            node.shards.to_string(),
            node.homes.to_string(),
            node.leaders.to_string(),
            size(node, node.bytes),
            size(node, node.disk_free_bytes),
        ]);
    }
    table.to_string()
}

fn groups_table(groups: &[GroupView]) -> String {
    let mut table = Table::new([
        numbers("id"),
        numbers("home"),
        numbers("lane"),
        numbers("leader"),
        numbers("term"),
        words("members"),
        words("shards"),
    ]);
    for group in groups {
        table.row([
            group.id.to_string(),
            group.home.to_string(),
            group.lane.to_string(),
            or_dash(group.leader),
            group.term.to_string(),
            commas(group.members.iter().map(member)),
            commas(&group.shards),
        ]);
    }
    table.to_string()
}

fn shards_table(shards: &[ShardView]) -> String {
    let mut table = Table::new([
        numbers("id"),
        numbers("slice"),
        numbers("start"),
        numbers("end"),
        numbers("epoch"),
        numbers("group"),
        numbers("leader"),
        numbers("revision"),
        numbers("keys"),
        numbers("bytes"),
        words("replicas"),
    ]);
    for shard in shards {
        table.row([
            shard.id.to_string(),
            shard.slice.to_string(),
            shard.start.to_string(),
            shard.end.to_string(),
            shard.epoch.to_string(),
            shard.group.to_string(),
            or_dash(shard.leader),
            shard.revision.to_string(),
            shard.keys.to_string(),
            human_bytes(shard.bytes),
            commas(shard.replicas.iter().map(member)),
        ]);
    }
    table.to_string()
}

fn zone(node: &NodeView) -> String {
    or_dash((!node.zone.is_empty()).then_some(&node.zone))
}

/// A size that the node told; a node that is down or gone told none.
fn size(node: &NodeView, bytes: u64) -> String {
    or_dash((!matches!(node.state, "down" | "removed")).then(|| human_bytes(bytes)))
}

/// The node of a member, and what is worth a look about it: a learner, a lag, silence.
fn member(member: &MemberView) -> String {
    let learner = if member.role == "learner" { " learner" } else { "" };
    let lag = match member.lag {
        Some(0) => String::new(),
        Some(entries) => format!(" -{entries}"),
        None => " silent".to_owned(),
    };
    let draining = if member.draining { " draining" } else { "" };
    format!("{}{learner}{draining}{lag}", member.node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::reply;

    #[test]
    fn status_is_a_summary_and_a_table_of_nodes() {
        let mut reply = reply();
        reply.nodes.remove(1);
        let status = Cluster::new(&reply).unwrap().status();
        let expected = "\
cluster        abababababababababababababababab
table version  4
manager        node 1 leads, members 1, 2
moves          unknown, the manager did not answer
groups         0 healthy of 2, 1 without leader
shards         0 healthy of 2, 2 under-replicated, 1 without leader, 0 moving

node  state  address  zone  shards  homes  leaders    bytes  disk free
   1  up     n1:7400  z1         2      1        1   1000 B    4.8 KiB
   2  down   n2:7400  z2         2      1        0        -          -
   3  up     n3:7400  -          2      0        0  2.9 KiB    4.8 KiB
";
        assert_eq!(status_table(&status), expected);
    }

    #[test]
    fn members_show_what_is_worth_a_look() {
        let mut reply = reply();
        reply.nodes.remove(1);
        let groups = Cluster::new(&reply).unwrap().groups();
        assert_eq!(
            groups_table(&groups),
            "id  home  lane  leader  term  members            shards\n\
             10     1     0       1     5  1, 2 silent, 3 -4  0\n\
             11     2     0       -     5  2 silent, 3 -4, 1  1\n"
        );
    }

    #[test]
    fn nodes_and_shards_have_a_row_each() {
        let reply = reply();
        let cluster = Cluster::new(&reply).unwrap();
        let nodes = nodes_table(&cluster.nodes());
        assert_eq!(nodes.lines().count(), 4);
        assert!(nodes.contains("n3:7402"), "{nodes}");
        assert!(nodes.contains("1.5"), "{nodes}");
        let shards = shards_table(&cluster.shards(None).unwrap());
        assert_eq!(shards.lines().count(), 3);
        assert!(shards.contains("2147483648  4294967295"), "{shards}");
    }
}
