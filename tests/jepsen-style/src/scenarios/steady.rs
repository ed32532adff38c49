//! A steady load of puts and gets whose every answer is judged.
//!
//! Each client has keys of its own and sends its next operation when the last one has ended, and the
//! values of a key are numbers that grow. So what a read may find is known without a search: the number
//! that is *settled*, because it was acknowledged or read, or a later one whose fate is not known (W4).
//! Anything else is a *wrong* answer, and [`Steady::check`] fails for it. An operation *fails* when it ends
//! with an error, whatever became of it; whether one may is for the scenario to say.
//!
//! A number that is found settles itself and all before: what was read may not go away again. That a write
//! of unknown outcome takes no effect after the next one of its client holds where processes are killed and
//! not suspended: no request outlives its connection, and an entry that outlives its leader comes first.
//!
//! It does not look at the cluster otherwise. Its tasks end with [`Steady::stop`], or with the tasks of the
//! environment that it was started in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, MayHaveApplied};
use annulus_runtime::{Env, Random};
use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::cluster::{Cluster, READY};
use crate::crew::Crew;
use crate::process::wait_until;

/// Reads of [`Steady::check`] under way at a time.
const READS_AT_ONCE: usize = 32;
/// Failures and wrong answers that are spelled out.
const TOLD_MOST: usize = 10;

/// How the load looks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients, each a loop of its own.
    pub clients: u64,
    /// Keys of each client.
    pub keys: u64,
    /// Deadline of one operation.
    pub deadline: Duration,
    /// Between the beginnings of two operations of a client; `None`: one follows the other.
    pub pace: Option<Duration>,
    /// Decides keys and kinds of operations.
    pub seed: u64,
}

/// What is known of a key, and of the numbers that were sent to it, from 1.
#[derive(Clone, Debug, Default)]
struct Known {
    sent: u64,
    /// Acknowledged or read last. 0: none.
    settled: u64,
    /// Above that one.
    unknown: BTreeSet<u64>,
}

impl Known {
    fn settle(&mut self, number: u64) {
        self.settled = number;
        self.unknown.retain(|later| *later > number);
    }

    /// Takes in what a read has found; `None`: nothing. Whether it may have.
    fn found(&mut self, found: Option<u64>) -> bool {
        match found {
            None | Some(0) => found.is_none() && self.settled == 0,
            Some(number) => {
                let is_allowed = number == self.settled || self.unknown.contains(&number);
                if is_allowed {
                    self.settle(number);
                }
                is_allowed
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    keys: Mutex<BTreeMap<String, Known>>,
    failures: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    async fn put(&self, client: &Client, key: String, deadline: Duration) {
        let number = {
            let mut keys = self.keys.lock();
            let known = keys.entry(key.clone()).or_default();
            known.sent += 1;
            known.sent
        };
        let sent = client.put(key.clone(), number.to_string()).deadline(deadline).await;
        match sent {
            Ok(_) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                self.keys.lock().entry(key).or_default().settle(number);
            }
            Err(error) => {
                self.fail(format!("putting {number} at {key}: {error}"));
                if error.may_have_applied != MayHaveApplied::No {
                    self.keys.lock().entry(key).or_default().unknown.insert(number);
                }
            }
        }
    }

    async fn get(&self, client: &Client, key: String, deadline: Duration) {
        match client.get(key.clone()).deadline(deadline).await {
            Ok(found) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                self.judge(&key, found.value.as_deref());
            }
            Err(error) => self.fail(format!("getting {key}: {error}")),
        }
    }

    fn fail(&self, failure: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock();
        if failures.len() < TOLD_MOST {
            failures.push(failure);
        }
    }

    fn judge(&self, key: &str, value: Option<&[u8]>) {
        // 0 was never sent, and stands for what is no number.
        let found = value.map(|value| {
            std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
        });
        let mut keys = self.keys.lock();
        // A key that nobody has written to yet is none that is to be read back.
        let mut fresh = Known::default();
        let known = keys.get_mut(key).unwrap_or(&mut fresh);
        if !known.found(found) {
            self.wrong.lock().push(format!("{key}: {found:?} was found; {known:?}"));
        }
    }
}

async fn work(client: Client, number: u64, shape: Shape, shared: Arc<Shared>) {
    let random = Random::seeded(shape.seed.wrapping_add(number));
    let mut pace = shape.pace.map(|every| {
        let mut pace = tokio::time::interval(every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let key = format!("steady-{number}-{}", random.below(shape.keys));
        if random.below(2) == 0 {
            shared.put(&client, key, shape.deadline).await;
        } else {
            shared.get(&client, key, shape.deadline).await;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    /// `None` once it has ended.
    crew: Option<Crew>,
}

impl Steady {
    /// Starts the clients, in tasks of `env`.
    ///
    /// # Errors
    /// When a client does not start.
    pub async fn start(env: &Env, cluster: &Cluster, shape: Shape) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut crew = Crew::new(&env.tasks);
        for number in 0..shape.clients {
            crew.add(work(cluster.client().await?, number, shape, Arc::clone(&shared)));
        }
        Ok(Self { shared, crew: Some(crew) })
    }

    /// Operations that were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Operations that ended with an error.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Waits until so many more operations are answered.
    ///
    /// # Errors
    /// When that takes longer than [`READY`].
    pub async fn more(&self, answered: u64) -> Result<()> {
        let before = self.answered();
        wait_until("operations are answered", READY, || async {
            self.answered() >= before + answered
        })
        .await
    }

    /// Fails if an operation has failed.
    ///
    /// # Errors
    /// The first failures, in words.
    pub fn none_failed(&self) -> Result<()> {
        let failed = self.failed();
        ensure!(
            failed == 0,
            "{failed} operations failed: {}",
            self.shared.failures.lock().join("; ")
        );
        Ok(())
    }

    /// Waits until every client has ended its last operation.
    ///
    /// # Errors
    /// When a client did not come to its end.
    pub async fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.crew.take() {
            Some(crew) => crew.ended().await,
            None => Ok(()),
        }
    }

    /// Reads every key that was written and judges it, and with it every answer before. To be called after
    /// [`Steady::stop`]. Returns the number of keys.
    ///
    /// # Errors
    /// When a read fails, or an answer was wrong.
    pub async fn check(&self, client: &Client) -> Result<usize> {
        let keys: Vec<String> = self.shared.keys.lock().keys().cloned().collect();
        let count = keys.len();
        let reads = futures_util::stream::iter(keys).map(|key| async move {
            let found = client.get(key.clone()).deadline(READY).await;
            (key, found)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(READS_AT_ONCE));
        while let Some((key, found)) = reads.next().await {
            self.shared.judge(&key, found?.value.as_deref());
        }
        let wrong = self.shared.wrong.lock();
        let told: Vec<String> = wrong.iter().take(TOLD_MOST).cloned().collect();
        ensure!(wrong.is_empty(), "{} answers are wrong: {}", wrong.len(), told.join("; "));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_may_find_what_is_settled_or_a_later_write_in_doubt() {
        let mut fresh = Known::default();
        assert!(fresh.found(None) && !fresh.found(Some(0)) && !fresh.found(Some(1)));
        // 2 was refused, 4 acknowledged, 3, 5, 6 and 8 are unknown.
        let mut known = Known { sent: 8, settled: 1, unknown: BTreeSet::from([3]) };
        known.settle(4);
        known.unknown.extend([5, 6, 8]);
        let may_find = |number: &u64| known.clone().found(Some(*number));
        assert_eq!((0..10).filter(may_find).collect::<Vec<u64>>(), [4, 5, 6, 8]);
        assert!(!known.clone().found(None), "what was acknowledged is lost");
    }

    #[test]
    fn what_was_found_once_does_not_go_away_again() {
        let mut known = Known { sent: 6, settled: 1, unknown: BTreeSet::from([3, 4, 6]) };
        assert!(known.found(Some(1)) && known.found(Some(4)));
        for gone in [None, Some(1), Some(3)] {
            assert!(!known.found(gone), "{gone:?} came before");
        }
        assert!(known.found(Some(4)) && known.found(Some(6)) && !known.found(Some(4)));
    }

    #[test]
    fn wrong_answers_are_kept() {
        let shared = Shared::default();
        shared.keys.lock().entry("a".to_owned()).or_default().settle(7);
        shared.judge("a", Some(b"7"));
        shared.judge("b", None);
        assert_eq!(shared.wrong.lock().len(), 0);
        for wrong in [None, Some(&b"6"[..]), Some(&b"seven"[..])] {
            shared.judge("a", wrong);
        }
        shared.judge("b", Some(b"1"));
        assert_eq!(shared.wrong.lock().len(), 4);
    }
}
