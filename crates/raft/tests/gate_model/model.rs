//! The states and steps of the gate's model; `main.rs` says what is modelled and what is left out.
//!
//! Owns the rule under test ([`Rule`], with what a test may weaken), the states, the steps and the
//! properties. Explores nothing itself. Time is kept as *what is left*, each on the clock of the
//! replica that it belongs to, and the logs as an order; so the states are finite in number without
//! any limit on time, writes or restarts. A step that is not allowed in a state yields no state.

use stateright::{Model, Property};

/// The followers' promise, in ticks of the follower's clock.
pub const LEASE: u8 = 4;
/// The gate: 0.75 of the lease, in ticks of the leader's clock.
pub const GATE: u8 = 3;
/// Of this many ticks a slow clock misses one, so the rates differ by a factor of 4/3.
const SLOW_EVERY: u8 = 4;
/// Nobody campaigns beyond this term; the first leader's is 1.
const LAST_TERM: u8 = 2;
const ALL: [usize; 3] = [0, 1, 2];

/// Always: an answer given now through an open gate is the newest acknowledged value.
pub const NEWEST: &str = "a gate read returns the newest acknowledged value";
/// Always: whoever can still commit holds every acknowledged write. It is Raft's own promise, here a
/// check that the model's elections and logs are right.
pub const COMPLETE: &str = "a leader that can commit holds every acknowledged write";
/// Sometimes, as the two below: a model in which these do not happen proves nothing.
pub const OPENS: &str = "a gate opens";
pub const LATER_OPENS: &str = "the gate of a later leader opens";
pub const TRANSFERRED: &str = "a leader elected by a transfer commits";

/// One part of the rule that a test switches off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weaken {
    /// R1 a: a confirm counts from the arrival of the reply.
    CreditReplyTime,
    /// R1 c: the gate stays as it is when another's vote is saved.
    NoLatchOnVote,
    /// R1 c: the gate stays as it is when a transfer begins.
    NoLatchOnTransfer,
    /// N3: a restarted replica votes at once.
    NoQuarantine,
    /// R1 b: the gate may open before an entry of the leader's own term is applied.
    NoOwnEntry,
}

/// The model: the rule and the clocks that it has to cope with.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Length of the gate in ticks.
    pub gate: u8,
    pub weaken: Option<Weaken>,
    /// Whose clock is slow; one run begins with each.
    pub slow: Vec<Option<usize>>,
}

impl Rule {
    fn without(&self, part: Weaken) -> bool {
        self.weaken == Some(part)
    }
}

/// A vote's identity. One term may have several leaders, the higher replica id wins (L1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ballot {
    term: u8,
    leader: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Leading {
    ballot: Ballot,
    own_entry: bool,
    latched: bool,
    /// What is left of the gate, counted from `T`. The leader and either follower are a quorum of
    /// three, so the newer of the two followers' confirms is `T`.
    open: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    Follower,
    Candidate,
    Leader(Leading),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Replica {
    /// The vote saved last; it survives a restart.
    ballot: Ballot,
    /// Whether the ballot is known to have won.
    committed: bool,
    /// How long this replica still neither campaigns nor votes: its promise (R1) or its quarantine
    /// (N3), whichever lasts longer. A transfer is excepted from both.
    bound: u8,
    /// How far the log reaches: a position in the one order of committed entries.
    log: u8,
    role: Role,
}

/// A leader's heartbeat frame, then the reply to that very frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Frame {
    to: usize,
    ballot: Ballot,
    /// What a confirm of its `t0` is still worth.
    open: u8,
    accepted: bool,
}

/// A vote request, not yet delivered to everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Request {
    ballot: Ballot,
    log: u8,
    transfer: bool,
}

/// The word of a leader that `to` shall campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Transfer {
    ballot: Ballot,
    to: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    slow: Option<usize>,
    phase: u8,
    replicas: [Replica; 3],
    /// By sender.
    frames: [Option<Frame>; 3],
    /// By candidate.
    requests: [Option<Request>; 3],
    transfer: Option<Transfer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// A heartbeat frame leaves; one that is still on its way is lost.
    Send {
        from: usize,
        to: usize,
    },
    /// The frame of this leader arrives.
    Accept {
        from: usize,
    },
    /// The reply to the frame of this leader arrives.
    Confirm {
        from: usize,
    },
    /// The leader's next entry is held by both, and thereby acknowledged.
    Commit {
        leader: usize,
        follower: usize,
    },
    CatchUp {
        leader: usize,
        follower: usize,
    },
    /// The leader latches its gate, then tells everyone to let `to` campaign.
    Transfer {
        from: usize,
        to: usize,
    },
    /// The word of the transfer arrives.
    Told {
        replica: usize,
    },
    Campaign {
        replica: usize,
    },
    /// The candidate's request arrives and is granted; the grant of one is a majority.
    Vote {
        candidate: usize,
        voter: usize,
    },
    Restart {
        replica: usize,
    },
}

fn others(replica: usize) -> impl Iterator<Item = usize> {
    ALL.into_iter().filter(move |other| *other != replica)
}

impl State {
    /// Replica 0 leads term 1, all hold its entry, and every promise has run out.
    fn first(slow: Option<usize>) -> Self {
        let ballot = Ballot { term: 1, leader: 0 };
        let follower = Replica { ballot, committed: true, bound: 0, log: 0, role: Role::Follower };
        let leading = Leading { ballot, own_entry: true, latched: false, open: 0 };
        let leader = Replica { role: Role::Leader(leading), ..follower };
        Self {
            slow,
            phase: 0,
            replicas: [leader, follower, follower],
            frames: [None; 3],
            requests: [None; 3],
            transfer: None,
        }
    }

    /// The leadership that the replica's gate belongs to.
    fn leading(&self, replica: usize) -> Option<Leading> {
        match self.replicas[replica].role {
            Role::Leader(leading) => Some(leading),
            Role::Follower | Role::Candidate => None,
        }
    }

    /// The leadership under which it acts. Differs from [`State::leading`] only where the latch of a
    /// saved vote is switched off: then a gate outlives its leader.
    fn acting(&self, replica: usize) -> Option<Leading> {
        let Replica { ballot, committed, .. } = self.replicas[replica];
        self.leading(replica).filter(|leading| committed && leading.ballot == ballot)
    }

    fn newest(&self) -> u8 {
        let [first, second, third] = self.replicas;
        first.log.max(second.log).max(third.log)
    }

    /// R1 b.
    fn is_open(&self, replica: usize, rule: &Rule) -> bool {
        self.leading(replica).is_some_and(|leading| {
            let applied = leading.own_entry || rule.without(Weaken::NoOwnEntry);
            applied && !leading.latched && leading.open > 0
        })
    }

    fn reads_are_newest(&self, rule: &Rule) -> bool {
        let newest = self.newest();
        ALL.into_iter()
            .all(|replica| !self.is_open(replica, rule) || self.replicas[replica].log == newest)
    }

    fn leaders_are_complete(&self) -> bool {
        let newest = self.newest();
        ALL.into_iter().all(|replica| {
            let Some(leading) = self.acting(replica) else { return true };
            let heeded = others(replica).any(|other| self.replicas[other].ballot <= leading.ballot);
            !heeded || self.replicas[replica].log == newest
        })
    }

    fn later_gate_is_open(&self, rule: &Rule) -> bool {
        ALL.into_iter().any(|replica| {
            self.is_open(replica, rule)
                && self.leading(replica).is_some_and(|leading| leading.ballot.term > 1)
        })
    }

    fn transfer_succeeded(&self) -> bool {
        ALL.into_iter().any(|replica| {
            let request = self.requests[replica].filter(|request| request.transfer);
            let leading = self.acting(replica).filter(|leading| leading.own_entry);
            match (request, leading) {
                (Some(request), Some(leading)) => request.ballot == leading.ballot,
                _ => false,
            }
        })
    }

    fn tick(&mut self) {
        let missed = if self.phase == SLOW_EVERY - 1 { self.slow } else { None };
        for replica in ALL {
            let step = u8::from(missed != Some(replica));
            let own = &mut self.replicas[replica];
            own.bound = own.bound.saturating_sub(step);
            if let Role::Leader(leading) = &mut own.role {
                leading.open = leading.open.saturating_sub(step);
            }
            if let Some(frame) = &mut self.frames[replica] {
                frame.open = frame.open.saturating_sub(step);
            }
        }
        if self.slow.is_some() {
            self.phase = (self.phase + 1) % SLOW_EVERY;
        }
    }

    /// Another's vote is about to be saved (R1 c).
    fn end_leadership(&mut self, replica: usize, rule: &Rule) {
        let own = &mut self.replicas[replica];
        let is_leader = matches!(own.role, Role::Leader(_));
        if !(is_leader && rule.without(Weaken::NoLatchOnVote)) {
            own.role = Role::Follower;
        }
    }

    /// A frame of a leader arrives, of whatever kind: the promise.
    fn heed(&mut self, follower: usize, ballot: Ballot, rule: &Rule) -> bool {
        if self.replicas[follower].ballot > ballot {
            return false;
        }
        self.end_leadership(follower, rule);
        let own = &mut self.replicas[follower];
        own.ballot = ballot;
        own.committed = true;
        own.bound = LEASE;
        true
    }

    fn accept(&mut self, from: usize, rule: &Rule) -> bool {
        let Some(frame) = self.frames[from] else { return false };
        self.frames[from] = Some(Frame { accepted: true, ..frame });
        !frame.accepted && self.heed(frame.to, frame.ballot, rule)
    }

    /// R1 a.
    fn confirm(&mut self, from: usize, rule: &Rule) -> bool {
        let Some(frame) = self.frames[from].take() else { return false };
        let worth = if rule.without(Weaken::CreditReplyTime) { rule.gate } else { frame.open };
        if let Role::Leader(leading) = &mut self.replicas[from].role
            && leading.ballot == frame.ballot
            && !leading.latched
        {
            leading.open = leading.open.max(worth);
        }
        frame.accepted
    }

    fn commit(&mut self, leader: usize, follower: usize, rule: &Rule) -> bool {
        let next = self.newest() + 1;
        let Some(leading) = self.acting(leader) else { return false };
        if self.replicas[leader].log + 1 != next || !self.heed(follower, leading.ballot, rule) {
            return false;
        }
        self.replicas[leader].log = next;
        self.replicas[follower].log = next;
        self.replicas[leader].role = Role::Leader(Leading { own_entry: true, ..leading });
        true
    }

    fn catch_up(&mut self, leader: usize, follower: usize, rule: &Rule) -> bool {
        let Some(leading) = self.acting(leader) else { return false };
        let heeded = self.heed(follower, leading.ballot, rule);
        self.replicas[follower].log = self.replicas[leader].log;
        heeded
    }

    fn begin_transfer(&mut self, from: usize, to: usize, rule: &Rule) -> bool {
        let Some(leading) = self.acting(from) else { return false };
        let latched = !rule.without(Weaken::NoLatchOnTransfer);
        self.replicas[from].role = Role::Leader(Leading { latched, ..leading });
        self.transfer = Some(Transfer { ballot: leading.ballot, to });
        true
    }

    /// The word lifts the promise of whoever still follows the leader that gave it.
    fn told(&mut self, replica: usize) -> bool {
        let Some(Transfer { ballot, to }) = self.transfer else { return false };
        let own = &mut self.replicas[replica];
        if own.ballot != ballot || !own.committed {
            return false;
        }
        own.bound = 0;
        if replica == to {
            if ballot.term >= LAST_TERM {
                return false;
            }
            self.transfer = None;
            self.campaign(replica, true);
        }
        true
    }

    fn campaign(&mut self, replica: usize, transfer: bool) {
        let own = &mut self.replicas[replica];
        own.ballot = Ballot { term: own.ballot.term + 1, leader: replica };
        own.committed = false;
        own.bound = 0;
        own.role = Role::Candidate;
        self.requests[replica] = Some(Request { ballot: own.ballot, log: own.log, transfer });
    }

    fn vote(&mut self, candidate: usize, voter: usize, rule: &Rule) -> bool {
        let Some(request) = self.requests[candidate] else { return false };
        let Replica { ballot, bound, log, .. } = self.replicas[voter];
        let refused = bound > 0 && !request.transfer;
        if refused || request.ballot <= ballot || request.log < log {
            return false;
        }
        self.end_leadership(voter, rule);
        let own = &mut self.replicas[voter];
        own.ballot = request.ballot;
        own.committed = false;
        own.bound = 0;
        let winner = &mut self.replicas[candidate];
        if winner.role == Role::Candidate && winner.ballot == request.ballot {
            let ballot = request.ballot;
            winner.committed = true;
            winner.role =
                Role::Leader(Leading { ballot, own_entry: false, latched: false, open: 0 });
        }
        true
    }

    /// N3: what was promised is forgotten; a quarantine of one lease takes its place.
    fn restart(&mut self, replica: usize, rule: &Rule) {
        let own = &mut self.replicas[replica];
        own.bound = if rule.without(Weaken::NoQuarantine) { 0 } else { LEASE };
        own.role = Role::Follower;
    }

    /// Forgets what can make no difference any more, so that states that behave alike are equal.
    fn tidy(&mut self, rule: &Rule) {
        for replica in ALL {
            if self.frames[replica].is_some_and(|frame| !self.frame_matters(replica, frame, rule)) {
                self.frames[replica] = None;
            }
            self.tidy_request(replica);
            if let Role::Leader(leading) = &mut self.replicas[replica].role
                && leading.latched
            {
                leading.open = 0;
            }
        }
        if let Some(Transfer { ballot, .. }) = self.transfer {
            let heeds = |other: usize| {
                let own = &self.replicas[other];
                own.committed && own.ballot == ballot
            };
            if !others(ballot.leader).any(heeds) {
                self.transfer = None;
            }
        }
        self.renumber_logs();
    }

    /// A frame that can confirm nothing only binds its receiver. Its leader, if it still leads, can
    /// do that with a fresh frame whose reply is lost; bound to a leader that is gone, the receiver
    /// could do less than without.
    fn frame_matters(&self, from: usize, frame: Frame, rule: &Rule) -> bool {
        let awaited = self
            .leading(from)
            .is_some_and(|leading| leading.ballot == frame.ballot && !leading.latched);
        let counts = if frame.accepted {
            frame.open > 0 || rule.without(Weaken::CreditReplyTime)
        } else {
            frame.open > 0 && self.replicas[frame.to].ballot <= frame.ballot
        };
        awaited && counts
    }

    /// A request matters while somebody can grant it, to its candidate or, if it lifts promises,
    /// although its candidate has gone. A candidate that nobody can elect is a follower.
    fn tidy_request(&mut self, candidate: usize) {
        let Some(request) = self.requests[candidate] else { return };
        let own = self.replicas[candidate];
        let standing = own.role == Role::Candidate && own.ballot == request.ballot;
        let grantable = others(candidate).any(|voter| {
            let voter = &self.replicas[voter];
            voter.ballot < request.ballot && voter.log <= request.log
        });
        if !(grantable && (standing || request.transfer)) {
            self.requests[candidate] = None;
            if standing {
                self.replicas[candidate].role = Role::Follower;
            }
        }
    }

    /// Only the order of logs decides anything, so their positions are renumbered from 0.
    fn renumber_logs(&mut self) {
        let requested = self.requests.iter().flatten().map(|request| request.log);
        let mut logs: Vec<u8> =
            self.replicas.iter().map(|replica| replica.log).chain(requested).collect();
        logs.sort_unstable();
        logs.dedup();
        let rank = |log: u8| logs.iter().fold(0u8, |below, other| below + u8::from(*other < log));
        for replica in &mut self.replicas {
            replica.log = rank(replica.log);
        }
        for request in self.requests.iter_mut().flatten() {
            request.log = rank(request.log);
        }
    }

    /// What a leader that has begun no transfer may do with one follower.
    fn leader_actions(&self, leader: usize, leading: Leading, actions: &mut Vec<Action>) {
        for other in others(leader) {
            actions.push(Action::Send { from: leader, to: other });
            let log = self.replicas[leader].log;
            let follower = &self.replicas[other];
            if follower.ballot <= leading.ballot {
                actions.push(Action::Commit { leader, follower: other });
                if follower.log < log {
                    actions.push(Action::CatchUp { leader, follower: other });
                }
            }
            // H3: only to a voter that holds all, one transfer at a time.
            if leading.own_entry && follower.log == log && self.transfer.is_none() {
                actions.push(Action::Transfer { from: leader, to: other });
            }
        }
    }
}

impl Model for Rule {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        self.slow.iter().map(|slow| State::first(*slow)).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        for replica in ALL {
            let own = &state.replicas[replica];
            match state.acting(replica) {
                Some(leading) => {
                    let begun = state.transfer.is_some_and(|word| word.ballot == leading.ballot);
                    if !leading.latched && !begun {
                        state.leader_actions(replica, leading, actions);
                    }
                }
                None if own.bound == 0 && own.ballot.term < LAST_TERM => {
                    actions.push(Action::Campaign { replica });
                }
                None => {}
            }
            // Of any other replica a restart only takes away what it could do.
            if own.bound > 0 {
                actions.push(Action::Restart { replica });
            }
            match state.frames[replica] {
                Some(Frame { accepted: true, .. }) => {
                    actions.push(Action::Confirm { from: replica });
                }
                Some(_) => actions.push(Action::Accept { from: replica }),
                None => {}
            }
            if state.requests[replica].is_some() {
                let votes = others(replica).map(|voter| Action::Vote { candidate: replica, voter });
                actions.extend(votes);
            }
        }
        if let Some(Transfer { ballot, .. }) = state.transfer {
            actions.extend(others(ballot.leader).map(|replica| Action::Told { replica }));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = *last;
        let happened = match action {
            Action::Tick => {
                next.tick();
                true
            }
            Action::Send { from, to } => {
                let ballot = next.replicas[from].ballot;
                let frame = Frame { to, ballot, open: self.gate, accepted: false };
                next.frames[from] = Some(frame);
                true
            }
            Action::Accept { from } => next.accept(from, self),
            Action::Confirm { from } => next.confirm(from, self),
            Action::Commit { leader, follower } => next.commit(leader, follower, self),
            Action::CatchUp { leader, follower } => next.catch_up(leader, follower, self),
            Action::Transfer { from, to } => next.begin_transfer(from, to, self),
            Action::Told { replica } => next.told(replica),
            Action::Campaign { replica } => {
                next.campaign(replica, false);
                true
            }
            Action::Vote { candidate, voter } => next.vote(candidate, voter, self),
            Action::Restart { replica } => {
                next.restart(replica, self);
                true
            }
        };
        next.tidy(self);
        happened.then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always(NEWEST, |rule, state| state.reads_are_newest(rule)),
            Property::<Self>::always(COMPLETE, |_, state| state.leaders_are_complete()),
            Property::<Self>::sometimes(OPENS, |rule, state| {
                ALL.into_iter().any(|replica| state.is_open(replica, rule))
            }),
            Property::<Self>::sometimes(LATER_OPENS, |rule, state| state.later_gate_is_open(rule)),
            Property::<Self>::sometimes(TRANSFERRED, |_, state| state.transfer_succeeded()),
        ]
    }
}
