//! `annulus init --adopt`: a new manager, in a new era, for nodes that exist.
//!
//! The first endpoint does it (the node's module `adoption` says how); here a person is shown what it would
//! do, asked, and told what was done. It is asked in two calls, a dry run and the change itself: in between
//! nodes may come and go, so what is printed at the end is what counts.
//!
//! Invariants: nothing is changed without `--yes` or a person who said yes at a terminal; nothing without
//! `--force` while a manager works. Data are never touched, whatever comes of it.
//!
//! Failure: the exit code says whether a new era may have begun: 3 no, 4 perhaps. Either way the remedy is to
//! run the command again. It begins another era, and the one before it is over.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use annulus_proto::convert::{cluster_of, error_of};
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_runtime::Env;
use annulus_runtime::disk::read_file;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind, MayHaveApplied};
use clap::Args;

/// Until the first endpoint is connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Nodes that are not there are waited for: 2 s each time that somebody names new ones.
const ASK_LIMIT: Duration = Duration::from_secs(15);
/// The most that a node waits for.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);
const NO: u8 = 1;
const USAGE: u8 = 2;
const UNAVAILABLE: u8 = 3;
const PERHAPS: u8 = 4;

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Clone, Debug, Default, Args)]
pub struct AdoptArgs {
    /// Makes a new manager for the nodes of a cluster whose manager has lost its state or its majority. Data
    /// stay where they are and are served all the while
    #[arg(long, conflicts_with_all = ["shards", "lanes"])]
    pub adopt: bool,
    /// With --adopt: what `kvctl manager export` wrote, or a node's manager-era-N.bak; brings back settings
    /// and history. Where the nodes know otherwise they are right
    #[arg(long, value_name = "FILE", requires = "adopt")]
    pub from: Option<PathBuf>,
    /// With --adopt: also in place of a manager that works, and without a majority of the nodes
    #[arg(long, requires = "adopt")]
    pub force: bool,
    /// With --adopt: only tells what would be adopted
    #[arg(long, requires = "adopt")]
    pub dry_run: bool,
    /// With --adopt: does not ask
    #[arg(long, requires = "adopt")]
    pub yes: bool,
}

/// Makes the new manager, and returns the exit code. What was adopted goes to standard output. `replication`:
/// of each group, where it shall not be as the export or the groups have it.
pub async fn run(
    env: &Env,
    endpoints: &[String],
    args: &AdoptArgs,
    replication: Option<u32>,
) -> u8 {
    match Box::pin(adopt(env, endpoints, args, replication)).await {
        Ok(code) => code,
        Err(error) => {
            let (code, happened) = verdict(&error);
            eprintln!("annulus init --adopt: {error}; {happened}");
            code
        }
    }
}

async fn adopt(
    env: &Env,
    endpoints: &[String],
    args: &AdoptArgs,
    replication: Option<u32>,
) -> Result<u8, Error> {
    let Some(first) = endpoints.first() else {
        return Err(Error::bad_request("endpoints", "at least one is needed"));
    };
    let from = match &args.from {
        Some(path) => read_export(env, path)?,
        None => Vec::new(),
    };
    let request = v1::AdoptNodesRequest {
        endpoints: endpoints.to_vec(),
        from: from.into(),
        dry_run: true,
        force: args.force,
        replication,
    };
    let planned = ask(env, first, request.clone(), ASK_LIMIT).await?;
    let told = in_words(&planned, "would be adopted");
    if args.dry_run {
        print!("{told}");
        return Ok(0);
    }
    eprint!("{told}");
    if !args.yes && !is_confirmed(planned.era).await? {
        eprintln!("nothing was changed");
        return Ok(NO);
    }
    let request = v1::AdoptNodesRequest { dry_run: false, ..request };
    let adopted = ask(env, first, request, ADOPT_LIMIT).await?;
    print!("{}", in_words(&adopted, "adopted"));
    Ok(0)
}

fn read_export(env: &Env, path: &Path) -> Result<Vec<u8>, Error> {
    let read = read_file(env.disk.as_ref(), path, DECODE_BYTES as u64);
    let bytes =
        read.map_err(|error| Error::bad_request("from", format!("{}: {error}", path.display())))?;
    if bytes.is_empty() {
        return Err(Error::bad_request("from", format!("{} is empty", path.display())));
    }
    Ok(bytes)
}

async fn ask(
    env: &Env,
    endpoint: &str,
    message: v1::AdoptNodesRequest,
    limit: Duration,
) -> Result<v1::AdoptNodesReply, Error> {
    let connecting = annulus_raft::channel(env, endpoint);
    let Ok(Ok(channel)) = tokio::time::timeout(CONNECT_LIMIT, connecting).await else {
        let reason = format!("no node answers at {endpoint}");
        return Err(Error::refused(ErrorKind::NotReady { reason }));
    };
    let mut client = AdminClient::new(channel)
        .max_decoding_message_size(DECODE_BYTES)
        .max_encoding_message_size(DECODE_BYTES);
    let is_dry = message.dry_run;
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    match client.adopt_nodes(request).await {
        Ok(reply) => Ok(reply.into_inner()),
        // A question changes nothing, however it ends.
        Err(status) if is_dry => {
            Err(Error { may_have_applied: MayHaveApplied::No, ..error_of(&status) })
        }
        Err(status) => Err(error_of(&status)),
    }
}

/// Asks the person at the terminal.
async fn is_confirmed(era: u64) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let message = "a new manager needs --yes where there is no terminal to ask at; --dry-run only \
                       tells what would be adopted";
        return Err(Error::bad_request("yes", message));
    }
    eprint!(
        "begin era {era}? Whatever an earlier manager still says is refused from then on [y/N] "
    );
    // Whoever does not see the question does not say yes.
    let _ = std::io::stderr().flush();
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = match read.await {
        Ok(Ok(line)) => line,
        Ok(Err(_)) | Err(_) => String::new(),
    };
    let word = line.trim();
    Ok(word.eq_ignore_ascii_case("y") || word.eq_ignore_ascii_case("yes"))
}

/// The exit code, and what to say of what may have happened.
fn verdict(error: &Error) -> (u8, &'static str) {
    if error.may_have_applied != MayHaveApplied::No {
        return (PERHAPS, "a new era may have begun; run the command again");
    }
    let code = match error.kind {
        ErrorKind::BadRequest { .. } | ErrorKind::WrongCluster { .. } => USAGE,
        _ => UNAVAILABLE,
    };
    (code, "nothing was changed")
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn in_words(reply: &v1::AdoptNodesReply, done: &str) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut say = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{line}");
    };
    let cluster = cluster_of(&reply.cluster_id).map_or_else(|_| String::new(), |id| id.to_string());
    say(format_args!("cluster {cluster}: era {} -> {}", reply.era_before, reply.era));
    let (nodes, groups, shards) = (reply.nodes.len(), reply.groups, reply.shards);
    say(format_args!("{done}: {nodes} nodes, {groups} groups, {shards} shards"));
    say(format_args!("replication: {}", reply.replication));
    say(format_args!("nodes: {}", list(&reply.nodes)));
    if !reply.silent.is_empty() {
        say(format_args!("nodes that do not answer, and may come back: {}", list(&reply.silent)));
    }
    for endpoint in &reply.unknown {
        say(format_args!("no node of the cluster at {endpoint}"));
    }
    let members: Vec<u32> = reply.manager.iter().map(|member| member.node).collect();
    say(format_args!("the manager's group: nodes {}", list(&members)));
    for v1::StrayReplica { group, replica, node } in &reply.strays {
        say(format_args!("kept without a seat: replica {replica} of group {group} on node {node}"));
    }
    for taken in &reply.taken {
        say(format_args!("from the export: {taken}"));
    }
    for overruled in &reply.overruled {
        say(format_args!("the nodes are right: {overruled}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_adopted_is_said_line_by_line() {
        let reply = v1::AdoptNodesReply {
            cluster_id: vec![0; 16].into(),
            era_before: 1,
            era: 2,
            nodes: vec![1, 3],
            silent: vec![2],
            groups: 12,
            shards: 128,
            strays: vec![v1::StrayReplica { group: 7, replica: 70, node: 3 }],
            manager: vec![v1::MemberRoute { node: 1, replica: 5, learner: false }],
            taken: vec!["12 decisions on record".to_owned()],
            overruled: vec!["group 9: no node knows it".to_owned()],
            replication: 3,
            ..Default::default()
        };
        let told = in_words(&reply, "adopted");
        for line in [
            ": era 1 -> 2\n",
            "adopted: 2 nodes, 12 groups, 128 shards\n",
            "replication: 3\n",
            "nodes that do not answer, and may come back: 2\n",
            "the manager's group: nodes 1\n",
            "kept without a seat: replica 70 of group 7 on node 3\n",
            "from the export: 12 decisions on record\n",
            "the nodes are right: group 9: no node knows it\n",
        ] {
            assert!(told.contains(line), "{line:?} in {told}");
        }
    }

    #[test]
    fn exit_codes_promise_nothing_that_is_not_known() {
        let not_yet = ErrorKind::NotReady { reason: String::new() };
        assert_eq!(verdict(&Error::refused(not_yet.clone())).0, UNAVAILABLE);
        assert_eq!(verdict(&Error::unknown(not_yet)).0, PERHAPS);
        assert_eq!(verdict(&Error::bad_request("force", "a manager works")).0, USAGE);
    }

    #[tokio::test]
    async fn a_file_that_is_no_export_is_refused_before_anybody_is_asked() {
        let env = Env::real().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let args = AdoptArgs {
            adopt: true,
            yes: true,
            from: Some(dir.path().join("missing")),
            ..AdoptArgs::default()
        };
        let code = run(&env, &["127.0.0.1:1".to_owned()], &args, None).await;
        assert_eq!(code, USAGE);
    }
}
