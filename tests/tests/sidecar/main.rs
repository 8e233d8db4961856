//! Sidecars as processes: names, the outbound port, state on disk, and `pillion run`.

mod names;
mod support;
