//! How a simulated node obeys the manager: the calls of the Raft host and of groups that stand behind its
//! commands and its tables.
//!
//! The real node's side is part of the binary, which nothing can use. This one judges in the same order
//! (life, fence, whether the same is under way) and makes the same calls, with shorter limits: what the
//! manager waits for is answered before it gives up, so that no stream of a connection is broken off
//! while others use it (see the text of the crate).
//!
//! # Invariants
//!
//! - The fence of a command is durable before the command has any effect (H6).
//! - A replica ends by `retire` or `cancel`, on the proofs that the host asks for (H4).
//! - A command that is under way is not begun a second time.
//!
//! A caller that goes away loses the answer, never the command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_raft::{Change, Group, GroupSpec, HostError, MembershipView};
use annulus_types::{Error, ErrorKind, GroupId, NodeId, ReplicaId, RoutingTable};
use parking_lot::Mutex;

use crate::process::Process;
use crate::routes::founders;

/// What a transfer may hold proposals back for.
const TRANSFER_MOST: Duration = Duration::from_secs(1);

/// Commands under way: one of a kind for a group at a time.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<BTreeSet<(GroupId, &'static str)>>);

impl Running {
    /// The right to carry a command out, until it is dropped.
    fn begin(self: &Arc<Self>, group: GroupId, command: &Command) -> Option<Under> {
        // The birth of a replica and the end of another one exclude each other.
        let kind = match command {
            Command::Create(_) | Command::Retire(_) | Command::Cancel(_) => "seat",
            other => name_of(other),
        };
        let place = (group, kind);
        let begun = self.0.lock().insert(place);
        begun.then(|| Under { running: Arc::clone(self), place })
    }
}

struct Under {
    running: Arc<Running>,
    place: (GroupId, &'static str),
}

impl Drop for Under {
    fn drop(&mut self) {
        self.running.0.lock().remove(&self.place);
    }
}

fn name_of(command: &Command) -> &'static str {
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

fn limit_of(command: &Command) -> Duration {
    Duration::from_secs(match command {
        // The state of a group crosses the network.
        Command::Seed(_) => 20,
        Command::Verify(_) => 10,
        Command::Create(_)
        | Command::Change(_)
        | Command::Transfer(_)
        | Command::Retire(_)
        | Command::Cancel(_) => 4,
    })
}

pub(crate) fn not_ready(reason: impl Into<String>) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.into() })
}

fn seat_of(seat: Option<v1::Seat>, field: &str) -> Result<(ReplicaId, NodeId), Error> {
    let seat = seat.ok_or_else(|| Error::bad_request(field, "is missing"))?;
    Ok((ReplicaId(seat.replica), NodeId(seat.node)))
}

/// What came of a command, beside the group as it then is.
#[derive(Default)]
struct Done {
    /// The membership that a change has led to.
    membership: Option<MembershipView>,
    equal: bool,
    bytes: u64,
}

/// Carries a command out. Not cancel-safe.
pub(crate) async fn obey(
    process: &Arc<Process>,
    request: v1::CommandRequest,
) -> Result<v1::CommandReply, Error> {
    process.check_life(request.node, request.incarnation)?;
    let Some(command) = request.command else {
        return Err(Error::bad_request("command", "is missing"));
    };
    let group = GroupId(request.group);
    let fence = (request.era, request.term, request.generation);
    process.obeyed.obey(group, fence).map_err(not_ready)?;
    let name = name_of(&command);
    let Some(_under) = process.running.begin(group, &command) else {
        return Err(not_ready(format!("{name} of group {group} is under way already")));
    };
    let carried = Box::pin(carry_out(process, group, command)).await;
    let who = format!("node {}", process.node);
    match &carried {
        Ok(_) => process.trace.line(who, format_args!("{name} of group {group} is done")),
        Err(error) => process.trace.line(who, format_args!("{name} of group {group}: {error}")),
    }
    let done = carried?;
    let report = process.host.group(group).map(|group| {
        let membership = done.membership.unwrap_or_else(|| group.membership());
        process.report(&group, membership)
    });
    Ok(v1::CommandReply { report, equal: done.equal, bytes: done.bytes })
}

async fn carry_out(process: &Arc<Process>, id: GroupId, command: Command) -> Result<Done, Error> {
    let limit = limit_of(&command);
    let host = &process.host;
    let group = || {
        let open = host.group(id);
        open.ok_or_else(|| not_ready(format!("no replica of group {id} is open here")))
    };
    let mut done = Done::default();
    match command {
        Command::Create(wanted) => {
            create(process, id, ReplicaId(wanted.replica), limit).await?;
        }
        Command::Seed(wanted) => {
            let to = seat_of(wanted.to, "to")?;
            done.bytes = Box::pin(group()?.seed(to, limit)).await?;
        }
        Command::Change(wanted) => {
            let (index, change) = (wanted.membership_index, change_of(&wanted)?);
            let changed = Box::pin(group()?.change_membership(index, change, limit)).await?;
            done.membership = Some(changed);
        }
        Command::Verify(wanted) => {
            let seat = seat_of(wanted.seat, "seat")?;
            done.equal = Box::pin(group()?.verify(seat, limit)).await?;
        }
        Command::Transfer(wanted) => {
            let group = group()?;
            hand_over(&group, NodeId(wanted.to)).await?;
        }
        Command::Retire(wanted) => {
            let replica = ReplicaId(wanted.replica);
            if host.held().contains(&(id, replica)) {
                let (also, floor) = (likely_members(process, id), wanted.membership_index);
                Box::pin(host.retire(id, replica, &also, floor, limit)).await?;
            } else {
                // It died with a former life of the folder, or never was: there is nothing to prove.
                Box::pin(host.cancel(id, replica)).await?;
            }
            process.forget(id);
        }
        Command::Cancel(wanted) => {
            Box::pin(host.cancel(id, ReplicaId(wanted.replica))).await?;
            process.forget(id);
        }
    }
    Ok(done)
}

fn change_of(wanted: &v1::ChangeMembership) -> Result<Change, Error> {
    let replica = |seat: Option<v1::Seat>| seat.map(|seat| ReplicaId(seat.replica));
    let learner = wanted.add_learner.map(|seat| seat_of(Some(seat), "add_learner"));
    Ok(Change {
        add_learner: learner.transpose()?,
        promote: replica(wanted.promote),
        remove: replica(wanted.remove),
    })
}

/// Nothing is to be done when the node leads already.
async fn hand_over(group: &Group, to: NodeId) -> Result<(), Error> {
    let status = group.status();
    if status.gate_open && status.leader == Some(to) {
        return Ok(());
    }
    Box::pin(group.transfer(to, TRANSFER_MOST)).await
}

/// Opens a new replica, empty, in the place of one that has failed.
async fn create(
    process: &Arc<Process>,
    group: GroupId,
    replica: ReplicaId,
    limit: Duration,
) -> Result<(), Error> {
    let closed = |error: HostError| not_ready(error.to_string());
    // Only the wait has a limit: an opening is not to be cut short.
    let changing = tokio::time::timeout(limit, process.changing.lock()).await;
    let _changing = changing.map_err(|_| not_ready("the node is busy with other changes"))?;
    Box::pin(process.host.make_room(group, replica)).await.map_err(closed)?;
    process.forget(group);
    let spec = GroupSpec { group, replica, found: BTreeMap::new() };
    Box::pin(process.open(spec)).await.map(drop).map_err(closed)
}

/// Nodes that may tell about a group's members, beside those that its replica knows.
fn likely_members(process: &Process, group: GroupId) -> Vec<NodeId> {
    let table = process.tables.current();
    match table.as_ref().and_then(|table| table.group(group)) {
        Some(route) => route.members.iter().map(|member| member.node).collect(),
        // The table does not have the manager's own group.
        None => process.host.book().all().into_iter().map(|info| info.id).collect(),
    }
}

/// Takes a table: first the lives that come with it (N1), then the replicas that it founds here; then it is
/// stored, so that a node which says that it holds a table has done what is in it. Not cancel-safe.
pub(crate) async fn take_table(
    process: &Arc<Process>,
    request: v1::PushRequest,
) -> Result<v1::PushReply, Error> {
    let _changing = process.changing.lock().await;
    process.check_life(request.node, request.incarnation)?;
    let wire = request.table.ok_or_else(|| Error::bad_request("table", "is missing"))?;
    let table = RoutingTable::try_from(wire)?;
    let told = (request.era, request.term);
    if told < *process.pushed.lock() {
        return Err(Error::bad_request("term", "a later manager has spoken"));
    }
    process.obeyed.obey_era(request.era).map_err(not_ready)?;
    *process.pushed.lock() = told;
    if table.version < process.tables.version() {
        // Overtaken on its way.
        return Ok(v1::PushReply { table_version: process.tables.version().0 });
    }
    let lives = request.admitted.iter().map(|life| (NodeId(life.node), life.incarnation));
    let lives: Vec<(NodeId, u64)> = lives.collect();
    let admitted = process.host.admit(&lives).await;
    admitted.map_err(|error| not_ready(format!("storing who is admitted: {error}")))?;
    process.host.book().from_table(&table.nodes);
    for route in table.groups.iter().filter(|route| route.membership_index == 0) {
        let own = route.members.iter().find(|member| member.node == process.node);
        let Some(replica) = own.map(|member| member.replica) else { continue };
        let found = founders(&table, route.id, process.node, replica);
        let spec = GroupSpec { group: route.id, replica, found };
        match Box::pin(process.open(spec)).await {
            // Closed ones are in the heartbeats; the table is good for everything else.
            Ok(_)
            | Err(
                HostError::Damaged { .. }
                | HostError::NeedsRefill { .. }
                | HostError::Occupied(_)
                | HostError::Tombstone(_),
            ) => {}
            Err(error) => return Err(not_ready(error.to_string())),
        }
    }
    let installed = process.tables.install(table);
    installed.map_err(|error| not_ready(format!("storing the table: {error}")))?;
    Ok(v1::PushReply { table_version: process.tables.version().0 })
}

impl Process {
    /// N1: commands and tables are for one life of the folder.
    fn check_life(&self, node: u32, incarnation: u64) -> Result<(), Error> {
        if !self.is_open() {
            return Err(not_ready("the node is starting"));
        }
        if (NodeId(node), incarnation) != (self.node, self.boot.incarnation) {
            let message = "meant for another node, or for another life of this node's data folder";
            return Err(Error::bad_request("incarnation", message));
        }
        Ok(())
    }
}
