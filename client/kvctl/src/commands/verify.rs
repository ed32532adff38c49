//! `verify`: do the replicas of each group hold the same (E5)?
//!
//! The groups are asked one after another, so that no node reads more than one of them for this command.
//! Every voter of a group is compared with its leader at one entry; with `--shard`, by what they hold of that
//! shard alone. The comparison is the leader's; here it is taken apart by shards and shown.
//!
//! Failure: a group that cannot be asked, also because the time is over, is shown as unknown, and the others
//! are shown all the same. A difference outweighs what is not known: the exit code says the worst.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_client::Error;
use annulus_proto::v1;
use annulus_types::RoutingTable;
use bytes::Bytes;
use serde::Serialize;

use crate::args::Verify;
use crate::commands::Context;
use crate::errors::exit;
use crate::output::{Answer, Format, Table, commas, numbers, or_dash, words};

/// The manager's own group, which the routing table does not have.
const MANAGER: u64 = 0;
/// With less time than this left no group is asked any more.
const TIME_LEAST: Duration = Duration::from_millis(10);

/// What is known of a replica, or of the replicas of a group. The worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Equal,
    Unknown,
    Different,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct GroupView {
    group: u64,
    /// What was compared; nothing for the manager's group.
    shards: Vec<u64>,
    verdict: Verdict,
    /// The entry at which all looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    /// The leader, then the other voters.
    members: Vec<MemberView>,
    /// Why the group could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct MemberView {
    node: u32,
    replica_id: u64,
    role: &'static str,
    /// 32 hexadecimal digits; null when there is none.
    digest: Option<String>,
    verdict: Verdict,
    /// The shards in which it differs from the leader.
    different_shards: Vec<u64>,
    /// Why there is no digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `kvctl verify`.
///
/// # Errors
/// Those of the client library before the first group is asked; `BadRequest` for a shard that the cluster
/// does not have.
pub async fn verify(context: &Context, args: &Verify) -> Result<Answer, Error> {
    let client = context.connect().await?;
    let table = client.routes().await?;
    let mut views = Vec::new();
    for (group, shards) in chosen(&table, args.shard)? {
        let budget = context.budget();
        let asked = if budget < TIME_LEAST {
            Err("no time was left; give more with --timeout".to_owned())
        } else {
            let asked = client.admin().deadline(budget).verify(group).await;
            asked.map_err(|error| error.to_string())
        };
        views.push(view(group, shards, args.shard, asked));
    }
    Ok(answer(context.format, &views, args.shard))
}

/// The groups to be asked, with their shards in slice order, the manager's first; of one shard its group
/// alone.
fn chosen(table: &RoutingTable, shard: Option<u64>) -> Result<Vec<(u64, Vec<u64>)>, Error> {
    if let Some(id) = shard {
        let known = table.shards.iter().find(|shard| shard.id.0 == id);
        let unknown = || Error::bad_request("shard", format!("the cluster has no shard {id}"));
        return Ok(vec![(known.ok_or_else(unknown)?.group.0, vec![id])]);
    }
    let of_group = |group: u64| {
        let shards = table.shards.iter().filter(|shard| shard.group.0 == group);
        (group, shards.map(|shard| shard.id.0).collect())
    };
    let groups = table.groups.iter().map(|group| group.id.0);
    Ok(std::iter::once(MANAGER).chain(groups).map(of_group).collect())
}

fn view(
    group: u64,
    shards: Vec<u64>,
    shard: Option<u64>,
    asked: Result<v1::VerifyReply, String>,
) -> GroupView {
    let unknown = |reason: String| GroupView {
        group,
        shards: shards.clone(),
        verdict: Verdict::Unknown,
        index: None,
        members: Vec::new(),
        reason: Some(reason),
    };
    let (index, leader, others) = match asked {
        Ok(v1::VerifyReply { index, leader: Some(leader), others }) => (index, leader, others),
        Ok(_) => return unknown("the answer names no leader".to_owned()),
        Err(reason) => return unknown(reason),
    };
    if let Some(id) = shard
        && !leader.files.iter().any(|file| file.id == id)
    {
        return unknown(format!("the leader of group {group} does not hold shard {id}"));
    }
    let followers = others.iter().map(|other| member(other, &leader, shard, "follower"));
    let members: Vec<MemberView> =
        std::iter::once(member(&leader, &leader, shard, "leader")).chain(followers).collect();
    let verdict = members.iter().map(|member| member.verdict).max().unwrap_or(Verdict::Unknown);
    GroupView { group, shards, verdict, index: Some(index), members, reason: None }
}

fn member(
    told: &v1::ReplicaDigest,
    leader: &v1::ReplicaDigest,
    shard: Option<u64>,
    role: &'static str,
) -> MemberView {
    let different = different_files(told, leader);
    let verdict = match (told.verdict(), shard) {
        (v1::Verdict::Unspecified | v1::Verdict::Unknown, _) => Verdict::Unknown,
        (v1::Verdict::Equal, _) => Verdict::Equal,
        // It differs, but perhaps not in this shard. Without a digest its rows did not read.
        (v1::Verdict::Different, Some(id))
            if !told.digest.is_empty() && !different.contains(&id) =>
        {
            Verdict::Equal
        }
        (v1::Verdict::Different, _) => Verdict::Different,
    };
    let digest = match shard {
        Some(id) => told.files.iter().find(|file| file.id == id).map(|file| &file.digest),
        None => Some(&told.digest),
    };
    let asked_about = |id: &u64| shard.is_none_or(|shard| shard == *id);
    MemberView {
        node: told.node,
        replica_id: told.replica,
        role,
        digest: digest.and_then(hex),
        verdict,
        different_shards: different.into_iter().filter(asked_about).collect(),
        reason: (!told.reason.is_empty()).then(|| told.reason.clone()),
    }
}

/// The files that only one of the two has, or that are not equal; none where one has told no digest.
fn different_files(told: &v1::ReplicaDigest, leader: &v1::ReplicaDigest) -> BTreeSet<u64> {
    if told.digest.is_empty() {
        return BTreeSet::new();
    }
    let files = |of: &v1::ReplicaDigest| -> BTreeMap<u64, Bytes> {
        of.files.iter().map(|file| (file.id, file.digest.clone())).collect()
    };
    let (own, its) = (files(leader), files(told));
    let ids = own.keys().chain(its.keys()).copied();
    ids.filter(|id| own.get(id) != its.get(id)).collect()
}

fn hex(digest: &Bytes) -> Option<String> {
    let bytes = <[u8; 16]>::try_from(&digest[..]).ok()?;
    Some(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn answer(format: Format, views: &[GroupView], shard: Option<u64>) -> Answer {
    let worst = views.iter().map(|view| view.verdict).max().unwrap_or(Verdict::Unknown);
    let code = match worst {
        Verdict::Equal => exit::DONE,
        Verdict::Different => exit::NO,
        Verdict::Unknown => exit::UNAVAILABLE,
    };
    let listed = Answer::list(format, views, |views| table(views, shard));
    Answer { code, ..listed }
}

fn table(views: &[GroupView], shard: Option<u64>) -> String {
    let mut table = Table::new([
        numbers("group"),
        numbers(if shard.is_some() { "shard" } else { "shards" }),
        numbers("node"),
        numbers("replica"),
        words("role"),
        numbers("entry"),
        words("digest"),
        words("verdict"),
    ]);
    for view in views {
        let shards = shard.unwrap_or(view.shards.len() as u64).to_string();
        for member in &view.members {
            table.row([
                view.group.to_string(),
                shards.clone(),
                member.node.to_string(),
                member.replica_id.to_string(),
                member.role.to_owned(),
                or_dash(view.index),
                or_dash(member.digest.as_ref()),
                in_words(member),
            ]);
        }
        if let Some(reason) = &view.reason {
            let none = || "-".to_owned();
            table.row([
                view.group.to_string(),
                shards,
                none(),
                none(),
                none(),
                none(),
                none(),
                format!("unknown: {reason}"),
            ]);
        }
    }
    let count = |verdict| views.iter().filter(|view| view.verdict == verdict).count();
    let (equal, different) = (count(Verdict::Equal), count(Verdict::Different));
    let unknown = count(Verdict::Unknown);
    format!("{table}\ngroups: {equal} equal, {different} different, {unknown} unknown\n")
}

fn in_words(member: &MemberView) -> String {
    let reason = member.reason.as_deref().unwrap_or_default();
    match member.verdict {
        Verdict::Equal => "equal".to_owned(),
        Verdict::Unknown => format!("unknown: {reason}"),
        Verdict::Different if reason.is_empty() => {
            format!("different: shards {}", commas(&member.different_shards))
        }
        Verdict::Different => format!("different: {reason}"),
    }
}

#[cfg(test)]
mod tests;
