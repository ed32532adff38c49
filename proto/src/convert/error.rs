//! Errors: `ErrorDetail` inside a gRPC status.
//!
//! The detail is the whole truth; code and message of the status are for tools that do not know
//! it. Eight codes are used, listed at `code_of`.
//!
//! Invariant (W4): what cannot be read is never a promise. A kind that this version does not know,
//! and a status without a detail (made by the transport or by something in between), decode to
//! [`MayHaveApplied::Unknown`]. Whoever knows better, because nothing left the process, says so
//! himself.

use annulus_types::{Error, ErrorKind, MayHaveApplied, NodeId, Revision, RoutingTable};
use prost::Message;
use tonic::{Code, Status};

use super::{cluster_bytes, cluster_of};
use crate::v1;
use crate::v1::error_detail::Kind;

/// A status travels in HTTP/2 header fields, which receivers limit to 16 KiB by default, and in
/// base64, a third longer than this. The routes of a detail that would be longer are left out: the
/// caller then fetches them.
pub const DETAIL_BYTES_MOST: usize = 8 * 1024;

impl From<MayHaveApplied> for v1::MayHaveApplied {
    fn from(applied: MayHaveApplied) -> Self {
        match applied {
            MayHaveApplied::No => Self::No,
            MayHaveApplied::Yes => Self::Yes,
            MayHaveApplied::Unknown => Self::Unknown,
        }
    }
}

fn applied_of(wire: i32) -> MayHaveApplied {
    match v1::MayHaveApplied::try_from(wire) {
        Ok(v1::MayHaveApplied::No) => MayHaveApplied::No,
        Ok(v1::MayHaveApplied::Yes) => MayHaveApplied::Yes,
        Ok(v1::MayHaveApplied::Unknown) | Err(_) => MayHaveApplied::Unknown,
    }
}

impl From<&Error> for v1::ErrorDetail {
    fn from(error: &Error) -> Self {
        Self {
            may_have_applied: v1::MayHaveApplied::from(error.may_have_applied).into(),
            retry_after_ms: error.retry_after_ms,
            kind: Some(Kind::from(&error.kind)),
        }
    }
}

impl From<v1::ErrorDetail> for Error {
    fn from(wire: v1::ErrorDetail) -> Self {
        let Some(kind) = wire.kind else {
            return unreadable("an error of a kind that is not known here");
        };
        Self {
            kind: ErrorKind::from(kind),
            may_have_applied: applied_of(wire.may_have_applied),
            retry_after_ms: wire.retry_after_ms,
        }
    }
}

impl From<&ErrorKind> for Kind {
    fn from(kind: &ErrorKind) -> Self {
        let plain = v1::Plain {};
        match kind {
            ErrorKind::NotLeader { leader } => {
                Self::NotLeader(v1::NotLeader { leader: leader.map(|node| node.0) })
            }
            ErrorKind::StaleRoute { routes } => Self::StaleRoute(v1::StaleRoute {
                routes: routes.as_deref().map(v1::RoutingTable::from),
            }),
            ErrorKind::Moving { to } => Self::Moving(v1::Moving { to: to.map(|node| node.0) }),
            ErrorKind::NoQuorum => Self::NoQuorum(plain),
            ErrorKind::OutcomeUnknown => Self::OutcomeUnknown(plain),
            ErrorKind::Overloaded => Self::Overloaded(plain),
            ErrorKind::TooStale { limit_us, actual_us } => {
                Self::TooStale(v1::TooStale { limit_us: *limit_us, actual_us: *actual_us })
            }
            ErrorKind::PreconditionFailed { current } => Self::PreconditionFailed(found(*current)),
            ErrorKind::Fenced { current } => Self::Fenced(found(*current)),
            ErrorKind::WriterExpired => Self::WriterExpired(plain),
            ErrorKind::OpIdReused => Self::OpIdReused(plain),
            ErrorKind::HistoryLost => Self::HistoryLost(plain),
            ErrorKind::Compacted { oldest } => Self::Compacted(v1::Compacted { oldest: oldest.0 }),
            ErrorKind::Lagged { resume } => Self::Lagged(v1::Lagged { resume: resume.clone() }),
            ErrorKind::NotReady { reason } => {
                Self::NotReady(v1::NotReady { reason: reason.clone() })
            }
            ErrorKind::ShardHalted { file, offset } => {
                Self::ShardHalted(v1::ShardHalted { file: file.clone(), offset: *offset })
            }
            ErrorKind::DiskFull => Self::DiskFull(plain),
            ErrorKind::BadRequest { field, message } => {
                Self::BadRequest(v1::BadRequest { field: field.clone(), message: message.clone() })
            }
            ErrorKind::WrongCluster { actual } => {
                Self::WrongCluster(v1::WrongCluster { actual: cluster_bytes(*actual) })
            }
            ErrorKind::UnsupportedVersion => Self::UnsupportedVersion(plain),
            ErrorKind::DeadlineExceeded { stage } => {
                Self::DeadlineExceeded(v1::DeadlineExceeded { stage: stage.clone() })
            }
            ErrorKind::Cancelled => Self::Cancelled(plain),
            ErrorKind::Unauthenticated => Self::Unauthenticated(plain),
            ErrorKind::Forbidden => Self::Forbidden(plain),
            ErrorKind::Unimplemented => Self::Unimplemented(plain),
            ErrorKind::Internal { id } => Self::Internal(v1::Internal { id: id.clone() }),
        }
    }
}

impl From<Kind> for ErrorKind {
    fn from(wire: Kind) -> Self {
        match wire {
            Kind::NotLeader(detail) => Self::NotLeader { leader: detail.leader.map(NodeId) },
            // Routes are a hint (H7); one that cannot be read is none.
            Kind::StaleRoute(detail) => Self::StaleRoute {
                routes: detail
                    .routes
                    .and_then(|table| RoutingTable::try_from(table).ok())
                    .map(Box::new),
            },
            Kind::Moving(detail) => Self::Moving { to: detail.to.map(NodeId) },
            Kind::NoQuorum(_) => Self::NoQuorum,
            Kind::OutcomeUnknown(_) => Self::OutcomeUnknown,
            Kind::Overloaded(_) => Self::Overloaded,
            Kind::TooStale(detail) => {
                Self::TooStale { limit_us: detail.limit_us, actual_us: detail.actual_us }
            }
            Kind::PreconditionFailed(detail) => {
                Self::PreconditionFailed { current: detail.revision.map(Revision) }
            }
            Kind::Fenced(detail) => Self::Fenced { current: detail.revision.map(Revision) },
            Kind::WriterExpired(_) => Self::WriterExpired,
            Kind::OpIdReused(_) => Self::OpIdReused,
            Kind::HistoryLost(_) => Self::HistoryLost,
            Kind::Compacted(detail) => Self::Compacted { oldest: Revision(detail.oldest) },
            Kind::Lagged(detail) => Self::Lagged { resume: detail.resume },
            Kind::NotReady(detail) => Self::NotReady { reason: detail.reason },
            Kind::ShardHalted(detail) => {
                Self::ShardHalted { file: detail.file, offset: detail.offset }
            }
            Kind::DiskFull(_) => Self::DiskFull,
            Kind::BadRequest(detail) => {
                Self::BadRequest { field: detail.field, message: detail.message }
            }
            // The id is for people; that the cluster is another one stays true without it.
            Kind::WrongCluster(detail) => {
                Self::WrongCluster { actual: cluster_of(&detail.actual).unwrap_or_default() }
            }
            Kind::UnsupportedVersion(_) => Self::UnsupportedVersion,
            Kind::DeadlineExceeded(detail) => Self::DeadlineExceeded { stage: detail.stage },
            Kind::Cancelled(_) => Self::Cancelled,
            Kind::Unauthenticated(_) => Self::Unauthenticated,
            Kind::Forbidden(_) => Self::Forbidden,
            Kind::Unimplemented(_) => Self::Unimplemented,
            Kind::Internal(detail) => Self::Internal { id: detail.id },
        }
    }
}

fn found(revision: Option<Revision>) -> v1::Current {
    v1::Current { revision: revision.map(|revision| revision.0) }
}

fn unreadable(what: &str) -> Error {
    Error::unknown(ErrorKind::Internal { id: what.to_owned() })
}

/// The gRPC code of a kind. What may have happened shares a code with deadlines and not with
/// unavailability, because tools repeat on the latter.
fn code_of(kind: &ErrorKind) -> Code {
    match kind {
        ErrorKind::NotLeader { .. }
        | ErrorKind::StaleRoute { .. }
        | ErrorKind::Moving { .. }
        | ErrorKind::NoQuorum
        | ErrorKind::NotReady { .. } => Code::Unavailable,
        ErrorKind::Overloaded | ErrorKind::DiskFull => Code::ResourceExhausted,
        ErrorKind::OutcomeUnknown | ErrorKind::DeadlineExceeded { .. } | ErrorKind::Cancelled => {
            Code::DeadlineExceeded
        }
        ErrorKind::PreconditionFailed { .. }
        | ErrorKind::Fenced { .. }
        | ErrorKind::TooStale { .. }
        | ErrorKind::WriterExpired
        | ErrorKind::OpIdReused
        | ErrorKind::HistoryLost
        | ErrorKind::Compacted { .. }
        | ErrorKind::Lagged { .. }
        | ErrorKind::WrongCluster { .. } => Code::FailedPrecondition,
        ErrorKind::BadRequest { .. } => Code::InvalidArgument,
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => Code::PermissionDenied,
        ErrorKind::Unimplemented | ErrorKind::UnsupportedVersion => Code::Unimplemented,
        ErrorKind::ShardHalted { .. } | ErrorKind::Internal { .. } => Code::Internal,
    }
}

/// The status that carries `error`.
#[must_use]
pub fn status_of(error: &Error) -> Status {
    let mut detail = v1::ErrorDetail::from(error);
    if detail.encoded_len() > DETAIL_BYTES_MOST
        && let Some(Kind::StaleRoute(stale)) = &mut detail.kind
    {
        stale.routes = None;
    }
    Status::with_details(code_of(&error.kind), error.to_string(), detail.encode_to_vec().into())
}

/// The error that a status carries. A status without details comes from the transport, not from a
/// node of ours: nothing is known then.
#[must_use]
pub fn error_of(status: &Status) -> Error {
    if !status.details().is_empty() {
        return match v1::ErrorDetail::decode(status.details()) {
            Ok(detail) => detail.into(),
            Err(_) => unreadable("an error detail that cannot be read"),
        };
    }
    Error::unknown(match status.code() {
        Code::DeadlineExceeded => {
            ErrorKind::DeadlineExceeded { stage: "waiting for the node".to_owned() }
        }
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::Forbidden,
        _ => ErrorKind::OutcomeUnknown,
    })
}
