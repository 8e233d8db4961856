//! Join tokens and root certificates.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::operate::unix_seconds;
use super::problem::ProblemField;
use super::request::{Query, json};
use super::{Api, Problem};
use crate::ca::{
    Binding, NewOperator, NewToken, OperatorInfo, Role, TTL_WANT, TokenError, TokenInfo, Tokens,
};
use crate::catalog::{duration_text, parse_duration};

/// A join token to make; all of it may be left out.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct TokenDocument {
    /// How long it is good, `1m` to `8784h`. Default `1h`.
    ttl: Option<String>,
    /// May be used any number of times, as task definitions need it. Default: once.
    reusable: Option<bool>,
    /// Good only for services of this namespace.
    namespace: Option<String>,
    /// Good only for the service of this name.
    service: Option<String>,
    /// Makes an operator's token of this role instead, for the HTTP API.
    role: Option<Role>,
    /// With role: who will have it. One of the same name ends.
    name: Option<String>,
}

/// A new token with its secret.
#[derive(Serialize, JsonSchema)]
pub(super) struct NewTokenView {
    /// What the sidecar is given as PILLION_JOIN_TOKEN.
    token: String,
    #[serde(flatten)]
    info: TokenView,
}

/// What may be known of a token.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenView {
    id: String,
    /// Unix seconds.
    created: u64,
    /// Unix seconds.
    expires: u64,
    reusable: bool,
    /// When a single-use token was used, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

/// Join tokens in the order of their ids.
#[derive(Serialize, JsonSchema)]
pub(super) struct TokenList {
    tokens: Vec<TokenView>,
    /// Operators' tokens in the order of their names, without the one of the first start.
    operators: Vec<OperatorView>,
}

/// What may be known of an operator's token.
#[derive(Serialize, JsonSchema)]
pub(super) struct OperatorView {
    name: String,
    role: Role,
    /// Unix seconds.
    created: u64,
    /// Unix seconds.
    expires: u64,
}

/// A new operator's token with its secret.
#[derive(Serialize, JsonSchema)]
struct NewOperatorView {
    /// What is sent as a bearer token.
    token: String,
    #[serde(flatten)]
    info: OperatorView,
}

/// What may be known of the certificate authority.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthorityView {
    trust_domain: String,
    /// SHA-256 of the root's public key, hex: the last part of join tokens.
    root_sha256: String,
    /// Unix seconds.
    root_not_before: u64,
    /// Unix seconds.
    root_not_after: u64,
    /// The root certificates.
    root_pem: String,
    /// How long certificates of services are valid.
    leaf_lifetime: String,
}

pub(super) async fn create(State(api): State<Api>, body: Bytes) -> Result<Response, Problem> {
    let body = if body.is_empty() { Value::Object(serde_json::Map::new()) } else { json(&body)? };
    let mut response = if body.get("role").is_some_and(|role| !role.is_null()) {
        let (token, info) = api.authority.tokens().create_operator(operator(&body)?).await?;
        (StatusCode::CREATED, Json(NewOperatorView { token, info: info.into() })).into_response()
    } else {
        let (token, info) = api.authority.tokens().create(parse(&body)?).await?;
        let view = NewTokenView { token: token.to_string(), info: info.into() };
        (StatusCode::CREATED, Json(view)).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub(super) async fn list(State(api): State<Api>, query: Query) -> Result<Json<TokenList>, Problem> {
    query.only(&[])?;
    let tokens = api.authority.tokens();
    Ok(Json(TokenList {
        tokens: tokens.list().into_iter().map(TokenView::from).collect(),
        operators: tokens.operators().into_iter().map(OperatorView::from).collect(),
    }))
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let tokens = api.authority.tokens();
    if tokens.delete(&id).await? || tokens.delete_operator(&id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    // It may be the secret itself that was given.
    Err(Problem::not_found("token of this id or name (an id is what stands before the first dot)"))
}

/// The path as it may be written down: somebody may have put a token's secret where its id belongs.
pub(super) fn told(path: &str, tokens: &Tokens) -> String {
    let Some(id) = path.strip_prefix(PATH) else { return path.to_owned() };
    let known = tokens.list().iter().any(|token| token.id == id)
        || tokens.operators().iter().any(|operator| operator.name == id);
    format!("{PATH}{}", if known { id } else { "(unknown)" })
}

/// Before the id of a token.
const PATH: &str = "/v1/tokens/";

pub(super) async fn authority(State(api): State<Api>, headers: HeaderMap) -> Response {
    let info = api.authority.info();
    let wants_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if wants_json {
        return Json(AuthorityView {
            trust_domain: info.trust_domain.to_string(),
            root_sha256: info.root_sha256,
            root_not_before: unix_seconds(info.root_not_before),
            root_not_after: unix_seconds(info.root_not_after),
            root_pem: info.root_pem,
            leaf_lifetime: duration_text(info.leaf_lifetime),
        })
        .into_response();
    }
    let mut response = info.root_pem.into_response();
    let kind = HeaderValue::from_static("application/x-pem-file");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Who is called so in the audit log has no token that was made.
const RESERVED: [&str; 3] = ["operator", "local", "loopback"];

/// An operator's token to make.
fn operator(body: &Value) -> Result<NewOperator, Problem> {
    const FIELDS: [&str; 3] = ["role", "name", "ttl"];
    let map = body.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let (mut role, mut name, mut ttl) = (None, None, None);
    for (field, value) in map {
        match (field.as_str(), value) {
            ("role", Value::String(text)) => {
                role = Some(text.parse().map_err(|error: String| Problem::field("role", error))?);
            }
            ("name", Value::String(text)) if RESERVED.contains(&text.as_str()) => {
                let detail = format!("`{text}` stands for others in the audit log; want another name");
                return Err(Problem::field("name", detail));
            }
            ("name", Value::String(text)) => name = Some(text.clone()),
            ("ttl", Value::String(text)) if parse_duration(text).is_some() => ttl = parse_duration(text),
            // As a join token's it means nothing, and the command sends it always.
            ("reusable", Value::Bool(false)) => {}
            ("role" | "name" | "ttl", other) => return Err(Problem::field(field, format!("got {other}"))),
            (other, _) => {
                let detail =
                    format!("is no field of an operator's token; the fields are {}", FIELDS.join(", "));
                return Err(Problem::field(other, detail));
            }
        }
    }
    let missing =
        |field: &str| Problem::field(field, "is missing; an operator's token has role, name and ttl");
    Ok(NewOperator {
        role: role.ok_or_else(|| missing("role"))?,
        name: name.ok_or_else(|| missing("name"))?,
        ttl: ttl.ok_or_else(|| missing("ttl"))?,
    })
}

fn parse(body: &Value) -> Result<NewToken, Problem> {
    const FIELDS: [&str; 4] = ["ttl", "reusable", "namespace", "service"];
    let Some(map) = body.as_object() else { return Err(Problem::field("", "want an object")) };
    let mut problems = Vec::new();
    let mut refuse = |field: &str, detail: String| problems.push(ProblemField::new(field, detail));
    for key in map.keys().filter(|key| !FIELDS.contains(&key.as_str())) {
        refuse(key, format!("is not a field; the fields are {}", FIELDS.join(", ")));
    }
    let mut new = NewToken { binding: Binding::default(), ..NewToken::default() };
    for (field, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        match (field.as_str(), value) {
            ("ttl", Value::String(text)) if parse_duration(text).is_some() => new.ttl = parse_duration(text),
            ("ttl", other) => refuse("ttl", format!("got {other}, want a duration such as 1h")),
            ("reusable", Value::Bool(reusable)) => new.reusable = *reusable,
            ("reusable", other) => refuse("reusable", format!("got {other}, want true or false")),
            ("namespace", Value::String(text)) => new.binding.namespace = Some(text.clone()),
            ("service", Value::String(text)) => new.binding.service = Some(text.clone()),
            ("namespace" | "service", other) => refuse(field, format!("got {other}, want a name")),
            _ => {}
        }
    }
    if problems.is_empty() {
        return Ok(new);
    }
    Err(Problem::fields(StatusCode::UNPROCESSABLE_ENTITY, problems))
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Ttl { got } => Self::field("ttl", format!("got {got}, {TTL_WANT}")),
            TokenError::Store(error) => error.into(),
            TokenError::Name { field, error } => Self::field(field, error.to_string()),
            TokenError::TooMany => Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            other => Self::new(StatusCode::SERVICE_UNAVAILABLE, other.to_string()),
        }
    }
}

impl From<OperatorInfo> for OperatorView {
    fn from(info: OperatorInfo) -> Self {
        let OperatorInfo { name, role, created, expires } = info;
        Self { name, role, created: unix_seconds(created), expires: unix_seconds(expires) }
    }
}

impl From<TokenInfo> for TokenView {
    fn from(info: TokenInfo) -> Self {
        Self {
            id: info.id,
            created: unix_seconds(info.created),
            expires: unix_seconds(info.expires),
            reusable: info.reusable,
            used: info.used.map(unix_seconds),
            namespace: info.binding.namespace,
            service: info.binding.service,
        }
    }
}
