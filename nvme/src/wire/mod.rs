//! Structures of the NVMe specifications, as they lie on the wire.
//!
//! Every structure is little endian, has alignment 1 (so that it can be viewed in place in any buffer), has no implicit
//! padding, and is followed by an assertion of its size. Field comments give the offset or Dword and the name used by the
//! specification; section names refer to the NVM Express Base Specification 2.x unless another one is named.

pub mod ascii;
mod bits;
pub mod discovery;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod identify_ns;
pub mod io;
pub mod log;
pub mod opcode;
mod queue_entry;
pub mod register;
mod sgl;
mod status;

pub use ascii::{DISCOVERY_NQN, NqnField};
pub use discovery::{DiscoveryEntry, DiscoveryHeader};
pub use event::AsyncEvent;
pub use identify::{IdentifyController, NSID_ALL};
pub use identify_ns::{ControllerList, IdentifyNamespace, NamespaceDescriptors, NamespaceList};
pub use log::AnaState;
pub use queue_entry::{Cqe, Fuse, Psdt, Sqe};
pub use sgl::{SglDescriptor, SglKind};
pub use status::{Status, StatusCodeType};
