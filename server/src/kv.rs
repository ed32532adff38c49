//! The `Kv` service: checks a request (`admit`), finds its shard, asks the group (`read`, `multi`,
//! `write`), answers with a receipt. `decide` is what a read follows, `readers` where it looks.
//!
//! # Invariants
//!
//! - Every refusal before the operation is handed to the group says NO; what the group says later is
//!   passed on as it is (W4).
//! - The work belongs to the group: a caller that goes away loses the answer, nothing else.
//! - A value is checked against the client's checksum before it is proposed, and again when it is
//!   read back.

mod admit;
mod decide;
mod multi;
mod read;
mod readers;
mod write;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use annulus_proto::convert::{Header, header_of, status_of};
use annulus_proto::v1;
use annulus_proto::v1::kv_server::Kv;
use annulus_raft::{Group, Host};
use annulus_runtime::Env;
use annulus_types::{Error, ErrorKind, NodeId, SessionToken, Token};
use tonic::{Request, Response, Status};

use self::readers::Readers;
use crate::shards::{Shard, Shards};
use crate::tables::Tables;

/// What a node serves from once it belongs to a cluster.
pub struct Serving {
    /// The seams.
    pub env: Env,
    /// The groups.
    pub host: Arc<Host>,
    /// The shards.
    pub shards: Arc<Shards>,
    /// The routing table.
    pub tables: Arc<Tables>,
    /// This node.
    pub node: NodeId,
}

/// Empty until the node belongs to a cluster.
#[derive(Default)]
pub struct ServingCell(OnceLock<Arc<Serving>>);

impl ServingCell {
    /// Begins to serve. A second call changes nothing.
    pub fn set(&self, serving: Arc<Serving>) {
        // A node is born once; the first value stays.
        let _ = self.0.set(serving);
    }

    /// What there is to serve from, if anything.
    #[must_use]
    pub fn peek(&self) -> Option<&Arc<Serving>> {
        self.0.get()
    }

    /// What to serve a request from.
    ///
    /// # Errors
    /// `NotReady` before the birth; `WrongCluster` when the request, or its session, names another.
    pub fn get(&self, header: &Header) -> Result<&Arc<Serving>, Error> {
        let Some(serving) = self.0.get() else {
            let reason = "this node belongs to no cluster yet; run annulus init".to_owned();
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        };
        let actual = serving.host.options().cluster;
        let session = header.session.as_ref().map(SessionToken::cluster);
        if [header.cluster, session].into_iter().flatten().any(|meant| meant != actual) {
            return Err(Error::refused(ErrorKind::WrongCluster { actual }));
        }
        Ok(serving)
    }
}

/// See the module.
#[derive(Clone)]
pub struct KvService {
    serving: Arc<ServingCell>,
    readers: Arc<Readers>,
}

impl KvService {
    /// A service that answers `NotReady` until the node belongs to a cluster.
    #[must_use]
    pub fn new(serving: Arc<ServingCell>) -> Self {
        Self { serving, readers: Arc::default() }
    }
}

impl Serving {
    /// The shard that owns `token`, and its group, if they are here. Touches no disk (R3).
    fn find(&self, token: Token) -> Option<(Arc<Shard>, Arc<Group>)> {
        let shard = self.shards.find(token).filter(|shard| shard.owns(token))?;
        let group = self.host.group(shard.group)?;
        Some((shard, group))
    }

    /// The table may give the shard to a group here whose first entry is still on its way.
    fn coming(&self, token: Token) -> Option<Error> {
        let group = self.tables.current()?.shard_of(token)?.group;
        Some(self.host.group(group)?.check_whole().err().unwrap_or_else(|| {
            let reason = "the shard is being created".to_owned();
            Error::refused(ErrorKind::NotReady { reason })
        }))
    }

    fn locate(&self, token: Token) -> Result<(Arc<Shard>, Arc<Group>), Error> {
        self.find(token).ok_or_else(|| self.coming(token).unwrap_or_else(|| self.stale_route()))
    }

    fn stale_route(&self) -> Error {
        let routes = self.tables.annotated(&self.host).map(Box::new);
        Error::refused(ErrorKind::StaleRoute { routes })
    }

    /// Logs a defect under an id that the caller is told.
    fn defect(&self, what: &'static str, error: &dyn std::error::Error) -> Error {
        let id = format!("{:016x}", self.env.random.u64());
        tracing::error!(id, what, error = %error, "internal error");
        Error::unknown(ErrorKind::Internal { id })
    }
}

fn refuse(error: Error) -> Status {
    status_of(&error)
}

fn answer<T>(result: Result<T, Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(refuse)
}

/// How long the work on a request may take, and what it says.
fn opened<T>(request: Request<T>) -> (Duration, T) {
    (admit::working_limit(request.metadata()), request.into_inner())
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::put(request).map_err(refuse)?;
        answer(self.write(ready, limit).await)
    }

    async fn cas(
        &self,
        request: Request<v1::CasRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::cas(request).map_err(refuse)?;
        answer(self.write(ready, limit).await)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::delete(request).map_err(refuse)?;
        answer(self.write(ready, limit).await)
    }

    async fn incr(
        &self,
        request: Request<v1::IncrRequest>,
    ) -> Result<Response<v1::IncrReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::incr(request).map_err(refuse)?;
        answer(self.count(ready, limit).await)
    }

    async fn batch(
        &self,
        request: Request<v1::BatchRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (limit, request) = opened(request);
        let (ready, sets) = admit::batch(request).map_err(refuse)?;
        answer(self.write_all(ready, sets, limit).await)
    }

    async fn open_writer(
        &self,
        request: Request<v1::OpenWriterRequest>,
    ) -> Result<Response<v1::OpenWriterReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::open_writer(&request).map_err(refuse)?;
        answer(self.open(ready, limit).await)
    }

    async fn close_writer(
        &self,
        request: Request<v1::CloseWriterRequest>,
    ) -> Result<Response<v1::CloseWriterReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::close_writer(&request).map_err(refuse)?;
        answer(self.close(ready, limit).await)
    }

    async fn op_status(
        &self,
        request: Request<v1::OpStatusRequest>,
    ) -> Result<Response<v1::OpStatusReply>, Status> {
        let (limit, request) = opened(request);
        let ready = admit::op_status(&request).map_err(refuse)?;
        answer(self.status(ready, limit).await)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetReply>, Status> {
        let (limit, request) = opened(request);
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        admit::check_key("key", &request.key).map_err(refuse)?;
        answer(self.read(&header, &request.key, limit).await)
    }

    async fn multi_get(
        &self,
        request: Request<v1::MultiGetRequest>,
    ) -> Result<Response<v1::MultiGetReply>, Status> {
        let (limit, request) = opened(request);
        let header = admit::multi_get(&request).map_err(refuse)?;
        answer(self.read_many(&header, &request.keys, limit).await)
    }
}
