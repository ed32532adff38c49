//! H3: a move takes one voter out and brings one in, and who comes lives: a change of voters never leaves a
//! group with fewer live ones than it had.
//!
//! Nobody can know at the moment of a change who has just died, the manager not for some seconds. So a voter
//! counts as surely live when it was there at every look of the last [`WINDOW_MS`], and as possibly live when
//! it was at any.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::{GroupId, ReplicaId};

use super::Violation;

const RULE: &str = "H3 a move keeps the live voters";

/// Longer than a node may be dead before the manager knows, and a command of its on the way after that.
const WINDOW_MS: u64 = 10_000;

/// The voters seen so far.
#[derive(Default)]
pub(crate) struct Voters {
    /// Of the replicas that are there, since when they were at every look.
    since_ms: BTreeMap<ReplicaId, u64>,
    /// When each replica was there last.
    last_ms: BTreeMap<ReplicaId, u64>,
    /// The voters by the newest committed, uniform membership, and its index.
    settled: BTreeMap<GroupId, (u64, BTreeSet<ReplicaId>)>,
}

impl Voters {
    /// One look: the replicas that are open in running processes.
    pub(crate) fn look(&mut self, now_ms: u64, open: &BTreeSet<ReplicaId>) {
        self.since_ms.retain(|replica, _| open.contains(replica));
        for replica in open {
            self.since_ms.entry(*replica).or_insert(now_ms);
            self.last_ms.insert(*replica, now_ms);
        }
    }

    /// The committed, uniform membership of a group as its leader tells it at this look.
    pub(crate) fn settled(
        &mut self,
        group: GroupId,
        (index, voters): (u64, BTreeSet<ReplicaId>),
        now_ms: u64,
    ) -> Option<Violation> {
        let (before, former) = self.settled.get(&group).cloned().unwrap_or_default();
        if before >= index {
            return None;
        }
        self.settled.insert(group, (index, voters.clone()));
        if former.is_empty() || former == voters {
            return None;
        }
        let begun_ms = now_ms.saturating_sub(WINDOW_MS);
        let surely =
            |replica: &&ReplicaId| self.since_ms.get(*replica).is_some_and(|at| *at <= begun_ms);
        let possibly =
            |replica: &&ReplicaId| self.last_ms.get(*replica).is_some_and(|at| *at >= begun_ms);
        let (had, has) =
            (former.iter().filter(surely).count(), voters.iter().filter(possibly).count());
        let (gone, come) = (former.difference(&voters).count(), voters.difference(&former).count());
        let problem = if gone > 1 || come > 1 {
            format!("{gone} voters left and {come} came at once")
        } else if come > 0 && has < had {
            format!("of {had} live voters {has} are left")
        } else if 2 * has <= voters.len() {
            format!("of {} voters {has} live", voters.len())
        } else {
            return None;
        };
        let what =
            format!("group {group}, from {former:?} to {voters:?} by entry {index}: {problem}");
        Some(Violation::new(RULE, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: &[u64]) -> BTreeSet<ReplicaId> {
        replicas.iter().copied().map(ReplicaId).collect()
    }

    /// Three voters that live, and a fourth replica that does from `born_ms` to `dead_ms`; the membership
    /// that is seen at 30 s.
    fn judged(born_ms: u64, dead_ms: u64, to: &[u64]) -> Option<Violation> {
        let mut voters = Voters::default();
        assert!(voters.settled(GroupId(1), (4, set(&[1, 2, 3])), 0).is_none());
        for now_ms in (0..=30_000).step_by(1_000) {
            let is_there = (born_ms..dead_ms).contains(&now_ms);
            voters.look(now_ms, &if is_there { set(&[1, 2, 3, 4]) } else { set(&[1, 2, 3]) });
        }
        assert!(voters.settled(GroupId(1), (4, set(&[9])), 30_000).is_none(), "known already");
        voters.settled(GroupId(1), (5, set(to)), 30_000)
    }

    #[test]
    fn a_move_to_a_dead_node_and_two_moves_at_once_are_found() {
        assert!(judged(28_000, 99_000, &[1, 2, 4]).is_none());
        assert!(judged(5_000, 29_000, &[1, 2, 4]).is_none(), "it may have died since");
        assert!(judged(5_000, 6_000, &[1, 2, 4]).is_some());
        assert!(judged(0, 0, &[1, 2, 4]).is_some(), "it never was");
        assert!(judged(0, 99_000, &[1, 4, 5]).is_some());
        assert!(judged(0, 99_000, &[1, 2]).is_none(), "one leaves");
        assert!(judged(0, 99_000, &[1]).is_some());
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_live_one() {
        let mut voters = Voters::default();
        assert!(voters.settled(GroupId(1), (4, set(&[1, 2, 3])), 0).is_none());
        for now_ms in (0..=30_000).step_by(1_000) {
            voters.look(now_ms, &set(&[1, 2, 5]));
        }
        assert!(voters.settled(GroupId(1), (6, set(&[1, 2, 5])), 30_000).is_none());
    }
}
