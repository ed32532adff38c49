//! What the engines share: batches reduced to their last changes, reads with an end, ranges, errors
//! and the guard around opening.
//!
//! Owns no state. Lengths are checked here, before an engine sees a batch, so that a key that one
//! engine cannot hold is refused by all of them, and whole.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Batch, Change, EngineError};

/// Longest key that every engine can hold: fjall counts key bytes in 16 bits.
const KEY_BYTES_MOST: usize = u16::MAX as usize;
/// Longest value that every engine can hold: fjall counts value bytes in 32 bits.
const VALUE_BYTES_MOST: usize = u32::MAX as usize;

pub(crate) const APPLY: &str = "apply a batch";
pub(crate) const READ: &str = "read";
pub(crate) const OPEN: &str = "open its folder";

/// The last change of every key of a batch; `None` deletes.
pub(crate) type LastChanges = BTreeMap<Bytes, Option<Bytes>>;

/// Reduces a batch to the last change of every key. fjall gives all changes of a batch one sequence
/// number, so that two changes of one key would be told apart by chance.
pub(crate) fn last_changes(batch: Batch) -> Result<LastChanges, EngineError> {
    let mut last = LastChanges::new();
    for change in batch.changes {
        let (key, value) = match change {
            Change::Put(key, value) => (key, Some(value)),
            Change::Delete(key) => (key, None),
        };
        if key.is_empty() || key.len() > KEY_BYTES_MOST {
            let reason = format!("a key has {} bytes, of 1 to {KEY_BYTES_MOST}", key.len());
            return Err(EngineError::failed(APPLY, reason));
        }
        if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MOST) {
            let reason = format!("a value has more than {VALUE_BYTES_MOST} bytes");
            return Err(EngineError::failed(APPLY, reason));
        }
        last.insert(key, value);
    }
    Ok(last)
}

/// Reads `always`, and then `keys` until their values have `bytes_most` bytes together.
pub(crate) fn read_within(
    always: &[&[u8]],
    keys: &[&[u8]],
    bytes_most: usize,
    mut read: impl FnMut(&[u8]) -> Result<Option<Bytes>, EngineError>,
) -> Result<Vec<Option<Bytes>>, EngineError> {
    let mut values = Vec::with_capacity(always.len() + keys.len());
    for &key in always {
        values.push(read(key)?);
    }
    let mut bytes = 0;
    for &key in keys {
        let value = read(key)?;
        bytes += value.as_ref().map_or(0, Bytes::len);
        values.push(value);
        if bytes >= bytes_most {
            break;
        }
    }
    Ok(values)
}

/// The same keys, with a start that is not above the end; some maps panic on the other order.
pub(crate) fn ordered(range: Range<Bytes>) -> Range<Bytes> {
    if range.is_empty() { range.start.clone()..range.start } else { range }
}

/// The part of `range` that lies in `within`.
pub(crate) fn cut(range: Range<Bytes>, within: &Range<Bytes>) -> Range<Bytes> {
    ordered(range.start.max(within.start.clone())..range.end.min(within.end.clone()))
}

/// The first key above `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

impl EngineError {
    pub(crate) fn failed(action: &'static str, reason: impl Display) -> Self {
        Self::Failed { action, reason: reason.to_string() }
    }

    pub(crate) fn does_not_open(folder: &Path, reason: impl Display) -> Self {
        Self::DoesNotOpen { folder: folder.display().to_string(), reason: reason.to_string() }
    }
}

/// Whether an error tells of the machine and not of what is in the folder. Such a folder may be
/// whole; moving it aside would throw it away and cure nothing.
pub(crate) fn is_environment(error: &io::Error) -> bool {
    // Too many open files, of the system and of the process; `ErrorKind` has no name for them.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let by_kind = matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
            | ErrorKind::OutOfMemory
            | ErrorKind::Interrupted
    );
    by_kind || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// Runs the opening of an engine and turns a panic into `DoesNotOpen`: both disk engines panic on
/// some damaged folders. Nothing of a failed opening is used afterwards, so its broken invariants
/// reach nobody. An opening that hangs, or that panics again while it unwinds (which aborts), is
/// beyond this guard.
pub(crate) fn guarded<T>(
    dir: &Path,
    open: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    match panic::catch_unwind(AssertUnwindSafe(open)) {
        Ok(outcome) => outcome,
        Err(payload) => {
            let text = panic_text(&*payload);
            Err(EngineError::does_not_open(dir, format!("it panicked: {text}")))
        }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_panic_while_opening_is_an_error_with_its_text() {
        let dir = Path::new("somewhere");
        let page = String::from("page");
        let plain: Result<(), _> = guarded(dir, || panic!("broken page"));
        let made: Result<(), _> = guarded(dir, || panic!("broken {page}"));
        for outcome in [plain, made] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, EngineError::DoesNotOpen { .. }), "{error:?}");
            let text = "the engine in somewhere does not open: it panicked: broken page";
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(guarded(dir, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn the_last_change_of_a_key_is_kept() {
        let mut batch = Batch::default();
        batch.put("a", "1");
        batch.delete("b");
        batch.delete("a");
        batch.put("b", "2");
        let last: Vec<_> = last_changes(batch).unwrap().into_iter().collect();
        assert_eq!(last, vec![(bytes("a"), None), (bytes("b"), Some(bytes("2")))]);
    }

    #[test]
    fn ranges_are_cut_and_never_inverted() {
        let within = bytes("c")..bytes("f");
        assert_eq!(cut(bytes("a")..bytes("d"), &within), bytes("c")..bytes("d"));
        assert_eq!(cut(bytes("d")..bytes("z"), &within), bytes("d")..bytes("f"));
        for outside in [bytes("a")..bytes("b"), bytes("x")..bytes("z"), bytes("e")..bytes("d")] {
            let range = cut(outside, &within);
            assert_eq!(range.start, range.end);
        }
        assert_eq!(after(b"k").as_ref(), b"k\0");
    }

    #[test]
    fn a_full_disk_is_not_a_damaged_folder() {
        assert!(is_environment(&ErrorKind::StorageFull.into()));
        assert!(is_environment(&io::Error::from_raw_os_error(24)));
        assert!(!is_environment(&ErrorKind::InvalidData.into()));
        assert!(!is_environment(&ErrorKind::UnexpectedEof.into()));
    }
}
