//! `annulus debug`: a look into the folder of a stopped node.
//!
//! `debug find` says which replicas of the folder hold a key. It finds the shards by their records,
//! not by a routing table: what counts is what this node would serve. Only what the engine holds is
//! seen; entries of the log that were not applied yet are not.
//!
//! Invariants: the folder is locked while it is read, so a running node refuses; its identity is
//! left as it is: looking is no start (N1). Opening an engine may repair it as a start would.
//!
//! Failure: exit code 3, and what is wrong with the folder. 1 is an answer: no replica holds the key.

use std::io::{ErrorKind, IsTerminal as _};
use std::path::{Path, PathBuf};

use annulus_engine::key::{self, data};
use annulus_engine::{Engine, EngineKind};
use annulus_runtime::Env;
use annulus_server::stored::{Head, Value};
use annulus_types::{GroupId, NamespaceId, ShardId, token_of};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cluster::{Usage, exit_code};
use crate::node::Identity;

/// Records read at once.
const PAGE: usize = 1_000;

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Debug, Args)]
pub struct DebugArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Which replicas in the folder of a stopped node hold a key; exit code 1 when none does
    #[command(after_help = "Example:\n  annulus debug find user:1 --data-dir /var/lib/annulus")]
    Find {
        /// The key
        #[arg(value_name = "K")]
        key: String,
        /// The folder of the node
        #[arg(long, value_name = "D")]
        data_dir: PathBuf,
        /// How the answer is printed [default: table on a terminal, else json]
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<Format>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns
    Table,
    /// One JSON document
    Json,
    /// One JSON document per line
    Jsonl,
}

/// A replica of the shard that owns the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Replica {
    node: u32,
    engine: &'static str,
    group: u64,
    shard: u64,
    /// The shard's.
    revision: u64,
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// Of the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Whether the value matches its checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    intact: Option<bool>,
}

/// Runs the command and returns the exit code.
pub async fn run(args: DebugArgs) -> u8 {
    let What::Find { key, data_dir, output } = args.what;
    let env = Env::real().map_err(anyhow::Error::from);
    let replicas = match env.and_then(|env| find(&env, &data_dir, &key)) {
        Ok(replicas) => replicas,
        Err(error) => {
            eprintln!("annulus debug: {error:#}");
            return exit_code(&error);
        }
    };
    let by_default = if std::io::stdout().is_terminal() { Format::Table } else { Format::Json };
    match shown(&replicas, output.unwrap_or(by_default)) {
        Ok(text) => print!("{text}"),
        Err(error) => {
            eprintln!("annulus debug: {error}");
            return 3;
        }
    }
    if replicas.is_empty() {
        eprintln!("no replica in {} has the shard of this key", data_dir.display());
    }
    u8::from(!replicas.iter().any(|replica| replica.found))
}

/// Every replica in the folder whose shard owns `key`.
fn find(env: &Env, dir: &Path, key: &str) -> anyhow::Result<Vec<Replica>> {
    let disk = env.disk.as_ref();
    let place = dir.display();
    if key.is_empty() {
        return Err(Usage("a key is never empty".to_owned()).into());
    }
    let Some(identity) = Identity::read(disk, dir).with_context(|| format!("reading {place}"))?
    else {
        return Err(Usage(format!("{place} is not the folder of a node")).into());
    };
    let _lock = match disk.lock_dir(dir) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            bail!("{place} is in use by a running node; stop it first");
        }
        Err(error) => return Err(error).with_context(|| format!("locking {place}")),
    };
    let mut replicas = Vec::new();
    let mut engines = 0;
    // A node whose engine was changed has the folder of the former one still.
    for kind in [EngineKind::Fjall, EngineKind::Sled] {
        let folder = dir.join(format!("engine-{kind}"));
        if !disk.exists(&folder)? {
            continue;
        }
        engines += 1;
        let engine = annulus_engine::open(kind, &folder)?;
        let found = find_in(engine.as_ref(), key.as_bytes())?;
        replicas.extend(found.into_iter().map(|found| found.on(identity.node.0, kind)));
    }
    if engines == 0 {
        bail!("{place} holds no engine: the node keeps its data in memory, or never had any");
    }
    Ok(replicas)
}

/// A shard that owns the key, and what it holds of it.
#[derive(Debug)]
struct Found {
    group: GroupId,
    shard: ShardId,
    head: Head,
    value: Option<Value>,
}

impl Found {
    fn on(self, node: u32, kind: EngineKind) -> Replica {
        let Self { group, shard, head, value } = self;
        Replica {
            node,
            engine: kind.name(),
            group: group.0,
            shard: shard.0,
            revision: head.revision.0,
            found: value.is_some(),
            version: value.as_ref().map(|value| value.revision.0),
            bytes: value.as_ref().map(|value| value.value.len() as u64),
            intact: value.as_ref().map(|value| crc32fast::hash(&value.value) == value.crc),
        }
    }
}

fn find_in(engine: &dyn Engine, user_key: &[u8]) -> anyhow::Result<Vec<Found>> {
    let token = token_of(user_key);
    let mut found = Vec::new();
    for (group, shard, head) in heads(engine)? {
        if !head.owns(token) {
            continue;
        }
        let physical = data(head.prefix, NamespaceId::default(), token, user_key);
        let stored = engine.get(&[&physical])?.into_iter().next().flatten();
        let value = stored.map(Value::decode).transpose();
        let value = value.with_context(|| format!("the value in shard {shard}"))?;
        found.push(Found { group, shard, head, value });
    }
    Ok(found)
}

/// The heads of all shards' records, whatever their groups. Group 0's record is the manager's state.
fn heads(engine: &dyn Engine) -> anyhow::Result<Vec<(GroupId, ShardId, Head)>> {
    // From the first group that there can be to the last.
    let mut from = key::records_range(GroupId::MANAGER).end;
    let end = key::records_range(GroupId(u64::MAX)).end;
    let mut heads = Vec::new();
    loop {
        let page = engine.rows(from..end.clone(), PAGE)?;
        let is_last = page.len() < PAGE;
        let last = page.last().map(|(record, _)| record.clone());
        for (record, stored) in page {
            let Some((group, shard)) = head_of(&record) else { continue };
            let head = Head::decode(stored).with_context(|| format!("shard {shard}"))?;
            heads.push((group, shard, head));
        }
        let Some(last) = last.filter(|_| !is_last) else { return Ok(heads) };
        let mut next = last.to_vec();
        next.push(0);
        from = next.into();
    }
}

/// Group and shard, when the key is that of a record's head.
fn head_of(record: &Bytes) -> Option<(GroupId, ShardId)> {
    let number = |at: std::ops::Range<usize>| {
        let bytes: [u8; 8] = record.get(at)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    let (group, shard) = (GroupId(number(1..9)?), ShardId(number(9..17)?));
    (*record == key::record(group, shard, 0, &[])).then_some((group, shard))
}

fn shown(replicas: &[Replica], format: Format) -> serde_json::Result<String> {
    match format {
        Format::Json => Ok(serde_json::to_string(replicas)? + "\n"),
        Format::Jsonl => {
            let line = |one: &Replica| serde_json::to_string(one).map(|line| line + "\n");
            replicas.iter().map(line).collect()
        }
        Format::Table => Ok(table(replicas)),
    }
}

fn yes_no(yes: bool) -> String {
    let word = if yes { "yes" } else { "no" };
    word.to_owned()
}

fn table(replicas: &[Replica]) -> String {
    let row = |cells: [String; 9]| {
        let [node, engine, group, shard, revision, found, version, bytes, intact] = cells;
        let line = format!(
            "{node:>5}  {engine:<6}  {group:>16}  {shard:>16}  {revision:>10}  {found:<5}  \
             {version:>10}  {bytes:>9}  {intact}"
        );
        line.trim_end().to_owned() + "\n"
    };
    let or_dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let names =
        ["node", "engine", "group", "shard", "revision", "found", "version", "bytes", "intact"];
    let mut text = row(names.map(str::to_owned));
    for one in replicas {
        text += &row([
            one.node.to_string(),
            one.engine.to_owned(),
            one.group.to_string(),
            one.shard.to_string(),
            one.revision.to_string(),
            yes_no(one.found),
            or_dash(one.version),
            or_dash(one.bytes),
            one.intact.map_or_else(|| "-".to_owned(), yes_no),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use annulus_engine::Batch;
    use annulus_engine::key::Prefix;
    use annulus_types::{Epoch, NodeId, Revision};

    use super::*;
    use crate::node::Folder;

    const GROUP: GroupId = GroupId(9);

    fn head(prefix: u64, first: u16) -> Head {
        Head {
            prefix: Prefix(prefix),
            first,
            count: 512,
            revision: Revision(5),
            epoch: Epoch(1),
            time_offset_ms: 0,
            keys: 1,
            bytes: 6,
        }
    }

    /// A folder of node 3 with two shards; the one that owns `user_key` holds it.
    fn folder(user_key: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        Folder::open(&env, dir.path(), NodeId(3)).unwrap();
        let engine = annulus_engine::open(EngineKind::Fjall, &dir.path().join("engine-fjall"));
        let engine = engine.unwrap();
        let token = token_of(user_key.as_bytes());
        let mut batch = Batch::default();
        for (shard, head) in [(1, head(11, 0)), (2, head(12, 512))] {
            batch.put(key::record(GROUP, ShardId(shard), 0, &[]), head.encode());
            batch.put(key::record(GROUP, ShardId(shard), 7, b"later"), "not a head");
            if head.owns(token) {
                let crc = crc32fast::hash(b"value");
                let (value, revision) = (Bytes::from_static(b"value"), Revision(4));
                let value = Value { revision, deadline_ms: 0, crc, value };
                let physical =
                    data(head.prefix, NamespaceId::default(), token, user_key.as_bytes());
                batch.put(physical, value.encode());
            }
        }
        engine.apply(batch).unwrap();
        engine.make_durable().unwrap();
        dir
    }

    #[test]
    fn a_key_is_found_in_the_shard_that_owns_it() {
        let dir = folder("k");
        let env = Env::real().unwrap();
        let before = Identity::read(env.disk.as_ref(), dir.path()).unwrap();
        let found = find(&env, dir.path(), "k").unwrap();
        assert_eq!(found.len(), 1);
        let replica = &found[0];
        assert_eq!((replica.node, replica.group, replica.revision), (3, 9, 5));
        assert_eq!(
            (replica.version, replica.bytes, replica.intact),
            (Some(4), Some(5), Some(true))
        );
        let lines = shown(&found, Format::Jsonl).unwrap();
        assert!(lines.starts_with(r#"{"node":3,"engine":"fjall","group":9,"#), "{lines}");
        assert_eq!(lines.lines().count(), 1);
        assert_eq!(shown(&found, Format::Table).unwrap().lines().count(), 2);
        let absent = find(&env, dir.path(), "another key").unwrap();
        assert_eq!(absent.iter().map(|replica| replica.found).collect::<Vec<_>>(), [false]);
        assert_eq!(Identity::read(env.disk.as_ref(), dir.path()).unwrap(), before);
    }

    #[test]
    fn a_running_node_and_a_strange_folder_are_refused() {
        let dir = folder("k");
        let env = Env::real().unwrap();
        let running = Folder::open(&env, dir.path(), NodeId(3)).unwrap();
        let error = find(&env, dir.path(), "k").unwrap_err();
        assert!(error.to_string().contains("in use by a running node"), "{error:#}");
        assert_eq!(exit_code(&error), 3);
        drop(running);
        let strange = tempfile::tempdir().unwrap();
        let error = find(&env, strange.path(), "k").unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error:#}");
    }
}
