//! Where the decoder is, and what it found.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::time::Duration;

use pillion_model::endpoint::Fraction;
use prost::{Message, Name};

use super::source::{ConfigSource, Reference};
use super::{DecodeError, Decoded, Problem};
use crate::pb;

/// Takes fields that have no effect here and lists those that are set.
macro_rules! ignored {
    ($context:ident, $message:ident, $($field:ident),+ $(,)?) => {
        {
            $(if $crate::decode::was_set(&mut $message.$field) {
                $context.ignore(stringify!($field));
            })+
        }
    };
}

/// Takes fields that say what happens anyway.
macro_rules! inert {
    ($message:ident, $($field:ident = $value:expr),+ $(,)?) => {
        {
            $(if $message.$field == $value {
                $message.$field = Default::default();
            })+
        }
    };
}

/// Collects what is wrong while a message is read.
///
/// Functions give a value in any case, so that one run finds every problem; a context with
/// problems never gives that value out.
#[derive(Debug, Default)]
pub(crate) struct Context {
    path: Vec<String>,
    problems: Vec<Problem>,
    ignored: Vec<String>,
    references: Vec<Reference>,
}

impl Context {
    /// Reads a field.
    pub(crate) fn at<T>(&mut self, field: impl Display, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field.to_string());
        let value = read(self);
        self.path.pop();
        value
    }

    /// Reads every item of a repeated field.
    pub(crate) fn each<M, T>(
        &mut self,
        field: &str,
        items: impl IntoIterator<Item = M>,
        mut read: impl FnMut(&mut Self, M) -> T,
    ) -> Vec<T> {
        let items = items.into_iter().enumerate();
        items.map(|(index, item)| self.at(format_args!("{field}[{index}]"), |cx| read(cx, item))).collect()
    }

    /// Reads an optional message.
    pub(crate) fn some<M, T>(
        &mut self,
        field: &str,
        item: Option<M>,
        read: impl FnOnce(&mut Self, M) -> T,
    ) -> Option<T> {
        item.map(|item| self.at(field, |cx| read(cx, item)))
    }

    /// Refuses what is read at the moment.
    pub(crate) fn refuse(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem { path: self.path.join("."), reason: reason.into() });
    }

    /// Refuses a field of what is read at the moment.
    pub(crate) fn refuse_at(&mut self, field: impl Display, reason: impl Into<String>) {
        self.at(field, |cx| cx.refuse(reason));
    }

    /// Lists a field as accepted without effect.
    pub(crate) fn ignore(&mut self, field: impl Display) {
        self.path.push(field.to_string());
        self.ignored.push(self.path.join("."));
        self.path.pop();
    }

    /// Notes a resource that what is read at the moment names; gives what the model calls it.
    pub(crate) fn refer(&mut self, type_url: &'static str, name: &str, from: Option<ConfigSource>) -> String {
        let reference = Reference::new(type_url, name, from);
        let key = reference.key.clone();
        self.references.push(reference);
        key
    }

    /// The resources named so far.
    pub(crate) fn take_references(&mut self) -> Vec<Reference> {
        std::mem::take(&mut self.references)
    }

    /// Refuses every field that is still set: nobody took it.
    pub(crate) fn rest<M: Message + Default + PartialEq + Debug>(&mut self, message: &M) {
        for field in set_fields(message) {
            self.refuse_at(field, "is not supported");
        }
    }

    /// Unpacks a typed configuration that is known to be an `M`.
    pub(crate) fn unpack<M: Message + Name + Default>(&mut self, any: &pb::Any) -> M {
        M::decode(any.value.as_slice()).unwrap_or_else(|error| {
            self.refuse(format!("cannot be read as {}: {error}", M::full_name()));
            M::default()
        })
    }

    /// Refuses a typed configuration of an unknown type.
    pub(crate) fn unsupported_type(&mut self, any: &pb::Any, supported: &str) {
        let name = type_name(any);
        self.refuse_at("@type", format!("{name} is not supported; supported: {supported}"));
    }

    /// Refuses a missing field.
    pub(crate) fn missing(&mut self, field: &str) {
        self.refuse_at(field, "is missing");
    }

    pub(crate) fn port(&mut self, field: &str, value: u32) -> u16 {
        u16::try_from(value).unwrap_or_else(|_| {
            self.refuse_at(field, format!("got {value}, want a port from 0 to 65535"));
            0
        })
    }

    pub(crate) fn duration(&mut self, field: &str, value: Option<pb::Duration>) -> Option<Duration> {
        let value = value?;
        match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
            (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
            _ => {
                self.refuse_at(field, "want a duration that is not negative");
                None
            }
        }
    }

    /// A limit where zero means none.
    pub(crate) fn limit(
        &mut self,
        field: &str,
        value: Option<pb::Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        match self.duration(field, value) {
            None => default,
            Some(Duration::ZERO) => None,
            given => given,
        }
    }

    pub(crate) fn fraction(&mut self, value: pb::types::FractionalPercent) -> Fraction {
        use pb::types::fractional_percent::DenominatorType as D;
        let denominator = match D::try_from(value.denominator) {
            Ok(D::Hundred) => 100,
            Ok(D::TenThousand) => 10_000,
            Ok(D::Million) => 1_000_000,
            Err(_) => {
                self.refuse_at("denominator", "want HUNDRED, TEN_THOUSAND or MILLION");
                100
            }
        };
        Fraction { numerator: value.numerator, denominator }
    }

    /// There is no runtime layer: the default value holds.
    pub(crate) fn runtime_fraction(&mut self, mut value: pb::core::RuntimeFractionalPercent) -> Fraction {
        ignored!(self, value, runtime_key);
        match value.default_value {
            Some(share) => self.at("default_value", |cx| cx.fraction(share)),
            None => {
                self.missing("default_value");
                Fraction { numerator: 0, denominator: 100 }
            }
        }
    }

    /// A percentage that the model keeps as a whole number.
    pub(crate) fn percent(&mut self, field: &str, value: pb::types::Percent) -> u32 {
        if value.value.fract() == 0.0 && (0.0..=100.0).contains(&value.value) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked just above"
            )]
            return value.value as u32;
        }
        self.refuse_at(field, format!("got {}, want a whole number from 0 to 100", value.value));
        0
    }

    /// The value, if nothing was refused.
    pub(crate) fn finish<T>(self, value: T) -> Result<Decoded<T>, DecodeError> {
        if self.problems.is_empty() {
            Ok(Decoded { value, ignored: self.ignored, references: self.references })
        } else {
            Err(self.into_error())
        }
    }

    pub(crate) fn into_error(self) -> DecodeError {
        DecodeError { problems: self.problems }
    }
}

pub(crate) use {ignored, inert};

/// Resets a field and tells whether it was set.
pub(crate) fn was_set<T: Default + PartialEq>(field: &mut T) -> bool {
    std::mem::take(field) != T::default()
}

/// `envoy.extensions.….v3.Lua` of a type URL.
pub(crate) fn type_name(any: &pb::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether a typed configuration is an `M`.
pub(crate) fn is<M: Name>(any: &pb::Any) -> bool {
    type_name(any) == M::full_name()
}

/// Names of the fields that are not the default.
///
/// Generated messages have no reflection; their `Debug` form names every field, one to a line.
/// This runs only for messages that are about to be refused.
fn set_fields<M: Default + PartialEq + Debug>(message: &M) -> Vec<String> {
    let default = M::default();
    if *message == default {
        return Vec::new();
    }
    let (have, default) = (format!("{message:#?}"), format!("{default:#?}"));
    let (have, default) = (debug_fields(&have), debug_fields(&default));
    have.into_iter()
        .filter(|(name, text)| default.get(name) != Some(text))
        .map(|(name, _)| name.strip_prefix("r#").unwrap_or(name).to_owned())
        .collect()
}

/// The fields of a struct in `{:#?}`: their lines begin with four spaces and a name.
fn debug_fields(text: &str) -> BTreeMap<&str, String> {
    let mut fields: BTreeMap<&str, String> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some((name, value)) = line
            .strip_prefix("    ")
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '_'))
            .and_then(|line| line.split_once(": "))
        {
            current = name;
            fields.entry(current).or_default().push_str(value);
        } else if let Some(field) = fields.get_mut(current) {
            field.push_str(line);
        }
    }
    fields
}
