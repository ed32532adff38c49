//! The leader's side of the comparison of replicas (E5): it writes a digest entry, asks other members what
//! they find at it, and compares that with its own. What a digest is, and how it is made, is in `digest`.
//!
//! [`Group::verify`] is about one member, for a move that wants to know whether the new one may vote;
//! [`Group::verify_voters`] is about all voters at one entry, for an operator. Neither changes anything, and
//! neither repairs.
//!
//! # Invariants
//!
//! - Only a leader whose gate is open compares, and only digests of one entry.
//! - A difference is said only of a digest that was told, or of rows that do not read; who cannot be asked is
//!   not known, never different.
//!
//! # Failure
//!
//! Rows that do not read are a difference at a member; at the leader the comparison fails. A digest that was
//! not taken, because the node took too many others, is found by asking again: that makes another entry.

use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::digest_reply::Result as Told;
use annulus_proto::v1::envelope::Body;
use annulus_types::{Error, ErrorKind, NodeId, ReplicaId};
use annulus_wal::EntryId;
use futures_util::future::join_all;
use openraft::errors::{ClientWriteError, RaftError};

use crate::digest::{Digest, Outcome};
use crate::entry::{DigestBody, MACHINE_VERSION};
use crate::group::Group;
use crate::link::Route;
use crate::membership::SeatView;
use crate::types::{Command, entry_id, log_id, log_id_to_wire};

/// Between two questions for a digest that is not there yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long a member may be out of reach before it counts as one that cannot be asked: a link that broke is
/// up again within a few hundred milliseconds.
const UNHEARD_MOST: Duration = Duration::from_secs(1);

/// What a comparison says of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds what the leader holds.
    Equal,
    /// It does not.
    Different,
    /// It could not be asked, or has no digest of that entry.
    Unknown,
}

/// One replica in a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// See the type.
    pub verdict: Verdict,
    /// What it told.
    pub digest: Option<Arc<Digest>>,
    /// Why there is no digest; empty when there is one.
    pub reason: String,
}

/// The voters of a group, compared at one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The digest entry.
    pub at: EntryId,
    /// The leader, which is equal to itself.
    pub leader: Compared,
    /// The others, by replica.
    pub others: Vec<Compared>,
}

/// What another replica found at an entry.
enum Found {
    Digest(Arc<Digest>),
    Unreadable(String),
}

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

fn late(replica: ReplicaId, node: NodeId) -> Error {
    not_ready(format!("replica {replica} on node {node} has not told its digest yet"))
}

fn judge(own: &Digest, found: &Found) -> Verdict {
    match found {
        Found::Digest(told) if told.whole == own.whole => Verdict::Equal,
        Found::Digest(_) | Found::Unreadable(_) => Verdict::Different,
    }
}

impl Group {
    /// Whether a member's state is equal to this leader's: a digest entry is proposed, and both tell what
    /// they find at it. `limit` at most. Changes nothing; dropping the future gives up.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum` when this replica does not lead or its gate is shut. `BadRequest` when the
    /// seat is not that of another member. `NotReady` when one of the two has no digest of the entry, or
    /// did not tell it in time: trying again makes another entry.
    pub async fn verify(&self, seat: (ReplicaId, NodeId), limit: Duration) -> Result<bool, Error> {
        match tokio::time::timeout(limit, Box::pin(self.compare(seat))).await {
            Ok(compared) => compared,
            Err(_) => Err(late(seat.0, seat.1)),
        }
    }

    async fn compare(&self, (replica, node): (ReplicaId, NodeId)) -> Result<bool, Error> {
        self.check_trusted()?;
        self.sure_leadership()?;
        let mut seats = self.membership().seats.into_iter();
        let is_member = seats.any(|seat| (seat.replica, seat.node) == (replica, node));
        if !is_member || replica == self.replica() {
            let message = format!("replica {replica} on node {node} is not another member");
            return Err(Error::bad_request("seat", message));
        }
        let at = self.propose_digest().await?;
        let own = self.own_digest(at).await?;
        // The caller's limit is its patience, too.
        let found = self.digest_of(replica, node, at, Duration::MAX).await?;
        let verdict = judge(&own, &found);
        self.log_difference(replica, node, at, verdict);
        Ok(verdict == Verdict::Equal)
    }

    /// Compares all voters at one digest entry. `limit` at most; who has not told its digest by then, or
    /// cannot be reached for a second, is not known. Learners are left out: they are compared before they
    /// vote. Changes nothing; dropping the future gives up.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum` when this replica does not lead or its gate is shut. `NotReady` when it has
    /// no digest of its own, or not in time: trying again makes another entry.
    pub async fn verify_voters(&self, limit: Duration) -> Result<Comparison, Error> {
        let began = self.env.clock.boot();
        let led = tokio::time::timeout(limit, Box::pin(self.lead_digest())).await;
        let Ok(led) = led else {
            return Err(not_ready("the leader's own digest was not ready in time".to_owned()));
        };
        let (at, own) = led?;
        let left = limit.saturating_sub(self.env.clock.boot().since(began));
        let mut others: Vec<SeatView> = self.membership().seats;
        let mine = others.iter().find(|seat| seat.replica == self.replica()).copied();
        let Some(mine) = mine else { return Err(self.not_leader()) };
        others.retain(|seat| seat.voter && seat.replica != mine.replica);
        let asked = others.iter().map(|seat| self.compare_other(*seat, at, &own, left));
        let others = join_all(asked).await;
        let leader = Compared {
            replica: mine.replica,
            node: mine.node,
            verdict: Verdict::Equal,
            digest: Some(own),
            reason: String::new(),
        };
        Ok(Comparison { at, leader, others })
    }

    async fn lead_digest(&self) -> Result<(EntryId, Arc<Digest>), Error> {
        self.check_trusted()?;
        self.sure_leadership()?;
        let at = self.propose_digest().await?;
        Ok((at, self.own_digest(at).await?))
    }

    async fn compare_other(
        &self,
        seat: SeatView,
        at: EntryId,
        own: &Digest,
        limit: Duration,
    ) -> Compared {
        let (replica, node) = (seat.replica, seat.node);
        let asked = Box::pin(self.digest_of(replica, node, at, UNHEARD_MOST));
        let found = match tokio::time::timeout(limit, asked).await {
            Ok(found) => found,
            Err(_) => Err(late(replica, node)),
        };
        let verdict = match &found {
            Ok(found) => judge(own, found),
            Err(_) => Verdict::Unknown,
        };
        self.log_difference(replica, node, at, verdict);
        let (digest, reason) = match found {
            Ok(Found::Digest(digest)) => (Some(digest), String::new()),
            Ok(Found::Unreadable(reason)) => (None, format!("its rows do not read: {reason}")),
            Err(Error { kind: ErrorKind::NotReady { reason }, .. }) => (None, reason),
            Err(error) => (None, error.kind.to_string()),
        };
        Compared { replica, node, verdict, digest, reason }
    }

    fn log_difference(&self, replica: ReplicaId, node: NodeId, at: EntryId, verdict: Verdict) {
        if verdict == Verdict::Different {
            let group = self.id();
            tracing::error!(%group, %replica, %node, at = %at, "a replica's state differs");
        }
    }

    async fn propose_digest(&self) -> Result<EntryId, Error> {
        let body = DigestBody {
            version: MACHINE_VERSION,
            // Apply raises it to the group's: a digest lets no time pass (W5).
            group_time_ms: self.group_time_ms(),
            wall_ms: self.env.clock.wall_ms(),
        };
        match Box::pin(self.raft.client_write(Command(body.encode()))).await {
            Ok(written) => Ok(entry_id(&written.log_id)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(self.not_leader())
            }
            Err(_) => Err(not_ready("the digest entry was not applied".to_owned())),
        }
    }

    async fn own_digest(&self, at: EntryId) -> Result<Arc<Digest>, Error> {
        let digests = &self.replica.digests;
        let mut news = digests.watch();
        loop {
            news.mark_unchanged();
            match digests.find(at) {
                Some(Outcome::Is(digest)) => return Ok(digest),
                Some(Outcome::Pending) => {}
                Some(Outcome::Busy) | None => {
                    return Err(not_ready("the leader's node takes other digests".to_owned()));
                }
                Some(Outcome::Unreadable(reason)) => {
                    return Err(not_ready(format!("the leader's own rows do not read: {reason}")));
                }
            }
            if news.changed().await.is_err() {
                return Err(self.stopped());
            }
        }
    }

    /// What another replica finds. Gives up when it was out of reach for `patience`.
    async fn digest_of(
        &self,
        replica: ReplicaId,
        node: NodeId,
        at: EntryId,
        patience: Duration,
    ) -> Result<Found, Error> {
        let route = Route { group: self.id(), from: self.replica(), to: replica };
        let entry = Some(log_id_to_wire(&log_id(at)));
        let mut unheard_since = None;
        loop {
            let question = Body::Digest(v1::DigestRequest { entry });
            let (told, files) = match self.links.ask(node, route, question).await {
                Ok(Body::DigestReply(v1::DigestReply { result: Some(told), files })) => {
                    unheard_since = None;
                    (told, files)
                }
                Ok(_) => return Err(not_ready(format!("node {node} makes no sense"))),
                Err(error) => {
                    let now = self.env.clock.boot();
                    if now.since(*unheard_since.get_or_insert(now)) >= patience {
                        let reason = format!("replica {replica} on node {node}: {error}");
                        return Err(not_ready(reason));
                    }
                    // Over a new link, perhaps.
                    (Told::Pending(v1::Plain {}), Vec::new())
                }
            };
            match told {
                Told::Digest(whole) => {
                    return Ok(match Digest::from_wire(&whole, &files) {
                        Some(digest) => Found::Digest(Arc::new(digest)),
                        None => Found::Unreadable("what it told is no digest".to_owned()),
                    });
                }
                Told::Unreadable(reason) => {
                    tracing::warn!(group = %self.id(), %replica, %reason, "no digest");
                    return Ok(Found::Unreadable(reason));
                }
                Told::Missed(v1::Plain {}) => {
                    let reason = format!("replica {replica} has no digest of entry {at}");
                    return Err(not_ready(reason));
                }
                Told::Pending(v1::Plain {}) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }
}
