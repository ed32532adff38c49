//! The manager's group under one manager after another (H6).
//!
//! Its id stays, so a replica of a former manager could speak to one of the present, or come back and be
//! elected by others that came back. Once a node goes by a later reign it neither holds nor hears such
//! replicas, and its pings tell everybody else.

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::ids::allocated_id;
use annulus_types::{GroupId, ReplicaId};
use annulus_wal::StreamId;

use super::caller::Caller;
use super::cluster::{TestCluster, until};
use super::registers::Registers;
use crate::host::{GroupSpec, HostError};
use crate::options::WeakenHost;
use crate::reign::{Reign, UNKNOWN_INCARNATION};

const FORMER: Reign = Reign { era: 1, incarnation: 7 };
const PRESENT: Reign = Reign { era: 2, incarnation: 9 };
/// A node that no membership knows.
const STRANGER: u32 = 99;

fn replica_in(reign: Reign, counter: u32) -> ReplicaId {
    ReplicaId(allocated_id(reign.incarnation, counter))
}

/// Opens a replica of the manager's group on node 2.
async fn open(cluster: &TestCluster, replica: ReplicaId) -> Result<(), HostError> {
    let host = cluster.host(2);
    let machine = Arc::new(Registers(Arc::clone(host.engine())));
    let spec = GroupSpec { group: GroupId::MANAGER, replica, found: BTreeMap::new() };
    Box::pin(host.open_group(spec, machine)).await.map(drop)
}

/// What node 2's replica `to` answers to a leader that is the replica `from`.
async fn lead(cluster: &TestCluster, from: ReplicaId, to: ReplicaId) -> Option<Body> {
    let mut caller = Caller::new(cluster, 2, STRANGER).await;
    let greeted = caller.ask(caller.ping(1, 1, 1)).await;
    assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    let vote = Some(v1::Vote { term: 5, leader: from.0, committed: true });
    let body = Some(Body::Append(v1::AppendRequest { vote, ..Default::default() }));
    let (group, from, to) = (GroupId::MANAGER.0, from.0, to.0);
    caller.ask(v1::Envelope { group, from, to, call: 2, body }).await
}

#[tokio::test(start_paused = true)]
async fn a_later_reign_is_told_by_pings_and_none_is_left_for_an_earlier_one() {
    let cluster = Box::pin(TestCluster::new(3, 131, WeakenHost::default())).await;
    cluster.host(1).enter_reign(PRESENT);
    let has_heard = |node: u32| {
        let heard = cluster.host(node).heard_reign();
        let told = *heard.borrow();
        told == PRESENT
    };
    until("the others have heard of it", || has_heard(2) && has_heard(3)).await;
    assert_eq!(cluster.host(2).reign(), Reign::default(), "it is not stored there");
    cluster.host(1).enter_reign(FORMER);
    assert_eq!(cluster.host(1).reign(), PRESENT);
}

#[test]
fn whose_era_it_is_may_not_be_known() {
    let unknown = Reign { era: 1, incarnation: UNKNOWN_INCARNATION };
    assert!(
        unknown.admits(replica_in(FORMER, 1)) && Reign::default().admits(replica_in(FORMER, 1))
    );
    assert!(FORMER.admits(replica_in(FORMER, 1)) && !FORMER.admits(replica_in(PRESENT, 1)));
    assert!(Reign::default() < unknown && unknown < FORMER && FORMER < PRESENT);
}

#[tokio::test(start_paused = true)]
async fn of_two_managers_of_one_era_the_higher_incarnation_is_left() {
    let cluster = Box::pin(TestCluster::new(3, 134, WeakenHost::default())).await;
    let rival = Reign { incarnation: PRESENT.incarnation + 2, ..PRESENT };
    let host = cluster.host(2);
    host.enter_reign(PRESENT);
    let own = replica_in(PRESENT, 2);
    open(&cluster, own).await.expect("nobody knows of the other one");
    cluster.host(1).enter_reign(rival);
    let hears = |node: u32, reign: Reign| {
        let heard = cluster.host(node).heard_reign();
        let told = *heard.borrow();
        told == reign
    };
    // Node 3 hears of both, in any order.
    until("all have heard of it", || hears(2, rival) && hears(3, rival)).await;
    host.enter_reign(rival);
    assert_eq!(host.deposed(), [own]);
    host.enter_reign(PRESENT);
    cluster.host(1).enter_reign(PRESENT);
    assert_eq!((host.reign(), cluster.host(1).reign()), (rival, rival));
    assert_eq!(host.depose(own).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_replica_of_a_former_manager_ends_without_proof_and_none_comes_back() {
    let cluster = Box::pin(TestCluster::new(3, 132, WeakenHost::default())).await;
    let host = cluster.host(2);
    let former = replica_in(FORMER, 2);
    open(&cluster, former).await.expect("it is the only manager's");
    host.enter_reign(FORMER);
    assert!(host.deposed().is_empty());
    assert!(host.depose(former).await.is_err(), "it is of the present manager");

    host.enter_reign(PRESENT);
    assert_eq!(host.deposed(), [former]);
    let other = open(&cluster, replica_in(FORMER, 3)).await;
    assert!(matches!(other, Err(HostError::Deposed(_))), "{other:?}");
    assert_eq!(host.depose(former).await, Ok(()));
    assert!(host.deposed().is_empty() && host.group(GroupId::MANAGER).is_none());
    let stream = StreamId { group: GroupId::MANAGER, replica: former };
    assert!(host.wal().tombstones().contains(&stream));
    open(&cluster, replica_in(PRESENT, 2)).await.expect("its place is free");
}

/// Whether a replica of the present manager obeys a leader of a former one.
async fn a_former_leader_is_obeyed(weaken: WeakenHost) -> bool {
    let cluster = Box::pin(TestCluster::new(3, 133, weaken)).await;
    cluster.host(2).enter_reign(PRESENT);
    let own = replica_in(PRESENT, 2);
    open(&cluster, own).await.expect("a new replica opens");
    let answer = lead(&cluster, replica_in(FORMER, 1), own).await;
    let obeyed = matches!(answer, Some(Body::AppendReply(_)));
    assert_eq!(obeyed, !matches!(answer, Some(Body::Undeliverable(_))), "{answer:?}");
    if !obeyed {
        let present = lead(&cluster, replica_in(PRESENT, 1), own).await;
        assert!(matches!(present, Some(Body::AppendReply(_))), "{present:?}");
    }
    obeyed
}

#[tokio::test(start_paused = true)]
async fn a_leader_of_a_former_manager_is_not_heard() {
    assert!(!Box::pin(a_former_leader_is_obeyed(WeakenHost::default())).await);
    let trusting = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    assert!(Box::pin(a_former_leader_is_obeyed(trusting)).await);
}
