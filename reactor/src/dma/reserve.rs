//! Buffers that are set aside: a promise that can always be kept.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::rc::Rc;

use super::{Account, Block, CLASSES, DmaBuf, DmaPool, Pool};

/// One buffer set aside. It is had again and again, by one user at a time, whatever becomes of the rest of the pool.
pub struct Reserve {
    pool: Rc<Pool>,
    block: NonNull<Block>,
    ptr: NonNull<u8>,
    len: usize,
}

impl DmaPool {
    /// Sets a buffer of `len` bytes aside. `None`: the pool is dry.
    pub fn reserve(&self, len: usize) -> Option<Reserve> {
        let buf = self.alloc(len)?;
        buf.block().kept.set(true);
        // Dropping the buffer leaves its block with the reserve.
        Some(Reserve { pool: self.0.clone(), block: buf.block, ptr: buf.ptr, len })
    }
}

impl Reserve {
    fn block(&self) -> &Block {
        // SAFETY: blocks of a chunk live until the chunk is cut anew, which needs all of them free; this one is kept.
        unsafe { self.block.as_ref() }
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// The buffer, or the first `len` bytes of it, unless somebody has it or it is shorter.
    #[inline]
    pub fn take(&self, len: usize) -> Option<DmaBuf> {
        let block = self.block();
        if len > self.len || block.refs.get() != 0 {
            return None;
        }
        block.refs.set(1);
        block.pool.set(Rc::into_raw(self.pool.clone()));
        Some(DmaBuf { ptr: self.ptr, len, block: self.block })
    }

    /// Gives it up. Who has the buffer keeps it, from now on at the expense of `account`, whatever that may hold, and the last reference
    /// returns it to the pool.
    pub fn give_up(self, account: &Rc<Account>) {
        let block = self.block();
        if !self.is_free() {
            let class = self.pool.state.borrow().chunks[block.chunk as usize].class;
            account.add(CLASSES[class as usize]);
            block.account.set(Some(account.clone()));
        }
    }

    /// Whether nobody has it.
    #[inline]
    pub fn is_free(&self) -> bool {
        self.block().refs.get() == 0
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.block().kept.set(false);
        if self.is_free() {
            self.pool.free(self.block());
        } // else the last reference to the buffer frees it
    }
}

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve").field("len", &self.len).field("free", &self.is_free()).finish()
    }
}
