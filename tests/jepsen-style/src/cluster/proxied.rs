//! Clusters whose nodes reach each other through a proxy: see [`crate::proxy`].
//!
//! Every node listens for peers on its own port and advertises the proxy's; join lists have the proxy's
//! addresses too, so that nobody is told the others. Only what peers say to each other goes through the
//! proxy. Clients, and nodes that pass an operator's question on, use the client ports, which nothing cuts:
//! a node that is cut off is still asked, which is what a stale answer needs.
//!
//! Invariant: a cut is believed only while no node has a connection to another one's true port
//! ([`Cluster::ensure_no_bypass`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use annulus_runtime::Env;
use anyhow::{Context, Result, ensure};

use super::{Cluster, Layout};
use crate::proxy::{Identify, Proxy};

impl Cluster {
    /// As [`Cluster::start`], with a proxy between the nodes.
    ///
    /// # Errors
    /// As [`Cluster::start`]; when an address of the proxy cannot be listened on.
    pub async fn start_proxied(program: &Path, nodes: u16, name: &str) -> Result<Self> {
        let layout = Layout { nodes, proxied: true, ..Layout::default() };
        Self::start_as(program, name, &layout).await
    }

    /// The proxy between the nodes, if they have one.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// As [`Cluster::add_node`], for a cluster with or without proxy.
    ///
    /// # Errors
    /// When no ports are free, or it does not start.
    pub async fn add_proxied_node(&mut self) -> Result<u16> {
        let node = self.make_room()?;
        if self.proxy.is_some() {
            self.open_proxy(node).await?;
        }
        self.start_node(node)?;
        Ok(node)
    }

    /// Proves that the nodes reach each other through the proxy only.
    ///
    /// # Errors
    /// When one has a connection past it, or the kernel does not tell.
    pub fn ensure_no_bypass(&self) -> Result<()> {
        for node in self.nodes() {
            let addr: SocketAddr = self.peer(node).parse()?;
            let others = self.owners.connected_to(addr).context("reading /proc/net/tcp")?;
            ensure!(others.is_empty(), "nodes {others:?} reach node {node} past the proxy");
        }
        Ok(())
    }

    /// Makes the proxy, with a place for each node.
    pub(super) async fn begin_proxy(&mut self) -> Result<()> {
        let owners = self.owners.clone();
        let identify: Identify =
            Arc::new(move |caller: SocketAddr, at: SocketAddr| owners.of(caller, at));
        self.proxy = Some(Proxy::new(Env::real()?, identify));
        for node in self.nodes() {
            self.open_proxy(node).await?;
        }
        Ok(())
    }

    async fn open_proxy(&self, node: u16) -> Result<()> {
        let proxy = self.proxy.as_ref().context("the cluster has no proxy")?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, self.proxy_port(node)));
        let added = proxy.add(node, listen, self.peer(node)).await;
        added.with_context(|| format!("the proxy cannot listen on {listen}"))?;
        Ok(())
    }

    /// The peer address of a node as others are told it.
    pub(super) fn told_peer(&self, node: u16) -> String {
        match self.proxy {
            Some(_) => format!("{}:{}", Ipv4Addr::LOCALHOST, self.proxy_port(node)),
            None => self.peer(node),
        }
    }

    fn proxy_port(&self, node: u16) -> u16 {
        let (block, at) = self.block(node);
        block.proxy(at)
    }
}
