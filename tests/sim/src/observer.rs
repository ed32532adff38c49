//! Looks at every replica every 20 simulated milliseconds, on behalf of the invariants that must
//! hold at every moment, and writes into the trace what changed.
//!
//! A look is one step of the simulation: nothing happens between the first replica and the last.
//! Processes that were ended are not seen, because nobody can ask them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use annulus_raft::GroupStatus;
use annulus_types::{GroupId, NodeId, ReplicaId};
use annulus_wal::StreamId;

use crate::invariants::one_gate::{Holder, holders};
use crate::invariants::{Violation, alive, current_gate, destroyed};
use crate::process::Process;
use crate::world::World;

const TICK: Duration = Duration::from_millis(20);
/// Looks between two lines of counters.
const COUNTERS_EVERY: u64 = 25;

/// Runs until it is aborted.
pub(crate) async fn run(world: Arc<World>) {
    let mut ticker = tokio::time::interval(TICK);
    let mut leads: BTreeMap<GroupId, Holder> = BTreeMap::new();
    let mut looks = 0_u64;
    loop {
        ticker.tick().await;
        let seen = look(&world);
        let mut open = Vec::new();
        for (process, statuses) in &seen {
            for status in statuses.iter().filter(|status| status.gate_open) {
                open.push((status.group, (process.node, status.term)));
            }
        }
        match holders(&open) {
            Ok(now) => {
                tell_changes(&world, &leads, &now);
                leads = now;
            }
            Err(violation) => world.violation(violation),
        }
        for (process, statuses) in &seen {
            for violation in judge(&world, process, statuses) {
                world.violation(violation);
            }
        }
        for violation in judge_members(&world, &seen) {
            world.violation(violation);
        }
        if looks.is_multiple_of(COUNTERS_EVERY) {
            tell_counters(&world, &seen);
        }
        looks += 1;
    }
}

/// One process and what its replicas say of themselves.
type Look = (Arc<Process>, Vec<GroupStatus>);

fn look(world: &World) -> Vec<Look> {
    let status_of = |process: Arc<Process>| {
        let statuses: Vec<GroupStatus> =
            process.host.groups().iter().map(|group| group.status()).collect();
        (process, statuses)
    };
    world.processes().into_iter().map(status_of).collect()
}

/// What is wrong in one process.
fn judge(world: &World, process: &Process, statuses: &[GroupStatus]) -> Vec<Violation> {
    let node = process.node;
    let mut wrong = Vec::new();
    if !process.env.tasks.is_stopping() && !world.machine(node).is_doomed() {
        let halted =
            statuses.iter().filter_map(|it| alive::halted(node, it.group, it.halted.as_deref()));
        wrong.extend(halted);
    }
    let replicas: BTreeMap<GroupId, ReplicaId> =
        statuses.iter().map(|status| (status.group, status.replica)).collect();
    let mut held = BTreeMap::new();
    for shard in process.shards.all() {
        let Some(replica) = replicas.get(&shard.group) else { continue };
        match process.shards.head(&shard) {
            Ok(Some(head)) => {
                held.insert(shard.id, (*replica, head.revision));
            }
            Ok(None) => {}
            Err(error) => {
                let what = format!("node {node}: {error}");
                wrong.push(Violation::new("R3 what is stored is readable", what));
            }
        }
    }
    let mut guard = world.seen.lock();
    let revisions = &mut guard.revisions;
    for (shard, (replica, revision)) in &held {
        wrong.extend(revisions.observed(*replica, process.boot.count, *shard, *revision));
    }
    for status in statuses.iter().filter(|status| status.gate_open) {
        let Some(route) = world.routes.groups.iter().find(|route| route.id == status.group) else {
            continue;
        };
        for shard in &route.shards {
            let acknowledged = revisions.floor(*shard);
            let held = held.get(shard).map(|(_, revision)| *revision);
            wrong.extend(current_gate::judge(node, *shard, held, acknowledged));
        }
    }
    wrong
}

/// What is wrong with who votes: by the leaders whose gates are open, who know what is committed.
fn judge_members(world: &World, seen: &[Look]) -> Vec<Violation> {
    let now_ms = world.clock.monotonic_us() / 1_000;
    let all = || seen.iter().flat_map(|(_, statuses)| statuses);
    let open: BTreeSet<ReplicaId> = all().map(|status| status.replica).collect();
    let tombstones: BTreeMap<NodeId, BTreeSet<StreamId>> = seen
        .iter()
        .map(|(process, _)| (process.node, process.host.wal().tombstones().into_iter().collect()))
        .collect();
    let mut wrong = Vec::new();
    let mut guard = world.seen.lock();
    guard.voters.look(now_ms, &open);
    for status in all().filter(|status| status.gate_open) {
        let voters = || status.members.iter().filter(|member| member.voter);
        let seats = voters().map(|member| (member.node, member.replica));
        wrong.extend(destroyed::judge(status.group, seats, |node| tombstones.get(&node)));
        if status.membership_committed && !status.joint {
            let voting = voters().map(|member| member.replica).collect();
            let told = (status.membership_index, voting);
            wrong.extend(guard.voters.settled(status.group, told, now_ms));
        }
    }
    wrong
}

fn tell_changes(
    world: &World,
    before: &BTreeMap<GroupId, Holder>,
    now: &BTreeMap<GroupId, Holder>,
) {
    let groups: BTreeSet<GroupId> = before.keys().chain(now.keys()).copied().collect();
    for group in groups {
        let (was, is) = (before.get(&group), now.get(&group));
        if was == is {
            continue;
        }
        let who = format!("group {group}");
        match is {
            Some((node, term)) => {
                world.trace.line(who, format_args!("gate open at node {node} in term {term}"));
            }
            None => world.trace.line(who, "no gate open"),
        }
    }
}

fn tell_counters(world: &World, seen: &[Look]) {
    for machine in world.machines().iter().filter(|machine| machine.is_in_service()) {
        let node = machine.plan.node;
        let disk = machine.disk.counters();
        let mut what = format!(
            "disk {} writes, {} bytes, {} syncs, {} names",
            disk.writes, disk.bytes, disk.syncs, disk.names
        );
        let Some((process, statuses)) = seen.iter().find(|(process, _)| process.node == node)
        else {
            world.trace.line(format_args!("node {node}"), format_args!("{what}; down"));
            continue;
        };
        let log = process.host.wal().stats();
        // Writing to a string cannot fail.
        let _ = write!(what, "; log {} batches, {} records; groups", log.batches, log.records);
        for status in statuses {
            let (term, last, applied) = (status.term, status.last_index, status.applied_index);
            let _ = write!(what, " {}:{term}/{last}/{applied}", status.group);
        }
        world.trace.line(format_args!("node {node}"), what);
    }
}
