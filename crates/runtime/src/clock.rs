//! Three clocks, each with one use.
//!
//! - *monotonic*: timers and a leader's group time (W5); stands still while the machine sleeps;
//! - *boot time*: the gate and the staleness bounds (R1, R4); goes on while the machine sleeps;
//! - *wall*: information for people, never a decision.
//!
//! Readings of different process runs are never compared. A simulated clock follows tokio's paused
//! time, so that timers and readings agree; each simulated node may run fast or slow and may have
//! been "asleep" (boot time ahead of monotonic time).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A reading of the boot-time clock of this process run, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Time passed since `earlier`, zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This reading and `span` more.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// The clocks of one process or of one simulated node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real,
    Simulated(Arc<SimulatedClock>),
}

#[derive(Debug)]
struct SimulatedClock {
    start: tokio::time::Instant,
    wall_start_ms: u64,
    /// Time that passes here per 1,000 units of simulated time.
    rate_per_mille: u64,
    slept_us: AtomicU64,
}

impl SimulatedClock {
    fn awake_us(&self) -> u64 {
        let elapsed = self.start.elapsed().as_micros();
        u64::try_from(elapsed * u128::from(self.rate_per_mille) / 1000).unwrap_or(u64::MAX)
    }
}

impl Clock {
    /// The clocks of the operating system.
    #[must_use]
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// A clock that follows tokio's time, `rate_per_mille` / 1000 as fast, from now on.
    #[must_use]
    pub fn simulated(rate_per_mille: u64, wall_start_ms: u64) -> Self {
        Self(Kind::Simulated(Arc::new(SimulatedClock {
            start: tokio::time::Instant::now(),
            wall_start_ms,
            rate_per_mille,
            slept_us: AtomicU64::new(0),
        })))
    }

    /// Microseconds of the monotonic clock; the origin means nothing.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        match &self.0 {
            Kind::Real => kernel_us(rustix::time::ClockId::Monotonic),
            Kind::Simulated(clock) => clock.awake_us(),
        }
    }

    /// The boot-time clock.
    #[must_use]
    pub fn boot(&self) -> BootTime {
        BootTime(match &self.0 {
            Kind::Real => kernel_us(rustix::time::ClockId::Boottime),
            Kind::Simulated(clock) => clock.awake_us() + clock.slept_us.load(Ordering::Relaxed),
        })
    }

    /// Milliseconds since 1970, for people.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        match &self.0 {
            Kind::Real => kernel_us(rustix::time::ClockId::Realtime) / 1000,
            Kind::Simulated(clock) => {
                clock.wall_start_ms
                    + (clock.awake_us() + clock.slept_us.load(Ordering::Relaxed)) / 1000
            }
        }
    }

    /// Simulated only: the machine slept this long; real clocks ignore the call.
    pub fn sleep_machine(&self, span: Duration) {
        if let Kind::Simulated(clock) = &self.0 {
            let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
            clock.slept_us.fetch_add(micros, Ordering::Relaxed);
        }
    }
}

fn kernel_us(id: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(id);
    // Both parts are non-negative for these clocks.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_clock_falls_behind_and_sleep_moves_boot_time_only() {
        let (exact, slow) = (Clock::simulated(1000, 5), Clock::simulated(750, 5));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!((exact.monotonic_us(), slow.monotonic_us()), (4_000_000, 3_000_000));
        slow.sleep_machine(Duration::from_secs(10));
        assert_eq!((slow.monotonic_us(), slow.boot().0), (3_000_000, 13_000_000));
        assert_eq!(exact.wall_ms(), 4_005);
    }

    #[test]
    fn real_clocks_advance() {
        let clock = Clock::real();
        let (mono, boot) = (clock.monotonic_us(), clock.boot());
        while clock.monotonic_us() == mono || clock.boot() == boot {}
        assert!(clock.wall_ms() > 1_600_000_000_000);
    }
}
