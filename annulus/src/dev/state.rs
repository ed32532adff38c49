//! What the processes of a dev cluster know of each other: one small file in its folder.
//!
//! ```text
//! D/dev.json       who runs, as JSON (State)
//! D/LOCK           held by the `annulus dev` that looks after the cluster, for as long as it does
//! D/control/LOCK   held while somebody changes dev.json
//! D/node-ID/       the folder of a node
//! ```
//!
//! Invariants: dev.json is replaced as a whole, so a reader needs no lock; it is changed only under
//! the control lock, from what it says then. An id of a process in it is a memory, no fact: whoever
//! acts on one looks first ([`Process`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use annulus_engine::EngineKind;
use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{DiskLock, Env};
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::cluster::{Layout, Process, Usage};

const FILE: &str = "dev.json";
const CONTROL: &str = "control";
const FILE_BYTES: u64 = 1024 * 1024;
/// Changes take milliseconds; only a start of a process in between takes longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// The node.
    pub(super) id: u32,
    /// Its process, when it was last known to run.
    pub(super) pid: Option<u32>,
    /// Its command line, after the name of the program.
    pub(super) args: Vec<String>,
}

impl NodeRecord {
    /// The process on record, if it runs now.
    pub(super) fn running(&self) -> Option<Process> {
        let process = Process { pid: self.pid?, args: self.args.clone() };
        process.is_running().then_some(process)
    }
}

/// The content of dev.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The process that looks after the cluster; absent when none does, or not for long any more.
    pub(super) pid: Option<u32>,
    /// See [`Layout`].
    pub(super) port_base: u16,
    /// See [`Layout`].
    pub(super) engine: String,
    /// See [`Layout`].
    pub(super) zones: Vec<String>,
    /// By id.
    pub(super) nodes: Vec<NodeRecord>,
}

impl State {
    /// The record of a cluster of which nothing runs yet.
    pub(super) fn new(layout: &Layout) -> Self {
        let record = |id| NodeRecord { id, pid: None, args: layout.args(id) };
        Self {
            pid: Some(std::process::id()),
            port_base: layout.port_base,
            engine: layout.engine.to_string(),
            zones: layout.zones.clone(),
            nodes: layout.ids().map(record).collect(),
        }
    }

    /// Where everything is, as the process sees it that looks after the cluster.
    pub(super) fn layout(&self, dir: &Path) -> anyhow::Result<Layout> {
        let engine: EngineKind = self.engine.parse()?;
        Ok(Layout {
            program: std::env::current_exe().context("finding this program")?,
            dir: dir.to_owned(),
            port_base: self.port_base,
            nodes: u32::try_from(self.nodes.len())?,
            engine,
            zones: self.zones.clone(),
        })
    }

    /// The record of a node.
    pub(super) fn node(&self, id: u32) -> Result<&NodeRecord, Usage> {
        let found = self.nodes.iter().find(|node| node.id == id);
        found.ok_or_else(|| {
            let ids: Vec<String> = self.nodes.iter().map(|node| node.id.to_string()).collect();
            Usage(format!("there is no node {id}; there are {}", ids.join(", ")))
        })
    }

    /// The node that comes next: an id that none ever had, for nodes stay on record.
    pub(super) fn next_id(&self) -> u32 {
        self.nodes.iter().map(|node| node.id).max().unwrap_or(0) + 1
    }

    /// Notes the process of a node.
    pub(super) fn set_pid(&mut self, id: u32, pid: Option<u32>) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.pid = pid;
        }
    }

    /// Every process on record that runs now.
    pub(super) fn running(&self) -> Vec<(u32, Process)> {
        self.nodes.iter().filter_map(|node| Some((node.id, node.running()?))).collect()
    }
}

/// The folder of a dev cluster.
#[derive(Debug)]
pub(super) struct Home {
    env: Env,
    dir: PathBuf,
}

impl Home {
    /// The folder `dir`; nothing is touched.
    pub(super) fn new(env: &Env, dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| format!("{}", dir.display()))?;
        Ok(Self { env: env.clone(), dir })
    }

    /// Its path, absolute.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes what is missing of it.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        let control = self.dir.join(CONTROL);
        let made = self.env.disk.create_dir_all(&control);
        made.with_context(|| format!("making {}", control.display()))
    }

    /// Becomes the one process that looks after the cluster. `None` when another does.
    pub(super) fn claim(&self) -> anyhow::Result<Option<Box<dyn DiskLock>>> {
        match self.env.disk.lock_dir(&self.dir) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).with_context(|| format!("locking {}", self.dir.display())),
        }
    }

    /// What dev.json says; `None` where no dev cluster ever was.
    pub(super) fn load(&self) -> anyhow::Result<Option<State>> {
        let path = self.dir.join(FILE);
        let place = || format!("reading {}", path.display());
        if !self.env.disk.exists(&path).with_context(place)? {
            return Ok(None);
        }
        let bytes = read_file(self.env.disk.as_ref(), &path, FILE_BYTES).with_context(place)?;
        serde_json::from_slice(&bytes).map(Some).with_context(place)
    }

    /// The right to change dev.json, until it is dropped.
    pub(super) async fn exclusive(&self) -> anyhow::Result<Control<'_>> {
        let control = self.dir.join(CONTROL);
        let locked = async {
            loop {
                match self.env.disk.lock_dir(&control) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(LOCK_PAUSE).await;
                    }
                    other => return other,
                }
            }
        };
        let place = || format!("locking {}", control.display());
        match tokio::time::timeout(LOCK_PATIENCE, locked).await {
            Ok(lock) => Ok(Control { home: self, _lock: lock.with_context(place)? }),
            Err(_) => bail!("another command has been changing {} for long", control.display()),
        }
    }

    /// Changes dev.json and returns what it says then. `None` where there is none.
    pub(super) async fn update(
        &self,
        change: impl FnOnce(&mut State),
    ) -> anyhow::Result<Option<State>> {
        let control = self.exclusive().await?;
        let Some(mut state) = self.load()? else { return Ok(None) };
        change(&mut state);
        control.store(&state)?;
        Ok(Some(state))
    }
}

/// See [`Home::exclusive`].
#[derive(Debug)]
pub(super) struct Control<'a> {
    home: &'a Home,
    _lock: Box<dyn DiskLock>,
}

impl Control<'_> {
    /// Replaces dev.json.
    pub(super) fn store(&self, state: &State) -> anyhow::Result<()> {
        let Home { env, dir } = self.home;
        let text = serde_json::to_vec_pretty(state)?;
        let stored = replace_file(env.disk.as_ref(), dir, FILE, &text);
        stored.with_context(|| format!("writing {}", dir.join(FILE).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> Layout {
        Layout {
            program: PathBuf::from("annulus"),
            dir: dir.to_owned(),
            port_base: 7400,
            nodes: 2,
            engine: EngineKind::Sled,
            zones: vec!["a".to_owned()],
        }
    }

    #[tokio::test]
    async fn changes_are_made_to_what_the_file_says_now() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let home = Home::new(&env, dir.path()).unwrap();
        home.make().unwrap();
        assert_eq!(home.load().unwrap(), None);
        assert_eq!(home.update(|_| ()).await.unwrap(), None);
        let first = State::new(&layout(dir.path()));
        home.exclusive().await.unwrap().store(&first).unwrap();
        let second = Home::new(&env, dir.path()).unwrap();
        second.update(|state| state.set_pid(2, Some(7))).await.unwrap();
        let merged = home.update(|state| state.set_pid(1, Some(8))).await.unwrap().unwrap();
        let pids: Vec<_> = merged.nodes.iter().map(|node| node.pid).collect();
        assert_eq!(pids, [Some(8), Some(7)]);
        assert_eq!(second.load().unwrap(), Some(merged.clone()));
        let again =
            Layout { program: PathBuf::from("annulus"), ..merged.layout(dir.path()).unwrap() };
        assert_eq!(again, layout(dir.path()));
        assert!(merged.node(3).unwrap_err().to_string().contains("there are 1, 2"));
        assert_eq!(merged.next_id(), 3);
        // No process has such a command line, whatever runs under these ids.
        assert_eq!(merged.running(), Vec::new());
    }

    #[tokio::test]
    async fn one_process_looks_after_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let home = Home::new(&env, dir.path()).unwrap();
        let claim = home.claim().unwrap();
        assert!(claim.is_some());
        assert!(home.claim().unwrap().is_none());
        drop(claim);
        assert!(home.claim().unwrap().is_some());
    }
}
