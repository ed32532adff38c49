//! `stop-node` and `start-node`: acting on a dev cluster from a second terminal.
//!
//! Both work on processes directly. `stop-node` signals the process on record and waits until it is
//! gone; `annulus dev` notices and notes it. `start-node` starts the recorded command line again and
//! notes the new process, which then belongs to `annulus dev` like the others: it reports its end
//! and stops it at the end of all.
//!
//! Both are idempotent: a node that is as wanted already is left alone.

use std::path::Path;
use std::time::Duration;

use annulus_client::Client;
use annulus_runtime::Env;
use anyhow::{Context as _, anyhow, bail};
use rustix::process::Signal;

use super::state::{Home, State};
use crate::cluster::{Port, STOP_LIMIT, end, log_tail, start_child};

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
    // While the one that looks after the cluster holds the folder, nobody else can claim it.
    if state.pid.is_none() || home.claim()?.is_some() {
        let dir = home.dir().display();
        bail!("no dev cluster runs in {dir}; `annulus dev --dir {dir}` starts it");
    }
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
    let dies = async {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return anyhow!("node {id} ended ({status})"),
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => return anyhow!("node {id} cannot be watched: {error}"),
            }
        }
    };
    let answers = Client::builder().endpoints([&*addr]).deadline(START_LIMIT).env(env.clone());
    let failure = tokio::select! {
        connected = answers.connect() => match connected {
            Ok(_) => {
                println!("node {id} runs (process {}), client address {addr}", process.pid);
                return Ok(());
            }
            Err(error) => anyhow!("node {id} does not answer at {addr}: {error}"),
        },
        failure = dies => failure,
    };
    Err(anyhow!("{failure}; the end of {}:\n{}", log.display(), log_tail(disk, &log)))
}
