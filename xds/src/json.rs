//! Envoy's resources as JSON, the form of bootstrap files and of `/config_dump`.
//!
//! Needs the descriptors of Envoy's API, which take some 20 MB once loaded: nothing on the way of
//! ordinary resources comes here.

use std::borrow::Cow;
use std::sync::OnceLock;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use serde_json::{Map, Value};

use crate::decode::Problem;
use crate::pb;

/// Why a message cannot be written as JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// A type that is not part of Envoy's API or ours.
    #[error("no descriptor of type `{0}`")]
    UnknownType(String),
    /// The bytes are not a message of the type.
    #[error("cannot be read as `{type_name}`")]
    Decode {
        /// The type.
        type_name: String,
        /// What the protobuf decoder says.
        source: prost::DecodeError,
    },
    /// The message holds what JSON cannot, such as an `Any` of an unknown type.
    #[error("`{type_name}` has no JSON form")]
    Serialize {
        /// The type.
        type_name: String,
        /// What the serializer says.
        source: serde_json::Error,
    },
}

/// A packed resource as JSON, its type under `@type`.
///
/// # Errors
///
/// The type is unknown, or the bytes are not of that type.
pub fn to_json(any: &pb::Any) -> Result<Value, JsonError> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let mut value = message_to_json(type_name, &any.value)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".to_owned(), Value::String(any.type_url.clone()));
    }
    Ok(value)
}

/// Reads a `DiscoveryResponse`, as a file has it, from JSON.
///
/// # Errors
///
/// Every field that cannot be read, by path.
pub fn discovery_response(value: &Value) -> Result<DiscoveryResponse, Vec<Problem>> {
    message_from_json(&DiscoveryResponse::full_name(), value)
}

/// Reads a resource, its type under `@type`, from JSON.
///
/// # Errors
///
/// Every field that cannot be read, by path.
pub fn any_from_json(value: &Value) -> Result<Any, Vec<Problem>> {
    message_from_json(&Any::full_name(), value)
}

/// A message as JSON: field names as in the proto files, defaults left out.
pub(crate) fn message_to_json(type_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    let type_name = type_name.to_owned();
    let Some(descriptor) = pool().get_message_by_name(&type_name) else {
        return Err(JsonError::UnknownType(type_name));
    };
    let message = match DynamicMessage::decode(descriptor, bytes) {
        Ok(message) => message,
        Err(source) => return Err(JsonError::Decode { type_name, source }),
    };
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|source| JsonError::Serialize { type_name, source })
}

/// Reads a message from JSON, or says of every field that is not right what is wrong with it.
pub(crate) fn message_from_json<M: Message + Default>(
    type_name: &str,
    value: &Value,
) -> Result<M, Vec<Problem>> {
    let problem = |reason: String| vec![Problem { path: String::new(), reason }];
    let descriptor = pool()
        .get_message_by_name(type_name)
        .ok_or_else(|| problem(format!("no descriptor of {type_name}")))?;
    let mut value = Cow::Borrowed(value);
    if has_switch(&value) {
        write_switches(value.to_mut());
    }
    let value = &*value;
    match read(&descriptor, value) {
        Ok(message) => {
            M::decode(message.encode_to_vec().as_slice()).map_err(|error| problem(error.to_string()))
        }
        Err(error) => {
            let mut problems = Vec::new();
            locate(&descriptor, value, "", &mut problems);
            // What is only wrong together has no place of its own.
            if problems.is_empty() { Err(problem(error)) } else { Err(problems) }
        }
    }
}

fn has_switch(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_switch),
        Value::Object(fields) => is_switch(fields) || fields.values().any(has_switch),
        _ => false,
    }
}

fn is_switch(fields: &Map<String, Value>) -> bool {
    fields.get("@type").and_then(Value::as_str).is_some_and(|kind| kind.ends_with(FILTER_CONFIG))
}

/// A filter is switched on by `FilterConfig` with an empty `config`, which as JSON has no type.
fn write_switches(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(write_switches),
        Value::Object(fields) => {
            if is_switch(fields)
                && let Some(Value::Object(config)) = fields.get_mut("config")
                && config.is_empty()
            {
                config.insert("@type".to_owned(), Value::String(EMPTY.to_owned()));
                config.insert("value".to_owned(), Value::Object(Map::new()));
            }
            fields.values_mut().for_each(write_switches);
        }
        _ => {}
    }
}

const FILTER_CONFIG: &str = "/envoy.config.route.v3.FilterConfig";
const EMPTY: &str = "type.googleapis.com/google.protobuf.Empty";

fn read(descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, String> {
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &DeserializeOptions::new())
        .map_err(|error| error.to_string())
}

/// Finds the fields that cannot be read, by reading each by itself.
fn locate(descriptor: &MessageDescriptor, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let Value::Object(fields) = value else {
        problems
            .push(Problem { path: path.to_owned(), reason: format!("got {}, want an object", kind(value)) });
        return;
    };
    if descriptor.full_name() == "google.protobuf.Any" {
        return locate_any(fields, path, problems);
    }
    for (name, value) in fields {
        let path = join(path, name);
        match field(descriptor, name) {
            None => problems.push(Problem { path, reason: unknown(descriptor, name) }),
            Some(field) => locate_field(descriptor, &field, name, value, &path, problems),
        }
    }
}

fn locate_field(
    descriptor: &MessageDescriptor,
    field: &FieldDescriptor,
    name: &str,
    value: &Value,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    let alone = |value: Value| Value::Object(Map::from_iter([(name.to_owned(), value)]));
    let Err(error) = read(descriptor, &alone(value.clone())) else { return };
    let before = problems.len();
    match (inner(field), value) {
        (inner, Value::Array(items)) if field.is_list() => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                match &inner {
                    Some(inner) => locate(inner, item, &path, problems),
                    None => {
                        if let Err(reason) = read(descriptor, &alone(Value::Array(vec![item.clone()]))) {
                            problems.push(Problem { path, reason });
                        }
                    }
                }
            }
        }
        (Some(inner), Value::Object(entries)) if field.is_map() => {
            for (key, item) in entries {
                locate(&inner, item, &format!("{path}[\"{key}\"]"), problems);
            }
        }
        (Some(inner), value) if !field.is_list() && !field.is_map() => locate(&inner, value, path, problems),
        _ => {}
    }
    if problems.len() == before {
        problems.push(Problem { path: path.to_owned(), reason: error });
    }
}

fn locate_any(fields: &Map<String, Value>, path: &str, problems: &mut Vec<Problem>) {
    let at = join(path, "@type");
    let Some(Value::String(url)) = fields.get("@type") else {
        problems.push(Problem { path: at, reason: "is missing".to_owned() });
        return;
    };
    let type_name = url.rsplit('/').next().unwrap_or_default();
    let Some(descriptor) = pool().get_message_by_name(type_name) else {
        problems.push(Problem { path: at, reason: format!("{type_name} is not a type of Envoy's API v3") });
        return;
    };
    let fields = fields.iter().filter(|(name, _)| *name != "@type");
    let inner = Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect());
    locate(&descriptor, &inner, path, problems);
}

/// The message type of a field's items, if one can look into it.
fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    let kind = match field.kind() {
        Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    };
    match kind {
        Kind::Message(message) => {
            let name = message.full_name();
            (name == "google.protobuf.Any" || !name.starts_with("google.protobuf.")).then_some(message)
        }
        _ => None,
    }
}

fn field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name))
}

fn unknown(descriptor: &MessageDescriptor, name: &str) -> String {
    let nearest = descriptor
        .fields()
        .map(|field| (strsim::damerau_levenshtein(field.name(), name), field.name().to_owned()))
        .min()
        .filter(|(distance, _)| *distance <= 3.min(name.len() / 2));
    match nearest {
        Some((_, nearest)) => format!("is not a field of {}; did you mean `{nearest}`?", descriptor.name()),
        None => format!("is not a field of {}", descriptor.name()),
    }
}

/// What a JSON value is, in a word.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Descriptors of Envoy's API and of ours; see `xds/descriptors/README.md`.
/// Of Envoy's API and ours.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("../descriptors/envoy.bin");

fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(DESCRIPTORS).expect("the committed descriptors are read by a test")
    })
}
