//! What the other end of a link answers, or does not (N1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;

use super::callee::{CALLEE, Callee};
use super::caller::{Caller, about};
use super::cluster::{TestCluster, ms, pass, until};
use crate::options::WeakenHost;

fn forgetful() -> WeakenHost {
    WeakenHost { forget_lives: true, ..WeakenHost::default() }
}

fn is_pong(answer: &Option<Body>) -> bool {
    matches!(answer, Some(Body::Pong(_)))
}

async fn a_peer_says_nothing() {
    let cluster = TestCluster::new(3, 101, WeakenHost::default()).await;
    let callee = Callee::of(&cluster, 1, |_| None).await;
    until("it is linked to", || callee.calls() == 1).await;
    let silent = cluster.host(1).options().silent;
    pass(silent / 2).await;
    assert_eq!(callee.calls(), 1, "it has time");
    pass(silent * 4).await;
    assert!(callee.calls() >= 4, "{} calls", callee.calls());
    assert!(!cluster.host(1).is_linked(CALLEE));
}

#[tokio::test(start_paused = true)]
async fn a_link_whose_first_answer_does_not_come_is_tried_again() {
    Box::pin(a_peer_says_nothing()).await;
}

/// A peer's pongs say that its log is durable up to `offset` of segment 20, at its start 4.
fn pong(offset: u64) -> Body {
    Body::Pong(v1::Pong { about: Some(about(CALLEE.0, (4, 1), (20, offset), (19, 8192))) })
}

/// The machine of a peer is set back with its memory. Whether the peer is still heard, and what is
/// answered to its own ping.
async fn a_running_process_is_set_back(weaken: WeakenHost) -> (bool, Option<Body>) {
    let cluster = TestCluster::new(3, 102, weaken).await;
    let offset = Arc::new(AtomicU64::new(20_000));
    let says = Arc::clone(&offset);
    let callee = Callee::of(&cluster, 1, move |_| Some(pong(says.load(Ordering::SeqCst)))).await;
    until("it is heard", || cluster.host(1).is_linked(CALLEE)).await;
    pass(ms(1000)).await;
    assert!(cluster.host(1).is_linked(CALLEE) && callee.calls() == 1);
    let mut caller = Caller::new(&cluster, 1, CALLEE.0).await;
    let late = about(CALLEE.0, (4, 1), (20, 12_288), (19, 8192));
    let answer = caller.ask(caller.tell(late.clone())).await;
    assert!(is_pong(&answer), "a ping may be older than the last pong: {answer:?}");

    offset.store(12_288, Ordering::SeqCst);
    pass(ms(1000)).await;
    let is_heard = cluster.host(1).is_linked(CALLEE);
    // It has written more since.
    offset.store(50_000, Ordering::SeqCst);
    pass(ms(1000)).await;
    assert_eq!(cluster.host(1).is_linked(CALLEE), is_heard);
    (is_heard, caller.ask(caller.tell(late)).await)
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_set_back_with_its_memory_is_dead() {
    let (is_heard, answer) = Box::pin(a_running_process_is_set_back(WeakenHost::default())).await;
    assert!(!is_heard);
    let Some(Body::Refused(refused)) = answer else { panic!("{answer:?}") };
    assert!(refused.dead && refused.reason.contains("went back"), "{refused:?}");

    let (is_heard, answer) = Box::pin(a_running_process_is_set_back(forgetful())).await;
    assert!(is_heard && is_pong(&answer), "{answer:?}");
}

/// What node 1 is told of the end of its folder by a peer that says this of itself. Node 1 knows the
/// peer's start 5.
async fn a_peer_refuses(speaks: Option<v1::Ping>) -> Vec<String> {
    let cluster = TestCluster::new(3, 103, WeakenHost::default()).await;
    let mut caller = Caller::new(&cluster, 1, CALLEE.0).await;
    let greeted = caller.ask(caller.ping(5, 1, 9)).await;
    assert!(is_pong(&greeted), "{greeted:?}");
    let reason = "it was set back".to_owned();
    let refused = v1::Refused { reason, dead: true, about: speaks };
    let callee = Callee::of(&cluster, 1, move |_| Some(Body::Refused(refused.clone()))).await;
    until("it has refused", || callee.calls() >= 3).await;
    cluster.told_dead(1)
}

async fn a_refusal_is_judged_by_its_sender() {
    let told = Box::pin(a_peer_refuses(Some(about(CALLEE.0, (5, 1), (9, 8192), (8, 8192))))).await;
    assert_eq!(told, ["it was set back"]);
    let set_back = about(CALLEE.0, (4, 1), (9, 8192), (8, 8192));
    assert_eq!(Box::pin(a_peer_refuses(Some(set_back))).await, Vec::<String>::new());
    let another = about(CALLEE.0 + 1, (5, 1), (9, 8192), (8, 8192));
    assert_eq!(Box::pin(a_peer_refuses(Some(another))).await, Vec::<String>::new());
    assert_eq!(Box::pin(a_peer_refuses(None)).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_is_not_believed_when_it_refuses() {
    Box::pin(a_refusal_is_judged_by_its_sender()).await;
}
