//! A world for the executor: nodes that obey commands as real ones must, groups whose memberships
//! change, a manager whose leader changes, and a wire on which everything can get lost, late or
//! repeated. Time passes only when told.
//!
//! What must never happen is asserted where it would happen: see `obey`.

mod obey;

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command as Change;
use annulus_types::{Error, ErrorKind};

use super::super::{Action, Now, next};
use crate::command::nodes::{Admission, admission};
use crate::sight::{Act, FORMER_MS, SILENT_MS, Sight, Tell};
use crate::state::{StateExt, from_plan, id_of, is_up};
use crate::testing::{node_of, plan_of, put};

/// By replica: its node, and whether it votes.
type Members = BTreeMap<u64, (u32, bool)>;

#[derive(Clone, Debug, Default)]
pub struct Node {
    pub is_up: bool,
    pub life: u64,
    pub replicas: BTreeMap<u64, Replica>,
    tombstones: BTreeSet<u64>,
    /// By group: the highest term and generation that was obeyed (H6).
    fences: BTreeMap<u64, (u64, u64)>,
}

#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub group: u64,
    pub matched: u64,
    pub halted: bool,
    /// Its log is lost: it cannot tell when it had a seat.
    pub is_partial: bool,
    /// The newest membership in its log that holds it.
    member_at: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Of the membership entry.
    pub index: u64,
    pub members: Members,
    /// All settled memberships so far with their indexes, this one too: what members may tell that lag.
    past: Vec<(u64, Members)>,
    /// What a change under way leads to.
    pub next: Option<Members>,
    /// The term of the leader that was asked for it. Another leader commits what was appended, and
    /// appends nothing: a joint membership stays.
    asked_in: u64,
    /// A replica; 0: nobody leads.
    pub leader: u64,
    term: u64,
    last: u64,
}

/// A command, and what could be known when it was sent: it may arrive when all is different.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The term of the manager.
    term: u64,
    pub tell: Tell,
    /// Replicas that were reported sound last, by nodes that count as up.
    sound: BTreeSet<u64>,
    /// Live members that its group should keep.
    least: usize,
}

pub struct World {
    pub state: v1::ManagerState,
    pub sight: Sight,
    pub now: Now,
    pub term: u64,
    pub nodes: BTreeMap<u32, Node>,
    pub groups: BTreeMap<u64, Group>,
    /// Commands on their way.
    pub wire: Vec<Sent>,
    /// Commands that arrived, and may arrive again.
    late: Vec<Sent>,
    /// By node: the life that was heard last, and which of its replicas were sound then.
    heard: BTreeMap<u32, (u64, BTreeSet<u64>)>,
    /// Changes of membership take long, and their answers do not come back.
    pub is_slow: bool,
    /// So many comparisons of digests will fail.
    pub bad_digests: u32,
    verified: BTreeSet<u64>,
    /// What nodes do not do, whoever asks and however often.
    pub refusals: BTreeSet<(u32, Act)>,
    /// Nodes to which leadership cannot be handed over.
    pub stubborn: BTreeSet<u32>,
    /// Groups in which nobody can win an election.
    pub leaderless: BTreeSet<u64>,
    /// Nodes that never come back.
    pub buried: BTreeSet<u32>,
    /// So many entries a replica takes in a tick, where that is not all.
    pub slow: BTreeMap<u64, u64>,
    /// Nodes that obey a former manager still.
    pub unaware: BTreeSet<u32>,
}

fn refused(reason: &str) -> Error {
    Error::refused(ErrorKind::NotReady { reason: reason.to_owned() })
}

impl World {
    /// Equal nodes, eight shards, and one group per node beside the manager's own. The first membership is
    /// entry 0 in every other group, the first one among them.
    pub fn new(nodes: u32, replication: u32) -> Self {
        let plan = v1::Plan { shards: 8, lanes: 1, replication, ..plan_of(nodes) };
        let state = from_plan(&plan).unwrap();
        let mut world = Self {
            sight: Sight::new(1_000),
            now: Now { mono_ms: 1_000, group_ms: 1_000 },
            term: 1,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            wire: Vec::new(),
            late: Vec::new(),
            heard: BTreeMap::new(),
            is_slow: false,
            bad_digests: 0,
            verified: BTreeSet::new(),
            refusals: BTreeSet::new(),
            stubborn: BTreeSet::new(),
            leaderless: BTreeSet::new(),
            buried: BTreeSet::new(),
            slow: BTreeMap::new(),
            unaware: BTreeSet::new(),
            state,
        };
        for id in 1..=nodes {
            world.nodes.insert(id, Node { is_up: true, life: 7, ..Node::default() });
        }
        for (record, index) in world.state.all_groups().zip([0, 1].into_iter().cycle()) {
            let mut members = Members::new();
            for member in &record.members {
                members.insert(member.replica, (member.node, true));
                let replica = Replica {
                    group: record.id,
                    matched: 10,
                    member_at: Some(index),
                    ..Replica::default()
                };
                let node = world.nodes.get_mut(&member.node).unwrap();
                node.replicas.insert(member.replica, replica);
            }
            let leader = record.members[0].replica;
            let past = vec![(index, members.clone())];
            let group =
                Group { index, members, past, leader, term: 1, last: 10, ..Group::default() };
            world.groups.insert(record.id, group);
        }
        world
    }

    pub fn is_alive(&self, replica: u64, node: u32) -> bool {
        let node = &self.nodes[&node];
        node.is_up && node.replicas.get(&replica).is_some_and(|replica| !replica.halted)
    }

    pub fn live(&self, members: &Members) -> usize {
        let votes = members.iter().filter(|(_, (_, voter))| *voter);
        votes.filter(|(replica, (node, _))| self.is_alive(**replica, *node)).count()
    }

    /// Whether a majority of these lives.
    fn can_agree(&self, members: &Members) -> bool {
        2 * self.live(members) > voters_of(members).len()
    }

    fn has_quorum(&self, group: &Group) -> bool {
        self.can_agree(&group.members)
            && group.next.as_ref().is_none_or(|next| self.can_agree(next))
    }

    /// The leader's node, if somebody leads with a majority.
    pub fn leader_node(&self, id: u64) -> Option<u32> {
        let group = &self.groups[&id];
        let (node, _) = group.members.get(&group.leader)?;
        if self.leaderless.contains(&id) {
            return None;
        }
        (self.is_alive(group.leader, *node) && self.has_quorum(group)).then_some(*node)
    }

    /// Lets some voter lead that can; another one than now if possible.
    pub fn elect(&mut self, id: u64, pick: usize) {
        let group = &self.groups[&id];
        let able: Vec<u64> = group
            .members
            .iter()
            .filter(|(replica, (node, voter))| *voter && self.is_alive(**replica, *node))
            .map(|(replica, _)| *replica)
            .collect();
        let wins = self.has_quorum(group) && !self.leaderless.contains(&id);
        let leader = if wins && !able.is_empty() { able[pick % able.len()] } else { 0 };
        let group = self.groups.get_mut(&id).unwrap();
        if leader != group.leader {
            group.term += 1;
        }
        group.leader = leader;
    }

    /// Lets time pass: logs grow and are replicated, leaders are elected where there are none.
    pub fn tick(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.group_ms += ms;
        let ids: Vec<u64> = self.groups.keys().copied().collect();
        for id in ids {
            if self.leader_node(id).is_none() {
                self.elect(id, 0);
            }
            if self.leader_node(id).is_none() {
                continue;
            }
            let group = self.groups.get_mut(&id).unwrap();
            group.last += 3;
            for (replica, (node, _)) in &group.members {
                let node = self.nodes.get_mut(node).unwrap();
                if let Some(held) = node.replicas.get_mut(replica).filter(|_| node.is_up) {
                    let slow = self.slow.get(replica).map(|entries| held.matched + entries);
                    held.matched = slow.unwrap_or(group.last).min(group.last);
                    held.member_at = Some(group.index);
                }
            }
        }
    }

    /// Whether the voters are being changed.
    pub fn is_joint(&self, id: u64) -> bool {
        let group = &self.groups[&id];
        group.next.as_ref().is_some_and(|next| voters_of(next) != voters_of(&group.members))
    }

    /// A leader dies when half of its change is done: one that takes a member's seat away.
    pub fn leave_joint(&mut self, id: u64, gone: u64) {
        let group = self.groups.get_mut(&id).unwrap();
        let mut members = group.members.clone();
        members.remove(&gone);
        Self::append(group, members);
        group.asked_in = 0;
    }

    fn append(group: &mut Group, members: Members) {
        group.last += 1;
        group.index = group.last;
        (group.next, group.asked_in) = (Some(members), group.term);
    }

    /// Ends changes of membership that are under way, where a majority lives, and with it who was
    /// asked for them, or nobody is needed.
    pub fn settle(&mut self) {
        let ids: Vec<u64> = self.groups.keys().copied().collect();
        for id in ids {
            let is_joint = self.is_joint(id);
            if self.leader_node(id).is_some() {
                let group = self.groups.get_mut(&id).unwrap();
                if is_joint && group.asked_in != group.term {
                    continue;
                }
                if let Some(next) = group.next.take() {
                    Self::commit(group, next);
                }
            }
        }
    }

    fn commit(group: &mut Group, members: Members) {
        group.last += 1;
        group.index = group.last;
        group.past.push((group.index, members.clone()));
        group.members = members;
        if !group.members.get(&group.leader).is_some_and(|(_, voter)| *voter) {
            group.leader = 0;
        }
    }

    pub fn kill(&mut self, id: u32) {
        self.nodes.get_mut(&id).unwrap().is_up = false;
    }

    pub fn revive(&mut self, id: u32) {
        if self.buried.contains(&id) {
            return;
        }
        self.nodes.get_mut(&id).unwrap().is_up = true;
    }

    /// The node is gone for good.
    pub fn bury(&mut self, id: u32) {
        self.kill(id);
        self.buried.insert(id);
    }

    /// The node comes back with an empty disk.
    pub fn wipe(&mut self, id: u32) {
        let node = self.nodes.get_mut(&id).unwrap();
        *node = Node { is_up: true, life: node.life + 1, ..Node::default() };
    }

    /// A replica comes to be out of nowhere.
    pub fn plant(&mut self, node: u32, group: u64, replica: u64) {
        let held = Replica { group, ..Replica::default() };
        self.nodes.get_mut(&node).unwrap().replicas.insert(replica, held);
    }

    pub fn change_manager(&mut self) {
        self.term += 1;
        self.sight = Sight::new(self.now.mono_ms);
    }

    /// A manager is made anew, and knows of no move.
    pub fn replace_manager(&mut self) {
        self.change_manager();
        self.state.era += 1;
        self.state.incarnation += 1;
        self.state.moves.clear();
        for group in &mut self.state.groups {
            group.generation = 0;
        }
    }

    fn report(&self, replica: u64, held: &Replica) -> v1::GroupReport {
        let group = &self.groups[&held.group];
        let leads = group.leader == replica && self.leader_node(held.group).is_some();
        let matched = |replica: u64, node: u32| {
            self.nodes[&node].replicas.get(&replica).map_or(0, |held| held.matched)
        };
        let seat = |(replica, (node, voter)): (&u64, &(u32, bool))| v1::SeatReport {
            replica: *replica,
            node: *node,
            voter: *voter,
            matched: matched(*replica, *node),
        };
        let role = if leads { v1::Role::Leader } else { v1::Role::Follower };
        v1::GroupReport {
            group: held.group,
            replica,
            role: role.into(),
            term: group.term,
            membership_index: group.index,
            joint: self.is_joint(held.group),
            seats: if leads { group.members.iter().map(seat).collect() } else { Vec::new() },
            last_index: group.last,
            gate_open: leads,
            halted: if held.halted { "broken".to_owned() } else { String::new() },
            membership_committed: group.next.is_none(),
            ..Default::default()
        }
    }

    /// A node reports, and is admitted first if need be: what `Manager::heartbeat` does.
    pub fn heartbeat(&mut self, id: u32) {
        let node = &self.nodes[&id];
        if !node.is_up {
            return;
        }
        let (life, info) = (node.life, node_of(id));
        let known = self.state.node(id).unwrap();
        let former_silent = self.sight.silent_ms(known, self.now.mono_ms) >= FORMER_MS;
        if admission(&self.state, &info, life, former_silent) == Admission::Enter {
            let info = Some(info.clone());
            let admit =
                v1::AdmitNode { info, incarnation: life, former_silent, ..Default::default() };
            self.propose(Change::Admit(admit));
        }
        if admission(&self.state, &info, life, former_silent) == Admission::Known {
            let replicas = &self.nodes[&id].replicas;
            let groups = replicas.iter().map(|(id, held)| self.report(*id, held)).collect();
            let era = if self.unaware.contains(&id) { 0 } else { self.state.era };
            let request = v1::HeartbeatRequest {
                info: Some(info),
                incarnation: life,
                groups,
                era,
                manager_incarnation: self.state.incarnation,
                ..Default::default()
            };
            self.sight.hear(&request, self.now.mono_ms);
            let sound = self.nodes[&id].replicas.iter().filter(|(_, held)| !held.halted);
            let sound = sound.map(|(replica, _)| *replica).collect();
            self.heard.insert(id, (life, sound));
        }
    }

    /// The replicas that somebody who listens may count on.
    fn believed_sound(&self) -> BTreeSet<u64> {
        let up = self.state.nodes.iter().filter(|node| is_up(node));
        let heard = up.filter_map(|node| {
            let (life, sound) = self.heard.get(&id_of(node))?;
            (*life == node.incarnation).then_some(sound)
        });
        heard.flatten().copied().filter(|replica| !self.state.is_lost(*replica)).collect()
    }

    /// Live members below which no plan brings a group: its replication, or as many as there are nodes that
    /// do not drain and are not gone for long.
    fn least(&self, group: u64) -> usize {
        let down_after_ms = self.state.settings().down_after_ms;
        let is_there = |node: &&v1::NodeRecord| {
            let is_gone = self.now.group_ms - node.down_since_ms >= down_after_ms;
            !node.draining && (is_up(node) || !is_gone)
        };
        let nodes = self.state.nodes.iter().filter(is_there).count();
        // The manager's own group only keeps a majority.
        if group == 0 { 0 } else { nodes.min(self.state.replication as usize) }
    }

    pub fn heartbeats(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.heartbeat(id);
        }
    }

    /// A refused proposal is one that came too late.
    pub fn propose(&mut self, command: Change) {
        let _refused = put(&mut self.state, command, self.now.group_ms);
    }

    /// One round of the driver, cut off after so many actions.
    pub fn round(&mut self, most: usize) {
        let up: Vec<v1::NodeRecord> =
            self.state.nodes.iter().filter(|n| is_up(n)).cloned().collect();
        for node in up {
            if self.sight.silent_ms(&node, self.now.mono_ms) >= SILENT_MS {
                let (node, incarnation) = (id_of(&node), node.incarnation);
                self.propose(Change::Silent(v1::NodeSilent { node, incarnation }));
            }
        }
        for action in next(&self.state, &self.sight, self.now).into_iter().take(most) {
            match action {
                Action::Propose(command) => self.propose(command.command.unwrap()),
                Action::Tell(tell) => {
                    self.sight.sent(tell.errand(), self.now.mono_ms);
                    let (sound, least) = (self.believed_sound(), self.least(tell.group));
                    self.wire.push(Sent { term: self.term, tell, sound, least });
                }
            }
        }
    }

    /// A command arrives; its answer comes back, or is lost.
    pub fn deliver(&mut self, pick: usize, is_answered: bool) {
        if self.wire.is_empty() {
            return;
        }
        let sent = self.wire.remove(pick % self.wire.len());
        let result = self.perform(&sent);
        let result = if is_answered { result } else { Err(refused("lost")) };
        self.answer(&sent, result);
        self.late.push(sent);
    }

    /// A command is lost.
    pub fn lose(&mut self, pick: usize) {
        if !self.wire.is_empty() {
            let sent = self.wire.remove(pick % self.wire.len());
            self.answer(&sent, Err(refused("lost")));
            self.late.push(sent);
        }
    }

    /// A command arrives that arrived before, or was thought to be lost.
    pub fn repeat(&mut self, pick: usize) {
        if !self.late.is_empty() {
            let sent = self.late[pick % self.late.len()].clone();
            let _unheard = self.perform(&sent);
        }
    }

    fn answer(&mut self, sent: &Sent, result: Result<v1::CommandReply, Error>) {
        if sent.term == self.term {
            self.sight.answered(sent.tell.errand(), result, self.now.mono_ms);
        }
    }
}

fn voters_of(members: &Members) -> BTreeSet<u64> {
    let voters = members.iter().filter(|(_, (_, voter))| *voter);
    voters.map(|(replica, _)| *replica).collect()
}
