//! L9, W4: what was acknowledged is there at the end, and what is there was sent and not refused.
//!
//! Versions make this a check without search: of the acknowledged changes of a key the one with the
//! highest revision is the last, and everything above it can only come from an operation whose
//! outcome nobody knows.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::Revision;

use super::Violation;

const RULE: &str = "L9 acknowledged is durable";

/// What clients were told of the changes of all keys.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<String, Told>);

#[derive(Default)]
struct Told {
    /// The last acknowledged change: its revision, and the value that it left.
    last: Option<(Revision, Option<u64>)>,
    unknown_values: BTreeSet<u64>,
    unknown_delete: bool,
}

/// A key as the replicas hold it at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Of its shard.
    pub(crate) revision: Revision,
    /// The value and its version.
    pub(crate) value: Option<(u64, Revision)>,
}

impl Ledger {
    /// The key has had `value` at `revision`, or was absent then.
    pub(crate) fn acknowledged(&mut self, key: &str, revision: Revision, value: Option<u64>) {
        let told = self.0.entry(key.to_owned()).or_default();
        if told.last.is_none_or(|(newest, _)| newest < revision) {
            told.last = Some((revision, value));
        }
    }

    /// A change to `value` may have happened, or may yet.
    pub(crate) fn unknown(&mut self, key: &str, value: Option<u64>) {
        let told = self.0.entry(key.to_owned()).or_default();
        match value {
            Some(value) => {
                told.unknown_values.insert(value);
            }
            None => told.unknown_delete = true,
        }
    }

    /// Judges a key.
    pub(crate) fn judge(&self, key: &str, held: Held) -> Option<Violation> {
        let none = Told::default();
        let told = self.0.get(key).unwrap_or(&none);
        let (last, value) = told.last.unwrap_or_default();
        let problem = match held.value {
            _ if held.revision < last => "its shard has lost revisions",
            Some((found, version)) if version == last => {
                if Some(found) == value {
                    return None;
                }
                "its value is another"
            }
            Some((_, version)) if version < last => "its last change is lost",
            Some((found, _)) => {
                if told.unknown_values.contains(&found) {
                    return None;
                }
                "its value was refused or never sent"
            }
            None if value.is_none() || told.unknown_delete => return None,
            None => "its value is lost",
        };
        let what = format!(
            "key {key:?}: {problem}; last acknowledged {value:?} at {last}, found {:?} in a shard \
             at {}",
            held.value, held.revision
        );
        Some(Violation::new(RULE, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(ledger: &Ledger, shard: u64, value: Option<(u64, u64)>) -> bool {
        let value = value.map(|(value, version)| (value, Revision(version)));
        ledger.judge("key", Held { revision: Revision(shard), value }).is_some()
    }

    #[test]
    fn the_last_acknowledged_change_must_be_there() {
        let mut ledger = Ledger::default();
        assert!(!is_found(&ledger, 0, None));
        assert!(is_found(&ledger, 1, Some((1, 1))), "never sent");
        ledger.acknowledged("key", Revision(7), Some(70));
        ledger.acknowledged("key", Revision(5), Some(50));
        assert!(!is_found(&ledger, 9, Some((70, 7))));
        assert!(is_found(&ledger, 6, Some((50, 5))), "the shard is behind");
        assert!(is_found(&ledger, 9, Some((50, 5))), "overwritten by an older one");
        assert!(is_found(&ledger, 9, Some((50, 7))), "another value");
        assert!(is_found(&ledger, 9, None), "lost");
        assert!(is_found(&ledger, 9, Some((80, 8))), "refused, or never sent");
    }

    #[test]
    fn what_is_unknown_may_have_happened() {
        let mut ledger = Ledger::default();
        ledger.acknowledged("key", Revision(7), Some(70));
        ledger.unknown("key", Some(80));
        assert!(!is_found(&ledger, 9, Some((80, 8))) && !is_found(&ledger, 9, Some((70, 7))));
        assert!(is_found(&ledger, 9, None));
        ledger.unknown("key", None);
        assert!(!is_found(&ledger, 9, None));
        ledger.acknowledged("key", Revision(9), None);
        assert!(!is_found(&ledger, 9, None));
        assert!(is_found(&ledger, 9, Some((70, 7))), "deleted since");
    }
}
