//! Placement rule 3: when nothing is under way, groups at home and seats of every node are its quota. Nodes
//! of a simulated cluster weigh the same and have no zones; one that is drained takes nothing.

use std::collections::BTreeMap;

use annulus_ring::{Candidate, quota};
use annulus_types::NodeId;

use super::Violation;

const RULE: &str = "placement: nodes hold their quotas";

/// What one node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) homes: u64,
    pub(crate) seats: u64,
}

/// Judges what nodes have. `takers`: those that are not drained. `replication`: seats of a group, should
/// there be as many takers.
pub(crate) fn judge(
    loads: &BTreeMap<NodeId, Load>,
    takers: &[NodeId],
    groups: u64,
    replication: u64,
) -> Option<Violation> {
    let candidate = |node: &NodeId, low: u64| Candidate {
        id: u64::from(node.0),
        weight: 100,
        low,
        high: groups,
    };
    let at_home: Vec<Candidate> = takers.iter().map(|node| candidate(node, 0)).collect();
    let homes = quota(groups, &at_home);
    let seated: Vec<Candidate> =
        takers.iter().zip(&homes).map(|(node, homes)| candidate(node, *homes)).collect();
    let size = replication.min(u64::try_from(takers.len()).unwrap_or(u64::MAX));
    let seats = quota(groups * size, &seated);
    let loads_meant = homes.into_iter().zip(seats).map(|(homes, seats)| Load { homes, seats });
    let meant: BTreeMap<NodeId, Load> = takers.iter().copied().zip(loads_meant).collect();
    let has = |load: &&Load| **load != Load::default();
    let is_met =
        meant.iter().filter(|(_, load)| has(load)).eq(loads.iter().filter(|(_, load)| has(load)));
    (!is_met).then(|| Violation::new(RULE, format!("{loads:?}, and the quotas are {meant:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(loads: &[(u64, u64)], takers: &[u32]) -> bool {
        let load = |(homes, seats): &(u64, u64)| Load { homes: *homes, seats: *seats };
        let loads = (1..).map(NodeId).zip(loads.iter().map(load)).collect();
        let takers: Vec<NodeId> = takers.iter().copied().map(NodeId).collect();
        judge(&loads, &takers, 3, 3).is_some()
    }

    #[test]
    fn another_load_than_the_quotas_is_found() {
        assert!(!is_found(&[(1, 3), (1, 3), (1, 3)], &[1, 2, 3]));
        assert!(is_found(&[(1, 3), (1, 3), (1, 2)], &[1, 2, 3]));
        assert!(!is_found(&[(1, 3), (1, 2), (1, 2), (0, 2)], &[1, 2, 3, 4]));
        assert!(is_found(&[(1, 3), (1, 3), (1, 3)], &[1, 2, 3, 4]), "the newcomer has nothing");
        assert!(
            is_found(&[(1, 2), (1, 3), (1, 2), (0, 2)], &[1, 2, 3, 4]),
            "the lower id takes more"
        );
        assert!(!is_found(&[(1, 3), (0, 0), (1, 3), (1, 3)], &[1, 3, 4]), "drained");
        assert!(is_found(&[(1, 3), (0, 1), (1, 2), (1, 3)], &[1, 3, 4]));
    }
}
