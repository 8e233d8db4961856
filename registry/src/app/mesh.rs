//! What port 7071 serves: one call for whoever has no certificate yet, the rest for the mesh.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use pillion_model::health::Health;
use pillion_model::name::SpiffeId;
use pillion_net::grpc::require_peer;
use pillion_net::readiness::Readiness;
use pillion_xds::ads::{AdsService, LoadReports, PeerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthService, HealthServer};
use tonic_health::server::health_reporter;
use tonic_reflection::server::Builder;
use tonic_reflection::server::{v1, v1alpha};
use tower::Service;

use crate::ca::{Alive, Authority, IdentityService, Live, Settings};
use crate::catalog::Catalog;
use crate::control::Control;
use crate::registration::RegistrationService;
use crate::resolve::MeshModel;

pub(super) fn router(
    ads: AdsService<Control>,
    loads: LoadReports,
    registration: RegistrationService,
    issuing: IdentityService,
    health: HealthServer<impl HealthService>,
) -> Router {
    let guarded = with(with(Router::new(), ads.clone().into_server()), registration.into_server());
    let guarded = with(with(guarded, ads.into_status_server()), loads.into_server());
    let (v1, before) = reflection();
    let guarded = with(with(guarded, v1), before);
    let guarded = require_peer(guarded.layer(middleware::from_fn(tell_peer)));
    with(with(guarded, issuing.into_server()), health).fallback(unknown)
}

/// The health of what port 7071 serves, until `stop`: of everything (the empty name) and of ADS.
pub(super) fn health(
    readiness: Readiness,
    stop: CancellationToken,
) -> (HealthServer<impl HealthService>, impl Future<Output = ()>) {
    let (reporter, server) = health_reporter();
    let tell = async move {
        let say = async |status: ServingStatus| {
            for name in ["", ADS] {
                reporter.set_service_status(name, status).await;
            }
        };
        say(ServingStatus::NotServing).await;
        if stop.run_until_cancelled(readiness.ready()).await.is_some() {
            say(ServingStatus::Serving).await;
            stop.cancelled().await;
        }
        say(ServingStatus::NotServing).await;
    };
    (server, tell)
}

/// What can be asked here, for tools that ask that first: by version 1 and by the one before, which many
/// clients still speak.
fn reflection() -> (
    v1::ServerReflectionServer<impl v1::ServerReflection>,
    v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
) {
    static SERVICES: LazyLock<Vec<u8>> = LazyLock::new(pillion_xds::reflect::services);
    let described = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(&SERVICES)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let known = "descriptors that were compiled";
    (described().build_v1().expect(known), described().build_v1alpha().expect(known))
}

/// The name of the aggregated discovery service.
const ADS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// Certificates issued from now on say what zone the mesh has.
pub(super) async fn follow_zone(authority: Arc<Authority>, mut model: watch::Receiver<Arc<MeshModel>>) {
    loop {
        let zone = model.borrow_and_update().zone.clone();
        authority.configure(Settings { zone, ..authority.settings() });
        if model.changed().await.is_err() {
            return;
        }
    }
}

/// The instances with a sidecar that are alive, and the registries.
pub(super) fn alive(catalog: Arc<Catalog>) -> Alive {
    Arc::new(move || live(&catalog))
}

/// The same, as of now.
pub(crate) fn live(catalog: &Catalog) -> Live {
    let world = catalog.world();
    let instances = world.catalog.services.values().flat_map(|service| service.instances.values());
    let sidecars = instances
        .filter(|it| it.inbound_port.is_some() && Health::combine(it.health) != Health::Down)
        .map(|it| format!("{}/{}/{}", it.service.namespace(), it.service.service(), it.id));
    Live { nodes: sidecars.collect(), replicas: world.replicas.iter().cloned().collect() }
}

fn with<S>(router: Router, service: S) -> Router
where
    S: Service<Request, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
{
    router.route_service(&format!("/{}/{{*method}}", S::NAME), service)
}

/// The ADS server reads the peer's identity under its own type.
async fn tell_peer(mut request: Request, next: Next) -> Response {
    if let Some(peer) = request.extensions().get::<SpiffeId>().cloned() {
        request.extensions_mut().insert(PeerId(peer));
    }
    next.run(request).await
}

async fn unknown(request: Request) -> http::Response<Body> {
    Status::unimplemented(format!("{} is not served here", request.uri().path())).into_http()
}
