//! The memory of a malloc device: blocks that several cores read and write, each block as a whole.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use longshore_nvme::wire::Status;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::device::Geometry;
use crate::io::IoRef;
use crate::registry::BdevError;

/// Locks that blocks share by the low bits of their number: neighbours never share one.
const LOCKS: usize = 1024;

/// Zeroed runs of at least this many bytes give their pages back.
const RELEASE: usize = 1 << 20;

pub(super) struct Store {
    data: Map,
    md: Option<Map>,
    block_size: usize,
    md_size: usize,
    num_blocks: u64,
    locks: Box<[AtomicU8]>,
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
        Ok(Map { base: NonNull::new(p.cast()).expect("mmap never returns null"), len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped once.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

struct Locked<'a>(&'a AtomicU8);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
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
        Ok(Store {
            data: Map::new(size(g.block_size)?)?,
            md: if md_size == 0 { None } else { Some(Map::new(size(md_size)?)?) },
            block_size: g.block_size as usize,
            md_size: md_size as usize,
            num_blocks: g.num_blocks,
            locks: (0..LOCKS).map(|_| AtomicU8::new(0)).collect(),
        })
    }

    #[inline]
    fn lock(&self, lba: u64) -> Locked<'_> {
        let l = &self.locks[lba as usize % LOCKS];
        while l.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        Locked(l)
    }

    /// Runs `f` with the data and the metadata of block `lba`, alone.
    #[inline]
    fn with<R>(&self, lba: u64, f: impl FnOnce(&mut [u8], &mut [u8]) -> R) -> R {
        assert!(lba < self.num_blocks);
        let _l = self.lock(lba);
        let piece = |m: &Map, size: usize| {
            // SAFETY: in bounds by the assertion; the block's lock makes the access unique.
            unsafe { std::slice::from_raw_parts_mut(m.base.as_ptr().add(lba as usize * size), size) }
        };
        let md: &mut [u8] = match &self.md {
            Some(m) => piece(m, self.md_size),
            None => &mut [],
        };
        f(piece(&self.data, self.block_size), md)
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
            self.with(lba + i as u64, |data, meta| {
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

    pub(super) fn write(&self, lba: u64, n: u32, io: &IoRef) -> Status {
        if !self.fits(n, io) {
            return Status::DATA_SGL_LENGTH_INVALID;
        }
        let (bs, ms) = (self.block_size, self.md_size);
        let md = io.metadata();
        let mut from = Pieces::of(io);
        for i in 0..n as usize {
            self.with(lba + i as u64, |data, meta| {
                let mut at = 0;
                from.take(bs, |p| {
                    data[at..at + p.len()].copy_from_slice(p);
                    at += p.len();
                    true
                });
                if let Some(md) = md {
                    meta.copy_from_slice(&md[i * ms..(i + 1) * ms]);
                }
            });
        }
        Status::SUCCESS
    }

    pub(super) fn compare(&self, lba: u64, n: u32, io: &IoRef) -> Status {
        if !self.fits(n, io) {
            return Status::DATA_SGL_LENGTH_INVALID;
        }
        let (bs, ms) = (self.block_size, self.md_size);
        let md = io.metadata();
        let mut from = Pieces::of(io);
        for i in 0..n as usize {
            let same = self.with(lba + i as u64, |data, meta| {
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

    pub(super) fn zero(&self, lba: u64, n: u32) -> Status {
        let end = lba + u64::from(n);
        let released = if n as usize * self.block_size >= RELEASE { self.release(lba, n) } else { lba..lba };
        for l in lba..end {
            let gone = released.contains(&l);
            if gone && self.md.is_none() {
                continue;
            }
            self.with(l, |data, meta| {
                if !gone {
                    data.fill(0);
                }
                meta.fill(0);
            });
        }
        Status::SUCCESS
    }

    /// Gives back the whole pages inside a run, which then read as zeroes; returns the blocks that lie in them.
    fn release(&self, lba: u64, n: u32) -> std::ops::Range<u64> {
        const PAGE: usize = 4096;
        let start = (lba as usize * self.block_size).next_multiple_of(PAGE);
        let end = (lba as usize + n as usize) * self.block_size / PAGE * PAGE;
        if start >= end || end > self.data.len {
            return lba..lba;
        }
        // No block may be half written while its page is replaced: hold every lock, always in this order.
        let _all: Vec<_> = (0..LOCKS as u64).map(|l| self.lock(l)).collect();
        // SAFETY: inside the mapping, and all locks are held.
        let gone = unsafe {
            rustix::mm::madvise(self.data.base.as_ptr().add(start).cast(), end - start, Advice::LinuxDontNeed)
        };
        match gone {
            Ok(()) => start.div_ceil(self.block_size) as u64..(end / self.block_size) as u64,
            Err(_) => lba..lba,
        }
    }

    pub(super) fn copy(&self, from: u64, to: u64, n: u32) -> Status {
        let mut tmp = vec![0u8; self.block_size + self.md_size];
        let (data, meta) = tmp.split_at_mut(self.block_size);
        let mut step = |i: u64| {
            self.with(from + i, |d, m| {
                data.copy_from_slice(d);
                meta[..m.len()].copy_from_slice(m);
            });
            self.with(to + i, |d, m| {
                d.copy_from_slice(data);
                m.copy_from_slice(&meta[..m.len()]);
            });
        };
        let n = u64::from(n);
        // As memmove: overlapping ranges copy what was there before.
        if from >= to {
            (0..n).for_each(&mut step);
        } else {
            (0..n).rev().for_each(&mut step);
        }
        Status::SUCCESS
    }
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
