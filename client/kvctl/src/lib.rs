//! `kvctl`, the command-line tool of Annulus, as a library: two binaries offer it, `kvctl` and
//! `annulus kvctl`.
//!
//! A command is parsed (`args`), run against the cluster through the client library
//! (`commands`), and answered in one piece (`output`), or its error is turned into an exit code
//! and one line or document (`errors`). Nothing here decides anything about data: routing,
//! retries and what may have been applied are the client library's business.
//!
//! Invariants: `--timeout` bounds the whole command, reading standard input and closing writers included;
//! the process is never ended here, only `main` does that with the code that [`run`] returns.

mod args;
mod cluster;
mod commands;
mod errors;
mod output;
mod values;

use std::ffi::OsString;
use std::io::IsTerminal;

use annulus_client::Error;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::args::{Action, Cli, ExplainWhat, OpWhat, RingWhat};
use crate::commands::{
    Context, batch, completions, consent, data, explain, incr, look, op, operate, ring, verify,
};
use crate::output::{Answer, Format};

/// The definition of the command line, for help texts and for being embedded.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs one command, prints its answer and returns the exit code. `args` begins with the name of
/// the program, like [`std::env::args_os`]. Needs a tokio runtime with timers and I/O.
pub async fn run(args: Vec<OsString>) -> u8 {
    answer(&args, std::io::stdout().is_terminal()).await.deliver()
}

async fn answer(args: &[OsString], terminal: bool) -> Answer {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return errors::arguments(&error, asks_for_json(args)),
    };
    let by_default = if terminal { Format::Table } else { Format::Json };
    let format = cli.global.output.unwrap_or(by_default);
    // Before the time of the command begins: people may think as long as they like.
    match consent::granted(&cli.action, terminal).await {
        Ok(true) => {}
        Ok(false) => return consent::declined(),
        Err(error) => return errors::answer(&error, format, &cli.global.endpoints),
    }
    let done = match Context::new(&cli.global, format) {
        Ok(context) => bounded(&context, &cli.action).await,
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| errors::answer(&error, format, &cli.global.endpoints))
}

/// Runs a command for as long as `--timeout` allows, and spends what is left of that on leaving nothing
/// open in the cluster.
async fn bounded(context: &Context, action: &Action) -> Result<Answer, Error> {
    // Boxed: it holds the futures of all commands.
    let work = Box::pin(dispatch(context, action));
    let done = match tokio::time::timeout(context.limit, work).await {
        Ok(done) => done,
        Err(_) => Err(context.out_of_time()),
    };
    Box::pin(context.close()).await;
    if action.mutates() { done } else { done.map_err(errors::nothing_applied) }
}

async fn dispatch(context: &Context, action: &Action) -> Result<Answer, Error> {
    match action {
        Action::Put(args) => data::put(context, args).await,
        Action::Get(args) => data::get(context, args).await,
        Action::Delete(args) => data::delete(context, args).await,
        Action::Incr(args) => incr::incr(context, args).await,
        Action::Batch(args) => batch::batch(context, args).await,
        Action::Op(args) => match &args.what {
            OpWhat::Status(args) => op::status(context, args).await,
        },
        Action::Status => look::status(context).await,
        Action::Nodes => look::nodes(context).await,
        Action::Groups => look::groups(context).await,
        Action::Shards(args) => look::shards(context, args).await,
        Action::Ring(args) => match args.what {
            RingWhat::Show => ring::show(context).await,
        },
        Action::Explain(args) => match &args.what {
            ExplainWhat::Key(key) => explain::key(context, key).await,
            other => operate::explain(context, other).await,
        },
        Action::Moves(args) => operate::moves(context, args).await,
        Action::Rebalance(args) => operate::rebalance(context, args).await,
        Action::Node(args) => operate::node(context, args).await,
        Action::Leader(args) => operate::leader(context, args).await,
        Action::Settings(args) => operate::settings(context, args).await,
        Action::Manager(args) => operate::manager(context, args).await,
        Action::Verify(args) => verify::verify(context, args).await,
        Action::Completions(args) => Ok(completions::script(args.shell)),
        Action::Version => Ok(version(context.format)),
    }
}

fn version(format: Format) -> Answer {
    #[derive(Serialize)]
    struct VersionView {
        version: &'static str,
    }
    let view = VersionView { version: env!("CARGO_PKG_VERSION") };
    Answer::one(format, &view, |view| format!("kvctl {}\n", view.version))
}

/// Whether a command line that could not be parsed asked for JSON, so that its error is JSON too.
fn asks_for_json(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let is_json = |format: &str| format == "json" || format == "jsonl";
    let options = words.iter().take_while(|word| *word != "--");
    options.zip(words.iter().skip(1).map(Some).chain([None])).any(|(word, next)| match &**word {
        "-o" | "--output" => next.is_some_and(|format| is_json(format)),
        joined => joined
            .strip_prefix("--output=")
            .or_else(|| joined.strip_prefix("-o"))
            .is_some_and(|format| is_json(format.trim_start_matches('='))),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    async fn run_line(line: &str) -> Answer {
        answer(&words(line), false).await
    }

    fn error_of(answer: &Answer) -> Value {
        serde_json::from_str(&answer.err).unwrap()
    }

    #[tokio::test]
    async fn a_wrong_command_line_exits_with_2() {
        for line in [
            "kvctl",
            "kvctl fly",
            "kvctl get",
            "kvctl get k --consistency strong",
            "kvctl get k --consistency bounded:0ms",
            "kvctl get k --session /",
            "kvctl get k --timeout 5",
            "kvctl ring",
            "kvctl explain",
            "kvctl incr k --min",
            "kvctl batch",
            "kvctl batch -f /no/such/file",
            "kvctl op status",
            "kvctl op status op1-nothing",
            "kvctl get zz --hex",
            "kvctl get abc --base64",
            "kvctl get 00 --hex --base64",
            "kvctl get k --endpoints ,",
            "kvctl node drain 2",
            "kvctl node weight 2 1.234 --yes",
            "kvctl rebalance pause",
            "kvctl settings set rebalance sometimes --yes",
            "kvctl settings set speed 3 --yes",
            "kvctl verify --shard x",
            "kvctl completions",
            "kvctl completions csh",
        ] {
            let answer = run_line(line).await;
            assert_eq!((answer.code, answer.out.len()), (2, 0), "{line}: {}", answer.err);
            assert!(!answer.err.is_empty(), "{line}");
        }
    }

    #[tokio::test]
    async fn with_json_a_refused_command_line_is_one_document() {
        for line in [
            "kvctl -o json get k --consistency strong",
            "kvctl get k --consistency strong --output=jsonl",
            "kvctl get k --consistency strong -ojson",
        ] {
            let answer = run_line(line).await;
            let error = error_of(&answer);
            assert_eq!((answer.code, &error["kind"]), (2, &Value::from("BadRequest")), "{line}");
            assert_eq!(error["may_have_applied"], "no", "{line}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("there are linearizable, session"), "{message}");
        }
        let error = error_of(&run_line("kvctl -o json get zz --hex").await);
        assert_eq!(error["field"], "key");
        assert!(!asks_for_json(&words("kvctl get k -o table")));
        assert!(!asks_for_json(&words("kvctl put k -- -ojson")));
        assert!(!asks_for_json(&words("kvctl get k -o")));
    }

    #[tokio::test]
    async fn help_and_version_exit_with_0() {
        for (line, text) in [
            ("kvctl --help", "Exit codes"),
            ("kvctl get --help", "kvctl get user:1 --receipt"),
            ("kvctl explain key --help", "--endpoints"),
            ("kvctl batch --help", r#"{"op": "put", "key": "{bank}:ada", "value": "90"}"#),
            ("kvctl op status --help", "op1-"),
            ("kvctl --version", env!("CARGO_PKG_VERSION")),
            ("kvctl -o table version", "kvctl "),
            ("kvctl version -o json", "{\"version\":\""),
            ("kvctl verify --help", "3 some could not be asked"),
            ("kvctl completions fish", "complete -c kvctl"),
        ] {
            let answer = run_line(line).await;
            let out = String::from_utf8(answer.out).unwrap();
            assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{line}");
            assert!(out.contains(text), "{line}: {out}");
        }
    }

    #[tokio::test]
    async fn the_format_follows_the_terminal_unless_it_is_named() {
        for (line, terminal, json) in [
            ("kvctl version", false, true),
            ("kvctl version", true, false),
            ("kvctl version -o json", true, true),
            ("kvctl version -o table", false, false),
        ] {
            let answer = answer(&words(line), terminal).await;
            assert_eq!(answer.out.starts_with(b"{"), json, "{line} {terminal}");
        }
    }

    /// A server that takes connections and never says a word.
    #[tokio::test]
    async fn the_timeout_bounds_the_whole_command() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = silent.local_addr().unwrap();
        for command in ["get k", "status", "ring show", "explain key k", "verify"] {
            let line = format!("kvctl --endpoints {endpoint} --timeout 200ms {command}");
            let answer = run_line(&line).await;
            assert_eq!((answer.code, answer.out.len()), (3, 0), "{line}: {}", answer.err);
            assert_eq!(error_of(&answer)["may_have_applied"], "no", "{line}");
        }
    }
}
