//! The end of a run: with all faults over, every key can be read, every replica comes to the same
//! state, and what clients were told fits what is there.
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
use annulus_types::{NodeId, Revision, token_of};

use crate::clients::{Client, Ended, key_name};
use crate::invariants::acknowledged::Held;
use crate::invariants::convergence::{self, GroupCopy, ShardCopy};
use crate::invariants::{Violation, linearizable};
use crate::process::Process;
use crate::routes::GroupRoute;
use crate::service::{NAMESPACE, Request, number_of};
use crate::world::World;

/// For each of the last reads, the wait for a leader included.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// For all replicas to have applied everything.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a data key that name the prefix, which every node chooses for itself.
const PREFIX_BYTES: usize = 9;

/// Judges a run whose clients have stopped.
pub(crate) async fn judge(world: &Arc<World>) {
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

/// The last operations of the history: what every key is at the end.
async fn read_every_key(world: &Arc<World>) {
    let id = world.plan.clients + 1;
    let mut reader = Client::new(Arc::clone(world), id, Random::seeded(id));
    for place in 0..world.plan.keys {
        let request = Request::Read { strict: true };
        let ended = reader.operate(place, Call::Read, request, READ_LIMIT).await;
        if !matches!(ended, Ended::Answered(_)) {
            let what = format!("{} cannot be read although all is well", key_name(place));
            world.violation(Violation::new("liveness", what));
        }
    }
}

/// Why the replicas have not converged yet: a group without a leader or a replica that is behind.
fn difference(world: &World) -> Option<String> {
    let processes = world.processes();
    if processes.len() < world.machines().len() {
        return Some("not every node is up".to_owned());
    }
    world.routes.groups.iter().find_map(|route| {
        let statuses: Option<Vec<GroupStatus>> =
            processes.iter().map(|it| Some(it.host.group(route.id)?.status())).collect();
        let Some(statuses) = statuses else {
            return Some(format!("group {} is not open everywhere", route.id));
        };
        if !statuses.iter().any(|status| status.gate_open) {
            return Some(format!("group {} has no leader", route.id));
        }
        let places: Vec<(u64, u64)> =
            statuses.iter().map(|status| (status.last_index, status.applied_index)).collect();
        let first = *places.first()?;
        let is_even = first.0 == first.1 && places.iter().all(|place| *place == first);
        (!is_even).then(|| format!("group {}: last and applied {places:?}", route.id))
    })
}

/// Compares the replicas with each other, and one of each group with what clients were told.
fn compare(world: &World) -> Result<(), EngineError> {
    let processes = world.processes();
    for route in &world.routes.groups {
        let mut copies: Vec<(NodeId, GroupCopy)> = Vec::new();
        for process in &processes {
            copies.extend(copy_of(route, process)?.map(|copy| (process.node, copy)));
        }
        if copies.len() < world.machines().len() {
            let what = format!("group {} is not on every node", route.id);
            world.violation(Violation::new("W8 replicas are equal", what));
        }
        if let Some(violation) = convergence::judge(route.id, &copies) {
            world.violation(violation);
        }
    }
    let Some(process) = processes.first() else { return Ok(()) };
    for place in 0..world.plan.keys {
        let name = key_name(place);
        let found = held(process, &name)?;
        let violation = world.seen.lock().ledger.judge(&name, found);
        if let Some(violation) = violation {
            world.violation(violation);
        }
    }
    Ok(())
}

/// A group as one process holds it, read back from its engine.
fn copy_of(route: &GroupRoute, process: &Process) -> Result<Option<GroupCopy>, EngineError> {
    let Some(group) = process.host.group(route.id) else { return Ok(None) };
    let status = group.status();
    let mut shards = BTreeMap::new();
    for shard in process.shards.all().into_iter().filter(|shard| shard.group == route.id) {
        let Some(head) = process.shards.head(&shard)? else { continue };
        let rows = process.engine.rows(key::data_range(head.prefix), usize::MAX)?;
        let rows =
            rows.into_iter().map(|(key, value)| (key.slice(PREFIX_BYTES.min(key.len())..), value));
        let copy = ShardCopy { head: Head { prefix: Prefix(0), ..head }, rows: rows.collect() };
        shards.insert(shard.id, copy);
    }
    let (applied, group_time_ms) = (status.applied_index, status.group_time_ms);
    Ok(Some(GroupCopy { applied, group_time_ms, shards }))
}

/// What a process holds of a key.
fn held(process: &Process, name: &str) -> Result<Held, EngineError> {
    let nothing = Held { revision: Revision(0), value: None };
    let Some(shard) = process.shards.find(token_of(name.as_bytes())) else { return Ok(nothing) };
    let Some(seen) = process.shards.read(&shard, NAMESPACE, name.as_bytes())? else {
        return Ok(nothing);
    };
    let value = seen.value.and_then(|value| Some((number_of(&value.value)?, value.revision)));
    Ok(Held { revision: seen.head.revision, value })
}
