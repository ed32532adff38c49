//! Judges of what clients saw: pure functions, no cluster, no clock, no files.
//!
//! - [`linearizable`]: one register per key, every operation takes effect at one moment between
//!   its call and its answer; for linearizable reads and writes, with concurrent clients.
//! - [`acknowledged`]: what was acknowledged is there after the faults, and nothing else is; for
//!   durability under kills, where each key or element is written once.
//! - [`set`]: elements that several clients add, to keys of their own and to shared lists.
//! - [`counter`]: sums that several clients add to; every value lies between what was acknowledged
//!   before and what was started before.
//! - [`bank`]: transfers between accounts of one shard; money is neither made nor lost.
//! - [`modes`]: reads that need no leader, `session`, `bounded` and `any`.
//!
//! All take operations of unknown outcome as "may be there, may be missing" (W4) and refuse to pass
//! what they could not decide, or what was never observed.

pub mod acknowledged;
pub mod bank;
pub mod counter;
pub mod linearizable;
pub mod modes;
pub mod set;

use std::fmt;

/// Most violations that the text of [`Violations`] spells out.
const SHOWN_MOST: usize = 20;

/// Everything that is wrong, in words; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub Vec<String>);

impl Violations {
    /// `Ok` only without any.
    ///
    /// # Errors
    /// The violations.
    fn verdict(violations: Vec<String>) -> Result<(), Self> {
        if violations.is_empty() { Ok(()) } else { Err(Self(violations)) }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violations", self.0.len())?;
        for violation in self.0.iter().take(SHOWN_MOST) {
            write!(f, "\n  {violation}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MOST) {
            0 => Ok(()),
            hidden => write!(f, "\n  and {hidden} more"),
        }
    }
}

impl std::error::Error for Violations {}
