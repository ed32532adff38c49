//! The books of the search: for each value, who is still to come and has to do with it.
//!
//! They answer in constant time whether a value matters to anybody who is left and whether one is
//! lost for good. The search keeps them: it takes an operation out when it places it and puts it
//! back when it undoes that. Wrong books would make a good history look bad, or the reverse.

use super::search::Step;

/// For each value, the operations that are still to come and have to do with it.
pub(super) struct Ledger {
    /// Definite operations that must see the value.
    observers: Vec<usize>,
    /// Operations of both kinds that leave it in the register.
    producers: Vec<usize>,
    /// Optional compare-and-swaps that would start from the value. They need not happen.
    hopefuls: Vec<usize>,
    /// Values with observers and without producers.
    orphans: usize,
}

impl Ledger {
    pub(super) fn new(values: usize) -> Self {
        Self {
            observers: vec![0; values],
            producers: vec![0; values],
            hopefuls: vec![0; values],
            orphans: 0,
        }
    }

    pub(super) fn is_orphan(&self, value: usize) -> bool {
        self.observers[value] > 0 && self.producers[value] == 0
    }

    pub(super) fn is_sought(&self, value: usize) -> bool {
        self.observers[value] > 0 || self.hopefuls[value] > 0
    }

    /// Whether every orphan is in the register and can still be seen: else there is no order any
    /// more.
    pub(super) fn allows(&self, state: usize) -> bool {
        self.orphans == usize::from(self.is_orphan(state))
    }

    /// An operation is to come (again).
    pub(super) fn add(&mut self, step: Step<usize>, is_definite: bool) {
        self.change(step, is_definite, |count| *count += 1);
    }

    /// An operation is placed.
    pub(super) fn remove(&mut self, step: Step<usize>, is_definite: bool) {
        self.change(step, is_definite, |count| *count -= 1);
    }

    fn change(&mut self, step: Step<usize>, is_definite: bool, by_one: fn(&mut usize)) {
        if let Some(value) = step.demands() {
            if is_definite {
                let was_orphan = self.is_orphan(value);
                by_one(&mut self.observers[value]);
                self.recount(value, was_orphan);
            } else {
                by_one(&mut self.hopefuls[value]);
            }
        }
        if let Some(value) = step.yields() {
            let was_orphan = self.is_orphan(value);
            by_one(&mut self.producers[value]);
            self.recount(value, was_orphan);
        }
    }

    fn recount(&mut self, value: usize, was_orphan: bool) {
        match (was_orphan, self.is_orphan(value)) {
            (false, true) => self.orphans += 1,
            (true, false) => self.orphans -= 1,
            (true, true) | (false, false) => {}
        }
    }

    /// The values that an observer sees, also by way of optional compare-and-swaps.
    pub(super) fn useful(&self, optional: &[Step<usize>]) -> Vec<bool> {
        let mut useful: Vec<bool> = self.observers.iter().map(|&count| count > 0).collect();
        loop {
            let mut grew = false;
            // Chains lead from early to late, so backwards one pass mostly does.
            for &step in optional.iter().rev() {
                if let Step::Swap { from, to } = step
                    && useful[to]
                    && !useful[from]
                {
                    useful[from] = true;
                    grew = true;
                }
            }
            if !grew {
                return useful;
            }
        }
    }
}
