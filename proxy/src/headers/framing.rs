//! Where an HTTP/1 message ends, by its headers. Whatever two parsers could read differently is
//! refused (RFC 9112 section 6.3).

/// How long a message's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Nothing is said.
    Unsaid,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// Why nobody can tell how long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// Both a length and a coding.
    LengthAndCoding,
    /// A length that is no number, does not fit into 64 bits, or is given twice.
    Length,
    /// A coding other than `chunked`, or several.
    Coding,
}

/// Collects what the headers of one message say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lengths {
    length: Option<Result<u64, Unclear>>,
    coding: Option<Result<(), Unclear>>,
}

impl Lengths {
    /// One header more; names in any case.
    pub(crate) fn header(&mut self, name: &str, value: &[u8]) {
        // By length first: hardly any header is one of the two.
        if name.len() == CONTENT_LENGTH.len() && name.eq_ignore_ascii_case(CONTENT_LENGTH) {
            let twice = self.length.is_some();
            let length = if twice { None } else { parse_length(value) };
            self.length = Some(length.ok_or(Unclear::Length));
        } else if name.len() == TRANSFER_ENCODING.len() && name.eq_ignore_ascii_case(TRANSFER_ENCODING) {
            let once = self.coding.is_none() && value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            self.coding = Some(if once { Ok(()) } else { Err(Unclear::Coding) });
        }
    }

    /// What they say together.
    ///
    /// # Errors
    ///
    /// [`Unclear`], when they do not say one thing.
    pub(crate) fn framing(self) -> Result<Framing, Unclear> {
        match (self.length, self.coding) {
            (None, None) => Ok(Framing::Unsaid),
            (None, Some(coding)) => coding.map(|()| Framing::Chunked),
            (Some(length), None) => length.map(Framing::Length),
            (Some(_), Some(_)) => Err(Unclear::LengthAndCoding),
        }
    }
}

/// Digits only: no sign, no list, no blanks but around it.
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        length.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

const CONTENT_LENGTH: &str = "content-length";
const TRANSFER_ENCODING: &str = "transfer-encoding";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_one_length_or_is_refused() {
        for (headers, want) in [
            (&[][..], Ok(Framing::Unsaid)),
            (&[("content-length", "5")], Ok(Framing::Length(5))),
            (&[("Content-Length", " 0 ")], Ok(Framing::Length(0))),
            (&[("content-length", "18446744073709551615")], Ok(Framing::Length(u64::MAX))),
            (&[("content-length", "18446744073709551616")], Err(Unclear::Length)),
            (&[("content-length", "")], Err(Unclear::Length)),
            (&[("content-length", "+5")], Err(Unclear::Length)),
            (&[("content-length", "-5")], Err(Unclear::Length)),
            (&[("content-length", "0x5")], Err(Unclear::Length)),
            (&[("content-length", "5, 5")], Err(Unclear::Length)),
            (&[("content-length", "5"), ("content-length", "5")], Err(Unclear::Length)),
            (&[("transfer-encoding", "Chunked")], Ok(Framing::Chunked)),
            (&[("transfer-encoding", "xchunked")], Err(Unclear::Coding)),
            (&[("transfer-encoding", "gzip, chunked")], Err(Unclear::Coding)),
            (&[("transfer-encoding", "\u{b}chunked")], Err(Unclear::Coding)),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Err(Unclear::Coding)),
            (&[("content-length", "5"), ("transfer-encoding", "chunked")], Err(Unclear::LengthAndCoding)),
            (&[("transfer-encoding", "chunked"), ("content-length", "5")], Err(Unclear::LengthAndCoding)),
            (&[("content-length", "x"), ("transfer-encoding", "x")], Err(Unclear::LengthAndCoding)),
            (&[("content-lengthx", "x"), ("xransfer-encoding", "y")], Ok(Framing::Unsaid)),
        ] {
            let mut lengths = Lengths::default();
            for (name, value) in headers {
                lengths.header(name, value.as_bytes());
            }
            assert_eq!(lengths.framing(), want, "{headers:?}");
        }
    }
}
