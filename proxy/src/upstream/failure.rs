//! Why a try gave no response headers, in Envoy's words.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use http::Response;
use pillion_model::retry::Reset;

use super::http1::Http1Error;
use super::state::EndpointState;
use crate::headers::names::Kinds;
use crate::response::parse_grpc_status;

/// A try without response headers.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// Whether any byte of the request may have been handed to the upstream.
    pub request_sent: bool,
    /// A kept-alive connection had been closed by the peer, as far as can be told before it saw
    /// the request: one more try on a fresh connection does not count as a retry if it is safe to
    /// repeat the request.
    pub stale_connection: bool,
    /// Transport failure reason: the text of the socket's or the TLS layer's error; may be empty.
    pub detail: Cow<'static, str>,
    /// The endpoint tried, if one was chosen.
    pub endpoint: Option<Arc<EndpointState>>,
}

/// What kept a try from response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No endpoint could be chosen.
    NoHealthyUpstream,
    /// Dropped on purpose, by the endpoints' `drop_overloads`.
    Dropped,
    /// A reset.
    Reset(Reset),
}

impl Cause {
    /// The reset, if it is one.
    pub fn reset(self) -> Option<Reset> {
        match self {
            Self::Reset(reset) => Some(reset),
            Self::NoHealthyUpstream | Self::Dropped => None,
        }
    }
}

impl Failure {
    pub(super) fn new(cause: Cause) -> Self {
        Self {
            cause,
            request_sent: false,
            stale_connection: false,
            detail: Cow::Borrowed(""),
            endpoint: None,
        }
    }

    pub(super) fn reset(reset: Reset) -> Self {
        Self::new(Cause::Reset(reset))
    }

    pub(super) fn at(mut self, endpoint: &Arc<EndpointState>) -> Self {
        self.endpoint = Some(Arc::clone(endpoint));
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// Envoy's reset reason string.
pub fn reset_reason(reset: Reset) -> &'static str {
    match reset {
        Reset::ConnectFailure => "remote connection failure",
        Reset::ConnectTimeout => "connection timeout",
        Reset::ConnectionTermination => "connection termination",
        Reset::RemoteReset => "remote reset",
        Reset::RefusedStream => "remote refused stream reset",
        Reset::LocalReset | Reset::PerTryTimeout => "local reset",
        Reset::Overflow => "overflow",
        Reset::ProtocolError => "protocol error",
    }
}

/// Why a response body ended early.
pub fn body_reset(error: &crate::body::BodyError) -> Reset {
    match error {
        crate::body::BodyError::Connection(error) => match find::<h2::Error>(error) {
            Some(h2) => classify_h2(h2),
            None if error.is_user() => Reset::LocalReset,
            // An HTTP/1 message that is not whole breaks the protocol, however it was cut.
            None => Reset::ProtocolError,
        },
        crate::body::BodyError::Http2(error) => classify_h2(error),
        crate::body::BodyError::Http1(Http1Error::Request(_) | Http1Error::Short) => Reset::LocalReset,
        crate::body::BodyError::Http1(_) => Reset::ProtocolError,
        crate::body::BodyError::Downstream(_)
        | crate::body::BodyError::Source
        | crate::body::BodyError::Abandoned
        | crate::body::BodyError::NotKept => Reset::LocalReset,
    }
}

/// Maps what kept an HTTP/1 request from its answer.
pub(super) fn classify_http1(error: &Http1Error) -> Reset {
    match error {
        Http1Error::Closed | Http1Error::Io(_) => Reset::ConnectionTermination,
        Http1Error::Request(_) | Http1Error::Short => Reset::LocalReset,
        Http1Error::Cut
        | Http1Error::Unclear
        | Http1Error::Head(_)
        | Http1Error::Header
        | Http1Error::TooLarge
        | Http1Error::Body(_) => Reset::ProtocolError,
    }
}

/// Maps what kept an HTTP/2 request from its answer.
pub(super) fn classify_h2(error: &h2::Error) -> Reset {
    if error.is_go_away() && error.is_remote() {
        // Only streams above the last one the peer has worked on end this way.
        return Reset::RefusedStream;
    }
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Reset::RefusedStream,
        Some(h2::Reason::PROTOCOL_ERROR) if error.is_library() => Reset::ProtocolError,
        Some(_) if error.is_remote() => Reset::RemoteReset,
        Some(_) if error.is_library() => Reset::ProtocolError,
        _ => Reset::ConnectionTermination,
    }
}

/// The status passive health counts: a gRPC status in the headers is one of HTTP's in disguise.
pub(super) fn passive_status<B>(response: &Response<B>, kinds: Kinds) -> u16 {
    let grpc = if kinds.grpc { parse_grpc_status(response.headers()) } else { None };
    grpc.map_or_else(|| response.status().as_u16(), grpc_to_http)
}

/// Envoy's mapping of gRPC status codes to HTTP's.
pub fn grpc_to_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The first error of type `E` in the chain.
pub(super) fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The text of a failed connect as Envoy shows it: the system's words, without Rust's number.
pub(super) fn io_detail(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    if error.raw_os_error().is_some() { format!("delayed connect error: {text}") } else { text.to_owned() }
}
