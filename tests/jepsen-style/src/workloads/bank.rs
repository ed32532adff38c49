//! A bank: transfers between accounts of one routing key, each an atomic batch that is guarded by the
//! versions of both accounts, and reads of all accounts, linearizable or from any replica.
//!
//! All clients share one shard and meet at few accounts, so many transfers lose their race; those were
//! certainly not made.

use std::io::Write;
use std::sync::Arc;

use annulus_client::{Consistency, Found};
use annulus_runtime::Clock;
use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{CALM, Seat, Workload, end_of, number_of};
use crate::checkers::bank::{self, Answer, Books, Call};
use crate::journal::{End, Journal};

/// Paid in to each account.
const OPENING: i64 = 100;
/// The largest transfer.
const AMOUNT_MOST: u64 = 20;

/// See the module.
pub struct Bank {
    journal: Journal<Call, Answer>,
    last: Arc<Mutex<Vec<i64>>>,
}

impl Bank {
    /// A run whose events go to `sink`.
    #[must_use]
    pub fn new(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        Self { journal: Journal::new(clock, sink), last: Arc::default() }
    }
}

impl Workload for Bank {
    fn open(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let mut opening = seat.client.batch().deadline(CALM);
            for key in keys(&seat) {
                opening = opening.put(key, OPENING.to_string());
            }
            opening.await.context("opening the accounts")?;
            Ok(())
        })
    }

    fn client(&self, seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(work(seat, self.journal.clone()))
    }

    fn close(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        let last = Arc::clone(&self.last);
        Box::pin(async move {
            let found = seat.client.multi_get(keys(&seat)).deadline(CALM).await?;
            let balances: Option<Vec<i64>> = found.iter().map(number_of::<i64>).collect();
            *last.lock() = balances.context("an account holds no number")?;
            Ok(())
        })
    }

    fn judge(&self) -> Result<String> {
        let entries = self.journal.entries().context("the history was not written in full")?;
        let books = Books { opening: OPENING, last: self.last.lock().clone() };
        let whole = bank::check(&entries, &books)?;
        Ok(format!("no money was made or lost, in {whole} reads of all accounts at one revision"))
    }
}

fn key_of(account: u64) -> String {
    format!("{{bank}}:account-{account}")
}

fn keys(seat: &Seat) -> Vec<String> {
    (0..seat.shape.keys).map(key_of).collect()
}

async fn work(seat: Seat, journal: Journal<Call, Answer>) {
    while !seat.run.is_over() {
        let end = match seat.random.below(4) {
            0 => read(&seat, &journal, Consistency::Linearizable).await,
            1 => read(&seat, &journal, Consistency::Any).await,
            _ => match transfer(&seat, &journal).await {
                Some(end) => end,
                // No money there: another one.
                None => continue,
            },
        };
        seat.run.count(&end);
    }
}

async fn read(
    seat: &Seat,
    journal: &Journal<Call, Answer>,
    consistency: Consistency,
) -> End<Answer> {
    let is_linearizable = consistency == Consistency::Linearizable;
    let ticket = journal.invoke(seat.process, Call::Read { is_linearizable });
    let asked = seat.client.multi_get(keys(seat)).consistency(consistency);
    let end = match asked.deadline(seat.shape.deadline).await {
        Ok(found) => End::Ok(Answer::Balances {
            revisions: found.iter().map(|found| found.receipt.revision.0).collect(),
            balances: found.iter().map(number_of::<i64>).collect(),
        }),
        Err(error) => end_of(&error.into()),
    };
    journal.complete(ticket, end.clone());
    end
}

/// `None`: the account that was drawn is empty.
async fn transfer(seat: &Seat, journal: &Journal<Call, Answer>) -> Option<End<Answer>> {
    let accounts = seat.shape.keys;
    let from = seat.random.below(accounts);
    let to = (from + 1 + seat.random.below(accounts - 1)) % accounts;
    let keys = [key_of(from), key_of(to)];
    let asked = seat.client.multi_get(keys.clone()).deadline(seat.shape.deadline).await;
    let Ok(found) = asked else { return Some(End::Failed) };
    let Ok([source, target]) = <[Found; 2]>::try_from(found) else { return Some(End::Failed) };
    let (held, there): (i64, i64) = (number_of(&source)?, number_of(&target)?);
    let wanted = i64::try_from(1 + seat.random.below(AMOUNT_MOST)).unwrap_or(1);
    let amount = wanted.min(held);
    if amount <= 0 {
        return None;
    }
    let place = |account: u64| usize::try_from(account).unwrap_or(0);
    let call = Call::Transfer { from: place(from), to: place(to), amount };
    let ticket = journal.invoke(seat.process, call);
    let [source_key, target_key] = keys;
    let batch = seat
        .client
        .batch()
        .expect_version(source_key.clone(), source.version)
        .expect_version(target_key.clone(), target.version)
        .put(source_key, (held - amount).to_string())
        .put(target_key, (there + amount).to_string());
    let end = match batch.deadline(seat.shape.deadline).await {
        Ok(written) => End::Ok(Answer::Moved { revision: written.receipt.revision.0 }),
        Err(error) => end_of(&error),
    };
    journal.complete(ticket, end.clone());
    Some(end)
}
