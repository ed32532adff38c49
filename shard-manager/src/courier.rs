//! Carries tables and commands to nodes.
//!
//! Each call is a task of its own with a deadline, so that a node that does not answer holds nobody
//! up; there is one push at a time for a node and a bounded number of commands. What became of a
//! command goes to the desk of the term in which it was sent; a later term does not hear of it.
//!
//! Failure: a lost call is an error like a refusal. Every call may be repeated, so it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::error_of;
use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_raft::Reign;
use annulus_runtime::OnEnd;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind, NodeId};
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::manager::Manager;
use crate::sight::Tell;
use crate::state::{StateExt as _, id_of, is_up};

/// A node that is not connected within this is tried again later.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// A node that does not answer a push for this long is tried again later.
const PUSH_LIMIT: Duration = Duration::from_secs(5);
/// Between two pushes of one table to a node that is up, and to one that is not, milliseconds.
const PUSH_RETRY_MS: (u64, u64) = (500, 5_000);
/// Commands under way at a time.
const COMMANDS_MOST: usize = 64;

/// Names a life of a node's folder.
type Life = (u32, u64);

#[derive(Default)]
struct Pushed {
    /// The table that it said it holds.
    held: u64,
    /// When it took the last one.
    taken_ms: u64,
    is_busy: bool,
    /// When the last push ended without success, and in which term.
    failed: Option<(u64, u64)>,
}

/// In whose name a command is sent (H6).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker {
    pub reign: Reign,
    /// Of the leader of group 0.
    pub term: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Courier {
    channels: Mutex<BTreeMap<NodeId, (String, Channel)>>,
    pushed: Mutex<BTreeMap<Life, Pushed>>,
}

/// How long a node may take.
fn limit_of(command: &Command) -> Duration {
    match command {
        // The whole state of a group crosses the network.
        Command::Seed(_) => Duration::from_secs(600),
        // It is read back from two engines.
        Command::Verify(_) => Duration::from_secs(120),
        Command::Create(_)
        | Command::Change(_)
        | Command::Transfer(_)
        | Command::Retire(_)
        | Command::Cancel(_) => Duration::from_secs(10),
    }
}

impl Manager {
    /// A new term trusts nothing that an earlier one was told.
    pub(crate) fn forget_pushes(&self) {
        let mut pushed = self.courier.pushed.lock();
        pushed.retain(|_, pushed| pushed.is_busy);
        for pushed in pushed.values_mut() {
            pushed.held = 0;
        }
    }

    async fn client(&self, node: u32) -> Result<PeerClient<Channel>, Error> {
        let not_ready = |reason: String| Error::refused(ErrorKind::NotReady { reason });
        let id = NodeId(node);
        let Some(info) = self.host.book().find(id) else {
            return Err(not_ready(format!("no address of node {node} is known")));
        };
        let addr = info.peer_addr;
        let known = self.courier.channels.lock().get(&id).cloned();
        let channel = match known {
            Some((at, channel)) if at == addr => channel,
            _ => {
                let connecting = annulus_raft::channel(&self.env, &addr);
                let channel = match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
                    Ok(Ok(channel)) => channel,
                    Ok(Err(_)) | Err(_) => {
                        return Err(not_ready(format!("no node answers at {addr}")));
                    }
                };
                self.courier.channels.lock().insert(id, (addr, channel.clone()));
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_encoding_message_size(DECODE_BYTES)
            .max_decoding_message_size(DECODE_BYTES))
    }

    /// The next call connects anew.
    fn hang_up(&self, node: u32) {
        self.courier.channels.lock().remove(&NodeId(node));
    }

    /// Sends a command, unless too many are under way.
    pub(crate) fn send(self: &Arc<Self>, tell: Tell, by: Speaker) {
        let errand = tell.errand();
        {
            let Ok((mut desk, now)) = self.desk(by.term) else { return };
            if desk.sight.busy() >= COMMANDS_MOST {
                return;
            }
            desk.sight.sent(errand, now.mono_ms);
        }
        let manager = Arc::clone(self);
        self.env.tasks.spawn("manager command", OnEnd::Ignore, async move {
            let limit = limit_of(&tell.command);
            let called = tokio::time::timeout(limit, manager.call(&tell, by)).await;
            let result = called.unwrap_or_else(|_| {
                let stage = "waiting for the node".to_owned();
                Err(Error::unknown(ErrorKind::DeadlineExceeded { stage }))
            });
            if let Err(error) = &result {
                manager.hang_up(tell.node);
                let (node, group) = (tell.node, tell.group);
                tracing::info!(node, group, act = ?errand.act, %error, "a node refused a command");
            }
            if let Ok((mut desk, now)) = manager.desk(by.term) {
                desk.sight.answered(errand, result, now.mono_ms);
            }
        });
    }

    async fn call(&self, tell: &Tell, by: Speaker) -> Result<v1::CommandReply, Error> {
        let request = v1::CommandRequest {
            era: by.reign.era,
            term: by.term,
            generation: tell.generation,
            node: tell.node,
            incarnation: tell.incarnation,
            group: tell.group,
            manager_incarnation: by.reign.incarnation,
            command: Some(tell.command),
        };
        let mut client = self.client(tell.node).await?;
        let answered = client.command(request).await;
        answered.map(tonic::Response::into_inner).map_err(|status| error_of(&status))
    }

    /// Pushes the table to the nodes that hold an older one. `told`: versions from heartbeats, and
    /// when they came.
    pub(crate) fn push_table(
        self: &Arc<Self>,
        state: &Arc<v1::ManagerState>,
        term: u64,
        told: &BTreeMap<u32, (u64, u64)>,
        now_ms: u64,
    ) {
        let listed = |node: &&v1::NodeRecord| node.state() != v1::NodeState::Removed;
        let lives: Vec<Life> = state.nodes.iter().map(life_of).collect();
        let mut pushed = self.courier.pushed.lock();
        pushed.retain(|life, pushed| pushed.is_busy || lives.contains(life));
        for node in state.nodes.iter().filter(listed) {
            let (id, incarnation) = life_of(node);
            let known = pushed.entry((id, incarnation)).or_default();
            if let Some((version, _)) = told.get(&id).filter(|(_, at_ms)| *at_ms > known.taken_ms) {
                known.held = *version;
            }
            let retry_ms = if is_up(node) { PUSH_RETRY_MS.0 } else { PUSH_RETRY_MS.1 };
            let rests = known.failed.is_some_and(|(at_ms, in_term)| {
                in_term == term && now_ms.saturating_sub(at_ms) < retry_ms
            });
            if known.is_busy || rests || known.held >= state.table_version {
                continue;
            }
            known.is_busy = true;
            let request = push_of(state, node, term);
            let manager = Arc::clone(self);
            self.env.tasks.spawn("table push", OnEnd::Ignore, async move {
                let result = manager.push(request).await;
                manager.pushed((id, incarnation), term, result);
            });
        }
    }

    async fn push(&self, request: v1::PushRequest) -> Result<u64, Error> {
        let mut client = self.client(request.node).await?;
        match tokio::time::timeout(PUSH_LIMIT, client.push(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().table_version),
            Ok(Err(status)) => Err(error_of(&status)),
            Err(_) => {
                let stage = "waiting for the node".to_owned();
                Err(Error::unknown(ErrorKind::DeadlineExceeded { stage }))
            }
        }
    }

    fn pushed(&self, life: Life, term: u64, result: Result<u64, Error>) {
        if let Err(error) = &result {
            self.hang_up(life.0);
            tracing::info!(node = life.0, %error, "a node did not take the table");
        }
        let now_ms = self.env.clock.monotonic_us() / 1_000;
        let mut pushed = self.courier.pushed.lock();
        let known = pushed.entry(life).or_default();
        known.is_busy = false;
        match result {
            Ok(version) => {
                (known.held, known.taken_ms) = (version, now_ms);
                known.failed = None;
            }
            Err(_) => known.failed = Some((now_ms, term)),
        }
    }
}

fn life_of(node: &v1::NodeRecord) -> Life {
    (id_of(node), node.incarnation)
}

/// What a node is told: its table, and which life of every node it shall hear (N1).
fn push_of(state: &v1::ManagerState, node: &v1::NodeRecord, term: u64) -> v1::PushRequest {
    let (id, incarnation) = life_of(node);
    v1::PushRequest {
        era: state.era,
        term,
        node: id,
        incarnation,
        table: Some(Manager::table_for(state, node)),
        admitted: state.admitted(),
        manager_incarnation: state.incarnation,
    }
}

#[cfg(test)]
mod tests {
    use annulus_proto::v1::manager_command::Command as Change;

    use super::*;
    use crate::state::from_plan;
    use crate::testing::{node_of, plan_of, put};

    fn admitted(push: &v1::PushRequest) -> Vec<Life> {
        push.admitted.iter().map(|life| (life.node, life.incarnation)).collect()
    }

    #[test]
    fn a_push_holds_the_admitted_lives_of_its_table() {
        let mut state = from_plan(&plan_of(4)).unwrap();
        let before = push_of(&state, &state.nodes[0], 6);
        assert_eq!((before.era, before.term, before.node, before.incarnation), (1, 6, 1, 7));
        assert_eq!(admitted(&before), [(1, 7), (2, 7), (3, 7), (4, 7)]);

        // Nothing else changes about the node: the same addresses, and the same table.
        let admit = v1::AdmitNode {
            info: Some(node_of(2)),
            incarnation: 8,
            former_silent: true,
            ..Default::default()
        };
        put(&mut state, Change::Admit(admit), 5_000).unwrap();
        let after = push_of(&state, &state.nodes[0], 6);
        assert_eq!(admitted(&after), [(1, 7), (2, 8), (3, 7), (4, 7)]);
        let (before, after) = (before.table.unwrap(), after.table.unwrap());
        assert_eq!(before.nodes, after.nodes);
        assert!(after.version > before.version, "or nodes that hold the table would not get it");
        // The push to the new life itself is meant for it.
        assert_eq!(push_of(&state, &state.nodes[1], 6).incarnation, 8);

        // Nobody remembers which life it was; and one that is not in the table any more.
        state.nodes[2].incarnation = 0;
        state.nodes[3].set_state(v1::NodeState::Removed);
        assert_eq!(admitted(&push_of(&state, &state.nodes[0], 6)), [(1, 7), (2, 8)]);
    }
}
