//! One run: a cluster, a workload, a nemesis, and the verdict.
//!
//! The report folder holds the history (one JSON line per event), and, when the run fails, the
//! cluster's data and logs. A nemesis step says *installed* only when the signal was sent.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use annulus_runtime::{Clock, Env, OnEnd, Random};
use anyhow::{Context, Result, ensure};

use crate::checkers::linearizable::{self, STEP_LIMIT};
use crate::cluster::Cluster;
use crate::history::Recorder;
use crate::process::wait_until;
use crate::workload::{Counts, Registers, Run, register_client};

/// What hurts the cluster during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nemesis {
    /// Nothing.
    None,
    /// SIGKILL of one node, restarted a little later.
    Kill,
    /// SIGKILL of all nodes at once, restarted at once.
    KillAll,
    /// SIGTERM of one node, restarted a little later.
    Stop,
    /// SIGSTOP of one node for a few seconds.
    Pause,
}

impl Nemesis {
    /// All of them, by the names of the command line.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("none", Self::None),
        ("kill", Self::Kill),
        ("kill-all", Self::KillAll),
        ("stop", Self::Stop),
        ("pause", Self::Pause),
    ];

    /// The one with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, nemesis)| *nemesis)
    }

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, known)| *known == self).map_or("?", |(name, _)| name)
    }
}

/// How a run looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub program: PathBuf,
    /// Nodes of the cluster.
    pub nodes: u16,
    /// Clients and keys.
    pub registers: Registers,
    /// What hurts it, in turns.
    pub nemeses: Vec<Nemesis>,
    /// How long clients work.
    pub length: Duration,
    /// Decides keys, operations, and whom the nemesis hits; not what the machine does.
    pub seed: u64,
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where the history lies.
    pub folder: PathBuf,
    /// What clients counted.
    pub counts: Counts,
    /// Nemesis steps, in words.
    pub steps: Vec<String>,
}

/// Runs the register workload under the nemeses and judges the history.
///
/// # Errors
/// When the history is not linearizable, or the run itself failed; the folder is then kept.
pub async fn registers(options: &Options, reports: &Path) -> Result<Report> {
    let folder = reports.join(format!("registers-{}", options.seed));
    let file = history_file(&folder)?;
    let recorder = Recorder::with_sink(Clock::real(), Box::new(BufWriter::new(file)));
    let mut cluster = Cluster::start(&options.program, options.nodes, "jepsen").await?;
    let outcome = drive(options, &mut cluster, &recorder).await;
    let judged = match outcome {
        Ok((counts, steps)) => {
            judge(&recorder).map(|()| Report { folder: folder.clone(), counts, steps })
        }
        Err(error) => Err(error),
    };
    if judged.is_err() {
        cluster.keep();
    }
    judged
}

#[expect(clippy::disallowed_methods, reason = "a report for people, outside the system under test")]
pub(crate) fn history_file(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).context("making the report folder")?;
    File::create(folder.join("history.jsonl")).context("making the history file")
}

pub(crate) fn judge(recorder: &Recorder) -> Result<()> {
    let history = recorder.history().context("the history was not written in full")?;
    ensure!(!history.operations().is_empty(), "no operation was recorded");
    linearizable::check(&history, STEP_LIMIT).into_result()
}

async fn drive(
    options: &Options,
    cluster: &mut Cluster,
    recorder: &Recorder,
) -> Result<(Counts, Vec<String>)> {
    let env = Env::real()?;
    let run = Arc::new(Run::new());
    let random = Random::seeded(options.seed);
    let (ended, mut clients_ended) = tokio::sync::mpsc::channel::<()>(1);
    for process in 0..options.registers.clients {
        let client = cluster.client().await?;
        let work = register_client(
            process,
            client,
            options.registers,
            Random::seeded(options.seed.wrapping_add(process + 1)),
            recorder.clone(),
            Arc::clone(&run),
        );
        let ended = ended.clone();
        env.tasks.spawn("register client", OnEnd::Ignore, async move {
            work.await;
            drop(ended);
        });
    }
    drop(ended);
    let deadline = tokio::time::Instant::now() + options.length;
    let mut steps = Vec::new();
    let mut turn = 0;
    while tokio::time::Instant::now() < deadline {
        let nemesis = match options.nemeses.len() {
            0 => Nemesis::None,
            count => options.nemeses[turn % count],
        };
        turn += 1;
        hurt(nemesis, cluster, &run, &random, options.length, &mut steps).await?;
    }
    run.stop.store(true, Ordering::Relaxed);
    // Every sender is dropped once every client has ended.
    let _ = clients_ended.recv().await;
    ensure!(run.counts().answered > 0, "no operation was answered");
    Ok((run.counts(), steps))
}

/// Waits until clients got `more` answers: proof that the cluster serves, not a guess at how long
/// that takes. Bounded by the length of the run.
async fn served(run: &Run, more: u64, limit: Duration) -> Result<()> {
    let before = run.counts().answered;
    wait_until("clients are answered", limit + Duration::from_secs(30), || async {
        run.counts().answered >= before + more
    })
    .await
}

async fn hurt(
    nemesis: Nemesis,
    cluster: &mut Cluster,
    run: &Run,
    random: &Random,
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<()> {
    let nodes = u64::from(*cluster.nodes().end());
    let victim = u16::try_from(random.below(nodes) + 1)?;
    let calm = 200 + random.below(300);
    let away = Duration::from_millis(500 + random.below(2500));
    served(run, calm, limit).await?;
    match nemesis {
        Nemesis::None => return Ok(()),
        Nemesis::Kill => {
            cluster.kill(victim)?;
            steps.push(format!("{} node {victim}: installed", nemesis.name()));
            served(run, calm, limit).await?;
            cluster.start_node(victim)?;
        }
        Nemesis::Stop => {
            cluster.stop(victim).await?;
            steps.push(format!("{} node {victim}: installed", nemesis.name()));
            served(run, calm, limit).await?;
            cluster.start_node(victim)?;
        }
        Nemesis::KillAll => {
            cluster.kill_all()?;
            steps.push(format!("{}: installed", nemesis.name()));
            // Clients keep the addresses that they were made with, so the ports stay.
            for node in cluster.nodes() {
                cluster.start_node(node)?;
            }
        }
        Nemesis::Pause => {
            cluster.pause(victim)?;
            steps.push(format!("{} node {victim} for {away:?}: installed", nemesis.name()));
            tokio::time::sleep(away).await;
            cluster.resume(victim)?;
        }
    }
    cluster.wait_ready().await
}
