//! The questions of the maker: who is there, and what do they know.
//!
//! Finds the nodes: at the addresses that it is given, and wherever anybody's address book points. Decides
//! nothing; what a node does when it is asked is in `member`.
//!
//! Failure: who is not there, or whose answer is lost, is left out, and it is for the caller to judge whether
//! enough are left. Who is there and says no ends the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{cluster_bytes, cluster_of, error_of};
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_raft::Reign;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{Error, ErrorKind, NodeInfo};
use futures_util::future::BoxFuture;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::Node;

/// A node that cannot be reached, or does not say what it knows, within this is not there.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// A replica gets 10 s to end; then its node says that it has not.
pub(super) const ACT_LIMIT: Duration = Duration::from_secs(15);

/// Why a node did not do what it was asked.
pub(super) enum Failure {
    /// It is not there, or its answer was lost.
    Silent(String),
    /// It said no.
    Refused(Error),
}

/// The peer addresses of the nodes at these client addresses, and which are none, with the reason.
pub(super) async fn resolve(node: &Arc<Node>, endpoints: &[String]) -> (Vec<String>, Vec<String>) {
    let asked = endpoints.iter().map(|addr| async move {
        match tokio::time::timeout(ASK_LIMIT, Box::pin(peer_addr_of(node, addr))).await {
            Ok(Ok(peer)) => Ok(peer),
            Ok(Err(why)) => Err(format!("{addr}: {why}")),
            Err(_) => Err(format!("{addr}: it does not answer")),
        }
    });
    let (mut peers, mut unknown) = (Vec::new(), Vec::new());
    for found in futures_util::future::join_all(asked).await {
        match found {
            Ok(peer) => peers.push(peer),
            Err(why) => unknown.push(why),
        }
    }
    (peers, unknown)
}

async fn peer_addr_of(node: &Node, addr: &str) -> Result<String, String> {
    let connecting = annulus_raft::channel(&node.env, addr).await;
    let channel = connecting.map_err(|_| "nobody answers".to_owned())?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(DECODE_BYTES);
    let request = v1::StatusRequest { header: None, local: true };
    let answered = client.status(request).await.map_err(|status| error_of(&status).to_string())?;
    let own = answered.into_inner().nodes.into_iter().next().and_then(|status| status.info);
    own.map(|info| info.peer_addr).ok_or_else(|| "it does not say who it is".to_owned())
}

/// What a peer is asked to do.
pub(super) type Ask<R> =
    Box<dyn FnOnce(PeerClient<Channel>) -> BoxFuture<'static, Result<Response<R>, Status>> + Send>;

/// Asks a peer, on a connection of its own.
pub(super) async fn call<R>(
    node: &Node,
    addr: &str,
    limit: Duration,
    ask: Ask<R>,
) -> Result<R, Failure> {
    let asked = async {
        let connecting = annulus_raft::channel(&node.env, addr);
        let Ok(Ok(channel)) = tokio::time::timeout(ASK_LIMIT.min(limit), connecting).await else {
            return Err(Failure::Silent(format!("no node answers at {addr}")));
        };
        let client = PeerClient::new(channel)
            .max_encoding_message_size(DECODE_BYTES)
            .max_decoding_message_size(DECODE_BYTES);
        match ask(client).await {
            Ok(response) => Ok(response.into_inner()),
            // Of the connection, or of a node that ends: a node that judges says why.
            Err(status) if status.details().is_empty() => {
                Err(Failure::Silent(format!("the node at {addr}: {}", status.message())))
            }
            Err(status) => Err(Failure::Refused(error_of(&status))),
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(answered) => answered,
        Err(_) => Err(Failure::Silent(format!("the node at {addr} does not answer"))),
    }
}

/// Asks one node what it knows; with a reign, after it has stored that.
async fn ask(node: &Node, addr: &str, reign: Option<Reign>) -> Result<v1::SurveyReply, Failure> {
    let Some(Reign { era, incarnation }) = reign else {
        let question: Ask<v1::SurveyReply> = Box::new(|mut client| {
            Box::pin(async move { client.survey(v1::SurveyRequest {}).await })
        });
        return call(node, addr, ASK_LIMIT, question).await;
    };
    let cluster_id = cluster_bytes(node.folder.lock().identity().cluster);
    let request = v1::BeginEraRequest { cluster_id, era, manager_incarnation: incarnation };
    let question: Ask<v1::SurveyReply> =
        Box::new(|mut client| Box::pin(async move { client.begin_era(request).await }));
    call(node, addr, ACT_LIMIT, question).await
}

/// Asks this node, those at `peers`, and whoever any of them knows; with a reign every one stores it first.
/// By node. Who belongs to no cluster is left out; so is, unless it is one of `peers`, who belongs to another.
///
/// # Errors
/// What a node said that refuses; two nodes with one id.
pub(super) async fn gather(
    node: &Arc<Node>,
    peers: &[String],
    reign: Option<Reign>,
) -> Result<BTreeMap<u32, v1::SurveyReply>, Error> {
    let own = node.folder.lock().identity().cluster;
    let mut known: BTreeSet<String> = peers.iter().cloned().collect();
    known.extend(node.book.all().into_iter().map(|info| info.peer_addr));
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut replies: BTreeMap<u32, v1::SurveyReply> = BTreeMap::new();
    loop {
        let next: Vec<String> = known.difference(&asked).cloned().collect();
        if next.is_empty() {
            return Ok(replies);
        }
        asked.extend(next.iter().cloned());
        let questions = next.iter().map(|addr| Box::pin(ask(node, addr, reign)));
        let answers = futures_util::future::join_all(questions).await;
        for (addr, answer) in next.iter().zip(answers) {
            let is_named = peers.contains(addr);
            let reply = match answer {
                Ok(reply) => reply,
                Err(Failure::Silent(why)) => {
                    tracing::info!(why, "a node does not take part in the adoption");
                    continue;
                }
                Err(Failure::Refused(Error { kind: ErrorKind::WrongCluster { .. }, .. }))
                    if !is_named =>
                {
                    continue;
                }
                Err(Failure::Refused(error)) => return Err(error),
            };
            let Some(heartbeat) = &reply.heartbeat else { continue };
            let Some(info) = heartbeat.info.clone() else { continue };
            let cluster = cluster_of(&heartbeat.cluster_id)?;
            if cluster.is_unborn() || (cluster != own && !is_named) {
                continue;
            }
            if cluster != own {
                return Err(Error::refused(ErrorKind::WrongCluster { actual: cluster }));
            }
            let id = info.id;
            let life = heartbeat.incarnation;
            let is_twin = |other: &v1::SurveyReply| {
                other.heartbeat.as_ref().is_some_and(|it| it.incarnation != life)
            };
            if replies.get(&id).is_some_and(is_twin) {
                let message = format!("two nodes answer that have the id {id}: stop one of them");
                return Err(Error::bad_request("nodes", message));
            }
            known.extend(reply.book.iter().map(|info| info.peer_addr.clone()));
            node.book.told(NodeInfo::from(info));
            replies.insert(id, reply);
        }
    }
}
