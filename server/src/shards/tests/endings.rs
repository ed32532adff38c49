//! Keys and writers that end by time under many schedules, against a model (W5). Entries come at any
//! distance, for two shards that share what one entry may end, and that is little; another replica applies
//! the same ones, the process restarts, and a snapshot carries the state to another node. Whatever happens,
//! after each entry both shards hold what the model says, on both replicas, their indexes have exactly the
//! deadlines of their values, and nothing ends before it is asked for.

use std::collections::BTreeMap;

use annulus_types::limits::WRITER_IDLE;
use proptest::collection::vec;
use proptest::prelude::*;

use super::counting::{batch, counted, incr, set, unset};
use super::deadlines::{index_in, living, living_item};
use super::once::named;
use super::reads::tell_time;
use super::*;

const SHARDS: [ShardId; 2] = [SHARD, ShardId(4)];
/// Their keys have these tags, whose tokens lie in the lower and in the upper half.
const TAGS: [&str; 2] = ["{a}", "{b}"];
/// Keys of each shard.
const KEYS: usize = 4;
/// Keys and writers that any entry may end here, so that often some are left over.
const LEAST: usize = 3;
const IDLE_MS: u64 = WRITER_IDLE.as_millis() as u64;
/// Time to live of what a writer sets.
const WRITTEN_MS: u64 = 300;

/// A key: of which shard, and which of its keys.
type Key = (usize, usize);

/// One operation. A time to live of 0 is none.
#[derive(Clone, Debug)]
enum Act {
    Put(Key, u64),
    /// Only if the key does not exist.
    Claim(Key, u64),
    Delete(Key),
    Incr(Key),
    /// Sets one key and removes the next.
    Both(Key, u64),
    /// Opens a writer of a shard.
    Open(usize),
    /// A writer sets the first key of its shard: always the same operation, so that only the first one takes
    /// effect.
    Write(usize),
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
    let key = (0..SHARDS.len(), 0..KEYS);
    let ttl = prop_oneof![
        1 => Just(0u64),
        4 => 1..400u64,
        // Together with writers.
        3 => IDLE_MS - 200..IDLE_MS + 200,
    ];
    let set = (key.clone(), ttl);
    prop_oneof![
        4 => set.clone().prop_map(|(key, ttl_ms)| Act::Put(key, ttl_ms)),
        2 => set.clone().prop_map(|(key, ttl_ms)| Act::Claim(key, ttl_ms)),
        1 => key.clone().prop_map(Act::Delete),
        2 => key.prop_map(Act::Incr),
        2 => set.prop_map(|(key, ttl_ms)| Act::Both(key, ttl_ms)),
        2 => (0..SHARDS.len()).prop_map(Act::Open),
        2 => any::<usize>().prop_map(Act::Write),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let gap = prop_oneof![6 => 0..150u64, 1 => IDLE_MS - 150..IDLE_MS + 150];
    prop_oneof![
        12 => (gap, vec(any_act(), 0..5)).prop_map(|(gap_ms, acts)| Event::Entry(gap_ms, acts)),
        1 => Just(Event::Restart),
        1 => Just(Event::Snapshot),
    ]
}

fn name((place, number): Key) -> String {
    format!("{}{}", TAGS[place], number % KEYS)
}

/// What ends. In the order in which those of one deadline do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Writer(u64),
    Key(String),
}

/// What a shard should hold.
#[derive(Default)]
struct ModelShard {
    /// Numbers, versions and deadlines.
    keys: BTreeMap<String, (i64, u64, u64)>,
    /// When each was used last, and whether it has written.
    writers: BTreeMap<u64, (u64, bool)>,
    revision: u64,
}

impl ModelShard {
    fn set(&mut self, key: String, number: i64, deadline_ms: u64) {
        self.revision += 1;
        self.keys.insert(key, (number, self.revision, deadline_ms));
    }

    /// What ends and when, in order.
    fn ends(&self) -> Vec<(u64, End)> {
        let writers =
            self.writers.iter().map(|(id, (used_ms, _))| (used_ms + IDLE_MS, End::Writer(*id)));
        let keys = self.deadlines().into_iter().map(|(at_ms, key)| (at_ms, End::Key(key)));
        let mut ends: Vec<(u64, End)> = writers.chain(keys).collect();
        ends.sort();
        ends
    }

    fn deadlines(&self) -> Vec<(u64, String)> {
        let ending = self.keys.iter().filter(|(_, (_, _, deadline_ms))| *deadline_ms != 0);
        let mut deadlines: Vec<(u64, String)> =
            ending.map(|(key, (_, _, deadline_ms))| (*deadline_ms, key.clone())).collect();
        deadlines.sort();
        deadlines
    }

    fn end(&mut self, end: &End) {
        match end {
            End::Writer(id) => {
                self.writers.remove(id);
            }
            End::Key(key) => {
                self.keys.remove(key);
                self.revision += 1;
            }
        }
    }

    fn bytes(&self) -> u64 {
        let sizes =
            self.keys.iter().map(|(key, (number, ..))| key.len() + number.to_string().len());
        sizes.sum::<usize>() as u64
    }
}

#[derive(Default)]
struct Model {
    shards: [ModelShard; 2],
    /// All writers that ever were: place of the shard, and id.
    opened: Vec<(usize, u64)>,
}

impl Model {
    /// The acts of an entry: writers become numbers of such that are known before it.
    fn meant(&self, acts: Vec<Act>) -> Vec<Act> {
        let known = self.opened.len();
        let meant = acts.into_iter().filter_map(|act| match act {
            Act::Write(which) => (known > 0).then(|| Act::Write(which % known)),
            act => Some(act),
        });
        meant.collect()
    }

    fn op_of(&self, act: &Act) -> (ShardId, Op) {
        let (place, op) = match act {
            Act::Put(key, ttl_ms) => (key.0, living(put(&name(*key), "7"), *ttl_ms)),
            Act::Claim(key, ttl_ms) => {
                (key.0, living(cas(&name(*key), Expect::Absent, "7"), *ttl_ms))
            }
            Act::Delete(key) => (key.0, delete(&name(*key))),
            Act::Incr(key) => (key.0, incr(&name(*key), 1)),
            Act::Both(key, ttl_ms) => {
                let next = name((key.0, key.1 + 1));
                let items = vec![living_item(set(&name(*key), "7"), *ttl_ms), unset(&next)];
                (key.0, batch(Vec::new(), items))
            }
            Act::Open(place) => {
                (*place, Op::OpenWriter { token: token_of(TAGS[*place].as_bytes()) })
            }
            Act::Write(which) => {
                let (place, writer) = self.opened[*which];
                let op = living(put(&name((place, 0)), "7"), WRITTEN_MS);
                (place, named(Revision(writer), 1, 1, &op))
            }
        };
        (SHARDS[place], op)
    }

    /// When something ends next, and in which shard.
    fn next_end(&self) -> Option<(u64, usize)> {
        let firsts = self.shards.iter().enumerate().filter_map(|(place, shard)| {
            let (at_ms, _) = shard.ends().into_iter().next()?;
            Some((at_ms, place))
        });
        firsts.min()
    }

    /// Ends what an entry of that time may. Returns whether something due is left over.
    fn end_due(&mut self, now_ms: u64, acts: &[Act]) -> bool {
        let named = acts.iter().map(|act| if matches!(act, Act::Both(..)) { 2 } else { 1 });
        let mut left = LEAST.max(2 * named.sum::<usize>());
        // One shard after the other, the one that waits longest first.
        while left > 0
            && let Some((at_ms, place)) = self.next_end()
            && at_ms <= now_ms
        {
            let shard = &mut self.shards[place];
            for (at_ms, end) in shard.ends() {
                if at_ms <= now_ms && left > 0 {
                    shard.end(&end);
                    left -= 1;
                }
            }
        }
        self.next_end().is_some_and(|(at_ms, _)| at_ms <= now_ms)
    }

    fn act(&mut self, now_ms: u64, act: &Act) {
        let ends = |ttl_ms: u64| if ttl_ms == 0 { 0 } else { now_ms + ttl_ms + 1 };
        match act {
            Act::Put(key, ttl_ms) => self.shards[key.0].set(name(*key), 7, ends(*ttl_ms)),
            Act::Claim(key, ttl_ms) => {
                let shard = &mut self.shards[key.0];
                if !shard.keys.contains_key(&name(*key)) {
                    shard.set(name(*key), 7, ends(*ttl_ms));
                }
            }
            Act::Delete(key) => {
                let shard = &mut self.shards[key.0];
                shard.revision += u64::from(shard.keys.remove(&name(*key)).is_some());
            }
            Act::Incr(key) => {
                let shard = &mut self.shards[key.0];
                let (number, _, deadline_ms) =
                    shard.keys.get(&name(*key)).copied().unwrap_or_default();
                shard.set(name(*key), number + 1, deadline_ms);
            }
            Act::Both(key, ttl_ms) => {
                let shard = &mut self.shards[key.0];
                shard.set(name(*key), 7, ends(*ttl_ms));
                shard.keys.remove(&name((key.0, key.1 + 1)));
            }
            Act::Open(place) => {
                let shard = &mut self.shards[*place];
                shard.revision += 1;
                shard.writers.insert(shard.revision, (now_ms, false));
                self.opened.push((*place, shard.revision));
            }
            Act::Write(which) => {
                let (place, writer) = self.opened[*which];
                let shard = &mut self.shards[place];
                let Some((used_ms, has_written)) = shard.writers.get_mut(&writer) else { return };
                *used_ms = now_ms;
                if !std::mem::replace(has_written, true) {
                    shard.set(name((place, 0)), 7, ends(WRITTEN_MS));
                }
            }
        }
    }

    fn agrees_with(&self, fixture: &Fixture) -> Result<(), TestCaseError> {
        for (place, shard) in self.shards.iter().enumerate() {
            for key in (0..KEYS).map(|number| name((place, number))) {
                let held = fixture.read(&key).value.map(|value| {
                    let text = String::from_utf8(value.value.to_vec()).unwrap();
                    (text.parse::<i64>().unwrap(), value.revision.0, value.deadline_ms)
                });
                prop_assert_eq!(held, shard.keys.get(&key).copied(), "{}", key);
            }
            prop_assert_eq!(index_in(fixture, SHARDS[place]), shard.deadlines());
            let applied = fixture.machine.applied.lock();
            let Held { head, writers, .. } = &applied.held[&SHARDS[place]];
            let expected = (shard.revision, shard.keys.len() as u64, shard.bytes());
            prop_assert_eq!((head.revision.0, head.keys, head.bytes), expected);
            let writers: Vec<u64> = writers.rows().map(|(id, _)| id.0).collect();
            prop_assert_eq!(writers, shard.writers.keys().copied().collect::<Vec<u64>>());
        }
        Ok(())
    }
}

/// Lets few things end with one entry.
fn with_little(fixture: Fixture, ends_least: usize) -> Fixture {
    fixture.machine.applied.lock().ends_least = ends_least;
    fixture
}

fn replica(weakened: Weakened) -> Fixture {
    let mut fixture = Fixture::over(Arc::new(MemoryEngine::default()), weakened);
    let create = |first| Op::Create { first, count: 512, epoch: Epoch(1) };
    fixture.apply(vec![(SHARDS[0], create(0)), (SHARDS[1], create(512))]);
    with_little(fixture, LEAST)
}

/// Returns how many entries have left something over.
fn run(mut fixture: Fixture, events: Vec<Event>) -> Result<usize, TestCaseError> {
    let mut other = replica(Weakened::default());
    let mut model = Model::default();
    let mut shortages = 0;
    for event in events {
        // A look at the whole index has told when something ends next.
        let mut is_known = true;
        match event {
            Event::Entry(gap_ms, acts) => {
                let acts = model.meant(acts);
                let ops: Vec<(ShardId, Op)> = acts.iter().map(|act| model.op_of(act)).collect();
                for node in [&mut fixture, &mut other] {
                    node.later_ms += gap_ms;
                    node.apply(ops.clone());
                }
                let now_ms = fixture.time_ms();
                tell_time(&fixture, now_ms);
                if model.end_due(now_ms, &acts) {
                    shortages += 1;
                } else {
                    let next_ms = fixture.machine.next_end_ms();
                    prop_assert!(next_ms.is_none_or(|next_ms| next_ms > now_ms), "{:?}", next_ms);
                }
                acts.iter().for_each(|act| model.act(now_ms, act));
                is_known = acts.is_empty();
            }
            Event::Restart => fixture = with_little(fixture.restarted(), LEAST),
            Event::Snapshot => {
                let mut node = with_little(Fixture::new(), LEAST);
                install(&node, files_of(&fixture));
                (node.index, node.later_ms) = (fixture.index, fixture.later_ms);
                fixture = node;
            }
        }
        model.agrees_with(&fixture)?;
        let next_ms = model.next_end().map(|(at_ms, _)| at_ms);
        for (node, is_known) in [(&fixture, is_known), (&other, false)] {
            let told_ms = node.machine.next_end_ms();
            prop_assert!(!is_known || told_ms == next_ms, "{:?}, {:?}", told_ms, next_ms);
            let asks_in_time =
                next_ms.is_none_or(|next_ms| told_ms.is_some_and(|told_ms| told_ms <= next_ms));
            prop_assert!(asks_in_time, "{:?}, {:?}", told_ms, next_ms);
        }
        prop_assert_eq!(files_of(&fixture), files_of(&other), "the same entries, the same state");
    }
    Ok(shortages)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_ends_is_what_the_model_says_on_every_replica(events in vec(any_event(), 1..60)) {
        run(replica(Weakened::default()), events)?;
    }
}

/// Two writers and six keys end at about one moment.
fn more_than_an_entry_may_end() -> Vec<Event> {
    let puts = |place| (0..3).map(move |number| Act::Put((place, number), IDLE_MS));
    let acts = [Act::Open(0), Act::Open(1)].into_iter().chain(puts(0)).chain(puts(1)).collect();
    let idle = |gap_ms| Event::Entry(gap_ms, Vec::new());
    vec![Event::Entry(0, acts), Event::Restart, idle(IDLE_MS), idle(0), Event::Restart, idle(0)]
}

#[test]
fn two_shards_share_what_an_entry_may_end() {
    let shortages = run(replica(Weakened::default()), more_than_an_entry_may_end()).unwrap();
    assert_eq!(shortages, 2, "three, three and two");
}

/// The judge would find it: a key that no entry has ended is there.
#[test]
fn a_read_that_judges_time_is_found() {
    let weakened = replica(Weakened::by(Weaken::ReadsJudgeTime));
    assert!(run(weakened, more_than_an_entry_may_end()).is_err());
}

/// The twin without the rule: the next operation finds what a read has just hidden.
#[test]
fn with_reads_that_judge_time_a_key_is_absent_and_then_present() {
    let read_and_counted = |weakened| {
        let mut fixture = with_little(Fixture::weakened(weakened), 1);
        let brief = |name, ttl_ms| (SHARD, living(put(name, "7"), ttl_ms));
        fixture.apply(vec![brief("a", 100), brief("b", 100), brief("c", 100), brief("n", 200)]);
        fixture.later_ms += 1_000;
        // Ends the first; the one after it another two.
        fixture.apply(Vec::new());
        tell_time(&fixture, fixture.time_ms());
        let is_there = fixture.read("n").value.is_some();
        (is_there, counted(fixture.one(incr("n", 1))))
    };
    assert_eq!(read_and_counted(Weakened::default()), (true, 8));
    assert_eq!(read_and_counted(Weakened::by(Weaken::ReadsJudgeTime)), (false, 8));
}
