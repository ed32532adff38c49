//! The receiving end of the peer links: takes frames, finds the replica meant, answers.
//!
//! # Invariants
//!
//! - Nothing is delivered before a ping told who is at the other end and was accepted, and every frame
//!   after it is of that node and that incarnation (N1). A node that is refused gets one answer, which
//!   says so, and the link ends. So does the link of a life that the manager has given up meanwhile.
//! - Nothing is delivered to a replica whose id differs from the one named (N2): openraft cannot
//!   tell an old replica of this node from a new one. The question for a group's membership alone may be
//!   for whichever replica there is (H4). Nor from a replica that the membership knows on
//!   another node than the sender, nor from one of a former manager's group (H6).
//! - Appends of one replication stream reach openraft in the order in which they were sent.
//! - In quarantine neither votes nor pre-votes are granted, a transfer's excepted (N3).
//! - A leader's frame counts as heard only after openraft accepted it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::append_reply::Result as WireAppend;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::OnEnd;
use annulus_types::{GroupId, NodeId, NodeInfo, ReplicaId};
use futures_util::StreamExt;
use openraft::raft::{AppendEntriesResponse, StreamAppendError, VoteRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::frames::{self, Assembler, Packer};
use crate::group::Group;
use crate::host::Host;
use crate::lives::{Life, NotHeard};
use crate::reign::Reign;
use crate::types::{
    AppendRequest, Malformed, Seeded, Vote, append_from_wire, log_id_from_wire, log_id_to_wire,
    vote_from_wire, vote_to_wire, wal_vote,
};

/// Replies that may wait for one link; the peer's own windows keep it far below.
const REPLIES: usize = 8192;
/// Requests of one replication stream between the link and openraft.
const STREAM_BUFFER: usize = 64;

type Replies = mpsc::Sender<v1::Envelope>;
type Feeder = mpsc::Sender<(AppendRequest, v1::Envelope)>;

/// Frames that go back over a link.
pub type FrameStream = futures_util::stream::BoxStream<'static, Result<v1::Frame, Status>>;

struct Inbound {
    host: Arc<Host>,
    replies: Replies,
    /// Node and incarnation at the other end, once a ping of theirs was accepted (N1).
    peer: Option<(NodeId, u64)>,
    /// The replication stream of each (group, sender) that is being fed.
    streams: BTreeMap<(GroupId, ReplicaId), (u64, Feeder)>,
}

impl Host {
    /// Serves one link until its sender goes away.
    pub fn accept_link(self: &Arc<Self>, frames: Streaming<v1::Frame>) -> FrameStream {
        let (replies, control) = mpsc::channel(REPLIES);
        let (_, bulk) = mpsc::channel(1);
        let packer = Packer::new(self.options.sender(), control, bulk);
        let streams = BTreeMap::new();
        let inbound = Inbound { host: Arc::clone(self), replies, peer: None, streams };
        self.env.tasks.spawn("inbound link", OnEnd::Ignore, inbound.run(frames));
        futures_util::stream::unfold(packer, |mut packer| async move {
            packer.next().await.map(|frame| (Ok(frame), packer))
        })
        .boxed()
    }
}

impl Inbound {
    /// Ends when the link does. What is queued as a reply by then still leaves: the packer goes on
    /// until the last sender is gone.
    async fn run(mut self, mut frames: Streaming<v1::Frame>) {
        let mut assembler = Assembler::default();
        let tasks = self.host.env.tasks.clone();
        let mut stopping = std::pin::pin!(tasks.stop_requested());
        loop {
            let next = tokio::select! {
                biased;
                // The groups are ending; a lost link says so better than errors.
                _ = &mut stopping => return,
                next = frames.message() => next,
            };
            let Ok(Some(frame)) = next else { return };
            let from = (NodeId(frame.node), frame.incarnation);
            if let Err(error) = self.check(&frame, from) {
                tracing::warn!(peer = %from.0, %error, "peer frame refused");
                return;
            }
            for piece in frame.pieces {
                match assembler.take(piece) {
                    Ok(None) => {}
                    Ok(Some(envelope)) => {
                        if !self.deliver(from, envelope).await {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(peer = %from.0, %error, "peer frame refused");
                        return;
                    }
                }
            }
        }
    }

    /// Whether a frame may be looked at (N1, N2).
    fn check(&self, frame: &v1::Frame, from: (NodeId, u64)) -> Result<(), Malformed> {
        if self.host.trusts_every_frame() {
            return Ok(());
        }
        frames::check(frame, self.host.options.cluster)?;
        if self.peer.is_some_and(|peer| peer != from) {
            return Err(Malformed("another node, or another life of it, than the link began with"));
        }
        Ok(())
    }

    /// Takes one envelope to whom it is meant for; `false` ends the link.
    async fn deliver(&mut self, from: (NodeId, u64), mut envelope: v1::Envelope) -> bool {
        let body = match envelope.body.take() {
            Some(Body::Ping(ping)) => return self.greet(from, ping, envelope).await,
            body => body,
        };
        if self.host.lives.is_replaced(from.0, from.1) {
            // Its next ping, on another link, gets the reason.
            tracing::info!(peer = %from.0, "the manager admits another life of a linked peer");
            return false;
        }
        let body = match body {
            Some(Body::Poll(poll)) => {
                let body = self.answer_poll(from.0, &poll);
                reply(&self.replies, envelope, body).await;
                return true;
            }
            body => body,
        };
        let asks_anyone = envelope.to == 0 && matches!(body, Some(Body::Membership(_)));
        let group = match self.addressee(from.0, &envelope, asks_anyone) {
            Ok(group) => group,
            Err(reason) => {
                let body = Body::Undeliverable(v1::Undeliverable { reason: reason.to_owned() });
                reply(&self.replies, envelope, body).await;
                return true;
            }
        };
        match body {
            Some(Body::Append(request)) if request.stream != 0 => {
                self.feed(group, envelope, request).await;
            }
            Some(body) => {
                let replies = self.replies.clone();
                self.host.env.tasks.spawn("peer request", OnEnd::Ignore, async move {
                    let body = answer(&group, body).await;
                    reply(&replies, envelope, body).await;
                });
            }
            None => {
                let body = Body::Undeliverable(v1::Undeliverable { reason: "empty".into() });
                reply(&self.replies, envelope, body).await;
            }
        }
        true
    }

    /// Judges the life that a ping tells of, and answers it (N1); `false` ends the link.
    async fn greet(&mut self, from: (NodeId, u64), ping: v1::Ping, envelope: v1::Envelope) -> bool {
        let (life, reign) = (Life::told(from.1, &ping), Reign::told(&ping));
        let info = ping.info.map(NodeInfo::from).filter(|info| info.id == from.0);
        let Some(info) = info else {
            tracing::warn!(peer = %from.0, "a ping names another node than its frame");
            return false;
        };
        match self.host.lives.hear(from.0, life).await {
            Ok(()) => {
                self.peer = Some(from);
                self.host.options.reigns.hear(reign);
                self.host.book.told(info);
                let about = Some(self.host.links.about());
                reply(&self.replies, envelope, Body::Pong(v1::Pong { about })).await;
                true
            }
            Err(NotHeard::Refused { reason, dead }) => {
                let about = Some(self.host.links.about());
                let body = Body::Refused(v1::Refused { reason, dead, about });
                reply(&self.replies, envelope, body).await;
                false
            }
            // Said where it failed. No answer: the peer asks again.
            Err(NotHeard::NotRemembered(_)) => true,
        }
    }

    /// The answer to a poll, which is for no replica but for the node (R4).
    fn answer_poll(&self, from: NodeId, poll: &v1::Poll) -> Body {
        if self.peer.is_none() && !self.host.trusts_every_frame() {
            let reason = "no ping of the sender was accepted".to_owned();
            return Body::Undeliverable(v1::Undeliverable { reason });
        }
        Body::Polled(self.host.answer_poll(from, poll))
    }

    /// The group that an envelope is for, or why it goes nowhere. `asks_anyone`: it is for whichever
    /// replica this node has of it.
    fn addressee(
        &self,
        from: NodeId,
        envelope: &v1::Envelope,
        asks_anyone: bool,
    ) -> Result<Arc<Group>, &'static str> {
        let group = self.host.group(GroupId(envelope.group));
        if self.host.trusts_every_frame() {
            return group.ok_or("no such replica");
        }
        if self.peer.is_none() {
            return Err("no ping of the sender was accepted");
        }
        let sender = ReplicaId(envelope.from);
        if envelope.group == GroupId::MANAGER.0 && !self.host.reign().admits(sender) {
            return Err("the sending replica is of another manager than the present one");
        }
        let group = group.filter(|group| group.replica.me.0 == envelope.to || asks_anyone);
        let group = group.ok_or("no such replica")?;
        // One that is not in the membership is not known to sit elsewhere: a new replica hears its
        // leader before it has a membership.
        let seat = group.replica.seats().get(&sender).copied();
        if seat.is_some_and(|seat| seat != from) {
            return Err("the sending replica sits on another node");
        }
        Ok(group)
    }

    /// Hands a request to the task of its replication stream, which it starts when it is new.
    async fn feed(&mut self, group: Arc<Group>, envelope: v1::Envelope, wire: v1::AppendRequest) {
        let id = wire.stream;
        let Ok(request) = append_from_wire(wire) else {
            return reply(&self.replies, envelope, failed("malformed append")).await;
        };
        let key = (group.id(), ReplicaId(envelope.from));
        let current = self.streams.get(&key).filter(|(stream, _)| *stream == id);
        let feeder = match current {
            Some((_, feeder)) => feeder.clone(),
            None => {
                let (feeder, requests) = mpsc::channel(STREAM_BUFFER);
                let replies = self.replies.clone();
                self.host.env.tasks.spawn(
                    "replication stream",
                    OnEnd::Ignore,
                    run_stream(group, requests, replies, self.host.env.random.u64()),
                );
                self.streams.insert(key, (id, feeder.clone()));
                feeder
            }
        };
        if let Err(mpsc::error::SendError((_, envelope))) = feeder.send((request, envelope)).await {
            // The stream ended on a refusal; what was behind it is void.
            reply(&self.replies, envelope, failed("the replication stream has ended")).await;
        }
    }
}

/// Feeds one replication stream to openraft and answers in its order.
async fn run_stream(
    group: Arc<Group>,
    mut requests: mpsc::Receiver<(AppendRequest, v1::Envelope)>,
    replies: Replies,
    seed: u64,
) {
    let (to_raft, from_us) = mpsc::channel(STREAM_BUFFER);
    let requested = ReceiverStream::new(from_us);
    let results = Seeded::scope(seed, async { group.raft.stream_append(requested) }).await;
    let mut results = std::pin::pin!(results);
    // (envelope, vote, last) of requests without a result yet.
    let mut waiting = std::collections::VecDeque::new();
    loop {
        tokio::select! {
            biased;
            result = results.next(), if !waiting.is_empty() => {
                let Some((envelope, vote, last)) = waiting.pop_front() else { break };
                let ends = !matches!(result, Some(Ok(Ok(_))));
                let body = match result {
                    Some(Ok(Ok(id))) => {
                        group.replica.leader_heard(vote);
                        append_reply(if id == last {
                            WireAppend::Ok(v1::Plain {})
                        } else {
                            match id {
                                Some(id) => WireAppend::Partial(log_id_to_wire(&id)),
                                None => WireAppend::Failed("nothing was taken".into()),
                            }
                        })
                    }
                    Some(Ok(Err(StreamAppendError::Conflict(_)))) => {
                        group.replica.leader_heard(vote);
                        append_reply(WireAppend::Conflict(v1::Plain {}))
                    }
                    Some(Ok(Err(StreamAppendError::HigherVote(vote)))) => {
                        append_reply(WireAppend::HigherVote(vote_to_wire(&vote)))
                    }
                    Some(Err(_)) | None => failed("the replica has stopped"),
                };
                reply(&replies, envelope, body).await;
                if ends {
                    break;
                }
            }
            request = requests.recv() => {
                let Some((request, envelope)) = request else { break };
                let vote = wal_vote(&request.vote);
                let last = request.entries.last().map(|e| e.log_id).or(request.prev_log_id);
                waiting.push_back((envelope, vote, last));
                if to_raft.send(request).await.is_err() {
                    break;
                }
            }
        }
    }
    // Every request gets a reply, also those that are void now.
    requests.close();
    for (envelope, _, _) in waiting {
        reply(&replies, envelope, failed("the replication stream has ended")).await;
    }
    while let Some((_, envelope)) = requests.recv().await {
        reply(&replies, envelope, failed("the replication stream has ended")).await;
    }
}

async fn reply(replies: &Replies, to: v1::Envelope, body: Body) {
    let envelope =
        v1::Envelope { group: to.group, from: to.to, to: to.from, call: to.call, body: Some(body) };
    // A closed channel means the link is gone, and its sender has been told so.
    let _ = replies.send(envelope).await;
}

fn append_reply(result: WireAppend) -> Body {
    Body::AppendReply(v1::AppendReply { result: Some(result) })
}

fn failed(why: &str) -> Body {
    append_reply(WireAppend::Failed(why.to_owned()))
}

async fn answer(group: &Arc<Group>, body: Body) -> Body {
    match body {
        Body::Append(request) => answer_append(group, request).await,
        Body::Vote(request) => answer_vote(group, request).await,
        Body::Transfer(request) => answer_transfer(group, request).await,
        Body::Campaign(request) => {
            if let Ok(vote) = vote_from_wire(request.from_leader) {
                group.replica.leader_resigned(wal_vote(&vote));
            }
            Body::CampaignReply(v1::Plain {})
        }
        Body::ReadIndex(v1::ReadIndexRequest {}) => {
            let limit = Duration::from_secs(1);
            let index = match group.replica.gate.view().leading {
                Some(vote) => {
                    let asked = tokio::time::timeout(limit, group.strict_index(vote)).await;
                    asked.ok().and_then(Result::ok)
                }
                None => None,
            };
            Body::ReadIndexReply(v1::ReadIndexReply { index })
        }
        Body::Membership(v1::MembershipRequest {}) => group.tell_membership(),
        Body::Digest(request) => group.tell_digest(request),
        _ => Body::Undeliverable(v1::Undeliverable { reason: "not a request".into() }),
    }
}

async fn answer_append(group: &Arc<Group>, request: v1::AppendRequest) -> Body {
    let Ok(request) = append_from_wire(request) else { return failed("malformed append") };
    let vote = wal_vote(&request.vote);
    match group.raft.append_entries(request).await {
        Ok(AppendEntriesResponse::Success) => {
            group.replica.leader_heard(vote);
            append_reply(WireAppend::Ok(v1::Plain {}))
        }
        Ok(AppendEntriesResponse::PartialSuccess(Some(id))) => {
            group.replica.leader_heard(vote);
            append_reply(WireAppend::Partial(log_id_to_wire(&id)))
        }
        Ok(AppendEntriesResponse::Conflict) => {
            group.replica.leader_heard(vote);
            append_reply(WireAppend::Conflict(v1::Plain {}))
        }
        Ok(AppendEntriesResponse::HigherVote(vote)) => {
            append_reply(WireAppend::HigherVote(vote_to_wire(&vote)))
        }
        Ok(AppendEntriesResponse::PartialSuccess(None)) => failed("nothing was taken"),
        Err(error) => failed(&error.to_string()),
    }
}

async fn answer_vote(group: &Arc<Group>, request: v1::VoteRequest) -> Body {
    let refused =
        |why: &str| Body::VoteReply(v1::VoteReply { failed: why.to_owned(), ..Default::default() });
    if group.replica.is_quarantined() && !request.transfer {
        return refused("in quarantine after a start");
    }
    let Ok(vote) = vote_from_wire(request.vote) else { return refused("malformed vote") };
    let transfer_from = request.transfer_from.and_then(|from| vote_from_wire(Some(from)).ok());
    let asked = transfer_from.as_ref().map(wal_vote);
    if request.transfer && !request.pre && !group.replica.may_lift(wal_vote(&vote), asked) {
        // Before openraft sees it: a vote that it saves ends the promise to the present leader.
        return refused("the transfer is not from the leader that was promised to");
    }
    let mut rpc = VoteRequest::new(vote, request.last.map(log_id_from_wire));
    rpc.leadership_transfer = request.transfer;
    let answered =
        if request.pre { group.raft.pre_vote(rpc).await } else { group.raft.vote(rpc).await };
    match answered {
        // A transfer lifts the promise to the leader that asked for it, and to no other: this voter
        // may have confirmed a newer leader while openraft worked. Nobody is told of the vote then.
        Ok(response)
            if request.transfer
                && !request.pre
                && response.vote_granted
                && !lifts_own_promise(group, &vote, transfer_from.as_ref()) =>
        {
            refused("the transfer is not from the leader that was promised to")
        }
        Ok(response) => Body::VoteReply(v1::VoteReply {
            vote: Some(vote_to_wire(&response.vote)),
            last: response.last_log_id.as_ref().map(log_id_to_wire),
            granted: response.vote_granted,
            failed: String::new(),
        }),
        Err(error) => refused(&error.to_string()),
    }
}

/// Whether the vote held before `granted` is the one of the leader that gave its lease up.
fn lifts_own_promise(group: &Group, granted: &Vote, from: Option<&Vote>) -> bool {
    let before = group.replica.vote_before(wal_vote(granted));
    before.is_some() && before == from.map(wal_vote)
}

async fn answer_transfer(group: &Arc<Group>, request: v1::TransferRequest) -> Body {
    let refused =
        |reason: String| Body::TransferReply(v1::TransferReply { accepted: false, reason });
    let Ok(vote) = vote_from_wire(request.from_leader) else {
        return refused("malformed vote".to_owned());
    };
    group.replica.transfer_asked(wal_vote(&vote));
    let request = openraft::raft::TransferLeaderRequest::new(
        vote,
        request.to,
        request.last.map(log_id_from_wire),
    );
    match group.raft.handle_transfer_leader(request).await {
        Ok(Ok(())) => {
            Body::TransferReply(v1::TransferReply { accepted: true, reason: String::new() })
        }
        Ok(Err(error)) => refused(error.to_string()),
        Err(error) => refused(error.to_string()),
    }
}
