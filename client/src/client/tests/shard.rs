//! One shard, honest where it matters here: it holds values, and a writer table that repeats what it has
//! answered (W3).

use std::collections::BTreeMap;

use annulus_proto::v1;
use annulus_types::{Error as Said, ErrorKind};
use bytes::Bytes;

#[derive(Clone, Debug)]
struct Held {
    value: Bytes,
    version: u64,
}

/// The result of an operation.
#[derive(Clone, Debug)]
pub(super) enum Judged {
    Written { version: u64, revision: u64 },
    Counted { result: v1::IncrResult, value: i64, version: u64, revision: u64 },
    Failed { current: Option<u64> },
}

#[derive(Clone, Debug)]
enum Kept {
    Judged { request: String, judged: Judged },
    Refused,
}

#[derive(Clone, Debug)]
pub(super) struct Writer {
    lowest_unacked: u64,
    kept: BTreeMap<u64, Kept>,
}

/// The shard behind all nodes.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) revision: u64,
    values: BTreeMap<Bytes, Held>,
    pub(super) writers: BTreeMap<u64, Writer>,
    /// Writers that were ever opened.
    pub(super) opened: usize,
    /// The keys that were changed, each time that they were.
    pub(super) changes: Vec<String>,
    /// The names of mutations, as they came to any node.
    pub(super) names: Vec<v1::OpId>,
}

impl Shard {
    /// Holds `k` = `value` at version 3: a writer that is opened is number 4.
    pub(super) fn new() -> Self {
        let held = Held { value: Bytes::from_static(b"value"), version: 3 };
        Self {
            revision: 3,
            values: BTreeMap::from([(Bytes::from_static(b"k"), held)]),
            writers: BTreeMap::new(),
            opened: 0,
            changes: Vec::new(),
            names: Vec::new(),
        }
    }

    pub(super) fn open_writer(&mut self) -> u64 {
        self.revision += 1;
        self.opened += 1;
        let writer = Writer { lowest_unacked: 1, kept: BTreeMap::new() };
        self.writers.insert(self.revision, writer);
        self.revision
    }

    /// Executes a mutation, once if it has a name.
    pub(super) fn once(
        &mut self,
        op: Option<v1::OpId>,
        request: String,
        change: impl FnOnce(&mut Self) -> Judged,
    ) -> Result<Judged, Said> {
        let Some(op) = op else { return Ok(change(self)) };
        let Some(writer) = self.writers.get(&op.writer) else {
            return Err(Said::refused(ErrorKind::WriterExpired));
        };
        let reused = Said::refused(ErrorKind::OpIdReused);
        if op.seq < writer.lowest_unacked {
            return Err(reused);
        }
        match writer.kept.get(&op.seq) {
            Some(Kept::Judged { request: first, judged }) if *first == request => {
                return Ok(judged.clone());
            }
            Some(_) => return Err(reused),
            None => {}
        }
        let judged = change(self);
        if let Some(writer) = self.writers.get_mut(&op.writer) {
            writer.lowest_unacked = writer.lowest_unacked.max(op.lowest_unacked);
            writer.kept = writer.kept.split_off(&writer.lowest_unacked);
            writer.kept.insert(op.seq, Kept::Judged { request, judged: judged.clone() });
        }
        Ok(judged)
    }

    /// The state of an operation, with version, revision and value if it was applied.
    pub(super) fn status(&mut self, writer: u64, seq: u64) -> (v1::OpState, u64, u64, Option<i64>) {
        let Some(writer) = self.writers.get_mut(&writer) else {
            return (v1::OpState::Ended, 0, 0, None);
        };
        if seq < writer.lowest_unacked {
            return (v1::OpState::Settled, 0, 0, None);
        }
        let judged = match writer.kept.entry(seq).or_insert(Kept::Refused) {
            Kept::Refused => return (v1::OpState::NotApplied, 0, 0, None),
            Kept::Judged { judged, .. } => judged.clone(),
        };
        match judged {
            Judged::Written { version, revision } => {
                (v1::OpState::Applied, version, revision, None)
            }
            Judged::Counted { result: v1::IncrResult::Done, value, version, revision } => {
                (v1::OpState::Applied, version, revision, Some(value))
            }
            Judged::Counted { .. } | Judged::Failed { .. } => (v1::OpState::Failed, 0, 0, None),
        }
    }

    /// A key's value and version.
    pub(super) fn get(&self, key: &[u8]) -> Option<(Bytes, u64)> {
        self.values.get(key).map(|held| (held.value.clone(), held.version))
    }

    pub(super) fn version(&self, key: &[u8]) -> Option<u64> {
        self.values.get(key).map(|held| held.version)
    }

    pub(super) fn remove_everything(&mut self) {
        self.values.clear();
    }

    pub(super) fn end_writers(&mut self) {
        self.writers.clear();
    }

    /// Changes keys, all with one revision; `None` removes.
    pub(super) fn change(&mut self, changes: Vec<(Bytes, Option<Bytes>)>) -> Judged {
        self.revision += 1;
        let mut version = 0;
        for (key, value) in changes {
            self.changes.push(String::from_utf8_lossy(&key).into_owned());
            match value {
                Some(value) => {
                    version = self.revision;
                    self.values.insert(key, Held { value, version });
                }
                None => {
                    self.values.remove(&key);
                }
            }
        }
        Judged::Written { version, revision: self.revision }
    }

    pub(super) fn change_if(
        &mut self,
        holds: bool,
        current: Option<u64>,
        changes: Vec<(Bytes, Option<Bytes>)>,
    ) -> Judged {
        if holds { self.change(changes) } else { Judged::Failed { current } }
    }

    pub(super) fn count(&mut self, request: v1::IncrRequest) -> Judged {
        let number: Option<i64> = match self.values.get(&request.key) {
            None => Some(0),
            Some(held) => std::str::from_utf8(&held.value).ok().and_then(|text| text.parse().ok()),
        };
        let counted =
            |result, value, version, revision| Judged::Counted { result, value, version, revision };
        let Some(number) = number else {
            return counted(v1::IncrResult::NotANumber, 0, 0, self.revision);
        };
        let sum: i64 = number + request.delta;
        if request.min.is_some_and(|min| sum < min) || request.max.is_some_and(|max| sum > max) {
            return counted(v1::IncrResult::OutOfBounds, number, 0, self.revision);
        }
        self.change(vec![(request.key, Some(Bytes::from(sum.to_string())))]);
        counted(v1::IncrResult::Done, sum, self.revision, self.revision)
    }

    pub(super) fn batch(&mut self, request: v1::BatchRequest) -> Judged {
        let kinds = request.guard_kinds.iter().zip(&request.guard_versions);
        for (key, (kind, version)) in request.guard_keys.iter().zip(kinds) {
            let current = self.version(key);
            let holds = match v1::GuardKind::try_from(*kind) {
                Ok(v1::GuardKind::Absent) => current.is_none(),
                Ok(v1::GuardKind::Present) => current.is_some(),
                _ => current == Some(*version),
            };
            if !holds {
                return Judged::Failed { current };
            }
        }
        let put = i32::from(v1::BatchKind::Put);
        let values = request.kinds.into_iter().zip(request.values);
        let values = values.map(|(kind, value)| (kind == put).then_some(value));
        self.change(request.keys.into_iter().zip(values).collect())
    }
}
