//! Resources: read, written with conditions, applied all or nothing.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pillion_config::{Format, Kind, Positioned, Resource, ResourceKey, Source, locate, parse};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::problem::ProblemField;
use super::request::{Query, source, token};
use super::{Api, Problem};
use crate::catalog::World;
use crate::resources::{ApplyError, Change, Mode, Outcome, ResourceEntry};

/// Resources with their ETags, and the revision they are as of.
#[derive(Serialize, JsonSchema)]
pub(super) struct ResourceList {
    /// `<epoch>.<revision>`.
    token: String,
    /// Kind by kind, in the order of namespaces and names.
    resources: Vec<Value>,
}

/// What an apply did, or would do.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AppliedView {
    /// `<epoch>.<revision>` at which everybody sees it.
    token: String,
    /// Nothing was written.
    dry_run: bool,
    /// In the order of the body.
    results: Vec<AppliedResource>,
}

/// What became of one resource.
#[derive(Serialize, JsonSchema)]
pub(super) struct AppliedResource {
    kind: &'static str,
    namespace: String,
    name: String,
    /// `created`, `updated` or `unchanged`.
    result: &'static str,
}

pub(super) async fn list_all(State(api): State<Api>, query: Query) -> Result<Json<ResourceList>, Problem> {
    listed(&api, &query, None)
}

pub(super) async fn list(
    State(api): State<Api>,
    Path(kind): Path<String>,
    query: Query,
) -> Result<Json<ResourceList>, Problem> {
    listed(&api, &query, Some(parse_kind(&kind)?))
}

fn listed(api: &Api, query: &Query, kind: Option<Kind>) -> Result<Json<ResourceList>, Problem> {
    query.only(&["namespace"])?;
    let world = api.catalog.world();
    let wanted = |key: &ResourceKey| {
        kind.is_none_or(|kind| key.kind == kind)
            && query.first("namespace").is_none_or(|namespace| key.namespace == namespace)
    };
    let entries = world.resources.entries.iter().filter(|(key, _)| wanted(key));
    let resources = entries.map(|(_, entry)| entry.resource.to_json()).collect();
    Ok(Json(ResourceList { token: token(&world), resources }))
}

type Names = Path<(String, String, String)>;

pub(super) async fn read(State(api): State<Api>, path: Names) -> Result<Response, Problem> {
    let key = key(path)?;
    let world = api.catalog.world();
    let entry = world.resources.entries.get(&key).ok_or_else(|| Problem::not_found(&key))?;
    Ok(shown(StatusCode::OK, entry))
}

pub(super) async fn replace(
    State(api): State<Api>,
    path: Names,
    query: Query,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    query.only(&["dryRun"])?;
    let key = key(path)?;
    let source = with_key(source(&headers, &body)?, &key);
    let found = parse(&[source])?;
    let [one] = &found[..] else {
        let detail = format!("the body holds {} resources, want one; see POST /v1/apply", found.len());
        return Err(Problem::field("", detail));
    };
    if one.value.key() != key {
        let detail = format!("the body is {}, the path says {key}", one.value.key());
        return Err(Problem::field("name", detail));
    }
    let world = api.catalog.world();
    let change = Change {
        put: vec![one.value.clone()],
        conditions: conditions(&headers, &key, &world)?,
        ..Change::default()
    };
    let mode = mode(&query)?;
    let applied = api.catalog.apply_resources(&change, mode).await.map_err(|error| placed(error, &found))?;
    let status = match applied.outcomes.first() {
        Some((_, Outcome::Created)) => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let world = api.catalog.world();
    match world.resources.entries.get(&key) {
        Some(entry) if mode == Mode::Commit => Ok(shown(status, entry)),
        _ => Ok((status, Json(one.value.to_json())).into_response()),
    }
}

pub(super) async fn remove(
    State(api): State<Api>,
    path: Names,
    query: Query,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    query.only(&["dryRun"])?;
    let key = key(path)?;
    let world = api.catalog.world();
    let conditions = conditions(&headers, &key, &world)?;
    let change = Change { delete: vec![key.clone()], conditions, ..Change::default() };
    match api.catalog.apply_resources(&change, mode(&query)?).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        // What is wrong is that others need it, not the request's form.
        Err(error @ ApplyError::Invalid(_)) => {
            let mut problem = Problem::from(error);
            problem.status = StatusCode::CONFLICT.as_u16();
            problem.title = "Conflict".to_owned();
            problem.detail = format!("{key} is still needed: {}", problem.detail);
            Err(problem)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn apply(
    State(api): State<Api>,
    query: Query,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<AppliedView>, Problem> {
    query.only(&["dryRun"])?;
    let found = parse(&[source(&headers, &body)?])?;
    if found.is_empty() {
        return Err(Problem::field("", "the body holds no resource"));
    }
    let put = found.iter().map(|resource| resource.value.clone()).collect();
    let mode = mode(&query)?;
    let change = Change { put, ..Change::default() };
    let applied = api.catalog.apply_resources(&change, mode).await.map_err(|error| placed(error, &found))?;
    let results = applied.outcomes.into_iter().map(|(key, outcome)| AppliedResource {
        kind: key.kind.as_str(),
        namespace: key.namespace,
        name: key.name,
        result: match outcome {
            Outcome::Created => "created",
            Outcome::Updated => "updated",
            Outcome::Unchanged => "unchanged",
            Outcome::Deleted => "deleted",
        },
    });
    let epoch = &api.catalog.world().epoch;
    Ok(Json(AppliedView {
        token: format!("{epoch}.{}", applied.revision),
        dry_run: mode == Mode::DryRun,
        results: results.collect(),
    }))
}

/// Problems at their places in the body.
fn placed(error: ApplyError, found: &[Positioned<Resource>]) -> Problem {
    let ApplyError::Invalid(problems) = error else { return error.into() };
    let places = locate(&problems, found);
    let fields = problems.into_iter().zip(places.0).map(|(problem, place)| ProblemField {
        resource: Some(problem.key.to_string()),
        line: place.position().map(|position| position.line),
        column: place.position().map(|position| position.column),
        ..ProblemField::new(problem.path, problem.message)
    });
    Problem::fields(StatusCode::UNPROCESSABLE_ENTITY, fields.collect())
}

fn mode(query: &Query) -> Result<Mode, Problem> {
    Ok(if query.flag("dryRun")?.unwrap_or(false) { Mode::DryRun } else { Mode::Commit })
}

fn parse_kind(text: &str) -> Result<Kind, Problem> {
    Kind::parse_lenient(text).ok_or_else(|| {
        let kinds = Kind::ALL.map(Kind::as_str).join(", ");
        let detail = format!("unknown kind `{text}`, want one of {kinds}");
        Problem::fields(StatusCode::NOT_FOUND, vec![ProblemField::new("kind", detail)])
    })
}

fn key(Path((kind, namespace, name)): Names) -> Result<ResourceKey, Problem> {
    Ok(ResourceKey::new(parse_kind(&kind)?, namespace, name))
}

/// A JSON body need not repeat what the path says.
fn with_key(source: Source, key: &ResourceKey) -> Source {
    if source.format != Format::Json {
        return source;
    }
    let Ok(Value::Object(mut map)) = serde_json::from_str(&source.text) else { return source };
    let complete = ["kind", "namespace", "name"].iter().all(|field| map.contains_key(*field));
    if complete {
        return source; // as written, so that errors point into it
    }
    for (field, value) in [("kind", key.kind.as_str()), ("namespace", &key.namespace), ("name", &key.name)] {
        map.entry(field).or_insert_with(|| json!(value));
    }
    Source { text: Value::Object(map).to_string().into(), ..source }
}

/// `If-Match` and `If-None-Match: *` (RFC 9110 section 13.1).
fn conditions(
    headers: &HeaderMap,
    key: &ResourceKey,
    world: &World,
) -> Result<Vec<(ResourceKey, Option<u64>)>, Problem> {
    let mut conditions = Vec::new();
    if let Some(wanted) = headers.get(header::IF_MATCH) {
        let have = world.resources.entries.get(key).map(|entry| entry.revision);
        let matching = wanted.to_str().unwrap_or_default().split(',').map(str::trim);
        let matching = matching.map(|tag| if tag == "*" { have } else { etag_revision(tag) });
        let Some(revision) = matching.flatten().find(|revision| Some(*revision) == have) else {
            let now =
                have.map_or_else(|| "it is not there".to_owned(), |have| format!("it is \"{have}\" now"));
            let detail = format!("{key} is not as If-Match says: {now}");
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail));
        };
        conditions.push((key.clone(), Some(revision)));
    }
    if headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag == "*") {
        conditions.push((key.clone(), None));
    }
    Ok(conditions)
}

fn etag_revision(tag: &str) -> Option<u64> {
    tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn shown(status: StatusCode, entry: &ResourceEntry) -> Response {
    let mut response = (status, Json(entry.resource.to_json())).into_response();
    let etag = HeaderValue::from_str(&format!("\"{}\"", entry.revision)).ok();
    response.headers_mut().extend(etag.map(|etag| (header::ETAG, etag)));
    response
}
