//! Named mutations under many schedules: requests are lost, sent again, delivered late, twice and in any
//! order; answers are lost; people ask for the status; writers end; the process restarts; a snapshot
//! carries the state to another node. Whatever happens, a mutation takes effect at most once and every
//! answer about it is the first one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::counting::incr;
use super::once::{named, open, status};
use super::*;
use crate::operation::Finding;
use crate::weaken::Weaken;

const CLIENTS: usize = 3;

/// What happens next. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    /// A client has a new mutation; without a writer it opens one first.
    Issue(usize),
    /// A client sends one again that it has no answer to.
    Resend(usize, usize),
    /// An entry delivers messages. Each may stay to be delivered again, and its answer may arrive.
    Deliver(Vec<(usize, bool, bool)>),
    /// A message is lost.
    Lose(usize),
    /// Somebody asks what became of a mutation.
    Ask(usize, usize),
    Close(usize),
    /// Ten minutes in which nobody does anything.
    Wait,
    Restart,
    Snapshot,
}

fn any_event() -> impl Strategy<Value = Event> {
    let client = 0..CLIENTS;
    let pair = (0..CLIENTS, any::<usize>());
    let delivery = (any::<usize>(), any::<bool>(), any::<bool>());
    prop_oneof![
        8 => client.clone().prop_map(Event::Issue),
        6 => pair.clone().prop_map(|(client, which)| Event::Resend(client, which)),
        12 => vec(delivery, 1..6).prop_map(Event::Deliver),
        2 => any::<usize>().prop_map(Event::Lose),
        2 => pair.prop_map(|(client, which)| Event::Ask(client, which)),
        1 => client.prop_map(Event::Close),
        1 => Just(Event::Wait),
        1 => Just(Event::Restart),
        1 => Just(Event::Snapshot),
    ]
}

struct Client {
    writer: Revision,
    next_seq: u64,
    /// Mutations without an answer.
    waiting: BTreeSet<u64>,
}

impl Client {
    fn lowest_unacked(&self) -> u64 {
        self.waiting.first().copied().unwrap_or(self.next_seq)
    }
}

#[derive(Clone)]
struct Message {
    client: usize,
    writer: Revision,
    seq: u64,
    op: Op,
}

struct World {
    fixture: Fixture,
    clients: Vec<Option<Client>>,
    under_way: Vec<Message>,
    opened: u64,
    ended: BTreeSet<Revision>,
    /// The first answer of every mutation that was judged.
    results: BTreeMap<(Revision, u64), Outcome>,
    /// Mutations of which it was said that they are not applied.
    refused: BTreeSet<(Revision, u64)>,
}

/// The mutation of a number: most count, some depend on who is first.
fn mutation(seq: u64) -> Op {
    match seq % 4 {
        0 => cas("first", Expect::Absent, "x"),
        _ => incr("sum", 1),
    }
}

impl World {
    fn new() -> Self {
        Self {
            fixture: Fixture::new(),
            clients: (0..CLIENTS).map(|_| None).collect(),
            under_way: Vec::new(),
            opened: 0,
            ended: BTreeSet::new(),
            results: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Issue(client) => self.issue(client),
            Event::Resend(client, which) => {
                if let Some(Client { waiting, .. }) = &self.clients[client]
                    && !waiting.is_empty()
                {
                    let seq = waiting.iter().nth(which % waiting.len()).copied();
                    self.send(client, seq.unwrap_or_default());
                }
            }
            Event::Deliver(picks) => self.deliver(picks)?,
            Event::Lose(place) if !self.under_way.is_empty() => {
                self.under_way.remove(place % self.under_way.len());
            }
            Event::Lose(_) => {}
            Event::Ask(client, which) => self.ask(client, which)?,
            Event::Close(client) => {
                if let Some(Client { writer, .. }) = self.clients[client].take() {
                    self.fixture.one(Op::CloseWriter { token: Token(0), writer });
                    self.ended.insert(writer);
                }
            }
            Event::Wait => {
                self.fixture.later_ms += 600_000;
                self.fixture.apply(Vec::new());
                let clients = self.clients.iter_mut().filter_map(Option::take);
                self.ended.extend(clients.map(|client| client.writer));
            }
            Event::Restart => self.fixture = self.fixture.restarted(),
            Event::Snapshot => {
                let mut other = Fixture::new();
                install(&other, files_of(&self.fixture));
                other.index = self.fixture.index;
                other.later_ms = self.fixture.later_ms;
                self.fixture = other;
            }
        }
        Ok(())
    }

    fn issue(&mut self, client: usize) {
        if self.clients[client].is_none() {
            let writer = open(&mut self.fixture);
            self.opened += 1;
            self.clients[client] = Some(Client { writer, next_seq: 1, waiting: BTreeSet::new() });
        }
        if let Some(state) = &mut self.clients[client] {
            let seq = state.next_seq;
            state.next_seq += 1;
            state.waiting.insert(seq);
            self.send(client, seq);
        }
    }

    fn send(&mut self, client: usize, seq: u64) {
        if let Some(state) = &self.clients[client] {
            let op = named(state.writer, seq, state.lowest_unacked(), &mutation(seq));
            self.under_way.push(Message { client, writer: state.writer, seq, op });
        }
    }

    fn deliver(&mut self, picks: Vec<(usize, bool, bool)>) -> Result<(), TestCaseError> {
        let mut messages = Vec::new();
        for (place, stays, arrives) in picks {
            if self.under_way.is_empty() {
                break;
            }
            let place = place % self.under_way.len();
            let message = self.under_way[place].clone();
            if !stays {
                self.under_way.remove(place);
            }
            messages.push((message, arrives));
        }
        let ops = messages.iter().map(|(message, _)| (SHARD, message.op.clone())).collect();
        let replies = self.fixture.apply(ops);
        for ((message, _), reply) in messages.iter().zip(replies) {
            self.judge(message, reply)?;
        }
        for (message, _) in messages.into_iter().filter(|(_, arrives)| *arrives) {
            if let Some(state) = &mut self.clients[message.client]
                && state.writer == message.writer
            {
                state.waiting.remove(&message.seq);
            }
        }
        Ok(())
    }

    fn judge(&mut self, message: &Message, reply: Outcome) -> Result<(), TestCaseError> {
        let name = (message.writer, message.seq);
        if self.ended.contains(&message.writer) {
            prop_assert_eq!(reply, Outcome::WriterExpired, "{:?}", name);
            return Ok(());
        }
        match reply {
            Outcome::Counted { .. } | Outcome::Done { .. } | Outcome::PreconditionFailed { .. } => {
                prop_assert!(!self.refused.contains(&name), "{:?} was said to be refused", name);
                let first = *self.results.entry(name).or_insert(reply);
                prop_assert_eq!(reply, first, "{:?}", name);
            }
            Outcome::OpIdReused => {
                let state = self.clients[message.client].as_ref();
                let waits = state.is_some_and(|state| state.waiting.contains(&message.seq));
                let told = self.refused.contains(&name);
                prop_assert!(told || !waits, "{:?} waits for its answer", name);
            }
            other => return Err(TestCaseError::fail(format!("{name:?}: {other:?}"))),
        }
        Ok(())
    }

    fn ask(&mut self, client: usize, which: usize) -> Result<(), TestCaseError> {
        let Some(Client { writer, next_seq, waiting }) = &self.clients[client] else {
            return Ok(());
        };
        let seq = 1 + which as u64 % (next_seq - 1);
        let (name, waits) = ((*writer, seq), waiting.contains(&seq));
        let finding = status(&mut self.fixture, name.0, seq);
        let told = match finding {
            Finding::Applied { version, revision, number } => Some((version, revision, number)),
            _ => None,
        };
        match (finding, self.results.get(&name)) {
            (Finding::Applied { .. }, Some(Outcome::Done { version, revision, .. })) => {
                prop_assert_eq!(told, Some((*version, *revision, None)), "{:?}", name);
            }
            (Finding::Applied { .. }, Some(Outcome::Counted { number, at })) => {
                let expected = (at.revision, at.revision, Some(*number));
                prop_assert_eq!(told, Some(expected), "{:?}", name);
            }
            (Finding::Failed, Some(Outcome::PreconditionFailed { .. })) => {}
            (Finding::NotApplied, None) => {
                self.refused.insert(name);
            }
            (Finding::NotKept, _) => prop_assert!(!waits, "{:?} waits for its answer", name),
            other => return Err(TestCaseError::fail(format!("{name:?}: {other:?}"))),
        }
        Ok(())
    }

    /// Delivers what is left, and counts.
    fn end(&mut self) -> Result<(), TestCaseError> {
        while !self.under_way.is_empty() {
            self.deliver(vec![(0, false, true)])?;
        }
        let count = |is: fn(&Outcome) -> bool| self.results.values().filter(|one| is(one)).count();
        let sums = count(|one| matches!(one, Outcome::Counted { .. }));
        let others = count(|one| matches!(one, Outcome::Done { .. }));
        let sum = self.fixture.read("sum").value.map(|value| value.value);
        let expected = (sums > 0).then(|| Bytes::from(sums.to_string()));
        prop_assert_eq!(sum, expected);
        prop_assert_eq!(usize::from(self.fixture.read("first").value.is_some()), others);
        prop_assert_eq!(self.fixture.revision(), self.opened + (sums + others) as u64);
        Ok(())
    }
}

fn run(mut world: World, events: Vec<Event>) -> Result<(), TestCaseError> {
    for event in events {
        world.happen(event)?;
    }
    world.end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_mutation_takes_effect_once_and_its_result_is_the_first(
        events in vec(any_event(), 1..120),
    ) {
        run(World::new(), events)?;
    }
}

/// The judge would find it: without the table a repetition counts again.
#[test]
fn a_table_that_forgets_is_found() {
    let events = vec![Event::Issue(0), Event::Deliver(vec![(0, true, false), (0, true, false)])];
    assert!(run(World::new(), events.clone()).is_ok());
    let weakened = World::new();
    {
        let mut applied = weakened.fixture.machine.applied.lock();
        let held = applied.held.get_mut(&SHARD).unwrap();
        held.writers.weaken(Weaken::EveryMutationIsFresh);
    }
    assert!(run(weakened, events).is_err());
}
