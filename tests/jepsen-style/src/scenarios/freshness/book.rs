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

use annulus_client::Role;
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
    /// Before the first fault.
    #[default]
    Healthy,
    /// Between faults.
    Calm,
    Kill,
    Moves,
}

impl Time {
    /// All of them, and how they are called.
    pub(super) const ALL: [(&'static str, Self); 4] = [
        ("before all faults", Self::Healthy),
        ("between faults", Self::Calm),
        ("kills", Self::Kill),
        ("moves", Self::Moves),
    ];

    /// That of a read that began in `self` and ended in `end`. No read lasts as long as a fault does.
    pub(super) fn until(self, end: Self) -> Self {
        match self {
            Self::Healthy | Self::Calm => end,
            Self::Kill | Self::Moves => self,
        }
    }
}

/// Reads of one kind at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) answered: u64,
    /// Of these, by followers.
    pub(super) by_followers: u64,
    pub(super) refused: u64,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            by_followers: self.by_followers + other.by_followers,
            refused: self.refused + other.refused,
        }
    }

    /// Of the answered ones, percent.
    pub(super) fn followers_percent(self) -> u64 {
        self.by_followers * 100 / self.answered.max(1)
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
    pub(super) fn answered(&mut self, time: Time, kind: Kind, by: Role) {
        let count = self.counts.entry((time, kind)).or_default();
        count.answered += 1;
        count.by_followers += u64::from(by == Role::Follower);
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
            (Time::Healthy, Time::Calm, Time::Calm),
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
        tally.answered(Time::Calm, Kind::Session, Role::Follower);
        tally.answered(Time::Calm, Kind::Session, Role::Leader);
        tally.answered(Time::Calm, Kind::Session, Role::Follower);
        tally.answered(Time::Calm, Kind::Bounded, Role::Leader);
        tally.refused(Time::Kill, Kind::Bounded, "TooStale");
        assert_eq!(tally.count(|time, _| time == Time::Calm).answered, 4);
        assert_eq!(tally.count(|_, kind| kind == Kind::Bounded).all(), 2);
        let killed = tally.count(|time, _| time == Time::Kill);
        assert_eq!(killed, Count { refused: 1, ..Count::default() });
        let session = tally.count(|_, kind| kind == Kind::Session);
        assert_eq!((session.by_followers, session.followers_percent()), (2, 66));
        assert_eq!(killed.followers_percent(), 0);
        for number in 0..20 {
            tally.violated(format!("violation {number}"));
        }
        assert_eq!((tally.violations, tally.shown.len()), (20, SHOWN_MOST));
    }
}
