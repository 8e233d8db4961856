//! Follows a chunked body (RFC 9112 section 7.1), so that its end is known. It keeps nothing.

/// Where in a chunked body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    at: At,
    /// Bytes of the chunk that are still to come.
    left: u64,
    /// Bytes of extensions and trailers so far.
    extra: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first digit.
    Size,
    Digits,
    /// After blanks that follow the digits.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    Line,
    Trailer,
    TrailerLf,
    LastLf,
}

/// What a byte leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// All bytes belong to the body.
    All,
    /// The body ended after so many.
    End(usize),
    /// No chunked body goes on with the byte after so many.
    Broken(usize),
}

/// Bytes of extensions and trailers that a body may have.
const EXTRA_MAX: usize = 16 << 10;

impl Chunks {
    pub(super) const fn new() -> Self {
        Self { at: At::Size, left: 0, extra: 0 }
    }

    /// Follows `bytes` as far as the body goes.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Followed {
        let mut place = 0;
        while place < bytes.len() {
            if self.at == At::Data {
                let rest = (bytes.len() - place) as u64;
                let taken = self.left.min(rest);
                self.left -= taken;
                place += usize::try_from(taken).unwrap_or(bytes.len());
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let last = self.at == At::LastLf;
            let Some(next) = self.step(bytes[place]) else { return Followed::Broken(place) };
            self.at = next;
            place += 1;
            if last {
                return Followed::End(place);
            }
        }
        Followed::All
    }

    fn step(&mut self, byte: u8) -> Option<At> {
        if matches!(self.at, At::Extension | At::Trailer) {
            self.extra += 1;
            if self.extra > EXTRA_MAX {
                return None;
            }
        }
        Some(match (self.at, byte) {
            (At::Size | At::Digits, digit) if digit.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(digit).to_digit(16)?);
                let shifted = if self.at == At::Size { 0 } else { self.left.checked_mul(16)? };
                self.left = shifted.checked_add(digit)?;
                At::Digits
            }
            (At::Digits | At::Blank, b' ' | b'\t') => At::Blank,
            (At::Digits | At::Blank, b';') => At::Extension,
            (At::Digits | At::Blank | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, b'\n') => return None,
            (At::Extension, _) => At::Extension,
            (At::SizeLf, b'\n') if self.left == 0 => At::Line,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Line, b'\r') => At::LastLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Line | At::Trailer, b'\n') => return None,
            (At::Line | At::Trailer, _) => At::Trailer,
            (At::TrailerLf, b'\n') => At::Line,
            (At::LastLf, b'\n') => At::Size,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_ends_where_it_says() {
        for (bytes, want) in [
            ("0\r\n\r\nnext", Followed::End(5)),
            ("2\r\nok\r\n0\r\n\r\nnext", Followed::End(12)),
            ("0002;a=b\r\nok\r\n0\r\na: b\r\nc: d\r\n\r\nG", Followed::End(31)),
            ("2 \t\r\nok\r\n0\r\n\r\n", Followed::End(14)),
            ("A\r\n0123456789\r\n", Followed::All),
            ("2\r\nokn", Followed::Broken(5)),
            ("\r\n", Followed::Broken(0)),
            (" 2", Followed::Broken(0)),
            ("-2", Followed::Broken(0)),
            ("0x2", Followed::Broken(1)),
            ("2 2", Followed::Broken(2)),
            ("2\n", Followed::Broken(1)),
            ("2;a\n", Followed::Broken(3)),
            ("0\r\n\n", Followed::Broken(3)),
            ("0\r\na: b\n", Followed::Broken(7)),
            ("ffffffffffffffff0", Followed::Broken(16)),
        ] {
            assert_eq!(Chunks::new().follow(bytes.as_bytes()), want, "{bytes:?}");
            let mut one_by_one = Chunks::new();
            let ended = bytes.bytes().enumerate().find_map(|(at, byte)| match one_by_one.follow(&[byte]) {
                Followed::All => None,
                Followed::End(_) => Some(Followed::End(at + 1)),
                Followed::Broken(_) => Some(Followed::Broken(at)),
            });
            assert_eq!(ended.unwrap_or(Followed::All), want, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn extensions_and_trailers_are_not_endless() {
        let endless = format!("1;{}", "a".repeat(EXTRA_MAX + 1));
        assert!(matches!(Chunks::new().follow(endless.as_bytes()), Followed::Broken(_)));
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(EXTRA_MAX));
        assert!(matches!(Chunks::new().follow(endless.as_bytes()), Followed::Broken(_)));
    }
}
