//! The seams between Annulus and the world: [`Env`] bundles clock, randomness, network, disk and
//! tasks. It is made once, in `main` or by a simulation, and handed down as `Arc<Env>`.
//!
//! No type elsewhere is generic over a seam and no cargo feature swaps an implementation: one build
//! serves product and simulation. `clippy.toml` bans the ways around it.

pub mod clock;
pub mod disk;
pub mod network;
pub mod random;
pub mod sim_disk;
pub mod sim_network;
pub mod tasks;

use std::sync::Arc;

pub use clock::{BootTime, Clock};
pub use disk::{Disk, DiskFile, DiskLock, Open, RealDisk, Space};
pub use network::{ByteStream, Listener, Network, RealNetwork, Stream};
pub use random::Random;
pub use sim_disk::{DiskCounters, SimDisk};
pub use sim_network::{Cut, SimNetwork, SimWorld};
pub use tasks::{OnEnd, Tasks};

/// Everything that a component may ask of the world.
#[derive(Clone, Debug)]
pub struct Env {
    /// Time.
    pub clock: Clock,
    /// Randomness.
    pub random: Random,
    /// Connections.
    pub network: Arc<dyn Network>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Tasks.
    pub tasks: Tasks,
}

impl Env {
    /// The operating system.
    ///
    /// # Errors
    /// When it gives no randomness.
    pub fn real() -> std::io::Result<Self> {
        Ok(Self {
            clock: Clock::real(),
            random: Random::from_os()?,
            network: Arc::new(RealNetwork),
            disk: Arc::new(RealDisk),
            tasks: Tasks::new(),
        })
    }
}
