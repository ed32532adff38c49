//! What a host is told at its start: who it is, and the times that its cluster shares.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_types::{ClusterId, NodeInfo};
use annulus_wal::{Position, Wal};

use crate::frames::Sender;
use crate::gate::Weaken;
use crate::reign::{Reign, Reigns};

/// An inequality of [`Timing`] that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTiming(pub &'static str);

/// Times that a whole cluster shares. [`Timing::validate`] states how they depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats of a leader. Default 100 ms.
    pub heartbeat: Duration,
    /// Shortest election timeout. Default 400 ms.
    pub election_min: Duration,
    /// Longest election timeout, and the lease. Default 600 ms.
    pub lease: Duration,
    /// Between pings of a link. Default 100 ms; three misses make a peer suspected.
    pub ping: Duration,
    /// Between the questions from which replicas know how old their state may be (R4). Default 50 ms.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            lease: Duration::from_millis(600),
            ping: Duration::from_millis(100),
            poll: Duration::from_millis(50),
        }
    }
}

impl Timing {
    /// Checks the inequalities.
    ///
    /// # Errors
    /// Names the first that does not hold.
    pub fn validate(&self) -> Result<(), BadTiming> {
        let problem = if self.heartbeat.is_zero() || self.ping.is_zero() || self.poll.is_zero() {
            "heartbeat, ping and poll must be above zero"
        } else if self.heartbeat * 3 > self.election_min {
            "election-min must be at least three heartbeats"
        } else if self.election_min >= self.lease {
            "lease must be above election-min"
        } else {
            return Ok(());
        };
        Err(BadTiming(problem))
    }
}

/// What a node does when a peer tells it that its data folder is dead (N1): an older copy of what the
/// peer has seen. Clones share that it was done.
#[derive(Clone)]
pub struct OnDead {
    act: Arc<dyn Fn(&str) + Send + Sync>,
    is_done: Arc<AtomicBool>,
}

impl OnDead {
    /// `act` is given the peer's reason, once, whichever peers say it how often. It may wait for a disk.
    /// It is to see to it that no process is ever started on the folder again, and that this one ends.
    #[must_use]
    pub fn new(act: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { act: Arc::new(act), is_done: Arc::new(AtomicBool::new(false)) }
    }

    /// Blocks.
    pub(crate) fn act(&self, reason: &str) {
        if !self.is_done.swap(true, Ordering::SeqCst) {
            (self.act)(reason);
        }
    }
}

impl fmt::Debug for OnDead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDead").field("is_done", &self.is_done).finish_non_exhaustive()
    }
}

/// What a host needs to know of its node.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster; frames of others are refused.
    pub cluster: ClusterId,
    /// This node.
    pub info: NodeInfo,
    /// This folder's life (N1).
    pub incarnation: u64,
    /// Counts the starts of the folder's process, and a random id of this one. Both are durable in the
    /// folder (N1).
    pub boot: (u64, u64),
    /// Shared times.
    pub timing: Timing,
    /// The node's data folder, which exists. Here belong the file `peers` and the folder `snapshots` in
    /// it.
    pub dir: PathBuf,
    /// For the day on which a peer refuses the data folder for good.
    pub on_dead: OnDead,
    /// Every batch of entries that a leader of this node applies is delayed at random by less than this.
    /// Zero by default; anything else is for tests of reads while followers are ahead of their leader.
    pub slow_apply: Duration,
    pub(crate) ping: Duration,
    pub(crate) silent: Duration,
    pub(crate) reconnect: Duration,
    pub(crate) connect_timeout: Duration,
    /// Shared by all clones.
    pub(crate) reigns: Arc<Reigns>,
}

impl Options {
    /// Options with the links' own times derived from `timing`.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        info: NodeInfo,
        incarnation: u64,
        boot: (u64, u64),
        timing: Timing,
        dir: PathBuf,
        on_dead: OnDead,
    ) -> Self {
        Self {
            cluster,
            info,
            incarnation,
            boot,
            timing,
            dir,
            on_dead,
            slow_apply: Duration::ZERO,
            ping: timing.ping,
            // Well above suspicion: a reconnection helps only when the connection itself is stuck.
            silent: timing.ping * 30,
            reconnect: Duration::from_millis(50),
            connect_timeout: Duration::from_millis(500),
            reigns: Arc::default(),
        }
    }

    /// With the manager's reign that the folder has stored; without it none is known (H6).
    #[must_use]
    pub fn in_reign(self, reign: Reign) -> Self {
        self.reigns.enter(reign);
        self
    }

    pub(crate) fn sender(&self) -> Sender {
        Sender { cluster: self.cluster, node: self.info.id, incarnation: self.incarnation }
    }

    /// What a ping or its answer tells of the node and its log.
    pub(crate) fn about(&self, wal: &Wal) -> v1::Ping {
        let told = |Position { segment, offset }| v1::LogPosition { segment, offset };
        let Reign { era, incarnation } = self.reigns.own();
        v1::Ping {
            boot_counter: self.boot.0,
            boot_id: self.boot.1,
            position: Some(told(wal.durable_position())),
            info: Some(v1::NodeInfo::from(&self.info)),
            recovered: Some(told(wal.recovered_end())),
            era,
            manager_incarnation: incarnation,
        }
    }
}

/// Rules that a test switches off. Only tests of this crate can make one that differs from none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WeakenHost {
    pub(crate) gate: Weaken,
    #[cfg(test)]
    pub(crate) leader_restore: bool,
    #[cfg(test)]
    pub(crate) no_quarantine: bool,
    #[cfg(test)]
    pub(crate) propose_with_shut_gate: bool,
    /// W5: propose a time entry only when something is due.
    #[cfg(test)]
    pub(crate) no_time_steps: bool,
    /// L7: leave a log that ends below the engine as it is.
    #[cfg(test)]
    pub(crate) keep_log_below_applied: bool,
    /// L7: give up the log before what the engine holds instead is durable.
    #[cfg(test)]
    pub(crate) reset_before_durable: bool,
    /// N1, N2: obey frames of other clusters and for former replicas, whoever sends them.
    #[cfg(test)]
    pub(crate) trust_every_frame: bool,
    /// N1: remember nothing of other nodes.
    #[cfg(test)]
    pub(crate) forget_lives: bool,
    /// R1 d: a follower reads when it was told how far to apply, not when it has.
    #[cfg(test)]
    pub(crate) read_before_applied: bool,
    /// R4: answer a poll with whatever is applied, gate or not.
    #[cfg(test)]
    pub(crate) poll_without_gate: bool,
    /// H6: change whatever membership is in force.
    #[cfg(test)]
    pub(crate) any_membership: bool,
    /// H2: send a seeded replica what it holds already.
    #[cfg(test)]
    pub(crate) forget_seeds: bool,
    /// H4: destroy a replica because somebody says so.
    #[cfg(test)]
    pub(crate) destroy_without_proof: bool,
    /// H4: take whatever the engine holds of a group for the state of its next replica.
    #[cfg(test)]
    pub(crate) keep_remains: bool,
    /// E5: read the engine for a digest as it is by then.
    #[cfg(test)]
    pub(crate) late_digest: bool,
}

impl WeakenHost {
    #[cfg(test)]
    pub(crate) fn leader_restore(self) -> bool {
        self.leader_restore
    }
    #[cfg(not(test))]
    pub(crate) fn leader_restore(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn no_quarantine(self) -> bool {
        self.no_quarantine
    }
    #[cfg(not(test))]
    pub(crate) fn no_quarantine(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn propose_with_shut_gate(self) -> bool {
        self.propose_with_shut_gate
    }
    #[cfg(not(test))]
    pub(crate) fn propose_with_shut_gate(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn no_time_steps(self) -> bool {
        self.no_time_steps
    }
    #[cfg(not(test))]
    pub(crate) fn no_time_steps(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn keep_log_below_applied(self) -> bool {
        self.keep_log_below_applied
    }
    #[cfg(not(test))]
    pub(crate) fn keep_log_below_applied(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn reset_before_durable(self) -> bool {
        self.reset_before_durable
    }
    #[cfg(not(test))]
    pub(crate) fn reset_before_durable(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn trust_every_frame(self) -> bool {
        self.trust_every_frame
    }
    #[cfg(not(test))]
    pub(crate) fn trust_every_frame(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn forget_lives(self) -> bool {
        self.forget_lives
    }
    #[cfg(not(test))]
    pub(crate) fn forget_lives(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn read_before_applied(self) -> bool {
        self.read_before_applied
    }
    #[cfg(not(test))]
    pub(crate) fn read_before_applied(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn poll_without_gate(self) -> bool {
        self.poll_without_gate
    }
    #[cfg(not(test))]
    pub(crate) fn poll_without_gate(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn any_membership(self) -> bool {
        self.any_membership
    }
    #[cfg(not(test))]
    pub(crate) fn any_membership(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn forget_seeds(self) -> bool {
        self.forget_seeds
    }
    #[cfg(not(test))]
    pub(crate) fn forget_seeds(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn destroy_without_proof(self) -> bool {
        self.destroy_without_proof
    }
    #[cfg(not(test))]
    pub(crate) fn destroy_without_proof(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn keep_remains(self) -> bool {
        self.keep_remains
    }
    #[cfg(not(test))]
    pub(crate) fn keep_remains(self) -> bool {
        false
    }
    #[cfg(test)]
    pub(crate) fn late_digest(self) -> bool {
        self.late_digest
    }
    #[cfg(not(test))]
    pub(crate) fn late_digest(self) -> bool {
        false
    }
}
