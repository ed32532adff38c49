//! What the manager tells this node to do about a replica or a group.
//!
//! A command is judged before it has any effect: whether it is meant for this node and this life of its
//! folder (N1), whether it comes from the manager that the node obeys, and whether no later leader of it has
//! spoken about the group (H6, `fences`). Then it is one
//! call of the Raft host or of the group, bounded by the caller's deadline, and the answer shows the
//! group as it is afterwards.
//!
//! # Invariants
//!
//! - The fence of a command is durable before the command has any effect. It is judged once more when the
//!   command has waited: for its turn among those of its kind, or for other changes of the node. So when a
//!   later command of the kind begins, none that is fenced off by it is under way or will be.
//! - A replica comes into being by `create`, empty, and waits for a leader's log: whatever else it
//!   holds it got from its group. The birth is durable before the answer.
//! - A replica ends by `retire` or `cancel`, on the proofs that the host asks for (H4).
//! - A node has at most one open replica of a group.
//! - A command that is under way is not begun a second time: who repeats it is told so, and asks again.
//!   One that is done may be repeated; it then finds its effect.
//!
//! # Failure
//!
//! A caller that goes away loses the answer; the command goes on to its end or to its deadline. Whether
//! it had an effect is seen in what the group's leader reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_raft::{Change, Group, GroupSpec, Host, MembershipView, Reign};
use annulus_types::{Error, ErrorKind, GroupId, NodeId, ReplicaId};
use parking_lot::Mutex;

use super::fences::{Fence, FenceError, Fences};
use super::{Node, birth};

/// What a transfer may hold proposals back for.
const TRANSFER_MOST: Duration = Duration::from_secs(1);

/// Commands under way: one of a kind for a group at a time. The birth of a replica and the end of another
/// one exclude each other.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<BTreeSet<(GroupId, &'static str)>>);

impl Running {
    /// The right to carry such a command out, until it is dropped.
    fn begin(self: &Arc<Self>, group: GroupId, kind: &'static str) -> Option<Under> {
        let seat = matches!(kind, "create" | "retire" | "cancel");
        let place = (group, if seat { "seat" } else { kind });
        let begun = self.0.lock().insert(place);
        begun.then(|| Under { running: Arc::clone(self), place })
    }
}

#[derive(Debug)]
struct Under {
    running: Arc<Running>,
    place: (GroupId, &'static str),
}

impl Drop for Under {
    fn drop(&mut self) {
        self.running.0.lock().remove(&self.place);
    }
}

fn not_ready(reason: impl Into<String>) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.into() })
}

fn kind_of(command: &Command) -> &'static str {
    match command {
        Command::Create(_) => "create",
        Command::Seed(_) => "seed",
        Command::Change(_) => "change",
        Command::Verify(_) => "verify",
        Command::Transfer(_) => "transfer",
        Command::Retire(_) => "retire",
        Command::Cancel(_) => "cancel",
    }
}

/// How long a command may take whose caller set no deadline.
fn usual_limit(command: &Command) -> Duration {
    Duration::from_secs(match command {
        // The whole state of a group crosses the network.
        Command::Seed(_) => 600,
        // It is read back from two engines.
        Command::Verify(_) => 120,
        Command::Create(_)
        | Command::Change(_)
        | Command::Transfer(_)
        | Command::Retire(_)
        | Command::Cancel(_) => 10,
    })
}

/// What came of a command, beside the group as it then is.
#[derive(Debug, Default)]
struct Done {
    /// The membership that a change has led to.
    membership: Option<MembershipView>,
    equal: bool,
    bytes: u64,
}

/// Carries a command out. `limit`: what the caller's deadline leaves, if it set one. Not cancel-safe:
/// run it to its end.
pub(super) async fn run(
    node: &Arc<Node>,
    request: v1::CommandRequest,
    limit: Option<Duration>,
) -> Result<v1::CommandReply, Error> {
    let Some(host) = node.host() else { return Err(not_ready("this node has no cluster yet")) };
    birth::check_life(node, request.node, Some(request.incarnation))?;
    let Some(command) = request.command else {
        return Err(Error::bad_request("command", "is missing"));
    };
    let id = GroupId(request.group);
    let v1::CommandRequest { era, manager_incarnation, term, generation, .. } = request;
    let fence = Fence { reign: Reign { era, incarnation: manager_incarnation }, term, generation };
    obey(&node.fences, id, fence).await?;
    let kind = kind_of(&command);
    let Some(_under) = node.running.begin(id, kind) else {
        return Err(not_ready(format!("in progress: {kind} of group {id} is under way already")));
    };
    node.fences.check(id, fence).map_err(|error| refusal(&error))?;
    let limit = limit.unwrap_or_else(|| usual_limit(&command));
    let done = Box::pin(carry_out(node, &host, (id, fence), command, limit)).await?;
    tracing::info!(group = %id, kind, era, term, generation, "a command of the manager is done");
    let report = host.group(id).map(|group| {
        let membership = done.membership.unwrap_or_else(|| group.membership());
        node.report(&group, membership)
    });
    Ok(v1::CommandReply { report, equal: done.equal, bytes: done.bytes })
}

async fn obey(fences: &Arc<Fences>, group: GroupId, told: Fence) -> Result<(), Error> {
    let fences = Arc::clone(fences);
    let obeyed = tokio::task::spawn_blocking(move || fences.obey(group, told)).await;
    match obeyed {
        Ok(obeyed) => obeyed.map_err(|error| refusal(&error)),
        Err(error) => Err(not_ready(error.to_string())),
    }
}

/// What the manager is told about a fence that does not let it through.
pub(super) fn refusal(error: &FenceError) -> Error {
    match error.field() {
        Some(field) => Error::bad_request(field, error.to_string()),
        None => not_ready(error.to_string()),
    }
}

fn seat_of(seat: Option<v1::Seat>, field: &str) -> Result<(ReplicaId, NodeId), Error> {
    let seat = seat.ok_or_else(|| Error::bad_request(field, "is missing"))?;
    Ok((ReplicaId(seat.replica), NodeId(seat.node)))
}

async fn carry_out(
    node: &Arc<Node>,
    host: &Arc<Host>,
    (id, fence): (GroupId, Fence),
    command: Command,
    limit: Duration,
) -> Result<Done, Error> {
    let group = || {
        let reason = || not_ready(format!("this node has no open replica of group {id}"));
        host.group(id).ok_or_else(reason)
    };
    let mut done = Done::default();
    match command {
        Command::Create(wanted) => {
            create(node, host, (id, fence), ReplicaId(wanted.replica), limit).await?;
        }
        Command::Seed(wanted) => {
            let to = seat_of(wanted.to, "to")?;
            done.bytes = Box::pin(group()?.seed(to, limit)).await?;
        }
        Command::Change(wanted) => {
            let index = wanted.membership_index;
            let change = change_of(&wanted)?;
            let changed = Box::pin(group()?.change_membership(index, change, limit)).await?;
            done.membership = Some(changed);
        }
        Command::Verify(wanted) => {
            let seat = seat_of(wanted.seat, "seat")?;
            done.equal = Box::pin(group()?.verify(seat, limit)).await?;
        }
        Command::Transfer(wanted) => {
            let group = group()?;
            hand_over(&group, NodeId(wanted.to), limit).await?;
        }
        Command::Retire(wanted) => {
            let replica = ReplicaId(wanted.replica);
            if host.held().contains(&(id, replica)) {
                let also = likely_members(node, id);
                let floor = wanted.membership_index;
                Box::pin(host.retire(id, replica, &also, floor, limit)).await?;
            } else {
                // It died with a former life of the folder, or never was: there is nothing to prove.
                Box::pin(host.cancel(id, replica)).await?;
            }
            node.forget(host, id);
        }
        Command::Cancel(wanted) => {
            Box::pin(host.cancel(id, ReplicaId(wanted.replica))).await?;
            node.forget(host, id);
        }
    }
    Ok(done)
}

/// Nodes that may tell about a group's members, beside those that its replica knows.
fn likely_members(node: &Node, id: GroupId) -> Vec<NodeId> {
    let table = node.tables.current();
    match table.as_ref().and_then(|table| table.group(id)) {
        Some(route) => route.members.iter().map(|member| member.node).collect(),
        // The table does not have the manager's own group.
        None => {
            let known = node.book.all().into_iter();
            known.filter(|info| info.manager).map(|info| info.id).collect()
        }
    }
}

/// Nothing is to be done when the node leads already.
async fn hand_over(group: &Group, to: NodeId, limit: Duration) -> Result<(), Error> {
    let status = group.status();
    if status.gate_open && status.leader == Some(to) {
        return Ok(());
    }
    Box::pin(group.transfer(to, limit.min(TRANSFER_MOST))).await
}

fn change_of(wanted: &v1::ChangeMembership) -> Result<Change, Error> {
    let replica = |seat: Option<v1::Seat>| seat.map(|seat| ReplicaId(seat.replica));
    let add_learner = wanted.add_learner.map(|seat| seat_of(Some(seat), "add_learner"));
    let change = Change {
        add_learner: add_learner.transpose()?,
        promote: replica(wanted.promote),
        remove: replica(wanted.remove),
    };
    if change == Change::default() {
        return Err(Error::bad_request("change", "asks for nothing"));
    }
    Ok(change)
}

/// Opens a new replica, empty. One that is open already is left as it is; another one of the group is
/// closed if it has failed, and else keeps its place.
async fn create(
    node: &Arc<Node>,
    host: &Arc<Host>,
    (id, fence): (GroupId, Fence),
    replica: ReplicaId,
    limit: Duration,
) -> Result<(), Error> {
    if replica.0 == 0 {
        return Err(Error::bad_request("replica", "is missing"));
    }
    // Only the wait has a limit: an opening is not to be cut short.
    let changing = tokio::time::timeout(limit, node.changing.lock()).await;
    let _changing = changing.map_err(|_| not_ready("the node is busy with other changes"))?;
    // What was waited for may have been a later manager's beginning.
    node.fences.check(id, fence).map_err(|error| refusal(&error))?;
    // One that has failed is what the new one is made for; a sound one stays.
    Box::pin(host.make_room(id, replica)).await.map_err(|error| not_ready(error.to_string()))?;
    // What is kept of a replica that was closed knows its state, not that of the new one.
    node.forget(host, id);
    let spec = GroupSpec { group: id, replica, found: BTreeMap::new() };
    let opened = Box::pin(node.open_replica(host, spec)).await;
    opened.map(drop).map_err(|error| not_ready(error.to_string()))
}

impl Node {
    /// Lets go of what served a replica that is not open any more.
    pub(super) fn forget(&self, host: &Host, group: GroupId) {
        if host.group(group).is_some() {
            return;
        }
        self.machines.lock().remove(&group);
        if group == GroupId::MANAGER {
            *self.manager.lock() = None;
            *self.managing.lock() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_not_begun_a_second_time_while_it_is_under_way() {
        let running = Arc::new(Running::default());
        let first = running.begin(GroupId(1), "seed").unwrap();
        assert!(running.begin(GroupId(1), "seed").is_none());
        assert!(running.begin(GroupId(1), "change").is_some(), "another kind");
        assert!(running.begin(GroupId(2), "seed").is_some(), "another group");
        drop(first);
        assert!(running.begin(GroupId(1), "seed").is_some());
        let _ends = running.begin(GroupId(1), "retire").unwrap();
        assert!(running.begin(GroupId(1), "create").is_none(), "one ends here");
    }

    #[test]
    fn a_command_that_is_too_low_says_in_what() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(annulus_runtime::RealDisk);
        let fences = Fences::open(disk, dir.path()).unwrap();
        let reign = Reign { era: 1, incarnation: 5 };
        let fence = |term, generation| Fence { reign, term, generation };
        fences.obey_reign(reign).unwrap();
        fences.obey(GroupId(7), fence(5, 3)).unwrap();
        let field = |told| match refusal(&fences.obey(GroupId(7), told).unwrap_err()).kind {
            ErrorKind::BadRequest { field, message } => (field, message),
            other => panic!("{other:?}"),
        };
        let (name, message) = field(fence(4, 9));
        assert_eq!(name, "term");
        assert!(message.starts_with("group 7 obeys era 1, term 5, generation 3"), "{message}");
        assert_eq!(field(fence(5, 2)).0, "generation");
    }

    #[test]
    fn a_change_of_the_membership_is_read_whole_or_not_at_all() {
        let seat = |replica, node| Some(v1::Seat { replica, node });
        let wanted = v1::ChangeMembership {
            membership_index: 9,
            promote: seat(14, 4),
            remove: seat(11, 1),
            ..Default::default()
        };
        let change = Change {
            promote: Some(ReplicaId(14)),
            remove: Some(ReplicaId(11)),
            ..Change::default()
        };
        assert_eq!(change_of(&wanted).unwrap(), change);
        let learner = v1::ChangeMembership { add_learner: seat(14, 4), ..Default::default() };
        let added = change_of(&learner).unwrap().add_learner;
        assert_eq!(added, Some((ReplicaId(14), NodeId(4))));
        assert!(change_of(&v1::ChangeMembership::default()).is_err());
    }
}
