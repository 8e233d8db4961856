//! Answers put together for one question.

use super::question::{CHECKING_DISABLED, COOKIE, DNSSEC_OK, OPT, OPT_TYPE, RECURSION_DESIRED};
use super::ready::pointer;
use super::{Encoded, Plain, Ready, Records};
use crate::cookie::WHOLE;
use crate::encode::TRUNCATED;
use crate::question::{HEADER, UDP_EDNS};
use crate::sample::Draw;

/// A client's cookie with ours behind.
pub(crate) type Cookie = [u8; WHOLE];

/// What drawing needs, kept from one answer to the next.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    random: fastrand::Rng,
    draw: Draw,
}

/// Writes an answer; tells its length, or `None` where there is no room even for the OPT record.
///
/// As on the general way, records are left out whole, and TC is set when those asked for do not fit.
pub(crate) fn write(
    question: &Plain<'_>,
    ready: Ready<'_>,
    cookie: Option<&Cookie>,
    draws: &mut Draws,
    out: &mut [u8; UDP_EDNS as usize],
) -> Option<usize> {
    let note = match ready {
        Ready::Yes(_, note) | Ready::No(_, _, note) => note,
    };
    let room = question.size_max().checked_sub(opt_bytes(question, cookie, note))?;
    let mut message = Message::begin(question, out, room)?;
    message.out[2] |= AUTHORITATIVE;
    match ready {
        Ready::Yes(records, _) => message.records(records, draws),
        Ready::No(code, denial, _) => {
            message.out[3] |= code.low();
            let (start, end) = (message.end, message.end + denial.len());
            if end <= room {
                denial.write(&mut message.out[start..end], question.end() - 4);
                message.out[AUTHORITIES] = 1;
                message.end = end;
            }
        }
    }
    Some(message.finish(question, cookie, note))
}

/// Writes what a client over the limit gets: TC, and nothing else.
pub(crate) fn limited(question: &Plain<'_>, out: &mut [u8; UDP_EDNS as usize]) -> Option<usize> {
    let message = Message::begin(question, out, question.size_max())?;
    message.out[2] |= TRUNCATED;
    Some(message.finish(question, None, None))
}

struct Message<'a> {
    out: &'a mut [u8; UDP_EDNS as usize],
    end: usize,
    /// Where records must end, so that the OPT record has room behind.
    room: usize,
}

impl<'a> Message<'a> {
    /// Header and question.
    fn begin(question: &Plain<'_>, out: &'a mut [u8; UDP_EDNS as usize], room: usize) -> Option<Self> {
        let end = question.end();
        if end > room {
            return None;
        }
        let asked = question.message.get(..end)?;
        out[..end].copy_from_slice(asked);
        out[2] = RESPONSE | asked[2] & RECURSION_DESIRED;
        out[3] = asked[3] & CHECKING_DISABLED;
        out[6..HEADER].fill(0);
        Some(Self { out, end, room })
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.end + bytes.len();
        let fits = end <= self.room;
        if fits {
            self.out[self.end..end].copy_from_slice(bytes);
            self.end = end;
        }
        fits
    }

    fn records(&mut self, records: &Records, draws: &mut Draws) {
        let room = records.room(self.room - self.end);
        let drawn = records.weights.as_ref().map(|weights| draws.draw.draw(weights, room, &mut draws.random));
        let count = drawn.map_or(room, <[usize]>::len);
        let piece = |at: usize| records.piece(drawn.map_or(at, |drawn| drawn[at]));
        let mut starts = [0; RECORDS_MAX];
        let mut written = 0;
        while written < count.min(RECORDS_MAX) {
            starts[written] = self.end;
            if !self.append(piece(written).0) {
                break;
            }
            written += 1;
        }
        if written < records.len() {
            self.out[2] |= TRUNCATED;
        }
        set_count(self.out, ANSWERS, written);
        let mut addresses = 0;
        for (at, start) in starts[..written].iter().enumerate() {
            let (_, address) = piece(at);
            let owner = self.end;
            if address.is_empty() || !self.append(address) {
                break;
            }
            self.out[owner..owner + 2].copy_from_slice(&pointer(start + TARGET));
            addresses += 1;
        }
        set_count(self.out, ADDITIONALS, addresses);
    }

    /// The OPT record, where the question had one.
    fn finish(self, question: &Plain<'_>, cookie: Option<&Cookie>, note: Option<&Encoded>) -> usize {
        let Self { out, mut end, .. } = self;
        let Some(edns) = question.edns else { return end };
        let mut append = |bytes: &[u8]| {
            out[end..end + bytes.len()].copy_from_slice(bytes);
            end += bytes.len();
        };
        let options = opt_bytes(question, cookie, note) - OPT;
        let [size, options] =
            [usize::from(UDP_EDNS), options].map(|number| [(number >> 8) as u8, number as u8]);
        let flags = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
        append(&[0, 0, OPT_TYPE, size[0], size[1], 0, 0, flags, 0, options[0], options[1]]);
        if let Some(cookie) = cookie {
            append(&[0, COOKIE, 0, WHOLE as u8]);
            append(cookie);
        }
        if let Some(note) = note {
            append(note.bytes());
        }
        out[ADDITIONALS] += 1; // at most RECORDS_MAX before
        end
    }
}

fn opt_bytes(question: &Plain<'_>, cookie: Option<&Cookie>, note: Option<&Encoded>) -> usize {
    let option = 4 + WHOLE;
    question
        .edns
        .map_or(0, |_| OPT + cookie.map_or(0, |_| option) + note.map_or(0, |note| note.bytes().len()))
}

/// Sets a section's count, of at most [`RECORDS_MAX`].
fn set_count(out: &mut [u8], low_byte: usize, count: usize) {
    out[low_byte] = u8::try_from(count).unwrap_or(u8::MAX);
}

/// QR, in the third byte of a message.
const RESPONSE: u8 = 0x80;
/// AA, in the third byte of a message.
const AUTHORITATIVE: u8 = 0x04;
// Low bytes of the sections' counts.
const ANSWERS: usize = 7;
const AUTHORITIES: usize = 9;
const ADDITIONALS: usize = 11;
/// Where the target's name begins in an SRV record: behind pointer, type, class, lifetime, length and
/// three numbers.
const TARGET: usize = 18;
/// More records, each of 16 bytes at least, than have room in a datagram.
const RECORDS_MAX: usize = 80;
