//! The part of Consul's HTTP API that readers use: which services there are, where their instances
//! are and how they fare, at once or when something changes.
//!
//! For programs that know Consul and not us. Nothing is registered here, and nobody's checks are run. A
//! service of namespace `default` has its own name, others are called `service.namespace`, unless `ns`
//! says the namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use pillion_model::name::ServiceName;
use serde::Serialize;

use super::request::{Query, service_name};
use super::{Api, Problem};
use crate::catalog::{World, parse_duration};
use crate::watch::Interest;

mod view;

use view::HealthEntry;
pub(super) use view::{Agent, HealthEntries, ServiceTags};

/// How long a query blocks unless it says, as in Consul.
const WAIT_DEFAULT: Duration = Duration::from_secs(300);
/// How long it may ask to block; Consul, too, cuts at ten minutes.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The one datacentre there is.
const DATACENTER: &str = "pillion";
/// The namespace whose services need no suffix.
const DEFAULT_NAMESPACE: &str = "default";
/// Parameters of queries that can block. Every answer is consistent, so how it was asked for does not
/// matter.
pub(super) const BLOCKING: [&str; 7] = ["index", "wait", "dc", "ns", "stale", "consistent", "cached"];
/// Those of a service's health, too. `near` would only order.
pub(super) const HEALTH: [&str; 10] =
    ["index", "wait", "dc", "ns", "stale", "consistent", "cached", "passing", "tag", "near"];

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");

/// `GET /v1/health/service/{name}`.
pub(super) async fn health(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Response, Problem> {
    query.only(&HEALTH)?;
    let service = named(&name, query.first("ns"))?;
    let world = world(&api, &query, Interest::Services(BTreeSet::from([service.clone()]))).await?;
    let passing = query.first("passing").is_some_and(|value| !matches!(value, "false" | "0"));
    let tags: Vec<&str> = query.all("tag").collect();
    let instances = world.catalog.services.get(&service).into_iter();
    let entries = instances.flat_map(|service| service.instances.values());
    let entries = entries
        .map(|instance| HealthEntry::new(instance, &name))
        .filter(|entry| (!passing || entry.is_passing()) && tags.iter().all(|tag| entry.has_tag(tag)));
    Ok(answer(&world, &HealthEntries(entries.collect())))
}

/// `GET /v1/catalog/services`.
pub(super) async fn services(State(api): State<Api>, query: Query) -> Result<Response, Problem> {
    query.only(&BLOCKING)?;
    let namespace = query.first("ns");
    let interest = namespace.map_or(Interest::All, |namespace| Interest::Namespace(namespace.to_owned()));
    let world = world(&api, &query, interest).await?;
    let mut services = BTreeMap::new();
    for (name, service) in &world.catalog.services {
        let called = match namespace {
            Some(namespace) if namespace != name.namespace() => continue,
            Some(_) => name.service().to_owned(),
            None if name.namespace() == DEFAULT_NAMESPACE => name.service().to_owned(),
            None => name.to_string(),
        };
        let tags: BTreeSet<String> =
            service.instances.values().flat_map(|instance| view::tags(instance)).collect();
        services.insert(called, tags);
    }
    Ok(answer(&world, &ServiceTags(services)))
}

/// `GET /v1/agent/self`.
pub(super) async fn agent() -> Json<Agent> {
    Json(Agent::new())
}

/// The service of a name as Consul's clients write it.
fn named(name: &str, namespace: Option<&str>) -> Result<ServiceName, Problem> {
    match (namespace, name.split_once('.')) {
        (Some(namespace), _) => service_name(namespace, name),
        (None, Some((service, namespace))) => service_name(namespace, service),
        (None, None) => service_name(DEFAULT_NAMESPACE, name),
    }
}

/// The state of the world: now, or with `index` once something of interest is newer, at the latest
/// after `wait`. An index that this registry cannot know is answered at once, with one to begin again
/// from.
async fn world(api: &Api, query: &Query, interest: Interest) -> Result<Arc<World>, Problem> {
    if let Some(other) = query.first("dc").filter(|dc| *dc != DATACENTER) {
        return Err(Problem::parameter("dc", format!("got `{other}`, the only datacentre is {DATACENTER}")));
    }
    let wait = wait(query)?;
    let world = api.catalog.world();
    let Some(text) = query.first("index") else { return Ok(world) };
    let wrong = || Problem::parameter("index", format!("got `{text}`, want the X-Consul-Index of an answer"));
    let after: u64 = text.parse().map_err(|_| wrong())?;
    if after == 0 || !(world.floor..=index(&world)).contains(&after) {
        return Ok(world);
    }
    let is_news = |world: &World| newest(world, &interest) > after;
    let mut subscription = api.hub.subscribe(&world, interest.clone(), Some(after))?;
    // What is told may be what the asker knows already: the hub is a moment behind.
    let news = async {
        while !is_news(&api.catalog.world()) {
            subscription.next().await;
        }
    };
    match api.stop.run_until_cancelled(tokio::time::timeout(wait, news)).await {
        Some(_changed_or_over) => Ok(api.catalog.world()),
        None => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the registry is stopping; ask again")),
    }
}

/// When what is of interest changed last. A service that is not there may have left with any change.
fn newest(world: &World, interest: &Interest) -> u64 {
    let all = world.catalog.revision;
    match interest {
        Interest::Services(services) => {
            let revision = |name| world.catalog.services.get(name).map_or(all, |service| service.revision);
            services.iter().map(revision).max().unwrap_or(all)
        }
        _ => all,
    }
}

fn wait(query: &Query) -> Result<Duration, Problem> {
    let Some(text) = query.first("wait") else { return Ok(WAIT_DEFAULT) };
    let wrong = || Problem::parameter("wait", format!("got `{text}`, want a duration such as 60s"));
    parse_duration(text).map(|wait| wait.min(WAIT_MAX)).ok_or_else(wrong)
}

/// Never 0, which would mean not to block.
fn index(world: &World) -> u64 {
    world.revision.max(1)
}

fn answer(world: &World, body: &impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    let headers = response.headers_mut();
    headers.insert(INDEX, HeaderValue::from(index(world)));
    headers.insert(KNOWN_LEADER, HeaderValue::from_static("true"));
    headers.insert(LAST_CONTACT, HeaderValue::from_static("0"));
    response
}
