//! The question and answer of `envoy.service.auth.v3.Authorization`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::google::protobuf::Timestamp;
use prost::Message;

use crate::pb;

/// The method that is called.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What is told of a request.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Who asks for something.
    pub source: SocketAddr,
    /// First name of the client's certificate.
    pub source_principal: &'a str,
    /// The client's certificate, URL-encoded PEM.
    pub source_certificate: &'a str,
    /// Where the request came in.
    pub destination: SocketAddr,
    /// First name of our own certificate.
    pub destination_principal: &'a str,
    /// When it came in.
    pub time: SystemTime,
    /// Of the request.
    pub id: &'a str,
    /// Of the request.
    pub method: &'a str,
    /// With query.
    pub path: &'a str,
    /// Of the request.
    pub host: &'a str,
    /// Of the request.
    pub scheme: &'a str,
    /// `HTTP/1.1` and so on.
    pub protocol: &'a str,
    /// Names in lower case; several values are joined by commas.
    pub headers: HashMap<String, String>,
    /// As far as it is shown.
    pub body: &'a [u8],
    /// In `raw_body` instead of `body`.
    pub body_as_bytes: bool,
    /// Length of the whole body, -1: not known.
    pub size: i64,
    /// What the configuration tells.
    pub extensions: &'a BTreeMap<String, String>,
    /// The server name of TLS.
    pub server_name: Option<&'a str>,
}

/// What the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Of a refusal.
    pub status: u16,
    /// Of a refusal.
    pub body: String,
    /// Of the request, or of a refusal.
    pub headers: Vec<HeaderChange>,
    /// Removed from the request.
    pub headers_to_remove: Vec<String>,
    /// Added to the response of what may pass.
    pub response_headers: Vec<HeaderChange>,
}

/// What is done with one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Vec<u8>,
    /// What happens to values that are there.
    pub how: How,
}

/// What happens to values of a header that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They are replaced.
    Set,
    /// This one stands beside them.
    Add,
    /// This one is joined to them; without them it is left out.
    Append,
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not a message of that type.
    #[error("cannot be read as a CheckResponse")]
    Decode(#[from] prost::DecodeError),
    /// It wants something that is not done here.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// Writes a question.
#[must_use]
pub fn encode_question(question: &Question<'_>) -> Vec<u8> {
    use auth::attribute_context::{HttpRequest, Peer, Request, TlsSession};
    let since = question.time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (body, raw_body) = if question.body_as_bytes {
        (String::new(), question.body.to_vec())
    } else {
        (String::from_utf8_lossy(question.body).into_owned(), Vec::new())
    };
    let http = HttpRequest {
        id: question.id.to_owned(),
        method: question.method.to_owned(),
        headers: question.headers.clone(),
        path: question.path.to_owned(),
        host: question.host.to_owned(),
        scheme: question.scheme.to_owned(),
        size: question.size,
        protocol: question.protocol.to_owned(),
        body,
        raw_body,
        ..HttpRequest::default()
    };
    let peer = |at: SocketAddr, principal: &str, certificate: &str| Peer {
        address: Some(address(at)),
        principal: principal.to_owned(),
        certificate: certificate.to_owned(),
        ..Peer::default()
    };
    let extensions = question.extensions.iter();
    let attributes = auth::AttributeContext {
        source: Some(peer(question.source, question.source_principal, question.source_certificate)),
        destination: Some(peer(question.destination, question.destination_principal, "")),
        request: Some(Request {
            time: Some(Timestamp {
                seconds: since.as_secs().cast_signed(),
                nanos: since.subsec_nanos().cast_signed(),
            }),
            http: Some(http),
        }),
        context_extensions: extensions.map(|(key, value)| (key.clone(), value.clone())).collect(),
        metadata_context: Some(pb::core::Metadata::default()),
        route_metadata_context: Some(pb::core::Metadata::default()),
        tls_session: question.server_name.map(|name| TlsSession { sni: name.to_owned() }),
    };
    auth::CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

fn address(at: SocketAddr) -> pb::core::Address {
    use pb::core::{address::Address, socket_address::PortSpecifier};
    pb::core::Address {
        address: Some(Address::SocketAddress(pb::core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
            ..Default::default()
        })),
    }
}

/// Reads an answer.
///
/// # Errors
///
/// [`AnswerError`]: the request must not pass for want of an answer that is understood.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, AnswerError> {
    use auth::check_response::HttpResponse;
    let message = auth::CheckResponse::decode(bytes)?;
    let allowed = message.status.is_none_or(|status| status.code == 0);
    let mut answer = Answer { allowed, status: 403, ..Answer::default() };
    match message.http_response {
        Some(HttpResponse::OkResponse(ok)) if allowed => {
            if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
                return Err(AnswerError::Unsupported("a change of query parameters"));
            }
            answer.headers = changes(ok.headers);
            answer.headers_to_remove = ok.headers_to_remove;
            answer.response_headers = changes(ok.response_headers_to_add);
        }
        Some(HttpResponse::DeniedResponse(denied)) if !allowed => {
            let status = denied.status.map_or(0, |status| status.code);
            if let Some(status) = u16::try_from(status).ok().filter(|status| *status > 0) {
                answer.status = status;
            }
            answer.body = denied.body;
            answer.headers = changes(denied.headers);
        }
        _ => {}
    }
    Ok(answer)
}

fn changes(all: Vec<pb::core::HeaderValueOption>) -> Vec<HeaderChange> {
    let change = |option: pb::core::HeaderValueOption| {
        let header = option.header?;
        let value = if header.value.is_empty() { header.raw_value } else { header.value.into_bytes() };
        #[expect(deprecated, reason = "this is what servers say, and what Envoy reads")]
        let append = option.append.is_some_and(|append| append.value);
        let how = if append { How::Append } else { How::Set };
        Some(HeaderChange { name: header.key, value, how })
    };
    all.into_iter().filter_map(change).collect()
}
