//! Whether the replicas of every group hold the same, by the comparison that `kvctl verify` makes (E5).
//!
//! Failure: a replica that differs is a problem at once. One that could not be asked, as it may be just
//! after its node came back, is asked again a few times, and then is a problem too.

use std::time::Duration;

use annulus_client::{Client, RoutingTable};
use annulus_proto::v1;
use annulus_runtime::Env;

/// Times that a group is asked.
const TRIES: u32 = 5;
/// Each of them.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
/// The manager's own group, which the table does not have.
const MANAGER: u64 = 0;

/// What the comparison of all groups came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Groups that were compared, the manager's among them.
    pub(super) groups: u64,
    /// Replicas that hold what their leader holds, leaders among them.
    pub(super) equal: u64,
    /// How long it took, microseconds.
    pub(super) us: u64,
    /// Replicas that differ or could not be asked.
    pub(super) problems: Vec<String>,
}

/// Compares the replicas of all groups, one group after another.
pub(super) async fn compare_all(env: &Env, client: &Client, table: &RoutingTable) -> Agreement {
    let began_us = env.clock.monotonic_us();
    let mut agreement = Agreement::default();
    let groups = table.groups.iter().map(|group| group.id.0);
    for group in std::iter::once(MANAGER).chain(groups) {
        agreement.groups += 1;
        let (equal, problems) = compare(client, group).await;
        agreement.equal += equal;
        agreement.problems.extend(problems);
    }
    agreement.us = env.clock.monotonic_us().saturating_sub(began_us);
    agreement
}

async fn compare(client: &Client, group: u64) -> (u64, Vec<String>) {
    let mut tries = 0;
    loop {
        tries += 1;
        let judged = match client.admin().deadline(ASK_LIMIT).verify(group).await {
            Ok(reply) => judge(group, &reply),
            Err(error) => {
                Judged { doubts: vec![format!("group {group}: {error}")], ..Judged::default() }
            }
        };
        let Judged { equal, mut problems, doubts } = judged;
        if doubts.is_empty() || !problems.is_empty() || tries == TRIES {
            problems.extend(doubts);
            return (equal, problems);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What one answer says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    equal: u64,
    /// Differences.
    problems: Vec<String>,
    /// What is not known.
    doubts: Vec<String>,
}

fn judge(group: u64, reply: &v1::VerifyReply) -> Judged {
    let mut judged = Judged::default();
    for told in reply.leader.iter().chain(&reply.others) {
        let line = |what: &str| {
            let (replica, node) = (told.replica, told.node);
            let why = if told.reason.is_empty() { "" } else { ": " };
            format!("group {group}: replica {replica} on node {node} {what}{why}{}", told.reason)
        };
        match told.verdict() {
            v1::Verdict::Equal => judged.equal += 1,
            v1::Verdict::Different => judged.problems.push(line("differs from its leader")),
            v1::Verdict::Unknown | v1::Verdict::Unspecified => {
                judged.doubts.push(line("cannot be compared"));
            }
        }
    }
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_no_doubt_and_a_doubt_is_no_difference() {
        let told = |node, verdict: v1::Verdict| v1::ReplicaDigest {
            node,
            verdict: verdict.into(),
            ..Default::default()
        };
        let reply = v1::VerifyReply {
            leader: Some(told(1, v1::Verdict::Equal)),
            others: vec![told(2, v1::Verdict::Different), told(3, v1::Verdict::Unknown)],
            ..Default::default()
        };
        let judged = judge(10, &reply);
        assert_eq!((judged.equal, judged.problems.len(), judged.doubts.len()), (1, 1, 1));
        assert!(judged.problems[0].contains("on node 2 differs"), "{judged:?}");
        assert!(judged.doubts[0].contains("on node 3 cannot"), "{judged:?}");
    }
}
