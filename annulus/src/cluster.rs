//! A local cluster of real processes: one child per node, all on loopback.
//!
//! Owns where the folder, the log and the ports of a node are, how its child is started, and how it
//! ends. Does not decide what happens to the children: `dev` keeps them for a person, `demo` hurts
//! them.
//!
//! Each child is this program itself, called as `annulus start …`, in a process group of its own:
//! Ctrl-C in a terminal reaches only the parent, which then stops the children in order. What a
//! child does is said by its flags alone; `ANNULUS_*` variables are not handed down.
//!
//! Invariants: ports follow one formula ([`Layout::addr`]); a signal goes only to a process whose
//! command line is the recorded one ([`Process`]); no child outlives its [`LocalCluster`]. The last
//! one has a limit: a parent that is itself killed with SIGKILL leaves its children running.
//!
//! Failure: a child that does not start or ends early is an error with the end of its log.

mod process;
mod ready;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use annulus_engine::EngineKind;
use annulus_runtime::{Disk, Env, Network};
use anyhow::{Context as _, anyhow, bail};
use rustix::process::Signal;
use tokio::process::Child;

pub use process::{Ended, Process, Signals, end, log_tail, start_child};
pub use ready::{Ready, connect, key_in, wait_ready};

/// What a child gets to stop by itself after SIGTERM: leaderships are handed over, logs flushed.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How often the state of processes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The log of a child in its folder.
const LOG: &str = "node.log";
/// What a node leaves in a folder that must not be used any more (see `docs/formats.md`).
const DEAD: &str = "dead";

/// The command line asks for something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The exit code for an error of `dev` or `demo`.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() { 2 } else { 3 }
}

/// One of the ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// For clients.
    Client,
    /// For other nodes.
    Peer,
    /// For health checks and metrics.
    Http,
}

impl Port {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Client, Self::Peer, Self::Http];

    fn offset(self) -> u32 {
        match self {
            Self::Client => 0,
            Self::Peer => 1,
            Self::Http => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Http => "HTTP",
        }
    }
}

/// Where everything of a local cluster is. Nodes have the ids 1 to `nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The `annulus` binary.
    pub program: PathBuf,
    /// Holds one folder per node. Absolute.
    pub dir: PathBuf,
    /// The client port of node 1.
    pub port_base: u16,
    /// How many nodes.
    pub nodes: u32,
    /// The engine of all of them.
    pub engine: EngineKind,
    /// Given out in turn; empty: no zones.
    pub zones: Vec<String>,
}

impl Layout {
    /// Refuses what no cluster can have.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Usage> {
        let refused = |why: String| Err(Usage(why));
        if self.nodes == 0 {
            return refused("a cluster has at least one node".to_owned());
        }
        let last = self.port_number(self.nodes, Port::Http);
        if self.port_base == 0 || last > u32::from(u16::MAX) {
            return refused(format!(
                "{} nodes from port {} on need the ports up to {last}; ports are 1 to {}",
                self.nodes,
                self.port_base,
                u16::MAX
            ));
        }
        if self.dir.to_str().is_none() {
            return refused(format!("the path {} is not UTF-8", self.dir.display()));
        }
        if self.zones.iter().any(String::is_empty) {
            return refused("a zone has no name".to_owned());
        }
        Ok(())
    }

    fn port_number(&self, id: u32, port: Port) -> u32 {
        let steps = id.saturating_sub(1).saturating_mul(10);
        u32::from(self.port_base).saturating_add(steps).saturating_add(port.offset())
    }

    /// Where node `id` listens: client port `base + 10 (id - 1)`, the others next to it.
    #[must_use]
    pub fn addr(&self, id: u32, port: Port) -> SocketAddr {
        // `check` refuses what does not fit.
        let number = u16::try_from(self.port_number(id, port)).unwrap_or(u16::MAX);
        SocketAddr::from(([127, 0, 0, 1], number))
    }

    /// The ids of the nodes.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        1..=self.nodes
    }

    /// The client addresses of all nodes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.ids().map(|id| self.addr(id, Port::Client).to_string()).collect()
    }

    /// The folder of a node.
    #[must_use]
    pub fn folder(&self, id: u32) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    /// Where a node's messages go.
    #[must_use]
    pub fn log(&self, id: u32) -> PathBuf {
        self.folder(id).join(LOG)
    }

    /// Whether a node's folder was refused for good, by its peers or because the node was removed: a
    /// process on it would end at once. What cannot be looked at is for that process to report.
    #[must_use]
    pub fn is_dead(&self, disk: &dyn Disk, id: u32) -> bool {
        disk.exists(&self.folder(id).join(DEAD)).unwrap_or(false)
    }

    /// The command line of a node, after the name of the program.
    #[must_use]
    pub fn args(&self, id: u32) -> Vec<String> {
        let peers: Vec<String> =
            self.ids().map(|peer| self.addr(peer, Port::Peer).to_string()).collect();
        let mut args = vec!["start".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
        flag("--node-id", id.to_string());
        flag("--data-dir", self.folder(id).display().to_string());
        flag("--listen", self.addr(id, Port::Client).to_string());
        flag("--peer-listen", self.addr(id, Port::Peer).to_string());
        flag("--http-listen", self.addr(id, Port::Http).to_string());
        flag("--join", peers.join(","));
        flag("--engine", self.engine.to_string());
        if !self.zones.is_empty() {
            let turn = id.saturating_sub(1) as usize % self.zones.len();
            flag("--zone", self.zones[turn].clone());
        }
        args
    }

    /// Sees to it that every port can be listened on now.
    ///
    /// # Errors
    /// Names the first port that cannot.
    pub async fn check_ports(&self, network: &dyn Network) -> anyhow::Result<()> {
        for id in self.ids() {
            for port in Port::ALL {
                let addr = self.addr(id, port);
                // The listener goes with the statement: a child takes the port over.
                network.listen(addr).await.map(drop).with_context(|| {
                    let (number, name) = (addr.port(), port.name());
                    format!("port {number} ({name} port of node {id}) is not free")
                })?;
            }
        }
        Ok(())
    }

    /// Chooses a port base whose ports are free now. Below the range from which the operating
    /// system takes ports for outgoing connections, so that a node that was killed finds its own
    /// ports free again.
    ///
    /// # Errors
    /// When no place is found.
    pub async fn choose_ports(&mut self, env: &Env) -> anyhow::Result<()> {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            let place = u16::try_from(env.random.below(300)).unwrap_or(0);
            self.port_base = 17_000 + 40 * place;
            if self.check_ports(env.network.as_ref()).await.is_ok() {
                return Ok(());
            }
        }
        bail!("no free ports were found in {TRIES} tries between 17000 and 29000")
    }
}

#[derive(Debug)]
struct Owned {
    child: Child,
    process: Process,
}

/// The children that run.
#[derive(Debug)]
pub struct LocalCluster {
    env: Env,
    layout: Layout,
    children: BTreeMap<u32, Owned>,
}

impl LocalCluster {
    /// A cluster of which nothing runs yet.
    #[must_use]
    pub fn new(env: &Env, layout: Layout) -> Self {
        Self { env: env.clone(), layout, children: BTreeMap::new() }
    }

    /// Where everything is.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts a node, for the first time or again.
    ///
    /// # Errors
    /// When it runs already or the operating system refuses.
    pub fn spawn(&mut self, id: u32) -> anyhow::Result<Process> {
        if self.children.contains_key(&id) {
            bail!("node {id} runs already");
        }
        let layout = &self.layout;
        let disk = self.env.disk.as_ref();
        self.env.disk.create_dir_all(&layout.folder(id)).context("making a node's folder")?;
        let started = start_child(disk, &layout.program, &layout.log(id), layout.args(id), true);
        let (child, process) = started.with_context(|| format!("cannot start node {id}"))?;
        self.children.insert(id, Owned { child, process: process.clone() });
        Ok(process)
    }

    /// Starts a node that is new, with the next id and on its ports, and returns the id. The others keep
    /// their command lines until they are started again.
    ///
    /// # Errors
    /// When there are no ports for it, or as [`LocalCluster::spawn`].
    pub fn grow(&mut self) -> anyhow::Result<u32> {
        let id = self.layout.nodes.saturating_add(1);
        let wider = Layout { nodes: id, ..self.layout.clone() };
        wider.check()?;
        self.layout = wider;
        self.spawn(id)?;
        Ok(id)
    }

    /// Ends a node without warning, as a crash would.
    ///
    /// # Errors
    /// When it does not run or the operating system refuses.
    pub async fn kill9(&mut self, id: u32) -> anyhow::Result<()> {
        let owned = self.children.remove(&id);
        let mut owned = owned.with_context(|| format!("node {id} does not run"))?;
        owned.child.kill().await.with_context(|| format!("killing node {id}"))
    }

    /// The children that ended since the last call, with what they left behind.
    pub fn ended(&mut self) -> Vec<(u32, Process, ExitStatus)> {
        let mut ended = Vec::new();
        self.children.retain(|id, owned| match owned.child.try_wait() {
            Ok(Some(status)) => {
                ended.push((*id, owned.process.clone(), status));
                false
            }
            Ok(None) | Err(_) => true,
        });
        ended
    }

    /// Waits until a child ends, and tells about it. For ever when none does. Cancel-safe.
    pub async fn first_end(&mut self) -> anyhow::Error {
        loop {
            if let Some((id, _, status)) = self.ended().into_iter().next() {
                let log = self.layout.log(id);
                let tail = log_tail(self.env.disk.as_ref(), &log);
                return anyhow!(
                    "node {id} ended ({status}); the end of {}:\n{tail}",
                    log.display()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Stops all children: SIGTERM, and SIGKILL for those that are still there after
    /// [`STOP_LIMIT`].
    pub async fn stop_all(&mut self) -> Ended {
        let processes: Vec<Process> =
            self.children.values().map(|owned| owned.process.clone()).collect();
        let outcome = end(&processes, Signal::TERM, STOP_LIMIT).await;
        for (_, mut owned) in std::mem::take(&mut self.children) {
            // Only to let the operating system forget them; one that cannot be waited for yet is
            // killed and waited for when it is dropped.
            let _ = owned.child.try_wait();
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use annulus_runtime::{Random, SimWorld};

    use super::*;

    fn layout(port_base: u16, zones: &[&str]) -> Layout {
        Layout {
            program: PathBuf::from("annulus"),
            dir: PathBuf::from("/d"),
            port_base,
            nodes: 3,
            engine: EngineKind::Fjall,
            zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        }
    }

    #[test]
    fn ports_follow_the_formula_and_must_fit() {
        let usual = layout(7400, &[]);
        assert_eq!(usual.addr(3, Port::Http).to_string(), "127.0.0.1:7422");
        assert_eq!(usual.endpoints(), ["127.0.0.1:7400", "127.0.0.1:7410", "127.0.0.1:7420"]);
        assert_eq!(usual.check(), Ok(()));
        assert_eq!(layout(65_513, &[]).check(), Ok(()));
        for wrong in [layout(65_514, &[]), layout(0, &[]), layout(7400, &["a", ""])] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_command_line_names_node_folder_and_peers() {
        let args = layout(7400, &["a", "b"]).args(3).join(" ");
        let expected = "start --node-id 3 --data-dir /d/node-3 --listen 127.0.0.1:7420 \
                        --peer-listen 127.0.0.1:7421 --http-listen 127.0.0.1:7422 \
                        --join 127.0.0.1:7401,127.0.0.1:7411,127.0.0.1:7421 \
                        --engine fjall --zone a";
        assert_eq!(args, expected);
        assert!(!layout(7400, &[]).args(1).contains(&"--zone".to_owned()));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        // Simulated: a child that another test starts holds every listener of this process from its
        // fork to its exec, also those that were dropped meanwhile.
        let world = SimWorld::new(Random::seeded(1));
        let network = Arc::new(world.network(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let env = Env { network, ..Env::real().unwrap() };
        let mut free = layout(1, &[]);
        free.choose_ports(&env).await.unwrap();
        let _taken = env.network.listen(free.addr(2, Port::Peer)).await.unwrap();
        let error = free.check_ports(env.network.as_ref()).await.unwrap_err();
        let named = format!("port {} (peer port of node 2)", free.port_base + 11);
        assert!(error.to_string().contains(&named), "{error:#}");
    }

    #[test]
    fn a_cluster_does_not_grow_beyond_the_ports_there_are() {
        let env = Env::real().unwrap();
        let mut cluster = LocalCluster::new(&env, layout(65_513, &[]));
        let refused = cluster.grow().unwrap_err();
        assert!(refused.is::<Usage>(), "{refused:#}");
        assert_eq!(cluster.layout().nodes, 3);
    }

    #[test]
    fn only_a_wrong_command_line_is_usage() {
        assert_eq!(exit_code(&Usage("x".to_owned()).into()), 2);
        assert_eq!(exit_code(&anyhow!("x")), 3);
    }
}
