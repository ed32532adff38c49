//! Scenarios: one question each, put to real processes, with figures and a verdict.
//!
//! A scenario brings its own clients, faults and bounds; what it needs to know of a cluster it sees as
//! every client does. It prints what it measured and fails when a bound is violated, when it could not
//! ask its question (nobody led, nothing was written, no follower was ahead), or when a client of it
//! ended early. A failed one keeps the folder of its cluster.
//!
//! They judge nothing that a checker over a recorded history would judge better: where operations of
//! several clients on one key meet, `run` and the checkers are the place.
//!
//! What scenarios share lies here too: [`wire`], a network that can be cut and listened to, [`lossy`], one
//! that loses replies, [`steady`], a load whose every answer is judged, and the waiting for clients.

pub mod dead;
pub mod deposed;
pub mod freshness;
pub mod isolated;
pub mod lossy;
pub mod managerless;
pub mod moves;
pub mod once;
pub mod slow;
pub mod steady;
pub mod wire;

use annulus_runtime::{OnEnd, Tasks};
use anyhow::{Result, ensure};
use tokio::sync::mpsc;

/// Clients at work. Each ends by itself; one that panics is missed at the end.
pub(crate) struct Crew {
    tasks: Tasks,
    members: u64,
    alive: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Crew {
    pub(crate) fn new(tasks: &Tasks) -> Self {
        let (alive, ended) = mpsc::channel(1);
        Self { tasks: tasks.clone(), members: 0, alive, ended }
    }

    pub(crate) fn add(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let alive = self.alive.clone();
        self.members += 1;
        self.tasks.spawn("scenario client", OnEnd::Ignore, async move {
            work.await;
            // Nobody listens any more when the scenario has failed.
            let _ = alive.send(()).await;
        });
    }

    /// Waits until everybody has ended.
    ///
    /// # Errors
    /// When one did not come to its end.
    pub(crate) async fn ended(self) -> Result<()> {
        let Self { members, alive, mut ended, .. } = self;
        drop(alive);
        let mut count = 0;
        while ended.recv().await.is_some() {
            count += 1;
        }
        ensure!(count == members, "{} of {members} clients ended early", members - count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn falls() {
        panic!("a client that does not come to its end")
    }

    #[tokio::test]
    async fn who_panics_is_missed() {
        let tasks = Tasks::new();
        let mut crew = Crew::new(&tasks);
        crew.add(async {});
        crew.add(async {});
        crew.ended().await.unwrap();
        let mut crew = Crew::new(&tasks);
        crew.add(async {});
        crew.add(falls());
        assert!(crew.ended().await.unwrap_err().to_string().contains("1 of 2"));
    }
}
