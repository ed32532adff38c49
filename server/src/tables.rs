//! The routing table as this node knows it: pushed by the manager, kept on disk, shown to clients.
//!
//! ```text
//! file `routes`   version u8 = 1 | crc32 of the rest u32 | RoutingTable (protobuf)
//! ```
//!
//! Invariant: a table replaces an older version only, and is durable before [`Tables::install`]
//! returns. A file that does not read is ignored with a warning: the manager pushes again, and
//! routes decide nothing (H7).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_proto::v1;
use annulus_raft::Host;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{Disk, Env};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{MemberRole, MemberRoute, RoutingTable, TableVersion};
use prost::Message as _;
use tokio::sync::watch;

const FILE: &str = "routes";
const VERSION: u8 = 1;

/// See the module.
pub struct Tables {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    current: watch::Sender<Option<Arc<RoutingTable>>>,
}

impl Tables {
    /// Reads the copy on disk, if there is one.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(env: &Env, dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut table = None;
        if env.disk.exists(&path)? {
            let bytes = read_file(env.disk.as_ref(), &path, DECODE_BYTES as u64)?;
            table = decode(&bytes);
            if table.is_none() {
                tracing::warn!(file = %path.display(), "the stored routing table does not read");
            }
        }
        Ok(Self {
            disk: Arc::clone(&env.disk),
            dir: dir.to_owned(),
            current: watch::Sender::new(table.map(Arc::new)),
        })
    }

    /// The newest table; `None` before the first.
    #[must_use]
    pub fn current(&self) -> Option<Arc<RoutingTable>> {
        self.current.borrow().clone()
    }

    /// Its version; 0 before the first.
    #[must_use]
    pub fn version(&self) -> TableVersion {
        self.current.borrow().as_ref().map_or(TableVersion(0), |table| table.version)
    }

    /// Changes of the table.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<RoutingTable>>> {
        self.current.subscribe()
    }

    /// Keeps `table` if it is newer than the one held. Waits on the disk.
    ///
    /// # Errors
    /// When it cannot be stored; the old one is then still held.
    pub fn install(&self, table: RoutingTable) -> io::Result<()> {
        if table.version <= self.version() {
            return Ok(());
        }
        let body = v1::RoutingTable::from(&table).encode_to_vec();
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
        bytes.extend_from_slice(&body);
        replace_file(self.disk.as_ref(), &self.dir, FILE, &bytes)?;
        self.current.send_if_modified(|current| {
            let newer = current.as_ref().is_none_or(|held| held.version < table.version);
            if newer {
                *current = Some(Arc::new(table));
            }
            newer
        });
        Ok(())
    }

    /// The table with what this node's groups and address book know beyond it: leaders, terms,
    /// memberships, addresses.
    #[must_use]
    pub fn annotated(&self, host: &Host) -> Option<RoutingTable> {
        let mut table = RoutingTable::clone(self.current()?.as_ref());
        for route in &mut table.groups {
            let Some(group) = host.group(route.id) else { continue };
            let status = group.status();
            route.leader = status.leader;
            route.term = status.term;
            if status.membership_index > route.membership_index && !status.members.is_empty() {
                route.membership_index = status.membership_index;
                let home = route.home;
                let mut members: Vec<MemberRoute> = status
                    .members
                    .iter()
                    .map(|member| MemberRoute {
                        node: member.node,
                        replica: member.replica,
                        role: if member.voter { MemberRole::Voter } else { MemberRole::Learner },
                    })
                    .collect();
                members.sort_by_key(|member| (member.node != home, member.node));
                route.members = members;
            }
        }
        for node in &mut table.nodes {
            if let Some(told) = host.book().find(node.id) {
                *node = told;
            }
        }
        Some(table)
    }
}

fn decode(bytes: &[u8]) -> Option<RoutingTable> {
    let (head, body) = bytes.split_at_checked(5)?;
    let crc = u32::from_be_bytes(head.get(1..5)?.try_into().ok()?);
    if head.first() != Some(&VERSION) || crc32fast::hash(body) != crc {
        return None;
    }
    v1::RoutingTable::decode(body).ok()?.try_into().ok()
}
