//! Envelopes in pieces (N2): how one stream of frames carries small urgent messages and large ones
//! without the second delaying the first.
//!
//! An encoded envelope is cut into pieces of at most 64 KiB. Pieces of one lane stay in order; a
//! waiting control message goes between two pieces of a bulk one. A receiver puts each lane together
//! on its own and refuses an envelope above the decode limit.

use annulus_proto::v1;
use annulus_types::limits::{DECODE_BYTES, PEER_PIECE_BYTES};
use annulus_types::{ClusterId, NodeId};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::types::Malformed;

/// Which queue a message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Votes, heartbeats, pings and replies.
    Control = 0,
    /// Replication.
    Bulk = 1,
}

/// A frame carries at most this many bytes of pieces.
const FRAME_BYTES: usize = 4 * PEER_PIECE_BYTES;

/// Who a frame is from; in the head of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
}

/// Turns two queues of envelopes into frames.
#[derive(Debug)]
pub(crate) struct Packer {
    sender: Sender,
    control: mpsc::Receiver<v1::Envelope>,
    bulk: mpsc::Receiver<v1::Envelope>,
    /// What is left of a bulk envelope that has begun.
    rest: Bytes,
}

impl Packer {
    pub(crate) fn new(
        sender: Sender,
        control: mpsc::Receiver<v1::Envelope>,
        bulk: mpsc::Receiver<v1::Envelope>,
    ) -> Self {
        Self { sender, control, bulk, rest: Bytes::new() }
    }

    fn begin(encoded: Bytes, lane: Lane, pieces: &mut Vec<v1::Piece>) -> Bytes {
        let mut rest = encoded;
        let data = rest.split_to(rest.len().min(PEER_PIECE_BYTES));
        pieces.push(v1::Piece { lane: lane as u32, last: rest.is_empty(), data });
        rest
    }

    fn put_control(envelope: &v1::Envelope, pieces: &mut Vec<v1::Piece>) -> usize {
        let encoded = Bytes::from(envelope.encode_to_vec());
        let size = encoded.len();
        let mut rest = Self::begin(encoded, Lane::Control, pieces);
        while !rest.is_empty() {
            rest = Self::begin(rest, Lane::Control, pieces);
        }
        size
    }

    /// The next frame; `None` once both queues are closed and empty. Not cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<v1::Frame> {
        let mut pieces = Vec::new();
        let mut size = 0;
        if self.rest.is_empty() {
            // Control first: a heartbeat never waits behind replication.
            tokio::select! {
                biased;
                Some(envelope) = self.control.recv() => {
                    size += Self::put_control(&envelope, &mut pieces);
                }
                Some(envelope) = self.bulk.recv() => {
                    self.rest = Bytes::from(envelope.encode_to_vec());
                }
                else => return None,
            }
        }
        while size < FRAME_BYTES {
            if let Ok(envelope) = self.control.try_recv() {
                size += Self::put_control(&envelope, &mut pieces);
            } else if !self.rest.is_empty() {
                size += self.rest.len().min(PEER_PIECE_BYTES);
                let rest = std::mem::take(&mut self.rest);
                self.rest = Self::begin(rest, Lane::Bulk, &mut pieces);
            } else if let Ok(envelope) = self.bulk.try_recv() {
                self.rest = Bytes::from(envelope.encode_to_vec());
            } else {
                break;
            }
        }
        Some(v1::Frame {
            cluster_id: Bytes::copy_from_slice(&self.sender.cluster.0),
            protocol: annulus_proto::PROTOCOL,
            node: self.sender.node.0,
            incarnation: self.sender.incarnation,
            pieces,
        })
    }
}

/// Puts the pieces of each lane together again.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    lanes: [BytesMut; 2],
}

impl Assembler {
    /// Takes one piece; returns the envelope that it completes.
    pub(crate) fn take(&mut self, piece: v1::Piece) -> Result<Option<v1::Envelope>, Malformed> {
        let lane = usize::try_from(piece.lane).ok().and_then(|lane| self.lanes.get_mut(lane));
        let lane = lane.ok_or(Malformed("lane"))?;
        if piece.data.len() > PEER_PIECE_BYTES || lane.len() + piece.data.len() > DECODE_BYTES {
            return Err(Malformed("piece or envelope is too large"));
        }
        let whole = if piece.last && lane.is_empty() {
            piece.data
        } else {
            lane.extend_from_slice(&piece.data);
            if !piece.last {
                return Ok(None);
            }
            std::mem::take(lane).freeze()
        };
        v1::Envelope::decode(whole).map(Some).map_err(|_| Malformed("envelope"))
    }
}

/// Checks the head of a frame (N2).
pub(crate) fn check(frame: &v1::Frame, cluster: ClusterId) -> Result<(), Malformed> {
    check_sender(&frame.cluster_id, frame.protocol, cluster)
}

/// Checks what every message between nodes says of its sender (N2).
pub(crate) fn check_sender(
    cluster_id: &[u8],
    protocol: u32,
    cluster: ClusterId,
) -> Result<(), Malformed> {
    if *cluster_id != cluster.0 {
        return Err(Malformed("message of another cluster"));
    }
    if protocol < annulus_proto::PROTOCOL_OLDEST || protocol > annulus_proto::PROTOCOL {
        return Err(Malformed("protocol version"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(call: u64, bytes: usize) -> v1::Envelope {
        let entry = v1::LogEntry { id: None, payload: Bytes::from(vec![7; bytes]) };
        let append = v1::AppendRequest { entries: vec![entry], ..Default::default() };
        let body = Some(v1::envelope::Body::Append(append));
        v1::Envelope { call, body, ..Default::default() }
    }

    #[tokio::test]
    async fn a_heartbeat_overtakes_a_large_message_and_both_arrive_whole() {
        let (control_in, control) = mpsc::channel(8);
        let (bulk_in, bulk) = mpsc::channel(8);
        let sender = Sender { cluster: ClusterId([1; 16]), node: NodeId(1), incarnation: 2 };
        let mut packer = Packer::new(sender, control, bulk);
        bulk_in.send(envelope(1, 1_000_000)).await.unwrap();
        let first = packer.next().await.unwrap();
        control_in.send(envelope(2, 10)).await.unwrap();
        let mut assembler = Assembler::default();
        let mut order = Vec::new();
        drop((control_in, bulk_in));
        let mut frames = vec![first];
        while let Some(frame) = packer.next().await {
            frames.push(frame);
        }
        for frame in frames {
            check(&frame, ClusterId([1; 16])).unwrap();
            assert!(frame.pieces.iter().all(|piece| piece.data.len() <= PEER_PIECE_BYTES));
            for piece in frame.pieces {
                if let Some(done) = assembler.take(piece).unwrap() {
                    assert_eq!(
                        done,
                        envelope(done.call, if done.call == 1 { 1_000_000 } else { 10 })
                    );
                    order.push(done.call);
                }
            }
        }
        assert_eq!(order, [2, 1]);
    }

    #[test]
    fn frames_of_others_are_refused() {
        let mine = ClusterId([1; 16]);
        let mut frame = v1::Frame {
            cluster_id: Bytes::copy_from_slice(&mine.0),
            protocol: annulus_proto::PROTOCOL,
            ..Default::default()
        };
        assert!(check(&frame, mine).is_ok());
        assert!(check(&frame, ClusterId([2; 16])).is_err());
        frame.protocol += 1;
        assert!(check(&frame, mine).is_err());
        let mut assembler = Assembler::default();
        assert!(assembler.take(v1::Piece { lane: 2, ..Default::default() }).is_err());
    }
}
