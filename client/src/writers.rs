//! The writers of a client: which number a mutation gets, and below which number the client has all
//! answers. Pure; opening and closing are somebody else's work.
//!
//! # Why it is made like this
//!
//! A shard recognises a repeated mutation by writer and number (W3). A client has one open *writer* per
//! shard, shared by all of its calls there. It tells the shard `lowest_unacked` with every mutation, and
//! the shard forgets what it answered to lower numbers. So a number stays *open* here until the call that
//! bears it was given its result.
//!
//! Some calls end without one. Then the caller gets the id, to ask about it later, and a shard that has
//! forgotten the number could only say "settled". Therefore such a number is never passed: the writer is
//! *retired*. It takes no further mutations, those under way keep the `lowest_unacked` that they began
//! with, the next call opens another writer, and the shard ends the old one ten minutes after its last
//! use. This is dearer than going on with the writer only if outcomes are often unknown.
//!
//! A call that is dropped was given nothing either, but nobody holds its id. Its number is passed like one
//! with a result; if it still arrives later, the shard refuses it.
//!
//! A full window ([`WRITER_WINDOW`] numbers from the lowest open one on) makes further calls wait. A second
//! writer would let them go on, but whoever has so many mutations under way in one shard waits for the
//! shard in any case, and every writer takes a place in its table.
//!
//! # Invariants
//!
//! - A number is given once. Numbers of a writer are given in order, from 1.
//! - `lowest_unacked` of a ticket is at most its number, and less than the window below it.
//! - No ticket has a `lowest_unacked` above a number that is open, or whose outcome is not known.
//! - One call opens a writer for a shard; the others wait until it has, has failed, or takes too long. A
//!   second opening costs an idle writer and breaks no promise: the later one is used from then on.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::limits::WRITER_WINDOW;
use annulus_types::{Revision, ShardId, Token};

/// The right to send one mutation, under one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The shard that the writer was opened in.
    pub(crate) shard: ShardId,
    /// The writer.
    pub(crate) writer: Revision,
    /// The number.
    pub(crate) seq: u64,
    /// All lower numbers have their results. It is not renewed between the attempts of a call: an older
    /// one is still true, and holds the window of the number.
    pub(crate) lowest_unacked: u64,
}

/// What a call that wants to send a mutation does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Send it.
    Go(Ticket),
    /// Wait for a change: somebody is opening a writer, or the window is full.
    Wait,
    /// Open a writer, then report [`Writers::opened`] or [`Writers::not_opened`].
    Open,
}

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its call has a result, or nobody waits for one.
    Settled,
    /// Its call ended without a result, and somebody may ask for it.
    InDoubt,
    /// The shard does not know the writer any more.
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    Opening,
    Open(Writer),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Writer {
    id: Revision,
    /// One that the shard owned when the writer was opened: names the shard when it is closed.
    token: Token,
    next_seq: u64,
    open: BTreeSet<u64>,
}

impl Writer {
    fn lowest_unacked(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next_seq)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writers {
    slots: BTreeMap<ShardId, Slot>,
    window: u64,
}

impl Default for Writers {
    fn default() -> Self {
        Self { slots: BTreeMap::new(), window: WRITER_WINDOW }
    }
}

impl Writers {
    /// Asks for the right to send a mutation to `shard`.
    pub(crate) fn admit(&mut self, shard: ShardId) -> Admission {
        match self.slots.get_mut(&shard) {
            None => {
                self.slots.insert(shard, Slot::Opening);
                Admission::Open
            }
            Some(Slot::Opening) => Admission::Wait,
            Some(Slot::Open(writer)) => {
                let (seq, lowest_unacked) = (writer.next_seq, writer.lowest_unacked());
                if seq - lowest_unacked >= self.window {
                    return Admission::Wait;
                }
                writer.next_seq += 1;
                writer.open.insert(seq);
                Admission::Go(Ticket { shard, writer: writer.id, seq, lowest_unacked })
            }
        }
    }

    /// The writer that was to be opened for `asked` is there, in the shard `opened`. They differ when the
    /// routes are old: then later calls for `asked` open again until newer routes come, which costs idle
    /// writers and nothing else. Returns the first ticket, so that whoever opened it goes first.
    pub(crate) fn opened(
        &mut self,
        asked: ShardId,
        opened: ShardId,
        id: Revision,
        token: Token,
    ) -> Ticket {
        self.not_opened(asked);
        let writer = Writer { id, token, next_seq: 2, open: BTreeSet::from([1]) };
        // What was in its place is retired.
        self.slots.insert(opened, Slot::Open(writer));
        Ticket { shard: opened, writer: id, seq: 1, lowest_unacked: 1 }
    }

    /// No writer was opened for `shard`, or nobody knows of one: somebody else may try.
    pub(crate) fn not_opened(&mut self, shard: ShardId) {
        if self.slots.get(&shard) == Some(&Slot::Opening) {
            self.slots.remove(&shard);
        }
    }

    /// Ends a number. Returns whether calls that wait may now go on. Of a retired writer nothing is kept.
    pub(crate) fn finish(&mut self, ticket: &Ticket, fate: Fate) -> bool {
        let Some(Slot::Open(writer)) = self.slots.get_mut(&ticket.shard) else { return false };
        if writer.id != ticket.writer {
            return false;
        }
        match fate {
            Fate::Settled => {
                let before = writer.lowest_unacked();
                writer.open.remove(&ticket.seq);
                writer.lowest_unacked() > before
            }
            Fate::InDoubt | Fate::Expired => {
                self.slots.remove(&ticket.shard);
                true
            }
        }
    }

    /// Takes out the writers without a mutation under way, to be closed: a token of the shard and the id of
    /// each. The others stay.
    pub(crate) fn take_idle(&mut self) -> Vec<(Token, Revision)> {
        let mut idle = Vec::new();
        self.slots.retain(|_, slot| match slot {
            Slot::Open(writer) if writer.open.is_empty() => {
                idle.push((writer.token, writer.id));
                false
            }
            Slot::Open(_) | Slot::Opening => true,
        });
        idle
    }
}

#[cfg(test)]
mod tests;
