//! The former values that keep one view of a sled engine as it was when it was taken (E2).
//!
//! Owns the values of the keys that batches have changed since, first in memory, and from a limit
//! on in a tree of the same database, under the number of the view. What was saved first stays: it
//! is the value at the view's moment. Does not know when a batch runs: the engine calls `keep` with
//! its gate closed and the reading functions with its gate open.
//!
//! A failed `keep` leaves what was saved readable; the batch is then not applied. Values that
//! remain in the tree when a view ends and cannot be removed go when the engine opens next.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use ::sled::{IVec, Result, Tree};
use bytes::Bytes;
use parking_lot::RwLock;

use super::owned;
use crate::Row;

/// What a row in memory costs beside its bytes: two handles and its share of the map, rounded up.
const ROW_BYTES: usize = 96;

/// First byte of a stored value: the key was absent, or its value follows.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

pub(super) struct Former {
    /// Never used twice in one run of the engine.
    number: u64,
    range: Range<Bytes>,
    memory_bytes_most: usize,
    overflow: Tree,
    kept: RwLock<Kept>,
}

enum Kept {
    /// `None`: the key was absent.
    Memory { rows: BTreeMap<Bytes, Option<Bytes>>, bytes: usize },
    /// All in the tree.
    Overflow,
}

impl Former {
    /// For a view of `range`, which must be ordered.
    pub(super) fn new(
        number: u64,
        range: Range<Bytes>,
        memory_bytes_most: usize,
        overflow: Tree,
    ) -> Self {
        let kept = RwLock::new(Kept::Memory { rows: BTreeMap::new(), bytes: 0 });
        Self { number, range, memory_bytes_most, overflow, kept }
    }

    pub(super) fn range(&self) -> &Range<Bytes> {
        &self.range
    }

    /// Whether the value of `key` has not been saved yet.
    pub(super) fn lacks(&self, key: &[u8]) -> Result<bool> {
        match &*self.kept.read() {
            Kept::Memory { rows, .. } => Ok(!rows.contains_key(key)),
            Kept::Overflow => Ok(!self.overflow.contains_key(self.stored_key(key))?),
        }
    }

    /// Saves the value of a key that is lacking.
    pub(super) fn keep(&self, key: &[u8], value: Option<Bytes>) -> Result<()> {
        let mut kept = self.kept.write();
        match &mut *kept {
            Kept::Memory { rows, bytes } => {
                *bytes += ROW_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len);
                // A copy: the caller's key may be a piece of a whole frame, and would hold it.
                rows.insert(Bytes::copy_from_slice(key), value);
                if *bytes <= self.memory_bytes_most {
                    return Ok(());
                }
                for (key, value) in rows.iter() {
                    self.store(key, value.as_deref())?;
                }
            }
            Kept::Overflow => return self.store(key, value.as_deref()),
        }
        *kept = Kept::Overflow;
        Ok(())
    }

    /// The value that `key` had, if it was saved; `Some(None)` says that it was absent.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Option<Bytes>>> {
        match &*self.kept.read() {
            Kept::Memory { rows, .. } => Ok(rows.get(key).cloned()),
            Kept::Overflow => {
                let stored = self.overflow.get(self.stored_key(key))?;
                Ok(stored.map(|stored| decode(&stored)))
            }
        }
    }

    /// Up to `limit` rows of `range` (ordered, within the view's) as they were: those of `tree`,
    /// with the saved ones in their place.
    pub(super) fn page(&self, tree: &Tree, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>> {
        let current = tree.range(range.clone()).map(|row| row.map(owned));
        match &*self.kept.read() {
            Kept::Memory { rows, .. } => {
                let saved = rows.range::<Bytes, _>(range);
                merge(current, saved.map(|(key, value)| Ok((key.clone(), value.clone()))), limit)
            }
            Kept::Overflow => {
                let stored = self.stored_key(&range.start)..self.stored_key(&range.end);
                let saved = self.overflow.range(stored).map(|row| row.map(former_row));
                merge(current, saved, limit)
            }
        }
    }

    fn store(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        self.overflow.insert(self.stored_key(key), encode(value))?;
        Ok(())
    }

    fn stored_key(&self, key: &[u8]) -> Vec<u8> {
        [&self.number.to_be_bytes()[..], key].concat()
    }
}

impl Drop for Former {
    fn drop(&mut self) {
        if matches!(self.kept.get_mut(), Kept::Memory { .. }) {
            return;
        }
        for key in self.overflow.scan_prefix(self.number.to_be_bytes()).keys() {
            if let Err(error) = key.and_then(|key| self.overflow.remove(key)) {
                tracing::warn!(%error, "the overflow of an ended view could not be removed");
                return;
            }
        }
    }
}

/// A row of the overflow tree without the view's number.
fn former_row(stored: (IVec, IVec)) -> (Bytes, Option<Bytes>) {
    let (key, value) = owned(stored);
    (key.slice(size_of::<u64>()..), decode(&value))
}

fn encode(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        Some(value) => [&[PRESENT][..], value].concat(),
        None => vec![ABSENT],
    }
}

fn decode(stored: &[u8]) -> Option<Bytes> {
    match stored.split_first() {
        Some((&PRESENT, value)) => Some(Bytes::copy_from_slice(value)),
        _ => None,
    }
}

/// Both in key order; a saved row takes the place of the current one, and hides it if it says that
/// the key was absent.
fn merge(
    mut current: impl Iterator<Item = Result<Row>>,
    mut saved: impl Iterator<Item = Result<(Bytes, Option<Bytes>)>>,
    limit: usize,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut next_current = current.next().transpose()?;
    let mut next_saved = saved.next().transpose()?;
    while rows.len() < limit {
        let order = match (&next_current, &next_saved) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((current, _)), Some((saved, _))) => current.cmp(saved),
        };
        if order.is_lt() {
            rows.extend(next_current.take());
            next_current = current.next().transpose()?;
            continue;
        }
        if order.is_eq() {
            next_current = current.next().transpose()?;
        }
        if let Some((key, Some(value))) = next_saved.take() {
            rows.push((key, value));
        }
        next_saved = saved.next().transpose()?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn merged(current: &[&str], saved: &[(&str, Option<&str>)], limit: usize) -> Vec<String> {
        let current = current.iter().map(|key| Ok((bytes(key), bytes("now"))));
        let saved = saved.iter().map(|(key, value)| Ok((bytes(key), value.map(bytes))));
        let rows = merge(current, saved, limit).unwrap();
        rows.iter().map(|(key, value)| format!("{key:?}={value:?}")).collect()
    }

    #[test]
    fn saved_rows_replace_add_and_hide() {
        let current = ["b", "d", "e"];
        let saved = [("a", Some("old")), ("c", None), ("d", Some("old")), ("e", None)];
        let all = [r#"b"a"=b"old""#, r#"b"b"=b"now""#, r#"b"d"=b"old""#];
        assert_eq!(merged(&current, &saved, 9), all);
        assert_eq!(merged(&current, &saved, 2), all[..2]);
        assert!(merged(&current, &saved, 0).is_empty());
        assert!(merged(&[], &[("a", None)], 9).is_empty());
    }

    #[test]
    fn absent_and_empty_are_told_apart() {
        assert_eq!(decode(&encode(None)), None);
        assert_eq!(decode(&encode(Some(b""))), Some(Bytes::new()));
        assert_eq!(decode(&encode(Some(b"v"))), Some(bytes("v")));
    }
}
