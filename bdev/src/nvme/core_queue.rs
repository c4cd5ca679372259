//! The I/O queue pair of a controller on one core, and the requests on it.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::host::{Completer, Data, Done, IoQueue, Rejected};
use longshore_nvme::wire::io::{CopyRange, DsmRange, cdw12, dsm};
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Fuse, Sqe, Status};
use longshore_reactor::{DmaBuf, Reactor, Timer};

use super::controllers::Entry;
use crate::core::CoreState;
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::queue::IoQueue as Held;

/// A lost queue is made again no sooner than this after the last attempt, unless the controller was reset since.
const AGAIN: Duration = Duration::from_secs(1);
/// Requests that do not end for so long after they should be aborted take the connection with them.
const ABORT_LIMIT: Duration = Duration::from_secs(8);

/// Tags of the two halves of a fused pair.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Connecting,
    Up,
}

/// A compare-and-write under way.
struct Pair {
    io: IoRef,
    cids: [u16; 2],
    ends: [Option<Status>; 2],
}

pub(crate) struct CoreQueue {
    me: Weak<CoreQueue>,
    reactor: Reactor,
    entry: Arc<Entry>,
    queue: RefCell<Option<IoQueue>>,
    link: Cell<Link>,
    /// When a queue was last asked for, and of which life of the controller.
    attempt: Cell<(u64, u32)>,
    /// Wait for the queue, or for room in it.
    held: Held,
    /// By command identifier.
    flights: RefCell<Vec<Option<IoRef>>>,
    pairs: RefCell<Vec<Pair>>,
    pieces: RefCell<Vec<DmaBuf>>,
    retry: RefCell<Option<Timer>>,
    /// Watches over commands that were to be aborted, by namespace.
    deadlines: RefCell<HashMap<u32, Timer>>,
}

thread_local! {
    static OPEN: RefCell<HashMap<u64, Weak<CoreQueue>>> = RefCell::default();
}

/// Fails what waits on this core for a queue of the controller `number` and is meant for namespace `nsid`, which is gone.
pub(super) fn fail_held(number: u64, nsid: u32) {
    let q = OPEN.with(|m| m.borrow().get(&number).and_then(Weak::upgrade));
    if let Some(q) = q {
        q.end_held(nsid, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
}

enum Start {
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
            held: Held::default(),
            flights: RefCell::default(),
            pairs: RefCell::default(),
            pieces: RefCell::default(),
            retry: RefCell::default(),
            deadlines: RefCell::default(),
        });
        OPEN.with(|m| m.borrow_mut().insert(entry.number, Rc::downgrade(&q)));
        q.connect();
        q
    }

    /// Asks for a queue, unless that failed a moment ago. False: there will be none for now.
    fn connect(&self) -> bool {
        match self.link.get() {
            Link::Connecting | Link::Up => return true,
            Link::Down => {}
        }
        let ctrl = &self.entry.ctrl;
        let (now, generation) = (self.reactor.now(), ctrl.generation());
        let (last, of) = self.attempt.get();
        let soon = of == generation && now.saturating_sub(last) < self.reactor.ticks(AGAIN);
        if !self.entry.is_usable() || soon {
            return false;
        }
        self.attempt.set((now, generation));
        self.link.set(Link::Connecting);
        let (me, ctrl, reactor) = (self.me.clone(), ctrl.clone(), self.reactor.clone());
        drop(self.reactor.spawn(async move {
            let made = ctrl.io_queue(&reactor, None).await;
            // Nobody wants it any more: it is dropped, and with that disconnected.
            let Some(this) = me.upgrade() else { return };
            let gone = match made {
                // The controller was reset meanwhile, and what its namespaces are is not known.
                Ok(q) if !this.entry.is_usable() => {
                    drop(q);
                    return this.went_down();
                }
                Ok(q) => {
                    let gone = q.qpair().clone();
                    this.came_up(q);
                    gone
                }
                Err(e) => {
                    tracing::warn!("controller {}: no I/O queue on core {}: {e}", this.entry.name, reactor.index());
                    return this.went_down();
                }
            };
            drop(this);
            gone.gone().await;
            if let Some(this) = me.upgrade() {
                tracing::warn!("controller {}: I/O queue {} ended: {}", this.entry.name, gone.qid(), gone.why());
                this.went_down();
            }
        }));
        true
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
        self.go_on();
    }

    fn went_down(&self) {
        self.link.set(Link::Down);
        let q = self.queue.borrow_mut().take();
        drop(q);
        let all = self.held.take();
        while let Some(io) = all.pop() {
            io.complete(Status::HOST_PATHING_ERROR);
        }
    }

    #[inline]
    pub(super) fn submit(&self, io: IoRef) {
        if io.op() == Op::Reset {
            return self.reset(io);
        }
        if self.link.get() != Link::Up || !self.held.is_empty() {
            return self.hold(io);
        }
        match self.start(io) {
            Start::Started => {}
            Start::Later(io) => self.held.push(io),
            Start::Failed(io, status) => io.complete_later(status),
        }
    }

    #[cold]
    fn hold(&self, io: IoRef) {
        if self.connect() {
            self.held.push(io);
        } else {
            io.complete_later(Status::HOST_PATHING_ERROR);
        }
    }

    /// Starts requests that were held back. Only where requests may end.
    fn go_on(&self) {
        while self.link.get() == Link::Up {
            let Some(io) = self.held.pop() else { return };
            match self.start(io) {
                Start::Started => {}
                Start::Failed(io, status) => io.complete(status),
                Start::Later(io) => {
                    // To the front again.
                    let rest = self.held.take();
                    self.held.push(io);
                    while let Some(io) = rest.pop() {
                        self.held.push(io);
                    }
                    return;
                }
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
        *self.retry.borrow_mut() = Some(timer);
    }

    #[inline]
    fn start(&self, mut io: IoRef) -> Start {
        let queue = self.queue.borrow();
        let Some(q) = &*queue else { return Start::Failed(io, Status::HOST_PATHING_ERROR) };
        let word = io.words()[1];
        let (nsid, block_size) = ((word >> 32) as u32, word as u32 as usize);
        let want = io.nblocks() as usize * block_size;
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
            Err(Rejected::Full) => Start::Later(io),
            Err(e) => Start::Failed(io, e.status()),
        }
    }

    /// A fused Compare and Write: two commands in a row, or none.
    fn start_pair(&self, q: &IoQueue, mut io: IoRef, first: Sqe, pieces: &mut Vec<DmaBuf>, want: usize) -> Start {
        if io.second_segment().len() < want {
            return Start::Failed(io, Status::DATA_SGL_LENGTH_INVALID);
        }
        if q.room() < 2 {
            return match q.outstanding() {
                0 => Start::Failed(io, Status::INVALID_OPCODE), // never: the queue has one entry
                _ => Start::Later(io),
            };
        }
        let Some(me) = self.me.upgrade() else { return Start::Failed(io, Status::INTERNAL_ERROR) };
        let new = self.lend(io.second_segment().as_ptr(), want);
        let (mut a, mut b) = (first, first);
        a.cdw12 &= !cdw12::FUA;
        a.flags |= Fuse::First as u8;
        b.opcode = opcode::WRITE;
        b.flags |= Fuse::Second as u8;
        let word = io.words()[1];
        let Ok(one) = q.submit(&a, Data::WriteMany(pieces), me.clone(), FIRST) else {
            return Start::Failed(io, Status::HOST_PATHING_ERROR);
        };
        match q.submit(&b, Data::Write(new), me, SECOND) {
            Ok(two) => {
                io.set_words([u64::from(two) + 1, word]);
                self.pairs.borrow_mut().push(Pair { io, cids: [one, two], ends: [None; 2] });
            }
            Err(e) => {
                // The lone half ends too; the request waits for it.
                q.close("half of a fused pair could not be sent");
                self.pairs.borrow_mut().push(Pair { io, cids: [one, u16::MAX], ends: [None, Some(e.status())] });
            }
        }
        Start::Started
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
    fn lend(&self, ptr: *const u8, len: usize) -> DmaBuf {
        unsafe fn nothing(_: *mut ()) {}
        let ptr = NonNull::new(ptr.cast_mut()).unwrap_or(NonNull::dangling());
        // SAFETY: a request keeps its memory until it is completed, which happens only after its command ended; by then the queue
        // pair has dropped the buffer, and nothing of it is queued to be sent or being received. Releasing does nothing.
        unsafe { self.reactor.dma().adopt(ptr, len, nothing, std::ptr::null_mut()) }
    }

    /// Resets the controller: every connection ends and the controller is connected anew.
    fn reset(&self, io: IoRef) {
        let entry = self.entry.clone();
        drop(self.reactor.spawn(async move {
            let status = match entry.reset().await {
                Ok(()) => Status::SUCCESS,
                Err(_) => Status::INTERNAL_PATH_ERROR,
            };
            io.complete(status);
        }));
    }

    pub(super) fn abort(&self, id: IoId) -> bool {
        if let Some(io) = self.held.remove(id) {
            io.complete_later(Status::ABORT_REQUESTED);
            return true;
        }
        let word = CoreState::current().with_inflight(id, |w| w[0]).unwrap_or(0);
        match (word.checked_sub(1).and_then(|c| u16::try_from(c).ok()), &*self.queue.borrow()) {
            (Some(cid), Some(q)) => {
                self.entry.ctrl.abort(q.qid(), cid);
                true
            }
            _ => false,
        }
    }

    fn end_held(&self, nsid: u32, status: Status) {
        let all = self.held.take();
        while let Some(io) = all.pop() {
            if is_of(&io, nsid) {
                io.complete_later(status);
            } else {
                self.held.push(io);
            }
        }
    }

    pub(super) fn abort_all(&self, nsid: u32) {
        let of = |io: &IoRef| is_of(io, nsid);
        self.end_held(nsid, Status::ABORT_REQUESTED);
        let queue = self.queue.borrow();
        let Some(q) = &*queue else { return };
        let mut cids: Vec<u16> = (0u16..)
            .zip(self.flights.borrow().iter())
            .filter(|(_, f)| f.as_ref().is_some_and(of))
            .map(|(c, _)| c)
            .collect();
        cids.extend(self.pairs.borrow().iter().filter(|p| of(&p.io)).map(|p| p.cids[1]));
        if cids.is_empty() {
            return;
        }
        for &cid in &cids {
            self.entry.ctrl.abort(q.qid(), cid);
        }
        if self.deadlines.borrow().contains_key(&nsid) {
            return; // those of an earlier call are watched already; the next call after it watches the rest
        }
        let mut ids: Vec<IoId> = self.flights.borrow().iter().flatten().filter(|io| of(io)).map(IoRef::id).collect();
        ids.extend(self.pairs.borrow().iter().filter(|p| of(&p.io)).map(|p| p.io.id()));
        let me = self.me.clone();
        let timer = self.reactor.timer(ABORT_LIMIT, move |_| {
            let Some(this) = me.upgrade() else { return };
            this.deadlines.borrow_mut().remove(&nsid);
            let stuck = this.flights.borrow().iter().flatten().any(|io| ids.contains(&io.id()))
                || this.pairs.borrow().iter().any(|p| ids.contains(&p.io.id()));
            if stuck && let Some(q) = &*this.queue.borrow() {
                q.close("commands that were aborted did not end");
            }
        });
        self.deadlines.borrow_mut().insert(nsid, timer);
    }

    #[cold]
    fn half_ended(&self, done: &Done) {
        let half = usize::from(done.tag == SECOND);
        let ended = {
            let mut pairs = self.pairs.borrow_mut();
            let Some(i) = pairs.iter().position(|p| p.cids[half] == done.cid && p.ends[half].is_none()) else { return };
            pairs[i].ends[half] = Some(done.status);
            matches!(pairs[i].ends, [Some(_), Some(_)]).then(|| pairs.swap_remove(i))
        };
        let Some(Pair { io, ends: [Some(a), Some(b)], .. }) = ended else { return };
        // What failed first says why; the other half only says that it was aborted for it.
        let status = if a.is_err() && !(a.is(Status::ABORTED_FAILED_FUSED) && b.is_err()) { a } else { b };
        io.complete(status);
    }
}

fn is_of(io: &IoRef, nsid: u32) -> bool {
    (io.words()[1] >> 32) as u32 == nsid
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
            if let Some(io) = io {
                io.complete(done.status);
            }
        } else {
            self.half_ended(done);
        }
        if !self.held.is_empty() {
            self.go_on();
        }
    }
}
