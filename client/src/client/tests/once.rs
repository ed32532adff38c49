//! Mutations with operation ids: whatever happens to their answers, they take effect once, and what is said
//! of them is true.

use annulus_proto::convert::{IncrResult, OpState};
use annulus_types::{Error as Said, NodeId, ShardId};

use super::super::*;
use super::fake::{Cluster, Play, not_leader, table, unknown};
use super::shard::Shard;

/// A cluster whose second node leads, and a client of it.
async fn started() -> (Cluster, Client) {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    (cluster, client)
}

/// Writer, number and attempt of every mutation that any node heard.
fn names(cluster: &Cluster) -> Vec<(u64, u64, u32)> {
    cluster.shard().names.iter().map(|op| (op.writer, op.seq, op.attempt)).collect()
}

fn changes(cluster: &Cluster) -> Vec<String> {
    cluster.shard().changes.clone()
}

fn opened(cluster: &Cluster) -> usize {
    cluster.shard().opened
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_lost_reply_comes_with_the_repetition_and_the_value_is_set_once() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::LoseReply]);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.version, written.receipt.revision), (Revision(5), Revision(5)));
    assert_eq!(written.attempts, 2);
    assert_eq!(names(&cluster), [(4, 1, 0), (4, 1, 1)], "one name, two attempts");
    assert_eq!(changes(&cluster), ["k"]);

    client.put("k", "w").await.unwrap();
    assert_eq!(names(&cluster)[2..], [(4, 2, 0)]);
    assert_eq!((opened(&cluster), cluster.shard().names[2].lowest_unacked), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_repetition_goes_to_whoever_leads_by_then() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::LoseReply, not_leader(Some(1))]);
    cluster.play(3, [not_leader(Some(2))]);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.receipt.node, written.version), (NodeId(1), Revision(5)));
    assert_eq!((written.attempts, changes(&cluster).len()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_left_whether_it_has_applied_or_not() {
    for silence in [Play::Swallow, Play::Hang] {
        let (cluster, client) = started().await;
        cluster.play(2, [silence]);
        let start = tokio::time::Instant::now();
        let written = client.put("k", "v").await.unwrap();
        assert_eq!((written.attempts, written.version), (2, Revision(5)));
        assert!((2_000..2_300).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert_eq!(changes(&cluster), ["k"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_condition_is_repeated_like_any_result() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::LoseReply]);
    // By the second attempt the condition would hold.
    cluster.play(3, [Play::Meanwhile(Shard::remove_everything)]);
    let error = client.cas("k", None, "v").await.unwrap_err();
    let current = Some(Revision(3));
    assert_eq!(error, Error::refused(ErrorKind::PreconditionFailed { current }));
    assert_eq!((names(&cluster).len(), changes(&cluster).len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_ended_writer_is_replaced() {
    let (cluster, client) = started().await;
    client.put("k", "v").await.unwrap();
    cluster.shard().end_writers();
    let written = client.put("k", "w").await.unwrap();
    assert_eq!((written.attempts, written.version), (2, Revision(7)));
    assert_eq!(names(&cluster), [(4, 1, 0), (4, 2, 0), (6, 1, 0)]);
    assert_eq!((opened(&cluster), changes(&cluster).len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_doubt_is_never_sent_under_another_writer() {
    let (cluster, client) = started().await;
    cluster.play(2, [unknown()]);
    cluster.play(3, [Play::Meanwhile(Shard::end_writers)]);
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown);
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
    let id = error.op.unwrap();
    assert_eq!((id.cluster, id.shard), (ClusterId([1; 16]), ShardId(0)));
    assert_eq!((id.writer, id.seq), (Revision(4), 1));
    assert_eq!(names(&cluster), [(4, 1, 0), (4, 1, 1)]);
    assert_eq!((opened(&cluster), changes(&cluster).len()), (1, 0));

    assert_eq!(client.op_status(id).await.unwrap().state, OpState::Ended);
    client.put("k", "w").await.unwrap();
    assert_eq!((opened(&cluster), changes(&cluster).len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn near_the_deadline_the_shard_is_asked_and_its_word_is_the_result() {
    let (cluster, client) = started().await;
    cluster.play_everywhere(&Play::Swallow);
    let start = tokio::time::Instant::now();
    let written = client.put("k", "v").deadline(3_000 * MS).await.unwrap();
    assert!((2_400..3_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!((written.version, written.receipt.revision), (Revision(5), Revision(5)));
    assert_eq!(changes(&cluster), ["k"]);

    let counted = client.incr("n", 7).deadline(1_000 * MS).await.unwrap();
    assert_eq!((counted.sum(), counted.version), (Some(7), Revision(6)));
    let batch = client.batch().put("{a}1", "v").delete("{a}2").deadline(1_000 * MS);
    assert_eq!(batch.await.unwrap().versions, [Revision(7), Revision(0)]);
    let deleted = client.delete("k").deadline(1_000 * MS).await.unwrap();
    assert_eq!((deleted.version, deleted.receipt.revision), (Revision(0), Revision(8)));
    assert_eq!(opened(&cluster), 1, "nothing is in doubt");
}

#[tokio::test(start_paused = true)]
async fn what_the_shard_says_was_not_applied_never_will_be() {
    let (cluster, client) = started().await;
    cluster.play_everywhere(&Play::Hang);
    let error = client.put("k", "v").deadline(1_000 * MS).await.unwrap_err();
    assert_eq!((error.may_have_applied, error.op), (MayHaveApplied::No, None), "{error:?}");
    let late = cluster.shard().names[0];
    let executed = cluster.shard().once(Some(late), "put".to_owned(), |_| panic!("executed"));
    assert_eq!(executed.unwrap_err().kind, ErrorKind::OpIdReused);

    // Judged, and nothing was changed.
    cluster.calm_down();
    cluster.play_everywhere(&Play::Swallow);
    let error = client.cas("k", None, "v").deadline(1_000 * MS).await.unwrap_err();
    assert_eq!((error.may_have_applied, error.op), (MayHaveApplied::No, None), "{error:?}");
    assert!(changes(&cluster).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_has_an_id_that_can_be_asked_about_later() {
    let (cluster, client) = started().await;
    client.put("k", "v").await.unwrap();
    cluster.play_everywhere(&Play::Swallow);
    for id in 1..=3 {
        cluster.play_aside(id, std::iter::repeat_n(Play::Hang, 1_000));
    }
    let start = tokio::time::Instant::now();
    let error = client.put("k", "w").deadline(1_000 * MS).await.unwrap_err();
    assert!((1_000..1_010).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
    let id = error.op.unwrap();
    assert!(error.to_string().ends_with(&format!("(operation {id})")), "{error}");
    assert_eq!(id.to_string().parse(), Ok(id));

    // Neither later mutations nor the end of the client make the shard forget it.
    cluster.calm_down();
    for _ in 0..3 {
        client.put("k", "x").await.unwrap();
    }
    assert_eq!(opened(&cluster), 2);
    client.close().await;
    assert_eq!(cluster.shard().writers.len(), 1, "the writer that is in doubt stays");
    let other = cluster.client().await;
    let report = other.op_status(id).await.unwrap();
    assert_eq!((report.state, report.version), (OpState::Applied, Revision(6)));
    assert_eq!((report.revision, report.receipt.revision), (Revision(6), Revision(10)));
}

#[tokio::test(start_paused = true)]
async fn calls_and_clones_share_one_writer() {
    let (cluster, client) = started().await;
    let clone = client.clone();
    let (one, two, three) = tokio::join!(
        client.put("a", "1").into_future(),
        client.put("b", "2").into_future(),
        clone.incr("c", 3).into_future()
    );
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(opened(&cluster), 1);
    let mut seqs: Vec<u64> = cluster.shard().names.iter().map(|op| op.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_opening_leaves_an_idle_writer_and_no_doubt() {
    let (cluster, client) = started().await;
    cluster.play_aside(2, [Play::LoseReply]);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.version), (2, Revision(6)));
    assert_eq!((opened(&cluster), names(&cluster)), (2, vec![(5, 1, 0)]));
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_given_up_passes_on() {
    let (cluster, client) = started().await;
    cluster.play_aside(2, [Play::Hang]);
    let (dropped, other) = tokio::join!(
        tokio::time::timeout(100 * MS, client.put("a", "1").into_future()),
        client.put("b", "2").into_future()
    );
    assert!(dropped.is_err());
    assert_eq!(other.unwrap().version, Revision(5));
    assert_eq!((opened(&cluster), changes(&cluster)), (1, vec!["b".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_get_a_writer_says_no() {
    let (cluster, client) = started().await;
    for id in 1..=3 {
        let full = Play::Refuse(Said::refused(ErrorKind::Overloaded));
        cluster.play_aside(id, std::iter::repeat_n(full, 1_000));
    }
    let error = client.put("k", "v").deadline(1_000 * MS).await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::Overloaded));
    assert!(names(&cluster).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_put_aside_while_it_opens_holds_nobody_up() {
    let (cluster, client) = started().await;
    cluster.play_aside(2, [Play::Hang]);
    let mut aside = client.put("a", "1").into_future();
    assert!(tokio::time::timeout(10 * MS, &mut aside).await.is_err());
    let start = tokio::time::Instant::now();
    client.put("b", "2").await.unwrap();
    assert!(start.elapsed() < 1_100 * MS, "{:?}", start.elapsed());
    assert_eq!(aside.await.unwrap().version, Revision(6));
    assert_eq!((opened(&cluster), changes(&cluster).len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_holds_nobody_up() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::Hang]);
    let put = client.put("k", "v").into_future();
    assert!(tokio::time::timeout(100 * MS, put).await.is_err());
    client.put("k", "w").await.unwrap();
    let name = cluster.shard().names[1];
    assert_eq!((name.writer, name.seq, name.lowest_unacked), (4, 2, 2));
    assert_eq!(opened(&cluster), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_mutations_are_under_way_than_the_window_holds() {
    const CALLS: usize = 1_100;
    let (cluster, client) = started().await;
    cluster.play(2, [Play::Hang]);
    let put = |n: usize| client.put(format!("key-{n}"), "v").deadline(30_000 * MS).into_future();
    let written = join_all((0..CALLS).map(put)).await;
    assert!(written.iter().all(Result::is_ok));
    let names = cluster.shard().names.clone();
    let widest = names.iter().map(|op| op.seq - op.lowest_unacked).max();
    assert_eq!(widest, Some(limits::WRITER_WINDOW - 1), "it was full, and no more than that");
    assert_eq!((changes(&cluster).len(), opened(&cluster)), (CALLS, 1));
}

#[tokio::test(start_paused = true)]
async fn writers_are_closed_and_opened_again() {
    let (cluster, client) = started().await;
    client.put("k", "v").await.unwrap();
    client.close().await;
    assert!(cluster.shard().writers.is_empty());
    client.put("k", "w").await.unwrap();
    assert_eq!(opened(&cluster), 2);

    for id in 1..=3 {
        cluster.play_aside(id, std::iter::repeat_n(Play::Hang, 1_000));
    }
    let start = tokio::time::Instant::now();
    client.close().await;
    assert!(start.elapsed() < limits::DEADLINE_DEFAULT + 10 * MS, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn numbers_are_counted_once_within_their_limits() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::LoseReply]);
    let counted = client.incr("n", 5).max(8).await.unwrap();
    assert_eq!((counted.sum(), counted.version), (Some(5), Revision(5)));

    let counted = client.incr("n", 5).min(0).max(8).await.unwrap();
    assert_eq!((counted.result, counted.value), (IncrResult::OutOfBounds, 5));
    assert_eq!((counted.sum(), counted.version), (None, Revision(0)));
    let counted = client.incr("k", 1).await.unwrap();
    assert_eq!((counted.result, counted.sum()), (IncrResult::NotANumber, None));
    assert_eq!(changes(&cluster), ["n"]);

    let error = client.incr("n", 1).min(2).max(1).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BadRequest { ref field, .. } if field == "max"));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_applied_whole_and_once() {
    let (cluster, client) = started().await;
    cluster.play(2, [Play::LoseReply]);
    let batch = || client.batch().put("{a}:1", "one").delete("{a}:2").expect_absent("{a}:3");
    let written = batch().await.unwrap();
    assert_eq!((written.versions, written.attempts), (vec![Revision(5), Revision(0)], 2));
    assert_eq!(changes(&cluster), ["{a}:1", "{a}:2"]);

    let guarded = batch().expect_present("{a}:1").expect_version("{a}:1", Revision(4));
    let current = Some(Revision(5));
    let failed = Error::refused(ErrorKind::PreconditionFailed { current });
    assert_eq!(guarded.await.unwrap_err(), failed);
    assert_eq!(changes(&cluster).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_could_never_be_applied_is_refused_before_it_is_sent() {
    let (cluster, client) = started().await;
    let batch = || client.batch().put("{a}:1", "v");
    let long = format!("{{b}}:{}", "x".repeat(100));
    let many = (0..=1_000).fold(client.batch(), |batch, n| batch.put(format!("{{a}}:{n}"), "v"));
    let guarded = (0..=1_000).fold(batch(), |batch, _| batch.expect_absent("{a}:2"));
    for (batch, field, told) in [
        (client.batch(), "keys", "got 0"),
        (client.batch().expect_absent("{a}:1"), "keys", "got 0"),
        (many, "keys", "got 1001"),
        (guarded, "guard_keys", "got 1001"),
        (batch().put("{b}:2", "v"), "keys", "\"{a}:1\" and \"{b}:2\""),
        (batch().expect_present("plain"), "keys", "\"{a}:1\" and \"plain\""),
        (batch().delete(long), "keys", "xxx\"…"),
        (batch().delete("{a}:1"), "keys", "\"{a}:1\" twice"),
        (batch().delete(""), "keys", "got 0"),
        (batch().put("{a}:2", vec![0_u8; 8 << 20]), "values", "8388608"),
    ] {
        let error = batch.await.unwrap_err();
        let ErrorKind::BadRequest { field: at, message } = &error.kind else { panic!("{error:?}") };
        assert_eq!((at.as_str(), error.may_have_applied), (field, MayHaveApplied::No));
        assert!(message.contains(told), "{message}");
    }
    assert_eq!((cluster.heard(), opened(&cluster)), ([0, 0, 0], 0));
}
