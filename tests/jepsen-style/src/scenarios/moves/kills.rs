//! Kills between and inside the steps of moves.
//!
//! A cluster of four nodes is kept moving: the fourth is drained, and when it is empty it takes its share
//! again, and so on. A kill waits for a reseat that is in the state whose turn it is, takes the victim from
//! it, and kills it at once. The state is what the manager last said: the kill falls into it or into what
//! follows. The victim is started again as soon as every group has acknowledged, at another node, a write that
//! was sent after its end; and the next kill waits until the cluster serves, the manager counts the victim as
//! up, and all of its seats are open there. So no two nodes are down at a time, and no group has lost more
//! than the kill took.
//!
//! States take turns, in one order for every kind of victim: seven kills meet each once.
//!
//! Failure: a move that is not caught in time, or does not end, ends the run with what the manager says.

use std::fmt::Write as _;
use std::time::Duration;

use annulus_client::{Client, Move, MoveKind, MoveState};
use annulus_runtime::Env;
use anyhow::{Result, ensure};

use super::load::Load;
use super::{MOVES, Options, placement, told, verdict, violations_of_load};
use crate::cluster::{Cluster, READY};
use crate::process::wait_until;

/// Between two looks at the moves: the shortest states last about 100 ms.
const LOOK_PAUSE: Duration = Duration::from_millis(3);
/// The node that comes and goes.
const TOGGLED: u32 = 4;
/// The states in which somebody is killed, in this order.
const STATES: [MoveState; 7] = [
    MoveState::Create,
    MoveState::Seed,
    MoveState::CatchUp,
    MoveState::Verify,
    MoveState::Lead,
    MoveState::Swap,
    MoveState::Retire,
];

/// Kills by state, in the order of [`STATES`].
pub(super) type Struck = [u64; STATES.len()];

/// Of a state, without what all of them begin with.
fn name_of(state: MoveState) -> &'static str {
    state.as_str_name().trim_start_matches("MOVE_STATE_")
}

/// How many kills of each kind met which state, for people.
pub(super) fn table(struck: &[(Kill, Struck)]) -> String {
    let mut text = format!("{:<18}", "kills by state");
    // Writing to a string cannot fail.
    for state in STATES {
        let _ = write!(text, "{:>10}", name_of(state));
    }
    for (kill, counts) in struck {
        let _ = write!(text, "\n{:<18}", kill.name());
        for count in counts {
            let _ = write!(text, "{count:>10}");
        }
    }
    text
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The node whose seat goes.
    Leaving,
    /// The node that gets the seat.
    Joining,
    /// The node that leads the group that moves.
    GroupLeader,
    /// The node that leads the manager.
    ManagerLeader,
}

impl Kill {
    /// Reads a list of kinds, with commas between them; `none` and `all` stand for what they say.
    #[must_use]
    pub fn parse(text: &str) -> Option<Vec<Self>> {
        match text {
            "none" => Some(Vec::new()),
            "all" => {
                Some(vec![Self::Leaving, Self::Joining, Self::GroupLeader, Self::ManagerLeader])
            }
            list => list.split(',').map(Self::parse_one).collect(),
        }
    }

    fn parse_one(text: &str) -> Option<Self> {
        match text {
            "leaving" => Some(Self::Leaving),
            "joining" => Some(Self::Joining),
            "group-leader" => Some(Self::GroupLeader),
            "manager-leader" => Some(Self::ManagerLeader),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Leaving => "leaving node",
            Self::Joining => "joining node",
            Self::GroupLeader => "group's leader",
            Self::ManagerLeader => "manager's leader",
        }
    }
}

/// A cluster that moves, and who asks it.
struct Story<'a> {
    cluster: &'a mut Cluster,
    load: Load,
    client: Client,
    env: &'a Env,
    kill: Kill,
    nodes: Vec<u32>,
    draining: bool,
}

/// Kills processes of one kind, so many times. Returns how many met which state.
///
/// # Errors
/// When something acknowledged is lost or doubled, a move does not end, there are orphans, or the run itself
/// fails.
pub(super) async fn run(
    env: &Env,
    cluster: &mut Cluster,
    options: &Options,
    kill: Kill,
) -> Result<Struck> {
    let mut nodes: Vec<u32> = vec![1, 2, 3];
    nodes.push(u32::from(cluster.add_node()?));
    placement::wait_even(cluster, &nodes).await?;
    let load = Box::pin(Load::begin(env, cluster, options)).await?;
    let client = cluster.client().await?;
    let mut story = Story { cluster, load, client, env, kill, nodes, draining: false };
    story.load.start();
    let mut struck = Struck::default();
    for turn in 0..options.times {
        let place = usize::try_from(turn)? % STATES.len();
        Box::pin(story.strike(turn + 1, STATES[place])).await?;
        struck[place] += 1;
    }
    Box::pin(story.end()).await?;
    Ok(struck)
}

impl Story<'_> {
    /// One kill, and the way back to a whole cluster.
    async fn strike(&mut self, number: u64, state: MoveState) -> Result<()> {
        let (step, victim) = self.catch(state).await?;
        self.cluster.kill(victim)?;
        // Read when it has ended: no answer to what is sent from here on is its own.
        let killed_at = self.env.clock.monotonic_us();
        let load = &self.load;
        wait_until("every group takes writes without the dead node", READY, || async {
            load.is_served_since(killed_at, u32::from(victim))
        })
        .await?;
        let gap_ms = (self.env.clock.monotonic_us() - killed_at) / 1_000;
        self.cluster.start_node(victim)?;
        self.cluster.wait_ready().await?;
        placement::wait_back(&self.client, u32::from(victim)).await?;
        println!(
            "kill {number} of a {}: node {victim}, move {} of group {} in {}; every group written \
             to after {gap_ms} ms",
            self.kill.name(),
            step.id,
            step.group,
            name_of(state),
        );
        Ok(())
    }

    /// Waits for a reseat in this state; returns it and who is to be killed.
    async fn catch(&mut self, state: MoveState) -> Result<(Move, u16)> {
        let span_us = u64::try_from(MOVES.as_micros())?;
        let deadline_us = self.env.clock.monotonic_us() + span_us;
        loop {
            // Who cannot be asked now is asked again; so is who cannot say who leads.
            let moves = self.client.admin().moves(false).await.ok();
            let caught = moves.iter().flatten().find(|step| {
                let is_seat = step.group != 0 && step.from.is_some() && step.to.is_some();
                step.kind() == MoveKind::Reseat && step.state() == state && is_seat
            });
            if let Some(step) = caught
                && let Some(victim) = self.victim(step).await
            {
                return Ok((step.clone(), u16::try_from(victim)?));
            }
            ensure!(
                self.env.clock.monotonic_us() < deadline_us,
                "no move was caught in {} within {MOVES:?}; the manager's moves: {moves:?}",
                state.as_str_name()
            );
            if moves.is_some_and(|moves| moves.is_empty()) {
                self.keep_moving().await?;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn victim(&self, step: &Move) -> Option<u32> {
        match self.kill {
            Kill::Leaving => step.from.map(|seat| seat.node),
            Kill::Joining => step.to.map(|seat| seat.node),
            Kill::GroupLeader => {
                let key = self.load.key_of(step.group)?;
                let found = self.client.get(key).await.ok()?;
                Some(found.receipt.node.0)
            }
            Kill::ManagerLeader => Some(self.client.admin().overview().await.ok()?.leader),
        }
    }

    /// Turns round when the last wave of moves is through.
    async fn keep_moving(&mut self) -> Result<()> {
        if placement::is_even(&self.client, &self.sharing()).await {
            self.draining = !self.draining;
            placement::drain(&self.client, TOGGLED, self.draining).await?;
        }
        Ok(())
    }

    /// The nodes that have seats once nothing moves.
    fn sharing(&self) -> Vec<u32> {
        let nodes = self.nodes.iter().copied();
        nodes.filter(|node| !self.draining || *node != TOGGLED).collect()
    }

    /// Everybody has a share again, and what is left is judged.
    async fn end(mut self) -> Result<()> {
        if self.draining {
            self.draining = false;
            placement::drain(&self.client, TOGGLED, false).await?;
        }
        placement::wait_even(self.cluster, &self.nodes).await?;
        self.load.stop().await?;
        placement::wait_no_orphans(self.cluster, &self.nodes).await?;
        self.cluster.wait_ready().await?;
        Box::pin(self.load.check(self.cluster)).await?;
        let (moved, undone) = placement::ended(&self.client).await?;
        println!(
            "{}: {moved} of the last moves complete, {undone} undone or given up; no orphans, \
             homes and seats by quota",
            self.kill.name()
        );
        println!("  {}", told(&self.load));
        verdict(&violations_of_load(&self.load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_kind_and_a_column_for_each_state() {
        let text = table(&[(Kill::Leaving, [2, 2, 2, 1, 1, 1, 1]), (Kill::Joining, [0; 7])]);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            rows[0][3..],
            ["CREATE", "SEED", "CATCH_UP", "VERIFY", "LEAD", "SWAP", "RETIRE"]
        );
        assert_eq!(rows[1], ["leaving", "node", "2", "2", "2", "1", "1", "1", "1"]);
        assert_eq!(rows[2][2..], ["0"; 7]);
    }

    #[test]
    fn kinds_are_read_whole_or_not_at_all() {
        assert_eq!(Kill::parse("none"), Some(Vec::new()));
        assert_eq!(Kill::parse("all").map(|kinds| kinds.len()), Some(4));
        let two = vec![Kill::GroupLeader, Kill::Leaving];
        assert_eq!(Kill::parse("group-leader,leaving"), Some(two));
        for bad in ["", "everybody", "leaving,", "leaving,all"] {
            assert_eq!(Kill::parse(bad), None, "{bad:?}");
        }
    }
}
