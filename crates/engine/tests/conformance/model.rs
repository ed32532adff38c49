//! Random sequences of calls, compared with a sorted map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use annulus_engine::{Batch, Row, View};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::bench::{Bench, Variant, all, everything, paged};

/// Few, because each opens an engine; each has dozens of calls.
const CASES: u32 = 16;
/// E2: at most two views are held.
const VIEWS_MOST: usize = 2;

type Model = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Get(Vec<Vec<u8>>),
    Rows(Vec<u8>, Vec<u8>, usize),
    TakeView(Vec<u8>, Vec<u8>),
    DropView,
    DeleteRange(Vec<u8>, Vec<u8>),
    MakeDurable,
    Reopen,
}

/// A small space, so that keys meet.
fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(0..3_u8, 1..4)
}

fn bound() -> impl Strategy<Value = Vec<u8>> {
    vec(0..4_u8, 0..3)
}

/// Some long ones, so that a tiny memtable is flushed.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![1 => Just(0_usize), 6 => 1..40_usize, 2 => 3_000..4_000_usize];
    (any::<u8>(), len).prop_map(|(byte, len)| vec![byte; len])
}

fn step() -> impl Strategy<Value = Step> {
    let change = (key(), proptest::option::of(value()));
    prop_oneof![
        8 => vec(change, 0..8).prop_map(Step::Apply),
        3 => vec(key(), 0..4).prop_map(Step::Get),
        3 => (bound(), bound(), 0..6_usize).prop_map(|(a, b, limit)| Step::Rows(a, b, limit)),
        2 => (bound(), bound()).prop_map(|(a, b)| Step::TakeView(a, b)),
        1 => Just(Step::DropView),
        1 => (bound(), bound()).prop_map(|(a, b)| Step::DeleteRange(a, b)),
        1 => Just(Step::MakeDurable),
        1 => Just(Step::Reopen),
    ]
}

fn range(start: &[u8], end: &[u8]) -> Range<Bytes> {
    Bytes::copy_from_slice(start)..Bytes::copy_from_slice(end)
}

fn expected(model: &Model, range: &Range<Bytes>, limit: usize) -> Vec<Row> {
    let rows = model.iter().filter(|(key, _)| range.contains(*key));
    rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

struct Held {
    view: Arc<dyn View>,
    range: Range<Bytes>,
    model: Model,
}

struct Run {
    bench: Bench,
    model: Model,
    views: Vec<Held>,
}

impl Run {
    fn apply(&mut self, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let mut batch = Batch::default();
        for (key, value) in changes {
            let key = Bytes::copy_from_slice(key);
            match value {
                Some(value) => {
                    let value = Bytes::copy_from_slice(value);
                    batch.put(key.clone(), value.clone());
                    self.model.insert(key, value);
                }
                None => {
                    self.model.remove(&key);
                    batch.delete(key);
                }
            }
        }
        self.bench.engine.apply(batch).expect("apply");
    }

    fn get(&self, keys: &[Vec<u8>]) {
        let asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let values = self.bench.engine.get(&asked).expect("get");
        let wanted: Vec<_> = keys.iter().map(|key| self.model.get(&key[..]).cloned()).collect();
        assert_eq!(values, wanted);
    }

    fn step(mut self, step: &Step) -> Self {
        match step {
            Step::Apply(changes) => self.apply(changes),
            Step::Get(keys) => self.get(keys),
            Step::Rows(start, end, limit) => {
                let range = range(start, end);
                let rows = self.bench.engine.rows(range.clone(), *limit).expect("rows");
                assert_eq!(rows, expected(&self.model, &range, *limit));
            }
            Step::TakeView(start, end) if self.views.len() < VIEWS_MOST => {
                let range = range(start, end);
                let view = self.bench.engine.view(range.clone()).expect("view");
                self.views.push(Held { view, range, model: self.model.clone() });
            }
            Step::TakeView(..) | Step::DropView => {
                self.views.pop();
            }
            Step::DeleteRange(start, end) => {
                let range = range(start, end);
                self.bench.engine.delete_range(range.clone()).expect("delete");
                self.model.retain(|key, _| !range.contains(key));
            }
            Step::MakeDurable => self.bench.engine.make_durable().expect("make durable"),
            // The memory engine forgets, as it says.
            Step::Reopen if self.bench.variant == Variant::Memory => {}
            Step::Reopen => {
                self.views.clear();
                self.bench = self.bench.reopened();
            }
        }
        self
    }

    fn check(&self) {
        assert_eq!(all(&*self.bench.engine), expected(&self.model, &everything(), usize::MAX));
        for held in &self.views {
            let read = |range, limit| held.view.rows(range, limit).expect("rows");
            let wanted = expected(&held.model, &held.range, usize::MAX);
            assert_eq!(paged(everything(), 3, read), wanted, "a view of {:?}", held.range);
            for key in self.model.keys().filter(|key| held.range.contains(*key)) {
                assert_eq!(held.view.get(key).expect("get"), held.model.get(key).cloned());
            }
        }
    }
}

pub fn any_sequence_matches_the_model(variant: Variant) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(step(), 1..40), |steps| {
        let bench = Bench::new(variant);
        let mut run = Run { bench, model: Model::new(), views: Vec::new() };
        for step in &steps {
            run = run.step(step);
            run.check();
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
