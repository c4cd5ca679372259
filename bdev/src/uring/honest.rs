//! The data path as it is outside of tests: see `mutant` for what they put in its place.

use std::os::fd::RawFd;

use longshore_reactor::{Reactor, RingOp};

use super::open::Medium;
use crate::io::IoRef;

/// What makes a write durable.
#[inline(always)]
pub(super) fn durable_flag() -> i32 {
    libc::RWF_DSYNC
}

/// A FUA write is durable by its flag; otherwise it waits for a flush.
#[inline(always)]
pub(super) fn by_flag(m: &Medium) -> bool {
    m.direct
}

/// The descriptor of flushes.
#[inline(always)]
pub(super) fn sync_fd(m: &Medium) -> RawFd {
    m.sync_fd()
}

#[inline(always)]
pub(super) fn skip_sync() -> bool {
    false
}

#[inline(always)]
pub(super) fn acknowledge_early(_: &Reactor, _: &IoRef, _: &RingOp) -> bool {
    false
}
