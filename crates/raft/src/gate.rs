//! Who may answer a linearizable read: the gate of one replica (rules R1 a–d, R2).
//!
//! # Why not openraft's lease
//!
//! openraft's *follower* half is a sound promise: whoever accepted a frame of a leader votes for
//! nobody else for one lease. Its *leader* half is not: a late acknowledgement of an old append is
//! credited with the send time of a newer request that never arrived, so lease reads, ReadIndex and
//! metrics may claim a quorum that is long gone. Here only this counts: our heartbeat client stamps
//! a frame with boot time `t0` as it leaves, and the answer *to that very frame* confirms
//! (vote, follower, `t0`).
//!
//! # The argument
//!
//! Let `T` be the latest moment such that a quorum of the voters of the membership last appended
//! confirmed a `t0 >= T`. Each of them renewed its promise after `T`, so none votes for another
//! before `T + lease` on its own clock. Every quorum that could elect another leader contains one of
//! them. Clock rates may differ by a factor of 4/3, so until `T + 0.75 * lease` on *this* clock
//! nobody else leads, and what this replica has applied is the newest acknowledged state.
//!
//! # Invariants
//!
//! - `open_until` is positive only while the vote that this replica saved last is its own committed
//!   one, an entry of its own term is applied, and the gate is not latched.
//! - Once latched for a vote, never open for it again; `T` stands still and later confirms are
//!   ignored. Whoever latches has done everything that can fail before.
//! - `T` is computed from confirms of the present vote alone (a deposed leader that is elected again
//!   starts from nothing).
//! - The membership counts from its *append*, before the entry leaves.
//!
//! The core is pure; [`Gate`] adds the lock, the atomics of the fast path and a watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_runtime::BootTime;
use annulus_types::ReplicaId;
use annulus_wal::{EntryId, Vote};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Rules that a test switches off to see that it matters. Only tests of this crate can make one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weaken {
    /// R1 a: credit a confirm with the present moment instead of its frame's send time.
    #[cfg(test)]
    pub(crate) credit_reply_time: bool,
    /// R1 c: do not latch when another's vote is saved.
    #[cfg(test)]
    pub(crate) no_latch_on_vote: bool,
    /// R1 b: keep counting the voters of an older membership.
    #[cfg(test)]
    pub(crate) ignore_membership: bool,
    /// R1 d: let confirms of any vote release a strict read.
    #[cfg(test)]
    pub(crate) any_vote_confirms: bool,
    /// H3, R1 c: do not latch before a transfer.
    #[cfg(test)]
    pub(crate) no_latch_on_transfer: bool,
    /// R2: do not wait for what followers were told.
    #[cfg(test)]
    pub(crate) ignore_published: bool,
    /// H3: pay no attention to a leader that says that it resigned.
    #[cfg(test)]
    pub(crate) ignore_resignation: bool,
}

/// Timing that every replica of a cluster shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The followers' promise: openraft's `election_timeout_max`.
    pub(crate) lease: Duration,
    /// How long a leader without a quorum is silent between tries (R1 a).
    pub(crate) silence: Duration,
}

impl Lease {
    fn gate(self) -> Duration {
        self.lease * 3 / 4
    }
}

#[derive(Debug)]
struct Leading {
    vote: Vote,
    since: BootTime,
    /// Newest confirmed send time of each follower.
    confirmed: BTreeMap<ReplicaId, BootTime>,
    /// When each follower last replied to anything.
    replied: BTreeMap<ReplicaId, BootTime>,
    own_entry_applied: bool,
    latched: bool,
}

/// What readers may rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The vote under which this replica leads; `None` when it does not, or its gate was latched by
    /// another's vote.
    pub(crate) leading: Option<Vote>,
    /// `T`: `BootTime(u64::MAX)` for a group of this one voter.
    pub(crate) horizon: Option<BootTime>,
    /// The gate is open before this moment, microseconds of boot time; 0 is shut.
    pub(crate) open_until_us: u64,
    /// Shut until the end of the term.
    pub(crate) latched: bool,
    /// An entry of this leadership's own is applied.
    pub(crate) own_entry_applied: bool,
}

/// The pure part.
#[derive(Debug)]
pub(crate) struct Core {
    me: ReplicaId,
    lease: Lease,
    configs: Vec<BTreeSet<ReplicaId>>,
    leading: Option<Leading>,
    #[cfg(test)]
    weaken: Weaken,
}

impl Core {
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests weaken a rule"))]
    pub(crate) fn new(me: ReplicaId, lease: Lease, weaken: Weaken) -> Self {
        Self {
            me,
            lease,
            configs: Vec::new(),
            leading: None,
            #[cfg(test)]
            weaken,
        }
    }

    /// A membership was appended: its voters count from now on.
    pub(crate) fn membership_appended(&mut self, configs: Vec<BTreeSet<ReplicaId>>) {
        #[cfg(test)]
        if self.weaken.ignore_membership && !self.configs.is_empty() {
            return;
        }
        self.configs = configs;
    }

    /// A vote is about to be saved. Our own committed vote begins a leadership; another's is a
    /// promise that ends ours.
    pub(crate) fn vote_saved(&mut self, vote: Vote, now: BootTime) {
        if vote.committed && vote.leader == self.me {
            let same = self.leading.as_ref().is_some_and(|leading| leading.vote == vote);
            if !same {
                self.leading = Some(Leading {
                    vote,
                    since: now,
                    confirmed: BTreeMap::new(),
                    replied: BTreeMap::new(),
                    own_entry_applied: false,
                    latched: false,
                });
            }
            return;
        }
        #[cfg(test)]
        if self.weaken.no_latch_on_vote {
            return;
        }
        self.leading = None;
    }

    /// The frame that left at `t0` under `vote` was answered by `follower` at `now`.
    pub(crate) fn confirmed(
        &mut self,
        vote: Vote,
        follower: ReplicaId,
        t0: BootTime,
        now: BootTime,
    ) {
        #[cfg(test)]
        let t0 = if self.weaken.credit_reply_time { now } else { t0 };
        #[cfg(test)]
        let any = self.weaken.any_vote_confirms;
        #[cfg(not(test))]
        let any = false;
        let Some(leading) = &mut self.leading else { return };
        if leading.vote != vote && !any {
            return;
        }
        let replied = leading.replied.entry(follower).or_insert(now);
        *replied = now.max(*replied);
        if !leading.latched {
            let newest = leading.confirmed.entry(follower).or_insert(t0);
            *newest = t0.max(*newest);
        }
    }

    /// A follower replied to a replication frame sent under `vote`. Keeps the leader from falling
    /// silent; confirms nothing.
    pub(crate) fn replied(&mut self, vote: Vote, follower: ReplicaId, now: BootTime) {
        if let Some(leading) = self.leading.as_mut().filter(|leading| leading.vote == vote) {
            leading.replied.insert(follower, now);
        }
    }

    /// An entry was applied.
    pub(crate) fn applied(&mut self, id: EntryId) {
        if let Some(leading) = &mut self.leading
            && leading.vote.term == id.term
            && leading.vote.leader == id.leader
        {
            leading.own_entry_applied = true;
        }
    }

    /// Shuts the gate for the rest of the term; `false` when this replica does not lead.
    pub(crate) fn latch(&mut self) -> bool {
        #[cfg(test)]
        if self.weaken.no_latch_on_transfer {
            return self.leading.is_some();
        }
        self.leading.as_mut().map(|leading| leading.latched = true).is_some()
    }

    /// The latest moment that a quorum of every config has reached, by each member's `moment`.
    fn quorum_moment(&self, moment: impl Fn(ReplicaId) -> Option<BootTime>) -> Option<BootTime> {
        if self.configs.is_empty() {
            return None;
        }
        let mut all = BootTime(u64::MAX);
        for config in &self.configs {
            let mut moments: Vec<Option<BootTime>> = config
                .iter()
                .map(|id| if *id == self.me { Some(BootTime(u64::MAX)) } else { moment(*id) })
                .collect();
            moments.sort_unstable();
            moments.reverse();
            let majority = config.len() / 2 + 1;
            all = all.min((*moments.get(majority - 1)?)?);
        }
        Some(all)
    }

    /// Who keeps a config of `configs` from a majority of voters that confirmed a frame which left at
    /// `since` or later; nobody when each of them has one. `None` when this replica does not lead under
    /// `vote`, or is latched and hears no confirms any more.
    fn silent(
        &self,
        vote: Vote,
        configs: &[BTreeSet<ReplicaId>],
        since: BootTime,
    ) -> Option<BTreeSet<ReplicaId>> {
        let leading = self.leading.as_ref().filter(|it| it.vote == vote && !it.latched)?;
        let is_silent = |id: &ReplicaId| {
            *id != self.me && leading.confirmed.get(id).is_none_or(|moment| *moment < since)
        };
        let mut silent = BTreeSet::new();
        for config in configs {
            let missing: BTreeSet<ReplicaId> = config.iter().copied().filter(is_silent).collect();
            if 2 * (config.len() - missing.len()) <= config.len() {
                silent.extend(missing);
            }
        }
        Some(silent)
    }

    /// Whether a frame may be sent now (R1 a, silence): a leader that no quorum has answered for one
    /// lease would renew its followers' promise for ever and nobody could be elected.
    pub(crate) fn may_send(&self, now: BootTime) -> bool {
        let Some(leading) = &self.leading else { return true };
        let heard = self
            .quorum_moment(|id| leading.replied.get(&id).copied())
            .map_or(leading.since, |moment| moment.max(leading.since));
        let gap = now.since(heard);
        if gap <= self.lease.lease {
            return true;
        }
        let cycle = self.lease.silence + self.lease.lease;
        let into = (gap - self.lease.lease).as_micros() % cycle.as_micros().max(1);
        into >= self.lease.silence.as_micros()
    }

    pub(crate) fn view(&self) -> View {
        let Some(leading) = &self.leading else { return View::default() };
        let horizon = self.quorum_moment(|id| leading.confirmed.get(&id).copied());
        let open = !leading.latched && leading.own_entry_applied;
        let open_until_us = match horizon {
            Some(horizon) if open => horizon.plus(self.lease.gate()).0,
            _ => 0,
        };
        View {
            leading: Some(leading.vote),
            horizon,
            open_until_us,
            latched: leading.latched,
            own_entry_applied: leading.own_entry_applied,
        }
    }
}

/// The gate of one replica, shared by its log adapter, its peer clients and its readers.
#[derive(Debug)]
pub(crate) struct Gate {
    core: Mutex<Core>,
    open_until_us: AtomicU64,
    /// See [`Gate::vouched`]; 0 for none.
    vouched_us: AtomicU64,
    published: AtomicU64,
    view: watch::Sender<View>,
    /// Woken by every change of the core, also by one that the view does not show.
    changed: Notify,
}

impl Gate {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core: Mutex::new(core),
            open_until_us: AtomicU64::new(0),
            vouched_us: AtomicU64::new(0),
            published: AtomicU64::new(0),
            view: watch::Sender::new(View::default()),
            changed: Notify::new(),
        }
    }

    /// Changes the core and publishes what follows from it. The atomics are stored under the lock, so
    /// that two changes cannot publish in the wrong order.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core.lock();
        let result = change(&mut core);
        let view = core.view();
        self.open_until_us.store(view.open_until_us, Ordering::SeqCst);
        let vouched = view.horizon.filter(|_| view.own_entry_applied);
        self.vouched_us.store(vouched.map_or(0, |since| since.0), Ordering::SeqCst);
        self.view.send_if_modified(|current| {
            let differs = *current != view;
            *current = view;
            differs
        });
        self.changed.notify_waiters();
        result
    }

    /// Waits for the next change of the core, from this call on, not from the first poll.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// See [`Core::silent`]. What others confirm counts for a membership that is not appended yet, too.
    pub(crate) fn silent(
        &self,
        vote: Vote,
        configs: &[BTreeSet<ReplicaId>],
        since: BootTime,
    ) -> Option<BTreeSet<ReplicaId>> {
        self.core.lock().silent(vote, configs, since)
    }

    /// The followers' promise, and so how long their silence is borne.
    pub(crate) fn lease(&self) -> Duration {
        self.core.lock().lease.lease
    }

    pub(crate) fn may_send(&self, now: BootTime) -> bool {
        self.core.lock().may_send(now)
    }

    /// The first of the two loads of a gate read.
    pub(crate) fn is_open(&self, now: BootTime) -> bool {
        now.0 < self.open_until_us.load(Ordering::SeqCst)
    }

    /// R4: this leadership vouches that everything is applied here that was acknowledged before this
    /// moment, which is `T` once an entry of its own is applied. A quorum accepted a frame of it that
    /// left at `T` or later, so until `T` nobody led above it. `BootTime(u64::MAX)` for a sole voter.
    pub(crate) fn vouched(&self) -> Option<BootTime> {
        match self.vouched_us.load(Ordering::SeqCst) {
            0 => None,
            since => Some(BootTime(since)),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub(crate) fn view(&self) -> View {
        *self.view.borrow()
    }

    /// R2: raised to the `leader_commit` of every frame before it leaves.
    pub(crate) fn publish(&self, commit: u64) {
        self.published.fetch_max(commit, Ordering::SeqCst);
    }

    /// Whether a leader's resignation counts: always, but in a test of what it is good for.
    pub(crate) fn minds_resignation(&self) -> bool {
        #[cfg(test)]
        return !self.core.lock().weaken.ignore_resignation;
        #[cfg(not(test))]
        true
    }

    pub(crate) fn published(&self) -> u64 {
        #[cfg(test)]
        if self.core.lock().weaken.ignore_published {
            return 0;
        }
        self.published.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
