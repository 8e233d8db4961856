//! Questions, as hickory reads them, and what else a message may be.

use std::net::SocketAddr;

use hickory_proto::op::{Header, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;

use crate::name::AskedName;

/// How a question came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Udp => Self::Udp,
            Transport::Tcp => Self::Tcp,
        }
    }
}

/// One question, with what is needed to answer it.
#[derive(Debug)]
pub struct Question<'a> {
    /// The name asked for.
    pub name: AskedName,
    /// The record type asked for.
    pub kind: RecordType,
    /// The class asked for.
    pub class: DNSClass,
    /// Who asks.
    pub client: SocketAddr,
    /// How.
    pub transport: Transport,
    pub(crate) request: &'a Request,
}

impl<'a> Question<'a> {
    /// The one question of a request.
    ///
    /// # Errors
    ///
    /// The code to refuse the request with.
    pub(crate) fn of(request: &'a Request) -> Result<Self, ResponseCode> {
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Err(ResponseCode::BADVERS); // RFC 6891, 6.1.3
        }
        let [query] = request.queries.queries() else { return Err(ResponseCode::FormErr) };
        let name = query.original().name();
        // Nothing stands before a question's name that it could point to. In full, it takes a length
        // byte for each label and the root; type and class follow.
        if request.queries.as_bytes().len() != name_bytes(name) + 4 {
            return Err(ResponseCode::FormErr);
        }
        let transport = if request.protocol() == Protocol::Udp { Transport::Udp } else { Transport::Tcp };
        Ok(Self {
            name: name.into(),
            kind: query.query_type(),
            class: query.query_class(),
            client: request.src(),
            transport,
            request,
        })
    }

    /// Whether the client wants other servers asked (RD).
    pub fn recursion_desired(&self) -> bool {
        self.request.metadata.recursion_desired
    }

    /// The whole message as received.
    pub fn message(&self) -> &'a [u8] {
        self.request.as_slice()
    }

    /// End of the question section within the message: after header, name, type and class.
    pub(crate) fn end(&self) -> usize {
        HEADER + self.request.queries.as_bytes().len()
    }

    /// Longest message the client takes, in bytes.
    pub fn size_max(&self) -> usize {
        match (self.transport, &self.request.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(UDP_PLAIN),
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(UDP_PLAIN, UDP_EDNS)),
        }
    }

    /// The room an answer has.
    pub fn room(&self) -> Room {
        Room { bytes: self.size_max() }
    }
}

/// How much fits into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    bytes: usize,
}

impl Room {
    /// How many answer records of `data_bytes` each surely do not all fit: more need not be made.
    pub fn records_max(self, data_bytes: usize) -> usize {
        // A record has a pointer to its name, type, class, lifetime and length in front.
        self.bytes / (12 + data_bytes) + 1
    }
}

/// A message that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not even a header, or a response: answering could loop.
    Ignore,
    /// Answered with this code and an empty body.
    Refuse(Header, ResponseCode),
}

/// Reads a message.
///
/// # Errors
///
/// [`Unreadable`] says whether and how to answer.
pub(crate) fn read(
    message: Vec<u8>,
    client: SocketAddr,
    transport: Transport,
) -> Result<Request, Unreadable> {
    let header = Header::read(&mut BinDecoder::new(&message)).map_err(|_| Unreadable::Ignore)?;
    if header.message_type == MessageType::Response || client.port() == 0 {
        return Err(Unreadable::Ignore);
    }
    if header.op_code != OpCode::Query {
        return Err(Unreadable::Refuse(header, ResponseCode::NotImp));
    }
    // Looked at first: the decoder makes room for as many questions as the header promises.
    if header.counts.queries != 1 {
        return Err(Unreadable::Refuse(header, ResponseCode::FormErr));
    }
    Request::from_bytes(message, client, transport.into())
        .map_err(|_| Unreadable::Refuse(header, ResponseCode::FormErr))
}

/// Bytes of a name written in full.
pub(crate) fn name_bytes(name: &hickory_proto::rr::Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

/// Bytes of a message's header.
pub(crate) const HEADER: usize = 12;
/// Longest datagram for clients without EDNS.
pub(crate) const UDP_PLAIN: u16 = 512;
/// Longest datagram we send and say we take: never fragmented in practice (DNS flag day 2020).
pub(crate) const UDP_EDNS: u16 = 1232;
