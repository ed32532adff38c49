//! Linearizability of one register per key.
//!
//! A history is linearizable if each operation can be given one moment between its call and its
//! answer such that, in the order of these moments, every answer is right. Keys are independent of
//! each other, so each is judged alone; every key is absent at the start. The search itself, with
//! the reasons why it may skip what it skips, is in `linearizable/search.rs`.
//!
//! What an outcome means here (W4):
//! - answered: it took effect between call and answer;
//! - failed: it has no effect, ever; if its value shows up somewhere, that is a violation;
//! - unknown, or never completed: a mutation may take effect at any time after its call, or never;
//!   a read says nothing.
//!
//! An order is quickly found where there is one. That there is none needs a proof that visits every
//! configuration, which for long histories is out of reach; but the reason is mostly local, and a
//! history may be *weakened* without making a good one bad: drop what a read saw, treat a write as
//! unknown. So when the search does not come through, a small set of operations around the place
//! where it got stuck is looked for which has no order although all others are weakened. That set
//! is the proof, and the counterexample to show.
//!
//! Failure: what neither search decides within the step limit is [`Verdict::Indeterminate`], which
//! a harness must treat as an error.

mod ledger;
mod search;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Result, bail};

use self::search::{Answer, Move, Step, search};
use crate::history::{Call, History, Operation, Outcome, Value};

/// Enough steps for a hundred thousand operations on one key, which take ten to thirty each. At the
/// limit a search has run for some seconds and holds up to some hundred megabytes.
pub const STEP_LIMIT: u64 = 10_000_000;

/// Steps of the first search: this many, and for each operation [`STEPS_PER_OPERATION`] more. A
/// good history rarely needs a tenth; a bad one is better shown bad by a small set.
const STEPS_FIRST: u64 = 200_000;
const STEPS_PER_OPERATION: u64 = 64;

/// Steps for each set that is tried. A set that needs more is not small.
const STEPS_PER_SET: u64 = 300_000;

/// Most operations shown beside the counterexample, per counterexample.
const RELATED_MOST: usize = 8;

/// What became of a history.
#[derive(Clone, Debug)]
#[must_use]
pub enum Verdict {
    /// Every key has an order.
    Linearizable,
    /// A key has none.
    Violation(Box<Counterexample>),
    /// No key is known to be bad, but these could not be decided within the step limit.
    Indeterminate {
        /// The keys.
        keys: Vec<String>,
    },
}

impl Verdict {
    /// `Ok` only for [`Verdict::Linearizable`].
    ///
    /// # Errors
    /// The counterexample, or the keys without verdict.
    pub fn into_result(self) -> Result<()> {
        match self {
            Self::Linearizable => Ok(()),
            Self::Violation(counterexample) => bail!("not linearizable: {counterexample}"),
            Self::Indeterminate { keys } => {
                bail!("linearizability is undecided for {} keys: {}", keys.len(), keys.join(", "))
            }
        }
    }
}

/// Why a key has no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The key.
    pub key: String,
    /// No order of these explains their answers, whatever the others of the key did; of a smaller
    /// part of them that could not be said. In order of invocation.
    pub operations: Vec<Operation>,
    /// Some of the others: those that could have written what `operations` saw, as far as their
    /// call says. They show where a strange value comes from.
    pub related: Vec<Operation>,
    /// How many operations the key has in all.
    pub total: usize,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operations, related, total } = self;
        write!(
            f,
            "key {key:?}: no order explains these {} of {total} operations",
            operations.len()
        )?;
        for operation in operations {
            write!(f, "\n  {operation}")?;
        }
        if !related.is_empty() {
            f.write_str("\nthe values seen there also occur in")?;
        }
        for operation in related {
            write!(f, "\n  {operation}")?;
        }
        Ok(())
    }
}

/// Judges every key of `history`, with at most about `step_limit` steps for each search.
/// [`STEP_LIMIT`] is a good value.
pub fn check(history: &History, step_limit: u64) -> Verdict {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history.operations() {
        by_key.entry(operation.key.as_str()).or_default().push(operation);
    }
    let mut undecided = Vec::new();
    for (key, operations) in by_key {
        match check_key(&operations, step_limit) {
            KeyVerdict::Linearizable => {}
            KeyVerdict::Violation(core) => {
                return Verdict::Violation(Box::new(describe(key, &operations, &core)));
            }
            KeyVerdict::Indeterminate => undecided.push(key.to_owned()),
        }
    }
    if undecided.is_empty() {
        Verdict::Linearizable
    } else {
        Verdict::Indeterminate { keys: undecided }
    }
}

enum KeyVerdict {
    Linearizable,
    /// Positions in the key's operations.
    Violation(BTreeSet<usize>),
    Indeterminate,
}

fn check_key(operations: &[&Operation], step_limit: u64) -> KeyVerdict {
    let suspects = Suspects {
        moves: operations
            .iter()
            .enumerate()
            .filter_map(|(position, operation)| Some((position, as_move(operation)?)))
            .collect(),
        step_limit: step_limit.min(STEPS_PER_SET),
    };
    let moves: Vec<Move> = suspects.moves.iter().map(|(_, one)| *one).collect();
    let first_limit = STEPS_FIRST + STEPS_PER_OPERATION * moves.len() as u64;
    let first = search(&moves, step_limit.min(first_limit));
    if first.answer == Answer::Possible {
        return KeyVerdict::Linearizable;
    }
    if let Some(core) = suspects.core(first.stuck_us) {
        return KeyVerdict::Violation(core);
    }
    let last = match first.answer {
        Answer::GaveUp => search(&moves, step_limit).answer,
        answer => answer,
    };
    match last {
        Answer::Possible => KeyVerdict::Linearizable,
        // True, but of no part of it within the limit.
        Answer::Impossible => KeyVerdict::Violation(
            suspects.definite().map(|index| suspects.moves[index].0).collect(),
        ),
        Answer::GaveUp => KeyVerdict::Indeterminate,
    }
}

/// What the search needs to know of an operation; `None` if it can have had no effect and says
/// nothing.
fn as_move(operation: &Operation) -> Option<Move> {
    let invoked_us = operation.invoked_us;
    let (step, returned_us) = match operation.outcome {
        Outcome::Failed => return None,
        Outcome::Unknown => {
            let step = match operation.call {
                Call::Write(value) => Step::Set(Some(value)),
                Call::Delete => Step::Set(None),
                Call::Cas { from, to } => Step::Swap { from: Some(from), to: Some(to) },
                Call::Read => return None,
            };
            (step, None)
        }
        Outcome::Ok(answer) => {
            let step = match (operation.call, answer) {
                (Call::Write(value), Value::Done) => Step::Set(Some(value)),
                (Call::Delete, Value::Done) => Step::Set(None),
                (Call::Read, Value::Read(value)) => Step::Expect(value),
                (Call::Cas { from, to }, Value::Swapped(true)) => {
                    Step::Swap { from: Some(from), to: Some(to) }
                }
                (Call::Cas { from, .. }, Value::Swapped(false)) => Step::Differ(Some(from)),
                _ => Step::Never,
            };
            // Histories may come from a file: an answer without a time came at some time.
            let completed_us = operation.completed_us.unwrap_or(u64::MAX);
            (step, Some(completed_us.max(invoked_us)))
        }
    };
    Some(Move { step, invoked_us, returned_us })
}

/// The most that can be said without what the operation's answer tells: it may have happened, at
/// any time after its call.
fn weakened(one: Move) -> Option<Move> {
    one.step.yields().map(|_| Move { returned_us: None, ..one })
}

/// The operations of a key that is probably bad.
struct Suspects {
    /// With their positions in the key's operations.
    moves: Vec<(usize, Move)>,
    step_limit: u64,
}

impl Suspects {
    /// A set of operations that has no order even if all others are weakened, and of which no part
    /// is known to be such a set. The search for it grows outwards from the operations that ended
    /// near `stuck_us`, first without the refused compare-and-swaps: they make every write
    /// interesting and the search long.
    ///
    /// A set that is bad stays bad when it grows. So the smallest bad beginning of a sequence ends
    /// with an operation that is needed; and then the same with that one fixed, until the fixed
    /// ones are bad by themselves.
    fn core(&self, stuck_us: u64) -> Option<BTreeSet<usize>> {
        let mut nearest: Vec<usize> = self.definite().collect();
        nearest.sort_by_key(|&index| {
            self.moves[index].1.returned_us.map(|returned_us| returned_us.abs_diff(stuck_us))
        });
        let mut calm = nearest.clone();
        calm.retain(|&index| !matches!(self.moves[index].1.step, Step::Differ(_)));
        let mut rest = match self.smallest_bad(&calm, &[]) {
            Some(size) => calm[..size].to_vec(),
            None => nearest[..self.smallest_bad(&nearest, &[])?].to_vec(),
        };
        let mut needed = Vec::new();
        while let Some(last) = rest.pop() {
            needed.push(last);
            match self.smallest_bad(&rest, &needed) {
                Some(size) => rest.truncate(size),
                None => needed.append(&mut rest),
            }
        }
        Some(needed.into_iter().map(|index| self.moves[index].0).collect())
    }

    fn definite(&self) -> impl Iterator<Item = usize> {
        (0..self.moves.len()).filter(move |&index| self.moves[index].1.returned_us.is_some())
    }

    /// The size of the smallest beginning of `sequence` that is bad together with `fixed`. Doubles
    /// the size first, so that the cost is that of the answer and not of the whole.
    fn smallest_bad(&self, sequence: &[usize], fixed: &[usize]) -> Option<usize> {
        let (mut good, mut bad): (usize, usize) = (0, 0);
        while !self.is_bad(&sequence[..bad], fixed) {
            if bad == sequence.len() {
                return None;
            }
            good = bad + 1;
            bad = if bad == 0 { 1 } else { (2 * bad).min(sequence.len()) };
        }
        while good < bad {
            let middle = good.midpoint(bad);
            if self.is_bad(&sequence[..middle], fixed) {
                bad = middle;
            } else {
                good = middle + 1;
            }
        }
        Some(bad)
    }

    /// Whether these have certainly no order when all others are weakened.
    fn is_bad(&self, some: &[usize], more: &[usize]) -> bool {
        let mut is_kept = vec![false; self.moves.len()];
        for &index in some.iter().chain(more) {
            is_kept[index] = true;
        }
        let moves: Vec<Move> = self
            .moves
            .iter()
            .zip(is_kept)
            .filter_map(|(&(_, one), is_kept)| if is_kept { Some(one) } else { weakened(one) })
            .collect();
        search(&moves, self.step_limit).answer == Answer::Impossible
    }
}

fn describe(key: &str, operations: &[&Operation], core: &BTreeSet<usize>) -> Counterexample {
    let mut shown: Vec<Operation> = core.iter().map(|&at| operations[at].clone()).collect();
    shown.sort_by_key(|operation| operation.invoked_us);
    let seen: BTreeSet<u64> =
        shown.iter().filter_map(|operation| as_move(operation)?.step.demands().flatten()).collect();
    let is_related = |operation: &Operation| {
        let refused = Outcome::Ok(Value::Swapped(false));
        match operation.call {
            Call::Write(value) => seen.contains(&value),
            Call::Cas { to, .. } => operation.outcome != refused && seen.contains(&to),
            Call::Read | Call::Delete => false,
        }
    };
    let related = operations
        .iter()
        .enumerate()
        .filter(|(at, operation)| !core.contains(at) && is_related(operation))
        .map(|(_, operation)| (*operation).clone())
        .take(RELATED_MOST)
        .collect();
    Counterexample { key: key.to_owned(), operations: shown, related, total: operations.len() }
}
