//! Ordinary questions, read in place.

use hickory_proto::rr::RecordType;

use crate::question::{HEADER, UDP_EDNS, UDP_PLAIN};

/// An ordinary question.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    pub(crate) message: &'a [u8],
    name: &'a [u8],
    kind: u16,
    pub(crate) edns: Option<PlainEdns<'a>>,
}

/// What its OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlainEdns<'a> {
    size: u16,
    pub(crate) dnssec_ok: bool,
    pub(crate) cookie: Option<&'a [u8]>,
}

impl<'a> Plain<'a> {
    /// Reads a message, if it is an ordinary question. `lower` is where its name goes.
    pub(crate) fn read(message: &'a [u8], lower: &'a mut [u8; NAME_MAX]) -> Option<Self> {
        let (header, rest) = message.split_first_chunk::<HEADER>()?;
        let [_, _, flags, more, 0, 1, 0, 0, 0, 0, 0, options @ 0..=1] = *header else { return None };
        if flags & !RECURSION_DESIRED != 0 || more & !(AUTHENTIC_DATA | CHECKING_DISABLED) != 0 {
            return None;
        }
        let len = lower_name(rest, lower)?;
        let (kind, class) = (word(rest, len)?, word(rest, len + 2)?);
        if class != CLASS_IN || ![A, AAAA, SRV].contains(&kind) {
            return None;
        }
        let behind = rest.get(len + 4..)?;
        let edns = match options {
            0 if behind.is_empty() => None,
            1 => Some(edns(behind)?),
            _ => return None,
        };
        Some(Self { message, name: &lower[..len], kind, edns })
    }

    /// The name asked for as it stands in messages, but in lower case.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// The record type asked for: A, AAAA or SRV.
    pub fn kind(&self) -> RecordType {
        self.kind.into()
    }

    /// End of the question section within the message.
    pub(crate) fn end(&self) -> usize {
        HEADER + self.name.len() + 4
    }

    /// Longest message the client takes, in bytes.
    pub(crate) fn size_max(&self) -> usize {
        usize::from(self.edns.map_or(UDP_PLAIN, |edns| edns.size.clamp(UDP_PLAIN, UDP_EDNS)))
    }
}

/// Copies the name at the start of `bytes` in lower case; tells its length.
fn lower_name(bytes: &[u8], lower: &mut [u8; NAME_MAX]) -> Option<usize> {
    let mut at = 0;
    loop {
        let len = usize::from(*bytes.get(at)?);
        if len > LABEL_MAX || at + len >= NAME_MAX {
            return None;
        }
        lower[at] = bytes[at];
        at += 1;
        if len == 0 {
            return (at > 1).then_some(at); // the root is nobody's business here
        }
        let label = bytes.get(at..at + len)?;
        for (to, from) in lower[at..at + len].iter_mut().zip(label) {
            *to = match from.to_ascii_lowercase() {
                plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*') => plain,
                _ => return None,
            };
        }
        at += len;
    }
}

/// Reads an OPT record that is all that is left of a message.
fn edns(bytes: &[u8]) -> Option<PlainEdns<'_>> {
    let (fixed, options) = bytes.split_first_chunk::<OPT>()?;
    let [0, 0, OPT_TYPE, size @ .., 0, 0, flags, 0, _, _] = *fixed else { return None };
    if word(fixed, OPT - 2)? != u16::try_from(options.len()).ok()? || flags & !DNSSEC_OK != 0 {
        return None;
    }
    let cookie = match options {
        [] => None,
        [0, COOKIE, _, _, cookie @ ..] if usize::from(word(options, 2)?) == cookie.len() => Some(cookie),
        _ => return None,
    };
    Some(PlainEdns { size: u16::from_be_bytes(size), dnssec_ok: flags & DNSSEC_OK != 0, cookie })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Longest name in a message.
pub(crate) const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;
/// RD, in the third byte of a message.
pub(crate) const RECURSION_DESIRED: u8 = 0x01;
/// CD, in the fourth byte of a message.
pub(crate) const CHECKING_DISABLED: u8 = 0x10;
const AUTHENTIC_DATA: u8 = 0x20;
const CLASS_IN: u16 = 1;
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// Bytes of an OPT record before its options.
pub(crate) const OPT: usize = 11;
pub(crate) const OPT_TYPE: u8 = 41;
pub(crate) const COOKIE: u8 = 10;
/// DO, in the first byte of an OPT record's flags.
pub(crate) const DNSSEC_OK: u8 = 0x80;
