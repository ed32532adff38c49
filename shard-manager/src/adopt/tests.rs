//! A manager's state made anew from what nodes report.

use annulus_types::{Epoch, TableVersion};

use super::*;
use crate::state::{StateExt, from_plan};
use crate::testing::{node_of, plan_of};

/// What node `id` of the cluster in `state` tells: its replicas, each with the membership at 9.
fn told(state: &v1::ManagerState, id: u32) -> Told {
    let report = |group: &v1::GroupRecord| v1::GroupReport {
        group: group.id,
        replica: group.members.iter().find(|member| member.node == id).unwrap().replica,
        membership_index: 9,
        membership_committed: true,
        seats: group.members.iter().map(seat).collect(),
        bytes: 500,
        ..Default::default()
    };
    let here = |group: &&v1::GroupRecord| group.members.iter().any(|member| member.node == id);
    let heartbeat = v1::HeartbeatRequest {
        cluster_id: state.cluster_id.clone(),
        info: Some(node_of(id)),
        incarnation: 7,
        era: 3,
        groups: state.groups.iter().filter(here).map(report).collect(),
        ..Default::default()
    };
    Told { heartbeat, table: Some(state.table()) }
}

fn seat(member: &v1::MemberRoute) -> v1::SeatReport {
    let v1::MemberRoute { node, replica, learner } = *member;
    v1::SeatReport { node, replica, voter: !learner, matched: 0 }
}

fn nodes_of(members: &[v1::MemberRoute]) -> Vec<u32> {
    members.iter().map(|member| member.node).collect()
}

#[test]
fn the_table_comes_back_with_a_new_era_and_new_ids() {
    let before = from_plan(&plan_of(4)).unwrap();
    let all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let after = adopt(&all, None, 6).unwrap();
    assert_eq!((after.era, after.incarnation), (4, 6));
    assert_eq!((after.lanes, after.replication, after.shards_total), (4, 3, 128));
    assert_eq!(after.shards, before.shards);
    assert!(after.table_version > before.table_version);
    for (new, old) in after.groups.iter().zip(&before.groups) {
        assert_eq!((new.id, new.home, new.lane, new.bytes), (old.id, old.home, old.lane, 500));
        let mut members = old.members.clone();
        order_members(&mut members, old.home);
        assert_eq!((&new.members, new.membership_index), (&members, 9));
    }
    // The replicas of the manager's own group are new: three, told apart by their era.
    let own = after.group(0).unwrap();
    assert_eq!(nodes_of(&own.members), [1, 2, 3]);
    assert!(own.members.iter().all(|member| after.allocated(member.replica)));
    assert!(after.nodes.iter().all(|node| node.state() == v1::NodeState::Up));
}

#[test]
fn the_newest_membership_and_the_higher_epoch_win() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    // A report that is newer, one that is newest and not committed, and a table behind.
    let group = before.groups[0].id;
    let reports = all.iter_mut().flat_map(|told| &mut told.heartbeat.groups);
    let mut reports: Vec<&mut v1::GroupReport> =
        reports.filter(|report| report.group == group).collect();
    reports[0].membership_index = 12;
    reports[0].seats.truncate(2);
    reports[1].membership_index = 15;
    reports[1].seats.clear();
    reports[1].membership_committed = false;
    let kept = reports[0].seats.len();
    let table = all[0].table.as_mut().unwrap();
    table.version = TableVersion(40);
    table.shards[3].epoch = Epoch(0);
    table.shards[3].group = before.groups[1].id.into();
    let after = adopt(&all, None, 6).unwrap();
    assert_eq!(after.group(group).unwrap().members.len(), kept);
    assert_eq!(after.shards[3], before.shards[3]);
    assert_eq!(after.table_version, 41);
}

#[test]
fn who_does_not_answer_is_down_and_may_come_back_with_its_seats() {
    let before = from_plan(&plan_of(4)).unwrap();
    let some: Vec<Told> = [1, 2, 4].map(|id| told(&before, id)).into();
    let mut after = adopt(&some, None, 6).unwrap();
    let absent = after.node(3).unwrap();
    assert_eq!((absent.state(), absent.incarnation), (v1::NodeState::Down, 0));
    let admit = v1::AdmitNode { info: Some(node_of(3)), incarnation: 7, former_silent: false };
    crate::testing::put(&mut after, v1::manager_command::Command::Admit(admit), 5).unwrap();
    let back = after.node(3).unwrap();
    assert_eq!((back.state(), back.incarnation), (v1::NodeState::Up, 7));
    assert!(back.lost.is_empty() && back.former.is_empty());
}

#[test]
fn an_export_brings_back_what_nodes_do_not_know() {
    let mut before = from_plan(&plan_of(4)).unwrap();
    before.era = 8;
    before.settings = Some(v1::ClusterSettings { down_after_ms: 9_000, ..SETTINGS });
    before.nodes[1].draining = true;
    before.nodes[3].set_state(v1::NodeState::Removed);
    let some: Vec<Told> = [1, 2].map(|id| told(&before, id)).into();
    let after = adopt(&some, Some(&before), 6).unwrap();
    assert_eq!(after.era, 9);
    assert_eq!(after.settings().down_after_ms, 9_000);
    assert!(after.node(2).unwrap().draining);
    assert_eq!(after.node(3).unwrap().state(), v1::NodeState::Down);
    assert_eq!(after.node(4).unwrap().state(), v1::NodeState::Removed);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let state = from_plan(&plan_of(3)).unwrap();
    let good: Vec<Told> = (1..=3).map(|id| told(&state, id)).collect();
    assert_eq!(adopt(&[], None, 6), Err(AdoptError::Nobody));
    assert_eq!(adopt(&good, None, 5), Err(AdoptError::Incarnation(5)));
    let mut foreign = good.clone();
    foreign[1].heartbeat.cluster_id = vec![9; 16].into();
    assert_eq!(adopt(&foreign, None, 6), Err(AdoptError::OtherCluster(2)));
    let mut bare = good.clone();
    for told in &mut bare {
        told.table = None;
    }
    assert_eq!(adopt(&bare, None, 6), Err(AdoptError::NoTable));
    let mut holes = good;
    for told in &mut holes {
        told.table.as_mut().unwrap().shards.remove(5);
    }
    assert_eq!(adopt(&holes, None, 6), Err(AdoptError::Slice(5)));
}
