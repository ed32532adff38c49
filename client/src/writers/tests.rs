//! The writers of a client, step by step and under random steps.

use annulus_runtime::Random;

use super::*;

const SHARD: ShardId = ShardId(5);
const OTHER: ShardId = ShardId(6);
const TOKEN: Token = Token(77);

fn with_window(window: u64) -> Writers {
    Writers { window, ..Writers::default() }
}

/// Writers with `id` open in `shard`, whose first number is settled.
fn open_in(shard: ShardId, id: u64) -> Writers {
    let mut writers = with_window(4);
    assert_eq!(writers.admit(shard), Admission::Open);
    let first = writers.opened(shard, shard, Revision(id), TOKEN);
    writers.finish(&first, Fate::Settled);
    writers
}

fn ticket(writers: &mut Writers, shard: ShardId) -> Ticket {
    match writers.admit(shard) {
        Admission::Go(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_call_opens_and_the_others_wait() {
    let mut writers = Writers::default();
    assert_eq!(writers.admit(SHARD), Admission::Open);
    assert_eq!(writers.admit(SHARD), Admission::Wait);
    assert_eq!(writers.admit(OTHER), Admission::Open, "shards have nothing to do with each other");

    let first = writers.opened(SHARD, SHARD, Revision(9), TOKEN);
    assert_eq!(
        first,
        Ticket { shard: SHARD, writer: Revision(9), seq: 1, lowest_unacked: 1 },
        "whoever opened it goes first"
    );
    assert_eq!(ticket(&mut writers, SHARD).seq, 2);
    assert_eq!(writers.admit(OTHER), Admission::Wait);
}

#[test]
fn after_a_failed_opening_somebody_else_tries() {
    let mut writers = Writers::default();
    assert_eq!(writers.admit(SHARD), Admission::Open);
    writers.not_opened(SHARD);
    assert_eq!(writers.admit(SHARD), Admission::Open);
    writers.opened(SHARD, SHARD, Revision(9), TOKEN);
    writers.not_opened(SHARD);
    assert_eq!(ticket(&mut writers, SHARD).seq, 2, "a late report does no harm");
}

#[test]
fn the_lowest_open_number_is_told_whatever_ends_first() {
    let mut writers = open_in(SHARD, 9);
    let [two, three] = [(); 2].map(|()| ticket(&mut writers, SHARD));
    assert_eq!((two.seq, two.lowest_unacked), (2, 2));
    assert_eq!((three.seq, three.lowest_unacked), (3, 2));
    assert!(!writers.finish(&three, Fate::Settled), "number 2 is still open");
    assert_eq!(ticket(&mut writers, SHARD).lowest_unacked, 2);
    assert!(writers.finish(&two, Fate::Settled));
    assert_eq!(ticket(&mut writers, SHARD).lowest_unacked, 4);
}

#[test]
fn a_full_window_makes_calls_wait_until_the_lowest_number_ends() {
    let mut writers = open_in(SHARD, 9);
    let tickets = [(); 4].map(|()| ticket(&mut writers, SHARD));
    assert_eq!(writers.admit(SHARD), Admission::Wait);
    assert!(!writers.finish(&tickets[3], Fate::Settled));
    assert_eq!(writers.admit(SHARD), Admission::Wait, "the window begins at the lowest number");
    assert!(writers.finish(&tickets[0], Fate::Settled));
    let next = ticket(&mut writers, SHARD);
    assert_eq!((next.seq, next.lowest_unacked), (6, 3));
    assert_eq!(writers.admit(SHARD), Admission::Wait);
}

#[test]
fn a_doubt_retires_the_writer() {
    let mut writers = open_in(SHARD, 9);
    let [two, three] = [(); 2].map(|()| ticket(&mut writers, SHARD));
    assert!(writers.finish(&three, Fate::InDoubt));
    assert_eq!(writers.admit(SHARD), Admission::Open);
    writers.opened(SHARD, SHARD, Revision(10), TOKEN);
    assert!(!writers.finish(&two, Fate::Settled), "of another writer");
    assert!(!writers.finish(&two, Fate::InDoubt));
    let next = ticket(&mut writers, SHARD);
    assert_eq!((next.writer, next.seq, next.lowest_unacked), (Revision(10), 2, 1));
}

#[test]
fn a_writer_that_has_ended_is_replaced_once() {
    let mut writers = open_in(SHARD, 9);
    let [two, three] = [(); 2].map(|()| ticket(&mut writers, SHARD));
    assert!(writers.finish(&two, Fate::Expired));
    assert_eq!(writers.admit(SHARD), Admission::Open);
    writers.opened(SHARD, SHARD, Revision(10), TOKEN);
    assert!(!writers.finish(&three, Fate::Expired), "it was another one that ended");
    assert_eq!(ticket(&mut writers, SHARD).writer, Revision(10));
}

#[test]
fn a_writer_that_opened_elsewhere_is_kept_there() {
    let mut writers = open_in(OTHER, 8);
    assert_eq!(writers.admit(SHARD), Admission::Open);
    let first = writers.opened(SHARD, OTHER, Revision(9), TOKEN);
    assert_eq!((first.shard, first.writer), (OTHER, Revision(9)));
    assert_eq!(ticket(&mut writers, OTHER).writer, Revision(9));
    assert_eq!(writers.admit(SHARD), Admission::Open);
}

#[test]
fn idle_writers_are_handed_out_once_and_busy_ones_stay() {
    let mut writers = open_in(SHARD, 9);
    assert_eq!(writers.admit(OTHER), Admission::Open);
    let busy = writers.opened(OTHER, OTHER, Revision(3), Token(8));
    assert_eq!(writers.admit(ShardId(7)), Admission::Open);
    assert_eq!(writers.take_idle(), [(TOKEN, Revision(9))]);
    assert!(writers.take_idle().is_empty());
    assert_eq!(writers.admit(SHARD), Admission::Open);
    writers.finish(&busy, Fate::Settled);
    assert_eq!(writers.take_idle(), [(Token(8), Revision(3))]);
}

/// What the world knows of all numbers that were ever given, by writer.
#[derive(Default)]
struct World {
    last: BTreeMap<Revision, u64>,
    under_way: Vec<Ticket>,
    in_doubt: Vec<Ticket>,
    opening: BTreeSet<ShardId>,
    next_id: u64,
}

impl World {
    fn check(&mut self, ticket: &Ticket, window: u64) {
        let Ticket { writer, seq, lowest_unacked, .. } = *ticket;
        let last = self.last.insert(writer, seq).unwrap_or(0);
        assert_eq!(seq, last + 1, "numbers are given once and in order: {ticket:?}");
        assert!(lowest_unacked >= 1 && lowest_unacked <= seq, "{ticket:?}");
        assert!(seq - lowest_unacked < window, "{ticket:?}");
        for wanted in self.under_way.iter().chain(&self.in_doubt) {
            let is_passed = wanted.writer == writer && wanted.seq < lowest_unacked;
            assert!(!is_passed, "{ticket:?} passes {wanted:?}, whose result is not known");
        }
        self.under_way.push(*ticket);
    }

    /// Whether a call for `shard` must wait: the window of its newest writer is full.
    fn is_full(&self, shard: ShardId, window: u64) -> bool {
        let Some(newest) =
            self.under_way.iter().filter(|t| t.shard == shard).map(|t| t.writer).max()
        else {
            return false;
        };
        let of_newest = self.under_way.iter().filter(|t| t.writer == newest);
        let lowest = of_newest.map(|t| t.seq).min().unwrap_or(0);
        self.last[&newest] + 1 - lowest >= window
    }
}

#[test]
fn random_steps_keep_every_promise() {
    const WINDOW: u64 = 5;
    const SHARDS: u64 = 3;
    let mut waited = 0;
    for seed in 0..200 {
        let random = Random::seeded(seed);
        let (mut writers, mut world) = (with_window(WINDOW), World::default());
        for _ in 0..300 {
            let shard = ShardId(random.below(SHARDS));
            match random.below(20) {
                0..10 => match writers.admit(shard) {
                    Admission::Go(ticket) => {
                        assert_eq!(ticket.shard, shard, "seed {seed}");
                        world.check(&ticket, WINDOW);
                    }
                    Admission::Open => {
                        assert!(world.opening.insert(shard), "seed {seed}: two open at once");
                    }
                    Admission::Wait => {
                        let is_right =
                            world.opening.contains(&shard) || world.is_full(shard, WINDOW);
                        assert!(is_right, "seed {seed}: a call waits for nothing");
                        waited += 1;
                    }
                },
                10..12 if world.opening.remove(&shard) => {
                    // Ids are revisions: they grow.
                    world.next_id += 1;
                    let id = Revision(world.next_id);
                    let ticket = writers.opened(shard, shard, id, TOKEN);
                    world.check(&ticket, WINDOW);
                }
                12 if world.opening.remove(&shard) => writers.not_opened(shard),
                13..19 if !world.under_way.is_empty() => {
                    let place = random.below(world.under_way.len() as u64) as usize;
                    let ticket = world.under_way.swap_remove(place);
                    let fate = match random.below(12) {
                        0 => Fate::InDoubt,
                        1 => Fate::Expired,
                        _ => Fate::Settled,
                    };
                    writers.finish(&ticket, fate);
                    if fate == Fate::InDoubt {
                        world.in_doubt.push(ticket);
                    }
                }
                19 => {
                    for (_, id) in writers.take_idle() {
                        let is_busy = world.under_way.iter().any(|ticket| ticket.writer == id);
                        let is_asked = world.in_doubt.iter().any(|ticket| ticket.writer == id);
                        assert!(!is_busy && !is_asked, "seed {seed}: {id} must not be closed");
                    }
                }
                _ => {}
            }
        }
    }
    assert!(waited > 100, "the windows were never full: {waited}");
}
