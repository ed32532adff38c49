//! One node: a process with a data folder, three listeners, and, once it belongs to a cluster, a
//! Raft host with the storage and manager roles on it.
//!
//! # Life
//!
//! A node starts *unborn*: it can describe itself, be adopted by a founder, or be admitted by the
//! manager of a cluster that it knocks at, nothing else. Either way it stores the cluster id, synced, and
//! starts the host. Replicas come with the table of a new cluster and by the manager's commands, or are
//! held by the folder from before. The routing table on disk makes a node serve after a restart without
//! the manager.
//!
//! What a node hears of the manager: the table (`peer`), commands (`command`, behind `fences`), and the
//! answers to its heartbeats (`heartbeat`, with what `reports` finds). What operators ask goes through
//! `admin` to the manager's leader, wherever that is. A manager that has lost its state is made anew by one
//! of the nodes (`adoption`), and what others hold of the former one is put aside (`eras`).
//!
//! # Failure
//!
//! A node whose data folder is refused by a peer as an older one (N1) marks the folder dead and stops.
//!
//! A vital task that ends (the log's writer after a failed sync, first of all) stops the process:
//! what was not acknowledged is lost, nothing else, and the next start begins from the disk.

mod admin;
mod adoption;
mod birth;
mod command;
mod eras;
mod fences;
mod heartbeat;
mod http;
mod identity;
mod peer;
mod replicas;
mod reports;
mod status;
mod verify;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::Engine;
use annulus_raft::{AddressBook, Host, OnDead, Options, Reign};
use annulus_runtime::{Env, Listener, OnEnd};
use annulus_server::kv::ServingCell;
use annulus_server::{KvService, RoutesService, ShardMachine, Shards, Tables};
use annulus_shard_manager::{Manager, ManagerMachine};
use annulus_types::limits::DECODE_BYTES;
use annulus_types::{ClusterId, Error, ErrorKind, GroupId, NodeId, NodeInfo, ReplicaId};
use annulus_wal::{Wal, Writer};
use anyhow::Context as _;
use parking_lot::Mutex;
use tokio_stream::Stream;
use tonic_health::pb::health_server::{Health, HealthServer};

pub use identity::{Folder, Identity, IdentityError};

use crate::config::Config;

/// How long a stopping node tries to hand a leadership over.
const HAND_OVER: Duration = Duration::from_millis(800);
/// Between two looks for data that nothing names any more.
const SWEEP: Duration = Duration::from_millis(500);

/// A running node.
pub struct Node {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) info: NodeInfo,
    pub(crate) folder: Mutex<Folder>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) book: Arc<AddressBook>,
    pub(crate) serving: Arc<ServingCell>,
    health: tonic_health::server::HealthReporter,
    wal: Wal,
    /// The log's writer until the host starts.
    writer: Mutex<Option<Writer>>,
    /// One at a time: adoption, founding, pushes.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Reign and term of the last push.
    pub(crate) fence: Mutex<(Reign, u64)>,
    /// What was obeyed, on disk.
    pub(crate) fences: Arc<fences::Fences>,
    /// Commands of the manager under way.
    pub(crate) running: Arc<command::Running>,
    pub(crate) sizes: Mutex<reports::Sizes>,
    /// The node that answered the last heartbeat as the manager's leader.
    pub(crate) heard: Mutex<Option<NodeId>>,
    pub(crate) machines: Mutex<BTreeMap<GroupId, Arc<ShardMachine>>>,
    pub(crate) manager: Mutex<Option<Arc<ManagerMachine>>>,
    /// The manager on this node's replica of its group.
    pub(crate) managing: Mutex<Option<(ReplicaId, Arc<Manager>)>>,
}

/// Where the manager's leader is, as far as this node knows.
pub(crate) enum Lead {
    /// On this node.
    Here(Arc<Manager>),
    /// On another one.
    At(NodeId),
    /// Nobody told.
    Unknown,
}

/// Addresses actually listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Clients.
    pub client: SocketAddr,
    /// Other nodes.
    pub peer: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

impl Node {
    /// Opens the folder, listens, and serves until [`Node::stop`] or the end of a vital part.
    ///
    /// # Errors
    /// When the folder, an address, the log or the engine cannot be used.
    pub async fn start(env: Env, config: Config) -> anyhow::Result<Arc<Self>> {
        let dir = config.data_dir.clone();
        let id = NodeId(config.node_id);
        let folder = Folder::open(&env, &dir, id)?;
        let identity = folder.identity();
        let listen = |addr: SocketAddr| {
            let network = Arc::clone(&env.network);
            async move { network.listen(addr).await.with_context(|| format!("cannot listen on {addr}")) }
        };
        let client = listen(config.listen).await?;
        let peer = listen(config.peer_listen).await?;
        let http = listen(config.http_listen).await?;
        let info = NodeInfo {
            id,
            addr: told(&config.advertise, client.local_addr()),
            peer_addr: told(&config.peer_advertise, peer.local_addr()),
            http_addr: http.local_addr().to_string(),
            zone: config.zone.clone(),
            weight: config.weight_hundredths(),
            storage: config.has_storage(),
            manager: config.has_manager(),
        };
        let (wal, writer) = replicas::open_log(&env, &config)?;
        let engine = replicas::open_engine(&env, &config)?;
        let shards = Shards::open(Arc::clone(&engine))?;
        let tables = Arc::new(Tables::open(&env, &dir)?);
        let fences = Arc::new(fences::Fences::open(Arc::clone(&env.disk), &dir)?);
        let book = Arc::new(AddressBook::default());
        if let Some(table) = tables.current() {
            book.from_table(&table.nodes);
        }
        book.told(info.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let node = Arc::new(Self {
            env,
            config,
            info,
            folder: Mutex::new(folder),
            tables,
            shards,
            engine,
            book,
            serving: Arc::new(ServingCell::default()),
            health,
            wal,
            writer: Mutex::new(Some(writer)),
            changing: tokio::sync::Mutex::new(()),
            fence: Mutex::new((fences.reign(), 0)),
            fences,
            running: Arc::default(),
            sizes: Mutex::default(),
            heard: Mutex::new(None),
            machines: Mutex::new(BTreeMap::new()),
            manager: Mutex::new(None),
            managing: Mutex::new(None),
        });
        node.serve(client, peer, http, health_service)?;
        if !identity.cluster.is_unborn() {
            let _changing = node.changing.lock().await;
            node.begin(identity.cluster).await?;
        }
        node.env.tasks.spawn("discovery", OnEnd::StopNode, birth::discover(Arc::clone(&node)));
        node.env.tasks.spawn("heartbeat", OnEnd::StopNode, heartbeat::run(Arc::clone(&node)));
        Ok(node)
    }

    /// Who this node is, with the addresses that it tells others.
    #[must_use]
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn serve(
        self: &Arc<Self>,
        client: Arc<dyn Listener>,
        peer: Arc<dyn Listener>,
        http: Arc<dyn Listener>,
        health: HealthServer<impl Health>,
    ) -> Result<(), tonic_reflection::server::Error> {
        use annulus_proto::v1::admin_server::AdminServer;
        use annulus_proto::v1::kv_server::KvServer;
        use annulus_proto::v1::peer_server::PeerServer;
        use annulus_proto::v1::routes_server::RoutesServer;
        let kv = KvServer::new(KvService::new(Arc::clone(&self.serving)))
            .max_decoding_message_size(DECODE_BYTES)
            .max_encoding_message_size(DECODE_BYTES);
        let routes = RoutesServer::new(RoutesService::new(Arc::clone(&self.serving)));
        let admin = AdminServer::new(admin::AdminService(Arc::clone(self)))
            .max_decoding_message_size(DECODE_BYTES);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(annulus_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let peers = PeerServer::new(peer::PeerService(Arc::clone(self)))
            .max_decoding_message_size(DECODE_BYTES)
            .max_encoding_message_size(DECODE_BYTES);
        let clients = tonic::transport::Server::builder()
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .add_service(kv)
            .add_service(routes)
            .add_service(admin)
            .add_service(health)
            .add_service(reflection);
        self.run_server("client server", client, clients);
        let peers = tonic::transport::Server::builder()
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
            .add_service(peers);
        self.run_server("peer server", peer, peers);
        let page = http::run(Arc::clone(self), http);
        self.env.tasks.spawn("http server", OnEnd::StopNode, page);
        Ok(())
    }

    fn run_server(
        &self,
        name: &'static str,
        listener: Arc<dyn Listener>,
        router: tonic::transport::server::Router,
    ) {
        let stopping = self.env.tasks.clone();
        self.env.tasks.spawn(name, OnEnd::StopNode, async move {
            let served = router.serve_with_incoming_shutdown(incoming(listener), async move {
                stopping.stop_requested().await;
            });
            if let Err(error) = served.await {
                tracing::error!(name, %error, "a server ended");
            }
        });
    }

    /// Starts the host: the node belongs to `cluster` now. Called under `changing`; a second call
    /// changes nothing.
    pub(crate) async fn begin(self: &Arc<Self>, cluster: ClusterId) -> anyhow::Result<()> {
        let Some(writer) = self.writer.lock().take() else { return Ok(()) };
        let identity = self.folder.lock().identity();
        let node = Arc::downgrade(self);
        let on_dead = OnDead::new(move |reason| {
            if let Some(node) = node.upgrade() {
                node.die(reason);
            }
        });
        let mut options = Options::new(
            cluster,
            self.info.clone(),
            identity.incarnation,
            (identity.boot_counter, identity.boot_id),
            self.config.timing(),
            self.config.data_dir.clone(),
            on_dead,
        )
        .in_reign(self.fences.reign());
        options.slow_apply = Duration::from_millis(self.config.unsafe_slow_apply_ms);
        let host = Host::start(
            &self.env,
            options,
            Arc::clone(&self.engine),
            self.wal.clone(),
            writer,
            Arc::clone(&self.book),
        )?;
        if let Err(error) = Box::pin(self.put_aside(&host)).await {
            tracing::error!(%error, "a replica of a former manager stays closed and is not ended yet");
        }
        self.open_held(&host).await?;
        let watching = eras::watch(Arc::clone(self), Arc::clone(&host));
        self.env.tasks.spawn("eras", OnEnd::StopNode, watching);
        self.serving.set(Arc::new(annulus_server::kv::Serving {
            env: self.env.clone(),
            host,
            shards: Arc::clone(&self.shards),
            tables: Arc::clone(&self.tables),
            node: self.info.id,
        }));
        self.env.tasks.spawn(
            "shard keeper",
            OnEnd::StopNode,
            replicas::create_shards(Arc::clone(self)),
        );
        let sweeping = sweep(self.env.clone(), Arc::clone(&self.shards));
        self.env.tasks.spawn("prefix sweeper", OnEnd::StopNode, sweeping);
        birth::resume(self).await?;
        adoption::resume(self);
        self.health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        Ok(())
    }

    /// The host, once the node belongs to a cluster.
    pub(crate) fn host(&self) -> Option<Arc<Host>> {
        self.serving.peek().map(|serving| Arc::clone(&serving.host))
    }

    /// The manager on this node's replica of its group, if it has one.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.managing.lock().as_ref().map(|(_, manager)| Arc::clone(manager))
    }

    /// Where the manager's leader is.
    pub(crate) fn lead(&self) -> Lead {
        let heard = || self.heard.lock().filter(|node| *node != self.info.id);
        let told = match self.manager() {
            None => None,
            Some(manager) => match manager.leading() {
                Ok(_) => return Lead::Here(manager),
                Err(Error { kind: ErrorKind::NotLeader { leader }, .. }) => leader,
                Err(_) => None,
            },
        };
        told.or_else(heard).map_or(Lead::Unknown, Lead::At)
    }

    /// A peer has refused the data folder for good (N1): no later start may count past its check.
    fn die(&self, reason: &str) {
        let folder = self.config.data_dir.display();
        let marked = self.folder.lock().mark_dead(reason);
        match marked {
            Ok(()) => tracing::error!(
                %folder, reason,
                "the data folder is dead: it is older than what a peer has seen of this node; the node \
                 stops and must not be started on it again"
            ),
            Err(error) => tracing::error!(
                %folder, reason, %error,
                "the data folder is dead and could not be marked: it must not be started again, and \
                 nothing but this line says so"
            ),
        }
        self.env.tasks.request_stop("a peer refused the data folder for good");
    }

    /// Stops: leaderships handed over, no new requests, gates shut, groups ended, log flushed.
    pub async fn stop(&self, reason: &str) {
        if let Some(host) = self.host().filter(|_| !self.env.tasks.is_stopping()) {
            host.hand_over(HAND_OVER).await;
        }
        self.env.tasks.request_stop(reason);
        if let Some(host) = self.host() {
            host.shut_down().await;
        }
        self.env.tasks.wind_down(Duration::from_secs(5)).await;
    }
}

/// The address that others are told: the one to advertise, if there is one, else that of the listener.
fn told(advertised: &str, listened: SocketAddr) -> String {
    if !advertised.is_empty() {
        return advertised.to_owned();
    }
    if listened.ip().is_unspecified() {
        tracing::warn!(
            addr = %listened,
            "others are told an address that they cannot connect to; set advertise and peer-advertise"
        );
    }
    listened.to_string()
}

/// Deletes, in the background, what switched shards and crashed installations have left (E3, E6).
async fn sweep(env: Env, shards: Arc<Shards>) {
    let mut ticker = tokio::time::interval(SWEEP);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !env.tasks.is_stopping() {
        ticker.tick().await;
        let shards = Arc::clone(&shards);
        match tokio::task::spawn_blocking(move || shards.sweep()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(prefixes)) => tracing::info!(prefixes, "data that nothing names are deleted"),
            Ok(Err(error)) => tracing::warn!(%error, "data that nothing names are still there"),
            Err(error) => tracing::warn!(%error, "the deletion of data ended early"),
        }
    }
}

/// Connections of a listener as a stream; a failed accept is retried, it concerns one connection.
fn incoming(
    listener: Arc<dyn Listener>,
) -> impl Stream<Item = Result<peer::Incoming, std::io::Error>> {
    futures_util::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, addr)) => {
                    return Some((Ok(peer::Incoming::new(stream, addr)), listener));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    // Out of file descriptors, most likely: let some close.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    })
}
