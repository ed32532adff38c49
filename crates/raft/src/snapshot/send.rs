//! The sending end of a transfer.
//!
//! A call of its own on a connection of its own: whatever it carries, heartbeats do not wait behind
//! it. Bytes are read from the files as fast as the receiver takes them; about a megabyte is in memory.
//!
//! # Invariants
//!
//! - A leader that must be silent (R1 a) sends no part: the call then ends early, and a receiver
//!   installs nothing that is incomplete.
//! - The call ends with the peer's link: a peer that stopped answering holds up nobody for longer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_proto::v1::snapshot_part::Part;
use annulus_types::limits::PEER_PIECE_BYTES;
use annulus_types::{NodeId, ReplicaId};
use bytes::{Bytes, BytesMut};

use super::Content;
use super::files::{FileReader, Folder};
use crate::links::Links;
use crate::replica::ReplicaState;
use crate::types::{Malformed, Vote, vote_from_wire, vote_to_wire, wal_vote};

/// Between two looks at the peer's link.
const LOOK: Duration = Duration::from_millis(100);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the peer cannot be reached")]
    Down,
    #[error("no quorum answers, so that nothing is sent")]
    Silent,
    #[error("its files: {0}")]
    Files(#[from] io::Error),
    #[error("the peer refused it: {0}")]
    Refused(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whose snapshot goes where.
pub(crate) struct Errand {
    pub(crate) links: Arc<Links>,
    pub(crate) replica: Arc<ReplicaState>,
    pub(crate) node: NodeId,
    pub(crate) target: ReplicaId,
    pub(crate) vote: Vote,
}

impl Errand {
    /// Makes the files if need be, sends them, and waits until they are installed. Returns the
    /// receiver's vote. Dropping the future ends the call, and with it the reception.
    pub(crate) async fn run(self, content: Content) -> Result<Vote, SendError> {
        if !self.links.is_up(self.node) {
            return Err(SendError::Down);
        }
        let folder = content.folder().await?;
        if !self.replica.gate.may_send(self.replica.clock.boot()) {
            return Err(SendError::Silent);
        }
        let channel = self.links.dial(self.node).await.ok_or(SendError::Down)?;
        let parts = Parts {
            replica: Arc::clone(&self.replica),
            header: Some(self.header(&folder)),
            folder: Arc::clone(&folder),
            file: 0,
            reader: None,
            piece: Bytes::new(),
        };
        let parts = futures_util::stream::unfold(parts, Parts::next);
        let mut client = PeerClient::new(channel);
        let reply = tokio::select! {
            biased;
            reply = client.send_snapshot(parts) => {
                reply.map_err(|status| SendError::Refused(status.message().to_owned()))?.into_inner()
            }
            () = self.link_lost() => return Err(SendError::Down),
        };
        let vote = vote_from_wire(reply.vote)?;
        if vote == self.vote {
            let now = self.replica.clock.boot();
            let (sent_under, follower) = (wal_vote(&vote), self.target);
            self.replica.gate.change(|core| core.replied(sent_under, follower, now));
        }
        Ok(vote)
    }

    fn header(&self, folder: &Folder) -> v1::SnapshotHeader {
        let sender = self.links.sender();
        v1::SnapshotHeader {
            cluster_id: Bytes::copy_from_slice(&sender.cluster.0),
            protocol: annulus_proto::PROTOCOL,
            node: sender.node.0,
            incarnation: sender.incarnation,
            group: self.replica.group.0,
            from: self.replica.me.0,
            to: self.target.0,
            vote: Some(vote_to_wire(&self.vote)),
            manifest: folder.manifest().encode(),
            about: Some(self.links.about()),
        }
    }

    async fn link_lost(&self) {
        while self.links.is_up(self.node) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The parts of one transfer, made as they are asked for.
struct Parts {
    replica: Arc<ReplicaState>,
    /// Until it is sent.
    header: Option<v1::SnapshotHeader>,
    folder: Arc<Folder>,
    /// The file that is read, by its place in the manifest.
    file: usize,
    reader: Option<FileReader>,
    /// What was read and is not sent yet.
    piece: Bytes,
}

impl Parts {
    /// The next part. None at the end, and where going on is impossible: a receiver tells the two
    /// apart by what is missing.
    async fn next(mut self) -> Option<(v1::SnapshotPart, Self)> {
        if !self.replica.gate.may_send(self.replica.clock.boot()) {
            return None;
        }
        if let Some(header) = self.header.take() {
            return Some((v1::SnapshotPart { part: Some(Part::Header(header)) }, self));
        }
        while self.piece.is_empty() {
            let entry = *self.folder.manifest().files.get(self.file)?;
            let (folder, reader) = (Arc::clone(&self.folder), self.reader.take());
            let read = move || -> io::Result<(FileReader, Bytes)> {
                let mut reader = match reader {
                    Some(reader) => reader,
                    None => folder.read(entry)?,
                };
                let piece = reader.chunk()?;
                Ok((reader, piece))
            };
            match self.folder.place().store().run(read).await {
                Ok((_, piece)) if piece.is_empty() => self.file += 1,
                Ok((reader, piece)) => {
                    self.reader = Some(reader);
                    self.piece = self.spoilt(piece);
                }
                Err(error) => {
                    tracing::warn!(group = %self.replica.group, %error, "a snapshot does not read");
                    return None;
                }
            }
        }
        let data = self.piece.split_to(self.piece.len().min(PEER_PIECE_BYTES));
        self.replica.meter.state_sent(data.len());
        let data = v1::SnapshotData { file: u32::try_from(self.file).ok()?, data };
        Some((v1::SnapshotPart { part: Some(Part::Data(data)) }, self))
    }

    /// The same, unless a test wants it otherwise.
    fn spoilt(&self, piece: Bytes) -> Bytes {
        if !self.folder.place().store().takes_spoil() {
            return piece;
        }
        let mut wrong = BytesMut::from(&piece[..]);
        if let Some(last) = wrong.last_mut() {
            *last ^= 1;
        }
        wrong.freeze()
    }
}
