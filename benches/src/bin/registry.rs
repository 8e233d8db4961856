//! What the registry costs.

fn main() {}
