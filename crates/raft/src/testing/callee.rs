//! Somebody whom a node links to and who is no node: every answer is the story's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::OnEnd;
use annulus_types::NodeId;
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use prost::Message as _;
use tonic::Streaming;

use super::cluster::TestCluster;
use super::node::{CLUSTER, info_of};
use super::server::serve_callee;
use crate::frames::Assembler;
use crate::serve::FrameStream;

/// Its number, and that of the machine on which strangers are.
pub(super) const CALLEE: NodeId = NodeId(200);

type Answer = Box<dyn FnMut(v1::Ping) -> Option<Body> + Send>;

/// The other end of a node's link, in a first life.
pub(super) struct Callee {
    answer: Mutex<Answer>,
    calls: AtomicU64,
}

impl Callee {
    /// Has a node link to it, for as long as that node's process runs. `answer` is what it says to a
    /// ping, if anything.
    pub(super) async fn of(
        cluster: &TestCluster,
        node: u32,
        answer: impl FnMut(v1::Ping) -> Option<Body> + Send + 'static,
    ) -> Arc<Self> {
        let (answer, calls) = (Mutex::new(Box::new(answer) as Answer), AtomicU64::new(0));
        let callee = Arc::new(Self { answer, calls });
        let info = info_of(CALLEE.0);
        let addr = info.peer_addr.parse().expect("an address");
        let listener = cluster.stranger().network.listen(addr).await.expect("nobody else is there");
        let host = cluster.host(node);
        let serving = serve_callee(listener, Arc::clone(&callee));
        host.env.tasks.spawn("callee", OnEnd::Ignore, serving);
        host.book.told(info);
        drop(host.links.find(CALLEE));
        callee
    }

    /// How often it was linked to.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Answers pings, and nothing else, until the caller goes away.
    pub(super) fn accept_link(self: &Arc<Self>, frames: Streaming<v1::Frame>) -> FrameStream {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let link = (Arc::clone(self), frames, Assembler::default());
        futures_util::stream::unfold(link, |(callee, mut frames, mut assembler)| async move {
            loop {
                let frame = frames.message().await.ok().flatten()?;
                let mut pieces = Vec::new();
                for piece in frame.pieces {
                    let envelope = assembler.take(piece).expect("pieces of ours");
                    pieces.extend(envelope.and_then(|envelope| callee.answer(envelope)));
                }
                if !pieces.is_empty() {
                    let frame = v1::Frame {
                        cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
                        protocol: annulus_proto::PROTOCOL,
                        node: CALLEE.0,
                        incarnation: 1,
                        pieces,
                    };
                    return Some((Ok(frame), (callee, frames, assembler)));
                }
            }
        })
        .boxed()
    }

    fn answer(&self, envelope: v1::Envelope) -> Option<v1::Piece> {
        let v1::Envelope { call, body: Some(Body::Ping(ping)), .. } = envelope else { return None };
        let mut answer = self.answer.lock();
        let body = Some((*answer)(ping)?);
        let envelope = v1::Envelope { call, body, ..Default::default() };
        Some(v1::Piece { lane: 0, last: true, data: Bytes::from(envelope.encode_to_vec()) })
    }
}
