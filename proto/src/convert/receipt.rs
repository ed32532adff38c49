//! Receipts. Mode, role and the voucher must be given: a receipt that leaves them out vouches for
//! nothing and is refused.

use annulus_types::{
    Epoch, Mode, NodeId, Receipt, ReplicaId, Revision, Role, ServedBy, ShardId, TableVersion,
};

use super::ConvertError;
use crate::v1;

impl From<Mode> for v1::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Write => Self::Write,
            Mode::Linearizable => Self::Linearizable,
            Mode::Session => Self::Session,
            Mode::Bounded => Self::Bounded,
            Mode::Any => Self::Any,
        }
    }
}

/// Reads a mode.
///
/// # Errors
/// When none is given or the value is unknown.
pub fn mode_of(wire: i32) -> Result<Mode, ConvertError> {
    match v1::Mode::try_from(wire) {
        Ok(v1::Mode::Write) => Ok(Mode::Write),
        Ok(v1::Mode::Linearizable) => Ok(Mode::Linearizable),
        Ok(v1::Mode::Session) => Ok(Mode::Session),
        Ok(v1::Mode::Bounded) => Ok(Mode::Bounded),
        Ok(v1::Mode::Any) => Ok(Mode::Any),
        Ok(v1::Mode::Unspecified) | Err(_) => Err(ConvertError::meaningless("mode", wire)),
    }
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Leader => Self::Leader,
            Role::Follower => Self::Follower,
            Role::Learner => Self::Learner,
        }
    }
}

/// Reads a role.
///
/// # Errors
/// When none is given or the value is unknown.
pub fn role_of(wire: i32) -> Result<Role, ConvertError> {
    match v1::Role::try_from(wire) {
        Ok(v1::Role::Leader) => Ok(Role::Leader),
        Ok(v1::Role::Follower) => Ok(Role::Follower),
        Ok(v1::Role::Learner) => Ok(Role::Learner),
        Ok(v1::Role::Unspecified) | Err(_) => Err(ConvertError::meaningless("role", wire)),
    }
}

impl From<ServedBy> for v1::ServedBy {
    fn from(served_by: ServedBy) -> Self {
        match served_by {
            ServedBy::Lease => Self::Lease,
            ServedBy::ReadIndex => Self::ReadIndex,
            ServedBy::Local => Self::Local,
            ServedBy::Log => Self::Log,
        }
    }
}

/// Reads what vouched for an answer.
///
/// # Errors
/// When nothing is given or the value is unknown.
pub fn served_by_of(wire: i32) -> Result<ServedBy, ConvertError> {
    match v1::ServedBy::try_from(wire) {
        Ok(v1::ServedBy::Lease) => Ok(ServedBy::Lease),
        Ok(v1::ServedBy::ReadIndex) => Ok(ServedBy::ReadIndex),
        Ok(v1::ServedBy::Local) => Ok(ServedBy::Local),
        Ok(v1::ServedBy::Log) => Ok(ServedBy::Log),
        Ok(v1::ServedBy::Unspecified) | Err(_) => Err(ConvertError::meaningless("served_by", wire)),
    }
}

impl From<&Receipt> for v1::Receipt {
    fn from(receipt: &Receipt) -> Self {
        Self {
            mode: v1::Mode::from(receipt.mode).into(),
            shard: receipt.shard.0,
            epoch: receipt.epoch.0,
            node: receipt.node.0,
            replica: receipt.replica.0,
            role: v1::Role::from(receipt.role).into(),
            served_by: v1::ServedBy::from(receipt.served_by).into(),
            term: receipt.term,
            revision: receipt.revision.0,
            staleness_bound_us: receipt.staleness_bound_us,
            shard_time_ms: receipt.shard_time_ms,
            table_version: receipt.table_version.0,
        }
    }
}

impl TryFrom<v1::Receipt> for Receipt {
    type Error = ConvertError;

    fn try_from(wire: v1::Receipt) -> Result<Self, ConvertError> {
        Ok(Self {
            mode: mode_of(wire.mode)?,
            shard: ShardId(wire.shard),
            epoch: Epoch(wire.epoch),
            node: NodeId(wire.node),
            replica: ReplicaId(wire.replica),
            role: role_of(wire.role)?,
            served_by: served_by_of(wire.served_by)?,
            term: wire.term,
            revision: Revision(wire.revision),
            staleness_bound_us: wire.staleness_bound_us,
            shard_time_ms: wire.shard_time_ms,
            table_version: TableVersion(wire.table_version),
        })
    }
}
