//! The search for an order: is there a sequence of operations on one register that respects real
//! time and explains every answer?
//!
//! Depth first over the choice of the next operation, as by Wing and Gong, with Lowe's memory: a
//! configuration (which operations are placed, what the register holds) that was left without
//! success is never entered again. Calls and returns stand in a linked list in order of time;
//! placing an operation takes its two entries out. What stands before the first return is *enabled*:
//! nothing that is not yet placed ended before it began.
//!
//! *Definite* operations must be placed. *Optional* ones (unknown outcome, only mutations) may be
//! placed at any point after their invocation, or never, so they have no return and no place in the
//! list. A plain search is hopeless with many of those, or with many concurrent writes; these
//! reductions lose no order, each because an order that breaks it can be turned into one that
//! keeps it:
//!
//! - *Answers at once.* An enabled operation that only looks, and is right about what it saw, is
//!   placed immediately: it changes nothing for the others.
//! - *No orphans.* A value that somebody must still see, and that nobody can produce any more, may
//!   only be the one in the register. Leaving it is a dead end, seen at once.
//! - *Idle writes in passing.* The value of an idle write is seen by nobody who is still to be
//!   placed. It takes effect right before another write overwrites it, or when what it overwrites
//!   is not sought either. (Only while no refused compare-and-swap is left: an idle write may be
//!   what makes it refuse.)
//! - *Optional only if useful.* An optional operation is tried only if its value is sought, or if
//!   an enabled compare-and-swap was refused and the register still holds what it looked for. Of
//!   equal ones the first is tried: what is enabled stays so, one is as good as the other.
//! - *Optional sparingly.* A configuration is as good as known if it was left without success with
//!   fewer optional operations spent: those saved can only help.
//! - Values that nobody looks for are one value, [`JUNK`], so that configurations meet.
//!
//! Failure: beyond the step limit the answer is [`Answer::GaveUp`]. Steps count entries looked at
//! and words remembered, so that the limit bounds both time and memory.

use std::collections::HashMap;

use super::ledger::Ledger;

/// What an operation needs of the register and does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step<V> {
    /// Writes the value.
    Set(V),
    /// Saw the value.
    Expect(V),
    /// Saw `from` and wrote `to`.
    Swap { from: V, to: V },
    /// Saw another value than this.
    Differ(V),
    /// Cannot be explained: the answer does not belong to the call.
    Never,
}

impl<V: Copy + PartialEq> Step<V> {
    /// The value that must be in the register.
    pub(super) fn demands(self) -> Option<V> {
        match self {
            Self::Expect(value) | Self::Swap { from: value, .. } => Some(value),
            Self::Set(_) | Self::Differ(_) | Self::Never => None,
        }
    }

    /// The value that it leaves in the register, if it writes.
    pub(super) fn yields(self) -> Option<V> {
        match self {
            Self::Set(value) | Self::Swap { to: value, .. } => Some(value),
            Self::Expect(_) | Self::Differ(_) | Self::Never => None,
        }
    }

    /// The register after it, if it can happen at `state`.
    fn after(self, state: V) -> Option<V> {
        match self {
            Self::Set(value) => Some(value),
            Self::Expect(value) => (state == value).then_some(state),
            Self::Swap { from, to } => (state == from).then_some(to),
            Self::Differ(value) => (state != value).then_some(state),
            Self::Never => None,
        }
    }

    fn map<W>(self, id: impl Fn(V) -> W) -> Step<W> {
        match self {
            Self::Set(value) => Step::Set(id(value)),
            Self::Expect(value) => Step::Expect(id(value)),
            Self::Swap { from, to } => Step::Swap { from: id(from), to: id(to) },
            Self::Differ(value) => Step::Differ(id(value)),
            Self::Never => Step::Never,
        }
    }
}

/// An operation as the search sees it; a value of `None` is the absent key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) step: Step<Option<u64>>,
    pub(super) invoked_us: u64,
    /// `None` makes it optional.
    pub(super) returned_us: Option<u64>,
}

/// What the search found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is an order.
    Possible,
    /// There is none.
    Impossible,
    /// The step limit was reached.
    GaveUp,
}

/// An answer, and the latest return that the search could not get past: where to look for the
/// reason when there is no order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) answer: Answer,
    pub(super) stuck_us: u64,
}

/// Looks for an order of `moves`; the key is absent at the start.
pub(super) fn search(moves: &[Move], step_limit: u64) -> Found {
    let mut search = Search::new(moves, step_limit);
    let answer = search.run();
    Found { answer, stuck_us: search.stuck_us }
}

/// Values are small numbers inside the search.
const ABSENT: usize = 0;
/// Every value that no operation looks for.
const JUNK: usize = 1;
const FIRST_VALUE: usize = 2;

/// The list's sentinel: before the first entry, behind the last, and a return that never leaves.
const HEAD: usize = 0;

struct Definite {
    step: Step<usize>,
    returned_us: u64,
    call_entry: usize,
    return_entry: usize,
}

#[derive(Clone, Copy)]
struct Optional {
    step: Step<usize>,
    invoked_us: u64,
    /// The one before it with the same step.
    twin: Option<usize>,
}

#[derive(Clone, Copy)]
struct Entry {
    previous: usize,
    next: usize,
    /// Index of the definite operation.
    definite: usize,
    is_return: bool,
    at_us: u64,
}

/// Where the choice of the next operation goes on: through the list to its first return, then
/// through the optional operations.
#[derive(Clone, Copy)]
enum Cursor {
    Entry(usize),
    Optional {
        index: usize,
        /// The first return: what was invoked later is not enabled.
        horizon_us: u64,
        /// Whether a refused compare-and-swap is enabled that finds what it must not find.
        is_blocked: bool,
    },
}

#[derive(Clone, Copy)]
enum Placed {
    Definite(usize),
    Optional(usize),
}

struct Frame {
    placed: Placed,
    state_before: usize,
    /// The choice that led here; `None` for what was placed without alternative.
    choice: Option<Cursor>,
}

/// Which operations are placed without alternative.
#[derive(Clone, Copy)]
enum Sweep {
    Answers,
    IdleWrites,
}

struct Search {
    definite: Vec<Definite>,
    /// In order of invocation.
    optional: Vec<Optional>,
    entries: Vec<Entry>,
    ledger: Ledger,
    /// Refused compare-and-swaps that are not yet placed.
    refused_left: usize,
    state: usize,
    placed: Bits,
    placed_count: usize,
    placed_optional: Bits,
    frames: Vec<Frame>,
    /// Per configuration of the definite operations: the sets of optional ones spent on it.
    memory: HashMap<Box<[u64]>, Vec<Box<[u64]>>>,
    steps: u64,
    step_limit: u64,
    stuck_us: u64,
}

impl Search {
    fn new(moves: &[Move], step_limit: u64) -> Self {
        let ids = value_ids(moves);
        let id = |value: Option<u64>| match value {
            None => ABSENT,
            Some(value) => ids.get(&value).copied().unwrap_or(JUNK),
        };
        let mut ordered: Vec<&Move> = moves.iter().collect();
        ordered.sort_by_key(|one| one.invoked_us);
        let mut spans = Vec::new();
        let mut definite = Vec::new();
        let mut optional = Vec::new();
        for one in ordered {
            let step = one.step.map(id);
            match one.returned_us {
                Some(returned_us) => {
                    spans.push((one.invoked_us, returned_us));
                    definite.push(Definite { step, returned_us, call_entry: 0, return_entry: 0 });
                }
                None => optional.push(Optional { step, invoked_us: one.invoked_us, twin: None }),
            }
        }
        let entries = link(&spans, &mut definite);
        let refused_left = definite.iter().filter(|one| is_refused(one.step)).count();
        let mut ledger = Ledger::new(FIRST_VALUE + ids.len());
        for one in &definite {
            ledger.add(one.step, true);
        }
        if refused_left == 0 {
            let steps: Vec<Step<usize>> = optional.iter().map(|one| one.step).collect();
            let useful = ledger.useful(&steps);
            optional.retain(|one| one.step.yields().is_some_and(|value| useful[value]));
        }
        let mut twins = HashMap::new();
        for (index, one) in optional.iter_mut().enumerate() {
            ledger.add(one.step, false);
            one.twin = twins.insert(one.step, index);
        }
        Self {
            placed: Bits::new(definite.len()),
            placed_optional: Bits::new(optional.len()),
            definite,
            optional,
            entries,
            ledger,
            refused_left,
            state: ABSENT,
            placed_count: 0,
            frames: Vec::new(),
            memory: HashMap::new(),
            steps: 0,
            step_limit,
            stuck_us: 0,
        }
    }

    fn run(&mut self) -> Answer {
        if let Some(returned_us) = self.first_orphaned() {
            self.stuck_us = returned_us;
            return Answer::Impossible;
        }
        self.settle();
        let mut cursor = self.start();
        while self.placed_count < self.definite.len() {
            if self.steps > self.step_limit {
                return Answer::GaveUp;
            }
            cursor = if self.advance(cursor) {
                self.start()
            } else if let Some(next) = self.retreat() {
                next
            } else {
                return Answer::Impossible;
            };
        }
        Answer::Possible
    }

    /// The return of the first operation that saw a value which is not there and which nobody
    /// writes.
    fn first_orphaned(&self) -> Option<u64> {
        let is_hopeless = |one: &&Definite| {
            let demanded = one.step.demands();
            demanded.is_some_and(|value| value != self.state && self.ledger.is_orphan(value))
        };
        self.definite.iter().find(is_hopeless).map(|one| one.returned_us)
    }

    fn start(&self) -> Cursor {
        Cursor::Entry(self.entries[HEAD].next)
    }

    /// Places the next possible operation from `cursor` on. False when there is none.
    fn advance(&mut self, mut cursor: Cursor) -> bool {
        loop {
            self.steps += 1;
            match cursor {
                Cursor::Entry(entry) => {
                    let Entry { definite, is_return, at_us, .. } = self.entries[entry];
                    if is_return {
                        self.stuck_us = self.stuck_us.max(at_us);
                        let is_blocked = self.is_blocked();
                        cursor = Cursor::Optional { index: 0, horizon_us: at_us, is_blocked };
                        continue;
                    }
                    let step = self.definite[definite].step;
                    if self.choose(cursor, Placed::Definite(definite), step) {
                        return true;
                    }
                }
                Cursor::Optional { index, horizon_us, is_blocked } => {
                    let Some(&Optional { step, invoked_us, .. }) = self.optional.get(index) else {
                        return false;
                    };
                    if invoked_us > horizon_us {
                        return false;
                    }
                    if self.is_worth_trying(index, is_blocked)
                        && self.choose(cursor, Placed::Optional(index), step)
                    {
                        return true;
                    }
                }
            }
            cursor = self.past(cursor);
        }
    }

    /// The cursor behind `cursor`, whose operation is not placed.
    fn past(&self, cursor: Cursor) -> Cursor {
        match cursor {
            Cursor::Entry(entry) => Cursor::Entry(self.entries[entry].next),
            Cursor::Optional { index, horizon_us, is_blocked } => {
                Cursor::Optional { index: index + 1, horizon_us, is_blocked }
            }
        }
    }

    /// Undoes the last choice and what followed from it; the cursor behind that choice, or none
    /// when no choice is left.
    fn retreat(&mut self) -> Option<Cursor> {
        loop {
            let frame = self.undo()?;
            if let Some(cursor) = frame.choice {
                return Some(self.past(cursor));
            }
        }
    }

    /// Places one operation and all that follows without alternative. Changes nothing and answers
    /// false if it cannot happen here, leads to a dead end, or leads where the search has been.
    fn choose(&mut self, cursor: Cursor, which: Placed, step: Step<usize>) -> bool {
        let Some(after) = step.after(self.state) else { return false };
        let depth = self.frames.len();
        let mut choice = Some(cursor);
        if self.refused_left == 0 && matches!(step, Step::Set(_)) {
            let spared = match which {
                Placed::Definite(index) => Some(self.definite[index].call_entry),
                Placed::Optional(_) => None,
            };
            choice = self.sweep(Sweep::IdleWrites, choice, spared);
        }
        self.place(which, step, after, choice);
        if self.ledger.allows(self.state) {
            self.settle();
            if self.placed_count == self.definite.len() || self.remember() {
                return true;
            }
        }
        while self.frames.len() > depth {
            self.undo();
        }
        false
    }

    /// Places what can be placed now without loss.
    fn settle(&mut self) {
        self.sweep(Sweep::Answers, None, None);
        if self.refused_left == 0 && !self.ledger.is_sought(self.state) {
            self.state = JUNK;
            self.sweep(Sweep::IdleWrites, None, None);
        }
    }

    /// Places every enabled operation of a kind, except the one at entry `spared`. The first frame
    /// takes `choice` with it; what is left of it is returned.
    fn sweep(
        &mut self,
        kind: Sweep,
        mut choice: Option<Cursor>,
        spared: Option<usize>,
    ) -> Option<Cursor> {
        let mut entry = self.entries[HEAD].next;
        loop {
            let Entry { definite, is_return, next, previous, .. } = self.entries[entry];
            if is_return {
                return choice;
            }
            self.steps += 1;
            let step = self.definite[definite].step;
            let after = match (kind, step) {
                _ if spared == Some(entry) => None,
                (Sweep::Answers, Step::Expect(_) | Step::Differ(_)) => step.after(self.state),
                (Sweep::IdleWrites, Step::Set(value)) if !self.ledger.is_sought(value) => {
                    Some(JUNK)
                }
                _ => None,
            };
            entry = match after {
                Some(after) => {
                    self.place(Placed::Definite(definite), step, after, choice.take());
                    // Its return may have been the next entry, so ask the one before.
                    self.entries[previous].next
                }
                None => next,
            };
        }
    }

    fn place(&mut self, placed: Placed, step: Step<usize>, after: usize, choice: Option<Cursor>) {
        self.frames.push(Frame { placed, state_before: self.state, choice });
        self.state = after;
        match placed {
            Placed::Definite(index) => {
                let Definite { call_entry, return_entry, .. } = self.definite[index];
                self.unlink(call_entry);
                self.unlink(return_entry);
                self.placed.flip(index);
                self.placed_count += 1;
                self.refused_left -= usize::from(is_refused(step));
                self.ledger.remove(step, true);
            }
            Placed::Optional(index) => {
                self.placed_optional.flip(index);
                self.ledger.remove(step, false);
            }
        }
    }

    /// Takes back the last [`Self::place`].
    fn undo(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        self.state = frame.state_before;
        match frame.placed {
            Placed::Definite(index) => {
                let Definite { step, call_entry, return_entry, .. } = self.definite[index];
                self.ledger.add(step, true);
                self.refused_left += usize::from(is_refused(step));
                self.placed_count -= 1;
                self.placed.flip(index);
                self.relink(return_entry);
                self.relink(call_entry);
            }
            Placed::Optional(index) => {
                self.ledger.add(self.optional[index].step, false);
                self.placed_optional.flip(index);
            }
        }
        Some(frame)
    }

    fn unlink(&mut self, entry: usize) {
        let Entry { previous, next, .. } = self.entries[entry];
        self.entries[previous].next = next;
        self.entries[next].previous = previous;
    }

    /// The opposite of [`Self::unlink`], in opposite order: the entry still knows its neighbours.
    fn relink(&mut self, entry: usize) {
        let Entry { previous, next, .. } = self.entries[entry];
        self.entries[previous].next = entry;
        self.entries[next].previous = entry;
    }

    /// Whether an enabled compare-and-swap was refused although the register holds its value:
    /// after [`Self::settle`] every enabled one that is left is such a one.
    fn is_blocked(&self) -> bool {
        let mut entry = self.entries[HEAD].next;
        while !self.entries[entry].is_return {
            if is_refused(self.definite[self.entries[entry].definite].step) {
                return true;
            }
            entry = self.entries[entry].next;
        }
        false
    }

    fn is_worth_trying(&self, index: usize, is_blocked: bool) -> bool {
        let Optional { step, twin, .. } = self.optional[index];
        let is_placed = |index: usize| self.placed_optional.get(index);
        !is_placed(index)
            && twin.is_none_or(is_placed)
            && (is_blocked || step.yields().is_some_and(|value| self.ledger.is_sought(value)))
    }

    /// Notes the configuration; false if it is as good as known. All definite operations before
    /// the first one that is not placed are, so the words from there on describe them all.
    fn remember(&mut self) -> bool {
        let first_left = self.entries[self.entries[HEAD].next].definite;
        let mut key = vec![first_left as u64, self.state as u64];
        let mut ahead = self.placed_count - first_left;
        let mut word = first_left / 64;
        let mut mask = u64::MAX << (first_left % 64);
        while ahead > 0 {
            let bits = self.placed.0[word] & mask;
            key.push(bits);
            ahead -= bits.count_ones() as usize;
            word += 1;
            mask = u64::MAX;
        }
        let spent = &self.placed_optional.0;
        self.steps += key.len() as u64;
        let known = self.memory.entry(key.into_boxed_slice()).or_default();
        self.steps += (spent.len() * (known.len() + 1)) as u64;
        if known.iter().any(|one| is_subset(one, spent)) {
            return false;
        }
        known.retain(|one| !is_subset(spent, one));
        known.push(spent.clone().into_boxed_slice());
        true
    }
}

fn is_subset(some: &[u64], all: &[u64]) -> bool {
    some.iter().zip(all).all(|(some, all)| some & !all == 0)
}

fn is_refused<V>(step: Step<V>) -> bool {
    matches!(step, Step::Differ(_))
}

/// A number for each value that some operation looks for.
fn value_ids(moves: &[Move]) -> HashMap<u64, usize> {
    let mut ids = HashMap::new();
    for one in moves {
        let looked_for = match one.step {
            Step::Differ(value) => value,
            step => step.demands().flatten(),
        };
        if let Some(value) = looked_for {
            let fresh = FIRST_VALUE + ids.len();
            ids.entry(value).or_insert(fresh);
        }
    }
    ids
}

/// The list of calls and returns. At equal times calls stand first: a microsecond is too coarse to
/// claim that one operation ended before the other began.
fn link(spans: &[(u64, u64)], definite: &mut [Definite]) -> Vec<Entry> {
    let mut events = Vec::with_capacity(2 * spans.len());
    for (index, &(invoked_us, returned_us)) in spans.iter().enumerate() {
        events.push((invoked_us, false, index));
        events.push((returned_us, true, index));
    }
    events.sort_unstable();
    let count = events.len() + 1;
    let mut entries = Vec::with_capacity(count);
    entries.push(Entry {
        previous: count - 1,
        next: 1 % count,
        definite: 0,
        is_return: true,
        at_us: u64::MAX,
    });
    for (at_us, is_return, index) in events {
        let here = entries.len();
        let next = (here + 1) % count;
        entries.push(Entry { previous: here - 1, next, definite: index, is_return, at_us });
        if is_return {
            definite[index].return_entry = here;
        } else {
            definite[index].call_entry = here;
        }
    }
    entries
}

struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn get(&self, index: usize) -> bool {
        (self.0[index / 64] >> (index % 64)) & 1 == 1
    }

    fn flip(&mut self, index: usize) {
        self.0[index / 64] ^= 1_u64 << (index % 64);
    }
}
