//! `annulus demo`: a guided tour on real data, without questions, in at most two minutes.
//!
//! It starts a cluster of real processes, imports files of this machine (`files`, `copy`), reads
//! them back in every mode (`reading`), adds a node while a light load goes on (`moves`, `load`), kills a
//! leader under load (`failover`), brings it back, has all replicas compared (`agree`), and says at each
//! station what was promised and whether it held (`tour`, `report`, `text`).
//!
//! Invariants: the exit code is 0 only if the tour reached its end and every check held; a check that is left
//! out, because the moves after the join were cut, is not counted and is said; the children are stopped
//! whatever happens; the folder is removed only when nothing failed and `--keep` was not given.
//!
//! Failure: exit code 1 and the path of the folder, with data and logs; 2 for a command line that
//! cannot be. A tour that was ended by a signal exits with 1 and leaves nothing behind.

mod agree;
mod copy;
mod failover;
mod files;
mod load;
mod moves;
mod reading;
mod report;
mod text;
mod tour;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::EngineKind;
use annulus_runtime::Env;
use anyhow::{Context as _, anyhow};
use clap::Args;
use tempfile::TempDir;

use self::files::Picked;
use self::report::Report;
use self::tour::Tour;
use crate::cluster::{Layout, LocalCluster, Signals, Usage};

const NODES: u32 = 3;
/// Nodes that join later.
const JOINING: u32 = 1;
/// Two minutes, less what stopping may take.
const LIMIT: Duration = Duration::from_secs(108);
/// Seeds that are drawn stay short enough to be typed.
const SEEDS: u64 = 1_000_000;

const EXAMPLES: &str = "\
Examples:
  annulus demo
  annulus demo --from ~/photos --keep

Takes 5,000 files or 64 MiB at most, of files up to 1 MiB. Exit code 0 only if every check held.";

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// The folder to import [default: the crate sources that cargo unpacked, else this folder]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Decides which shard loses its leader [default: drawn, and printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keeps the folder with data and logs
    #[arg(long)]
    keep: bool,
}

/// Runs the tour and returns the exit code.
pub async fn run(args: DemoArgs) -> u8 {
    match Box::pin(guide(args)).await {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("annulus demo: {error:#}");
            if error.is::<Usage>() { 2 } else { 1 }
        }
    }
}

/// Whether all went well.
async fn guide(args: DemoArgs) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    let env = Env::real()?;
    let began_us = env.clock.monotonic_us();
    let DemoArgs { from, seed, keep } = args;
    let seed = seed.unwrap_or_else(|| env.random.below(SEEDS));
    let disk = Arc::clone(&env.disk);
    let picking = tokio::task::spawn_blocking(move || files::pick(disk.as_ref(), from));
    let picked = picking.await.context("picking files")??;
    let folder = tempfile::Builder::new().prefix("annulus-demo-").tempdir()?;
    let mut layout = Layout {
        program: std::env::current_exe().context("finding this program")?,
        dir: folder.path().to_owned(),
        port_base: 1,
        // Ports for all that there will be.
        nodes: NODES + JOINING,
        engine: EngineKind::Fjall,
        zones: Vec::new(),
    };
    layout.choose_ports(&env).await?;
    layout.check()?;
    layout.nodes = NODES;
    println!("A tour of Annulus (seed {seed}), in {}", folder.path().display());

    let mut cluster = LocalCluster::new(&env, layout);
    let mut report = Report::default();
    let outcome =
        Box::pin(walk(&env, &mut cluster, &picked, seed, &mut report, &mut signals)).await;
    let ended = cluster.stop_all().await;
    if ended.killed > 0 || ended.left > 0 {
        let slow = ended.killed + ended.left;
        report.check("every node stops when it is told to", &[format!("{slow} did not in time")]);
    }
    let took_us = env.clock.monotonic_us().saturating_sub(began_us);
    report.sum_up("took", text::seconds(took_us));
    report.print_summary();
    let is_good = match outcome {
        End::Whole => report.is_good(),
        End::Failed(error) => {
            println!("\nThe tour ended early: {error:#}");
            false
        }
        End::Told(name) => {
            println!("\nThe tour was ended by {name}.");
            // Nobody asked for the data of half a tour.
            leave(folder, keep)?;
            return Ok(false);
        }
    };
    leave(folder, keep || !is_good)?;
    Ok(is_good)
}

/// How the tour came to its end.
enum End {
    /// At its last station.
    Whole,
    /// Before it.
    Failed(anyhow::Error),
    /// By this signal.
    Told(&'static str),
}

/// The tour, within its limit, until a signal comes.
async fn walk(
    env: &Env,
    cluster: &mut LocalCluster,
    picked: &Picked,
    seed: u64,
    report: &mut Report,
    signals: &mut Signals,
) -> End {
    let limit_us = u64::try_from(LIMIT.as_micros()).unwrap_or(u64::MAX);
    let end_us = env.clock.monotonic_us().saturating_add(limit_us);
    let mut tour = Tour { env, cluster, picked, seed, end_us, report };
    tokio::select! {
        outcome = tokio::time::timeout(LIMIT, Box::pin(tour.run())) => match outcome {
            Ok(Ok(())) => End::Whole,
            Ok(Err(error)) => End::Failed(error),
            Err(_) => End::Failed(anyhow!("it took longer than {} s", LIMIT.as_secs())),
        },
        name = signals.next() => End::Told(name),
    }
}

/// Removes the folder, or says where it is.
fn leave(folder: TempDir, keep: bool) -> anyhow::Result<()> {
    if keep {
        println!("Data and logs are kept in {}", folder.keep().display());
        return Ok(());
    }
    folder.close().context("removing the temporary folder")
}
