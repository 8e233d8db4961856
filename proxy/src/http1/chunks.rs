//! Where data stands in a chunked body, and where that ends (RFC 9112 section 7.1). It keeps nothing.

/// Where in a chunked body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
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

/// What stands in a chunked body, after what belongs to its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing more has come.
    More,
    /// So many bytes of data, as far as they have come.
    Data(usize),
    /// Its end.
    End,
    /// A byte that no chunked body has there.
    Broken,
}

/// Bytes of extensions and trailers that a body may have.
const EXTRA_MAX: usize = 16 << 10;

impl Chunks {
    pub(crate) const fn new() -> Self {
        Self { at: At::Size, left: 0, extra: 0 }
    }

    /// Goes over framing at the beginning of `bytes`: how much of it there is, and what follows.
    /// Data counts as taken; bytes of trailers are given to `trailer` one by one.
    pub(crate) fn next(&mut self, bytes: &[u8], mut trailer: impl FnMut(u8)) -> (usize, Found) {
        for (place, byte) in bytes.iter().enumerate() {
            if self.at == At::Data {
                let rest = bytes.len() - place;
                let taken = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.left -= taken as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return (place, Found::Data(taken));
            }
            let last = self.at == At::LastLf;
            let Some(next) = self.step(*byte) else { return (place, Found::Broken) };
            if matches!(self.at, At::Line | At::Trailer | At::TrailerLf) && next != At::LastLf {
                trailer(*byte);
            }
            self.at = next;
            if last {
                return (place + 1, Found::End);
            }
        }
        (bytes.len(), Found::More)
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

    /// The data, and how much was read up to the end or to the byte that is wrong.
    fn follow(chunks: &mut Chunks, bytes: &[u8]) -> (Vec<u8>, usize, Found) {
        let (mut data, mut at) = (Vec::new(), 0);
        loop {
            let (framing, found) = chunks.next(&bytes[at..], |_| {});
            at += framing;
            let Found::Data(length) = found else { return (data, at, found) };
            data.extend_from_slice(&bytes[at..at + length]);
            at += length;
        }
    }

    #[test]
    fn a_chunked_body_ends_where_it_says() {
        for (bytes, data, at, found) in [
            ("0\r\n\r\nnext", "", 5, Found::End),
            ("2\r\nok\r\n0\r\n\r\nnext", "ok", 12, Found::End),
            ("0002;a=b\r\nok\r\n0\r\na: b\r\nc: d\r\n\r\nG", "ok", 31, Found::End),
            ("2 \t\r\nok\r\n1\r\n!\r\n0\r\n\r\n", "ok!", 20, Found::End),
            ("A\r\n0123456789\r\n", "0123456789", 15, Found::More),
            ("2\r\nokn", "ok", 5, Found::Broken),
            ("\r\n", "", 0, Found::Broken),
            (" 2", "", 0, Found::Broken),
            ("-2", "", 0, Found::Broken),
            ("0x2", "", 1, Found::Broken),
            ("2 2", "", 2, Found::Broken),
            ("2\n", "", 1, Found::Broken),
            ("2;a\n", "", 3, Found::Broken),
            ("0\r\n\n", "", 3, Found::Broken),
            ("0\r\na: b\n", "", 7, Found::Broken),
            ("ffffffffffffffff0", "", 16, Found::Broken),
        ] {
            let want = (data.as_bytes().to_vec(), at, found);
            assert_eq!(follow(&mut Chunks::new(), bytes.as_bytes()), want, "{bytes:?}");
            let (mut one_by_one, mut all) = (Chunks::new(), Vec::new());
            let ended = bytes.bytes().enumerate().find_map(|(place, byte)| {
                let (data, framing, found) = follow(&mut one_by_one, &[byte]);
                all.extend(data);
                (found != Found::More).then_some((place + framing, found))
            });
            assert_eq!(ended.unwrap_or((bytes.len(), Found::More)), (at, found), "{bytes:?} byte by byte");
            assert_eq!(all, data.as_bytes(), "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn trailers_are_told() {
        let mut trailer = Vec::new();
        let (length, found) = Chunks::new().next(b"0\r\na: b\r\nc: d\r\n\r\n", |byte| trailer.push(byte));
        assert_eq!((length, found), (17, Found::End));
        assert_eq!(trailer, b"a: b\r\nc: d\r\n");
    }

    #[test]
    fn extensions_and_trailers_are_not_endless() {
        let endless = format!("1;{}", "a".repeat(EXTRA_MAX + 1));
        assert_eq!(follow(&mut Chunks::new(), endless.as_bytes()).2, Found::Broken);
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(EXTRA_MAX));
        assert_eq!(follow(&mut Chunks::new(), endless.as_bytes()).2, Found::Broken);
    }
}
