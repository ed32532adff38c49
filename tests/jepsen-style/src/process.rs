//! Real processes and what they need: a folder, ports, and patience with a limit.
//!
//! Everything here is a guard: a [`Process`] is killed and reaped, a [`WorkDir`] removed and a
//! [`PortBlock`] given back when its value goes, also in a panic. Hold the folder longer than the
//! processes that write to it: declare it first.
//!
//! Invariants:
//! - A signal goes only to a child that this guard started and has not reaped. Until then the
//!   kernel keeps the id for it, so that no other process can be hit.
//! - No waiting without a limit, except for the end of a process that was killed.
//! - After [`Process::kill9`] and [`Process::stop`] the process has ended and its ports are free.
//!
//! A harness that is itself killed with SIGKILL runs no guard: its children stay. This module
//! knows nothing of clusters; which binary runs with which flags is the caller's part.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

/// Pause between two looks at a condition: short against what is waited for (a start, an election),
/// long against a look.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// A running child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Set when the child was reaped: its id means nothing from then on.
    status: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `program`. What it prints goes to `<name>.log` in `log_folder`, which must exist,
    /// behind what an earlier process of that name printed; it has no input.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn<I, A>(name: &str, program: &Path, args: I, log_folder: &Path) -> Result<Self>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let log = log_folder.join(format!("{name}.log"));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let errors = output.try_clone().context("sharing the log")?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {name}: {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, status: None, log })
    }

    /// The name given at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id. Only for display and for reading `/proc` while the process runs.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended. A paused process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.reap(), Ok(None))
    }

    /// Kills it with SIGKILL and waits for its end, which a kernel that works does not delay. Blocks
    /// the thread for that moment. A process that has ended already keeps its status.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.reap()? {
            return Ok(status);
        }
        self.send(Signal::KILL)?;
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Sends SIGKILL and does not wait; [`Process::kill9`] does afterwards. For killing several at
    /// once.
    ///
    /// # Errors
    /// When it has ended, or the operating system refuses.
    pub fn send_kill(&mut self) -> Result<()> {
        self.ensure_running()?;
        self.send(Signal::KILL)
    }

    /// Asks it to end with SIGTERM, waits up to `limit`, then kills it: a status with signal 9 says
    /// that it came to that. A paused process is resumed, or it could not hear. If the future is
    /// dropped, the process was asked and still has its guard.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.reap()? {
            return Ok(status);
        }
        self.send(Signal::TERM)?;
        self.send(Signal::CONT)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            let now = Instant::now();
            if now >= deadline {
                return self.kill9();
            }
            tokio::time::sleep_until(deadline.min(now + LOOK_PAUSE)).await;
        }
    }

    /// Freezes it with SIGSTOP: it holds its ports and connections and does nothing. The kernel
    /// may take a moment.
    ///
    /// # Errors
    /// When it has ended, or the operating system refuses.
    pub fn pause(&mut self) -> Result<()> {
        self.ensure_running()?;
        self.send(Signal::STOP)
    }

    /// Lets it go on after [`Process::pause`].
    ///
    /// # Errors
    /// When it has ended, or the operating system refuses.
    pub fn resume(&mut self) -> Result<()> {
        self.ensure_running()?;
        self.send(Signal::CONT)
    }

    fn ensure_running(&mut self) -> Result<()> {
        match self.reap()? {
            None => Ok(()),
            Some(status) => bail!("{} (process {}) has ended: {status}", self.name, self.id()),
        }
    }

    /// Call only after [`Self::reap`] has said that the child is not reaped, with nothing between
    /// that could reap it. It may have ended meanwhile; the signal then has no effect.
    fn send(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signalling {} (process {})", self.name, self.id()))
    }

    /// The status if it has ended.
    fn reap(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status =
                self.child.try_wait().with_context(|| format!("asking for {}", self.name))?;
        }
        Ok(self.status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill9() {
            eprintln!("{error:#}");
        }
    }
}

/// A temporary folder, removed when the guard goes, unless the thread is panicking or
/// [`WorkDir::keep`] was called; then its path is printed.
#[derive(Debug)]
pub struct WorkDir {
    folder: TempDir,
    is_kept: bool,
}

impl WorkDir {
    /// A new folder among the system's temporary ones, with `name` in its name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::new_in(&std::env::temp_dir(), name)
    }

    /// A new folder in `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_in(parent: &Path, name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("annulus-{name}-"))
            .tempdir_in(parent)
            .with_context(|| format!("making a folder in {}", parent.display()))?;
        Ok(Self { folder, is_kept: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder: something went wrong that is not a panic.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.is_kept || std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("kept: {}", self.path().display());
        }
    }
}

/// Waits until `condition` holds, looking again and again. A look that hangs is dropped at the
/// deadline, so it must be cancel-safe.
///
/// # Errors
/// After `limit`; the text says what was waited for.
pub async fn wait_until<F, L>(what: &str, limit: Duration, mut condition: F) -> Result<()>
where
    F: FnMut() -> L,
    L: Future<Output = bool>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(true) = tokio::time::timeout_at(deadline, condition()).await {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        tokio::time::sleep_until(deadline.min(now + LOOK_PAUSE)).await;
    }
}

/// Ports per node, as in a development cluster: client, peer, HTTP and one for a proxy, the rest unused.
const PORTS_PER_NODE: u16 = 10;
/// Blocks lie below the range from which systems take the ports of outgoing connections: one of
/// those could hold a node's port while the node is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// More than one machine runs.
const NODES_MOST: u16 = 50;

/// A block of ports for the nodes of one cluster, all free on the loopback address when it was
/// made. Node *k* (from 1) has `base + 10 (k - 1)` for clients, the next for peers, the next for
/// HTTP.
///
/// The guard keeps the last, unused port of each ten bound. Blocks begin at multiples of ten, so
/// two blocks that live at the same time never overlap, also of different harness processes.
#[derive(Debug)]
pub struct PortBlock {
    base: u16,
    /// The sockets on the unused ports, one per node.
    claims: Vec<TcpListener>,
}

impl PortBlock {
    /// Finds a free block, beginning at a random place.
    ///
    /// # Errors
    /// When none is free, or for no nodes or more than 50.
    pub fn reserve(nodes: u16) -> Result<Self> {
        ensure!((1..=NODES_MOST).contains(&nodes), "a block is for 1 to {NODES_MOST} nodes");
        let length = nodes * PORTS_PER_NODE;
        let places = (PORTS.end - PORTS.start - length) / PORTS_PER_NODE + 1;
        let first = fastrand::u16(..places);
        for step in 0..places {
            let base = PORTS.start + (first + step) % places * PORTS_PER_NODE;
            if let Some(claims) = claim(base, length) {
                return Ok(Self { base, claims });
            }
        }
        bail!("no {length} consecutive ports are free on {}", Ipv4Addr::LOCALHOST)
    }

    /// The first port.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.base
    }

    /// How many nodes it is for.
    #[must_use]
    pub fn nodes(&self) -> u16 {
        u16::try_from(self.claims.len()).unwrap_or(u16::MAX)
    }

    /// The client port of a node.
    ///
    /// # Panics
    /// When the block has no such node; nodes count from 1.
    #[must_use]
    pub fn client(&self, node: u16) -> u16 {
        let nodes = self.nodes();
        assert!((1..=nodes).contains(&node), "node {node} of {nodes}");
        self.base + (node - 1) * PORTS_PER_NODE
    }

    /// The peer port of a node.
    ///
    /// # Panics
    /// As [`PortBlock::client`].
    #[must_use]
    pub fn peer(&self, node: u16) -> u16 {
        self.client(node) + 1
    }

    /// The HTTP port of a node.
    ///
    /// # Panics
    /// As [`PortBlock::client`].
    #[must_use]
    pub fn http(&self, node: u16) -> u16 {
        self.client(node) + 2
    }

    /// The port on which a proxy stands for the node's peer port.
    ///
    /// # Panics
    /// As [`PortBlock::client`].
    #[must_use]
    pub fn proxy(&self, node: u16) -> u16 {
        self.client(node) + 3
    }
}

/// Binds the unused ports of a block if all its ports are free. They come first: where another
/// block is, it fails on those and never touches a port that a node is about to bind.
fn claim(base: u16, length: u16) -> Option<Vec<TcpListener>> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
    let is_unused = |port: &u16| port % PORTS_PER_NODE == PORTS_PER_NODE - 1;
    let ports = base..base + length;
    let claims: Option<Vec<TcpListener>> = ports.clone().filter(is_unused).map(bind).collect();
    let claims = claims?;
    let are_others_free = ports.filter(|port| !is_unused(port)).all(|port| bind(port).is_some());
    are_others_free.then_some(claims)
}

#[cfg(test)]
mod tests;
