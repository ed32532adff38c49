//! A bank: transfers between accounts that are changed together, and what reads of all accounts see.
//!
//! All accounts have one routing key, so they are in one shard and change by atomic batches. A read of
//! all of them is *whole* if every account was read at the same revision of the shard: then it shows a
//! state that the shard had.
//!
//! - A whole read has the money that was paid in at the opening, neither more nor less, also where the
//!   read was allowed to be old.
//! - Two whole reads at one revision are equal, whichever replicas answered.
//! - No account is ever below zero, in whole reads or others.
//! - The revision of a linearizable read is not below that of anything that had ended before it began.
//! - In the end each account has what was paid in and what acknowledged transfers made of it, give or
//!   take unknown ones (W4).
//!
//! A history without a whole linearizable read proves nothing and does not pass.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Violations;
use crate::journal::{End, Entry};

/// What a client asks of the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Moves money, all or nothing.
    Transfer {
        /// The account that it is taken from.
        from: usize,
        /// The account that gets it.
        to: usize,
        /// How much; positive.
        amount: i64,
    },
    /// Reads all accounts.
    Read {
        /// Whether the newest state was asked for.
        is_linearizable: bool,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The transfer was made.
    Moved {
        /// The shard's revision after it.
        revision: u64,
    },
    /// The accounts, in their order.
    Balances {
        /// The revision at which each was read.
        revisions: Vec<u64>,
        /// What it holds; `None` when it is absent, or holds no number.
        balances: Vec<Option<i64>>,
    },
}

/// How the bank was opened, and how it was found in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// Paid in to each account.
    pub opening: i64,
    /// The accounts after all clients had ended.
    pub last: Vec<i64>,
}

/// Judges the bank; returns how many reads were whole.
///
/// # Errors
/// Everything that is wrong.
pub fn check(entries: &[Entry<Call, Answer>], books: &Books) -> Result<usize, Violations> {
    let mut judge =
        Judge { books, states: BTreeMap::new(), whole: 0, strict: 0, wrong: Vec::new() };
    for entry in entries {
        judge.read(entry);
    }
    judge.order(entries);
    judge.last(entries);
    if judge.strict == 0 {
        judge.wrong.push("no linearizable read saw all accounts at one revision".to_owned());
    }
    let whole = judge.whole;
    Violations::verdict(judge.wrong).map(|()| whole)
}

struct Judge<'a> {
    books: &'a Books,
    /// What whole reads saw at each revision.
    states: BTreeMap<u64, Vec<Option<i64>>>,
    whole: usize,
    /// Whole and linearizable.
    strict: usize,
    wrong: Vec<String>,
}

impl Judge<'_> {
    /// What a read shows by itself, and beside another of the same revision.
    fn read(&mut self, entry: &Entry<Call, Answer>) {
        let Some((Answer::Balances { revisions, balances }, _)) = entry.answer() else { return };
        let shown = format!("{balances:?} at revisions {revisions:?}");
        let accounts = self.books.last.len();
        if balances.len() != accounts || revisions.len() != accounts {
            self.wrong.push(format!("{shown}: there are {accounts} accounts"));
            return;
        }
        if balances.iter().flatten().any(|balance| *balance < 0) {
            self.wrong.push(format!("{shown}: an account is below zero"));
        }
        let is_linearizable = entry.call == Call::Read { is_linearizable: true };
        let Some(revision) = revisions.first() else { return };
        let is_whole = revisions.iter().all(|other| other == revision);
        let is_before_opening = balances.iter().all(Option::is_none) && !is_linearizable;
        if balances.contains(&None) && (is_linearizable || is_whole) && !is_before_opening {
            self.wrong.push(format!("{shown}: an account is missing"));
            return;
        }
        if !is_whole {
            return;
        }
        self.whole += 1;
        self.strict += usize::from(is_linearizable);
        let (sum, total) = (balances.iter().flatten().sum::<i64>(), self.total());
        if sum != total && !is_before_opening {
            self.wrong.push(format!("{shown}: {sum} in all, {total} were paid in"));
        }
        match self.states.get(revision) {
            Some(other) if other != balances => {
                self.wrong.push(format!("{shown}: another read of that revision saw {other:?}"));
            }
            Some(_) => {}
            None => drop(self.states.insert(*revision, balances.clone())),
        }
    }

    fn total(&self) -> i64 {
        self.books.opening * i64::try_from(self.books.last.len()).unwrap_or(i64::MAX)
    }

    /// A linearizable read comes after what had ended before it began.
    fn order(&mut self, entries: &[Entry<Call, Answer>]) {
        let mut ended: Vec<(u64, u64)> = entries
            .iter()
            .filter_map(|entry| match (entry.call, entry.answer()?) {
                (_, (Answer::Moved { revision }, at_us)) => Some((at_us, *revision)),
                (
                    Call::Read { is_linearizable: true },
                    (Answer::Balances { revisions, .. }, at_us),
                ) => Some((at_us, *revisions.iter().min()?)),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut ended {
            highest = highest.max(*revision);
            *revision = highest;
        }
        for entry in entries {
            let (
                Call::Read { is_linearizable: true },
                Some((Answer::Balances { revisions, .. }, _)),
            ) = (entry.call, entry.answer())
            else {
                continue;
            };
            let count = ended.partition_point(|(at_us, _)| *at_us < entry.invoked_us);
            let floor = count.checked_sub(1).map_or(0, |last| ended[last].1);
            if revisions.iter().any(|revision| *revision < floor) {
                self.wrong.push(format!(
                    "a linearizable read begun at {} us saw revisions {revisions:?}, {floor} was seen before",
                    entry.invoked_us
                ));
            }
        }
    }

    /// What transfers made of the accounts in the end.
    fn last(&mut self, entries: &[Entry<Call, Answer>]) {
        let total = self.total();
        let sum: i64 = self.books.last.iter().sum();
        if sum != total {
            self.wrong.push(format!("{sum} in all in the end, {total} were paid in"));
        }
        for (account, last) in self.books.last.iter().enumerate() {
            let (mut least, mut most) = (self.books.opening, self.books.opening);
            for entry in entries {
                let Call::Transfer { from, to, amount } = entry.call else { continue };
                let change = if from == account {
                    -amount
                } else if to == account {
                    amount
                } else {
                    0
                };
                match &entry.end {
                    End::Ok(_) => (least, most) = (least + change, most + change),
                    End::Unknown => (least, most) = (least + change.min(0), most + change.max(0)),
                    End::Failed => {}
                }
            }
            if !(least..=most).contains(last) {
                self.wrong.push(format!(
                    "account {account} ends at {last}; by its transfers it has {least} to {most}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKS: [i64; 2] = [70, 130];

    fn transfer(
        amount: i64,
        end: End<Answer>,
        invoked_us: u64,
        completed_us: u64,
    ) -> Entry<Call, Answer> {
        let call = Call::Transfer { from: 0, to: 1, amount };
        Entry { process: 1, call, invoked_us, completed_us: Some(completed_us), end }
    }

    fn moved(revision: u64) -> End<Answer> {
        End::Ok(Answer::Moved { revision })
    }

    fn read(
        is_linearizable: bool,
        revisions: [u64; 2],
        balances: [Option<i64>; 2],
        invoked_us: u64,
    ) -> Entry<Call, Answer> {
        let (revisions, balances) = (revisions.to_vec(), balances.to_vec());
        let end = End::Ok(Answer::Balances { revisions, balances });
        let call = Call::Read { is_linearizable };
        Entry { process: 2, call, invoked_us, completed_us: Some(invoked_us + 5), end }
    }

    /// 30 were moved, at revision 4; 20 perhaps, 10 certainly not.
    fn history() -> Vec<Entry<Call, Answer>> {
        vec![
            read(true, [3, 3], [Some(100), Some(100)], 0),
            transfer(30, moved(4), 10, 20),
            transfer(20, End::Unknown, 11, 21),
            transfer(10, End::Failed, 12, 22),
        ]
    }

    fn judge(more: Vec<Entry<Call, Answer>>, last: [i64; 2]) -> Result<usize, Violations> {
        let mut entries = history();
        entries.extend(more);
        check(&entries, &Books { opening: 100, last: last.to_vec() })
    }

    #[track_caller]
    fn assert_bad(more: Vec<Entry<Call, Answer>>, last: [i64; 2], what: &str) {
        let Err(Violations(found)) = judge(more, last) else { panic!("{what}: passed") };
        assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:#?}");
    }

    #[test]
    fn what_may_be_is_accepted() {
        assert_eq!(judge(vec![], BOOKS), Ok(1));
        assert_eq!(judge(vec![], [50, 150]), Ok(1), "the unknown one was made");
        let more = vec![
            read(false, [1, 1], [None, None], 30),
            read(false, [3, 3], [Some(100), Some(100)], 30),
            // Not whole: between the two the transfer was made.
            read(true, [4, 5], [Some(100), Some(130)], 12),
            read(true, [4, 4], [Some(70), Some(130)], 30),
        ];
        assert_eq!(judge(more, BOOKS), Ok(4));
    }

    #[test]
    fn money_that_is_made_or_lost_is_found() {
        let torn = [Some(70), Some(100)];
        assert_bad(vec![read(false, [4, 4], torn, 30)], BOOKS, "170 in all, 200 were paid in");
        assert_bad(vec![read(true, [4, 4], torn, 30)], BOOKS, "170 in all, 200 were paid in");
        let below = [Some(-1), Some(201)];
        assert_bad(vec![read(true, [5, 5], below, 30)], BOOKS, "below zero");
        let half = [Some(100), None];
        assert_bad(vec![read(false, [2, 2], half, 30)], BOOKS, "missing");
        assert_bad(vec![read(true, [4, 5], half, 30)], BOOKS, "missing");
    }

    #[test]
    fn replicas_that_differ_and_reads_that_go_back_are_found() {
        let other = [Some(90), Some(110)];
        assert_bad(vec![read(false, [3, 3], other, 30)], BOOKS, "another read of that revision");
        let old = [Some(100), Some(100)];
        assert_bad(vec![read(true, [3, 3], old, 30)], BOOKS, "4 was seen before");
    }

    #[test]
    fn the_end_must_follow_from_the_transfers() {
        let mut one = history();
        one.truncate(1);
        let books = |last: [i64; 2]| Books { opening: 100, last: last.to_vec() };
        assert_eq!(check(&one, &books([100, 100])), Ok(1));
        for (last, what) in [([100, 100], "account 0 ends at 100"), ([40, 160], "ends at 40")] {
            let Err(found) = judge(vec![], last) else { panic!("{last:?} passed") };
            assert!(found.to_string().contains(what), "{found}");
        }
        assert!(
            judge(vec![], [70, 120]).unwrap_err().to_string().contains("190 in all in the end")
        );
        let nothing = check(&[], &books([100, 100])).unwrap_err().to_string();
        assert!(nothing.contains("no linearizable read"), "{nothing}");
    }
}
