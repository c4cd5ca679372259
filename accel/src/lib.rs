//! Accelerated operations: erasure code over GF(2^8), checksums, memory operations, encryption.
//!
//! Functions here take plain byte slices and do their work before they return.

pub mod erasure;
pub mod gf;
