//! Registering, leaving, and asking for what is registered.

use std::time::SystemTime;

use pillion_model::health::Reported;
use pillion_model::name::ServiceName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Api;
use super::super::instances::held_by_sidecar;
use super::attributes::{self, Attributes};
use super::fault::Fault;
use super::lists::{Page, PageRequest};
use super::{known_service, service};
use crate::catalog::Changes;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Register {
    service_id: String,
    instance_id: String,
    #[serde(default)]
    attributes: Attributes,
}

/// One instance of a service.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Of {
    service_id: String,
    instance_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct List {
    service_id: String,
    #[serde(flatten)]
    page: PageRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthOf {
    service_id: String,
    instances: Option<Vec<String>>,
    #[serde(flatten)]
    page: PageRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Report {
    service_id: String,
    instance_id: String,
    status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OperationOf {
    operation_id: String,
}

pub(super) async fn register(api: &Api, call: Register) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = service(&call.service_id, &world)?;
    let registration =
        attributes::registration(service.clone(), &call.instance_id, &call.attributes, &world)?;
    if let Some(detail) = held_by_sidecar(&world, &registration) {
        return Err(Fault::in_use(detail));
    }
    api.catalog.register(&registration).await?;
    Ok(json!({"OperationId": operation_id(REGISTER, &service, &call.instance_id)}))
}

pub(super) async fn deregister(api: &Api, call: Of) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = known_service(&call.service_id, &world)?;
    let id = attributes::instance_id(&call.instance_id)?;
    if world.catalog.instance(&service, &id).is_none() {
        return Err(Fault::instance_not_found(&service, &call.instance_id));
    }
    api.catalog.deregister(&service, &id, None).await?;
    Ok(json!({"OperationId": operation_id(DEREGISTER, &service, &call.instance_id)}))
}

pub(super) fn one(api: &Api, call: &Of) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = known_service(&call.service_id, &world)?;
    let id = attributes::instance_id(&call.instance_id)?;
    match world.catalog.instance(&service, &id) {
        Some(have) => Ok(json!({
            "Instance": {"Id": attributes::given_id(have), "Attributes": attributes::of(have)},
        })),
        None => Err(Fault::instance_not_found(&service, &call.instance_id)),
    }
}

pub(super) fn list(api: &Api, call: &List) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = known_service(&call.service_id, &world)?;
    let instances = world.catalog.services.get(&service).into_iter().flat_map(|have| &have.instances);
    let Page { items, next } = call.page.cut(instances.map(|(id, have)| (id.as_str(), have)))?;
    let told = items
        .into_iter()
        .map(|have| json!({"Id": attributes::given_id(have), "Attributes": attributes::of(have)}));
    Ok(next.add_to(json!({"Instances": told.collect::<Vec<_>>()})))
}

pub(super) fn health(api: &Api, call: &HealthOf) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = known_service(&call.service_id, &world)?;
    let have = world.catalog.services.get(&service);
    if let Some(asked) = &call.instances {
        let mut told = serde_json::Map::new();
        for given in asked {
            let id = attributes::instance_id(given)?;
            let instance = have.and_then(|have| have.instances.get(&id));
            let instance = instance.ok_or_else(|| Fault::instance_not_found(&service, given))?;
            told.insert(given.clone(), attributes::health(instance).into());
        }
        return Ok(json!({"Status": told}));
    }
    let instances = have.into_iter().flat_map(|have| &have.instances);
    let Page { items, next } = call.page.cut(instances.map(|(id, have)| (id.as_str(), have)))?;
    let told = items.into_iter().map(|have| (attributes::given_id(have), attributes::health(have).into()));
    Ok(next.add_to(json!({"Status": told.collect::<serde_json::Map<_, Value>>()})))
}

pub(super) async fn report(api: &Api, call: Report) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = known_service(&call.service_id, &world)?;
    let id = attributes::instance_id(&call.instance_id)?;
    let reported = match &*call.status {
        "HEALTHY" => Reported::Ready,
        "UNHEALTHY" => Reported::NotReady,
        other => return Err(Fault::input(format!("Status: got `{other}`, want HEALTHY or UNHEALTHY"))),
    };
    let changes = Changes { reported: Some(reported), ..Changes::default() };
    api.catalog.report(&service, &id, None, changes).await?;
    Ok(json!({}))
}

/// What an operation id says was done; it was done when the id was given out.
pub(super) fn operation(call: &OperationOf) -> Result<Value, Fault> {
    let parts: Vec<&str> = call.operation_id.splitn(4, SEPARATOR).collect();
    let ([kind @ (REGISTER | DEREGISTER), seconds, service, instance], true) =
        (&parts[..], call.operation_id.is_ascii())
    else {
        return Err(Fault::operation_not_found(&call.operation_id));
    };
    let Ok(seconds) = seconds.parse::<u64>() else {
        return Err(Fault::operation_not_found(&call.operation_id));
    };
    Ok(json!({"Operation": {
        "Id": call.operation_id,
        "Type": kind,
        "Status": "SUCCESS",
        "CreateDate": seconds,
        "UpdateDate": seconds,
        "Targets": {"SERVICE": service, "INSTANCE": instance},
    }}))
}

/// Says all there is to know of an operation, so that nothing has to be kept. At most 226 bytes; Cloud
/// Map's may have 255.
fn operation_id(kind: &str, service: &ServiceName, instance: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{kind}{SEPARATOR}{now}{SEPARATOR}{service}{SEPARATOR}{instance}")
}

const SEPARATOR: char = '|';
const REGISTER: &str = "REGISTER_INSTANCE";
const DEREGISTER: &str = "DEREGISTER_INSTANCE";
