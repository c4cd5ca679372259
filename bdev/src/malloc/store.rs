//! The memory of a malloc device: blocks that several cores read and write, each block as a whole.
//!
//! Memory is guarded by granules of 4 KiB (or of a block, where blocks do not divide that), each with one word: a lock, which
//! readers and writers hold while they copy, and a count of loans. Lent memory is read by others at any time, so nobody writes to
//! it: a write to a lent granule goes to a copy of it, one of a bounded number, and the granule is marked as moved. Whoever
//! ends the last loan brings the copy home.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_accel::copy_past_cache;
use longshore_nvme::wire::Status;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::device::Geometry;
use crate::io::IoRef;
use crate::registry::BdevError;

const PAGE: usize = 4096;

/// Memory of at least this size asks for huge pages: random reads of 4 KiB pages wait for the page table more than for the data.
const HUGE: usize = 2 << 20;

/// Zeroed runs of at least this many bytes give their pages back...
const RELEASE: usize = 1 << 20;
/// ...about so many at a time.
const STEP: usize = 2 << 20;

/// So much of lent memory is brought near while the request that asked for it is on its way to the socket.
const AHEAD: usize = 512;

/// Writes of at least this many bytes go past the cache...
const STREAM: usize = 32 << 10;
/// ...so many at a time.
const RUN: usize = 64 << 10;

/// Bytes of copies of lent granules, over all of a device.
const MOVED_BYTES: usize = 4 << 20;

/// Of the word of a granule: somebody copies.
const LOCKED: u32 = 1 << 31;
/// What it holds is in `moved`; what is lent is what it held before.
const MOVED: u32 = 1 << 30;
/// A write waits for the end of its loans: it is not lent again before.
const WANTED: u32 = 1 << 29;
/// Loans.
const PINS: u32 = WANTED - 1;

pub(super) struct Store {
    data: Map,
    md: Option<Map>,
    block_size: usize,
    md_size: usize,
    num_blocks: u64,
    granule: usize,
    /// A word for each granule.
    words: Map,
    moved: Mutex<Moved>,
}

/// Granules that were written while they were lent.
struct Moved {
    at: HashMap<u64, Box<[u8]>>,
    spare: Vec<Box<[u8]>>,
    /// Copies that may still be made.
    left: usize,
}

/// A write found its granule lent, and no room for another copy.
#[derive(Debug)]
pub(super) struct Lent;

/// Memory that was lent: give it back with [`Store::unpin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loan {
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
    first: u64,
    last: u64,
}

/// An anonymous mapping, zeroed, committed on first touch.
struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only touched under the lock of its block.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(len: usize) -> Result<Map, BdevError> {
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let p = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|e| BdevError::NoMemory(format!("cannot reserve {len} bytes for a malloc bdev: {e}")))?;
        if len >= HUGE {
            // SAFETY: the mapping made above. Without huge pages it is slower, and as good otherwise.
            let _ = unsafe { rustix::mm::madvise(p, len, Advice::LinuxHugepage) };
        }
        Ok(Map { base: NonNull::new(p.cast()).expect("mmap never returns null"), len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped once.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A granule that nobody else reads or writes, but for those whom it is lent to.
struct Locked<'a> {
    word: &'a AtomicU32,
    /// What else it said.
    was: u32,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.word.fetch_and(!LOCKED, Ordering::Release);
    }
}

/// Several granules in a row, each as [`Locked`].
struct LockedRun<'a> {
    store: &'a Store,
    granules: RangeInclusive<u64>,
}

impl LockedRun<'_> {
    fn words(&self) -> impl Iterator<Item = &AtomicU32> {
        self.granules.clone().map(|g| self.store.word(g))
    }
}

impl Drop for LockedRun<'_> {
    fn drop(&mut self) {
        self.words().for_each(|w| {
            w.fetch_and(!LOCKED, Ordering::Release);
        });
    }
}

/// Starts to fetch `len` bytes from memory: the kernel, which copies them, comes later in this turn of the loop.
#[inline]
fn bring_near(base: NonNull<u8>, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which has no effect but on time, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(base.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (base, len);
}

impl Store {
    pub(super) fn new(g: &Geometry) -> Result<Store, BdevError> {
        let size = |per: u32| {
            usize::try_from(g.num_blocks)
                .ok()
                .and_then(|n| n.checked_mul(per as usize))
                .filter(|&n| n > 0 && n <= isize::MAX as usize)
                .ok_or_else(|| {
                    BdevError::Invalid(format!("{} blocks of {per} bytes do not fit in memory", g.num_blocks))
                })
        };
        let md_size = if g.md_interleave { 0 } else { g.md_size };
        let block_size = g.block_size as usize;
        let granule = if PAGE.is_multiple_of(block_size) { PAGE } else { block_size };
        let bytes = size(g.block_size)?;
        Ok(Store {
            data: Map::new(bytes)?,
            md: if md_size == 0 { None } else { Some(Map::new(size(md_size)?)?) },
            block_size,
            md_size: md_size as usize,
            num_blocks: g.num_blocks,
            granule,
            words: Map::new(bytes.div_ceil(granule) * size_of::<AtomicU32>())?,
            moved: Mutex::new(Moved { at: HashMap::new(), spare: Vec::new(), left: (MOVED_BYTES / granule).max(16) }),
        })
    }

    /// Whether blocks can be lent: not where metadata goes with them separately.
    pub(super) fn lends(&self) -> bool {
        self.md.is_none()
    }

    #[inline]
    fn granule_of(&self, lba: u64) -> u64 {
        (lba as usize * self.block_size / self.granule) as u64
    }

    #[inline]
    fn word(&self, granule: u64) -> &AtomicU32 {
        let at = granule as usize * size_of::<AtomicU32>();
        assert!(at < self.words.len);
        // SAFETY: in bounds by the assertion, aligned as the mapping is, zeroed at first, and only ever used as an atomic.
        unsafe { &*self.words.base.as_ptr().add(at).cast::<AtomicU32>() }
    }

    #[inline]
    fn lock(&self, granule: u64) -> Locked<'_> {
        let word = self.word(granule);
        loop {
            let was = word.load(Ordering::Relaxed);
            if was & LOCKED == 0
                && word.compare_exchange_weak(was, was | LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return Locked { word, was };
            }
            std::hint::spin_loop();
        }
    }

    /// Locks granules one after the other, always in this order.
    fn lock_run(&self, granules: RangeInclusive<u64>) -> LockedRun<'_> {
        granules.clone().for_each(|g| std::mem::forget(self.lock(g)));
        LockedRun { store: self, granules }
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes `at..at + len` of a mapping.
    #[inline]
    fn piece(m: &Map, at: usize, len: usize) -> *mut [u8] {
        assert!(at + len <= m.len);
        std::ptr::slice_from_raw_parts_mut(m.base.as_ptr().wrapping_add(at), len)
    }

    /// The bytes of a granule at its own place; the last one may be short.
    fn home(&self, granule: u64) -> *mut [u8] {
        let at = granule as usize * self.granule;
        Store::piece(&self.data, at, self.granule.min(self.data.len - at))
    }

    #[inline]
    fn md_of(&self, lba: u64) -> *mut [u8] {
        match &self.md {
            Some(m) => Store::piece(m, lba as usize * self.md_size, self.md_size),
            None => &mut [],
        }
    }

    /// Shows the data and the metadata of block `lba`, while nobody writes to it.
    #[inline]
    fn look<R>(&self, lba: u64, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        assert!(lba < self.num_blocks);
        let g = self.granule_of(lba);
        let l = self.lock(g);
        // SAFETY: in bounds; whoever writes metadata holds the lock of its granule.
        let md = unsafe { &*self.md_of(lba) };
        let at = lba as usize * self.block_size;
        if l.was & MOVED != 0
            && let Some(copy) = self.moved().at.get(&g)
        {
            let at = at - g as usize * self.granule;
            return f(&copy[at..at + self.block_size], md);
        }
        // SAFETY: in bounds; whoever writes to it holds the lock.
        f(unsafe { &*Store::piece(&self.data, at, self.block_size) }, md)
    }

    /// Lets `f` change the data and the metadata of block `lba`, which nobody else sees meanwhile.
    #[inline]
    fn change(&self, lba: u64, f: impl FnOnce(&mut [u8], &mut [u8])) -> Result<(), Lent> {
        assert!(lba < self.num_blocks);
        let l = self.lock(self.granule_of(lba));
        if l.was & (PINS | MOVED | WANTED) != 0 {
            if l.was & (PINS | MOVED) != 0 {
                return self.change_copy(&l, lba, f);
            }
            l.word.fetch_and(!WANTED, Ordering::Relaxed);
        }
        // SAFETY: in bounds; the lock keeps others out, and it is not lent.
        unsafe {
            f(&mut *Store::piece(&self.data, lba as usize * self.block_size, self.block_size), &mut *self.md_of(lba))
        };
        Ok(())
    }

    /// As [`change`](Store::change), in the copy of a granule that is lent, or was and has not been brought home.
    #[cold]
    fn change_copy(&self, l: &Locked<'_>, lba: u64, f: impl FnOnce(&mut [u8], &mut [u8])) -> Result<(), Lent> {
        let g = self.granule_of(lba);
        let mut moved = self.moved();
        if !moved.at.contains_key(&g) {
            let mut copy = match moved.spare.pop() {
                Some(c) => c,
                None if moved.left > 0 => {
                    moved.left -= 1;
                    vec![0; self.granule].into()
                }
                None => {
                    l.word.fetch_or(WANTED, Ordering::Relaxed);
                    return Err(Lent);
                }
            };
            // SAFETY: in bounds; nobody writes to it, for that takes the lock.
            let now = unsafe { &*self.home(g) };
            copy[..now.len()].copy_from_slice(now);
            moved.at.insert(g, copy);
        }
        let at = lba as usize * self.block_size - g as usize * self.granule;
        if let Some(copy) = moved.at.get_mut(&g) {
            // SAFETY: in bounds; the lock keeps others out, and metadata is not lent.
            f(&mut copy[at..at + self.block_size], unsafe { &mut *self.md_of(lba) });
        }
        // Who ends the last loan from here on finds the mark.
        if l.word.fetch_or(MOVED, Ordering::AcqRel) & PINS == 0 {
            self.bring_home(l, g, &mut moved);
        }
        Ok(())
    }

    /// Nobody is lent this granule, and its lock is held: it is again where it belongs.
    fn bring_home(&self, l: &Locked<'_>, granule: u64, moved: &mut Moved) {
        if let Some(copy) = moved.at.remove(&granule) {
            // SAFETY: in bounds; the lock keeps others out, and it is not lent.
            let home = unsafe { &mut *self.home(granule) };
            home.copy_from_slice(&copy[..home.len()]);
            moved.spare.push(copy);
        }
        l.word.fetch_and(!MOVED, Ordering::Release);
    }

    /// Lends `n` blocks from `lba` on, which then stay as they are now until they are given back. `None`: not at present.
    pub(super) fn pin(&self, lba: u64, n: u32) -> Option<Loan> {
        let (at, len) = (lba as usize * self.block_size, n as usize * self.block_size);
        let base = NonNull::new(Store::piece(&self.data, at, len).cast::<u8>())?;
        if len == 0 {
            return None;
        }
        let (first, last) = (self.granule_of(lba), self.granule_of(lba + u64::from(n) - 1));
        bring_near(base, len.min(AHEAD));
        for g in first..=last {
            if !self.pin_one(g) {
                (first..g).for_each(|g| self.unpin_one(g));
                return None;
            }
        }
        Some(Loan { base, len, first, last })
    }

    #[inline]
    fn pin_one(&self, granule: u64) -> bool {
        let word = self.word(granule);
        loop {
            let was = word.load(Ordering::Relaxed);
            if was & (MOVED | WANTED) != 0 || was & PINS == PINS {
                return false;
            }
            if was & LOCKED == 0
                && word.compare_exchange_weak(was, was + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return true;
            }
            std::hint::spin_loop();
        }
    }

    /// A loan ends.
    pub(super) fn unpin(&self, loan: &Loan) {
        (loan.first..=loan.last).for_each(|g| self.unpin_one(g));
    }

    #[inline]
    fn unpin_one(&self, granule: u64) {
        let was = self.word(granule).fetch_sub(1, Ordering::Release);
        debug_assert!(was & PINS != 0, "granule {granule} was not lent");
        if was & (MOVED | PINS) == MOVED | 1 {
            self.last_unpinned(granule);
        }
    }

    #[cold]
    fn last_unpinned(&self, granule: u64) {
        let l = self.lock(granule);
        // A write may have been here first.
        if l.was & (MOVED | PINS) == MOVED {
            self.bring_home(&l, granule, &mut self.moved());
        }
    }

    fn fits(&self, n: u32, io: &IoRef) -> bool {
        io.buf_len() >= n as usize * self.block_size
            && io.metadata().is_none_or(|m| m.len() >= n as usize * self.md_size)
    }

    pub(super) fn read(&self, lba: u64, n: u32, io: &mut IoRef) -> Status {
        if !self.fits(n, io) {
            return Status::DATA_SGL_LENGTH_INVALID;
        }
        let (bs, ms) = (self.block_size, self.md_size);
        let (mut segments, mut md) = io.memory_mut();
        let mut cur: &mut [u8] = &mut [];
        for i in 0..n as usize {
            self.look(lba + i as u64, |data, meta| {
                let mut at = 0;
                while at < bs {
                    if cur.is_empty() {
                        cur = segments.next().unwrap_or_default();
                        continue;
                    }
                    let len = cur.len().min(bs - at);
                    let (to, rest) = std::mem::take(&mut cur).split_at_mut(len);
                    to.copy_from_slice(&data[at..at + len]);
                    cur = rest;
                    at += len;
                }
                if let Some(md) = &mut md {
                    md[i * ms..(i + 1) * ms].copy_from_slice(meta);
                }
            });
        }
        Status::SUCCESS
    }

    /// Writes from block `done` of the request on. The error is how many blocks are done: go on from there later.
    pub(super) fn write(&self, lba: u64, n: u32, done: u32, io: &IoRef) -> Result<Status, u32> {
        if !self.fits(n, io) {
            return Ok(Status::DATA_SGL_LENGTH_INVALID);
        }
        let (bs, ms) = (self.block_size, self.md_size);
        let md = io.metadata();
        let md = |from: u32, to: u32| md.map(|md| &md[from as usize * ms..to as usize * ms]);
        let mut from = Pieces::of(io);
        from.take(done as usize * bs, |_| true);
        let streams = n as usize * bs >= STREAM;
        let mut i = done;
        while i < n {
            let end = i + if streams { self.run(lba + u64::from(i), n - i) } else { 0 };
            if end > i && self.stream(lba + u64::from(i), end - i, &mut from, md(i, end)) {
                i = end;
                continue;
            }
            for i in i..end.max(i + 1) {
                let change = |data: &mut [u8], meta: &mut [u8]| {
                    from.fill(data, <[u8]>::copy_from_slice);
                    if let Some(md) = md(i, i + 1) {
                        meta.copy_from_slice(md);
                    }
                };
                self.change(lba + u64::from(i), change).map_err(|Lent| i)?;
            }
            i = end.max(i + 1);
        }
        Ok(Status::SUCCESS)
    }

    /// Of `n` blocks from `lba` on, how many are whole granules and are written at a time; 0 if none.
    #[inline]
    fn run(&self, lba: u64, n: u32) -> u32 {
        if self.granule != PAGE || !(lba as usize * self.block_size).is_multiple_of(PAGE) {
            return 0;
        }
        ((n as usize * self.block_size).min(RUN) / PAGE * (PAGE / self.block_size)) as u32
    }

    /// Writes `n` blocks of whole granules, and says whether it did: not where one of them is lent or moved.
    fn stream<'a>(
        &self,
        lba: u64,
        n: u32,
        from: &mut Pieces<'a, impl Iterator<Item = &'a [u8]>>,
        md: Option<&[u8]>,
    ) -> bool {
        let all = self.lock_run(self.granule_of(lba)..=self.granule_of(lba + u64::from(n) - 1));
        if all.words().any(|w| w.load(Ordering::Acquire) & (PINS | MOVED | WANTED) != 0) {
            return false;
        }
        let run = Store::piece(&self.data, lba as usize * self.block_size, n as usize * self.block_size);
        // SAFETY: in bounds; all locks are held, and nothing of it is lent.
        from.fill(unsafe { &mut *run }, copy_past_cache);
        if let (Some(md), Some(all)) = (md, &self.md) {
            let meta = Store::piece(all, lba as usize * self.md_size, n as usize * self.md_size);
            // SAFETY: in bounds; whoever touches metadata holds the lock of its granule.
            unsafe { &mut *meta }.copy_from_slice(md);
        }
        true
    }

    pub(super) fn compare(&self, lba: u64, n: u32, io: &IoRef) -> Status {
        if !self.fits(n, io) {
            return Status::DATA_SGL_LENGTH_INVALID;
        }
        let (bs, ms) = (self.block_size, self.md_size);
        let md = io.metadata();
        let mut from = Pieces::of(io);
        for i in 0..n as usize {
            let same = self.look(lba + i as u64, |data, meta| {
                let mut at = 0;
                from.take(bs, |p| {
                    let same = data[at..at + p.len()] == *p;
                    at += p.len();
                    same
                }) && md.is_none_or(|md| *meta == md[i * ms..(i + 1) * ms])
            });
            if !same {
                return Status::COMPARE_FAILURE;
            }
        }
        Status::SUCCESS
    }

    /// As [`write`](Store::write), zeroes.
    pub(super) fn zero(&self, lba: u64, n: u32, done: u32) -> Result<Status, u32> {
        let large = n as usize * self.block_size >= RELEASE;
        let mut i = done;
        while i < n {
            let l = lba + u64::from(i);
            let released = if large { self.release(l, n - i) } else { 0 };
            for gone in l..l + u64::from(released) {
                if self.md.is_some() {
                    self.change(gone, |_, meta| meta.fill(0)).map_err(|Lent| i)?;
                }
            }
            if released == 0 {
                self.change(l, |data, meta| {
                    data.fill(0);
                    meta.fill(0);
                })
                .map_err(|Lent| i)?;
            }
            i += released.max(1);
        }
        Ok(Status::SUCCESS)
    }

    /// Gives back the pages of some blocks from `lba` on, which then read as zeroes, and says of how many; 0 if none can be.
    fn release(&self, lba: u64, n: u32) -> u32 {
        let start = lba as usize * self.block_size;
        // The least run that is whole blocks and whole pages.
        let unit = self.block_size / gcd(self.block_size, PAGE) * PAGE;
        let len = (n as usize * self.block_size).min(unit.max(STEP)) / unit * unit;
        if len == 0 || !start.is_multiple_of(PAGE) {
            return 0;
        }
        let blocks = len / self.block_size;
        // No block may be half written while its page is replaced: hold every lock.
        let all = self.lock_run(self.granule_of(lba)..=self.granule_of(lba + blocks as u64 - 1));
        // What is locked is neither lent nor moved by anybody now; a loan may end, after all that was read of it.
        if all.words().any(|w| w.load(Ordering::Acquire) & (PINS | MOVED) != 0) {
            return 0;
        }
        let run = Store::piece(&self.data, start, len);
        // SAFETY: inside the mapping; all locks are held, and nothing of it is lent.
        let gone = unsafe { rustix::mm::madvise(run.cast(), len, Advice::LinuxDontNeed) };
        if gone.is_err() {
            return 0;
        }
        all.words().for_each(|w| {
            w.fetch_and(!WANTED, Ordering::Relaxed);
        });
        blocks as u32
    }

    /// Memory for [`copy`](Store::copy): a block and its metadata.
    pub(super) fn scratch(&self) -> Box<[u8]> {
        vec![0; self.block_size + self.md_size].into()
    }

    /// As [`write`](Store::write), from other blocks, by way of `scratch`.
    pub(super) fn copy(&self, from: u64, to: u64, n: u32, done: u32, scratch: &mut [u8]) -> Result<Status, u32> {
        let (data, meta) = scratch.split_at_mut(self.block_size);
        for i in done..n {
            // As memmove: overlapping ranges copy what was there before.
            let at = u64::from(if from >= to { i } else { n - 1 - i });
            self.look(from + at, |d, m| {
                data.copy_from_slice(d);
                meta[..m.len()].copy_from_slice(m);
            });
            let change = |d: &mut [u8], m: &mut [u8]| {
                d.copy_from_slice(data);
                m.copy_from_slice(&meta[..m.len()]);
            };
            self.change(to + at, change).map_err(|Lent| i)?;
        }
        Ok(Status::SUCCESS)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Walks the memory of a request, whose pieces need not be whole blocks.
struct Pieces<'a, I: Iterator<Item = &'a [u8]>> {
    segments: I,
    cur: &'a [u8],
}

impl<'a> Pieces<'a, std::iter::Empty<&'a [u8]>> {
    fn of(io: &'a IoRef) -> Pieces<'a, impl Iterator<Item = &'a [u8]>> {
        Pieces { segments: io.segments(), cur: &[] }
    }
}

impl<'a, I: Iterator<Item = &'a [u8]>> Pieces<'a, I> {
    /// Fills `to` with the next bytes, which `copy` copies piece by piece.
    #[inline]
    fn fill(&mut self, to: &mut [u8], mut copy: impl FnMut(&mut [u8], &[u8])) {
        let mut at = 0;
        self.take(to.len(), |p| {
            copy(&mut to[at..at + p.len()], p);
            at += p.len();
            true
        });
    }

    /// Shows the next `len` bytes to `f`, piece by piece, until it says false.
    #[inline]
    fn take(&mut self, mut len: usize, mut f: impl FnMut(&[u8]) -> bool) -> bool {
        while len > 0 {
            if self.cur.is_empty() {
                let Some(next) = self.segments.next() else { return false };
                self.cur = next;
                continue;
            }
            let (p, rest) = self.cur.split_at(self.cur.len().min(len));
            self.cur = rest;
            len -= p.len();
            if !f(p) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn store(block_size: u32, blocks: u64) -> Store {
        Store::new(&Geometry::plain(block_size, blocks)).unwrap()
    }

    fn put(s: &Store, lba: u64, byte: u8) -> Result<(), Lent> {
        s.change(lba, |d, _| d.fill(byte))
    }

    fn get(s: &Store, lba: u64) -> Option<u8> {
        s.look(lba, |d, _| d.iter().all(|b| *b == d[0]).then_some(d[0]))
    }

    fn seen(l: &Loan) -> Vec<u8> {
        // SAFETY: lent memory stays as it is until it is given back.
        unsafe { std::slice::from_raw_parts(l.base.as_ptr(), l.len) }.to_vec()
    }

    #[test]
    fn what_is_lent_stays_as_it_is_while_others_write_and_read_on() {
        for bs in [512, 520, 4096, 8192] {
            let s = store(bs, 100);
            (0..100).for_each(|l| put(&s, l, l as u8).unwrap());
            let loan = s.pin(3, 4).unwrap();
            let before = seen(&loan);
            for l in 0..16 {
                put(&s, l, 200 + l as u8).unwrap();
            }
            assert_eq!(seen(&loan), before, "blocks of {bs} bytes");
            assert!((0..16).all(|l| get(&s, l) == Some(200 + l as u8)), "a reader sees what was written last");
            assert!(s.pin(3, 1).is_none(), "what a loan would show has been overwritten");
            s.unpin(&loan);
            assert!((0..16).all(|l| get(&s, l) == Some(200 + l as u8)));
            assert!((16..100).all(|l| get(&s, l) == Some(l as u8)));
            assert!(s.moved().at.is_empty(), "copies go home with the last loan");
            let again = s.pin(3, 1).unwrap();
            assert!(seen(&again).iter().all(|b| *b == 203));
            s.unpin(&again);
        }
    }

    #[test]
    fn copies_are_bounded_and_a_write_goes_on_where_it_stopped() {
        let s = store(4096, 4096);
        let most = s.moved().left as u32;
        let loan = s.pin(0, most + 8).unwrap();
        assert_eq!(s.zero(0, most + 8, 0), Err(most));
        assert!(s.pin(u64::from(most), 1).is_none(), "what a write waits for is not lent again");
        assert!(put(&s, 0, 7).is_ok(), "what has a copy is written there");
        assert!(put(&s, 4000, 7).is_ok(), "what is not lent is written");
        s.unpin(&loan);
        assert_eq!(s.zero(0, most + 8, most), Ok(Status::SUCCESS));
        assert_eq!((get(&s, 0), get(&s, 1), get(&s, 4000)), (Some(7), Some(0), Some(7)));
        assert!(s.pin(u64::from(most), 1).is_some_and(|l| {
            s.unpin(&l);
            true
        }));
    }

    #[test]
    fn pages_that_are_lent_are_not_given_back() {
        let s = store(512, 8192);
        (0..8192).for_each(|l| put(&s, l, 9).unwrap());
        let loan = s.pin(1000, 8).unwrap();
        assert_eq!(s.zero(0, 8192, 0), Ok(Status::SUCCESS));
        assert!(seen(&loan).iter().all(|b| *b == 9));
        s.unpin(&loan);
        assert!((0..8192).all(|l| get(&s, l) == Some(0)));
    }

    #[test]
    fn loans_and_writes_on_two_threads_never_mix_within_a_block() {
        let s = store(4096, 4);
        let stop = AtomicBool::new(false);
        std::thread::scope(|t| {
            t.spawn(|| {
                for i in 0..200_000u32 {
                    put(&s, u64::from(i % 4), i as u8).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            t.spawn(|| {
                let (mut n, mut lent) = (0u64, 0u64);
                while !stop.load(Ordering::Relaxed) || n < 1000 {
                    n += 1;
                    if let Some(l) = s.pin(n % 4, 1) {
                        lent += 1;
                        let first = seen(&l);
                        assert!(first.iter().all(|b| *b == first[0]), "a block of two writes was lent");
                        assert_eq!(first, seen(&l), "a lent block changed");
                        s.unpin(&l);
                    }
                    assert!(get(&s, (n + 1) % 4).is_some(), "a block of two writes was read");
                }
                assert!(lent > 0, "nothing was ever lent");
            });
        });
        assert!(s.moved().at.is_empty());
        assert_eq!(get(&s, 3), Some(199_999u32 as u8));
    }

    /// Runs that overlap by half are written, blocks are read, lent and zeroed, and pages given back.
    #[test]
    fn large_writes_on_several_threads_never_mix_within_a_block_nor_with_a_loan() {
        let s = store(4096, 512);
        let stop = AtomicBool::new(false);
        std::thread::scope(|t| {
            let writers = [0, 8].map(|lba| {
                let s = &s;
                t.spawn(move || {
                    for i in 0..2000u32 {
                        let data = vec![i as u8; RUN];
                        let mut from = Pieces { segments: [&data[..]].into_iter(), cur: &[] };
                        if !s.stream(lba, 16, &mut from, None) {
                            let _ = put(s, u64::from(i % 24), i as u8);
                        }
                    }
                })
            });
            t.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = s.zero(0, 512, 0);
                    std::thread::yield_now();
                }
            });
            t.spawn(|| {
                let (mut n, mut lent) = (0u64, 0u64);
                while !stop.load(Ordering::Relaxed) || lent == 0 {
                    n += 1;
                    if let Some(l) = s.pin(n % 24, 1) {
                        lent += 1;
                        let first = seen(&l);
                        assert!(first.iter().all(|b| *b == first[0]), "a block of two writes was lent");
                        assert_eq!(first, seen(&l), "a lent block changed");
                        s.unpin(&l);
                    }
                    assert!(get(&s, (n + 5) % 24).is_some(), "a block of two writes was read");
                }
            });
            for w in writers {
                w.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(s.moved().at.is_empty());
    }
}
