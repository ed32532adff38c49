//! The stations of the tour, in order, with what is said at each.
//!
//! A check that fails is noted and the tour goes on, as far as that makes sense: what comes later
//! may tell why.

use std::time::Duration;

use annulus_client::Client;
use annulus_runtime::{Env, Random};
use anyhow::Context as _;

use super::copy::{How, ReadBack, import, read_back};
use super::failover::{Outcome, Target, bring_back, lose_leader, target};
use super::files::{Picked, Taken};
use super::report::Report;
use super::text::{counted, grouped, mebibytes, millis, per_second, seconds};
use crate::cluster::{LocalCluster, Port, Ready, connect, wait_ready};
use crate::init::{self, PATIENCE, Settings};

/// What an import may take of the two minutes.
const IMPORT_LIMIT: Duration = Duration::from_secs(35);

/// What every station needs.
pub(super) struct Tour<'a> {
    pub(super) env: &'a Env,
    pub(super) cluster: &'a mut LocalCluster,
    pub(super) picked: &'a Picked,
    pub(super) seed: u64,
    pub(super) report: &'a mut Report,
}

impl Tour<'_> {
    /// From the first process to the last comparison.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let (client, ready) = Box::pin(self.start()).await?;
        let stored = Box::pin(self.import(&client)).await;
        let picked = self.picked;
        let files = picked.files.get(..stored).unwrap_or_default();
        Box::pin(self.read_both_ways(&client, files)).await;

        let place = Random::seeded(self.seed).below(files.len() as u64);
        let chosen = usize::try_from(place).ok().and_then(|place| files.get(place));
        let chosen = chosen.context("nothing was imported")?;
        let target = target(&client, &ready.table, &chosen.key).await?;
        Box::pin(self.lose_leader(&client, &ready, &target, chosen)).await?;
        Box::pin(self.bring_back(&client, &target, chosen, files)).await
    }

    async fn start(&mut self) -> anyhow::Result<(Client, Ready)> {
        let layout = self.cluster.layout().clone();
        self.report.step(&format!("1. {} nodes, one process each", layout.nodes));
        let began_us = self.env.clock.monotonic_us();
        for id in layout.ids() {
            self.cluster.spawn(id)?;
        }
        let founder = [layout.addr(1, Port::Client).to_string()];
        let settings = Settings { shards: 128, lanes: 4, replication: 3 };
        let env = self.env;
        let becoming = async {
            let created = init::create(env, &founder, settings, PATIENCE).await;
            let created = created.context("creating the cluster")?;
            let endpoints = layout.endpoints();
            let client = connect(env, &endpoints, PATIENCE).await.context("connecting")?;
            let ready = wait_ready(env, &client, PATIENCE).await.context("waiting for leaders")?;
            anyhow::Ok((created, client, ready))
        };
        let (created, client, ready) = tokio::select! {
            became = Box::pin(becoming) => became?,
            failure = self.cluster.first_end() => return Err(failure),
        };
        let (shards, groups) = (ready.table.shards.len(), ready.table.groups.len());
        let first_us = ready.first_us.saturating_sub(began_us);
        let all_us = ready.all_us.saturating_sub(began_us);
        self.report
            .note(&format!("cluster {}: {shards} shards in {groups} groups", created.cluster));
        self.report.note(&format!(
            "a first write was possible after {}, one in every shard after {}",
            seconds(first_us),
            seconds(all_us)
        ));
        self.report.sum_up(
            "started",
            format!("{} nodes, ready from nothing in {}", layout.nodes, seconds(all_us)),
        );
        Ok((client, ready))
    }

    /// Returns how many files, from the first on, are in the cluster.
    async fn import(&mut self, client: &Client) -> usize {
        let Picked { root, files, bytes, left_out } = self.picked;
        self.report.step(&format!("2. Real files go in, from {}", root.display()));
        let total = files.len() as u64;
        self.report.note(&format!("{}, {}", counted(total, "file"), mebibytes(*bytes)));
        let rest = left_out.line();
        if !rest.is_empty() {
            self.report.note(&rest);
        }
        let done = import(self.env, client, files, IMPORT_LIMIT).await;
        let count = done.files as u64;
        if count < total {
            self.report.note(&format!(
                "this machine took the {} for the first {}; {} more are left out",
                seconds(done.us),
                counted(count, "file"),
                grouped(total - count)
            ));
        }
        if done.repeated > 0 {
            self.report.note(&format!("{} had to be repeated", counted(done.repeated, "put")));
        }
        let speed = format!(
            "{} in {} ({} puts/s, {}/s)",
            mebibytes(done.bytes),
            seconds(done.us),
            grouped(per_second(count, done.us)),
            mebibytes(per_second(done.bytes, done.us))
        );
        self.report.note(&format!("{}, {speed}", counted(count, "file")));
        self.report.check("every put was acknowledged by a majority of replicas", &done.problems);
        self.report.sum_up("imported", format!("{}, {speed}", counted(count, "file")));
        done.files
    }

    async fn read_both_ways(&mut self, client: &Client, files: &[Taken]) {
        self.report.step("3. The same files come out");
        let newest = read_back(self.env, client, files, How::Linearizable).await;
        self.report.note(&read_speed("linearizable", &newest));
        let promise = "every file is equal byte for byte, read linearizable";
        self.report.check(promise, &newest.problems);
        let any = read_back(self.env, client, files, How::Any).await;
        self.report.note(&read_speed("any", &any));
        let shares: Vec<String> = any
            .by_node
            .iter()
            .map(|(node, reads)| format!("node {node} gave {}", grouped(*reads)))
            .collect();
        if !shares.is_empty() {
            self.report.note(&shares.join(", "));
        }
        let promise = "every file is equal byte for byte, read from any replica";
        self.report.check(promise, &any.problems);
        self.report.sum_up(
            "read back",
            format!(
                "linearizable in {}, any in {} ({} after a second look)",
                seconds(newest.us),
                seconds(any.us),
                grouped(any.late)
            ),
        );
    }

    async fn lose_leader(
        &mut self,
        client: &Client,
        ready: &Ready,
        target: &Target,
        chosen: &Taken,
    ) -> anyhow::Result<()> {
        let Target { shard, group, leader, term } = target;
        self.report.step("4. A leader is lost while it is written to");
        self.report.note(&format!("{} lives in shard {shard} of group {group}", chosen.key));
        self.report.note(&format!("node {leader} leads that group in term {term}: kill -9"));
        let table = &ready.table;
        let lost = lose_leader(self.env, client, self.cluster, table, target).await?;
        let Outcome { acknowledged, acknowledged_after, unknown, unknown_applied, refused, .. } =
            &lost;
        let pause = match (lost.pause_us, lost.leader) {
            (Some(pause_us), Some((node, term))) => {
                let pause = format!("no write was acknowledged for {}", millis(pause_us));
                self.report.note(&format!("{pause}; then node {node} led, in term {term}"));
                self.report.check("writes go on without the lost node", &[]);
                millis(pause_us)
            }
            _ => {
                let problem = "no write was acknowledged after the kill".to_owned();
                self.report.check("writes go on without the lost node", &[problem]);
                "no recovery".to_owned()
            }
        };
        let counts = format!(
            "{} acknowledged ({} of them after the kill), {} of unknown outcome ({} turned out \
             applied), {} refused",
            grouped(*acknowledged),
            grouped(*acknowledged_after),
            grouped(*unknown),
            grouped(*unknown_applied),
            grouped(*refused)
        );
        self.report.note(&format!("counters put meanwhile: {counts}"));
        let promise = "every acknowledged counter is there, and no refused one";
        self.report.check(promise, &lost.problems);
        self.report.sum_up("lost", format!("the leader, node {leader}; writes paused {pause}"));
        self.report.sum_up("counters", counts);
        Ok(())
    }

    async fn bring_back(
        &mut self,
        client: &Client,
        target: &Target,
        chosen: &Taken,
        files: &[Taken],
    ) -> anyhow::Result<()> {
        let node = target.leader;
        self.report.step("5. The node comes back, and nothing is missing");
        let back_us = bring_back(self.env, client, self.cluster, node, &chosen.key).await?;
        self.report.note(&format!("node {node} answered again after {}", seconds(back_us)));
        let newest = read_back(self.env, client, files, How::Linearizable).await;
        self.report.note(&read_speed("linearizable", &newest));
        let promise = "every file is still equal byte for byte, read linearizable";
        self.report.check(promise, &newest.problems);
        let own = read_back(self.env, client, files, How::AnyFrom(node)).await;
        self.report.note(&read_speed("any", &own));
        let promise = format!("every file is equal byte for byte, read from node {node} alone");
        self.report.check(&promise, &own.problems);
        let back = format!("node {node} after {}, with every file", seconds(back_us));
        if own.problems.is_empty() {
            self.report.sum_up("came back", back);
        }
        Ok(())
    }
}

fn read_speed(mode: &str, back: &ReadBack) -> String {
    let speed = grouped(per_second(back.equal, back.us));
    let late = match back.late {
        0 => String::new(),
        late => format!("; {} equal only after a while, as `any` may be", counted(late, "file")),
    };
    let equal = counted(back.equal, "file");
    format!("{mode}: {equal} equal, {} ({speed} gets/s){late}", seconds(back.us))
}
