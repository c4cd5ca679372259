//! Faults that tests build into the data path, to see that they are found: compiled into the tests of this crate only.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::fd::RawFd;

use longshore_reactor::{Completion, Reactor, RingOp};

use super::open::Medium;
use crate::io::{IoRef, Op};

/// One way to break durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A flush succeeds without a sync.
    FlushNothing,
    /// A write with FUA is a plain one.
    IgnoreFua,
    /// A write is acknowledged when it was submitted, and done later or never.
    AckEarly,
    /// Flushes and FUA writes through the page cache share a file description, and with it the one report of a failure.
    SharedReport,
}

thread_local! {
    static MUTANT: Cell<Option<Mutant>> = const { Cell::new(None) };
}

pub(super) fn set(m: Option<Mutant>) {
    MUTANT.set(m);
}

pub(super) fn durable_flag() -> i32 {
    if MUTANT.get() == Some(Mutant::IgnoreFua) { 0 } else { libc::RWF_DSYNC }
}

pub(super) fn by_flag(m: &Medium) -> bool {
    m.direct || MUTANT.get() == Some(Mutant::SharedReport)
}

pub(super) fn sync_fd(m: &Medium) -> RawFd {
    if MUTANT.get() == Some(Mutant::SharedReport) { m.fd() } else { m.sync_fd() }
}

pub(super) fn skip_sync() -> bool {
    MUTANT.get() == Some(Mutant::FlushNothing)
}

unsafe fn forget(ctx: *mut (), _: i32, _: u32) {
    // SAFETY: `acknowledge_early` leaked this box for this call.
    drop(unsafe { Box::from_raw(ctx.cast::<Vec<u8>>()) });
}

/// Starts a copy of the write and lets it be acknowledged at once.
pub(super) fn acknowledge_early(r: &Reactor, io: &IoRef, op: &RingOp) -> bool {
    let &RingOp::Write { fd, len, off, flags, .. } = op else { return false };
    if MUTANT.get() != Some(Mutant::AckEarly) || io.op() != Op::Write {
        return false;
    }
    let data: Vec<u8> = io.segments().flatten().copied().collect();
    let data = Box::new(data);
    let op = RingOp::Write { fd, buf: data.as_ptr(), len, off, flags, index: None };
    let done = Completion { func: forget, ctx: Box::into_raw(data).cast() };
    // SAFETY: the box, which the completion frees, owns the memory.
    unsafe { r.submit(op, done) };
    true
}
