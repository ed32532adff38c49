//! Randomness: from the operating system in production, from a seed in the simulation.
//!
//! Not for secrets: identities and jitter only.

use std::sync::Arc;

use parking_lot::Mutex;

/// A shared source of random numbers. Cheap to clone; clones share their sequence.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<fastrand::Rng>>);

impl Random {
    /// Seeded by the operating system.
    ///
    /// # Errors
    /// When the operating system gives no randomness: identities drawn then could collide.
    pub fn from_os() -> std::io::Result<Self> {
        let mut seed = [0; 8];
        #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
        getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
        Ok(Self::seeded(u64::from_le_bytes(seed)))
    }

    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// 64 random bits.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.0.lock().u64(..)
    }

    /// A number from 0 to `below` - 1; 0 when `below` is 0.
    #[must_use]
    pub fn below(&self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.0.lock().u64(..below) }
    }

    /// Sixteen random bytes, for identities. Two draws of 64 bits from a generator seeded with 64
    /// bits: as many identities as seeds.
    #[must_use]
    pub fn identity(&self) -> [u8; 16] {
        let mut rng = self.0.lock();
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        bytes
    }
}
