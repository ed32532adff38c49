//! A new manager for nodes that exist (H4 to H6): `annulus init --adopt`.
//!
//! For a manager that has lost its state, or its majority for good. One node, the *maker*, does it; what is
//! decided is decided by the pure [`annulus_shard_manager::adopt`]. Groups with data are not touched: they
//! go on serving all the while, and keep their replicas.
//!
//! # The order
//!
//! 1. The maker asks every node that it can reach: those that the request names, and whoever is in anybody's
//!    address book. It refuses while a manager works, without a majority of the nodes (both unless forced),
//!    and what cannot be adopted. So far nothing has changed, and a dry run ends here.
//! 2. It draws an incarnation, takes the era above all that a node knows, and stores that with the request,
//!    synced.
//! 3. It stores the era itself, then every node that is there does, synced, and puts aside what it holds of
//!    former managers (`eras`), before it answers with what it knows. From then on no former manager changes
//!    anything there. So what is adopted is what holds, and a former manager has lost every voter that
//!    answered.
//! 4. The maker makes the state from these answers, and stores it, synced.
//! 5. It appoints the members of the new group: each stores the state, synced, and creates its replica; the
//!    first member comes last, and initialises the group.
//! 6. Whoever leads the group makes the state its first entry. The maker has done its part when it gets the
//!    new manager's table.
//!
//! ```text
//! file `adoption`   version u8 = 1 | crc32 of the rest u32 | Adoption (protobuf)
//! ```
//!
//! # Invariants
//!
//! - Nobody is appointed before the state is durable at the maker: one reign has one state.
//! - Two makers that do not see each other may take one era. Their reigns differ by the incarnation, and the
//!   higher one is obeyed wherever both are known: the other adoption ends, or its manager is put aside.
//! - A replica is created only in the life of the folder that told its part of the state (N1), and only on a
//!   node that obeys the reign.
//! - A node that did not answer in 3 learns of the era from the first peer or manager that it meets. Until
//!   then it may hold a replica of a former manager; so may others that were away. They could elect a leader
//!   among themselves as long as they meet nobody else, and nobody else obeys it.
//!
//! # Failure
//!
//! Every step is repeated until it is done, also after a crash of the maker, at its next start. A maker that was
//! away asks first: others may have begun another adoption meanwhile. An adoption ends without success when a
//! node has stored a later reign. Then, or when a member that is to be appointed does not come back, or the maker is lost, the remedy is to
//! ask again: that makes another era. Between 3 and 6 there is no manager, and nothing but managing stands
//! still.

mod ask;
mod judge;
mod member;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::convert::cluster_bytes;
use annulus_proto::v1;
use annulus_raft::Reign;
use annulus_runtime::OnEnd;
use annulus_shard_manager::adopt::{AdoptError, Report, Stray, Told, adopt, next_era, report};
use annulus_shard_manager::state::{StateExt, id_of};
use annulus_types::{Error, ErrorKind, MayHaveApplied, NodeId, RoutingTable};
use tokio::sync::watch;

pub(super) use member::{appoint, begin_era};

use self::ask::{ACT_LIMIT, Ask, Failure, call, gather, resolve};
use self::judge::{
    check_majority, check_replication, read_export, refusal, refuse_if_overtaken,
    refuse_while_managed,
};
use super::{Node, birth};

const FILE: &str = "adoption";
/// A group that has lost its leader may have another one after this; only one that has none still is lost.
const ELECTION: Duration = Duration::from_millis(1_500);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Of a random incarnation. More than one is drawn once in a million adoptions.
const DRAWS: usize = 8;

fn not_ready(reason: impl Into<String>) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.into() })
}

/// Why an attempt did not come to the end.
enum Halt {
    /// The next one may.
    Again(Error),
    /// None will.
    Over(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        let is_over = match &error.kind {
            ErrorKind::BadRequest { field, .. } => field == "era",
            ErrorKind::WrongCluster { .. } => true,
            _ => false,
        };
        if is_over { Self::Over(error) } else { Self::Again(error) }
    }
}

/// How far the task is that makes a manager.
#[derive(Clone, Debug)]
enum Progress {
    /// What it waits for.
    Working(String),
    /// What was adopted; absent if the state had been made before a crash.
    Done(Option<Box<v1::AdoptNodesReply>>),
    Failed(Error),
}

/// What was stored last in this folder, by its own or another maker. Waits on the disk.
pub(super) fn stored(node: &Node) -> Option<v1::Adoption> {
    let cluster = node.folder.lock().identity().cluster;
    let adoption: v1::Adoption = birth::read_message(node, FILE)?;
    (adoption.cluster_id.as_ref() == cluster.0).then_some(adoption)
}

/// A failure leaves the outcome unknown: what the disk did not confirm may be there at the next start, and the
/// adoption goes on then.
fn store(node: &Node, adoption: &v1::Adoption) -> Result<(), Error> {
    let stored = birth::store_message(node, FILE, adoption);
    stored.map_err(|error| {
        let reason = format!("storing the adoption: {error}");
        Error::unknown(ErrorKind::NotReady { reason })
    })
}

fn reign_of(adoption: &v1::Adoption) -> Reign {
    Reign { era: adoption.era, incarnation: adoption.incarnation }
}

/// Whether the new manager has spoken to this node: no earlier one gives out versions as high.
fn is_made(node: &Node, reign: Reign, state: &v1::ManagerState) -> bool {
    node.fences.reign() == reign && node.tables.version().0 >= state.table_version
}

/// A maker that finds its adoption unfinished goes on with it, in the background; one that it knows to be
/// overtaken it forgets.
pub(super) fn resume(node: &Arc<Node>) {
    let Some(adoption) = stored(node).filter(|it| it.maker == node.info.id.0) else { return };
    let reign = reign_of(&adoption);
    if node.fences.reign() > reign {
        return drop_file(node, &adoption);
    }
    if adoption.state.as_ref().is_some_and(|state| is_made(node, reign, state)) {
        return;
    }
    tracing::info!(era = adoption.era, "the adoption goes on");
    let (progress, _) = watch::channel(Progress::Working(String::new()));
    let pursuing = pursue(Arc::clone(node), adoption, progress, Begun::Before);
    node.env.tasks.spawn("adoption", OnEnd::Ignore, pursuing);
}

/// When an adoption began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Now,
    /// In an earlier run of the maker's process.
    Before,
}

/// Makes a new manager, or in a dry run tells what it would begin with. Dropping the future loses the answer,
/// never the adoption once it is stored.
pub(super) async fn adopt_nodes(
    node: &Arc<Node>,
    request: v1::AdoptNodesRequest,
    limit: Duration,
) -> Result<v1::AdoptNodesReply, Error> {
    let Some(host) = node.host() else {
        return Err(not_ready("this node belongs to no cluster yet; ask one that does"));
    };
    let began_us = node.env.clock.monotonic_us();
    let cluster = host.options().cluster;
    check_replication(request.replication)?;
    let from = read_export(&request.from, cluster)?;
    let (peers, unknown) = resolve(node, &request.endpoints).await;
    let mut replies = Box::pin(gather(node, &peers, None)).await?;
    if !request.force {
        refuse_while_managed(&replies)?;
        tokio::time::sleep(ELECTION).await;
        replies = Box::pin(gather(node, &peers, None)).await?;
        refuse_while_managed(&replies)?;
    }
    let told = told_of(&replies)?;
    let era = next_era(&told, from.as_ref());
    let state = draw(node, &told, from.as_ref(), (era, request.replication))?;
    check_majority(&state, request.force)?;
    let planned = reply_of(&told, from.as_ref(), &state);
    let era_before = planned.era_before;
    if request.dry_run {
        return Ok(v1::AdoptNodesReply { unknown, ..planned });
    }
    let answered = replies.values().filter_map(|reply| reply.heartbeat.as_ref()?.info.as_ref());
    let answered = answered.map(|info| info.peer_addr.clone());
    let adoption = v1::Adoption {
        cluster_id: cluster_bytes(cluster),
        era,
        incarnation: state.incarnation,
        maker: node.info.id.0,
        peers: peers.into_iter().chain(answered).collect::<BTreeSet<_>>().into_iter().collect(),
        from,
        forced: request.force,
        state: None,
        replication: request.replication,
    };
    store(node, &adoption)?;
    let (working, mut progress) = watch::channel(Progress::Working("it has just begun".to_owned()));
    let pursuing = pursue(Arc::clone(node), adoption, working, Begun::Now);
    node.env.tasks.spawn("adoption", OnEnd::Ignore, pursuing);

    let spent = Duration::from_micros(node.env.clock.monotonic_us().saturating_sub(began_us));
    let is_over = |progress: &Progress| !matches!(progress, Progress::Working(_));
    let ended = async { progress.wait_for(is_over).await.is_ok() };
    // Over, or out of time, or the node stops: what there is to say is the same place.
    let _ = tokio::time::timeout(limit.saturating_sub(spent), ended).await;
    let now = progress.borrow().clone();
    match now {
        Progress::Done(adopted) => {
            let adopted = adopted.map_or(planned, |adopted| *adopted);
            Ok(v1::AdoptNodesReply { unknown, era_before, ..adopted })
        }
        Progress::Failed(error) => {
            Err(Error { may_have_applied: MayHaveApplied::Unknown, ..error })
        }
        Progress::Working(why) => {
            let reason = format!("era {era} has begun and its manager is not there yet: {why}");
            Err(Error::unknown(ErrorKind::NotReady { reason }))
        }
    }
}

/// The state of the new manager. `replication`: where another number was asked for than nodes and export know.
fn state_of(
    told: &[Told],
    from: Option<&v1::ManagerState>,
    reign: Reign,
    replication: Option<u32>,
) -> Result<v1::ManagerState, AdoptError> {
    let state = adopt(told, from, reign.era, reign.incarnation)?;
    let replication = replication.unwrap_or(state.replication);
    Ok(v1::ManagerState { replication, ..state })
}

/// A state for the first incarnation of which nobody knows an id.
fn draw(
    node: &Node,
    told: &[Told],
    from: Option<&v1::ManagerState>,
    (era, replication): (u64, Option<u32>),
) -> Result<v1::ManagerState, Error> {
    let mut last = AdoptError::Nobody;
    for _ in 0..DRAWS {
        let reign = Reign { era, incarnation: birth::draw_incarnation(node) };
        match state_of(told, from, reign, replication) {
            Ok(state) => return Ok(state),
            Err(error @ AdoptError::Incarnation(_)) => last = error,
            Err(error) => return Err(refusal(&error)),
        }
    }
    Err(refusal(&last))
}

fn reply_of(
    told: &[Told],
    from: Option<&v1::ManagerState>,
    state: &v1::ManagerState,
) -> v1::AdoptNodesReply {
    let Report { strays, taken, overruled } = report(told, from, state);
    let ids = |wanted: v1::NodeState| {
        let nodes = state.nodes.iter().filter(|node| node.state() == wanted);
        nodes.map(id_of).collect::<Vec<u32>>()
    };
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let stray =
        |it: Stray| v1::StrayReplica { group: it.group, replica: it.replica, node: it.node };
    v1::AdoptNodesReply {
        cluster_id: state.cluster_id.clone(),
        era_before: told.iter().map(|told| told.heartbeat.era).max().unwrap_or(0),
        era: state.era,
        nodes: ids(v1::NodeState::Up),
        silent: ids(v1::NodeState::Down),
        unknown: Vec::new(),
        groups: count(state.groups.len()),
        shards: count(state.shards.len()),
        strays: strays.into_iter().map(stray).collect(),
        manager: state.manager.as_ref().map(|group| group.members.clone()).unwrap_or_default(),
        taken,
        overruled,
        replication: state.replication,
    }
}

fn told_of(replies: &BTreeMap<u32, v1::SurveyReply>) -> Result<Vec<Told>, Error> {
    let mut told = Vec::with_capacity(replies.len());
    for reply in replies.values() {
        let Some(heartbeat) = reply.heartbeat.clone() else { continue };
        let table = reply.table.clone().map(RoutingTable::try_from).transpose()?;
        let lives = reply.admitted.iter().map(|life| (life.node, life.incarnation)).collect();
        told.push(Told { heartbeat, table, lives });
    }
    Ok(told)
}

/// Goes on with an adoption until its manager works, it is overtaken, or the node stops.
async fn pursue(
    node: Arc<Node>,
    mut adoption: v1::Adoption,
    progress: watch::Sender<Progress>,
    begun: Begun,
) {
    let era = adoption.era;
    let mut adopted = None;
    while !node.env.tasks.is_stopping() {
        let step = Box::pin(carry_on(&node, &mut adoption, &mut adopted, begun)).await;
        match step {
            Ok(true) => {
                tracing::info!(era, "the new manager works");
                progress.send_replace(Progress::Done(adopted));
                return;
            }
            Ok(false) => {
                let why = "its members have no leader yet, or its table is on its way".to_owned();
                progress.send_replace(Progress::Working(why));
            }
            Err(Halt::Again(error)) => {
                tracing::info!(era, %error, "the adoption goes on");
                progress.send_replace(Progress::Working(error.to_string()));
            }
            Err(Halt::Over(error)) => {
                tracing::warn!(era, %error, "an adoption ends without a manager; ask for another one");
                drop_file(&node, &adoption);
                progress.send_replace(Progress::Failed(error));
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Forgets an adoption that has failed, unless another one was stored since.
fn drop_file(node: &Node, adoption: &v1::Adoption) {
    let is_same = |it: &v1::Adoption| reign_of(it) == reign_of(adoption);
    if !stored(node).as_ref().is_some_and(is_same) {
        return;
    }
    if let Err(error) = node.env.disk.remove_file(&node.config.data_dir.join(FILE)) {
        // The next start fails with it once more, and tries again.
        tracing::info!(%error, "a failed adoption is still on the disk");
    }
}

/// One attempt at steps three to six. Idempotent. Returns whether the new manager works.
async fn carry_on(
    node: &Arc<Node>,
    adoption: &mut v1::Adoption,
    adopted: &mut Option<Box<v1::AdoptNodesReply>>,
    begun: Begun,
) -> Result<bool, Halt> {
    let reign = reign_of(adoption);
    if begun == Begun::Before {
        let replies = Box::pin(gather(node, &adoption.peers, None)).await?;
        refuse_if_overtaken(&replies, reign)?;
    }
    node.hear_reign(reign).await?;
    if adoption.state.is_none() {
        let replies = Box::pin(gather(node, &adoption.peers, Some(reign))).await?;
        let told = told_of(&replies)?;
        let from = adoption.from.as_ref();
        let state = state_of(&told, from, reign, adoption.replication)
            .map_err(|error| Halt::Over(refusal(&error)))?;
        check_majority(&state, adoption.forced)?;
        *adopted = Some(Box::new(reply_of(&told, from, &state)));
        let complete = v1::Adoption { state: Some(state), ..adoption.clone() };
        store(node, &complete)?;
        *adoption = complete;
    }
    let Some(state) = &adoption.state else { return Ok(false) };
    if is_made(node, reign, state) {
        return Ok(true);
    }
    Box::pin(appoint_all(node, adoption, state)).await?;
    let mut tables = node.tables.watch();
    let is_new = |table: &Option<Arc<RoutingTable>>| {
        table.as_ref().is_some_and(|table| table.version.0 >= state.table_version)
    };
    let held = async { tables.wait_for(is_new).await.is_ok() };
    let is_held = tokio::time::timeout(PAUSE, held).await.unwrap_or(false);
    // Another manager's table may be as new.
    Ok(is_held && is_made(node, reign, state))
}

async fn appoint_all(
    node: &Arc<Node>,
    adoption: &v1::Adoption,
    state: &v1::ManagerState,
) -> Result<(), Halt> {
    let members = state.manager.as_ref().map(|group| group.members.clone()).unwrap_or_default();
    // The one that initialises comes last: the others must exist to vote for it.
    for member in members.iter().rev() {
        let id = member.node;
        let record = state.node(id);
        let told = node.book.find(NodeId(id)).map(|info| info.peer_addr);
        let known = || Some(record?.info.as_ref()?.peer_addr.clone());
        let Some(addr) = told.or_else(known) else {
            return Err(Halt::Again(not_ready(format!("no address of node {id} is known"))));
        };
        let request = v1::AppointRequest {
            adoption: Some(adoption.clone()),
            node: id,
            incarnation: record.map_or(0, |record| record.incarnation),
        };
        let order: Ask<v1::AppointReply> =
            Box::new(|mut client| Box::pin(async move { client.appoint(request).await }));
        match call(node, &addr, ACT_LIMIT, order).await {
            Ok(v1::AppointReply {}) => {}
            Err(Failure::Silent(why)) => return Err(Halt::Again(not_ready(why))),
            Err(Failure::Refused(error)) => return Err(error.into()),
        }
    }
    Ok(())
}
