//! The smallest machine that can show a lost or a reordered write: named numbers, set one by one.
//!
//! An operation is `name=number`; its reply is the index of its entry.

use std::collections::BTreeMap;

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, Engine, EngineError};
use annulus_types::{NamespaceId, Token};
use bytes::Bytes;

use crate::entry::Operation;
use crate::machine::{Applying, Machine};

const PREFIX: Prefix = Prefix(1);

/// See the module.
pub(super) struct Registers;

/// The operation that sets a register.
pub(super) fn set(name: &str, value: u64) -> Bytes {
    Bytes::from(format!("{name}={value}"))
}

/// All registers that an engine holds.
pub(super) fn all(engine: &dyn Engine) -> BTreeMap<String, u64> {
    let rows = engine.rows(key::data_range(PREFIX), usize::MAX).expect("memory does not fail");
    let registers = rows.into_iter().map(|(row, value)| {
        let name = key::user_key(&row).expect("a data key");
        (text(name), text(&value).parse::<u64>().expect("a number"))
    });
    registers.collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Machine for Registers {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let mut replies = Vec::with_capacity(operations.len());
        for Operation { body, .. } in operations {
            let equals = body.iter().position(|byte| *byte == b'=').expect("one of ours");
            let row = key::data(PREFIX, NamespaceId(0), Token(0), &body[..equals]);
            batch.put(row, body.slice(equals + 1..));
            replies.push(Bytes::from(at.id.index.to_string()));
        }
        Ok(replies)
    }

    fn batch_visible(&self) {}
}
