//! The load under which seats move: closed loops of gets, puts and additions, each client over keys of its
//! own, and the reading back of everything. Where the write gap of a key is asked for, a key of each group is
//! written without a pause besides (`probe`).
//!
//! A read within the loop is judged at once: it is linearizable, and nobody else writes the key. What was
//! found wrong is collected and judged by the caller at the end, so that one finding does not hide others.
//!
//! Failures are counted, whatever their kind; only a mutation whose outcome is unknown leaves a doubt in
//! the `ledger`. Retries are those that the client library counts; how long a request took, probes included,
//! is what the clock here says.
//!
//! A load proves something only if it was there: a client that did not come to its end, or made hardly any
//! calls, fails [`Load::stop`].

mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, Error, MayHaveApplied, Receipt, RoutingTable, StatusReply};
use annulus_runtime::{Env, Random};
use annulus_types::token_of;
use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, TryStreamExt as _};
use parking_lot::Mutex;

use self::probe::Probe;
use super::Options;
use super::gaps::{Ack, Gaps};
use super::ledger::{Counter, Damage, Register, Verdict, number_of, value_of};
use crate::cluster::{Cluster, READY};
use crate::crew::Crew;
use crate::process::wait_until;

/// Deadline of a request of the load.
const DEADLINE: Duration = Duration::from_secs(5);
/// What it may end late: a machine that is busy.
const LATENESS: Duration = Duration::from_secs(1);
/// Calls of each client at least, between start and stop: some hundreds are usual.
const CALLS_LEAST: u64 = 20;
/// Keys that count, for each client.
const COUNTERS: usize = 64;
/// First writes of one client that are under way at a time.
const FIRST_WRITES: usize = 8;
/// Keys that are read back with one call.
const READ_BACK: usize = 1_000;
/// Failed requests that are told one by one.
const TOLD: u64 = 10;

/// The keys of one client.
#[derive(Debug)]
struct Book {
    client: u64,
    clients: u64,
    value_bytes: usize,
    registers: Vec<Register>,
    counters: Vec<Counter>,
}

impl Book {
    /// The number of a register among those of all clients.
    fn number(&self, slot: usize) -> u64 {
        slot as u64 * self.clients + self.client
    }

    fn register(&self, slot: usize) -> String {
        format!("register-{:08}", self.number(slot))
    }

    fn counter(&self, slot: usize) -> String {
        format!("counter-{:08}", self.number(slot))
    }

    /// Judges what was found in a register.
    fn judge(&mut self, slot: usize, found: Option<&[u8]>) -> Verdict {
        let Some(value) = found else { return self.registers[slot].judge(None) };
        match number_of(self.number(slot), value, self.value_bytes) {
            Some(number) => self.registers[slot].judge(Some(number)),
            None => Verdict::Wrong,
        }
    }

    /// Judges what was found in a counter.
    fn judge_count(&mut self, slot: usize, found: Option<&[u8]>) -> Verdict {
        let text = found.map(|value| std::str::from_utf8(value).ok());
        match text.map(|text| text.and_then(|text| text.parse().ok())) {
            None => self.counters[slot].judge(None),
            Some(Some(count)) => self.counters[slot].judge(Some(count)),
            Some(None) => Verdict::Wrong,
        }
    }
}

/// What the clients share.
#[derive(Debug)]
struct Shared {
    env: Env,
    stop: AtomicBool,
    /// As it was at the beginning; a shard stays in its group.
    table: Arc<RoutingTable>,
    groups: BTreeMap<u64, u64>,
    /// By shard.
    gaps: Mutex<Gaps>,
    /// Of the probes, by group.
    probed: Mutex<Gaps>,
    /// The longest that a request took, microseconds.
    longest_us: AtomicU64,
    damage: Mutex<Damage>,
    refused: AtomicU64,
    unknown: AtomicU64,
}

impl Shared {
    /// A request that began at `sent_us` has ended, however. Returns when.
    fn answered(&self, sent_us: u64) -> u64 {
        let now_us = self.env.clock.monotonic_us();
        self.longest_us.fetch_max(now_us.saturating_sub(sent_us), Ordering::Relaxed);
        now_us
    }

    /// A write was acknowledged.
    fn acknowledged(&self, receipt: &Receipt, sent_us: u64, at_us: u64) {
        self.gaps.lock().acknowledged(receipt.shard.0, ack_of(receipt, sent_us, at_us));
    }

    /// A request failed. Returns whether it leaves a doubt.
    fn failed(&self, what: &str, error: &Error) -> bool {
        let is_in_doubt = error.may_have_applied != MayHaveApplied::No;
        let counter = if is_in_doubt { &self.unknown } else { &self.refused };
        if counter.fetch_add(1, Ordering::Relaxed) < TOLD {
            eprintln!("{what} failed: {error} (may have applied: {:?})", error.may_have_applied);
        }
        is_in_doubt
    }
}

fn ack_of(receipt: &Receipt, sent_us: u64, at_us: u64) -> Ack {
    Ack { node: receipt.node.0, term: receipt.term, sent_us, at_us }
}

/// One closed loop.
#[derive(Clone)]
struct Worker {
    client: Client,
    book: Arc<Mutex<Book>>,
    shared: Arc<Shared>,
    random: Random,
}

impl Worker {
    async fn run(self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.random.below(10) {
                0..5 => self.read().await,
                5..8 => self.put().await,
                _ => self.add().await,
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.shared.env.clock.monotonic_us()
    }

    fn below(&self, length: usize) -> usize {
        usize::try_from(self.random.below(length as u64)).unwrap_or(0)
    }

    async fn read(&self) {
        let (slot, key) = {
            let book = self.book.lock();
            let slot = self.below(book.registers.len());
            (slot, book.register(slot))
        };
        let sent_us = self.now_us();
        let found = self.client.get(key.clone()).deadline(DEADLINE).await;
        self.shared.answered(sent_us);
        match found {
            Ok(found) => {
                let verdict = self.book.lock().judge(slot, found.value.as_deref());
                let told = || format!("a get of {key} at node {}", found.receipt.node);
                self.shared.damage.lock().note(verdict, told);
            }
            Err(error) => {
                self.shared.failed("a get", &error);
            }
        }
    }

    async fn put(&self) {
        let (slot, number, key, value) = {
            let mut book = self.book.lock();
            let slot = self.below(book.registers.len());
            let number = book.registers[slot].begin();
            let value = value_of(book.number(slot), number, book.value_bytes);
            (slot, number, book.register(slot), value)
        };
        let sent_us = self.now_us();
        let written = self.client.put(key, value).deadline(DEADLINE).await;
        let at_us = self.shared.answered(sent_us);
        match written {
            Ok(written) => {
                self.shared.acknowledged(&written.receipt, sent_us, at_us);
                self.book.lock().registers[slot].acknowledged(number);
            }
            Err(error) => {
                if self.shared.failed("a put", &error) {
                    self.book.lock().registers[slot].doubted(number);
                }
            }
        }
    }

    async fn add(&self) {
        let (slot, key) = {
            let book = self.book.lock();
            let slot = self.below(book.counters.len());
            (slot, book.counter(slot))
        };
        let sent_us = self.now_us();
        let counted = self.client.incr(key.clone(), 1).deadline(DEADLINE).await;
        let at_us = self.shared.answered(sent_us);
        match counted {
            Ok(counted) => {
                self.shared.acknowledged(&counted.receipt, sent_us, at_us);
                let verdict = match counted.sum() {
                    Some(sum) => self.book.lock().counters[slot].acknowledged(sum),
                    None => Verdict::Wrong,
                };
                let told = || format!("an addition to {key} answered {}", counted.value);
                self.shared.damage.lock().note(verdict, told);
            }
            Err(error) => {
                if self.shared.failed("an addition", &error) {
                    self.book.lock().counters[slot].doubted();
                }
            }
        }
    }

    /// Writes each of its keys for the first time.
    async fn preload(&self) -> Result<()> {
        let (registers, counters) = {
            let book = self.book.lock();
            (book.registers.len(), book.counters.len())
        };
        let puts = stream::iter((0..registers).map(Ok::<_, anyhow::Error>));
        puts.try_for_each_concurrent(FIRST_WRITES, |slot| async move {
            let (number, key, value) = {
                let mut book = self.book.lock();
                let number = book.registers[slot].begin();
                let value = value_of(book.number(slot), number, book.value_bytes);
                (number, book.register(slot), value)
            };
            self.client.put(key, value).deadline(READY).await.context("the first puts")?;
            self.book.lock().registers[slot].acknowledged(number);
            Ok(())
        })
        .await?;
        for slot in 0..counters {
            let key = self.book.lock().counter(slot);
            let counted = self.client.incr(key, 1).deadline(READY).await;
            let sum = counted.context("the first additions")?.sum();
            let verdict = sum.map(|sum| self.book.lock().counters[slot].acknowledged(sum));
            ensure!(verdict == Some(Verdict::Fine), "a new counter stands at {sum:?}");
        }
        Ok(())
    }

    /// Reads all of its keys back.
    async fn read_back(&self, reader: &Client) -> Result<()> {
        let (registers, counters): (Vec<String>, Vec<String>) = {
            let book = self.book.lock();
            let registers = (0..book.registers.len()).map(|slot| book.register(slot)).collect();
            (registers, (0..book.counters.len()).map(|slot| book.counter(slot)).collect())
        };
        for (keys, is_register) in [(registers, true), (counters, false)] {
            for (part, some) in keys.chunks(READ_BACK).enumerate() {
                let found = reader.multi_get(some.to_vec()).deadline(READY).await?;
                ensure!(found.len() == some.len(), "{} answers to {}", found.len(), some.len());
                let mut book = self.book.lock();
                for (at, (key, found)) in some.iter().zip(found).enumerate() {
                    let slot = part * READ_BACK + at;
                    let value = found.value.as_deref();
                    let verdict = if is_register {
                        book.judge(slot, value)
                    } else {
                        book.judge_count(slot, value)
                    };
                    let told = || format!("{key} when everything was read back");
                    self.shared.damage.lock().note(verdict, told);
                }
            }
        }
        Ok(())
    }
}

/// What the load has taken since it was preloaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) calls: u64,
    pub(super) retries: u64,
    /// Failed, and certainly changed nothing.
    pub(super) refused: u64,
    /// Failed, and perhaps changed something.
    pub(super) unknown: u64,
    /// The longest that a request took.
    pub(super) longest: Duration,
}

impl Figures {
    /// Whether every request ended when its deadline had come, or a moment later.
    pub(super) fn are_in_time(&self) -> bool {
        self.longest <= DEADLINE + LATENESS
    }
}

/// See the module.
pub(super) struct Load {
    workers: Vec<Worker>,
    probes: Vec<Probe>,
    shared: Arc<Shared>,
    keys: u64,
    /// What clients had counted when the load began.
    before: (u64, u64),
    /// Those that run, and the calls that each worker had made when they began.
    crew: Option<(Crew, Vec<u64>)>,
}

impl Load {
    /// Connects the clients and writes every key once. There are probes unless processes are to be killed:
    /// what a key misses then is another question.
    ///
    /// # Errors
    /// When one of the first writes fails.
    pub(super) async fn begin(env: &Env, cluster: &Cluster, options: &Options) -> Result<Self> {
        let table = cluster.client().await?.routes().await?;
        let shared = Arc::new(Shared {
            env: env.clone(),
            stop: AtomicBool::new(true),
            groups: table.shards.iter().map(|shard| (shard.id.0, shard.group.0)).collect(),
            table: Arc::clone(&table),
            gaps: Mutex::default(),
            probed: Mutex::default(),
            longest_us: AtomicU64::new(0),
            damage: Mutex::default(),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        });
        let mut workers = Vec::new();
        for number in 0..options.clients {
            // Every client has its share of the keys; the first ones get the rest.
            let registers = (options.keys - number).div_ceil(options.clients);
            let book = Book {
                client: number,
                clients: options.clients,
                value_bytes: options.value_bytes,
                registers: vec![Register::default(); usize::try_from(registers)?],
                counters: vec![Counter::default(); COUNTERS],
            };
            workers.push(Worker {
                client: cluster.client().await?,
                book: Arc::new(Mutex::new(book)),
                shared: Arc::clone(&shared),
                random: Random::seeded(options.seed.wrapping_mul(1 << 16).wrapping_add(number)),
            });
        }
        let first_writes = workers.iter().map(Worker::preload);
        futures_util::future::try_join_all(first_writes).await?;
        let probes = if options.kills.is_empty() {
            Probe::of_each_group(cluster, &table, &shared).await?
        } else {
            Vec::new()
        };
        let keys = options.keys + options.clients * COUNTERS as u64 + probes.len() as u64;
        let mut load = Self { workers, probes, shared, keys, before: (0, 0), crew: None };
        load.before = load.taken();
        Ok(load)
    }

    /// Starts the loops, which run until [`Load::stop`].
    pub(super) fn start(&mut self) {
        self.shared.stop.store(false, Ordering::Relaxed);
        self.shared.gaps.lock().begin();
        self.shared.probed.lock().begin();
        let mut crew = Crew::new(&self.shared.env.tasks);
        let before = self.workers.iter().map(|worker| worker.client.stats().calls).collect();
        for worker in &self.workers {
            crew.add(worker.clone().run());
        }
        for probe in &self.probes {
            crew.add(probe.clone().run());
        }
        self.crew = Some((crew, before));
    }

    /// Ends the loops after their present requests.
    ///
    /// # Errors
    /// When a client did not come to its end, or made too few calls for its silence to mean anything.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some((crew, before)) = self.crew.take() else { return Ok(()) };
        crew.ended().await?;
        for (worker, before) in self.workers.iter().zip(before) {
            let calls = worker.client.stats().calls - before;
            ensure!(calls >= CALLS_LEAST, "a client made {calls} calls, {CALLS_LEAST} are wanted");
        }
        Ok(())
    }

    /// Reads every key back and counts them. The load is stopped, and every group has a leader.
    ///
    /// # Errors
    /// When they cannot be read, or there are more or fewer than were written. What the values are is
    /// added to [`Load::damage`].
    pub(super) async fn check(&self, cluster: &Cluster) -> Result<()> {
        let reader = cluster.client().await?;
        for worker in &self.workers {
            worker.read_back(&reader).await?;
        }
        for probe in &self.probes {
            probe.read_back(&reader).await?;
        }
        let counted = Mutex::new(None);
        wait_until("the leader of every shard counts its keys", READY, || async {
            let count = reader.status(false).await.ok().and_then(|status| live_keys(&status));
            *counted.lock() = count;
            count.is_some()
        })
        .await?;
        let counted = counted.into_inner().unwrap_or(0);
        ensure!(
            counted == self.keys,
            "{} keys were written, the shards' leaders hold {counted}",
            self.keys
        );
        Ok(())
    }

    /// Keys that were written, counters and probes included.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// The groups that serve the keys.
    pub(super) fn groups(&self) -> Vec<u64> {
        let mut groups: Vec<u64> = self.shared.groups.values().copied().collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// A key that a group serves, to ask who leads it; `None`: no client has one.
    pub(super) fn key_of(&self, group: u64) -> Option<String> {
        let table = &self.shared.table;
        let serves = |key: &String| {
            let shard = table.shard_of(token_of(key.as_bytes()));
            shard.is_some_and(|shard| shard.group.0 == group)
        };
        self.workers.iter().find_map(|worker| {
            let book = worker.book.lock();
            (0..book.registers.len()).map(|slot| book.register(slot)).find(serves)
        })
    }

    /// Whether every group has acknowledged a write that was sent after this moment of the monotonic clock,
    /// at another node than `dead`.
    pub(super) fn is_served_since(&self, sent_us: u64, dead: u32) -> bool {
        let gaps = self.shared.gaps.lock();
        let serves = |shard: &u64| gaps.is_served_since(*shard, sent_us, dead);
        self.groups().into_iter().all(|group| {
            let mut shards = self.shared.groups.iter().filter(|(_, of)| **of == group);
            shards.any(|(shard, _)| serves(shard))
        })
    }

    /// Changes of leader or term as shards saw them, the median gap and the longest, microseconds.
    pub(super) fn gaps(&self) -> (usize, u64, u64) {
        self.shared.gaps.lock().figures()
    }

    /// The same of the keys that are written without a pause, one in each group.
    pub(super) fn probe_gaps(&self) -> (usize, u64, u64) {
        self.shared.probed.lock().figures()
    }

    /// What was found wrong so far.
    pub(super) fn damage(&self) -> Damage {
        self.shared.damage.lock().clone()
    }

    /// See [`Figures`].
    pub(super) fn figures(&self) -> Figures {
        let (calls, retries) = self.taken();
        Figures {
            calls: calls - self.before.0,
            retries: retries - self.before.1,
            refused: self.shared.refused.load(Ordering::Relaxed),
            unknown: self.shared.unknown.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.shared.longest_us.load(Ordering::Relaxed)),
        }
    }

    /// Calls and retries of all clients.
    fn taken(&self) -> (u64, u64) {
        let stats = self.workers.iter().map(|worker| worker.client.stats());
        stats.fold((0, 0), |(calls, retries), it| (calls + it.calls, retries + it.retries))
    }
}

/// Live keys of all shards, each as its leader counts them; `None` when one has no leader.
fn live_keys(status: &StatusReply) -> Option<u64> {
    let keys = status.table.as_ref()?.shards.iter().map(|shard| {
        let mut nodes = status.nodes.iter();
        let leader = nodes.find(|node| {
            node.replicas.iter().any(|replica| replica.group == shard.group && replica.gate_open)
        })?;
        leader.shards.iter().find(|held| held.shard == shard.id).map(|held| held.keys)
    });
    keys.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_clients_never_meet_and_counts_are_read() {
        let book = |client| Book {
            client,
            clients: 3,
            value_bytes: 16,
            registers: vec![Register::default(); 2],
            counters: vec![Counter::default(); 2],
        };
        let names: Vec<String> =
            (0..3).flat_map(|client| (0..2).map(move |slot| book(client).register(slot))).collect();
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((names.len(), distinct.len()), (6, 6));

        let mut own = book(1);
        assert_eq!(own.judge_count(0, None), Verdict::Fine);
        assert_eq!(own.counters[0].acknowledged(1), Verdict::Fine);
        assert_eq!(own.judge_count(0, Some(b"1")), Verdict::Fine);
        assert_eq!(own.judge_count(0, Some(b"2")), Verdict::Doubled);
        assert_eq!(own.judge_count(0, Some(b"one")), Verdict::Wrong);
        assert_eq!(own.judge_count(0, None), Verdict::Lost);
        let number = own.registers[1].begin();
        own.registers[1].acknowledged(number);
        let value = value_of(own.number(1), number, 16);
        assert_eq!(own.judge(1, Some(&value)), Verdict::Fine);
        assert_eq!(own.judge(1, Some(b"rotten")), Verdict::Wrong);
        assert_eq!(own.judge(1, None), Verdict::Lost);
    }
}
