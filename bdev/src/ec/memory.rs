//! Memory that a transaction or a read holds, and lends to its children.
//!
//! [`Holdings`] owns everything that children may point to: the host's requests, staging buffers, and the vectors themselves. Nothing
//! of it can be changed or given back while a child is out: the functions that would do so assert it. Children that hang on a failed
//! member can be given up: then the set of buffers and vectors that they use is laid by until they come back, with the host's requests whose
//! memory they use, and the holder goes on with another set.
#![allow(unsafe_code)]

mod set;
mod work;

use std::rc::Rc;

use longshore_accel::Channel as Engines;
use longshore_reactor::DmaBuf;

use self::set::Set;
use self::work::Work;
use super::spare::Spare;
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
    /// The host's requests, by number; those that were taken out are missing.
    hosts: Vec<Option<IoRef>>,
    set: Set,
    /// Sets with children that hang.
    stuck: Vec<Set>,
    zeroes: DmaBuf,
    spare: Rc<Spare>,
    work: Work,
}

impl Holdings {
    /// Room for so many buffers and vectors.
    pub(super) fn new(bufs: usize, vecs: usize, zeroes: DmaBuf, spare: Rc<Spare>) -> Holdings {
        assert!(vecs < 128, "the mask of lent vectors has 128 bits");
        let work = Work::default();
        Holdings { hosts: Vec::new(), set: Set::new(0, bufs, vecs), stuck: Vec::new(), zeroes, spare, work }
    }

    fn settled(&self) {
        assert_eq!(self.set.lent, 0, "memory of requests in flight must stay as it is");
    }

    /// Takes over a host's request. Of 64 at most the memory may be lent.
    pub(super) fn hold(&mut self, io: IoRef) {
        assert!(self.hosts.len() < 64, "the mask of hosts' requests has 64 bits");
        // Vectors point to what requests describe, not into this list: it may grow at any time.
        self.hosts.push(Some(io));
    }

    /// How many of the host's requests are held.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// The host's request of this number, in the order they were taken over. None was taken out so far.
    pub(super) fn host(&self, number: usize) -> &IoRef {
        self.hosts[number].as_ref().expect("a request that is held")
    }

    /// Takes out the host's requests whose memory no child uses, in order, with their numbers. What pointed to them is forgotten.
    pub(super) fn take_hosts(&mut self, mut to: impl FnMut(usize, IoRef)) {
        let mut lent = 0;
        for set in self.stuck.iter_mut().chain([&mut self.set]) {
            set.forget();
            lent |= set.lent_hosts();
        }
        let mut kept = false;
        for (i, host) in self.hosts.iter_mut().enumerate() {
            if lent >> i & 1 != 0 {
                kept = true;
            } else if let Some(io) = host.take() {
                to(i, io);
            }
        }
        if !kept {
            self.hosts.clear();
        }
    }

    fn nest(&self) -> u8 {
        self.hosts.first().and_then(Option::as_ref).map_or(0, |h| h.io().nest)
    }

    /// Gets `children` requests to send below and buffers of the given sizes, or nothing at all.
    pub(super) fn reserve(
        &mut self,
        core: &CoreState,
        children: usize,
        bufs: impl Iterator<Item = (usize, usize)>,
    ) -> bool {
        self.settled();
        let nest = self.nest();
        while self.set.idle.len() < children {
            let Some(mut io) = core.get_child(nest) else {
                self.set.give_back(&self.spare);
                return false;
            };
            io.io_mut().nest = nest + 1;
            self.set.idle.push(io);
        }
        for (id, len) in bufs {
            if len == 0 || self.set.bufs[id].as_ref().is_some_and(|b| b.len() >= len) {
                continue;
            }
            assert!(self.set.spare.is_none(), "{len} bytes do not fit into what is set aside");
            match core.reactor().dma().alloc(len) {
                Some(b) => self.set.bufs[id] = Some(b),
                None => {
                    core.reactor().dma().note_wait(len);
                    self.set.give_back(&self.spare);
                    return false;
                }
            }
        }
        true
    }

    /// Takes what is set aside, for as many rows as it has; [`reserve`](Holdings::reserve) then finds it. False: another one has it.
    pub(super) fn take_spare(&mut self) -> bool {
        self.settled();
        let Some(mut set) = self.spare.take() else { return false };
        self.set.give_back(&self.spare);
        set.count = set.ios.len();
        let nest = self.nest();
        self.set.idle.extend(set.ios.drain(..).map(|mut io| {
            io.io_mut().nest = nest + 1;
            io
        }));
        self.set.bufs.iter_mut().zip(&mut set.bufs).for_each(|(buf, kept)| *buf = kept.take());
        self.set.spare = Some(set);
        true
    }

    /// Gives child requests and buffers back to their pools. The host's requests stay. Nobody waits for children that are out: they
    /// keep what they use until they come back.
    pub(super) fn give_back(&mut self) {
        assert!(!self.is_awaited(), "memory of requests in flight must stay as it is");
        if self.set.lent == 0 {
            return self.set.give_back(&self.spare);
        }
        self.set.forget();
        let mut number = self.set.number.wrapping_add(1);
        while self.stuck.iter().any(|s| s.number == number) {
            number = number.wrapping_add(1);
        }
        let fresh = Set::new(number, self.set.bufs.len(), self.set.vecs.len() - 1);
        self.stuck.push(std::mem::replace(&mut self.set, fresh));
    }

    /// Empties a vector.
    pub(super) fn clear(&mut self, v: VecId) {
        assert_eq!(self.set.lent >> v & 1, 0, "a vector in use must stay as it is");
        self.set.vecs[v].clear();
        self.set.of[v] = 0;
    }

    fn push(&mut self, v: VecId, base: *mut u8, len: usize) {
        assert_eq!(self.set.lent >> v & 1, 0, "a vector in use must stay as it is");
        if len == 0 {
            return;
        }
        self.set.vecs[v].push(IoVec { iov_base: base.cast(), iov_len: len });
    }

    /// Appends bytes `off..off + len` of the memory of host request `host` to a vector. False: it has not so much.
    pub(super) fn push_host(&mut self, v: VecId, host: usize, off: usize, len: usize) -> bool {
        let (mut skip, mut left) = (off, len);
        self.set.of[v] |= 1 << host;
        for i in 0..self.host(host).iov().len() {
            let piece = self.host(host).iov()[i];
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
        let b = self.set.bufs[buf].as_ref().expect("a reserved buffer");
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
        self.set.of[to] |= self.set.of[from];
        for i in 0..self.set.vecs[from].len() {
            let piece = self.set.vecs[from][i];
            self.push(to, piece.iov_base.cast(), piece.iov_len);
        }
    }

    /// Pieces of a vector.
    pub(super) fn pieces(&self, v: VecId) -> impl Iterator<Item = &[u8]> {
        self.set.vecs[v].iter().map(|p| {
            // SAFETY: pieces are of requests, buffers and zeroes held here, which stay until the vectors are cleared
            // (`take_hosts`, `give_back`). Who writes to them: a child that reads into them, which is not out when its memory is
            // looked at (callers wait for their reads), or `buf_mut` and `combine`, which borrow this mutably.
            unsafe { std::slice::from_raw_parts(p.iov_base as *const u8, p.iov_len) }
        })
    }

    /// A buffer's bytes, to write.
    pub(super) fn buf_mut(&mut self, buf: usize) -> &mut [u8] {
        self.settled();
        self.set.bufs[buf].as_mut().expect("a reserved buffer").get_mut().expect("staging buffers are not shared")
    }

    /// Copies bytes of host request `host` to a buffer. False: the request has not so much.
    pub(super) fn copy_from_host(&mut self, host: usize, from: usize, buf: usize, to: usize, len: usize) -> bool {
        self.settled();
        let b =
            self.set.bufs[buf].as_mut().expect("a reserved buffer").get_mut().expect("staging buffers are not shared");
        let (mut skip, mut done) = (from, 0);
        for seg in self.hosts[host].as_ref().expect("a request that is held").segments() {
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
            let b = self.set.bufs[id].as_ref().expect("a reserved buffer");
            &b.as_slice()[off..off + len]
        });
        let (mut skip, mut done) = (to, 0);
        for v in self.host(host).iov() {
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
    pub(super) fn xor_into(&mut self, accel: &Engines, buf: usize, at: usize, v: VecId) {
        let total: usize = self.set.vecs[v].iter().map(|p| p.iov_len).sum();
        self.combine(&[v], &[(buf, at)], total, |src, dst| {
            accel.xor([&mut *dst[0]], [src[0]]);
        });
    }

    /// Where `len` bytes of a result begin, at `off` of buffer `id`.
    ///
    /// # Panics
    /// If it is shorter, others have it, too, or it is memory of a source.
    #[inline]
    fn result(&self, sources: &[VecId], id: usize, off: usize, len: usize) -> *mut u8 {
        let b = self.set.bufs[id].as_ref().expect("a reserved buffer");
        assert!(off + len <= b.len() && b.is_unique(), "{off}+{len} of a buffer of {} bytes", b.len());
        let apart = |p: &IoVec| {
            let (a, s) = (p.iov_base as usize, b.as_ptr() as usize);
            a + p.iov_len <= s || s + b.len() <= a
        };
        assert!(sources.iter().all(|&v| self.set.vecs[v].iter().all(apart)), "a result is no source");
        b.as_ptr().wrapping_add(off)
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
            assert!(results[..i].iter().all(|r| r.0 != id), "a result is written once");
            ends[i] = self.result(sources, id, off, len);
        }
        let mut at = [(0usize, 0usize); MOST];
        let mut done = 0;
        while done < len {
            let mut n = len - done;
            for (&v, &(piece, off)) in sources.iter().zip(&at) {
                n = n.min(self.set.vecs[v].get(piece).expect("a source is long enough").iov_len - off);
            }
            let mut src: [&[u8]; MOST] = [&[]; MOST];
            for (i, &v) in sources.iter().enumerate() {
                let (piece, off) = at[i];
                let p = &self.set.vecs[v][piece];
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

    /// A child request over a vector, and the mark of its set. It must come back by [`land`](Holdings::land).
    pub(super) fn launch(&mut self, v: VecId, op: Op, flags: IoFlags, lba: u64, nblocks: u32) -> (IoRef, u32) {
        let set = &mut self.set;
        assert_eq!(set.lent >> v & 1, 0, "a vector serves one child at a time");
        let mut io = set.idle.pop().expect("children are reserved before a transaction begins");
        io.prepare(op, flags, lba, nblocks);
        let vec = &set.vecs[v];
        // SAFETY: the vector and what it points to stay as they are until `land`: `lent` forbids to change the vector and to give back or
        // write to the set's memory; the host's requests that it points to, named by `of`, are not taken out. Sets that are stuck keep
        // all of that. The heap memory of a vector does not move with its set. Other children have other memory, or read the same as
        // this one.
        unsafe { io.set_iov(vec.as_ptr(), vec.len() as u32) };
        set.lent |= 1 << v;
        (io, u32::from(set.number) << 16)
    }

    /// A child request of the set of `mark` came back. False: nobody waited for it.
    pub(super) fn land(&mut self, mut io: IoRef, v: VecId, mark: u32) -> bool {
        // SAFETY: no memory at all.
        unsafe { io.set_iov(std::ptr::null(), 0) };
        let number = (mark >> 16) as u16;
        let at = self.stuck.iter().position(|s| s.number == number);
        let set =
            if self.set.number == number { &mut self.set } else { &mut self.stuck[at.expect("a set of this number")] };
        assert!(set.lent >> v & 1 != 0, "a child comes back once");
        let awaited = set.given_up >> v & 1 == 0;
        set.lent &= !(1 << v);
        set.given_up &= !(1 << v);
        set.idle.push(io);
        if let (0, Some(at)) = (set.lent, at) {
            self.stuck.swap_remove(at).give_back(&self.spare);
        }
        awaited
    }

    /// The child that uses vector `v` hangs: nobody waits for it any more. False: nobody does.
    pub(super) fn give_up(&mut self, v: VecId) -> bool {
        let awaited = (self.set.lent & !self.set.given_up) >> v & 1 != 0;
        self.set.given_up |= u128::from(awaited) << v;
        awaited
    }

    /// True if children are out that are waited for.
    pub(super) fn is_awaited(&self) -> bool {
        self.set.lent & !self.set.given_up != 0
    }

    /// True if children are out, waited for or not.
    pub(super) fn is_lent(&self) -> bool {
        self.set.lent != 0 || !self.stuck.is_empty()
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        debug_assert!(self.hosts.is_empty(), "requests of hosts are answered before what holds them goes");
        self.set.give_back(&self.spare);
    }
}
