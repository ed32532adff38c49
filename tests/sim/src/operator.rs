//! Takes the steps of a plan, one after another: machines come into service and are wiped, nodes are
//! drained, and the manager loses its memory.
//!
//! A step begins at its time, whatever else is going on; it ends when the manager has taken it over, not when
//! its consequences are over.
//!
//! # Forgetting
//!
//! The new manager is appointed as an operator would do it: first every node obeys a later era, so that the
//! former manager changes nothing any more (H6); then all are asked what they know, and a state is put
//! together ([`adopt`]), which takes the place of the old one. It is done at a moment at which all nodes are
//! there and nothing is under way: what the former manager alone knew of would be nobody's.
//!
//! Failure: what cannot be done in time is a violation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::node_change::Change;
use annulus_runtime::Random;
use annulus_shard_manager::adopt::{Told, adopt};
use annulus_shard_manager::state::StateExt as _;
use annulus_types::{GroupId, NodeId, RoutingTable};
use tokio::time::Instant;

use crate::forgetful::begin;
use crate::invariants::Violation;
use crate::plan::Step;
use crate::process::Process;
use crate::rest;
use crate::world::{End, World, manager_incarnation};

/// Faults may last the whole time for which clients work.
const LIMIT: Duration = Duration::from_secs(200);
/// Between two looks or attempts.
const AGAIN: Duration = Duration::from_millis(100);
/// For one call or proposal.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Takes all steps.
pub(crate) async fn run(world: &Arc<World>) {
    let began = Instant::now();
    for (at_ms, step) in world.plan.steps.clone() {
        tokio::time::sleep_until(began + Duration::from_millis(at_ms)).await;
        world.trace.line("operator", step);
        let taken = Box::pin(take(world, step));
        if tokio::time::timeout(LIMIT, taken).await.is_err() {
            world.violation(Violation::new("liveness", format!("not done in time: {step}")));
        }
    }
    world.trace.line("operator", "all steps are taken");
}

async fn take(world: &Arc<World>, step: Step) {
    match step {
        Step::Join { node } => {
            world.machine(node).set_in_service(true);
            world.boot(node).await;
        }
        Step::Drain { node } => drain(world, node).await,
        Step::Wipe { node, down_ms } => wipe(world, node, down_ms).await,
        Step::Forget => forget(world).await,
    }
}

async fn drain(world: &Arc<World>, node: NodeId) {
    loop {
        if let Some((_, manager)) = rest::manager(world) {
            let change = Some(Change::Draining(true));
            let change = v1::NodeChange { node: node.0, change };
            let asked = Box::pin(manager.change_node(change, false));
            if let Ok(Ok(_)) = tokio::time::timeout(CALL_LIMIT, asked).await {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn wipe(world: &Arc<World>, node: NodeId, down_ms: u64) {
    let machine = world.machine(node);
    // From here on nobody else boots it.
    machine.set_in_service(false);
    world.end_process(node, None, End::Kill);
    tokio::time::sleep(Duration::from_millis(down_ms)).await;
    while !machine.wipe() {
        // One that was booting just then.
        world.end_process(node, None, End::Kill);
        tokio::time::sleep(AGAIN).await;
    }
    machine.set_in_service(true);
    world.boot(node).await;
}

async fn forget(world: &Arc<World>) {
    let random = Random::seeded(world.random.u64());
    let mut appointed: Option<v1::ManagerState> = None;
    loop {
        if let Some((leader, _)) = rest::manager(world) {
            let known = leader.manager_state();
            let era = appointed.as_ref().map(|next| next.era);
            if era.is_some() && known.as_ref().map(|state| state.era) == era {
                return;
            }
            if appointed.is_none()
                && let Some(former) = known.filter(|state| may_forget(world, state))
            {
                appointed = appoint(world, &former, &random);
                if appointed.is_some() {
                    world.count_moves(&former);
                }
            }
            if let (Some(next), Some(group)) = (&appointed, leader.host.group(GroupId::MANAGER)) {
                // What became of it is seen in the state.
                let begun = begin(&group, next.clone(), true, CALL_LIMIT);
                drop(Box::pin(begun).await);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether nothing is under way that only the manager knows.
fn may_forget(world: &World, state: &v1::ManagerState) -> bool {
    let processes = world.processes();
    // One whose disk is about to fail could not store the era, and the others would have stored it for nothing.
    let is_here = |process: &Arc<Process>| {
        let is_ending = process.env.tasks.is_stopping() || world.machine(process.node).is_doomed();
        process.is_open() && !is_ending
    };
    processes.len() == world.node_ids().len()
        && processes.iter().all(is_here)
        && state.running().next().is_none()
        && rest::disorder(world, &processes).is_none()
}

/// The manager's own group is not made anew here: it stays, and what nodes do not hold of it is lost.
fn in_the_same_group(
    next: v1::ManagerState,
    former: &v1::ManagerState,
    told: &[Told],
) -> v1::ManagerState {
    let mut next = v1::ManagerState { manager: former.manager.clone(), ..next };
    let seats: Vec<v1::MemberRoute> =
        former.manager.iter().flat_map(|group| &group.members).copied().collect();
    for node in &mut next.nodes {
        let Some(id) = node.info.as_ref().map(|info| info.id) else { continue };
        let by = |told: &&Told| told.heartbeat.info.as_ref().is_some_and(|info| info.id == id);
        let Some(told) = told.iter().find(by) else { continue };
        let held = told.heartbeat.groups.iter().chain(&told.heartbeat.absent);
        let held: BTreeSet<u64> = held.map(|report| report.replica).collect();
        let own = seats.iter().filter(|seat| seat.node == id).map(|seat| seat.replica);
        node.lost.extend(own.filter(|replica| !held.contains(replica)));
    }
    next
}

/// The state of a new manager, from what all nodes tell; `None` when one of them could not store the era.
fn appoint(world: &World, former: &v1::ManagerState, random: &Random) -> Option<v1::ManagerState> {
    let processes = world.processes();
    let era = former.era + 1;
    let obeys = |process: &Arc<Process>| process.obeyed.obey_era(era).is_ok();
    if !processes.iter().all(obeys) {
        return None;
    }
    let table = |process: &Process| process.tables.current().map(|it| RoutingTable::clone(&it));
    let told: Vec<Told> = processes
        .iter()
        .map(|process| {
            let lives =
                process.host.lives().into_iter().map(|(node, life)| (node.0, life)).collect();
            Told { heartbeat: process.heartbeat(), table: table(process), lives }
        })
        .collect();
    match adopt(&told, None, era, manager_incarnation(random)) {
        Ok(next) => Some(in_the_same_group(next, former, &told)),
        Err(error) => {
            let what = format!("no state can be put together: {error}");
            world.violation(Violation::new("H6 a new manager", what));
            None
        }
    }
}
