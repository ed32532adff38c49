//! A key of each group that one client writes without a pause, so that the time for which a key takes no
//! writes is measured directly when its group's leader changes.
//!
//! Its writes may not fail more than any other, and what it holds in the end is judged as a register is.
//! Failure: see [`super`]; a group of which no key is found ends the run.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use annulus_client::{Client, RoutingTable};
use annulus_types::token_of;
use anyhow::{Context, Result};
use parking_lot::Mutex;

use super::{DEADLINE, Register, Shared, Verdict};
use crate::cluster::{Cluster, READY};

/// Names tried for a key of a group.
const NAMES_MOST: u32 = 100_000;

/// See the module.
#[derive(Clone)]
pub(super) struct Probe {
    client: Client,
    key: String,
    group: u64,
    register: Arc<Mutex<Register>>,
    shared: Arc<Shared>,
}

impl Probe {
    /// One for each group, whose key is written for the first time.
    ///
    /// # Errors
    /// When a group has no key, or a first write fails.
    pub(super) async fn of_each_group(
        cluster: &Cluster,
        table: &RoutingTable,
        shared: &Arc<Shared>,
    ) -> Result<Vec<Self>> {
        let mut probes = Vec::new();
        for group in &table.groups {
            let group = group.id.0;
            let key = key_of(table, group).with_context(|| format!("no key of group {group}"))?;
            let client = cluster.client().await?;
            let mut register = Register::default();
            let number = register.begin();
            let put = client.put(key.clone(), number.to_string()).deadline(READY).await;
            put.context("the first write of a probe")?;
            register.acknowledged(number);
            let (register, shared) = (Arc::new(Mutex::new(register)), Arc::clone(shared));
            probes.push(Self { client, key, group, register, shared });
        }
        Ok(probes)
    }

    pub(super) async fn run(self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let number = self.register.lock().begin();
            let sent_us = self.shared.env.clock.monotonic_us();
            let put = self.client.put(self.key.clone(), number.to_string());
            let written = put.deadline(DEADLINE).await;
            let at_us = self.shared.answered(sent_us);
            match written {
                Ok(written) => {
                    let ack = super::ack_of(&written.receipt, sent_us, at_us);
                    self.shared.probed.lock().acknowledged(self.group, ack);
                    self.register.lock().acknowledged(number);
                }
                Err(error) => {
                    if self.shared.failed("a write of a probe", &error) {
                        self.register.lock().doubted(number);
                    }
                }
            }
        }
    }

    /// Reads its key back and judges what is there.
    pub(super) async fn read_back(&self, reader: &Client) -> Result<()> {
        let found = reader.get(self.key.clone()).deadline(READY).await?;
        let text = found.value.as_deref().map(|value| std::str::from_utf8(value).ok());
        let verdict = match text.map(|text| text.and_then(|text| text.parse().ok())) {
            None => self.register.lock().judge(None),
            Some(Some(number)) => self.register.lock().judge(Some(number)),
            Some(None) => Verdict::Wrong,
        };
        let told = || format!("{} when everything was read back", self.key);
        self.shared.damage.lock().note(verdict, told);
        Ok(())
    }
}

/// A key that the group serves.
fn key_of(table: &RoutingTable, group: u64) -> Option<String> {
    let mut names = (0..NAMES_MOST).map(|number| format!("probe-{number}"));
    names.find(|key| {
        let shard = table.shard_of(token_of(key.as_bytes()));
        shard.is_some_and(|shard| shard.group.0 == group)
    })
}
