//! The `Kv` service: checks a request, finds its shard, asks the group, answers with a receipt.
//!
//! # Invariants
//!
//! - Every refusal before the operation is handed to the group says NO; what the group says later is
//!   passed on as it is (W4).
//! - The work belongs to the group: a caller that goes away loses the answer, nothing else.
//! - A value is checked against the client's checksum before it is proposed, and again when it is
//!   read back.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use annulus_proto::convert::{Header, header_of, status_of};
use annulus_proto::v1;
use annulus_proto::v1::kv_server::Kv;
use annulus_raft::{Group, Host};
use annulus_runtime::Env;
use annulus_types::limits::{DEADLINE_DEFAULT, DEADLINE_MOST, KEY_BYTES, VALUE_BYTES};
use annulus_types::{
    Consistency, Error, ErrorKind, Mode, NodeId, Receipt, Revision, Role, ServedBy, token_of,
};
use bytes::Bytes;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::operation::{Expect, Op, Outcome};
use crate::shards::{Seen, Shard, Shards};
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
    /// `NotReady` before the birth; `WrongCluster` when the request names another.
    pub fn get(&self, header: &Header) -> Result<&Arc<Serving>, Error> {
        let Some(serving) = self.0.get() else {
            let reason = "this node belongs to no cluster yet; run annulus init".to_owned();
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        };
        let actual = serving.host.options().cluster;
        if header.cluster.is_some_and(|meant| meant != actual) {
            return Err(Error::refused(ErrorKind::WrongCluster { actual }));
        }
        Ok(serving)
    }
}

/// See the module.
#[derive(Clone)]
pub struct KvService {
    serving: Arc<ServingCell>,
}

impl KvService {
    /// A service that answers `NotReady` until the node belongs to a cluster.
    #[must_use]
    pub fn new(serving: Arc<ServingCell>) -> Self {
        Self { serving }
    }

    async fn write(
        &self,
        header: &Header,
        op: Op,
        key: &Bytes,
        limit: Duration,
    ) -> Result<v1::WriteReply, Error> {
        let serving = self.serving.get(header)?;
        let (shard, group) = serving.locate(key)?;
        let proposed = group.propose(shard.id, op.encode(), limit).await?;
        let outcome = Outcome::decode(proposed.reply)
            .map_err(|error| serving.defect("a reply does not decode", &error))?;
        match outcome {
            Outcome::Done { version, revision, epoch, shard_time_ms } => {
                let receipt = Receipt {
                    mode: Mode::Write,
                    shard: shard.id,
                    epoch,
                    node: serving.node,
                    replica: group.replica(),
                    role: Role::Leader,
                    served_by: ServedBy::Log,
                    term: proposed.term,
                    revision,
                    staleness_bound_us: None,
                    shard_time_ms,
                    table_version: serving.tables.version(),
                };
                Ok(v1::WriteReply { receipt: Some((&receipt).into()), version: version.0 })
            }
            // Applied, and nothing was changed: the log proves it.
            Outcome::PreconditionFailed { current } => {
                Err(Error::refused(ErrorKind::PreconditionFailed { current }))
            }
            Outcome::NotHere => Err(serving.stale_route()),
        }
    }

    async fn read(
        &self,
        header: &Header,
        key: &Bytes,
        limit: Duration,
    ) -> Result<v1::GetReply, Error> {
        let serving = self.serving.get(header)?;
        let (shard, group) = serving.locate(key)?;
        let (role, term) = group.role();
        let receipt = Receipt {
            mode: Mode::Any,
            shard: shard.id,
            epoch: Default::default(),
            node: serving.node,
            replica: group.replica(),
            role,
            served_by: ServedBy::Local,
            term,
            revision: Revision(0),
            staleness_bound_us: None,
            shard_time_ms: 0,
            table_version: serving.tables.version(),
        };
        let receipt = match header.consistency {
            Consistency::Linearizable => {
                let grant = group.read_grant(header.strict, limit).await?;
                Receipt {
                    mode: Mode::Linearizable,
                    role: grant.role,
                    served_by: grant.served_by,
                    term: grant.term,
                    staleness_bound_us: grant.staleness_bound_us,
                    ..receipt
                }
            }
            Consistency::Any => {
                group.check_whole()?;
                receipt
            }
            Consistency::Session | Consistency::Bounded(_) => {
                return Err(Error::refused(ErrorKind::Unimplemented));
            }
        };
        let group_time_ms = group.group_time_ms();
        let seen = serving.look(&shard, &group, header, key)?;
        let receipt = Receipt {
            epoch: seen.head.epoch,
            revision: seen.head.revision,
            shard_time_ms: seen.head.shard_time_ms(group_time_ms),
            ..receipt
        };
        let value = seen.value;
        Ok(v1::GetReply {
            receipt: Some((&receipt).into()),
            found: value.is_some(),
            version: value.as_ref().map_or(0, |value| value.revision.0),
            value_crc32: value.as_ref().map_or(0, |value| value.crc),
            value: value.map(|value| value.value).unwrap_or_default(),
        })
    }
}

impl Serving {
    fn locate(&self, key: &Bytes) -> Result<(Arc<Shard>, Arc<Group>), Error> {
        let token = token_of(key);
        if let Some(shard) = self.shards.find(token)
            && let Ok(Some(head)) = self.shards.head(&shard)
            && head.owns(token)
            && let Some(group) = self.host.group(shard.group)
        {
            return Ok((shard, group));
        }
        // The table may give the shard to a group here whose first entry is still on its way.
        if let Some(table) = self.tables.current()
            && let Some(route) = table.shard_of(token)
            && let Some(group) = self.host.group(route.group)
        {
            group.check_whole()?;
            let reason = "the shard is being created".to_owned();
            return Err(Error::refused(ErrorKind::NotReady { reason }));
        }
        Err(self.stale_route())
    }

    fn look(
        &self,
        shard: &Shard,
        group: &Group,
        header: &Header,
        key: &Bytes,
    ) -> Result<Seen, Error> {
        match self.shards.read(shard, header.namespace, key) {
            Ok(Some(seen)) => Ok(seen),
            Ok(None) => Err(self.stale_route()),
            Err(error) => {
                group.distrust(&error.to_string());
                Err(self.defect("a read failed", &error))
            }
        }
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

/// The deadline that the caller set, by gRPC's own header: digits and a unit.
fn deadline_of(metadata: &MetadataMap) -> Duration {
    let parsed = metadata.get("grpc-timeout").and_then(|text| {
        let text = text.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let amount: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(amount.saturating_mul(3600)),
            "M" => Duration::from_secs(amount.saturating_mul(60)),
            "S" => Duration::from_secs(amount),
            "m" => Duration::from_millis(amount),
            "u" => Duration::from_micros(amount),
            "n" => Duration::from_nanos(amount),
            _ => return None,
        })
    });
    parsed.unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MOST)
}

/// Leaves time for the answer to travel before the caller's own clock runs out.
fn working_limit(metadata: &MetadataMap) -> Duration {
    let whole = deadline_of(metadata);
    whole.saturating_sub((whole / 10).min(Duration::from_millis(200)))
}

/// Checks a key and copies it out of the request's buffer.
fn key_of(key: &Bytes) -> Result<Bytes, Error> {
    if key.is_empty() || key.len() > KEY_BYTES {
        let message = format!("must have 1 to {KEY_BYTES} bytes, has {}", key.len());
        return Err(Error::bad_request("key", message));
    }
    Ok(Bytes::copy_from_slice(key))
}

fn crc_of(value: &Bytes, told: Option<u32>) -> Result<u32, Error> {
    if value.len() > VALUE_BYTES {
        let message = format!("must have at most {VALUE_BYTES} bytes, has {}", value.len());
        return Err(Error::bad_request("value", message));
    }
    let crc = crc32fast::hash(value);
    match told {
        Some(told) if told != crc => {
            let message = format!("the value's checksum is {crc:08x}, the request says {told:08x}");
            Err(Error::bad_request("value_crc32", message))
        }
        _ => Ok(crc),
    }
}

fn refuse(error: Error) -> Status {
    status_of(&error)
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let limit = working_limit(request.metadata());
        let request = request.into_inner();
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        let key = key_of(&request.key).map_err(refuse)?;
        let crc = crc_of(&request.value, request.value_crc32).map_err(refuse)?;
        let namespace = header.namespace;
        let op = Op::Put { namespace, key: key.clone(), crc, value: request.value };
        self.write(&header, op, &key, limit).await.map(Response::new).map_err(refuse)
    }

    async fn cas(
        &self,
        request: Request<v1::CasRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let limit = working_limit(request.metadata());
        let request = request.into_inner();
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        let key = key_of(&request.key).map_err(refuse)?;
        let crc = crc_of(&request.value, request.value_crc32).map_err(refuse)?;
        let expect = match request.expected_version {
            Some(version) => Expect::Version(Revision(version)),
            None => Expect::Absent,
        };
        let namespace = header.namespace;
        let op = Op::Cas { namespace, key: key.clone(), expect, crc, value: request.value };
        self.write(&header, op, &key, limit).await.map(Response::new).map_err(refuse)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let limit = working_limit(request.metadata());
        let request = request.into_inner();
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        let key = key_of(&request.key).map_err(refuse)?;
        let expect = request
            .expected_version
            .map_or(Expect::Anything, |version| Expect::Version(Revision(version)));
        let op = Op::Delete { namespace: header.namespace, key: key.clone(), expect };
        self.write(&header, op, &key, limit).await.map(Response::new).map_err(refuse)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetReply>, Status> {
        let limit = working_limit(request.metadata());
        let request = request.into_inner();
        let header = header_of(request.header.as_ref()).map_err(refuse)?;
        let key = key_of(&request.key).map_err(refuse)?;
        self.read(&header, &key, limit).await.map(Response::new).map_err(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_follow_grpc_and_have_a_limit() {
        let mut metadata = MetadataMap::new();
        assert_eq!(deadline_of(&metadata), DEADLINE_DEFAULT);
        for (text, expected) in [
            ("100m", Duration::from_millis(100)),
            ("2S", Duration::from_secs(2)),
            ("99999999H", DEADLINE_MOST),
            ("5u", Duration::from_micros(5)),
            ("nonsense", DEADLINE_DEFAULT),
            ("S", DEADLINE_DEFAULT),
        ] {
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(deadline_of(&metadata), expected, "{text}");
        }
    }

    #[test]
    fn bad_input_names_field_and_limit() {
        let field = |error: Error| match error.kind {
            ErrorKind::BadRequest { field, message } => (field, message),
            other => panic!("{other:?}"),
        };
        assert_eq!(field(key_of(&Bytes::new()).unwrap_err()).0, "key");
        let long = Bytes::from(vec![0; KEY_BYTES + 1]);
        assert!(field(key_of(&long).unwrap_err()).1.contains("4096"));
        let big = Bytes::from(vec![0; VALUE_BYTES + 1]);
        assert_eq!(field(crc_of(&big, None).unwrap_err()).0, "value");
        let value = Bytes::from_static(b"v");
        assert_eq!(field(crc_of(&value, Some(1)).unwrap_err()).0, "value_crc32");
        assert!(crc_of(&value, Some(crc32fast::hash(b"v"))).is_ok());
    }
}
