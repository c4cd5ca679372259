//! The control operations of [`Target`](crate::Target), by subject.

mod host;
mod list;
mod listener;
mod namespace;
mod subsystem;
mod transport;

pub use list::{ControllerInfo, GroupStats, HostShare, QpairInfo};
