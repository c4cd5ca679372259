//! The control operations of [`Target`](crate::Target), by subject.

mod host;
mod list;
mod listener;
mod namespace;
mod port;
mod subsystem;
mod transport;

pub(crate) use port::Port;

pub use list::{ControllerInfo, GroupStats, HostShare, QpairInfo};
