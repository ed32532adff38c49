//! R1 to R3, W4: what clients saw is a history of registers, one per key, each operation at one
//! moment between its call and its answer. The checker is that of the harness for real processes; a
//! history that it cannot decide is no pass.

use annulus_harness::checkers::linearizable::{STEP_LIMIT, check};
use annulus_harness::history::History;

use super::Violation;

const RULE: &str = "R1 linearizable";

/// Judges a whole history.
pub(crate) fn judge(history: &History) -> Option<Violation> {
    let verdict = check(history, STEP_LIMIT).into_result();
    verdict.err().map(|error| Violation::new(RULE, format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use annulus_harness::history::{Call, Operation, Outcome, Value};

    use super::*;

    #[test]
    fn a_stale_read_is_found() {
        let operation = |call, at_us, outcome| Operation {
            process: 1,
            key: "key".to_owned(),
            call,
            invoked_us: at_us,
            completed_us: Some(at_us + 1),
            outcome,
        };
        let write = operation(Call::Write(4), 1, Outcome::Ok(Value::Done));
        let read = |value| operation(Call::Read, 3, Outcome::Ok(Value::Read(value)));
        assert!(judge(&History::new(vec![write.clone(), read(Some(4))])).is_none());
        assert!(judge(&History::new(vec![write, read(None)])).is_some());
    }
}
