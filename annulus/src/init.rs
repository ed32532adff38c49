//! `annulus init`: creates the cluster, once; with `--adopt` makes a new manager for one that has lost its own
//! ([`adopt`]).
//!
//! The nodes may still be starting, so what only says "not yet" is asked again for a while; asking
//! twice is always safe, because the birth goes on where it stopped (H5). A cluster that already
//! has a routing table is not asked to be born again: its nodes may have moved to other addresses
//! than the plan of the birth knows.
//!
//! Failure: the exit code says whether anything may have been created: 3 no, 4 perhaps. Either way
//! the remedy is to run the command again.

use std::time::Duration;

use annulus_client::{Client, ClusterId, Error, ErrorKind, MayHaveApplied};
use annulus_runtime::Env;
use clap::Args;

pub mod adopt;

/// How long nodes are waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// One connection attempt; several fit into the whole.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// Replicas of a group in a new cluster.
const REPLICATION: u32 = 3;

const EXAMPLES: &str = "\
Example:
  annulus init --endpoints 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --shards 256
  annulus init --adopt --from manager.export --endpoints 10.0.0.1:7400

Exit codes: 0 created, or it existed before; 2 usage; 3 not created; 4 perhaps created, run the
command again. With --adopt: 0 the new manager works; 1 you said no; 2 usage, or a manager works
already; 3 nothing was changed; 4 a new era may have begun, run the command again.";

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InitArgs {
    /// Client addresses of nodes, host:port; the first one creates the cluster
    #[arg(
        long,
        env = "ANNULUS_ENDPOINTS",
        value_name = "A,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    endpoints: Vec<String>,
    /// Shards: a power of two from 1 to 1024; fixed for the life of the cluster
    #[arg(long, value_name = "N", default_value_t = 128)]
    shards: u32,
    /// Groups per node, 1 to 64; fixed for the life of the cluster
    #[arg(long, value_name = "N", default_value_t = 4)]
    lanes: u32,
    /// Replicas of each group, 1 to 7; as many as there are nodes when these are fewer. Default: 3; with
    /// --adopt as the export says, or without one as many as the group with the most has
    #[arg(long, value_name = "N")]
    replication: Option<u32>,
    #[command(flatten)]
    adoption: adopt::AdoptArgs,
}

/// What a cluster is created with. The nodes judge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Shards: a power of two from 1 to 1,024.
    pub shards: u32,
    /// Groups per node, 1 to 64.
    pub lanes: u32,
    /// Replicas of each group, 1 to 7.
    pub replication: u32,
}

/// The cluster that exists now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub cluster: ClusterId,
    /// Whether this call created it.
    pub now: bool,
}

/// Creates the cluster, and returns the exit code. The cluster's id goes to standard output.
pub async fn run(args: InitArgs) -> u8 {
    let env = match Env::real() {
        Ok(env) => env,
        Err(error) => {
            eprintln!("annulus init: no randomness to be had: {error}");
            return 3;
        }
    };
    let InitArgs { endpoints, shards, lanes, replication, adoption } = args;
    if adoption.adopt {
        return Box::pin(adopt::run(&env, &endpoints, &adoption, replication)).await;
    }
    let settings = Settings { shards, lanes, replication: replication.unwrap_or(REPLICATION) };
    match Box::pin(create(&env, &endpoints, settings, PATIENCE)).await {
        Ok(created) => {
            println!("{}", created.cluster);
            if created.now {
                let Settings { shards, lanes, replication } = settings;
                eprintln!(
                    "created the cluster: {shards} shards, {lanes} lanes, replication {replication}"
                );
            } else {
                eprintln!("the cluster exists already; nothing was changed");
            }
            0
        }
        Err(error) => {
            let happened = match error.may_have_applied {
                MayHaveApplied::No => "nothing was created",
                MayHaveApplied::Yes | MayHaveApplied::Unknown => "it may have been created",
            };
            let place = endpoints.join(", ");
            eprintln!(
                "annulus init: {error} (endpoints {place}); {happened}; see whether all nodes run, \
                 then run the command again"
            );
            exit_code(&error)
        }
    }
}

/// Creates the cluster, or finds the one that exists, within `limit`.
///
/// # Errors
/// The last answer, when the limit was over or asking again would not help.
pub async fn create(
    env: &Env,
    endpoints: &[String],
    settings: Settings,
    limit: Duration,
) -> Result<Created, Error> {
    let span_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let end_us = env.clock.monotonic_us().saturating_add(span_us);
    let left = || Duration::from_micros(end_us.saturating_sub(env.clock.monotonic_us()));
    let mut applied = MayHaveApplied::No;
    loop {
        let error = match attempt(env, endpoints, settings, left()).await {
            Ok(created) => return Ok(created),
            Err(error) => error,
        };
        applied = applied.and_then(error.may_have_applied);
        if !may_change(&error) || left().is_zero() {
            return Err(Error { may_have_applied: applied, ..error });
        }
        tokio::time::sleep(PAUSE.min(left())).await;
    }
}

async fn attempt(
    env: &Env,
    endpoints: &[String],
    settings: Settings,
    left: Duration,
) -> Result<Created, Error> {
    let builder = Client::builder().endpoints(endpoints.iter().cloned()).env(env.clone());
    let client = builder.deadline(left.min(CONNECT_LIMIT)).connect().await?;
    if let Ok(table) = client.routes().await {
        return Ok(Created { cluster: table.cluster, now: false });
    }
    let Settings { shards, lanes, replication } = settings;
    let init = client.init(shards, lanes, replication);
    match tokio::time::timeout(left.max(PAUSE), init).await {
        Ok(answer) => answer.map(|(cluster, now)| Created { cluster, now }),
        Err(_) => {
            let stage = "waiting for the cluster's birth".to_owned();
            Err(Error::unknown(ErrorKind::DeadlineExceeded { stage }))
        }
    }
}

/// Whether the same question may be answered otherwise a moment later.
fn may_change(error: &Error) -> bool {
    error.is_retryable()
        || matches!(
            error.kind,
            ErrorKind::OutcomeUnknown | ErrorKind::DeadlineExceeded { .. } | ErrorKind::Cancelled
        )
}

fn exit_code(error: &Error) -> u8 {
    match error.kind {
        _ if error.may_have_applied != MayHaveApplied::No => 4,
        ErrorKind::BadRequest { .. } | ErrorKind::WrongCluster { .. } => 2,
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => 5,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_promise_nothing_that_is_not_known() {
        let not_yet = ErrorKind::NotReady { reason: String::new() };
        assert_eq!(exit_code(&Error::refused(not_yet.clone())), 3);
        assert_eq!(exit_code(&Error::unknown(not_yet.clone())), 4);
        assert_eq!(exit_code(&Error::bad_request("shards", "must be a power of two")), 2);
        assert_eq!(exit_code(&Error::refused(ErrorKind::Forbidden)), 5);
        assert!(may_change(&Error::refused(not_yet)));
        assert!(may_change(&Error::unknown(ErrorKind::OutcomeUnknown)));
        assert!(!may_change(&Error::bad_request("shards", "must be a power of two")));
    }

    #[tokio::test]
    async fn nodes_that_do_not_answer_are_given_up_with_nothing_created() {
        let env = Env::real().unwrap();
        // A port that was free a moment ago: nobody answers there.
        let addr = {
            let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            env.network.listen(any).await.unwrap().local_addr()
        };
        let settings = Settings { shards: 1, lanes: 1, replication: 1 };
        let limit = Duration::from_millis(50);
        let error = create(&env, &[addr.to_string()], settings, limit).await.unwrap_err();
        assert_eq!(error.may_have_applied, MayHaveApplied::No, "{error:?}");
        assert_eq!(exit_code(&error), 3);
    }
}
