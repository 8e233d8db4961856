//! What a zone says to a question.

use std::borrow::Cow;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record};

use crate::note::{Note, Reason};

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The outcome.
    pub code: ResponseCode,
    /// Whether we are the authority for the name.
    pub authoritative: bool,
    /// Whether we ask others on the client's behalf.
    pub recursion_available: bool,
    /// For how many seconds the records asked for may be kept.
    pub ttl: u32,
    /// The records asked for, best first. Their owner is the name asked for, in the case asked.
    pub answers: Vec<RData>,
    /// There are more answers than these: over UDP the client is told to ask again over TCP.
    pub more: bool,
    /// The SOA with a "no".
    pub authority: Vec<Record>,
    /// Helpful records; left out where there is no room.
    pub additional: Vec<Record>,
    /// Why it is so, for people.
    pub note: Option<Note>,
}

impl Answer {
    /// Nothing but a code.
    pub fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    /// The same answer with a reason.
    #[must_use]
    pub fn noting(self, reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Self { note: Some(Note::new(reason, text)), ..self }
    }
}

/// Start of authority: who is responsible, and for how long a "no" may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// First name server.
    pub server: Name,
    /// Mailbox of who is responsible, `@` written as a dot.
    pub mailbox: Name,
    /// Rises with every change.
    pub serial: u32,
    /// For how many seconds "no" may be kept.
    pub minimum: u32,
}

impl From<Soa> for RData {
    fn from(soa: Soa) -> Self {
        let Soa { server, mailbox, serial, minimum } = soa;
        Self::SOA(SOA::new(server, mailbox, serial, REFRESH, RETRY, EXPIRE, minimum))
    }
}

/// An address as a record's content: A or AAAA.
pub fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

// Nobody transfers the zone: these only have to be sensible.
const REFRESH: i32 = 7200;
const RETRY: i32 = 1800;
const EXPIRE: i32 = 86_400;
