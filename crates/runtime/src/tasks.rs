//! Supervised tasks: every task of the process is spawned here, under a name, with an owner and a
//! stated answer to the question what its end means.
//!
//! Invariant: no task outlives its [`Tasks`]: dropping the last clone aborts what still runs.
//! A panic of a [`OnEnd::StopNode`] task cancels the node's shutdown token, so that the process
//! ends instead of serving with a part missing.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the end of a task means for its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEnd {
    /// Nothing: a connection, a request, a bounded job.
    Ignore,
    /// A part is missing: the node must stop. Also when it returns before shutdown began.
    StopNode,
}

/// Spawns and owns tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: Mutex<JoinSet<()>>,
    alive: Alive,
    stop: watch::Sender<Option<String>>,
}

/// How many of each name have not ended, threads too.
type Alive = Arc<Mutex<BTreeMap<&'static str, usize>>>;

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An owner without tasks.
    #[must_use]
    pub fn new() -> Self {
        let stop = watch::Sender::new(None);
        Self(Arc::new(Inner { set: Mutex::new(JoinSet::new()), alive: Alive::default(), stop }))
    }

    /// Runs `task` until it ends, or until the last clone of `self` is dropped.
    pub fn spawn<F>(&self, name: &'static str, on_end: OnEnd, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = self.guard(name, on_end);
        let mut set = self.0.set.lock();
        while set.try_join_next().is_some() {}
        set.spawn(async move {
            let _guard = guard;
            task.await;
        });
    }

    /// Runs `task`, which has no end of its own, until the node shall stop. Its end before that stops
    /// the node.
    pub fn spawn_until_stop<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut stop = self.0.stop.subscribe();
        self.spawn(name, OnEnd::StopNode, async move {
            tokio::select! {
                () = task => {}
                // Nor does it outlive its owner.
                _ = stop.wait_for(Option::is_some) => {}
            }
        });
    }

    /// Runs `work`, which may wait on a disk, on a named thread. Its end means the same as a
    /// task's; threads cannot be aborted, so `work` must end when its input does.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_thread<F>(&self, name: &'static str, on_end: OnEnd, work: F) -> std::io::Result<()>
    where
        F: FnOnce() + Send + 'static,
    {
        let guard = self.guard(name, on_end);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = guard;
            work();
        })?;
        Ok(())
    }

    fn guard(&self, name: &'static str, on_end: OnEnd) -> EndGuard {
        *self.0.alive.lock().entry(name).or_default() += 1;
        EndGuard { name, on_end, alive: Arc::clone(&self.0.alive), stop: self.0.stop.clone() }
    }

    /// Asks the node to stop. The first reason is kept.
    pub fn request_stop(&self, reason: &str) {
        request_stop(&self.0.stop, reason);
    }

    /// Resolves with the reason once the node shall stop. Cancel-safe.
    pub async fn stop_requested(&self) -> String {
        let mut stop = self.0.stop.subscribe();
        loop {
            if let Some(reason) = stop.borrow_and_update().clone() {
                return reason;
            }
            if stop.changed().await.is_err() {
                // Unreachable while `self` holds the sender; waiting is the safe answer.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the node shall stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stop.borrow().is_some()
    }

    /// Waits until every task has ended, `limit` at most, then aborts the rest and says which they
    /// were. Call after [`Self::request_stop`].
    pub async fn wind_down(&self, limit: Duration) {
        let mut set = std::mem::take(&mut *self.0.set.lock());
        let ended = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::warn!(tasks = ?self.0.alive.lock().iter().filter(|(_, count)| **count > 0).collect::<Vec<_>>(), "tasks did not end in time and are aborted");
            set.abort_all();
        }
    }
}

fn request_stop(stop: &watch::Sender<Option<String>>, reason: &str) {
    stop.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(reason.to_owned());
        }
        first
    });
}

struct EndGuard {
    name: &'static str,
    on_end: OnEnd,
    alive: Alive,
    stop: watch::Sender<Option<String>>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if let Some(count) = self.alive.lock().get_mut(self.name) {
            *count -= 1;
        }
        let panicked = std::thread::panicking();
        if panicked {
            tracing::error!(task = self.name, "a task panicked");
        }
        if self.on_end == OnEnd::StopNode && self.stop.borrow().is_none() {
            let how = if panicked { "panicked" } else { "ended" };
            request_stop(&self.stop, &format!("task {} {how}", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_ends_stops_the_node() {
        let tasks = Tasks::new();
        tasks.spawn("bystander", OnEnd::Ignore, async {});
        tasks.spawn("vital", OnEnd::StopNode, async {});
        assert_eq!(tasks.stop_requested().await, "task vital ended");
        tasks.request_stop("later");
        assert_eq!(tasks.stop_requested().await, "task vital ended");
    }

    #[tokio::test]
    async fn what_has_no_end_ends_with_the_node() {
        let tasks = Tasks::new();
        tasks.spawn_until_stop("forever", std::future::pending());
        tasks.request_stop("enough");
        // Would abort it after an hour.
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        tasks.wind_down(Duration::from_secs(3600)).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        tasks.spawn_until_stop("early", async {});
        assert_eq!(tasks.stop_requested().await, "enough", "the first reason is kept");
    }

    #[tokio::test]
    async fn dropping_the_owner_aborts_its_tasks() {
        let (alive, mut gone) = tokio::sync::oneshot::channel::<()>();
        let tasks = Tasks::new();
        tasks.spawn("forever", OnEnd::Ignore, async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        assert!(
            gone.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        drop(tasks);
        assert!(gone.await.is_err());
    }
}
