//! The `longshore-perf` load generator.

fn main() {}
