//! The stations of the tour, in order, with what is said at each. Those that read the files back are in
//! `reading`.
//!
//! A check that fails is noted and the tour goes on, as far as that makes sense: what comes later
//! may tell why.
//!
//! Two stations take as long as the machine needs, the import and the join. Both have a limit, that of the
//! join lower where reading was slow, so that the whole stays within its two minutes; what was cut is said.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_client::{Client, NodeId, Session};
use annulus_runtime::{Env, Random};
use anyhow::Context as _;

use super::agree::compare_all;
use super::copy::import;
use super::failover::{Outcome, Target, bring_back, lose_leader, target};
use super::files::{Picked, Taken};
use super::load::{Load, bear};
use super::moves::{Join, Joined, before_and_after, shares};
use super::report::Report;
use super::text::{counted, grouped, mebibytes, millis, per_second, seconds};
use crate::cluster::{LocalCluster, Port, connect, key_in, wait_ready};
use crate::init::{self, PATIENCE, Settings};

/// What an import may take of the two minutes.
const IMPORT_LIMIT: Duration = Duration::from_secs(25);
/// The same of the moves that follow a join.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// A join is followed for at least this long.
const JOIN_LEAST: Duration = Duration::from_secs(10);
/// What the stations after the join need, without reading files.
const REST: Duration = Duration::from_secs(25);
/// Times that all files are read after the join, with one to spare.
const PASSES_LEFT: u64 = 5;

/// What every station needs.
pub(super) struct Tour<'a> {
    pub(super) env: &'a Env,
    pub(super) cluster: &'a mut LocalCluster,
    pub(super) picked: &'a Picked,
    pub(super) seed: u64,
    /// When all must be over, by the monotonic clock.
    pub(super) end_us: u64,
    pub(super) report: &'a mut Report,
}

/// What the tour has in its hands once the cluster runs.
pub(super) struct Scene {
    pub(super) client: Client,
    /// It has written everything that was imported.
    pub(super) session: Session,
    /// What the cluster must hold.
    pub(super) files: Vec<Taken>,
    /// When the import ended, by the monotonic clock.
    pub(super) imported_us: u64,
    /// How long it took to read all of it, microseconds.
    pub(super) reading_us: u64,
}

impl Tour<'_> {
    /// From the first process to the last comparison.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut scene = Box::pin(self.start()).await?;
        Box::pin(self.import(&mut scene)).await;
        let count = scene.files.len() as u64;
        let place = Random::seeded(self.seed).below(count);
        let chosen = usize::try_from(place).ok().and_then(|place| scene.files.get(place));
        let chosen = chosen.context("nothing was imported")?.key.clone();
        Box::pin(self.read_in_every_mode(&mut scene)).await;
        Box::pin(self.join(&mut scene)).await?;
        Box::pin(self.read_after_the_join(&scene)).await?;
        let target = Box::pin(self.lose_leader(&scene, &chosen)).await?;
        Box::pin(self.bring_back(&scene, &target, &chosen)).await?;
        Box::pin(self.agree(&scene)).await
    }

    async fn start(&mut self) -> anyhow::Result<Scene> {
        let layout = self.cluster.layout().clone();
        self.report.step(&format!("1. {} nodes, one process each", layout.nodes));
        let began_us = self.env.clock.monotonic_us();
        for id in layout.ids() {
            self.cluster.spawn(id)?;
        }
        let founder = [layout.addr(1, Port::Client).to_string()];
        let settings = Settings { shards: 128, lanes: 4, replication: 3 };
        let env = self.env;
        let endpoints = layout.endpoints();
        let becoming = async {
            let created = init::create(env, &founder, settings, PATIENCE).await;
            let created = created.context("creating the cluster")?;
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
        self.report.note("what begins with $ can be typed in another terminal meanwhile, after");
        self.report.note(&format!("export ANNULUS_ENDPOINTS={}", endpoints.join(",")));
        self.report.command("status");
        self.report.sum_up(
            "started",
            format!("{} nodes, ready from nothing in {}", layout.nodes, seconds(all_us)),
        );
        let session = client.session();
        Ok(Scene { client, session, files: Vec::new(), imported_us: 0, reading_us: 0 })
    }

    async fn import(&mut self, scene: &mut Scene) {
        let Picked { root, files, bytes, left_out } = self.picked;
        self.report.step(&format!("2. Real files go in, from {}", root.display()));
        let total = files.len() as u64;
        self.report.note(&format!("{}, {}", counted(total, "file"), mebibytes(*bytes)));
        let rest = left_out.line();
        if !rest.is_empty() {
            self.report.note(&rest);
        }
        self.report.command("put KEY - < FILE");
        let done = import(self.env, &scene.session, files, IMPORT_LIMIT).await;
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
        scene.files = files.iter().take(done.files).cloned().collect();
        scene.imported_us = self.env.clock.monotonic_us();
    }

    /// What the moves may take of what is left.
    fn join_limit(&self, scene: &Scene) -> Duration {
        let left_us = self.end_us.saturating_sub(self.env.clock.monotonic_us());
        let reading = Duration::from_micros(scene.reading_us.saturating_mul(PASSES_LEFT));
        let spare = Duration::from_micros(left_us).saturating_sub(REST.saturating_add(reading));
        spare.clamp(JOIN_LEAST, JOIN_LIMIT)
    }

    async fn join(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        self.report.step("4. A node joins while clients write and read");
        let limit = self.join_limit(scene);
        let (env, client) = (self.env, &scene.client);
        let report: &Report = self.report;
        let cluster: &mut LocalCluster = self.cluster;
        let before = client.routes().await?;
        let keys = before.groups.iter().filter_map(|group| {
            key_in(&before, &format!("demo-load-{}", group.id), |shard| shard.group == group.id)
        });
        let keys: Vec<String> = keys.collect();
        let nodes = cluster.layout().nodes + 1;
        let watch = Join { env, client, report, nodes, limit };
        let former = watch.listed().await.context("asking for moves")?;
        let id = cluster.grow()?;
        report.note(&format!("node {id} starts; one writer for each group goes on all the while"));
        report.command("moves --all");
        report.command(&format!("explain node {id}"));
        let is_over = AtomicBool::new(false);
        let following = async {
            let followed = tokio::select! {
                followed = Box::pin(watch.follow(&former)) => followed,
                failure = cluster.first_end() => Err(failure),
            };
            // Also when it failed: the load waits for it.
            is_over.store(true, Ordering::Relaxed);
            followed
        };
        let (load, followed) = tokio::join!(bear(env, client, &keys, &is_over), following);
        let joined = followed?;
        let after = client.routes().await?;
        for line in before_and_after(&shares(&before), &shares(&after)) {
            report.note(&line);
        }
        scene.files.extend(load.left.iter().cloned());
        self.judge_join(id, &joined, &load);
        Ok(())
    }

    fn judge_join(&mut self, id: u32, joined: &Joined, load: &Load) {
        let Joined { up_us, moving_us, moves, ended, undone, bytes, is_cut } = joined;
        let cost = format!(
            "{} of {}, {} copied, in {}",
            grouped(*ended),
            counted(*moves, "move"),
            mebibytes(*bytes),
            seconds(*moving_us)
        );
        self.report.note(&format!("node {id} was up after {}; {cost}", seconds(*up_us)));
        if *undone > 0 {
            let undone = counted(*undone, "move");
            self.report.note(&format!("{undone} undone, and planned again"));
        }
        let promise = format!("node {id} gets its share of seats and groups");
        if *is_cut && *ended > 0 {
            // Slow is no broken promise, and no kept one either: the check is not made.
            self.report.note(&format!(
                "CUT: the time allows no more; the other {} wait, as if somebody had typed",
                counted(moves.saturating_sub(*ended), "move")
            ));
            self.report.command("rebalance pause --yes");
        } else {
            let none = format!("no move ended within {}", seconds(*moving_us));
            let found = if *is_cut { vec![none] } else { Vec::new() };
            self.report.check(&promise, &found);
        }
        let Load { writes, reads, write_us_max, read_us_max, problems, .. } = load;
        let meanwhile = format!("{} and {}", counted(*writes, "write"), counted(*reads, "read"));
        let longest = format!(
            "longest pause of a write {}, of a read {}",
            millis(*write_us_max),
            millis(*read_us_max)
        );
        self.report.note(&format!("meanwhile {meanwhile}; {longest}"));
        let promise = "no write and no read failed, and every read saw the write before it";
        self.report.check(promise, problems);
        let cut = if *is_cut { "; CUT there" } else { "" };
        self.report.sum_up("joined", format!("node {id}: {cost}{cut}"));
        let failed = match problems.len() as u64 {
            0 => "none failed".to_owned(),
            failed => format!("{} FAILED", grouped(failed)),
        };
        self.report.sum_up("meanwhile", format!("{meanwhile}, {failed}; {longest}"));
    }

    /// Returns what was hit.
    async fn lose_leader(&mut self, scene: &Scene, chosen: &str) -> anyhow::Result<Target> {
        let client = &scene.client;
        let table = client.routes().await?;
        let target = target(client, &table, chosen).await?;
        let Target { shard, group, leader, term } = &target;
        self.report.step("6. A leader is lost while it is written to");
        self.report.note(&format!("{chosen} lives in shard {shard} of group {group}"));
        self.report.command(&format!("explain group {group}"));
        self.report.note(&format!("node {leader} leads that group in term {term}: kill -9"));
        let lost = lose_leader(self.env, client, self.cluster, &table, &target).await?;
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
        Ok(target)
    }

    async fn bring_back(
        &mut self,
        scene: &Scene,
        target: &Target,
        chosen: &str,
    ) -> anyhow::Result<()> {
        let node: NodeId = target.leader;
        self.report.step("7. The node comes back, and nothing is missing");
        let client = &scene.client;
        let back_us = bring_back(self.env, client, self.cluster, node, chosen).await?;
        self.report.note(&format!("node {node} answered again after {}", seconds(back_us)));
        let is_whole = self.read_newest_and_from(scene, node).await?;
        if is_whole {
            let back = format!("node {node} after {}, with every file", seconds(back_us));
            self.report.sum_up("came back", back);
        }
        Ok(())
    }

    async fn agree(&mut self, scene: &Scene) -> anyhow::Result<()> {
        self.report.step("8. The replicas agree");
        self.report
            .note("every replica digests what its engine gives back, at one entry of its group");
        self.report.command("verify --timeout 1m");
        let table = scene.client.routes().await?;
        let agreed = compare_all(self.env, &scene.client, &table).await;
        let counts = format!(
            "{} in {} hold what their leaders hold, {}",
            counted(agreed.equal, "replica"),
            counted(agreed.groups, "group"),
            seconds(agreed.us)
        );
        self.report.note(&counts);
        let promise = "in every group, the manager's too, all replicas hold the same";
        self.report.check(promise, &agreed.problems);
        self.report.sum_up("agreed", counts);
        Ok(())
    }
}
