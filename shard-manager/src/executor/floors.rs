//! Replicas that can be destroyed neither on proof nor by a cancellation, for now, and that people should
//! know of.
//!
//! A replica whose log is lost cannot tell when it had a seat, so its node needs an entry from which on its
//! group has had none for it (H4), and index 0 stands for "unknown". A group that has never changed its
//! membership has that index. What a move that failed early leaves on a broken disk then stays until the
//! group's membership changes for the first time; afterwards `strays` clears it up like any other.
//!
//! Nothing is destroyed here: a decision says so, once.

use std::collections::BTreeSet;

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::manager_command::Command as Change;

use super::{PATIENCE_MS, Round, seat_in};
use crate::sight::{Seen, Standing};

impl Round<'_> {
    /// `observed`: groups whose stored membership is about to change.
    pub(super) fn tell_of_unproved(&mut self, observed: &BTreeSet<u64>) {
        let (state, sight, now_ms) = (self.state, self.sight, self.now.mono_ms);
        for seen in sight.fresh(state, now_ms) {
            let Some(record) = self.group(seen.report.group) else { continue };
            if record.membership_index == 0
                && !observed.contains(&record.id)
                && self.is_unproved(record, seen)
            {
                self.tell_once(seen);
            }
        }
    }

    /// Whether the cancellation that `strays` asks for has failed for long.
    fn is_unproved(&self, record: &v1::GroupRecord, seen: &Seen) -> bool {
        let replica = seen.report.replica;
        let leader = self.leader(record.id);
        if leader.is_none_or(|leader| seat_in(&leader.report, replica).is_some()) {
            return false;
        }
        let command = Command::Cancel(v1::CancelReplica { replica });
        let errand = self.tell(seen.node, record, command).map(|tell| tell.errand());
        let standing = errand.map(|errand| self.sight.standing(&errand));
        let Some(Standing::Failed { since_ms, .. }) = standing else { return false };
        self.now.mono_ms.saturating_sub(since_ms) >= PATIENCE_MS
    }

    fn tell_once(&mut self, seen: &Seen) {
        let (group, replica, node) = (seen.report.group, seen.report.replica, seen.node);
        let what = format!(
            "node {node} keeps replica {replica} of group {group}, which is not its member"
        );
        if self.state.history.iter().any(|known| known.what == what) {
            return;
        }
        let why = "it cannot tell what it was, and its group has had one membership only: it goes when \
                   that changes";
        self.propose(Change::Note(v1::Decision {
            what,
            why: why.to_owned(),
            node,
            group: Some(group),
            ..Default::default()
        }));
    }
}
