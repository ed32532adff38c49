//! A leader that is suspended, succeeded, and finds reads in its socket when it goes on (R1).
//!
//! One round: a key has an old value and a leader. The leader is suspended (SIGSTOP). A client that cannot
//! reach it writes a new value until the successor has acknowledged that. Then reads of the key are
//! written to the suspended node's connection, which was open before: they lie in its socket while it
//! stands still. It goes on, and answers. To the process no time has passed: whoever trusts anything but
//! the clock answers with the old value here.
//!
//! Each answer must be the new value, or the refusal of one that does not lead or has no majority: any other
//! error (a broken connection, a deadline) says nothing about what the node would have answered, and fails the
//! round. A round counts only if its reads were written while the node stood still, and the new value was
//! acknowledged by another node before.
//!
//! Rounds take keys one after another; which shard, group and leader a key has is as good as random, and
//! leaderships move with every round.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus_client::{Client, Error, ErrorKind, Found, NodeId};
use annulus_runtime::{Env, Random};
use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;

use super::wire::{Wire, Written};
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;

const NODES: u16 = 3;
/// Reads of a round; every third asks for a confirmation round.
const READS: usize = 6;
/// A leadership that moves on between a write and a read is not common.
const PREPARATIONS: usize = 10;
/// For the successor to be elected and to acknowledge.
const SUCCESSION: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(8);
const OLD: &[u8] = b"old";
const NEW: &[u8] = b"new";

/// What the reads came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    new: u64,
    older: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn take(&mut self, answer: &Result<Found, Error>) {
        match answer {
            Ok(found) if found.value.as_deref() == Some(NEW) => self.new += 1,
            Ok(_) => self.older += 1,
            Err(error) => *self.refused.entry(error.kind.name()).or_default() += 1,
        }
    }

    fn total(&self) -> u64 {
        self.new + self.older + self.refused.values().sum::<u64>()
    }
}

/// Whether a deposed leader may refuse a read like this.
fn is_fair(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotLeader { .. } | ErrorKind::NoQuorum | ErrorKind::NotReady { .. })
}

/// The clients of a run.
struct Clients {
    /// Reaches everybody.
    any: Client,
    /// Asks the nodes that it is told to, and what it has written is known.
    reader: Client,
    written: Written,
    /// By node: cannot reach that one, and never could.
    without: Vec<Client>,
}

impl Clients {
    async fn connect(cluster: &Cluster) -> Result<Self> {
        let wire = Wire::default();
        let written = wire.written();
        let reader = connect(cluster, wire).await?;
        let mut without = Vec::new();
        for node in cluster.nodes() {
            without.push(connect(cluster, Wire::without(vec![cluster.endpoint(node)])).await?);
        }
        Ok(Self { any: cluster.client().await?, reader, written, without })
    }
}

async fn connect(cluster: &Cluster, wire: Wire) -> Result<Client> {
    let builder = Client::builder().endpoints(cluster.endpoints()).network(Arc::new(wire));
    builder.connect().await.context("connecting")
}

/// Suspends a leader `times` times.
///
/// # Errors
/// When a read was answered with anything but the new value, or failed otherwise than a deposed leader
/// refuses, or the run itself fails.
pub async fn run(program: &Path, times: u64, seed: u64) -> Result<()> {
    let env = Env::real()?;
    let mut cluster = Cluster::start(program, NODES, "deposed").await?;
    let outcome = rounds(&env, &mut cluster, times, seed).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn rounds(env: &Env, cluster: &mut Cluster, times: u64, seed: u64) -> Result<()> {
    let clients = Clients::connect(cluster).await?;
    let first = Random::seeded(seed).u64();
    let mut tally = Tally::default();
    let mut deposed: BTreeMap<u16, u64> = BTreeMap::new();
    let mut longest_ms = 0;
    for round in 0..times {
        let began_us = env.clock.monotonic_us();
        let key = format!("deposed-{first:016x}-{round:05}");
        let leader = one_round(cluster, &clients, &key, &mut tally)
            .await
            .with_context(|| format!("round {} of {times}", round + 1))?;
        *deposed.entry(leader).or_default() += 1;
        cluster.wait_ready().await?;
        longest_ms = longest_ms.max((env.clock.monotonic_us() - began_us) / 1000);
    }
    println!(
        "{times} leaders deposed, by node: {deposed:?}; the longest round took {longest_ms} ms"
    );
    println!(
        "{} reads put into their sockets: {} got the new value, {} an older one; errors: {:?}",
        tally.total(),
        tally.new,
        tally.older,
        tally.refused
    );
    ensure!(tally.older == 0, "{} reads were answered with an older value", tally.older);
    ensure!(tally.total() == times * READS as u64, "reads are missing");
    Ok(())
}

/// Returns the node that was deposed.
async fn one_round(
    cluster: &mut Cluster,
    clients: &Clients,
    key: &str,
    tally: &mut Tally,
) -> Result<u16> {
    let leader = prepare(clients, key).await?;
    let node = u16::try_from(leader.0)?;
    let elsewhere = clients.without.get(usize::from(node) - 1).context("no such node")?;
    cluster.pause(node)?;
    let succeeded = succeed(elsewhere, key, leader).await;
    if succeeded.is_err() {
        cluster.resume(node)?;
    }
    succeeded?;
    clients.written.clear();
    let reads = (0..READS).map(|place| {
        let read = clients.reader.get(key.to_owned()).strict(place % 3 == 2).from_node(leader);
        read.deadline(DEADLINE).into_future()
    });
    let (answers, resumed) = tokio::join!(join_all(reads), async {
        let sent = wait_until("the reads are written", DEADLINE, || async {
            clients.written.count(key.as_bytes()) >= READS
        });
        let sent = sent.await;
        cluster.resume(node)?;
        sent
    });
    resumed?;
    for answer in &answers {
        tally.take(answer);
        if let Ok(found) = answer
            && found.value.as_deref() != Some(NEW)
        {
            println!("{key}: node {node} answered {:?}: {:?}", found.value, found.receipt);
        }
        if let Err(error) = answer {
            ensure!(is_fair(&error.kind), "a read of {key} at node {node} failed: {error}");
        }
    }
    Ok(node)
}

/// Writes the old value and reads it at the leader, to which there is a connection then.
async fn prepare(clients: &Clients, key: &str) -> Result<NodeId> {
    for _ in 0..PREPARATIONS {
        let leader = clients.any.put(key.to_owned(), OLD).deadline(READY).await?.receipt.node;
        let read = clients.reader.get(key.to_owned()).from_node(leader).deadline(READY);
        // Refused: the leadership has just been handed over, home perhaps.
        let Ok(found) = read.await else { continue };
        ensure!(found.value.as_deref() == Some(OLD), "{key} is not as it was written");
        return Ok(leader);
    }
    bail!("no leader of {key} answered a read, {PREPARATIONS} times")
}

/// Writes the new value; it is acknowledged by a node that is not the suspended leader.
async fn succeed(elsewhere: &Client, key: &str, deposed: NodeId) -> Result<()> {
    let written = elsewhere.put(key.to_owned(), NEW).deadline(SUCCESSION).await?;
    ensure!(written.receipt.node != deposed, "the suspended node acknowledged a write");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart_and_summed() {
        let mut tally = Tally::default();
        for kind in
            [ErrorKind::NoQuorum, ErrorKind::NotLeader { leader: None }, ErrorKind::NoQuorum]
        {
            tally.take(&Err(Error::refused(kind)));
        }
        assert_eq!(tally.refused, BTreeMap::from([("NoQuorum", 2), ("NotLeader", 1)]));
        assert_eq!((tally.new, tally.older, tally.total()), (0, 0, 3));
    }

    #[test]
    fn only_refusals_of_one_that_does_not_lead_are_fair() {
        assert!(is_fair(&ErrorKind::NotLeader { leader: Some(NodeId(2)) }));
        assert!(is_fair(&ErrorKind::NoQuorum));
        assert!(is_fair(&ErrorKind::NotReady { reason: "it is not whole".to_owned() }));
        let stage = "waiting".to_owned();
        for unfair in [
            ErrorKind::DeadlineExceeded { stage },
            ErrorKind::OutcomeUnknown,
            ErrorKind::Cancelled,
            ErrorKind::Overloaded,
            ErrorKind::Internal { id: "7".to_owned() },
        ] {
            assert!(!is_fair(&unfair), "{unfair:?}");
        }
    }
}
