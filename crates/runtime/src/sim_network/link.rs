//! One simulated connection: what is on its way to each end, and when it arrives. Knows no clock
//! and no cuts: the caller says what the time is and how the path to an end stands.
//!
//! Invariants: what is sent to an end arrives in the order of sending; of bytes on their way to an
//! end, read ones not counted, there are at most [`WINDOW`]; an end that is broken stays so.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::Flights;

/// Bytes that one end may have sent and the other not yet read.
pub(super) const WINDOW: usize = 256 * 1024;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Listener,
}

/// How the path to an end stands.
pub(super) struct Way {
    pub(super) now: Instant,
    /// What was to arrive by then is there: now, or the moment of the cut.
    pub(super) horizon: Instant,
    pub(super) is_open: bool,
}

/// What an attempt to read or write comes to.
pub(super) enum Step<T> {
    Done(io::Result<T>),
    /// A waker was left; without it, nothing changes before that moment, if any.
    Wait(Option<Instant>),
}

struct Segment {
    due: Instant,
    bytes: Bytes,
}

/// One end, with what is under way *to* it.
pub(super) struct End {
    host: IpAddr,
    /// Until its stream is dropped.
    is_held: bool,
    /// It has said that it will write no more.
    is_finished: bool,
    is_broken: bool,
    inbox: VecDeque<Segment>,
    inbox_bytes: usize,
    /// When it learns that the other end has finished.
    end_due: Option<Instant>,
    /// When it learns that the other end is gone.
    reset_due: Option<Instant>,
    last_due: Instant,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

pub(super) struct Link {
    caller: End,
    listener: End,
}

impl End {
    fn new(host: IpAddr, now: Instant) -> Self {
        Self {
            host,
            is_held: true,
            is_finished: false,
            is_broken: false,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            end_due: None,
            reset_due: None,
            last_due: now,
            reader: None,
            writer: None,
        }
    }

    /// When something that takes until `due` arrives: not before what was sent earlier.
    fn arrival(&mut self, due: Instant) -> Instant {
        self.last_due = self.last_due.max(due);
        self.last_due
    }

    fn learns_of_reset(&mut self, way: &Way) -> bool {
        self.is_broken |= self.reset_due.is_some_and(|due| due <= way.horizon);
        self.is_broken
    }

    fn send_reset(&mut self, due: Instant, wakers: &mut Vec<Waker>) {
        let due = self.arrival(due);
        if self.reset_due.is_none() {
            self.reset_due = Some(due);
        }
        self.wake(wakers);
    }

    fn break_now(&mut self, wakers: &mut Vec<Waker>) {
        self.is_broken = true;
        self.wake(wakers);
    }

    /// What the cut since `since` held back arrives at `due` or later.
    pub(super) fn release(&mut self, since: Instant, due: Instant, wakers: &mut Vec<Waker>) {
        let late = |planned: &mut Instant| {
            if *planned > since {
                *planned = due.max(*planned);
            }
        };
        self.inbox.iter_mut().for_each(|segment| late(&mut segment.due));
        self.end_due.iter_mut().for_each(late);
        self.reset_due.iter_mut().for_each(late);
        late(&mut self.last_due);
        self.wake(wakers);
    }

    fn wake(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.reader.take());
        wakers.extend(self.writer.take());
    }
}

impl Link {
    pub(super) fn new(caller: IpAddr, listener: IpAddr, now: Instant) -> Self {
        Self { caller: End::new(caller, now), listener: End::new(listener, now) }
    }

    /// The end that hears what `from` sends to `to`.
    pub(super) fn hearing(&mut self, from: IpAddr, to: IpAddr) -> Option<&mut End> {
        if (self.caller.host, self.listener.host) == (from, to) {
            Some(&mut self.listener)
        } else if (self.listener.host, self.caller.host) == (from, to) {
            Some(&mut self.caller)
        } else {
            None
        }
    }

    pub(super) fn read(
        &mut self,
        side: Side,
        way: &Way,
        buf: &mut ReadBuf<'_>,
        cx: &Context<'_>,
        wakers: &mut Vec<Waker>,
    ) -> Step<()> {
        let (me, peer) = self.ends(side);
        if me.learns_of_reset(way) {
            return Step::Done(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let before = me.inbox_bytes;
        while buf.remaining() > 0
            && let Some(segment) = me.inbox.front_mut()
            && segment.due <= way.horizon
        {
            let count = segment.bytes.len().min(buf.remaining());
            buf.put_slice(&segment.bytes.split_to(count));
            me.inbox_bytes -= count;
            if segment.bytes.is_empty() {
                me.inbox.pop_front();
            }
        }
        if me.inbox_bytes < before {
            wakers.extend(peer.writer.take());
            return Step::Done(Ok(()));
        }
        if me.inbox.is_empty() && me.end_due.is_some_and(|due| due <= way.horizon) {
            return Step::Done(Ok(()));
        }
        leave(&mut me.reader, cx);
        let next = me.inbox.front().map(|segment| segment.due).or(me.end_due);
        Step::Wait(next.into_iter().chain(me.reset_due).min().filter(|_| way.is_open))
    }

    pub(super) fn write(
        &mut self,
        side: Side,
        way: &Way,
        flights: &Flights,
        data: &[u8],
        cx: &Context<'_>,
        wakers: &mut Vec<Waker>,
    ) -> Step<usize> {
        let (me, peer) = self.ends(side);
        if me.learns_of_reset(way) {
            return Step::Done(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if me.is_finished {
            return Step::Done(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let due = way.now + flights.draw();
        if !peer.is_held {
            // Nobody is there to read: the answer is a reset, one flight later.
            let answer = peer.arrival(due) + flights.draw();
            me.send_reset(answer, wakers);
            return Step::Done(Ok(data.len()));
        }
        let count = data.len().min(WINDOW.saturating_sub(peer.inbox_bytes));
        if count == 0 {
            leave(&mut me.writer, cx);
            return Step::Wait(me.reset_due.filter(|_| way.is_open));
        }
        let due = peer.arrival(due);
        peer.inbox.push_back(Segment { due, bytes: Bytes::copy_from_slice(&data[..count]) });
        peer.inbox_bytes += count;
        wakers.extend(peer.reader.take());
        Step::Done(Ok(count))
    }

    /// No more will be written: the other end reads what is on its way, then the end.
    pub(super) fn finish(&mut self, side: Side, due: Instant, wakers: &mut Vec<Waker>) {
        let (me, peer) = self.ends(side);
        if !me.is_finished && !me.is_broken {
            me.is_finished = true;
            peer.end_due = Some(peer.arrival(due));
            wakers.extend(peer.reader.take());
        }
    }

    /// The stream of an end is dropped. With bytes that it has not read the other end is told by a
    /// reset, as TCP does. Returns whether both ends are gone.
    pub(super) fn close(&mut self, side: Side, due: Instant, wakers: &mut Vec<Waker>) -> bool {
        let (me, peer) = self.ends(side);
        me.is_held = false;
        let all_read = me.inbox.is_empty();
        me.inbox.clear();
        me.inbox_bytes = 0;
        if !all_read && !me.is_broken {
            peer.send_reset(due, wakers);
        }
        let both = !peer.is_held;
        self.finish(side, due, wakers);
        both
    }

    /// Whether one of the ends is on `host`.
    pub(super) fn touches(&self, host: IpAddr) -> bool {
        self.caller.host == host || self.listener.host == host
    }

    /// The process on `host` is gone: its end breaks at once, the other one when it hears of it.
    pub(super) fn kill(&mut self, host: IpAddr, due: Instant, wakers: &mut Vec<Waker>) {
        for side in [Side::Caller, Side::Listener] {
            let (me, peer) = self.ends(side);
            if me.host == host && !me.is_broken {
                me.break_now(wakers);
                peer.send_reset(due, wakers);
            }
        }
    }

    /// Both ends break at once.
    pub(super) fn sever(&mut self, wakers: &mut Vec<Waker>) {
        self.caller.break_now(wakers);
        self.listener.break_now(wakers);
    }

    fn ends(&mut self, side: Side) -> (&mut End, &mut End) {
        match side {
            Side::Caller => (&mut self.caller, &mut self.listener),
            Side::Listener => (&mut self.listener, &mut self.caller),
        }
    }
}

fn leave(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
