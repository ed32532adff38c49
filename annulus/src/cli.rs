//! The command line of `annulus`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Flags};
use crate::node::Node;
use crate::{debug, demo, dev, init, logs};
use annulus_runtime::Env;
use annulus_types::NodeId;

/// A sharded, replicated key-value store.
#[derive(Debug, Parser)]
#[command(name = "annulus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One node in the foreground.
    Start(Box<Flags>),
    /// Creates the cluster, once.
    Init(init::InitArgs),
    /// A local cluster of real processes.
    Dev(dev::DevArgs),
    /// A guided tour on real data; exit 0 only if every check held.
    Demo(demo::DemoArgs),
    /// The command-line client.
    #[command(disable_help_flag = true)]
    Kvctl {
        /// See `annulus kvctl --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Checks, prints or explains the configuration.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Looks into a stopped node's folder.
    Debug(debug::DebugArgs),
    /// The version of this binary.
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reports every problem at once.
    Check(Box<Flags>),
    /// Prints what is in effect.
    Print(Box<Flags>),
    /// Prints every field with its meaning and default.
    Docs,
}

fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        eprintln!("annulus: the runtime did not start: {error}");
        ExitCode::from(3)
    })
}

fn block_on(work: impl Future<Output = u8>) -> ExitCode {
    match runtime() {
        Ok(runtime) => ExitCode::from(runtime.block_on(work)),
        Err(code) => code,
    }
}

/// Runs `kvctl` with a whole command line, program name first.
#[must_use]
pub fn kvctl(args: Vec<OsString>) -> ExitCode {
    block_on(annulus_kvctl::run(args))
}

/// Runs `annulus` with the process's command line.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Start(flags) => match load(*flags) {
            Ok(config) => block_on(start(config)),
            Err(code) => code,
        },
        Command::Init(args) => block_on(init::run(args)),
        Command::Dev(args) => block_on(dev::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Kvctl { args } => {
            let program = OsString::from("annulus kvctl");
            kvctl(std::iter::once(program).chain(args).collect())
        }
        Command::Config { what } => config(what),
        Command::Debug(args) => block_on(debug::run(args)),
        Command::Version => {
            println!("annulus {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn load(flags: Flags) -> Result<Config, ExitCode> {
    let file = flags.config.clone();
    let texts = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Config::load(file.as_deref(), texts, flags).map_err(|errors| {
        eprintln!("annulus: {errors}");
        ExitCode::from(2)
    })
}

fn config(what: ConfigCommand) -> ExitCode {
    let text = match what {
        ConfigCommand::Docs => Config::docs(),
        ConfigCommand::Check(flags) => match load(*flags) {
            Ok(_) => "the configuration is good\n".to_owned(),
            Err(code) => return code,
        },
        ConfigCommand::Print(flags) => match load(*flags) {
            Ok(config) => config.print(),
            Err(code) => return code,
        },
    };
    print!("{text}");
    ExitCode::SUCCESS
}

/// Runs one node until SIGTERM, SIGINT, or the end of a vital part.
async fn start(config: Config) -> u8 {
    logs::begin(config.log_format, NodeId(config.node_id));
    match serve(config).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("annulus: {error:#}");
            3
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<u8> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if config.insecure {
        tracing::warn!("--insecure: listening beyond loopback without TLS");
    }
    if config.unsafe_slow_apply_ms > 0 {
        tracing::warn!(
            most_ms = config.unsafe_slow_apply_ms,
            "--unsafe-slow-apply-ms: what this node applies as a leader is delayed"
        );
    }
    let env = Env::real()?;
    let node = Node::start(env.clone(), config).await?;
    let info = node.info();
    tracing::info!(
        addr = info.addr,
        peer = info.peer_addr,
        http = info.http_addr,
        "node is listening; others are told these addresses"
    );
    let (reason, code) = tokio::select! {
        _ = terminate.recv() => ("SIGTERM".to_owned(), 0),
        _ = interrupt.recv() => ("SIGINT".to_owned(), 0),
        reason = env.tasks.stop_requested() => (reason, 1),
    };
    tracing::info!(reason, "stopping");
    node.stop(&reason).await;
    Ok(code)
}
