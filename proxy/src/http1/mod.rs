//! HTTP/1.1 messages (RFC 9112) on one connection: where bodies end, how heads are read and written,
//! and the buffers between.
//!
//! Both sides of the proxy use it in place of hyper's, whose connections run in tasks of their own
//! and read heads once more than need be. Heads are parsed by `httparse`; what is not one message to
//! everybody is refused ([`framing`](crate::headers::framing)).

mod chunks;
mod date;
mod decode;
mod encode;
mod wire;

pub(crate) use date::put_date;
pub(crate) use decode::{BadBody, Decoder, head_end, headers};
pub(crate) use encode::{Encoder, put_headers, put_request_line};
pub(crate) use wire::Wire;

/// Header fields of one message at most. Envoy: `max_headers_count`.
pub(crate) const HEADERS_MAX: usize = 100;
