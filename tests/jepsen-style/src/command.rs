//! The command line of the harness: `run` (judged; `registers` is short for its first workload), `kills`,
//! `minority`, `load` (figures, no verdict), and the scenarios, each of which prints its figures and judges
//! them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::load;
use crate::nemesis::Nemesis;
use crate::run::Options;
use crate::scenarios::{dead, deposed, freshness, isolated, managerless, moves, once, slow};
use crate::workloads::{Kind, Shape};

const USAGE: &str = "\
usage: annulus-harness run --program PATH [--workload register|set|counter|bank|modes] [--nodes 3]
                           [--nemesis N,...] [--seconds 60] [--clients 8] [--keys 16] [--seed 1]
       annulus-harness registers ... (run --workload register ...)
       annulus-harness load --program PATH [--nodes 3] [--seconds 10] [--clients 64]
                            [--reads 50] [--value-bytes 100]
       annulus-harness kills --program PATH [--times 10] [--seed 1]
       annulus-harness minority --program PATH [--writes 1000]
       annulus-harness freshness --program PATH [--reads 200000] [--clients 16]
                                 [--faults kill,moves] [--seed 1]
       annulus-harness isolated --program PATH
       annulus-harness deposed --program PATH [--times 100] [--seed 1]
       annulus-harness slow-apply --program PATH [--seconds 30] [--apply-ms 200] [--seed 1]
       annulus-harness moves --program PATH [--keys 100000] [--value-bytes 100] [--clients 16]
                             [--kills none|leaving|joining|group-leader|manager-leader|all]
                             [--times 10] [--lanes 4] [--seed 1]
       annulus-harness once --program PATH [--increments 10000] [--clients 8] [--seed 1]
       annulus-harness managerless --program PATH [--seconds 60] [--clients 16] [--seed 1]
       annulus-harness dead --program PATH [--seed 1]

run        real processes under nemeses, in turns; what clients saw is judged by the workload's checker
           nemeses: kill, kill-all, stop, pause, none; halves, isolate, one-way (all: partition);
           drain, weight, add-node (all: moves)
kills      kill -9 of a leader, then of all, each so many times under load; gaps, and nothing lost
minority   two of three killed: later writes are refused for good
freshness  session and bounded reads under kills and moves: nothing too old, few refusals
isolated   a replica alone: `any` answers, its bound grows with the time, other reads are refused
deposed    reads put into the socket of a stopped leader that has a successor: nothing old
slow-apply leaders that apply late: reads there and strict ones at followers are linearizable
moves      3 -> 4 -> 5 -> 3 nodes under load, or replicas that move while processes are killed:
           nothing lost or doubled, seats by quota, what it cost
once       one reply in three is lost with its connection; increments are exact all the same, also
           across a reseat, a kill and a change of leaders
managerless  all managers killed under load, then all storage nodes killed and started again
dead       a node killed for good is replaced; it returns with an empty folder and with its old one
load       a closed loop on a fresh cluster; prints operations per second and what they cost";

struct Arguments<'a>(&'a [String]);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Result<Option<&str>> {
        let Some(place) = self.0.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        let value = self.0.get(place + 1).with_context(|| format!("{name} needs a value"))?;
        Ok(Some(value))
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        match self.text(name)? {
            None => Ok(default),
            Some(text) => text.parse().with_context(|| format!("{name}: not a number: {text}")),
        }
    }
}

/// Runs one command.
///
/// # Errors
/// When the command line makes no sense, the run failed, or its verdict is bad.
pub fn run(arguments: &[String], reports: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let given = Arguments(arguments);
    match arguments.first().map(String::as_str) {
        Some("run" | "registers") => runtime.block_on(judged(&given, reports)),
        Some("kills") => {
            let (times, seed) = (given.number("--times", 10)?, given.number("--seed", 1)?);
            let program = program(&given)?;
            runtime.block_on(crate::kills::run(&program, times, seed))
        }
        Some("minority") => {
            let (program, writes) = (program(&given)?, given.number("--writes", 1000)?);
            runtime.block_on(crate::kills::minority(&program, writes))
        }
        Some("freshness") => runtime.block_on(freshness::run(&fresh(&given)?)),
        Some("isolated") => runtime.block_on(isolated::run(&program(&given)?)),
        Some("deposed") => {
            let (times, seed) = (given.number("--times", 100)?, given.number("--seed", 1)?);
            runtime.block_on(deposed::run(&program(&given)?, times, seed))
        }
        Some("slow-apply") => runtime.block_on(slow::run(&slowed(&given)?, reports)),
        Some("moves") => runtime.block_on(moved(&given)),
        Some("once") => {
            let options = once::Options {
                program: program(&given)?,
                increments: given.number("--increments", 10_000)?,
                clients: given.number("--clients", 8)?,
                seed: given.number("--seed", 1)?,
            };
            runtime.block_on(once::run(&options))
        }
        Some("managerless") => {
            let length = Duration::from_secs(given.number("--seconds", 60)?);
            let (clients, seed) = (given.number("--clients", 16)?, given.number("--seed", 1)?);
            runtime.block_on(managerless::run(&program(&given)?, length, clients, seed))
        }
        Some("dead") => {
            let (program, seed) = (program(&given)?, given.number("--seed", 1)?);
            runtime.block_on(dead::run(&program, seed))
        }
        Some("load") => runtime.block_on(loaded(&given)),
        Some("--help" | "help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn program(given: &Arguments<'_>) -> Result<PathBuf> {
    let path = PathBuf::from(given.text("--program")?.context("--program is missing")?);
    path.canonicalize().with_context(|| format!("there is no binary at {}", path.display()))
}

fn fresh(given: &Arguments<'_>) -> Result<freshness::Options> {
    let faults = given.text("--faults")?.unwrap_or("kill,moves");
    Ok(freshness::Options {
        program: program(given)?,
        reads: given.number("--reads", 200_000)?,
        clients: given.number("--clients", 16)?,
        faults: freshness::Fault::list(faults).context("--faults: kill, moves or none")?,
        seed: given.number("--seed", 1)?,
    })
}

fn slowed(given: &Arguments<'_>) -> Result<slow::Options> {
    Ok(slow::Options {
        program: program(given)?,
        length: Duration::from_secs(given.number("--seconds", 30)?),
        apply_ms_most: given.number("--apply-ms", 200)?,
        seed: given.number("--seed", 1)?,
    })
}

async fn judged(given: &Arguments<'_>, reports: &Path) -> Result<()> {
    let workload = given.text("--workload")?.unwrap_or("register");
    let nemeses = Nemesis::parse_list(given.text("--nemesis")?.unwrap_or("kill"));
    let shape = Shape {
        clients: given.number("--clients", 8)?,
        keys: given.number("--keys", 16)?,
        nodes: u32::try_from(given.number("--nodes", 3)?)?,
        deadline: Duration::from_secs(5),
    };
    ensure!(shape.clients >= 1, "--clients: at least 1, not {}", shape.clients);
    ensure!(shape.keys >= 2, "--keys: at least 2, not {}", shape.keys);
    let options = Options {
        program: program(given)?,
        workload: Kind::parse(workload)
            .context("--workload: register, set, counter, bank or modes")?,
        shape,
        nemeses: nemeses.context("--nemesis: a name is not known, see --help")?,
        length: Duration::from_secs(given.number("--seconds", 60)?),
        seed: given.number("--seed", 1)?,
    };
    let report = crate::run::run(&options, reports).await?;
    for step in &report.steps {
        println!("nemesis: {step}");
    }
    let counts = report.counts;
    println!(
        "operations: {} answered, {} certainly not applied, {} unknown",
        counts.answered, counts.failed, counts.unknown
    );
    println!("{}; history in {}", report.verdict, report.folder.display());
    Ok(())
}

async fn moved(given: &Arguments<'_>) -> Result<()> {
    let kills = given.text("--kills")?.unwrap_or("none");
    let kills = moves::Kill::parse(kills)
        .context("--kills: none, leaving, joining, group-leader, manager-leader or all")?;
    let options = moves::Options {
        program: program(given)?,
        keys: given.number("--keys", 100_000)?,
        value_bytes: usize::try_from(given.number("--value-bytes", 100)?)?,
        clients: given.number("--clients", 16)?,
        seed: given.number("--seed", 1)?,
        kills,
        times: given.number("--times", 10)?,
        lanes: u32::try_from(given.number("--lanes", 4)?)?,
    };
    Box::pin(moves::run(&options)).await
}

async fn loaded(given: &Arguments<'_>) -> Result<()> {
    let options = load::Options {
        program: program(given)?,
        nodes: u16::try_from(given.number("--nodes", 3)?)?,
        clients: given.number("--clients", 64)?,
        reads_percent: given.number("--reads", 50)?,
        value_bytes: usize::try_from(given.number("--value-bytes", 100)?)?,
        length: Duration::from_secs(given.number("--seconds", 10)?),
    };
    load::run(&options).await
}
