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

    /// Reads another reconstruction of what `lba` holds, for a layer that has checksums and found that what it read is wrong. Attempt
    /// 0, 1, 2... each distrusts another set of the device's members, small sets first.
    ///
    /// Ends with [`NO_ALTERNATE`](crate::NO_ALTERNATE) when there are no more, and with an error of the medium when this one cannot be had and others may.
    /// With `INVALID_OPCODE` if the channel does not [offer](Channel::offers_alternates) it, and with `INVALID_FIELD` if the range
    /// crosses a multiple of the device's optimal I/O boundary: then it must be asked for in parts.
    pub fn read_alternate(&self, lba: u64, nblocks: u32, buf: DmaBuf, attempt: u32) -> IoFuture {
        self.of_alternate(Op::Read, IoFlags::ALTERNATE, lba, nblocks, buf, attempt)
    }

    /// Says that attempt `attempt` at this very range, which ended with `buf`, is right: what the device holds instead is rewritten.
    ///
    /// Ends with [`NO_ALTERNATE`](crate::NO_ALTERNATE) if the range's surroundings were written to since, or it was long ago: then it is to be read once more. With
    /// `COMPARE_FAILURE` if `buf` is not what the attempt gives. Otherwise as [`read_alternate`](Channel::read_alternate).
    pub fn heal_alternate(&self, lba: u64, nblocks: u32, buf: DmaBuf, attempt: u32) -> IoFuture {
        self.of_alternate(Op::Write, IoFlags::HEAL, lba, nblocks, buf, attempt)
    }

    fn of_alternate(&self, op: Op, flags: IoFlags, lba: u64, nblocks: u32, buf: DmaBuf, attempt: u32) -> IoFuture {
        let boundary = u64::from(self.inner().geometry().optimal_io_boundary);
        let last = lba.saturating_add(u64::from(nblocks).saturating_sub(1));
        if !self.offers_alternates() {
            return self.refused(Status::INVALID_OPCODE, buf);
        }
        if nblocks == 0 || boundary != 0 && lba / boundary != last / boundary {
            return self.refused(Status::INVALID_FIELD, buf);
        }
        self.start(Request { op, flags, lba, nblocks, aux: u64::from(attempt), buf: Some(buf), buf1: None })
    }

    fn refused(&self, status: Status, buf: DmaBuf) -> IoFuture {
        let slot = Slot { request: None, outcome: Some((status, Some(buf))), waker: None };
        IoFuture(Rc::new(Shared { channel: self.clone(), slot: RefCell::new(slot) }))
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
