//! Registering many instances with one request.

use std::collections::HashSet;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use pillion_model::name::DEFAULT_NAMESPACE;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::instances::held_by_sidecar;
use super::problem::ProblemField;
use super::request::{Query, instance_id, json, service_name};
use super::{Api, BeatView, InstanceDocument, Problem};
use crate::catalog::Registration;

/// Instances in one request at most.
const INSTANCES_MAX: usize = 10_000;

/// Many registrations, 10000 at most.
#[derive(Serialize, JsonSchema)]
pub(super) struct InstancesDocument {
    instances: Vec<InstanceOf>,
}

/// Who registers, beside what it says about itself.
#[derive(Serialize, JsonSchema)]
pub(super) struct InstanceOf {
    /// Default `default`.
    namespace: Option<String>,
    service: String,
    id: String,
    #[serde(flatten)]
    instance: InstanceDocument,
}

/// One result per registration, in their order.
#[derive(Serialize, JsonSchema)]
pub(super) struct RegisteredMany {
    results: Vec<RegisteredOne>,
}

/// What became of one registration: as if it had been made by itself.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RegisteredOne {
    /// 201 new, 200 replaced or unchanged, else what `problem` says.
    status: u16,
    /// The generation in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// How often to send a heartbeat, or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    beat_interval: Option<String>,
    /// What is wrong; its fields are JSON pointers into the request, such as `/instances/17/ports/http/port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// `POST /v1/instances`. What is wrong with one registration does not keep the others out.
pub(super) async fn register_many(
    State(api): State<Api>,
    query: Query,
    body: Bytes,
) -> Result<Json<RegisteredMany>, Problem> {
    const WANT: &str = "want a list of {namespace, service, id, address, …}";
    query.only(&[])?;
    let list = take_list(json(&body)?, "instances", INSTANCES_MAX, WANT)?;
    drop(body);
    let world = api.catalog.world();
    let (mut results, mut registrations) = (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
    let mut seen = HashSet::new();
    for (at, item) in list.into_iter().enumerate() {
        let read = read(item).and_then(|registration| match held_by_sidecar(&world, &registration) {
            Some(detail) => Err(Problem::new(StatusCode::CONFLICT, detail)),
            None => Ok(registration),
        });
        results.push(match read {
            Ok(registration) => {
                let new = seen.insert((registration.service.clone(), registration.id.clone()))
                    && world.catalog.instance(&registration.service, &registration.id).is_none();
                registrations.push(registration);
                RegisteredOne::done(if new { StatusCode::CREATED } else { StatusCode::OK })
            }
            Err(problem) => RegisteredOne::refused(at, problem),
        });
    }
    let mut outcomes = api.catalog.register_many(&registrations).await.into_iter();
    for (at, result) in results.iter_mut().enumerate().filter(|(_, result)| result.problem.is_none()) {
        match outcomes.next() {
            Some(Ok(registered)) => {
                let BeatView { generation, beat_interval, .. } = BeatView::from(&*registered.instance);
                (result.generation, result.beat_interval) = (Some(generation), Some(beat_interval));
            }
            Some(Err(error)) => *result = RegisteredOne::refused(at, error.into()),
            None => {
                let detail = "nothing is known of what became of it";
                let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail);
                *result = RegisteredOne::refused(at, problem);
            }
        }
    }
    Ok(Json(RegisteredMany { results }))
}

/// The list that is all that a request holds.
pub(super) fn take_list(body: Value, name: &str, max: usize, want: &str) -> Result<Vec<Value>, Problem> {
    let Value::Object(mut body) = body else {
        return Err(Problem::field("", format!("want an object with `{name}`: {want}")));
    };
    let list = body.remove(name);
    if let Some(unknown) = body.keys().next() {
        return Err(Problem::field(
            &format!("/{unknown}"),
            format!("is not a field; the only one is {name}"),
        ));
    }
    match list {
        Some(Value::Array(list)) if list.len() <= max => Ok(list),
        Some(Value::Array(list)) => {
            let detail = format!("got {} {name}, want at most {max}", list.len());
            let fields = vec![ProblemField::new(format!("/{name}"), detail)];
            Err(Problem::fields(StatusCode::PAYLOAD_TOO_LARGE, fields))
        }
        _ => Err(Problem::field(&format!("/{name}"), want)),
    }
}

fn read(item: Value) -> Result<Registration, Problem> {
    let Value::Object(mut item) = item else {
        return Err(Problem::field("", "want an object with at least service, id, address and port"));
    };
    let namespace = text(&mut item, "namespace")?.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let mut needed = |field| text(&mut item, field)?.ok_or_else(|| Problem::field(field, "is missing"));
    let (service, id) = (needed("service")?, needed("id")?);
    let (service, id) = (service_name(&namespace, &service)?, instance_id(&id)?);
    Ok(Registration::parse(service, id, &Value::Object(item))?)
}

fn text(item: &mut Map<String, Value>, field: &str) -> Result<Option<String>, Problem> {
    match item.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Problem::field(field, format!("got {other}, want a text"))),
    }
}

impl RegisteredOne {
    fn done(status: StatusCode) -> Self {
        Self { status: status.as_u16(), generation: None, beat_interval: None, problem: None }
    }

    fn refused(at: usize, problem: Problem) -> Self {
        let problem = pointed_at(problem, &format!("/instances/{at}"));
        Self { status: problem.status, generation: None, beat_interval: None, problem: Some(problem) }
    }
}

/// A problem of one part of a request, with its fields as JSON pointers (RFC 6901) into the whole.
pub(super) fn pointed_at(mut problem: Problem, part: &str) -> Problem {
    for error in &mut problem.errors {
        error.field = pointer(part, &error.field);
    }
    if let [one] = &problem.errors[..] {
        problem.detail = format!("{}: {}", one.field, one.detail);
    }
    problem
}

fn pointer(part: &str, field: &str) -> String {
    let escape = |part: &str| part.replace('~', "~0").replace('/', "~1");
    let parts: Vec<String> = match field.split_once('.') {
        // Names of labels may have dots.
        Some((map @ ("labels" | "metadata"), name)) => vec![map.to_owned(), escape(name)],
        _ => field.split('.').filter(|part| !part.is_empty()).map(escape).collect(),
    };
    parts.iter().fold(part.to_owned(), |pointer, part| format!("{pointer}/{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_pointed_at() {
        for (field, want) in [
            ("ports.http.port", "/instances/17/ports/http/port"),
            ("labels.example.com/a~b", "/instances/17/labels/example.com~1a~0b"),
            ("address", "/instances/17/address"),
            ("", "/instances/17"),
        ] {
            assert_eq!(pointer("/instances/17", field), want, "{field}");
        }
    }
}
