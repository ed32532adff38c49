//! Sessions: reads that see the session's own writes and never go back, whichever replica answers (R5).
//!
//! A session is a client with a memory: the highest revision of each shard that any answer told. The memory
//! goes with every read of the consistency `session`; a replica that is behind it does not answer. What the
//! memory is made of is decided in `annulus_types::session`; whom to ask and when again, by the client.
//!
//! # Invariants
//!
//! - Every receipt is taken in before its answer is handed out. One that cannot be (no room, another
//!   cluster) is an error in place of the answer, for what the session promises would not hold any more.
//! - A memory is of one cluster: it is not sent to another one, and takes nothing in from it (W2).
//!
//! Failure: [`ErrorKind::HistoryLost`] says that what the session has seen does not exist any more. It is
//! handed out; the session goes on saying so, and whoever can live with the present state begins a new one.

use std::sync::Arc;

use annulus_types::{ClusterId, ErrorKind, Receipt, Revision, SessionToken};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::calls::{Batch, Cas, Delete, Get, Incr, MultiGet, Put};
use crate::client::Client;
use crate::error::Error;

/// A session. Clones are the same session. See [`Client::session`].
#[derive(Clone, Debug)]
pub struct Session {
    /// It has a memory.
    client: Client,
}

/// What a session has seen; nothing before its first answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<Option<SessionToken>>>);

impl Memory {
    pub(crate) fn token(&self) -> Option<SessionToken> {
        self.0.lock().clone()
    }

    /// Whether it can be used with this cluster.
    pub(crate) fn check(&self, cluster: ClusterId) -> Result<(), Error> {
        match &*self.0.lock() {
            Some(token) if token.cluster() != cluster => {
                Err(Error::refused(ErrorKind::WrongCluster { actual: cluster }))
            }
            _ => Ok(()),
        }
    }

    /// Takes in an answer of this cluster.
    pub(crate) fn observe(&self, cluster: ClusterId, receipt: &Receipt) -> Result<(), Error> {
        self.check(cluster)?;
        let mut seen = self.0.lock();
        let token = seen.get_or_insert_with(|| SessionToken::new(cluster));
        token
            .observe(receipt)
            .map_err(|problem| Error::bad_request("session_token", problem.to_string()))
    }
}

impl Session {
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.with_memory(Memory::default()) }
    }

    /// Goes on with a session of this or another process, by its [`Session::token`]. Of two sessions with one
    /// token, neither learns what the other sees from then on.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] when these bytes are no token, [`ErrorKind::WrongCluster`] when they are one
    /// of another cluster.
    pub fn from_token(client: &Client, token: &[u8]) -> Result<Self, Error> {
        if token.is_empty() {
            return Ok(Self::new(client));
        }
        let token = SessionToken::decode(token)
            .map_err(|problem| Error::bad_request("session_token", problem.to_string()))?;
        let client = client.with_memory(Memory(Arc::new(Mutex::new(Some(token)))));
        client.check_session()?;
        Ok(Self { client })
    }

    /// What the session has seen so far, as bytes to be kept or passed on; none when it has seen nothing.
    #[must_use]
    pub fn token(&self) -> Bytes {
        self.client.seen().map(|token| token.encode()).unwrap_or_default()
    }

    /// See [`Client::get`]. Unless another consistency is asked for, any replica answers that holds what the
    /// session has seen. Reads of every other consistency are remembered too.
    pub fn get(&self, key: impl Into<Bytes>) -> Get {
        self.client.get(key)
    }

    /// See [`Client::multi_get`], and [`Session::get`] for the consistency.
    pub fn multi_get<I, K>(&self, keys: I) -> MultiGet
    where
        I: IntoIterator<Item = K>,
        K: Into<Bytes>,
    {
        self.client.multi_get(keys)
    }

    /// See [`Client::put`].
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        self.client.put(key, value)
    }

    /// See [`Client::delete`].
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete {
        self.client.delete(key)
    }

    /// See [`Client::cas`].
    pub fn cas(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Revision>,
        value: impl Into<Bytes>,
    ) -> Cas {
        self.client.cas(key, expected, value)
    }

    /// See [`Client::incr`].
    pub fn incr(&self, key: impl Into<Bytes>, delta: i64) -> Incr {
        self.client.incr(key, delta)
    }

    /// See [`Client::batch`].
    pub fn batch(&self) -> Batch {
        self.client.batch()
    }
}
