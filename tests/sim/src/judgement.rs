//! The end of a run: with all faults over, the cluster comes to rest with every node at its quota, every
//! key can be read, every replica comes to the same state, and what clients were told fits what is there.
//!
//! Time limits are generous: they are about whether, not about how fast.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::EngineError;
use annulus_engine::key::{self, Prefix};
use annulus_harness::history::Call;
use annulus_raft::GroupStatus;
use annulus_runtime::Random;
use annulus_server::stored::Head;
use annulus_shard_manager::state::id_of;
use annulus_types::{GroupId, NodeId, Revision, token_of};
use tokio::time::Instant;

use crate::clients::{Client, Ended, key_name};
use crate::invariants::acknowledged::Held;
use crate::invariants::convergence::{self, GroupCopy, ShardCopy};
use crate::invariants::quotas::{self, Load};
use crate::invariants::{Violation, linearizable};
use crate::process::Process;
use crate::rest;
use crate::routes::REPLICATION;
use crate::service::{NAMESPACE, Request, number_of};
use crate::world::World;

/// For the operator to take his last steps, and for everything that follows from them: a move that failed is
/// planned again after half a minute.
const REST_LIMIT: Duration = Duration::from_secs(240);
/// Between two looks at whether the cluster rests.
const REST_LOOK: Duration = Duration::from_millis(200);

/// For each of the last reads, the wait for a leader included.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// For all replicas to have applied everything.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a data key that name the prefix, which every node chooses for itself.
const PREFIX_BYTES: usize = 9;

/// Judges a run whose clients have stopped.
pub(crate) async fn judge(world: &Arc<World>) {
    come_to_rest(world).await;
    read_every_key(world).await;
    let converged = world.wait_until(CONVERGENCE_LIMIT, || difference(world).is_none());
    if !converged.await {
        let what = difference(world).unwrap_or_default();
        world.violation(Violation::new("liveness", format!("not converged: {what}")));
        return;
    }
    // From here to the end nothing else happens: no task runs while this one does not wait.
    world.trace.line("world", "all replicas have applied everything");
    if let Err(error) = compare(world) {
        world.violation(Violation::new("R3 what is stored is readable", error.to_string()));
    }
    match world.recorder.history() {
        Ok(history) => {
            if let Some(violation) = linearizable::judge(&history) {
                world.violation(violation);
            }
        }
        Err(error) => world.violation(Violation::new("simulation", error.to_string())),
    }
    if world.seen.lock().counts.answered == 0 {
        world.violation(Violation::new("simulation", "nothing was answered, nothing is proved"));
    }
}

/// Waits until nothing is under way any more, then judges where everything is.
async fn come_to_rest(world: &Arc<World>) {
    let deadline = Instant::now() + REST_LIMIT;
    loop {
        let unrest = if world.is_operated() {
            rest::unrest(world)
        } else {
            Some("the operator has more to do".to_owned())
        };
        let Some(what) = unrest else { break };
        if Instant::now() >= deadline {
            world.violation(Violation::new("liveness", format!("no rest: {what}")));
            break;
        }
        tokio::time::sleep(REST_LOOK).await;
    }
    let state = rest::manager(world).and_then(|(leader, _)| leader.manager_state());
    let Some(state) = state else { return };
    world.trace.line("world", "the cluster rests");
    world.count_moves(&state);
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for record in &state.groups {
        loads.entry(NodeId(record.home)).or_default().homes += 1;
    }
    let leaders = rest::leaders(&world.processes());
    for (_, leader) in leaders.iter().filter(|(group, _)| **group != GroupId::MANAGER) {
        for member in &leader.members {
            loads.entry(member.node).or_default().seats += 1;
        }
    }
    let taking = state.nodes.iter().filter(|node| !node.draining);
    let takers: Vec<NodeId> = taking.map(|node| NodeId(id_of(node))).collect();
    let groups = u64::try_from(world.routes.groups.len()).unwrap_or(u64::MAX);
    if let Some(violation) = quotas::judge(&loads, &takers, groups, u64::from(REPLICATION)) {
        world.violation(violation);
    }
}

/// The last operations of the history: what every key is at the end.
async fn read_every_key(world: &Arc<World>) {
    let id = world.plan.clients + 1;
    let mut reader = Client::new(Arc::clone(world), id, Random::seeded(id));
    for place in 0..world.plan.keys {
        let request = Request::Read { strict: true };
        let ended = reader.operate(place, Call::Read, request, None, READ_LIMIT).await;
        if !matches!(ended, Ended::Answered(_)) {
            let what = format!("{} cannot be read although all is well", key_name(place));
            world.violation(Violation::new("liveness", what));
        }
    }
}

/// What a group's leader says, and the processes of all members.
type Members<'a> = (GroupStatus, Vec<&'a Arc<Process>>);

/// All groups, the manager's too; or why there is a replica too much or one that is not there.
fn members<'a>(world: &World, processes: &'a [Arc<Process>]) -> Result<Vec<Members<'a>>, String> {
    if processes.len() < world.node_ids().len() {
        return Err("not every node is up".to_owned());
    }
    if let Some(what) = rest::disorder(world, processes) {
        return Err(what);
    }
    let mut all = Vec::new();
    for (id, leader) in rest::leaders(processes) {
        let mut seated = Vec::new();
        for member in &leader.members {
            let open = processes.iter().find(|process| {
                let group = process.host.group(id);
                process.node == member.node
                    && group.is_some_and(|group| group.replica() == member.replica)
            });
            let (replica, node) = (member.replica, member.node);
            let open = open.ok_or_else(|| {
                format!("replica {replica} of group {id} is not open on node {node}")
            })?;
            seated.push(open);
        }
        all.push((leader, seated));
    }
    Ok(all)
}

/// Why the replicas have not converged yet: a group without a leader or a replica that is behind.
fn difference(world: &World) -> Option<String> {
    let processes = world.processes();
    let members = match members(world, &processes) {
        Ok(members) => members,
        Err(what) => return Some(what),
    };
    members.iter().find_map(|(leader, seated)| {
        let status_of = |process: &&Arc<Process>| Some(process.host.group(leader.group)?.status());
        let places: Vec<(u64, u64)> = seated
            .iter()
            .filter_map(status_of)
            .map(|status| (status.last_index, status.applied_index))
            .collect();
        let first = *places.first()?;
        let is_even = first.0 == first.1 && places.iter().all(|place| *place == first);
        (!is_even).then(|| format!("group {}: last and applied {places:?}", leader.group))
    })
}

/// Compares the replicas with each other, and one of each group with what clients were told.
fn compare(world: &World) -> Result<(), EngineError> {
    let processes = world.processes();
    let Ok(members) = members(world, &processes) else { return Ok(()) };
    for (leader, seated) in &members {
        let mut copies: Vec<(NodeId, GroupCopy)> = Vec::new();
        for process in seated {
            copies.extend(copy_of(leader.group, process)?.map(|copy| (process.node, copy)));
        }
        if let Some(violation) = convergence::judge(leader.group, &copies) {
            world.violation(violation);
        }
        if leader.group == GroupId::MANAGER {
            let states: Vec<_> = seated.iter().map(|process| process.manager_state()).collect();
            if states.windows(2).any(|pair| pair[0] != pair[1]) {
                let what = "the manager's state is not the same everywhere";
                world.violation(Violation::new("W8 replicas are equal", what));
            }
        }
    }
    for place in 0..world.plan.keys {
        let name = key_name(place);
        let found = held(world, &members, &name)?;
        let violation = world.seen.lock().ledger.judge(&name, found);
        if let Some(violation) = violation {
            world.violation(violation);
        }
    }
    Ok(())
}

/// A group as one process holds it, read back from its engine.
fn copy_of(id: GroupId, process: &Process) -> Result<Option<GroupCopy>, EngineError> {
    let Some(group) = process.host.group(id) else { return Ok(None) };
    let status = group.status();
    let mut shards = BTreeMap::new();
    for shard in process.shards.all().into_iter().filter(|shard| shard.group == id) {
        let Some(head) = process.shards.head(&shard)? else { continue };
        let rows = process.engine.rows(key::data_range(head.prefix), usize::MAX)?;
        let rows =
            rows.into_iter().map(|(key, value)| (key.slice(PREFIX_BYTES.min(key.len())..), value));
        let mut record = process.engine.rows(key::record_range(id, shard.id), usize::MAX)?;
        // The head names the prefix, and is compared without it.
        record.retain(|(row, _)| *row != key::record(id, shard.id, 0, &[]));
        let head = Head { prefix: Prefix(0), ..head };
        shards.insert(shard.id, ShardCopy { head, rows: rows.collect(), record });
    }
    let (applied, group_time_ms) = (status.applied_index, status.group_time_ms);
    Ok(Some(GroupCopy { applied, group_time_ms, shards }))
}

/// What one member of a key's group holds of it.
fn held(world: &World, members: &[Members<'_>], name: &str) -> Result<Held, EngineError> {
    let nothing = Held { revision: Revision(0), value: None };
    let token = token_of(name.as_bytes());
    let route = world.routes.group_of(world.routes.shard_of(token));
    let found = members.iter().find(|(leader, _)| route.is_some_and(|it| it.id == leader.group));
    let Some(process) = found.and_then(|(_, seated)| seated.first()) else { return Ok(nothing) };
    let Some(shard) = process.shards.find(token) else { return Ok(nothing) };
    let Some(seen) = process.shards.read(&shard, NAMESPACE, name.as_bytes())? else {
        return Ok(nothing);
    };
    let value = seen.value.and_then(|value| Some((number_of(&value.value)?, value.revision)));
    Ok(Held { revision: seen.head.revision, value })
}
