//! `incr`.
//!
//! A sum out of bounds and a value that is no number are answers, not errors: exit code 1, `result` in
//! JSON, a message on standard error otherwise.

use annulus_client::{Counted, Error, IncrResult, MayHaveApplied};
use bytes::Bytes;
use serde::Serialize;

use crate::args::Incr;
use crate::commands::Context;
use crate::commands::data::ReceiptView;
use crate::commands::session::Kept;
use crate::errors::exit;
use crate::output::{Answer, Format};
use crate::values::json_forms;

/// The answer in JSON.
#[derive(Debug, Serialize)]
struct IncrView {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    result: &'static str,
    /// The number now; left out when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<i64>,
    /// Left out when nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    receipt: ReceiptView,
}

/// `kvctl incr`.
///
/// # Errors
/// Those of the client library, and a key that cannot be decoded.
pub async fn incr(context: &Context, args: &Incr) -> Result<Answer, Error> {
    let key = context.encoding.decode_key(&args.key)?;
    let kept = Kept::open(context, args.session.as_deref()).await?;
    let mut call = kept.session.incr(key.clone(), args.delta).deadline(context.mutation_budget());
    if let Some(min) = args.min {
        call = call.min(min);
    }
    if let Some(max) = args.max {
        call = call.max(max);
    }
    let counted = call.await?;
    let applied = match counted.result {
        IncrResult::Done => MayHaveApplied::Yes,
        IncrResult::OutOfBounds | IncrResult::NotANumber => MayHaveApplied::No,
    };
    kept.save(applied).await?;
    Ok(incr_answer(context.format, &key, &counted))
}

fn incr_answer(format: Format, key: &Bytes, counted: &Counted) -> Answer {
    let (result, value, problem) = match counted.result {
        IncrResult::Done => ("done", Some(counted.value), None),
        IncrResult::OutOfBounds => {
            let problem = format!("the sum is out of bounds: the number is {}\n", counted.value);
            ("out_of_bounds", Some(counted.value), Some(problem))
        }
        IncrResult::NotANumber => {
            ("not_a_number", None, Some("the value is not a number\n".to_owned()))
        }
    };
    let is_done = problem.is_none();
    let (key, key_base64) = json_forms(key);
    let view = IncrView {
        key,
        key_base64,
        result,
        value,
        version: is_done.then_some(counted.version.0),
        receipt: (&counted.receipt).into(),
    };
    let mut err = String::new();
    let answer = Answer::one(format, &view, |_| match problem {
        None => format!("{}\n", counted.value),
        Some(problem) => {
            err = problem;
            String::new()
        }
    });
    let code = if is_done { exit::DONE } else { exit::NO };
    Answer { err, code, ..answer }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::commands::data::tests::{document, receipt_json, text, write_receipt};

    fn counted(result: IncrResult, value: i64) -> Counted {
        let version = annulus_client::Revision(if result == IncrResult::Done { 40 } else { 0 });
        Counted { result, value, version, receipt: write_receipt(), attempts: 1 }
    }

    fn answer(format: Format, counted: &Counted) -> Answer {
        incr_answer(format, &Bytes::from_static(b"n"), counted)
    }

    fn expected(rest: Value) -> Value {
        let mut view = json!({"key": "n", "receipt": receipt_json("write", "log")});
        for (name, value) in rest.as_object().unwrap() {
            view[name] = value.clone();
        }
        view
    }

    #[test]
    fn the_sum_is_the_answer() {
        let done = counted(IncrResult::Done, -7);
        let json = answer(Format::Json, &done);
        let rest = json!({"result": "done", "value": -7, "version": 40});
        assert_eq!((document(&json), json.err.as_str(), json.code), (expected(rest), "", 0));
        let table = answer(Format::Table, &done);
        assert_eq!((text(&table), table.err.as_str(), table.code), ("-7\n", "", 0));
    }

    #[test]
    fn what_cannot_be_added_to_is_an_answer_with_exit_code_1() {
        let bounds = counted(IncrResult::OutOfBounds, 5);
        let json = answer(Format::Json, &bounds);
        let rest = json!({"result": "out_of_bounds", "value": 5});
        assert_eq!((document(&json), json.err.as_str(), json.code), (expected(rest), "", 1));
        let table = answer(Format::Table, &bounds);
        assert_eq!((text(&table), table.code), ("", 1));
        assert_eq!(table.err, "the sum is out of bounds: the number is 5\n");

        let text_value = counted(IncrResult::NotANumber, 0);
        let json = answer(Format::Json, &text_value);
        assert_eq!(document(&json), expected(json!({"result": "not_a_number"})));
        let table = answer(Format::Table, &text_value);
        assert_eq!((table.err.as_str(), table.code), ("the value is not a number\n", 1));
    }
}
