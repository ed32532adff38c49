//! What a node does for the maker of a new manager: says what it knows, obeys its era, and becomes a member
//! of its group.
//!
//! Invariants: the era is durable before what the node knows is told, and nothing that a former manager says
//! changes it after that (`eras`). A replica is created only for the reign that the node obeys, in the life
//! of its folder that is meant (N1), and after the state is durable here: whichever member leads first has it.
//!
//! Failure: every call may be repeated; one that is done finds its effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_raft::{GroupSpec, Reign};
use annulus_types::{ClusterId, Error, ErrorKind, GroupId, NodeId, NodeInfo, ReplicaId};

use super::{Node, not_ready, reign_of, store, stored};
use crate::node::birth;

/// A leader that cannot show within this that it still leads has no majority. Less than who asks waits.
const LEAD_LIMIT: Duration = Duration::from_secs(1);

/// The maker's call: the node obeys the era from now on, and says what it knows. One without a cluster has
/// nothing to obey, and says that.
pub(in crate::node) async fn begin_era(
    node: &Arc<Node>,
    request: &v1::BeginEraRequest,
) -> Result<v1::SurveyReply, Error> {
    let v1::BeginEraRequest { era, manager_incarnation: incarnation, .. } = *request;
    if let Some(host) = node.host() {
        let actual = host.options().cluster;
        if request.cluster_id.as_ref() != actual.0 {
            return Err(Error::refused(ErrorKind::WrongCluster { actual }));
        }
        node.hear_reign(Reign { era, incarnation }).await?;
    }
    Ok(Box::pin(node.survey()).await)
}

/// The maker's call: creates this node's replica of the new manager's group.
pub(in crate::node) async fn appoint(
    node: &Arc<Node>,
    request: v1::AppointRequest,
) -> Result<(), Error> {
    let missing = |field: &str| Error::bad_request(field, "is missing");
    let adoption = request.adoption.ok_or_else(|| missing("adoption"))?;
    let state = adoption.state.as_ref().ok_or_else(|| missing("state"))?;
    let group = state.manager.as_ref().ok_or_else(|| missing("manager"))?;
    let own = group.members.iter().find(|member| member.node == node.info.id.0);
    let own = own.ok_or_else(|| Error::bad_request("manager", "has no member on this node"))?;
    let _changing = node.changing.lock().await;
    let Some(host) = node.host() else { return Err(not_ready("this node has no cluster yet")) };
    let actual = host.options().cluster;
    if adoption.cluster_id.as_ref() != actual.0 {
        return Err(Error::refused(ErrorKind::WrongCluster { actual }));
    }
    birth::check_life(node, request.node, Some(request.incarnation))?;
    Box::pin(node.enter_reign(reign_of(&adoption))).await?;
    if stored(node).as_ref() != Some(&adoption) {
        store(node, &adoption)?;
    }
    let listed = state.nodes.iter().filter(|it| it.state() != v1::NodeState::Removed);
    let infos: Vec<NodeInfo> =
        listed.filter_map(|it| it.info.clone()).map(NodeInfo::from).collect();
    node.book.from_table(&infos);
    let found = if group.members.first() == Some(own) {
        group.members.iter().map(|it| (ReplicaId(it.replica), NodeId(it.node))).collect()
    } else {
        BTreeMap::new()
    };
    let spec = GroupSpec { group: GroupId::MANAGER, replica: ReplicaId(own.replica), found };
    let opened = Box::pin(node.open_replica(&host, spec)).await;
    opened.map(drop).map_err(|error| not_ready(error.to_string()))
}

impl Node {
    /// What this node knows of the cluster, for who makes a manager.
    pub(in crate::node) async fn survey(self: &Arc<Self>) -> v1::SurveyReply {
        let Some(host) = self.host() else {
            let heartbeat = Some(self.bare_heartbeat(ClusterId::default()));
            return v1::SurveyReply { heartbeat, ..Default::default() };
        };
        let leads_era = self.leads_era().await;
        let lives = host.lives().into_iter();
        let lives = lives.map(|(node, incarnation)| v1::AdmittedLife { node: node.0, incarnation });
        v1::SurveyReply {
            heartbeat: Some(self.heartbeat(&host).await),
            table: self.tables.current().map(|table| v1::RoutingTable::from(table.as_ref())),
            book: self.book.all().iter().map(v1::NodeInfo::from).collect(),
            admitted: lives.collect(),
            leads_era,
        }
    }

    /// The era of the manager that this node leads, if a majority of its group still follows; else 0.
    async fn leads_era(&self) -> u64 {
        let Some(manager) = self.manager().filter(|manager| manager.leading().is_ok()) else {
            return 0;
        };
        match tokio::time::timeout(LEAD_LIMIT, Box::pin(manager.overview())).await {
            Ok(Ok(overview)) => overview.era,
            Ok(Err(_)) | Err(_) => 0,
        }
    }
}
