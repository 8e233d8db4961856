//! What the dns costs.

fn main() {}
