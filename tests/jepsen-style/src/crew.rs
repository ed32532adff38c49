//! Clients at work, and the waiting for their end.
//!
//! Each ends by itself, because whoever started it told it to. Invariant: one that did not come to its end,
//! because it panicked or its tasks were aborted, is missed. What it would have seen is not known then, so
//! the run that it belonged to proves nothing.

use annulus_runtime::{OnEnd, Tasks};
use anyhow::{Result, ensure};
use tokio::sync::mpsc;

/// See the module.
#[derive(Debug)]
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
        self.tasks.spawn("client", OnEnd::Ignore, async move {
            work.await;
            // Nobody listens any more when the run has failed.
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
