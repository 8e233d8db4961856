//! What the macro benches share: programs under measurement ([`peer`]), what a process costs
//! ([`usage`]) and how results are told ([`report`]). Each bench is a program in `src/bin`, run by `cargo xtask bench`.

pub mod dns;
pub mod peer;
pub mod proxy;
pub mod registry;
pub mod report;
pub mod usage;
