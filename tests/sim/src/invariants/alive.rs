//! W8, L5: a node stops, a replica halts, and a log is damaged only for a reason that was
//! inflicted. No fault of a run rots a disk, so that damage is never a reason; a failed sync is
//! one, and then the node must stop.

use annulus_types::{GroupId, NodeId};

use super::Violation;

const RULE: &str = "W8 nobody stops without a reason";

/// A process has asked for its own end.
pub(crate) fn stopped(node: NodeId, reason: &str) -> Violation {
    Violation::new(RULE, format!("node {node} stopped by itself: {reason}"))
}

/// A process could not take up what its machine holds.
pub(crate) fn did_not_start(node: NodeId, reason: &str) -> Violation {
    Violation::new(RULE, format!("node {node} did not start: {reason}"))
}

/// A replica of a process that no fault is ending serves nothing.
pub(crate) fn halted(node: NodeId, group: GroupId, reason: Option<&str>) -> Option<Violation> {
    let reason = reason?;
    Some(Violation::new(RULE, format!("group {group} on node {node} has halted: {reason}")))
}

/// A process went on although its log had failed (L9: nothing may be acknowledged any more).
pub(crate) fn outlived_its_log(node: NodeId) -> Violation {
    Violation::new(RULE, format!("node {node} went on after its log had failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_replica_is_found() {
        assert!(halted(NodeId(1), GroupId(2), None).is_none());
        let found = halted(NodeId(1), GroupId(2), Some("apply failed"));
        assert!(found.is_some_and(|found| found.what.ends_with("has halted: apply failed")));
    }
}
