//! The stations at which files are read back: in every mode after the import, the newest state and one
//! node's copies after the join and after the restart.
//!
//! Every answer is compared byte for byte. What a mode promises decides what counts as wrong: an old answer
//! is wrong everywhere but in `any`, where it is counted, said, and looked at again.

use std::time::Duration;

use annulus_client::{NodeId, RoutingTable};
use annulus_types::{MemberRole, token_of};

use super::copy::{How, ReadBack, read_back};
use super::files::Taken;
use super::text::{counted, grouped, millis, per_second, seconds};
use super::tour::{Scene, Tour};

/// The age that bounded reads ask for.
const BOUND: Duration = Duration::from_millis(500);

impl Tour<'_> {
    pub(super) async fn read_in_every_mode(&mut self, scene: &mut Scene) {
        self.report.step("3. The same files come out, in every mode");
        let (client, files) = (&scene.client, &scene.files);
        if let Some(file) = files.first() {
            self.report
                .command(&format!("get '{}' --consistency bounded:500ms --receipt", file.key));
        }
        let newest = read_back(self.env, client, files, How::Linearizable).await;
        self.say(How::Linearizable, &newest);
        let promise = "linearizable: every file is equal byte for byte";
        self.report.check(promise, &newest.problems);
        let mut took = vec![format!("linearizable in {}", seconds(newest.us))];

        let how = How::Session(&scene.session);
        let session = read_back(self.env, client, files, how).await;
        self.say(how, &session);
        let promise = "session: whichever replica answers, the session sees what it has written";
        self.report.check(promise, &session.problems);
        took.push(format!("session {}", seconds(session.us)));

        self.let_age(scene.imported_us).await;
        let how = How::Bounded(BOUND);
        let bounded = read_back(self.env, client, files, how).await;
        self.say(how, &bounded);
        if let Some(age_us) = bounded.age_us_max {
            self.report.note(&format!("no answer admits an age above {}", millis(age_us)));
        }
        let promise = "bounded: nothing is missing that was acknowledged longer ago than the bound";
        self.report.check(promise, &bounded.problems);
        took.push(format!("bounded {}", seconds(bounded.us)));

        let any = read_back(self.env, client, files, How::Any).await;
        self.say(How::Any, &any);
        let promise = "any: every file is equal byte for byte, from whichever replica";
        self.report.check(promise, &any.problems);
        took.push(format!("any {}", seconds(any.us)));

        for id in self.cluster.layout().ids() {
            let own = read_back(self.env, client, files, How::AnyFrom(NodeId(id))).await;
            let promise = format!("any, from node {id} alone: every file is equal byte for byte");
            self.report.check(&promise, &own.problems);
        }
        self.report.sum_up("read back", took.join(", "));
        scene.reading_us = newest.us.max(any.us);
    }

    /// Waits until everything that was imported is older than the bound.
    async fn let_age(&self, imported_us: u64) {
        let passed_us = self.env.clock.monotonic_us().saturating_sub(imported_us);
        tokio::time::sleep(BOUND.saturating_sub(Duration::from_micros(passed_us))).await;
    }

    pub(super) async fn read_after_the_join(&mut self, scene: &Scene) -> anyhow::Result<()> {
        self.report.step("5. The same files again, and the new node's copies");
        let newest = NodeId(self.cluster.layout().nodes);
        self.read_newest_and_from(scene, newest).await?;
        Ok(())
    }

    /// Reads everything linearizable, and what a node holds from that node. Whether all was equal.
    pub(super) async fn read_newest_and_from(
        &mut self,
        scene: &Scene,
        node: NodeId,
    ) -> anyhow::Result<bool> {
        let (client, files) = (&scene.client, &scene.files);
        let newest = read_back(self.env, client, files, How::Linearizable).await;
        self.say(How::Linearizable, &newest);
        self.report.check("every file is still equal byte for byte", &newest.problems);
        let table = client.routes().await?;
        let own_files = held_by(&table, node, files);
        let own = read_back(self.env, client, &own_files, How::AnyFrom(node)).await;
        self.say(How::AnyFrom(node), &own);
        let promise = format!("what node {node} holds is equal byte for byte, read from it alone");
        self.report.check(&promise, &own.problems);
        Ok(newest.problems.is_empty() && own.problems.is_empty())
    }

    fn say(&self, how: How<'_>, back: &ReadBack) {
        let speed = grouped(per_second(back.equal, back.us));
        let late = match back.late {
            0 => String::new(),
            late => {
                format!("; {} equal only after a while, as `any` may be", counted(late, "file"))
            }
        };
        let equal = counted(back.equal, "file");
        let shares =
            back.by_node.iter().map(|(node, reads)| format!("{node}: {}", grouped(*reads)));
        let shares: Vec<String> = shares.collect();
        self.report.note(&format!(
            "{}: {equal} equal, {} ({speed} gets/s){late}; by node {}",
            how.mode(),
            seconds(back.us),
            shares.join(", ")
        ));
    }
}

/// The files of groups in which a node votes.
fn held_by(table: &RoutingTable, node: NodeId, files: &[Taken]) -> Vec<Taken> {
    let votes = |file: &&Taken| {
        let shard = table.shard_of(token_of(file.key.as_bytes()));
        let group = shard.and_then(|shard| table.group(shard.group));
        let mut members = group.into_iter().flat_map(|group| &group.members);
        members.any(|member| member.node == node && member.role == MemberRole::Voter)
    };
    files.iter().filter(votes).cloned().collect()
}

#[cfg(test)]
mod tests {
    use annulus_types::{Epoch, GroupId, GroupRoute, MemberRoute, ReplicaId, ShardId, ShardRoute};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_node_holds_the_files_of_the_groups_in_which_it_votes() {
        let member = |node, role| MemberRoute { node: NodeId(node), replica: ReplicaId(1), role };
        let group = |id: u64, members| GroupRoute {
            id: GroupId(id),
            home: NodeId(1),
            lane: 0,
            members,
            leader: None,
            term: 1,
            membership_index: 1,
        };
        let shard = |slice: u32| ShardRoute {
            id: ShardId(u64::from(slice)),
            slice,
            parent: None,
            epoch: Epoch(1),
            group: GroupId(u64::from(slice)),
        };
        let learns = vec![member(1, MemberRole::Voter), member(2, MemberRole::Learner)];
        let votes = vec![member(1, MemberRole::Voter), member(2, MemberRole::Voter)];
        let table = RoutingTable {
            shards: vec![shard(0), shard(1)],
            groups: vec![group(0, learns), group(1, votes)],
            ..RoutingTable::default()
        };
        let files: Vec<Taken> = (0..64)
            .map(|n| Taken { key: format!("file-{n}"), data: Bytes::from(n.to_string()) })
            .collect();
        assert_eq!(held_by(&table, NodeId(1), &files), files);
        let second: Vec<Taken> = files
            .iter()
            .filter(|file| token_of(file.key.as_bytes()).slice(2) == 1)
            .cloned()
            .collect();
        assert!(!second.is_empty() && second.len() < files.len());
        assert_eq!(held_by(&table, NodeId(2), &files), second);
        assert!(held_by(&table, NodeId(3), &files).is_empty());
    }
}
