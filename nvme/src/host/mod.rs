//! NVMe/TCP initiator: controllers, their admin queue, and I/O queue pairs on the reactors that use them.
//!
//! ```no_run
//! # use longshore_nvme::host::{Controller, HostOptions, TransportId};
//! # use longshore_reactor::{Options, Runtime};
//! # async fn example(rt: &Runtime) -> Result<(), longshore_nvme::host::HostError> {
//! let id = TransportId::tcp("127.0.0.1:4420".parse().unwrap(), "nqn.2016-06.io.spdk:cnode1");
//! let ctrl = Controller::connect(&rt.cores()[0], id, HostOptions::default()).await?;
//! for nsid in ctrl.active_namespaces().await? {
//!     println!("{nsid}: {} blocks", ctrl.namespace(nsid).await?.data.nsze);
//! }
//! ctrl.disconnect(true).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns what
//!
//! A [`Controller`] is shared by all threads. Its admin queue, keep-alive and asynchronous events live on one core; admin commands
//! of other cores travel there by message. An I/O queue pair ([`IoQueue`]) is made on the core that uses it and never leaves it.
//!
//! # What a command may rely on
//!
//! [`Qpair::submit`] never completes a command before it returns. Each accepted command completes exactly once, from the
//! reactor: with the controller's status when the answer is here **and** none of the command's memory is queued to be sent any
//! more; or with `ABORTED_BY_HOST` when the connection is gone and nothing refers to its memory. A deadline never ends a
//! command by itself: it leads to an Abort command or to the end of the connection.
//!
//! # What the peer may not do
//!
//! Every tag, offset and length that the controller sends is checked. What cannot be (an unknown command identifier, data out of
//! range or out of order, a transfer that was not asked for) ends the connection with H2CTermReq. A success with less data than
//! the command has, in either direction, is reported as Data Transfer Error.

mod command;
mod connect;
mod controller;
mod discovery;
mod error;
mod events;
mod memory;
mod namespace;
mod options;
mod owner;
mod qpair;
mod receive;
mod slot;

pub use command::{AdminData, AdminReply, within};
pub use controller::{Controller, ControllerState, Info, IoQueue};
pub use discovery::DiscoveryLog;
pub use error::HostError;
pub use events::{ControllerEvent, EventSink};
pub use namespace::Namespace;
pub use options::{HostOptions, TimeoutAction, TransportId, set_process_hostid};
pub use qpair::{Completer, Data, Done, Qpair, Rejected};
