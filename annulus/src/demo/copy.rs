//! Files into the cluster, and back out of it, compared byte for byte.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_client::{Client, Consistency, NodeId, Receipt, Session};
use annulus_runtime::Env;
use futures_util::stream::{self, StreamExt as _};

use super::files::Taken;
use super::text::Progress;

/// Calls under way at once.
const AT_ONCE: usize = 32;
/// Times that a file is put, when the answer to the first time got lost.
const PUTS: u64 = 3;
/// How long a replica that may lag is given to catch up, for each key.
const LAG_LIMIT: Duration = Duration::from_secs(10);
const LAG_PAUSE: Duration = Duration::from_millis(20);

/// What became of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Imported {
    /// Files that were put, acknowledged or not: the first ones.
    pub(super) files: usize,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// How long it took, microseconds.
    pub(super) us: u64,
    /// Puts that had to be repeated.
    pub(super) repeated: u64,
    /// What went wrong, file by file.
    pub(super) problems: Vec<String>,
}

/// Puts `files` in order, as many as `limit` allows. The session has seen all of them then.
pub(super) async fn import(
    env: &Env,
    session: &Session,
    files: &[Taken],
    limit: Duration,
) -> Imported {
    let clock = &env.clock;
    let began_us = clock.monotonic_us();
    let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let progress = Progress::new("imported", files.len());
    let in_time =
        |_: &&Taken| std::future::ready(clock.monotonic_us().saturating_sub(began_us) < limit_us);
    let mut puts = stream::iter(files)
        .take_while(in_time)
        .map(|file| async move { (file, put(session, file).await) })
        .buffer_unordered(AT_ONCE);
    let mut imported = Imported::default();
    while let Some((file, outcome)) = puts.next().await {
        progress.step();
        imported.files += 1;
        imported.bytes += file.data.len() as u64;
        match outcome {
            Ok(repeated) => imported.repeated += repeated,
            Err(problem) => imported.problems.push(problem),
        }
    }
    drop(puts);
    imported.us = clock.monotonic_us().saturating_sub(began_us);
    imported
}

/// Puts a file. The same value again is no harm, since nobody else writes this key: so it may be
/// repeated even when it is not known what became of the first time.
async fn put(session: &Session, file: &Taken) -> Result<u64, String> {
    let mut repeated = 0;
    loop {
        match session.put(file.key.clone(), file.data.clone()).await {
            Ok(_) => return Ok(repeated),
            Err(error) if repeated + 1 == PUTS => return Err(format!("{}: {error}", file.key)),
            Err(_) => repeated += 1,
        }
    }
}

/// How files are read back.
#[derive(Clone, Copy, Debug)]
pub(super) enum How<'a> {
    /// The newest acknowledged value, or it is wrong.
    Linearizable,
    /// At least what this session has written, of any replica.
    Session(&'a Session),
    /// Of any replica that can vouch for this age; everything was acknowledged earlier.
    Bounded(Duration),
    /// Whatever a replica has; it may lag for a while.
    Any,
    /// The same, of one node.
    AnyFrom(NodeId),
}

impl How<'_> {
    /// As `kvctl get --consistency` takes it.
    pub(super) fn mode(self) -> String {
        match self {
            Self::Linearizable => "linearizable".to_owned(),
            Self::Session(_) => "session".to_owned(),
            Self::Bounded(limit) => format!("bounded:{}ms", limit.as_millis()),
            Self::Any | Self::AnyFrom(_) => "any".to_owned(),
        }
    }

    /// Whether an answer may be old and no promise is broken.
    fn may_lag(self) -> bool {
        matches!(self, Self::Any | Self::AnyFrom(_))
    }
}

/// What became of reading back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadBack {
    /// Files that were equal.
    pub(super) equal: u64,
    /// Of these, the ones that were so only after a while.
    pub(super) late: u64,
    /// How long it took, microseconds.
    pub(super) us: u64,
    /// The greatest age that a bounded answer admitted, microseconds.
    pub(super) age_us_max: Option<u64>,
    /// Who gave the answers that were equal.
    pub(super) by_node: BTreeMap<NodeId, u64>,
    /// What went wrong, file by file.
    pub(super) problems: Vec<String>,
}

/// One answer that was equal.
struct Equal {
    node: NodeId,
    /// It took more than one look.
    is_late: bool,
    age_us: Option<u64>,
}

/// Reads `files` back and compares them.
pub(super) async fn read_back(
    env: &Env,
    client: &Client,
    files: &[Taken],
    how: How<'_>,
) -> ReadBack {
    let began_us = env.clock.monotonic_us();
    let progress = Progress::new("read back", files.len());
    let mut reads =
        stream::iter(files).map(|file| compare(env, client, file, how)).buffer_unordered(AT_ONCE);
    let mut back = ReadBack::default();
    while let Some(outcome) = reads.next().await {
        progress.step();
        match outcome {
            Ok(Equal { node, is_late, age_us }) => {
                back.equal += 1;
                back.late += u64::from(is_late);
                back.age_us_max = back.age_us_max.max(age_us);
                *back.by_node.entry(node).or_default() += 1;
            }
            Err(problem) => back.problems.push(problem),
        }
    }
    drop(reads);
    back.us = env.clock.monotonic_us().saturating_sub(began_us);
    back
}

async fn compare(env: &Env, client: &Client, file: &Taken, how: How<'_>) -> Result<Equal, String> {
    let began_us = env.clock.monotonic_us();
    let mut is_late = false;
    loop {
        let key = file.key.clone();
        let get = match how {
            How::Linearizable => client.get(key),
            How::Session(session) => session.get(key),
            How::Bounded(limit) => client.get(key).consistency(Consistency::Bounded(limit)),
            How::Any => client.get(key).consistency(Consistency::Any),
            How::AnyFrom(node) => client.get(key).consistency(Consistency::Any).from_node(node),
        };
        let problem = match get.await {
            Ok(found) => match &found.value {
                Some(value) if *value == file.data => {
                    let age_us = match how {
                        How::Bounded(limit) => Some(age_within(&found.receipt, limit, &file.key)?),
                        _ => None,
                    };
                    return Ok(Equal { node: found.receipt.node, is_late, age_us });
                }
                Some(value) => {
                    let (got, wrote) = (value.len(), file.data.len());
                    format!("{wrote} bytes were written, {got} other bytes were read")
                }
                None => "it was written and is absent".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let waited_us = env.clock.monotonic_us().saturating_sub(began_us);
        if !how.may_lag() || u128::from(waited_us) > LAG_LIMIT.as_micros() {
            return Err(format!("{}: {problem}", file.key));
        }
        is_late = true;
        tokio::time::sleep(LAG_PAUSE).await;
    }
}

/// The age that an answer admits, if it is one that was asked for.
fn age_within(receipt: &Receipt, limit: Duration, key: &str) -> Result<u64, String> {
    match receipt.staleness_bound_us {
        Some(age_us) if u128::from(age_us) <= limit.as_micros() => Ok(age_us),
        Some(age_us) => Err(format!("{key}: the answer may be {age_us} µs old")),
        None => Err(format!("{key}: the answer does not say how old it may be")),
    }
}
