//! DNS servers side by side: the same data, the same questions, one CPU each.

pub mod changes;
pub mod data;
pub mod load;
pub mod server;
