//! The data path of a file device on one core.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Completion, DmaBuf, OpId, Reactor, RingOp, Timer};

use super::faults::{acknowledge_early, by_flag, durable_flag};
use super::open::Medium;
use super::status::{Verdict, judge, judge_durable, loses_data};
use super::sync::Flusher;
use crate::core::CoreState;
use crate::device::{IoChannel, Layer};
use crate::io::{Io, IoFlags, IoId, IoRef, IoVec, Op};
use crate::node::BdevNode;
use crate::queue::IoQueue;

/// Requests that found no resources are tried again after this long.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// Most vectors of one operation.
const MAX_VECTORS: usize = 1024;
/// In the second word of a request, beside the channel's address: it is to be aborted.
const ABORTED: u64 = 1;

pub(super) struct UringChannel(Rc<Inner>);

struct Inner {
    reactor: Reactor,
    medium: Arc<Medium>,
    /// The core's own description of the file, if it could have one: cores that share one share its cache line too.
    own: Option<OwnedFd>,
    block_size: u32,
    /// Bits that must be clear in addresses of memory, and in lengths.
    addr_mask: usize,
    len_mask: usize,
    /// What few requests need beside themselves, by their number.
    aside: RefCell<HashMap<u32, Aside>>,
    /// Wait for resources.
    retry: IoQueue,
    timer: RefCell<Option<Timer>>,
    flusher: Rc<Flusher>,
    me: Weak<Inner>,
}

/// Memory that stands in for the request's, and vectors for the rest of a short transfer.
#[derive(Default)]
struct Aside {
    bounce: Option<DmaBuf>,
    vectors: Vec<IoVec>,
}

impl UringChannel {
    pub(super) fn new(reactor: &Reactor, medium: Arc<Medium>, node: &Arc<BdevNode>) -> UringChannel {
        let own = medium.reopen();
        let flusher = Flusher::new(reactor, medium.clone(), node);
        let (addr_mask, len_mask) =
            if medium.direct { (medium.mem_align as usize - 1, medium.unit as usize - 1) } else { (0, 0) };
        UringChannel(Rc::new_cyclic(|me| Inner {
            reactor: reactor.clone(),
            block_size: medium.block_size,
            addr_mask,
            len_mask,
            medium,
            own,
            aside: RefCell::default(),
            retry: IoQueue::default(),
            timer: RefCell::default(),
            flusher,
            me: me.clone(),
        }))
    }
}

/// The end of a read or write.
unsafe fn rw_done(ctx: *mut (), res: i32, _flags: u32) {
    // SAFETY: `launch` gave up its handle of this request for this call; the slot never moves.
    let io = unsafe { IoRef::from_ptr(NonNull::new_unchecked(ctx.cast::<Io>())) };
    // SAFETY: `launch` put the channel's address there; it lives while the request is in flight.
    let ch = unsafe { &*((io.words()[1] & !ABORTED) as *const Inner) };
    ch.rw_ended(io, res);
}

/// The end of a deallocation or zeroing.
unsafe fn range_done(ctx: *mut (), res: i32, _flags: u32) {
    // SAFETY: as in `rw_done`.
    let io = unsafe { IoRef::from_ptr(NonNull::new_unchecked(ctx.cast::<Io>())) };
    // SAFETY: as in `rw_done`.
    let ch = unsafe { &*((io.words()[1] & !ABORTED) as *const Inner) };
    ch.range_ended(io, res);
}

impl Inner {
    fn fd(&self) -> RawFd {
        self.own.as_ref().map_or_else(|| self.medium.fd(), AsRawFd::as_raw_fd)
    }

    fn submit(&self, mut io: IoRef) {
        match io.op() {
            Op::Read | Op::Write => {
                io.set_copy_source(0); // bytes done
                self.rw(io);
            }
            Op::Flush => self.flusher.join(io),
            Op::Unmap | Op::WriteZeroes => self.range(io),
            Op::Reset => io.complete_later(Status::SUCCESS), // everything was aborted and has ended
            Op::Compare | Op::CompareAndWrite | Op::Copy => io.complete_later(Status::INVALID_OPCODE),
        }
    }

    fn bytes(&self, io: &IoRef) -> usize {
        io.nblocks() as usize * self.block_size as usize
    }

    fn rw(&self, io: IoRef) {
        let write = io.op() == Op::Write;
        if durable(&io) && self.medium.health.poisoned() {
            return io.complete_later(Status::WRITE_FAULT);
        }
        let want = self.bytes(&io);
        let (mut total, mut misfit) = (0, io.iov().len() > MAX_VECTORS);
        for v in io.iov() {
            total += v.iov_len;
            misfit |= v.iov_base as usize & self.addr_mask != 0 || v.iov_len & self.len_mask != 0;
        }
        if total < want {
            return io.complete_later(Status::DATA_SGL_LENGTH_INVALID);
        }
        if misfit || total > want {
            return self.bounced(io, want);
        }
        let off = io.lba() * u64::from(self.block_size);
        let flags = self.flags(&io);
        let (iov, cnt) = (io.iov().as_ptr(), io.iov().len() as u32);
        let op = match (io.iov(), write) {
            ([v], false) => RingOp::Read {
                fd: self.fd(),
                buf: v.iov_base.cast(),
                len: v.iov_len as u32,
                off,
                flags,
                index: fixed(&io, v),
            },
            ([v], true) => RingOp::Write {
                fd: self.fd(),
                buf: v.iov_base.cast_const().cast(),
                len: v.iov_len as u32,
                off,
                flags,
                index: fixed(&io, v),
            },
            (_, false) => RingOp::ReadV { fd: self.fd(), iov, cnt, off, flags },
            (_, true) => RingOp::WriteV { fd: self.fd(), iov, cnt, off, flags },
        };
        self.launch(io, op, rw_done);
    }

    /// `RWF_*` of a read or write.
    fn flags(&self, io: &IoRef) -> i32 {
        if durable(io) && by_flag(&self.medium) { durable_flag() } else { 0 }
    }

    /// Gives the request to the ring.
    fn launch(&self, mut io: IoRef, op: RingOp, func: unsafe fn(*mut (), i32, u32)) {
        io.set_words([0, std::ptr::from_ref(self) as u64]);
        if acknowledge_early(&self.reactor, &io, &op) {
            return io.complete_later(Status::SUCCESS);
        }
        let p = io.into_ptr();
        let done = Completion { func, ctx: p.as_ptr().cast() };
        // SAFETY: the request owns the memory that the operation points to, or `aside` does, until it is completed; it is
        // completed only from `done`. The file is open as long as this channel, which outlives what is in flight.
        let id = unsafe { self.reactor.submit(op, done) };
        // SAFETY: completions never run inside `submit`, so the request is still where it was and nobody looks at it.
        unsafe { (*p.as_ptr()).words[0] = id.raw() };
    }

    /// Does a read or write through aligned memory.
    #[cold]
    fn bounced(&self, io: IoRef, want: usize) {
        let done = io.copy_source() as usize;
        let Some(mut buf) = self.reactor.dma().alloc(want) else { return self.try_later(io) };
        if io.op() == Op::Write
            && let Some(mut to) = buf.get_mut()
        {
            for seg in io.segments() {
                let n = seg.len().min(to.len());
                let (now, rest) = to.split_at_mut(n);
                now.copy_from_slice(&seg[..n]);
                to = rest;
            }
        }
        let first = IoVec { iov_base: buf.as_ptr().wrapping_add(done).cast(), iov_len: want - done };
        let aside = Aside { bounce: Some(buf), vectors: vec![first] };
        let index = io.io().index;
        self.aside.borrow_mut().insert(index, aside);
        self.launch_aside(io);
    }

    /// Gives the vectors that lie aside to the ring.
    #[cold]
    fn launch_aside(&self, io: IoRef) {
        let off = io.lba() * u64::from(self.block_size) + io.copy_source();
        let flags = self.flags(&io);
        let op = {
            let map = self.aside.borrow();
            let Some(a) = map.get(&io.io().index) else { return io.complete_later(Status::INTERNAL_ERROR) };
            let cnt = a.vectors.len().min(MAX_VECTORS) as u32;
            let (fd, iov) = (self.fd(), a.vectors.as_ptr());
            match io.op() {
                Op::Write => RingOp::WriteV { fd, iov, cnt, off, flags },
                _ => RingOp::ReadV { fd, iov, cnt, off, flags },
            }
        };
        self.launch(io, op, rw_done);
    }

    fn rw_ended(&self, mut io: IoRef, res: i32) {
        let aborted = io.words()[1] & ABORTED != 0;
        io.set_words([0, 0]);
        let want = self.bytes(&io);
        let done = io.copy_source() as usize;
        if res >= 0 && done + res as usize == want {
            return self.transferred(io);
        }
        self.rw_trouble(io, res, aborted, want, done);
    }

    fn transferred(&self, mut io: IoRef) {
        if !self.aside.borrow().is_empty() {
            let index = io.io().index;
            let aside = self.aside.borrow_mut().remove(&index);
            if io.op() == Op::Read
                && let Some(buf) = aside.and_then(|a| a.bounce)
            {
                let mut from = buf.as_slice();
                for seg in io.segments_mut() {
                    let n = seg.len().min(from.len());
                    seg[..n].copy_from_slice(&from[..n]);
                    from = &from[n..];
                }
            }
        }
        let durable = durable(&io);
        if durable && !by_flag(&self.medium) {
            return self.flusher.join(io);
        }
        let lost = durable && self.medium.health.poisoned();
        io.complete(if lost { Status::WRITE_FAULT } else { Status::SUCCESS });
    }

    #[cold]
    fn rw_trouble(&self, mut io: IoRef, res: i32, aborted: bool, want: usize, done: usize) {
        let index = io.io().index;
        let end = |ch: &Inner, io: IoRef, s: Status| {
            ch.aside.borrow_mut().remove(&index);
            io.complete(s);
        };
        if res >= 0 {
            // Short. Whole units of it count; a transfer that makes no headway never will.
            let total = (done + res as usize) & !self.len_mask;
            if aborted {
                return end(self, io, Status::ABORT_REQUESTED);
            }
            if total <= done || total > want {
                let at_end = res == 0;
                tracing::warn!(
                    bdev = self.medium.name,
                    lba = io.lba(),
                    "{:?} ended after {} of {want} bytes{}",
                    io.op(),
                    done + res as usize,
                    if at_end { ": the file is shorter than it was; rescan it" } else { "" }
                );
                let s = match io.op() {
                    Op::Write => Status::WRITE_FAULT,
                    _ if at_end => Status::LBA_OUT_OF_RANGE,
                    _ => Status::UNRECOVERED_READ_ERROR,
                };
                return end(self, io, s);
            }
            io.set_copy_source(total as u64);
            {
                let mut map = self.aside.borrow_mut();
                let a = map.entry(index).or_default();
                match &a.bounce {
                    Some(b) => {
                        let base = b.as_ptr().wrapping_add(total);
                        a.vectors = vec![IoVec { iov_base: base.cast(), iov_len: want - total }];
                    }
                    None => a.vectors = rest(io.iov(), total),
                }
            }
            return self.launch_aside(io);
        }
        let durable = durable(&io) && by_flag(&self.medium);
        match if durable { judge_durable(io.op(), -res) } else { judge(io.op(), -res) } {
            Verdict::Cancelled => end(self, io, Status::ABORT_REQUESTED),
            Verdict::Retry if aborted => end(self, io, Status::ABORT_REQUESTED),
            Verdict::Retry => {
                self.aside.borrow_mut().remove(&index);
                io.set_copy_source(0);
                self.try_later(io);
            }
            Verdict::Unsupported => end(self, io, Status::INVALID_OPCODE),
            Verdict::Fail(s) => {
                if durable && loses_data(-res) {
                    self.medium.poison(-res, "a write with FUA");
                }
                end(self, io, s);
            }
        }
    }

    /// Waits for resources.
    #[cold]
    fn try_later(&self, mut io: IoRef) {
        io.set_words([0, 0]);
        let first = self.retry.is_empty();
        self.retry.push(io);
        if first {
            let me = self.me.clone();
            let t = self.reactor.timer(RETRY, move |_| {
                let Some(me) = me.upgrade() else { return };
                let all = me.retry.take();
                while let Some(io) = all.pop() {
                    me.submit(io);
                }
            });
            *self.timer.borrow_mut() = Some(t);
        }
    }

    fn range(&self, io: IoRef) {
        let health = &self.medium.health;
        let zero = io.op() == Op::WriteZeroes;
        let durable = io.flags().has(IoFlags::FUA);
        if zero && durable && health.poisoned() {
            return io.complete_later(Status::WRITE_FAULT);
        }
        let punch = !zero || io.flags().has(IoFlags::MAY_UNMAP) && !io.flags().has(IoFlags::NO_UNMAP);
        let punch = punch && !health.no_punch.load(Relaxed);
        let mode = if punch {
            libc::FALLOC_FL_PUNCH_HOLE
        } else if zero && !health.no_zero.load(Relaxed) {
            libc::FALLOC_FL_ZERO_RANGE
        } else if zero {
            return io.emulate();
        } else {
            return io.complete_later(Status::SUCCESS); // deallocation is advice
        };
        let bs = u64::from(self.block_size);
        let op = RingOp::Fallocate {
            fd: self.fd(),
            mode: mode | libc::FALLOC_FL_KEEP_SIZE,
            off: io.lba() * bs,
            len: u64::from(io.nblocks()) * bs,
        };
        if io.nblocks() == 0 {
            return io.complete_later(Status::SUCCESS);
        }
        let mut io = io;
        io.set_copy_source(mode as u64);
        self.launch(io, op, range_done);
    }

    fn range_ended(&self, mut io: IoRef, res: i32) {
        let aborted = io.words()[1] & ABORTED != 0;
        let mode = io.copy_source() as i32;
        io.set_words([0, 0]);
        if res == 0 {
            return match io.op() {
                Op::WriteZeroes if io.flags().has(IoFlags::FUA) => self.flusher.join(io),
                _ => io.complete(Status::SUCCESS),
            };
        }
        match judge(io.op(), -res) {
            Verdict::Cancelled => io.complete(Status::ABORT_REQUESTED),
            Verdict::Retry if aborted => io.complete(Status::ABORT_REQUESTED),
            Verdict::Retry => self.try_later(io),
            Verdict::Unsupported => {
                let punch = mode == libc::FALLOC_FL_PUNCH_HOLE;
                let flag = if punch { &self.medium.health.no_punch } else { &self.medium.health.no_zero };
                if !flag.swap(true, Relaxed) {
                    let what =
                        if punch { "punch holes: unmap does nothing" } else { "zero ranges: zeroes are written" };
                    tracing::info!(bdev = self.medium.name, "the file system cannot {what}");
                }
                self.range(io); // the next best way
            }
            Verdict::Fail(s) => io.complete(s),
        }
    }
}

fn durable(io: &IoRef) -> bool {
    io.op() == Op::Write && io.flags().has(IoFlags::FUA)
}

/// What remains of `iov` after `skip` bytes.
fn rest(iov: &[IoVec], mut skip: usize) -> Vec<IoVec> {
    let mut out = Vec::with_capacity(iov.len());
    for v in iov {
        if skip >= v.iov_len {
            skip -= v.iov_len;
            continue;
        }
        let base = (v.iov_base as *mut u8).wrapping_add(skip);
        out.push(IoVec { iov_base: base.cast(), iov_len: v.iov_len - skip });
        skip = 0;
    }
    out
}

/// The registered buffer that holds the request's only piece of memory.
fn fixed(io: &IoRef, v: &IoVec) -> Option<u16> {
    let buf = io.buf()?;
    let (start, at) = (buf.as_ptr() as usize, v.iov_base as usize);
    (at >= start && at + v.iov_len <= start + buf.len()).then(|| buf.fixed_index()).flatten()
}

impl IoChannel for UringChannel {
    fn submit(&self, io: IoRef) {
        self.0.submit(io);
    }

    fn abort(&self, id: IoId) -> bool {
        let s = &*self.0;
        if let Some(io) = s.retry.remove(id) {
            io.complete_later(Status::ABORT_REQUESTED);
            return true;
        }
        if s.flusher.abort(id) {
            return true;
        }
        let me = std::ptr::from_ref(s) as u64;
        CoreState::current().with_inflight(id, |words| s.cancel_if_mine(words, me)).unwrap_or(false)
    }

    fn notify(&self, _: u64) {
        self.0.flusher.told();
    }

    fn abort_all(&self) {
        let s = &*self.0;
        let all = s.retry.take();
        while let Some(io) = all.pop() {
            io.complete_later(Status::ABORT_REQUESTED);
        }
        s.flusher.abort_all();
        let me = std::ptr::from_ref(s) as u64;
        CoreState::current().each_inflight(|words| {
            s.cancel_if_mine(words, me);
        });
    }
}

impl Inner {
    fn cancel_if_mine(&self, words: &mut [u64; 2], me: u64) -> bool {
        if words[1] & !ABORTED != me {
            return false;
        }
        words[1] |= ABORTED;
        self.reactor.cancel(OpId::from_raw(words[0]));
        true
    }
}
