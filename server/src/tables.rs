//! The routing table as this node knows it: pushed by the manager, kept on disk, shown to clients.
//!
//! ```text
//! file `routes`   version u8 = 1 | crc32 of the rest u32 | RoutingTable (protobuf)
//! ```
//!
//! Invariants: a table replaces an older version only, and is durable before [`Tables::install`]
//! returns. A newer table takes nothing back that is known better (H7): of a shard the route with the
//! higher epoch stays, of a group the one with the higher membership index, then term. That matters when
//! a manager has lost its memory: what groups and shards have told since is then newer than its table.
//!
//! Failure: a file that does not read is ignored with a warning. The manager pushes again, and routes
//! decide nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_proto::v1;
use annulus_raft::{Group, Host};
use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{Disk, Env};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{GroupRoute, MemberRole, MemberRoute, NodeId, RoutingTable, TableVersion};
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

    /// Keeps `table`, with what is known better, if it is newer than the one held. Waits on the disk.
    ///
    /// # Errors
    /// When it cannot be stored; the old one is then still held.
    pub fn install(&self, table: RoutingTable) -> io::Result<()> {
        let held = self.current();
        let table = match held {
            Some(held) if table.version <= held.version => return Ok(()),
            Some(held) => merged(&held, table),
            None => table,
        };
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
            if let Some(group) = host.group(route.id) {
                annotate(route, told_by(&group));
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

/// The new table, with the routes of the held one that are newer (H7).
fn merged(held: &RoutingTable, mut table: RoutingTable) -> RoutingTable {
    for shard in &mut table.shards {
        // Of the same slices, or they say nothing about each other.
        let known = held.shards.get(shard.slice as usize).filter(|known| known.id == shard.id);
        if let Some(known) = known.filter(|it| it.slice == shard.slice && it.epoch > shard.epoch) {
            *shard = known.clone();
        }
    }
    for route in &mut table.groups {
        let told = (route.membership_index, route.term);
        let known = held.group(route.id);
        if let Some(known) = known.filter(|it| (it.membership_index, it.term) > told) {
            route.members.clone_from(&known.members);
            route.membership_index = known.membership_index;
            route.leader = known.leader;
            route.term = known.term;
        }
    }
    table
}

/// What a replica says of its group.
struct Told {
    leader: Option<NodeId>,
    term: u64,
    membership_index: u64,
    members: Vec<MemberRoute>,
}

fn told_by(group: &Group) -> Told {
    let status = group.status();
    let role = |voter| if voter { MemberRole::Voter } else { MemberRole::Learner };
    let members = status.members.iter().map(|member| MemberRoute {
        node: member.node,
        replica: member.replica,
        role: role(member.voter),
    });
    Told {
        leader: status.leader,
        term: status.term,
        membership_index: status.membership_index,
        members: members.collect(),
    }
}

/// Adds what a replica knows beyond the table. One that is behind the table adds nothing (H7).
fn annotate(route: &mut GroupRoute, told: Told) {
    if (told.membership_index, told.term) < (route.membership_index, route.term) {
        return;
    }
    route.leader = told.leader;
    route.term = told.term;
    if told.membership_index == route.membership_index || told.members.is_empty() {
        return;
    }
    route.membership_index = told.membership_index;
    let home = route.home;
    route.members = told.members;
    route.members.sort_by_key(|member| (member.node != home, member.node, member.replica));
}

fn decode(bytes: &[u8]) -> Option<RoutingTable> {
    let (head, body) = bytes.split_at_checked(5)?;
    let crc = u32::from_be_bytes(head.get(1..5)?.try_into().ok()?);
    if head.first() != Some(&VERSION) || crc32fast::hash(body) != crc {
        return None;
    }
    v1::RoutingTable::decode(body).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use annulus_types::{Epoch, GroupId, ReplicaId, ShardId, ShardRoute};

    use super::*;

    fn member(node: u32) -> MemberRoute {
        let replica = ReplicaId(u64::from(100 + node));
        MemberRoute { node: NodeId(node), replica, role: MemberRole::Voter }
    }

    fn route(nodes: &[u32], membership_index: u64, term: u64) -> GroupRoute {
        GroupRoute {
            id: GroupId(7),
            home: NodeId(1),
            lane: 0,
            members: nodes.iter().map(|node| member(*node)).collect(),
            leader: None,
            term,
            membership_index,
        }
    }

    fn table(version: u64, group: GroupRoute, epoch: u64, hosted_by: u64) -> RoutingTable {
        let shard = ShardRoute {
            id: ShardId(0),
            slice: 0,
            parent: None,
            epoch: Epoch(epoch),
            group: GroupId(hosted_by),
        };
        let (shards, groups) = (vec![shard], vec![group]);
        RoutingTable { version: TableVersion(version), shards, groups, ..RoutingTable::default() }
    }

    fn nodes(route: &GroupRoute) -> Vec<u32> {
        route.members.iter().map(|member| member.node.0).collect()
    }

    #[test]
    fn a_newer_table_keeps_the_routes_that_are_known_better() {
        let held = table(5, route(&[1, 2, 4], 40, 0), 3, 8);
        // Of a manager that was set back: its table counts higher and knows less.
        let back = merged(&held, table(9, route(&[1, 2, 3], 12, 0), 2, 7));
        assert_eq!(back.version, TableVersion(9));
        assert_eq!((nodes(&back.groups[0]), back.groups[0].membership_index), (vec![1, 2, 4], 40));
        assert_eq!((back.shards[0].epoch, back.shards[0].group), (Epoch(3), GroupId(8)));
        let on = merged(&held, table(6, route(&[1, 3, 4], 41, 0), 4, 9));
        assert_eq!((nodes(&on.groups[0]), on.shards[0].group), (vec![1, 3, 4], GroupId(9)));
        // Of one age: the newer table's.
        let same = merged(&held, table(6, route(&[1, 2], 40, 0), 3, 7));
        assert_eq!((nodes(&same.groups[0]), same.shards[0].group), (vec![1, 2], GroupId(7)));
    }

    fn told(nodes: &[u32], membership_index: u64) -> Told {
        let mut members: Vec<MemberRoute> = nodes.iter().map(|node| member(*node)).collect();
        for member in members.iter_mut().filter(|member| member.node == NodeId(9)) {
            member.role = MemberRole::Learner;
        }
        Told { leader: Some(NodeId(2)), term: 3, membership_index, members }
    }

    #[test]
    fn a_replica_adds_what_it_knows_unless_it_is_behind_the_table() {
        let mut same = route(&[1, 2, 3], 12, 0);
        annotate(&mut same, told(&[1, 2, 3], 12));
        assert_eq!((same.leader, same.term, nodes(&same)), (Some(NodeId(2)), 3, vec![1, 2, 3]));
        let mut ahead = route(&[1, 2, 3], 12, 0);
        annotate(&mut ahead, told(&[9, 3, 1], 13));
        assert_eq!((ahead.membership_index, nodes(&ahead)), (13, vec![1, 3, 9]));
        assert_eq!(ahead.members[2].role, MemberRole::Learner);
        let mut behind = route(&[1, 2, 4], 40, 0);
        annotate(&mut behind, told(&[1, 2, 3], 12));
        assert_eq!(behind, route(&[1, 2, 4], 40, 0));
    }
}
