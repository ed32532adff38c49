//! Answers to a multi-get. Items travel as arrays that belong together and point to what they share, a
//! receipt or an error; here each item says all of that itself. An answer whose arrays do not fit
//! together, or point beside what there is, is refused whole: it might give one key another's value.

use annulus_types::{Error, Receipt, Revision};
use bytes::Bytes;

use super::ConvertError;
use crate::v1;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// It exists.
    Found {
        /// Place of its receipt.
        receipt: usize,
        /// The revision that wrote it.
        version: Revision,
        /// CRC-32 of the value, made by who wrote it. Not checked here.
        crc: u32,
        /// The value.
        value: Bytes,
        /// The shard time at which it ends, milliseconds; 0: never.
        deadline_ms: u64,
    },
    /// It does not exist.
    Absent {
        /// Place of its receipt.
        receipt: usize,
    },
    /// Its shard did not answer.
    Failed {
        /// Place of the reason.
        error: usize,
    },
    /// The answer was full before its turn.
    LeftOut,
}

/// The answer to a multi-get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// One per shard that answered.
    pub receipts: Vec<Receipt>,
    /// Why others did not.
    pub errors: Vec<Error>,
    /// In the order of the keys.
    pub items: Vec<Item>,
}

/// Place of something among fewer than 2^32, which the limit of a message sees to.
fn wire_place(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

impl From<Items> for v1::MultiGetReply {
    fn from(answer: Items) -> Self {
        let mut wire = Self {
            receipts: answer.receipts.iter().map(v1::Receipt::from).collect(),
            errors: answer.errors.iter().map(v1::ErrorDetail::from).collect(),
            ..Self::default()
        };
        for item in answer.items {
            let nothing = (Bytes::new(), 0, 0, 0);
            let (result, place, (value, version, crc, deadline_ms)) = match item {
                Item::Found { receipt, version, crc, value, deadline_ms } => {
                    (v1::KeyResult::Found, receipt, (value, version.0, crc, deadline_ms))
                }
                Item::Absent { receipt } => (v1::KeyResult::Absent, receipt, nothing),
                Item::Failed { error } => (v1::KeyResult::Failed, error, nothing),
                Item::LeftOut => (v1::KeyResult::LeftOut, 0, nothing),
            };
            wire.results.push(result.into());
            wire.places.push(wire_place(place));
            wire.values.push(value);
            wire.versions.push(version);
            wire.value_crc32s.push(crc);
            wire.deadlines_ms.push(deadline_ms);
        }
        wire
    }
}

impl TryFrom<v1::MultiGetReply> for Items {
    type Error = ConvertError;

    fn try_from(wire: v1::MultiGetReply) -> Result<Self, ConvertError> {
        let count = wire.results.len();
        for (field, length) in [
            ("places", wire.places.len()),
            ("values", wire.values.len()),
            ("versions", wire.versions.len()),
            ("value_crc32s", wire.value_crc32s.len()),
            ("deadlines_ms", wire.deadlines_ms.len()),
        ] {
            if length != count {
                let problem = format!("must be {count}, as many as results, are {length}");
                return Err(ConvertError { field, problem });
            }
        }
        let receipts: Vec<Receipt> =
            wire.receipts.into_iter().map(Receipt::try_from).collect::<Result<_, _>>()?;
        let errors: Vec<Error> = wire.errors.into_iter().map(Error::from).collect();
        let numbers = wire.value_crc32s.into_iter().zip(wire.deadlines_ms);
        let values = wire.values.into_iter().zip(wire.versions).zip(numbers);
        let mut items = Vec::with_capacity(count);
        for ((result, place), ((value, version), (crc, deadline_ms))) in
            wire.results.into_iter().zip(wire.places).zip(values)
        {
            items.push(match v1::KeyResult::try_from(result) {
                Ok(v1::KeyResult::Found) => Item::Found {
                    receipt: place_of(place, receipts.len())?,
                    version: Revision(version),
                    crc,
                    value,
                    deadline_ms,
                },
                Ok(v1::KeyResult::Absent) => {
                    Item::Absent { receipt: place_of(place, receipts.len())? }
                }
                Ok(v1::KeyResult::Failed) => Item::Failed { error: place_of(place, errors.len())? },
                Ok(v1::KeyResult::LeftOut) => Item::LeftOut,
                Ok(v1::KeyResult::Unspecified) | Err(_) => {
                    return Err(ConvertError::meaningless("results", result));
                }
            });
        }
        Ok(Self { receipts, errors, items })
    }
}

fn place_of(wire: u32, count: usize) -> Result<usize, ConvertError> {
    match usize::try_from(wire) {
        Ok(place) if place < count => Ok(place),
        _ => {
            let problem = format!("{wire} is beside what there is, which are {count}");
            Err(ConvertError { field: "places", problem })
        }
    }
}
