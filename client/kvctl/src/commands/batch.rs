//! `batch`: several changes, all or none, from a file of JSON lines.
//!
//! The whole file is read and understood before anything is sent. A line that means nothing is refused
//! with its number; whether the keys belong together is the client library's to say.

use std::path::Path;
use std::time::Duration;

use annulus_client::{Batch as Call, BatchWritten, Error, MayHaveApplied, Revision, Session};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::args::{Batch, parse_duration};
use crate::commands::Context;
use crate::commands::data::ReceiptView;
use crate::commands::session::Kept;
use crate::output::{Answer, Format, Table, numbers, words};
use crate::values::{Encoding, json_forms, read_file, read_stdin};

/// The largest file, bytes: four times what a batch may hold, so that the largest batch fits in however it
/// is written.
const FILE_BYTES_MOST: u64 = 32 * 1024 * 1024;

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Put { key: String, value: String, ttl: Option<String> },
    Delete { key: String },
    ExpectAbsent { key: String },
    ExpectPresent { key: String },
    ExpectVersion { key: String, version: u64 },
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Put(Bytes, Bytes, Option<Duration>),
    Delete(Bytes),
    ExpectAbsent(Bytes),
    ExpectPresent(Bytes),
    ExpectVersion(Bytes, Revision),
}

/// The answer in JSON.
#[derive(Debug, Serialize)]
struct BatchView {
    keys: Vec<KeyView>,
    receipt: ReceiptView,
}

/// A key that was changed.
#[derive(Debug, Serialize)]
struct KeyView {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// 0 when the key does not exist any more.
    version: u64,
}

/// `kvctl batch`.
///
/// # Errors
/// Those of the client library, and a file that cannot be read or understood.
pub async fn batch(context: &Context, args: &Batch) -> Result<Answer, Error> {
    let file = if args.file == Path::new("-") {
        read_stdin("file", FILE_BYTES_MOST).await?
    } else {
        read_file("file", &args.file, FILE_BYTES_MOST).await?
    };
    let steps = parse(&file, context.encoding)?;
    let kept = Kept::open(context, args.session.as_deref()).await?;
    let written = call(&kept.session, &steps).deadline(context.mutation_budget()).await?;
    kept.save(MayHaveApplied::Yes).await?;
    Ok(batch_answer(context.format, context.encoding, &changed(&steps), &written))
}

/// The steps of a file; lines without anything on them are passed over.
fn parse(file: &[u8], encoding: Encoding) -> Result<Vec<Step>, Error> {
    let wrong = |number: usize, why: &dyn std::fmt::Display| {
        Error::bad_request("file", format!("line {number}: {why}"))
    };
    let mut steps = Vec::new();
    for (number, line) in (1..).zip(file.split(|&byte| byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_slice(line).map_err(|error| wrong(number, &error))?;
        let step = step(line, encoding).map_err(|error| wrong(number, &error))?;
        steps.push(step);
    }
    Ok(steps)
}

fn step(line: Line, encoding: Encoding) -> Result<Step, Error> {
    let key = |text: String| encoding.decode_key(&text);
    Ok(match line {
        Line::Put { key: text, value, ttl } => {
            let ttl = ttl.as_deref().map(parse_duration).transpose();
            let ttl = ttl.map_err(|why| Error::bad_request("ttl", why))?;
            Step::Put(key(text)?, encoding.decode("value", &value)?, ttl)
        }
        Line::Delete { key: text } => Step::Delete(key(text)?),
        Line::ExpectAbsent { key: text } => Step::ExpectAbsent(key(text)?),
        Line::ExpectPresent { key: text } => Step::ExpectPresent(key(text)?),
        Line::ExpectVersion { key: text, version } => {
            Step::ExpectVersion(key(text)?, Revision(version))
        }
    })
}

fn call(session: &Session, steps: &[Step]) -> Call {
    steps.iter().cloned().fold(session.batch(), |batch, step| match step {
        Step::Put(key, value, None) => batch.put(key, value),
        Step::Put(key, value, Some(ttl)) => batch.put_with_ttl(key, value, ttl),
        Step::Delete(key) => batch.delete(key),
        Step::ExpectAbsent(key) => batch.expect_absent(key),
        Step::ExpectPresent(key) => batch.expect_present(key),
        Step::ExpectVersion(key, version) => batch.expect_version(key, version),
    })
}

/// The keys that are changed, in the order of the file: that of the versions in the answer.
fn changed(steps: &[Step]) -> Vec<Bytes> {
    let keys = steps.iter().filter_map(|step| match step {
        Step::Put(key, ..) | Step::Delete(key) => Some(key.clone()),
        Step::ExpectAbsent(_) | Step::ExpectPresent(_) | Step::ExpectVersion(..) => None,
    });
    keys.collect()
}

fn batch_answer(
    format: Format,
    encoding: Encoding,
    keys: &[Bytes],
    written: &BatchWritten,
) -> Answer {
    let versions = || keys.iter().zip(&written.versions);
    let view = BatchView {
        keys: versions()
            .map(|(key, version)| {
                let (key, key_base64) = json_forms(key);
                KeyView { key, key_base64, version: version.0 }
            })
            .collect(),
        receipt: (&written.receipt).into(),
    };
    Answer::one(format, &view, |_| {
        let mut table = Table::new([words("key"), numbers("version")]);
        for (key, version) in versions() {
            let version = match version.0 {
                0 => "absent".to_owned(),
                version => version.to_string(),
            };
            table.row([encoding.show(key).0, version]);
        }
        table.to_string()
    })
}

#[cfg(test)]
mod tests {
    use annulus_client::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::commands::data::tests::{document, receipt_json, text, write_receipt};

    const FILE: &str = r#"
        {"op": "expect_absent", "key": "{a}:1"}
        {"op": "expect_present", "key": "{a}:2"}
        {"op": "expect_version", "key": "{a}:2", "version": 12}

        {"op": "put", "key": "{a}:1", "value": "one"}
        {"op": "delete", "key": "{a}:2"}
        {"op": "put", "key": "{a}:3", "value": "three", "ttl": "30s"}
    "#;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn every_line_is_a_step() {
        let steps = parse(FILE.as_bytes(), Encoding::Text).unwrap();
        assert_eq!(
            steps,
            [
                Step::ExpectAbsent(bytes("{a}:1")),
                Step::ExpectPresent(bytes("{a}:2")),
                Step::ExpectVersion(bytes("{a}:2"), Revision(12)),
                Step::Put(bytes("{a}:1"), bytes("one"), None),
                Step::Delete(bytes("{a}:2")),
                Step::Put(bytes("{a}:3"), bytes("three"), Some(Duration::from_secs(30))),
            ]
        );
        assert_eq!(changed(&steps), ["{a}:1", "{a}:2", "{a}:3"]);
        assert!(parse(b"", Encoding::Text).unwrap().is_empty());

        let hex = br#"{"op": "put", "key": "6b", "value": "00ff"}"#;
        let steps = parse(hex, Encoding::Hex).unwrap();
        assert_eq!(steps, [Step::Put(bytes("k"), Bytes::from_static(b"\x00\xff"), None)]);
    }

    #[test]
    fn a_line_that_means_nothing_is_refused_with_its_number() {
        for (line, told) in [
            ("nonsense", "expected"),
            (r#"{"op": "fly", "key": "k"}"#, "fly"),
            (r#"{"op": "put", "key": "k"}"#, "value"),
            (r#"{"op": "put", "key": "k", "value": "v", "ttl": "30"}"#, "ttl"),
            (r#"{"op": "delete", "key": "k", "value": "v"}"#, "value"),
            (r#"{"op": "delete", "key": ""}"#, "at least 1 byte"),
            (r#"{"op": "expect_version", "key": "k", "version": -1}"#, "-1"),
        ] {
            let file = format!("{{\"op\": \"delete\", \"key\": \"k\"}}\n{line}\n");
            let error = parse(file.as_bytes(), Encoding::Text).unwrap_err();
            let ErrorKind::BadRequest { field, message } = &error.kind else { panic!("{error:?}") };
            assert_eq!(field, "file", "{line}");
            assert!(message.starts_with("line 2: "), "{message}");
            assert!(message.contains(told), "{message}");
        }
        let error = parse(br#"{"op": "delete", "key": "0g"}"#, Encoding::Hex).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn the_answer_names_every_key_that_was_changed() {
        let written = BatchWritten {
            versions: vec![Revision(40), Revision(0)],
            receipt: write_receipt(),
            attempts: 1,
        };
        let keys = [bytes("{a}:1"), Bytes::from_static(b"{a}\xff")];
        let answer = |format| batch_answer(format, Encoding::Text, &keys, &written);
        assert_eq!(
            document(&answer(Format::Json)),
            json!({
                "keys": [{"key": "{a}:1", "version": 40}, {"key_base64": "e2F9/w==", "version": 0}],
                "receipt": receipt_json("write", "log"),
            })
        );
        assert_eq!(
            text(&answer(Format::Table)),
            "key       version\n\
             {a}:1          40\n\
             e2F9/w==   absent\n"
        );
    }
}
