//! How long groups took no writes when another node began to lead them, from acknowledgements alone. Pure.
//!
//! A *gap* is the time from the last acknowledged write at the old leader to the first one at the new one,
//! as the clients' clock saw them. It holds the time between two writes of a group too, so it means
//! something only under a load that writes to every group all the time.

use std::collections::BTreeMap;

/// Whose acknowledgements of a group came last.
#[derive(Clone, Copy, Debug)]
struct Led {
    node: u32,
    term: u64,
    last_us: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    groups: BTreeMap<u64, Led>,
    gaps_us: Vec<u64>,
}

impl Gaps {
    /// The load begins: whatever happened while there was none is no gap.
    pub(super) fn begin(&mut self) {
        self.groups.clear();
    }

    /// A write to a group was acknowledged, by this node in this term.
    pub(super) fn acknowledged(&mut self, group: u64, node: u32, term: u64, at_us: u64) {
        let led = self.groups.entry(group).or_insert(Led { node, term, last_us: at_us });
        if term < led.term {
            // Overtaken by the first one at the next leader.
            return;
        }
        if node != led.node {
            self.gaps_us.push(at_us.saturating_sub(led.last_us));
        }
        *led = Led { node, term, last_us: at_us.max(led.last_us) };
    }

    /// Whether each of these groups has acknowledged a write after `at_us`.
    pub(super) fn are_served_since(&self, groups: &[u64], at_us: u64) -> bool {
        let is_served = |group: &u64| self.groups.get(group).is_some_and(|led| led.last_us > at_us);
        groups.iter().all(is_served)
    }

    /// How many gaps there were, their median and the longest, microseconds.
    pub(super) fn figures(&self) -> (usize, u64, u64) {
        let mut gaps = self.gaps_us.clone();
        gaps.sort_unstable();
        let median = gaps.get(gaps.len() / 2).copied().unwrap_or(0);
        (gaps.len(), median, gaps.last().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_from_the_last_write_at_one_leader_to_the_first_at_the_next() {
        let mut gaps = Gaps::default();
        gaps.acknowledged(7, 1, 3, 100);
        gaps.acknowledged(7, 1, 3, 140);
        gaps.acknowledged(8, 2, 1, 150);
        gaps.acknowledged(7, 2, 4, 190);
        gaps.acknowledged(7, 1, 3, 195);
        gaps.acknowledged(7, 2, 4, 200);
        assert_eq!(gaps.figures(), (1, 50, 50), "a late answer of the old leader changes nothing");
        gaps.acknowledged(7, 2, 5, 900);
        assert_eq!(gaps.figures().0, 1, "the same node again");
        gaps.acknowledged(8, 3, 2, 180);
        gaps.acknowledged(8, 2, 3, 190);
        assert_eq!(gaps.figures(), (3, 30, 50));
    }

    #[test]
    fn a_pause_of_the_load_is_no_gap() {
        let mut gaps = Gaps::default();
        gaps.acknowledged(7, 1, 3, 100);
        assert!(gaps.are_served_since(&[7], 99) && !gaps.are_served_since(&[7], 100));
        gaps.begin();
        assert!(!gaps.are_served_since(&[7], 0));
        gaps.acknowledged(7, 2, 4, 900);
        assert_eq!(gaps.figures(), (0, 0, 0));
        assert!(!gaps.are_served_since(&[7, 8], 0));
    }
}
