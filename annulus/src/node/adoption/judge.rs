//! What an adoption is refused for, and when it is over. Pure.
//!
//! Judges what a request says and what nodes answer; asks nobody and changes nothing. A refusal names the field
//! of the request that would change it, `nodes` where it is the nodes that do not fit, and `era` where another
//! manager was made: whoever reads that ends.

use std::collections::BTreeMap;

use annulus_proto::convert::cluster_of;
use annulus_proto::v1;
use annulus_raft::Reign;
use annulus_ring::placement::REPLICATION_LIMIT;
use annulus_shard_manager::adopt::AdoptError;
use annulus_shard_manager::state::check;
use annulus_types::{ClusterId, Error};
use prost::Message as _;

use super::not_ready;

/// What `ExportManager` returned once; nothing for no bytes.
pub(super) fn read_export(
    bytes: &[u8],
    cluster: ClusterId,
) -> Result<Option<v1::ManagerState>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let refused = |why: String| Error::bad_request("from", why);
    let exported = v1::ManagerState::decode(bytes)
        .map_err(|error| refused(format!("is no export of a manager: {error}")))?;
    check(&exported).map_err(|error| refused(format!("is no export of a manager: {error}")))?;
    let actual = cluster_of(&exported.cluster_id)?;
    if actual != cluster {
        return Err(refused(format!("is of cluster {actual}; these nodes are of {cluster}")));
    }
    Ok(Some(exported))
}

pub(super) fn check_replication(wanted: Option<u32>) -> Result<(), Error> {
    match wanted.filter(|wanted| !(1..=REPLICATION_LIMIT).contains(wanted)) {
        None => Ok(()),
        Some(got) => {
            let message = format!("must be from 1 to {REPLICATION_LIMIT}, got {got}");
            Err(Error::bad_request("replication", message))
        }
    }
}

pub(super) fn refuse_while_managed(replies: &BTreeMap<u32, v1::SurveyReply>) -> Result<(), Error> {
    match replies.iter().find(|(_, reply)| reply.leads_era != 0) {
        None => Ok(()),
        Some((leader, reply)) => {
            let message = format!(
                "node {leader} leads the manager of era {}, and a majority of its group follows: \
                 nothing needs to be adopted. With force it is replaced, and forgets what only it knows",
                reply.leads_era
            );
            Err(Error::bad_request("force", message))
        }
    }
}

/// Ends an adoption that another one has overtaken.
pub(super) fn refuse_if_overtaken(
    replies: &BTreeMap<u32, v1::SurveyReply>,
    reign: Reign,
) -> Result<(), Error> {
    let later = replies.iter().find(|(_, reply)| told_reign(reply) > reign);
    let Some((id, reply)) = later else { return Ok(()) };
    let told = told_reign(reply);
    let message = format!("node {id} has stored {told} meanwhile; this adoption is of {reign}");
    Err(Error::bad_request("era", message))
}

/// Who does not answer may obey a manager that did not answer either.
pub(super) fn check_majority(state: &v1::ManagerState, forced: bool) -> Result<(), Error> {
    let count =
        |wanted: v1::NodeState| state.nodes.iter().filter(|node| node.state() == wanted).count();
    let (up, down) = (count(v1::NodeState::Up), count(v1::NodeState::Down));
    if up > down || forced {
        return Ok(());
    }
    Err(not_ready(format!(
        "{up} of {} nodes answer, which is no majority: start the others, or use force if they are lost",
        up + down
    )))
}

/// What the pure part refuses, for who asked.
pub(super) fn refusal(error: &AdoptError) -> Error {
    Error::bad_request("nodes", error.to_string())
}

/// The reign that a node has told.
fn told_reign(reply: &v1::SurveyReply) -> Reign {
    let told = reply.heartbeat.as_ref();
    told.map_or_else(Reign::default, |told| Reign {
        era: told.era,
        incarnation: told.manager_incarnation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(era: u64, incarnation: u32) -> v1::SurveyReply {
        let heartbeat =
            v1::HeartbeatRequest { era, manager_incarnation: incarnation, ..Default::default() };
        v1::SurveyReply { heartbeat: Some(heartbeat), ..Default::default() }
    }

    #[test]
    fn a_later_reign_anywhere_ends_an_adoption() {
        let own = Reign { era: 2, incarnation: 5 };
        let judge = |replies: Vec<v1::SurveyReply>| {
            let replies: BTreeMap<u32, v1::SurveyReply> = (1..).zip(replies).collect();
            refuse_if_overtaken(&replies, own).err().map(|error| error.to_string())
        };
        assert_eq!(
            judge(vec![told(1, 9), told(2, 5), told(2, 4), v1::SurveyReply::default()]),
            None
        );
        for later in [told(2, 6), told(3, 1)] {
            let why = judge(vec![told(1, 9), later]).unwrap();
            assert!(why.contains("node 2 has stored era"), "{why}");
        }
    }

    #[test]
    fn replication_has_the_limits_of_a_new_cluster() {
        for good in [None, Some(1), Some(REPLICATION_LIMIT)] {
            check_replication(good).unwrap();
        }
        for bad in [0, REPLICATION_LIMIT + 1] {
            let error = check_replication(Some(bad)).unwrap_err();
            assert!(error.to_string().contains("from 1 to 7"), "{error}");
        }
    }
}
