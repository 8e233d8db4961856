//! The part of AWS Cloud Map's API that programs use to register and to discover, for programs that
//! know Cloud Map and not us: AWS JSON 1.1, the call in `X-Amz-Target`, all of it at `POST /`.
//!
//! A service's id is `orders.shop` (or its ARN as `ListServices` tells it), and whoever registers an
//! instance of an unknown one creates it. What Cloud Map does later is done here when the call returns,
//! so every operation is a success that can be asked for. Namespaces, services and health checks are not
//! made through this API.

use std::time::SystemTime;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use pillion_model::name::ServiceName;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::auth::Auth;
use super::{Api, Problem};
use crate::ca::Role;
use crate::catalog::World;

mod attributes;
mod discover;
mod fault;
mod instances;
mod lists;
mod signature;

use fault::Fault;

/// Largest body of a call: one instance with all its attributes fits many times.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;
/// In front of the call's name.
const TARGET: &str = "Route53AutoNaming_v20170314.";
const TARGET_HEADER: HeaderName = HeaderName::from_static("x-amz-target");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");
/// What comes before an id in an ARN. There are no accounts and no regions here.
const ARN: &str = "arn:aws:servicediscovery:pillion:000000000000:";

/// `POST /`: any call.
pub(super) async fn call(
    State(api): State<Api>,
    Extension(auth): Extension<Auth>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let outcome = match admit(&api, &auth, &uri, &headers, &body) {
        Ok(()) => answer(&api, &headers, &body).await,
        Err(fault) => Err(fault),
    };
    let mut response = match outcome {
        Ok(value) => value.to_string().into_response(),
        Err(fault) => fault.into_response(),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    if let Ok(id) = HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..))) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn answer(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Value, Fault> {
    let target = headers.get(TARGET_HEADER).and_then(|target| target.to_str().ok()).unwrap_or_default();
    match target.strip_prefix(TARGET).unwrap_or_default() {
        "RegisterInstance" => instances::register(api, read(body)?).await,
        "DeregisterInstance" => instances::deregister(api, read(body)?).await,
        "GetInstance" => instances::one(api, &read(body)?),
        "ListInstances" => instances::list(api, &read(body)?),
        "GetInstancesHealthStatus" => instances::health(api, &read(body)?),
        "UpdateInstanceCustomHealthStatus" => instances::report(api, read(body)?).await,
        "GetOperation" => instances::operation(&read(body)?),
        "DiscoverInstances" => discover::instances(api, &read(body)?),
        "DiscoverInstancesRevision" => discover::revision(api, &read(body)?),
        "ListNamespaces" => lists::namespaces(api, &read(body)?),
        "ListServices" => lists::services(api, &read(body)?),
        _ => Err(Fault::unknown_call(target)),
    }
}

/// Lets in who signed with the operator's token as the secret key, or brings the token as everywhere.
fn admit(api: &Api, auth: &Auth, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<(), Fault> {
    match auth {
        Auth::Operator(token, _) if signature::is_signed(headers) => {
            let host = uri.authority().map(|authority| authority.as_str());
            let request = signature::Signed { path: uri.path(), query: uri.query(), host, headers, body };
            signature::verify(token, &request, SystemTime::now()).map_err(Fault::denied)
        }
        Auth::Operator(..) if !headers.contains_key(header::AUTHORIZATION) => Err(Fault::denied(
            "the call is not signed; sign it with any access key id and the operator's token as the secret access key",
        )),
        _ => {
            let admitted = auth.admits(headers, |hash| api.authority.tokens().operator(hash));
            let admitted = admitted.and_then(|caller| caller.may(Role::Write));
            admitted.map_err(|Problem { detail, .. }| Fault::denied(detail))
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    let body = if body.is_empty() { b"{}" } else { body };
    super::json::read(body).and_then(serde_json::from_value).map_err(|error| Fault::malformed(&error))
}

/// The service of an id: `orders.shop`, `orders` in the default namespace, or an ARN that ends in it.
fn service(id: &str, world: &World) -> Result<ServiceName, Fault> {
    let name = id.rsplit_once('/').map_or(id, |(_, name)| name);
    let name = within_zone(name, world);
    let (service, namespace) = name.split_once('.').unwrap_or((name, pillion_model::name::DEFAULT_NAMESPACE));
    let wrong = |error| Fault::input(format!("ServiceId: got `{id}`, want `service.namespace`: {error}"));
    ServiceName::new(namespace, service).map_err(wrong)
}

/// A service that is there.
fn known_service(id: &str, world: &World) -> Result<ServiceName, Fault> {
    let service = service(id, world)?;
    match world.indexes.contains_key(&service) {
        true => Ok(service),
        false => Err(Fault::service_not_found(&service)),
    }
}

/// A name without the mesh's zone: Cloud Map's namespaces are called as their DNS zone.
fn within_zone<'a>(name: &'a str, world: &World) -> &'a str {
    let zone = &world.resources.set.mesh().zone;
    name.strip_suffix(zone.as_str()).and_then(|name| name.strip_suffix('.')).unwrap_or(name)
}
