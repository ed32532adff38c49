//! Names of mutations as people pass them on: the one text form, printed with every outcome that is not
//! known and read back by `op status`.
//!
//! ```text
//! op1-<cluster>-<shard>-<writer>-<seq>-<token>-<crc>
//! ```
//!
//! Cluster: 32 hexadecimal digits. Shard, writer and seq: decimal. Token of the key, and the CRC-32
//! (IEEE) of everything before its dash: 8 hexadecimal digits each. Another form takes another number
//! behind `op`.
//!
//! Invariant: an id has one text, and a text with one wrong character names no id. `op status` refuses
//! for good what it does not find (W3), so a mistyped id must not reach another operation.

use std::fmt;
use std::str::FromStr;

use annulus_types::{ClusterId, Revision, ShardId, Token};

const PREFIX: &str = "op1";

/// The id of a mutation: what [`Client::op_status`](crate::Client::op_status) can be asked about. Its
/// text form is the one above, for example
/// `op1-000102030405060708090a0b0c0d0e0f-5-4-17-0000abcd-bd8941ab`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpIdText {
    /// The cluster.
    pub cluster: ClusterId,
    /// The shard that the writer was opened in.
    pub shard: ShardId,
    /// The writer, by the revision that its opening took.
    pub writer: Revision,
    /// Number of the mutation within the writer.
    pub seq: u64,
    /// Of the mutation's key: after a shard was divided, the half that owns it is asked.
    pub token: Token,
}

impl fmt::Display for OpIdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, shard, writer, seq, token } = self;
        let named = format!("{PREFIX}-{cluster}-{shard}-{writer}-{seq}-{:08x}", token.0);
        write!(f, "{named}-{:08x}", crc32fast::hash(named.as_bytes()))
    }
}

/// A text was not the id of a mutation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseOpIdError(&'static str);

impl FromStr for OpIdText {
    type Err = ParseOpIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        if parts.next() != Some(PREFIX) {
            return Err(ParseOpIdError("an operation id begins with op1-"));
        }
        let parts: Vec<&str> = parts.collect();
        let mistyped = ParseOpIdError("mistyped: the checksum at its end does not fit");
        let id = match parts.as_slice() {
            [cluster, shard, writer, seq, token, _] => parsed(cluster, shard, writer, seq, token),
            _ => {
                return Err(ParseOpIdError("an operation id has seven parts, with dashes between"));
            }
        };
        // One comparison for the checksum, and for digits that could also be written otherwise.
        id.filter(|id| id.to_string() == text).ok_or(mistyped)
    }
}

fn parsed(cluster: &str, shard: &str, writer: &str, seq: &str, token: &str) -> Option<OpIdText> {
    Some(OpIdText {
        cluster: cluster.parse().ok()?,
        shard: ShardId(shard.parse().ok()?),
        writer: Revision(writer.parse().ok()?),
        seq: seq.parse().ok()?,
        token: Token(u32::from_str_radix(token, 16).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "op1-000102030405060708090a0b0c0d0e0f-5-4-17-0000abcd-bd8941ab";

    fn id() -> OpIdText {
        OpIdText {
            cluster: ClusterId(std::array::from_fn(|at| at as u8)),
            shard: ShardId(5),
            writer: Revision(4),
            seq: 17,
            token: Token(0xabcd),
        }
    }

    #[test]
    fn the_text_is_the_one_that_was_written_down() {
        assert_eq!(id().to_string(), TEXT);
        assert_eq!(TEXT.parse(), Ok(id()));
        let widest = OpIdText {
            shard: ShardId(u64::MAX),
            writer: Revision(u64::MAX),
            seq: u64::MAX,
            token: Token(u32::MAX),
            ..id()
        };
        assert_eq!(widest.to_string().parse(), Ok(widest));
    }

    #[test]
    fn one_wrong_character_names_nothing() {
        for at in 0..TEXT.len() {
            for wrong in ["0", "1", "9", "a", "f", "-", "+", " ", ""] {
                let text = format!("{}{wrong}{}", &TEXT[..at], &TEXT[at + 1..]);
                if text != TEXT {
                    assert!(text.parse::<OpIdText>().is_err(), "{text}");
                }
            }
        }
    }

    #[test]
    fn other_texts_of_the_same_id_are_refused() {
        let long = {
            let named = "op1-000102030405060708090a0b0c0d0e0f-05-4-17-0000abcd";
            format!("{named}-{:08x}", crc32fast::hash(named.as_bytes()))
        };
        for bad in ["", "op1", "op2-1", &TEXT.to_uppercase(), &format!(" {TEXT}"), &long] {
            assert!(bad.parse::<OpIdText>().is_err(), "{bad:?}");
        }
    }
}
