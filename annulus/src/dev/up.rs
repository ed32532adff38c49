//! `annulus dev`: starts the nodes, creates the cluster or goes on with it, and looks after the
//! children until it is told to stop.
//!
//! What it knows of running nodes is compared, five times a second, with what dev.json and the
//! operating system say: so it reports a node that died, one that `stop-node` ended and those that
//! `start-node` and `add-node` started all in one way, and it stops what runs then, whoever started it.
//!
//! A node that ends stays down. Restarting it here would hide what a person wants to see. One that was
//! removed from its cluster is not started again when the folder goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use annulus_runtime::Env;
use anyhow::{Context as _, anyhow, bail};
use rustix::process::Signal;

use super::Wish;
use super::state::{Home, State};
use crate::cluster::{
    Layout, LocalCluster, Port, Process, Ready, STOP_LIMIT, Signals, Usage, connect, end,
    wait_ready,
};
use crate::init::{self, Created, PATIENCE, Settings};

const NODES: u32 = 3;
const PORT_BASE: u16 = 7400;
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(dir: Option<PathBuf>, wish: Wish) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let env = Env::real()?;
    let (chosen, temporary) = match dir {
        Some(dir) => (dir, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("annulus-dev-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    let home = Home::new(&env, &chosen)?;
    home.make()?;
    let place = home.dir().display().to_string();
    let Some(claim) = home.claim()? else {
        bail!("a dev cluster runs in {place} already; stop it, or choose another --dir");
    };
    let former = home.load()?;
    if let Some((id, process)) = former.as_ref().and_then(|state| state.running().pop()) {
        bail!(
            "node {id} of an earlier run still runs (process {}); stop it with \
             `annulus dev stop-node {id} --dir {place}`",
            process.pid
        );
    }
    let layout = settle(&wish, former.as_ref(), home.dir())?;
    layout
        .check_ports(env.network.as_ref())
        .await
        .context("choose other ports with --port-base, or stop what uses them")?;
    let mut dev =
        Dev { cluster: LocalCluster::new(&env, layout), env, home, seen: BTreeMap::new() };
    let outcome = Box::pin(dev.serve(&wish, temporary.is_some(), &mut signals)).await;
    let stopped = Box::pin(dev.stop()).await;
    drop(claim);
    if let Some(temporary) = temporary {
        let removed = temporary.close();
        removed.context("removing the temporary folder")?;
    }
    outcome.and(stopped)
}

/// What is wished for, else what the folder holds, else the default.
fn settle(wish: &Wish, former: Option<&State>, dir: &Path) -> anyhow::Result<Layout> {
    let former = former.map(|state| state.layout(dir)).transpose()?;
    let nodes = match (wish.nodes, former.as_ref().map(|former| former.nodes)) {
        (Some(wished), Some(held)) if wished != held => {
            let why = format!("{} holds a cluster of {held} nodes, not {wished}", dir.display());
            return Err(Usage(why).into());
        }
        (wished, held) => wished.or(held).unwrap_or(NODES),
    };
    let held_engine = former.as_ref().map(|former| former.engine);
    let held_zones = former.map(|former| former.zones);
    let layout = Layout {
        program: std::env::current_exe().context("finding this program")?,
        dir: dir.to_owned(),
        port_base: wish.port_base.unwrap_or(PORT_BASE),
        nodes,
        engine: wish.engine.or(held_engine).unwrap_or_default(),
        zones: wish.zones.clone().or(held_zones).unwrap_or_default(),
    };
    layout.check()?;
    Ok(layout)
}

struct Dev {
    env: Env,
    home: Home,
    cluster: LocalCluster,
    /// The process of each node when it was last looked at; `None` while it is down.
    seen: BTreeMap<u32, Option<u32>>,
}

/// A cluster that can be used.
struct Started {
    created: Created,
    ready: Ready,
    /// Nodes that answered.
    answering: usize,
}

impl Dev {
    /// Runs until a signal comes. Leaves stopping to [`Dev::stop`].
    async fn serve(
        &mut self,
        wish: &Wish,
        is_temporary: bool,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let began_us = self.env.clock.monotonic_us();
        let layout = self.cluster.layout().clone();
        eprintln!("starting {} nodes in {}", layout.nodes, layout.dir.display());
        self.spawn_all().await?;
        let started = tokio::select! {
            started = Box::pin(become_ready(&self.env, &layout, wish)) => started?,
            failure = self.cluster.first_end() => return Err(failure),
            name = signals.next() => {
                eprintln!("{name}: stopping");
                return Ok(());
            }
        };
        tell(&layout, &started, wish, began_us, is_temporary);
        let mut ticker = tokio::time::interval(LOOK_EVERY);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                name = signals.next() => {
                    eprintln!("{name}: stopping all nodes");
                    return Ok(());
                }
                _ = ticker.tick() => {}
            }
            // Not in the select: a change of dev.json is not to be dropped half-way.
            self.look().await?;
        }
    }

    /// Starts every node, and writes down who they are: also when one does not start.
    async fn spawn_all(&mut self) -> anyhow::Result<()> {
        let control = self.home.exclusive().await?;
        let mut state = State::new(self.cluster.layout());
        let mut outcome = Ok(());
        for id in self.cluster.layout().ids() {
            if self.cluster.layout().is_dead(self.env.disk.as_ref(), id) {
                eprintln!("node {id} stays down: its data folder is refused for good");
                self.seen.insert(id, None);
                continue;
            }
            match self.cluster.spawn(id) {
                Ok(process) => {
                    state.set_pid(id, Some(process.pid));
                    self.seen.insert(id, Some(process.pid));
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        control.store(&state)?;
        outcome
    }

    /// Reports what has changed since the last look, and notes who is gone.
    async fn look(&mut self) -> anyhow::Result<()> {
        let Some(state) = self.home.load()? else {
            bail!("dev.json has vanished from {}", self.home.dir().display());
        };
        // First who runs, then who ended: so the end of a process that does not run is known.
        let now: Vec<(u32, Option<u32>)> = state
            .nodes
            .iter()
            .map(|node| (node.id, node.running().map(|process| process.pid)))
            .collect();
        let ended: BTreeMap<u32, ExitStatus> =
            self.cluster.ended().into_iter().map(|(id, _, status)| (id, status)).collect();
        let dir = self.home.dir().display().to_string();
        for (id, pid) in &now {
            let before = self.seen.insert(*id, *pid);
            if before == Some(*pid) {
                continue;
            }
            match (pid, ended.get(id)) {
                (Some(pid), _) if before.is_none() => {
                    eprintln!("node {id} was added (process {pid})");
                }
                (Some(pid), _) => eprintln!("node {id} runs again (process {pid})"),
                (None, status) => {
                    let how = status.map(|status| format!(" ({status})")).unwrap_or_default();
                    eprintln!(
                        "node {id} has ended{how}; it stays down until \
                         `annulus dev start-node {id} --dir {dir}`"
                    );
                }
            }
        }
        let gone: Vec<(u32, u32)> = state
            .nodes
            .iter()
            .filter(|node| now.contains(&(node.id, None)))
            .filter_map(|node| Some((node.id, node.pid?)))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let forget = |state: &mut State| {
            for (id, pid) in &gone {
                // It may have been started again since.
                if state.nodes.iter().any(|node| node.id == *id && node.pid == Some(*pid)) {
                    state.set_pid(*id, None);
                }
            }
        };
        self.home.update(forget).await.map(drop)
    }

    /// Stops every node that runs, whoever started it.
    async fn stop(&mut self) -> anyhow::Result<()> {
        // From here on `start-node` refuses; what it started before is on record.
        let retired = self.home.update(|state| state.pid = None).await;
        let mut ended = self.cluster.stop_all().await;
        if let Ok(Some(state)) = &retired {
            let others: Vec<Process> =
                state.running().into_iter().map(|(_, process)| process).collect();
            let more = end(&others, Signal::TERM, STOP_LIMIT).await;
            ended.killed += more.killed;
            ended.left += more.left;
        }
        let forget = |state: &mut State| state.nodes.iter_mut().for_each(|node| node.pid = None);
        if ended.killed > 0 {
            eprintln!("{} nodes did not stop in time and were killed", ended.killed);
        }
        if ended.left > 0 {
            return Err(anyhow!("{} nodes could not be ended", ended.left));
        }
        retired?;
        self.home.update(forget).await?;
        eprintln!("all nodes have stopped");
        Ok(())
    }
}

async fn become_ready(env: &Env, layout: &Layout, wish: &Wish) -> anyhow::Result<Started> {
    // The first one creates a new cluster; of one that goes on any may tell.
    let endpoints = layout.endpoints();
    let settings = Settings {
        shards: wish.shards.unwrap_or(128),
        lanes: wish.lanes.unwrap_or(4),
        replication: 3,
    };
    let created = init::create(env, &endpoints, settings, PATIENCE).await;
    let created = created.context("creating the cluster")?;
    let client = connect(env, &endpoints, PATIENCE).await.context("connecting")?;
    let ready = wait_ready(env, &client, PATIENCE).await.context("waiting for leaders")?;
    let status = client.status(false).await.context("asking for the state of the cluster")?;
    Ok(Started { created, ready, answering: status.nodes.len() })
}

/// What a person needs next.
fn tell(layout: &Layout, started: &Started, wish: &Wish, began_us: u64, is_temporary: bool) {
    let Started { created, ready, answering } = started;
    let what = if created.now { "new cluster" } else { "cluster goes on:" };
    let (shards, groups) = (ready.table.shards.len(), ready.table.groups.len());
    println!("{what} {}, {shards} shards in {groups} groups", created.cluster);
    println!("{answering} of {} nodes answer", layout.nodes);
    for id in layout.ids() {
        println!(
            "  node {id}  client {}  peer {}  http {}  log {}",
            layout.addr(id, Port::Client),
            layout.addr(id, Port::Peer),
            layout.addr(id, Port::Http),
            layout.log(id).display()
        );
    }
    let first = ready.first_us.saturating_sub(began_us);
    let all = ready.all_us.saturating_sub(began_us);
    println!(
        "first write possible after {}, in every shard after {}",
        seconds(first),
        seconds(all)
    );
    let fixed_now = wish.shards.is_some() || wish.lanes.is_some();
    if fixed_now && !created.now {
        eprintln!("--shards and --lanes changed nothing: they are fixed when a cluster is created");
    }
    let program = shell_word(&layout.program);
    let endpoints = layout.endpoints().join(",");
    let dir = shell_word(&layout.dir);
    println!("\nTry, in another terminal:");
    println!("  export ANNULUS_ENDPOINTS={endpoints}");
    for command in ["put hello world", "get hello --receipt", "explain key hello", "status"] {
        println!("  {program} kvctl {command}");
    }
    println!("or in one line:");
    println!("  {program} kvctl --endpoints {endpoints} put hello world");
    if layout.nodes > 1 {
        println!("Lose a node, and get it back:");
        println!("  {program} dev stop-node 2 --dir {dir} --kill");
        println!("  {program} dev start-node 2 --dir {dir}");
    }
    let end = if is_temporary { "stops the cluster and removes its folder" } else { "stops it" };
    println!("\nCtrl-C {end}.");
}

/// Microseconds as seconds with two digits.
fn seconds(us: u64) -> String {
    format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000)
}

/// A path as a word of a shell's command line.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use annulus_engine::EngineKind;

    use super::*;

    #[test]
    fn a_folder_goes_on_as_it_was_but_its_ports_may_move() {
        let dir = Path::new("/d");
        let wish = Wish {
            nodes: Some(5),
            engine: Some(EngineKind::Sled),
            zones: Some(vec!["a".to_owned()]),
            ..Wish::default()
        };
        let first = settle(&wish, None, dir).unwrap();
        assert_eq!((first.nodes, first.port_base, first.engine), (5, 7400, EngineKind::Sled));
        let state = State::new(&first);
        assert_eq!(settle(&Wish::default(), Some(&state), dir).unwrap(), first);
        let moved = Wish { port_base: Some(9000), ..Wish::default() };
        let again = settle(&moved, Some(&state), dir).unwrap();
        assert_eq!(again, Layout { port_base: 9000, ..first });
        let fewer = Wish { nodes: Some(3), ..Wish::default() };
        let refused = settle(&fewer, Some(&state), dir).unwrap_err();
        assert!(refused.is::<Usage>() && refused.to_string().contains("5 nodes"), "{refused}");
        let usual = settle(&Wish::default(), None, dir).unwrap();
        assert_eq!((usual.nodes, usual.engine), (3, EngineKind::Fjall));
    }

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!(shell_word(Path::new("/opt/annulus-0.1/annulus")), "/opt/annulus-0.1/annulus");
        assert_eq!(shell_word(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        assert_eq!(seconds(1_234_567), "1.23 s");
    }
}
