//! What a node of the world does with a command, and what must never be asked of it.
//!
//! What is asked is judged by what could be known when it was sent. A node itself obeys as a real one does:
//! any membership that some member of the group once had settled may be told to it as a proof (H4), also an
//! early one, by a member that lags; and a leader begins no change to voters of which no majority lives.

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_types::Error;

use super::{Members, Replica, Sent, World, refused, voters_of};
use crate::sight::Tell;

impl World {
    /// What a node does with a command.
    pub(super) fn perform(&mut self, sent: &Sent) -> Result<v1::CommandReply, Error> {
        let (term, tell) = (sent.term, &sent.tell);
        let node = self.nodes.get_mut(&tell.node).unwrap();
        if !node.is_up || node.life != tell.incarnation {
            return Err(refused("nobody of that life is there"));
        }
        let fence = node.fences.entry(tell.group).or_default();
        if (term, tell.generation) < *fence {
            return Err(refused("a later manager has spoken"));
        }
        *fence = (term, tell.generation);
        if self.refusals.contains(&(tell.node, tell.errand().act)) {
            return Err(refused("it never does that"));
        }
        match tell.command {
            Command::Create(create) => self.create(tell, create.replica),
            Command::Retire(retire) => {
                self.destroy(tell, retire.replica, Some(retire.membership_index))
            }
            Command::Cancel(cancel) => self.destroy(tell, cancel.replica, None),
            _ if self.leader_node(tell.group) != Some(tell.node) => Err(refused("leads not")),
            Command::Seed(seed) => {
                let to = seed.to.unwrap();
                let is_there = self.is_alive(to.replica, to.node);
                let reply = v1::CommandReply { bytes: 100, ..self.reply(tell) };
                if is_there { Ok(reply) } else { Err(refused("nothing to seed")) }
            }
            Command::Verify(verify) => {
                let seat = verify.seat.unwrap();
                if !self.is_alive(seat.replica, seat.node) {
                    return Err(refused("no answer"));
                }
                let equal = self.bad_digests == 0;
                self.bad_digests = self.bad_digests.saturating_sub(1);
                if equal {
                    self.verified.insert(seat.replica);
                }
                Ok(v1::CommandReply { equal, ..self.reply(tell) })
            }
            Command::Transfer(transfer) => self.transfer(tell, transfer.to),
            Command::Change(change) => self.change(sent, change),
        }
    }

    fn reply(&self, tell: &Tell) -> v1::CommandReply {
        let leader = self.groups[&tell.group].leader;
        let held = self.nodes[&tell.node].replicas.get(&leader);
        let report = held.map(|held| self.report(leader, held));
        v1::CommandReply { report, ..Default::default() }
    }

    fn create(&mut self, tell: &Tell, replica: u64) -> Result<v1::CommandReply, Error> {
        let node = self.nodes.get_mut(&tell.node).unwrap();
        if node.tombstones.contains(&replica) {
            return Err(refused("was destroyed here"));
        }
        let group = tell.group;
        node.replicas.entry(replica).or_insert(Replica { group, ..Replica::default() });
        Ok(v1::CommandReply::default())
    }

    /// With a `floor` as a member that left (H4), else as one that never was a member. The floor is the
    /// membership from which on it had no seat, by the word of who asks; 0 for none.
    fn destroy(
        &mut self,
        tell: &Tell,
        id: u64,
        floor: Option<u64>,
    ) -> Result<v1::CommandReply, Error> {
        let group = &self.groups[&tell.group];
        let counts = |members: &Members| members.get(&id).is_some_and(|(_, voter)| *voter);
        let votes = counts(&group.members) || group.next.as_ref().is_some_and(counts);
        let node = self.nodes.get_mut(&tell.node).unwrap();
        if let Some(held) = node.replicas.get(&id) {
            let own = held.member_at.filter(|_| !held.is_partial);
            match floor {
                Some(floor) => {
                    let told = floor.checked_sub(1).filter(|_| held.is_partial);
                    let Some(bar) = own.or(told) else { return Err(refused("no proof")) };
                    let mut past = group.past.iter();
                    let is_proof = |(index, members): &&(u64, Members)| {
                        *index > bar && !members.contains_key(&id)
                    };
                    let Some((proof, _)) = past.find(is_proof) else {
                        return Err(refused("no proof"));
                    };
                    let voted = group.past.iter().rfind(|(_, members)| counts(members));
                    let is_before = voted.is_some_and(|(index, _)| proof < index);
                    assert!(!is_before, "{tell:?} by entry {proof}, and voted later: {group:?}");
                }
                None if held.is_partial => return Err(refused("nobody knows what it was")),
                None if own.is_some() => return Err(refused("it was a member")),
                None => {}
            }
        }
        // A learner that a deposed manager's command brought in meanwhile has nothing to lose.
        assert!(!votes, "{tell:?} although its group counts it: {group:?}");
        node.replicas.remove(&id);
        node.tombstones.insert(id);
        Ok(v1::CommandReply::default())
    }

    fn transfer(&mut self, tell: &Tell, to: u32) -> Result<v1::CommandReply, Error> {
        let group = &self.groups[&tell.group];
        let target = group.members.iter().find(|(replica, (node, voter))| {
            *node == to && *voter && **replica != group.leader && self.is_alive(**replica, *node)
        });
        let Some((replica, _)) = target else { return Err(refused("no such voter")) };
        if self.stubborn.contains(&to) {
            return Err(refused("it does not take over"));
        }
        let (replica, group) = (*replica, self.groups.get_mut(&tell.group).unwrap());
        group.leader = replica;
        group.term += 1;
        Ok(self.reply(tell))
    }

    fn change(
        &mut self,
        sent: &Sent,
        change: v1::ChangeMembership,
    ) -> Result<v1::CommandReply, Error> {
        let tell = &sent.tell;
        let is_joint = self.is_joint(tell.group);
        let group = &self.groups[&tell.group];
        if group.index != change.membership_index {
            return Err(refused("the membership is another one"));
        }
        if let Some(next) = &group.next {
            if !is_joint || group.asked_in == group.term {
                return Err(refused("another change is under way"));
            }
            if !next.get(&group.leader).is_some_and(|(_, voter)| *voter) {
                return Err(refused("leadership must leave first"));
            }
            let next = next.clone();
            let group = self.groups.get_mut(&tell.group).unwrap();
            group.next = None;
            Self::commit(group, next);
            return Ok(self.reply(tell));
        }
        let mut members = group.members.clone();
        if let Some(seat) = change.add_learner {
            members.entry(seat.replica).or_insert((seat.node, false));
        }
        if let Some(seat) = change.promote {
            assert!(self.verified.contains(&seat.replica), "{tell:?} without comparison");
            let Some(member) = members.get_mut(&seat.replica) else {
                return Err(refused("promotes a stranger"));
            };
            member.1 = true;
        }
        if let Some(seat) = change.remove {
            assert_ne!(group.leader, seat.replica, "{tell:?} of the leader");
            members.remove(&seat.replica);
        }
        if members == group.members {
            return Ok(self.reply(tell));
        }
        let is_other = voters_of(&members) != voters_of(&group.members);
        if is_other && !self.can_agree(&members) {
            return Err(refused("no majority of the voters to be answers"));
        }
        self.check_change(sent, change, &members);
        let group = self.groups.get_mut(&tell.group).unwrap();
        if self.is_slow {
            Self::append(group, members);
            return Err(refused("no answer"));
        }
        Self::commit(group, members);
        Ok(self.reply(tell))
    }

    /// By what was known when it was sent: live voters never get fewer by a change, unless one leaves for
    /// whom another one came before, or whom the group can spare.
    fn check_change(&self, sent: &Sent, change: v1::ChangeMembership, members: &Members) {
        let group = &self.groups[&sent.tell.group];
        let live = |members: &Members| voters_of(members).intersection(&sent.sound).count();
        let (before, after) = (live(&group.members), live(members));
        if after >= before {
            return;
        }
        // Moves that ended too: what they asked for may arrive later.
        let gone = change.remove.map(|seat| seat.replica);
        let leaves = |step: &&v1::Move| step.from.is_some_and(|from| Some(from.replica) == gone);
        let came = |to: v1::MemberRoute| {
            members.get(&to.replica).is_some_and(|to| to.1) && sent.sound.contains(&to.replica)
        };
        let mut moves = self.state.moves.iter().filter(leaves);
        if moves.clone().any(|step| step.to.is_some_and(came)) {
            return;
        }
        let least = sent.least.max(voters_of(members).len() / 2 + 1);
        let is_spared = moves.any(|step| step.to.is_none()) && after >= least;
        assert!(is_spared, "{sent:?} leaves {after} of {before} live members, {least} are to stay");
    }
}
