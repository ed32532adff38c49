//! One link to one other node: a bidirectional gRPC stream over which this node sends requests of
//! all its groups and gets the replies (N2).
//!
//! Calls are callbacks, not futures: a reply does its work (a confirm, R1 a) also when whoever asked
//! has given up. A link that breaks fails every call that waits on it; nothing is sent again.
//!
//! The link pings its peer every 100 ms. A broken connection, or three pings without an answer, make
//! the peer *suspected*; suspicion starts elections early and decides nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_runtime::{BootTime, Env};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{GroupId, NodeId, ReplicaId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::book::AddressBook;
use crate::connect;
use crate::frames::{self, Assembler, Lane, Packer};
use crate::options::Options;

/// Requests of one lane that may wait for the link.
const QUEUE: usize = 1024;
/// Requests that may wait for their replies.
const PENDING: usize = 8192;

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

struct Queues {
    control: mpsc::Sender<v1::Envelope>,
    bulk: mpsc::Sender<v1::Envelope>,
}

pub(crate) struct Link {
    peer: NodeId,
    env: Env,
    options: Arc<Options>,
    book: Arc<AddressBook>,
    queues: Mutex<Option<Queues>>,
    pending: Mutex<BTreeMap<u64, OnReply>>,
    next_call: AtomicU64,
    last_pong: Arc<AtomicU64>,
    broken: AtomicBool,
    up: AtomicBool,
}

impl Link {
    /// Starts the link; it connects, and connects again, until the node stops.
    pub(crate) fn spawn(
        peer: NodeId,
        env: &Env,
        options: Arc<Options>,
        book: Arc<AddressBook>,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            peer,
            env: env.clone(),
            options,
            book,
            queues: Mutex::new(None),
            pending: Mutex::new(BTreeMap::new()),
            next_call: AtomicU64::new(1),
            last_pong: Arc::new(AtomicU64::new(env.clock.boot().0)),
            broken: AtomicBool::new(false),
            up: AtomicBool::new(false),
        });
        let running = Arc::clone(&link);
        env.tasks.spawn("peer link", annulus_runtime::OnEnd::StopNode, async move {
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
        while !self.env.tasks.is_stopping() {
            if let Some(channel) = self.connect().await {
                wait = self.options.reconnect;
                let why = self.serve(channel).await;
                self.disconnect();
                tracing::info!(peer = %self.peer, why, "peer link lost");
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

    /// Runs one connection; returns why it ended.
    async fn serve(&self, channel: Channel) -> &'static str {
        let (control, control_out) = mpsc::channel(QUEUE);
        let (bulk, bulk_out) = mpsc::channel(QUEUE);
        let packer = Packer::new(self.options.sender(), control_out, bulk_out);
        let frames = futures_util::stream::unfold(packer, |mut packer| async move {
            packer.next().await.map(|frame| (frame, packer))
        });
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(DECODE_BYTES)
            .max_encoding_message_size(DECODE_BYTES);
        // The queues go up only after the hello: what is sent before could reach another node.
        let (hello_done, mut hello) = mpsc::channel::<NodeId>(1);
        let connection = client.link(frames);
        let hello_call = self.next_call.fetch_add(1, Ordering::Relaxed);
        self.expect_pong(hello_call, Some(hello_done));
        let first = self.ping(hello_call);
        if control.try_send(first).is_err() {
            return "the queue closed";
        }
        let Ok(replies) = tokio::time::timeout(self.options.connect_timeout, connection).await
        else {
            return "no answer to the hello";
        };
        let mut replies = match replies {
            Ok(replies) => replies.into_inner(),
            Err(_) => return "the peer refused the link",
        };
        let mut assembler = Assembler::default();
        let mut ticker = tokio::time::interval(self.options.ping);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(told) = hello.recv() => {
                    if told != self.peer {
                        return "another node answered at this address";
                    }
                    let queues = Queues { control: control.clone(), bulk: bulk.clone() };
                    *self.queues.lock() = Some(queues);
                    self.broken.store(false, Ordering::Relaxed);
                    self.up.store(true, Ordering::Relaxed);
                    tracing::info!(peer = %self.peer, "peer link up");
                }
                frame = replies.message() => {
                    let Ok(Some(frame)) = frame else { return "the connection broke" };
                    if !self.take(frame, &mut assembler) {
                        return "the peer sent what makes no sense";
                    }
                }
                _ = ticker.tick() => {
                    let call = self.next_call.fetch_add(1, Ordering::Relaxed);
                    self.expect_pong(call, None);
                    if control.try_send(self.ping(call)).is_err() {
                        self.answer(call, Err(LinkError::Full));
                    }
                    let silent = self.env.clock.boot()
                        .since(BootTime(self.last_pong.load(Ordering::Relaxed)));
                    if self.is_up() && silent > self.options.silent {
                        return "the peer is silent";
                    }
                }
            }
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

    fn take(&self, frame: v1::Frame, assembler: &mut Assembler) -> bool {
        if frames::check(&frame, self.options.cluster).is_err() {
            return false;
        }
        for piece in frame.pieces {
            match assembler.take(piece) {
                Ok(None) => {}
                Ok(Some(envelope)) => {
                    let result = match envelope.body {
                        Some(Body::Undeliverable(_)) => Err(LinkError::Undeliverable),
                        Some(body) => Ok(body),
                        None => Err(LinkError::Malformed),
                    };
                    self.answer(envelope.call, result);
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn ping(&self, call: u64) -> v1::Envelope {
        let body = Some(Body::Ping(self.options.about()));
        v1::Envelope { call, body, ..Default::default() }
    }

    fn expect_pong(&self, call: u64, hello: Option<mpsc::Sender<NodeId>>) {
        let book = Arc::clone(&self.book);
        let clock = self.env.clock.clone();
        let peer = self.peer;
        let last_pong = Arc::clone(&self.last_pong);
        self.pending.lock().insert(
            call,
            Box::new(move |reply| {
                let Ok(Body::Pong(v1::Pong { about: Some(about) })) = reply else { return };
                let Some(info) = about.info.map(annulus_types::NodeInfo::from) else {
                    return;
                };
                if let Some(hello) = hello {
                    // One message fits; a closed receiver means the connection is gone.
                    let _ = hello.try_send(info.id);
                }
                if info.id == peer {
                    book.told(info);
                    last_pong.store(clock.boot().0, Ordering::Relaxed);
                }
            }),
        );
    }
}
