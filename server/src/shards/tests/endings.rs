//! Keys that end by time under many schedules, against a model (W5). Entries come at any distance; another
//! replica applies the same ones, the process restarts, and a snapshot carries the state to another node.
//! Whatever happens, after each entry the shard holds what the model says, its index has exactly the deadlines
//! of its values, and the next one is known.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::counting::{batch, incr, set, unset};
use super::deadlines::{index_of, living, living_item};
use super::*;

const KEYS: usize = 5;

/// One operation, on keys by their numbers. A time to live of 0 is none.
#[derive(Clone, Debug)]
enum Act {
    Put(usize, u64),
    /// Only if the key does not exist.
    Claim(usize, u64),
    Delete(usize),
    Incr(usize),
    /// Sets one key and removes the next.
    Both(usize, u64),
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// An entry, so many milliseconds after the last one.
    Entry(u64, Vec<Act>),
    Restart,
    Snapshot,
}

fn any_act() -> impl Strategy<Value = Act> {
    let ttl = prop_oneof![1 => Just(0u64), 4 => 1..400u64];
    let set = (0..KEYS, ttl);
    prop_oneof![
        4 => set.clone().prop_map(|(key, ttl_ms)| Act::Put(key, ttl_ms)),
        2 => set.clone().prop_map(|(key, ttl_ms)| Act::Claim(key, ttl_ms)),
        1 => (0..KEYS).prop_map(Act::Delete),
        2 => (0..KEYS).prop_map(Act::Incr),
        2 => set.prop_map(|(key, ttl_ms)| Act::Both(key, ttl_ms)),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..150u64, vec(any_act(), 0..5)).prop_map(|(gap_ms, acts)| Event::Entry(gap_ms, acts)),
        1 => Just(Event::Restart),
        1 => Just(Event::Snapshot),
    ]
}

fn name(key: usize) -> String {
    format!("{{t}}{}", key % KEYS)
}

fn op_of(act: &Act) -> Op {
    match act {
        Act::Put(key, ttl_ms) => living(put(&name(*key), "7"), *ttl_ms),
        Act::Claim(key, ttl_ms) => living(cas(&name(*key), Expect::Absent, "7"), *ttl_ms),
        Act::Delete(key) => delete(&name(*key)),
        Act::Incr(key) => incr(&name(*key), 1),
        Act::Both(key, ttl_ms) => {
            let items = vec![living_item(set(&name(*key), "7"), *ttl_ms), unset(&name(key + 1))];
            batch(Vec::new(), items)
        }
    }
}

/// What a shard should hold: per key its number, version and deadline.
#[derive(Default)]
struct Model {
    keys: BTreeMap<String, (i64, u64, u64)>,
    revision: u64,
}

impl Model {
    fn set(&mut self, key: String, number: i64, deadline_ms: u64) {
        self.revision += 1;
        self.keys.insert(key, (number, self.revision, deadline_ms));
    }

    fn entry(&mut self, now_ms: u64, acts: &[Act]) {
        let before = self.keys.len();
        self.keys.retain(|_, (_, _, deadline_ms)| *deadline_ms == 0 || *deadline_ms > now_ms);
        self.revision += (before - self.keys.len()) as u64;
        let ends = |ttl_ms: u64| if ttl_ms == 0 { 0 } else { now_ms + ttl_ms };
        for act in acts {
            match act {
                Act::Put(key, ttl_ms) => self.set(name(*key), 7, ends(*ttl_ms)),
                Act::Claim(key, ttl_ms) if !self.keys.contains_key(&name(*key)) => {
                    self.set(name(*key), 7, ends(*ttl_ms));
                }
                Act::Claim(..) => {}
                Act::Delete(key) => {
                    self.revision += u64::from(self.keys.remove(&name(*key)).is_some());
                }
                Act::Incr(key) => {
                    let (number, _, deadline_ms) =
                        self.keys.get(&name(*key)).copied().unwrap_or_default();
                    self.set(name(*key), number + 1, deadline_ms);
                }
                Act::Both(key, ttl_ms) => {
                    self.set(name(*key), 7, ends(*ttl_ms));
                    self.keys.remove(&name(key + 1));
                }
            }
        }
    }

    fn agrees_with(&self, fixture: &Fixture) -> Result<(), TestCaseError> {
        for key in (0..KEYS).map(name) {
            let held = fixture.read(&key).value.map(|value| {
                let text = String::from_utf8(value.value.to_vec()).unwrap();
                (text.parse::<i64>().unwrap(), value.revision.0, value.deadline_ms)
            });
            prop_assert_eq!(held, self.keys.get(&key).copied(), "{}", key);
        }
        let mut index: Vec<(u64, String)> = Vec::new();
        for (key, (_, _, deadline_ms)) in &self.keys {
            index.extend((*deadline_ms != 0).then(|| (*deadline_ms, key.clone())));
        }
        index.sort();
        let next_ms = index.first().map(|(deadline_ms, _)| *deadline_ms);
        prop_assert_eq!(fixture.machine.next_end_ms(), next_ms);
        prop_assert_eq!(index_of(fixture), index);
        prop_assert_eq!(fixture.revision(), self.revision);
        prop_assert_eq!(fixture.read("a").head.keys, self.keys.len() as u64);
        Ok(())
    }
}

fn run(events: Vec<Event>) -> Result<(), TestCaseError> {
    let (mut fixture, mut other) = (Fixture::new(), Fixture::new());
    let mut model = Model::default();
    for event in events {
        match event {
            Event::Entry(gap_ms, acts) => {
                let ops: Vec<(ShardId, Op)> = acts.iter().map(|act| (SHARD, op_of(act))).collect();
                for replica in [&mut fixture, &mut other] {
                    replica.later_ms += gap_ms;
                    replica.apply(ops.clone());
                }
                model.entry(fixture.index * 10 + fixture.later_ms, &acts);
            }
            Event::Restart => fixture = fixture.restarted(),
            Event::Snapshot => {
                let mut node = Fixture::new();
                install(&node, files_of(&fixture));
                (node.index, node.later_ms) = (fixture.index, fixture.later_ms);
                fixture = node;
            }
        }
        model.agrees_with(&fixture)?;
    }
    prop_assert_eq!(files_of(&fixture), files_of(&other), "the same entries, the same state");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn keys_end_as_the_model_says_on_every_replica(events in vec(any_event(), 1..60)) {
        run(events)?;
    }
}
