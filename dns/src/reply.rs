//! Answers and their wire form, cut to the size the client takes.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::wire::{
    AUTHORITATIVE, CHECKING_DISABLED, CLASS_IN, DNSSEC_OK, HEADER, Kind, LABEL_MAX, OPCODE, Question,
    RECURSION_AVAILABLE, RECURSION_DESIRED, RESPONSE, TRUNCATED, Transport, UDP_EDNS,
};

/// Response codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Code {
    /// NOERROR.
    #[default]
    NoError,
    /// FORMERR: the question cannot be read.
    FormError,
    /// SERVFAIL: we cannot tell now.
    ServerFailure,
    /// NXDOMAIN: the name does not exist, nor anything below it.
    NoSuchName,
    /// NOTIMP: not a question.
    NotImplemented,
    /// REFUSED: not our zone.
    Refused,
    /// BADVERS: an EDNS version of the future.
    BadVersion,
}

impl Code {
    fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormError => 1,
            Self::ServerFailure => 2,
            Self::NoSuchName => 3,
            Self::NotImplemented => 4,
            Self::Refused => 5,
            Self::BadVersion => 16,
        }
    }
}

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The name asked for, in the case asked.
    Question,
    /// Another name.
    Name(Arc<str>),
}

/// A record's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Where a service is (RFC 2782).
    Srv {
        /// Lowest first.
        priority: u16,
        /// Share among equals.
        weight: u16,
        /// Port.
        port: u16,
        /// Host name.
        target: Arc<str>,
    },
    /// Start of authority.
    Soa(Soa),
    /// Name server.
    Ns(Arc<str>),
    /// Name of an address.
    Ptr(Arc<str>),
    /// Alias.
    Cname(Arc<str>),
    /// One text of at most 255 bytes.
    Txt(Arc<str>),
}

/// Start of authority: who is responsible, and for how long a "no" may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// First name server.
    pub server: Arc<str>,
    /// Mailbox of who is responsible, `@` written as a dot.
    pub mailbox: Arc<str>,
    /// Rises with every change.
    pub serial: u32,
    /// For how long "no" may be kept.
    pub minimum: u32,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// For how many seconds it may be kept.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub code: Code,
    /// Whether we are the authority for the name.
    pub authoritative: bool,
    /// Whether we ask others on the client's behalf.
    pub recursion_available: bool,
    /// The records asked for, best first.
    pub answers: Vec<Record>,
    /// There are more answers than these: over UDP the client is told to ask again over TCP.
    pub more: bool,
    /// The SOA with a "no".
    pub authority: Vec<Record>,
    /// Helpful records; left out where there is no room.
    pub additional: Vec<Record>,
}

impl Answer {
    /// Nothing but a code.
    pub fn code(code: Code) -> Self {
        Self { code, ..Self::default() }
    }
}

/// Encodes the answer to `question` within the client's size.
///
/// Records are left out whole. When an answer does not fit, TC tells a UDP client to use TCP; on TCP
/// the client gets what fits in 64 KiB.
pub fn encode(question: &Question<'_>, answer: &Answer) -> Vec<u8> {
    let room = question.size_max() - question.edns.map_or(0, |_| OPT_BYTES);
    let mut writer = Writer::new(question, room);
    let (mut counts, mut truncated) = ([0_u16; 3], answer.more);
    for record in &answer.answers {
        if !writer.record(record) {
            truncated = true;
            break;
        }
        counts[0] += 1;
    }
    for (record, count) in sections(answer) {
        if writer.record(record) {
            counts[count] += 1;
        }
    }
    if let Some(edns) = question.edns {
        writer.opt(answer.code, edns.dnssec_ok);
        counts[2] += 1;
    }
    let truncated = truncated && question.transport == Transport::Udp;
    writer.finish(question.message, answer, counts, truncated)
}

/// Authority and additional records with the section they count in.
fn sections(answer: &Answer) -> impl Iterator<Item = (&Record, usize)> {
    let authority = answer.authority.iter().map(|record| (record, 1));
    authority.chain(answer.additional.iter().map(|record| (record, 2)))
}

/// Encodes a bare code for a message whose question could not be read.
///
/// `message` has at least a header, as [`crate::wire::Malformed::Refuse`] promises.
pub fn encode_refusal(message: &[u8], code: Code) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    if let Some(header) = message.first_chunk::<HEADER>() {
        out[..2].copy_from_slice(&header[..2]);
        out[2] = RESPONSE | (header[2] & (OPCODE | RECURSION_DESIRED));
        out[3] = low_bits(code);
    }
    out
}

/// Another server's message for this client: its id, and only header and question where it is too
/// long (with TC).
pub fn relay(question: &Question<'_>, mut message: Vec<u8>) -> Vec<u8> {
    if message.len() < HEADER {
        return encode(question, &Answer::code(Code::ServerFailure));
    }
    if message.len() > question.size_max() {
        let answer = Answer { more: true, recursion_available: true, ..Answer::default() };
        return encode(question, &answer);
    }
    message[..2].copy_from_slice(&question.message[..2]);
    // The name in the case this client asked it.
    if message
        .get(HEADER..question.end)
        .is_some_and(|name| name.eq_ignore_ascii_case(&question.message[HEADER..question.end]))
    {
        message[HEADER..question.end].copy_from_slice(&question.message[HEADER..question.end]);
    }
    message
}

struct Writer<'a> {
    out: Vec<u8>,
    room: usize,
    question: &'a Question<'a>,
    /// Where names stand, for pointers to them.
    names: HashMap<Box<str>, u16>,
}

impl<'a> Writer<'a> {
    fn new(question: &'a Question<'a>, room: usize) -> Self {
        let mut out = Vec::with_capacity(UDP_EDNS.min(room));
        out.extend_from_slice(&question.message[..question.end]);
        Self { out, room, question, names: HashMap::new() }
    }

    /// Writes a record, or nothing where it does not fit or has no wire form.
    fn record(&mut self, record: &Record) -> bool {
        let start = self.out.len();
        let written = self.try_record(record);
        if written.is_none() || self.out.len() > self.room {
            self.out.truncate(start);
            self.names.retain(|_, at| usize::from(*at) < start);
            return false;
        }
        true
    }

    fn try_record(&mut self, record: &Record) -> Option<()> {
        match &record.owner {
            Owner::Question => self.out.extend_from_slice(&QUESTION_POINTER),
            Owner::Name(name) => self.name(name, Compress::Yes)?,
        }
        let kind = match &record.data {
            Data::A(_) => Kind::A,
            Data::Aaaa(_) => Kind::AAAA,
            Data::Srv { .. } => Kind::SRV,
            Data::Soa(_) => Kind::SOA,
            Data::Ns(_) => Kind::NS,
            Data::Ptr(_) => Kind::PTR,
            Data::Cname(_) => Kind::CNAME,
            Data::Txt(_) => Kind::TXT,
        };
        self.u16(kind.0);
        self.u16(CLASS_IN);
        self.u32(record.ttl);
        let length_at = self.out.len();
        self.u16(0);
        self.data(&record.data)?;
        let length = u16::try_from(self.out.len() - length_at - 2).ok()?;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    fn data(&mut self, data: &Data) -> Option<()> {
        match data {
            Data::A(address) => self.out.extend_from_slice(&address.octets()),
            Data::Aaaa(address) => self.out.extend_from_slice(&address.octets()),
            Data::Srv { priority, weight, port, target } => {
                for number in [priority, weight, port] {
                    self.u16(*number);
                }
                self.name(target, Compress::No)?; // RFC 2782
            }
            Data::Soa(soa) => {
                self.name(&soa.server, Compress::Yes)?;
                self.name(&soa.mailbox, Compress::Yes)?;
                for number in [soa.serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, soa.minimum] {
                    self.u32(number);
                }
            }
            Data::Ns(name) | Data::Ptr(name) | Data::Cname(name) => self.name(name, Compress::Yes)?,
            Data::Txt(text) => {
                self.out.push(u8::try_from(text.len()).ok()?);
                self.out.extend_from_slice(text.as_bytes());
            }
        }
        Some(())
    }

    /// Writes a name, with a pointer to the longest end of it that stands already.
    fn name(&mut self, name: &str, compress: Compress) -> Option<()> {
        let mut rest = name.trim_end_matches('.');
        if rest.len() > NAME_TEXT_MAX {
            return None;
        }
        while !rest.is_empty() {
            let known = self.known(rest);
            if compress == Compress::Yes
                && let Some(at) = known
            {
                self.u16(POINTER | at);
                return Some(());
            }
            if known.is_none()
                && let Ok(at @ ..POINTER_MAX) = u16::try_from(self.out.len())
            {
                self.names.insert(rest.into(), at);
            }
            let (label, more) = rest.split_once('.').unwrap_or((rest, ""));
            let len = u8::try_from(label.len()).ok().filter(|len| (1..=LABEL_MAX).contains(len))?;
            self.out.push(len);
            self.out.extend_from_slice(label.as_bytes());
            rest = more;
        }
        self.out.push(0);
        Some(())
    }

    /// Where this name stands, in the question or in a record before.
    fn known(&self, name: &str) -> Option<u16> {
        let asked = self.question.name.as_str();
        let before = asked.strip_suffix(name);
        if let Some(before) = before
            && (before.is_empty() || before.ends_with('.'))
            && !asked.contains('\\')
        {
            // Text and wire form have the same length up to here: a dot or a length byte per label.
            return u16::try_from(HEADER + before.len()).ok();
        }
        self.names.get(name).copied()
    }

    fn opt(&mut self, code: Code, dnssec_ok: bool) {
        self.out.push(0);
        self.u16(Kind::OPT.0);
        self.u16(UDP_EDNS_U16);
        let high = u8::try_from(code.number() >> 4).unwrap_or_default();
        self.out.extend_from_slice(&[high, 0, if dnssec_ok { DNSSEC_OK } else { 0 }, 0]);
        self.u16(0);
    }

    fn finish(mut self, asked: &[u8], answer: &Answer, counts: [u16; 3], truncated: bool) -> Vec<u8> {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        self.out[2] = RESPONSE
            | asked[2] & RECURSION_DESIRED
            | flag(answer.authoritative, AUTHORITATIVE)
            | flag(truncated, TRUNCATED);
        self.out[3] = flag(answer.recursion_available, RECURSION_AVAILABLE)
            | asked[3] & CHECKING_DISABLED
            | low_bits(answer.code);
        self.out[4..6].copy_from_slice(&1_u16.to_be_bytes());
        for (section, count) in counts.into_iter().enumerate() {
            let at = 6 + 2 * section;
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.out
    }

    fn u16(&mut self, number: u16) {
        self.out.extend_from_slice(&number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.out.extend_from_slice(&number.to_be_bytes());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compress {
    Yes,
    No,
}

fn low_bits(code: Code) -> u8 {
    u8::try_from(code.number() & 0x0f).unwrap_or_default()
}

const QUESTION_POINTER: [u8; 2] = [0xc0, 0x0c];
const POINTER: u16 = 0xc000;
/// Pointers have 14 bits.
const POINTER_MAX: u16 = 0x4000;
/// 255 bytes on the wire, with a length byte in front and the root behind.
const NAME_TEXT_MAX: usize = 253;
const OPT_BYTES: usize = 11;
const UDP_EDNS_U16: u16 = 1232;
// Nobody transfers the zone: these only have to be sensible.
const SOA_REFRESH: u32 = 7200;
const SOA_RETRY: u32 = 1800;
const SOA_EXPIRE: u32 = 86_400;
