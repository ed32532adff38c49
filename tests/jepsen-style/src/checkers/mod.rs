//! Judges of what clients saw: pure functions, no cluster, no clock, no files.
//!
//! - [`linearizable`]: one register per key, every operation takes effect at one moment between
//!   its call and its answer; for linearizable reads and writes, with concurrent clients.
//! - [`acknowledged`]: what was acknowledged is there after the faults, and nothing else is; for
//!   durability under kills, where each key or element is written once.
//!
//! Both take operations of unknown outcome as "may be there, may be missing" (W4) and refuse to
//! pass what they could not decide.

pub mod acknowledged;
pub mod linearizable;
