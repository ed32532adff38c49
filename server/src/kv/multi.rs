//! Reads of several keys. Items are sorted by group and shard; groups are asked at the same time, so that
//! one without a leader costs the others nothing; each shard answers by itself, or fails for all of its
//! items.
//!
//! Invariants: an item is never silently missing. It is found, absent, failed with a reason, or left out
//! because the reply was full, and at least one item is something else than left out. What is said of a
//! shard's items was read at one point, that of its one receipt (R3); two shards have no common point.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{Header, Item, Items};
use annulus_proto::v1;
use annulus_raft::Group;
use annulus_types::limits::MULTI_GET_BYTES;
use annulus_types::{Error, ErrorKind, GroupId, ShardId, token_of};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::read::{Answer, Reading, Share};
use super::{KvService, Serving};
use crate::shards::Shard;
use crate::stored::Value;

/// The items of one group: per shard their places in the request.
struct Lot {
    group: Arc<Group>,
    shards: BTreeMap<ShardId, (Arc<Shard>, Vec<usize>)>,
}

/// What is known of the items so far.
struct Gathered(Items);

impl KvService {
    pub(super) async fn read_many(
        &self,
        header: &Header,
        keys: &[Bytes],
        limit: Duration,
    ) -> Result<v1::MultiGetReply, Error> {
        let deadline = Instant::now() + limit;
        let serving: &Serving = self.serving.get(header)?;
        let mut gathered = Gathered::of(keys.len());
        let room = Mutex::new(MULTI_GET_BYTES);
        let mut asked = Vec::new();
        for Lot { group, shards } in sorted(serving, keys, &mut gathered) {
            let readers = &*self.readers;
            let reading = Reading { readers, serving, header, group, deadline, room: &room };
            asked.push(read_lot(reading, shards, keys));
        }
        for (places, answer) in join_all(asked).await.into_iter().flatten() {
            match answer {
                Ok(answer) => gathered.answered(&places, answer),
                Err(error) => gathered.failed(&places, error),
            }
        }
        Ok(gathered.0.into())
    }
}

/// Sorts the items by group and shard; those of shards that are not served here have failed.
fn sorted(serving: &Serving, keys: &[Bytes], gathered: &mut Gathered) -> Vec<Lot> {
    let mut lots: BTreeMap<GroupId, Lot> = BTreeMap::new();
    let mut elsewhere = Vec::new();
    for (place, key) in keys.iter().enumerate() {
        let token = token_of(key);
        if let Some((shard, group)) = serving.find(token) {
            let empty = || Lot { group: Arc::clone(&group), shards: BTreeMap::new() };
            let lot = lots.entry(group.id()).or_insert_with(empty);
            let id = shard.id;
            lot.shards.entry(id).or_insert_with(|| (shard, Vec::new())).1.push(place);
        } else if let Some(error) = serving.coming(token) {
            gathered.failed(&[place], error);
        } else {
            elsewhere.push(place);
        }
    }
    if !elsewhere.is_empty() {
        gathered.failed(&elsewhere, serving.stale_route());
    }
    lots.into_values().collect()
}

/// What each shard of a group says about its items.
async fn read_lot(
    reading: Reading<'_>,
    shards: BTreeMap<ShardId, (Arc<Shard>, Vec<usize>)>,
    keys: &[Bytes],
) -> Vec<(Vec<usize>, Result<Answer, Error>)> {
    let mut shares = Vec::with_capacity(shards.len());
    let mut places = Vec::with_capacity(shards.len());
    for (shard, items) in shards.into_values() {
        let asked = items.iter().filter_map(|place| keys.get(*place).cloned()).collect();
        shares.push(Arc::new(Share::new(shard, asked, reading.header)));
        places.push(items);
    }
    let answers = reading.answer(&shares).await;
    places.into_iter().zip(answers).collect()
}

impl Gathered {
    /// Nothing is known of so many items.
    fn of(items: usize) -> Self {
        Self(Items { items: vec![Item::LeftOut; items], ..Items::default() })
    }

    fn set(&mut self, place: usize, item: Item) {
        if let Some(slot) = self.0.items.get_mut(place) {
            *slot = item;
        }
    }

    /// A shard has answered for its items, or for the first of them.
    fn answered(&mut self, places: &[usize], Answer { receipt, values }: Answer) {
        if values.is_empty() {
            return;
        }
        let here = self.0.receipts.len();
        self.0.receipts.push(receipt);
        for (place, value) in places.iter().zip(values) {
            let item = match value {
                Some(Value { revision: version, deadline_ms, crc, value }) => {
                    Item::Found { receipt: here, version, crc, value, deadline_ms }
                }
                None => Item::Absent { receipt: here },
            };
            self.set(*place, item);
        }
    }

    fn failed(&mut self, places: &[usize], error: Error) {
        let is_stale = |error: &Error| matches!(error.kind, ErrorKind::StaleRoute { .. });
        // One table is enough, whichever shards it is about.
        let same = |known: &Error| *known == error || is_stale(known) && is_stale(&error);
        let known = self.0.errors.iter().position(same);
        let here = known.unwrap_or(self.0.errors.len());
        if known.is_none() {
            self.0.errors.push(error);
        }
        for place in places {
            self.set(*place, Item::Failed { error: here });
        }
    }
}

#[cfg(test)]
mod tests;
