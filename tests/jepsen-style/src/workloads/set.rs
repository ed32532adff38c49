//! Sets: elements added by putting a key of their own, and by appending to shared lists with
//! compare-and-swap. Judged in the end, when everything that was ever added is read back.
//!
//! A list that has grown long is left for the next of its row, so that an append stays cheap; clients
//! find the newest by reading. An append that lost its race was certainly not applied; its element is
//! never tried again, so it must not be found.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_runtime::Clock;
use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{CALM, Seat, Workload, end_of, number_of, text_of};
use crate::checkers::set::{self, Add, Found};
use crate::journal::{End, Journal};

/// All keys that hold one element each, as one collection.
const KEYS: &str = "keys";
/// A list is left when it is this long, bytes.
const LIST_BYTES: usize = 4096;
/// Rows of lists: few, so that appends meet each other.
const ROWS: u64 = 4;
/// Keys read back with one call.
const READ_AT_ONCE: usize = 200;

/// See the module.
pub struct Set {
    journal: Journal<Add, ()>,
    /// The newest list of any row.
    newest: Arc<AtomicU64>,
    found: Arc<Mutex<Vec<Found>>>,
}

impl Set {
    /// A run whose events go to `sink`.
    #[must_use]
    pub fn new(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        Self { journal: Journal::new(clock, sink), newest: Arc::default(), found: Arc::default() }
    }
}

impl Workload for Set {
    fn client(&self, seat: Seat) -> BoxFuture<'static, ()> {
        let (journal, newest) = (self.journal.clone(), Arc::clone(&self.newest));
        let lists = vec![0; usize::try_from(ROWS).unwrap_or(0)];
        Box::pin(Hand { seat, journal, newest, lists }.work())
    }

    fn close(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        let (newest, found) = (self.newest.load(Ordering::Relaxed), Arc::clone(&self.found));
        Box::pin(async move {
            let mut all = vec![read_keys(&seat).await?];
            for row in 0..ROWS {
                for number in 0..=newest {
                    all.push(read_list(&seat, list(row, number)).await?);
                }
            }
            *found.lock() = all;
            Ok(())
        })
    }

    fn judge(&self) -> Result<String> {
        let adds = self.journal.entries().context("the history was not written in full")?;
        ensure!(!adds.is_empty(), "no operation was recorded");
        let found = self.found.lock();
        set::check(&adds, &found)?;
        let elements: usize = found.iter().map(|found| found.elements.len()).sum();
        Ok(format!("nothing acknowledged is lost: {elements} elements of {} are there", adds.len()))
    }
}

fn list(row: u64, number: u64) -> String {
    format!("list-{row}-{number}")
}

fn key_of(element: u64) -> String {
    format!("set-{element}")
}

/// Every key that may hold an element, and the elements there.
async fn read_keys(seat: &Seat) -> Result<Found> {
    let keys: Vec<String> = seat.run.values().map(key_of).collect();
    let mut elements = Vec::new();
    for some in keys.chunks(READ_AT_ONCE) {
        let answers = seat.client.multi_get(some.iter().cloned()).deadline(CALM).await?;
        for (key, answer) in some.iter().zip(&answers) {
            if answer.value.is_some() {
                let element: Option<u64> = number_of(answer);
                let element = element.with_context(|| format!("{key} holds no element"))?;
                ensure!(*key == key_of(element), "{key} holds {element}");
                elements.push(element);
            }
        }
    }
    Ok(Found { collection: KEYS.to_owned(), elements, is_ordered: false })
}

async fn read_list(seat: &Seat, key: String) -> Result<Found> {
    let answer = seat.client.get(key.clone()).deadline(CALM).await?;
    let text = text_of(&answer)?.unwrap_or_default();
    let elements: Result<Vec<u64>, _> =
        text.split_ascii_whitespace().map(str::parse::<u64>).collect();
    let elements = elements.with_context(|| format!("{key} is no list: {text:?}"))?;
    Ok(Found { collection: key, elements, is_ordered: true })
}

/// A client.
struct Hand {
    seat: Seat,
    journal: Journal<Add, ()>,
    newest: Arc<AtomicU64>,
    /// The list of each row that it appends to.
    lists: Vec<u64>,
}

impl Hand {
    async fn work(mut self) {
        while !self.seat.run.is_over() {
            let end = match self.seat.random.below(2) {
                0 => Some(self.put().await),
                _ => self.append().await,
            };
            if let Some(end) = end {
                self.seat.run.count(&end);
            }
        }
    }

    async fn put(&self) -> End<()> {
        let element = self.seat.run.fresh_value();
        let call = Add { collection: KEYS.to_owned(), element };
        let ticket = self.journal.invoke(self.seat.process, call);
        let put = self.seat.client.put(key_of(element), element.to_string());
        let end = match put.deadline(self.seat.shape.deadline).await {
            Ok(_) => End::Ok(()),
            Err(error) => end_of(&error),
        };
        self.journal.complete(ticket, end.clone());
        end
    }

    /// `None`: there was nothing to append to yet, or no longer.
    async fn append(&mut self) -> Option<End<()>> {
        let row = self.seat.random.below(ROWS);
        let number = self.lists.get_mut(usize::try_from(row).ok()?)?;
        let key = list(row, *number);
        let deadline = self.seat.shape.deadline;
        let found = match self.seat.client.get(key.clone()).deadline(deadline).await {
            Ok(found) => found,
            Err(_) => return Some(End::Failed),
        };
        // What is no text is left as it is, and found in the end.
        let text = text_of(&found).ok()?.unwrap_or_default();
        if text.len() >= LIST_BYTES {
            *number += 1;
            self.newest.fetch_max(*number, Ordering::Relaxed);
            return None;
        }
        let element = self.seat.run.fresh_value();
        let version = found.value.is_some().then_some(found.version);
        let call = Add { collection: key.clone(), element };
        let ticket = self.journal.invoke(self.seat.process, call);
        let swap = self.seat.client.cas(key, version, format!("{text} {element}"));
        let end = match swap.deadline(deadline).await {
            Ok(_) => End::Ok(()),
            Err(error) => end_of(&error),
        };
        self.journal.complete(ticket, end.clone());
        Some(end)
    }
}
