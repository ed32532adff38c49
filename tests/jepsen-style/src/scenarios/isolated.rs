//! A replica alone: node 1 of three goes on, the two others are suspended.
//!
//! What must hold on the side of the minority:
//! - `any` answers for every key (E6), and the bound of its receipt grows by a second in a second, 50 ms
//!   more or less, and is never below the time since the others were suspended, 100 ms less perhaps; also
//!   where node 1 has led until then, which it must have somewhere (R4);
//! - a linearizable read is refused within its deadline, as `NoQuorum`;
//! - when the others go on, everything is there, and the bounds shrink again.
//!
//! The reading client is on that side too: it reaches node 1 only. The times of a reading are those of
//! this process, half-way between question and answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus_client::{Client, Consistency, ErrorKind, NodeId, Role};
use annulus_runtime::Env;
use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};

use super::wire::Wire;
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;

/// Enough that node 1 leads some and follows at others.
const KEYS: u64 = 16;
const ALONE: NodeId = NodeId(1);
/// Between two readings of every key.
const EVERY: Duration = Duration::from_millis(200);
const READINGS: usize = 50;
/// The first readings do not count: answers may still have been on their way.
const SETTLING: usize = 3;
/// Readings in a second.
const WINDOW: usize = 5;
/// Most by which the growth of a bound may differ from the time that passed.
const DRIFT_US_MOST: u64 = 50_000;
/// Most by which a bound may be below the time since the others were suspended: a signal takes effect a
/// moment after it was sent.
const SHORT_US_MOST: u64 = 100_000;
/// Longer than a leader may go on by itself: a gate is open for 450 ms at most.
const GATES_SHUT: Duration = Duration::from_secs(1);
const REFUSALS: usize = 7;
const DEADLINE: Duration = Duration::from_secs(1);
/// What an answer may come late: a machine that is busy.
const LATENESS: Duration = Duration::from_millis(250);
/// Bounds of a healed cluster are below this.
const FRESH_US: u64 = 1_000_000;

/// One look at one key.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at_us: u64,
    bound_us: u64,
    /// How long the answer took.
    took_us: u64,
    led: bool,
}

/// Suspends two of three nodes for ten seconds.
///
/// # Errors
/// When something that the module names does not hold, or the run itself fails.
pub async fn run(program: &Path) -> Result<()> {
    let env = Env::real()?;
    let mut cluster = Cluster::start(program, 3, "isolated").await?;
    let outcome = alone_and_back(&env, &mut cluster).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

fn key(place: u64) -> String {
    format!("isolated-{place}")
}

async fn alone_and_back(env: &Env, cluster: &mut Cluster) -> Result<()> {
    let client = cluster.client().await?;
    for place in 0..KEYS {
        client.put(key(place), "before").deadline(READY).await?;
    }
    let cut = vec![cluster.endpoint(2), cluster.endpoint(3)];
    let connecting = Client::builder()
        .endpoints([cluster.endpoint(1)])
        .network(Arc::new(Wire::without(cut)))
        .connect();
    let inside = connecting.await.context("connecting to node 1")?;
    wait_until("node 1 holds every key", READY, || async { all(env, &inside).await.is_ok() })
        .await?;
    cluster.pause(2)?;
    cluster.pause(3)?;
    let paused_us = env.clock.monotonic_us();
    let (readings, refusals) = tokio::join!(watch(env, &inside), refused(env, &inside));
    cluster.resume(2)?;
    cluster.resume(3)?;
    let (readings, longest_us) = (readings?, refusals?);
    judge(&readings, paused_us)?;
    println!(
        "{} linearizable reads: all refused as NoQuorum, the longest after {} ms (deadline {} ms)",
        REFUSALS as u64 * KEYS,
        longest_us / 1000,
        DEADLINE.as_millis()
    );
    healed(env, cluster, &client, &inside).await
}

/// Looks at one key, at node 1.
async fn look(env: &Env, inside: &Client, place: u64) -> Result<Reading> {
    let sent_us = env.clock.monotonic_us();
    let read = inside.get(key(place)).consistency(Consistency::Any).from_node(ALONE);
    let found = read.deadline(DEADLINE).await;
    let answered_us = env.clock.monotonic_us();
    let found = found.with_context(|| format!("an any read of {}", key(place)))?;
    ensure!(found.value.as_deref() == Some(b"before".as_slice()), "{} is not there", key(place));
    let bound_us = found.receipt.staleness_bound_us;
    Ok(Reading {
        at_us: sent_us.midpoint(answered_us),
        bound_us: bound_us.with_context(|| format!("the bound of {} is unknown", key(place)))?,
        took_us: answered_us - sent_us,
        led: found.receipt.role == Role::Leader,
    })
}

/// Looks at every key.
async fn all(env: &Env, inside: &Client) -> Result<Vec<Reading>> {
    try_join_all((0..KEYS).map(|place| look(env, inside, place))).await
}

/// Looks at every key again and again; the readings come by key.
async fn watch(env: &Env, inside: &Client) -> Result<Vec<Vec<Reading>>> {
    let mut by_key = vec![Vec::new(); usize::try_from(KEYS)?];
    let mut ticker = tokio::time::interval(EVERY);
    for turn in 0..READINGS {
        ticker.tick().await;
        let readings = all(env, inside).await?;
        if turn < SETTLING {
            continue;
        }
        for (of_key, reading) in by_key.iter_mut().zip(readings) {
            of_key.push(reading);
        }
    }
    Ok(by_key)
}

/// Asks for every key in vain; returns how long the longest refusal took, microseconds.
async fn refused(env: &Env, inside: &Client) -> Result<u64> {
    tokio::time::sleep(GATES_SHUT).await;
    let mut longest_us = 0;
    for _ in 0..REFUSALS {
        let reads = (0..KEYS).map(|place| async move {
            let sent_us = env.clock.monotonic_us();
            let read = inside.get(key(place)).deadline(DEADLINE).await;
            (place, read, env.clock.monotonic_us() - sent_us)
        });
        for (place, read, took_us) in join_all(reads).await {
            let name = key(place);
            let Err(error) = read else {
                anyhow::bail!("a linearizable read of {name} was answered without a majority");
            };
            ensure!(error.kind == ErrorKind::NoQuorum, "{name} was refused otherwise: {error}");
            let took = Duration::from_micros(took_us);
            ensure!(took <= DEADLINE + LATENESS, "{name} was refused only after {took:?}");
            longest_us = longest_us.max(took_us);
        }
    }
    Ok(longest_us)
}

/// The most by which the growth of the bound within a second differs from the time that passed,
/// microseconds.
fn drift_us(readings: &[Reading]) -> u64 {
    let drift = |first: Reading, last: Reading| {
        let grown = i128::from(last.bound_us) - i128::from(first.bound_us);
        let passed = i128::from(last.at_us) - i128::from(first.at_us);
        u64::try_from((grown - passed).unsigned_abs()).unwrap_or(u64::MAX)
    };
    let seconds = readings.iter().zip(readings.iter().skip(WINDOW));
    seconds.map(|(first, last)| drift(*first, *last)).max().unwrap_or(0)
}

/// The most by which a bound is below the time since `paused_us`, microseconds: what a replica vouches for
/// cannot be newer than the last word of the others.
fn shortfall_us(readings: &[Reading], paused_us: u64) -> u64 {
    let shortfall = |reading: &Reading| {
        // The answer was made after the question was sent.
        let sent_us = reading.at_us.saturating_sub(reading.took_us / 2);
        sent_us.saturating_sub(paused_us).saturating_sub(reading.bound_us)
    };
    readings.iter().map(shortfall).max().unwrap_or(0)
}

fn judge(by_key: &[Vec<Reading>], paused_us: u64) -> Result<()> {
    let readings = by_key.iter().flatten();
    let longest_us = readings.clone().map(|reading| reading.took_us).max().unwrap_or(0);
    let bound_us = readings.clone().map(|reading| reading.bound_us).max().unwrap_or(0);
    let led = by_key.iter().filter(|of_key| of_key.iter().any(|reading| reading.led)).count();
    let worst_us = by_key.iter().map(|of_key| drift_us(of_key)).max().unwrap_or(0);
    let short_us = by_key.iter().map(|of_key| shortfall_us(of_key, paused_us)).max().unwrap_or(0);
    println!(
        "{} any reads of {KEYS} keys, {led} of them led by the lonely node: all answered, the longest after {} ms",
        readings.count(),
        longest_us / 1000
    );
    println!(
        "bounds: up to {} ms; their growth in a second was off by {worst_us} us at most, and they were \
         below the time since the others were suspended by {short_us} us at most",
        bound_us / 1000
    );
    ensure!(led > 0, "node 1 led nothing: no leader was isolated");
    ensure!(led < by_key.len(), "node 1 led everything: no follower was isolated");
    ensure!(
        worst_us <= DRIFT_US_MOST,
        "a bound did not grow with the time: off by {worst_us} us in a second, limit {DRIFT_US_MOST} us"
    );
    ensure!(
        short_us <= SHORT_US_MOST,
        "a bound is {short_us} us below the time since the others were suspended, limit {SHORT_US_MOST} us"
    );
    Ok(())
}

async fn healed(env: &Env, cluster: &Cluster, client: &Client, inside: &Client) -> Result<()> {
    let resumed_us = env.clock.monotonic_us();
    cluster.wait_ready().await?;
    wait_until("the bounds of node 1 have shrunk", READY, || async {
        let readings = all(env, inside).await;
        readings.is_ok_and(|all| all.iter().all(|reading| reading.bound_us < FRESH_US))
    })
    .await?;
    let healed_ms = (env.clock.monotonic_us() - resumed_us) / 1000;
    for place in 0..KEYS {
        let found = client.get(key(place)).deadline(READY).await?;
        ensure!(found.value.as_deref() == Some(b"before".as_slice()), "{} is lost", key(place));
        client.put(key(place), "after").deadline(READY).await?;
        let found = client.get(key(place)).deadline(READY).await?;
        ensure!(found.value.as_deref() == Some(b"after".as_slice()), "{} is old", key(place));
    }
    println!("ready with fresh bounds {healed_ms} ms after the others went on; every key is there");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(bounds_us: impl IntoIterator<Item = u64>) -> Vec<Reading> {
        let at =
            |(turn, bound_us)| Reading { at_us: turn * 200_000, bound_us, took_us: 0, led: false };
        (0_u64..).zip(bounds_us).map(at).collect()
    }

    #[test]
    fn a_bound_that_stops_runs_ahead_or_falls_is_off() {
        let with_time = readings((0_u64..20).map(|turn| 70_000 + turn * 200_000));
        assert_eq!(drift_us(&with_time), 0);
        let stopped = readings((0_u64..20).map(|turn| 70_000 + turn.min(10) * 200_000));
        assert_eq!(drift_us(&stopped), 1_000_000);
        let fast = readings((0_u64..20).map(|turn| 70_000 + turn * 220_000));
        assert_eq!(drift_us(&fast), 100_000);
        let fallen = readings((0_u64..20).map(|turn| if turn < 10 { turn * 200_000 } else { 0 }));
        assert!(drift_us(&fallen) > 1_000_000);
    }

    #[test]
    fn a_bound_below_the_time_since_the_others_were_suspended_falls_short() {
        let paused_us = 10_000;
        let all_the_time = readings((0_u64..20).map(|turn| turn * 200_000));
        assert_eq!(shortfall_us(&all_the_time, paused_us), 0);
        let late = readings((0_u64..20).map(|turn| (turn * 200_000).saturating_sub(300_000)));
        assert_eq!(drift_us(&late[2..]), 0, "it grows with the time");
        assert_eq!(shortfall_us(&late, paused_us), 290_000);
        let slow = Reading { at_us: 1_000_000, bound_us: 800_000, took_us: 400_000, led: false };
        assert_eq!(shortfall_us(&[slow], 0), 0, "it was answered early on");
    }
}
