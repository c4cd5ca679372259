//! Accelerated operations: erasure code over GF(2^8), checksums, memory operations, encryption.
//!
//! [`Engine`] is what computes, [`Accel`] knows which engine does which operation, and a [`Channel`] is the way to them from one
//! core. Operations do their work on the calling core before they return. An erasure [`Codec`](erasure::Codec) and a
//! [`Crypt`](crypto::Crypt) are prepared once by the engine that is assigned, and then called directly.

mod assign;
pub mod crypto;
mod engine;
pub mod erasure;
pub mod gf;
mod operation;
mod pieces;
mod software;
mod stats;

pub use assign::{Accel, AssignError, Channel};
pub use engine::{Capability, Engine};
pub use operation::Operation;
pub use software::Software;
pub use stats::OpStats;
