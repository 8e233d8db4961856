//! Behaviour against in-process origins.

mod check;
mod control;
mod http1;
mod http2;
pub(in crate::upstream) mod support;
mod tcp;
mod tls;
mod tunnel;
