//! The scenarios of the registry's bench.

pub mod etcd;
