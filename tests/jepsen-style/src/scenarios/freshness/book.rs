//! What the writers know and what the readers saw. Pure but for its locks: times come from the caller.
//!
//! A [`Key`] has one writer, which writes 1, 2, 3 … and says when each was acknowledged. So a reader can
//! tell from the number it finds which writes are in the state that it was shown: that one and all
//! before it. An absent key counts as 0.
//!
//! Invariants:
//! - An acknowledgement is dated when the writer has it, later than it was given: a floor is never too high.
//! - A write whose outcome is unknown may take effect after later ones. Its key is not written again, and
//!   nobody reads it any more: another one takes its place.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// One key and what its only writer did to it.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    sent: AtomicU64,
    /// Number and time of acknowledged writes, rising; without those that no reader asks for any more.
    acknowledged: Mutex<VecDeque<(u64, u64)>>,
}

impl Key {
    pub(super) fn new(name: String) -> Self {
        Self { name, sent: AtomicU64::new(0), acknowledged: Mutex::default() }
    }

    /// The number to write next. Call it before anything leaves.
    pub(super) fn next(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The highest number that may be there.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, number: u64, at_us: u64) {
        self.acknowledged.lock().push_back((number, at_us));
    }

    /// The number that every state holds, or a higher one, which lacks nothing that was acknowledged
    /// before `since_us`. Moments may come slightly out of order; an earlier one is then told less.
    pub(super) fn floor(&self, since_us: u64) -> u64 {
        let mut acknowledged = self.acknowledged.lock();
        while acknowledged.get(1).is_some_and(|(_, at_us)| *at_us < since_us) {
            acknowledged.pop_front();
        }
        let first = acknowledged.front().filter(|(_, at_us)| *at_us < since_us);
        first.map_or(0, |(number, _)| *number)
    }
}

/// What a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Session,
    Bounded,
}

/// What is going on while a read is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Time {
    #[default]
    Calm,
    Kill,
    Moves,
}

impl Time {
    /// That of a read that began in `self` and ended in `end`. No read lasts as long as a fault does.
    pub(super) fn until(self, end: Self) -> Self {
        if self == Self::Calm { end } else { self }
    }
}

/// Reads of one kind at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) answered: u64,
    pub(super) refused: u64,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        let answered = self.answered + other.answered;
        Self { answered, refused: self.refused + other.refused }
    }

    pub(super) fn all(self) -> u64 {
        self.answered + self.refused
    }
}

/// Violations that are kept in words.
const SHOWN_MOST: usize = 10;

/// What became of all reads.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<(Time, Kind), Count>,
    /// Refused reads by time and error.
    pub(super) refusals: BTreeMap<(Time, &'static str), u64>,
    pub(super) violations: u64,
    /// The first of them.
    pub(super) shown: Vec<String>,
}

impl Tally {
    pub(super) fn answered(&mut self, time: Time, kind: Kind) {
        self.counts.entry((time, kind)).or_default().answered += 1;
    }

    pub(super) fn refused(&mut self, time: Time, kind: Kind, error: &'static str) {
        self.counts.entry((time, kind)).or_default().refused += 1;
        *self.refusals.entry((time, error)).or_default() += 1;
    }

    pub(super) fn violated(&mut self, what: String) {
        self.violations += 1;
        if self.shown.len() < SHOWN_MOST {
            self.shown.push(what);
        }
    }

    /// The reads at these times, of these kinds.
    pub(super) fn count(&self, of: impl Fn(Time, Kind) -> bool) -> Count {
        let counts = self.counts.iter().filter(|((time, kind), _)| of(*time, *kind));
        counts.fold(Count::default(), |sum, (_, count)| sum.plus(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_the_newest_write_acknowledged_before() {
        let key = Key::new("k".to_owned());
        assert_eq!((key.floor(u64::MAX), key.sent()), (0, 0));
        for (number, at_us) in [(1, 100), (2, 200), (4, 400)] {
            while key.next() < number {}
            key.acknowledge(number, at_us);
        }
        assert_eq!(key.sent(), 4);
        let floors: Vec<u64> =
            [99, 100, 101, 200, 201, 400, 401, 9_000].map(|since_us| key.floor(since_us)).into();
        assert_eq!(floors, [0, 0, 1, 1, 2, 2, 4, 4]);
        assert!(key.floor(300) <= 2, "what is forgotten makes floors lower, not higher");
    }

    #[test]
    fn a_read_that_touches_a_fault_belongs_to_it() {
        for (begin, end, time) in [
            (Time::Calm, Time::Calm, Time::Calm),
            (Time::Calm, Time::Kill, Time::Kill),
            (Time::Moves, Time::Calm, Time::Moves),
            (Time::Kill, Time::Moves, Time::Kill),
        ] {
            assert_eq!(begin.until(end), time);
        }
    }

    #[test]
    fn counts_are_told_apart_by_time_and_kind() {
        let mut tally = Tally::default();
        tally.answered(Time::Calm, Kind::Session);
        tally.answered(Time::Calm, Kind::Bounded);
        tally.refused(Time::Kill, Kind::Bounded, "TooStale");
        assert_eq!(tally.count(|time, _| time == Time::Calm).answered, 2);
        assert_eq!(tally.count(|_, kind| kind == Kind::Bounded).all(), 2);
        assert_eq!(tally.count(|time, _| time == Time::Kill), Count { answered: 0, refused: 1 });
        for number in 0..20 {
            tally.violated(format!("violation {number}"));
        }
        assert_eq!((tally.violations, tally.shown.len()), (20, SHOWN_MOST));
    }
}
