//! Nodes that come back with another past than their peers remember (N1).
//!
//! A folder that was set back, or copied, holds older votes and entries than its node has promised and
//! acknowledged. Nothing in it says so; the peers' memory does. Nobody hears such a node any more, and it
//! is told that its folder is dead.

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::{Disk as _, SimDisk};
use annulus_types::NodeId;

use super::caller::Caller;
use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{End, GROUP, Rows, replica_of};
use crate::options::{Timing, WeakenHost};

fn forgetful() -> WeakenHost {
    WeakenHost { forget_lives: true, ..WeakenHost::default() }
}

/// Whether anybody hears node 3, or is heard by the node on that machine.
fn is_heard(cluster: &TestCluster, machine: u32) -> bool {
    let answers = |peer: &u32| cluster.host(machine).is_linked(NodeId(*peer));
    let calls = |peer: &u32| machine == 3 && cluster.host(*peer).is_linked(NodeId(3));
    [1, 2].iter().any(|peer| answers(peer) || calls(peer))
}

/// Waits until the node on that machine knows what its peers think of it.
async fn until_judged(cluster: &TestCluster, machine: u32) {
    let is_linked = |peer: &u32| cluster.host(machine).is_linked(NodeId(*peer));
    let is_judged = || !cluster.told_dead(machine).is_empty() || [1, 2].iter().all(is_linked);
    until("its peers have judged it", is_judged).await;
    // What it can do now, it does within this.
    pass(Timing::default().lease * 2).await;
}

async fn until_linked(cluster: &TestCluster) {
    let is_linked = |from: u32, to: u32| cluster.host(from).is_linked(NodeId(to));
    let holds = || [1, 2].iter().all(|peer| is_linked(3, *peer) && is_linked(*peer, 3));
    until("node 3 is linked both ways", holds).await;
}

/// A cluster in which node 3 is down, after its third start, and the folder that it had at the end of
/// its first. Both hold the same entries: what follows is about nothing else than who is heard.
async fn node_3_has_a_past(seed: u64, weaken: WeakenHost) -> (TestCluster, SimDisk) {
    let mut cluster = TestCluster::new(3, seed, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    // Its sync is over, too.
    pass(ms(20)).await;
    cluster.end(3, End::Kill).await;
    assert_eq!(cluster.boots(3), 1);
    let image = cluster.image(3);
    for _ in 0..2 {
        cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
        until_linked(&cluster).await;
        cluster.end(3, End::Kill).await;
    }
    (cluster, image)
}

/// What became of a node that came back as another than it was.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// What it was told of the end of its folder.
    dead: Vec<String>,
    /// Somebody hears it.
    is_heard: bool,
    /// The leader counts what it acknowledges.
    is_counted: bool,
}

/// Node 3 comes back with its first folder, which says that it was started `boots` times.
async fn node_3_is_set_back(boots: u64, weaken: WeakenHost) -> Seen {
    let (mut cluster, image) = node_3_has_a_past(81, weaken).await;
    cluster.replace_folder(3, image, boots);
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until_judged(&cluster, 3).await;
    let is_heard = is_heard(&cluster, 3);
    // Without node 2 a write needs node 3.
    assert!(cluster.gate_is_open(1));
    cluster.end(2, End::Kill).await;
    let is_counted = cluster.propose(1, "y", 2, ms(2000)).await.is_ok();
    Seen { dead: cluster.told_dead(3), is_heard, is_counted }
}

async fn is_refused_for(boots: u64, why: &str) {
    let seen = Box::pin(node_3_is_set_back(boots, WeakenHost::default())).await;
    // Both peers said so; it is told once.
    assert!(matches!(&seen.dead[..], [reason] if reason.contains(why)), "{seen:?}");
    assert!(!seen.is_heard && !seen.is_counted, "{seen:?}");

    let seen = Box::pin(node_3_is_set_back(boots, forgetful())).await;
    assert_eq!(seen, Seen { dead: Vec::new(), is_heard: true, is_counted: true }, "an older past");
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_counts_fewer_starts_is_dead() {
    is_refused_for(1, "this is start 2 of a data folder whose start 3 was seen").await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_whose_start_was_seen_of_another_process_is_dead() {
    is_refused_for(2, "another process was seen at start 3").await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_with_an_older_log_is_dead_however_often_it_was_started() {
    is_refused_for(3, "start 4 found the log of the data folder to end at segment 1").await;
}

/// Node 3 comes back with its folder as it was in the middle of its last start, with fewer entries and no
/// fewer segments. Whether it is heard, and what it was told.
async fn node_3_is_set_back_within_its_start(weaken: WeakenHost) -> (bool, Vec<String>) {
    let mut cluster = TestCluster::new(3, 87, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(20)).await;
    let (image, boots) = (cluster.image(3), cluster.boots(3));
    let before = cluster.host(3).wal().durable_position();
    cluster.propose(1, "y", 2, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("y", 2)).await;
    // The next ping tells it; within another second it is written.
    pass(ms(1500)).await;
    let after = cluster.host(3).wal().durable_position();
    assert!(before.segment == after.segment && before < after, "{before:?}, {after:?}");
    cluster.end(3, End::Kill).await;
    // A leader knows what it has counted, and would find out: another one does not.
    cluster.end(1, End::Kill).await;
    cluster.restart(1, Rows::Kept).await.expect("its log is undamaged");
    cluster.leader_among(&[1, 2]).await;

    cluster.replace_folder(3, image, boots);
    cluster.restart(3, Rows::Lost).await.expect("its log is undamaged");
    assert_eq!(cluster.host(3).wal().recovered_end(), before);
    until_judged(&cluster, 3).await;
    (is_heard(&cluster, 3), cluster.told_dead(3))
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_was_set_back_within_its_newest_start_is_dead() {
    let story = node_3_is_set_back_within_its_start(WeakenHost::default());
    let (is_heard, dead) = Box::pin(story).await;
    assert!(!is_heard);
    assert!(matches!(&dead[..], [why] if why.contains("found the log")), "{dead:?}");

    let (is_heard, dead) = Box::pin(node_3_is_set_back_within_its_start(forgetful())).await;
    assert_eq!((is_heard, dead), (true, Vec::new()), "it has forgotten y");
}

/// A copy of node 3's folder is started beside node 3, as often as that. Whether the copy is heard, and
/// what it was told.
async fn a_copy_is_started_beside_it(weaken: WeakenHost) -> (bool, Vec<String>) {
    let mut cluster = TestCluster::new(3, 82, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it, and the membership", || cluster.everyone_holds("x", 1)).await;
    pass(ms(20)).await;
    cluster.end(3, End::Kill).await;
    cluster.copy_folder(3, 4);
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until_linked(&cluster).await;

    cluster.restart(4, Rows::Kept).await.expect("its log is undamaged");
    assert_eq!((cluster.boots(4), cluster.boots(3)), (2, 2));
    until_judged(&cluster, 4).await;
    let is_heard = is_heard(&cluster, 4);
    // The original goes on.
    until_linked(&cluster).await;
    assert_eq!(cluster.told_dead(3), Vec::<String>::new());
    (is_heard, cluster.told_dead(4))
}

#[tokio::test(start_paused = true)]
async fn a_copy_beside_the_original_is_not_heard() {
    let (is_heard, dead) = Box::pin(a_copy_is_started_beside_it(WeakenHost::default())).await;
    assert!(!is_heard);
    assert!(matches!(&dead[..], [why] if why.contains("another process was seen")), "{dead:?}");

    let (is_heard, dead) = Box::pin(a_copy_is_started_beside_it(forgetful())).await;
    assert_eq!((is_heard, dead), (true, Vec::new()), "two processes speak as one node");
}

/// The folder of node 3 is copied while node 3 runs, and the copy is started when node 3 has written on.
/// Whether the copy is heard, and what it was told.
async fn a_copy_of_a_running_node_is_started(weaken: WeakenHost) -> (bool, Vec<String>) {
    let mut cluster = TestCluster::new(3, 88, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(20)).await;
    cluster.copy_folder(3, 4);
    cluster.propose(1, "y", 2, LONG).await.expect("the cluster works");
    until("node 3 holds it", || cluster.register(3, "y") == Some(2)).await;
    // The next ping tells it.
    pass(ms(300)).await;

    cluster.restart(4, Rows::Kept).await.expect("its log is undamaged");
    assert_eq!((cluster.boots(4), cluster.boots(3)), (2, 1));
    until_judged(&cluster, 4).await;
    let is_heard = is_heard(&cluster, 4);
    (is_heard, cluster.told_dead(4))
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_node_that_has_written_on_is_dead() {
    let (is_heard, dead) =
        Box::pin(a_copy_of_a_running_node_is_started(WeakenHost::default())).await;
    assert!(!is_heard);
    assert!(matches!(&dead[..], [why] if why.contains("found the log")), "{dead:?}");

    let (is_heard, dead) = Box::pin(a_copy_of_a_running_node_is_started(forgetful())).await;
    assert_eq!((is_heard, dead), (true, Vec::new()), "two processes speak as one node");
}

/// Node 3's folder is lost, and it starts with a new one under its old id. Whether it is heard, and what
/// it was told.
async fn node_3_is_wiped(weaken: WeakenHost) -> (bool, Vec<String>) {
    let mut cluster = TestCluster::new(3, 83, weaken).await;
    cluster.end(3, End::Kill).await;
    cluster.wipe(3);
    cluster.restart(3, Rows::Kept).await.expect("a new replica opens");
    pass(Timing::default().lease * 2).await;
    let is_heard = is_heard(&cluster, 3);
    (is_heard, cluster.told_dead(3))
}

#[tokio::test(start_paused = true)]
async fn a_new_folder_under_an_old_id_is_not_heard_and_not_dead() {
    let seen = Box::pin(node_3_is_wiped(WeakenHost::default())).await;
    assert_eq!(seen, (false, Vec::new()), "which of the two counts is not its peers' to say");
    let seen = Box::pin(node_3_is_wiped(forgetful())).await;
    assert_eq!(seen, (true, Vec::new()), "an empty voter");
}

/// Has the peers of node 3 take the manager's word for the folder that runs on that machine.
async fn admit(cluster: &TestCluster, machine: u32) {
    let life = cluster.host(machine).options().incarnation;
    for peer in [1, 2] {
        let admitted = cluster.host(peer).admit(&[(NodeId(3), life)]).await;
        admitted.expect("the disk works");
    }
}

/// What became of the two folders of a node.
#[derive(Debug, PartialEq, Eq)]
struct Replaced {
    /// Somebody heard the new folder before it was admitted, and after.
    heard: [bool; 2],
    /// Somebody hears the former one when it returns, and what it was told.
    former: (bool, Vec<String>),
}

/// Node 3's folder is lost, the manager admits a new one, and the former returns on another machine.
async fn node_3_begins_anew(weaken: WeakenHost) -> Replaced {
    let mut cluster = TestCluster::new(3, 89, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(20)).await;
    admit(&cluster, 3).await;
    until_linked(&cluster).await;
    cluster.end(3, End::Kill).await;
    cluster.copy_folder(3, 4);
    cluster.wipe(3);
    // It opens nothing: its replicas died with the former folder.
    cluster.start(3).await;
    pass(Timing::default().lease * 2).await;
    let before = is_heard(&cluster, 3);
    admit(&cluster, 3).await;
    until_linked(&cluster).await;
    let after = is_heard(&cluster, 3);
    assert_eq!(cluster.told_dead(3), Vec::<String>::new());

    cluster.restart(4, Rows::Kept).await.expect("its log is undamaged");
    until_judged(&cluster, 4).await;
    let former = (is_heard(&cluster, 4), cluster.told_dead(4));
    // The new one goes on.
    until_linked(&cluster).await;
    assert_eq!(cluster.told_dead(3), Vec::<String>::new());
    Replaced { heard: [before, after], former }
}

#[tokio::test(start_paused = true)]
async fn a_new_folder_is_heard_once_it_is_admitted_and_the_former_is_dead() {
    let seen = Box::pin(node_3_begins_anew(WeakenHost::default())).await;
    assert_eq!(seen.heard, [false, true], "{seen:?}");
    let (is_heard, dead) = &seen.former;
    assert!(!is_heard);
    let why = "node 3 goes on with another data folder";
    assert!(matches!(&dead[..], [told] if told.contains(why)), "{dead:?}");

    let seen = Box::pin(node_3_begins_anew(forgetful())).await;
    let both = Replaced { heard: [true, true], former: (true, Vec::new()) };
    assert_eq!(seen, both, "two folders speak as one node");
}

/// The links of node 3 are up when the manager gives its folder up. Whether they stay.
async fn a_linked_life_is_given_up(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 90, weaken).await;
    admit(&cluster, 3).await;
    until_linked(&cluster).await;
    for peer in [1, 2] {
        cluster.host(peer).admit(&[(NodeId(3), 2003)]).await.expect("the disk works");
    }
    until_judged(&cluster, 3).await;
    let is_heard = is_heard(&cluster, 3);
    assert_eq!(is_heard, cluster.told_dead(3).is_empty());
    is_heard
}

#[tokio::test(start_paused = true)]
async fn links_end_when_their_life_is_given_up() {
    assert!(!Box::pin(a_linked_life_is_given_up(WeakenHost::default())).await);
    assert!(Box::pin(a_linked_life_is_given_up(forgetful())).await, "nobody remembers");
}

/// The peers of node 3 lose their power, and their files `peers` if `loses` says so; then node 3 is set
/// back. Whether it is heard.
async fn its_peers_start_again(loses: bool) -> bool {
    let (mut cluster, image) = node_3_has_a_past(84, WeakenHost::default()).await;
    for peer in [1, 2] {
        cluster.end(peer, End::PowerCut).await;
        if loses {
            let disk = cluster.disk(peer);
            disk.remove_file("/peers".as_ref()).expect("it was written");
        }
    }
    for peer in [1, 2] {
        cluster.restart(peer, Rows::Kept).await.expect("its log is undamaged");
    }
    cluster.leader_among(&[1, 2]).await;
    cluster.replace_folder(3, image, 1);
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until_judged(&cluster, 3).await;
    let is_heard = is_heard(&cluster, 3);
    assert_eq!(is_heard, cluster.told_dead(3).is_empty());
    is_heard
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_outlives_the_process_that_remembers() {
    assert!(!Box::pin(its_peers_start_again(false)).await);
    assert!(Box::pin(its_peers_start_again(true)).await, "nobody remembers");
}

/// Asks node 2's replica for a read index, as a replica that no membership knows.
fn question() -> v1::Envelope {
    let body = Some(Body::ReadIndex(v1::ReadIndexRequest {}));
    v1::Envelope { group: GROUP.0, from: 99, to: replica_of(2).0, call: 2, body }
}

/// What node 2 answers when a link goes on under another incarnation, and under another node.
async fn the_sender_changes(weaken: WeakenHost) -> [Option<Body>; 2] {
    let cluster = TestCluster::new(3, 85, weaken).await;
    let mut answers = [None, None];
    for (nth, answer) in answers.iter_mut().enumerate() {
        let mut caller = Caller::new(&cluster, 2, 99).await;
        let greeted = caller.ask(caller.ping(1, 1, 1)).await;
        assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
        let asked = caller.ask(question()).await;
        assert!(matches!(asked, Some(Body::ReadIndexReply(_))), "{asked:?}");
        if nth == 0 {
            caller.incarnation = 2;
        } else {
            caller.node = 98;
        }
        *answer = caller.ask(question()).await;
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_another_life_ends_the_link() {
    let answers = Box::pin(the_sender_changes(WeakenHost::default())).await;
    assert_eq!(answers, [None, None]);
    let weaken = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    let answers = Box::pin(the_sender_changes(weaken)).await;
    let is_answered = |answer: &Option<Body>| matches!(answer, Some(Body::ReadIndexReply(_)));
    assert!(answers.iter().all(is_answered), "{answers:?}");
}

async fn a_refused_ping_is_answered() {
    let cluster = TestCluster::new(3, 86, WeakenHost::default()).await;
    let mut first = Caller::new(&cluster, 2, 99).await;
    for segment in [5, 6, 5] {
        // The last one says an older segment at the same start: late, and no offence.
        let greeted = first.ask(first.ping(4, 1, segment)).await;
        assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    }
    for (ping, incarnation, is_dead) in
        [((3, 1, 9), 1, true), ((4, 2, 9), 1, true), ((5, 3, 6), 1, true), ((9, 9, 9), 2, false)]
    {
        let mut other = Caller::new(&cluster, 2, 99).await;
        other.incarnation = incarnation;
        let (start, id, segment) = ping;
        let answer = other.ask(other.ping(start, id, segment)).await;
        let Some(Body::Refused(refused)) = answer else { panic!("{ping:?}: {answer:?}") };
        assert_eq!(refused.dead, is_dead, "{ping:?}: {}", refused.reason);
        assert_eq!(other.ask(question()).await, None, "the link goes on");
    }
    // A link is not held to account for what others say in its name, only for what it says itself.
    let greeted = first.ask(first.ping(4, 1, 7)).await;
    assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    let refused = first.ask(first.ping(3, 1, 7)).await;
    assert!(matches!(refused, Some(Body::Refused(_))), "{refused:?}");
    assert_eq!(first.answer().await, None, "the link goes on");

    // A ping speaks for the node of its frame.
    let mut liar = Caller::new(&cluster, 2, 99).await;
    let ping = liar.ping(9, 9, 9);
    liar.node = 97;
    assert_eq!(liar.ask(ping).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_ping_is_answered_and_ends_its_link() {
    Box::pin(a_refused_ping_is_answered()).await;
}
