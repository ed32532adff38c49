//! R1: at no moment do two replicas of a group have an open gate. Each of them would answer reads
//! from its own state as the newest, and propose.

use std::collections::BTreeMap;

use annulus_types::{GroupId, NodeId};

use super::Violation;

const RULE: &str = "R1 one open gate";

/// The holder of an open gate: its node and the term in which it leads.
pub(crate) type Holder = (NodeId, u64);

/// The holder of each group's open gate, from all that were seen open at one moment.
pub(crate) fn holders(open: &[(GroupId, Holder)]) -> Result<BTreeMap<GroupId, Holder>, Violation> {
    let mut holders = BTreeMap::new();
    for (group, holder) in open {
        if let Some((node, term)) = holders.insert(*group, *holder) {
            let (other, later) = holder;
            let what = format!(
                "group {group}: open at node {node} in term {term} and at node {other} in term \
                 {later}"
            );
            return Err(Violation::new(RULE, what));
        }
    }
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_open_gates_of_one_group_are_found() {
        let open = |group, node| (GroupId(group), (NodeId(node), 5));
        assert_eq!(holders(&[open(1, 1), open(2, 2), open(3, 1)]).unwrap().len(), 3);
        let both = holders(&[open(1, 1), open(2, 2), open(1, 3)]).unwrap_err();
        assert!(both.what.starts_with("group 1: open at node 1"), "{both}");
    }
}
