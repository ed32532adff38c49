//! Whom a group can count on: which replicas are sound, and whether a member can be spared.
//!
//! Judged by what nodes say of their replicas just now, not by what a leader knows of its followers: a
//! replica that serves nothing may still hold all entries.
//!
//! # Invariants
//!
//! - A replica that its node has not told of just now is not counted on; whether that ends a move or is
//!   waited for depends on whether the node itself was heard.
//! - Beyond a majority, a member is spared without a successor only while the others are as many as the
//!   group should have: its replication, or one for each node that could hold a seat if those are fewer.
//!
//! Nothing here decides what becomes of a move.

use annulus_proto::v1;

use super::Round;
use crate::planning::is_dead;
use crate::sight::FRESH_MS;
use crate::state::{StateExt, is_up};

/// What is known of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Its node has just reported it, and it serves.
    Sound,
    /// Its node counts as up and has not been heard just now: soon it is heard, or down.
    Unheard,
    /// It is lost, or its node is down, does not hold it, or says that it serves nothing.
    Broken,
}

/// Whether a group can spare the member that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spares {
    Yes,
    /// It depends on voters whose nodes were not heard just now.
    Unheard,
    No(&'static str),
}

impl Round<'_> {
    pub(super) fn health(&self, node: u32, replica: u64) -> Health {
        let Some(known) = self.state.node(node).filter(|known| is_up(known)) else {
            return Health::Broken;
        };
        if self.state.is_lost(replica) {
            return Health::Broken;
        }
        let now_ms = self.now.mono_ms;
        // `None` also while only a former life of the node was heard.
        let Some(heard_ms) = self.sight.heard_ms(known, now_ms) else { return Health::Unheard };
        match self.sight.replica(node, replica, now_ms) {
            Some(seen) if !seen.absent && seen.report.halted.is_empty() => Health::Sound,
            None if heard_ms > FRESH_MS => Health::Unheard,
            _ => Health::Broken,
        }
    }

    /// Whether the group can go on, as large as it should be, without the member that leaves. Always where
    /// somebody comes for it.
    pub(super) fn spares(&self, step: &v1::Move, report: &v1::GroupReport) -> Spares {
        let Some(from) = step.from.filter(|_| step.to.is_none()) else { return Spares::Yes };
        let (mut voters, mut sound, mut unheard) = (0usize, 0usize, 0usize);
        for seat in report.seats.iter().filter(|it| it.voter && it.replica != from.replica) {
            voters += 1;
            match self.health(seat.node, seat.replica) {
                Health::Sound => sound += 1,
                Health::Unheard => unheard += 1,
                Health::Broken => {}
            }
        }
        let majority = voters / 2 + 1;
        let least = majority.max(self.least_members(step.group));
        if sound >= least {
            Spares::Yes
        } else if sound + unheard >= least {
            Spares::Unheard
        } else if sound + unheard < majority {
            Spares::No("the others would be no majority")
        } else {
            Spares::No("fewer live members would be left than the group should have")
        }
    }

    /// Members that a group is not brought below by a plan.
    fn least_members(&self, group: u64) -> usize {
        if group == 0 {
            return 0;
        }
        let can_hold = |node: &&v1::NodeRecord| {
            let stores = node.info.as_ref().is_some_and(|info| info.storage);
            stores && !node.draining && !is_dead(self.state, node, self.now.group_ms)
        };
        let nodes = self.state.nodes.iter().filter(can_hold).count();
        nodes.min(usize::try_from(self.state.replication).unwrap_or(usize::MAX))
    }
}
