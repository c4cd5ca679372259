//! DMA memory: a pool per reactor that reserves address space at start and commits it in chunks of 2 MiB as they are
//! needed, each chunk cut into blocks of one size class. Buffers are reference-counted slices of blocks.
#![allow(unsafe_code)]

mod account;
mod buf;
mod reserve;
mod space;

use crate::options::DmaOptions;
pub use account::{Account, Shortage};
pub use buf::DmaBuf;
pub use reserve::Reserve;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

/// Bytes of one chunk: what is committed, and registered, at a time.
pub const CHUNK: usize = 2 << 20;

/// Sizes of the classes, in bytes. 132 KiB is the usual large buffer of NVMe/TCP: 128 KiB of data and a block of metadata.
pub const CLASSES: [usize; 11] =
    [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 132 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20];

/// Makes pool memory known to a device: io_uring's fixed buffers now; VFIO, RDMA or vhost later. Called on the reactor's thread.
pub trait MemRegistrar {
    /// `len` bytes at `addr` were committed. The key is handed out with every buffer in them.
    fn register(&self, addr: *mut u8, len: usize) -> io::Result<u32>;
    /// They are about to be unmapped, or are not needed any more.
    fn unregister(&self, addr: *mut u8, len: usize, key: u32);
}

/// Counters of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of a buffer.
    pub size: usize,
    /// Buffers in use.
    pub in_use: usize,
    /// Most ever in use.
    pub peak: usize,
    /// Buffers that the committed chunks of this class hold.
    pub capacity: usize,
    /// Allocations that succeeded.
    pub allocs: u64,
    /// Allocations that found nothing.
    pub failures: u64,
    /// Times somebody queued up for a buffer ([`DmaPool::note_wait`]).
    pub waits: u64,
}

/// Counters of a pool.
#[derive(Clone, Debug, Default)]
pub struct DmaStats {
    /// By class, in the order of [`CLASSES`].
    pub classes: Vec<ClassStats>,
    /// Bytes committed.
    pub committed: usize,
    /// Bytes that may be committed.
    pub limit: usize,
    /// Bytes of those on explicit huge pages.
    pub huge: usize,
    /// Bytes registered.
    pub registered: usize,
    /// Why no more could be registered.
    pub register_error: Option<String>,
    /// Buffers in use whose memory is not the pool's ([`DmaPool::adopt`]): what devices lend.
    pub adopted: usize,
}

/// Per-block state.
struct Block {
    refs: Cell<u32>,
    chunk: u16,
    index: u16,
    pool: Cell<*const Pool>,
    /// Set aside: it does not return to the pool.
    kept: Cell<bool>,
    /// Who is charged for it.
    account: Cell<Option<Rc<Account>>>,
    /// Memory that is not the pool's: whom to tell when the last reference goes.
    release: Cell<Option<Release>>,
}

/// A function and its argument.
type Release = (unsafe fn(*mut ()), *mut ());

const FOREIGN: u16 = u16::MAX;

struct Chunk {
    class: u8,
    used: u16,
    free: Vec<u16>,
    blocks: Box<[Block]>,
    huge: bool,
    /// 0: not registered, 1: failed, n + 2: key n.
    key: Cell<u64>,
}

#[derive(Default)]
struct Class {
    /// Chunks of this class with a free block.
    partial: Vec<u16>,
    stats: ClassStats,
}

struct State {
    chunks: Vec<Chunk>,
    classes: [Class; CLASSES.len()],
    huge: bool,
    /// Of blocks for memory that is not the pool's, those not in use, and how many there are.
    foreign: Vec<NonNull<Block>>,
    foreign_all: usize,
}

struct Pool {
    base: NonNull<u8>,
    chunks_max: usize,
    state: RefCell<State>,
    registrar: RefCell<Option<Box<dyn MemRegistrar>>>,
    registered: Cell<usize>,
    register_error: RefCell<Option<String>>,
    /// Buffers that returned, and those of them that are set aside.
    returned: Cell<u64>,
    returned_kept: Cell<u64>,
    /// Foreign blocks live here so that their addresses are stable.
    slabs: UnsafeCell<Vec<Box<[Block]>>>,
}

/// One reactor's DMA memory.
pub struct DmaPool(Rc<Pool>);

impl DmaPool {
    /// Reserves `o.max_bytes` of address space; commits nothing.
    pub(crate) fn new(o: &DmaOptions) -> io::Result<Self> {
        let chunks_max = o.max_bytes.div_ceil(CHUNK).clamp(1, FOREIGN as usize - 1);
        let base = space::reserve(chunks_max)?;
        let mut state = State {
            chunks: Vec::new(),
            classes: Default::default(),
            huge: o.huge,
            foreign: Vec::new(),
            foreign_all: 0,
        };
        for (c, size) in state.classes.iter_mut().zip(CLASSES) {
            c.stats.size = size;
        }
        Ok(DmaPool(Rc::new(Pool {
            base,
            chunks_max,
            state: RefCell::new(state),
            registrar: RefCell::new(None),
            registered: Cell::new(0),
            register_error: RefCell::new(None),
            returned: Cell::new(0),
            returned_kept: Cell::new(0),
            slabs: UnsafeCell::new(Vec::new()),
        })))
    }

    /// A buffer of `len` bytes, 4 KiB-aligned, contents undefined (of earlier users): `None` when the pool is dry or `len`
    /// exceeds 2 MiB. It comes from the smallest class that fits; when that cannot grow any more, from a larger one.
    #[inline]
    pub fn alloc(&self, len: usize) -> Option<DmaBuf> {
        self.alloc_in(class_of(len)?, len)
    }

    /// As [`alloc`](Self::alloc), at the expense of `account`.
    ///
    /// # Errors
    /// What there is not enough of.
    #[inline]
    pub fn alloc_for(&self, len: usize, account: &Rc<Account>) -> Result<DmaBuf, Shortage> {
        let class = class_of(len).ok_or(Shortage::Pool)?;
        if !account.allows(CLASSES[class]) {
            return Err(Shortage::Account);
        }
        let buf = self.alloc_in(class, len).ok_or(Shortage::Pool)?;
        let block = buf.block();
        let got = self.0.state.borrow().chunks[block.chunk as usize].class; // a larger one may stand in
        account.add(CLASSES[got as usize]);
        block.account.set(Some(account.clone()));
        Ok(buf)
    }

    fn alloc_in(&self, class: usize, len: usize) -> Option<DmaBuf> {
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        let at = match state.classes[class].partial.last() {
            Some(&c) => Some(c),
            None => self.0.refill(state, class),
        };
        let Some(at) = at else {
            state.classes[class].stats.failures += 1;
            return None;
        };
        let chunk = &mut state.chunks[at as usize];
        let index = chunk.free.pop().expect("a partial chunk has a free block");
        chunk.used += 1;
        let class = chunk.class as usize;
        let stats = &mut state.classes[class].stats;
        stats.in_use += 1;
        stats.allocs += 1;
        stats.peak = stats.peak.max(stats.in_use);
        if chunk.free.is_empty() {
            let full = state.classes[class].partial.pop();
            debug_assert_eq!(full, Some(at), "blocks are taken from the last partial chunk");
        }
        let block = &chunk.blocks[index as usize];
        block.refs.set(1);
        block.pool.set(Rc::into_raw(self.0.clone()));
        let offset = at as usize * CHUNK + index as usize * CLASSES[class];
        // SAFETY: the offset lies within the reservation: `at` is a committed chunk, and `index` one of its blocks.
        let ptr = unsafe { self.0.base.add(offset) };
        Some(DmaBuf { ptr, len, block: NonNull::from(block) })
    }

    /// Wraps memory that is not the pool's, so that it can be sent by reference. `release(ctx)` is called on this thread
    /// when the last reference goes.
    ///
    /// # Safety
    /// `ptr..ptr + len` stays readable and in place until `release` is called, and `release` is sound to call once with `ctx`.
    pub unsafe fn adopt(&self, ptr: NonNull<u8>, len: usize, release: unsafe fn(*mut ()), ctx: *mut ()) -> DmaBuf {
        let mut state = self.0.state.borrow_mut();
        if state.foreign.is_empty() {
            let slab: Box<[Block]> = (0..256).map(|_| Block::new(FOREIGN, 0)).collect();
            state.foreign.extend(slab.iter().map(NonNull::from));
            state.foreign_all += slab.len();
            // SAFETY: only this function touches `slabs`, on the pool's one thread, and holds no reference into the vector;
            // the boxes it holds do not move when it grows.
            unsafe { (*self.0.slabs.get()).push(slab) };
        }
        let block = state.foreign.pop().expect("just refilled");
        // SAFETY: the block lives in a slab that lives as long as the pool.
        let b = unsafe { block.as_ref() };
        b.refs.set(1);
        b.release.set(Some((release, ctx)));
        b.pool.set(Rc::into_raw(self.0.clone()));
        DmaBuf { ptr, len, block }
    }

    /// How many buffers have returned, and how many of those that are set aside ([`Reserve`]): while neither changes, who found
    /// nothing finds nothing still.
    #[inline]
    pub fn returned(&self) -> (u64, u64) {
        (self.0.returned.get(), self.0.returned_kept.get())
    }

    /// Bytes that may be committed.
    pub fn limit(&self) -> usize {
        self.0.chunks_max * CHUNK
    }

    /// Counts that somebody waits for a buffer of `len` bytes.
    pub fn note_wait(&self, len: usize) {
        if let Some(class) = class_of(len) {
            self.0.state.borrow_mut().classes[class].stats.waits += 1;
        }
    }

    /// The counters now.
    pub fn stats(&self) -> DmaStats {
        let state = self.0.state.borrow();
        DmaStats {
            classes: state.classes.iter().map(|c| c.stats).collect(),
            committed: state.chunks.len() * CHUNK,
            limit: self.0.chunks_max * CHUNK,
            huge: state.chunks.iter().filter(|c| c.huge).count() * CHUNK,
            registered: self.0.registered.get(),
            register_error: self.0.register_error.borrow().clone(),
            adopted: state.foreign_all - state.foreign.len(),
        }
    }

    /// Installs who makes chunks known to a device. Chunks are registered on the first [`DmaBuf::fixed_index`] of a buffer in them.
    pub fn set_registrar(&self, r: Option<Box<dyn MemRegistrar>>) {
        if let Some(old) = self.0.registrar.replace(r) {
            for (i, c) in self.0.state.borrow().chunks.iter().enumerate() {
                if let Some(key) = c.key.replace(0).checked_sub(2) {
                    old.unregister(self.0.chunk_addr(i), CHUNK, key as u32);
                }
            }
            self.0.registered.set(0);
        }
    }
}

impl Pool {
    fn chunk_addr(&self, i: usize) -> *mut u8 {
        self.base.as_ptr().wrapping_add(i * CHUNK)
    }

    /// Finds a chunk with a free block for `class`: a fresh one, an empty one of another class, or one of a larger class.
    #[cold]
    fn refill(&self, state: &mut State, class: usize) -> Option<u16> {
        let n = state.chunks.len();
        if n < self.chunks_max {
            // The first chunk of a class stays on small pages: most classes never fill one.
            let first = state.classes[class].stats.capacity == 0;
            // SAFETY: the chunk lies in the reservation, and is the first that was not committed.
            if let Ok(huge) = unsafe { space::commit(self.chunk_addr(n), state.huge, !first) } {
                state.chunks.push(Chunk {
                    class: 0,
                    used: 0,
                    free: Vec::new(),
                    blocks: Box::default(),
                    huge,
                    key: Cell::new(0),
                });
                self.cut(state, n as u16, class);
                return Some(n as u16);
            }
        }
        if let Some(i) = state.chunks.iter().position(|c| c.used == 0 && c.class as usize != class) {
            let old = state.chunks[i].class as usize;
            state.classes[old].partial.retain(|&c| c as usize != i);
            state.classes[old].stats.capacity -= CHUNK / CLASSES[old];
            self.cut(state, i as u16, class);
            return Some(i as u16);
        }
        state.classes[class..].iter().find_map(|c| c.partial.last().copied())
    }

    fn cut(&self, state: &mut State, i: u16, class: usize) {
        let n = CHUNK / CLASSES[class];
        let chunk = &mut state.chunks[i as usize];
        chunk.class = class as u8;
        chunk.blocks = (0..n).map(|b| Block::new(i, b as u16)).collect();
        // Popped from the back: low addresses first.
        chunk.free = (0..n as u16).rev().collect();
        state.classes[class].stats.capacity += n;
        state.classes[class].partial.push(i);
    }

    fn free(&self, block: &Block) {
        self.returned.set(self.returned.get() + 1);
        if block.kept.get() {
            self.returned_kept.set(self.returned_kept.get() + 1);
            return;
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if block.chunk == FOREIGN {
            state.foreign.push(NonNull::from(block));
            return;
        }
        let chunk = &mut state.chunks[block.chunk as usize];
        if let Some(a) = block.account.take() {
            a.sub(CLASSES[chunk.class as usize]);
        }
        let class = &mut state.classes[chunk.class as usize];
        if chunk.free.is_empty() {
            class.partial.push(block.chunk);
        }
        chunk.free.push(block.index);
        chunk.used -= 1;
        class.stats.in_use -= 1;
    }

    fn key_of(&self, block: &Block) -> Option<u32> {
        if block.chunk == FOREIGN {
            return None;
        }
        let state = self.state.borrow();
        let chunk = &state.chunks[block.chunk as usize];
        match chunk.key.get() {
            0 => self.register(chunk, block.chunk as usize),
            k => k.checked_sub(2).map(|k| k as u32),
        }
    }

    #[cold]
    fn register(&self, chunk: &Chunk, i: usize) -> Option<u32> {
        let registrar = self.registrar.borrow();
        let r = registrar.as_ref()?;
        if self.register_error.borrow().is_some() {
            chunk.key.set(1);
            return None;
        }
        match r.register(self.chunk_addr(i), CHUNK) {
            Ok(key) => {
                chunk.key.set(key as u64 + 2);
                self.registered.set(self.registered.get() + CHUNK);
                Some(key)
            }
            Err(e) => {
                chunk.key.set(1);
                let why = format!(
                    "{} MiB of DMA memory are registered with the ring, more is refused: {e} (locked-memory limit; `ulimit -l`)",
                    self.registered.get() >> 20
                );
                tracing::info!("{why}");
                *self.register_error.borrow_mut() = Some(why);
                None
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(r) = self.registrar.take() {
            for (i, c) in self.state.borrow().chunks.iter().enumerate() {
                if let Some(key) = c.key.replace(0).checked_sub(2) {
                    r.unregister(self.chunk_addr(i), CHUNK, key as u32);
                }
            }
        }
        // SAFETY: what `new` reserved, once. Every buffer holds a reference to the pool, so none is left.
        unsafe { space::give_back(self.base, self.chunks_max) };
    }
}

impl Block {
    fn new(chunk: u16, index: u16) -> Self {
        Block {
            refs: Cell::new(0),
            chunk,
            index,
            pool: Cell::new(std::ptr::null()),
            kept: Cell::new(false),
            account: Cell::new(None),
            release: Cell::new(None),
        }
    }
}

/// The smallest class that holds `len` bytes.
#[inline]
fn class_of(len: usize) -> Option<usize> {
    CLASSES.iter().position(|&c| c >= len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(chunks: usize) -> DmaPool {
        DmaPool::new(&DmaOptions { max_bytes: chunks * CHUNK, huge: false, register: false }).unwrap()
    }

    #[test]
    fn buffers_are_aligned_disjoint_and_writable() {
        let p = pool(8);
        let mut bufs: Vec<DmaBuf> = [1, 4096, 4097, 135_168, 2 << 20].map(|n| p.alloc(n).unwrap()).into();
        for (i, b) in bufs.iter_mut().enumerate() {
            assert_eq!(b.as_ptr() as usize % 4096, 0);
            b.get_mut().unwrap().fill(i as u8);
        }
        for (i, b) in bufs.iter().enumerate() {
            assert!(b.as_slice().iter().all(|&x| x == i as u8));
        }
        assert!(p.alloc((2 << 20) + 1).is_none());
        assert_eq!(p.stats().classes[6].in_use, 1);
    }

    #[test]
    fn a_slice_keeps_the_memory_and_denies_writing() {
        let p = pool(1);
        let mut b = p.alloc(8192).unwrap();
        let mut s = b.slice(4096, 100);
        assert!(b.get_mut().is_none() && s.get_mut().is_none());
        drop(b);
        s.get_mut().unwrap()[0] = 1;
        assert_eq!(p.stats().classes[1].in_use, 1);
        drop(s);
        assert_eq!(p.stats().classes[1].in_use, 0);
    }

    #[test]
    fn a_dry_pool_says_none_and_serves_again_when_a_buffer_returns() {
        let p = pool(1);
        let all: Vec<_> = std::iter::from_fn(|| p.alloc(4096)).collect();
        assert_eq!(all.len(), 512);
        assert_eq!(p.stats().classes[0].failures, 1);
        drop(all);
        assert!(p.alloc(4096).is_some());
        assert_eq!(p.stats().classes[0].peak, 512);
    }

    #[test]
    fn empty_chunks_of_one_class_serve_another_when_the_limit_is_reached() {
        let p = pool(2);
        let small = p.alloc(4096).unwrap();
        drop(p.alloc(4096));
        let large = p.alloc(1 << 20).unwrap();
        drop(small);
        let larger = p.alloc(2 << 20).expect("the chunk of the small class is empty");
        assert!(p.alloc(4096).is_some(), "from the megabyte class, which has a block left");
        drop((large, larger));
    }

    #[test]
    fn an_account_is_charged_until_the_last_reference_goes_and_never_holds_more_than_it_may() {
        let p = pool(2);
        let (a, b) = (Rc::new(Account::new(3 << 17)), Rc::new(Account::new(usize::MAX)));
        let mut bufs: Vec<_> = (0..3).map(|_| p.alloc_for(100_000, &a).unwrap()).collect();
        assert_eq!(a.held(), 3 << 17);
        assert_eq!(p.alloc_for(1, &a).unwrap_err(), Shortage::Account);
        let tail = bufs[0].slice(0, 1);
        bufs.remove(0);
        assert_eq!(a.held(), 3 << 17, "a part of it is still in use");
        drop(tail);
        assert_eq!(a.held(), 2 << 17);
        // What is left is another's, whatever the first one does.
        let rest: Vec<_> = std::iter::from_fn(|| p.alloc_for(2 << 20, &b).ok()).collect();
        assert_eq!((rest.len(), p.alloc_for(2 << 20, &b).unwrap_err()), (1, Shortage::Pool));
        drop((bufs, rest));
        assert_eq!((a.held(), b.held()), (0, 0));
    }

    #[test]
    fn a_larger_buffer_that_stands_in_is_charged_as_what_it_is() {
        let p = pool(1);
        let a = Rc::new(Account::new(usize::MAX));
        let large = p.alloc(1 << 20).unwrap();
        let small = p.alloc_for(4096, &a).unwrap();
        assert_eq!(a.held(), 1 << 20);
        drop((large, small));
        assert_eq!(a.held(), 0);
    }

    #[test]
    fn what_is_set_aside_is_there_when_the_pool_is_dry_and_for_one_at_a_time() {
        let p = pool(1);
        let r = p.reserve(128 << 10).unwrap();
        let others: Vec<_> = std::iter::from_fn(|| p.alloc(1)).collect();
        assert!(p.alloc(1).is_none() && !others.is_empty());
        let mut b = r.take(5000).unwrap();
        assert!(r.take(1).is_none() && b.get_mut().is_some_and(|b| b.len() == 5000));
        let before = p.returned();
        drop(b);
        assert_eq!(p.returned(), (before.0 + 1, before.1 + 1));
        assert!(r.take((128 << 10) + 1).is_none());
        assert!(p.alloc(1).is_none(), "it does not return to the pool");
        let last = r.take(1).unwrap();
        drop(r);
        assert!(p.alloc(1).is_none(), "somebody has it still");
        drop(last);
        assert!(p.alloc(128 << 10).is_some(), "it is the pool's again");
    }

    #[test]
    fn what_was_set_aside_and_is_given_up_in_use_is_charged_until_its_user_drops_it() {
        let (p, a) = (pool(1), Rc::new(Account::new(0)));
        p.reserve(128 << 10).unwrap().give_up(&a);
        assert_eq!((a.held(), in_use(&p)), (0, 0), "nobody had it");
        let r = p.reserve(100_000).unwrap();
        let mut buf = r.take(50_000).unwrap();
        r.give_up(&a);
        assert_eq!((a.held(), in_use(&p)), (128 << 10, 1));
        buf.get_mut().unwrap().fill(7);
        let part = buf.slice(0, 10);
        drop(buf);
        assert_eq!((part.as_slice(), a.held(), in_use(&p)), (&[7; 10][..], 128 << 10, 1), "a part of it is in use");
        drop(part);
        assert_eq!((a.held(), in_use(&p)), (0, 0));
    }

    fn in_use(p: &DmaPool) -> usize {
        p.stats().classes.iter().map(|c| c.in_use).sum()
    }

    #[test]
    fn a_buffer_outlives_the_pool_handle() {
        let p = pool(1);
        let b = p.alloc(4096).unwrap();
        drop(p);
        assert_eq!(b.clone().len(), 4096);
    }

    #[test]
    fn adopted_memory_is_released_with_its_last_reference() {
        unsafe fn release(ctx: *mut ()) {
            // SAFETY: the test passes a live Cell.
            unsafe { (*ctx.cast::<Cell<u32>>()).update(|n| n + 1) };
        }
        let p = pool(1);
        let (data, count) = ([7u8; 64], Cell::new(0));
        // SAFETY: `data` and `count` outlive the buffers made here.
        let b = unsafe { p.adopt(NonNull::from(&data).cast(), 64, release, (&raw const count).cast_mut().cast()) };
        let c = b.slice(1, 2);
        drop(b);
        assert_eq!((count.get(), c.as_slice(), p.stats().adopted), (0, &[7, 7][..], 1));
        drop(c);
        assert_eq!((count.get(), p.stats().adopted), (1, 0));
    }

    struct Limited(Rc<Cell<u32>>);

    impl MemRegistrar for Limited {
        fn register(&self, _: *mut u8, _: usize) -> io::Result<u32> {
            match self.0.get() {
                2 => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
                n => {
                    self.0.set(n + 1);
                    Ok(n)
                }
            }
        }

        fn unregister(&self, _: *mut u8, _: usize, _: u32) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[test]
    fn registration_takes_what_the_limit_allows_and_says_why_it_stopped() {
        let p = pool(4);
        let n = Rc::new(Cell::new(0));
        p.set_registrar(Some(Box::new(Limited(n.clone()))));
        let bufs: Vec<_> = (0..4).map(|_| p.alloc(2 << 20).unwrap()).collect();
        let keys: Vec<_> = bufs.iter().map(|b| b.fixed_index()).collect();
        assert_eq!(keys, [Some(0), Some(1), None, None]);
        let s = p.stats();
        assert_eq!(s.registered, 2 * CHUNK);
        assert!(s.register_error.unwrap().contains("4 MiB"));
        p.set_registrar(None);
        assert_eq!(n.get(), 0);
    }
}
