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
    let lives = state.admitted().into_iter().map(|life| (life.node, life.incarnation)).collect();
    Told { heartbeat, table: Some(state.table()), lives }
}

fn seat(member: &v1::MemberRoute) -> v1::SeatReport {
    let v1::MemberRoute { node, replica, learner } = *member;
    v1::SeatReport { node, replica, voter: !learner, matched: 0 }
}

/// The replicas with a seat on a node in groups with data, ascending.
fn seats_on(state: &v1::ManagerState, node: u32) -> Vec<u64> {
    let members = state.groups.iter().flat_map(|group| &group.members);
    let mut seats: Vec<u64> =
        members.filter(|member| member.node == node).map(|it| it.replica).collect();
    seats.sort_unstable();
    seats
}

/// Node 3 knocks with a life of its folder, which holds these replicas.
fn admit(state: &mut v1::ManagerState, incarnation: u64, held: Vec<u64>) {
    let admit = v1::AdmitNode { info: Some(node_of(3)), incarnation, former_silent: false, held };
    crate::testing::put(state, v1::manager_command::Command::Admit(admit), 5).unwrap();
}

fn nodes_of(members: &[v1::MemberRoute]) -> Vec<u32> {
    members.iter().map(|member| member.node).collect()
}

#[test]
fn the_table_comes_back_with_a_new_era_and_new_ids() {
    let before = from_plan(&plan_of(4)).unwrap();
    let all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let after = adopt(&all, None, next_era(&all, None), 6).unwrap();
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
    let after = adopt(&all, None, next_era(&all, None), 6).unwrap();
    assert_eq!(after.group(group).unwrap().members.len(), kept);
    assert_eq!(after.shards[3], before.shards[3]);
    assert_eq!(after.table_version, 40 + VERSION_GAP);
}

#[test]
fn who_does_not_answer_is_down_and_may_come_back_with_its_seats() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut some: Vec<Told> = [1, 2, 4].map(|id| told(&before, id)).into();
    let remembered = adopt(&some, None, 4, 6).unwrap();
    assert_eq!(remembered.node(3).unwrap().incarnation, 7, "the others know its life");
    // Nobody does.
    some.iter_mut().for_each(|told| told.lives.clear());
    let mut after = adopt(&some, None, 4, 6).unwrap();
    let absent = after.node(3).unwrap();
    assert_eq!((absent.state(), absent.incarnation), (v1::NodeState::Down, 0));
    // The first that comes is let in. A wiped one would be an empty voter: what it lacks is lost.
    let mut held = seats_on(&after, 3);
    let gone = held.remove(0);
    admit(&mut after, 7, held);
    let back = after.node(3).unwrap();
    assert_eq!((back.state(), back.incarnation), (v1::NodeState::Up, 7));
    assert_eq!((&back.lost, back.former.is_empty()), (&vec![gone], true));
}

#[test]
fn an_export_may_remember_the_life_of_a_node_that_was_away() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut some: Vec<Told> = [1, 2, 4].map(|id| told(&before, id)).into();
    some.iter_mut().for_each(|told| told.lives.clear());
    let mut after = adopt(&some, Some(&before), 4, 6).unwrap();
    assert_eq!(after.node(3).unwrap().incarnation, 7);
    let held = seats_on(&after, 3);
    admit(&mut after, 8, held.clone());
    let back = after.node(3).unwrap();
    assert_eq!((back.incarnation, &back.lost), (8, &held), "another life holds nothing of them");
    // What came with a newer table counts.
    for told in &mut some {
        told.table.as_mut().unwrap().version = TableVersion(5);
        told.lives.insert(3, 9);
    }
    let after = adopt(&some, Some(&before), 4, 6).unwrap();
    assert_eq!(after.node(3).unwrap().incarnation, 9);
}

#[test]
fn a_folder_that_was_given_up_is_refused_by_name() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let refused = Err(AdoptError::GivenUp(3));
    for at in [0, 1, 3] {
        all[at].lives.insert(3, 8);
    }
    assert_eq!(adopt(&all, None, 4, 6), refused);
    // One that was away remembers what was before.
    for at in [0, 1] {
        all[at].table.as_mut().unwrap().version = TableVersion(5);
    }
    all[3].lives.insert(3, 7);
    assert_eq!(adopt(&all, None, 4, 6), refused);
    // Who holds a newer table than those who remember otherwise was admitted after that.
    all[2].table.as_mut().unwrap().version = TableVersion(6);
    assert_eq!(adopt(&all, None, 4, 6).unwrap().node(3).unwrap().incarnation, 7);

    let all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let mut exported = before;
    (exported.nodes[2].incarnation, exported.nodes[2].former) = (8, vec![7]);
    assert_eq!(adopt(&all, Some(&exported), 4, 6), refused);
}

#[test]
fn an_empty_folder_comes_in_place_of_one_that_was_lost() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    all[2].table = None;
    all[2].heartbeat.incarnation = 8;
    all[2].heartbeat.groups.clear();
    let after = adopt(&all, None, 4, 6).unwrap();
    let node = after.node(3).unwrap();
    assert_eq!((node.incarnation, &node.lost), (8, &seats_on(&after, 3)));
}

#[test]
fn a_table_that_lacks_lost_seats_of_its_node_is_not_taken_for_the_whole() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let group = before.groups[0].clone();
    for told in &mut all {
        told.heartbeat.groups.retain(|report| report.group != group.id);
        let own = told.heartbeat.info.as_ref().unwrap().id;
        let routes = &mut told.table.as_mut().unwrap().groups;
        let route = routes.iter_mut().find(|route| route.id.0 == group.id).unwrap();
        route.members.retain(|member| member.node.0 != own);
    }
    let node = (1..=4).find(|id| group.members.iter().all(|it| it.node != *id)).unwrap();
    let after = adopt(&all, None, 4, 6).unwrap();
    let members = &after.group(group.id).unwrap().members;
    assert_eq!(members.len(), 3, "as node {node} knows it");
}

#[test]
fn another_life_of_a_node_that_was_away_does_not_come_back_for_it() {
    let before = from_plan(&plan_of(4)).unwrap();
    let some: Vec<Told> = [1, 2, 4].map(|id| told(&before, id)).into();
    let mut after = adopt(&some, None, 4, 6).unwrap();
    admit(&mut after, 8, Vec::new());
    let back = after.node(3).unwrap();
    assert_eq!((back.incarnation, &back.former), (8, &vec![7]));
    assert!(seats_on(&after, 3).iter().all(|replica| after.is_lost(*replica)));
    assert!(seats_on(&after, 4).iter().all(|replica| !after.is_lost(*replica)));
}

#[test]
fn a_seat_of_which_its_node_holds_nothing_is_lost() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let gone = all[1].heartbeat.groups.remove(0).replica;
    // One that is held and stays closed is not gone.
    let closed = all[1].heartbeat.groups.remove(0);
    all[1].heartbeat.absent.push(closed.clone());
    let after = adopt(&all, None, 4, 6).unwrap();
    assert!(after.is_lost(gone) && !after.is_lost(closed.replica));
    assert_eq!(after.node(2).unwrap().lost, [gone]);
}

#[test]
fn a_learner_makes_no_higher_replication() {
    let before = from_plan(&plan_of(4)).unwrap();
    let mut all: Vec<Told> = (1..=4).map(|id| told(&before, id)).collect();
    let group = &before.groups[0];
    let node = (1..=4).find(|id| group.members.iter().all(|it| it.node != *id)).unwrap();
    let learner = v1::SeatReport { node, replica: 77, voter: false, matched: 0 };
    let reports = all.iter_mut().flat_map(|told| &mut told.heartbeat.groups);
    for report in reports.filter(|report| report.group == group.id) {
        report.seats.push(learner);
    }
    let after = adopt(&all, None, 4, 6).unwrap();
    assert_eq!((after.group(group.id).unwrap().members.len(), after.replication), (4, 3));
}

#[test]
fn what_is_newer_than_the_export_is_told() {
    let exported = from_plan(&plan_of(4)).unwrap();
    let mut now = exported.clone();
    now.table_version += 5;
    now.nodes[1].info.as_mut().unwrap().weight = 250;
    now.nodes[3].set_state(v1::NodeState::Removed);
    for group in &mut now.groups {
        group.members.retain(|member| member.node != 4);
        if group.home == 4 {
            group.home = group.members[0].node;
        }
    }
    let mut some: Vec<Told> = (1..=3).map(|id| told(&now, id)).collect();
    let group = now.groups[0].id;
    let stray = v1::GroupReport { group, replica: 99, ..Default::default() };
    some[0].heartbeat.groups.push(stray);
    let after = adopt(&some, Some(&exported), 4, 6).unwrap();
    assert_eq!(after.node(4).unwrap().state(), v1::NodeState::Removed);
    assert_eq!(after.node(2).unwrap().info.as_ref().unwrap().weight, 250);
    let report = report(&some, Some(&exported), &after);
    assert_eq!(report.strays, [Stray { group, replica: 99, node: 1 }]);
    assert!(report.taken[0].starts_with("settings: down_after_ms 300000, rebalance auto"));
    let told = report.overruled.join("\n");
    assert!(told.contains("node 2: weighs 250 hundredths, not 100"), "{told}");
    assert!(told.contains("node 4: a newer table does not have it"), "{told}");
    assert!(told.contains("the export has replicas"), "{told}");
    let without = super::report(&some, None, &after);
    assert!(without.taken.is_empty() && without.overruled.is_empty());
}

#[test]
fn an_export_brings_back_what_nodes_do_not_know() {
    let mut before = from_plan(&plan_of(4)).unwrap();
    before.era = 8;
    before.settings = Some(v1::ClusterSettings { down_after_ms: 9_000, ..SETTINGS });
    before.nodes[1].draining = true;
    before.nodes[3].set_state(v1::NodeState::Removed);
    let some: Vec<Told> = [1, 2].map(|id| told(&before, id)).into();
    let after = adopt(&some, Some(&before), next_era(&some, Some(&before)), 6).unwrap();
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
    assert_eq!(adopt(&[], None, 4, 6), Err(AdoptError::Nobody));
    assert_eq!(adopt(&good, None, 4, 5), Err(AdoptError::Incarnation(5)));
    let mut foreign = good.clone();
    foreign[1].heartbeat.cluster_id = vec![9; 16].into();
    assert_eq!(adopt(&foreign, None, 4, 6), Err(AdoptError::OtherCluster(2)));
    let mut workers = good.clone();
    for told in &mut workers {
        told.heartbeat.info.as_mut().unwrap().manager = false;
    }
    assert_eq!(adopt(&workers, None, 4, 6), Err(AdoptError::NoManager));
    let mut bare = good.clone();
    for told in &mut bare {
        told.table = None;
    }
    assert_eq!(adopt(&bare, None, 4, 6), Err(AdoptError::NoTable));
    let mut holes = good;
    for told in &mut holes {
        told.table.as_mut().unwrap().shards.remove(5);
    }
    assert_eq!(adopt(&holes, None, 4, 6), Err(AdoptError::Slice(5)));
}

#[test]
fn replication_is_what_most_groups_have_and_no_less_than_usual_for_want_of_nodes() {
    let groups = |voters: &[usize]| -> Vec<v1::GroupRecord> {
        let member = |at: usize| v1::MemberRoute { node: at as u32, ..Default::default() };
        let group = |voters: &usize| v1::GroupRecord {
            members: (1..=*voters).map(member).collect(),
            ..Default::default()
        };
        voters.iter().map(group).collect()
    };
    for (voters, nodes, expected) in [
        (vec![3, 4, 3], 4, 3),
        (vec![5, 5, 4], 9, 5),
        (vec![4, 3], 4, 3),
        (vec![2, 2], 2, 3),
        (vec![1], 1, 3),
        // Chosen so: there would be nodes for more.
        (vec![2, 2], 5, 2),
        (vec![5, 5], 5, 5),
    ] {
        assert_eq!(replication_of(&groups(&voters), nodes), expected, "{voters:?} on {nodes}");
    }
}
