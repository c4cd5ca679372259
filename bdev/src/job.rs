//! Requests that take several steps: those that are cut into pieces, and operations that the core builds from reads and
//! writes. The parent is held, its children are requests of their own with frames that start afresh.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use crate::channel::{Channel, ChannelInner};
use crate::frame::Submitter;
use crate::io::{IoFlags, IoId, IoRef, IoVec, Op};
use crate::{range_lock, reset, split};

/// Children of one request in flight at once.
const WINDOW: usize = 8;
/// Bytes that comparing and copying read at once.
const SCRATCH: usize = 128 << 10;

#[repr(align(4096))]
struct Zeros([u8; 64 << 10]);
/// What emulated write zeroes writes. Never written to: devices only read the memory of a write.
static ZEROS: Zeros = Zeros([0; 64 << 10]);

/// Largest block size that the core can emulate operations for.
pub(crate) const MAX_BLOCK: u32 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Split,
    WriteZeroes,
    Compare,
    Copy,
    CompareAndWrite,
    Reset,
}

struct State {
    kind: Kind,
    /// Until the job ends.
    parent: Option<IoRef>,
    total: u32,
    /// Blocks that children were made for.
    issued: u32,
    outstanding: u32,
    /// The first failure.
    status: Status,
    children: [Option<IoId>; WINDOW],
    vecs: [Vec<IoVec>; WINDOW],
    scratch: Option<DmaBuf>,
    /// Blocks of the step that reads and then compares or writes.
    step: u32,
    /// The step's second half is what comes next.
    second: bool,
    /// The write of a compare-and-write was made.
    finished: bool,
    /// Ticket of the range lock.
    lock: Option<u64>,
}

/// One request that takes several steps.
pub(crate) struct Job {
    channel: RefCell<Option<Channel>>,
    index: Cell<usize>,
    s: RefCell<State>,
}

enum Next {
    Child(IoRef),
    Wait,
    Starved,
    End(Status),
}

/// Cuts `io`, which breaks a limit of the device, into pieces.
pub(crate) fn split(ch: &ChannelInner, mut io: IoRef, bits: u64) {
    ch.hold(&mut io, ch.stamp() | bits);
    start(ch, io, Kind::Split, None);
}

/// Does `io` by reads and writes.
pub(crate) fn emulate(ch: &ChannelInner, mut io: IoRef, bits: u64, lock: Option<u64>) {
    ch.hold(&mut io, ch.stamp() | bits);
    emulate_with(ch, io, lock);
}

/// As [`emulate`], for a request that is counted in flight already.
pub(crate) fn emulate_held(ch: &ChannelInner, io: IoRef) {
    emulate_with(ch, io, None);
}

fn emulate_with(ch: &ChannelInner, io: IoRef, lock: Option<u64>) {
    let kind = match io.op() {
        Op::WriteZeroes => Kind::WriteZeroes,
        Op::Compare => Kind::Compare,
        Op::Copy => Kind::Copy,
        Op::CompareAndWrite => Kind::CompareAndWrite,
        _ => return io.complete_later(Status::INVALID_OPCODE),
    };
    let bytes = io.nblocks() as usize * ch.geometry().block_size as usize;
    let short = io.op().has_buffer() && io.buf_len() < bytes
        || kind == Kind::CompareAndWrite && io.second_segment().len() < bytes;
    let job = start_idle(ch, io, kind, lock);
    if short {
        job.s.borrow_mut().status = Status::DATA_SGL_LENGTH_INVALID;
    }
    job.advance(true);
}

/// Passes a reset to the device, for which everything is quiet now.
pub(crate) fn reset(ch: &ChannelInner, mut io: IoRef) {
    ch.hold(&mut io, ch.stamp());
    start(ch, io, Kind::Reset, None);
}

fn start(ch: &ChannelInner, io: IoRef, kind: Kind, lock: Option<u64>) {
    start_idle(ch, io, kind, lock).advance(true);
}

fn start_idle(ch: &ChannelInner, io: IoRef, kind: Kind, lock: Option<u64>) -> Rc<Job> {
    let total = if kind == Kind::Reset { 1 } else { io.nblocks() };
    let job = match ch.core().take_job() {
        Some(j) => j,
        None => Rc::new(Job {
            channel: RefCell::default(),
            index: Cell::new(0),
            s: RefCell::new(State {
                kind,
                parent: None,
                total: 0,
                issued: 0,
                outstanding: 0,
                status: Status::SUCCESS,
                children: [None; WINDOW],
                vecs: Default::default(),
                scratch: None,
                step: 0,
                second: false,
                finished: false,
                lock: None,
            }),
        }),
    };
    *job.channel.borrow_mut() = Some(ch.channel());
    {
        let mut s = job.s.borrow_mut();
        s.kind = kind;
        s.parent = Some(io);
        s.total = total;
        s.issued = 0;
        s.status = Status::SUCCESS;
        s.step = 0;
        s.second = false;
        s.finished = false;
        s.lock = lock;
    }
    let mut jobs = ch.jobs.borrow_mut();
    job.index.set(jobs.len());
    jobs.push(job.clone());
    job
}

impl Job {
    /// True if it is the request `id` that takes these steps.
    pub(crate) fn is_of(&self, id: IoId) -> bool {
        self.s.borrow().parent.as_ref().is_some_and(|p| p.id() == id)
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.s.borrow().kind == Kind::Reset
    }

    /// No further steps; those under way are aborted.
    pub(crate) fn abort(self: &Rc<Self>) {
        let Some(ch) = self.channel.borrow().clone() else { return };
        let children = {
            let mut s = self.s.borrow_mut();
            if s.status.is_ok() {
                s.status = Status::ABORT_REQUESTED;
            }
            s.children
        };
        for id in children.into_iter().flatten() {
            ch.abort(id);
        }
        self.advance(true);
    }

    /// Goes on as far as possible. `in_submit`: the parent must not be completed before this returns.
    pub(crate) fn advance(self: &Rc<Self>, in_submit: bool) {
        let Some(ch) = self.channel.borrow().clone() else { return };
        loop {
            match self.next(ch.inner()) {
                Next::Child(io) => ch.inner().submit_piece(io),
                Next::Wait => return,
                Next::Starved => return ch.core().starve(self.clone()),
                Next::End(status) => return self.end(&ch, status, in_submit),
            }
        }
    }

    fn next(self: &Rc<Self>, ch: &ChannelInner) -> Next {
        let mut s = self.s.borrow_mut();
        let s = &mut *s;
        let Some(parent) = &s.parent else { return Next::Wait };
        let through = match s.kind {
            Kind::CompareAndWrite => s.finished,
            _ => s.issued == s.total && !s.second,
        };
        if s.status.is_err() || through {
            return if s.outstanding == 0 { Next::End(s.status) } else { Next::Wait };
        }
        let window = match s.kind {
            Kind::Split | Kind::WriteZeroes => WINDOW as u32,
            _ => 1,
        };
        if s.outstanding >= window {
            return Next::Wait;
        }
        let dry = if s.outstanding == 0 { Next::Starved } else { Next::Wait };
        let Some(mut child) = ch.core().get_child(parent.io().nest) else { return dry };
        child.io_mut().nest = parent.io().nest + 1;
        let slot = s.children.iter().position(Option::is_none).unwrap_or(0);
        let made = match s.kind {
            Kind::Split => Self::piece(ch, s, slot, &mut child),
            Kind::WriteZeroes => Self::zeroes(ch, s, &mut child),
            Kind::Reset => {
                child.prepare(Op::Reset, IoFlags::NONE, 0, 0);
                s.issued = 1;
                Ok(true)
            }
            Kind::Compare | Kind::Copy | Kind::CompareAndWrite => Self::half(ch, s, &mut child),
        };
        match made {
            Ok(true) => {}
            Ok(false) => {
                child.release();
                return dry;
            }
            Err(status) => {
                child.release();
                s.status = status;
                return if s.outstanding == 0 { Next::End(status) } else { Next::Wait };
            }
        }
        s.children[slot] = Some(child.id());
        s.outstanding += 1;
        child.begin(self.clone(), slot as u64);
        Next::Child(child)
    }

    /// The next piece of a split.
    fn piece(ch: &ChannelInner, s: &mut State, slot: usize, child: &mut IoRef) -> Result<bool, Status> {
        let Some(parent) = &s.parent else { return Ok(false) };
        let g = ch.geometry();
        let op = parent.op();
        let off = s.issued as usize * g.block_size as usize;
        let lba = parent.lba() + u64::from(s.issued);
        let n = split::next(g, op, lba, s.total - s.issued, parent.iov(), off);
        if n == 0 {
            return Err(Status::DATA_SGL_LENGTH_INVALID);
        }
        child.prepare(op, parent.flags(), lba, n);
        child.set_copy_source(parent.copy_source().wrapping_add(u64::from(s.issued)));
        if op.has_buffer() {
            let len = n as usize * g.block_size as usize;
            // SAFETY: the parent is held until its last child has ended, `vecs[slot]` is the child's alone meanwhile, and
            // children have disjoint parts of the memory.
            let fits = unsafe { child.share_memory(parent, off, len, &mut s.vecs[slot]) };
            if !fits {
                return Err(Status::DATA_SGL_LENGTH_INVALID);
            }
            if parent.metadata().is_some() {
                // SAFETY: as above.
                let fits = unsafe { child.share_metadata(parent, s.issued, n, g.md_size) };
                if !fits {
                    return Err(Status::METADATA_SGL_LENGTH_INVALID);
                }
            }
        }
        s.issued += n;
        Ok(true)
    }

    /// The next write of zeroes.
    fn zeroes(ch: &ChannelInner, s: &mut State, child: &mut IoRef) -> Result<bool, Status> {
        let Some(parent) = &s.parent else { return Ok(false) };
        let g = ch.geometry();
        let md = if g.md_interleave { 0 } else { g.md_size };
        let n = (s.total - s.issued).min(MAX_BLOCK / g.block_size.max(md)).max(1);
        let fua = if parent.flags().has(IoFlags::FUA) { IoFlags::FUA } else { IoFlags::NONE };
        child.prepare(Op::Write, fua, parent.lba() + u64::from(s.issued), n);
        let zeros = ZEROS.0.as_ptr().cast_mut();
        // SAFETY: a static that lives for ever. Devices only read the memory of a write; the registry bounds block sizes, so
        // `n` blocks fit.
        unsafe { child.set_raw(zeros, n as usize * g.block_size as usize) };
        if md != 0 {
            // SAFETY: as above.
            unsafe { child.set_metadata(zeros, (n * md).min(u32::from(u16::MAX)) as u16) };
        }
        s.issued += n;
        Ok(true)
    }

    /// The next half of a step: a read into scratch memory, or a write from there or (compare-and-write) from the parent.
    fn half(ch: &ChannelInner, s: &mut State, child: &mut IoRef) -> Result<bool, Status> {
        let Some(parent) = &s.parent else { return Ok(false) };
        let g = ch.geometry();
        let bs = g.block_size as usize;
        let md = if g.md_interleave { 0 } else { g.md_size as usize };
        if s.kind == Kind::CompareAndWrite && s.issued == s.total {
            s.second = true;
            s.scratch = None;
            child.prepare(Op::Write, parent.flags(), parent.lba(), s.total);
            let new = parent.second_segment();
            // SAFETY: the parent, which owns the memory, is held until its last child has ended, and writes only read it.
            unsafe { child.set_raw(new.as_ptr().cast_mut(), s.total as usize * bs) };
            if let Some(parent) = &mut s.parent {
                parent.set_flags(parent.flags().with(IoFlags::WRITE_BEGUN));
            }
            return Ok(true);
        }
        if !s.second {
            s.step = (s.total - s.issued).min((SCRATCH / (bs + md)) as u32).max(1);
            if s.scratch.is_none() {
                s.scratch = ch.core().reactor().dma().alloc(s.step as usize * (bs + md));
            }
        }
        let Some(scratch) = &s.scratch else { return Ok(false) };
        let at = u64::from(Self::step_offset(s, parent));
        let lba = match (s.kind, s.second) {
            (Kind::Copy, false) => parent.copy_source() + at,
            _ => parent.lba() + at,
        };
        let (op, flags) = if s.second { (Op::Write, parent.flags()) } else { (Op::Read, IoFlags::NONE) };
        child.prepare(op, flags, lba, s.step);
        let data = s.step as usize * bs;
        child.set_buf(scratch.slice(0, data));
        if md != 0 && s.kind == Kind::Copy {
            let p = scratch.as_ptr().wrapping_add(data);
            // SAFETY: behind the data in the same buffer, which the job holds until its last child has ended.
            unsafe { child.set_metadata(p, (s.step as usize * md).min(usize::from(u16::MAX)) as u16) };
        }
        Ok(true)
    }

    /// Blocks from the start of the range to the present step. A copy to a place that overlaps its source from above goes
    /// backwards, so that it copies what was there before.
    fn step_offset(s: &State, parent: &IoRef) -> u32 {
        let (from, to) = (parent.copy_source(), parent.lba());
        let backwards = s.kind == Kind::Copy && to > from && to - from < u64::from(s.total);
        if backwards { s.total - s.issued - s.step } else { s.issued }
    }

    /// A half step ended well.
    fn stepped(ch: &ChannelInner, s: &mut State) {
        let Some(parent) = &s.parent else { return };
        let bs = ch.geometry().block_size as usize;
        match s.kind {
            Kind::Split | Kind::WriteZeroes | Kind::Reset => {}
            Kind::CompareAndWrite if s.second => {
                s.second = false;
                s.finished = true;
            }
            Kind::Compare | Kind::CompareAndWrite => {
                let same = s.scratch.as_ref().is_some_and(|b| {
                    parent.memory_equals(s.issued as usize * bs, &b.as_slice()[..s.step as usize * bs])
                });
                if !same {
                    s.status = Status::COMPARE_FAILURE;
                }
                s.issued += s.step;
                s.scratch = None;
            }
            Kind::Copy if s.second => {
                s.second = false;
                s.issued += s.step;
                s.scratch = None;
            }
            Kind::Copy => s.second = true,
        }
    }

    fn end(self: &Rc<Self>, ch: &Channel, status: Status, in_submit: bool) {
        let (parent, lock, kind) = {
            let mut s = self.s.borrow_mut();
            s.scratch = None;
            (s.parent.take(), s.lock.take(), s.kind)
        };
        let Some(parent) = parent else { return };
        {
            let mut jobs = ch.inner().jobs.borrow_mut();
            let i = self.index.get();
            jobs.swap_remove(i);
            if let Some(moved) = jobs.get(i) {
                moved.index.set(i);
            }
        }
        let own = self.channel.take();
        drop(own);
        ch.core().put_job(self.clone());
        if let Some(ticket) = lock {
            range_lock::release(ch.inner(), ticket);
        }
        if kind == Kind::Reset {
            reset::end(ch.inner());
        }
        if in_submit {
            parent.complete_later(status);
        } else {
            parent.complete(status);
        }
    }
}

impl Submitter for Job {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let status = io.status();
        io.release();
        let ch = self.channel.borrow().clone();
        {
            let mut s = self.s.borrow_mut();
            s.children[tag as usize] = None;
            s.outstanding -= 1;
            match &ch {
                Some(ch) if status.is_ok() => Self::stepped(ch.inner(), &mut s),
                _ if s.status.is_ok() => s.status = status,
                _ => {}
            }
        }
        self.advance(false);
    }
}
