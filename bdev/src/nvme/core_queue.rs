//! The I/O queue pair of a controller on one core, and the requests on it.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_nvme::host::{Completer, Data, Done, HostError, IoQueue, Rejected};
use longshore_nvme::wire::io::{CopyRange, DsmRange, cdw12, dsm};
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Sqe, Status};
use longshore_reactor::{DmaBuf, Reactor, Timer};

use super::entry::{Entry, Path};
use super::pair::Pair;
use crate::io::{IoFlags, IoRef, Op};
use crate::queue::IoQueue as Held;

/// A queue that could not be made is asked for again after this, unless the controller was reset since.
const AGAIN: Duration = Duration::from_millis(250);

/// What a request carries in its second word: its namespace, the device it was sent to, and how often it was sent again.
#[derive(Clone, Copy)]
pub(super) struct Tag(pub(super) u64);

impl Tag {
    pub(super) const MAX_SERIAL: u32 = (1 << 19) - 1;
    const RETRIES: u32 = 5;
    const SERIAL: u32 = 13;

    /// `block_size` is a power of two.
    pub(super) fn new(nsid: u32, serial: u32, block_size: u32) -> Tag {
        let low = block_size.trailing_zeros() | (serial & Self::MAX_SERIAL) << Self::SERIAL;
        Tag(u64::from(nsid) << 32 | u64::from(low))
    }

    pub(super) fn of(io: &IoRef) -> Tag {
        Tag(io.words()[1])
    }

    pub(super) fn nsid(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn serial(self) -> u32 {
        self.0 as u32 >> Self::SERIAL
    }

    fn block_size(self) -> usize {
        1 << (self.0 & 31)
    }

    pub(super) fn retries(self) -> u8 {
        (self.0 >> Self::RETRIES) as u8
    }

    /// As this, sent again once more; the count stops at its end.
    pub(super) fn again(self) -> Tag {
        match self.retries() {
            u8::MAX => self,
            _ => Tag(self.0 + (1 << Self::RETRIES)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    Connecting,
    Up,
}

pub(crate) struct CoreQueue {
    pub(super) me: Weak<CoreQueue>,
    pub(super) reactor: Reactor,
    pub(super) entry: Arc<Entry>,
    pub(super) queue: RefCell<Option<IoQueue>>,
    pub(super) link: Cell<Link>,
    /// When a queue was last asked for, and of which life of the controller.
    attempt: Cell<(u64, u32)>,
    /// Since when no queue could be made although the controller is up.
    failing_since: Cell<Option<u64>>,
    /// Wait for the queue, or for room in it.
    pub(super) held: Held,
    /// Failed for a passing reason; wait for a moment.
    pub(super) later: Held,
    /// By command identifier.
    pub(super) flights: RefCell<Vec<Option<IoRef>>>,
    pub(super) pairs: RefCell<Vec<Pair>>,
    pieces: RefCell<Vec<DmaBuf>>,
    /// Memory ran out.
    dry: RefCell<Option<Timer>>,
    /// Looks after what waits.
    pub(super) again: RefCell<Option<Timer>>,
    /// Watches over commands that were to be aborted, by namespace and serial number of the device.
    pub(super) deadlines: RefCell<HashMap<(u32, u32), Timer>>,
    /// Namespaces that are not ready, by namespace and serial number of the device: since when, and when one last said so.
    pub(super) not_ready: RefCell<HashMap<(u32, u32), (u64, u64)>>,
}

thread_local! {
    static OPEN: RefCell<HashMap<u64, Weak<CoreQueue>>> = RefCell::default();
}

/// Something about the controller `number` changed.
pub(super) fn look(number: u64) {
    let q = OPEN.with(|m| m.borrow().get(&number).and_then(Weak::upgrade));
    if let Some(q) = q {
        q.look();
    }
}

impl Drop for CoreQueue {
    fn drop(&mut self) {
        self.entry.core_leaves(self.reactor.index());
    }
}

pub(super) enum Start {
    Started,
    /// The request waits for room or memory.
    Later(IoRef),
    Failed(IoRef, Status),
}

impl CoreQueue {
    /// This core's queue of a controller; it is connected in the background.
    pub(super) fn of(reactor: &Reactor, entry: &Arc<Entry>) -> Rc<CoreQueue> {
        if let Some(q) = OPEN.with(|m| m.borrow().get(&entry.number).and_then(Weak::upgrade)) {
            return q;
        }
        let q = Rc::new_cyclic(|me| CoreQueue {
            me: me.clone(),
            reactor: reactor.clone(),
            entry: entry.clone(),
            queue: RefCell::default(),
            link: Cell::new(Link::Down),
            attempt: Cell::new((0, 0)),
            failing_since: Cell::default(),
            held: Held::default(),
            later: Held::default(),
            flights: RefCell::default(),
            pairs: RefCell::default(),
            pieces: RefCell::default(),
            dry: RefCell::default(),
            again: RefCell::default(),
            deadlines: RefCell::default(),
            not_ready: RefCell::default(),
        });
        OPEN.with(|m| m.borrow_mut().insert(entry.number, Rc::downgrade(&q)));
        entry.core_joins(reactor.handle());
        q.connect();
        q
    }

    /// Asks for a queue if there is none, unless that failed a moment ago or the controller has to be reset first.
    pub(super) fn connect(&self) {
        if self.link.get() != Link::Down || self.entry.path() != Path::Up || self.entry.ctrl.needs_reset() {
            return;
        }
        let (now, generation) = (self.reactor.rdtsc(), self.entry.ctrl.generation());
        let (last, of) = self.attempt.get();
        if of == generation && now.saturating_sub(last) < self.reactor.ticks(AGAIN) {
            return self.look_again(AGAIN);
        }
        self.attempt.set((now, generation));
        self.link.set(Link::Connecting);
        let (me, ctrl, reactor) = (self.me.clone(), self.entry.ctrl.clone(), self.reactor.clone());
        drop(self.reactor.spawn(async move {
            let made = ctrl.io_queue(&reactor, None).await;
            // Nobody wants it any more: it is dropped, and with that disconnected.
            let Some(this) = me.upgrade() else { return };
            let gone = match made {
                // The controller was reset meanwhile, and what its namespaces are is not known.
                Ok(q) if this.entry.path() != Path::Up => {
                    drop(q);
                    return this.went_down();
                }
                Ok(q) => {
                    let gone = q.qpair().clone();
                    this.came_up(q);
                    gone
                }
                Err(e) => return this.not_made(&e),
            };
            drop(this);
            gone.gone().await;
            if let Some(this) = me.upgrade() {
                tracing::warn!("controller {}: I/O queue {} ended: {}", this.entry.name, gone.qid(), gone.why());
                this.went_down();
            }
        }));
    }

    /// No queue could be made. If the controller is up all the same, it is asked for again while there is patience.
    #[cold]
    fn not_made(&self, e: &HostError) {
        self.link.set(Link::Down);
        if self.entry.path() != Path::Up || self.entry.ctrl.needs_reset() {
            return self.look();
        }
        let now = self.reactor.rdtsc();
        let since = self.failing_since.get().unwrap_or_else(|| {
            tracing::warn!("controller {}: no I/O queue on core {}: {e}", self.entry.name, self.reactor.index());
            self.failing_since.set(Some(now));
            now
        });
        let patience = self.entry.options.reconnect.patience();
        if !e.is_transient() || now.saturating_sub(since) >= self.reactor.ticks(patience) {
            self.fail_held();
        }
        self.look_again(AGAIN);
    }

    fn came_up(&self, q: IoQueue) {
        {
            let mut f = self.flights.borrow_mut();
            debug_assert!(f.iter().all(Option::is_none), "a queue came up before the last one's requests ended");
            let n = f.len().max(q.room());
            f.resize_with(n, || None);
        }
        *self.queue.borrow_mut() = Some(q);
        self.link.set(Link::Up);
        self.failing_since.set(None);
        self.go_on();
    }

    fn went_down(&self) {
        self.link.set(Link::Down);
        let q = self.queue.borrow_mut().take();
        drop(q);
        self.look();
    }

    /// A flush has nothing to do: the controller never had a volatile write cache.
    #[inline]
    pub(super) fn needs_no_flush(&self) -> bool {
        self.link.get() == Link::Up && !self.entry.cached.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn submit(&self, io: IoRef) {
        if io.op() == Op::Reset {
            return self.reset(io);
        }
        if self.link.get() != Link::Up || !self.held.is_empty() {
            return self.wait(io);
        }
        match self.start(io) {
            Start::Started => {}
            Start::Later(io) => self.held.push(io),
            Start::Failed(io, status) => io.complete_later(status),
        }
    }

    /// Starts requests that were held back. Only where requests may end.
    pub(super) fn go_on(&self) {
        while self.link.get() == Link::Up {
            let Some(io) = self.held.pop() else { return };
            match self.start(io) {
                Start::Started => {}
                Start::Failed(io, status) => io.complete(status),
                Start::Later(io) => return self.held.push_front(io),
            }
        }
    }

    /// Memory ran out: nobody tells when it is back.
    fn try_later(&self) {
        let me = self.me.clone();
        let timer = self.reactor.timer(Duration::from_millis(1), move |_| {
            if let Some(q) = me.upgrade() {
                q.go_on();
            }
        });
        *self.dry.borrow_mut() = Some(timer);
    }

    #[inline]
    fn start(&self, mut io: IoRef) -> Start {
        let queue = self.queue.borrow();
        let Some(q) = &*queue else { return Start::Later(io) };
        let tag = Tag::of(&io);
        let (nsid, word) = (tag.nsid(), tag.0);
        let want = io.nblocks() as usize * tag.block_size();
        let op = io.op();
        let mut sqe = Sqe::new(opcode::FLUSH, 0, nsid);
        if op.has_range() {
            sqe.set_slba(io.lba());
            sqe.set_nblocks(io.nblocks());
        }
        if io.flags().has(IoFlags::FUA) && op.modifies() && op != Op::Unmap {
            sqe.cdw12 |= cdw12::FUA;
        }
        let mut pieces = self.pieces.borrow_mut();
        pieces.clear();
        let data = match op {
            Op::Flush => Data::None,
            Op::Read | Op::Write | Op::Compare | Op::CompareAndWrite => {
                sqe.opcode = match op {
                    Op::Read => opcode::READ,
                    Op::Write => opcode::WRITE,
                    _ => opcode::COMPARE,
                };
                if !self.gather(&io, want, &mut pieces) {
                    return Start::Failed(io, Status::DATA_SGL_LENGTH_INVALID);
                }
                if op == Op::CompareAndWrite {
                    return self.start_pair(q, io, sqe, &mut pieces, want);
                }
                match (pieces.len(), op) {
                    (1, Op::Read) => Data::Read(pieces.remove(0)),
                    (1, _) => Data::Write(pieces.remove(0)),
                    (_, Op::Read) => Data::ReadMany(&mut pieces),
                    _ => Data::WriteMany(&mut pieces),
                }
            }
            Op::WriteZeroes => {
                sqe.opcode = opcode::WRITE_ZEROES;
                if io.flags().has(IoFlags::MAY_UNMAP) && !io.flags().has(IoFlags::NO_UNMAP) {
                    sqe.cdw12 |= cdw12::DEALLOCATE;
                }
                Data::None
            }
            Op::Unmap | Op::Copy => {
                let small = if op == Op::Unmap { size_of::<DsmRange>() } else { size_of::<CopyRange>() };
                let Some(mut buf) = self.reactor.dma().alloc(small) else {
                    self.try_later();
                    return Start::Later(io);
                };
                if let Some(b) = buf.get_mut() {
                    describe(&io, b);
                }
                if op == Op::Unmap {
                    sqe = Sqe::new(opcode::DATASET_MANAGEMENT, 0, nsid);
                    sqe.cdw11 = dsm::DEALLOCATE.into();
                } else {
                    sqe.opcode = opcode::COPY;
                    // One range, format 0.
                    sqe.cdw12 &= cdw12::FUA;
                }
                Data::Write(buf)
            }
            Op::Reset => return Start::Failed(io, Status::INVALID_OPCODE),
        };
        let Some(me) = self.me.upgrade() else { return Start::Failed(io, Status::INTERNAL_ERROR) };
        match q.submit(&sqe, data, me, 0) {
            Ok(cid) => {
                io.set_words([u64::from(cid) + 1, word]);
                self.flights.borrow_mut()[usize::from(cid)] = Some(io);
                Start::Started
            }
            // What the connection does not take any more waits for the next.
            Err(Rejected::Full | Rejected::Ended) => Start::Later(io),
            Err(e) => Start::Failed(io, e.status()),
        }
    }

    /// The first `want` bytes of a request's memory, in pieces. False if it has less.
    #[inline]
    fn gather(&self, io: &IoRef, want: usize, pieces: &mut Vec<DmaBuf>) -> bool {
        if let (Some(b), [v]) = (io.buf(), io.iov())
            && b.as_ptr().cast() == v.iov_base
            && b.len() >= want
        {
            pieces.push(b.slice(0, want));
            return true;
        }
        let mut left = want;
        for v in io.iov() {
            let n = v.iov_len.min(left);
            if n > 0 {
                pieces.push(self.lend(v.iov_base.cast_const().cast(), n));
                left -= n;
            }
        }
        left == 0
    }

    /// Memory of a request as a buffer.
    pub(super) fn lend(&self, ptr: *const u8, len: usize) -> DmaBuf {
        unsafe fn nothing(_: *mut ()) {}
        let ptr = NonNull::new(ptr.cast_mut()).unwrap_or(NonNull::dangling());
        // SAFETY: a request keeps its memory until it is completed, which happens only after its command ended; by then the queue
        // pair has dropped the buffer, and nothing of it is queued to be sent or being received. Releasing does nothing.
        unsafe { self.reactor.dma().adopt(ptr, len, nothing, std::ptr::null_mut()) }
    }
}

/// Writes the one range of an unmap or copy.
fn describe(io: &IoRef, to: &mut [u8]) {
    use zerocopy::{FromZeros, IntoBytes};
    if io.op() == Op::Unmap {
        let r = DsmRange { attributes: 0.into(), nlb: io.nblocks().into(), slba: io.lba().into() };
        to.copy_from_slice(r.as_bytes());
    } else {
        let mut r = CopyRange::new_zeroed();
        r.slba = io.copy_source().into();
        r.nlb = (io.nblocks().wrapping_sub(1) as u16).into();
        to.copy_from_slice(r.as_bytes());
    }
}

impl Completer for CoreQueue {
    #[inline]
    fn completed(&self, done: &Done) {
        if done.tag == 0 {
            let io = self.flights.borrow_mut().get_mut(usize::from(done.cid)).and_then(Option::take);
            match io {
                Some(io) if done.status.is_ok() => io.complete(done.status),
                Some(io) => self.failed(io, done.status, done.late),
                None => {}
            }
        } else {
            self.half_ended(done);
        }
        if !self.held.is_empty() {
            self.go_on();
        }
    }
}
