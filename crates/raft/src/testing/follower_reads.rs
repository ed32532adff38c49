//! A strict read at a follower waits until it has applied what its leader vouches for (R1 d).

use super::cluster::{LONG, TestCluster, ms, until};
use crate::options::WeakenHost;

/// What a follower that lags behind answers, and what it answers when it has caught up.
async fn a_follower_that_lags_is_asked(weaken: WeakenHost) -> (Option<u64>, Option<u64>) {
    let cluster = TestCluster::new(3, 72, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("everyone holds it", || cluster.everyone_holds("x", 1)).await;
    let release = cluster.hold_apply(2).await;
    cluster.propose(1, "x", 2, LONG).await.expect("two others apply");
    let late = cluster.read(2, "x", true, ms(300)).await.ok().flatten();
    drop(release);
    let then = cluster.read(2, "x", true, LONG).await.expect("nothing holds it back");
    (late, then)
}

#[tokio::test(start_paused = true)]
async fn a_follower_answers_nothing_older_than_what_was_acknowledged() {
    let seen = Box::pin(a_follower_that_lags_is_asked(WeakenHost::default())).await;
    assert_eq!(seen, (None, Some(2)));

    let weaken = WeakenHost { read_before_applied: true, ..WeakenHost::default() };
    let seen = Box::pin(a_follower_that_lags_is_asked(weaken)).await;
    assert_eq!(seen.0, Some(1), "an acknowledged write is not seen");
}
