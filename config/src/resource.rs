//! Resources of every kind: from documents to types and back to JSON.

use pillion_model::name::{DEFAULT_NAMESPACE, ServiceName};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::format::{self, Part, Source};
use crate::kind::KINDS_LATER;
use crate::mesh::MESH_NAME;
use crate::node::{Node, Value};
use crate::reader::{Field, Object, Sink, did_you_mean};
use crate::{AuthorizationPolicy, Federation, Kind, Mesh, Problem, ResourceKey, Route, Service};

/// What `apiVersion` must be, where it is written.
const API_VERSION: &str = "pillion/v1";

/// One resource.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all resources are services, the largest")]
pub enum Resource {
    /// Settings of the whole mesh.
    Mesh(Mesh),
    /// Something callers reach by name.
    Service(Service),
    /// Rules for requests to a service.
    Route(Route),
    /// Who may call a service.
    AuthorizationPolicy(AuthorizationPolicy),
    /// Another mesh.
    Federation(Federation),
}

/// A resource with its place in the file it came from.
#[derive(Clone, Debug)]
pub struct Positioned<T> {
    /// The resource.
    pub value: T,
    source: Source,
    part: Part,
}

/// Namespace and name as every kind but Mesh has them.
pub(crate) struct Id {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Resource {
    /// Which resource this is.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Mesh(_) => ResourceKey::new(Kind::Mesh, DEFAULT_NAMESPACE, MESH_NAME),
            Self::Service(service) => ResourceKey::new(Kind::Service, &service.namespace, &service.name),
            Self::Route(route) => ResourceKey::new(Kind::Route, &route.namespace, &route.name),
            Self::AuthorizationPolicy(policy) => {
                ResourceKey::new(Kind::AuthorizationPolicy, &policy.namespace, &policy.name)
            }
            Self::Federation(federation) => {
                ResourceKey::new(Kind::Federation, &federation.namespace, &federation.name)
            }
        }
    }

    /// The resource as JSON, with `kind`, `namespace` and `name`.
    pub fn to_json(&self) -> serde_json::Value {
        let fields = match self {
            Self::Mesh(mesh) => serde_json::to_value(mesh),
            Self::Service(service) => serde_json::to_value(service),
            Self::Route(route) => serde_json::to_value(route),
            Self::AuthorizationPolicy(policy) => serde_json::to_value(policy),
            Self::Federation(federation) => serde_json::to_value(federation),
        };
        let fields = fields.expect("only texts, numbers, lists and maps with text keys are written");
        let mut map = serde_json::Map::new();
        map.insert("kind".to_owned(), self.key().kind.as_str().into());
        if let serde_json::Value::Object(fields) = fields {
            map.extend(fields);
        }
        serde_json::Value::Object(map)
    }

    /// Reads what [`Resource::to_json`] wrote, or what came through the API.
    ///
    /// # Errors
    ///
    /// Every mistake, with its field path.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, Diagnostics> {
        read(None, &Part { path: String::new(), node: Node::from_json(json) })
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = serde_json::Value::deserialize(deserializer)?;
        Self::from_json(&json).map_err(D::Error::custom)
    }
}

impl Service {
    /// The service's full name; `None` if its fields were changed to something no service is called.
    pub fn service_name(&self) -> Option<ServiceName> {
        ServiceName::new(&self.namespace, &self.name).ok()
    }
}

impl<T> Positioned<T> {
    /// A mistake at `path` (as in [`Problem::path`]) of this resource.
    pub fn diagnostic(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        let span = self.part.node.locate(&crate::path::parse(path));
        let path = match (self.part.path.as_str(), path) {
            ("", path) => path.to_owned(),
            (part, "") => part.to_owned(),
            (part, path) if path.starts_with('[') => format!("{part}{path}"),
            (part, path) => format!("{part}.{path}"),
        };
        Diagnostic::new(Some(&self.source), span, path, message)
    }
}

/// Reads every resource of every source.
///
/// # Errors
///
/// Every mistake of every source: syntax, unknown kinds and fields, values that are not valid, and
/// resources that are there twice. Rules that cross resources are [`crate::check`]'s.
pub fn parse(sources: &[Source]) -> Result<Vec<Positioned<Resource>>, Diagnostics> {
    let mut resources: Vec<Positioned<Resource>> = Vec::new();
    let mut found = Vec::new();
    for source in sources {
        let parts = match format::parts(source) {
            Ok(parts) => parts,
            Err(diagnostic) => {
                found.push(diagnostic);
                continue;
            }
        };
        for part in parts {
            match read(Some(source), &part) {
                Ok(value) => resources.push(Positioned { value, source: source.clone(), part }),
                Err(diagnostics) => found.extend(diagnostics.0),
            }
        }
    }
    found.extend(duplicates(&resources));
    if found.is_empty() { Ok(resources) } else { Err(Diagnostics(found)) }
}

fn duplicates(resources: &[Positioned<Resource>]) -> Vec<Diagnostic> {
    let mut first = std::collections::HashMap::new();
    let mut found = Vec::new();
    for resource in resources {
        let key = resource.value.key();
        let Some(before) = first.insert(key.clone(), resource) else { continue };
        let before = before.diagnostic("", "");
        let file = before.file().unwrap_or_default().to_owned();
        let line = before.position().map_or_else(String::new, |position| format!(":{}", position.line));
        let path = if key.kind == Kind::Mesh { "kind" } else { "name" };
        let message = format!("{key} is already defined in {file}{line}");
        found.push(resource.diagnostic(path, message));
    }
    found
}

/// Puts problems of [`crate::check`] at their places in the files; those of resources that are not among
/// `resources` name the resource instead.
pub fn locate(problems: &[Problem], resources: &[Positioned<Resource>]) -> Diagnostics {
    let place =
        |problem: &Problem| match resources.iter().find(|resource| resource.value.key() == problem.key) {
            Some(resource) => resource.diagnostic(&problem.path, problem.message.as_str()),
            None => Diagnostic::new(None, None, "", problem.to_string()),
        };
    Diagnostics(problems.iter().map(place).collect())
}

/// Reads one resource.
fn read(source: Option<&Source>, part: &Part) -> Result<Resource, Diagnostics> {
    let sink = Sink::new(source);
    let resource = Field::new(&part.node, part.path.clone(), &sink).object().and_then(read_object);
    let found = sink.into_diagnostics();
    match resource {
        Some(resource) if found.is_empty() => Ok(resource),
        _ => Err(found),
    }
}

fn read_object(mut object: Object<'_>) -> Option<Resource> {
    let kind = object.required("kind", read_kind)?;
    object.optional("apiVersion", |field| field.choice(&[(API_VERSION, ())]));
    if kind == Kind::Mesh {
        object.optional("namespace", |field| field.choice(&[(DEFAULT_NAMESPACE, ())]));
        object.optional("name", |field| field.choice(&[(MESH_NAME, ())]));
        return Mesh::read(object).map(Resource::Mesh);
    }
    let namespace = match object.has("namespace") {
        true => object.optional("namespace", Field::name),
        false => object.optional("namespace", Field::name).or_else(|| Some(DEFAULT_NAMESPACE.to_owned())),
    };
    let name =
        object.required("name", |field| if kind == Kind::Service { field.name() } else { field.label() });
    // The rest is read in any case, so that its mistakes are reported in the same run.
    let is_named = namespace.is_some() && name.is_some();
    let id = Id { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
    let resource = match kind {
        Kind::Mesh => None,
        Kind::Service => Service::read(id, object).map(Resource::Service),
        Kind::Route => Route::read(id, object).map(Resource::Route),
        Kind::AuthorizationPolicy => AuthorizationPolicy::read(id, object).map(Resource::AuthorizationPolicy),
        Kind::Federation => Federation::read(id, object).map(Resource::Federation),
    };
    resource.filter(|_| is_named)
}

fn read_kind(field: Field<'_>) -> Option<Kind> {
    let Value::Text(text) = &field.node.value else {
        field.refuse(format!("got {}, want a kind such as Service", field.node.describe()));
        return None;
    };
    if let Some(kind) = Kind::parse(text) {
        return Some(kind);
    }
    if KINDS_LATER.contains(&text.as_str()) {
        field.refuse(format!("kind {text} is not supported yet"));
        return None;
    }
    let names = Kind::ALL.map(Kind::as_str);
    let hint = did_you_mean(text, names.into_iter());
    field.refuse(format!("unknown kind {}, want one of {}{hint}", field.node.describe(), names.join(", ")));
    None
}
