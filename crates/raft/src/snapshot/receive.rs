//! The receiving end of a transfer.
//!
//! # Invariants
//!
//! - Nothing is stored before the header is checked: cluster, protocol, group and replica (N2), and
//!   that the snapshot can be from the leader that sends it. openraft takes one that contradicts its
//!   vote or its committed entries for corruption and ends the process' replica.
//! - A sender is judged as on a link: by the life that it tells (N1), and by the seat of its replica, if
//!   the membership knows it.
//! - openraft hears of a snapshot only when every file has the length and the checksum that the
//!   manifest states, as read back from the disk.
//! - A reception holds about a megabyte in memory. On the disk it takes no more than was announced, and
//!   only if twice as much is free: the rows go into the engine next.
//!
//! # Failure
//!
//! Whatever is wrong ends the call with a reason; the files go, and the sender begins again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::snapshot_part::Part;
use annulus_types::limits::PEER_PIECE_BYTES;
use annulus_types::{GroupId, NodeId, ReplicaId};
use bytes::BytesMut;
use openraft::RaftState;
use openraft::storage::Snapshot;
use tonic::{Status, Streaming};

use super::Content;
use super::files::{CHUNK_BYTES, FileWriter, Folder, Manifest};
use super::store::{Place, SnapshotStore};
use crate::frames;
use crate::group::Group;
use crate::host::Host;
use crate::lives::{Life, NotHeard};
use crate::types::{Malformed, TypeConfig, Vote, entry_id, vote_from_wire, vote_to_wire, wal_vote};

/// A sender that says nothing for so long is given up.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("its sender is not heard: {0}")]
    NotHeard(#[from] NotHeard),
    #[error("the sending replica sits on another node")]
    Elsewhere,
    #[error("no such replica")]
    NotHere,
    #[error("{0}")]
    NotNow(&'static str),
    #[error("it is not from the leader that sends it, or contradicts what is committed here")]
    Contradiction,
    #[error("file {0} differs from the manifest")]
    Damaged(u64),
    #[error("it ends early")]
    CutShort,
    #[error("the call broke: {0}")]
    Broken(String),
    #[error("its files: {0}")]
    Files(#[from] io::Error),
    #[error("the replica has stopped")]
    Stopped,
}

impl Host {
    /// Receives and installs a snapshot. Dropping the future before the installation has begun drops
    /// what was received; afterwards the installation goes on.
    ///
    /// # Errors
    /// Whatever is wrong with it; nothing has changed then.
    pub async fn accept_snapshot(
        &self,
        parts: Streaming<v1::SnapshotPart>,
    ) -> Result<v1::SnapshotReply, Status> {
        Box::pin(self.take_snapshot(parts)).await.map_err(|refusal| {
            tracing::info!(reason = %refusal, "a snapshot is refused");
            Status::failed_precondition(refusal.to_string())
        })
    }

    async fn take_snapshot(
        &self,
        mut parts: Streaming<v1::SnapshotPart>,
    ) -> Result<v1::SnapshotReply, Refusal> {
        let Some(Part::Header(header)) = next_part(&mut parts).await? else {
            return Err(Malformed("snapshot without a header").into());
        };
        frames::check_sender(&header.cluster_id, header.protocol, self.options.cluster)?;
        self.hear_sender(&header).await?;
        let (group, vote, manifest) = self.addressee(header)?;
        let Some(_permit) = self.snapshots.may_receive() else {
            return Err(Refusal::NotNow("other snapshots are on their way"));
        };
        let mut reception = Reception::begin(&self.snapshots, manifest).await?;
        while let Some(part) = next_part(&mut parts).await? {
            match part {
                Part::Data(data) => reception.take(data).await?,
                Part::Header(_) => return Err(Malformed("a second snapshot header").into()),
            }
        }
        let folder = reception.finish().await?;
        install(&group, vote, folder).await
    }

    /// Judges the life that a header tells of, as that of a ping (N1).
    async fn hear_sender(&self, header: &v1::SnapshotHeader) -> Result<(), Refusal> {
        if self.trusts_every_frame() {
            return Ok(());
        }
        let about = header.about.as_ref();
        let is_of = |info: &v1::NodeInfo| info.id == header.node;
        let about = about.filter(|about| about.info.as_ref().is_some_and(is_of));
        let about = about.ok_or(Malformed("snapshot header without a sender"))?;
        let told = Life::told(header.incarnation, about);
        self.lives.hear(NodeId(header.node), told).await?;
        Ok(())
    }

    /// Whom a snapshot is for, from whom it comes, and what it is.
    fn addressee(
        &self,
        header: v1::SnapshotHeader,
    ) -> Result<(Arc<Group>, Vote, Manifest), Refusal> {
        let group = self.group(GroupId(header.group)).ok_or(Refusal::NotHere)?;
        if group.replica.me.0 != header.to {
            return Err(Refusal::NotHere);
        }
        let seat = group.replica.seat(ReplicaId(header.from));
        let sits_elsewhere = seat.is_some_and(|seat| seat.0 != header.node);
        if sits_elsewhere && !self.trusts_every_frame() {
            return Err(Refusal::Elsewhere);
        }
        if self.env.tasks.is_stopping() {
            return Err(Refusal::Stopped);
        }
        let vote = vote_from_wire(header.vote)?;
        let manifest = Manifest::decode(header.manifest)?;
        if manifest.group != group.id() {
            return Err(Malformed("snapshot of another group").into());
        }
        let (last, leads) = (entry_id(&manifest.last()?), wal_vote(&vote));
        let is_leaders = leads.committed
            && leads.leader.0 == header.from
            && (last.term, last.leader) <= (leads.term, leads.leader);
        if is_leaders { Ok((group, vote, manifest)) } else { Err(Refusal::Contradiction) }
    }
}

async fn next_part(parts: &mut Streaming<v1::SnapshotPart>) -> Result<Option<Part>, Refusal> {
    match tokio::time::timeout(STANDSTILL, parts.message()).await {
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(v1::SnapshotPart { part: Some(part) }))) => Ok(Some(part)),
        Ok(Ok(Some(v1::SnapshotPart { part: None }))) => Err(Malformed("snapshot part").into()),
        Ok(Err(status)) => Err(Refusal::Broken(status.message().to_owned())),
        Err(_) => Err(Refusal::Broken("nothing comes".to_owned())),
    }
}

/// Hands a complete snapshot to openraft and waits until it is installed.
async fn install(group: &Group, vote: Vote, folder: Folder) -> Result<v1::SnapshotReply, Refusal> {
    let meta = folder.manifest().meta();
    let last = folder.manifest().last()?;
    // Two entries at one place, both committed: one of the two replicas is not what it seems.
    let contradicts = move |state: &RaftState<TypeConfig>| {
        let committed = state.local_committed();
        committed.is_some_and(|committed| last > *committed && last.index <= committed.index)
    };
    let contradicts = group.raft.with_raft_state(contradicts).await;
    if contradicts.map_err(|_| Refusal::Stopped)? {
        return Err(Refusal::Contradiction);
    }
    let snapshot = Snapshot { meta, snapshot: Content::Stored(Arc::new(folder)) };
    let installed = group.raft.install_full_snapshot(vote, snapshot).await;
    let installed = installed.map_err(|_| Refusal::Stopped)?;
    if installed.vote == vote {
        group.replica.leader_heard(wal_vote(&vote));
    }
    Ok(v1::SnapshotReply { vote: Some(vote_to_wire(&installed.vote)) })
}

/// A snapshot on its way in.
struct Reception {
    place: Place,
    manifest: Manifest,
    /// The file that comes in, by its place in the manifest.
    at: usize,
    writer: Option<FileWriter>,
    /// Received and not written yet.
    buffer: BytesMut,
}

impl Reception {
    /// Makes a folder for it.
    async fn begin(store: &Arc<SnapshotStore>, manifest: Manifest) -> Result<Self, Refusal> {
        let place = store.place(manifest.group, manifest.last()?.index);
        place.create().await?;
        let (disk, path) = (store.disk(), place.path().to_owned());
        let space = store.run(move || disk.space(&path)).await?;
        if space.free / 2 < manifest.bytes() {
            return Err(Refusal::NotNow("the disk is too full"));
        }
        Ok(Self { place, manifest, at: 0, writer: None, buffer: BytesMut::new() })
    }

    async fn take(&mut self, data: v1::SnapshotData) -> Result<(), Refusal> {
        let file = usize::try_from(data.file).map_err(|_| Malformed("snapshot file"))?;
        if file == self.at + 1 {
            self.close().await?;
        }
        let entry = self.manifest.files.get(self.at).filter(|_| file == self.at).copied();
        let entry = entry.ok_or(Malformed("snapshot parts out of order"))?;
        let written = self.writer.as_ref().map_or(0, FileWriter::bytes);
        let bytes = written + (self.buffer.len() + data.data.len()) as u64;
        if data.data.is_empty() || data.data.len() > PEER_PIECE_BYTES || bytes > entry.bytes {
            return Err(Malformed("snapshot part has a wrong length").into());
        }
        self.buffer.extend_from_slice(&data.data);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush(entry.id).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, id: u64) -> io::Result<()> {
        let (store, data) = (Arc::clone(self.place.store()), self.buffer.split());
        let (disk, dir) = (store.disk(), self.place.path().to_owned());
        let writer = self.writer.take();
        let write = move || -> io::Result<FileWriter> {
            let mut writer = match writer {
                Some(writer) => writer,
                None => FileWriter::create(disk.as_ref(), &dir, id)?,
            };
            writer.write(&data)?;
            Ok(writer)
        };
        self.writer = Some(store.run(write).await?);
        Ok(())
    }

    /// The file that comes in is complete, or never will be.
    async fn close(&mut self) -> Result<(), Refusal> {
        let entry = self.manifest.files.get(self.at).copied().ok_or(Refusal::CutShort)?;
        self.flush(entry.id).await?;
        let writer = self.writer.take().ok_or(Refusal::CutShort)?;
        if writer.bytes() < entry.bytes {
            return Err(Refusal::CutShort);
        }
        if writer.finish(entry.id) != entry {
            return Err(Refusal::Damaged(entry.id));
        }
        self.at += 1;
        Ok(())
    }

    /// Everything came; checks that it did.
    async fn finish(mut self) -> Result<Folder, Refusal> {
        if self.at < self.manifest.files.len() {
            self.close().await?;
        }
        if self.at < self.manifest.files.len() {
            return Err(Refusal::CutShort);
        }
        let folder = Folder::seal(self.place, self.manifest).await?;
        folder.verify().await?;
        Ok(folder)
    }
}
