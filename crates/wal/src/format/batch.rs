//! Batches: what one write and one sync make durable together.
//!
//! A batch begins and ends with its manifest and its head, so that either end tells its extent and
//! whom it concerns when the other is unreadable.
//!
//! Invariants:
//! - L2: a batch fills whole blocks and is valid only whole: every byte of it, padding included, is
//!   covered by a tag and by a checksum;
//! - L4: a manifest is readable by itself, whatever happened to the records.

use std::collections::BTreeMap;

use bytes::BufMut;

use super::record::{
    Change, Frames, Record, put_id, put_state, put_stream, take_id, take_state, take_stream,
};
use super::{
    BLOCK, BLOCK_ROOM, Cursor, HEADER_BYTES, Header, Place, Position, ROOM, content, content_at,
    record, sectors_of, slice, tag_sectors,
};
use crate::{EntryId, LogState, StreamId};

/// Bytes of a head.
const HEAD_BYTES: u64 = 64;
/// Bytes of one seal in a manifest.
const SEAL_BYTES: u64 = 20;
/// Bytes of one replica in a manifest.
const ITEM_BYTES: u64 = 160;
/// Bytes of the two counts of a manifest.
const COUNTS_BYTES: u64 = 8;

/// Which end of a batch a head stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    First,
    Last,
}

impl End {
    fn magic(self) -> [u8; 4] {
        match self {
            Self::First => *b"AWB<",
            Self::Last => *b"AWB>",
        }
    }
}

/// What either end of a batch tells about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the batch begins, bytes from the start of the file.
    pub(crate) offset: u64,
    blocks: u32,
    /// Up to here the log was durable when the batch was written.
    pub(crate) mark: Position,
    manifest_bytes: u32,
    manifest_crc: u32,
    records_bytes: u64,
    /// Over records and padding.
    body_crc: u32,
}

impl Head {
    /// Where the batch ends, bytes from the start of the file.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.blocks) * BLOCK
    }

    /// The head at `offset`, where a batch may begin.
    pub(crate) fn first(header: &Header, data: &[u8], offset: u64) -> Option<Self> {
        let bytes = read(header, data, content_at(offset), HEAD_BYTES)?;
        Self::decode(header, &bytes, End::First).filter(|head| head.offset == offset)
    }

    /// The head at the end of the block at `block`, where a batch may end.
    pub(crate) fn last(header: &Header, data: &[u8], block: u64) -> Option<Self> {
        let end = block + BLOCK;
        let bytes = read(header, data, content_at(end) - HEAD_BYTES, HEAD_BYTES)?;
        Self::decode(header, &bytes, End::Last)
            .filter(|head| head.offset >= HEADER_BYTES && head.end() == end)
    }

    /// The manifest at either end, if one of them is whole.
    pub(crate) fn manifest(&self, header: &Header, data: &[u8]) -> Option<Manifest> {
        let len = u64::from(self.manifest_bytes);
        let first = content_at(self.offset) + HEAD_BYTES;
        let last = content_at(self.end()) - HEAD_BYTES - len;
        [first, last].into_iter().find_map(|at| {
            let bytes = read(header, data, at, len)?;
            let sound = header.salt.crc(&bytes) == self.manifest_crc;
            if sound { Manifest::decode(&bytes) } else { None }
        })
    }

    /// The last four bytes are the checksum of the others; at the first end it stands for the whole
    /// batch in a [`Seal`].
    fn encode(&self, header: &Header, end: End) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::with_capacity(HEAD_BYTES as usize);
        out.extend_from_slice(&end.magic());
        out.put_u64_le(header.number);
        out.put_u64_le(self.offset);
        out.put_u32_le(self.blocks);
        out.put_u64_le(self.mark.segment);
        out.put_u64_le(self.mark.offset);
        out.put_u32_le(self.manifest_bytes);
        out.put_u32_le(self.manifest_crc);
        out.put_u64_le(self.records_bytes);
        out.put_u32_le(self.body_crc);
        let crc = header.salt.crc(&out);
        out.put_u32_le(crc);
        out
    }

    fn checksum(&self, header: &Header) -> u32 {
        let bytes = self.encode(header, End::First);
        bytes.last_chunk::<4>().map_or(0, |crc| u32::from_le_bytes(*crc))
    }

    fn decode(header: &Header, bytes: &[u8], end: End) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        if cursor.array::<4>()? != end.magic() || cursor.u64()? != header.number {
            return None;
        }
        let head = Self {
            offset: cursor.u64()?,
            blocks: cursor.u32()?,
            mark: Position { segment: cursor.u64()?, offset: cursor.u64()? },
            manifest_bytes: cursor.u32()?,
            manifest_crc: cursor.u32()?,
            records_bytes: cursor.u64()?,
            body_crc: cursor.u32()?,
        };
        (head.encode(header, end) == bytes).then_some(head)
    }
}

/// Says where an older segment ends, for ever (L2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) segment: u64,
    /// What lies at or behind this offset does not count.
    pub(crate) end: u64,
    /// The checksum of the batch that ends there; 0 when the segment counts for nothing.
    pub(crate) checksum: u32,
}

impl Seal {
    /// Says that a segment counts for nothing: what it held is written again behind the seal.
    pub(crate) fn void(segment: u64) -> Self {
        Self { segment, end: HEADER_BYTES, checksum: 0 }
    }

    pub(crate) fn is_void(&self) -> bool {
        self.end <= HEADER_BYTES
    }
}

/// What a batch says about one replica, in a few bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) stream: StreamId,
    /// Whether it holds something that the replica cannot do without (see [`Change::is_vital`]).
    pub(crate) vital: bool,
    /// The first entry in the batch.
    pub(crate) first: Option<EntryId>,
    /// The hard state after the batch: the vote and the last entry among others.
    pub(crate) state: LogState,
}

/// Whom a batch concerns (L4), and which segments it seals (L2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) seals: Vec<Seal>,
    pub(crate) items: Vec<Item>,
}

impl Manifest {
    /// All but the seals and each replica's state, which the caller adds.
    pub(crate) fn describe(records: &[Record]) -> Self {
        let mut items = BTreeMap::new();
        for Record { stream, change, .. } in records {
            let item = items.entry(*stream).or_insert_with(|| Item {
                stream: *stream,
                vital: false,
                first: None,
                state: LogState::default(),
            });
            item.vital |= change.is_vital();
            if let Change::Entry { id, .. } = change {
                item.first.get_or_insert(*id);
            }
        }
        Self { seals: Vec::new(), items: items.into_values().collect() }
    }

    fn encoded_len(&self) -> u64 {
        COUNTS_BYTES + self.seals.len() as u64 * SEAL_BYTES + self.items.len() as u64 * ITEM_BYTES
    }

    fn encode(&self) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::with_capacity(self.encoded_len() as usize);
        out.put_u32_le(self.seals.len() as u32);
        for seal in &self.seals {
            out.put_u64_le(seal.segment);
            out.put_u64_le(seal.end);
            out.put_u32_le(seal.checksum);
        }
        out.put_u32_le(self.items.len() as u32);
        for item in &self.items {
            put_stream(&mut out, item.stream);
            out.put_u8(u8::from(item.vital));
            put_id(&mut out, item.first);
            put_state(&mut out, &item.state);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let mut manifest = Self::default();
        for _ in 0..cursor.u32()? {
            let (segment, end, checksum) = (cursor.u64()?, cursor.u64()?, cursor.u32()?);
            manifest.seals.push(Seal { segment, end, checksum });
        }
        for _ in 0..cursor.u32()? {
            manifest.items.push(Item {
                stream: take_stream(&mut cursor)?,
                vital: cursor.flag()?,
                first: take_id(&mut cursor)?,
                state: take_state(&mut cursor)?,
            });
        }
        cursor.0.is_empty().then_some(manifest)
    }
}

/// Bytes of the file that a batch fills.
pub(crate) fn len(manifest: &Manifest, frames: &Frames) -> u64 {
    let content = 2 * HEAD_BYTES + 2 * manifest.encoded_len() + frames.bytes.len() as u64;
    content.div_ceil(BLOCK_ROOM) * BLOCK
}

/// A batch ready to be written.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) checksum: u32,
    /// One for each record.
    pub(crate) places: Vec<Place>,
}

/// Lays out a batch that begins at `offset`. The frames are stamped for the same header.
pub(crate) fn encode(
    header: &Header,
    offset: u64,
    mark: Position,
    manifest: &Manifest,
    frames: &Frames,
) -> Encoded {
    let blocks = len(manifest, frames) / BLOCK;
    let described = manifest.encode();
    let ends = HEAD_BYTES as usize + described.len();

    let mut stream: Vec<u8> = Vec::with_capacity((blocks * BLOCK_ROOM) as usize);
    // Room for the head, which needs the checksum of what follows.
    stream.put_bytes(0, HEAD_BYTES as usize);
    stream.extend_from_slice(&described);
    stream.extend_from_slice(&frames.bytes);
    stream.resize((blocks * BLOCK_ROOM) as usize - ends, 0);
    let head = Head {
        offset,
        blocks: blocks as u32,
        mark,
        manifest_bytes: described.len() as u32,
        manifest_crc: header.salt.crc(&described),
        records_bytes: frames.bytes.len() as u64,
        body_crc: header.salt.crc(&stream[ends..]),
    };
    stream[..HEAD_BYTES as usize].copy_from_slice(&head.encode(header, End::First));
    stream.extend_from_slice(&described);
    stream.extend_from_slice(&head.encode(header, End::Last));

    let records_at = content_at(offset) + ends as u64;
    let place = |range: std::ops::Range<usize>| Place {
        segment: header.number,
        at: records_at + range.start as u64,
        len: range.len() as u32,
    };
    Encoded {
        bytes: tag_sectors(&stream, offset, header.salt),
        checksum: head.checksum(header),
        places: frames.ranges().map(place).collect(),
    }
}

/// A record found by [`Batch::read`].
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) stream: StreamId,
    pub(crate) change: Change,
    pub(crate) place: Place,
}

/// A whole batch as read. Payloads stay where they are.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) head: Head,
    pub(crate) checksum: u32,
    pub(crate) manifest: Manifest,
    pub(crate) records: Vec<Placed>,
}

impl Batch {
    /// The batch at `offset`, if every byte of it is as it was written.
    pub(crate) fn read(header: &Header, data: &[u8], offset: u64) -> Option<Self> {
        let head = Head::first(header, data, offset)?;
        let room = u64::from(head.blocks) * BLOCK_ROOM;
        let stream = read(header, data, content_at(offset), room)?;

        let (first, rest) = stream.split_at_checked(HEAD_BYTES as usize)?;
        let (rest, last) = rest.split_last_chunk::<{ HEAD_BYTES as usize }>()?;
        let (described, rest) = rest.split_at_checked(head.manifest_bytes as usize)?;
        let body_len = rest.len().checked_sub(described.len())?;
        let (body, again) = rest.split_at_checked(body_len)?;
        let sound = described == again
            && header.salt.crc(described) == head.manifest_crc
            && header.salt.crc(body) == head.body_crc
            && Head::decode(header, last, End::Last)? == head;
        if !sound {
            return None;
        }

        let checksum = first.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc))?;
        let manifest = Manifest::decode(described)?;
        let mut frames = body.get(..head.records_bytes as usize)?;
        let mut at = content_at(offset) + HEAD_BYTES + described.len() as u64;
        let mut records = Vec::new();
        while !frames.is_empty() {
            let found = record::decode(frames, header.number, header.salt)?;
            let place = Place { segment: header.number, at, len: found.len as u32 };
            records.push(Placed { stream: found.stream, change: found.change, place });
            frames = frames.get(found.len..)?;
            at += found.len as u64;
        }
        Some(Self { head, checksum, manifest, records })
    }
}

/// Content of a segment that is wholly in memory, if the tags of its sectors are right.
fn read(header: &Header, data: &[u8], at: u64, len: u64) -> Option<Vec<u8>> {
    let sectors = sectors_of(at, len);
    content(slice(data, sectors.start, sectors.end - sectors.start)?, at, len, header.salt)
}

// A head lies in one sector at either end of a batch, so that it is written whole or not at all.
const _: () = assert!(HEAD_BYTES <= ROOM);
