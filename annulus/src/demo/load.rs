//! A light load that goes on while something else happens to the cluster: one writer for each group, which
//! counts under a key of its own and reads every value back, linearizable, before it writes the next.
//!
//! It is no benchmark: each writer pauses between two rounds. It is there to show what clients notice.
//!
//! Failure: every call that fails, and every read of another value than the acknowledged one, is a problem.
//! After a write that failed nothing is expected of the key until the next one is acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_client::Client;
use annulus_runtime::Env;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;

use super::files::Taken;

/// Between two rounds of a writer.
const PACE: Duration = Duration::from_millis(100);

/// What the load has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Writes, failed ones too.
    pub(super) writes: u64,
    /// Reads, failed ones too.
    pub(super) reads: u64,
    /// The longest write, microseconds: nothing could be written to its key for so long.
    pub(super) write_us_max: u64,
    /// The longest read, microseconds.
    pub(super) read_us_max: u64,
    /// What failed.
    pub(super) problems: Vec<String>,
    /// What the keys must hold from now on.
    pub(super) left: Vec<Taken>,
}

/// Writes to `keys` until `is_over`, then lets calls that are under way end.
pub(super) async fn bear(
    env: &Env,
    client: &Client,
    keys: &[String],
    is_over: &AtomicBool,
) -> Load {
    let load = Mutex::new(Load::default());
    join_all(keys.iter().map(|key| tend(env, client, key, &load, is_over))).await;
    load.into_inner()
}

async fn tend(env: &Env, client: &Client, key: &str, load: &Mutex<Load>, is_over: &AtomicBool) {
    let clock = &env.clock;
    let mut count: u64 = 0;
    let mut kept: Option<Bytes> = None;
    while !is_over.load(Ordering::Relaxed) {
        count += 1;
        let data = Bytes::from(count.to_string());
        let began_us = clock.monotonic_us();
        let put = client.put(key.to_owned(), data.clone()).await;
        let took_us = clock.monotonic_us().saturating_sub(began_us);
        kept = put.is_ok().then_some(data);
        {
            let mut load = load.lock();
            load.writes += 1;
            load.write_us_max = load.write_us_max.max(took_us);
            if let Err(error) = put {
                load.problems.push(format!("{key} could not be set to {count}: {error}"));
            }
        }
        if let Some(expected) = &kept {
            let began_us = clock.monotonic_us();
            let got = client.get(key.to_owned()).await;
            let took_us = clock.monotonic_us().saturating_sub(began_us);
            let mut load = load.lock();
            load.reads += 1;
            load.read_us_max = load.read_us_max.max(took_us);
            match got {
                Ok(found) if found.value.as_ref() == Some(expected) => {}
                Ok(_) => load.problems.push(format!("{key} was set to {count} and is not {count}")),
                Err(error) => load.problems.push(format!("{key} could not be read: {error}")),
            }
        }
        tokio::time::sleep(PACE).await;
    }
    if let Some(data) = kept {
        load.lock().left.push(Taken { key: key.to_owned(), data });
    }
}
