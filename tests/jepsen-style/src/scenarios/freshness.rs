//! Session and bounded reads under kills and moves: nothing older than promised, and few refusals.
//!
//! Each client is a session, writes keys of its own and reads everybody's. What is promised:
//! - `session`: a session sees what it has written and what it has seen, of whatever replica and by
//!   whatever kind of read (R5), and its history is never lost;
//! - `bounded(1s)`: a state that holds every write that was acknowledged more than a second before the
//!   read was sent, and a receipt that says so (R4);
//! - both: nothing that was not written.
//!
//! First the cluster is left alone for 20 s, and `any` reads at followers tell which bound they vouch for.
//! Then faults come in turns with calm in between: a node is killed and started again; or a node is added,
//! and later nodes are drained and take their share again, so that replicas move. A fault lasts from its
//! injection until 2 s after the cluster is ready (after a move: until nothing moves and seats are even).
//! Refusals, that is calls that failed for good within their deadline, are counted apart for the time of
//! faults.
//!
//! Bounds: no violation; at most 1 % refused before all faults, between faults, and while replicas move; 99 of
//! 100 bounds at followers of a healthy cluster at most 250 ms, where no answer, and one without a bound, count
//! as infinitely old. A run shows something only if followers answered: a client begins at the members of a
//! group by turns and asks the leader last, so that two reads in three are a follower's while all is well, and
//! one in three at least must be, of each kind, between faults. Whatever is asked for in numbers is answered
//! reads. `book` keeps what writers know and readers saw, `nemesis` hurts the cluster.

mod book;
mod nemesis;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{
    Client, Consistency, Error, ErrorKind, Found, MayHaveApplied, NodeId, Role, Session,
};
use annulus_runtime::{Clock, Env, Random};
use anyhow::{Result, ensure};
use parking_lot::Mutex;

use self::book::{Count, Key, Kind, Tally, Time};
use self::nemesis::Nemesis;
use crate::cluster::Cluster;
use crate::crew::Crew;
use crate::process::wait_until;
use crate::workloads::number_of;

const NODES: u16 = 3;
/// Few groups, so that a plan of moves takes a minute and not five.
const LANES: u32 = 2;
/// Keys that each client writes.
const KEYS_EACH: usize = 4;
/// Between two operations of a client: readers that take the whole machine would measure themselves.
const PACE: Duration = Duration::from_millis(5);
/// One operation in so many is a write.
const WRITES_ONE_IN: u64 = 10;
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Shorter than any fault, and short enough that an election shows.
const READ_DEADLINE: Duration = Duration::from_secs(1);
const BOUND: Duration = Duration::from_secs(1);
const BOUND_US: u64 = 1_000_000;
const HEALTHY: Duration = Duration::from_secs(20);
/// Between two looks at a healthy cluster.
const LOOK: Duration = Duration::from_millis(5);
/// Most that a healthy follower's bound may be, at 99 of 100 looks.
const HEALTHY_BOUND_US: u64 = 250_000;
/// Between faults, followers must have answered at least one read in so many, of each kind.
const FOLLOWERS_ONE_IN: u64 = 3;
/// For the clients to get on.
const PROGRESS: Duration = Duration::from_secs(180);

/// What hurts the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a node, which is started again.
    Kill,
    /// Replicas move: a node is added, drained, or takes its share again.
    Moves,
}

impl Fault {
    /// Faults by name, with commas between them; `none` stands for none at all. `None` when a name is not
    /// known.
    #[must_use]
    pub fn list(names: &str) -> Option<Vec<Self>> {
        if names == "none" {
            return Some(Vec::new());
        }
        let known = |name: &str| match name {
            "kill" => Some(Self::Kill),
            "moves" => Some(Self::Moves),
            _ => None,
        };
        names.split(',').map(known).collect()
    }
}

/// How a run looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub program: PathBuf,
    /// Answered reads at least, half of them of each kind.
    pub reads: u64,
    /// Clients, each a session and a closed loop.
    pub clients: u64,
    /// In turns.
    pub faults: Vec<Fault>,
    /// Decides keys and victims; not what the machine does.
    pub seed: u64,
}

/// What the clients share.
struct Shared {
    clock: Clock,
    stop: AtomicBool,
    time: Mutex<Time>,
    /// `KEYS_EACH` for each client, one client's after the other's.
    keys: Vec<Mutex<Arc<Key>>>,
    writes: AtomicU64,
    /// Writes of unknown outcome, each of which ended a key.
    doubts: AtomicU64,
    tally: Mutex<Tally>,
}

/// A client of the run: a session, and what it was shown of each key.
struct Reader {
    shared: Arc<Shared>,
    session: Session,
    seen: BTreeMap<String, u64>,
}

/// Runs reads and faults, and judges what was read.
///
/// # Errors
/// When something that the module names does not hold, or the run itself fails.
pub async fn run(options: &Options) -> Result<()> {
    ensure!(options.clients > 0, "--clients: at least 1");
    let env = Env::real()?;
    let mut cluster = Cluster::start_in_lanes(&options.program, NODES, "freshness", LANES).await?;
    let outcome = drive(&env, &mut cluster, options).await;
    if outcome.is_err() {
        cluster.keep();
    }
    outcome
}

async fn drive(env: &Env, cluster: &mut Cluster, options: &Options) -> Result<()> {
    let random = Random::seeded(options.seed);
    let shared = Arc::new(Shared::new(env.clock.clone(), options.clients)?);
    let mut crew = Crew::new(&env.tasks);
    for place in 0..options.clients {
        let reader = Reader {
            shared: Arc::clone(&shared),
            session: cluster.client().await?.session(),
            seen: BTreeMap::new(),
        };
        crew.add(reader.run(place, Random::seeded(options.seed.wrapping_add(place + 1))));
    }
    let bounds = shared.watch_followers(&cluster.client().await?, &random).await;
    shared.begin(Time::Calm);
    let bound_us = bounds.report()?;
    Nemesis::new(&shared, random).run(cluster, options).await?;
    shared.stop.store(true, Ordering::Relaxed);
    crew.ended().await?;
    shared.verdict(options.reads)?;
    ensure!(
        bound_us <= HEALTHY_BOUND_US,
        "bounds of healthy followers: p99 {bound_us} us, limit {HEALTHY_BOUND_US} us"
    );
    println!("nothing older than promised");
    Ok(())
}

impl Shared {
    fn new(clock: Clock, clients: u64) -> Result<Self> {
        let keys = usize::try_from(clients)? * KEYS_EACH;
        let key = |place: usize| Mutex::new(Arc::new(Key::new(format!("fresh-{place}-0"))));
        Ok(Self {
            clock,
            stop: AtomicBool::new(false),
            time: Mutex::default(),
            keys: (0..keys).map(key).collect(),
            writes: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
            tally: Mutex::default(),
        })
    }

    fn key(&self, place: usize) -> Arc<Key> {
        Arc::clone(&self.keys[place].lock())
    }

    fn some_place(&self, random: &Random) -> usize {
        random.below(self.keys.len() as u64) as usize
    }

    /// The present key in this place is in doubt and gets a successor.
    fn renew(&self, place: usize) {
        let doubt = self.doubts.fetch_add(1, Ordering::Relaxed) + 1;
        *self.keys[place].lock() = Arc::new(Key::new(format!("fresh-{place}-{doubt}")));
    }

    fn begin(&self, time: Time) {
        *self.time.lock() = time;
    }

    fn now(&self) -> Time {
        *self.time.lock()
    }

    fn reads(&self, of: impl Fn(Time, Kind) -> bool) -> Count {
        self.tally.lock().count(of)
    }

    /// Waits until so many more reads are answered, at times like this.
    async fn read_on(&self, more: u64, of: impl Fn(Time) -> bool) -> Result<()> {
        let reads = || self.reads(|time, _| of(time)).answered;
        let until = reads() + more;
        wait_until("the clients get on with their reads", PROGRESS, || async { reads() >= until })
            .await
    }

    /// Asks followers which bounds they vouch for.
    async fn watch_followers(&self, client: &Client, random: &Random) -> Bounds {
        let mut bounds = Bounds::default();
        let mut ticker = tokio::time::interval(LOOK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let end_us = self.clock.monotonic_us() + HEALTHY.as_micros() as u64;
        while self.clock.monotonic_us() < end_us {
            ticker.tick().await;
            let name = self.key(self.some_place(random)).name.clone();
            let node = NodeId(random.below(u64::from(NODES)) as u32 + 1);
            let any = client.get(name).consistency(Consistency::Any).from_node(node);
            match any.deadline(READ_DEADLINE).await {
                Ok(found) if found.receipt.role == Role::Follower => {
                    match found.receipt.staleness_bound_us {
                        Some(bound_us) => bounds.known_us.push(bound_us),
                        None => bounds.unknown += 1,
                    }
                }
                Ok(_) => {}
                Err(_) => bounds.failed += 1,
            }
        }
        bounds
    }

    fn verdict(&self, reads_least: u64) -> Result<()> {
        let tally = self.tally.lock();
        for (name, time) in Time::ALL {
            let count = |kind: Kind| tally.count(|at, of| at == time && of == kind);
            let (session, bounded) = (count(Kind::Session), count(Kind::Bounded));
            let errors: Vec<String> = tally
                .refusals
                .iter()
                .filter(|((at, _), _)| *at == time)
                .map(|((_, error), times)| format!("{error} {times}"))
                .collect();
            println!(
                "{name}: {} session reads answered, {} % by followers, {} refused; {} bounded reads \
                 answered, {} % by followers, {} refused [{}]",
                session.answered,
                session.followers_percent(),
                session.refused,
                bounded.answered,
                bounded.followers_percent(),
                bounded.refused,
                errors.join(", ")
            );
        }
        println!(
            "{} writes, {} of unknown outcome",
            self.writes.load(Ordering::Relaxed),
            self.doubts.load(Ordering::Relaxed)
        );
        for violation in &tally.shown {
            println!("violation: {violation}");
        }
        ensure!(tally.violations == 0, "{} reads were not as promised", tally.violations);
        for kind in [Kind::Session, Kind::Bounded] {
            let answered = tally.count(|_, of| of == kind).answered;
            let wanted = reads_least.div_ceil(2);
            ensure!(
                answered >= wanted,
                "only {answered} {kind:?} reads were answered, {wanted} wanted"
            );
            let calm = tally.count(|time, of| (time, of) == (Time::Calm, kind));
            ensure!(
                calm.answered > 0 && calm.by_followers * FOLLOWERS_ONE_IN >= calm.answered,
                "followers answered {} of {} {kind:?} reads between faults, one in {FOLLOWERS_ONE_IN} wanted",
                calm.by_followers,
                calm.answered
            );
        }
        for (name, time) in Time::ALL.into_iter().filter(|(_, time)| *time != Time::Kill) {
            let count = tally.count(|at, _| at == time);
            ensure!(
                count.refused * 100 <= count.all(),
                "{name}: {} of {} reads were refused, limit 1 %",
                count.refused,
                count.all()
            );
        }
        Ok(())
    }
}

/// What followers of a healthy cluster vouch for.
#[derive(Debug, Default)]
struct Bounds {
    known_us: Vec<u64>,
    unknown: u64,
    failed: u64,
}

impl Bounds {
    /// Of all looks, what so many in a hundred do not exceed, microseconds; `u64::MAX` when that is unknown.
    fn percentile_us(&self, percent: u64) -> u64 {
        let looks = self.looks();
        let mut all_us = self.known_us.clone();
        all_us.resize(usize::try_from(looks).unwrap_or(usize::MAX), u64::MAX);
        all_us.sort_unstable();
        let place = (looks * percent / 100).min(looks.saturating_sub(1));
        all_us.get(usize::try_from(place).unwrap_or(usize::MAX)).copied().unwrap_or(u64::MAX)
    }

    /// A look that failed is one at a follower that did not answer.
    fn looks(&self) -> u64 {
        self.known_us.len() as u64 + self.unknown + self.failed
    }

    /// Prints them; returns what 99 of 100 do not exceed, microseconds.
    fn report(&self) -> Result<u64> {
        ensure!(!self.known_us.is_empty(), "no follower vouched for any bound");
        let shown = |percent: u64| match self.percentile_us(percent) {
            u64::MAX => "unknown".to_owned(),
            bound_us => format!("{} ms", bound_us / 1000),
        };
        println!(
            "healthy: bounds of {} any reads at followers: p50 {}, p99 {}, max {}; {} unknown, {} reads failed",
            self.looks(),
            shown(50),
            shown(99),
            shown(100),
            self.unknown,
            self.failed
        );
        Ok(self.percentile_us(99))
    }
}

impl Reader {
    async fn run(mut self, client: u64, random: Random) {
        let own = client as usize * KEYS_EACH;
        let mut ticker = tokio::time::interval(PACE);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = client;
        while !self.shared.stop.load(Ordering::Relaxed) {
            ticker.tick().await;
            if random.below(WRITES_ONE_IN) == 0 {
                self.write(own + random.below(KEYS_EACH as u64) as usize).await;
            } else {
                let kind = if turn.is_multiple_of(2) { Kind::Session } else { Kind::Bounded };
                turn += 1;
                self.read(self.shared.some_place(&random), kind).await;
            }
        }
    }

    async fn write(&mut self, place: usize) {
        let key = self.shared.key(place);
        let written = key.next();
        let put = self.session.put(key.name.clone(), written.to_string());
        match put.deadline(WRITE_DEADLINE).await {
            Ok(_) => {
                key.acknowledge(written, self.shared.clock.monotonic_us());
                self.shared.writes.fetch_add(1, Ordering::Relaxed);
                self.seen.insert(key.name.clone(), written);
            }
            Err(error) if error.may_have_applied == MayHaveApplied::No => {}
            Err(_) => self.shared.renew(place),
        }
    }

    async fn read(&mut self, place: usize, kind: Kind) {
        let (key, begin) = (self.shared.key(place), self.shared.now());
        let sent_us = self.shared.clock.monotonic_us();
        let seen = self.seen.get(&key.name).copied().unwrap_or(0);
        let (floor, consistency) = match kind {
            Kind::Session => (seen, Consistency::Session),
            Kind::Bounded => {
                (key.floor(sent_us.saturating_sub(BOUND_US)), Consistency::Bounded(BOUND))
            }
        };
        let get = self.session.get(key.name.clone()).consistency(consistency);
        let answer = get.deadline(READ_DEADLINE).await;
        let time = begin.until(self.shared.now());
        let judged = judge(&key, kind, floor, &answer);
        if let Ok(Some(found)) = judged {
            self.seen.insert(key.name.clone(), found.max(seen));
        }
        let mut tally = self.shared.tally.lock();
        match &answer {
            Ok(found) => tally.answered(time, kind, found.receipt.role),
            Err(error) => tally.refused(time, kind, error.kind.name()),
        }
        if let Err(problem) = judged {
            let name = &key.name;
            tally.violated(format!("{kind:?} read of {name} sent at {sent_us} us: {problem}"));
        }
    }
}

/// The number found; `None` when nothing was answered. An error is a violation, in words.
fn judge(
    key: &Key,
    kind: Kind,
    floor: u64,
    answer: &Result<Found, Error>,
) -> Result<Option<u64>, String> {
    let found = match answer {
        Ok(found) => found,
        Err(Error { kind: ErrorKind::HistoryLost, .. }) => {
            return Err("what the session has seen is said not to exist".to_owned());
        }
        Err(_) => return Ok(None),
    };
    let receipt = &found.receipt;
    let told = match &found.value {
        None => 0,
        Some(text) => number_of(found).ok_or_else(|| format!("{text:?} was never written"))?,
    };
    if told < floor {
        return Err(format!("{told} was found, {floor} or later is promised; {receipt:?}"));
    }
    if told > key.sent() {
        return Err(format!("{told} was found, {} was sent last; {receipt:?}", key.sent()));
    }
    let is_vouched = receipt.staleness_bound_us.is_some_and(|bound_us| bound_us <= BOUND_US);
    if kind == Kind::Bounded && !is_vouched {
        return Err(format!("an answer that nobody vouches for: {receipt:?}"));
    }
    Ok(Some(told))
}

#[cfg(test)]
mod tests;
