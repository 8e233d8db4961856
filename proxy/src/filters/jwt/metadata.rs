//! What a good token says, for the filters that come after.

use pillion_model::jwt::JwtProvider;
use pillion_model::metadata::{Fields, Value};
use serde_json::{Map, Value as Json};

use super::token::Token;
use crate::exchange::Head;

/// Whose metadata it is: Envoy's name of the filter.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Keeps payload and header, where they are wanted.
pub(super) fn note(head: &mut Head, provider: &JwtProvider, token: &Token<'_>) {
    let JwtProvider { payload_metadata, header_metadata, .. } = provider;
    if payload_metadata.is_empty() && header_metadata.is_empty() {
        return;
    }
    let ours = head.metadata.get_or_insert_default().entry(NAMESPACE.to_owned()).or_default();
    if !header_metadata.is_empty() {
        ours.insert(header_metadata.clone(), Value::Struct(fields(&token.header)));
    }
    if !payload_metadata.is_empty() {
        let mut payload = fields(&token.claims);
        provider.split_claims.iter().for_each(|claim| split(&mut payload, claim));
        ours.insert(payload_metadata.clone(), Value::Struct(payload));
    }
}

/// A text with words becomes a list of them.
fn split(payload: &mut Fields, claim: &str) {
    if let Some(value) = payload.get_mut(claim)
        && let Value::Text(text) = value
    {
        *value = Value::List(text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect());
    }
}

fn fields(map: &Map<String, Json>) -> Fields {
    map.iter().map(|(name, one)| (name.clone(), value(one))).collect()
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(on) => Value::Bool(*on),
        Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(all) => Value::List(all.iter().map(value).collect()),
        Json::Object(map) => Value::Struct(fields(map)),
    }
}
