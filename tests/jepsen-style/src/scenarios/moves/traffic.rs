//! What the moves of seats have cost the network, and the least that would have done, from the nodes'
//! counters.
//!
//! Counters end with their process: a node that leaves is read before it goes ([`Traffic::leaves`]), and
//! in runs that kill processes nothing of this is judged.

use std::fmt;
use std::ops::{Add, Sub};

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::load::{metrics, sum};

/// Bytes that were sent may be at most this much of what was needed, percent.
const SENT_PERCENT_MOST: u64 = 125;

/// Bytes, summed over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    state_sent: u64,
    log_sent: u64,
    state_needed: u64,
    log_needed: u64,
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            state_sent: self.state_sent + other.state_sent,
            log_sent: self.log_sent + other.log_sent,
            state_needed: self.state_needed + other.state_needed,
            log_needed: self.log_needed + other.log_needed,
        }
    }
}

impl Sub for Bytes {
    type Output = Self;

    /// What came since `other` was read. A counter that began anew counts from zero.
    fn sub(self, other: Self) -> Self {
        Self {
            state_sent: self.state_sent.saturating_sub(other.state_sent),
            log_sent: self.log_sent.saturating_sub(other.log_sent),
            state_needed: self.state_needed.saturating_sub(other.state_needed),
            log_needed: self.log_needed.saturating_sub(other.log_needed),
        }
    }
}

impl Bytes {
    fn sent(self) -> u64 {
        self.state_sent + self.log_sent
    }

    fn needed(self) -> u64 {
        self.state_needed + self.log_needed
    }

    /// Whether it is known what was needed, and not much more was sent.
    pub(super) fn are_in_bounds(self) -> bool {
        self.needed() > 0 && self.sent() * 100 <= self.needed() * SENT_PERCENT_MOST
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state_sent, log_sent, state_needed, log_needed } = *self;
        let ratio = self.sent() as f64 / self.needed().max(1) as f64;
        write!(
            f,
            "{} bytes sent ({state_sent} of state, {log_sent} of log), {} needed ({state_needed} + \
             {log_needed}): {ratio:.3} times",
            self.sent(),
            self.needed()
        )
    }
}

/// See the module.
pub(super) struct Traffic {
    /// What counters stood at when the story began.
    before: Bytes,
    /// Of the nodes that are gone.
    gone: Bytes,
}

impl Traffic {
    /// Begins with what these nodes have counted so far.
    pub(super) async fn begin(cluster: &Cluster, nodes: &[u32]) -> Result<Self> {
        Ok(Self { before: read(cluster, nodes).await?, gone: Bytes::default() })
    }

    /// A node is about to go, and will count nothing more.
    pub(super) async fn leaves(&mut self, cluster: &Cluster, node: u32) -> Result<()> {
        self.gone = self.gone + read(cluster, &[node]).await?;
        Ok(())
    }

    /// Since the beginning, with these nodes being there now.
    pub(super) async fn so_far(&self, cluster: &Cluster, nodes: &[u32]) -> Result<Bytes> {
        Ok(read(cluster, nodes).await? + self.gone - self.before)
    }
}

async fn read(cluster: &Cluster, nodes: &[u32]) -> Result<Bytes> {
    let mut all = Bytes::default();
    for node in nodes {
        let addr = cluster.http(u16::try_from(*node)?);
        let told = metrics(&addr).await.with_context(|| format!("the counters of node {node}"))?;
        let of = |name: &str| sum(&told, &format!("annulus_move_{name}_bytes_total"));
        all = all
            + Bytes {
                state_sent: of("state_sent"),
                log_sent: of("log_sent"),
                state_needed: of("state_needed"),
                log_needed: of("log_needed"),
            };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_more_than_needed_is_the_most() {
        let needed = Bytes { state_needed: 900, log_needed: 100, ..Bytes::default() };
        let just = Bytes { state_sent: 1_200, log_sent: 50, ..needed };
        assert!(just.are_in_bounds());
        assert!(!Bytes { log_sent: 51, ..just }.are_in_bounds());
        assert!(!Bytes::default().are_in_bounds(), "nothing was counted");
        assert_eq!(just + needed - needed, just);
        assert!(just.to_string().ends_with("1000 needed (900 + 100): 1.250 times"), "{just}");
    }
}
