//! What a pool hands out: reference-counted slices of its blocks.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::rc::Rc;

use super::{Block, FOREIGN};

/// A reference-counted slice of DMA memory, 4 KiB-aligned when it comes from [`DmaPool::alloc`](super::DmaPool::alloc). Not `Send`:
/// it goes back to its own reactor's pool.
pub struct DmaBuf {
    pub(super) ptr: NonNull<u8>,
    pub(super) len: usize,
    pub(super) block: NonNull<Block>,
}

impl DmaBuf {
    #[inline]
    pub(super) fn block(&self) -> &Block {
        // SAFETY: the pool that owns the block is kept alive by the reference this buffer holds.
        unsafe { self.block.as_ref() }
    }

    /// Bytes of this slice.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// A part of it, sharing the memory.
    ///
    /// # Panics
    /// If the part is not within it.
    pub fn slice(&self, off: usize, len: usize) -> DmaBuf {
        assert!(
            off.checked_add(len).is_some_and(|end| end <= self.len),
            "slice {off}+{len} of a DMA buffer of {} bytes",
            self.len
        );
        let mut part = self.clone();
        // SAFETY: the offset is within the buffer, as checked.
        part.ptr = unsafe { self.ptr.add(off) };
        part.len = len;
        part
    }

    /// Its bytes. Not while a device or the kernel writes to them.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory stays mapped while this buffer exists and was zeroed when it was committed; writers through
        // `get_mut` are excluded by the count, and operations that write hold their buffer for themselves.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Its bytes, to write, if nobody else refers to the same memory.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() || self.block().chunk == FOREIGN {
            return None;
        }
        // SAFETY: this is the only reference to the block.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) })
    }

    /// Whether nobody else refers to the same memory.
    #[inline]
    pub fn is_unique(&self) -> bool {
        self.block().refs.get() == 1
    }

    /// Whether this is memory of somebody else, who waits for its return: see [`DmaPool::adopt`](super::DmaPool::adopt).
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.block().chunk == FOREIGN
    }

    /// The registered buffer that holds this memory; registers its chunk on first use. `None`: not registered.
    #[inline]
    pub fn fixed_index(&self) -> Option<u16> {
        let block = self.block();
        // SAFETY: the pool is kept alive by the reference this buffer holds.
        let pool = unsafe { &*block.pool.get() };
        pool.key_of(block).and_then(|k| u16::try_from(k).ok())
    }
}

impl Clone for DmaBuf {
    #[inline]
    fn clone(&self) -> Self {
        let refs = &self.block().refs;
        refs.set(refs.get().checked_add(1).expect("fewer than 2^32 references to a DMA buffer"));
        DmaBuf { ptr: self.ptr, len: self.len, block: self.block }
    }
}

impl Drop for DmaBuf {
    #[inline]
    fn drop(&mut self) {
        let block = self.block();
        let left = block.refs.get() - 1;
        block.refs.set(left);
        if left > 0 {
            return;
        }
        let release = block.release.take();
        // SAFETY: the last reference to the block takes back the reference to the pool that `alloc` or `adopt` made for it.
        let pool = unsafe { Rc::from_raw(block.pool.replace(std::ptr::null())) };
        pool.free(block);
        if let Some((f, ctx)) = release {
            // SAFETY: promised by the caller of `adopt`; called once, because it was taken.
            unsafe { f(ctx) };
        }
    }
}

impl std::fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaBuf").field("ptr", &self.ptr).field("len", &self.len).finish()
    }
}
