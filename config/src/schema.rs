//! JSON Schema of every kind, for editors and for the API's document.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::{AuthorizationPolicy, Federation, Kind, Mesh, Route, Service};

/// The JSON Schema (2020-12) of any resource.
pub fn schema() -> Value {
    let (kinds, defs) = generate("#/$defs/");
    let refs: Vec<Value> = kinds.iter().map(|(name, _)| json!({"$ref": format!("#/$defs/{name}")})).collect();
    let mut all = kinds;
    all.extend(defs);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pillion resource",
        "oneOf": refs,
        "$defs": all,
    })
}

/// Every kind and every type they use, by name, with references below `prefix` (such as
/// `#/components/schemas/`).
pub fn definitions(prefix: &str) -> Map<String, Value> {
    let (mut kinds, defs) = generate(prefix);
    kinds.extend(defs);
    kinds
}

fn generate(prefix: &str) -> (Map<String, Value>, Map<String, Value>) {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = prefix.trim_start_matches('#').trim_end_matches('/').to_owned().into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut kinds = Map::new();
    for kind in Kind::ALL {
        let fields = match kind {
            Kind::Mesh => fields_of::<Mesh>(&mut generator),
            Kind::Service => fields_of::<Service>(&mut generator),
            Kind::Route => fields_of::<Route>(&mut generator),
            Kind::AuthorizationPolicy => fields_of::<AuthorizationPolicy>(&mut generator),
            Kind::Federation => fields_of::<Federation>(&mut generator),
        };
        kinds.insert(kind.as_str().to_owned(), with_kind(kind, fields));
    }
    (kinds, generator.take_definitions(true))
}

fn fields_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    T::json_schema(generator).to_value()
}

/// Adds what every kind has: `kind`, `apiVersion`.
fn with_kind(kind: Kind, mut schema: Value) -> Value {
    let Value::Object(map) = &mut schema else { return schema };
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.insert("kind".to_owned(), json!({"const": kind.as_str()}));
        properties.insert("apiVersion".to_owned(), json!({"const": "pillion/v1"}));
        if kind == Kind::Mesh {
            properties.insert("namespace".to_owned(), json!({"const": "default"}));
            properties.insert("name".to_owned(), json!({"const": "mesh"}));
        }
    }
    let mut required = vec![json!("kind")];
    if let Some(Value::Array(more)) = map.get("required") {
        required.extend(more.iter().filter(|_| kind != Kind::Mesh).cloned());
    }
    map.insert("required".to_owned(), required.into());
    map.insert("title".to_owned(), kind.as_str().into());
    schema
}
