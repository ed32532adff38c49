//! From a key to its token, and from a token to its slice.
//!
//! `token = murmur3_x86_32(routing key, seed 0)`. The routing key is the whole key, or, when the
//! key contains `{` and a later `}` with something between them, only that part: keys that share
//! it share a shard. The micro-slice (the upper ten bits) is what is stored in physical keys, so
//! that a shard is a run of micro-slices for every shard count up to 1,024.

use std::fmt;

/// A point of the 32-bit token space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u32);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Micro-slices in the token space: the finest division that shards may reach.
pub const MICRO_SLICES: u32 = 1024;

/// The part of `key` that decides where it lives.
#[must_use]
pub fn routing_key(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else { return key };
    let after = &key[open + 1..];
    match after.iter().position(|&b| b == b'}') {
        Some(length) if length > 0 => &after[..length],
        _ => key,
    }
}

/// MurmurHash3 (x86, 32 bit, seed 0) of `bytes`.
#[must_use]
pub fn hash(bytes: &[u8]) -> u32 {
    let mut reader = bytes;
    // Reading from a slice cannot fail; the crate's signature allows for readers that can.
    murmur3::murmur3_32(&mut reader, 0).unwrap_or_default()
}

/// The token of `key`.
#[must_use]
pub fn token_of(key: &[u8]) -> Token {
    Token(hash(routing_key(key)))
}

impl Token {
    /// The slice that holds this token when the space is cut into `shards` equal slices.
    ///
    /// # Panics
    /// If `shards` is not a power of two from 1 to 1,024.
    #[must_use]
    pub fn slice(self, shards: u32) -> u32 {
        assert!(
            shards.is_power_of_two() && shards <= MICRO_SLICES,
            "shards must be a power of two from 1 to 1024, got {shards}"
        );
        // In u64: for one shard the shift is 32, which a u32 cannot be shifted by.
        (u64::from(self.0) >> (32 - shards.ilog2())) as u32
    }

    /// The micro-slice, 0 to 1,023.
    #[must_use]
    pub fn micro_slice(self) -> u16 {
        (self.0 >> 22) as u16
    }
}

/// First and last token of `slice`, both inclusive.
#[must_use]
pub fn slice_bounds(slice: u32, shards: u32) -> (Token, Token) {
    let width = (1u64 << 32) / u64::from(shards);
    let start = u64::from(slice) * width;
    (Token(start as u32), Token((start + width - 1) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_between_the_first_brace_and_the_first_closing_one_after_it() {
        for (key, routed) in [
            ("plain", "plain"),
            ("{user}:1", "user"),
            ("a{b}c{d}", "b"),
            ("{}x", "{}x"),
            ("}{a}", "a"),
            ("{a", "{a"),
            ("{{a}}", "{a"),
            ("", ""),
        ] {
            assert_eq!(routing_key(key.as_bytes()), routed.as_bytes(), "{key}");
        }
    }

    #[test]
    fn slices_cover_the_space_without_gaps() {
        for shards in [1, 2, 128, 1024] {
            let mut next = 0u64;
            for slice in 0..shards {
                let (start, end) = slice_bounds(slice, shards);
                assert_eq!(u64::from(start.0), next);
                assert_eq!((start.slice(shards), end.slice(shards)), (slice, slice));
                next = u64::from(end.0) + 1;
            }
            assert_eq!(next, 1 << 32);
        }
    }
}
