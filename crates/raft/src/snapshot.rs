//! Why there is no snapshot yet: no log is ever purged, so a replica that is behind, or new, is
//! brought up from the log alone (H2, E1), and openraft sends a snapshot only after a purge.
//!
//! One log may begin late all the same: one that the engine has overtaken (L7). For it openraft wants
//! to know what stands in the place of the missing entries, and gets the description of a snapshot
//! without content. It can be neither sent nor installed: a follower that needs the missing entries
//! hears nothing from this leader until another leads or its seat is replaced.

use std::io;

use openraft::storage::{RaftSnapshotBuilder, Snapshot};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};

use crate::types::TypeConfig;

/// The content of a snapshot: none, until logs are purged.
#[derive(Clone, Copy, Debug)]
pub struct NoSnapshot;

/// Describes the state machine as it was when the builder was made.
#[derive(Clone, Debug)]
pub struct NoSnapshotBuilder {
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
}

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshotBuilder {
    type SnapshotData = NoSnapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, NoSnapshot>, io::Error> {
        Ok(Snapshot { meta: self.meta.clone(), snapshot: NoSnapshot })
    }
}
