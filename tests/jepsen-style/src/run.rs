//! One run: a cluster, a workload, nemeses in turns, and the verdict.
//!
//! The report folder holds the history (one JSON line per event); the cluster's data and logs are kept
//! when the run fails. A run passes only if every nemesis that was asked for was *installed* at least
//! once, every client came to its end, and the checker of the workload found nothing wrong.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annulus_runtime::{Clock, Env, Random};
use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::crew::Crew;
use crate::nemesis::{Nemesis, Stage, Step, hurt};
use crate::workloads::{Counts, Kind, Run, Seat, Shape, Workload};

/// Beyond the length of the run, how long clients may go without the answers that a step waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a run looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub program: PathBuf,
    /// What clients do.
    pub workload: Kind,
    /// Nodes, clients and keys.
    pub shape: Shape,
    /// What hurts it, in turns; each has its turn at least once.
    pub nemeses: Vec<Nemesis>,
    /// How long clients work at least.
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
    /// What holds, in words.
    pub verdict: String,
}

/// Runs a workload under the nemeses and judges what its clients saw.
///
/// # Errors
/// When that is wrong, or the run itself failed; the folder is then kept.
pub async fn run(options: &Options, reports: &Path) -> Result<Report> {
    let folder = reports.join(format!("{}-{}", options.workload.name(), options.seed));
    let sink = Box::new(BufWriter::new(history_file(&folder)?));
    let workload = options.workload.begin(options.shape, Clock::real(), sink);
    let nodes = u16::try_from(options.shape.nodes)?;
    let mut cluster = if options.nemeses.iter().any(|nemesis| nemesis.needs_proxy()) {
        Cluster::start_proxied(&options.program, nodes, "jepsen").await?
    } else {
        Cluster::start(&options.program, nodes, "jepsen").await?
    };
    let report = Box::pin(judged(options, &mut cluster, workload.as_ref(), folder)).await;
    if report.is_err() {
        cluster.keep();
    }
    report
}

#[expect(clippy::disallowed_methods, reason = "a report for people, outside the system under test")]
pub(crate) fn history_file(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).context("making the report folder")?;
    File::create(folder.join("history.jsonl")).context("making the history file")
}

async fn judged(
    options: &Options,
    cluster: &mut Cluster,
    workload: &dyn Workload,
    folder: PathBuf,
) -> Result<Report> {
    let run = Arc::new(Run::new());
    let steps = Box::pin(drive(options, cluster, workload, &run)).await?;
    let counts = run.counts();
    ensure!(counts.answered > 0, "no operation was answered");
    let verdict = workload.judge()?;
    Ok(Report { folder, counts, steps, verdict })
}

async fn drive(
    options: &Options,
    cluster: &mut Cluster,
    workload: &dyn Workload,
    run: &Arc<Run>,
) -> Result<Vec<String>> {
    let env = Env::real()?;
    let shape = options.shape;
    // The seat behind the last client's: it opens and closes the workload.
    let own = Seat {
        process: shape.clients,
        client: cluster.client().await?,
        random: Random::seeded(options.seed),
        shape,
        run: Arc::clone(run),
    };
    workload.open(own.clone()).await.context("opening the workload")?;
    let mut crew = Crew::new(&env.tasks);
    for process in 0..shape.clients {
        let client = cluster.client().await?;
        let random = Random::seeded(options.seed.wrapping_add(process + 1));
        crew.add(workload.client(Seat { process, client, random, ..own.clone() }));
    }
    let steps = Box::pin(torment(options, cluster, run, &own.random)).await?;
    run.stop();
    crew.ended().await?;
    // What was added or moved meanwhile is found by a client that knows every node.
    let last = Seat { client: cluster.client().await?, ..own };
    workload.close(last).await.context("reading what is there in the end")?;
    Ok(steps)
}

/// Hurts the cluster until the time is over and every nemesis had its turn.
async fn torment(
    options: &Options,
    cluster: &mut Cluster,
    run: &Run,
    random: &Random,
) -> Result<Vec<String>> {
    let patience = options.length + PATIENCE;
    let mut stage = Stage { cluster, run, random, patience };
    let deadline = tokio::time::Instant::now() + options.length;
    let mut steps = Vec::new();
    let mut missing: BTreeSet<Nemesis> = options.nemeses.iter().copied().collect();
    let mut turn = 0;
    while turn < options.nemeses.len() || tokio::time::Instant::now() < deadline {
        let nemesis = match options.nemeses.len() {
            0 => Nemesis::None,
            count => options.nemeses[turn % count],
        };
        turn += 1;
        let step = Box::pin(hurt(nemesis, &mut stage)).await;
        match step.with_context(|| format!("nemesis {}", nemesis.name()))? {
            Step::Installed(_) if nemesis == Nemesis::None => {
                missing.remove(&nemesis);
            }
            Step::Installed(about) => {
                missing.remove(&nemesis);
                steps.push(format!("{} {about}: installed", nemesis.name()));
            }
            Step::Skipped(why) => steps.push(format!("{} skipped: {why}", nemesis.name())),
        }
    }
    let missing: Vec<&str> = missing.into_iter().map(Nemesis::name).collect();
    ensure!(missing.is_empty(), "never installed: {}; {}", missing.join(", "), steps.join("; "));
    Ok(steps)
}
