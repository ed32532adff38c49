//! A cluster of real processes under test: started, hurt and restarted through guards.
//!
//! Node *k* keeps its folder for the life of the [`Cluster`], unless it is exchanged while the node is
//! down ([`Cluster::put_aside`]); its ports may change between two of its lives, all nodes' together
//! ([`Cluster::move_ports`]). Nodes may be added ([`Cluster::add_node`]),
//! and the connections between them led through a proxy (`cluster/proxied.rs`).
//! Dropping the cluster ends every process; its folder goes too, unless the thread panics or
//! [`Cluster::keep`] was called.

mod proxied;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use annulus_client::Client;
use annulus_runtime::{Disk as _, RealDisk};
use anyhow::{Context, Result, ensure};

use crate::owners::Owners;
use crate::process::{PortBlock, Process, WorkDir, wait_until};
use crate::proxy::Proxy;

/// How long a fresh or restarted cluster gets until every group answers.
pub const READY: Duration = Duration::from_secs(60);
/// How long a node gets to stop by itself.
const STOP: Duration = Duration::from_secs(15);

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Nodes at first.
    pub nodes: u16,
    /// The engine of all of them.
    pub engine: String,
    /// Groups per node; 0 stands for the default.
    pub lanes: u32,
    /// Further flags of every node.
    pub flags: Vec<String>,
    /// What each node is for, node 1 first, as `annulus start --roles` takes it; of those beyond the
    /// list the default.
    pub roles: Vec<String>,
    /// Whether nodes reach each other through a proxy ([`Cluster::proxy`]).
    pub proxied: bool,
}

impl Default for Layout {
    fn default() -> Self {
        let engine = "fjall".to_owned();
        Self { nodes: 3, engine, lanes: 0, flags: Vec::new(), roles: Vec::new(), proxied: false }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    nodes: u16,
    layout: Layout,
    /// Of the nodes that were there when it was made.
    ports: PortBlock,
    /// Of those that were added since, one block for each.
    added: Vec<PortBlock>,
    running: Vec<Option<Process>>,
    owners: Owners,
    /// Between the nodes, if they have one.
    proxy: Option<Proxy>,
    // Last: processes end before their folder goes.
    folder: WorkDir,
}

impl Cluster {
    /// Starts `nodes` processes of the binary `program` and creates the cluster with them.
    ///
    /// # Errors
    /// When a process does not start, or the cluster is not ready in time.
    pub async fn start(program: &Path, nodes: u16, name: &str) -> Result<Self> {
        Self::start_as(program, name, &Layout { nodes, ..Layout::default() }).await
    }

    /// As [`Cluster::start`], with another number of groups per node.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_in_lanes(
        program: &Path,
        nodes: u16,
        name: &str,
        lanes: u32,
    ) -> Result<Self> {
        Self::start_as(program, name, &Layout { nodes, lanes, ..Layout::default() }).await
    }

    /// As [`Cluster::start`], in another layout.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_as(program: &Path, name: &str, layout: &Layout) -> Result<Self> {
        let nodes = layout.nodes;
        let mut cluster = Self {
            program: program.to_owned(),
            nodes,
            layout: layout.clone(),
            ports: PortBlock::reserve(nodes)?,
            added: Vec::new(),
            running: (0..nodes).map(|_| None).collect(),
            owners: Owners::default(),
            proxy: None,
            folder: WorkDir::new(name)?,
        };
        if layout.proxied {
            cluster.begin_proxy().await?;
        }
        for node in 1..=nodes {
            cluster.start_node(node)?;
        }
        let client = cluster.client().await?;
        let born = wait_until("the cluster is created", READY, || async {
            client.init(0, layout.lanes, 0).await.is_ok()
        });
        cluster.judge(born.await)?;
        let ready = cluster.wait_ready().await;
        cluster.judge(ready)?;
        Ok(cluster)
    }

    /// Keeps the folder when a step of the start fails: its logs say why.
    fn judge(&mut self, step: Result<()>) -> Result<()> {
        if step.is_err() {
            self.keep();
        }
        step
    }

    /// The nodes, from 1.
    #[must_use]
    pub fn nodes(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.nodes
    }

    /// Keeps the folder with data and logs.
    pub fn keep(&mut self) {
        self.folder.keep();
    }

    /// The folder of the whole cluster.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The data folder of a node.
    #[must_use]
    pub fn data_dir(&self, node: u16) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    /// The block with the ports of a node, and its number in it.
    fn block(&self, node: u16) -> (&PortBlock, u16) {
        let added = node.checked_sub(self.ports.nodes() + 1).map(usize::from);
        match added.and_then(|added| self.added.get(added)) {
            Some(block) => (block, 1),
            None => (&self.ports, node),
        }
    }

    /// The client address of a node.
    #[must_use]
    pub fn endpoint(&self, node: u16) -> String {
        let (block, at) = self.block(node);
        format!("127.0.0.1:{}", block.client(at))
    }

    /// The HTTP address of a node.
    #[must_use]
    pub fn http(&self, node: u16) -> String {
        let (block, at) = self.block(node);
        format!("127.0.0.1:{}", block.http(at))
    }

    fn peer(&self, node: u16) -> String {
        let (block, at) = self.block(node);
        format!("127.0.0.1:{}", block.peer(at))
    }

    /// The client addresses of all nodes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes().map(|node| self.endpoint(node)).collect()
    }

    /// The process id of a running node.
    #[must_use]
    pub fn process_id(&self, node: u16) -> Option<u32> {
        self.running.get(usize::from(node) - 1)?.as_ref().map(Process::id)
    }

    /// A client that knows every node's address.
    ///
    /// # Errors
    /// When the client does not start.
    pub async fn client(&self) -> Result<Client> {
        let connecting = Client::builder().endpoints(self.endpoints()).connect();
        // A node that is down is not an error: the client needs one that answers.
        let deadline = tokio::time::Instant::now() + READY;
        let mut last = connecting.await;
        while let Err(error) = &last {
            ensure!(tokio::time::Instant::now() < deadline, "no node answers: {error}");
            last = Client::builder().endpoints(self.endpoints()).connect().await;
        }
        last.context("connecting")
    }

    fn slot(&mut self, node: u16) -> Result<&mut Option<Process>> {
        self.running
            .get_mut(usize::from(node).wrapping_sub(1))
            .with_context(|| format!("there is no node {node}"))
    }

    /// Starts a node that does not run.
    ///
    /// # Errors
    /// When it runs, or does not start.
    pub fn start_node(&mut self, node: u16) -> Result<()> {
        let join: Vec<String> = self.nodes().map(|node| self.told_peer(node)).collect();
        let mut args = vec![
            "start".to_owned(),
            "--node-id".to_owned(),
            node.to_string(),
            "--data-dir".to_owned(),
            self.data_dir(node).display().to_string(),
            "--listen".to_owned(),
            self.endpoint(node),
            "--peer-listen".to_owned(),
            self.peer(node),
            "--http-listen".to_owned(),
            self.http(node),
            "--join".to_owned(),
            join.join(","),
            "--engine".to_owned(),
            self.layout.engine.clone(),
        ];
        args.extend(self.layout.flags.iter().cloned());
        if let Some(roles) = self.layout.roles.get(usize::from(node).wrapping_sub(1)) {
            args.extend(["--roles".to_owned(), roles.clone()]);
        }
        if self.proxy.is_some() {
            args.extend(["--peer-advertise".to_owned(), self.told_peer(node)]);
        }
        let (program, logs) = (self.program.clone(), self.folder.path().to_owned());
        let slot = self.slot(node)?;
        ensure!(slot.is_none(), "node {node} runs already");
        let process = Process::spawn(&format!("node-{node}"), &program, args, &logs)?;
        let id = process.id();
        *slot = Some(process);
        self.owners.set(node, id);
        Ok(())
    }

    /// Starts a node that is new, with an empty folder and the addresses of the others; returns its
    /// number. Whether and when the cluster lets it in is not waited for.
    ///
    /// # Errors
    /// When no ports are free, it does not start, or the nodes have a proxy between them
    /// ([`Cluster::add_proxied_node`]).
    pub fn add_node(&mut self) -> Result<u16> {
        ensure!(self.proxy.is_none(), "a node of this cluster needs its place at the proxy first");
        let node = self.make_room()?;
        self.start_node(node)?;
        Ok(node)
    }

    /// Ports and a number for one more node.
    fn make_room(&mut self) -> Result<u16> {
        self.added.push(PortBlock::reserve(1)?);
        self.running.push(None);
        self.nodes += 1;
        Ok(self.nodes)
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, node: u16) -> Result<()> {
        let mut process =
            self.slot(node)?.take().with_context(|| format!("node {node} does not run"))?;
        process.kill9()?;
        Ok(())
    }

    /// Kills every running node with SIGKILL, all before the first is waited for.
    ///
    /// # Errors
    /// When one cannot be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        for process in self.running.iter_mut().flatten() {
            process.send_kill()?;
        }
        for slot in &mut self.running {
            if let Some(mut process) = slot.take() {
                process.kill9()?;
            }
        }
        Ok(())
    }

    /// Stops a node with SIGTERM.
    ///
    /// # Errors
    /// When it does not run, does not end in time, or ends with another code than 0.
    pub async fn stop(&mut self, node: u16) -> Result<()> {
        let mut process =
            self.slot(node)?.take().with_context(|| format!("node {node} does not run"))?;
        let status = process.stop(STOP).await?;
        ensure!(status.success(), "node {node} ended with {status}");
        Ok(())
    }

    /// The status of a node that has ended by itself, which may then be started again; `None` while it
    /// runs.
    ///
    /// # Errors
    /// When it was not started.
    pub fn ended(&mut self, node: u16) -> Result<Option<ExitStatus>> {
        let slot = self.slot(node)?;
        let process = slot.as_mut().with_context(|| format!("node {node} does not run"))?;
        if process.is_running() {
            return Ok(None);
        }
        // It has ended already, so this only says how.
        let status = process.kill9()?;
        *slot = None;
        Ok(Some(status))
    }

    fn aside(&self, node: u16, name: &str) -> PathBuf {
        self.folder.path().join(format!("node-{node}-{name}"))
    }

    /// Keeps the data folder of a node that does not run under `name`; its next start finds none.
    ///
    /// # Errors
    /// When it runs, or the folder cannot be renamed.
    pub fn put_aside(&mut self, node: u16, name: &str) -> Result<()> {
        ensure!(self.slot(node)?.is_none(), "node {node} runs");
        let renamed = RealDisk.rename(&self.data_dir(node), &self.aside(node, name));
        renamed.with_context(|| format!("putting the folder of node {node} aside"))
    }

    /// Gives a node that does not run, and has no data folder, the one that was put aside as `name`.
    ///
    /// # Errors
    /// When it runs, or the folder cannot be renamed.
    pub fn put_back(&mut self, node: u16, name: &str) -> Result<()> {
        ensure!(self.slot(node)?.is_none(), "node {node} runs");
        let renamed = RealDisk.rename(&self.aside(node, name), &self.data_dir(node));
        renamed.with_context(|| format!("putting the folder of node {node} back"))
    }

    /// Suspends a node (SIGSTOP).
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self, node: u16) -> Result<()> {
        let slot = self.slot(node)?;
        slot.as_mut().with_context(|| format!("node {node} does not run"))?.pause()
    }

    /// Lets a suspended node go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self, node: u16) -> Result<()> {
        let slot = self.slot(node)?;
        slot.as_mut().with_context(|| format!("node {node} does not run"))?.resume()
    }

    /// Gives all nodes other ports. None may run.
    ///
    /// # Errors
    /// When one runs, no ports are free, or the nodes have a proxy between them.
    pub fn move_ports(&mut self) -> Result<()> {
        ensure!(self.proxy.is_none(), "the proxy knows the nodes by their ports");
        ensure!(self.running.iter().all(Option::is_none), "a node runs");
        self.ports = PortBlock::reserve(self.nodes)?;
        self.added.clear();
        Ok(())
    }

    /// Waits until every group has a leader whose gate is open and every shard exists at it.
    ///
    /// # Errors
    /// When that takes longer than [`READY`].
    pub async fn wait_ready(&self) -> Result<()> {
        let client = self.client().await?;
        wait_until("every group has a leader and every shard exists", READY, || async {
            client.status(false).await.is_ok_and(|status| is_ready(&status))
        })
        .await
    }

    /// The node that leads the group of `key` now.
    ///
    /// # Errors
    /// When nobody says so in time.
    pub async fn leader_of(&self, client: &Client, key: &str) -> Result<u16> {
        let found = client.get(key.to_owned()).deadline(READY).await?;
        Ok(u16::try_from(found.receipt.node.0)?)
    }
}

fn is_ready(status: &annulus_client::StatusReply) -> bool {
    let Some(table) = &status.table else { return false };
    let leads = |group: u64| {
        status
            .nodes
            .iter()
            .filter(|node| {
                node.replicas.iter().any(|replica| replica.group == group && replica.gate_open)
            })
            .collect::<Vec<_>>()
    };
    table.shards.iter().all(|shard| {
        leads(shard.group).iter().any(|node| node.shards.iter().any(|held| held.shard == shard.id))
    })
}
