//! Time formats: the part of `strftime` that access logs use, in UTC.

use std::fmt::Write as _;
use std::time::SystemTime;

/// A compiled time format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TimePiece {
    Text(String),
    Field(char),
    Fraction(usize),
}

/// Compiles a time format.
pub(super) fn parse_time(format: &str) -> Result<Vec<TimePiece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut chars = format.chars().peekable();
    while let Some(char) = chars.next() {
        if char != '%' {
            plain.push(char);
            continue;
        }
        if !plain.is_empty() {
            pieces.push(TimePiece::Text(std::mem::take(&mut plain)));
        }
        match chars.next() {
            Some('%') => plain.push('%'),
            Some('f') => pieces.push(TimePiece::Fraction(9)),
            Some(digit @ '1'..='9') if chars.next_if_eq(&'f').is_some() => {
                pieces.push(TimePiece::Fraction(digit.to_digit(10).map_or(9, |digits| digits as usize)));
            }
            Some(field @ ('Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 's' | 'T' | 'F')) => {
                pieces.push(TimePiece::Field(field));
            }
            other => {
                let other = other.map_or_else(String::new, String::from);
                return Err(format!("time format %{other} is not supported (Y m d H M S T F s f 1f to 9f)"));
            }
        }
    }
    if !plain.is_empty() {
        pieces.push(TimePiece::Text(plain));
    }
    Ok(pieces)
}

/// Writes `time`.
pub(super) fn format_time(pieces: &[TimePiece], time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::with_capacity(24);
    for piece in pieces {
        let _ = match piece {
            TimePiece::Text(text) => out.write_str(text),
            TimePiece::Field('Y') => write!(out, "{year:04}"),
            TimePiece::Field('m') => write!(out, "{month:02}"),
            TimePiece::Field('d') => write!(out, "{day:02}"),
            TimePiece::Field('H') => write!(out, "{hour:02}"),
            TimePiece::Field('M') => write!(out, "{minute:02}"),
            TimePiece::Field('S') => write!(out, "{second:02}"),
            TimePiece::Field('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            TimePiece::Field('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            TimePiece::Field(_) => write!(out, "{seconds}"),
            TimePiece::Fraction(digits) => {
                let text = format!("{:09}", since.subsec_nanos());
                out.write_str(&text[..*digits])
            }
        };
    }
    out
}

/// Year, month and day of the day `days` after 1970-01-01 (Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_utc() {
        for (seconds, nanos, format, want) in [
            (0, 0, "%Y-%m-%dT%H:%M:%S.%3fZ", "1970-01-01T00:00:00.000Z"),
            (951_782_400, 1_500_000, "%FT%T.%6f", "2000-02-29T00:00:00.001500"),
            (1_795_230_000, 0, "%s", "1795230000"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(format_time(&parse_time(format).unwrap(), time), want);
        }
    }
}
