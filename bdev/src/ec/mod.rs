//! Erasure-coded arrays: k data and m parity strips on k+m members, which survive the loss of any m of them together with any crash.
//!
//! * [`arrays`]: the arrays of a daemon, made by request or found on devices.
//! * [`assemble`]: which of the members that were found may be believed. A pure decision.
//! * [`check`]: verification of an array from its members, which changes nothing.
//! * [`create`]: from base devices to members that can be started from.
//! * [`layout`]: where everything is on a member, and which strip is whose. Pure arithmetic.
//! * [`mod@format`]: the structures on the members, byte for byte. Pure encoding and decoding; `docs/format-ec.md` describes them.

mod alternate;
pub mod arrays;
pub mod assemble;
mod bitmaps;
pub mod check;
mod child;
mod clear;
pub mod create;
mod device;
mod drain;
mod engine;
mod epoch;
mod event;
mod flights;
mod flush;
pub mod format;
mod given;
#[cfg(test)]
mod golden;
#[cfg(not(test))]
mod honest;
#[cfg(test)]
pub(crate) mod images;
mod intent;
mod journal;
mod lane;
pub mod layout;
mod lower;
mod map;
mod member;
mod memory;
mod meta;
#[cfg(test)]
pub(crate) mod mutant;
mod read;
mod rebuild;
mod recover;
mod remote;
mod rows;
mod scrub;
mod shared;
mod signal;
#[cfg(test)]
mod simulated;
mod slow;
mod spare;
mod start;
mod stats;
mod stripe;
#[cfg(test)]
pub(crate) mod tests;
mod tuning;
mod txn;
mod visit;

#[cfg(not(test))]
use honest as faults;
#[cfg(test)]
use mutant as faults;

pub use device::{Ec, PRODUCT_NAME};
pub use event::Event;
pub use rebuild::{Newcomer, RebuildProgress, RebuildQos, RebuildState, UnmapStatus, WibStatus};
pub use scrub::{ScrubOptions, ScrubProgress, ScrubState};
pub use start::start;
pub use stats::EcStats;
pub use tuning::{SLOW_READ, Tuning};
