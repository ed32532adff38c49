//! The bytes of one simulated file: those on the medium, and over them the sectors and the length
//! that no sync has made durable. Knows nothing of names, processes or planned faults.
//!
//! Invariants: a sector is on the medium whole or not at all; what a returned sync covered is on
//! the medium; beyond the length all bytes are zeros, so that a file that grows shows no old data.
//! Sectors of zeros take no room, so that preallocated files are cheap.

use std::collections::BTreeMap;
use std::io;

use crate::Random;

/// What a disk writes whole or not at all, bytes.
pub(super) const SECTOR: u64 = 512;
const SECTOR_BYTES: usize = 512;

/// One in so many sectors reaches the medium before it is written again.
const WRITEBACK_ODDS: u64 = 4;

type Sector = [u8; SECTOR_BYTES];

#[derive(Default)]
pub(super) struct Content {
    /// The length that processes see.
    len: u64,
    durable_len: u64,
    /// A sync failed while `len` was not durable: only a write that extends the file again makes
    /// a later sync mean anything for it.
    len_doubtful: bool,
    unsynced: BTreeMap<u64, Unsynced>,
    durable: BTreeMap<u64, Box<Sector>>,
}

struct Unsynced {
    /// `None` stands for zeros.
    data: Option<Box<Sector>>,
    /// A sync failed since it was written: later syncs leave it where it is.
    doubtful: bool,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if offset.saturating_add(to_u64(buf.len())) > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut filled = 0;
        for (index, within, count) in pieces(offset, buf.len()) {
            let sector = self.sector(index);
            buf[filled..filled + count].copy_from_slice(&sector[within..within + count]);
            filled += count;
        }
        Ok(())
    }

    /// The caller has checked that the end of `data` is a valid offset.
    pub(super) fn write(&mut self, data: &[u8], offset: u64, random: &Random) {
        if data.is_empty() {
            return;
        }
        let mut rest = data;
        for (index, within, count) in pieces(offset, data.len()) {
            let (part, after) = rest.split_at(count);
            rest = after;
            let mut sector = self.sector(index);
            sector[within..within + count].copy_from_slice(part);
            let written = Unsynced { data: pack(sector), doubtful: false };
            // Caches are written back at any time: a crash can bring up any of the versions.
            if let Some(former) = self.unsynced.insert(index, written)
                && random.below(WRITEBACK_ODDS) == 0
            {
                store(&mut self.durable, index, former.data);
            }
        }
        let end = offset + to_u64(data.len());
        if end > self.len {
            self.len = end;
            self.len_doubtful = false;
        }
    }

    pub(super) fn sync(&mut self) {
        for (index, sector) in std::mem::take(&mut self.unsynced) {
            if sector.doubtful {
                self.unsynced.insert(index, sector);
            } else {
                store(&mut self.durable, index, sector.data);
            }
        }
        if !self.len_doubtful {
            self.durable_len = self.len;
        }
    }

    /// As operating systems do: the cache goes on showing what may never reach the medium.
    pub(super) fn fail_sync(&mut self) {
        for sector in self.unsynced.values_mut() {
            sector.doubtful = true;
        }
        self.len_doubtful = self.len > self.durable_len;
    }

    /// Leaves what a power cut leaves.
    pub(super) fn crash(&mut self, random: &Random) {
        // With equal odds for each sector a file of many would never survive, or vanish, whole.
        let odds = random.below(5);
        for (index, sector) in std::mem::take(&mut self.unsynced) {
            if random.below(4) < odds {
                store(&mut self.durable, index, sector.data);
            }
        }
        if self.len > self.durable_len {
            // A file grows by sectors as its cache is written back: never to the middle of one.
            let boundaries = (self.len - 1) / SECTOR - self.durable_len / SECTOR;
            match random.below(3) {
                0 => {}
                1 if boundaries > 0 => {
                    let grown = 1 + random.below(boundaries);
                    self.durable_len = (self.durable_len / SECTOR + grown) * SECTOR;
                }
                _ => self.durable_len = self.len,
            }
        }
        self.cut(self.durable_len);
    }

    /// Inverts the bits of one byte of the medium. A sector that is not yet synced goes on hiding
    /// it.
    pub(super) fn flip(&mut self, offset: u64) -> io::Result<()> {
        if offset >= self.durable_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (index, within, _) in pieces(offset, 1) {
            let mut sector =
                self.durable.remove(&index).map_or([0; SECTOR_BYTES], |sector| *sector);
            sector[within] ^= 0xff;
            store(&mut self.durable, index, pack(sector));
        }
        Ok(())
    }

    fn cut(&mut self, len: u64) {
        self.len = len;
        self.len_doubtful = false;
        self.durable.retain(|index, _| *index < len.div_ceil(SECTOR));
        if let Some(last) = self.durable.get_mut(&(len / SECTOR)) {
            let (_, beyond) = last.split_at_mut(within(len));
            beyond.fill(0);
        }
    }

    /// As processes see it.
    fn sector(&self, index: u64) -> Sector {
        let stored = match self.unsynced.get(&index) {
            Some(unsynced) => unsynced.data.as_deref(),
            None => self.durable.get(&index).map(|sector| &**sector),
        };
        stored.copied().unwrap_or([0; SECTOR_BYTES])
    }
}

fn pack(sector: Sector) -> Option<Box<Sector>> {
    (sector != [0; SECTOR_BYTES]).then(|| Box::new(sector))
}

fn store(durable: &mut BTreeMap<u64, Box<Sector>>, index: u64, data: Option<Box<Sector>>) {
    match data {
        Some(sector) => {
            durable.insert(index, sector);
        }
        None => {
            durable.remove(&index);
        }
    }
}

/// The parts of a range that lie in one sector each: sector, first byte in it, bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut index = offset / SECTOR;
    let mut first = within(offset);
    let mut left = len;
    std::iter::from_fn(move || {
        let count = left.min(SECTOR_BYTES - first);
        let piece = (count > 0).then_some((index, first, count));
        left -= count;
        index += 1;
        first = 0;
        piece
    })
}

/// Where in its sector an offset lies.
fn within(offset: u64) -> usize {
    // Below 512, which every usize holds.
    usize::try_from(offset % SECTOR).unwrap_or(0)
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
