//! Somebody who speaks to a node's peer port without being a node: every word is the story's own.

use std::collections::VecDeque;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_types::ClusterId;
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::cluster::TestCluster;
use super::node::{CLUSTER, info_of};
use crate::connect;
use crate::frames::Assembler;

/// One link, as its sender sees it. The fields go into the frames that are sent next.
pub(super) struct Caller {
    pub(super) cluster: ClusterId,
    pub(super) node: u32,
    pub(super) incarnation: u64,
    frames: mpsc::Sender<v1::Frame>,
    replies: Streaming<v1::Frame>,
    assembler: Assembler,
    answers: VecDeque<Body>,
    /// The connection lives as long as this.
    _client: PeerClient<Channel>,
}

impl Caller {
    /// Calls node `to` as node `node`, in a first life.
    pub(super) async fn new(cluster: &TestCluster, to: u32, node: u32) -> Self {
        let channel = connect::channel(&cluster.stranger(), &info_of(to).peer_addr).await;
        let mut client = PeerClient::new(channel.expect("the node listens"));
        let (frames, sent) = mpsc::channel(8);
        let replies = client.link(ReceiverStream::new(sent)).await;
        Self {
            cluster: CLUSTER,
            node,
            incarnation: 1,
            frames,
            replies: replies.expect("whoever calls is heard first").into_inner(),
            assembler: Assembler::default(),
            answers: VecDeque::new(),
            _client: client,
        }
    }

    pub(super) async fn say(&self, envelope: v1::Envelope) {
        let data = Bytes::from(envelope.encode_to_vec());
        let frame = v1::Frame {
            cluster_id: Bytes::copy_from_slice(&self.cluster.0),
            protocol: annulus_proto::PROTOCOL,
            node: self.node,
            incarnation: self.incarnation,
            pieces: vec![v1::Piece { lane: 0, last: true, data }],
        };
        // Nobody hears it when the link has ended; the story asks for an answer next.
        let _ = self.frames.send(frame).await;
    }

    /// The next answer; `None` when the node has ended the link.
    pub(super) async fn answer(&mut self) -> Option<Body> {
        while self.answers.is_empty() {
            let frame = self.replies.message().await.ok().flatten()?;
            for piece in frame.pieces {
                let envelope = self.assembler.take(piece).expect("pieces of ours");
                self.answers.extend(envelope.and_then(|envelope| envelope.body));
            }
        }
        self.answers.pop_front()
    }

    pub(super) async fn ask(&mut self, envelope: v1::Envelope) -> Option<Body> {
        self.say(envelope).await;
        self.answer().await
    }

    /// A ping of this node at that start, with a log that has come to that segment and ended in the one
    /// before it.
    pub(super) fn ping(&self, boot_counter: u64, boot_id: u64, segment: u64) -> v1::Envelope {
        let recovered = (segment.saturating_sub(1), BEGIN);
        self.tell(about(self.node, (boot_counter, boot_id), (segment, BEGIN), recovered))
    }

    pub(super) fn tell(&self, ping: v1::Ping) -> v1::Envelope {
        v1::Envelope { call: 1, body: Some(Body::Ping(ping)), ..Default::default() }
    }
}

/// An offset in a segment.
const BEGIN: u64 = 8192;

/// What a node tells of its start (counter and id), of how far its log is durable and of where the log
/// ended when the start read it (segment and offset).
pub(super) fn about(
    node: u32,
    (boot_counter, boot_id): (u64, u64),
    position: (u64, u64),
    recovered: (u64, u64),
) -> v1::Ping {
    let info = Some(v1::NodeInfo::from(&info_of(node)));
    let [position, recovered] =
        [position, recovered].map(|(segment, offset)| Some(v1::LogPosition { segment, offset }));
    v1::Ping { boot_counter, boot_id, position, info, recovered, ..Default::default() }
}
