//! The smallest machine that can show a lost or a reordered write: named numbers, set one by one.
//!
//! Nothing sweeps data without a record here, because there are no records: they are destroyed at once.
//!
//! An operation is `name=number`; its reply is the index of its entry. The register [`ENDS`] ends by itself,
//! at the group time that it holds. A snapshot has two files, of
//! the names before `m` and of the others. Nobody reads registers while one is installed, so that they
//! need no second prefix.

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, Engine, EngineError, Row};
use annulus_types::{NamespaceId, Token};
use bytes::Bytes;

use crate::entry::Operation;
use crate::machine::{Applying, FileSpec, Import, Machine};

const PREFIX: Prefix = Prefix(1);

/// The register that ends by itself.
pub(super) const ENDS: &str = "ends";

/// See the module.
pub(super) struct Registers(pub(super) Arc<dyn Engine>);

/// The operation that sets a register.
pub(super) fn set(name: &str, value: u64) -> Bytes {
    Bytes::from(format!("{name}={value}"))
}

/// Sets a register behind the back of the machine.
pub(super) fn rot(engine: &dyn Engine, name: &str, value: u64) {
    let mut batch = Batch::default();
    batch.put(row_of(name.as_bytes()), value.to_string());
    engine.apply(batch).expect("memory does not fail");
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

fn row_of(name: &[u8]) -> Bytes {
    key::data(PREFIX, NamespaceId(0), Token(0), name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Registers {
    fn ends_ms(&self) -> Result<Option<u64>, EngineError> {
        let held = self.0.get(&[&row_of(ENDS.as_bytes())])?.into_iter().next().flatten();
        Ok(held.map(|value| text(&value).parse().expect("a number")))
    }
}

impl Machine for Registers {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        if self.ends_ms()?.is_some_and(|ends_ms| ends_ms <= at.group_time_ms) {
            batch.delete(row_of(ENDS.as_bytes()));
        }
        let mut replies = Vec::with_capacity(operations.len());
        for Operation { body, .. } in operations {
            let equals = body.iter().position(|byte| *byte == b'=').expect("one of ours");
            batch.put(row_of(&body[..equals]), body.slice(equals + 1..));
            replies.push(Bytes::from(at.id.index.to_string()));
        }
        Ok(replies)
    }

    fn batch_visible(&self) {}

    fn next_end_ms(&self) -> Option<u64> {
        // A process that ends asks for nothing.
        self.ends_ms().unwrap_or_default()
    }

    fn files(&self) -> Vec<FileSpec> {
        let (all, middle) = (key::data_range(PREFIX), row_of(b"m"));
        vec![
            FileSpec { id: 1, ranges: vec![all.start..middle.clone()] },
            FileSpec { id: 2, ranges: vec![middle..all.end] },
        ]
    }

    fn export(&self, _file: u64, (row, value): Row) -> Result<Row, EngineError> {
        let name = key::user_key(&row).expect("a data key");
        Ok((Bytes::copy_from_slice(name), value))
    }

    fn import(self: Arc<Self>) -> Box<dyn Import> {
        Box::new(Incoming { engine: Arc::clone(&self.0), rows: Vec::new() })
    }

    fn destroy(&self, batch: &mut Batch) {
        // A process that ends destroys nothing.
        let rows = self.0.rows(key::data_range(PREFIX), usize::MAX).unwrap_or_default();
        rows.into_iter().for_each(|(row, _)| batch.delete(row));
    }
}

/// Holds everything until it is complete.
struct Incoming {
    engine: Arc<dyn Engine>,
    rows: Vec<Row>,
}

impl Import for Incoming {
    fn rows(&mut self, _: u64, rows: Vec<Row>, _: &mut Batch) -> Result<(), EngineError> {
        self.rows.extend(rows);
        Ok(())
    }

    fn switch(&mut self, batch: &mut Batch) -> Result<(), EngineError> {
        for (row, _) in self.engine.rows(key::data_range(PREFIX), usize::MAX)? {
            batch.delete(row);
        }
        for (name, value) in self.rows.drain(..) {
            batch.put(row_of(&name), value);
        }
        Ok(())
    }

    fn switched(self: Box<Self>) {}
}
