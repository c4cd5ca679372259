//! The `longshore` daemon.

fn main() {}
