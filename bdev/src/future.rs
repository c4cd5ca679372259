//! Requests as futures, for control and slow paths. A dropped future only orphans its request: the request keeps its buffer
//! until it ends.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use crate::channel::Channel;
use crate::core::IoWaiter;
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

/// The memory of a request, given to it and taken back when it ends.
pub type Data = Option<DmaBuf>;

struct Shared {
    channel: Channel,
    slot: RefCell<Slot>,
}

struct Slot {
    request: Option<Request>,
    outcome: Option<(Status, Data)>,
    waker: Option<Waker>,
}

struct Request {
    op: Op,
    flags: IoFlags,
    lba: u64,
    nblocks: u32,
    aux: u64,
    buf: Data,
    buf1: Data,
}

impl Shared {
    fn try_start(self: &Rc<Self>) -> bool {
        let Some(mut io) = self.channel.core().get() else { return false };
        let Some(r) = self.slot.borrow_mut().request.take() else {
            io.release();
            return true;
        };
        io.prepare(r.op, r.flags, r.lba, r.nblocks);
        io.set_copy_source(r.aux);
        match (r.buf, r.buf1) {
            (Some(a), Some(b)) => io.set_buf_pair(a, b),
            (Some(a), None) => io.set_buf(a),
            _ => {}
        }
        io.begin(self.clone(), 0);
        self.channel.submit(io);
        true
    }
}

impl Submitter for Shared {
    fn io_done(self: Rc<Self>, mut io: IoRef, _tag: u64) {
        let outcome = (io.status(), io.take_buf());
        io.release(); // a second buffer goes with it
        let waker = {
            let mut s = self.slot.borrow_mut();
            s.outcome = Some(outcome);
            s.waker.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}

impl IoWaiter for Shared {
    fn io_available(self: Rc<Self>) {
        if !self.try_start() {
            let core = self.channel.core().clone();
            core.wait(self);
        }
    }
}

/// A request under way: ends with its status and its buffer.
pub struct IoFuture(Rc<Shared>);

impl Future for IoFuture {
    type Output = (Status, Data);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut s = self.0.slot.borrow_mut();
        match s.outcome.take() {
            Some(o) => Poll::Ready(o),
            None => {
                s.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Channel {
    fn start(&self, request: Request) -> IoFuture {
        let shared = Rc::new(Shared {
            channel: self.clone(),
            slot: RefCell::new(Slot { request: Some(request), outcome: None, waker: None }),
        });
        if !shared.try_start() {
            self.core().wait(shared.clone());
        }
        IoFuture(shared)
    }

    fn plain(&self, op: Op, flags: IoFlags, lba: u64, nblocks: u32, buf: Data) -> IoFuture {
        self.start(Request { op, flags, lba, nblocks, aux: 0, buf, buf1: None })
    }

    /// Reads `nblocks` from `lba` into `buf`, which must hold them.
    pub fn read(&self, lba: u64, nblocks: u32, buf: DmaBuf) -> IoFuture {
        self.plain(Op::Read, IoFlags::NONE, lba, nblocks, Some(buf))
    }

    /// Writes `nblocks` at `lba` from `buf`.
    pub fn write(&self, lba: u64, nblocks: u32, buf: DmaBuf, flags: IoFlags) -> IoFuture {
        self.plain(Op::Write, flags, lba, nblocks, Some(buf))
    }

    /// Compares `nblocks` at `lba` with `buf`.
    pub fn compare(&self, lba: u64, nblocks: u32, buf: DmaBuf) -> IoFuture {
        self.plain(Op::Compare, IoFlags::NONE, lba, nblocks, Some(buf))
    }

    /// Writes `new` at `lba` if what is there equals `expected`.
    pub fn compare_and_write(&self, lba: u64, nblocks: u32, expected: DmaBuf, new: DmaBuf, flags: IoFlags) -> IoFuture {
        self.start(Request {
            op: Op::CompareAndWrite,
            flags,
            lba,
            nblocks,
            aux: 0,
            buf: Some(expected),
            buf1: Some(new),
        })
    }

    /// Aborts everything in flight on every core and brings the device back to a known state.
    pub fn reset(&self) -> IoFuture {
        self.plain(Op::Reset, IoFlags::NONE, 0, 0, None)
    }

    /// Makes completed writes durable.
    pub fn flush(&self) -> IoFuture {
        self.plain(Op::Flush, IoFlags::NONE, 0, 0, None)
    }

    /// Deallocates a range.
    pub fn unmap(&self, lba: u64, nblocks: u32) -> IoFuture {
        self.plain(Op::Unmap, IoFlags::NONE, lba, nblocks, None)
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, lba: u64, nblocks: u32, flags: IoFlags) -> IoFuture {
        self.plain(Op::WriteZeroes, flags, lba, nblocks, None)
    }

    /// Copies `nblocks` from `source` to `lba`.
    pub fn copy(&self, source: u64, lba: u64, nblocks: u32) -> IoFuture {
        self.start(Request { op: Op::Copy, flags: IoFlags::NONE, lba, nblocks, aux: source, buf: None, buf1: None })
    }
}
