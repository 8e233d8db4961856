//! Why an answer is as it is, for people: Extended DNS Errors (RFC 8914). `dig` prints them.

use std::borrow::Cow;

use hickory_proto::rr::rdata::opt::EdnsOption;

/// A reason with a text. Sent to clients with EDNS; nobody decides by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind of reason.
    pub reason: Reason,
    /// The words, of at most 200 bytes.
    pub text: Cow<'static, str>,
}

/// Reasons, by their numbers in RFC 8914.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// None of the others.
    Other = 0,
    /// From data that may be out of date.
    StaleAnswer = 3,
    /// The server has not loaded its data yet.
    NotReady = 14,
    /// Not for this client or in this way.
    Prohibited = 18,
    /// Not a zone of this server.
    NotAuthoritative = 20,
    /// Nothing we do.
    NotSupported = 21,
    /// Whom we would have to ask does not answer.
    NoReachableAuthority = 22,
}

impl Note {
    /// A note.
    pub fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, text: text.into() }
    }

    pub(crate) fn option(&self) -> EdnsOption {
        let (code, content) = self.parts();
        EdnsOption::Unknown(code, content)
    }

    /// Number and content of the option.
    pub(crate) fn parts(&self) -> (u16, Vec<u8>) {
        let mut content = (self.reason as u16).to_be_bytes().to_vec();
        content.extend(self.text.bytes().take(TEXT_MAX));
        (CODE, content)
    }
}

/// The option's number.
const CODE: u16 = 15;
const TEXT_MAX: usize = 200;
