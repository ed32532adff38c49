//! One node of a test cluster: what outlives its processes, and the process that runs now.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annulus_engine::{MemoryEngine, Row};
use annulus_runtime::{Clock, Disk, Env, OnEnd, Open, Random, SimDisk, SimWorld, Tasks};
use annulus_types::{ClusterId, GroupId, NodeId, NodeInfo, ReplicaId};
use annulus_wal::{EntryId, StreamId, Wal};
use parking_lot::Mutex;

use super::disk::{DiskSwitch, drive};
use super::process_engine::{ProcessEngine, holding};
use super::registers::{self, Registers};
use super::server::serve;
use crate::book::AddressBook;
use crate::host::{GroupSpec, Host, HostError};
use crate::machine::GroupState;
use crate::options::{OnDead, Options, Timing, WeakenHost};
use crate::types::entry_id;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const GROUP: GroupId = GroupId(5);

/// The replica of a node; ids differ, so that mistaking one for the other shows.
pub(super) fn replica_of(node: u32) -> ReplicaId {
    ReplicaId(u64::from(node) + 10)
}

pub(super) fn host_of(node: u32) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(node).expect("a small cluster")])
}

fn addr_of(node: u32) -> SocketAddr {
    SocketAddr::new(host_of(node), 7400)
}

pub(super) fn info_of(node: u32) -> NodeInfo {
    let peer_addr = addr_of(node).to_string();
    NodeInfo { id: NodeId(node), peer_addr, ..NodeInfo::default() }
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The machine goes on.
    Kill,
    /// What was not synced is lost.
    PowerCut,
}

/// What the next process finds in the engine. Both happen to engines that promise nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    Kept,
    /// All but what was made durable.
    Undurable,
    Lost,
}

pub(super) struct TestNode {
    number: u32,
    /// The machine that it runs on: of the same number, unless it is a copy of another node.
    machine: u32,
    /// The incarnation of its folder.
    life: u64,
    random: Random,
    disk: SimDisk,
    rows: Arc<MemoryEngine>,
    /// Those that were made durable.
    durable: Arc<Mutex<Vec<Row>>>,
    /// Starts of the folder, as the folder counts them.
    boots: u64,
    process: Option<Process>,
}

pub(super) struct Process {
    pub(super) host: Arc<Host>,
    pub(super) disk: Arc<DiskSwitch>,
    /// What the host has told of the end of its folder.
    pub(super) dead: Arc<Mutex<Vec<String>>>,
    engine: Arc<ProcessEngine>,
}

impl TestNode {
    pub(super) fn new(number: u32, seed: u64) -> Self {
        let random = Random::seeded(seed);
        let disk = SimDisk::new(random.clone());
        let rows = Arc::new(MemoryEngine::new());
        let (machine, life) = (number, u64::from(number));
        let durable = Arc::default();
        Self { number, machine, life, random, disk, rows, durable, boots: 0, process: None }
    }

    /// A node made of a copy of this one's folder as it is now, on another machine.
    pub(super) fn copy_to(&self, machine: u32) -> Self {
        let random = Random::seeded(self.random.u64());
        let (disk, rows) = (self.image(), Arc::new(MemoryEngine::new()));
        let Self { number, life, boots, .. } = *self;
        let durable = Arc::default();
        Self { number, machine, life, random, disk, rows, durable, boots, process: None }
    }

    /// Starts of the folder so far.
    pub(super) fn boots(&self) -> u64 {
        self.boots
    }

    /// A copy of the node's folder as it is now, all of it durable.
    pub(super) fn image(&self) -> SimDisk {
        let copy = SimDisk::new(Random::seeded(self.random.u64()));
        let mut folders = vec![PathBuf::from("/")];
        while let Some(folder) = folders.pop() {
            for name in self.disk.list(&folder).expect("a folder") {
                let path = folder.join(name);
                match self.disk.open(&path, Open::Read) {
                    Ok(file) => {
                        let len = file.len().expect("memory does not fail");
                        let mut data = vec![0; usize::try_from(len).expect("a small file")];
                        file.read_exact_at(&mut data, 0).expect("memory does not fail");
                        let twin = copy.open(&path, Open::CreateNew).expect("an empty disk");
                        twin.write_all_at(&data, 0).expect("room enough");
                        twin.sync_data().expect("memory does not fail");
                    }
                    Err(error) if error.kind() == ErrorKind::IsADirectory => {
                        copy.create_dir_all(&path).expect("room enough");
                        folders.push(path);
                    }
                    Err(error) => panic!("{}: {error}", path.display()),
                }
            }
            copy.sync_dir(&folder).expect("memory does not fail");
        }
        copy
    }

    /// The next process finds another folder, which counts so many starts.
    pub(super) fn replace_folder(&mut self, disk: SimDisk, boots: u64) {
        assert!(self.process.is_none(), "the folder is in use");
        self.disk = disk;
        self.boots = boots;
    }

    /// The next process finds an empty folder, and makes a new one of it.
    pub(super) fn wipe(&mut self) {
        let random = Random::seeded(self.random.u64());
        self.replace_folder(SimDisk::new(random), 0);
        self.lose_rows();
        self.life += 1000;
    }

    pub(super) fn process(&self) -> &Process {
        self.running().expect("the node runs")
    }

    pub(super) fn running(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// The disk itself, whatever becomes of processes.
    pub(super) fn disk(&self) -> &SimDisk {
        &self.disk
    }

    pub(super) fn registers(&self) -> BTreeMap<String, u64> {
        registers::all(&*self.rows)
    }

    /// Starts a process: everything but the replica.
    pub(super) async fn start(
        &mut self,
        world: &SimWorld,
        everyone: &[NodeInfo],
        weaken: WeakenHost,
    ) {
        assert!(self.process.is_none(), "one process at a time");
        self.boots += 1;
        let random = Random::seeded(self.random.u64());
        let env = Env {
            clock: Clock::simulated(1000, 0),
            random: random.clone(),
            network: Arc::new(world.network(host_of(self.machine))),
            disk: Arc::new(self.disk.process()),
            tasks: Tasks::new(),
        };
        // Small segments: each start makes one, and memory is what they are made of.
        let options = annulus_wal::Options { segment_bytes: 256 << 10, ..Default::default() };
        let (disk, salts) = (Arc::clone(&env.disk), random.clone());
        let (wal, writer) =
            Wal::open(disk, Path::new("/log"), options, move || salts.u64()).expect("a log opens");
        let disk = Arc::new(DiskSwitch::default());
        let driven = drive(writer, wal.clone(), Arc::clone(&disk));
        env.tasks.spawn("log writer", OnEnd::Ignore, driven);

        let engine =
            Arc::new(ProcessEngine::new(Arc::clone(&self.rows), Arc::clone(&self.durable)));
        let book = Arc::new(AddressBook::default());
        book.from_table(everyone);
        let boot = (self.boots, random.u64());
        let peer_addr = addr_of(self.machine).to_string();
        let info = NodeInfo { peer_addr, ..info_of(self.number) };
        let dead = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&dead);
        let on_dead = OnDead::new(move |reason| told.lock().push(reason.to_owned()));
        let (timing, folder) = (Timing::default(), PathBuf::from("/"));
        let options = Options::new(CLUSTER, info, self.life, boot, timing, folder, on_dead);
        let host = Host::with_weaken(&env, options, engine.clone(), wal, book, weaken)
            .expect("the default times hold together");
        let listener =
            env.network.listen(addr_of(self.machine)).await.expect("the former process is gone");
        env.tasks.spawn("peer server", OnEnd::Ignore, serve(listener, Arc::clone(&host)));
        // Links come with the groups; a first group is born when all are up.
        if self.boots == 1 {
            for other in everyone {
                drop(host.links.find(other.id));
            }
        }
        self.process = Some(Process { host, disk, dead, engine });
    }

    /// Opens the node's replica; `found` names the members of a group that is born.
    pub(super) async fn open(&self, found: BTreeMap<ReplicaId, NodeId>) -> Result<(), HostError> {
        self.open_replica(replica_of(self.number), found).await
    }

    /// The same with another replica.
    pub(super) async fn open_replica(
        &self,
        replica: ReplicaId,
        found: BTreeMap<ReplicaId, NodeId>,
    ) -> Result<(), HostError> {
        let spec = GroupSpec { group: GROUP, replica, found };
        let host = &self.process().host;
        let machine = Arc::new(Registers(Arc::clone(host.engine())));
        Box::pin(host.open_group(spec, machine)).await.map(drop)
    }

    /// Opens the node's replica with a log that begins behind what the engine holds, as L7 leaves it.
    /// Returns the entry behind which it begins.
    pub(super) async fn open_late(&self) -> Result<EntryId, HostError> {
        let host = &self.process().host;
        let state = GroupState::load(host.engine().as_ref(), GROUP)?;
        let applied = entry_id(&state.applied.expect("something was applied"));
        let stream = StreamId { group: GROUP, replica: replica_of(self.number) };
        host.wal().log(stream)?.purge(applied);
        self.open(BTreeMap::new()).await?;
        Ok(applied)
    }

    /// Ends the process: sockets and disk first, so that nothing which still runs has an effect.
    pub(super) async fn end(&mut self, world: &SimWorld, how: End) {
        let Process { host, engine, .. } = self.process.take().expect("the node runs");
        world.reset_host(host_of(self.machine));
        match how {
            End::Kill => self.disk.kill(),
            End::PowerCut => self.disk.crash(),
        }
        engine.end();
        host.env.tasks.request_stop("the process has ended");
        host.env.tasks.wind_down(Duration::ZERO).await;
        for group in host.groups() {
            // A core whose disk is gone may have ended already.
            let _ = group.raft.shutdown().await;
        }
    }

    /// The next process finds an empty engine.
    pub(super) fn lose_rows(&mut self) {
        self.durable.lock().clear();
        self.lose_undurable_rows();
    }

    /// The next process finds what was made durable.
    pub(super) fn lose_undurable_rows(&mut self) {
        assert!(self.process.is_none(), "the rows are in use");
        self.rows = Arc::new(holding(&self.durable.lock()));
    }
}
