//! The only conversions between the wire and the domain types.
//!
//! Encoding cannot fail. Decoding checks what the domain types promise and names the field that
//! breaks the promise in a [`ConvertError`]; nothing is repaired silently. Whether a value is
//! *true* (a route, a redirect) is not checked here: routes decide nothing (H7).
//!
//! Exhaustive matches in both directions: a new variant on either side does not compile until it
//! is given a place here.

mod error;
mod multi;
mod op;
mod receipt;
mod routes;
#[cfg(test)]
mod tests;

use std::time::Duration;

use annulus_types::{
    ClusterId, Consistency, Error, ErrorKind, NamespaceId, SessionToken, TableVersion,
};
use bytes::Bytes;

pub use error::{DETAIL_BYTES_MOST, error_of, status_of};
pub use multi::{Item, Items};
pub use op::{IncrResult, OpId, OpState, incr_result_of, number_of, op_of, op_state_of, writer_of};
pub use receipt::{mode_of, role_of, served_by_of};

use crate::v1;

/// A message that says something the domain types cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// The field, by its wire name.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl ConvertError {
    /// The field holds a number that no version known here gives a meaning to.
    fn meaningless(field: &'static str, value: i32) -> Self {
        Self { field, problem: format!("the value {value} has no meaning here") }
    }
}

/// As the answer to a request that holds such a field. Whoever decodes an *answer* must not use
/// this: there it is the sender who is wrong.
impl From<ConvertError> for Error {
    fn from(error: ConvertError) -> Self {
        Self::bad_request(error.field, error.problem)
    }
}

/// Reads a cluster id of exactly 16 bytes.
///
/// # Errors
/// When there are more or fewer.
pub fn cluster_of(bytes: &[u8]) -> Result<ClusterId, ConvertError> {
    let id = <[u8; 16]>::try_from(bytes).map_err(|_| ConvertError {
        field: "cluster_id",
        problem: format!("16 bytes expected, got {}", bytes.len()),
    })?;
    Ok(ClusterId(id))
}

/// The 16 bytes of a cluster id.
#[must_use]
pub fn cluster_bytes(cluster: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&cluster.0)
}

/// A request header after its check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster meant; `None` means whichever the node belongs to.
    pub cluster: Option<ClusterId>,
    /// The namespace: always `default` so far.
    pub namespace: NamespaceId,
    /// The newest routing table that the caller holds.
    pub table_version: TableVersion,
    /// What a read asks for.
    pub consistency: Consistency,
    /// What a read of the consistency `session` must not be older than; `None` if the session has seen
    /// nothing.
    pub session: Option<SessionToken>,
    /// A linearizable read that the gate must not answer.
    pub strict: bool,
    /// The request yields to normal traffic (priority class 1).
    pub yielding: bool,
    /// Asks for an account of how the answer was found.
    pub explain: bool,
}

impl From<&Header> for v1::RequestHeader {
    fn from(header: &Header) -> Self {
        let (consistency, bound_us) = match &header.consistency {
            Consistency::Linearizable => (v1::Consistency::Linearizable, 0),
            Consistency::Session => (v1::Consistency::Session, 0),
            Consistency::Bounded(limit) => {
                (v1::Consistency::Bounded, u64::try_from(limit.as_micros()).unwrap_or(u64::MAX))
            }
            Consistency::Any => (v1::Consistency::Any, 0),
        };
        Self {
            cluster_id: header.cluster.map(cluster_bytes).unwrap_or_default(),
            namespace: header.namespace.0,
            table_version: header.table_version.0,
            op: None,
            consistency: consistency.into(),
            bound_us,
            session_token: header.session.as_ref().map(SessionToken::encode).unwrap_or_default(),
            strict: header.strict,
            fence: None,
            priority: u32::from(header.yielding),
            explain: header.explain,
        }
    }
}

/// Checks the header of a request that is no mutation; an absent one means all defaults. Whose cluster a
/// session token is of is for the node to judge.
///
/// # Errors
/// `BadRequest` with the field's name, also for an operation id; `Unimplemented` for fences, which this
/// version must not ignore: they promise something.
pub fn header_of(wire: Option<&v1::RequestHeader>) -> Result<Header, Error> {
    let (header, op) = checked(wire)?;
    if op.is_some() {
        return Err(Error::bad_request("op", "names mutations, and this request is none"));
    }
    Ok(header)
}

/// Checks the header of a mutation, and its name if it has one; an absent header means all defaults.
///
/// # Errors
/// As [`header_of`], but for the operation id, which is checked, and for a session token, which is
/// refused: a mutation is judged by the newest state, and has seen all that its session has.
pub fn mutation_of(wire: Option<&v1::RequestHeader>) -> Result<(Header, Option<OpId>), Error> {
    let (header, op) = checked(wire)?;
    if header.session.is_some() {
        return Err(Error::bad_request(TOKEN, "goes with reads, and this request is a mutation"));
    }
    Ok((header, op))
}

/// The field of a session token.
const TOKEN: &str = "session_token";

fn checked(wire: Option<&v1::RequestHeader>) -> Result<(Header, Option<OpId>), Error> {
    let Some(wire) = wire else { return Ok((Header::default(), None)) };
    if wire.fence.is_some() {
        return Err(Error::refused(ErrorKind::Unimplemented));
    }
    let op = wire.op.as_ref().map(op_of).transpose()?;
    let cluster =
        if wire.cluster_id.is_empty() { None } else { Some(cluster_of(&wire.cluster_id)?) };
    if wire.namespace != 0 {
        return Err(Error::bad_request(
            "namespace",
            format!("only namespace 0 exists, got {}", wire.namespace),
        ));
    }
    if wire.priority > 1 {
        return Err(Error::bad_request(
            "priority",
            format!("the classes are 0 and 1, got {}", wire.priority),
        ));
    }
    let consistency = consistency_of(wire.consistency, wire.bound_us)?;
    let session = session_of(&wire.session_token, &consistency)?;
    let header = Header {
        cluster,
        namespace: NamespaceId(wire.namespace),
        table_version: TableVersion(wire.table_version),
        consistency,
        session,
        strict: wire.strict,
        yielding: wire.priority == 1,
        explain: wire.explain,
    };
    Ok((header, op))
}

/// What to ask for by whoever would accept no age at all.
const INSTEAD_OF_NO_AGE: &str =
    "the consistency `linearizable` sees everything acknowledged before";

fn consistency_of(wire: i32, bound_us: u64) -> Result<Consistency, ConvertError> {
    match v1::Consistency::try_from(wire) {
        Ok(v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Session) => Ok(Consistency::Session),
        Ok(v1::Consistency::Bounded) if bound_us == 0 => {
            let problem = format!("must be at least 1; {INSTEAD_OF_NO_AGE}");
            Err(ConvertError { field: "bound_us", problem })
        }
        Ok(v1::Consistency::Bounded) => Ok(Consistency::Bounded(Duration::from_micros(bound_us))),
        Ok(v1::Consistency::Any) => Ok(Consistency::Any),
        Err(_) => Err(ConvertError::meaningless("consistency", wire)),
    }
}

fn session_of(
    wire: &Bytes,
    consistency: &Consistency,
) -> Result<Option<SessionToken>, ConvertError> {
    if wire.is_empty() {
        return Ok(None);
    }
    if *consistency != Consistency::Session {
        let problem = "goes with the consistency `session` and no other".to_owned();
        return Err(ConvertError { field: TOKEN, problem });
    }
    match SessionToken::decode(wire) {
        Ok(token) => Ok(Some(token)),
        Err(bad) => Err(ConvertError { field: TOKEN, problem: bad.to_string() }),
    }
}
