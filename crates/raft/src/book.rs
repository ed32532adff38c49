//! The address book: where nodes listen. Addresses are not in Raft; a node may come back on another.
//!
//! What a node told of itself in this run (a ping, a hello, an answer to Describe) beats the
//! manager's table, which is also what the copy on disk holds. A wrong address costs a dropped link:
//! the hello names the node at the other end.

use std::collections::BTreeMap;

use annulus_types::{NodeId, NodeInfo};
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Page {
    told: Option<NodeInfo>,
    table: Option<NodeInfo>,
}

/// Shared by the links of one node.
#[derive(Debug, Default)]
pub struct AddressBook(Mutex<BTreeMap<NodeId, Page>>);

impl AddressBook {
    /// A node told this of itself.
    pub fn told(&self, info: NodeInfo) {
        let id = info.id;
        self.0.lock().entry(id).or_default().told = Some(info);
    }

    /// The routing table says this.
    pub fn from_table(&self, nodes: &[NodeInfo]) {
        let mut book = self.0.lock();
        for info in nodes {
            book.entry(info.id).or_default().table = Some(info.clone());
        }
    }

    /// What is believed of `node`.
    #[must_use]
    pub fn find(&self, node: NodeId) -> Option<NodeInfo> {
        let book = self.0.lock();
        let page = book.get(&node)?;
        page.told.clone().or_else(|| page.table.clone())
    }

    /// Every node known, by id.
    #[must_use]
    pub fn all(&self) -> Vec<NodeInfo> {
        let book = self.0.lock();
        book.values().filter_map(|page| page.told.clone().or_else(|| page.table.clone())).collect()
    }
}
