//! Sets: elements that several clients add, each once, and what is there in the end.
//!
//! A *collection* is whatever the workload can list in the end: a shared list to which clients append by
//! compare-and-swap, or all keys that hold one element each. Compared with
//! [`acknowledged`](super::acknowledged), which this shares its findings with, a list has many writers, so
//! its order is judged by time: an element stands before every one that was sent after it was
//! acknowledged.
//!
//! - Acknowledged: there, once.
//! - Unknown (W4): there once or not at all; it may have come late, so its place says nothing except that
//!   what was acknowledged before it was sent stands before it.
//! - Failed, and never sent: not there.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::acknowledged::{Finding, Findings};
use crate::journal::{End, Entry};

/// Adds an element to a collection. Every element is added once in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Add {
    /// The collection.
    pub collection: String,
    /// The element.
    pub element: u64,
}

/// What is there in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The collection.
    pub collection: String,
    /// Its elements.
    pub elements: Vec<u64>,
    /// Whether they stand in the order in which they were added.
    pub is_ordered: bool,
}

/// Compares what is `found` with what was added.
///
/// # Errors
/// All differences.
pub fn check(adds: &[Entry<Add, ()>], found: &[Found]) -> Result<(), Findings> {
    let mut findings = Vec::new();
    let mut sent: BTreeMap<(&str, u64), &Entry<Add, ()>> = BTreeMap::new();
    for add in adds {
        let Add { collection, element } = &add.call;
        if sent.insert((collection.as_str(), *element), add).is_some() {
            let (key, value) = (collection.clone(), element.to_string());
            findings.push(Finding::Ambiguous { key, value });
        }
    }
    let mut seen: BTreeSet<(&str, u64)> = BTreeSet::new();
    for collection in found {
        check_one(collection, &sent, &mut seen, &mut findings);
    }
    for (place, add) in &sent {
        if add.answer().is_some() && !seen.contains(place) {
            let (key, value) = (place.0.to_owned(), place.1.to_string());
            findings.push(Finding::Lost { key, value });
        }
    }
    Findings::verdict(findings)
}

fn check_one<'a>(
    found: &'a Found,
    sent: &BTreeMap<(&str, u64), &Entry<Add, ()>>,
    seen: &mut BTreeSet<(&'a str, u64)>,
    findings: &mut Vec<Finding>,
) {
    // The element sent last among those passed so far.
    let mut newest: Option<&Entry<Add, ()>> = None;
    for &element in &found.elements {
        let place = (found.collection.as_str(), element);
        let (key, value) = (found.collection.clone(), element.to_string());
        let Some(&add) = sent.get(&place) else {
            findings.push(Finding::NeverSent { key, value });
            continue;
        };
        if !seen.insert(place) {
            findings.push(Finding::Repeated { key, value });
            continue;
        }
        if add.end == End::Failed {
            findings.push(Finding::Resurrected { key, value });
        } else if let (Some(newest), Some((_, done_us))) = (newest, add.answer())
            && found.is_ordered
            && newest.invoked_us > done_us
        {
            let by = newest.call.element.to_string();
            findings.push(Finding::Overtaken { key, value, by });
        }
        if newest.is_none_or(|newest| newest.invoked_us < add.invoked_us) {
            newest = Some(add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(element: u64, end: End<()>, invoked_us: u64, completed_us: u64) -> Entry<Add, ()> {
        let call = Add { collection: "list".to_owned(), element };
        Entry { process: 1, call, invoked_us, completed_us: Some(completed_us), end }
    }

    /// 1 and 2 were added at the same time, 3 is unknown, 4 failed, 5 came after all of them.
    fn sent() -> Vec<Entry<Add, ()>> {
        vec![
            add(1, End::Ok(()), 0, 10),
            add(2, End::Ok(()), 5, 15),
            add(3, End::Unknown, 16, 20),
            add(4, End::Failed, 17, 21),
            add(5, End::Ok(()), 30, 40),
        ]
    }

    fn judge(elements: &[u64], is_ordered: bool) -> Vec<String> {
        let elements = elements.to_vec();
        let found = Found { collection: "list".to_owned(), elements, is_ordered };
        match check(&sent(), &[found]) {
            Ok(()) => Vec::new(),
            Err(Findings(findings)) => findings
                .iter()
                .map(|finding| finding.to_string().replacen("\"list\": ", "", 1))
                .collect(),
        }
    }

    #[test]
    fn what_may_be_is_accepted() {
        for good in [vec![1, 2, 5], vec![2, 1, 5], vec![1, 2, 3, 5], vec![1, 2, 5, 3]] {
            assert_eq!(judge(&good, true), [""; 0], "{good:?}");
        }
        assert_eq!(judge(&[5, 2, 1], false), [""; 0], "without an order any will do");
    }

    #[test]
    fn what_may_not_be_is_found() {
        for (bad, expected) in [
            (vec![1, 5], "acknowledged \"2\" is lost"),
            (vec![1, 2, 2, 5], "\"2\" is there twice"),
            (vec![1, 2, 3, 3, 5], "\"3\" is there twice"),
            (vec![1, 2, 4, 5], "\"4\" is there and was reported as not applied"),
            (vec![1, 2, 5, 9], "\"9\" is there and was never sent"),
            (vec![1, 5, 2], "acknowledged \"2\" stands behind the later \"5\""),
            (vec![1, 3, 2, 5], "acknowledged \"2\" stands behind the later \"3\""),
        ] {
            assert_eq!(judge(&bad, true), [expected], "{bad:?}");
        }
    }

    #[test]
    fn a_collection_that_is_missing_is_lost_and_another_one_never_sent() {
        let Err(Findings(findings)) = check(&sent(), &[]) else { panic!("all is lost") };
        assert_eq!(findings.len(), 3);
        let other = Found { collection: "other".to_owned(), elements: vec![1], is_ordered: true };
        let Err(Findings(findings)) = check(&[], &[other]) else { panic!("nobody sent it") };
        assert!(matches!(findings[..], [Finding::NeverSent { .. }]), "{findings:?}");
    }

    #[test]
    fn an_element_that_is_added_twice_makes_the_check_worthless() {
        let twice = [add(1, End::Ok(()), 0, 1), add(1, End::Ok(()), 2, 3)];
        let found = Found { collection: "list".to_owned(), elements: vec![1], is_ordered: true };
        let Err(Findings(findings)) = check(&twice, &[found]) else { panic!("a defect") };
        assert!(matches!(findings[..], [Finding::Ambiguous { .. }]), "{findings:?}");
    }
}
