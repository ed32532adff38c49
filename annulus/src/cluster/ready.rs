//! When a cluster can be used: found out by asking it, without leaving anything in it.
//!
//! The sign is a linearizable read of a key in every shard. Such a read is granted by a leader that
//! a majority has just confirmed (R1), and that is what a write waits for too. The keys read need
//! not exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_client::{Client, Error, ErrorKind, RoutingTable};
use annulus_runtime::Env;
use annulus_types::{ShardId, ShardRoute, token_of};
use futures_util::stream::{self, StreamExt as _};

use super::LOOK_EVERY;

/// Reads under way at once while every shard is asked.
const PROBES: usize = 64;
/// Keys tried in the search for one in each shard: for 1,024 shards some ten thousand do.
const KEYS_TRIED: u32 = 1_000_000;

/// When it became ready, as readings of the monotonic clock, and how it looks.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The routing table.
    pub table: Arc<RoutingTable>,
    /// From then on a first key could be written.
    pub first_us: u64,
    /// From then on every key could be written.
    pub all_us: u64,
}

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

/// What is left of a time limit.
struct Limit<'a> {
    env: &'a Env,
    end_us: u64,
}

impl<'a> Limit<'a> {
    fn new(env: &'a Env, limit: Duration) -> Self {
        let span_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        Self { env, end_us: env.clock.monotonic_us().saturating_add(span_us) }
    }

    fn left(&self) -> Duration {
        Duration::from_micros(self.end_us.saturating_sub(self.env.clock.monotonic_us()))
    }
}

/// A client of the cluster whose nodes listen at `endpoints`, all of them. Waits until its routing
/// table names no other address: nodes that came back on other ports tell each other first.
///
/// # Errors
/// The last thing that was in the way when the limit was over.
pub async fn connect(env: &Env, endpoints: &[String], limit: Duration) -> Result<Client, Error> {
    let limit = Limit::new(env, limit);
    loop {
        let error = match try_to_connect(env, endpoints).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        if limit.left().is_zero() {
            return Err(error);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn try_to_connect(env: &Env, endpoints: &[String]) -> Result<Client, Error> {
    let builder = Client::builder().endpoints(endpoints.iter().cloned());
    let client = builder.env(env.clone()).connect().await?;
    let table = client.routes().await?;
    if let Some(moved) = table.nodes.iter().find(|node| !endpoints.contains(&node.addr)) {
        let (id, addr) = (moved.id, &moved.addr);
        return Err(not_ready(format!("node {id} is still looked for at {addr}")));
    }
    if table.shards.is_empty() {
        return Err(not_ready("the routing table is empty".to_owned()));
    }
    Ok(client)
}

/// Waits until every shard can be written.
///
/// # Errors
/// What the first shard that did not get ready within the limit said.
pub async fn wait_ready(env: &Env, client: &Client, limit: Duration) -> Result<Ready, Error> {
    let limit = Limit::new(env, limit);
    let table = client.routes().await?;
    let keys = key_in_each_shard(&table);
    if keys.len() != table.shards.len() {
        return Err(not_ready("no key was found for some shard".to_owned()));
    }
    let mut probes = stream::iter(keys)
        .map(|key| {
            let probe = client.get(key).deadline(limit.left());
            async move { probe.await }
        })
        .buffer_unordered(PROBES);
    let mut first_us = None;
    while let Some(answer) = probes.next().await {
        answer?;
        first_us.get_or_insert_with(|| env.clock.monotonic_us());
    }
    drop(probes);
    let all_us = env.clock.monotonic_us();
    Ok(Ready { table, first_us: first_us.unwrap_or(all_us), all_us })
}

fn key_in_each_shard(table: &RoutingTable) -> Vec<String> {
    let mut keys: BTreeMap<ShardId, String> = BTreeMap::new();
    for n in 0..KEYS_TRIED {
        if keys.len() == table.shards.len() {
            break;
        }
        let key = format!("probe-{n}");
        if let Some(shard) = table.shard_of(token_of(key.as_bytes())) {
            keys.entry(shard.id).or_insert(key);
        }
    }
    keys.into_values().collect()
}

/// The first of the names `prefix-0`, `prefix-1`, … that lies in a shard as wanted.
#[must_use]
pub fn key_in(
    table: &RoutingTable,
    prefix: &str,
    wanted: impl Fn(&ShardRoute) -> bool,
) -> Option<String> {
    (0..KEYS_TRIED)
        .map(|n| format!("{prefix}-{n}"))
        .find(|key| table.shard_of(token_of(key.as_bytes())).is_some_and(&wanted))
}

#[cfg(test)]
mod tests {
    use annulus_types::{Epoch, GroupId};

    use super::*;

    fn table(shards: u32) -> RoutingTable {
        let shard = |slice: u32| ShardRoute {
            id: ShardId(u64::from(slice)),
            slice,
            parent: None,
            epoch: Epoch(1),
            group: GroupId(u64::from(slice % 3)),
        };
        RoutingTable { shards: (0..shards).map(shard).collect(), ..RoutingTable::default() }
    }

    #[test]
    fn every_shard_has_a_key_to_ask_for() {
        for shards in [1, 128, 1024] {
            let table = table(shards);
            let keys = key_in_each_shard(&table);
            let mut reached: Vec<_> = keys
                .iter()
                .filter_map(|key| table.shard_of(token_of(key.as_bytes())))
                .map(|shard| shard.id)
                .collect();
            reached.dedup();
            assert_eq!(reached, table.shards.iter().map(|shard| shard.id).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_key_is_found_where_it_is_wanted() {
        let table = table(128);
        let key = key_in(&table, "tag", |shard| shard.group == GroupId(2)).unwrap();
        let shard = table.shard_of(token_of(key.as_bytes())).unwrap();
        assert_eq!(shard.group, GroupId(2));
        // A key with the name as its tag goes to the same shard.
        assert_eq!(table.shard_of(token_of(format!("{{{key}}}:7").as_bytes())), Some(shard));
        assert_eq!(key_in(&RoutingTable::default(), "tag", |_| true), None);
    }
}
