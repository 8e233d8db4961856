//! Other meshes: what of them is in force, and how that is known; and our own bundle, for them.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use pillion_config::Federation;
use pillion_model::name::TrustDomain;
use schemars::JsonSchema;
use serde::Serialize;

use super::operate::unix_seconds;
use super::request::Query;
use super::{Api, Problem};
use crate::federation::{exports, own_bundle};

/// The federations.
#[derive(Serialize, JsonSchema)]
pub(super) struct FederationList {
    federations: Vec<FederationView>,
}

/// One federation, as of now, as this registry knows it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct FederationView {
    namespace: String,
    name: String,
    trust_domain: String,
    /// Sequence number of the bundle in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// How many roots of it are trusted. None: nobody of it is.
    roots: usize,
    /// When the bundle in force last became different, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    /// Seconds since the bundle was last fetched and found good by this registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle_age: Option<u64>,
    /// What was wrong when it was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle_error: Option<String>,
    /// Seconds since its exports were last told to this registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    services_age: Option<u64>,
    /// What was wrong when they were asked for last.
    #[serde(skip_serializing_if = "Option::is_none")]
    services_error: Option<String>,
    /// What it exports to us, by the names it has there.
    offered: Vec<String>,
    /// What of it is imported here.
    imported: Vec<String>,
    /// What is exported to it.
    exported: Vec<String>,
}

pub(super) async fn list(State(api): State<Api>, query: Query) -> Result<Json<FederationList>, Problem> {
    query.only(&[])?;
    let world = api.catalog.world();
    let federations = world.resources.set.federations().map(|federation| view(&api, federation)).collect();
    Ok(Json(FederationList { federations }))
}

pub(super) async fn bundle(State(api): State<Api>, query: Query) -> Result<Json<serde_json::Value>, Problem> {
    query.only(&[])?;
    Ok(Json(own_bundle(&api.authority)))
}

fn view(api: &Api, federation: &Federation) -> FederationView {
    let domain = TrustDomain::parse(&federation.trust_domain).unwrap_or_default();
    let bundle = api.authority.federated().remove(&domain);
    let status = api.federations.status(&domain);
    let world = api.catalog.world();
    let offered = world.imports.get(&domain).map(|told| told.services.keys().cloned().collect());
    let services = world.resources.set.services().iter();
    let imported = services.filter(|(_, service)| {
        service.import.as_ref().is_some_and(|import| import.trust_domain == domain.as_str())
    });
    let age = |at: Option<SystemTime>| at.map(|at| at.elapsed().unwrap_or_default().as_secs());
    FederationView {
        namespace: federation.namespace.clone(),
        name: federation.name.clone(),
        trust_domain: domain.to_string(),
        sequence: bundle.as_ref().and_then(|bundle| bundle.sequence),
        roots: bundle.as_ref().map_or(0, |bundle| bundle.roots.len()),
        since: bundle.as_ref().map(|bundle| unix_seconds(bundle.since)),
        bundle_age: age(status.bundle_checked),
        bundle_error: status.bundle_error,
        services_age: age(status.services_checked),
        services_error: status.services_error,
        offered: offered.unwrap_or_default(),
        imported: imported.map(|(name, _)| name.to_string()).collect(),
        exported: exports(&api.control.model().borrow(), &domain).services.into_keys().collect(),
    }
}
