//! A leader may be behind its followers, and must not answer before it has caught up (R2).
//!
//! A leader tells followers what is committed before it has applied that itself. A reader at a
//! follower sees the write; one who then asks the leader must not see the time before it.

use super::cluster::{LONG, TestCluster, ms, until};
use crate::gate::Weaken;
use crate::options::WeakenHost;

/// What the leader answered before it had applied what a follower showed, and after.
async fn a_leader_is_asked_what_a_follower_showed(weaken: WeakenHost) -> [Option<u64>; 2] {
    let cluster = TestCluster::new(3, 65, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    let held = cluster.hold_apply(1).await;
    let readers = async {
        until("a follower shows it", || cluster.register(2, "x") == Some(2)).await;
        assert!(cluster.gate_is_open(1));
        let early = cluster.read(1, "x", false, ms(50)).await.ok().flatten();
        drop(held);
        let late = cluster.read(1, "x", true, LONG).await.expect("the cluster works");
        [early, late]
    };
    let (written, answers) = tokio::join!(cluster.propose(1, "x", 2, LONG), readers);
    written.expect("the followers are a majority");
    answers
}

#[tokio::test(start_paused = true)]
async fn a_leader_answers_nothing_older_than_what_a_follower_was_told() {
    let answers = Box::pin(a_leader_is_asked_what_a_follower_showed(WeakenHost::default())).await;
    assert_eq!(answers, [None, Some(2)]);

    let gate = Weaken { ignore_published: true, ..Weaken::default() };
    let weaken = WeakenHost { gate, ..WeakenHost::default() };
    let answers = Box::pin(a_leader_is_asked_what_a_follower_showed(weaken)).await;
    assert_eq!(answers, [Some(1), Some(2)], "a follower showed 2 before");
}
