//! openraft's network over the peer links.
//!
//! One [`PeerClient`] value per (group, target, purpose). A *heartbeat* client is told apart from a
//! *replication* client by construction, never by content: only its frames are stamped and only the
//! replies to them confirm (R1 a).
//!
//! # Invariants
//!
//! - Nothing is sent before `published` has been raised to the frame's commit index (R2).
//! - A confirm carries the vote and the send time of its own frame, and is made by the reply itself,
//!   also when openraft has stopped waiting for it.
//! - A leader that no quorum answers sends nothing for a while (R1 a, silence).
//! - In quarantine no vote or pre-vote leaves, a transfer's excepted (N3).
//! - What a seeded follower holds already is left out of the frames to it (`seed`).
//! - A broken link is `Unreachable`: openraft then backs off instead of spinning.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::{NodeId, ReplicaId};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::frames::Lane;
use crate::link::{LinkError, Route};
use crate::links::Links;
use crate::replica::ReplicaState;
use crate::seed::cut_held;
use crate::snapshot::Content;
use crate::snapshot::send::Errand;
use crate::types::{
    AppendRequest, LogId, Seat, TypeConfig, Vote, append_to_wire, log_id, log_id_from_wire,
    log_id_to_wire, vote_from_wire, vote_to_wire, wal_vote,
};

/// Replication requests of one group to one follower that may be unanswered.
const WINDOW: usize = 32;

type Rpc = RPCError<TypeConfig>;

fn unreachable(error: LinkError) -> Rpc {
    Rpc::Unreachable(Unreachable::new(&error))
}

/// Makes the clients of one replica.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub(crate) links: Arc<Links>,
    pub(crate) replica: Arc<ReplicaState>,
    /// Numbers replication streams, so that the receiver keeps each in order.
    pub(crate) streams: Arc<AtomicU64>,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, seat: &Seat) -> PeerClient {
        self.client(target, *seat, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, seat: &Seat) -> PeerClient {
        self.client(target, *seat, true)
    }
}

impl NetworkFactory {
    fn client(&self, target: u64, seat: Seat, heartbeat: bool) -> PeerClient {
        PeerClient { factory: self.clone(), node: seat.node, target: ReplicaId(target), heartbeat }
    }
}

/// Talks to one replica.
pub(crate) struct PeerClient {
    factory: NetworkFactory,
    node: NodeId,
    target: ReplicaId,
    heartbeat: bool,
}

struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    /// What the receiver was known to hold was left out (H2).
    is_cut: bool,
    reply: oneshot::Receiver<Result<Body, LinkError>>,
}

struct Replication<S> {
    client: Caller,
    input: S,
    ended: bool,
    stream: u64,
    unanswered: VecDeque<Sent>,
}

/// The part of a client that sends; cheap to clone, so that streams own theirs.
#[derive(Clone)]
struct Caller {
    links: Arc<Links>,
    replica: Arc<ReplicaState>,
    node: NodeId,
    target: ReplicaId,
    heartbeat: bool,
}

impl Caller {
    fn call(&self, lane: Lane, body: Body) -> oneshot::Receiver<Result<Body, LinkError>> {
        let (done, reply) = oneshot::channel();
        self.call_then(lane, body, move |result| {
            // Whoever asked may have given up.
            let _ = done.send(result);
        });
        reply
    }

    fn call_then(
        &self,
        lane: Lane,
        body: Body,
        then: impl FnOnce(Result<Body, LinkError>) + Send + 'static,
    ) {
        let route = Route { group: self.replica.group, from: self.replica.me, to: self.target };
        match self.links.find(self.node) {
            Some(link) => link.call(route, lane, body, Box::new(then)),
            None => then(Err(LinkError::Down)),
        }
    }

    /// Sends one append frame: raises `published`, stamps heartbeats, hooks the confirm.
    fn append(&self, mut request: AppendRequest, stream: u64) -> Result<Sent, Rpc> {
        let now = self.replica.clock.boot();
        if !self.replica.gate.may_send(now) {
            return Err(unreachable(LinkError::Down));
        }
        if let Some(commit) = &request.leader_commit {
            self.replica.gate.publish(commit.index);
        }
        let vote = wal_vote(&request.vote);
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let seeded = self.replica.seeded_upto(self.target).map(log_id);
        let is_cut = seeded.is_some_and(|upto| cut_held(&mut request, upto));
        #[cfg(test)]
        self.replica.note_sent(self.target, request.entries.iter().map(|entry| entry.log_id.index));
        let frame = append_to_wire(request, stream);
        if self.replica.is_learner(self.target) {
            self.replica.meter.log_sent(frame.encoded_len());
        }
        let body = Body::Append(frame);
        let (done, reply) = oneshot::channel();
        let (replica, follower, heartbeat) = (self.replica.clone(), self.target, self.heartbeat);
        let lane = if heartbeat { Lane::Control } else { Lane::Bulk };
        // Taken as late as possible but before the frame is queued: never later than it leaves.
        let t0 = replica.clock.boot();
        self.call_then(lane, body, move |result| {
            let accepted = matches!(
                &result,
                Ok(Body::AppendReply(v1::AppendReply {
                    result: Some(
                        v1::append_reply::Result::Ok(_)
                            | v1::append_reply::Result::Partial(_)
                            | v1::append_reply::Result::Conflict(_)
                    )
                }))
            );
            if accepted {
                if is_cut && is_conflict(&result) {
                    replica.forget_seeded(follower);
                }
                let now = replica.clock.boot();
                replica.gate.change(|core| {
                    if heartbeat {
                        core.confirmed(vote, follower, t0, now);
                    } else {
                        core.replied(vote, follower, now);
                    }
                });
            }
            let _ = done.send(result);
        });
        Ok(Sent { prev, last, is_cut, reply })
    }
}

fn is_conflict(reply: &Result<Body, LinkError>) -> bool {
    use v1::append_reply::Result as Wire;
    matches!(reply, Ok(Body::AppendReply(v1::AppendReply { result: Some(Wire::Conflict(_)) })))
}

fn append_result(
    sent: &Sent,
    reply: Result<Result<Body, LinkError>, oneshot::error::RecvError>,
) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
    use v1::append_reply::Result as Wire;
    let reply = reply.map_err(|_| unreachable(LinkError::Down))?.map_err(unreachable)?;
    let Body::AppendReply(v1::AppendReply { result: Some(result) }) = reply else {
        return Err(unreachable(LinkError::Malformed));
    };
    match result {
        Wire::Ok(_) => Ok(Ok(sent.last)),
        Wire::Partial(id) => Ok(Ok(Some(log_id_from_wire(id)))),
        // It says nothing about the entry before the whole request, which is sent next.
        Wire::Conflict(_) if sent.is_cut => Err(unreachable(LinkError::Undeliverable)),
        // Only a request that names an entry before its first can conflict.
        Wire::Conflict(_) => match sent.prev {
            Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
            None => Err(unreachable(LinkError::Malformed)),
        },
        Wire::HigherVote(vote) => {
            let vote =
                vote_from_wire(Some(vote)).map_err(|e| Rpc::Network(NetworkError::new(&e)))?;
            Ok(Err(StreamAppendError::HigherVote(vote)))
        }
        Wire::Failed(_) => Err(unreachable(LinkError::Undeliverable)),
    }
}

impl PeerClient {
    fn caller(&self) -> Caller {
        Caller {
            links: Arc::clone(&self.factory.links),
            replica: Arc::clone(&self.factory.replica),
            node: self.node,
            target: self.target,
            heartbeat: self.heartbeat,
        }
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
        pre: bool,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let caller = self.caller();
        if caller.replica.is_quarantined() && !rpc.leadership_transfer {
            return Err(unreachable(LinkError::Down));
        }
        let body = Body::Vote(v1::VoteRequest {
            vote: Some(vote_to_wire(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(log_id_to_wire),
            transfer: rpc.leadership_transfer,
            pre,
            transfer_from: caller.replica.transfer_from().map(|vote| v1::Vote {
                term: vote.term,
                leader: vote.leader.0,
                committed: vote.committed,
            }),
        });
        let reply = caller.call(Lane::Control, body).await;
        let reply = reply.map_err(|_| unreachable(LinkError::Down))?.map_err(unreachable)?;
        let Body::VoteReply(reply) = reply else {
            return Err(unreachable(LinkError::Malformed));
        };
        if !reply.failed.is_empty() {
            return Err(unreachable(LinkError::Undeliverable));
        }
        let vote = vote_from_wire(reply.vote).map_err(|e| Rpc::Network(NetworkError::new(&e)))?;
        Ok(VoteResponse::new(vote, reply.last.map(log_id_from_wire), reply.granted))
    }
}

impl NetStreamAppend<TypeConfig> for PeerClient {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let stream =
            if self.heartbeat { 0 } else { self.factory.streams.fetch_add(1, Ordering::Relaxed) };
        let state = Replication {
            client: self.caller(),
            input,
            ended: false,
            stream,
            unanswered: VecDeque::new(),
        };
        let results = futures_util::stream::unfold(Some(state), next_result);
        Box::pin(async move { Ok(results.boxed()) })
    }
}

/// Sends what there is to send and returns the next reply, in the order of the requests.
async fn next_result<S>(
    state: Option<Replication<S>>,
) -> Option<(Result<StreamAppendResult<TypeConfig>, Rpc>, Option<Replication<S>>)>
where
    S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
{
    let mut state = state?;
    loop {
        let may_send = !state.ended && state.unanswered.len() < WINDOW;
        let front = state.unanswered.front_mut();
        let has_front = front.is_some();
        if !may_send && !has_front {
            return None;
        }
        let reply = async {
            match front {
                Some(sent) => (&mut sent.reply).await,
                None => std::future::pending().await,
            }
        };
        // Replies first: they free the window. Both arms are cancel-safe.
        let reply = tokio::select! {
            biased;
            reply = reply => reply,
            request = state.input.next(), if may_send => {
                match request {
                    None => state.ended = true,
                    Some(request) => match state.client.append(request, state.stream) {
                        Ok(sent) => state.unanswered.push_back(sent),
                        Err(error) => return Some((Err(error), None)),
                    },
                }
                continue;
            }
        };
        let sent = state.unanswered.pop_front()?;
        let result = append_result(&sent, reply);
        // After anything but a plain success the requests behind it are void: the stream ends.
        let goes_on = matches!(&result, Ok(Ok(last)) if *last == sent.last);
        return Some((result, goes_on.then_some(state)));
    }
}

impl NetVote<TypeConfig> for PeerClient {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.ask_vote(rpc, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.ask_vote(rpc, true).await
    }
}

impl NetSnapshot<TypeConfig> for PeerClient {
    type SnapshotData = Content;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, Content>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (links, replica) = (Arc::clone(&self.factory.links), Arc::clone(&self.factory.replica));
        let group = replica.group;
        let errand = Errand { links, replica, node: self.node, target: self.target, vote };
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = Box::pin(errand.run(snapshot.snapshot)) => sent,
        };
        sent.map(SnapshotResponse::new).map_err(|error| {
            let (peer, replica) = (self.node, self.target);
            tracing::info!(%group, %peer, %replica, reason = %error, "a snapshot was not sent");
            // openraft tries again after a pause.
            StreamingError::Unreachable(Unreachable::new(&error))
        })
    }
}

impl NetTransferLeader<TypeConfig> for PeerClient {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let body = Body::Transfer(v1::TransferRequest {
            from_leader: Some(vote_to_wire(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(log_id_to_wire),
        });
        let reply = self.caller().call(Lane::Control, body).await;
        let reply = reply.map_err(|_| unreachable(LinkError::Down))?.map_err(unreachable)?;
        match reply {
            Body::TransferReply(reply) if reply.accepted => Ok(Ok(())),
            Body::TransferReply(_) => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: None,
            })),
            _ => Err(unreachable(LinkError::Malformed)),
        }
    }
}

impl NetBackoff<TypeConfig> for PeerClient {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}
