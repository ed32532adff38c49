//! The only conversions between the wire and the domain types.
//!
//! Encoding cannot fail. Decoding checks what the domain types promise and names the field that
//! breaks the promise in a [`ConvertError`]; nothing is repaired silently. Whether a value is
//! *true* (a route, a redirect) is not checked here: routes decide nothing (H7).
//!
//! Exhaustive matches in both directions: a new variant on either side does not compile until it
//! is given a place here.

mod error;
mod receipt;
mod routes;
#[cfg(test)]
mod tests;

use std::time::Duration;

use annulus_types::{ClusterId, Consistency, Error, ErrorKind, NamespaceId, TableVersion};
use bytes::Bytes;

pub use error::{DETAIL_BYTES_MOST, error_of, status_of};
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
            session_token: Bytes::new(),
            strict: header.strict,
            fence: None,
            priority: u32::from(header.yielding),
            explain: header.explain,
        }
    }
}

/// Checks a request header; an absent one means all defaults.
///
/// # Errors
/// `BadRequest` with the field's name, or `Unimplemented` for operation ids, fences and session
/// tokens, which this version must not ignore: each of them promises something.
pub fn header_of(wire: Option<&v1::RequestHeader>) -> Result<Header, Error> {
    let Some(wire) = wire else { return Ok(Header::default()) };
    if wire.op.is_some() || wire.fence.is_some() || !wire.session_token.is_empty() {
        return Err(Error::refused(ErrorKind::Unimplemented));
    }
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
    Ok(Header {
        cluster,
        namespace: NamespaceId(wire.namespace),
        table_version: TableVersion(wire.table_version),
        consistency: consistency_of(wire.consistency, wire.bound_us)?,
        strict: wire.strict,
        yielding: wire.priority == 1,
        explain: wire.explain,
    })
}

fn consistency_of(wire: i32, bound_us: u64) -> Result<Consistency, ConvertError> {
    match v1::Consistency::try_from(wire) {
        Ok(v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Session) => Ok(Consistency::Session),
        Ok(v1::Consistency::Bounded) => Ok(Consistency::Bounded(Duration::from_micros(bound_us))),
        Ok(v1::Consistency::Any) => Ok(Consistency::Any),
        Err(_) => Err(ConvertError::meaningless("consistency", wire)),
    }
}
