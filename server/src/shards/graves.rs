//! Data that no record names any more, until they are deleted (E3, E6).
//!
//! A grave is a prefix and whoever may still read there. Nobody new can: a prefix gets here when no
//! record and no table of shards names it, and prefixes are never used twice. After a crash graves are
//! found again by looking for data without a record, before any group runs.

use std::collections::BTreeSet;
use std::sync::Weak;

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Engine, EngineError};
use annulus_types::GroupId;
use parking_lot::Mutex;

use super::records::{HEAD, Place, place_of};
use super::{Shard, unreadable};
use crate::stored::Head;

struct Grave {
    prefix: Prefix,
    holder: Weak<Shard>,
}

/// All graves of a node.
pub(super) struct Graves(Mutex<Vec<Grave>>);

impl Graves {
    /// Graves that nobody visits.
    pub(super) fn of(prefixes: Vec<Prefix>) -> Self {
        let graves = prefixes.into_iter().map(|prefix| Grave { prefix, holder: Weak::new() });
        Self(Mutex::new(graves.collect()))
    }

    pub(super) fn add(&self, prefix: Prefix, holder: Weak<Shard>) {
        self.0.lock().push(Grave { prefix, holder });
    }

    /// Takes out those whose last holder is gone.
    pub(super) fn take_free(&self) -> Vec<Prefix> {
        let mut free = Vec::new();
        self.0.lock().retain(|grave| {
            let is_held = grave.holder.strong_count() > 0;
            if !is_held {
                free.push(grave.prefix);
            }
            is_held
        });
        free
    }
}

/// What an engine holds when it is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Survey {
    /// Prefixes with data that no record names.
    pub(super) orphans: Vec<Prefix>,
    /// Above every prefix that is named or has data.
    pub(super) next: u64,
}

/// Compares the prefixes that have data with those that records name. Costs one look per shard and one
/// per prefix: what a record holds beside its head is passed over.
pub(super) fn survey(engine: &dyn Engine) -> Result<Survey, EngineError> {
    let mut named = BTreeSet::new();
    // The manager's records are no shards; its group is the first.
    let mut records = key::records_range(GroupId(GroupId::MANAGER.0 + 1)).start
        ..key::records_range(GroupId(u64::MAX)).end;
    while let Some((record, stored)) = engine.rows(records.clone(), 1)?.into_iter().next() {
        // The head comes first.
        let Some(Place { group, shard, part: HEAD, rest: [] }) = place_of(&record) else {
            return Err(unreadable("a record without its head"));
        };
        named.insert(Head::decode(stored).map_err(unreadable)?.prefix);
        records.start = key::record_range(group, shard).end;
    }
    let mut next = named.last().map_or(1, |last| last.0.saturating_add(1));
    let mut orphans = Vec::new();
    let mut rest = key::data_range(Prefix(0)).start..key::data_range(Prefix(u64::MAX)).end;
    while let Some((row, _)) = engine.rows(rest.clone(), 1)?.into_iter().next() {
        let number = row.get(1..9).and_then(|number| <[u8; 8]>::try_from(number).ok());
        let Some(number) = number.map(u64::from_be_bytes) else {
            return Err(unreadable("a data key is cut short"));
        };
        if !named.contains(&Prefix(number)) {
            orphans.push(Prefix(number));
        }
        next = next.max(number.saturating_add(1));
        rest.start = key::data_range(Prefix(number)).end;
    }
    Ok(Survey { orphans, next })
}
