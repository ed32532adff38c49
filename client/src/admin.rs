//! What operators ask of the manager, and of a group about its replicas, as typed calls. What each of them
//! means is said where the messages are defined; whom to ask, and when again, is decided in
//! `client::operate`.
//!
//! Failure: a question is repeated within the deadline after everything that another node or moment may
//! answer better. A change is repeated only while every attempt said that nothing was changed; after an
//! unknown outcome the error says so, and the state tells ([`Admin::overview`], [`Admin::moves`]).

use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::admin_client::AdminClient;
use annulus_proto::v1::explain_request::About;
use annulus_types::{MayHaveApplied, limits};
use tonic::Request;
use tonic::transport::Channel;

use crate::channels::{Sending, timed};
use crate::client::Client;
use crate::error::Error;
use crate::retry::Access;

/// The calls of an operator. Made by [`Client::admin`]; cheap to clone. With `dry_run` a change only tells
/// what it would decide.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    deadline: Option<Duration>,
}

/// A request with room for a header, which is set anew for each attempt.
trait Headed: Clone + Send + Sync + 'static {
    fn set_header(&mut self, header: v1::RequestHeader);
}

macro_rules! headed {
    ($($message:ident),+ $(,)?) => {
        $(impl Headed for v1::$message {
            fn set_header(&mut self, header: v1::RequestHeader) {
                self.header = Some(header);
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

type There<Q, R> = fn(AdminClient<Channel>, Request<Q>) -> Sending<R>;

/// A dry run changes nothing, so it is a question.
fn access(dry_run: bool) -> Access {
    if dry_run { Access::Read } else { Access::Write }
}

impl Client {
    /// The calls of an operator.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { client: self.clone(), deadline: None }
    }
}

impl Admin {
    /// The deadline of each call, all attempts included; at most 60 s. Default: the client's.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    async fn ask<Q: Headed, R>(
        &self,
        access: Access,
        message: Q,
        there: There<Q, R>,
    ) -> Result<R, Error> {
        let send = move |channel: Channel, header: v1::RequestHeader, limit: Duration| {
            let mut message = message.clone();
            message.set_header(header);
            let admin = AdminClient::new(channel).max_decoding_message_size(limits::DECODE_BYTES);
            there(admin, timed(message, limit))
        };
        Box::pin(self.client.operate(access, self.deadline, send)).await
    }

    /// What the manager thinks of the nodes, and what is under way.
    ///
    /// # Errors
    /// When the manager's leader cannot be asked in time; so for all questions.
    pub async fn overview(&self) -> Result<v1::OverviewReply, Error> {
        let message = v1::OverviewRequest::default();
        self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.overview(asked).await })
        })
        .await
    }

    /// Drains a node or ends that, removes it, changes its weight or zone.
    ///
    /// # Errors
    /// `BadRequest` when that cannot be; else as every call, and the outcome may be unknown. So for all
    /// changes.
    pub async fn change_node(
        &self,
        change: v1::NodeChange,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        let message = v1::ChangeNodeRequest { header: None, change: Some(change), dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.change_node(asked).await })
        })
        .await
    }

    /// The settings of the cluster.
    ///
    /// # Errors
    /// See [`Admin::overview`].
    pub async fn settings(&self) -> Result<v1::ClusterSettings, Error> {
        let message = v1::GetSettingsRequest::default();
        self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.get_settings(asked).await })
        })
        .await
    }

    /// Changes some settings.
    ///
    /// # Errors
    /// See [`Admin::change_node`].
    pub async fn change_settings(
        &self,
        settings: v1::SettingsChange,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        let message = v1::ChangeSettingsRequest { header: None, settings: Some(settings), dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.change_settings(asked).await })
        })
        .await
    }

    /// What a rebalance would do now, around what has a move under way already.
    ///
    /// # Errors
    /// See [`Admin::overview`]; `NotReady` while everything has.
    pub async fn plan_rebalance(&self) -> Result<v1::RebalancePlan, Error> {
        let message = v1::PlanRebalanceRequest::default();
        self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.plan_rebalance(asked).await })
        })
        .await
    }

    /// Starts a plan that [`Admin::plan_rebalance`] showed.
    ///
    /// # Errors
    /// See [`Admin::change_node`]; `BadRequest` when another plan would be shown now.
    pub async fn apply_rebalance(
        &self,
        plan: u64,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        let message = v1::ApplyRebalanceRequest { header: None, plan, dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.apply_rebalance(asked).await })
        })
        .await
    }

    /// Pauses all moves, or lets them go on.
    ///
    /// # Errors
    /// See [`Admin::change_node`].
    pub async fn pause_rebalance(
        &self,
        paused: bool,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        let message = v1::PauseRebalanceRequest { header: None, paused, dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.pause_rebalance(asked).await })
        })
        .await
    }

    /// The moves by id; with `ended`, those that have ended too.
    ///
    /// # Errors
    /// See [`Admin::overview`].
    pub async fn moves(&self, ended: bool) -> Result<Vec<v1::Move>, Error> {
        let message = v1::ListMovesRequest { header: None, ended };
        let listed = self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.list_moves(asked).await })
        });
        listed.await.map(|reply: v1::ListMovesReply| reply.moves)
    }

    /// Undoes a move that has not begun to change the membership.
    ///
    /// # Errors
    /// See [`Admin::change_node`].
    pub async fn cancel_move(&self, id: u64, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        let message = v1::CancelMoveRequest { header: None, id, dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.cancel_move(asked).await })
        })
        .await
    }

    /// Hands the leadership of a group to a member, which keeps it until [`Admin::balance_leaders`].
    ///
    /// # Errors
    /// See [`Admin::change_node`].
    pub async fn move_leader(
        &self,
        group: u64,
        node: u32,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        let message = v1::MoveLeaderRequest { header: None, group, node, dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.move_leader(asked).await })
        })
        .await
    }

    /// Lets every group be led by its home again.
    ///
    /// # Errors
    /// See [`Admin::change_node`].
    pub async fn balance_leaders(&self, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        let message = v1::BalanceLeadersRequest { header: None, dry_run };
        self.ask(access(dry_run), message, |mut admin, asked| {
            Box::pin(async move { admin.balance_leaders(asked).await })
        })
        .await
    }

    /// Everything that the manager keeps: a `ManagerState`, encoded.
    ///
    /// # Errors
    /// See [`Admin::overview`].
    pub async fn export_manager(&self) -> Result<v1::ExportManagerReply, Error> {
        let message = v1::ExportManagerRequest::default();
        self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.export_manager(asked).await })
        })
        .await
    }

    /// The decisions and moves that concern one thing; `None`: all of them.
    ///
    /// # Errors
    /// See [`Admin::overview`]; `BadRequest` for what does not exist.
    pub async fn explain(&self, about: Option<About>) -> Result<v1::ExplainReply, Error> {
        let message = v1::ExplainRequest { header: None, about };
        self.ask(Access::Read, message, |mut admin, asked| {
            Box::pin(async move { admin.explain(asked).await })
        })
        .await
    }

    /// Compares the voters of a group, by digests of what their engines hold at one entry. Reads all data of
    /// the group on each of them; takes the whole deadline when one of them does not answer, and then says so
    /// in the reply. Changes no key. Dropping the future gives up.
    ///
    /// # Errors
    /// `BadRequest` for a group that does not exist; `NoQuorum`, `NotReady` when the group has no leader, or
    /// that one's digest is not there in time.
    pub async fn verify(&self, group: u64) -> Result<v1::VerifyReply, Error> {
        let message = v1::VerifyRequest { header: None, group };
        // As a question it would get too little time for one attempt, and be repeated while the first one
        // still reads.
        let asked = self.ask(Access::Write, message, |mut admin, asked| {
            Box::pin(async move { admin.verify(asked).await })
        });
        let nothing = MayHaveApplied::No;
        asked.await.map_err(|error| Error { may_have_applied: nothing, op: None, ..error })
    }
}
