//! Reading requests: names in paths, query parameters, bodies, watch positions.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use pillion_config::{Format, Source};
use pillion_model::name::{InstanceId, NameError, ServiceName};
use serde_json::Value;

use super::problem::{Problem, ProblemField};
use crate::catalog::{World, parse_duration};

/// Longest a long poll may ask to wait.
const WAIT_MAX: Duration = Duration::from_secs(300);
const WAIT_DEFAULT: Duration = Duration::from_secs(60);

/// The query as given: names and values.
pub(super) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        pairs
            .map(|axum::extract::Query(pairs)| Self(pairs))
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))
    }
}

impl Query {
    /// Refuses parameters that are not among `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) if known.is_empty() => {
                Err(Problem::parameter(name, "no parameters are taken here"))
            }
            Some((name, _)) => Err(Problem::parameter(
                name,
                format!("is not a parameter here; the parameters are {}", known.join(", ")),
            )),
        }
    }

    pub(super) fn first<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.first(name) {
            None => Ok(None),
            Some("true" | "") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Problem::parameter(name, format!("got `{other}`, want true or false"))),
        }
    }

    pub(super) fn wait(&self) -> Result<Duration, Problem> {
        let Some(text) = self.first("wait") else { return Ok(WAIT_DEFAULT) };
        let wrong =
            || Problem::parameter("wait", format!("got `{text}`, want a duration up to 5m, such as 60s"));
        parse_duration(text).filter(|wait| *wait <= WAIT_MAX).ok_or_else(wrong)
    }

    /// `label=version=1` or `label=version`, all of which must hold.
    pub(super) fn labels(&self) -> Vec<(&str, Option<&str>)> {
        let split = |text| match str::split_once(text, '=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        self.all("label").map(split).collect()
    }
}

/// Where somebody watches from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// A revision of this history.
    Known(u64),
    /// Another history, or one that was compacted.
    Foreign,
}

/// Reads `<epoch>.<revision>`.
pub(super) fn position(field: &str, text: &str, world: &World) -> Result<Position, Problem> {
    let parts =
        text.rsplit_once('.').and_then(|(epoch, revision)| Some((epoch, revision.parse::<u64>().ok()?)));
    let Some((epoch, revision)) = parts else {
        let detail = format!("got `{text}`, want a token as an earlier answer gave it");
        return Err(Problem::parameter(field, detail));
    };
    let known = epoch == &*world.epoch && (world.floor..=world.revision).contains(&revision);
    Ok(if known { Position::Known(revision) } else { Position::Foreign })
}

/// A position that cannot be resumed from.
pub(super) fn gone(world: &World) -> Problem {
    let detail = format!(
        "this position is of another history or too old; read again without since, and go on from the \
         token of that answer (now {})",
        token(world)
    );
    Problem { kind: "urn:pillion:problem:resync", ..Problem::new(StatusCode::GONE, detail) }
}

pub(super) fn token(world: &World) -> String {
    format!("{}.{}", world.epoch, world.revision)
}

/// Checks the label of a service or a namespace.
pub(super) fn check(field: &str, label: &str) -> Result<(), Problem> {
    pillion_model::name::check_name(label).map_err(|error| {
        let reserved = matches!(error, NameError::Reserved(_)); // says the label itself
        Problem::field(field, if reserved { error.to_string() } else { format!("`{label}` {error}") })
    })
}

pub(super) fn service_name(namespace: &str, service: &str) -> Result<ServiceName, Problem> {
    for (field, label) in [("namespace", namespace), ("service", service)] {
        check(field, label)?;
    }
    ServiceName::new(namespace, service).map_err(|error| Problem::field("service", error.to_string()))
}

pub(super) fn instance_id(id: &str) -> Result<InstanceId, Problem> {
    InstanceId::parse(id).map_err(|error| Problem::field("id", format!("`{id}` {error}")))
}

pub(super) fn json(body: &[u8]) -> Result<Value, Problem> {
    super::json::read(body).map_err(|error| {
        let detail = format!("the body is not valid JSON: {error}");
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, detail);
        problem.errors.push(ProblemField {
            line: Some(error.line()),
            column: Some(error.column()),
            ..ProblemField::new("", error.to_string())
        });
        problem
    })
}

/// A body of resources: YAML unless the content type says JSON or TOML.
pub(super) fn source(headers: &HeaderMap, body: &[u8]) -> Result<Source, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = match essence.as_str() {
        "application/json" => Format::Json,
        "application/toml" | "text/toml" => Format::Toml,
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" | "text/plain" => {
            Format::Yaml
        }
        // What curl --data-binary says when it is not told.
        "" | "application/x-www-form-urlencoded" | "application/octet-stream" => Format::Yaml,
        other => {
            let detail = format!("got {other}, want application/yaml, application/json or application/toml");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
    };
    let text = std::str::from_utf8(body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not UTF-8 text: {error}"))
    })?;
    Ok(Source { name: Arc::from("body"), text: Arc::from(text), format })
}
