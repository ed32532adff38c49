//! One link to one other node: a bidirectional gRPC stream over which this node sends requests of
//! all its groups and gets the replies (N2).
//!
//! Calls are callbacks, not futures: a reply does its work (a confirm, R1 a) also when whoever asked
//! has given up. A link that breaks fails every call that waits on it; nothing is sent again.
//!
//! The link pings its peer every 100 ms. A broken connection, or three pings without an answer, make
//! the peer *suspected*; suspicion starts elections early and decides nothing else.
//!
//! # Invariants
//!
//! - Nothing but pings leaves before the peer has told who it is and its life was found to be one that
//!   is heard (N1); what a refused peer sends is not looked at, and ends the link.
//! - Every frame of a connection is of the node and the incarnation that the first answer came from.
//! - An answer must not tell less of the peer's log than was known when the ping left (N1).
//! - A peer that is silent for 30 pings loses its link, whether or not it ever spoke.
//!
//! When the peer refuses *this* node, the link breaks and is tried again like any other; when it says
//! that this node's folder is dead, whoever made the [`Options`] is told. A peer that is refused itself is
//! not believed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_runtime::{BootTime, Env};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{GroupId, NodeId, NodeInfo, ReplicaId};
use annulus_wal::Wal;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::book::AddressBook;
use crate::connect;
use crate::frames::{self, Assembler, Lane, Packer};
use crate::lives::{Known, Life, Lives, NotHeard};
use crate::options::Options;
use crate::reign::Reign;

/// Requests of one lane that may wait for the link.
const QUEUE: usize = 1024;
/// Requests that may wait for their replies.
const PENDING: usize = 8192;
/// Of a refusal's reason, characters: the rest is not for people.
const REASON_MOST: usize = 1024;

/// Why a call got no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the link is down")]
    Down,
    #[error("the link's queue is full")]
    Full,
    #[error("the peer could not deliver it")]
    Undeliverable,
    #[error("the peer's reply makes no sense")]
    Malformed,
}

pub(crate) type OnReply = Box<dyn FnOnce(Result<Body, LinkError>) + Send>;

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) group: GroupId,
    pub(crate) from: ReplicaId,
    pub(crate) to: ReplicaId,
}

/// The pings of a connection that have no answer yet, with what was known of the peer when each left.
type Asked = BTreeMap<u64, Option<Known>>;

struct Queues {
    control: mpsc::Sender<v1::Envelope>,
    bulk: mpsc::Sender<v1::Envelope>,
}

/// How a connection ended.
enum Ended {
    /// Something broke: another one may work at once.
    Broken(&'static str),
    /// One of the two nodes refuses the other (N1): another one will most likely end the same way.
    Refused(&'static str),
}

pub(crate) struct Link {
    peer: NodeId,
    env: Env,
    options: Arc<Options>,
    book: Arc<AddressBook>,
    wal: Wal,
    lives: Arc<Lives>,
    queues: Mutex<Option<Queues>>,
    pending: Mutex<BTreeMap<u64, OnReply>>,
    next_call: AtomicU64,
    last_pong: AtomicU64,
    broken: AtomicBool,
    up: AtomicBool,
    /// The peer refused this node since the link was up last.
    is_unwanted: AtomicBool,
}

impl Link {
    /// Starts the link; it connects, and connects again, until the node stops.
    pub(crate) fn spawn(
        peer: NodeId,
        env: &Env,
        options: Arc<Options>,
        book: Arc<AddressBook>,
        wal: Wal,
        lives: Arc<Lives>,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            peer,
            env: env.clone(),
            options,
            book,
            wal,
            lives,
            queues: Mutex::new(None),
            pending: Mutex::new(BTreeMap::new()),
            next_call: AtomicU64::new(1),
            last_pong: AtomicU64::new(env.clock.boot().0),
            broken: AtomicBool::new(false),
            up: AtomicBool::new(false),
            is_unwanted: AtomicBool::new(false),
        });
        let running = Arc::clone(&link);
        env.tasks.spawn_until_stop("peer link", async move {
            running.run().await;
        });
        link
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether the peer may be gone.
    pub(crate) fn is_suspected(&self, now: BootTime) -> bool {
        let last = BootTime(self.last_pong.load(Ordering::Relaxed));
        self.broken.load(Ordering::Relaxed) || now.since(last) > self.options.ping * 3
    }

    /// Sends a request; `on_reply` is called exactly once, perhaps before this returns.
    pub(crate) fn call(&self, route: Route, lane: Lane, body: Body, on_reply: OnReply) {
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let envelope = v1::Envelope {
            group: route.group.0,
            from: route.from.0,
            to: route.to.0,
            call,
            body: Some(body),
        };
        // Held until the call is both pending and queued: `disconnect` clears the queues before it
        // fails what is pending, so that no call slips in behind it and waits for ever.
        let queues = self.queues.lock();
        let Some(open) = queues.as_ref() else {
            drop(queues);
            return on_reply(Err(LinkError::Down));
        };
        {
            let mut pending = self.pending.lock();
            if pending.len() >= PENDING {
                drop(pending);
                drop(queues);
                return on_reply(Err(LinkError::Full));
            }
            pending.insert(call, on_reply);
        }
        let sent = match lane {
            Lane::Control => open.control.try_send(envelope),
            Lane::Bulk => open.bulk.try_send(envelope),
        };
        drop(queues);
        if let Err(refused) = sent {
            let error = match refused {
                mpsc::error::TrySendError::Full(_) => LinkError::Full,
                mpsc::error::TrySendError::Closed(_) => LinkError::Down,
            };
            self.answer(call, Err(error));
        }
    }

    fn answer(&self, call: u64, result: Result<Body, LinkError>) {
        let waiting = self.pending.lock().remove(&call);
        if let Some(on_reply) = waiting {
            on_reply(result);
        }
    }

    async fn run(self: Arc<Self>) {
        let mut wait = self.options.reconnect;
        let mut said = None;
        while !self.env.tasks.is_stopping() {
            if let Some(channel) = self.connect().await {
                let ended = self.serve(channel).await;
                let was_up = self.is_up();
                self.disconnect();
                let why = match ended {
                    Ended::Broken(why) => {
                        wait = self.options.reconnect;
                        why
                    }
                    Ended::Refused(why) => why,
                };
                // One that does not come up is tried again and again, and mostly ends the same way.
                if was_up || said != Some(why) {
                    tracing::info!(peer = %self.peer, why, "peer link lost");
                }
                said = Some(why);
            }
            // A little randomness, so that restarted nodes do not dial in step.
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let jitter = Duration::from_millis(self.env.random.below(millis / 2 + 1));
            tokio::time::sleep(wait + jitter).await;
            wait = (wait * 2).min(self.options.reconnect * 8);
        }
    }

    async fn connect(&self) -> Option<Channel> {
        let info = self.book.find(self.peer)?;
        let connecting = connect::channel(&self.env, &info.peer_addr);
        match tokio::time::timeout(self.options.connect_timeout, connecting).await {
            Ok(Ok(channel)) => Some(channel),
            Ok(Err(_)) | Err(_) => {
                self.broken.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Runs one connection; returns how it ended.
    async fn serve(&self, channel: Channel) -> Ended {
        let (control, control_out) = mpsc::channel(QUEUE);
        let (bulk, bulk_out) = mpsc::channel(QUEUE);
        let packer = Packer::new(self.options.sender(), control_out, bulk_out);
        let frames = futures_util::stream::unfold(packer, |mut packer| async move {
            packer.next().await.map(|frame| (frame, packer))
        });
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(DECODE_BYTES)
            .max_encoding_message_size(DECODE_BYTES);
        let connection = client.link(frames);
        let mut asked = Asked::new();
        if !self.ask(&control, &mut asked) {
            return Ended::Broken("the queue closed");
        }
        let Ok(replies) = tokio::time::timeout(self.options.connect_timeout, connection).await
        else {
            return Ended::Broken("no answer to the hello");
        };
        let mut replies = match replies {
            Ok(replies) => replies.into_inner(),
            Err(_) => return Ended::Broken("the peer refused the link"),
        };
        let mut assembler = Assembler::default();
        let mut incarnation = None;
        let connected = self.env.clock.boot();
        let mut ticker = tokio::time::interval(self.options.ping);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                frame = replies.message() => {
                    let Ok(Some(frame)) = frame else {
                        return Ended::Broken("the connection broke");
                    };
                    if frame.node != self.peer.0 {
                        return Ended::Broken("another node answered at this address");
                    }
                    let life = *incarnation.get_or_insert(frame.incarnation);
                    if frame.incarnation != life {
                        return Ended::Broken("another life of the peer speaks");
                    }
                    // Before the link is up only what tells of the life is taken, which is judged.
                    if self.is_up() && self.lives.is_replaced(self.peer, life) {
                        return Ended::Refused("the manager admits another life of the peer");
                    }
                    let Some(told) = self.take(frame, &mut assembler) else {
                        return Ended::Broken("the peer sent what makes no sense");
                    };
                    for (call, body) in told {
                        match self.hear(life, body, call, &mut asked).await {
                            // The queues go up only now: what is sent before could reach another
                            // node, or one that must not be heard.
                            Ok(true) => self.go_up(&control, &bulk),
                            Ok(false) => {}
                            Err(ended) => return ended,
                        }
                    }
                }
                _ = ticker.tick() => {
                    self.ask(&control, &mut asked);
                    let last_pong = BootTime(self.last_pong.load(Ordering::Relaxed));
                    let silent = self.env.clock.boot().since(connected.max(last_pong));
                    if silent > self.options.silent {
                        return Ended::Broken("the peer is silent");
                    }
                }
            }
        }
    }

    /// Opens the queues, unless they are open.
    fn go_up(&self, control: &mpsc::Sender<v1::Envelope>, bulk: &mpsc::Sender<v1::Envelope>) {
        if self.is_up() {
            return;
        }
        *self.queues.lock() = Some(Queues { control: control.clone(), bulk: bulk.clone() });
        self.broken.store(false, Ordering::Relaxed);
        self.is_unwanted.store(false, Ordering::Relaxed);
        self.up.store(true, Ordering::Relaxed);
        tracing::info!(peer = %self.peer, "peer link up");
    }

    /// Takes what the peer answers to a ping (N1). Returns whether the peer is one that is heard.
    async fn hear(
        &self,
        incarnation: u64,
        body: Body,
        call: u64,
        asked: &mut Asked,
    ) -> Result<bool, Ended> {
        let now = self.env.clock.boot();
        let (about, refusal) = match body {
            Body::Pong(pong) => (pong.about, None),
            Body::Refused(mut refusal) => (refusal.about.take(), Some(refusal)),
            _ => return Ok(false),
        };
        let Some(known) = asked.remove(&call) else {
            return Err(Ended::Broken("the peer answers what it was not asked"));
        };
        // Answers come in the order of the pings: the earlier ones get none any more.
        *asked = asked.split_off(&call);
        let Some(about) = about else {
            return Err(Ended::Broken("the peer does not say who it is"));
        };
        let (life, reign) = (Life::told(incarnation, &about), Reign::told(&about));
        let Some(info) = about.info.map(NodeInfo::from) else { return Ok(false) };
        if info.id != self.peer {
            return Err(Ended::Broken("another node answered at this address"));
        }
        match (self.lives.hear_answer(self.peer, life, known).await, refusal) {
            (Ok(()), None) => {
                self.options.reigns.hear(reign);
                self.book.told(info);
                self.last_pong.store(now.0, Ordering::Relaxed);
                Ok(true)
            }
            (Ok(()), Some(refusal)) => {
                self.refused(refusal).await;
                Err(Ended::Refused("the peer refuses this node"))
            }
            // Also when it refuses this node: it may be the one that was set back.
            (Err(NotHeard::Refused { .. }), _) => Err(Ended::Refused("the peer is refused")),
            // Said where it failed; the next answer tries again.
            (Err(NotHeard::NotRemembered(_)), None) => Ok(false),
            (Err(NotHeard::NotRemembered(_)), Some(_)) => {
                Err(Ended::Refused("the peer refuses this node and cannot be judged yet"))
            }
        }
    }

    async fn refused(&self, refused: v1::Refused) {
        let reason: String = refused.reason.chars().take(REASON_MOST).collect();
        if refused.dead {
            self.lives.told_dead(self.peer, &reason).await;
        } else if !self.is_unwanted.swap(true, Ordering::Relaxed) {
            // Once for each time that it begins: the link is tried again and again.
            tracing::error!(peer = %self.peer, reason, "a peer refuses this node");
        }
    }

    fn disconnect(&self) {
        self.broken.store(true, Ordering::Relaxed);
        *self.queues.lock() = None;
        self.up.store(false, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *self.pending.lock());
        for on_reply in waiting.into_values() {
            on_reply(Err(LinkError::Down));
        }
    }

    /// Hands replies to those who wait for them. Returns what concerns the link itself, with the calls
    /// that it answers, or `None` when the frame makes no sense.
    fn take(&self, frame: v1::Frame, assembler: &mut Assembler) -> Option<Vec<(u64, Body)>> {
        frames::check(&frame, self.options.cluster).ok()?;
        let mut told = Vec::new();
        for piece in frame.pieces {
            let Some(envelope) = assembler.take(piece).ok()? else { continue };
            let result = match envelope.body {
                Some(body @ (Body::Pong(_) | Body::Refused(_))) => {
                    told.push((envelope.call, body));
                    continue;
                }
                Some(Body::Undeliverable(_)) => Err(LinkError::Undeliverable),
                Some(body) => Ok(body),
                None => Err(LinkError::Malformed),
            };
            self.answer(envelope.call, result);
        }
        Some(told)
    }

    /// Queues a ping. In a queue that is full there is enough that asks for an answer.
    fn ask(&self, control: &mpsc::Sender<v1::Envelope>, asked: &mut Asked) -> bool {
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        // Before the ping leaves, and so before its answer is made.
        let known = self.lives.remembered(self.peer);
        let body = Some(Body::Ping(self.options.about(&self.wal)));
        let ping = v1::Envelope { call, body, ..Default::default() };
        let is_queued = control.try_send(ping).is_ok();
        if is_queued {
            asked.insert(call, known);
        }
        is_queued
    }
}
