//! JSON in which no key stands twice.
//!
//! Readers of JSON differ in which of two values they take: what one of them checked is not what
//! another one acts on.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads a document.
///
/// # Errors
///
/// What is wrong, with line and column; a key that stands twice is named with where it is.
pub(super) fn read(body: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = At::Top.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Where a value is.
#[derive(Clone, Copy)]
enum At<'a> {
    Top,
    Field(&'a Self, &'a str),
    Element(&'a Self, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => Ok(()),
            Self::Field(Self::Top, key) => f.write_str(key),
            Self::Field(at, key) => write!(f, "{at}.{key}"),
            Self::Element(at, index) => write!(f, "{at}[{index}]"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = elements.next_element_seed(At::Element(&self, list.len()))? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "`{}` stands there twice",
                    At::Field(&self, &key)
                )));
            }
            let value = fields.next_value_seed(At::Field(&self, &key))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_by_name_and_place() {
        for (text, want) in [
            (r#"{"port":1,"port":2}"#, "`port` stands there twice at line 1 column"),
            (
                "{\n \"ports\": {\"http\": {\"port\": 1,\n \"port\": 1}}}",
                "`ports.http.port` stands there twice at line 3 column",
            ),
            (r#"{"instances":[{},{"id":"a","\u0069d":"b"}]}"#, "`instances[1].id` stands there twice"),
            ("{\"a\":1} 2", "trailing characters"),
            ("{\"a\":", "EOF while parsing"),
        ] {
            let error = read(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn everything_else_is_read_as_ever() {
        for text in [
            r#"{"a":[1,-2,3.5,true,null,"x\n"],"b":{"a":{"a":18446744073709551615}}}"#,
            "[]",
            "\"text\"",
            "1e3",
            "null",
        ] {
            let want: Value = serde_json::from_str(text).expect(text);
            assert_eq!(read(text.as_bytes()).expect(text), want, "{text}");
        }
    }
}
