//! Fault injection on real processes: run the binary, hurt it, and judge what clients saw.
//!
//! A run has parts that know nothing of each other. *Processes* are real children, started, paused and
//! killed through guards ([`process`]), cut from each other at a [`proxy`]; when, and whom, says a
//! [`nemesis`]. *Clients* send operations ([`workloads`]) and write down, before sending and after the
//! answer, what they did ([`history`], [`journal`]). *Checkers* are pure functions over what was written
//! down ([`checkers`]): they need no cluster, and are tested against histories with known verdicts.
//!
//! # What a verdict is worth
//! - An operation *failed* only if it is certain that it was not and will not be applied (W4).
//!   Everything else that is not an answer is *unknown*: it may take effect at any later time, or
//!   never. A client that guesses here makes every checker blind.
//! - A check passes only on a proof. A search that gave up, a process that did not end, a history
//!   that could not be written in full: each is an error of the run, never a pass.
//! - Nothing is waited for by sleeping: [`process::wait_until`] waits for a condition, with a
//!   deadline, and says what it waited for.
//! - What a failed run leaves (data, logs, history) is kept and its path printed.
//!
//! Checkers do not talk to a cluster, and nothing here reaches into the product: what can be
//! observed through the client library, the command line and signals is all there is.

pub mod checkers;
pub mod cluster;
pub mod command;
mod crew;
pub mod history;
pub mod journal;
pub mod kills;
pub mod load;
pub mod nemesis;
pub mod owners;
pub mod process;
pub mod proxy;
pub mod run;
pub mod scenarios;
pub mod workloads;
