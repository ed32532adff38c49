//! `op status`.
//!
//! The exit code answers whether the operation was applied: 0 yes, 1 no, and it never will be, 4 it is no
//! longer known.

use annulus_client::{Error, OpIdText, OpReport, OpState};
use serde::Serialize;

use crate::args::OpStatus;
use crate::commands::Context;
use crate::commands::data::ReceiptView;
use crate::errors::exit;
use crate::output::{Answer, Format, pairs};

/// The answer in JSON. What was not applied has no version, revision or value.
#[derive(Debug, Serialize)]
struct OpView {
    op: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Of an addition: the sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<i64>,
    receipt: ReceiptView,
}

/// `kvctl op status`.
///
/// # Errors
/// Those of the client library.
pub async fn status(context: &Context, args: &OpStatus) -> Result<Answer, Error> {
    let client = context.connect().await?;
    let report = client.op_status(args.id).deadline(context.budget()).await?;
    Ok(status_answer(context.format, &args.id, &report))
}

/// The word used in JSON, what it means, and the exit code.
fn words(state: OpState) -> (&'static str, &'static str, u8) {
    match state {
        OpState::Applied => ("applied", "it was applied", exit::DONE),
        OpState::Failed => ("failed", "its condition did not hold; nothing was changed", exit::NO),
        OpState::NotApplied => {
            ("not_applied", "it was not applied and never will be; repeat the command", exit::NO)
        }
        OpState::Settled => {
            ("settled", "its client had the answer, which is not kept", exit::UNKNOWN)
        }
        OpState::Ended => {
            let meaning = "it cannot be applied any more; whether it was is no longer known";
            ("ended", meaning, exit::UNKNOWN)
        }
    }
}

fn status_answer(format: Format, id: &OpIdText, report: &OpReport) -> Answer {
    let (state, meaning, code) = words(report.state);
    let is_applied = report.state == OpState::Applied;
    let view = OpView {
        op: id.to_string(),
        state,
        version: is_applied.then_some(report.version.0),
        revision: is_applied.then_some(report.revision.0),
        value: report.value,
        receipt: (&report.receipt).into(),
    };
    let answer = Answer::one(format, &view, |view| {
        let mut lines = vec![("state", view.state.to_owned()), ("meaning", meaning.to_owned())];
        let numbers = [("version", view.version), ("revision", view.revision)];
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name, number?)));
        lines.extend(numbers.map(|(name, number)| (name, number.to_string())));
        lines.extend(view.value.map(|value| ("value", value.to_string())));
        pairs(&lines)
    });
    Answer { code, ..answer }
}

#[cfg(test)]
mod tests {
    use annulus_client::{ClusterId, Revision, ShardId, Token};
    use serde_json::json;

    use super::*;
    use crate::commands::data::tests::{document, receipt_json, text, write_receipt};

    fn id() -> OpIdText {
        OpIdText {
            cluster: ClusterId([0xab; 16]),
            shard: ShardId(5),
            writer: Revision(7),
            seq: 2,
            token: Token(1),
        }
    }

    fn answer(format: Format, state: OpState) -> Answer {
        let is_applied = state == OpState::Applied;
        let revision = Revision(if is_applied { 12 } else { 0 });
        let value = is_applied.then_some(-3);
        let receipt = write_receipt();
        let report = OpReport { state, version: revision, revision, value, receipt, attempts: 1 };
        status_answer(format, &id(), &report)
    }

    #[test]
    fn what_was_applied_has_version_revision_and_sum() {
        let json = answer(Format::Json, OpState::Applied);
        assert_eq!(
            document(&json),
            json!({
                "op": id().to_string(),
                "state": "applied",
                "version": 12,
                "revision": 12,
                "value": -3,
                "receipt": receipt_json("write", "log"),
            })
        );
        assert_eq!(json.code, 0);
        assert_eq!(
            text(&answer(Format::Table, OpState::Applied)),
            "state     applied\n\
             meaning   it was applied\n\
             version   12\n\
             revision  12\n\
             value     -3\n"
        );
    }

    #[test]
    fn every_state_has_its_word_and_exit_code() {
        for (state, word, code) in [
            (OpState::Applied, "applied", 0),
            (OpState::Failed, "failed", 1),
            (OpState::NotApplied, "not_applied", 1),
            (OpState::Settled, "settled", 4),
            (OpState::Ended, "ended", 4),
        ] {
            let answer = answer(Format::Json, state);
            let view = document(&answer);
            assert_eq!((view["state"].as_str(), answer.code), (Some(word), code));
            assert_eq!(view.get("version").is_some(), state == OpState::Applied, "{word}");
        }
    }

    #[test]
    fn what_was_not_applied_says_what_to_do() {
        assert_eq!(
            text(&answer(Format::Table, OpState::NotApplied)),
            "state    not_applied\n\
             meaning  it was not applied and never will be; repeat the command\n"
        );
    }
}
