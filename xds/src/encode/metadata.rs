//! Values as metadata.

use std::collections::BTreeMap;

use pillion_model::metadata::{Fields, Value};

use crate::pb;

/// Values as a struct.
pub(super) fn fields(fields: &Fields) -> pb::Struct {
    pb::Struct { fields: fields.iter().map(|(name, one)| (name.clone(), value(one))).collect() }
}

fn value(value: &Value) -> pb::Value {
    let kind = match value {
        Value::Null => pb::Kind::NullValue(0),
        Value::Bool(on) => pb::Kind::BoolValue(*on),
        Value::Number(number) => pb::Kind::NumberValue(*number),
        Value::Text(text) => pb::Kind::StringValue(text.clone()),
        Value::List(values) => {
            pb::Kind::ListValue(pb::ListValue { values: values.iter().map(self::value).collect() })
        }
        Value::Struct(inner) => pb::Kind::StructValue(fields(inner)),
    };
    pb::Value { kind: Some(kind) }
}

/// The labels that a route asks endpoints for.
pub(super) fn labels(labels: &Fields) -> Option<pb::core::Metadata> {
    super::metadata(BTreeMap::from([(pb::names::SUBSET, fields(labels))]))
}
