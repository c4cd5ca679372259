//! Namespaces of remote controllers as block devices: `Nvme0n1` is namespace 1 of the controller attached as `Nvme0`.
//!
//! [`Controllers`] is what was attached. Each core that uses a controller has one I/O queue pair on it, shared by its namespaces;
//! it is made when the first of them is opened there, and made again when it was lost and the controller is up. A request that
//! was on its way when the connection ended, or that comes while there is none, ends with a path related status.

mod channel;
mod controllers;
mod core_queue;
mod device;
mod options;

pub use controllers::{AttachError, ControllerInfo, Controllers, PathFilter};
pub use device::{NvmeBdev, PRODUCT_NAME};
pub use longshore_nvme::host::{HostError, TimeoutAction, TransportId};
pub use options::{AttachOptions, NvmeOptions};
