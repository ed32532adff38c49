//! The `Admin` service: the birth, a new manager (`adoption`), the state of the cluster, and what operators
//! ask of the manager.
//!
//! What the manager alone can answer is answered where its leader is. A tool talks to any node, so a
//! node that does not have the leader passes the request on to the one that has, once: a node that gets
//! it in this way, and does not lead either, says `NotLeader`. The caller's deadline goes with it, and
//! errors come back as they were said. A comparison of replicas goes in the same way to the leader of the
//! group that it is about (`verify`).
//!
//! Failure: when nobody leads, or the leader cannot be reached, the answer says so, and that nothing was
//! changed. A connection that breaks after the request left it leaves the outcome unknown.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::{error_of, header_of, status_of};
use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::admin_server::Admin;
use annulus_server::deadline::{deadline_of, working_limit};
use annulus_shard_manager::Manager;
use annulus_types::limits::{DEADLINE_DEFAULT, DEADLINE_MOST, DECODE_BYTES};
use annulus_types::{Error, ErrorKind, GroupId, NodeId};
use futures_util::future::BoxFuture;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Lead, Node, adoption, birth, verify};

/// In the metadata of a request that another node has passed on.
const PASSED_ON: &str = "annulus-passed-on";

/// See the module.
pub(super) struct AdminService(pub(super) Arc<Node>);

/// A request with a header.
trait Headed {
    fn header(&self) -> Option<&v1::RequestHeader>;
}

macro_rules! headed {
    ($($message:ident),+ $(,)?) => {
        $(impl Headed for v1::$message {
            fn header(&self) -> Option<&v1::RequestHeader> {
                self.header.as_ref()
            }
        })+
    };
}

headed!(
    ApplyRebalanceRequest,
    BalanceLeadersRequest,
    CancelMoveRequest,
    ChangeNodeRequest,
    ChangeSettingsRequest,
    ExplainRequest,
    ExportManagerRequest,
    GetSettingsRequest,
    ListMovesRequest,
    MoveLeaderRequest,
    OverviewRequest,
    PauseRebalanceRequest,
    PlanRebalanceRequest,
    VerifyRequest,
);

/// A request as another node gets it, to be answered within `limit`.
pub(super) fn passed_on<Q>(message: Q, limit: Duration) -> Request<Q> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(PASSED_ON, MetadataValue::from_static("1"));
    request.set_timeout(limit);
    request
}

fn refuse(error: Error) -> Status {
    status_of(&error)
}

fn not_leader(leader: Option<NodeId>) -> Status {
    refuse(Error::refused(ErrorKind::NotLeader { leader }))
}

fn missing(field: &str) -> Error {
    Error::bad_request(field, "is missing")
}

/// What a request asks the manager itself, and what another node is asked for it.
type Here<Q, R> = fn(Arc<Manager>, Q) -> BoxFuture<'static, Result<R, Error>>;
type There<Q, R> =
    fn(AdminClient<Channel>, Request<Q>) -> BoxFuture<'static, Result<Response<R>, Status>>;

/// What a request says beside its message.
struct Asked<Q> {
    message: Q,
    /// For the work here, or for the way to another node and its work.
    limit: Duration,
    is_passed_on: bool,
}

impl AdminService {
    /// Reads a request and judges its header.
    fn open<Q: Headed>(&self, request: Request<Q>) -> Result<Asked<Q>, Status> {
        let whole = deadline_of(request.metadata()).unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MOST);
        let limit = working_limit(whole);
        let is_passed_on = request.metadata().contains_key(PASSED_ON);
        let message = request.into_inner();
        let header = header_of(message.header()).map_err(refuse)?;
        self.0.serving.get(&header).map_err(refuse)?;
        Ok(Asked { message, limit, is_passed_on })
    }

    /// Has a request answered where the manager's leader is.
    async fn at_leader<Q: Headed, R>(
        &self,
        request: Request<Q>,
        here: Here<Q, R>,
        there: There<Q, R>,
    ) -> Result<Response<R>, Status> {
        let asked = self.open(request)?;
        match self.0.lead() {
            Lead::Here(manager) => {
                here(manager, asked.message).await.map(Response::new).map_err(refuse)
            }
            Lead::At(leader) => self.at_node(leader, "the manager", asked, there).await,
            Lead::Unknown => Err(not_leader(None)),
        }
    }

    /// Passes a request on to the node that leads `what`, unless it was passed on already.
    async fn at_node<Q, R>(
        &self,
        leader: NodeId,
        what: &str,
        asked: Asked<Q>,
        there: There<Q, R>,
    ) -> Result<Response<R>, Status> {
        let Asked { message, limit, is_passed_on } = asked;
        if is_passed_on {
            return Err(not_leader(Some(leader)));
        }
        let Some(info) = self.0.book.find(leader) else { return Err(not_leader(Some(leader))) };
        let clock = &self.0.env.clock;
        let began_us = clock.monotonic_us();
        let connecting = annulus_raft::channel(&self.0.env, &info.addr);
        let Ok(Ok(channel)) = tokio::time::timeout(limit, connecting).await else {
            let addr = info.addr;
            let reason = format!("node {leader}, which leads {what}, is not there at {addr}");
            return Err(refuse(Error::refused(ErrorKind::NotReady { reason })));
        };
        let spent = Duration::from_micros(clock.monotonic_us().saturating_sub(began_us));
        let client = AdminClient::new(channel).max_decoding_message_size(DECODE_BYTES);
        let answered = there(client, passed_on(message, limit.saturating_sub(spent))).await;
        // What the transport adds belongs to that connection.
        let answered = answered.map(|response| Response::new(response.into_inner()));
        answered.map_err(|status| refuse(error_of(&status)))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn init(
        &self,
        request: Request<v1::InitRequest>,
    ) -> Result<Response<v1::InitReply>, Status> {
        let reply = birth::init(&self.0, request.get_ref()).await;
        reply.map(Response::new).map_err(refuse)
    }

    async fn adopt_nodes(
        &self,
        request: Request<v1::AdoptNodesRequest>,
    ) -> Result<Response<v1::AdoptNodesReply>, Status> {
        let whole = deadline_of(request.metadata()).unwrap_or(DEADLINE_MOST).min(DEADLINE_MOST);
        let (limit, request) = (working_limit(whole), request.into_inner());
        let reply = Box::pin(adoption::adopt_nodes(&self.0, request, limit)).await;
        reply.map(Response::new).map_err(refuse)
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let request = request.get_ref();
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        self.0.serving.get(&header).map_err(refuse)?;
        let reply = Box::pin(self.0.status(request.local)).await;
        reply.map(Response::new).map_err(refuse)
    }

    async fn overview(
        &self,
        request: Request<v1::OverviewRequest>,
    ) -> Result<Response<v1::OverviewReply>, Status> {
        self.at_leader(
            request,
            |manager, _| Box::pin(async move { manager.overview().await }),
            |mut admin, asked| Box::pin(async move { admin.overview(asked).await }),
        )
        .await
    }

    async fn change_node(
        &self,
        request: Request<v1::ChangeNodeRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                Box::pin(async move {
                    let Some(change) = asked.change else { return Err(missing("change")) };
                    manager.change_node(change, asked.dry_run).await
                })
            },
            |mut admin, asked| Box::pin(async move { admin.change_node(asked).await }),
        )
        .await
    }

    async fn get_settings(
        &self,
        request: Request<v1::GetSettingsRequest>,
    ) -> Result<Response<v1::ClusterSettings>, Status> {
        self.at_leader(
            request,
            |manager, _| Box::pin(async move { manager.settings().await }),
            |mut admin, asked| Box::pin(async move { admin.get_settings(asked).await }),
        )
        .await
    }

    async fn change_settings(
        &self,
        request: Request<v1::ChangeSettingsRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                Box::pin(async move {
                    let Some(settings) = asked.settings else { return Err(missing("settings")) };
                    manager.change_settings(settings, asked.dry_run).await
                })
            },
            |mut admin, asked| Box::pin(async move { admin.change_settings(asked).await }),
        )
        .await
    }

    async fn plan_rebalance(
        &self,
        request: Request<v1::PlanRebalanceRequest>,
    ) -> Result<Response<v1::RebalancePlan>, Status> {
        self.at_leader(
            request,
            |manager, _| Box::pin(async move { manager.plan().await }),
            |mut admin, asked| Box::pin(async move { admin.plan_rebalance(asked).await }),
        )
        .await
    }

    async fn apply_rebalance(
        &self,
        request: Request<v1::ApplyRebalanceRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                Box::pin(async move { manager.apply_plan(asked.plan, asked.dry_run).await })
            },
            |mut admin, asked| Box::pin(async move { admin.apply_rebalance(asked).await }),
        )
        .await
    }

    async fn pause_rebalance(
        &self,
        request: Request<v1::PauseRebalanceRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                let paused = Some(asked.paused);
                let settings = v1::SettingsChange { paused, ..Default::default() };
                Box::pin(async move { manager.change_settings(settings, asked.dry_run).await })
            },
            |mut admin, asked| Box::pin(async move { admin.pause_rebalance(asked).await }),
        )
        .await
    }

    async fn list_moves(
        &self,
        request: Request<v1::ListMovesRequest>,
    ) -> Result<Response<v1::ListMovesReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                Box::pin(async move {
                    let moves = manager.moves(asked.ended).await;
                    moves.map(|moves| v1::ListMovesReply { moves })
                })
            },
            |mut admin, asked| Box::pin(async move { admin.list_moves(asked).await }),
        )
        .await
    }

    async fn cancel_move(
        &self,
        request: Request<v1::CancelMoveRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                Box::pin(async move { manager.cancel_move(asked.id, asked.dry_run).await })
            },
            |mut admin, asked| Box::pin(async move { admin.cancel_move(asked).await }),
        )
        .await
    }

    async fn move_leader(
        &self,
        request: Request<v1::MoveLeaderRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| {
                let v1::MoveLeaderRequest { group, node, dry_run, .. } = asked;
                Box::pin(async move { manager.move_leader(group, node, dry_run).await })
            },
            |mut admin, asked| Box::pin(async move { admin.move_leader(asked).await }),
        )
        .await
    }

    async fn balance_leaders(
        &self,
        request: Request<v1::BalanceLeadersRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| Box::pin(async move { manager.balance_leaders(asked.dry_run).await }),
            |mut admin, asked| Box::pin(async move { admin.balance_leaders(asked).await }),
        )
        .await
    }

    async fn export_manager(
        &self,
        request: Request<v1::ExportManagerRequest>,
    ) -> Result<Response<v1::ExportManagerReply>, Status> {
        self.at_leader(
            request,
            |manager, _| {
                Box::pin(async move {
                    let state = manager.export().await;
                    state.map(|state| v1::ExportManagerReply { state })
                })
            },
            |mut admin, asked| Box::pin(async move { admin.export_manager(asked).await }),
        )
        .await
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainReply>, Status> {
        self.at_leader(
            request,
            |manager, asked| Box::pin(async move { manager.explain(asked.about).await }),
            |mut admin, asked| Box::pin(async move { admin.explain(asked).await }),
        )
        .await
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<v1::VerifyReply>, Status> {
        let asked = self.open(request)?;
        let id = GroupId(asked.message.group);
        match self.0.leader_of(id).map_err(refuse)? {
            verify::Leader::Here(group) => {
                let compared = Box::pin(group.verify_voters(asked.limit)).await;
                let compared = compared.map_err(refuse)?;
                Ok(Response::new(verify::reply_of(&compared)))
            }
            verify::Leader::At(leader) => {
                let there: There<v1::VerifyRequest, v1::VerifyReply> =
                    |mut admin, asked| Box::pin(async move { admin.verify(asked).await });
                self.at_node(leader, &format!("group {id}"), asked, there).await
            }
            verify::Leader::Unknown => Err(not_leader(None)),
        }
    }
}
