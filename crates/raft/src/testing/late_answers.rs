//! A late answer vouches for the moment at which its question left, not for the present (R1 a).
//!
//! A heartbeat waits at a follower whose disk stalls. Meanwhile the leader is cut off, the promises
//! that its last frames renewed run out, and another leader is elected. Just before, the old answer
//! arrives. Whoever takes it for news opens the gate again, for a leader that is none.

use super::cluster::{LONG, TestCluster, ms, pass, until};
use crate::gate::Weaken;
use crate::options::{Timing, WeakenHost};

/// What was seen of the leader that was cut off.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Its gate was open when another was elected.
    two_could_answer: bool,
    /// What it answered after the other had overwritten the value.
    answer: Option<u64>,
}

async fn a_late_answer_reaches_a_leader_that_was_cut_off(weaken: WeakenHost) -> Seen {
    let cluster = TestCluster::new(3, 62, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;

    // Node 2 takes an entry and then a heartbeat, and can answer neither before its disk does.
    cluster.stall_disk(2, true);
    cluster.propose(1, "x", 2, LONG).await.expect("nodes 1 and 3 are a majority");
    cluster.group(1).raft.trigger().heartbeat().await.expect("the core runs");
    pass(ms(10)).await;

    // Node 1 is heard no more; it still hears node 2.
    cluster.silence(1, 2);
    cluster.partition(1, 3);
    let lease = Timing::default().lease;
    // Long after the question left, and before anybody campaigns: a campaign that reached node 1
    // would end its leadership for another reason.
    pass(lease - ms(100)).await;
    cluster.stall_disk(2, false);
    pass(ms(10)).await;
    cluster.silence(2, 1);

    let elected = || [2, 3].into_iter().find(|node| cluster.leads(*node));
    until("another is elected", || elected().is_some()).await;
    let leader = elected().expect("just seen");
    let two_could_answer = cluster.gate_is_open(1);
    cluster.propose(leader, "x", 9, LONG).await.expect("nodes 2 and 3 are a majority");
    let answer = cluster.read(1, "x", false, ms(20)).await.ok().flatten();
    Seen { two_could_answer, answer }
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_open_the_gate_of_a_leader_that_was_cut_off() {
    let story = a_late_answer_reaches_a_leader_that_was_cut_off(WeakenHost::default());
    let seen = Box::pin(story).await;
    assert_eq!(seen, Seen { two_could_answer: false, answer: None });

    let gate = Weaken { credit_reply_time: true, ..Weaken::default() };
    let weaken = WeakenHost { gate, ..WeakenHost::default() };
    let seen = Box::pin(a_late_answer_reaches_a_leader_that_was_cut_off(weaken)).await;
    assert_eq!(seen, Seen { two_could_answer: true, answer: Some(2) }, "9 was there already");
}
