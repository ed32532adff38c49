//! Why there is no snapshot yet: no log is ever purged, so a replica that is behind, or new, is
//! brought up from the log alone (H2, E1), and openraft asks for a snapshot only after a purge.
//!
//! [`NoSnapshot`] has no value: code that would send or install one cannot be written by mistake.

use std::io;

use openraft::storage::RaftSnapshotBuilder;
use openraft::type_config::alias::SnapshotOf;

use crate::types::TypeConfig;

/// The content of a snapshot: impossible until logs are purged.
#[derive(Clone, Copy, Debug)]
pub enum NoSnapshot {}

/// Refuses to build.
#[derive(Clone, Copy, Debug)]
pub struct NoSnapshotBuilder;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshotBuilder {
    type SnapshotData = NoSnapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, NoSnapshot>, io::Error> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "no log is purged, so none is needed"))
    }
}
