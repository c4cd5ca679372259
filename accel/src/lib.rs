//! Accelerated operations: erasure code over GF(2^8), checksums, memory operations, encryption.
//!
//! [`Engine`] is what computes, [`Accel`] knows which engine does which operation, and a [`Channel`] is the way to them from one
//! core. Operations do their work on the calling core before they return. A [`Coder`] of an erasure code and a
//! [`Crypt`](crypto::Crypt) are prepared once by the engines that are assigned, and then called directly.

mod assign;
mod coder;
pub mod crypto;
mod engine;
pub mod erasure;
pub mod gf;
#[cfg(feature = "isal")]
mod isal;
mod operation;
mod pieces;
mod software;
mod stats;
mod stream;

pub use assign::{Accel, AssignError, Channel};
pub use coder::{Coder, Rebuilder};
pub use engine::{Capability, Engine};
#[cfg(feature = "isal")]
pub use isal::Isal;
pub use operation::Operation;
pub use software::Software;
pub use stats::OpStats;
pub use stream::copy_past_cache;
