//! The OpenAPI 3.1 document: operations from the router's table, schemas from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::authority::{RevocationDocument, RootsView, RotateDocument};
use super::batch::{InstancesDocument, RegisteredMany};
use super::consul::{Agent, HealthEntries, ServiceTags};
use super::federation::FederationList;
use super::instances::{HeartbeatDocument, HeartbeatsDocument, HeartbeatsView, RegisteredView};
use super::operate::{AuditList, BrakeView, StoreView, TargetGroups};
use super::proxies::{ProxyDetails, ProxyList};
use super::resources::{AppliedView, ResourceList};
use super::tokens::{AuthorityView, NewTokenView, TokenDocument, TokenList};
use super::{BeatView, InstanceDocument, InstanceList, InstanceView, Problem, ServiceList, ServiceView};

use crate::ca::Role;
use crate::explain::{Explanation, Question};

const SCHEMAS: &str = "#/components/schemas/";

/// One operation: where it is, what it takes and what it gives.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    query: Vec<&'static str>,
    body: Option<Body>,
    response: Option<&'static str>,
    status: u16,
    stream: bool,
    pub(super) access: Access,
}

/// Who may ask.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever has a token of this role.
    Token(Role),
    /// Whoever has one of role write, or signs with the operator's; the handler asks.
    Signed,
    /// Everybody.
    Open,
}

/// A request's body.
pub(super) struct Body {
    schema: &'static str,
    kinds: &'static [&'static str],
    required: bool,
}

impl Body {
    pub(super) fn json(schema: &'static str) -> Self {
        Self { schema, kinds: &["application/json"], required: true }
    }

    pub(super) fn optional(schema: &'static str) -> Self {
        Self { required: false, ..Self::json(schema) }
    }

    pub(super) fn resource() -> Self {
        let kinds = &["application/yaml", "application/json", "application/toml"];
        Self { schema: "Resource", kinds, required: true }
    }
}

impl Operation {
    pub(super) fn new(method: &'static str, path: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            summary,
            query: Vec::new(),
            body: None,
            response: None,
            status: 200,
            stream: false,
            access: Access::Token(if method == "get" { Role::Read } else { Role::Write }),
        }
    }

    pub(super) fn query(mut self, names: &[&'static str]) -> Self {
        self.query = names.to_vec();
        self
    }

    pub(super) fn takes(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) fn gives(mut self, schema: &'static str) -> Self {
        self.response = Some(schema);
        self
    }

    pub(super) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(super) fn stream(mut self) -> Self {
        self.stream = true;
        self
    }

    /// Needs another role than the method says.
    pub(super) fn role(mut self, role: Role) -> Self {
        self.access = Access::Token(role);
        self
    }

    /// Needs no token.
    pub(super) fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    /// Is signed with the token, and not described here further: its schemas are AWS'.
    pub(super) fn signed(mut self) -> Self {
        self.access = Access::Signed;
        self
    }

    fn document(&self) -> Value {
        let mut parameters: Vec<Value> = self
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let query = self.query.iter();
        parameters
            .extend(query.map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})));
        let content = match self.response {
            Some(schema) => json!({"application/json": {"schema": reference(schema)}}),
            None if self.stream => json!({"text/event-stream": {"schema": {"type": "string"}}}),
            None => json!({}),
        };
        let mut operation = json!({
            "summary": self.summary,
            "parameters": parameters,
            "responses": {
                self.status.to_string(): {"description": "done", "content": content},
                "default": {
                    "description": "what is wrong",
                    "content": {"application/problem+json": {"schema": reference("Problem")}},
                },
            },
        });
        if let Some(body) = &self.body {
            let content: Map<String, Value> = body
                .kinds
                .iter()
                .map(|kind| ((*kind).to_owned(), json!({"schema": reference(body.schema)})))
                .collect();
            operation["requestBody"] = json!({"required": body.required, "content": content});
        }
        match self.access {
            Access::Token(role) => operation["security"] = json!([{"operator": [role]}]),
            Access::Signed => {
                operation["security"] = json!([{"operator": [Role::Write]}, {"signature": []}]);
            }
            Access::Open => {}
        }
        operation
    }
}

pub(super) fn document(operations: &[Operation]) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.document();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Pillion registry",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Services, instances and resources of a mesh.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a token of at least the role that the operation names: read, write, admin",
                },
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "AWS Signature Version 4; the secret access key is the operator's token",
                },
            },
        },
    })
}

fn schemas() -> Map<String, Value> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = SCHEMAS.trim_start_matches('#').trim_end_matches('/').to_owned().into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    generator.subschema_for::<InstanceDocument>();
    generator.subschema_for::<InstanceView>();
    generator.subschema_for::<RegisteredView>();
    generator.subschema_for::<InstancesDocument>();
    generator.subschema_for::<RegisteredMany>();
    generator.subschema_for::<HeartbeatDocument>();
    generator.subschema_for::<HeartbeatsDocument>();
    generator.subschema_for::<HeartbeatsView>();
    generator.subschema_for::<BeatView>();
    generator.subschema_for::<InstanceList>();
    generator.subschema_for::<ServiceList>();
    generator.subschema_for::<ServiceView>();
    generator.subschema_for::<ResourceList>();
    generator.subschema_for::<AppliedView>();
    generator.subschema_for::<TargetGroups>();
    generator.subschema_for::<Agent>();
    generator.subschema_for::<HealthEntries>();
    generator.subschema_for::<ServiceTags>();
    generator.subschema_for::<ProxyList>();
    generator.subschema_for::<ProxyDetails>();
    generator.subschema_for::<BrakeView>();
    generator.subschema_for::<StoreView>();
    generator.subschema_for::<Question>();
    generator.subschema_for::<Explanation>();
    generator.subschema_for::<TokenDocument>();
    generator.subschema_for::<NewTokenView>();
    generator.subschema_for::<TokenList>();
    generator.subschema_for::<AuthorityView>();
    generator.subschema_for::<RootsView>();
    generator.subschema_for::<FederationList>();
    generator.subschema_for::<RotateDocument>();
    generator.subschema_for::<RevocationDocument>();
    generator.subschema_for::<AuditList>();
    generator.subschema_for::<Problem>();
    let mut schemas = generator.take_definitions(true);
    schemas.extend(pillion_config::definitions(SCHEMAS));
    let kinds = pillion_config::Kind::ALL.map(|kind| reference(kind.as_str()));
    schemas.insert("Resource".to_owned(), json!({"oneOf": kinds}));
    schemas
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("{SCHEMAS}{schema}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_as_last_agreed() {
        let document = super::super::openapi();
        insta::assert_json_snapshot!(document);
    }

    #[test]
    fn every_reference_in_the_document_resolves() {
        fn check(value: &Value, root: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        let pointer = to.strip_prefix('#').expect("a local reference");
                        assert!(root.pointer(pointer).is_some(), "{to} leads nowhere");
                    }
                    map.values().for_each(|value| check(value, root));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, root)),
                _ => {}
            }
        }
        let document = super::super::openapi();
        check(&document, &document);
    }
}
