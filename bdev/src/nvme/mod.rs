//! Namespaces of remote controllers as block devices: `Nvme0n1` is namespace 1 of the controller attached as `Nvme0`.
//!
//! [`Controllers`] is what was attached. Each core that uses a controller has one I/O queue pair on it, shared by its namespaces;
//! it is made when the first of them is opened there.
//!
//! # When the connection is lost
//!
//! The controller is connected again as its [`Reconnect`] says, as a whole: also when it is one queue only that was lost, for its
//! writes might still be executed. Meanwhile requests wait, those that were under way and those that come; each is a request of
//! the core's pool, which bounds them. Once the namespaces are known to be the same, they are sent (again), in any order. They
//! fail with a path related status when `fast_io_fail_timeout_sec` has passed, when the controller is given up or detached, and
//! when their namespace is gone or was replaced.
//!
//! What may not be executed twice is not sent again: a compare-and-write that was under way (`pair` has the rule), and a copy onto a part of its own source. It ends with `ABORTED_BY_HOST` and Do Not Retry: whether it was executed is unknown.
//!
//! # Caches
//!
//! A remote namespace always counts as one with a volatile write cache. Its controller may say today that it has none and come back
//! with one, after an update or on other hardware; users that had been told so when it was attached would go on without flushes,
//! and could not be told otherwise: hosts read it when they connect. To remove the device instead and add it again would take
//! a volume down for a change that loses nothing as long as its users flush. What it costs them is a flush that ends here: it is
//! not sent while the controller never had a cache.
//!
//! A controller with a volatile write cache that loses power loses writes that it acknowledged; a host that did not see it cannot
//! know. Export such a device with its cache off, or from a file or device that the machine's death does not concern.

mod channel;
mod controllers;
mod core_queue;
mod device;
mod discovery;
mod entry;
mod options;
mod pair;
mod recover;
mod waiting;

pub use controllers::{AttachError, ControllerInfo, Controllers, PathFilter};
pub use device::{NvmeBdev, PRODUCT_NAME};
pub use discovery::DiscoveryInfo;
pub use longshore_nvme::host::{HostError, TimeoutAction, TransportId};
pub use options::{AttachOptions, NvmeOptions, Reconnect};
