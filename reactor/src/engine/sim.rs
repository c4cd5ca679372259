//! The simulated engine: completes file operations after a seeded delay, in a seeded order, on a simulated clock.
#![allow(unsafe_code)]

use super::{Cqe, INTERNAL, OpId, OpKind, RingOp, Wait};
use crate::clock;
use crate::engine::uring::EngineStats;
use crate::sim::disk::{Disk, Flying, SECTOR};
use crate::sim::random::Random;
use crate::sim::{Faults, Settings};
use std::cell::{Cell, RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Simulated descriptors start here, far from real ones.
pub(crate) const FIRST_FD: RawFd = 1 << 28;

/// An open descriptor.
#[derive(Clone, Copy)]
struct Open {
    file: usize,
    /// It is `O_DIRECT`.
    direct: bool,
    /// Failures of write-back that it was told.
    known: u64,
}

/// What outlives a crash: files, clock, chance.
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) settings: Settings,
    now: u64,
    files: Vec<Disk>,
    names: HashMap<PathBuf, usize>,
    open: BTreeMap<RawFd, Open>,
    next_fd: RawFd,
    /// Operations submitted and completed so far.
    pub(crate) steps: u64,
    pub(crate) crash_at: Option<u64>,
    pub(crate) crashed: bool,
    /// There are several reactors: none of them lets time pass alone.
    pub(crate) shared: bool,
    /// Nothing is in flight and no timer is set, yet the reactor waits.
    pub(crate) stuck: bool,
}

impl World {
    pub(crate) fn new(seed: u64, settings: Settings) -> Self {
        clock::set_simulated(Some(1));
        World {
            random: Random::new(seed),
            faults: Faults::default(),
            settings,
            now: 1,
            files: Vec::new(),
            names: HashMap::new(),
            open: BTreeMap::new(),
            next_fd: FIRST_FD,
            steps: 0,
            crash_at: None,
            crashed: false,
            shared: false,
            stuck: false,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn advance(&mut self, to: u64) {
        self.now = self.now.max(to);
        clock::set_simulated(Some(self.now));
    }

    pub(crate) fn open(&mut self, path: &Path, create: bool, direct: bool) -> Option<RawFd> {
        let file = match self.names.get(path) {
            Some(&f) => f,
            None if create => {
                self.files.push(Disk::new(0));
                self.names.insert(path.to_path_buf(), self.files.len() - 1);
                self.files.len() - 1
            }
            None => return None,
        };
        let fd = self.next_fd;
        self.next_fd += 1;
        self.open.insert(fd, Open { file, direct, known: self.files[file].told_at_open() });
        Some(fd)
    }

    pub(crate) fn close(&mut self, fd: RawFd) {
        self.open.remove(&fd);
    }

    pub(crate) fn disk(&mut self, fd: RawFd) -> Option<&mut Disk> {
        let file = self.open.get(&fd)?.file;
        self.files.get_mut(file)
    }

    /// True if a failure of write-back is told through `fd` now.
    fn tell(&mut self, fd: RawFd) -> bool {
        self.open.get_mut(&fd).is_some_and(|o| self.files[o.file].tell(&mut o.known))
    }

    fn cached(&self, fd: RawFd) -> bool {
        self.open.get(&fd).is_some_and(|o| !o.direct)
    }

    pub(crate) fn named(&mut self, path: &Path) -> Option<&mut Disk> {
        let &file = self.names.get(path)?;
        self.files.get_mut(file)
    }

    /// One step passes; at the armed one power fails.
    fn step(&mut self) {
        self.steps += 1;
        if self.crash_at.is_some_and(|at| self.steps >= at) {
            self.crashed = true;
        }
    }
}

struct Pending {
    op: RingOp,
    user_data: u64,
    /// What a write carried when it was submitted.
    data: Option<Vec<u8>>,
    watermark: u64,
    result: Option<i32>,
}

pub(crate) struct SimEngine {
    world: Rc<RefCell<World>>,
    sq: RefCell<Vec<(RingOp, u64)>>,
    sq_entries: usize,
    /// By completion time, then by chance-free order.
    due: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    pending: RefCell<HashMap<u64, Pending>>,
    order: Cell<u64>,
    cq: RefCell<VecDeque<Cqe>>,
    overflow: RefCell<VecDeque<Cqe>>,
    cq_entries: usize,
    stats: Cell<EngineStats>,
    /// It has nothing to do until then; of several reactors.
    pub(crate) asleep: Cell<Option<u64>>,
    pub(crate) inject_sq_full: Cell<u32>,
    pushes: Cell<u32>,
}

impl SimEngine {
    pub(crate) fn new(world: Rc<RefCell<World>>, sq_entries: u32, cq_entries: u32) -> Self {
        SimEngine {
            world,
            sq: RefCell::default(),
            sq_entries: sq_entries.max(1) as usize,
            due: RefCell::default(),
            pending: RefCell::default(),
            order: Cell::new(0),
            cq: RefCell::default(),
            overflow: RefCell::default(),
            cq_entries: cq_entries.max(1) as usize,
            stats: Cell::default(),
            asleep: Cell::new(None),
            inject_sq_full: Cell::new(0),
            pushes: Cell::new(0),
        }
    }

    pub(crate) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.stats.get()
    }

    /// # Safety
    /// As [`super::uring::Uring::push`].
    pub(crate) unsafe fn push(&self, op: &RingOp, user_data: u64) {
        let n = self.inject_sq_full.get();
        self.pushes.set(self.pushes.get().wrapping_add(1));
        let full = self.sq.borrow().len() >= self.sq_entries || (n != 0 && self.pushes.get().is_multiple_of(n));
        if full {
            let mut s = self.stats.get();
            s.sq_full += 1;
            self.stats.set(s);
            self.submit();
        }
        self.sq.borrow_mut().push((*op, user_data));
    }

    /// File operations cannot be cancelled once submitted; others never wait here.
    pub(crate) fn cancel(&self, _id: OpId) {}

    pub(crate) fn cancel_all(&self) {}

    pub(crate) fn wants_enter(&self) -> bool {
        !self.sq.borrow().is_empty() || !self.overflow.borrow().is_empty() || self.due_now()
    }

    fn due_now(&self) -> bool {
        let now = self.world.borrow().now;
        self.due.borrow().peek().is_some_and(|&Reverse((t, _))| t <= now)
    }

    pub(crate) fn has_completions(&self) -> bool {
        !self.cq.borrow().is_empty()
    }

    pub(crate) fn turn(&self, wait: Wait) {
        let mut s = self.stats.get();
        s.enters += 1;
        self.stats.set(s);
        self.submit();
        {
            let mut cq = self.cq.borrow_mut();
            let mut overflow = self.overflow.borrow_mut();
            while cq.len() < self.cq_entries
                && let Some(c) = overflow.pop_front()
            {
                cq.push_back(c);
            }
        }
        let mut world = self.world.borrow_mut();
        let next = self.due.borrow().peek().map(|&Reverse((t, _))| t);
        let idle = self.cq.borrow().is_empty();
        // Code takes time too, so that loops that poll the clock end.
        let now = world.now;
        match (wait, next) {
            (Wait::No, _) => world.advance(now + 100),
            _ if !idle => world.advance(now + 100),
            // Others may have something to do meanwhile.
            (Wait::Nanos(n), _) if world.shared => {
                self.asleep.set(Some(now.saturating_add(n).min(next.unwrap_or(u64::MAX))));
            }
            (Wait::Forever, _) if world.shared => self.asleep.set(Some(next.unwrap_or(u64::MAX))),
            (Wait::Nanos(n), None) => world.advance(now.saturating_add(n)),
            (Wait::Nanos(n), Some(t)) => world.advance(t.min(now.saturating_add(n))),
            (Wait::Forever, Some(t)) => world.advance(t),
            (Wait::Forever, None) => world.stuck = true,
        }
        drop(world);
        self.complete_due();
    }

    pub(crate) fn reap(&self, out: &mut Vec<Cqe>, max: usize) {
        let mut cq = self.cq.borrow_mut();
        let n = cq.len().min(max);
        out.extend(cq.drain(..n));
    }

    /// Takes what was queued; each operation gets its time of completion.
    fn submit(&self) {
        let queued = std::mem::take(&mut *self.sq.borrow_mut());
        for (op, user_data) in queued {
            let mut world = self.world.borrow_mut();
            world.step();
            let (low, high) = world.settings.latency;
            let (low, high) = (low.as_nanos() as u64, high.as_nanos() as u64);
            let delay = low + world.random.below(high.saturating_sub(low) + 1);
            let mut p = Pending { op, user_data, data: None, watermark: 0, result: None };
            match range(&op) {
                // Descriptors are checked at once, as the kernel does.
                _ if fd_of(&op).is_some_and(|fd| world.disk(fd).is_none()) => p.result = Some(-libc::EBADF),
                Some(r) if misaligned(&world, &op, r) => p.result = Some(-libc::EINVAL),
                _ => {}
            }
            if p.result.is_none() {
                p.result = fault(&mut world, op.kind());
            }
            // The sync at the end of a durable write may be over long before its completion is seen.
            let durable = durable_fd(&op).filter(|&fd| world.cached(fd));
            if p.result.is_none() && world.random.chance(500) && durable.is_some_and(|fd| world.tell(fd)) {
                p.result = Some(-libc::EIO);
            }
            match op {
                RingOp::Write { .. } | RingOp::WriteV { .. } => p.data = Some(gather(&op)),
                RingOp::Fsync { fd, .. } => p.watermark = world.disk(fd).map_or(0, |d| d.watermark()),
                RingOp::Nop | RingOp::Close { .. } | RingOp::Fallocate { .. } => {}
                RingOp::Read { .. } | RingOp::ReadV { .. } => {}
                _ => p.result = Some(-libc::EOPNOTSUPP),
            }
            let at = world.now + delay;
            let order = self.order.get();
            self.order.set(order + 1);
            self.due.borrow_mut().push(Reverse((at, order)));
            self.pending.borrow_mut().insert(order, p);
        }
    }

    fn complete_due(&self) {
        while self.due_now() {
            let Some(Reverse((_, order))) = self.due.borrow_mut().pop() else { break };
            let Some(p) = self.pending.borrow_mut().remove(&order) else { continue };
            let mut world = self.world.borrow_mut();
            if !world.crashed {
                world.step();
            }
            let res = match world.crashed {
                // Whoever still listens must not take it for a success, and the disk does not see it any more: it goes to
                // the crash with what was in flight.
                true => {
                    self.pending.borrow_mut().insert(order, p);
                    self.due.borrow_mut().push(Reverse((u64::MAX, order)));
                    break;
                }
                false => carry_out(&mut world, &p),
            };
            drop(world);
            self.post(Cqe { user_data: p.user_data, res, flags: 0 });
        }
    }

    fn post(&self, cqe: Cqe) {
        debug_assert_eq!(cqe.user_data & INTERNAL, 0);
        if self.cq.borrow().len() < self.cq_entries && self.overflow.borrow().is_empty() {
            self.cq.borrow_mut().push_back(cqe);
        } else {
            let mut s = self.stats.get();
            s.cq_overflow += 1;
            self.stats.set(s);
            self.overflow.borrow_mut().push_back(cqe);
        }
    }

    /// Power fails: files become what survived, everything in flight completes with `-EIO`.
    pub(crate) fn crash(&self) {
        let mut world = self.world.borrow_mut();
        world.crashed = true;
        let mut in_flight: BTreeMap<usize, Vec<Flying>> = BTreeMap::new();
        let mut lost: Vec<(u64, Pending)> = self.pending.borrow_mut().drain().collect();
        lost.sort_by_key(|l| l.0);
        for (_, p) in &mut lost {
            let Some((fd, off, len)) = range(&p.op) else { continue };
            let write = matches!(p.op.kind(), OpKind::Write | OpKind::Fallocate);
            if let (true, None, Some(&Open { file, .. })) = (write, p.result, world.open.get(&fd)) {
                in_flight.entry(file).or_default().push((off as usize, len as usize, p.data.take()));
            }
        }
        let world = &mut *world;
        for (file, disk) in world.files.iter_mut().enumerate() {
            disk.crash(in_flight.remove(&file).unwrap_or_default(), &mut world.random);
        }
        self.due.borrow_mut().clear();
        let queued = std::mem::take(&mut *self.sq.borrow_mut());
        let dead = lost.iter().map(|(_, p)| p.user_data).chain(queued.iter().map(|q| q.1));
        let mut cq = self.cq.borrow_mut();
        // Completions that were posted but not yet seen die with the process, too.
        cq.iter_mut().chain(self.overflow.borrow_mut().iter_mut()).for_each(|c| c.res = -libc::EIO);
        cq.extend(dead.map(|user_data| Cqe { user_data, res: -libc::EIO, flags: 0 }));
    }
}

fn fd_of(op: &RingOp) -> Option<RawFd> {
    match *op {
        RingOp::Read { fd, .. }
        | RingOp::ReadV { fd, .. }
        | RingOp::Write { fd, .. }
        | RingOp::WriteV { fd, .. }
        | RingOp::Fsync { fd, .. }
        | RingOp::Fallocate { fd, .. } => Some(fd),
        _ => None,
    }
}

/// The descriptor of a write that is durable when it completes.
fn durable_fd(op: &RingOp) -> Option<RawFd> {
    match *op {
        RingOp::Write { fd, flags, .. } | RingOp::WriteV { fd, flags, .. } => {
            (flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0).then_some(fd)
        }
        _ => None,
    }
}

/// (descriptor, offset, length) of what an operation reads or writes.
fn range(op: &RingOp) -> Option<(RawFd, u64, u64)> {
    match *op {
        RingOp::Read { fd, off, len, .. } | RingOp::Write { fd, off, len, .. } => Some((fd, off, len as u64)),
        RingOp::ReadV { fd, iov, cnt, off, .. } | RingOp::WriteV { fd, iov, cnt, off, .. } => {
            // SAFETY: the submitter keeps the vectors in place until completion.
            let iov = unsafe { std::slice::from_raw_parts(iov, cnt as usize) };
            Some((fd, off, iov.iter().map(|v| v.iov_len as u64).sum()))
        }
        RingOp::Fallocate { fd, off, len, .. } => Some((fd, off, len)),
        _ => None,
    }
}

/// O_DIRECT asks for whole sectors in memory, offset and length.
fn misaligned(world: &World, op: &RingOp, (fd, off, _): (RawFd, u64, u64)) -> bool {
    if world.cached(fd) || !world.open.contains_key(&fd) || op.kind() == OpKind::Fallocate {
        return false;
    }
    let mut bad = !(off as usize).is_multiple_of(SECTOR);
    each_vector(op, |p, len| bad |= !(p as usize).is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR));
    bad
}

fn each_vector(op: &RingOp, mut f: impl FnMut(*mut u8, usize)) {
    match *op {
        RingOp::Read { buf, len, .. } => f(buf, len as usize),
        RingOp::Write { buf, len, .. } => f(buf.cast_mut(), len as usize),
        RingOp::ReadV { iov, cnt, .. } | RingOp::WriteV { iov, cnt, .. } => {
            // SAFETY: the submitter keeps the vectors in place until completion.
            for v in unsafe { std::slice::from_raw_parts(iov, cnt as usize) } {
                f(v.iov_base.cast(), v.iov_len);
            }
        }
        _ => {}
    }
}

/// The bytes a write carries.
fn gather(op: &RingOp) -> Vec<u8> {
    let mut out = Vec::new();
    // SAFETY: the submitter keeps the buffers in place until completion.
    each_vector(op, |p, len| out.extend_from_slice(unsafe { std::slice::from_raw_parts(p, len) }));
    out
}

fn fault(world: &mut World, kind: OpKind) -> Option<i32> {
    let f = world.faults;
    let (eio, enospc) = match kind {
        OpKind::Read => (f.read_eio, 0),
        OpKind::Write | OpKind::Fallocate => (f.write_eio, f.enospc),
        OpKind::Fsync => (f.sync_eio, 0),
        _ => (0, 0),
    };
    match () {
        _ if world.random.chance(eio) => Some(-libc::EIO),
        _ if world.random.chance(enospc) => Some(-libc::ENOSPC),
        _ => None,
    }
}

/// The effect of an operation that completes now, and its result.
fn carry_out(world: &mut World, p: &Pending) -> i32 {
    let short = world.random.chance(world.faults.short) && matches!(p.op.kind(), OpKind::Read | OpKind::Write);
    let late = world.random.chance(500);
    let part = |random: &mut Random, n: usize| match short && n > SECTOR {
        true => (1 + random.below((n / SECTOR) as u64 - 1) as usize) * SECTOR,
        false => n,
    };
    match (p.op, p.result) {
        (RingOp::Write { .. } | RingOp::WriteV { .. }, Some(res)) if res == -libc::EIO => {
            // A failed write may have happened in part.
            let Some((fd, off, len)) = range(&p.op) else { return res };
            let n = world.random.below(len / SECTOR as u64 + 1) as usize * SECTOR;
            let data = p.data.as_ref().map(|d| d[..n].to_vec());
            if let Some(d) = world.disk(fd) {
                d.write(off as usize, n, data, false);
            }
            res
        }
        (RingOp::Fsync { fd, .. }, Some(res)) => {
            if let Some(d) = world.disk(fd) {
                d.sync_failed(p.watermark);
            }
            res
        }
        (_, Some(res)) => res,
        (RingOp::Nop, _) => 0,
        (RingOp::Close { fd }, _) => {
            world.close(fd);
            0
        }
        (RingOp::Fsync { fd, .. }, _) => {
            if let Some(d) = world.disk(fd) {
                d.synced(p.watermark);
            }
            if world.tell(fd) { -libc::EIO } else { 0 }
        }
        (RingOp::Fallocate { fd, mode, off, len }, _) => {
            let zero = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
            let Some(d) = world.disk(fd) else { return -libc::EBADF };
            let (off, len) = (off as usize, len as usize);
            let end = if mode & libc::FALLOC_FL_KEEP_SIZE != 0 { d.len() } else { d.len().max(off + len) };
            match zero {
                true => d.write(off, len.min(end.saturating_sub(off)), None, false),
                false if end > d.len() => d.set_len(end),
                false => {}
            }
            0
        }
        (op @ (RingOp::Write { .. } | RingOp::WriteV { .. }), _) => {
            let Some((fd, off, len)) = range(&op) else { return -libc::EINVAL };
            // A device may fetch the data at any time until it completes.
            let mut data = if late { gather(&op) } else { p.data.clone().unwrap_or_default() };
            let n = part(&mut world.random, len as usize);
            data.truncate(n);
            let Some(d) = world.disk(fd) else { return -libc::EBADF };
            let durable = durable_fd(&op).is_some();
            d.write(off as usize, n, Some(data), durable);
            if world.cached(fd) {
                if world.random.chance(world.faults.write_back)
                    && let Some(file) = world.open.get(&fd).map(|o| o.file)
                {
                    world.files[file].write_back_failed(&mut world.random);
                }
                if durable && world.tell(fd) {
                    return -libc::EIO;
                }
            }
            n as i32
        }
        (op @ (RingOp::Read { .. } | RingOp::ReadV { .. }), _) => {
            let Some((fd, off, len)) = range(&op) else { return -libc::EINVAL };
            let n = part(&mut world.random, len as usize);
            let Some(d) = world.disk(fd) else { return -libc::EBADF };
            let (mut at, mut left) = (off as usize, n);
            each_vector(&op, |p, len| {
                let want = len.min(left);
                // SAFETY: the submitter keeps the buffers in place, for nobody else's use, until completion.
                let got = d.read(at, unsafe { std::slice::from_raw_parts_mut(p, want) });
                at += got;
                left = if got < want { 0 } else { left - got };
            });
            (at - off as usize) as i32
        }
        _ => -libc::EOPNOTSUPP,
    }
}
