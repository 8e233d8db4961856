//! Behaviour against in-process origins.

mod http1;
mod support;
