//! The certificate authority: its roots, where their rotation stands, and the next step of it.

use std::time::SystemTime;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::operate::unix_seconds;
use super::request::{Query, json};
use super::{Api, Problem};
use crate::app::live;
use crate::ca::{CaError, RevokeError, Revoking, RotateError, Status, Step};

/// Where the roots of the mesh stand.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RootsView {
    /// `steady`; `announced`: the next root is in every bundle and waits until everybody knows it;
    /// `switched`: it signs, and the old one is trusted until its last certificate is over.
    step: &'static str,
    /// When the step began, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    /// When the old root is retired, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// From when on the announced root can be switched to by force, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    force_after: Option<u64>,
    /// The root that signs first, then the next one, then former ones.
    roots: Vec<RootView>,
    /// Version of the bundle of the roots that are trusted.
    bundle: String,
    /// Whether the authority is in files (`--ca-cert`), which others look after.
    in_files: bool,
    /// Sidecars that follow this registry.
    followers: usize,
    /// Live sidecars that do not have the bundle in force: the first hundred.
    pending: Vec<String>,
    /// How many.
    pending_total: usize,
    /// Whose certificates are good no more, the oldest first.
    revoked: Vec<RevocationView>,
}

/// What is revoked.
#[derive(Serialize, JsonSchema)]
pub(super) struct RevocationView {
    /// A SPIFFE id, an instance (`<namespace>/<service>/<instance-id>`) or a serial number.
    what: String,
    /// Unix seconds.
    since: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// What to revoke.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct RevocationDocument {
    /// A SPIFFE id, an instance (`<namespace>/<service>/<instance-id>`) or a serial number.
    what: String,
    /// Why, for people.
    reason: Option<String>,
}

/// A root certificate.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RootView {
    /// SHA-256 of its public key, hex.
    sha256: String,
    /// `active`, `next`, `old` (trusted, signs no more), `retired` (not trusted) or `trusted` (by --ca-chain).
    role: &'static str,
    /// Unix seconds.
    not_before: u64,
    /// Unix seconds.
    not_after: u64,
    /// The root before it signed it.
    cross_signed: bool,
}

/// How to rotate.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct RotateDocument {
    /// Switch to the announced root although some sidecars have not acknowledged it.
    force: Option<bool>,
}

pub(super) async fn status(State(api): State<Api>, query: Query) -> Result<Json<RootsView>, Problem> {
    query.only(&[])?;
    view(&api).await
}

pub(super) async fn rotate(State(api): State<Api>, body: Bytes) -> Result<Json<RootsView>, Problem> {
    let force = if body.is_empty() { false } else { forced(&json(&body)?)? };
    api.authority.rotate(force).await?;
    view(&api).await
}

pub(super) async fn revoke(State(api): State<Api>, body: Bytes) -> Result<Json<RevocationView>, Problem> {
    let body = json(&body)?;
    let Some(map) = body.as_object() else { return Err(Problem::field("", "want an object")) };
    if let Some(key) = map.keys().find(|key| !["what", "reason"].contains(&key.as_str())) {
        return Err(Problem::field(key, "is not a field; the fields are what, reason"));
    }
    let text = |field: &str| match map.get(field) {
        Some(serde_json::Value::String(text)) => Ok(text.as_str()),
        None | Some(serde_json::Value::Null) => Ok(""),
        Some(other) => Err(Problem::field(field, format!("got {other}, want a text"))),
    };
    Ok(Json(api.authority.revoke(text("what")?, text("reason")?).await?.into()))
}

pub(super) async fn unrevoke(State(api): State<Api>, query: Query) -> Result<StatusCode, Problem> {
    query.only(&["what"])?;
    let what = query.first("what").unwrap_or_default();
    match api.authority.unrevoke(what).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found(format_args!("revocation of {what}"))),
    }
}

fn forced(body: &serde_json::Value) -> Result<bool, Problem> {
    let Some(map) = body.as_object() else { return Err(Problem::field("", "want an object")) };
    if let Some(key) = map.keys().find(|key| *key != "force") {
        return Err(Problem::field(key, "is not a field; the only one is force"));
    }
    match map.get("force") {
        None | Some(serde_json::Value::Null) => Ok(false),
        Some(serde_json::Value::Bool(force)) => Ok(*force),
        Some(other) => Err(Problem::field("force", format!("got {other}, want true or false"))),
    }
}

async fn view(api: &Api) -> Result<Json<RootsView>, Problem> {
    Ok(Json(api.authority.status(&live(&api.catalog)).await?.into()))
}

impl From<Status> for RootsView {
    fn from(status: Status) -> Self {
        let (step, since, until) = match status.step {
            Step::Steady => ("steady", None, None),
            Step::Announced { since } => ("announced", Some(since), None),
            Step::Switched { since, until } => ("switched", Some(since), Some(until)),
        };
        let seconds = |at: Option<SystemTime>| at.map(unix_seconds);
        let root = |root: crate::ca::RootStatus| RootView {
            sha256: root.sha256,
            role: root.role,
            not_before: unix_seconds(root.validity.0),
            not_after: unix_seconds(root.validity.1),
            cross_signed: root.cross_signed,
        };
        Self {
            step,
            since: seconds(since),
            until: seconds(until),
            force_after: seconds(status.force_after),
            roots: status.roots.into_iter().map(root).collect(),
            bundle: status.bundle,
            in_files: status.in_files,
            followers: status.followers,
            pending: status.pending,
            pending_total: status.pending_total,
            revoked: status.revoked.into_iter().map(RevocationView::from).collect(),
        }
    }
}

impl From<Revoking> for RevocationView {
    fn from(it: Revoking) -> Self {
        Self { what: it.what, since: unix_seconds(it.since), reason: it.reason }
    }
}

impl From<RevokeError> for Problem {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::Ca(error) => error.into(),
            RevokeError::TooMany => Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            RevokeError::Reason => Self::field("reason", error.to_string()),
            RevokeError::What(_) | RevokeError::Foreign(..) => Self::field("what", error.to_string()),
        }
    }
}

impl From<CaError> for Problem {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Store(error) => error.into(),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, other.to_string()),
        }
    }
}

impl From<RotateError> for Problem {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Ca(error) => error.into(),
            other => Self::new(StatusCode::CONFLICT, other.to_string()),
        }
    }
}
