//! Which manager's group this node takes part in (H6).
//!
//! The manager's group keeps its id for ever, so that its replicas are told apart by the *reign* that they
//! belong to: an era, and the manager's incarnation in it, which is the upper part of its replicas' ids
//! (H5). A manager that is made anew has a later era and another incarnation. Two that are made at the same
//! time, by nodes that do not see each other, may have one era: then the higher incarnation is the later reign.
//! So any two reigns are ordered, in the same way on every node, and one manager is left wherever nodes meet.
//!
//! Owns the reign that the host goes by, and the latest that any peer told of. Which reign that is, and that
//! it is stored before it counts, is decided by whoever owns the host ([`Host::enter_reign`]). So is what
//! becomes of a replica of a former reign: [`Host::depose`] ends it.
//!
//! # Invariants
//!
//! - A host never goes back to an earlier reign.
//! - From the moment on at which it has entered a reign, no replica of another one is opened, and none on
//!   another node is heard (`serve`).
//! - Every ping and every answer to one tells the reign (`Options::about`), so that a node that was away
//!   hears of it before anything else reaches it.
//!
//! # Failure
//!
//! A host that was told no reign yet (era 0), or does not know whose era it is (incarnation 0, as it was stored
//! by the first version of `fences`), opens and hears all: there was one manager only.

use std::fmt;

use annulus_proto::v1;
use annulus_types::{GroupId, ReplicaId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::host::Host;

/// Bits of a replica's id below the manager's incarnation (H5).
const COUNTER_BITS: u32 = 32;

/// Stands for a manager of which only the era is known. None draws it.
pub const UNKNOWN_INCARNATION: u32 = 0;

/// An era and whose it is. The order of the fields is the order of comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reign {
    /// Of the manager; 0 before the first.
    pub era: u64,
    /// Of the manager, 21 bits.
    pub incarnation: u32,
}

impl fmt::Display for Reign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "era {} of incarnation {}", self.era, self.incarnation)
    }
}

impl Reign {
    /// What a node tells of itself.
    pub(crate) fn told(ping: &v1::Ping) -> Self {
        Self { era: ping.era, incarnation: ping.manager_incarnation }
    }

    /// Whether a replica of the manager's group belongs to it.
    #[must_use]
    pub fn admits(self, replica: ReplicaId) -> bool {
        self.incarnation == UNKNOWN_INCARNATION
            || replica.0 >> COUNTER_BITS == u64::from(self.incarnation)
    }
}

/// The reigns that one host knows.
#[derive(Debug)]
pub(crate) struct Reigns {
    own: Mutex<Reign>,
    heard: watch::Sender<Reign>,
}

impl Default for Reigns {
    fn default() -> Self {
        Self { own: Mutex::default(), heard: watch::Sender::new(Reign::default()) }
    }
}

impl Reigns {
    /// The one that the host goes by.
    pub(crate) fn own(&self) -> Reign {
        *self.own.lock()
    }

    /// Goes by this one from now on, unless it is an earlier one.
    pub(crate) fn enter(&self, reign: Reign) {
        let mut own = self.own.lock();
        *own = reign.max(*own);
    }

    /// A peer that is heard told this one.
    pub(crate) fn hear(&self, told: Reign) {
        self.heard.send_if_modified(|heard| {
            let is_later = told > *heard;
            if is_later {
                *heard = told;
            }
            is_later
        });
    }
}

impl Host {
    /// The reign that the host goes by; of era 0 before the first.
    #[must_use]
    pub fn reign(&self) -> Reign {
        self.options.reigns.own()
    }

    /// Goes by this reign from now on, unless it is an earlier one. The caller has stored it. What is held of
    /// former reigns is in [`Host::deposed`].
    pub fn enter_reign(&self, reign: Reign) {
        self.options.reigns.enter(reign);
    }

    /// The latest reign that a peer has told of.
    #[must_use]
    pub fn heard_reign(&self) -> watch::Receiver<Reign> {
        self.options.reigns.heard.subscribe()
    }

    /// The replicas of the manager's group that the folder holds and that belong to another reign.
    #[must_use]
    pub fn deposed(&self) -> Vec<ReplicaId> {
        let reign = self.reign();
        let held = self.held().into_iter().filter(|(group, _)| *group == GroupId::MANAGER);
        held.map(|(_, replica)| replica).filter(|replica| !reign.admits(*replica)).collect()
    }
}
