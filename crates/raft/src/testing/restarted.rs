//! A follower that was restarted finds a dead leader as quickly as the others do.

use tokio::time::Instant;

use super::cluster::{LONG, TestCluster, ms, until};
use super::node::{End, Rows};
use crate::options::WeakenHost;

#[tokio::test(start_paused = true)]
async fn restarted_followers_elect_one_lease_after_their_leader_died() {
    let mut cluster = TestCluster::new(3, 71, WeakenHost::default()).await;
    cluster.propose(1, "before", 1, LONG).await.expect("the cluster works");
    for follower in [2, 3] {
        cluster.end(follower, End::Kill).await;
        cluster.restart(follower, Rows::Kept).await.expect("its log is undamaged");
        until("it follows again", || cluster.everyone_holds("before", 1)).await;
    }
    until("every link is up", || cluster.is_meshed()).await;
    cluster.propose(1, "after", 1, LONG).await.expect("the cluster works");
    until("everyone holds it", || cluster.everyone_holds("after", 1)).await;

    cluster.end(1, End::Kill).await;
    let died = Instant::now();
    cluster.leader_among(&[2, 3]).await;
    // openraft's own timers alone need up to two leases.
    assert!(died.elapsed() < ms(900), "{:?}", died.elapsed());
}
