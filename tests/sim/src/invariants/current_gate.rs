//! R1 b: behind an open gate lies everything that was acknowledged. A new leader's gate opens only
//! when an entry of its own term is applied, and with it all that others were told before.

use annulus_types::{NodeId, Revision, ShardId};

use super::Violation;

const RULE: &str = "R1 the open gate is current";

/// Judges the state of a shard behind an open gate. `held` is what the replica has applied;
/// `acknowledged` is the newest revision that a client has been told.
pub(crate) fn judge(
    node: NodeId,
    shard: ShardId,
    held: Option<Revision>,
    acknowledged: Revision,
) -> Option<Violation> {
    if held.unwrap_or_default() >= acknowledged {
        return None;
    }
    let held = held.map_or_else(|| "nothing".to_owned(), |held| format!("revision {held}"));
    let what = format!(
        "shard {shard}: node {node} has an open gate and holds {held}; {acknowledged} was \
         acknowledged"
    );
    Some(Violation::new(RULE, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_gate_before_stale_state_is_found() {
        let judged = |held, told| judge(NodeId(1), ShardId(2), held, Revision(told)).is_some();
        assert!(!judged(None, 0) && !judged(Some(Revision(4)), 4) && !judged(Some(Revision(5)), 4));
        assert!(judged(Some(Revision(3)), 4) && judged(None, 1));
    }
}
