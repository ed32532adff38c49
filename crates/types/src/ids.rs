//! Identifiers and the words for order, as newtypes.
//!
//! Invariant (H5): replica, group and shard ids are below 2^53, so that JSON readers with
//! floating-point numbers keep them exact: 21 random bits of the manager's incarnation above a
//! 32-bit counter. They are never reused.

use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(raw: $inner) -> Self {
                Self(raw)
            }
        }
    };
}

id!(
    /// A machine in the cluster, chosen by the operator, at least 1.
    NodeId(u32)
);
id!(
    /// A slice of the token space. A new cluster's shards are numbered by their slices.
    ShardId(u64)
);
id!(
    /// A Raft group. Group 0 is the shard manager.
    GroupId(u64)
);
id!(
    /// One seat of one node in one group: openraft's node id. A node that returns to a group
    /// returns under a new one.
    ReplicaId(u64)
);
id!(
    /// A namespace; 0 is `default`.
    NamespaceId(u32)
);
id!(
    /// Counts the mutations of one shard; never reused; never compared between shards.
    Revision(u64)
);
id!(
    /// Counts the changes of a shard's group or slice.
    Epoch(u64)
);
id!(
    /// Version of the whole routing table.
    TableVersion(u64)
);

/// Ids at or above this value would lose digits in JSON readers that use doubles.
pub const ID_LIMIT: u64 = 1 << 53;

/// Builds a replica, group or shard id from the manager's incarnation and its counter.
///
/// # Panics
/// If `incarnation` needs more than 21 bits: it is drawn by us, never taken from input.
#[must_use]
pub fn allocated_id(incarnation: u32, counter: u32) -> u64 {
    assert!(incarnation < 1 << 21, "a manager incarnation has 21 bits, got {incarnation}");
    (u64::from(incarnation) << 32) | u64::from(counter)
}

impl GroupId {
    /// The shard manager's own group.
    pub const MANAGER: Self = Self(0);
}

/// The identity of a cluster: 128 random bits drawn once by `annulus init`. All zero means "not
/// yet born".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// Whether this is the value of a node that belongs to no cluster yet.
    #[must_use]
    pub fn is_unborn(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// A cluster id was not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id is 32 hexadecimal digits, got {0:?}")]
pub struct ParseClusterIdError(String);

impl FromStr for ClusterId {
    type Err = ParseClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseClusterIdError(text.to_owned());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| refused())?;
        Ok(Self(bits.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_ids_stay_exact_in_a_double() {
        let largest = allocated_id((1 << 21) - 1, u32::MAX);
        assert!(largest < ID_LIMIT);
        #[expect(clippy::cast_precision_loss, reason = "the loss is what is tested")]
        let through_double = largest as f64;
        assert_eq!(format!("{through_double:.0}"), largest.to_string());
    }

    #[test]
    fn cluster_ids_round_trip_as_text() {
        let id = ClusterId([0, 1, 2, 3, 250, 251, 252, 253, 254, 255, 9, 8, 7, 6, 5, 4]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00", "+0000000000000000000000000000001", &"g".repeat(32)] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?}");
        }
    }
}
