//! R3 under fire: a writer keeps many keys equal, batch by batch, and no answer may mix two of
//! them.

use std::thread;

use annulus_engine::Batch;
use bytes::Bytes;

use crate::bench::{Bench, Variant, bytes, everything, paged};

const ROUNDS: u32 = 300;
const KEYS: usize = 20;

/// Long enough that a tiny memtable is flushed every few rounds.
fn value(round: u32) -> Bytes {
    let mut value = round.to_be_bytes().to_vec();
    value.resize(512, 7);
    value.into()
}

/// The round that all values are of.
fn round_of(values: &[Bytes]) -> u32 {
    assert_eq!(values.len(), KEYS);
    let rounds: Vec<u32> = values
        .iter()
        .map(|value| {
            let head: [u8; 4] = value[..4].try_into().expect("four bytes");
            u32::from_be_bytes(head)
        })
        .collect();
    assert!(rounds.iter().all(|round| *round == rounds[0]), "one answer of rounds {rounds:?}");
    rounds[0]
}

pub fn answers_are_of_one_moment(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    let keys: Vec<Bytes> = (0..KEYS).map(|n| bytes(&format!("key/{n:02}"))).collect();
    let asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let write = |round: u32| {
        let mut batch = Batch::default();
        for key in &keys {
            batch.put(key.clone(), value(round));
        }
        engine.apply(batch).expect("apply");
    };
    write(0);

    thread::scope(|scope| {
        let writer = scope.spawn(|| (1..=ROUNDS).for_each(&write));
        let mut seen = 0;
        loop {
            // Asked before the reads: if so, these are of the last round.
            let finished = writer.is_finished();

            let values = engine.get(&asked).expect("get");
            let values: Vec<Bytes> = values.into_iter().flatten().collect();
            let got = round_of(&values);
            assert!(got >= seen, "round {got} after {seen}");

            let rows = engine.rows(everything(), usize::MAX).expect("rows");
            let values: Vec<Bytes> = rows.into_iter().map(|(_, value)| value).collect();
            let listed = round_of(&values);
            assert!(listed >= got, "round {listed} after {got}");

            let view = engine.view(everything()).expect("view");
            let read = |range, limit| view.rows(range, limit).expect("rows");
            let pages = paged(everything(), 6, read);
            let values: Vec<Bytes> = pages.into_iter().map(|(_, value)| value).collect();
            let viewed = round_of(&values);
            assert!(viewed >= listed, "round {viewed} after {listed}");
            for key in &keys {
                let value = view.get(key).expect("get").expect("a value");
                assert_eq!(value, values[0], "a view has changed");
            }

            seen = viewed;
            if finished {
                break;
            }
        }
        assert_eq!(seen, ROUNDS);
    });
}
