//! Accelerated operations: erasure code over GF(2^8), checksums, memory operations, encryption.
//!
//! [`Engine`] is what computes, [`Accel`] knows which engine does which operation, and a [`Channel`] is the way to them from one
//! core. Operations do their work on the calling core before they return. A [`Coder`] of an erasure code and a
//! [`Crypt`](crypto::Crypt) are prepared once by the engines that are assigned, and then called directly.
//!
//! What would keep a reactor for long can be given to cores of their own, [`Cores`], where there are any: as a [`Job`], by an [`Offload`].

mod assign;
mod coder;
pub mod cores;
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
pub use cores::{Cores, Job, JobOwner, Offload};
pub use engine::{Capability, Engine};
#[cfg(feature = "isal")]
pub use isal::Isal;
pub use operation::Operation;
pub use software::Software;
pub use stats::OpStats;
pub use stream::copy_past_cache;
