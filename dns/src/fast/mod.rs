//! Ordinary questions over UDP, answered from bytes that are made once.
//!
//! What is answered here: one question of class IN for A, AAAA or SRV of a name of letters, digits,
//! `-`, `_` and `*`, with RD, AD and CD as they like, with or without an OPT record of version 0 that
//! holds no option but a cookie, and nothing behind it. Such a question differs from the next one in
//! its id, its flags, the case of its name, the size it has room for and its cookie; the answer, in
//! the order in which records are drawn as well. All else about it ([`Records`], [`Denial`]) is made
//! when the data change.
//!
//! Everything else is the business of the general way through [`crate::handler`]: there, hickory reads
//! and writes each message, whatever it holds. Malformed messages, other types and classes, other
//! options, names that a zone has no bytes ready for: they are rare, and what they need (codes, notes,
//! waiting) would make this file as long as that one. Both ways say the same, record by record; a
//! property test holds them against each other.

mod question;
mod ready;
mod write;

pub(crate) use question::NAME_MAX;
pub use question::Plain;
pub use ready::{Denial, Encoded, Records};
pub(crate) use write::{Draws, limited, write};

use hickory_proto::op::ResponseCode;

/// A zone's answers to ordinary questions. Each thread that answers has its own.
pub trait Fast: Send {
    /// Looks at what is in force from now on. Called before each burst of questions.
    fn refresh(&mut self);

    /// The answer, unless only [`crate::Zone::answer`] knows it.
    fn find(&mut self, question: &Plain<'_>) -> Option<Ready<'_>>;

    /// Counts an answer that is sent.
    fn count(&self, code: ResponseCode);
}

/// An authoritative answer that is ready.
#[derive(Clone, Copy)]
pub enum Ready<'a> {
    /// Records.
    Yes(&'a Records, Option<&'a Encoded>),
    /// There are none: NXDOMAIN, or NODATA with code 0.
    No(ResponseCode, &'a Denial, Option<&'a Encoded>),
}

impl Ready<'_> {
    pub(crate) fn code(&self) -> ResponseCode {
        match self {
            Self::Yes(..) => ResponseCode::NoError,
            Self::No(code, ..) => *code,
        }
    }
}
