//! Small chores of every node: early elections, quick reconnection, and making replicas whole.
//!
//! *Elections* (R1 a). openraft's own timers find a dead leader after the lease plus up to another
//! election timeout. When the leader said that it resigned (H3), or its node is suspected (its link broke, or three pings went
//! unanswered), replicas campaign from one lease after they last accepted a leader's frame, plus
//! 50 ms times their rank, every 50 ms until a leader's frame is accepted. After any vote was saved
//! they pause 300 ms: an election is under way, and rivals would raise the term over each other for
//! ever. What openraft calls the current leader is no evidence: it goes on naming a dead one.
//!
//! *Links*. Suspicion needs a link: every node that shares a group with this one gets one, also while
//! its replicas have nothing to say to it.
//!
//! *Backoff*. openraft waits up to a second before it tries an unreachable follower again; when a link
//! comes up, leaders are told to try at once.
//!
//! *Whole* (E6). A replica may answer `any` once it has applied up to a read index told by a leader.
//! It asks for one every 100 ms until it is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_runtime::OnEnd;
use annulus_types::NodeId;

use crate::group::Group;
use crate::host::Host;

/// Between two looks at every group, and between two tries of one campaign.
const TICK: Duration = Duration::from_millis(50);
/// Replicas campaign this much apart, so that the first usually wins alone.
const RANK_STEP: Duration = Duration::from_millis(50);
/// After a vote was saved, others' elections get this long.
const VOTE_PAUSE: Duration = Duration::from_millis(300);

pub(crate) fn spawn(host: &Arc<Host>) {
    let keeper = Arc::downgrade(host);
    host.env.tasks.spawn_until_stop("keeper", async move {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = 0u64;
        let mut linked = BTreeSet::new();
        loop {
            ticker.tick().await;
            let Some(host) = keeper.upgrade() else { return };
            turn += 1;
            let up = host.links.up();
            for node in up.difference(&linked) {
                try_again(&host, *node).await;
            }
            linked = up;
            for group in host.groups() {
                for node in group.replica.seats().values() {
                    // Made now if it is new.
                    drop(host.links.find(*node));
                }
                let view = group.replica.gate.view();
                let in_doubt = turn.is_multiple_of(20) && group.replica.distrusted().is_some();
                if in_doubt && view.leading.is_some() && !view.latched {
                    let (host, group) = (Arc::clone(&host), Arc::clone(&group));
                    let tasks = host.env.tasks.clone();
                    tasks.spawn("handing over", OnEnd::Ignore, async move {
                        host.give_away(&group, host.options.timing.lease).await;
                    });
                }
                if must_campaign(&host, &group) {
                    // The core has ended: the supervisor says so.
                    let _ = group.raft.trigger().elect(true).await;
                }
                if turn.is_multiple_of(2) && !group.replica.is_whole() {
                    ask_read_index(&host, &group);
                }
            }
        }
    });
}

/// Ends openraft's backoff towards the replicas on a node that can be reached again.
async fn try_again(host: &Host, node: NodeId) {
    for group in host.groups() {
        if group.replica.gate.view().leading.is_none() {
            continue;
        }
        let there: Vec<u64> = group
            .replica
            .seats()
            .iter()
            .filter(|(_, at)| **at == node)
            .map(|(id, _)| id.0)
            .collect();
        // The core has ended: the supervisor says so.
        let _ = group.raft.trigger().reset_backoff(there).await;
    }
}

fn must_campaign(host: &Host, group: &Group) -> bool {
    let replica = &group.replica;
    let now = host.env.clock.boot();
    if replica.is_quarantined() || replica.gate.view().leading.is_some() {
        return false;
    }
    let Some(heard) = replica.heard() else { return false };
    let seats = replica.seats();
    let Some(leader) = seats.get(&heard.vote.leader) else { return false };
    if !host.links.is_suspected(*leader, now) && !replica.has_resigned(heard) {
        return false;
    }
    let rivals = seats.keys().filter(|id| **id != heard.vote.leader);
    let rank = rivals.take_while(|id| **id != replica.me).count();
    let patience = host.options.timing.lease + RANK_STEP * u32::try_from(rank).unwrap_or(u32::MAX);
    let voting = replica.vote_saved_at().is_some_and(|at| now.since(at) < VOTE_PAUSE);
    now.since(heard.at) >= patience && !voting
}

fn ask_read_index(host: &Arc<Host>, group: &Arc<Group>) {
    let group = Arc::clone(group);
    let limit = host.options.timing.lease;
    host.env.tasks.spawn("read index", OnEnd::Ignore, async move {
        if let Ok(Some(index)) = tokio::time::timeout(limit, group.ask_leader()).await {
            group.replica.set_whole_at(index);
        }
    });
}
