//! Messages as bytes, where the ordinary way would not say all of it.
//!
//! Short answers are hickory's `MessageResponse`. It writes the OPT record last and loses it where
//! records filled the room, sets TC also when only helpful records were left out (against RFC 2181,
//! section 9), and compresses 120 names at most. Answers that may meet one of these limits are
//! written here, by hickory's encoder, section by section; so are other servers' messages.

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, EmitAndCount, Header, HeaderCounts, Metadata, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use hickory_server::server::Request;

use crate::answer::Answer;
use crate::note::Reason;
use crate::question::{HEADER, Question, Transport, UDP_EDNS, name_bytes};

/// The header of the answer to a question.
pub(crate) fn metadata(question: &Question<'_>, answer: &Answer) -> Metadata {
    let mut metadata = Metadata::response_from_request(&question.request.metadata);
    metadata.authoritative = answer.authoritative;
    metadata.recursion_available = answer.recursion_available;
    metadata.response_code = answer.code;
    metadata.truncation = answer.more && question.transport == Transport::Udp;
    metadata
}

/// The OPT record of the answer, where the request had one.
pub(crate) fn edns(request: &Request, options: impl IntoIterator<Item = EdnsOption>) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_EDNS).set_dnssec_ok(asked.flags().dnssec_ok);
    options.into_iter().for_each(|option| edns.options_mut().insert(option));
    Some(edns)
}

/// Bytes of an OPT record: name, type, size, code and flags, length, and each option behind its own
/// code and length.
fn opt_bytes(edns: Option<&Edns>) -> u16 {
    edns.map_or(0, |edns| {
        let options = edns.options().options.iter();
        11 + options.map(|(_, option)| 4 + option.len()).sum::<u16>()
    })
}

/// Whether `MessageResponse` surely says all of the answer. Counts names in full, except the owner
/// of answers after the first.
pub(crate) fn fits(question: &Question<'_>, answer: &Answer, edns: Option<&Edns>) -> bool {
    let helpful = || answer.authority.iter().chain(&answer.additional);
    if answer.answers.len() + helpful().count() > NAMES_MAX {
        return false;
    }
    let owner = name_bytes(question.name.as_asked());
    let answers = answer.answers.iter().map(|data| Some(POINTER + FIXED + data_bytes(data)?));
    let others = helpful().map(|record| Some(name_bytes(&record.name) + FIXED + data_bytes(&record.data)?));
    let records: Option<usize> = answers.chain(others).sum();
    records.is_some_and(|records| {
        question.end() + owner + records + usize::from(opt_bytes(edns)) <= question.size_max()
    })
}

/// Bytes of a record's content at most; `None` for types we do not make.
fn data_bytes(data: &RData) -> Option<usize> {
    Some(match data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::SRV(srv) => 6 + name_bytes(&srv.target),
        RData::SOA(soa) => 20 + name_bytes(&soa.mname) + name_bytes(&soa.rname),
        RData::NS(name) => name_bytes(name),
        RData::PTR(name) => name_bytes(name),
        _ => return None,
    })
}

/// Writes an answer of any length within the client's size.
///
/// Records are left out whole. When the records asked for do not fit, TC tells a UDP client to use
/// TCP; on TCP the client gets what fits in 64 KiB.
pub(crate) fn cut(question: &Question<'_>, answer: &Answer, edns: Option<&Edns>) -> Vec<u8> {
    let limit = u16::try_from(question.size_max()).unwrap_or(u16::MAX);
    let room = limit - opt_bytes(edns);
    let mut bytes = Vec::with_capacity(usize::from(UDP_EDNS.min(limit)));
    let mut encoder = BinEncoder::new(&mut bytes);
    let mut answers = Answers { data: &answer.answers, ttl: answer.ttl, room, written: 0 };
    let written = emit_message_parts(
        &metadata(question, answer),
        &mut Asked(question.request.queries.as_bytes()),
        &mut answers,
        &mut Helpful { records: &answer.authority, limit: room },
        &mut Helpful { records: &answer.additional, limit },
        edns,
        None,
        &mut encoder,
    );
    match written {
        Ok(_) => {
            if answers.written < answer.answers.len() && question.transport == Transport::Udp {
                bytes[2] |= TRUNCATED;
            }
            bytes
        }
        Err(error) => {
            tracing::warn!(name = %question.name, %error, "cannot write an answer");
            refusal(&question.request.metadata, ResponseCode::ServFail)
        }
    }
}

/// A bare code for a message whose question could not be read.
pub(crate) fn refusal(asked: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(asked);
    metadata.response_code = code;
    let mut bytes = Vec::with_capacity(HEADER);
    let header = Header { metadata, counts: HeaderCounts::default() };
    // A header fits in every buffer.
    let _ = header.emit(&mut BinEncoder::new(&mut bytes));
    bytes
}

/// Another server's message for this client, as it came but for the id and the case of the name.
///
/// # Errors
///
/// The answer to give instead: SERVFAIL where it is no message, and where it is too long, TC alone.
pub(crate) fn relay(question: &Question<'_>, mut message: Vec<u8>) -> Result<Vec<u8>, Answer> {
    if message.len() < HEADER {
        let text = "what another resolver answered is no DNS message";
        return Err(Answer::code(ResponseCode::ServFail).noting(Reason::Other, text));
    }
    if message.len() > question.size_max() {
        return Err(Answer { more: true, recursion_available: true, ..Answer::default() });
    }
    let asked = question.message();
    message[..2].copy_from_slice(&asked[..2]);
    // The name in the case this client asked it.
    let section = HEADER..question.end();
    if message.get(section.clone()).is_some_and(|name| name.eq_ignore_ascii_case(&asked[section.clone()])) {
        message[section.clone()].copy_from_slice(&asked[section]);
    }
    Ok(message)
}

/// The question section, as it came.
struct Asked<'a>(&'a [u8]);

impl EmitAndCount for Asked<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        encoder.emit_vec(self.0)?;
        Ok(1)
    }
}

/// The records asked for, within `room`.
struct Answers<'a> {
    data: &'a [RData],
    ttl: u32,
    room: u16,
    /// How many had room.
    written: usize,
}

impl EmitAndCount for Answers<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        encoder.set_max_size(self.room);
        let ttl = self.ttl;
        self.written = emit_while_room(encoder, self.data, |data, encoder| answer(data, ttl, encoder))?;
        Ok(self.written)
    }
}

/// Records that may be left out. What comes after them has room up to `limit`.
struct Helpful<'a> {
    records: &'a [Record],
    limit: u16,
}

impl EmitAndCount for Helpful<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        let count = emit_while_room(encoder, self.records, Record::emit)?;
        encoder.set_max_size(self.limit);
        Ok(count)
    }
}

/// Writes items until one does not fit; tells how many.
fn emit_while_room<T>(
    encoder: &mut BinEncoder<'_>,
    items: &[T],
    emit: impl Fn(&T, &mut BinEncoder<'_>) -> Result<(), ProtoError>,
) -> Result<usize, ProtoError> {
    for (count, item) in items.iter().enumerate() {
        let start = encoder.offset();
        match emit(item, encoder) {
            Ok(()) => {}
            Err(ProtoError::MaxBufferSizeExceeded(_)) => {
                encoder.set_offset(start);
                encoder.trim();
                return Ok(count);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(items.len())
}

/// A name as it stands in a message that has nothing to point to.
pub(crate) fn name_in_full(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name_bytes(name));
    for label in name {
        bytes.push(u8::try_from(label.len()).unwrap_or_default()); // 63 at most
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

/// Writes a record of the name asked for, by a pointer to the question.
pub(crate) fn answer(data: &RData, ttl: u32, encoder: &mut BinEncoder<'_>) -> Result<(), ProtoError> {
    encoder.emit_u16(QUESTION_POINTER)?;
    data.record_type().emit(encoder)?;
    DNSClass::IN.emit(encoder)?;
    encoder.emit_u32(ttl)?;
    let place = encoder.place::<u16>()?;
    data.emit(encoder)?;
    let bytes = u16::try_from(encoder.len_since_place(&place)).unwrap_or(u16::MAX);
    place.replace(encoder, bytes)
}

/// To the name right behind the header.
const QUESTION_POINTER: u16 = 0xc00c;
const POINTER: usize = 2;
/// TC, in the third byte of a message.
pub(crate) const TRUNCATED: u8 = 0x02;
/// Type, class, lifetime and length of a record.
const FIXED: usize = 10;
/// Fewer than hickory compresses.
const NAMES_MAX: usize = 100;
