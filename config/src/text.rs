//! Durations as people write them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// A duration written as `250ms`, `15s`, `5m` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationText(pub Duration);

/// Units, largest first, in microseconds.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

impl DurationText {
    /// Reads a duration: one or more whole numbers with unit (`d`, `h`, `m`, `s`, `ms`, `us`), largest
    /// unit first, or a decimal number with unit. `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total: u64 = 0;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            let &(_, unit_us) = UNITS.iter().find(|(name, _)| *name == unit)?;
            if unit_us >= smallest {
                return None;
            }
            smallest = unit_us;
            total = total.checked_add(amount(number, unit_us)?)?;
            rest = after;
        }
        (!text.is_empty()).then_some(Self(Duration::from_micros(total)))
    }
}

/// `number` (digits, perhaps with a decimal fraction) times `unit_us`, which must come out whole.
fn amount(number: &str, unit_us: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > 9 || fraction.is_empty() {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u64>().ok()?.checked_mul(unit_us)?;
    if part % scale != 0 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(unit_us)?.checked_add(part / scale)
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, unit_us) in UNITS {
            if rest / unit_us > 0 {
                write!(f, "{}{name}", rest / unit_us)?;
                rest %= unit_us;
            }
        }
        Ok(())
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration: whole numbers with unit, largest unit first.",
            "pattern": r"^([0-9]+(\.[0-9]+)?(d|h|m|s|ms|us))+$",
            "examples": ["250ms", "15s", "5m", "1h30m"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, want) in [
            ("250ms", Some(250_000)),
            ("15s", Some(15_000_000)),
            ("1h30m", Some(5_400_000_000)),
            ("1.5s", Some(1_500_000)),
            ("0s", Some(0)),
            ("0.25us", None),
            ("15", None),
            ("", None),
            ("s", None),
            ("1s1h", None),
            ("1s1s", None),
            ("-1s", None),
            ("1 s", None),
            ("1.s", None),
            ("99999999999999999999s", None),
            ("9999999999999d", None),
        ] {
            let got = DurationText::parse(text).map(|duration| duration.0.as_micros());
            assert_eq!(got, want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn durations_read_back_what_they_print(us in any::<u64>()) {
            let duration = DurationText(Duration::from_micros(us));
            prop_assert_eq!(DurationText::parse(&duration.to_string()), Some(duration));
        }
    }
}
