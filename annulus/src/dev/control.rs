//! `add-node`, `stop-node` and `start-node`: acting on a dev cluster from a second terminal.
//!
//! All work on processes directly. `stop-node` signals the process on record and waits until it is
//! gone; `annulus dev` notices and notes it. `start-node` starts the recorded command line again and
//! notes the new process, which then belongs to `annulus dev` like the others: it reports its end
//! and stops it at the end of all. `add-node` does the same with a node that is new, and waits until the
//! cluster has let it in.
//!
//! `stop-node` and `start-node` are idempotent: a node that is as wanted already is left alone. A node
//! that was added and did not come in within the limit stays on record and goes on trying; it can be
//! stopped and started like any other.

use std::path::Path;
use std::time::Duration;

use annulus_client::{Client, StatusReply};
use annulus_proto::v1;
use annulus_runtime::Env;
use anyhow::{Context as _, anyhow, bail};
use rustix::process::Signal;
use tokio::process::Child;

use super::state::{Home, NodeRecord, State};
use crate::cluster::{Layout, Port, STOP_LIMIT, end, log_tail, start_child};

/// What a node may need until it answers: it reads its log first.
const START_LIMIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn open(dir: &Path) -> anyhow::Result<(Env, Home)> {
    let env = Env::real()?;
    let home = Home::new(&env, dir)?;
    Ok((env, home))
}

fn state_of(home: &Home) -> anyhow::Result<State> {
    let state = home.load()?;
    state.with_context(|| format!("{} holds no dev cluster", home.dir().display()))
}

pub(super) async fn stop_node(dir: &Path, id: u32, kill: bool) -> anyhow::Result<()> {
    let (_, home) = open(dir)?;
    let state = state_of(&home)?;
    let Some(process) = state.node(id)?.running() else {
        eprintln!("node {id} does not run");
        return Ok(());
    };
    let first = if kill { Signal::KILL } else { Signal::TERM };
    let ended = end(std::slice::from_ref(&process), first, STOP_LIMIT).await;
    if ended.left > 0 {
        bail!("node {id} (process {}) could not be ended", process.pid);
    }
    let how = match (kill, ended.killed) {
        (true, _) => "was killed",
        (false, 0) => "has stopped",
        (false, _) => "did not stop in time and was killed",
    };
    eprintln!("node {id} (process {}) {how}", process.pid);
    Ok(())
}

/// Refuses where no `annulus dev` looks after the cluster: nobody would stop what is started.
fn check_looked_after(home: &Home, state: &State) -> anyhow::Result<()> {
    // While the one that looks after the cluster holds the folder, nobody else can claim it.
    if state.pid.is_none() || home.claim()?.is_some() {
        let dir = home.dir().display();
        bail!("no dev cluster runs in {dir}; `annulus dev --dir {dir}` starts it");
    }
    Ok(())
}

pub(super) async fn start_node(dir: &Path, id: u32) -> anyhow::Result<()> {
    let (env, home) = open(dir)?;
    state_of(&home)?.node(id)?;
    let control = home.exclusive().await?;
    // Read again: now nobody else changes it.
    let mut state = state_of(&home)?;
    if let Some(process) = state.node(id)?.running() {
        eprintln!("node {id} runs already (process {})", process.pid);
        return Ok(());
    }
    check_looked_after(&home, &state)?;
    let layout = state.layout(home.dir())?;
    let log = layout.log(id);
    let args = state.node(id)?.args.clone();
    let disk = env.disk.as_ref();
    let started = start_child(disk, &layout.program, &log, args, false);
    let (mut child, process) = started.with_context(|| format!("cannot start node {id}"))?;
    state.set_pid(id, Some(process.pid));
    control.store(&state)?;
    drop(control);

    let addr = layout.addr(id, Port::Client).to_string();
    let answers = Client::builder().endpoints([&*addr]).deadline(START_LIMIT).env(env.clone());
    let failure = tokio::select! {
        connected = answers.connect() => match connected {
            Ok(_) => {
                println!("node {id} runs (process {}), client address {addr}", process.pid);
                return Ok(());
            }
            Err(error) => anyhow!("node {id} does not answer at {addr}: {error}"),
        },
        failure = end_of(id, &mut child) => failure,
    };
    Err(anyhow!("{failure}; the end of {}:\n{}", log.display(), log_tail(disk, &log)))
}

pub(super) async fn add_node(dir: &Path) -> anyhow::Result<()> {
    let (env, home) = open(dir)?;
    state_of(&home)?;
    let control = home.exclusive().await?;
    // Read again: now nobody else changes it.
    let mut state = state_of(&home)?;
    check_looked_after(&home, &state)?;
    let id = state.next_id();
    let before = state.layout(home.dir())?;
    let layout = Layout { nodes: id, ..before.clone() };
    layout.check()?;
    for port in Port::ALL {
        let addr = layout.addr(id, port);
        // The listener goes with the statement: the child takes the port over.
        let free = env.network.listen(addr).await.map(drop);
        free.with_context(|| format!("port {} of node {id} is not free", addr.port()))?;
    }
    let disk = env.disk.as_ref();
    disk.create_dir_all(&layout.folder(id)).context("making the node's folder")?;
    let (log, args) = (layout.log(id), layout.args(id));
    let started = start_child(disk, &layout.program, &log, args.clone(), false);
    let (mut child, process) = started.with_context(|| format!("cannot start node {id}"))?;
    state.nodes.push(NodeRecord { id, pid: Some(process.pid), args });
    control.store(&state)?;
    drop(control);

    let addr = layout.addr(id, Port::Client).to_string();
    let coming = tokio::time::timeout(START_LIMIT, until_up(&env, &before, id));
    let failure = tokio::select! {
        came = coming => match came {
            Ok(()) => {
                println!("node {id} is up (process {}), client address {addr}", process.pid);
                return Ok(());
            }
            Err(_) => anyhow!("node {id} is not up after {} s", START_LIMIT.as_secs()),
        },
        failure = end_of(id, &mut child) => failure,
    };
    Err(anyhow!("{failure}; the end of {}:\n{}", log.display(), log_tail(disk, &log)))
}

/// Waits until a child ends, and says so. Cancel-safe.
async fn end_of(id: u32, child: &mut Child) -> anyhow::Error {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return anyhow!("node {id} ended ({status})"),
            Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
            Err(error) => return anyhow!("node {id} cannot be watched: {error}"),
        }
    }
}

/// Waits until the cluster says that a node is up. Cancel-safe.
async fn until_up(env: &Env, layout: &Layout, id: u32) {
    loop {
        let builder = Client::builder().endpoints(layout.endpoints()).env(env.clone());
        if let Ok(client) = builder.deadline(START_LIMIT).connect().await
            && let Ok(status) = client.status(false).await
            && is_up(&status, id)
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_up(status: &StatusReply, id: u32) -> bool {
    let thought = status.overview.iter().flat_map(|overview| &overview.nodes);
    let mut nodes = thought.filter(|node| node.node == id && !node.draining);
    nodes.any(|node| node.state() == v1::NodeState::Up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_up_when_the_manager_says_so() {
        let node = |node: u32, state: v1::NodeState| v1::NodeOverview {
            node,
            state: state.into(),
            ..Default::default()
        };
        let nodes = vec![node(1, v1::NodeState::Up), node(2, v1::NodeState::Down)];
        let overview = Some(v1::OverviewReply { nodes, ..Default::default() });
        let status = StatusReply { overview, ..StatusReply::default() };
        assert!(is_up(&status, 1));
        assert!(!is_up(&status, 2), "down");
        assert!(!is_up(&status, 3), "not known yet");
        assert!(!is_up(&StatusReply::default(), 1), "nobody knows");
    }
}
