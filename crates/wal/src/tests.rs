//! Tests of the log as a whole, on a disk that can lose and spoil what it was given.
//!
//! A rule is tested by a function that takes the rule to turn off: it must find nothing with all
//! rules on, and something with that one rule off.

mod crash;
mod damage;
mod disk;
mod format;
mod handles;
mod memberships;
mod model;
mod positions;
mod recycle;
