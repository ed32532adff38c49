//! Where values come from: the file and the environment, one value at a time.
//!
//! Owns reading the file and the form of variables. Does not decide which source wins, and knows no
//! limits; flags never come here, they are typed by the command line.
//!
//! On failure of one value the others are still read: each is understood alone.

use std::collections::BTreeMap;
use std::path::Path;

use annulus_runtime::RealDisk;
use annulus_runtime::disk::read_file;
use toml::{Table, Value};

use super::settings::{defaults, settings};
use super::{Config, Problem};

/// Longest configuration file, bytes. Every setting written out takes less than 2 KiB.
const FILE_BYTES_LIMIT: u64 = 1024 * 1024;

/// A value that a file or variable gives.
pub(super) struct Given {
    /// Its key in the file, below the keys of its tables.
    pub(super) path: Vec<String>,
    /// As TOML would have it.
    pub(super) value: Value,
    /// The file or variable.
    origin: String,
}

impl Given {
    /// Whether name, type and form are right, apart from everything else that is given.
    pub(super) fn understood(&self) -> Result<(), Problem> {
        let mut alone = Table::new();
        put(&mut alone, &self.path, self.value.clone());
        let read: Result<Config, toml::de::Error> = alone.try_into();
        read.map(drop).map_err(|error| Problem {
            setting: self.path.join("."),
            reason: format!("{} gives {}: {}", self.origin, self.value, error.message()),
        })
    }
}

/// Sets the value below nested tables, which are made where they are missing.
pub(super) fn put(table: &mut Table, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let below = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
    if !below.is_table() {
        *below = Value::Table(Table::new());
    }
    if let Value::Table(below) = below {
        put(below, rest, value);
    }
}

/// Every value of a table and of the tables in it. An empty table counts as a value, so that one
/// that nobody knows is not overlooked.
fn leaves(above: &[String], table: &Table, origin: &str, given: &mut Vec<Given>) {
    for (key, value) in table {
        let mut path = above.to_vec();
        path.push(key.clone());
        match value {
            Value::Table(below) if !below.is_empty() => leaves(&path, below, origin, given),
            value => given.push(Given { path, value: value.clone(), origin: origin.to_owned() }),
        }
    }
}

/// Everything that the file gives.
pub(super) fn from_file(path: &Path) -> Result<Vec<Given>, Problem> {
    let wrong = |reason: String| Problem { setting: path.display().to_string(), reason };
    let bytes = read_file(&RealDisk, path, FILE_BYTES_LIMIT)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| wrong(format!("is not UTF-8: {error}")))?;
    let table: Result<Table, toml::de::Error> = text.parse();
    let table =
        table.map_err(|error| wrong(format!("is not TOML: {}", error.to_string().trim_end())))?;
    let mut given = Vec::new();
    leaves(&[], &table, &path.display().to_string(), &mut given);
    Ok(given)
}

/// Everything that variables give. Those that are no settings are passed over.
pub(super) fn from_env(env: &BTreeMap<String, String>) -> Vec<Given> {
    let defaults = defaults();
    let mut given = Vec::new();
    for setting in settings() {
        let variable = setting.variable();
        let (Some(text), Some(default)) = (env.get(&variable), setting.default_in(&defaults))
        else {
            continue;
        };
        // A table has variables for its settings, none for itself.
        if !default.is_table() {
            let value = value_of(text, default);
            given.push(Given { path: setting.path, value, origin: variable });
        }
    }
    given
}

/// The text of a variable as the kind of value that the default is. What does not fit stays text,
/// and is refused as such.
fn value_of(text: &str, default: &Value) -> Value {
    let as_text = || Value::String(text.to_owned());
    match default {
        Value::Integer(_) => text.parse::<i64>().map_or_else(|_| as_text(), Value::Integer),
        Value::Boolean(_) => text.parse::<bool>().map_or_else(|_| as_text(), Value::Boolean),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        }
        _ => as_text(),
    }
}
