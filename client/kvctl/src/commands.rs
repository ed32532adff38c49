//! The commands, one module per group of the interface, and what all of them share: the options,
//! the time that is left, the connection.
//!
//! A command returns its [`Answer`](crate::output::Answer) or an error; it prints nothing itself.
//! Each is split into a part that asks the cluster and a pure part that makes the answer, so that
//! the answer can be tested without a cluster.

pub mod batch;
pub mod completions;
pub mod consent;
pub mod data;
pub mod explain;
pub mod incr;
pub mod look;
pub mod op;
pub mod operate;
pub mod plan;
pub mod ring;
pub mod session;
pub mod verify;
pub mod wish;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_client::{Client, Error, ErrorKind};
use annulus_runtime::Clock;

use crate::args::Global;
use crate::errors::nothing_applied;
use crate::output::Format;
use crate::values::Encoding;

/// What the client library may use less than the command, so that its own error, which knows what
/// happened, arrives before the command is cut off and can only guess.
const MARGIN_MOST: Duration = Duration::from_millis(100);

/// The options and the state of one command.
#[derive(Debug)]
pub struct Context {
    /// How the answer is printed.
    pub format: Format,
    /// How keys and values are written.
    pub encoding: Encoding,
    /// The whole command's time.
    pub limit: Duration,
    endpoints: Vec<String>,
    clock: Clock,
    started_us: u64,
    mutating: AtomicBool,
    /// The client, once there is one.
    client: OnceLock<Client>,
}

impl Context {
    /// Starts the command's clock.
    ///
    /// # Errors
    /// When options contradict each other or name no endpoint.
    pub fn new(global: &Global, format: Format) -> Result<Self, Error> {
        let endpoints: Vec<String> = global
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim().to_owned())
            .filter(|endpoint| !endpoint.is_empty())
            .collect();
        if endpoints.is_empty() {
            return Err(Error::bad_request("endpoints", "at least one host:port is needed"));
        }
        let clock = Clock::real();
        let started_us = clock.monotonic_us();
        Ok(Self {
            format,
            encoding: Encoding::from_flags(global.hex, global.base64)?,
            limit: global.timeout,
            endpoints,
            clock,
            started_us,
            mutating: AtomicBool::new(false),
            client: OnceLock::new(),
        })
    }

    /// A client of the cluster behind the endpoints. Whatever fails here, no command was sent yet.
    ///
    /// # Errors
    /// Those of the client library.
    pub async fn connect(&self) -> Result<Client, Error> {
        let client = Client::builder()
            .endpoints(self.endpoints.clone())
            .deadline(self.budget())
            .connect()
            .await
            .map_err(nothing_applied)?;
        // A command connects once.
        let _ = self.client.set(client.clone());
        Ok(client)
    }

    /// Ends what the command's client has open in the cluster: its writers, but for one whose operation has
    /// an unknown outcome, which `op status` can then be asked about. What cannot be ended in time ends by
    /// itself. The answer of the command is made by then, and nothing here changes it.
    pub async fn close(&self) {
        if let Some(client) = self.client.get() {
            let _ = tokio::time::timeout(self.budget(), client.close()).await;
        }
    }

    /// The deadline for a call that starts now.
    #[must_use]
    pub fn budget(&self) -> Duration {
        let passed_us = self.clock.monotonic_us().saturating_sub(self.started_us);
        budget(self.limit, Duration::from_micros(passed_us))
    }

    /// The same for a call that changes data: from here on, running out of time leaves the outcome
    /// unknown.
    #[must_use]
    pub fn mutation_budget(&self) -> Duration {
        self.mutating.store(true, Ordering::Relaxed);
        self.budget()
    }

    /// The error of a command that was cut off.
    #[must_use]
    pub fn out_of_time(&self) -> Error {
        if self.mutating.load(Ordering::Relaxed) {
            Error::unknown(ErrorKind::DeadlineExceeded {
                stage: "the change was under way".to_owned(),
            })
        } else {
            Error::refused(ErrorKind::DeadlineExceeded { stage: "asking the cluster".to_owned() })
        }
    }
}

fn budget(limit: Duration, passed: Duration) -> Duration {
    let margin = (limit / 20).min(MARGIN_MOST);
    limit.saturating_sub(passed + margin).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use annulus_types::MayHaveApplied;
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn context(line: &str) -> Result<Context, Error> {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        Context::new(&cli.global, Format::Table)
    }

    #[test]
    fn calls_end_before_the_command_does() {
        let ms = Duration::from_millis;
        for (limit, passed, left) in
            [(5_000, 0, 4_900), (5_000, 1_000, 3_900), (200, 50, 140), (200, 500, 1), (1, 0, 1)]
        {
            assert_eq!(budget(ms(limit), ms(passed)), ms(left), "{limit} {passed}");
        }
    }

    #[test]
    fn a_command_cut_off_says_whether_its_change_was_under_way() {
        let context = context("kvctl --endpoints a:1 put k v").unwrap();
        assert_eq!(context.out_of_time().may_have_applied, MayHaveApplied::No);
        assert!(context.mutation_budget() <= context.limit);
        assert_eq!(context.out_of_time().may_have_applied, MayHaveApplied::Unknown);
    }

    #[test]
    fn contradicting_options_are_refused() {
        let spaced = ["kvctl", "get", "k", "--endpoints", " a:1 ,,b:2"];
        let cli = Cli::try_parse_from(spaced).unwrap();
        let context_of = Context::new(&cli.global, Format::Json).unwrap();
        assert_eq!(context_of.endpoints, ["a:1", "b:2"]);
        assert!(context("kvctl --hex get k --base64 --endpoints a:1").is_err());
        assert!(context("kvctl get k --endpoints ,").is_err());
    }
}
