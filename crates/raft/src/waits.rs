//! Where work is done that waits on a disk: never in a task that others wait for.

use std::io;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// On threads that are there for it.
    Aside,
    /// In the task that asks: in a simulation, whose time no thread may share.
    Inline,
}

impl Waits {
    /// Runs a piece of work. Dropping the future does not end work that has begun, only what would
    /// have come after it.
    ///
    /// # Errors
    /// The work's own.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::Aside => match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) => Err(io::Error::other(error)),
            },
            Self::Inline => {
                let done = work();
                // Others have their turn between two pieces of work.
                tokio::task::yield_now().await;
                done
            }
        }
    }
}
