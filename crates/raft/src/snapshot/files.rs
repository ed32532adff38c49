//! The files of a snapshot: one per part of the machine's state, and a manifest (E2).
//!
//! ```text
//! <group>-<index>-<n>/        n tells snapshots of one entry apart; `keep` names those that stay
//!   manifest                  version u8 = 1 | crc32 of the rest u32 | group u64
//!                             | bytes u32 | state of the group as in the engine
//!                             | files u32 | per file, by id: id u64 | bytes u64 | crc32 u32
//!   <id>.rows                 version u8 = 1 | per row: name bytes u16 | value bytes u32 | name | value
//! ```
//!
//! Numbers are big-endian; a CRC-32 in the manifest covers the whole file. What names and values say
//! is the machine's business; they mean the same on every node. The manifest also travels, as the
//! head of a transfer.
//!
//! # Failure
//!
//! Bytes that differ from the manifest are an error of kind `InvalidData` at the end of their file,
//! never a shorter or another state.

use std::io;
use std::path::Path;
use std::sync::Arc;

use annulus_engine::Row;
use annulus_runtime::disk::read_file;
use annulus_runtime::{Disk, DiskFile, Open};
use annulus_types::GroupId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::type_config::alias::SnapshotMetaOf;

use super::store::Place;
use crate::machine::GroupState;
use crate::types::{LogId, Malformed, TypeConfig};

const VERSION: u8 = 1;
pub(super) const MANIFEST: &str = "manifest";
/// The longest manifest, bytes: far above that of a group with every shard.
const MANIFEST_BYTES_MOST: u64 = 16 * 1024 * 1024;
/// Files are read and written in pieces of about this many bytes.
pub(crate) const CHUNK_BYTES: usize = 1024 * 1024;
/// Lengths in front of a row.
const ROW_HEAD: usize = 6;
/// The longest value of a row: far above any that a machine stores, far below what a length of 32
/// bits could make a reader wait for.
const VALUE_BYTES_MOST: usize = 64 * 1024 * 1024;

/// A file as the manifest describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileEntry {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) group: GroupId,
    pub(crate) state: GroupState,
    pub(crate) files: Vec<FileEntry>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Bytes {
        let state = self.state.encode();
        let mut body = BytesMut::new();
        body.put_u64(self.group.0);
        body.put_u32(u32::try_from(state.len()).unwrap_or(u32::MAX));
        body.put_slice(&state);
        body.put_u32(u32::try_from(self.files.len()).unwrap_or(u32::MAX));
        for file in &self.files {
            body.put_u64(file.id);
            body.put_u64(file.bytes);
            body.put_u32(file.crc);
        }
        let mut out = BytesMut::with_capacity(5 + body.len());
        out.put_u8(VERSION);
        out.put_u32(crc32fast::hash(&body));
        out.put_slice(&body);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let short = |_| Malformed("snapshot manifest is cut short");
        if bytes.try_get_u8().map_err(short)? != VERSION {
            return Err(Malformed("snapshot manifest version"));
        }
        if bytes.try_get_u32().map_err(short)? != crc32fast::hash(&bytes) {
            return Err(Malformed("snapshot manifest checksum"));
        }
        let group = GroupId(bytes.try_get_u64().map_err(short)?);
        let state_bytes = bytes.try_get_u32().map_err(short)? as usize;
        if state_bytes > bytes.len() {
            return Err(Malformed("snapshot manifest is cut short"));
        }
        let state = GroupState::decode(bytes.split_to(state_bytes))?;
        let mut files: Vec<FileEntry> = Vec::new();
        for _ in 0..bytes.try_get_u32().map_err(short)? {
            let id = bytes.try_get_u64().map_err(short)?;
            if files.last().is_some_and(|last| last.id >= id) {
                return Err(Malformed("snapshot files out of order"));
            }
            let length = bytes.try_get_u64().map_err(short)?;
            let crc = bytes.try_get_u32().map_err(short)?;
            files.push(FileEntry { id, bytes: length, crc });
        }
        if !bytes.is_empty() {
            return Err(Malformed("snapshot manifest is too long"));
        }
        Ok(Self { group, state, files })
    }

    /// Reads the manifest of the folder `dir`. Waits on the disk.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Self> {
        let bytes = read_file(disk, &dir.join(MANIFEST), MANIFEST_BYTES_MOST)?;
        Self::decode(Bytes::from(bytes)).map_err(|Malformed(what)| invalid(what))
    }

    /// The entry up to which the snapshot goes.
    pub(crate) fn last(&self) -> Result<LogId, Malformed> {
        self.state.applied.ok_or(Malformed("snapshot of nothing"))
    }

    /// What openraft calls it.
    pub(crate) fn meta(&self) -> SnapshotMetaOf<TypeConfig> {
        SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.state.applied,
            last_membership: self.state.membership.clone(),
        }
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

pub(super) fn file_name(id: u64) -> String {
    format!("{id}.rows")
}

/// The first bytes of every file.
pub(crate) fn file_head() -> [u8; 1] {
    [VERSION]
}

/// Appends a row as a file holds it.
pub(crate) fn put_row(out: &mut BytesMut, name: &[u8], value: &[u8]) -> io::Result<()> {
    if value.len() > VALUE_BYTES_MOST {
        let message = format!("a row of {} bytes does not fit into a snapshot", value.len());
        return Err(io::Error::other(message));
    }
    out.put_u16(u16::try_from(name.len()).map_err(io::Error::other)?);
    out.put_u32(u32::try_from(value.len()).map_err(io::Error::other)?);
    out.put_slice(name);
    out.put_slice(value);
    Ok(())
}

/// Finds the rows in the bytes of a file, which come in pieces.
#[derive(Debug, Default)]
pub(crate) struct RowReader {
    buffer: BytesMut,
    begun: bool,
}

impl RowReader {
    /// Takes the next piece; returns the rows that are complete with it.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<Vec<Row>, Malformed> {
        self.buffer.extend_from_slice(piece);
        if !self.begun && !self.buffer.is_empty() {
            if self.buffer.get_u8() != VERSION {
                return Err(Malformed("snapshot file version"));
            }
            self.begun = true;
        }
        let mut rows = Vec::new();
        while self.buffer.len() >= ROW_HEAD {
            let mut head = &self.buffer[..ROW_HEAD];
            let name_bytes = usize::from(head.get_u16());
            let value_bytes = head.get_u32() as usize;
            if value_bytes > VALUE_BYTES_MOST {
                return Err(Malformed("snapshot row is too long"));
            }
            if self.buffer.len() < ROW_HEAD + name_bytes + value_bytes {
                break;
            }
            self.buffer.advance(ROW_HEAD);
            // Copies: rows are kept, and a slice would keep the whole piece.
            let name = Bytes::copy_from_slice(&self.buffer[..name_bytes]);
            self.buffer.advance(name_bytes);
            let value = Bytes::copy_from_slice(&self.buffer[..value_bytes]);
            self.buffer.advance(value_bytes);
            rows.push((name, value));
        }
        Ok(rows)
    }

    /// Checks that the file did not end inside of something.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        if self.begun && self.buffer.is_empty() {
            Ok(())
        } else {
            Err(Malformed("snapshot file is cut short"))
        }
    }
}

/// Writes a file and counts what it writes.
pub(crate) struct FileWriter {
    file: Arc<dyn DiskFile>,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl FileWriter {
    /// Begins the file of a part in the folder `dir`.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, id: u64) -> io::Result<Self> {
        let file = disk.open(&dir.join(file_name(id)), Open::CreateNew)?;
        Ok(Self { file, bytes: 0, crc: crc32fast::Hasher::new() })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.bytes)?;
        self.crc.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the manifest says of it.
    pub(crate) fn finish(self, id: u64) -> FileEntry {
        FileEntry { id, bytes: self.bytes, crc: self.crc.finalize() }
    }
}

/// Reads a file and checks it against the manifest.
pub(crate) struct FileReader {
    file: Arc<dyn DiskFile>,
    entry: FileEntry,
    at: u64,
    crc: crc32fast::Hasher,
}

impl FileReader {
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, entry: FileEntry) -> io::Result<Self> {
        let file = disk.open(&dir.join(file_name(entry.id)), Open::Read)?;
        if file.len()? != entry.bytes {
            return Err(invalid("a snapshot's file has another length than its manifest says"));
        }
        Ok(Self { file, entry, at: 0, crc: crc32fast::Hasher::new() })
    }

    /// The next [`CHUNK_BYTES`], fewer at the end; nothing behind it.
    pub(crate) fn chunk(&mut self) -> io::Result<Bytes> {
        let left = self.entry.bytes - self.at;
        let bytes = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, self.at)?;
        self.crc.update(&data);
        self.at += bytes as u64;
        if self.is_through() && self.crc.clone().finalize() != self.entry.crc {
            return Err(invalid("a snapshot's file does not match its checksum"));
        }
        Ok(Bytes::from(data))
    }

    pub(crate) fn is_through(&self) -> bool {
        self.at == self.entry.bytes
    }
}

/// What is on the disk, or came in, is not what it should be.
pub(crate) fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A snapshot on the disk. Its folder goes with it.
pub(crate) struct Folder {
    place: Place,
    manifest: Manifest,
}

impl Folder {
    /// Adds the manifest to a folder whose files are written.
    pub(crate) async fn seal(place: Place, manifest: Manifest) -> io::Result<Self> {
        let (disk, path) = (place.store().disk(), place.path().join(MANIFEST));
        let encoded = manifest.encode();
        let write = move || disk.open(&path, Open::CreateNew)?.write_all_at(&encoded, 0);
        place.store().run(write).await?;
        Ok(Self { place, manifest })
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Begins to read a file. Waits on the disk.
    pub(crate) fn read(&self, entry: FileEntry) -> io::Result<FileReader> {
        FileReader::open(self.place.store().disk().as_ref(), self.place.path(), entry)
    }

    /// Reads everything back.
    pub(crate) async fn verify(&self) -> io::Result<()> {
        for entry in &self.manifest.files {
            let (disk, dir, entry) =
                (self.place.store().disk(), self.place.path().to_owned(), *entry);
            let open = move || FileReader::open(disk.as_ref(), &dir, entry);
            let mut reader = self.place.store().run(open).await?;
            while !reader.is_through() {
                let next = move || reader.chunk().map(|_| reader);
                reader = self.place.store().run(next).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
