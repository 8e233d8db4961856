//! Who a client says it is: the `node` of the first request of a stream.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Map, Number, Value};

/// Name of the user agent in the node of Pillion's own sidecars.
pub const PILLION_USER_AGENT: &str = "pillion";

/// A client's description of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInfo {
    /// `<namespace>/<service>/<instance-id>` for sidecars and generated bootstraps.
    pub id: String,
    /// Envoy's local service cluster.
    pub cluster: String,
    /// `pillion`, `envoy`, `gRPC Go`, …
    pub user_agent: String,
    /// Version of the user agent, if given as text.
    pub user_agent_version: String,
    /// Free-form metadata, an object.
    pub metadata: Value,
    /// Features of the client, such as `envoy.lb.does_not_support_overprovisioning`.
    pub client_features: Vec<String>,
}

impl NodeInfo {
    /// Whether the client is one of our own sidecars.
    #[must_use]
    pub fn is_pillion(&self) -> bool {
        self.user_agent == PILLION_USER_AGENT
    }

    /// Reads the wire form.
    #[must_use]
    pub fn from_proto(node: &Node) -> Self {
        let user_agent_version = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentVersion(text)) => text.clone(),
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
                .version
                .as_ref()
                .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
                .unwrap_or_default(),
            None => String::new(),
        };
        Self {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            user_agent: node.user_agent_name.clone(),
            user_agent_version,
            metadata: node.metadata.as_ref().map_or(Value::Null, struct_to_json),
            client_features: node.client_features.clone(),
        }
    }

    /// The wire form. Metadata that is not an object is left out.
    #[must_use]
    pub fn to_proto(&self) -> Node {
        Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            user_agent_name: self.user_agent.clone(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                self.user_agent_version.clone(),
            )),
            metadata: self.metadata.as_object().map(object_to_struct),
            client_features: self.client_features.clone(),
            ..Node::default()
        }
    }
}

fn struct_to_json(object: &Struct) -> Value {
    Value::Object(object.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect())
}

fn value_to_json(value: &ProtoValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => number_to_json(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(object)) => struct_to_json(object),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(value_to_json).collect()),
    }
}

/// Protobuf knows only doubles: whole numbers come back as integers, as they were written.
fn number_to_json(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    if number.fract() == 0.0 && number.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn object_to_struct(object: &Map<String, Value>) -> Struct {
    Struct { fields: object.iter().map(|(key, value)| (key.clone(), json_to_value(value))).collect() }
}

fn json_to_value(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(json_to_value).collect() })
        }
        Value::Object(object) => Kind::StructValue(object_to_struct(object)),
    };
    ProtoValue { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reads_back_what_it_wrote() {
        let node = NodeInfo {
            id: "shop/orders/a-1".into(),
            cluster: "orders".into(),
            user_agent: PILLION_USER_AGENT.into(),
            user_agent_version: "0.1.0".into(),
            metadata: serde_json::json!({"features": ["services"], "port": 15006, "load": 0.5, "nested": {"none": null, "yes": true}}),
            client_features: vec!["a".into()],
        };
        assert_eq!(NodeInfo::from_proto(&node.to_proto()), node);
        assert!(node.is_pillion());
    }
}
