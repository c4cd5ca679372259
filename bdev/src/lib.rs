//! Block-device core and modules.
//!
//! # Shape
//!
//! A [`Bdev`] is the control plane of one device; an [`IoChannel`] is its data plane on one core. Users open a device by name
//! through the [`Registry`], get a [`BdevDesc`], and take one [`Channel`] per core from it. One request is one [`Io`] from the
//! core's pool, handed down by value as an [`IoRef`]: whoever holds the `IoRef` owns the request.
//!
//! # Liveness contract
//!
//! * [`Channel::submit`] never fails and never completes the request before it returns: every outcome, errors included,
//!   arrives through the completion, from the reactor's poll phase. Completions therefore never recurse through submit.
//! * A layer that accepts an `IoRef` completes it exactly once, with [`IoRef::complete`] from its own completion context or
//!   with [`IoRef::complete_later`] from inside `submit`.
//! * A request owns its buffers until its last frame ran. A channel is freed only when nothing is in flight on it.
//! * Everything is per core: an `IoRef`, a `Channel` and a pool never leave the thread they were made on.

mod base;
mod channel;
mod core;
mod desc;
mod device;
mod event;
mod fanout;
mod frame;
mod future;
mod gate;
mod io;
mod job;
mod lease;
mod loading;
mod memory;
mod monitor;
mod node;
mod pool;
mod qos;
mod queue;
mod range_lock;
mod registry;
mod reset;
mod split;
mod stat;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vbdev;

pub mod crypto;
pub mod delay;
pub mod ec;
pub mod error;
pub mod malloc;
pub mod null;
pub mod nvme;
pub mod passthru;
pub mod sim;
pub mod uring;
pub mod volatile;

pub use base::{Base, derived_uuid};
pub use channel::{Channel, Inflight};
pub use core::{CoreOptions, CoreState, IoWaiter};
pub use desc::BdevDesc;
pub use device::{Bdev, Geometry, IoChannel, Layer, SupportedOps};
pub use event::{BdevEvent, EventSink, Notification, NotificationLog};
pub use frame::{MAX_FRAMES, Submitter};
pub use future::{Data, IoFuture};
pub use io::{Io, IoFlags, IoId, IoRef, IoVec, NO_ALTERNATE, NOT_LENT, Op};
pub use loading::Loading;
pub use longshore_nvme::wire::Status;
pub use monitor::{HistogramSum, QueueDepth};
pub use node::{BdevNode, Claim, ClaimKind};
pub use pool::PoolStats;
pub use qos::{QosLimits, QosUpdate};
pub use registry::{BdevError, Examiner, Registry};
pub use stat::{Histogram, IoStat, OpStat, StatReset, StatSnapshot};
pub use vbdev::{Examination, Vbdev};
