//! The `Routes` service: the routing table, from any node.

use std::sync::Arc;

use annulus_proto::convert::{header_of, status_of};
use annulus_proto::v1;
use annulus_proto::v1::routes_server::Routes;
use annulus_types::{Error, ErrorKind};
use tonic::{Request, Response, Status};

use crate::kv::ServingCell;

/// See the module.
#[derive(Clone)]
pub struct RoutesService {
    serving: Arc<ServingCell>,
}

impl RoutesService {
    /// A service that answers `NotReady` until the node belongs to a cluster.
    #[must_use]
    pub fn new(serving: Arc<ServingCell>) -> Self {
        Self { serving }
    }
}

#[tonic::async_trait]
impl Routes for RoutesService {
    async fn get(
        &self,
        request: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::RoutingTable>, Status> {
        let header =
            header_of(request.get_ref().header.as_ref()).map_err(|error| status_of(&error))?;
        let serving = self.serving.get(&header).map_err(|error| status_of(&error))?;
        let table = serving.tables.annotated(&serving.host).ok_or_else(|| {
            let reason = "the manager has not told this node a routing table yet".to_owned();
            status_of(&Error::refused(ErrorKind::NotReady { reason }))
        })?;
        Ok(Response::new(v1::RoutingTable::from(&table)))
    }
}
