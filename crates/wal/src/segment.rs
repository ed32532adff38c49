//! Segment files: made, recycled, read and removed here; what is in them is `format`'s business.
//!
//! Invariants (L2):
//! - a segment's header is durable, in both copies, before its first batch is written;
//! - whatever a header does not vouch for holds zeros, or the tags of the one life before: the rest
//!   of a recycled file that this life did not write is zeroed, durably, before its name changes;
//! - the name changes, durably, before the header does.
//!
//! On failure the caller stops for good; a half-made file is unborn for the next recovery.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::{Disk, DiskFile, Open};
use bytes::Bytes;

use crate::format::record::{Change, Decoded};
use crate::format::{
    BLOCK, HEADER_BYTES, Header, Place, Salt, content, file_name, parse_file_name, record,
    sectors_of,
};
use crate::weaken::{Weaken, Weakened};
use crate::{EntryId, StreamId, WalError};

/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

/// Says what could not be done, as an error.
pub(crate) fn failed(action: &'static str) -> impl Fn(io::Error) -> WalError {
    move |error| WalError::Failed { action, reason: error.to_string() }
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: Header,
    pub(crate) file: Arc<dyn DiskFile>,
    /// The length of the file, bytes.
    pub(crate) len: u64,
}

/// Why an entry could not be read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Disk(io::Error),
    #[error("what lies there is not this entry")]
    Wrong,
}

impl Segment {
    pub(crate) fn name(&self) -> String {
        file_name(self.header.number)
    }

    /// The payload of an entry.
    pub(crate) fn read(
        &self,
        stream: StreamId,
        id: EntryId,
        place: Place,
    ) -> Result<Bytes, ReadError> {
        let sectors = sectors_of(place.at, u64::from(place.len));
        let mut bytes = vec![0; (sectors.end - sectors.start) as usize];
        self.file.read_exact_at(&mut bytes, sectors.start).map_err(ReadError::Disk)?;
        let Header { number, salt, .. } = self.header;
        let content = content(&bytes, place.at, u64::from(place.len), salt);
        let content = content.ok_or(ReadError::Wrong)?;
        match record::decode(&content, number, salt) {
            Some(Decoded {
                stream: of,
                change: Change::Entry { id: found, .. },
                payload_at,
                len,
            }) if of == stream && found == id && len == content.len() => {
                Ok(Bytes::from(content).slice(payload_at..))
            }
            _ => Err(ReadError::Wrong),
        }
    }
}

/// The folder of the segments.
pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    salt: Box<dyn FnMut() -> u64 + Send>,
    weakened: Weakened,
    /// Syncs of files so far.
    pub(crate) syncs: u64,
}

impl Store {
    /// Opens the folder, made when missing.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        salt: Box<dyn FnMut() -> u64 + Send>,
        weakened: Weakened,
    ) -> Result<Self, WalError> {
        if !disk.exists(dir).map_err(failed("look for the folder"))? {
            disk.create_dir_all(dir).map_err(failed("make the folder"))?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                disk.sync_dir(parent).map_err(failed("sync the folder"))?;
            }
        }
        Ok(Self { disk, dir: dir.to_owned(), salt, weakened, syncs: 0 })
    }

    /// The numbers of all segment files, newest first.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>, WalError> {
        let names = self.disk.list(&self.dir).map_err(failed("list the folder"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_file_name(name)).collect();
        numbers.sort_unstable();
        numbers.reverse();
        Ok(numbers)
    }

    /// A segment file and all of its bytes.
    pub(crate) fn load(&self, number: u64) -> Result<(Arc<dyn DiskFile>, Vec<u8>), WalError> {
        let path = self.dir.join(file_name(number));
        let file = self.disk.open(&path, Open::Read).map_err(failed("open a segment"))?;
        let len = file.len().map_err(failed("measure a segment"))?;
        let mut data = vec![0; len as usize];
        if file.read_exact_at(&mut data, 0).is_err() {
            // A block that the device refuses to read fails every check and proves nothing.
            for (nth, block) in data.chunks_mut(BLOCK as usize).enumerate() {
                if file.read_exact_at(block, nth as u64 * BLOCK).is_err() {
                    block.fill(0xff);
                }
            }
        }
        Ok((file, data))
    }

    /// A segment of zeros under a new number.
    pub(crate) fn create(&mut self, number: u64, len: u64) -> Result<Segment, WalError> {
        let path = self.dir.join(file_name(number));
        let file = self.disk.open(&path, Open::CreateNew).map_err(failed("make a segment"))?;
        self.zero(&*file, 0, len)?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync the folder"))?;
        let salt = self.draw_salt(None);
        self.begin(Header { number, salt, former: None }, file, len)
    }

    /// A new life for the file of a segment that nothing needs; its content ended at `end`.
    pub(crate) fn recycle(
        &mut self,
        old: &Segment,
        end: u64,
        number: u64,
    ) -> Result<Segment, WalError> {
        let (from, to) = (self.dir.join(old.name()), self.dir.join(file_name(number)));
        if end < old.len {
            let file = self.disk.open(&from, Open::Write).map_err(failed("open a segment"))?;
            self.zero(&*file, end, old.len)?;
        }
        self.disk.rename(&from, &to).map_err(failed("rename a segment"))?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync the folder"))?;
        let file = self.disk.open(&to, Open::Write).map_err(failed("open a segment"))?;
        let former = Some(old.header.salt);
        let salt = self.draw_salt(former);
        self.begin(Header { number, salt, former }, file, old.len)
    }

    /// Removes a segment, durably, so that segments vanish in the order of their removal.
    pub(crate) fn remove(&self, number: u64) -> Result<(), WalError> {
        let path = self.dir.join(file_name(number));
        self.disk.remove_file(&path).map_err(failed("remove a segment"))?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync the folder"))
    }

    /// Takes a segment out of the log but keeps it, for whoever looks into the damage in it.
    pub(crate) fn set_aside(&self, number: u64) -> Result<(), WalError> {
        let path = self.dir.join(file_name(number));
        let aside = self.dir.join(format!("{}.damaged", file_name(number)));
        self.disk.rename(&path, &aside).map_err(failed("set a segment aside"))?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync the folder"))
    }

    pub(crate) fn sync(&mut self, file: &dyn DiskFile) -> Result<(), WalError> {
        self.syncs += 1;
        file.sync_data().map_err(failed("sync a segment"))
    }

    fn begin(
        &mut self,
        header: Header,
        file: Arc<dyn DiskFile>,
        len: u64,
    ) -> Result<Segment, WalError> {
        let block = header.encode();
        for copy in 0..HEADER_BYTES / BLOCK {
            file.write_all_at(&block, copy * BLOCK).map_err(failed("write a segment's header"))?;
        }
        self.sync(&*file)?;
        Ok(Segment { header, file, len })
    }

    fn zero(&mut self, file: &dyn DiskFile, from: u64, to: u64) -> Result<(), WalError> {
        let zeros = vec![0; ZEROS.min((to - from) as usize)];
        for at in (from..to).step_by(ZEROS) {
            let piece = &zeros[..ZEROS.min((to - at) as usize)];
            file.write_all_at(piece, at).map_err(failed("zero a segment"))?;
        }
        self.sync(file)
    }

    fn draw_salt(&mut self, former: Option<Salt>) -> Salt {
        if self.weakened.is(Weaken::OneSalt) {
            return Salt::draw(0, None);
        }
        Salt::draw((self.salt)(), former)
    }
}
