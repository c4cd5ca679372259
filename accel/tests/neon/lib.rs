//! The erasure code alone, without the dependencies of its package: what `scripts/neon.sh` compiles for another architecture.

#[path = "../../src/erasure/mod.rs"]
pub mod erasure;
#[path = "../../src/gf.rs"]
pub mod gf;
