//! W1: a shard's revision never goes back. Not in the answers: what is answered to a request that
//! was sent after another answer stands at or above it, and a mutation above it. Not in a replica:
//! within one process what it holds only grows. A replica that comes back to a node is another one.

use std::collections::BTreeMap;

use annulus_types::{ReplicaId, Revision, ShardId};

use super::Violation;

const RULE: &str = "W1 revisions never go back";

/// The revisions seen so far.
#[derive(Default)]
pub(crate) struct Revisions {
    answered: BTreeMap<ShardId, Revision>,
    /// By replica, boot of its machine, and shard.
    held: BTreeMap<(ReplicaId, u64, ShardId), Revision>,
}

impl Revisions {
    /// The newest revision that any client has been told: what is asked from now on must not be
    /// answered from before it.
    pub(crate) fn floor(&self, shard: ShardId) -> Revision {
        self.answered.get(&shard).copied().unwrap_or_default()
    }

    /// An answer has arrived whose request was sent when [`Revisions::floor`] was `floor`. `is_new`
    /// when the revision is that of the request's own change.
    pub(crate) fn answered(
        &mut self,
        shard: ShardId,
        floor: Revision,
        revision: Revision,
        is_new: bool,
    ) -> Option<Violation> {
        let newest = self.answered.entry(shard).or_default();
        *newest = revision.max(*newest);
        if revision > floor || (revision == floor && !is_new) {
            return None;
        }
        let what = format!("shard {shard}: {revision} was answered after {floor}");
        Some(Violation::new(RULE, what))
    }

    /// A replica holds this revision now.
    pub(crate) fn observed(
        &mut self,
        replica: ReplicaId,
        boot: u64,
        shard: ShardId,
        revision: Revision,
    ) -> Option<Violation> {
        let former = self.held.insert((replica, boot, shard), revision);
        let former = former.filter(|former| *former > revision)?;
        let what = format!("shard {shard} of replica {replica}: {revision} after {former}");
        Some(Violation::new(RULE, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(3);

    #[test]
    fn an_answer_from_before_the_floor_is_found() {
        let mut revisions = Revisions::default();
        assert_eq!(revisions.floor(SHARD), Revision(0));
        assert!(revisions.answered(SHARD, Revision(0), Revision(0), false).is_none());
        assert!(revisions.answered(SHARD, Revision(0), Revision(5), true).is_none());
        let floor = revisions.floor(SHARD);
        assert_eq!(floor, Revision(5));
        assert!(revisions.answered(SHARD, floor, Revision(5), false).is_none());
        assert!(revisions.answered(SHARD, floor, Revision(5), true).is_some(), "given twice");
        assert!(revisions.answered(SHARD, floor, Revision(4), false).is_some());
        let concurrent = revisions.answered(SHARD, Revision(0), Revision(3), true);
        assert!(concurrent.is_none(), "it was sent before the newer answer");
        assert_eq!(revisions.floor(SHARD), Revision(5));
    }

    #[test]
    fn a_replica_that_falls_back_is_found_and_a_restart_or_another_one_is_not() {
        let mut revisions = Revisions::default();
        assert!(revisions.observed(ReplicaId(1), 1, SHARD, Revision(5)).is_none());
        assert!(revisions.observed(ReplicaId(1), 2, SHARD, Revision(1)).is_none());
        assert!(revisions.observed(ReplicaId(1), 2, SHARD, Revision(0)).is_some());
        assert!(revisions.observed(ReplicaId(2), 2, SHARD, Revision(0)).is_none());
    }
}
