//! The io_uring engine: one ring, created and used on the reactor's thread only.
#![allow(unsafe_code)]

use super::{Cqe, INTERNAL, OpId, RX_GROUP, RingOp, TOKEN_BELL, TOKEN_CANCEL, TOKEN_WAKE, Wait};
use crate::options::RingOptions;
use io_uring::{IoUring, opcode, squeue, types};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const RECVSEND_POLL_FIRST: u16 = 1 << 0;

/// Counters of the engine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineStats {
    pub(crate) enters: u64,
    pub(crate) sq_full: u64,
    pub(crate) cq_overflow: u64,
}

pub(crate) struct Uring {
    ring: RefCell<IoUring>,
    /// Entries that found the submission queue full even after a submit, in order.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    rx: RefCell<RxRing>,
    stats: Cell<EngineStats>,
    /// Every n-th push pretends that the queue is full; 0 never.
    pub(crate) inject_sq_full: Cell<u32>,
    pushes: Cell<u32>,
}

impl Uring {
    /// Creates the ring on the calling thread, which must be the one to use it.
    pub(crate) fn new(o: &RingOptions) -> io::Result<Self> {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_clamp()
            // An entry that is refused must not hold up those behind it.
            .setup_submit_all()
            .setup_cqsize(o.cq_entries.max(o.sq_entries).max(2))
            .build(o.sq_entries.max(1))?;
        // Saves a file-table lookup per enter; absent or refused, nothing is lost.
        let _ = ring.submitter().register_ring_fd();
        let rx = RxRing::new(&ring, o)?;
        let _ = &mut ring;
        Ok(Uring {
            ring: RefCell::new(ring),
            backlog: RefCell::new(VecDeque::new()),
            rx: RefCell::new(rx),
            stats: Cell::default(),
            inject_sq_full: Cell::new(0),
            pushes: Cell::new(0),
        })
    }

    /// As [`new`](Self::new), with smaller queues where the locked-memory limit allows no more: newer kernels count rings
    /// against it, per user, and give the memory of a ring back only some time after its process has ended. So a refusal is
    /// first waited out: a daemon that is started again right after it was killed gets what it had.
    pub(crate) fn within_limits(o: &RingOptions) -> io::Result<Self> {
        const PAUSE: Duration = Duration::from_millis(10);
        let mut o = o.clone();
        let mut tries = 0;
        loop {
            let smallest = o.cq_entries <= 128;
            match Self::new(&o) {
                Err(e) if e.raw_os_error() == Some(libc::ENOMEM) && tries < if smallest { 300 } else { 5 } => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOMEM) && !smallest => {
                    tries = 0;
                    o.sq_entries = (o.sq_entries / 4).max(16);
                    o.cq_entries = (o.cq_entries / 4).max(128);
                    tracing::info!(
                        "the locked-memory limit (`ulimit -l`) is short: trying a ring of {} and {} entries",
                        o.sq_entries,
                        o.cq_entries
                    );
                }
                made => return made,
            }
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.ring.borrow().as_raw_fd()
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.stats.get()
    }

    /// Bounds io-wq and keeps it on `cpus`, where given. Failures only cost placement.
    pub(crate) fn limit_workers(&self, workers: u32, cpus: &[usize]) {
        let ring = self.ring.borrow();
        let _ = ring.submitter().register_iowq_max_workers(&mut [workers, workers]);
        if !cpus.is_empty() {
            // SAFETY: an all-zero cpu_set_t is the empty set.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            for &c in cpus.iter().filter(|&&c| c < libc::CPU_SETSIZE as usize) {
                // SAFETY: `c` is below CPU_SETSIZE.
                unsafe { libc::CPU_SET(c, &mut set) };
            }
            let _ = ring.submitter().register_iowq_aff(&set);
        }
    }

    /// Queues `op`.
    ///
    /// # Safety
    /// Everything `op` points to stays valid until its last completion was reaped.
    pub(crate) unsafe fn push(&self, op: &RingOp, user_data: u64) {
        self.push_entry(entry(op).user_data(user_data));
    }

    /// Asks the kernel to cancel the operation named `id`.
    pub(crate) fn cancel(&self, id: OpId) {
        self.push_entry(opcode::AsyncCancel::new(id.0).build().user_data(TOKEN_CANCEL));
    }

    /// Asks the kernel to cancel every operation of this ring.
    pub(crate) fn cancel_all(&self) {
        let all = types::CancelBuilder::any();
        self.push_entry(opcode::AsyncCancel2::new(all).build().user_data(TOKEN_CANCEL));
    }

    /// Posts a wake-up to another reactor's ring; the outcome arrives as `token`.
    pub(crate) fn wake_peer(&self, ring_fd: RawFd, token: u64) {
        let e = opcode::MsgRingData::new(types::Fd(ring_fd), 0, TOKEN_WAKE, None).build();
        self.push_entry(e.user_data(token));
    }

    /// Polls the eventfd by which plain threads wake this reactor.
    pub(crate) fn arm_bell(&self, fd: RawFd) {
        let e = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build();
        self.push_entry(e.user_data(TOKEN_BELL));
    }

    fn push_entry(&self, e: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() && self.try_push(&e) {
            return;
        }
        if !backlog.is_empty() {
            backlog.push_back(e);
            return;
        }
        let mut s = self.stats.get();
        s.sq_full += 1;
        self.stats.set(s);
        // Submit and retry; with completions overflowed the kernel may refuse, then it waits for the next turn.
        let _ = self.enter(Wait::No);
        if !self.try_push(&e) {
            backlog.push_back(e);
        }
    }

    fn try_push(&self, e: &squeue::Entry) -> bool {
        let n = self.inject_sq_full.get();
        if n != 0 {
            self.pushes.set(self.pushes.get() + 1);
            if self.pushes.get().is_multiple_of(n) {
                return false;
            }
        }
        let mut ring = self.ring.borrow_mut();
        // SAFETY: the caller of `push` promised that the entry's memory outlives its completion; internal entries hold no
        // pointers.
        unsafe { ring.submission().push(e) }.is_ok()
    }

    fn drain_backlog(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(e) = backlog.front() {
            if !self.try_push(e) {
                break;
            }
            backlog.pop_front();
        }
    }

    /// Whether an enter would achieve anything: entries to submit, task work to run, or overflowed completions to fetch.
    #[inline]
    pub(crate) fn wants_enter(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let sq = ring.submission();
        !sq.is_empty() || sq.taskrun() || sq.cq_overflow() || !self.backlog.borrow().is_empty()
    }

    /// Whether completions can be reaped without an enter.
    #[inline]
    pub(crate) fn has_completions(&self) -> bool {
        !self.ring.borrow_mut().completion().is_empty()
    }

    /// The turn's one system call: submits what is queued, runs task work, and waits as told.
    pub(crate) fn turn(&self, wait: Wait) -> io::Result<()> {
        if !self.backlog.borrow().is_empty() {
            self.drain_backlog();
            if !self.backlog.borrow().is_empty() {
                self.enter(Wait::No)?;
                self.drain_backlog();
            }
        }
        self.enter(wait)
    }

    fn enter(&self, wait: Wait) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        let (len, overflow) = {
            let sq = ring.submission();
            (sq.len() as u32, sq.cq_overflow())
        };
        let mut s = self.stats.get();
        s.enters += 1;
        s.cq_overflow += overflow as u64;
        self.stats.set(s);
        let submitter = ring.submitter();
        let done = match wait {
            // SAFETY: no argument is passed; the flags are those of a plain submit that also runs task work.
            Wait::No => unsafe { submitter.enter::<libc::sigset_t>(len, 0, ENTER_GETEVENTS, None) },
            // SAFETY: as above, waiting for one completion.
            Wait::Forever => unsafe { submitter.enter::<libc::sigset_t>(len, 1, ENTER_GETEVENTS, None) },
            Wait::Nanos(n) => {
                let ts = types::Timespec::new().sec(n / 1_000_000_000).nsec((n % 1_000_000_000) as u32);
                let args = types::SubmitArgs::new().timespec(&ts);
                // SAFETY: `args` is the structure that EXT_ARG announces and outlives the call, as does the timespec in it.
                unsafe { submitter.enter(len, 1, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&args)) }
            }
        };
        match done {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // Timed out, interrupted, or out of some resource for now: the next turn tries again.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Moves up to `max` completions to `out`.
    #[inline]
    pub(crate) fn reap(&self, out: &mut Vec<Cqe>, max: usize) {
        let mut ring = self.ring.borrow_mut();
        let cq = ring.completion();
        out.extend(cq.take(max).map(|c| Cqe { user_data: c.user_data(), res: c.result(), flags: c.flags() }));
    }

    /// The received bytes of slice `bid`.
    ///
    /// # Safety
    /// `bid` and `len` come from a completion whose slice was not returned yet, and the result is not used after
    /// [`rx_return`](Self::rx_return).
    pub(crate) unsafe fn rx_slice<'a>(&self, bid: u16, len: usize) -> &'a [u8] {
        let rx = self.rx.borrow();
        let p = rx.addr(bid);
        // SAFETY: the kernel has filled `len` bytes of this slice and handed it to us; it does not write to it again before
        // it is returned. Slices live as long as the ring.
        unsafe { std::slice::from_raw_parts(p, len.min(rx.slice)) }
    }

    /// Gives slice `bid` back to the kernel.
    pub(crate) fn rx_return(&self, bid: u16) {
        self.rx.borrow_mut().provide(bid);
    }

    /// The kernel ran out of slices: provide more, up to the limit. False: they are all out and come back this turn.
    pub(crate) fn rx_grow(&self) -> bool {
        self.rx.borrow_mut().grow()
    }

    /// (slices provided, bytes of one)
    pub(crate) fn rx_slices(&self) -> (usize, usize) {
        let rx = self.rx.borrow();
        (rx.made as usize, rx.slice)
    }

    /// Registers `len` bytes at `addr` as fixed buffer `index`; the table must have been made before.
    ///
    /// # Safety
    /// The memory stays mapped until [`unregister_buffer`](Self::unregister_buffer) or until the ring is dropped.
    pub(crate) unsafe fn register_buffer(&self, index: u16, addr: *mut u8, len: usize) -> io::Result<()> {
        let iov = [libc::iovec { iov_base: addr.cast(), iov_len: len }];
        // SAFETY: one iovec, one tag slot none; the caller keeps the memory mapped.
        unsafe { self.ring.borrow().submitter().register_buffers_update(index as u32, &iov, None) }
    }

    /// Empties slot `index` of the fixed-buffer table.
    pub(crate) fn unregister_buffer(&self, index: u16) -> io::Result<()> {
        let iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }];
        // SAFETY: an empty iovec clears the slot and names no memory.
        unsafe { self.ring.borrow().submitter().register_buffers_update(index as u32, &iov, None) }
    }

    /// Makes an empty table of `n` fixed buffers.
    pub(crate) fn make_buffer_table(&self, n: u32) -> io::Result<()> {
        self.ring.borrow().submitter().register_buffers_sparse(n)
    }
}

fn entry(op: &RingOp) -> squeue::Entry {
    use types::Fd;
    match *op {
        RingOp::Nop => opcode::Nop::new().build(),
        RingOp::ReadV { fd, iov, cnt, off, flags } => {
            opcode::Readv::new(Fd(fd), iov, cnt).offset(off).rw_flags(flags).build()
        }
        RingOp::WriteV { fd, iov, cnt, off, flags } => {
            opcode::Writev::new(Fd(fd), iov, cnt).offset(off).rw_flags(flags).build()
        }
        RingOp::Read { fd, buf, len, off, flags, index: None } => {
            opcode::Read::new(Fd(fd), buf, len).offset(off).rw_flags(flags).build()
        }
        RingOp::Read { fd, buf, len, off, flags, index: Some(i) } => {
            opcode::ReadFixed::new(Fd(fd), buf, len, i).offset(off).rw_flags(flags).build()
        }
        RingOp::Write { fd, buf, len, off, flags, index: None } => {
            opcode::Write::new(Fd(fd), buf, len).offset(off).rw_flags(flags).build()
        }
        RingOp::Write { fd, buf, len, off, flags, index: Some(i) } => {
            opcode::WriteFixed::new(Fd(fd), buf, len, i).offset(off).rw_flags(flags).build()
        }
        RingOp::Fsync { fd, datasync } => {
            let flags = if datasync { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        RingOp::Fallocate { fd, mode, off, len } => opcode::Fallocate::new(Fd(fd), len).offset(off).mode(mode).build(),
        RingOp::AcceptMulti { fd } => opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build(),
        RingOp::Connect { fd, addr, len } => opcode::Connect::new(Fd(fd), addr, len).build(),
        RingOp::RecvSelect { fd, poll_first } => opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
            .buf_group(RX_GROUP)
            .ioprio(if poll_first { RECVSEND_POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT),
        RingOp::RecvMsg { fd, msg, poll_first } => {
            opcode::RecvMsg::new(Fd(fd), msg).ioprio(if poll_first { RECVSEND_POLL_FIRST } else { 0 }).build()
        }
        RingOp::SendMsg { fd, msg } => opcode::SendMsg::new(Fd(fd), msg).flags(libc::MSG_NOSIGNAL as u32).build(),
        RingOp::Poll { fd, events, multi } => opcode::PollAdd::new(Fd(fd), events).multi(multi).build(),
        RingOp::Shutdown { fd, how } => opcode::Shutdown::new(Fd(fd), how).build(),
        RingOp::Close { fd } => opcode::Close::new(Fd(fd)).build(),
    }
}

/// The provided-buffer ring that receives select from: slices are committed as they are needed, in doubling steps, so that
/// the few a core really uses stay in its cache.
struct RxRing {
    ring: Mapping,
    slices: Mapping,
    slice: usize,
    entries: u16,
    made: u16,
    tail: u16,
}

impl RxRing {
    fn new(ring: &IoUring, o: &RingOptions) -> io::Result<Self> {
        let entries = o.rx_slices_max.clamp(1, 1 << 15).next_power_of_two();
        let slice = (o.rx_slice.max(1) as usize).next_multiple_of(4096);
        let map = Mapping::new(entries as usize * size_of::<types::BufRingEntry>())?;
        let slices = Mapping::new(entries as usize * slice)?;
        // SAFETY: `map` is page-aligned, holds `entries` entries, and is unmapped only after the ring was closed (the ring
        // is declared, hence dropped, before it in `Uring`).
        unsafe { ring.submitter().register_buf_ring_with_flags(map.base.as_ptr() as u64, entries, RX_GROUP, 0)? };
        let mut rx = RxRing { ring: map, slices, slice, entries, made: 0, tail: 0 };
        for bid in 0..o.rx_slices.clamp(1, entries) {
            rx.made += 1;
            rx.provide(bid);
        }
        Ok(rx)
    }

    fn addr(&self, bid: u16) -> *mut u8 {
        assert!(bid < self.made, "the kernel named receive slice {bid} of {}", self.made);
        self.slices.base.as_ptr().wrapping_add(bid as usize * self.slice)
    }

    fn provide(&mut self, bid: u16) {
        let addr = self.addr(bid);
        let entries = self.ring.base.as_ptr().cast::<types::BufRingEntry>();
        // SAFETY: the index is masked to the ring's size; this thread is the only writer, and the kernel reads the entry
        // only after the tail below covers it. The tail lies within the first entry, per the ABI.
        unsafe {
            let e = &mut *entries.add((self.tail & (self.entries - 1)) as usize);
            e.set_addr(addr as u64);
            e.set_len(self.slice as u32);
            e.set_bid(bid);
            self.tail = self.tail.wrapping_add(1);
            let tail = types::BufRingEntry::tail(entries) as *const AtomicU16;
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn grow(&mut self) -> bool {
        let to = self.made.saturating_mul(2).min(self.entries);
        let from = self.made;
        for bid in from..to {
            self.made += 1;
            self.provide(bid);
        }
        to > from
    }
}

/// Anonymous memory, committed by the kernel as it is touched.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping, placed by the kernel.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { base: NonNull::new(p.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and its owner is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Whether a completion belongs to the engine.
#[inline]
pub(crate) fn is_internal(user_data: u64) -> bool {
    user_data & INTERNAL != 0
}
