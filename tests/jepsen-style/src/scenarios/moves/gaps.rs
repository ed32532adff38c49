//! How long keys took no writes while their leader changed, from acknowledgements alone. Pure.
//!
//! A *gap* is the time from the last acknowledged write in one term to the first one in the next, as the
//! clients' clock saw them; a leader that is elected again counts as another one. What a key is, the caller
//! says: a shard that many clients write to, or one key that one client writes without a pause. A gap holds
//! the time between two writes too, so it means something only where writes never cease.

use std::collections::BTreeMap;

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) node: u32,
    pub(super) term: u64,
    /// When its call began.
    pub(super) sent_us: u64,
    pub(super) at_us: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// By key.
    last: BTreeMap<u64, Ack>,
    gaps_us: Vec<u64>,
}

impl Gaps {
    /// The load begins: whatever happened while there was none is no gap.
    pub(super) fn begin(&mut self) {
        self.last.clear();
    }

    /// A write to a key was acknowledged.
    pub(super) fn acknowledged(&mut self, key: u64, ack: Ack) {
        let last = self.last.entry(key).or_insert(ack);
        if ack.term < last.term {
            // Overtaken by the first one at the next leader.
            return;
        }
        if ack.term != last.term || ack.node != last.node {
            self.gaps_us.push(ack.at_us.saturating_sub(last.at_us));
        }
        let (sent_us, at_us) = (ack.sent_us.max(last.sent_us), ack.at_us.max(last.at_us));
        *last = Ack { sent_us, at_us, ..ack };
    }

    /// Whether the key has acknowledged a write that was sent after `sent_us`, by another node than `dead`.
    pub(super) fn is_served_since(&self, key: u64, sent_us: u64, dead: u32) -> bool {
        self.last.get(&key).is_some_and(|ack| ack.sent_us > sent_us && ack.node != dead)
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

    /// Acknowledged at once.
    fn ack(node: u32, term: u64, at_us: u64) -> Ack {
        Ack { node, term, sent_us: at_us, at_us }
    }

    #[test]
    fn a_gap_is_from_the_last_write_in_one_term_to_the_first_in_the_next() {
        let mut gaps = Gaps::default();
        for (key, ack) in [
            (7, ack(1, 3, 100)),
            (7, ack(1, 3, 140)),
            (8, ack(2, 1, 150)),
            (7, ack(2, 4, 190)),
            (7, ack(1, 3, 195)),
            (7, ack(2, 4, 200)),
        ] {
            gaps.acknowledged(key, ack);
        }
        assert_eq!(gaps.figures(), (1, 50, 50), "a late answer of the old leader changes nothing");
        gaps.acknowledged(7, ack(2, 5, 900));
        assert_eq!(gaps.figures(), (2, 700, 700), "the same node, elected again");
        gaps.acknowledged(8, ack(3, 2, 180));
        assert_eq!(gaps.figures(), (3, 50, 700));
    }

    #[test]
    fn a_pause_of_the_load_is_no_gap() {
        let mut gaps = Gaps::default();
        gaps.acknowledged(7, ack(1, 3, 100));
        gaps.begin();
        assert!(!gaps.is_served_since(7, 0, 9));
        gaps.acknowledged(7, ack(2, 4, 900));
        assert_eq!(gaps.figures(), (0, 0, 0));
    }

    #[test]
    fn a_key_is_served_by_a_write_that_was_sent_later_to_a_living_node() {
        let mut gaps = Gaps::default();
        gaps.acknowledged(7, Ack { sent_us: 90, ..ack(1, 3, 120) });
        assert!(!gaps.is_served_since(7, 100, 2), "sent before");
        gaps.acknowledged(7, ack(1, 3, 130));
        assert!(gaps.is_served_since(7, 100, 2));
        assert!(!gaps.is_served_since(7, 100, 1), "the dead node's own word");
        assert!(!gaps.is_served_since(8, 0, 2));
    }
}
