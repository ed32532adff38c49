//! `put`, `get`, `delete`.
//!
//! An absent key is an answer, not an error: exit code 1, `found: false` in JSON, a message on
//! standard error otherwise.

use std::time::Duration;

use annulus_client::Error;
use annulus_types::{MayHaveApplied, Receipt, Revision};
use bytes::Bytes;
use serde::Serialize;

use crate::args::{Delete, Get, Put};
use crate::commands::Context;
use crate::commands::session::Kept;
use crate::errors::exit;
use crate::output::{Answer, Format, or_dash, pairs};
use crate::values::{Encoding, json_forms, read_stdin};

/// The largest value that any cluster can be set up for, bytes: more is not even read from
/// standard input.
const VALUE_BYTES_MOST: u64 = 8 * 1024 * 1024;

/// A receipt in JSON.
#[derive(Debug, Serialize)]
pub struct ReceiptView {
    mode: &'static str,
    shard: u64,
    epoch: u64,
    node: u32,
    replica: u64,
    role: &'static str,
    served_by: &'static str,
    term: u64,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_bound_us: Option<u64>,
    table_version: u64,
}

impl From<&Receipt> for ReceiptView {
    fn from(receipt: &Receipt) -> Self {
        Self {
            mode: receipt.mode.as_str(),
            shard: receipt.shard.0,
            epoch: receipt.epoch.0,
            node: receipt.node.0,
            replica: receipt.replica.0,
            role: receipt.role.as_str(),
            served_by: receipt.served_by.as_str(),
            term: receipt.term,
            revision: receipt.revision.0,
            staleness_bound_us: receipt.staleness_bound_us,
            table_version: receipt.table_version.0,
        }
    }
}

impl ReceiptView {
    /// The receipt for people, below the key's version and what it has left to live, if there are such.
    fn table(&self, version: Option<u64>, expires_in_ms: Option<u64>) -> String {
        let bound = self.staleness_bound_us.map(|bound| format!("{bound} us"));
        let mut lines = Vec::new();
        lines.extend(version.map(|version| ("version", version.to_string())));
        lines.extend(expires_in_ms.map(|left_ms| ("expires in", format!("{left_ms} ms"))));
        lines.extend([
            ("mode", self.mode.to_owned()),
            ("shard", format!("{} (epoch {})", self.shard, self.epoch)),
            ("node", format!("{} (replica {}, {})", self.node, self.replica, self.role)),
            ("served by", self.served_by.to_owned()),
            ("term", self.term.to_string()),
            ("revision", self.revision.to_string()),
            ("staleness bound", or_dash(bound)),
            ("table version", self.table_version.to_string()),
        ]);
        pairs(&lines)
    }
}

/// The answer to a write in JSON. Keys and values are text under one name when they are UTF-8, else
/// base64 under another.
#[derive(Debug, Serialize)]
struct WriteView {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// 0 when the key does not exist any more.
    version: u64,
    receipt: ReceiptView,
}

/// The answer to a read in JSON.
#[derive(Debug, Serialize)]
struct GetView {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// At the state that was read; left out when the key does not end by time.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
    receipt: ReceiptView,
}

/// `kvctl put`.
///
/// # Errors
/// Those of the client library, and an argument that cannot be decoded.
pub async fn put(context: &Context, args: &Put) -> Result<Answer, Error> {
    let key = context.encoding.decode_key(&args.key)?;
    let value = match args.value.as_str() {
        "-" => read_stdin("value", VALUE_BYTES_MOST).await?,
        text => context.encoding.decode("value", text)?,
    };
    let kept = Kept::open(context, args.session.as_deref()).await?;
    let budget = context.mutation_budget();
    let written = if args.if_absent || args.if_version.is_some() {
        let expected = args.if_version.map(Revision);
        let call = kept.session.cas(key.clone(), expected, value).deadline(budget);
        match args.ttl {
            Some(ttl) => call.ttl(ttl).await?,
            None => call.await?,
        }
    } else {
        let call = kept.session.put(key.clone(), value).deadline(budget);
        match args.ttl {
            Some(ttl) => call.ttl(ttl).await?,
            None => call.await?,
        }
    };
    kept.save(MayHaveApplied::Yes).await?;
    Ok(put_answer(context.format, &key, written.version, &written.receipt))
}

/// `kvctl delete`.
///
/// # Errors
/// Those of the client library, and a key that cannot be decoded.
pub async fn delete(context: &Context, args: &Delete) -> Result<Answer, Error> {
    let key = context.encoding.decode_key(&args.key)?;
    let kept = Kept::open(context, args.session.as_deref()).await?;
    let mut call = kept.session.delete(key.clone()).deadline(context.mutation_budget());
    if let Some(version) = args.if_version {
        call = call.if_version(Revision(version));
    }
    let written = call.await?;
    kept.save(MayHaveApplied::Yes).await?;
    Ok(delete_answer(context.format, &key, written.version, &written.receipt))
}

/// `kvctl get`.
///
/// # Errors
/// Those of the client library, and a key that cannot be decoded.
pub async fn get(context: &Context, args: &Get) -> Result<Answer, Error> {
    let key = context.encoding.decode_key(&args.key)?;
    let kept = Kept::open(context, args.session.as_deref()).await?;
    let call = kept.session.get(key.clone()).consistency(args.mode());
    let found = call.deadline(context.budget()).await?;
    kept.save(MayHaveApplied::No).await?;
    let read = Read {
        key: &key,
        value: found.value.as_ref(),
        version: found.version,
        expires_in: found.expires_in,
        receipt: &found.receipt,
    };
    Ok(if args.raw {
        raw_answer(&read, args.receipt)
    } else {
        get_answer(context.format, context.encoding, &read, args.receipt)
    })
}

/// What a read brought.
#[derive(Clone, Copy, Debug)]
struct Read<'a> {
    key: &'a Bytes,
    value: Option<&'a Bytes>,
    version: Revision,
    expires_in: Option<Duration>,
    receipt: &'a Receipt,
}

impl Read<'_> {
    fn code(&self) -> u8 {
        if self.value.is_some() { exit::DONE } else { exit::NO }
    }

    fn expires_in_ms(&self) -> Option<u64> {
        self.expires_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }
}

fn write_view(key: &Bytes, version: Revision, receipt: &Receipt) -> WriteView {
    let (key, key_base64) = json_forms(key);
    WriteView { key, key_base64, version: version.0, receipt: receipt.into() }
}

fn put_answer(format: Format, key: &Bytes, version: Revision, receipt: &Receipt) -> Answer {
    let view = write_view(key, version, receipt);
    Answer::one(format, &view, |view| format!("version {}\n", view.version))
}

fn delete_answer(format: Format, key: &Bytes, version: Revision, receipt: &Receipt) -> Answer {
    let view = write_view(key, version, receipt);
    Answer::one(format, &view, |view| {
        format!("absent at revision {} of shard {}\n", view.receipt.revision, view.receipt.shard)
    })
}

/// The bytes of the value and nothing else on standard output.
fn raw_answer(read: &Read<'_>, receipt: bool) -> Answer {
    let out = read.value.map(|value| value.to_vec()).unwrap_or_default();
    let version = read.value.map(|_| read.version.0);
    let table = || ReceiptView::from(read.receipt).table(version, read.expires_in_ms());
    let about = receipt.then(table);
    Answer { out, err: about.unwrap_or_default(), code: read.code() }
}

fn get_answer(format: Format, encoding: Encoding, read: &Read<'_>, receipt: bool) -> Answer {
    let (key, key_base64) = json_forms(read.key);
    let (value, value_base64) = read.value.map_or((None, None), |value| json_forms(value));
    let view = GetView {
        key,
        key_base64,
        found: read.value.is_some(),
        value,
        value_base64,
        version: read.value.map(|_| read.version.0),
        expires_in_ms: read.expires_in_ms(),
        receipt: read.receipt.into(),
    };
    let mut err = String::new();
    let answer = Answer::one(format, &view, |view| {
        let mut out = match read.value.map(|value| encoding.show(value)) {
            Some((text, false)) => text + "\n",
            Some((text, true)) => {
                err.push_str("the value is not plain text: shown as base64, --raw for its bytes\n");
                text + "\n"
            }
            None => {
                err.push_str("the key is absent\n");
                String::new()
            }
        };
        if receipt {
            out.push_str(&view.receipt.table(view.version, view.expires_in_ms));
        }
        out
    });
    Answer { err, code: read.code(), ..answer }
}

#[cfg(test)]
pub mod tests;
