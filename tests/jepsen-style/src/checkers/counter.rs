//! Counters: numbers that several clients add to, and what they may be at each moment.
//!
//! Only positive amounts are added, so a counter never falls. Each value that anybody sees, in a read or
//! as the sum that an addition answers with, is judged by itself:
//!
//! - at least what was acknowledged before the operation began, its own amount included;
//! - at most what was begun before it ended; what certainly failed does not count;
//! - at least every value that was seen before it began, plus its own amount.
//!
//! Two additions never answer with the same sum. In the end the value is the acknowledged amounts plus
//! those of some of the unknown ones (W4), each taken whole: an addition that was applied twice, or in
//! part, shows here if the unknown ones cannot explain it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Violations;
use crate::journal::{End, Entry};

/// What a client asks of a counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Adds a positive amount.
    Add {
        /// The counter.
        key: String,
        /// The amount.
        amount: i64,
    },
    /// Reads it; absent is 0.
    Read {
        /// The counter.
        key: String,
    },
}

impl Call {
    fn key(&self) -> &str {
        match self {
            Self::Add { key, .. } | Self::Read { key } => key,
        }
    }

    fn amount(&self) -> i64 {
        match self {
            Self::Add { amount, .. } => *amount,
            Self::Read { .. } => 0,
        }
    }
}

/// The value answered; `None` when it was no number, or the addition was refused.
pub type Answer = Option<i64>;

/// Judges the counters, which end with the values `last`.
///
/// # Errors
/// Everything that is wrong.
pub fn check(
    entries: &[Entry<Call, Answer>],
    last: &BTreeMap<String, i64>,
) -> Result<(), Violations> {
    let mut by_key: BTreeMap<&str, Vec<&Entry<Call, Answer>>> = BTreeMap::new();
    for entry in entries {
        by_key.entry(entry.call.key()).or_default().push(entry);
    }
    let mut violations = Vec::new();
    for (key, entries) in &by_key {
        match last.get(*key) {
            Some(last) => {
                let mut wrong = |what: String| violations.push(format!("{key}: {what}"));
                check_key(entries, *last, &mut wrong);
            }
            None => violations.push(format!("{key}: was not read in the end")),
        }
    }
    Violations::verdict(violations)
}

/// Amounts, or values, by time.
struct Timeline {
    /// Times, each with the amount (or the value) up to it.
    points: Vec<(u64, i64)>,
}

impl Timeline {
    fn new(mut points: Vec<(u64, i64)>, join: fn(i64, i64) -> i64) -> Self {
        points.sort_unstable();
        let mut so_far = 0;
        for (_, value) in &mut points {
            so_far = join(so_far, *value);
            *value = so_far;
        }
        Self { points }
    }

    /// What was there before a time.
    fn before(&self, at_us: u64) -> i64 {
        let count = self.points.partition_point(|(time, _)| *time < at_us);
        count.checked_sub(1).map_or(0, |last| self.points[last].1)
    }
}

fn check_key(entries: &[&Entry<Call, Answer>], last: i64, wrong: &mut dyn FnMut(String)) {
    let adds = || entries.iter().filter(|entry| entry.call.amount() > 0);
    let acknowledged = Timeline::new(
        adds().filter_map(|add| Some((add.answer()?.1, add.call.amount()))).collect(),
        |sum, amount| sum + amount,
    );
    let begun = Timeline::new(
        adds()
            .filter(|add| add.end != End::Failed)
            .map(|add| (add.invoked_us, add.call.amount()))
            .collect(),
        |sum, amount| sum + amount,
    );
    let seen = Timeline::new(
        entries
            .iter()
            .filter_map(|entry| {
                let (value, at_us) = entry.answer()?;
                Some((at_us, (*value)?))
            })
            .collect(),
        i64::max,
    );
    let mut sums = BTreeSet::new();
    for entry in entries {
        let Some((value, ended_us)) = entry.answer() else { continue };
        let own = entry.call.amount();
        let Some(value) = *value else {
            wrong(format!("{:?} at {} us was not done as asked", entry.call, entry.invoked_us));
            continue;
        };
        let shown = format!("{value} was seen between {} and {ended_us} us", entry.invoked_us);
        let least = acknowledged.before(entry.invoked_us) + own;
        if value < least {
            wrong(format!("{shown}, and {least} was acknowledged before"));
        }
        let most = begun.before(ended_us);
        if value > most {
            wrong(format!("{shown}, and only {most} was ever added by then"));
        }
        let floor = seen.before(entry.invoked_us) + own;
        if value < floor {
            wrong(format!("{shown}, and {floor} is the least after what was seen before"));
        }
        if own > 0 && !sums.insert(value) {
            wrong(format!("{shown} as the sum of two additions"));
        }
    }
    let sure = acknowledged.before(u64::MAX);
    let unknown: Vec<i64> =
        adds().filter(|add| add.end == End::Unknown).map(|add| add.call.amount()).collect();
    if !is_sum_of_some(last - sure, &unknown) {
        wrong(format!(
            "ends at {last}; {sure} was acknowledged, and no part of the unknown {unknown:?} makes up \
             the difference"
        ));
    }
}

/// Whether some of the amounts, which are positive, have this sum.
fn is_sum_of_some(sum: i64, amounts: &[i64]) -> bool {
    let Ok(sum) = usize::try_from(sum) else { return false };
    let amounts: Vec<usize> =
        amounts.iter().filter_map(|amount| usize::try_from(*amount).ok()).collect();
    if sum > amounts.iter().sum::<usize>() {
        return false;
    }
    let mut is_reached = vec![false; sum + 1];
    is_reached[0] = true;
    for amount in amounts {
        for reached in (amount..=sum).rev() {
            is_reached[reached] |= is_reached[reached - amount];
        }
    }
    is_reached[sum]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(
        amount: i64,
        end: End<Answer>,
        invoked_us: u64,
        completed_us: u64,
    ) -> Entry<Call, Answer> {
        let call = Call::Add { key: "c".to_owned(), amount };
        Entry { process: 1, call, invoked_us, completed_us: Some(completed_us), end }
    }

    fn read(value: i64, invoked_us: u64, completed_us: u64) -> Entry<Call, Answer> {
        let (call, end) = (Call::Read { key: "c".to_owned() }, End::Ok(Some(value)));
        Entry { process: 2, call, invoked_us, completed_us: Some(completed_us), end }
    }

    fn judge(entries: &[Entry<Call, Answer>], last: i64) -> Vec<String> {
        match check(entries, &BTreeMap::from([("c".to_owned(), last)])) {
            Ok(()) => Vec::new(),
            Err(Violations(violations)) => violations,
        }
    }

    /// 3 is acknowledged, 5 unknown, 7 failed.
    fn begun() -> Vec<Entry<Call, Answer>> {
        vec![
            add(3, End::Ok(Some(3)), 0, 10),
            add(5, End::Unknown, 20, 30),
            add(7, End::Failed, 21, 31),
        ]
    }

    /// A violation says this.
    #[track_caller]
    fn assert_bad(more: Vec<Entry<Call, Answer>>, last: i64, what: &str) {
        let mut entries = begun();
        entries.extend(more);
        let found = judge(&entries, last);
        assert!(found.iter().any(|found| found.contains(what)), "{what}: {found:#?}");
    }

    #[test]
    fn what_may_be_is_accepted() {
        assert_eq!(judge(&begun(), 3), [""; 0]);
        assert_eq!(judge(&begun(), 8), [""; 0], "the unknown one came after all");
        let mut entries = begun();
        entries.extend([
            read(0, 1, 2),
            read(3, 3, 4),
            read(3, 40, 50),
            read(8, 45, 55),
            add(2, End::Ok(Some(10)), 60, 70),
            read(10, 65, 75),
        ]);
        assert_eq!(judge(&entries, 10), [""; 0]);
        assert_eq!(check(&[], &BTreeMap::new()), Ok(()));
    }

    #[test]
    fn each_bound_is_kept() {
        assert_bad(vec![read(0, 11, 12)], 3, "3 was acknowledged before");
        assert_bad(vec![read(15, 40, 50)], 3, "only 8 was ever added");
        assert_bad(vec![read(8, 40, 50), read(3, 51, 60)], 8, "8 is the least");
        assert_bad(vec![add(2, End::Ok(Some(3)), 2, 12)], 5, "the sum of two additions");
        assert_bad(vec![add(1, End::Ok(None), 40, 50)], 4, "not done as asked");
    }

    #[test]
    fn a_lost_and_a_doubled_addition_show_in_the_end() {
        assert_bad(vec![], 0, "ends at 0");
        assert_bad(vec![], 6, "ends at 6");
        assert_bad(vec![], 10, "ends at 10");
        assert_bad(vec![], 13, "ends at 13");
        let unread = check(&begun(), &BTreeMap::new()).unwrap_err().to_string();
        assert!(unread.contains("not read in the end"), "{unread}");
    }

    #[test]
    fn sums_of_some_amounts_are_known() {
        for (sum, expected) in [(0, true), (2, true), (7, true), (9, true), (14, true)] {
            assert_eq!(is_sum_of_some(sum, &[2, 5, 7]), expected, "{sum}");
        }
        for sum in [-1, 1, 3, 4, 8, 10, 13, 15] {
            assert!(!is_sum_of_some(sum, &[2, 5, 7]), "{sum}");
        }
    }
}
