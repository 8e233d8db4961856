//! Metadata as values.

use pillion_model::metadata::{Fields, Value};

use super::Context;
use super::context::ignored;
use crate::pb;

/// The values of a struct.
pub(super) fn fields(fields: pb::Struct) -> Fields {
    fields.fields.into_iter().map(|(name, one)| (name, value(one))).collect()
}

fn value(value: pb::Value) -> Value {
    match value.kind {
        None | Some(pb::Kind::NullValue(_)) => Value::Null,
        Some(pb::Kind::BoolValue(on)) => Value::Bool(on),
        Some(pb::Kind::NumberValue(number)) => Value::Number(number),
        Some(pb::Kind::StringValue(text)) => Value::Text(text),
        Some(pb::Kind::ListValue(list)) => Value::List(list.values.into_iter().map(self::value).collect()),
        Some(pb::Kind::StructValue(inner)) => Value::Struct(fields(inner)),
    }
}

/// The labels that a route asks endpoints for; nothing reads what else it says.
pub(super) fn labels(cx: &mut Context, mut metadata: pb::core::Metadata) -> Fields {
    let labels = metadata.filter_metadata.remove(pb::names::SUBSET).unwrap_or_default();
    ignored!(cx, metadata, filter_metadata, typed_filter_metadata);
    fields(labels)
}
