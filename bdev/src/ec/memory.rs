//! Memory that a transaction or a read holds, and lends to its children.
//!
//! [`Holdings`] owns everything that children may point to: the host's requests, staging buffers, and the vectors themselves. Nothing
//! of it can be changed or given back while a child is out: the functions that would do so assert it. A child that hangs on a failed
//! member keeps the host's request here until it has ended.
#![allow(unsafe_code)]

use longshore_reactor::DmaBuf;

use crate::core::CoreState;
use crate::io::{IoFlags, IoRef, IoVec, Op};

/// Bytes of the zeroes that vectors may point to.
pub(super) const ZEROES: usize = 64 << 10;

/// Most sources or results of one computation.
const MOST: usize = super::layout::MAX_MEMBERS;

/// A vector of pieces of memory: of host requests, staging buffers or zeroes, all held by the same [`Holdings`].
pub(super) type VecId = usize;

/// See the module.
pub(super) struct Holdings {
    hosts: Vec<IoRef>,
    bufs: Vec<Option<DmaBuf>>,
    vecs: Vec<Vec<IoVec>>,
    zeroes: DmaBuf,
    /// Child requests at hand.
    idle: Vec<IoRef>,
    /// Children out, and the vectors that they use.
    out: u32,
    lent: u128,
}

impl Holdings {
    /// Room for so many buffers and vectors.
    pub(super) fn new(bufs: usize, vecs: usize, zeroes: DmaBuf) -> Holdings {
        assert!(vecs <= 128, "the mask of lent vectors has 128 bits");
        Holdings {
            hosts: Vec::new(),
            bufs: (0..bufs).map(|_| None).collect(),
            vecs: (0..vecs).map(|_| Vec::new()).collect(),
            zeroes,
            idle: Vec::new(),
            out: 0,
            lent: 0,
        }
    }

    fn settled(&self) {
        assert_eq!(self.out, 0, "memory of requests in flight must stay as it is");
    }

    /// Takes over a host's request.
    pub(super) fn hold(&mut self, io: IoRef) {
        // Vectors point to what requests describe, not into this list: it may grow at any time.
        self.hosts.push(io);
    }

    /// The host's requests, in order.
    pub(super) fn hosts(&self) -> &[IoRef] {
        &self.hosts
    }

    /// Gives back the host's requests, in order, and forgets what pointed to them.
    pub(super) fn drain_hosts(&mut self) -> impl Iterator<Item = IoRef> + '_ {
        self.settled();
        self.vecs.iter_mut().for_each(Vec::clear);
        self.hosts.drain(..)
    }

    /// Gets `children` requests to send below and buffers of the given sizes, or nothing at all.
    pub(super) fn reserve(
        &mut self,
        core: &CoreState,
        children: usize,
        bufs: impl Iterator<Item = (usize, usize)>,
    ) -> bool {
        self.settled();
        let nest = self.hosts.first().map_or(0, |h| h.io().nest);
        while self.idle.len() < children {
            let Some(mut io) = core.get_child(nest) else {
                self.give_back();
                return false;
            };
            io.io_mut().nest = nest + 1;
            self.idle.push(io);
        }
        for (id, len) in bufs {
            if len == 0 || self.bufs[id].as_ref().is_some_and(|b| b.len() >= len) {
                continue;
            }
            match core.reactor().dma().alloc(len) {
                Some(b) => self.bufs[id] = Some(b),
                None => {
                    core.reactor().dma().note_wait(len);
                    self.give_back();
                    return false;
                }
            }
        }
        true
    }

    /// Gives child requests and buffers back to their pools. The host's requests stay.
    pub(super) fn give_back(&mut self) {
        self.settled();
        self.idle.drain(..).for_each(IoRef::release);
        self.bufs.iter_mut().for_each(|b| *b = None);
        self.vecs.iter_mut().for_each(Vec::clear);
    }

    /// Empties a vector.
    pub(super) fn clear(&mut self, v: VecId) {
        assert_eq!(self.lent >> v & 1, 0, "a vector in use must stay as it is");
        self.vecs[v].clear();
    }

    fn push(&mut self, v: VecId, base: *mut u8, len: usize) {
        assert_eq!(self.lent >> v & 1, 0, "a vector in use must stay as it is");
        if len == 0 {
            return;
        }
        self.vecs[v].push(IoVec { iov_base: base.cast(), iov_len: len });
    }

    /// Appends bytes `off..off + len` of the memory of host request `host` to a vector. False: it has not so much.
    pub(super) fn push_host(&mut self, v: VecId, host: usize, off: usize, len: usize) -> bool {
        let (mut skip, mut left) = (off, len);
        for i in 0..self.hosts[host].iov().len() {
            let piece = self.hosts[host].iov()[i];
            if left == 0 {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let take = (piece.iov_len - skip).min(left);
            self.push(v, (piece.iov_base as *mut u8).wrapping_add(skip), take);
            skip = 0;
            left -= take;
        }
        left == 0
    }

    /// Appends bytes `off..off + len` of a buffer to a vector.
    pub(super) fn push_buf(&mut self, v: VecId, buf: usize, off: usize, len: usize) {
        let b = self.bufs[buf].as_ref().expect("a reserved buffer");
        assert!(off + len <= b.len(), "{off}+{len} of a buffer of {} bytes", b.len());
        let base = b.as_ptr().wrapping_add(off);
        self.push(v, base, len);
    }

    /// Appends `len` zeroes to a vector.
    pub(super) fn push_zeroes(&mut self, v: VecId, mut len: usize) {
        let base = self.zeroes.as_ptr();
        while len > 0 {
            let n = len.min(ZEROES);
            self.push(v, base, n);
            len -= n;
        }
    }

    /// Appends vector `from` to vector `to`.
    pub(super) fn push_vec(&mut self, to: VecId, from: VecId) {
        for i in 0..self.vecs[from].len() {
            let piece = self.vecs[from][i];
            self.push(to, piece.iov_base.cast(), piece.iov_len);
        }
    }

    /// Pieces of a vector.
    pub(super) fn pieces(&self, v: VecId) -> impl Iterator<Item = &[u8]> {
        self.vecs[v].iter().map(|p| {
            // SAFETY: pieces are of requests, buffers and zeroes held here, which stay until the vectors are cleared
            // (`drain_hosts`, `give_back`). Who writes to them: a child that reads into them, which is not out when its memory is
            // looked at (callers wait for their reads), or `buf_mut` and `combine`, which borrow this mutably.
            unsafe { std::slice::from_raw_parts(p.iov_base as *const u8, p.iov_len) }
        })
    }

    /// A buffer's bytes, to write.
    pub(super) fn buf_mut(&mut self, buf: usize) -> &mut [u8] {
        self.settled();
        self.bufs[buf].as_mut().expect("a reserved buffer").get_mut().expect("staging buffers are not shared")
    }

    /// Copies bytes of host request `host` to a buffer. False: the request has not so much.
    pub(super) fn copy_from_host(&mut self, host: usize, from: usize, buf: usize, to: usize, len: usize) -> bool {
        self.settled();
        let b = self.bufs[buf].as_mut().expect("a reserved buffer").get_mut().expect("staging buffers are not shared");
        let (mut skip, mut done) = (from, 0);
        for seg in self.hosts[host].segments() {
            if skip >= seg.len() {
                skip -= seg.len();
                continue;
            }
            let n = (seg.len() - skip).min(len - done);
            b[to + done..to + done + n].copy_from_slice(&seg[skip..skip + n]);
            done += n;
            skip = 0;
            if done == len {
                break;
            }
        }
        done == len
    }

    /// Copies bytes of a buffer, or zeroes, to host request `host`. Children may be out that read other parts of its memory.
    pub(super) fn copy_to_host(&mut self, host: usize, to: usize, len: usize, buf: Option<(usize, usize)>) {
        let src = buf.map(|(id, off)| {
            let b = self.bufs[id].as_ref().expect("a reserved buffer");
            &b.as_slice()[off..off + len]
        });
        let (mut skip, mut done) = (to, 0);
        for v in self.hosts[host].iov() {
            if skip >= v.iov_len {
                skip -= v.iov_len;
                continue;
            }
            let n = (v.iov_len - skip).min(len - done);
            let base = (v.iov_base as *mut u8).wrapping_add(skip);
            // SAFETY: memory of a request held here, `n` bytes of one of its pieces. Children that are out have other parts of it:
            // a read lends each byte to one child at most, and calls this for bytes that it has lent to none.
            let dst = unsafe { std::slice::from_raw_parts_mut(base, n) };
            match src {
                Some(s) => dst.copy_from_slice(&s[done..done + n]),
                None => dst.fill(0),
            }
            done += n;
            skip = 0;
            if done == len {
                break;
            }
        }
    }

    /// XORs a vector into a buffer from byte `at` on.
    pub(super) fn xor_into(&mut self, buf: usize, at: usize, v: VecId) {
        let total: usize = self.vecs[v].iter().map(|p| p.iov_len).sum();
        self.combine(&[v], &[(buf, at)], total, |src, dst| longshore_accel::erasure::xor_into(dst[0], src[0]));
    }

    /// Calls `f` with pieces of the vectors `sources` and the buffers `results`, each from the byte given on: pieces of the same
    /// length, one after the other, `len` bytes in all.
    ///
    /// # Panics
    /// If a source is shorter, or is memory of a result.
    pub(super) fn combine(
        &mut self,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
        mut f: impl FnMut(&[&[u8]], &mut [&mut [u8]]),
    ) {
        self.settled();
        let mut ends = [std::ptr::null_mut::<u8>(); MOST];
        for (i, &(id, off)) in results.iter().enumerate() {
            let b = self.bufs[id].as_ref().expect("a reserved buffer");
            assert!(off + len <= b.len() && b.is_unique(), "{off}+{len} of a buffer of {} bytes", b.len());
            assert!(results[..i].iter().all(|r| r.0 != id), "a result is written once");
            let apart = |p: &IoVec| {
                let (a, s) = (p.iov_base as usize, b.as_ptr() as usize);
                a + p.iov_len <= s || s + b.len() <= a
            };
            assert!(sources.iter().all(|&v| self.vecs[v].iter().all(apart)), "a result is no source");
            ends[i] = b.as_ptr().wrapping_add(off);
        }
        let mut at = [(0usize, 0usize); MOST];
        let mut done = 0;
        while done < len {
            let mut n = len - done;
            for (&v, &(piece, off)) in sources.iter().zip(&at) {
                n = n.min(self.vecs[v].get(piece).expect("a source is long enough").iov_len - off);
            }
            let mut src: [&[u8]; MOST] = [&[]; MOST];
            for (i, &v) in sources.iter().enumerate() {
                let (piece, off) = at[i];
                let p = &self.vecs[v][piece];
                // SAFETY: as in `pieces`; `n` bytes are left in this piece. No child is out, so nobody writes to it, and results
                // are apart from it, as was asserted.
                src[i] = unsafe { std::slice::from_raw_parts((p.iov_base as *const u8).wrapping_add(off), n) };
                at[i] = if off + n == p.iov_len { (piece + 1, 0) } else { (piece, off + n) };
            }
            let mut dst: [&mut [u8]; MOST] = std::array::from_fn(|_| &mut [][..]);
            for (d, end) in dst.iter_mut().zip(&ends[..results.len()]) {
                // SAFETY: within a buffer that only this refers to, as was asserted, and each buffer is there once. No child is out.
                *d = unsafe { std::slice::from_raw_parts_mut(end.wrapping_add(done), n) };
            }
            f(&src[..sources.len()], &mut dst[..results.len()]);
            done += n;
        }
    }

    /// A child request over a vector. It must come back by [`land`](Holdings::land).
    pub(super) fn launch(&mut self, v: VecId, op: Op, flags: IoFlags, lba: u64, nblocks: u32) -> IoRef {
        assert_eq!(self.lent >> v & 1, 0, "a vector serves one child at a time");
        let mut io = self.idle.pop().expect("children are reserved before a transaction begins");
        io.prepare(op, flags, lba, nblocks);
        let vec = &self.vecs[v];
        // SAFETY: the vector and what it points to stay as they are until `land`: `lent` forbids to change the vector, `out` to
        // give back or write to the memory. The table of vectors never grows, so the vector does not move; its heap memory would
        // not move either. Other children have other memory, or read the same as this one.
        unsafe { io.set_iov(vec.as_ptr(), vec.len() as u32) };
        self.lent |= 1 << v;
        self.out += 1;
        io
    }

    /// A child request came back.
    pub(super) fn land(&mut self, mut io: IoRef, v: VecId) {
        // SAFETY: no memory at all.
        unsafe { io.set_iov(std::ptr::null(), 0) };
        assert!(self.lent >> v & 1 != 0 && self.out > 0, "a child comes back once");
        self.lent &= !(1 << v);
        self.out -= 1;
        self.idle.push(io);
    }

    /// Children out.
    pub(super) fn out(&self) -> u32 {
        self.out
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        debug_assert!(self.hosts.is_empty(), "requests of hosts are answered before what holds them goes");
        self.idle.drain(..).for_each(IoRef::release);
    }
}
