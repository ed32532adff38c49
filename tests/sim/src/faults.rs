//! The faults of a plan, each in a task of its own, so that they overlap.
//!
//! Invariants: every fault ends, at the latest when the run becomes calm; a fault that finds
//! nothing to hurt (a node that is down already) says so in the trace and does nothing. A process
//! that a fault is about to end is *doomed* before anything is done to it, so that its own stop is
//! no violation.

use std::sync::Arc;
use std::time::Duration;

use annulus_runtime::{Cut, OnEnd};
use annulus_types::NodeId;
use tokio::time::Instant;

use crate::invariants::alive;
use crate::plan::{Fault, Span};
use crate::routes::host_of;
use crate::world::{End, World};

/// A power cut that waits for the disk to work waits no longer than this.
const DISK_WAIT: Duration = Duration::from_millis(300);
/// A node whose log has failed stops within this.
const STOP_LIMIT: Duration = Duration::from_secs(1);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Inflicts the planned faults until the run is calm.
pub(crate) async fn run(world: Arc<World>) {
    let began = Instant::now();
    for (at_ms, fault) in world.plan.faults.clone() {
        tokio::time::sleep_until(began + ms(at_ms)).await;
        if world.is_calm() {
            return;
        }
        world.trace.line("fault", fault);
        world.seen.lock().counts.faults += 1;
        world.tasks.spawn("fault", OnEnd::Ignore, inflict(Arc::clone(&world), fault));
    }
}

async fn inflict(world: Arc<World>, fault: Fault) {
    match fault {
        Fault::Kill { node, down_ms } => end(&world, node, End::Kill, down_ms).await,
        Fault::PowerCut { node, after_changes: None, down_ms } => {
            end(&world, node, End::PowerCut, down_ms).await;
        }
        Fault::PowerCut { node, after_changes: Some(count), down_ms } => {
            cut_power_at_work(&world, node, count, down_ms).await;
        }
        Fault::Blackout { down_ms } => {
            for node in world.node_ids() {
                // Also at a machine whose process is down: its memory holds what was not synced.
                if !world.end_process(node, None, End::PowerCut) {
                    world.machine(node).disk.crash();
                }
            }
            tokio::time::sleep(ms(down_ms)).await;
            for node in world.node_ids() {
                world.boot(node).await;
            }
        }
        Fault::SyncFailure { node, down_ms } => fail_sync(&world, node, down_ms).await,
        Fault::Cut { from, to, both, how, for_ms } => {
            cut(&world, from, to, both, how);
            tokio::time::sleep(ms(for_ms)).await;
            heal(&world, from, to);
        }
        Fault::Isolate { node, how, for_ms } => {
            let others: Vec<NodeId> =
                world.node_ids().into_iter().filter(|other| *other != node).collect();
            for other in &others {
                cut(&world, node, *other, true, how);
            }
            tokio::time::sleep(ms(for_ms)).await;
            for other in &others {
                heal(&world, node, *other);
            }
        }
        Fault::SlowNetwork { latency_ms, for_ms } => {
            slow_network(&world, latency_ms, for_ms).await;
        }
        Fault::SlowDisk { node, by_ms, for_ms } => {
            let machine = world.machine(node);
            machine.set_stall(by_ms);
            tokio::time::sleep(ms(for_ms)).await;
            machine.set_stall(0);
        }
    }
}

fn nothing_to_hurt(world: &World, node: NodeId) {
    world.trace.line(format_args!("node {node}"), "is down or doomed already");
}

async fn end(world: &Arc<World>, node: NodeId, how: End, down_ms: u64) {
    if world.end_process(node, None, how) {
        restart(world, node, down_ms).await;
        return;
    }
    nothing_to_hurt(world, node);
    if how == End::PowerCut {
        // The machine may still hold in its memory what its last process did not sync.
        world.machine(node).disk.crash();
    }
}

async fn restart(world: &Arc<World>, node: NodeId, down_ms: u64) {
    if !world.is_calm() {
        tokio::time::sleep(ms(down_ms)).await;
    }
    world.boot(node).await;
}

/// A power cut between two steps of the disk: what is being written is torn (L3).
async fn cut_power_at_work(world: &Arc<World>, node: NodeId, count: u64, down_ms: u64) {
    let machine = world.machine(node);
    let Some(process) = machine.doom() else {
        nothing_to_hurt(world, node);
        return;
    };
    machine.disk.fail_after_changes(count);
    // Without work in time the power goes all the same.
    let _ = tokio::time::timeout(DISK_WAIT, process.env.tasks.stop_requested()).await;
    if world.end_process(node, Some(&process), End::PowerCut) {
        restart(world, node, down_ms).await;
    }
}

/// A sync that fails: the node must stop, and starts again from what is really on the disk.
async fn fail_sync(world: &Arc<World>, node: NodeId, down_ms: u64) {
    let machine = world.machine(node);
    let Some(process) = machine.doom() else {
        nothing_to_hurt(world, node);
        return;
    };
    let before = process.host.wal().stats().batches;
    machine.fail_next_log_sync();
    let stopped = tokio::time::timeout(STOP_LIMIT, process.env.tasks.stop_requested()).await;
    // Every batch is synced: the first one fails, so that a further one must not exist.
    let went_on = process.host.wal().stats().batches > before;
    if !world.end_process(node, Some(&process), End::Kill) {
        return;
    }
    if stopped.is_err() && went_on {
        world.violation(alive::outlived_its_log(node));
    }
    restart(world, node, down_ms).await;
}

async fn slow_network(world: &Arc<World>, latency_ms: Span, for_ms: u64) {
    world.set_latency(latency_ms);
    tokio::time::sleep(ms(for_ms)).await;
    world.set_latency(world.plan.latency_ms);
}

fn cut(world: &World, from: NodeId, to: NodeId, both: bool, how: Cut) {
    let (from, to) = (host_of(from), host_of(to));
    if both {
        world.net.cut(from, to, how);
    } else {
        world.net.cut_one_way(from, to, how);
    }
}

/// Once the run is calm every path is healed and may not be touched: a path healed twice is open.
fn heal(world: &World, from: NodeId, to: NodeId) {
    world.net.heal(host_of(from), host_of(to));
}
