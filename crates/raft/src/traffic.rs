//! What it costs the network to bring up new replicas, and the least that would have done.
//!
//! Every node counts both ends. As a sender: the bytes of state files, and of append frames to learners.
//! As a receiver: what a new replica really had to take in until it first had a vote, that is the rows of
//! the state that was installed, and the entries that it appended since. Summed over the nodes of a
//! cluster, and as long as none of them restarts, the first two are what the moves of seats have cost, the
//! other two what they needed; attempts that failed are in the first two only.
//!
//! The receiver counts what was needed, because it alone is there from the copy's beginning to the vote: a
//! leader may hand over in between, and be destroyed as the one that leaves. For the same reason counts
//! belong to the node and not to a replica.
//!
//! # Invariants
//!
//! - What a replica took in counts once, when its log first says that it votes, and never if it never
//!   does: of several states the first one, and each index of the log once, whatever was truncated or
//!   replaced meanwhile. So nothing that was sent twice is needed twice. Entries that came in one piece with
//!   that membership are left out, as they are at the sender, for which the learner has the vote by then.
//! - Nothing is decided by these counts. They live in memory: a restart begins at zero, and a replica that
//!   restarts before it votes has needed less than it did.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts since the process began, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveTraffic {
    /// State files that were sent to other replicas, whether they arrived or not.
    pub state_sent: u64,
    /// Append frames that were sent to learners, heartbeats included.
    pub log_sent: u64,
    /// Names and values of the rows of states that were installed here, of replicas that vote by now.
    pub state_needed: u64,
    /// Entries, as the log stores them, that such replicas appended while they had no vote.
    pub log_needed: u64,
}

/// The counters of a node.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    state_sent: AtomicU64,
    log_sent: AtomicU64,
    state_needed: AtomicU64,
    log_needed: AtomicU64,
}

fn add(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Meter {
    pub(crate) fn state_sent(&self, bytes: usize) {
        add(&self.state_sent, bytes);
    }

    pub(crate) fn log_sent(&self, bytes: usize) {
        add(&self.log_sent, bytes);
    }

    pub(crate) fn read(&self) -> MoveTraffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MoveTraffic {
            state_sent: of(&self.state_sent),
            log_sent: of(&self.log_sent),
            state_needed: of(&self.state_needed),
            log_needed: of(&self.log_needed),
        }
    }
}

/// What one replica took in before it first had a vote.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    is_over: AtomicBool,
    has_state: AtomicBool,
    state: AtomicU64,
    log: AtomicU64,
    /// Entries below this index were counted, or came before the first that was.
    next_index: AtomicU64,
}

impl Arrival {
    /// A state with so many bytes in its rows was installed.
    pub(crate) fn took_state(&self, bytes: usize) {
        if !self.is_over.load(Ordering::Relaxed) && !self.has_state.swap(true, Ordering::Relaxed) {
            add(&self.state, bytes);
        }
    }

    /// Entries with these indexes and sizes in bytes were appended, in order. Appends of a replica come one
    /// after another.
    pub(crate) fn took_log(&self, entries: impl Iterator<Item = (u64, usize)>) {
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        for (index, bytes) in entries {
            if index >= self.next_index.load(Ordering::Relaxed) {
                self.next_index.store(index + 1, Ordering::Relaxed);
                add(&self.log, bytes);
            }
        }
    }

    /// The replica has a vote.
    pub(crate) fn votes(&self, meter: &Meter) {
        if !self.is_over.swap(true, Ordering::Relaxed) {
            meter.state_needed.fetch_add(self.state.load(Ordering::Relaxed), Ordering::Relaxed);
            meter.log_needed.fetch_add(self.log.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_took_in_counts_once_and_only_when_it_votes() {
        let meter = Meter::default();
        let (voted, gave_up) = (Arrival::default(), Arrival::default());
        for arrival in [&voted, &gave_up] {
            arrival.took_state(700);
            arrival.took_log([(4, 20)].into_iter());
            arrival.took_log([(5, 2), (6, 1)].into_iter());
        }
        meter.state_sent(1_500);
        meter.log_sent(60);
        let sent = MoveTraffic { state_sent: 1_500, log_sent: 60, ..MoveTraffic::default() };
        assert_eq!(meter.read(), sent);
        voted.votes(&meter);
        let counted = MoveTraffic { state_needed: 700, log_needed: 23, ..sent };
        assert_eq!(meter.read(), counted);
        voted.took_log([(7, 9)].into_iter());
        voted.took_state(9);
        voted.votes(&meter);
        assert_eq!(meter.read(), counted, "a voter is no newcomer");
    }

    #[test]
    fn a_second_state_and_entries_that_come_again_are_not_needed() {
        let (meter, arrival) = (Meter::default(), Arrival::default());
        arrival.took_log([(0, 1), (1, 2), (2, 4)].into_iter());
        // Truncated after entry 0, and written anew.
        arrival.took_log([(1, 8), (2, 16), (3, 32)].into_iter());
        arrival.took_state(700);
        arrival.took_state(900);
        arrival.took_log([(20, 64)].into_iter());
        arrival.votes(&meter);
        let needed = 1 + 2 + 4 + 32 + 64;
        let counted =
            MoveTraffic { state_needed: 700, log_needed: needed, ..MoveTraffic::default() };
        assert_eq!(meter.read(), counted);
    }
}
