//! The on-disk format, as pure functions over bytes: segment headers and sector tags here, batches
//! in [`batch`], records in [`record`]. The crate's root text describes every field.
//!
//! Nothing here touches a disk or decides what a failed check means; that is `recovery`'s job.
//!
//! Invariants:
//! - L2: nothing decodes under another segment's number or salt;
//! - L3: no tag of a salt is zero, and the tags of a segment's two lives differ in every sector;
//! - decoding answers `None` for any input that encoding did not make, and never panics.

pub(crate) mod batch;
pub(crate) mod record;

use crc32fast::Hasher;

/// The version byte of a segment header. Raised by any change of the format.
pub(crate) const VERSION: u8 = 1;

/// What a disk writes whole or not at all, bytes.
pub(crate) const SECTOR: u64 = 512;
/// The tag at the end of every sector of a batch, bytes.
pub(crate) const TAG: u64 = 4;
/// What is left of a sector for content, bytes.
pub(crate) const ROOM: u64 = SECTOR - TAG;
/// Batches begin and end at multiples of this, bytes.
pub(crate) const BLOCK: u64 = 4096;
/// Content bytes of a block.
pub(crate) const BLOCK_ROOM: u64 = BLOCK / SECTOR * ROOM;
/// The two copies of a segment's header, one block each, bytes.
pub(crate) const HEADER_BYTES: u64 = 2 * BLOCK;

const MAGIC: [u8; 8] = *b"ANNULWAL";
/// Bytes of a header that its checksum covers.
const HEADER_CHECKED: usize = 33;

// Offsets are u64 on the disk and usize in memory; casts between them lose nothing.
const _: () = assert!(usize::BITS == 64);

/// A point in the log. Everything before it is meant, in this segment and in all older ones. Points
/// of all lives of a folder have one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The segment's number; 0 is before the first.
    pub segment: u64,
    /// Bytes from the start of the file.
    pub offset: u64,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    /// Content bytes before it, counted from the start of the file as if all sectors had tags.
    pub(crate) at: u64,
    /// Content bytes of the whole record.
    pub(crate) len: u32,
}

/// A segment's random number: it tells the lives of a recycled file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(u64);

impl Salt {
    /// A salt from random bits, never zero, whose tags all differ from those of `former`.
    pub(crate) fn draw(random: u64, former: Option<Self>) -> Self {
        let salt = Self(random | 1);
        match former {
            Some(former) if former.tag_key() == salt.tag_key() => Self(salt.0 ^ (1 << 32)),
            _ => salt,
        }
    }

    /// The top bit is always set, so that no tag is zero; two keys that differ give tags that
    /// differ in every sector.
    fn tag_key(self) -> u32 {
        (self.0 >> 32) as u32 | (1 << 31)
    }

    /// The tag of the sector that begins at `offset`. A segment has fewer than 2^31 sectors.
    fn tag(self, offset: u64) -> [u8; TAG as usize] {
        (self.tag_key() ^ (offset / SECTOR) as u32).to_le_bytes()
    }

    /// A checksum that starts from the salt, so that no bytes of a user can forge it.
    pub(crate) fn crc(self, bytes: &[u8]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// The identity of one life of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) salt: Salt,
    /// The salt of the file's life before this one.
    pub(crate) former: Option<Salt>,
}

/// Why a block is not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Unreadable,
    /// A sound header of a format that this program does not know.
    Version(u8),
}

impl Header {
    /// One block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK as usize);
        block.extend_from_slice(&MAGIC);
        block.push(VERSION);
        for field in [self.number, self.salt.0, self.former.map_or(0, |salt| salt.0)] {
            block.extend_from_slice(&field.to_le_bytes());
        }
        let crc = crc32fast::hash(&block);
        block.extend_from_slice(&crc.to_le_bytes());
        block.resize(BLOCK as usize, 0);
        block
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Self, BadHeader> {
        let mut cursor = Cursor(block);
        let (Some(magic), Some(version)) = (cursor.array::<8>(), cursor.u8()) else {
            return Err(BadHeader::Unreadable);
        };
        let (Some(number), Some(salt), Some(former), Some(crc)) =
            (cursor.u64(), cursor.u64(), cursor.u64(), cursor.u32())
        else {
            return Err(BadHeader::Unreadable);
        };
        if magic != MAGIC || crc != crc32fast::hash(&block[..HEADER_CHECKED]) {
            return Err(BadHeader::Unreadable);
        }
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let former = (former != 0).then_some(Salt(former));
        let header = Self { number, salt: Salt(salt), former };
        if salt == 0 || header.encode() != block {
            return Err(BadHeader::Unreadable);
        }
        Ok(header)
    }
}

/// The name of a segment's file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.wal")
}

/// The number in a segment's file name; `None` for files of others.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".wal")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// The content position of a sector boundary of the file.
pub(crate) fn content_at(offset: u64) -> u64 {
    offset / SECTOR * ROOM
}

/// The sectors, as bytes of the file, that hold `len` bytes of content from `at` on.
pub(crate) fn sectors_of(at: u64, len: u64) -> std::ops::Range<u64> {
    at / ROOM * SECTOR..(at + len).div_ceil(ROOM) * SECTOR
}

/// Cuts content into tagged sectors that begin at `offset` of the file. The content fills them.
fn tag_sectors(content: &[u8], offset: u64, salt: Salt) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() / ROOM as usize * SECTOR as usize);
    for sector in content.chunks(ROOM as usize) {
        let tag = salt.tag(offset + bytes.len() as u64);
        bytes.extend_from_slice(sector);
        bytes.extend_from_slice(&tag);
    }
    bytes
}

/// The content of whole sectors read from `offset` of the file, if every tag is right.
fn untag_sectors(bytes: &[u8], offset: u64, salt: Salt) -> Option<Vec<u8>> {
    let mut content = Vec::with_capacity(bytes.len() / SECTOR as usize * ROOM as usize);
    for (nth, sector) in bytes.chunks(SECTOR as usize).enumerate() {
        let (room, tag) = sector.split_at_checked(ROOM as usize)?;
        if tag != salt.tag(offset + nth as u64 * SECTOR) {
            return None;
        }
        content.extend_from_slice(room);
    }
    Some(content)
}

/// The `len` bytes of content from `at` on, out of `sectors`, which are those of [`sectors_of`].
pub(crate) fn content(sectors: &[u8], at: u64, len: u64, salt: Salt) -> Option<Vec<u8>> {
    let start = (at % ROOM) as usize;
    let mut content = untag_sectors(sectors, sectors_of(at, len).start, salt)?;
    if content.len() < start + len as usize {
        return None;
    }
    content.truncate(start + len as usize);
    content.drain(..start);
    Some(content)
}

/// Whether this life never wrote the sector at `offset` (L3).
pub(crate) fn is_unwritten(sector: &[u8], offset: u64, former: Option<Salt>) -> bool {
    sector.iter().all(|byte| *byte == 0)
        || former.is_some_and(|salt| sector.ends_with(&salt.tag(offset)))
}

/// `len` bytes of a file that is wholly in memory.
pub(crate) fn slice(data: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    data.get(offset as usize..)?.get(..len as usize)
}

/// Reads numbers from the front of a slice; `None` at its end.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Text after its length.
    fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}
