//! Values that configuration and filters hang on endpoints, routes and requests. Envoy: `Metadata`.

use std::collections::BTreeMap;

/// One value. Envoy: `google.protobuf.Value`.
///
/// Values of different kinds are never equal: the number 1 is not the text `1`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number; JSON knows one kind only.
    Number(f64),
    /// A text.
    Text(String),
    /// Several values.
    List(Vec<Self>),
    /// Values by name.
    Struct(Fields),
}

/// Values by name.
pub type Fields = BTreeMap<String, Value>;

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
