//! Replicas know how old their state may be, or that they do not (R4).
//!
//! A claim is true if the state holds every write that was acknowledged before the moment from which its
//! age is counted. It is made by whoever asked a leader that was sure of itself, and by nobody else: a
//! new leader may not know what is committed, and a deposed one does not know what is acknowledged.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::{ErrorKind, NodeId};
use tokio::time::Instant;

use super::caller::Caller;
use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{End, GROUP, Rows, replica_of};
use crate::options::WeakenHost;
use crate::types::Seat;

/// Older than this no replica of a healthy cluster becomes: a question every 50 ms, a heartbeat every
/// 100 ms, and messages that take up to 3 ms.
const FRESH: Duration = Duration::from_millis(200);

/// How old the state of a node's replica is at most, as the replica says.
fn age(cluster: &TestCluster, node: u32) -> Option<Duration> {
    cluster.group(node).freshness().map(Duration::from_micros)
}

fn is_fresh(cluster: &TestCluster, node: u32) -> bool {
    age(cluster, node).is_some_and(|age| age < FRESH)
}

/// Whether a node claims to hold what was acknowledged at that moment.
fn claims(cluster: &TestCluster, node: u32, acknowledged: Instant) -> bool {
    age(cluster, node).is_some_and(|age| age < acknowledged.elapsed())
}

/// When each value of register `x` was acknowledged: first 1, then 2, and so on.
#[derive(Default)]
struct Acknowledged(RefCell<Vec<Instant>>);

impl Acknowledged {
    fn count(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    /// Writes the next value, wherever it is sent to. Returns who took it.
    async fn write(&self, cluster: &TestCluster, mut node: u32) -> u32 {
        let next = self.count() + 1;
        while let Err(error) = cluster.propose(node, "x", next, LONG).await {
            match error.kind {
                ErrorKind::NotLeader { leader: Some(other) } => node = other.0,
                // The new leader has not spoken yet.
                ErrorKind::NotLeader { leader: None } => pass(ms(5)).await,
                kind => panic!("a majority works all the time: {kind:?}"),
            }
        }
        self.0.borrow_mut().push(Instant::now());
        node
    }

    /// Checks that a node is no fresher in its own eyes than the first write that it lacks is old.
    fn check(&self, cluster: &TestCluster, node: u32) {
        // In the order of one who reads (R3).
        let age = age(cluster, node);
        let held = cluster.register(node, "x").unwrap_or(0);
        let acknowledged = self.0.borrow();
        let lacked = acknowledged.get(usize::try_from(held).expect("a small number"));
        if let (Some(age), Some(lacked)) = (age, lacked) {
            let lacked = lacked.elapsed();
            assert!(
                age >= lacked,
                "node {node} claims {age:?} and lacks a write of {lacked:?} ago"
            );
        }
    }
}

/// Lets a second pass in which every replica is fresh, and right about it.
async fn all_stay_fresh(cluster: &TestCluster, acknowledged: &Acknowledged) {
    for _ in 0..1000 {
        pass(ms(1)).await;
        for node in 1..=3 {
            acknowledged.check(cluster, node);
            assert!(is_fresh(cluster, node), "node {node}: {:?}", age(cluster, node));
        }
    }
}

async fn a_cluster_is_healthy() {
    let cluster = TestCluster::new(3, 90, WeakenHost::default()).await;
    let acknowledged = Acknowledged::default();
    until("all are fresh", || (1..=3).all(|node| is_fresh(&cluster, node))).await;
    all_stay_fresh(&cluster, &acknowledged).await;
    let writing = async {
        for _ in 0..200 {
            acknowledged.write(&cluster, 1).await;
        }
    };
    tokio::join!(writing, all_stay_fresh(&cluster, &acknowledged));
}

#[tokio::test(start_paused = true)]
async fn replicas_of_a_healthy_cluster_are_fresh_whether_or_not_anything_is_written() {
    Box::pin(a_cluster_is_healthy()).await;
}

async fn a_follower_is_cut_off() {
    let cluster = TestCluster::new(3, 91, WeakenHost::default()).await;
    let acknowledged = Acknowledged::default();
    acknowledged.write(&cluster, 1).await;
    until("node 3 holds it", || cluster.register(3, "x") == Some(1)).await;
    until("node 3 is fresh", || is_fresh(&cluster, 3)).await;

    cluster.partition(1, 3);
    cluster.partition(2, 3);
    pass(ms(10)).await;
    let (group, stands_at) = (cluster.group(3), cluster.group(3).vouched());
    assert!(stands_at.is_some());
    for _ in 0..10 {
        let (began, before) = (group.env.clock.boot(), age(&cluster, 3).expect("it is known"));
        acknowledged.write(&cluster, 1).await;
        pass(ms(1000)).await;
        let after = age(&cluster, 3).expect("it is known");
        assert_eq!(after - before, group.env.clock.boot().since(began));
        assert_eq!(group.vouched(), stands_at);
        acknowledged.check(&cluster, 3);
    }
    assert_eq!(cluster.register(3, "x"), Some(1));
    assert!(is_fresh(&cluster, 2), "a majority goes on");

    cluster.heal(1, 3);
    cluster.heal(2, 3);
    until("node 3 is fresh again", || {
        acknowledged.check(&cluster, 3);
        is_fresh(&cluster, 3)
    })
    .await;
    assert_eq!(cluster.register(3, "x"), Some(11));
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_is_cut_off_grows_older_as_time_passes() {
    Box::pin(a_follower_is_cut_off()).await;
}

async fn apply_is_held_back() {
    let cluster = TestCluster::new(3, 92, WeakenHost::default()).await;
    let acknowledged = Acknowledged::default();
    acknowledged.write(&cluster, 1).await;
    until("node 3 holds it", || cluster.register(3, "x") == Some(1)).await;
    until("node 3 is fresh", || is_fresh(&cluster, 3)).await;

    let held = cluster.hold_apply(3).await;
    acknowledged.write(&cluster, 1).await;
    for _ in 0..2000 {
        pass(ms(1)).await;
        acknowledged.check(&cluster, 3);
    }
    assert!(age(&cluster, 3).is_some_and(|age| age >= ms(2000)));
    assert!(is_fresh(&cluster, 2));
    drop(held);
    until("node 3 has applied it", || cluster.register(3, "x") == Some(2)).await;
    assert!(is_fresh(&cluster, 3), "its questions were answered all the time");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_applied_makes_nothing_fresher() {
    Box::pin(apply_is_held_back()).await;
}

async fn a_follower_starts_again() {
    let mut cluster = TestCluster::new(3, 93, WeakenHost::default()).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    until("node 3 is fresh", || is_fresh(&cluster, 3)).await;
    cluster.end(3, End::Kill).await;

    cluster.partition(1, 3);
    cluster.partition(2, 3);
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    assert_eq!(cluster.register(3, "x"), Some(1));
    for _ in 0..20 {
        assert_eq!(age(&cluster, 3), None, "nobody has told it anything in this run");
        pass(ms(100)).await;
    }
    cluster.heal(1, 3);
    cluster.heal(2, 3);
    until("node 3 is fresh again", || is_fresh(&cluster, 3)).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_start_the_age_is_unknown_until_a_leader_answers() {
    Box::pin(a_follower_starts_again()).await;
}

/// Whether anybody claims to hold a write that only the dead leader has applied.
async fn a_new_leader_has_applied_nothing_of_its_term(weaken: WeakenHost) -> bool {
    let mut cluster = TestCluster::new(3, 94, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(100)).await;
    let held = [cluster.hold_apply(2).await, cluster.hold_apply(3).await];
    cluster.propose(1, "x", 2, LONG).await.expect("the logs are not held back");
    let acknowledged = Instant::now();
    cluster.end(1, End::Kill).await;

    let survivors = [2, 3];
    until("another is elected", || survivors.iter().any(|node| cluster.leads(*node))).await;
    let mut claimed = false;
    for _ in 0..500 {
        pass(ms(1)).await;
        claimed |= survivors.iter().any(|node| claims(&cluster, *node, acknowledged));
    }
    assert!(survivors.iter().all(|node| cluster.register(*node, "x") == Some(1)));
    drop(held);
    if !claimed {
        let all_claim = || survivors.iter().all(|node| claims(&cluster, *node, acknowledged));
        until("both know their age again", all_claim).await;
        assert!(survivors.iter().all(|node| cluster.register(*node, "x") == Some(2)));
    }
    claimed
}

fn unsure() -> WeakenHost {
    WeakenHost { poll_without_gate: true, ..WeakenHost::default() }
}

#[tokio::test(start_paused = true)]
async fn a_leader_vouches_for_nothing_before_it_has_applied_an_entry_of_its_own_term() {
    let story = a_new_leader_has_applied_nothing_of_its_term(WeakenHost::default());
    assert!(!Box::pin(story).await);
    let story = a_new_leader_has_applied_nothing_of_its_term(unsure());
    assert!(Box::pin(story).await, "2 was acknowledged before");
}

/// Whether anybody on the wrong side of a partition claims to hold what the others acknowledged.
async fn a_follower_asks_a_deposed_leader(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(5, 95, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(100)).await;
    for other in [2, 3, 4] {
        cluster.partition(1, other);
        cluster.partition(5, other);
    }
    let leader = cluster.leader_among(&[2, 3, 4]).await;
    cluster.propose(leader, "x", 2, LONG).await.expect("three of five are a majority");
    let acknowledged = Instant::now();

    let believed = || cluster.group(5).replica.believed_leader();
    assert_eq!(believed(), Some((replica_of(1), NodeId(1))), "it is asked for a while");
    let mut claimed = false;
    until("node 5 believes nobody", || {
        claimed |= [1, 5].iter().any(|node| claims(&cluster, *node, acknowledged));
        believed().is_none()
    })
    .await;
    assert!([1, 5].iter().all(|node| cluster.register(*node, "x") == Some(1)));
    claimed
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_vouches_for_nobody() {
    assert!(!Box::pin(a_follower_asks_a_deposed_leader(WeakenHost::default())).await);
    let claimed = Box::pin(a_follower_asks_a_deposed_leader(unsure())).await;
    assert!(claimed, "2 was acknowledged before");
}

/// The question of one replica to another, as its node sends it.
fn question(from: u64, to: u64) -> v1::Envelope {
    let items = vec![v1::PollItem { group: GROUP.0, from, to }];
    v1::Envelope { call: 2, body: Some(Body::Poll(v1::Poll { items })), ..Default::default() }
}

async fn vouched_for(caller: &mut Caller, from: u64, to: u64) -> Vec<v1::PolledItem> {
    match caller.ask(question(from, to)).await {
        Some(Body::Polled(polled)) => polled.items,
        other => panic!("{other:?}"),
    }
}

async fn greeted(cluster: &TestCluster, to: u32, node: u32) -> Caller {
    let mut caller = Caller::new(cluster, to, node).await;
    let nameless = caller.ask(question(14, replica_of(to).0)).await;
    assert!(matches!(nameless, Some(Body::Undeliverable(_))), "{nameless:?}");
    let greeted = caller.ask(caller.ping(1, 1, 1)).await;
    assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    caller
}

async fn several_ask() {
    let cluster = TestCluster::new(3, 96, WeakenHost::default()).await;
    let mut caller = greeted(&cluster, 1, 4).await;
    let leader = replica_of(1).0;
    assert!(vouched_for(&mut caller, 14, leader).await.is_empty(), "it is no member");

    let group = cluster.group(1);
    let learner = group.raft.add_learner(14, Seat { node: NodeId(4) }, false);
    Box::pin(learner).await.expect("the cluster works");
    let (applied, (_, term)) = (group.applied_index(), group.role());
    let told = vouched_for(&mut caller, 14, leader).await;
    let [item] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((item.group, item.to, item.term), (GROUP.0, 14, term));
    assert!(item.index >= applied, "{item:?}, and {applied} is applied");

    assert!(vouched_for(&mut caller, 14, 9).await.is_empty(), "no such replica is here");
    let elsewhere = vouched_for(&mut caller, replica_of(2).0, leader).await;
    assert!(elsewhere.is_empty(), "it sits on another node: {elsewhere:?}");
    let mut follower = greeted(&cluster, 2, 4).await;
    until("the follower knows the learner", || {
        cluster.group(2).replica.seats().contains_key(&replica_of(4))
    })
    .await;
    let told = vouched_for(&mut follower, 14, replica_of(2).0).await;
    assert!(told.is_empty(), "it does not lead: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_answers_members_on_their_own_nodes() {
    Box::pin(several_ask()).await;
}

async fn many_things_happen() {
    let cluster = TestCluster::new(3, 97, WeakenHost::default()).await;
    let (acknowledged, is_over) = (Acknowledged::default(), Cell::new(false));
    let writing = async {
        let mut leader = 1;
        while !is_over.get() {
            leader = acknowledged.write(&cluster, leader).await;
        }
    };
    let watching = async {
        while !is_over.get() {
            (1..=3).for_each(|node| acknowledged.check(&cluster, node));
            pass(ms(1)).await;
        }
    };
    let happening = async {
        pass(ms(300)).await;
        cluster.partition(1, 3);
        cluster.partition(2, 3);
        pass(ms(700)).await;
        cluster.heal(1, 3);
        cluster.heal(2, 3);
        pass(ms(300)).await;
        cluster.group(1).transfer(NodeId(2), LONG).await.expect("node 2 is a voter with a link");
        pass(ms(300)).await;
        let held = cluster.hold_apply(3).await;
        pass(ms(500)).await;
        drop(held);
        pass(ms(300)).await;
        is_over.set(true);
    };
    tokio::join!(writing, watching, happening);
    assert!(acknowledged.count() > 50, "{}", acknowledged.count());
    until("all are fresh", || (1..=3).all(|node| is_fresh(&cluster, node))).await;
    until("all hold the last", || cluster.everyone_holds("x", acknowledged.count())).await;
}

#[tokio::test(start_paused = true)]
async fn no_claim_is_false_whatever_happens() {
    Box::pin(many_things_happen()).await;
}
