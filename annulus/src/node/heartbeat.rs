//! Telling the manager that this node is there, every half second: who it is, and how its replicas are.
//!
//! The manager's leader is found by asking: whoever answered last, else whom another names, else the
//! nodes with the manager role one after another ([`Search`]). All of this is repeated for ever, and an
//! attempt has a deadline well below the interval, so a lost answer costs nothing but time.
//!
//! # Coming in
//!
//! A node with an empty folder belongs to no cluster. If a node of its join list belongs to one, it
//! knocks there: the same heartbeat, with nothing in it. *Only when the manager has admitted it* it
//! stores the cluster id, and begins. So does a node whose folder was wiped: a new life of a known id
//! (N1), which the manager lets in when the former is down or silent, and the former is then refused for
//! ever. Until then nothing is stored, and an `annulus init` that names this node still finds it free.
//!
//! # Failure
//!
//! A node that is not admitted says why, once for each reason, and goes on asking: the reason may pass.
//! Replicas that it holds from before go on, for the data path never needs the manager. A node that is
//! told that its life is over marks its folder dead and stops.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{cluster_of, error_of};
use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_raft::Reign;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{ClusterId, Error, ErrorKind, NodeId};
use tonic::transport::Channel;

use super::{Node, birth};

/// Between two heartbeats that are answered.
const EVERY: Duration = Duration::from_millis(500);
/// One attempt, the connection included.
const LIMIT: Duration = Duration::from_millis(400);
/// After a first attempt that failed; doubles up to [`EVERY`].
const PAUSE_LEAST: Duration = Duration::from_millis(50);
/// Redirects in a row that are followed at once.
const REDIRECTS: u32 = 2;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// By the manager's leader, whatever it said.
    Answered,
    /// By a node that does not lead it, and perhaps knows who does.
    Elsewhere(Option<NodeId>),
    /// Not at all, or by a node that can say nothing.
    Failed,
}

/// Whom to ask. Pure.
#[derive(Debug, Default)]
struct Search {
    /// Answered last.
    known: Option<NodeId>,
    /// Named by another.
    hint: Option<NodeId>,
    /// Asked last.
    last: Option<NodeId>,
    /// Attempts since the last answer.
    failures: u32,
}

impl Search {
    /// The node to ask next, of `managers`, by id. A hint may name others.
    fn next(&mut self, managers: &[NodeId]) -> Option<NodeId> {
        let in_turn = || {
            let is_later = |id: &&NodeId| self.last.is_none_or(|last| **id > last);
            managers.iter().find(is_later).or(managers.first()).copied()
        };
        let next = self.hint.or(self.known).or_else(in_turn);
        self.hint = None;
        self.last = next.or(self.last);
        next
    }

    /// Takes note of how that went; returns how long to wait before the next attempt.
    fn ended(&mut self, asked: NodeId, attempt: Attempt) -> Duration {
        if attempt == Attempt::Answered {
            *self = Self { known: Some(asked), last: Some(asked), ..Self::default() };
            return EVERY;
        }
        self.known = None;
        self.failures = self.failures.saturating_add(1);
        if let Attempt::Elsewhere(hint) = attempt {
            self.hint = hint.filter(|hint| *hint != asked);
            if self.hint.is_some() && self.failures <= REDIRECTS {
                return Duration::ZERO;
            }
        }
        let doublings = self.failures.saturating_sub(1).min(8);
        (PAUSE_LEAST * (1_u32 << doublings)).min(EVERY)
    }
}

/// Runs until the node stops.
pub(super) async fn run(node: Arc<Node>) {
    let mut caller = Caller { node, search: Search::default(), line: None, said: None };
    while !caller.node.env.tasks.is_stopping() {
        let pause = Box::pin(caller.round()).await;
        *caller.node.heard.lock() = caller.search.known;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = caller.node.env.tasks.stop_requested() => {}
        }
    }
}

struct Caller {
    node: Arc<Node>,
    search: Search,
    /// The connection to the node that was asked last.
    line: Option<(NodeId, String, Channel)>,
    /// Why the node is not admitted, as it was said last.
    said: Option<String>,
}

impl Caller {
    /// One attempt; returns the pause behind it.
    async fn round(&mut self) -> Duration {
        let request = match self.node.host() {
            Some(host) => self.node.heartbeat(&host).await,
            None => match birth::joined_cluster(&self.node).await {
                Some(cluster) => self.node.bare_heartbeat(cluster),
                None => return EVERY,
            },
        };
        let Some(asked) = self.search.next(&self.managers()) else { return EVERY };
        let called = tokio::time::timeout(LIMIT, self.call(asked, request)).await;
        let attempt = match called {
            Ok(Ok((cluster, reply))) => {
                self.take(cluster, reply).await;
                Attempt::Answered
            }
            Ok(Err(Error { kind: ErrorKind::NotLeader { leader }, .. })) => {
                Attempt::Elsewhere(leader)
            }
            Ok(Err(error)) => {
                tracing::debug!(%asked, %error, "a heartbeat was not taken");
                Attempt::Failed
            }
            Err(_) => Attempt::Failed,
        };
        if attempt == Attempt::Failed {
            self.line = None;
        }
        self.search.ended(asked, attempt)
    }

    /// Nodes that may have the manager's leader, by id.
    fn managers(&self) -> Vec<NodeId> {
        let own = self.node.info.id;
        let asks_itself = self.node.manager().is_some();
        let known = self.node.book.all().into_iter();
        let managers = known.filter(|info| info.manager && (info.id != own || asks_itself));
        managers.map(|info| info.id).collect()
    }

    async fn call(
        &mut self,
        asked: NodeId,
        request: v1::HeartbeatRequest,
    ) -> Result<(ClusterId, v1::HeartbeatReply), Error> {
        let not_ready = |reason: String| Error::refused(ErrorKind::NotReady { reason });
        let cluster = cluster_of(&request.cluster_id)?;
        let Some(info) = self.node.book.find(asked) else {
            return Err(not_ready(format!("no address of node {asked} is known")));
        };
        let addr = info.peer_addr;
        let channel = match self.line.take() {
            Some((id, at, channel)) if id == asked && at == addr => channel,
            _ => {
                let connecting = annulus_raft::channel(&self.node.env, &addr);
                connecting.await.map_err(|_| not_ready(format!("no node answers at {addr}")))?
            }
        };
        self.line = Some((asked, addr, channel.clone()));
        let mut client = PeerClient::new(channel).max_encoding_message_size(DECODE_BYTES);
        let answered = client.heartbeat(request).await.map_err(|status| error_of(&status))?;
        Ok((cluster, answered.into_inner()))
    }

    /// What the manager says counts only if it speaks for the cluster that was asked for; its leader
    /// refuses other clusters, so that it does.
    async fn take(&mut self, cluster: ClusterId, reply: v1::HeartbeatReply) {
        if reply.dead {
            let (node, reason) = (Arc::clone(&self.node), reply.reason);
            // Waits on the disk.
            let marked = tokio::task::spawn_blocking(move || node.die(&reason));
            if let Err(error) = marked.await {
                tracing::error!(%error, "the data folder could not be marked dead");
            }
            return;
        }
        if !reply.admitted {
            if self.said.as_ref() != Some(&reply.reason) {
                tracing::warn!(reason = reply.reason, "the manager does not admit this node");
                self.said = Some(reply.reason);
            }
            return;
        }
        if self.said.take().is_some() {
            tracing::info!("the manager admits this node now");
        }
        if self.node.host().is_none()
            && let Err(error) = Box::pin(birth::join(&self.node, cluster)).await
        {
            tracing::error!(%cluster, %error, "the cluster could not be joined");
            self.node.env.tasks.request_stop("the cluster could not be joined");
            return;
        }
        let reign = Reign { era: reply.era, incarnation: reply.manager_incarnation };
        if reign > self.node.fences.reign()
            && let Err(error) = Box::pin(self.node.hear_reign(reign)).await
        {
            tracing::warn!(%error, "the manager's era is not stored yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANAGERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn ask(search: &mut Search, attempt: Attempt) -> (u32, u128) {
        let asked = search.next(&MANAGERS).unwrap();
        let pause = search.ended(asked, attempt);
        (asked.0, pause.as_millis())
    }

    #[test]
    fn who_answered_is_asked_again_and_a_hint_is_followed_at_once() {
        use Attempt::{Answered, Elsewhere, Failed};
        let mut search = Search::default();
        assert_eq!(ask(&mut search, Elsewhere(Some(NodeId(3)))), (1, 0));
        assert_eq!(ask(&mut search, Answered), (3, 500));
        assert_eq!(ask(&mut search, Answered), (3, 500));
        // It died, and the next one in turn names it still; then its successor is known.
        assert_eq!(ask(&mut search, Failed), (3, 50));
        assert_eq!(ask(&mut search, Elsewhere(Some(NodeId(3)))), (1, 0));
        assert_eq!(ask(&mut search, Failed), (3, 200));
        assert_eq!(ask(&mut search, Elsewhere(Some(NodeId(2)))), (1, 400));
        assert_eq!(ask(&mut search, Answered), (2, 500));
    }

    #[test]
    fn without_a_hint_all_are_asked_in_turn_and_ever_more_slowly() {
        let mut search = Search::default();
        let asked: Vec<_> = (0..6).map(|_| ask(&mut search, Attempt::Failed)).collect();
        assert_eq!(asked, [(1, 50), (2, 100), (3, 200), (1, 400), (2, 500), (3, 500)]);
        // One that names itself is no hint.
        assert_eq!(ask(&mut search, Attempt::Elsewhere(Some(NodeId(1)))), (1, 500));
        assert_eq!(ask(&mut search, Attempt::Elsewhere(None)), (2, 500));
        assert_eq!(Search::default().next(&[]), None);
    }

    #[test]
    fn two_nodes_that_name_each_other_are_not_asked_without_a_pause() {
        let mut search = Search::default();
        let turn = |search: &mut Search| {
            let asked = search.next(&MANAGERS).unwrap();
            let other = NodeId(3 - asked.0);
            search.ended(asked, Attempt::Elsewhere(Some(other))).as_millis()
        };
        let pauses: Vec<_> = (0..5).map(|_| turn(&mut search)).collect();
        assert_eq!(pauses, [0, 0, 200, 400, 500]);
    }
}
