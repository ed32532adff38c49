//! The links of one node, one per other node, made when a node is first needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::{BootTime, Env};
use annulus_types::NodeId;
use annulus_wal::Wal;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::book::AddressBook;
use crate::connect;
use crate::frames::{Lane, Sender};
use crate::link::{Link, LinkError, Route};
use crate::lives::Lives;
use crate::options::Options;

/// All peer links of a node.
pub(crate) struct Links {
    env: Env,
    options: Arc<Options>,
    book: Arc<AddressBook>,
    wal: Wal,
    lives: Arc<Lives>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
}

impl Links {
    pub(crate) fn new(
        env: Env,
        options: Arc<Options>,
        book: Arc<AddressBook>,
        wal: Wal,
        lives: Arc<Lives>,
    ) -> Self {
        Self { env, options, book, wal, lives, links: Mutex::new(BTreeMap::new()) }
    }

    /// The link to `node`, started now if it is new; `None` for this node itself and while the node
    /// stops.
    pub(crate) fn find(&self, node: NodeId) -> Option<Arc<Link>> {
        if node == self.options.info.id || self.env.tasks.is_stopping() {
            return None;
        }
        let mut links = self.links.lock();
        let link = links.entry(node).or_insert_with(|| {
            let (options, book) = (Arc::clone(&self.options), Arc::clone(&self.book));
            Link::spawn(node, &self.env, options, book, self.wal.clone(), Arc::clone(&self.lives))
        });
        Some(Arc::clone(link))
    }

    /// Asks a replica on `node` and waits for its answer, or for the link to break. Dropping the future
    /// gives up the answer.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        route: Route,
        question: Body,
    ) -> Result<Body, LinkError> {
        let link = self.find(node).ok_or(LinkError::Down)?;
        let (answered, answer) = oneshot::channel();
        // Who asked may have given up.
        let on_reply = Box::new(move |reply| drop(answered.send(reply)));
        link.call(route, Lane::Control, question, on_reply);
        answer.await.unwrap_or(Err(LinkError::Down))
    }

    /// A connection of its own to `node`, for what would hold up its link. Dropping the future gives
    /// up.
    pub(crate) async fn dial(&self, node: NodeId) -> Option<Channel> {
        let info = self.book.find(node)?;
        let connecting = connect::channel(&self.env, &info.peer_addr);
        tokio::time::timeout(self.options.connect_timeout, connecting).await.ok()?.ok()
    }

    /// What this node tells of itself and its log.
    pub(crate) fn about(&self) -> v1::Ping {
        self.options.about(&self.wal)
    }

    /// Who this node is, for what it sends.
    pub(crate) fn sender(&self) -> Sender {
        self.options.sender()
    }

    /// Whether `node` may be gone. A node without a link is not suspected: nobody asked it yet.
    pub(crate) fn is_suspected(&self, node: NodeId, now: BootTime) -> bool {
        let link = self.links.lock().get(&node).cloned();
        link.is_some_and(|link| link.is_suspected(now))
    }

    /// Whether the link to `node` is up.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.links.lock().get(&node).is_some_and(|link| link.is_up())
    }

    /// The nodes whose links are up.
    pub(crate) fn up(&self) -> std::collections::BTreeSet<NodeId> {
        let links = self.links.lock();
        links.iter().filter(|(_, link)| link.is_up()).map(|(node, _)| *node).collect()
    }
}
