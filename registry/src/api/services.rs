//! Lists of services and instances, at once or when something has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use pillion_model::health::Health;
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;

use super::request::{Position, Query, check, gone, position, service_name, token};
use super::{Api, InstanceList, PortView, Problem, ServiceList, ServiceView};
use crate::catalog::World;
use crate::watch::Interest;

/// Carries the position to go on from where there is no body.
const TOKEN_HEADER: HeaderName = HeaderName::from_static("pillion-token");

type Names = Path<(String, String)>;

pub(super) async fn instances(
    State(api): State<Api>,
    Path((namespace, service)): Names,
    query: Query,
) -> Result<Response, Problem> {
    query.only(&["healthy", "label", "zone", "since", "wait"])?;
    let name = service_name(&namespace, &service)?;
    let healthy = query.flag("healthy")?;
    let Some(world) = wait(&api, &query, Interest::Services(BTreeSet::from([name.clone()]))).await? else {
        return Ok(unchanged(&api));
    };
    let registered = world.catalog.services.get(&name);
    if registered.is_none() && world.resources.set.service(&name).is_none() {
        return Err(Problem::not_found(format_args!("service {name}")));
    }
    let labels = query.labels();
    let wanted = |instance: &&Arc<Instance>| {
        healthy.is_none_or(|healthy| Health::combine(instance.health).takes_traffic() == healthy)
            && query.first("zone").is_none_or(|zone| instance.zone == zone)
            && labels.iter().all(|(label, value)| {
                instance.labels.get(*label).is_some_and(|have| value.is_none_or(|value| have == value))
            })
    };
    let instances = registered.into_iter().flat_map(|service| service.instances.values()).filter(wanted);
    let instances = instances.map(|instance| api.instance_view(instance)).collect();
    Ok(Json(InstanceList { token: token(&world), instances }).into_response())
}

pub(super) async fn one(
    State(api): State<Api>,
    Path((namespace, service)): Names,
    query: Query,
) -> Result<Response, Problem> {
    query.only(&["since", "wait"])?;
    let name = service_name(&namespace, &service)?;
    let Some(world) = wait(&api, &query, Interest::Services(BTreeSet::from([name.clone()]))).await? else {
        return Ok(unchanged(&api));
    };
    match view(&world, &name) {
        Some(view) => {
            let token = HeaderValue::from_str(&token(&world)).ok();
            let mut response = Json(view).into_response();
            response.headers_mut().extend(token.map(|token| (TOKEN_HEADER, token)));
            Ok(response)
        }
        None => Err(Problem::not_found(format_args!("service {name}"))),
    }
}

pub(super) async fn in_namespace(
    State(api): State<Api>,
    Path(namespace): Path<String>,
    query: Query,
) -> Result<Response, Problem> {
    check("namespace", &namespace)?;
    list(&api, &query, Interest::Namespace(namespace)).await
}

pub(super) async fn all(State(api): State<Api>, query: Query) -> Result<Response, Problem> {
    list(&api, &query, Interest::All).await
}

async fn list(api: &Api, query: &Query, interest: Interest) -> Result<Response, Problem> {
    query.only(&["since", "wait"])?;
    let Some(world) = wait(api, query, interest.clone()).await? else { return Ok(unchanged(api)) };
    let mut names: BTreeSet<&ServiceName> = world.catalog.services.keys().collect();
    names.extend(world.resources.set.services().keys());
    let wanted = |name: &&&ServiceName| match &interest {
        Interest::Namespace(namespace) => name.namespace() == namespace,
        _ => true,
    };
    let services = names.iter().filter(wanted).filter_map(|name| view(&world, name)).collect();
    Ok(Json(ServiceList { token: token(&world), services }).into_response())
}

pub(super) async fn forget(
    State(api): State<Api>,
    Path((namespace, service)): Names,
) -> Result<StatusCode, Problem> {
    let name = service_name(&namespace, &service)?;
    if api.catalog.forget_service(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let world = api.catalog.world();
    match world.catalog.services.get(&name) {
        Some(registered) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("service {name} still has {} instances; they come first", registered.instances.size()),
        )),
        None if world.resources.set.service(&name).is_some() => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("service {name} is a resource; delete /v1/resources/Service/{namespace}/{service}"),
        )),
        None => Err(Problem::not_found(format_args!("service {name}"))),
    }
}

/// The state of the world once something of interest is newer than `since`; `None` if nothing was
/// within the time asked for.
async fn wait(api: &Api, query: &Query, interest: Interest) -> Result<Option<Arc<World>>, Problem> {
    let wait = query.wait()?;
    let world = api.catalog.world();
    let Some(since) = query.first("since") else { return Ok(Some(world)) };
    let Position::Known(after) = position("since", since, &world)? else { return Err(gone(&world)) };
    let mut subscription = api.hub.subscribe(&world, interest, Some(after))?;
    let next = tokio::time::timeout(wait, subscription.next());
    match api.stop.run_until_cancelled(next).await {
        Some(Ok(_)) => Ok(Some(api.catalog.world())),
        Some(Err(_)) => Ok(None),
        None => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the registry is stopping; ask again")),
    }
}

/// 204 with the position to go on from.
fn unchanged(api: &Api) -> Response {
    let token = HeaderValue::from_str(&token(&api.catalog.world())).ok();
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().extend(token.map(|token| (TOKEN_HEADER, token)));
    response
}

fn view(world: &World, name: &ServiceName) -> Option<ServiceView> {
    let explicit = world.resources.set.service(name);
    let registered = world.catalog.services.get(name);
    if explicit.is_none() && registered.is_none() {
        return None;
    }
    let plain = |port, protocol: pillion_model::instance::Protocol| PortView {
        port,
        protocol: protocol.as_str(),
        app_address: None,
    };
    let ports = match explicit {
        Some(service) => {
            service.ports.iter().map(|port| (port.name.clone(), plain(port.port, port.protocol))).collect()
        }
        None => registered
            .into_iter()
            .flat_map(|service| &service.ports)
            .map(|(name, port)| (name.clone(), plain(port.port, port.protocol)))
            .collect(),
    };
    let mut instances = BTreeMap::from([("total", 0)]);
    for instance in registered.into_iter().flat_map(|service| service.instances.values()) {
        *instances.entry("total").or_default() += 1;
        *instances.entry(Health::combine(instance.health).as_str()).or_default() += 1;
    }
    let key =
        pillion_config::ResourceKey::new(pillion_config::Kind::Service, name.namespace(), name.service());
    let resource = world.resources.entries.get(&key).map_or(0, |entry| entry.revision);
    Some(ServiceView {
        namespace: name.namespace().to_owned(),
        name: name.service().to_owned(),
        origin: if explicit.is_some() { "resource" } else { "registered" },
        index: world.indexes.get(name).copied(),
        ports,
        instances,
        revision: registered.map_or(0, |service| service.revision).max(resource),
    })
}
