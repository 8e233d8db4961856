//! End-to-end tests: the built binary driven from outside, with real programs on the other side.
//!
//! The tests stand in `tests/tests/`; what they share is in [`support`]. How
//! Pillion is held against Envoy is in [`parity`].

pub mod parity;
pub mod support;
