//! Reads questions off the wire (RFC 1035, EDNS of RFC 6891). Bytes from outside never panic.

use std::fmt;
use std::net::SocketAddr;

use crate::name::Name;
use crate::reply::Code;

/// A record type by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Alias.
    pub const CNAME: Self = Self(5);
    /// Start of authority.
    pub const SOA: Self = Self(6);
    /// Reverse name.
    pub const PTR: Self = Self(12);
    /// Text.
    pub const TXT: Self = Self(16);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Service location.
    pub const SRV: Self = Self(33);
    /// EDNS.
    pub const OPT: Self = Self(41);
    /// Incremental transfer.
    pub const IXFR: Self = Self(251);
    /// Full transfer.
    pub const AXFR: Self = Self(252);
    /// Whatever there is.
    pub const ANY: Self = Self(255);
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TYPE{}", self.0)
    }
}

/// How a question came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// One question, with what is needed to answer it.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The name asked for.
    pub name: Name,
    /// The record type asked for.
    pub kind: Kind,
    /// The class; 1 is Internet.
    pub class: u16,
    /// Who asks.
    pub client: SocketAddr,
    /// How.
    pub transport: Transport,
    /// Whether the client wants us to ask others.
    pub recursion_desired: bool,
    /// The whole message as received.
    pub message: &'a [u8],
    /// End of the question section within `message`: header, name as asked, type and class.
    pub(crate) end: usize,
    pub(crate) edns: Option<Edns>,
}

/// What the client's OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
}

/// A message that gets no answer, or only a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not even a header, or a response: answering could loop.
    Ignore,
    /// Answered with this code and an empty body.
    Refuse(Code),
}

impl<'a> Question<'a> {
    /// Reads the question of a message.
    ///
    /// # Errors
    ///
    /// [`Malformed`] says whether and how to answer.
    pub fn parse(message: &'a [u8], client: SocketAddr, transport: Transport) -> Result<Self, Malformed> {
        let header: &[u8; HEADER] = message.first_chunk().ok_or(Malformed::Ignore)?;
        if header[2] & RESPONSE != 0 {
            return Err(Malformed::Ignore);
        }
        if header[2] & OPCODE != 0 {
            return Err(Malformed::Refuse(Code::NotImplemented));
        }
        let form = Malformed::Refuse(Code::FormError);
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if count(4) != 1 {
            return Err(form);
        }
        let mut reader = Reader { message, at: HEADER };
        let name = reader.question_name().ok_or(form)?;
        let kind = Kind(reader.u16().ok_or(form)?);
        let class = reader.u16().ok_or(form)?;
        let end = reader.at;
        let (answers, authorities) = (count(6), count(8));
        let edns = reader.find_opt(u32::from(answers) + u32::from(authorities), count(10)).ok_or(form)?;
        let recursion_desired = header[2] & RECURSION_DESIRED != 0;
        Ok(Self { name, kind, class, client, transport, recursion_desired, message, end, edns })
    }

    /// Longest message the client takes.
    pub fn size_max(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => UDP_PLAIN,
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).clamp(UDP_PLAIN, UDP_EDNS),
        }
    }

    /// How many answer records of `data_bytes` each surely do not all fit: more need not be made.
    pub fn records_max(&self, data_bytes: usize) -> usize {
        // A record has a pointer to its name, type, class, lifetime and length in front.
        self.size_max() / (12 + data_bytes) + 1
    }

    /// Whether an OPT of a version other than 0 came along (RFC 6891: BADVERS).
    pub(crate) fn has_foreign_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version != 0)
    }
}

/// Reads forward in a message; `None` past its end.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The name of a question: nothing stands before it that it could point to.
    fn question_name(&mut self) -> Option<Name> {
        let mut name = Name::default();
        let start = self.at;
        loop {
            match self.u8()? {
                0 => return (self.at - start <= NAME_MAX).then_some(name),
                len @ 1..=LABEL_MAX => name.push_label(self.take(usize::from(len))?),
                _ => return None,
            }
        }
    }

    /// Passes over a record's owner name, which may end in a pointer.
    fn skip_name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            match self.u8()? {
                0 => return Some(self.at - start == 1),
                len @ 1..=LABEL_MAX => drop(self.take(usize::from(len))?),
                0xc0.. => {
                    self.u8()?;
                    return Some(false);
                }
                _ => return None,
            }
        }
    }

    /// Passes over `others` records, then finds the OPT among `additionals`. The outer `None` means
    /// that the message is broken or has two.
    fn find_opt(&mut self, others: u32, additionals: u16) -> Option<Option<Edns>> {
        let mut found = None;
        for at in 0..others + u32::from(additionals) {
            let root = self.skip_name()?;
            let (kind, payload) = (Kind(self.u16()?), self.u16()?);
            let ttl = self.take(4)?;
            let (version, flags) = (ttl[1], ttl[2]);
            let len = self.u16()?;
            self.take(usize::from(len))?;
            if kind != Kind::OPT || at < others {
                continue;
            }
            let edns = Edns { payload, version, dnssec_ok: flags & DNSSEC_OK != 0 };
            if !root || found.replace(edns).is_some() {
                return None;
            }
        }
        Some(found)
    }
}

pub(crate) const HEADER: usize = 12;
pub(crate) const RESPONSE: u8 = 0x80;
pub(crate) const OPCODE: u8 = 0x78;
pub(crate) const AUTHORITATIVE: u8 = 0x04;
pub(crate) const TRUNCATED: u8 = 0x02;
pub(crate) const RECURSION_DESIRED: u8 = 0x01;
pub(crate) const RECURSION_AVAILABLE: u8 = 0x80;
pub(crate) const CHECKING_DISABLED: u8 = 0x10;
pub(crate) const DNSSEC_OK: u8 = 0x80;
pub(crate) const NAME_MAX: usize = 255;
pub(crate) const LABEL_MAX: u8 = 63;
/// Internet class.
pub const CLASS_IN: u16 = 1;
/// Any class.
pub const CLASS_ANY: u16 = 255;
/// Longest datagram for clients without EDNS.
pub const UDP_PLAIN: usize = 512;
/// Longest datagram we send and say we take: never fragmented in practice (DNS flag day 2020).
pub const UDP_EDNS: usize = 1232;
