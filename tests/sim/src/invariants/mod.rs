//! What must hold, whatever the seed: one file for each, named after what it says, with the rule
//! that it stands for.
//!
//! They are pure: they get what was seen and answer with what is wrong. While a run goes on,
//! [`one_gate`], [`current_gate`], [`revisions`], [`voters`], [`destroyed`] and [`alive`] are asked every
//! 20 simulated milliseconds or with every answer; after it, with all faults over, [`quotas`],
//! [`convergence`], [`acknowledged`] and [`linearizable`].

use std::fmt;

pub(crate) mod acknowledged;
pub(crate) mod alive;
pub(crate) mod convergence;
pub(crate) mod current_gate;
pub(crate) mod destroyed;
pub(crate) mod linearizable;
pub(crate) mod one_gate;
pub(crate) mod quotas;
pub(crate) mod revisions;
pub(crate) mod voters;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule, by its name.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}
