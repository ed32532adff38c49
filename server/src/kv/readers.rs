//! Where reads look into the engine: never where they would make others wait for a disk (R3).
//!
//! An engine says whether it may block. One that holds everything in memory is read in the task that
//! asks: nothing is cheaper, and a simulation stays deterministic, whose time no thread may share.
//!
//! The others are read on threads for work that blocks, every time. To look first where no disk is
//! needed would save the way to another thread, but neither fjall nor sled can be asked whether a key is
//! in memory, or to look there only; and a wrong guess holds up a runtime thread for as long as the disk
//! takes, with the heartbeats of all groups that the thread carries. So each read pays the way there and
//! back, and reads of one message and group go together.
//!
//! # Invariants
//!
//! - At most [`RUNNING_MOST`] reads run at once and [`ADMITTED_MOST`] have begun or wait; more are refused
//!   at once (`Overloaded`).
//! - A read that has begun keeps its place until it ends, also when nobody waits for it any more: a disk
//!   that hangs stops reads, it does not pile them up.
//!
//! A read that is not done by its deadline answers `DeadlineExceeded`. One that panics does so in the task
//! that asked.

use std::sync::Arc;

use annulus_types::{Error, ErrorKind};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Threads that reads may hold: more than disks have use for, and far fewer than the runtime has.
const RUNNING_MOST: usize = 64;
/// Reads that run or wait.
const ADMITTED_MOST: usize = 4_096;
/// When to ask again after a refusal: time enough for a thousand reads that find their blocks cached.
const RETRY_AFTER_MS: u32 = 20;

/// See the module.
pub(super) struct Readers {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        Self::new(RUNNING_MOST, ADMITTED_MOST)
    }
}

impl Readers {
    fn new(running: usize, admitted: usize) -> Self {
        let (running, admitted) = (Semaphore::new(running), Semaphore::new(admitted));
        Self { running: Arc::new(running), admitted: Arc::new(admitted) }
    }

    /// Runs `read` and returns what it found. `may_block` is what the engine says of itself. Dropping the
    /// future does not end a read that has begun.
    ///
    /// # Errors
    /// `Overloaded`, `DeadlineExceeded`, and `NotReady` while the node stops.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        may_block: bool,
        deadline: Instant,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        if !may_block {
            return Ok(read());
        }
        let Ok(admitted) = Arc::clone(&self.admitted).try_acquire_owned() else {
            let full = Error::refused(ErrorKind::Overloaded);
            return Err(Error { retry_after_ms: RETRY_AFTER_MS, ..full });
        };
        let running = Arc::clone(&self.running).acquire_owned();
        let aside = async move {
            let Ok(running) = running.await else { return Err(stopping()) };
            let places = (admitted, running);
            let done = tokio::task::spawn_blocking(move || {
                let found = read();
                drop(places);
                found
            });
            match done.await {
                Ok(found) => Ok(found),
                Err(ended) => match ended.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(stopping()),
                },
            }
        };
        match timeout_at(deadline, aside).await {
            Ok(found) => found,
            Err(_) => {
                let stage = "the node was reading".to_owned();
                Err(Error::refused(ErrorKind::DeadlineExceeded { stage }))
            }
        }
    }
}

/// The runtime takes no more work.
fn stopping() -> Error {
    let reason = "the node stops".to_owned();
    Error::refused(ErrorKind::NotReady { reason })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn only_reads_that_may_block_leave_their_thread() {
        let readers = Readers::default();
        let here = thread::current().id();
        let whose = || thread::current().id();
        assert_eq!(readers.run(false, later(), whose).await, Ok(here));
        assert_ne!(readers.run(true, later(), whose).await, Ok(here));
    }

    #[tokio::test]
    async fn places_are_few_and_kept_until_a_read_ends() {
        let readers = Readers::new(1, 2);
        let (begun, has_begun) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let hanging = readers.run(true, later(), move || {
            begun.send(()).unwrap();
            // Ends when the test does.
            let _ = ends.recv();
        });
        let mut hanging = Box::pin(hanging);
        let stopped = timeout_at(Instant::now(), &mut hanging).await;
        assert!(stopped.is_err(), "it hangs");
        has_begun.recv().unwrap();

        let waiting = readers.run(true, Instant::now(), || ()).await.unwrap_err();
        assert!(matches!(waiting.kind, ErrorKind::DeadlineExceeded { .. }), "{waiting:?}");

        let mut second = Box::pin(readers.run(true, later(), || 2));
        assert!(timeout_at(Instant::now(), &mut second).await.is_err(), "there is one thread");
        let third = readers.run(true, later(), || 3).await.unwrap_err();
        assert_eq!((third.kind, third.retry_after_ms), (ErrorKind::Overloaded, RETRY_AFTER_MS));

        // Nobody waits for the first any more, and still it has its place.
        drop(hanging);
        assert!(timeout_at(Instant::now(), &mut second).await.is_err());
        drop(end);
        assert_eq!(second.await, Ok(2));
        assert_eq!(readers.run(true, later(), || 3).await, Ok(3));
    }

    #[tokio::test]
    #[should_panic(expected = "rotten")]
    async fn a_panic_goes_to_who_asked() {
        let _ = Readers::default().run(true, later(), || panic!("rotten")).await;
    }
}
