//! Nothing acknowledged is lost, nothing else appears: the check for writes under kills.
//!
//! It needs a workload in which each write can be told apart: every key is written once
//! ([`check`]), or every key is a sequence to which one client appends elements, each once, one
//! after the other ([`check_sequences`]). What is found after the faults is then compared with
//! what was sent, without any search.
//!
//! - Acknowledged: there, with its value; in a sequence once, and before everything that was sent
//!   after it was acknowledged.
//! - Unknown (W4): there or not; it may have taken effect late, so its place in a sequence says
//!   nothing except that it is behind what was acknowledged before it was sent.
//! - Refused (certainly not applied): not there.
//! - Everything else: not there.
//!
//! All findings are reported, not only the first: how much is lost, and which, tells where to
//! look. A workload that contradicts itself is a finding too, not a pass.

use std::collections::BTreeMap;
use std::fmt;

/// Most findings that the text of [`Findings`] spells out.
const SHOWN_MOST: usize = 20;

/// What the client knows of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The cluster said that it is done.
    Acknowledged,
    /// Nobody can tell.
    Unknown,
    /// It was certainly not applied.
    Refused,
}

/// One element that was sent to a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The element, unique in its sequence.
    pub element: String,
    /// How the append ended.
    pub fate: Fate,
}

/// One difference between what was sent and what is there. `value` is an element when the key is
/// a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Acknowledged and not there.
    Lost {
        /// Where it should be.
        key: String,
        /// What should be there.
        value: String,
    },
    /// The key has another value than the one that was sent.
    Altered {
        /// Where.
        key: String,
        /// What was sent.
        sent: String,
        /// What is there.
        found: String,
    },
    /// There, although the client was told that it was not applied.
    Resurrected {
        /// Where.
        key: String,
        /// What is there.
        value: String,
    },
    /// There, although nobody sent it.
    NeverSent {
        /// Where.
        key: String,
        /// What is there.
        value: String,
    },
    /// An element is there more than once.
    Repeated {
        /// Where.
        key: String,
        /// The element.
        value: String,
    },
    /// An element was acknowledged before another was sent, and stands behind it.
    Overtaken {
        /// Where.
        key: String,
        /// The element that was acknowledged.
        value: String,
        /// The element before it that was sent later.
        by: String,
    },
    /// Defect of the workload: the same write has two fates.
    Ambiguous {
        /// Where.
        key: String,
        /// What was sent twice.
        value: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { key, value } => write!(f, "{key:?}: acknowledged {value:?} is lost"),
            Self::Altered { key, sent, found } => {
                write!(f, "{key:?}: {sent:?} was sent, {found:?} is there")
            }
            Self::Resurrected { key, value } => {
                write!(f, "{key:?}: {value:?} is there and was reported as not applied")
            }
            Self::NeverSent { key, value } => {
                write!(f, "{key:?}: {value:?} is there and was never sent")
            }
            Self::Repeated { key, value } => write!(f, "{key:?}: {value:?} is there twice"),
            Self::Overtaken { key, value, by } => {
                write!(f, "{key:?}: acknowledged {value:?} stands behind the later {by:?}")
            }
            Self::Ambiguous { key, value } => {
                write!(f, "{key:?}: the workload sent {value:?} twice, the check means nothing")
            }
        }
    }
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} differences between what was sent and what is there", self.0.len())?;
        for finding in self.0.iter().take(SHOWN_MOST) {
            write!(f, "\n  {finding}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MOST) {
            0 => Ok(()),
            hidden => write!(f, "\n  and {hidden} more"),
        }
    }
}

impl std::error::Error for Findings {}

impl Findings {
    pub(super) fn verdict(findings: Vec<Finding>) -> Result<(), Self> {
        if findings.is_empty() { Ok(()) } else { Err(Self(findings)) }
    }
}

/// Compares what is `found` with the writes that were sent, each to a key of its own.
///
/// # Errors
/// All differences, in order of the keys.
pub fn check(
    acknowledged: &BTreeMap<String, String>,
    unknown: &BTreeMap<String, String>,
    refused: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Result<(), Findings> {
    let mut sent: BTreeMap<&str, (&str, Fate)> = BTreeMap::new();
    let mut findings = Vec::new();
    for (writes, fate) in
        [(acknowledged, Fate::Acknowledged), (unknown, Fate::Unknown), (refused, Fate::Refused)]
    {
        for (key, value) in writes {
            if sent.insert(key.as_str(), (value.as_str(), fate)).is_some() {
                findings.push(Finding::Ambiguous { key: key.clone(), value: value.clone() });
            }
        }
    }
    for (key, (value, fate)) in &sent {
        let (key, value) = ((*key).to_owned(), (*value).to_owned());
        match (found.get(&key), fate) {
            (None, Fate::Acknowledged) => findings.push(Finding::Lost { key, value }),
            (None, Fate::Unknown | Fate::Refused) => {}
            (Some(there), Fate::Refused) => {
                findings.push(Finding::Resurrected { key, value: there.clone() });
            }
            (Some(there), Fate::Acknowledged | Fate::Unknown) => {
                if *there != value {
                    findings.push(Finding::Altered { key, sent: value, found: there.clone() });
                }
            }
        }
    }
    for (key, value) in found {
        if !sent.contains_key(key.as_str()) {
            findings.push(Finding::NeverSent { key: key.clone(), value: value.clone() });
        }
    }
    Findings::verdict(findings)
}

/// Compares the sequences that are `found` with the elements that were sent to them. `sent` has, for
/// each key, the appends in the order in which its one client sent them, each after the one before
/// had ended. A key that is not found is an empty sequence.
///
/// # Errors
/// All differences, in order of the keys.
pub fn check_sequences(
    sent: &BTreeMap<String, Vec<Append>>,
    found: &BTreeMap<String, Vec<String>>,
) -> Result<(), Findings> {
    let mut findings = Vec::new();
    for (key, appends) in sent {
        let elements = found.get(key).map(Vec::as_slice).unwrap_or_default();
        check_sequence(key, appends, elements, &mut findings);
    }
    for (key, elements) in found {
        if !sent.contains_key(key) {
            check_sequence(key, &[], elements, &mut findings);
        }
    }
    Findings::verdict(findings)
}

fn check_sequence(key: &str, sent: &[Append], found: &[String], findings: &mut Vec<Finding>) {
    let key = || key.to_owned();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, append) in sent.iter().enumerate() {
        if places.insert(append.element.as_str(), place).is_some() {
            findings.push(Finding::Ambiguous { key: key(), value: append.element.clone() });
        }
    }
    let mut is_there = vec![false; sent.len()];
    // The element sent last among those seen so far.
    let mut newest: Option<usize> = None;
    for element in found {
        let value = element.clone();
        let Some(&place) = places.get(element.as_str()) else {
            findings.push(Finding::NeverSent { key: key(), value });
            continue;
        };
        if std::mem::replace(&mut is_there[place], true) {
            findings.push(Finding::Repeated { key: key(), value });
            continue;
        }
        match (sent[place].fate, newest) {
            (Fate::Refused, _) => findings.push(Finding::Resurrected { key: key(), value }),
            (Fate::Acknowledged, Some(before)) if before > place => {
                let by = sent[before].element.clone();
                findings.push(Finding::Overtaken { key: key(), value, by });
            }
            (Fate::Acknowledged | Fate::Unknown, _) => {}
        }
        newest = newest.max(Some(place));
    }
    for (append, is_there) in sent.iter().zip(is_there) {
        if append.fate == Fate::Acknowledged && !is_there {
            findings.push(Finding::Lost { key: key(), value: append.element.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fate::{Acknowledged, Refused, Unknown};
    use super::*;

    const NOTHING: [Finding; 0] = [];

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The findings after `a` was acknowledged, `b` is unknown and `c` was refused.
    fn after_kills(found: &[(&str, &str)]) -> Vec<Finding> {
        let sent = [map(&[("a", "1")]), map(&[("b", "2")]), map(&[("c", "3")])];
        match check(&sent[0], &sent[1], &sent[2], &map(found)) {
            Ok(()) => Vec::new(),
            Err(Findings(findings)) => findings,
        }
    }

    #[test]
    fn the_unknown_may_be_there_or_not() {
        assert_eq!(after_kills(&[("a", "1")]), NOTHING);
        assert_eq!(after_kills(&[("a", "1"), ("b", "2")]), NOTHING);
    }

    #[test]
    fn every_difference_between_keys_is_found() {
        let (key, value) = ("a".to_owned(), "1".to_owned());
        assert_eq!(after_kills(&[]), [Finding::Lost { key, value }]);
        let altered = |key: &str, sent: &str| Finding::Altered {
            key: key.to_owned(),
            sent: sent.to_owned(),
            found: "9".to_owned(),
        };
        assert_eq!(after_kills(&[("a", "9"), ("b", "9")]), [altered("a", "1"), altered("b", "2")]);
        let value = "3".to_owned();
        assert_eq!(
            after_kills(&[("a", "1"), ("c", "3")]),
            [Finding::Resurrected { key: "c".to_owned(), value }]
        );
        let value = "4".to_owned();
        assert_eq!(
            after_kills(&[("a", "1"), ("d", "4")]),
            [Finding::NeverSent { key: "d".to_owned(), value }]
        );
    }

    #[test]
    fn a_key_with_two_fates_is_no_pass() {
        let one = map(&[("a", "1")]);
        let verdict = check(&one, &one, &BTreeMap::new(), &one);
        let ambiguous = Finding::Ambiguous { key: "a".to_owned(), value: "1".to_owned() };
        assert_eq!(verdict, Err(Findings(vec![ambiguous])));
    }

    /// The findings for one sequence, as text without the key.
    fn sequence(sent: &[(&str, Fate)], found: &[&str]) -> Vec<String> {
        let appends: Vec<Append> = sent
            .iter()
            .map(|&(element, fate)| Append { element: element.to_owned(), fate })
            .collect();
        let elements: Vec<String> = found.iter().map(|&element| element.to_owned()).collect();
        let sent = BTreeMap::from([("s".to_owned(), appends)]);
        match check_sequences(&sent, &BTreeMap::from([("s".to_owned(), elements)])) {
            Ok(()) => Vec::new(),
            Err(Findings(findings)) => findings
                .iter()
                .map(|finding| finding.to_string().replacen("\"s\": ", "", 1))
                .collect(),
        }
    }

    #[test]
    fn a_sequence_holds_the_acknowledged_once_and_in_order() {
        let sent = [("1", Acknowledged), ("2", Unknown), ("3", Acknowledged), ("4", Refused)];
        for good in [vec!["1", "3"], vec!["1", "2", "3"], vec!["1", "3", "2"]] {
            assert_eq!(sequence(&sent, &good), [""; 0], "{good:?}");
        }
        for (bad, expected) in [
            (vec!["1"], "acknowledged \"3\" is lost"),
            (vec!["1", "3", "3"], "\"3\" is there twice"),
            (vec!["1", "2", "3", "2"], "\"2\" is there twice"),
            (vec!["3", "1"], "acknowledged \"1\" stands behind the later \"3\""),
            (vec!["2", "1", "3"], "acknowledged \"1\" stands behind the later \"2\""),
            (vec!["1", "3", "4"], "\"4\" is there and was reported as not applied"),
            (vec!["1", "3", "5"], "\"5\" is there and was never sent"),
        ] {
            assert_eq!(sequence(&sent, &bad), [expected], "{bad:?}");
        }
        let twice = sequence(&[("1", Acknowledged), ("1", Unknown)], &["1"]);
        assert!(twice[0].contains("the workload sent \"1\" twice"), "{twice:?}");
    }

    #[test]
    fn sequences_that_are_missing_or_strange_are_found() {
        let append = Append { element: "1".to_owned(), fate: Acknowledged };
        let sent = BTreeMap::from([("s".to_owned(), vec![append])]);
        let found = BTreeMap::from([("t".to_owned(), vec!["2".to_owned()])]);
        let lost = Finding::Lost { key: "s".to_owned(), value: "1".to_owned() };
        let strange = Finding::NeverSent { key: "t".to_owned(), value: "2".to_owned() };
        assert_eq!(check_sequences(&sent, &found), Err(Findings(vec![lost, strange])));
    }

    #[test]
    fn a_long_report_is_cut_with_a_count() {
        let found: BTreeMap<String, String> =
            (0..25).map(|number| (format!("{number:02}"), "x".to_owned())).collect();
        let none = BTreeMap::new();
        let text = check(&none, &none, &none, &found).unwrap_err().to_string();
        assert!(text.starts_with("25 differences"), "{text}");
        assert!(text.ends_with("and 5 more"), "{text}");
        assert_eq!(text.lines().count(), 22);
    }
}
