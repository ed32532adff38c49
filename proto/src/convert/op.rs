//! Names of mutations, and what is said about them (W3).
//!
//! A name that a shard's table could not hold is refused here, before anything is proposed: the window
//! between a number and the lowest one without an answer has a limit.

use annulus_types::Revision;
use annulus_types::ids::ID_LIMIT;
use annulus_types::limits::WRITER_WINDOW;

use super::ConvertError;
use crate::v1;

/// Names a mutation within its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId {
    /// The writer, by the revision that its opening took.
    pub writer: Revision,
    /// Number of the mutation within the writer, from 1.
    pub seq: u64,
    /// The client has the answers of all lower numbers. Less than the window below `seq`.
    pub lowest_unacked: u64,
    /// Counts the attempts, from 0.
    pub attempt: u32,
}

impl From<&OpId> for v1::OpId {
    fn from(op: &OpId) -> Self {
        Self {
            writer: op.writer.0,
            seq: op.seq,
            lowest_unacked: op.lowest_unacked,
            attempt: op.attempt,
        }
    }
}

/// Reads a number from 1 to 2^53 - 1.
///
/// # Errors
/// When it is not.
pub fn number_of(field: &'static str, wire: u64) -> Result<u64, ConvertError> {
    if wire == 0 || wire >= ID_LIMIT {
        let problem = format!("must be 1 to 2^53 - 1, is {wire}");
        return Err(ConvertError { field, problem });
    }
    Ok(wire)
}

/// Reads the id of a writer.
///
/// # Errors
/// When it is none.
pub fn writer_of(field: &'static str, wire: u64) -> Result<Revision, ConvertError> {
    number_of(field, wire).map(Revision)
}

/// Reads the name of a mutation.
///
/// # Errors
/// When it is none that a writer may use.
pub fn op_of(wire: &v1::OpId) -> Result<OpId, ConvertError> {
    let writer = writer_of("op.writer", wire.writer)?;
    let seq = number_of("op.seq", wire.seq)?;
    let lowest_unacked = wire.lowest_unacked;
    let Some(ahead) = seq.checked_sub(lowest_unacked) else {
        let problem = format!("must be at most seq, which is {seq}; is {lowest_unacked}");
        return Err(ConvertError { field: "op.lowest_unacked", problem });
    };
    if ahead >= WRITER_WINDOW {
        let problem = format!(
            "must be less than {WRITER_WINDOW} above lowest_unacked, which is {lowest_unacked}; \
             is {seq}"
        );
        return Err(ConvertError { field: "op.seq", problem });
    }
    Ok(OpId { writer, seq, lowest_unacked, attempt: wire.attempt })
}

/// What is known of a named mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpState {
    /// It was applied.
    Applied,
    /// It was judged, its condition did not hold, and nothing was changed.
    Failed,
    /// It was not applied and never will be.
    NotApplied,
    /// Its client had the answer, which is not kept.
    Settled,
    /// Its writer has ended: it cannot be applied any more, whether it was is not known.
    Ended,
}

impl From<OpState> for v1::OpState {
    fn from(state: OpState) -> Self {
        match state {
            OpState::Applied => Self::Applied,
            OpState::Failed => Self::Failed,
            OpState::NotApplied => Self::NotApplied,
            OpState::Settled => Self::Settled,
            OpState::Ended => Self::Ended,
        }
    }
}

/// Reads what is known of a mutation.
///
/// # Errors
/// When nothing is given or the value is unknown.
pub fn op_state_of(wire: i32) -> Result<OpState, ConvertError> {
    match v1::OpState::try_from(wire) {
        Ok(v1::OpState::Applied) => Ok(OpState::Applied),
        Ok(v1::OpState::Failed) => Ok(OpState::Failed),
        Ok(v1::OpState::NotApplied) => Ok(OpState::NotApplied),
        Ok(v1::OpState::Settled) => Ok(OpState::Settled),
        Ok(v1::OpState::Ended) => Ok(OpState::Ended),
        Ok(v1::OpState::Unspecified) | Err(_) => Err(ConvertError::meaningless("state", wire)),
    }
}

/// What became of an addition to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncrResult {
    /// It was done.
    Done,
    /// The sum would be outside of its limits.
    OutOfBounds,
    /// The key holds something else than a number.
    NotANumber,
}

impl From<IncrResult> for v1::IncrResult {
    fn from(result: IncrResult) -> Self {
        match result {
            IncrResult::Done => Self::Done,
            IncrResult::OutOfBounds => Self::OutOfBounds,
            IncrResult::NotANumber => Self::NotANumber,
        }
    }
}

/// Reads what became of an addition.
///
/// # Errors
/// When nothing is given or the value is unknown.
pub fn incr_result_of(wire: i32) -> Result<IncrResult, ConvertError> {
    match v1::IncrResult::try_from(wire) {
        Ok(v1::IncrResult::Done) => Ok(IncrResult::Done),
        Ok(v1::IncrResult::OutOfBounds) => Ok(IncrResult::OutOfBounds),
        Ok(v1::IncrResult::NotANumber) => Ok(IncrResult::NotANumber),
        Ok(v1::IncrResult::Unspecified) | Err(_) => Err(ConvertError::meaningless("result", wire)),
    }
}
