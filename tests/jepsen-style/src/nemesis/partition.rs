//! Partitions: some ways between nodes are cut at the proxy for a while.
//!
//! Two nodes that are cut from each other are silent in both directions, or their connections are closed
//! and refused; which is drawn for each step. A cut of one way always holds: bytes go there and no answer
//! comes back.
//!
//! In effect means: connections that the cut concerns were there before, so the proxy knows who they
//! belong to; the proxy lets no byte pass from the return of the cut on (its invariant); and no node has a
//! connection past the proxy. Who is cut off is chosen blindly, so leaders are among them.

use std::time::Duration;

use annulus_runtime::Random;
use anyhow::{Context, Result};

use super::{Nemesis, Stage, Step};
use crate::process::wait_until;
use crate::proxy::{Cut, Way};

/// Peers link themselves anew within a second or two after a heal.
const LINKED: Duration = Duration::from_secs(30);
/// Connections of a pair are closed within milliseconds.
const CLOSED: Duration = Duration::from_secs(10);

/// What a step cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    ways: Vec<Way>,
    cut: Cut,
    about: String,
}

/// Cuts, lets clients work on, and heals.
pub(super) async fn step(nemesis: Nemesis, stage: &mut Stage<'_>) -> Result<Step> {
    let plan = draw(nemesis, *stage.cluster.nodes().end(), stage.random);
    if plan.ways.is_empty() {
        return Ok(Step::Skipped("there is one node only".to_owned()));
    }
    let proxy = stage.cluster.proxy().context("the nodes have no proxy between them")?;
    let connections = || -> usize {
        let pairs = plan.ways.iter().map(|(from, to)| proxy.connections(*from, *to));
        pairs.sum()
    };
    wait_until("nodes that are to be cut off are connected", LINKED, || async {
        connections() > 0
    })
    .await?;
    proxy.cut(&plan.ways, plan.cut);
    let kept = hold(&plan, stage, connections).await;
    proxy.heal();
    kept?;
    Ok(Step::Installed(plan.about))
}

/// Sees that the cut is in effect and keeps it for a while.
async fn hold(plan: &Plan, stage: &Stage<'_>, connections: impl Fn() -> usize) -> Result<()> {
    if plan.cut == Cut::Reset {
        wait_until("the connections are closed", CLOSED, || async { connections() == 0 }).await?;
    }
    stage.cluster.ensure_no_bypass()?;
    let away = tokio::time::sleep(stage.a_while());
    stage.served(stage.some()).await?;
    away.await;
    stage.cluster.ensure_no_bypass()
}

/// What is cut between the nodes 1 to `nodes`.
fn draw(nemesis: Nemesis, nodes: u16, random: &Random) -> Plan {
    let mut all: Vec<u16> = (1..=nodes).collect();
    // The first of a random order are cut from the rest.
    for place in (1..all.len()).rev() {
        let other = usize::try_from(random.below(place as u64 + 1)).unwrap_or(place);
        all.swap(place, other);
    }
    let size = if nemesis == Nemesis::Halves { all.len() / 2 } else { 1 };
    let (some, rest) = all.split_at(size.min(all.len()));
    let out = some.iter().flat_map(|one| rest.iter().map(move |other| (*one, *other)));
    let out: Vec<Way> = out.collect();
    let back = out.iter().map(|(one, other)| (*other, *one));
    if nemesis == Nemesis::OneWay {
        let is_mute = random.below(2) == 0;
        let what = if is_mute { "nothing from" } else { "nothing to" };
        let ways = if is_mute { out.clone() } else { back.collect() };
        return Plan { ways, cut: Cut::Hold, about: format!("{what} nodes {some:?}") };
    }
    let cut = if random.below(2) == 0 { Cut::Hold } else { Cut::Reset };
    let ways = out.iter().copied().chain(back).collect();
    Plan { ways, cut, about: format!("nodes {some:?} from {rest:?} ({cut:?})") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plans(nemesis: Nemesis, nodes: u16) -> Vec<Plan> {
        (0..50).map(|seed| draw(nemesis, nodes, &Random::seeded(seed))).collect()
    }

    #[test]
    fn halves_are_cut_in_both_directions() {
        for plan in plans(Nemesis::Halves, 5) {
            let ways: BTreeSet<Way> = plan.ways.iter().copied().collect();
            assert_eq!((ways.len(), plan.ways.len()), (12, 12), "2 times 3 pairs");
            assert!(ways.iter().all(|(from, to)| from != to && ways.contains(&(*to, *from))));
        }
        let cuts: Vec<Cut> = plans(Nemesis::Halves, 5).into_iter().map(|plan| plan.cut).collect();
        assert!(cuts.contains(&Cut::Hold) && cuts.contains(&Cut::Reset));
    }

    #[test]
    fn an_isolated_node_reaches_nobody() {
        let mut victims = BTreeSet::new();
        for plan in plans(Nemesis::Isolate, 3) {
            let victim = (1..=3).find(|node| plan.ways.iter().all(|(a, b)| a == node || b == node));
            let victim = victim.unwrap();
            assert_eq!(plan.ways.len(), 4);
            victims.insert(victim);
        }
        assert_eq!(victims, BTreeSet::from([1, 2, 3]), "each gets its turn");
    }

    #[test]
    fn one_way_cuts_one_direction_only() {
        let (mut mute, mut deaf) = (0, 0);
        for plan in plans(Nemesis::OneWay, 3) {
            assert_eq!((plan.ways.len(), plan.cut), (2, Cut::Hold));
            let from: BTreeSet<u16> = plan.ways.iter().map(|way| way.0).collect();
            if from.len() == 1 {
                mute += 1
            } else {
                deaf += 1
            }
            assert!(plan.ways.iter().all(|(from, to)| !plan.ways.contains(&(*to, *from))));
        }
        assert!(mute > 0 && deaf > 0, "{mute} mute, {deaf} deaf");
        assert!(draw(Nemesis::Isolate, 1, &Random::seeded(1)).ways.is_empty());
    }
}
