//! What the leader of group 0 does: makes the planned cluster, then keeps telling every node the
//! table until it says that it holds it.
//!
//! Level-triggered: each round looks at what is and does what is missing, so that a new leader needs
//! no memory of the old one. Every push names the era and term of the manager (H6) and the life of
//! the folder that it is meant for (N1); nodes refuse what is older or meant for another life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_raft::{Group, Host};
use annulus_runtime::Env;
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{NodeId, Role, ShardId, TableVersion};
use tonic::transport::Channel;

use crate::machine::{ManagerMachine, ManagerState, bootstrap};

/// Between two rounds while nothing changes.
const ROUND: Duration = Duration::from_millis(100);
/// A node that does not answer a push for this long is tried again in a later round.
const PUSH_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct Driver {
    env: Env,
    host: Arc<Host>,
    group: Arc<Group>,
    machine: Arc<ManagerMachine>,
    /// The plan of the birth, if this node was told one.
    plan: Option<v1::Plan>,
}

impl Driver {
    /// A driver for this node's replica of group 0.
    #[must_use]
    pub fn new(
        env: Env,
        host: Arc<Host>,
        group: Arc<Group>,
        machine: Arc<ManagerMachine>,
        plan: Option<v1::Plan>,
    ) -> Self {
        Self { env, host, group, machine, plan }
    }

    /// Runs until the node stops.
    pub async fn run(self) {
        let mut ticker = tokio::time::interval(ROUND);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut held: BTreeMap<NodeId, TableVersion> = BTreeMap::new();
        let mut channels: BTreeMap<NodeId, (String, Channel)> = BTreeMap::new();
        let mut led_in = 0;
        while !self.env.tasks.is_stopping() {
            ticker.tick().await;
            let (role, term) = self.group.role();
            if role != Role::Leader {
                continue;
            }
            if term != led_in {
                // A new term trusts nothing that an earlier one was told.
                held.clear();
                led_in = term;
            }
            let state = self.machine.watch().borrow().clone();
            let Some(state) = state else {
                self.make().await;
                continue;
            };
            for node in &state.plan.nodes {
                let Some(info) = &node.info else { continue };
                let id = NodeId(info.id);
                if held.get(&id) == Some(&state.table.version) {
                    continue;
                }
                match self.push(&state, node, term, &mut channels).await {
                    Some(version) => drop(held.insert(id, version)),
                    None => drop(channels.remove(&id)),
                }
            }
        }
    }

    async fn make(&self) {
        let Some(plan) = &self.plan else { return };
        let proposed = self.group.propose(ShardId(0), bootstrap(plan), PUSH_LIMIT).await;
        match proposed {
            Ok(_) => tracing::info!("the cluster is made"),
            Err(error) => tracing::info!(%error, "the cluster is not made yet"),
        }
    }

    async fn push(
        &self,
        state: &ManagerState,
        node: &v1::PlannedNode,
        term: u64,
        channels: &mut BTreeMap<NodeId, (String, Channel)>,
    ) -> Option<TableVersion> {
        let id = NodeId(node.info.as_ref()?.id);
        let addr = self.host.book().find(id)?.peer_addr;
        let channel = match channels.get(&id) {
            Some((known, channel)) if *known == addr => channel.clone(),
            _ => {
                let connecting = annulus_raft::channel(&self.env, &addr);
                let limit = Duration::from_millis(500);
                let channel = tokio::time::timeout(limit, connecting).await.ok()?.ok()?;
                channels.insert(id, (addr, channel.clone()));
                channel
            }
        };
        let request = v1::PushRequest {
            era: state.plan.era,
            term,
            node: id.0,
            incarnation: node.incarnation,
            table: Some(v1::RoutingTable::from(&state.table)),
        };
        let mut client = PeerClient::new(channel).max_encoding_message_size(DECODE_BYTES);
        match tokio::time::timeout(PUSH_LIMIT, client.push(request)).await {
            Ok(Ok(reply)) => Some(TableVersion(reply.into_inner().table_version)),
            Ok(Err(status)) => {
                tracing::info!(peer = %id, why = status.message(), "a node refused the table");
                None
            }
            Err(_) => None,
        }
    }
}
