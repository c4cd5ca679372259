//! NVMe-oF target core: subsystems, controllers, queue pairs and commands, whatever transport carries them.
//!
//! # Shape
//!
//! [`Target`] is the control plane: each change makes a new immutable [`TargetView`] and hands it to every core, which swaps it
//! in between two turns; the change answers when all have. No change waits for I/O, except that the removal of a namespace
//! waits for the commands that use it. [`PollGroup`] is one core's part: its queue pairs, the controllers whose admin queue it
//! serves, and tables made from the view that I/O looks up. A [`Qpair`] executes commands; a transport drives it through
//! [`Qpair`]'s methods and [`QpairTransport`].
//!
//! A controller's state has one owner, the core of its admin queue. Other cores hold what their I/O checks, and speak to the owner
//! by messages that name controllers and queue pairs by numbers which are never used again.
//!
//! # Hot path
//!
//! Read, write and flush on a connected queue pair take no lock, allocate nothing and log nothing: slots and tables are sized
//! when the connection or the configuration changes.

mod access;
mod address;
mod admin;
mod ana;
mod buffer;
mod connect;
mod control;
mod controller;
mod directory;
mod discovery;
mod error;
mod error_log;
mod io;
mod options;
mod place;
mod poll_group;
mod predecessors;
mod promise;
mod property;
mod qpair;
mod request;
mod requests;
mod share;
mod tally;
mod target;
mod transport;
mod view;

pub use address::{Address, AdrFam, TrType};
pub use control::{ControllerInfo, GroupStats, HostShare, QpairInfo};
pub use error::TargetError;
pub use longshore_nvme::wire::AnaState;
pub use options::{DiscoveryFilter, NamespaceOptions, Referral, SubsystemOptions, TargetConfig, TransportOptions};
pub use place::Placement;
pub use poll_group::PollGroup;
pub use qpair::Qpair;
pub use request::Begin;
pub use tally::Traffic;
pub use target::Target;
pub use transport::{Disconnect, ListenError, QpairTransport, TransportKind};
pub use view::{ListenerView, Namespace, NamespaceView, SubsystemKey, SubsystemView, TargetView};
