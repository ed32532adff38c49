//! `annulus dev`: a local cluster of real processes, for trying things out.
//!
//! `annulus dev` itself is `up`: it starts the nodes, tells what to try next, reports nodes that
//! end, and stops all when it is told to. `add-node`, `stop-node` and `start-node` (`control`) act on
//! that cluster from a second terminal; what the two processes must know of each other is in one file
//! (`state`).
//!
//! None of this serves requests, so disks are waited for where the question comes up.
//!
//! Failure: exit code 2 for a command line that cannot be, 3 when the cluster cannot run.

mod control;
mod state;
mod up;

use std::path::PathBuf;

use annulus_engine::EngineKind;
use clap::{Args, Subcommand};

use crate::cluster::{Usage, exit_code};

const EXAMPLES: &str = "\
Examples:
  annulus dev
  annulus dev --nodes 5 --dir /tmp/five --zones a,b,c
  annulus dev stop-node 2 --dir /tmp/five --kill
  annulus dev start-node 2 --dir /tmp/five
  annulus dev add-node --dir /tmp/five

Node K listens on port base + 10 (K - 1) for clients, one more for other nodes, two more for HTTP.
The same folder again continues that cluster, also from another port base.";

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DevArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Where the data are kept [default: a temporary folder, removed at exit]
    #[arg(long, global = true, value_name = "D")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    wish: Wish,
}

// What is asked of a new cluster, or of one that goes on. Absent: as before, else the default. No
// documentation of the struct here either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
struct Wish {
    /// How many nodes [default: 3, or as many as the folder holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: Option<u32>,
    /// The client port of node 1 [default: 7400]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port_base: Option<u16>,
    /// Shards of a new cluster: a power of two from 1 to 1024 [default: 128]
    #[arg(long, value_name = "N")]
    shards: Option<u32>,
    /// Groups per node of a new cluster, 1 to 64 [default: 4]
    #[arg(long, value_name = "N")]
    lanes: Option<u32>,
    /// Storage engine: fjall, sled or memory [default: fjall, or what the folder holds]
    #[arg(long, value_name = "E")]
    engine: Option<EngineKind>,
    /// Zones, given to the nodes in turn [default: none, or those of the folder]
    #[arg(long, value_name = "Z,…", value_delimiter = ',')]
    zones: Option<Vec<String>>,
}

#[expect(clippy::enum_variant_names, reason = "they are the names of the commands")]
#[derive(Debug, Subcommand)]
enum Action {
    /// Adds a node to a running dev cluster and waits until it is up; data come to it by and by
    AddNode,
    /// Stops a node of a running dev cluster and waits until it is gone
    StopNode {
        /// The node
        #[arg(value_name = "ID")]
        id: u32,
        /// Without warning, as a crash would (SIGKILL)
        #[arg(long)]
        kill: bool,
    },
    /// Starts a node of a running dev cluster again
    StartNode {
        /// The node
        #[arg(value_name = "ID")]
        id: u32,
    },
}

/// Runs the command and returns the exit code.
pub async fn run(args: DevArgs) -> u8 {
    match Box::pin(dispatch(args)).await {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("annulus dev: {error:#}");
            exit_code(&error)
        }
    }
}

async fn dispatch(args: DevArgs) -> anyhow::Result<()> {
    let DevArgs { action, dir, wish } = args;
    let Some(action) = action else { return Box::pin(up::run(dir, wish)).await };
    if wish != Wish::default() {
        let why = "nothing but --dir can be said about a cluster that runs already";
        return Err(Usage(why.to_owned()).into());
    }
    let Some(dir) = dir else {
        return Err(Usage("--dir says which cluster is meant".to_owned()).into());
    };
    match action {
        Action::AddNode => Box::pin(control::add_node(&dir)).await,
        Action::StopNode { id, kill } => Box::pin(control::stop_node(&dir, id, kill)).await,
        Action::StartNode { id } => Box::pin(control::start_node(&dir, id)).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        dev: DevArgs,
    }

    fn parse(line: &str) -> Result<DevArgs, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| line.dev)
    }

    #[test]
    fn the_folder_may_be_named_before_and_after_the_command() {
        for line in ["dev stop-node 2 --dir d --kill", "dev --dir d stop-node --kill 2"] {
            let args = parse(line).unwrap();
            assert_eq!(args.dir, Some(PathBuf::from("d")), "{line}");
            assert!(matches!(args.action, Some(Action::StopNode { id: 2, kill: true })), "{line}");
        }
    }

    #[test]
    fn a_new_cluster_is_described_by_options() {
        let args = parse("dev --nodes 5 --port-base 9000 --engine sled --zones a,b").unwrap();
        assert!(args.action.is_none());
        let wish = Wish {
            nodes: Some(5),
            port_base: Some(9000),
            engine: Some(EngineKind::Sled),
            zones: Some(vec!["a".to_owned(), "b".to_owned()]),
            ..Wish::default()
        };
        assert_eq!(args.wish, wish);
        assert!(parse("dev --nodes 0").is_err());
        assert!(parse("dev start-node").is_err());
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_before_anything_is_done() {
        for line in ["dev --nodes 5 stop-node 2 --dir d", "dev stop-node 2", "dev add-node"] {
            assert_eq!(run(parse(line).unwrap()).await, 2, "{line}");
        }
    }
}
