//! Longshore: a userspace, polled-mode storage data plane.
//!
//! This crate is the daemon and the facade for those who embed it: the rooms below under one name each.

pub use longshore_accel as accel;
pub use longshore_bdev as bdev;
pub use longshore_nvme as nvme;
pub use longshore_nvmf as nvmf;
pub use longshore_reactor as reactor;
pub use longshore_rpc as rpc;
pub use longshore_tcp as tcp;
