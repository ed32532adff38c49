//! A steady load of puts and gets whose every answer is judged.
//!
//! Each client has keys of its own and sends its next operation when the last one has ended, and the
//! values of a key are numbers that grow. So what a read may find is known without a search: the number
//! that was acknowledged last, or one whose fate is not known (W4: it may take effect at any later time).
//! Anything else is a *wrong* answer, and [`Steady::check`] fails for it. An operation *fails* when it ends
//! with an error, whatever became of it; whether one may is for the scenario to say.
//!
//! It does not look at the cluster otherwise. Its tasks end with [`Steady::stop`], or with the tasks of the
//! environment that it was started in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, MayHaveApplied};
use annulus_runtime::{Env, OnEnd, Random};
use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::cluster::{Cluster, READY};
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
    /// Last. 0: none.
    acknowledged: u64,
    unknown: BTreeSet<u64>,
}

impl Known {
    /// Whether a read may find this; `None`: nothing.
    fn allows(&self, found: Option<u64>) -> bool {
        match found {
            None | Some(0) => found.is_none() && self.acknowledged == 0,
            Some(number) => number == self.acknowledged || self.unknown.contains(&number),
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
                self.keys.lock().entry(key).or_default().acknowledged = number;
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
        let known = self.keys.lock().get(key).cloned().unwrap_or_default();
        if !known.allows(found) {
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
    ended: mpsc::Receiver<()>,
}

impl Steady {
    /// Starts the clients, in tasks of `env`.
    ///
    /// # Errors
    /// When a client does not start.
    pub async fn start(env: &Env, cluster: &Cluster, shape: Shape) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (alive, ended) = mpsc::channel(1);
        for number in 0..shape.clients {
            let work = work(cluster.client().await?, number, shape, Arc::clone(&shared));
            let alive = alive.clone();
            env.tasks.spawn("steady client", OnEnd::Ignore, async move {
                work.await;
                drop(alive);
            });
        }
        Ok(Self { shared, ended })
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
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Nothing is ever sent: this ends when the last sender is dropped.
        let _ = self.ended.recv().await;
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
    fn a_read_may_find_what_was_acknowledged_last_or_is_unknown() {
        let fresh = Known::default();
        assert!(fresh.allows(None) && !fresh.allows(Some(0)) && !fresh.allows(Some(1)));
        // 2 was refused, 4 acknowledged, 3 and 5 are unknown.
        let known = Known { sent: 5, acknowledged: 4, unknown: BTreeSet::from([3, 5]) };
        let allowed: Vec<u64> = (0..8).filter(|number| known.allows(Some(*number))).collect();
        assert_eq!(allowed, [3, 4, 5]);
        assert!(!known.allows(None), "what was acknowledged is lost");
    }

    #[test]
    fn wrong_answers_are_kept() {
        let shared = Shared::default();
        shared.keys.lock().entry("a".to_owned()).or_default().acknowledged = 7;
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
