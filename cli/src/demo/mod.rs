//! The demo: real processes of a whole mesh on this machine.

pub(crate) mod services;
