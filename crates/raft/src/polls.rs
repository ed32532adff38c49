//! How old the state of a replica may be (R4).
//!
//! About every 50 ms a node asks each node that it believes to lead groups of its replicas: which read
//! indexes do you vouch for? One message carries the question of all of them. Before it leaves, the
//! asking node notes its own boot time, `p`. A replica that has applied the index of the answer holds
//! everything that was acknowledged before `p`: its state is no older than now - `p`. A leader asks
//! nobody; the horizon of its gate takes the place of `p` (`Gate::vouched`).
//!
//! # The argument
//!
//! A leader answers after the question has arrived, in this order: at a moment `g` its gate is open;
//! then it loads its read index, the highest of what it has applied and what any follower was told.
//! What was acknowledged before `p` was acknowledged before `g`, and nobody leads in a higher term at
//! `g` (R1). So it was acknowledged in the leader's own term, after the leader had applied it; or in a
//! lower term, and then it lies below the first entry of the leader's own term, which is applied while
//! the gate is open. In both cases the index that is loaded after `g` is no lower. It is the index of a
//! committed entry, and up to such an entry all logs are the same.
//!
//! The argument does not ask what the follower believes, or who leads when the answer comes. An answer
//! of another term than the one believed, a late one, one of a leader that was deposed right after `g`:
//! all are true of their `p`. That is why the term in an answer decides nothing. Nor are two clocks
//! compared: the gate is judged on the leader's, `p` and now are read on the asking node's.
//!
//! # Invariants
//!
//! - `p` is read before the message can leave, and belongs to that message alone.
//! - What a replica vouches for never goes back. Its state does not either: a snapshot is installed only
//!   if it is newer, and a refilled or fetched state is there before the replica's parts are built. These
//!   begin with an unknown age, and nothing of it is ever stored.
//! - Pairs of index and `p` that wait for apply are few, and the one that is reached first is never given
//!   up for another: a replica whose apply lags behind knows its age nearly as well as its lag allows.
//!
//! # Failure
//!
//! A question that is not answered, or that is not sent because four are on their way to that node, leaves
//! `p` where it is: the age grows with time. Nothing else depends on polls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_runtime::BootTime;
use annulus_types::{GroupId, NodeId, ReplicaId};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::frames::Lane;
use crate::group::Group;
use crate::host::Host;
use crate::link::{Link, LinkError, Route};
use crate::replica::ReplicaState;

#[cfg(test)]
mod tests;

/// Questions to one node that may be unanswered.
const UNANSWERED: usize = 4;
/// Items of a question that are looked at.
const ITEMS_MOST: usize = 4096;
/// Answers of one replica that may wait for apply.
const WAITING: usize = 16;

/// What was told and is not reached. Knows no time but what it is given.
#[derive(Debug, Default)]
struct Pending {
    /// Everything that was acknowledged before this is applied.
    reached: Option<BootTime>,
    /// Index and `p` of answers, both rising, every `p` above `reached`.
    waiting: Vec<(u64, BootTime)>,
}

impl Pending {
    fn told(&mut self, index: u64, asked: BootTime, applied: u64) {
        if index <= applied {
            return self.reach(asked);
        }
        // One that is reached no later and says no less makes another worthless.
        let mut others = self.waiting.iter();
        let is_worthless = Some(asked) <= self.reached
            || others.any(|(other, since)| *other <= index && *since >= asked);
        if is_worthless {
            return;
        }
        self.waiting.retain(|(other, since)| *other < index || *since > asked);
        let place = self.waiting.partition_point(|(other, _)| *other < index);
        self.waiting.insert(place, (index, asked));
        if self.waiting.len() > WAITING {
            self.thin_out();
        }
    }

    fn applied(&mut self, index: u64) {
        let count = self.waiting.partition_point(|(waiting, _)| *waiting <= index);
        let last = self.waiting.drain(..count).next_back();
        if let Some((_, asked)) = last {
            self.reach(asked);
        }
    }

    fn reach(&mut self, asked: BootTime) {
        let reached = self.reached.max(Some(asked));
        self.reached = reached;
        self.waiting.retain(|(_, since)| Some(*since) > reached);
    }

    /// Gives up the one that is missed least: where its neighbours are closest in time. Never the first,
    /// so that something is reached however far apply is behind; nor the last, which says most.
    fn thin_out(&mut self) {
        let gaps = self.waiting.windows(3).map(|three| match three {
            [(_, before), _, (_, after)] => after.since(*before),
            _ => Duration::MAX,
        });
        if let Some((first, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
            self.waiting.remove(first + 1);
        }
    }
}

/// What others vouch for at one replica. One of the parts that end with the replica's run.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    pending: Mutex<Pending>,
    /// `reached`, microseconds; 0 for unknown.
    reached_us: AtomicU64,
}

impl Freshness {
    /// `applied` is what the replica has applied when it is called.
    pub(crate) fn told(&self, index: u64, asked: BootTime, applied: impl FnOnce() -> u64) {
        let mut pending = self.pending.lock();
        // Loaded under the lock: whoever applies more raises that first and comes here after it, so
        // that either this call or that one sees the index reached.
        pending.told(index, asked, applied());
        self.publish(&pending);
    }

    /// To be called after the replica's own applied index was raised.
    pub(crate) fn applied(&self, index: u64) {
        let mut pending = self.pending.lock();
        pending.applied(index);
        self.publish(&pending);
    }

    fn publish(&self, pending: &Pending) {
        let reached = pending.reached.map_or(0, |since| since.0);
        self.reached_us.store(reached, Ordering::SeqCst);
    }

    /// The state held from now on has everything that was acknowledged before this.
    pub(crate) fn reached(&self) -> Option<BootTime> {
        match self.reached_us.load(Ordering::SeqCst) {
            0 => None,
            since => Some(BootTime(since)),
        }
    }
}

impl Group {
    /// The moment up to which somebody vouches for this replica: whatever was acknowledged before it is
    /// applied here (R4). On the boot-time clock of this process; `None` means that nobody can tell.
    ///
    /// The age of an answer is taken in three steps: this call, then the read of the data, then
    /// [`Group::age_us`] of what this call returned. The state only becomes newer in between, so the age
    /// holds for what was read, and for the moment at which it is told (R3). Costs two atomic loads, and
    /// at a leader a look at the clock.
    #[must_use]
    pub fn vouched(&self) -> Option<BootTime> {
        // A sole voter's horizon lies in the future.
        let own = self.replica.gate.vouched().map(|since| since.min(self.env.clock.boot()));
        own.max(self.replica.freshness.reached())
    }

    /// Microseconds from a moment that [`Group::vouched`] told until now.
    #[must_use]
    pub fn age_us(&self, vouched: BootTime) -> u64 {
        self.env.clock.boot().0.saturating_sub(vouched.0)
    }

    /// How old this replica's state is at most, microseconds; `None` means unknown (R4). For whoever looks
    /// at the replica; one that reads data takes the steps of [`Group::vouched`].
    #[must_use]
    pub fn freshness(&self) -> Option<u64> {
        self.vouched().map(|since| self.age_us(since))
    }
}

impl Host {
    /// What this node vouches for among the items that node `asker` asks for.
    pub(crate) fn answer_poll(&self, asker: NodeId, poll: &v1::Poll) -> v1::Polled {
        let items = poll.items.iter().take(ITEMS_MOST);
        v1::Polled { items: items.filter_map(|item| self.vouch(asker, item)).collect() }
    }

    fn vouch(&self, asker: NodeId, item: &v1::PollItem) -> Option<v1::PolledItem> {
        let group = self.group(GroupId(item.group))?;
        let replica = &group.replica;
        if replica.me.0 != item.to {
            return None;
        }
        let term = replica.gate.view().leading?.term;
        let index = if self.polls_without_gate() {
            replica.applied().id.index
        } else if replica.gate.is_open(self.env.clock.boot()) {
            // The first entry of its own term is applied, or the gate would not be open.
            replica.gate.published().max(replica.applied().id.index)
        } else {
            return None;
        };
        let is_member = replica.seat(ReplicaId(item.from)) == Some(asker);
        is_member.then_some(v1::PolledItem { group: item.group, to: item.from, index, term })
    }
}

/// Asks for as long as the host lives.
pub(crate) fn spawn(host: &Arc<Host>) {
    let asking = Arc::downgrade(host);
    let every = host.options.timing.poll;
    host.env.tasks.spawn_until_stop("polls", async move {
        let mut ticker = tokio::time::interval(every);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut windows = Windows::default();
        loop {
            ticker.tick().await;
            let Some(host) = asking.upgrade() else { return };
            ask_everyone(&host, &mut windows);
        }
    });
}

/// What may still be sent to each node.
type Windows = BTreeMap<NodeId, Arc<Semaphore>>;

fn ask_everyone(host: &Host, windows: &mut Windows) {
    let mut questions: BTreeMap<NodeId, Vec<(Arc<ReplicaState>, ReplicaId)>> = BTreeMap::new();
    for group in host.groups() {
        let replica = &group.replica;
        if let Some((leader, node)) = replica.believed_leader()
            && leader != replica.me
        {
            questions.entry(node).or_default().push((Arc::clone(replica), leader));
        }
    }
    for (node, asking) in questions {
        let window = windows.entry(node).or_insert_with(|| Arc::new(Semaphore::new(UNANSWERED)));
        let Ok(permit) = Arc::clone(window).try_acquire_owned() else { continue };
        let Some(link) = host.links.find(node) else { continue };
        ask(host, &link, asking, permit);
    }
}

/// Sends the question of these replicas, each to the one that it believes to lead.
fn ask(
    host: &Host,
    link: &Link,
    asking: Vec<(Arc<ReplicaState>, ReplicaId)>,
    permit: OwnedSemaphorePermit,
) {
    let item = |(replica, leader): &(Arc<ReplicaState>, ReplicaId)| v1::PollItem {
        group: replica.group.0,
        from: replica.me.0,
        to: leader.0,
    };
    let items: Vec<v1::PollItem> = asking.iter().map(item).collect();
    let asking: BTreeMap<(u64, u64), Arc<ReplicaState>> =
        asking.into_iter().map(|(replica, _)| ((replica.group.0, replica.me.0), replica)).collect();
    let nodes = Route { group: GroupId(0), from: ReplicaId(0), to: ReplicaId(0) };
    let asked = host.env.clock.boot();
    let on_reply = move |reply: Result<Body, LinkError>| {
        // Answered or lost, it is not on its way any more.
        drop(permit);
        let Ok(Body::Polled(polled)) = reply else { return };
        for item in polled.items {
            if let Some(replica) = asking.get(&(item.group, item.to)) {
                replica.read_index_told(item.index, asked);
            }
        }
    };
    link.call(nodes, Lane::Control, Body::Poll(v1::Poll { items }), Box::new(on_reply));
}
