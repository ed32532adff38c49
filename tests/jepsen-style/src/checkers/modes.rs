//! Reads that need no leader: `session`, `bounded` and `any` (R4, R5).
//!
//! Each key has one writer, which writes 1, 2, 3 …, the next when the last has ended, and leaves the key
//! for good after a write of unknown outcome: so the key's writes have one order, that of their numbers,
//! and at most the last of them is in doubt. A client is one session. Keys with the same text before
//! their colon are in one shard.
//!
//! - *any*: the value was written, before the read ended, and not by a write that certainly failed.
//! - *bounded*: as above, and no write that was acknowledged longer ago than the bound, by the clock of
//!   the clients' one process, is missing.
//! - *session*: as above without a bound, and the value is not below the session's *floor* for the key.
//!   The floor is what the session has written or seen of the key (read your writes, monotonic reads).
//!   Seeing a write also brings the floors that its writer's session had when it was sent, for keys of
//!   that shard (monotonic writes, writes follow reads): what came before is there too. A session's history is
//!   never lost (R5): nothing here restores a shard or forces its recovery.
//!
//! A history without an answered read of each mode proves nothing and does not pass.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Violations;
use crate::journal::{End, Entry};

/// How a read was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Whatever a replica has.
    Any,
    /// Not older than this.
    Bounded {
        /// Milliseconds.
        limit_ms: u64,
    },
    /// At least what the session has seen.
    Session,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// The next write of a key.
    Write {
        /// The key.
        key: String,
        /// Its number, from 1.
        sequence: u64,
    },
    /// A read.
    Read {
        /// The key.
        key: String,
        /// How.
        mode: Mode,
    },
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The write is done.
    Written,
    /// The number that was read; 0 when the key is absent.
    Saw(u64),
    /// What the session has seen is said not to exist any more.
    HistoryLost,
}

/// Answered reads, by mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the consistency `any`.
    pub any: u64,
    /// Of `bounded`.
    pub bounded: u64,
    /// Of `session`.
    pub session: u64,
}

/// By key, the number below which a session must not read.
type Floors<'a> = BTreeMap<&'a str, u64>;

/// What keys of one shard have in common.
fn group(key: &str) -> &str {
    key.split(':').next().unwrap_or(key)
}

/// Judges the reads.
///
/// # Errors
/// Everything that is wrong.
pub fn check(entries: &[Entry<Call, Answer>]) -> Result<Counts, Violations> {
    let mut judge = Judge::default();
    // Every event in its place in time: an invocation, or the arrival of an answer.
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        events.push((entry.invoked_us, at, false));
        events.extend(entry.completed_us.map(|ended_us| (ended_us, at, true)));
    }
    events.sort_unstable();
    for (_, at, is_end) in events {
        let entry = &entries[at];
        match &entry.call {
            Call::Write { key, sequence } if is_end => judge.write_ended(entry, key, *sequence),
            Call::Write { key, sequence } => judge.write_begun(entry, key, *sequence),
            Call::Read { key, mode } if is_end => judge.read_ended(at, entry, key, *mode),
            Call::Read { key, .. } => judge.read_begun(at, entry, key),
        }
    }
    let Counts { any, bounded, session } = judge.counts;
    for (count, mode) in [(any, "any"), (bounded, "bounded"), (session, "session")] {
        if count == 0 {
            judge.wrong.push(format!("no read of the consistency {mode} was answered"));
        }
    }
    Violations::verdict(judge.wrong).map(|()| judge.counts)
}

#[derive(Default)]
struct Judge<'a> {
    /// Writes that were begun.
    writes: BTreeMap<(&'a str, u64), Written<'a>>,
    /// Acknowledged writes of each key, by time, which is also the order of their numbers.
    acknowledged: BTreeMap<&'a str, Vec<(u64, u64)>>,
    /// By session.
    floors: BTreeMap<u64, Floors<'a>>,
    /// Of each read under way, the floor when it began.
    asked: BTreeMap<usize, u64>,
    counts: Counts,
    wrong: Vec<String>,
}

struct Written<'a> {
    is_failed: bool,
    /// What its writer had seen of the shard.
    brings: Floors<'a>,
}

impl<'a> Judge<'a> {
    fn write_begun(&mut self, entry: &'a Entry<Call, Answer>, key: &'a str, sequence: u64) {
        let floors = self.floors.entry(entry.process).or_default();
        let brings = floors
            .iter()
            .filter(|(other, _)| group(other) == group(key))
            .map(|(other, floor)| (*other, *floor))
            .collect();
        let written = Written { is_failed: entry.end == End::Failed, brings };
        if self.writes.insert((key, sequence), written).is_some() {
            self.wrong.push(format!("{key}: the workload wrote {sequence} twice"));
        }
    }

    fn write_ended(&mut self, entry: &'a Entry<Call, Answer>, key: &'a str, sequence: u64) {
        if let Some((Answer::Written, ended_us)) = entry.answer() {
            self.acknowledged.entry(key).or_default().push((ended_us, sequence));
            raise(self.floors.entry(entry.process).or_default(), key, sequence);
        }
    }

    fn read_begun(&mut self, at: usize, entry: &'a Entry<Call, Answer>, key: &'a str) {
        let floors = self.floors.entry(entry.process).or_default();
        self.asked.insert(at, floors.get(key).copied().unwrap_or(0));
    }

    fn read_ended(&mut self, at: usize, entry: &'a Entry<Call, Answer>, key: &'a str, mode: Mode) {
        let asked = self.asked.remove(&at).unwrap_or(0);
        let Some((answer, ended_us)) = entry.answer() else { return };
        let saw = match answer {
            Answer::Saw(saw) => *saw,
            Answer::HistoryLost => {
                let process = entry.process;
                self.wrong.push(format!(
                    "{key}: process {process} was told that its history is lost, until {ended_us} us, {mode:?}"
                ));
                return;
            }
            Answer::Written => return,
        };
        let shown = format!(
            "{key}: process {} saw {saw} between {} and {ended_us} us, {mode:?}",
            entry.process, entry.invoked_us
        );
        match self.writes.get(&(key, saw)) {
            None if saw == 0 => {}
            None => self.wrong.push(format!("{shown}: nobody had written that")),
            Some(written) if written.is_failed => {
                self.wrong.push(format!("{shown}: that was reported as not applied"));
            }
            Some(_) => {}
        }
        match mode {
            Mode::Any => self.counts.any += 1,
            Mode::Bounded { limit_ms } => {
                self.counts.bounded += 1;
                let acknowledged =
                    self.acknowledged.get(key).map(Vec::as_slice).unwrap_or_default();
                let count = acknowledged
                    .partition_point(|(at_us, _)| at_us + limit_ms * 1000 < entry.invoked_us);
                let least = count.checked_sub(1).map_or(0, |last| acknowledged[last].1);
                if saw < least {
                    self.wrong.push(format!("{shown}: {least} was acknowledged longer ago"));
                }
            }
            Mode::Session => {
                self.counts.session += 1;
                if saw < asked {
                    self.wrong.push(format!("{shown}: the session knew of {asked}"));
                }
            }
        }
        let floors = self.floors.entry(entry.process).or_default();
        raise(floors, key, saw);
        if let Some(written) = self.writes.get(&(key, saw)) {
            for (&other, &floor) in &written.brings {
                raise(floors, other, floor);
            }
        }
    }
}

fn raise<'a>(floors: &mut Floors<'a>, key: &'a str, to: u64) {
    let floor = floors.entry(key).or_default();
    *floor = to.max(*floor);
}

#[cfg(test)]
mod tests;
