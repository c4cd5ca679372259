//! Structures of the NVMe specifications, as they lie on the wire.
//!
//! Every structure is little endian, has alignment 1 (so that it can be viewed in place in any buffer), has no implicit
//! padding, and is followed by an assertion of its size. Field comments give the offset or Dword and the name used by the
//! specification; section names refer to the NVM Express Base Specification 2.x unless another one is named.

pub mod opcode;
mod queue_entry;
mod sgl;
mod status;

pub use queue_entry::{Cqe, Fuse, Psdt, Sqe};
pub use sgl::{SglDescriptor, SglKind};
pub use status::{Status, StatusCodeType};
