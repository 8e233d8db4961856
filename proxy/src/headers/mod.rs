//! Headers on their way through: what is removed, added, rewritten and written down.

pub(crate) mod changes;
pub(crate) mod client_cert;
pub(crate) mod format;
pub(crate) mod forwarded;
pub(crate) mod framing;
pub(crate) mod hop;
pub(crate) mod ids;
pub(crate) mod names;
pub(crate) mod websocket;
