//! Which manager this node obeys, and the end of what it holds of former ones (H6).
//!
//! A node learns of a later reign (an era and whose it is) from whoever speaks for it: a push, the answer to a
//! heartbeat, the ping of a peer, or the node that makes the manager. All of them end here. Of two managers of
//! one era the one with the higher incarnation is the later, so that nodes which obey different ones agree as
//! soon as they meet.
//!
//! # The order
//!
//! 1. The reign is stored, synced (`fences`). From here on commands of former managers are refused.
//! 2. The Raft host goes by it: no replica of a former manager's group is opened any more, and none is heard.
//! 3. The state of the former manager, if this node has a replica with one, is copied to the file
//!    `manager-era-N.bak` (N: its era) in the data folder. It is what `kvctl manager export` writes, and
//!    `annulus init --adopt --from` takes it.
//! 4. The replica is ended for good: a tombstone in the log, and its rows in the engine go.
//!
//! Only group 0 is concerned. Groups with data never end in this way (H4), and go on all the while: they do
//! not need a manager.
//!
//! # Failure
//!
//! Without 1 nothing has happened. After it each step is repeated until it is done, at once at the next start,
//! before any replica is opened, else every second: a crash between two steps leaves a replica that nobody
//! hears. A copy that cannot be written keeps the replica, for it may be the last; then whoever makes the
//! new manager is refused, and has to wait. The copy holds what was applied here by then: other nodes may
//! have known more. A state that does not read is not copied.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_raft::{Host, Reign};
use annulus_runtime::disk::replace_file;
use annulus_shard_manager::ManagerMachine;
use annulus_types::{Error, ErrorKind, GroupId};
use prost::Message as _;

use super::{Node, command};

/// Between two looks for what is not ended yet.
const LOOK: Duration = Duration::from_secs(1);

fn not_ready(reason: impl Into<String>) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.into() })
}

impl Node {
    /// As [`Node::enter_reign`], for callers that do not hold `changing`. Run it to its end.
    pub(super) async fn hear_reign(self: &Arc<Self>, reign: Reign) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        Box::pin(self.enter_reign(reign)).await
    }

    /// Takes note of a reign, durably, and ends what is held of former ones. Called under `changing`; run it to
    /// its end. The present one again changes nothing.
    ///
    /// # Errors
    /// `BadRequest` on `era` for an earlier one; `NotReady` when a step failed: it is tried again.
    pub(super) async fn enter_reign(self: &Arc<Self>, reign: Reign) -> Result<(), Error> {
        if reign != self.fences.reign() {
            let fences = Arc::clone(&self.fences);
            let stored = tokio::task::spawn_blocking(move || fences.obey_reign(reign)).await;
            let stored = stored.map_err(|error| not_ready(error.to_string()))?;
            stored.map_err(|error| command::refusal(&error))?;
            tracing::info!(
                era = reign.era,
                incarnation = reign.incarnation,
                "a manager's reign begins"
            );
        }
        let Some(host) = self.host() else { return Ok(()) };
        host.enter_reign(self.fences.reign());
        self.put_aside(&host).await
    }

    /// Ends the replicas of former managers' groups; see the module. Called under `changing`; run it to its
    /// end.
    pub(super) async fn put_aside(self: &Arc<Self>, host: &Arc<Host>) -> Result<(), Error> {
        for replica in host.deposed() {
            self.keep_state().await?;
            Box::pin(host.depose(replica)).await?;
            self.forget(host, GroupId::MANAGER);
            tracing::warn!(%replica, era = host.reign().era, "a replica of a former manager is put aside");
        }
        Ok(())
    }

    /// Copies the state of the former manager, if there is one.
    async fn keep_state(self: &Arc<Self>) -> Result<(), Error> {
        let kept = self.manager.lock().clone();
        let machine = match kept {
            Some(machine) => machine,
            None => match ManagerMachine::open(self.engine.as_ref()) {
                Ok(machine) => machine,
                Err(error) => {
                    tracing::error!(%error, "the state of a former manager does not read; no copy is kept");
                    return Ok(());
                }
            },
        };
        let Some(state) = machine.state() else { return Ok(()) };
        let node = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || node.write_state(&state)).await;
        let written = written.map_err(|error| not_ready(error.to_string()))?;
        written.map_err(|error| not_ready(format!("copying the former manager's state: {error}")))
    }

    /// Waits on the disk.
    fn write_state(&self, state: &v1::ManagerState) -> std::io::Result<()> {
        let (name, dir) = (format!("manager-era-{}.bak", state.era), &self.config.data_dir);
        replace_file(self.env.disk.as_ref(), dir, &name, &state.encode_to_vec())?;
        let file = dir.join(&name);
        tracing::warn!(file = %file.display(), "the state of a former manager is kept");
        Ok(())
    }
}

/// Listens to what peers tell of reigns, and ends what is left of former ones, until the node stops.
pub(super) async fn watch(node: Arc<Node>, host: Arc<Host>) {
    let mut heard = host.heard_reign();
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !node.env.tasks.is_stopping() {
        tokio::select! {
            changed = heard.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = ticker.tick() => {}
            _ = node.env.tasks.stop_requested() => return,
        }
        let (told, known) = (*heard.borrow_and_update(), node.fences.reign());
        let reign = told.max(known);
        if reign == known && host.deposed().is_empty() {
            continue;
        }
        if let Err(error) = Box::pin(node.hear_reign(reign)).await {
            tracing::warn!(%error, era = reign.era, "a former manager is not put aside yet");
        }
    }
}
