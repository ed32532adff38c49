//! A cluster of nodes with one group, and what stories do to it.
//!
//! Nodes are numbered from 1, and the first of them vote, or all; node 1 founds the group and leads it at
//! the beginning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_runtime::{Clock, Cut, Env, Random, SimDisk, SimWorld, Tasks};
use annulus_types::{Error, NodeId, NodeInfo, ReplicaId, ShardId};
use annulus_wal::{EntryId, LogState, StreamId, Wal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::node::{End, GROUP, Rows, TestNode, host_of, info_of, replica_of};
use super::registers;
use crate::entry::{EntryBody, MACHINE_VERSION, Operation};
use crate::group::Group;
use crate::host::{Host, HostError};
use crate::options::WeakenHost;
use crate::packer::Proposed;
use crate::types::Command;

/// Longer than anything takes in a cluster that works.
pub(super) const LONG: Duration = Duration::from_secs(30);

const SHARD: ShardId = ShardId(1);

pub(super) fn ms(span: u64) -> Duration {
    Duration::from_millis(span)
}

/// Lets simulated time pass. Not a way to wait for something: that is [`until`].
pub(super) async fn pass(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Lets simulated time pass until something holds.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        pass(ms(1)).await;
    }
}

/// What a log holds for the replica of `node`.
pub(super) fn log_state(wal: &Wal, node: u32) -> LogState {
    let stream = StreamId { group: GROUP, replica: replica_of(node) };
    wal.log(stream).expect("a replica that was born").state()
}

/// See the module.
pub(super) struct TestCluster {
    world: SimWorld,
    everyone: Vec<NodeInfo>,
    nodes: BTreeMap<u32, TestNode>,
    weaken: WeakenHost,
}

impl TestCluster {
    /// A cluster that works: all links are up and node 1 leads.
    pub(super) async fn new(nodes: u32, seed: u64, weaken: WeakenHost) -> Self {
        Box::pin(Self::founded(nodes, nodes, seed, weaken)).await
    }

    /// As [`Self::new`], but only the first `members` nodes hold a replica of the group.
    pub(super) async fn founded(nodes: u32, members: u32, seed: u64, weaken: WeakenHost) -> Self {
        let random = Random::seeded(seed);
        let world = SimWorld::new(random.clone());
        let everyone: Vec<NodeInfo> = (1..=nodes).map(info_of).collect();
        let mut cluster = Self { world, everyone, nodes: BTreeMap::new(), weaken };
        for number in 1..=nodes {
            let mut node = TestNode::new(number, random.u64());
            node.start(&cluster.world, &cluster.everyone, weaken).await;
            cluster.nodes.insert(number, node);
        }
        until("all links are up", || cluster.is_meshed()).await;
        // The founder comes last: it asks the others for their votes at once.
        for number in (2..=members).rev() {
            let opened = cluster.node(number).open(BTreeMap::new()).await;
            opened.expect("a new replica opens");
        }
        let founders = (1..=members).map(|number| (replica_of(number), NodeId(number))).collect();
        cluster.node(1).open(founders).await.expect("a new replica opens");
        until("the founder leads", || cluster.gate_is_open(1)).await;
        cluster
    }

    fn node(&self, number: u32) -> &TestNode {
        self.nodes.get(&number).expect("a node of the cluster")
    }

    pub(super) fn is_meshed(&self) -> bool {
        self.nodes.keys().all(|from| {
            let mut others = self.nodes.keys().filter(|to| *to != from);
            others.all(|to| self.host(*from).is_linked(NodeId(*to)))
        })
    }

    pub(super) fn host(&self, node: u32) -> &Arc<Host> {
        &self.node(node).process().host
    }

    pub(super) fn group(&self, node: u32) -> Arc<Group> {
        self.host(node).group(GROUP).expect("the replica is open")
    }

    /// The replica of a node, if a process runs there and has one open.
    pub(super) fn try_group(&self, node: u32) -> Option<Arc<Group>> {
        self.node(node).running()?.host.group(GROUP)
    }

    /// Sets a register through the group's front door.
    pub(super) async fn propose(
        &self,
        node: u32,
        name: &str,
        value: u64,
        limit: Duration,
    ) -> Result<Proposed, Error> {
        let group = self.group(node);
        group.propose(SHARD, registers::set(name, value), limit).await
    }

    /// Sets a register through openraft, at whichever node takes it, and returns the entry's index.
    /// For stories about what openraft itself would do: the gate and the packer are passed by.
    pub(super) async fn write_unguarded(&self, name: &str, value: u64) -> u64 {
        let everyone: Vec<u32> = self.nodes.keys().copied().collect();
        self.write_unguarded_at(&everyone, name, value).await
    }

    /// The same at one of these nodes.
    pub(super) async fn write_unguarded_at(&self, nodes: &[u32], name: &str, value: u64) -> u64 {
        let operation = Operation { shard: SHARD, body: registers::set(name, value) };
        let (version, operations) = (MACHINE_VERSION, vec![operation]);
        let body = EntryBody { version, group_time_ms: 0, wall_ms: 0, operations };
        let command = Command(body.encode());
        let deadline = Instant::now() + LONG;
        loop {
            for number in nodes {
                let group = self.group(*number);
                let write = Box::pin(group.raft.client_write(command.clone()));
                if let Ok(Ok(written)) = tokio::time::timeout(ms(2000), write).await {
                    return written.log_id.index;
                }
            }
            assert!(Instant::now() < deadline, "nobody took the write");
            pass(ms(10)).await;
        }
    }

    /// A linearizable read of one register.
    pub(super) async fn read(
        &self,
        node: u32,
        name: &str,
        strict: bool,
        limit: Duration,
    ) -> Result<Option<u64>, Error> {
        self.group(node).read_grant(strict, limit).await?;
        Ok(self.register(node, name))
    }

    /// What a node's engine holds, whoever may be told.
    pub(super) fn register(&self, node: u32, name: &str) -> Option<u64> {
        self.registers(node).get(name).copied()
    }

    pub(super) fn registers(&self, node: u32) -> BTreeMap<String, u64> {
        self.node(node).registers()
    }

    pub(super) fn everyone_holds(&self, name: &str, value: u64) -> bool {
        self.nodes.keys().all(|node| self.register(*node, name) == Some(value))
    }

    pub(super) fn applied(&self, node: u32) -> EntryId {
        self.group(node).replica.applied().id
    }

    /// A node's disk, whether a process runs or not.
    pub(super) fn disk(&self, node: u32) -> &SimDisk {
        self.node(node).disk()
    }

    pub(super) fn log_state(&self, node: u32) -> LogState {
        log_state(self.host(node).wal(), node)
    }

    /// Whether a node was elected and has not heard of a later one.
    pub(super) fn leads(&self, node: u32) -> bool {
        self.group(node).replica.gate.view().leading.is_some()
    }

    pub(super) fn gate_is_open(&self, node: u32) -> bool {
        let group = self.group(node);
        group.replica.gate.is_open(group.env.clock.boot())
    }

    /// Waits until one of `nodes` may answer, and returns it.
    pub(super) async fn leader_among(&self, nodes: &[u32]) -> u32 {
        let find = || nodes.iter().copied().find(|node| self.gate_is_open(*node));
        until("one of them leads", || find().is_some()).await;
        find().expect("found just now")
    }

    /// Keeps a node from applying anything until the sender is dropped.
    pub(super) async fn hold_apply(&self, node: u32) -> oneshot::Sender<()> {
        let (release, released) = oneshot::channel::<()>();
        let group = self.group(node);
        let request = group.raft.external_state_machine_request(move |_machine| {
            Box::pin(async move {
                // Dropped or used, both release.
                let _ = released.await;
            })
        });
        request.await.expect("the core runs");
        release
    }

    pub(super) fn stall_disk(&self, node: u32, stalled: bool) {
        self.node(node).process().disk.stall(stalled);
    }

    /// Stalls a node's disk right behind the first sync after which `when` holds.
    pub(super) fn stall_disk_when(
        &self,
        node: u32,
        when: impl FnMut(&Wal) -> bool + Send + 'static,
    ) {
        self.node(node).process().disk.stall_when(when);
    }

    /// What one of the two sends to the other is held back until they are healed.
    pub(super) fn partition(&self, a: u32, b: u32) {
        self.world.cut(host_of(a), host_of(b), Cut::Hold);
    }

    /// As [`Self::partition`], for one direction.
    pub(super) fn silence(&self, from: u32, to: u32) {
        self.world.cut_one_way(host_of(from), host_of(to), Cut::Hold);
    }

    pub(super) fn heal(&self, a: u32, b: u32) {
        self.world.heal(host_of(a), host_of(b));
    }

    /// What the process of a node was told of the end of its folder.
    pub(super) fn told_dead(&self, node: u32) -> Vec<String> {
        self.node(node).process().dead.lock().clone()
    }

    /// Starts of a node's folder so far.
    pub(super) fn boots(&self, node: u32) -> u64 {
        self.node(node).boots()
    }

    /// A copy of a node's folder as it is now.
    pub(super) fn image(&self, node: u32) -> SimDisk {
        self.node(node).image()
    }

    /// Gives a node that is down another folder, which counts so many starts.
    pub(super) fn replace_folder(&mut self, node: u32, disk: SimDisk, boots: u64) {
        self.nodes.get_mut(&node).expect("a node of the cluster").replace_folder(disk, boots);
    }

    /// Gives a node that is down an empty folder.
    pub(super) fn wipe(&mut self, node: u32) {
        self.nodes.get_mut(&node).expect("a node of the cluster").wipe();
    }

    /// Puts a copy of a node's folder on a machine of its own; nothing runs there yet. From now on
    /// the machine's number names the copy.
    pub(super) fn copy_folder(&mut self, node: u32, machine: u32) {
        let copy = self.node(node).copy_to(machine);
        let former = self.nodes.insert(machine, copy);
        assert!(former.is_none(), "the machine is taken");
    }

    /// Ends a node's process.
    pub(super) async fn end(&mut self, node: u32, how: End) {
        let ending = self.nodes.get_mut(&node).expect("a node of the cluster");
        ending.end(&self.world, how).await;
    }

    /// Starts a node again and opens the replica that its log holds.
    pub(super) async fn restart(&mut self, node: u32, rows: Rows) -> Result<(), HostError> {
        let starting = self.nodes.get_mut(&node).expect("a node of the cluster");
        match rows {
            Rows::Kept => {}
            Rows::Undurable => starting.lose_undurable_rows(),
            Rows::Lost => starting.lose_rows(),
        }
        starting.start(&self.world, &self.everyone, self.weaken).await;
        starting.open(BTreeMap::new()).await
    }

    /// Starts a node again and opens nothing.
    pub(super) async fn start(&mut self, node: u32) {
        let starting = self.nodes.get_mut(&node).expect("a node of the cluster");
        starting.start(&self.world, &self.everyone, self.weaken).await;
    }

    /// Opens a replica with an id of its own on a node.
    pub(super) async fn open_replica(
        &self,
        node: u32,
        replica: ReplicaId,
    ) -> Result<(), HostError> {
        self.node(node).open_replica(replica, BTreeMap::new()).await
    }

    /// Opens a node's replica, for the first time or once more.
    pub(super) async fn open_again(&self, node: u32) -> Result<(), HostError> {
        self.node(node).open(BTreeMap::new()).await
    }

    /// As [`Self::restart`], with a log that begins behind what the engine holds. Returns the entry
    /// behind which it begins.
    pub(super) async fn restart_late(&mut self, node: u32) -> EntryId {
        let starting = self.nodes.get_mut(&node).expect("a node of the cluster");
        starting.start(&self.world, &self.everyone, self.weaken).await;
        starting.open_late().await.expect("its log is undamaged")
    }

    /// The surroundings of somebody who is no member.
    pub(super) fn stranger(&self) -> Env {
        Env {
            clock: Clock::simulated(1000, 0),
            random: Random::seeded(0),
            network: Arc::new(self.world.network(host_of(200))),
            disk: Arc::new(SimDisk::new(Random::seeded(0))),
            tasks: Tasks::new(),
        }
    }
}
