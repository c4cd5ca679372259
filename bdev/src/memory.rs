//! The memory that a request describes: its buffers, its vector, and its metadata.
#![allow(unsafe_code)]

use longshore_reactor::DmaBuf;

use crate::io::{IoId, IoRef, IoVec};

/// Buffer 0 of a request while another one stands in for it: see [`IoRef::set_aside`].
pub(crate) struct SetAside {
    of: IoId,
    iov: *const IoVec,
    iovcnt: u32,
    inline: IoVec,
    owned: bool,
    owner: Option<DmaBuf>,
}

impl IoRef {
    /// Gives the request its buffer: it owns it until [`take_buf`](IoRef::take_buf) or release.
    #[inline]
    pub fn set_buf(&mut self, buf: DmaBuf) {
        let iov = IoVec { iov_base: buf.as_ptr() as *mut _, iov_len: buf.len() };
        let io = self.io_mut();
        io.inline[0] = iov;
        io.iov = io.inline.as_ptr();
        io.iovcnt = 1;
        io.owned = true;
        io.owners[0] = Some(buf);
    }

    /// Gives a compare-and-write its two buffers: what is expected, and what is written.
    #[inline]
    pub fn set_buf_pair(&mut self, expected: DmaBuf, new: DmaBuf) {
        self.set_buf(expected);
        let iov = IoVec { iov_base: new.as_ptr() as *mut _, iov_len: new.len() };
        let io = self.io_mut();
        io.inline[1] = iov;
        io.owners[1] = Some(new);
    }

    /// Takes back buffer 0 after completion.
    #[inline]
    pub fn take_buf(&mut self) -> Option<DmaBuf> {
        let io = self.io_mut();
        io.iovcnt = 0;
        io.iov = std::ptr::null();
        io.owners[0].take()
    }

    /// Takes back buffer 1 (what a compare-and-write wrote).
    #[inline]
    pub fn take_buf1(&mut self) -> Option<DmaBuf> {
        let io = self.io_mut();
        io.inline[1].iov_len = 0;
        io.owners[1].take()
    }

    /// As [`set_buf`](IoRef::set_buf), described as pieces of these lengths. The vector is leaked.
    #[cfg(test)]
    pub(crate) fn set_buf_in_pieces(&mut self, buf: DmaBuf, lens: &[usize]) {
        assert_eq!(lens.iter().sum::<usize>(), buf.len());
        let mut at = buf.as_ptr();
        let piece = |len: &usize| {
            let piece = IoVec { iov_base: at.cast(), iov_len: *len };
            at = at.wrapping_add(*len);
            piece
        };
        let iov: &'static [IoVec] = lens.iter().map(piece).collect::<Vec<_>>().leak();
        self.set_buf(buf);
        let io = self.io_mut();
        io.iov = iov.as_ptr();
        io.iovcnt = iov.len() as u32;
    }

    /// Lets `buf` stand in for buffer 0, for the devices below, until [`restore`](IoRef::restore).
    #[inline]
    pub(crate) fn set_aside(&mut self, buf: DmaBuf) -> SetAside {
        let of = self.id();
        let io = self.io_mut();
        let (iov, iovcnt, inline, owned) = (io.iov, io.iovcnt, io.inline[0], io.owned);
        let owner = if owned { io.owners[0].take() } else { None };
        self.set_buf(buf);
        SetAside { of, iov, iovcnt, inline, owned, owner }
    }

    /// Ends what [`set_aside`](IoRef::set_aside) began on the same request: the buffer that stood in goes.
    #[inline]
    pub(crate) fn restore(&mut self, kept: SetAside) {
        // What the vector points to lives as long as this use of the request.
        assert_eq!(self.id(), kept.of, "memory of another request");
        let io = self.io_mut();
        io.iov = kept.iov;
        io.iovcnt = kept.iovcnt;
        io.inline[0] = kept.inline;
        io.owners[0] = kept.owner;
        io.owned = kept.owned;
    }

    /// The buffer that the request owns, if its memory is one.
    #[inline]
    pub fn buf(&self) -> Option<&DmaBuf> {
        self.io().owners[0].as_ref()
    }

    /// Points the request at memory that the caller keeps alive.
    ///
    /// # Safety
    /// `iov[..cnt]` and every piece of memory it names stay valid, and are used by nobody else, until the request is released or
    /// gets other buffers.
    #[inline]
    pub unsafe fn set_iov(&mut self, iov: *const IoVec, cnt: u32) {
        let io = self.io_mut();
        io.iov = iov;
        io.iovcnt = cnt;
    }

    /// Points the request at a single piece of memory that the caller keeps alive, with inline storage for the vector.
    ///
    /// # Safety
    /// As [`set_iov`](IoRef::set_iov).
    #[inline]
    pub unsafe fn set_raw(&mut self, base: *mut u8, len: usize) {
        let io = self.io_mut();
        io.inline[0] = IoVec { iov_base: base.cast(), iov_len: len };
        io.iov = io.inline.as_ptr();
        io.iovcnt = 1;
    }

    /// Points the request at separate metadata memory.
    ///
    /// # Safety
    /// As [`set_iov`](IoRef::set_iov), for `len` bytes at `md`.
    pub unsafe fn set_metadata(&mut self, md: *mut u8, len: u16) {
        let io = self.io_mut();
        io.md = md;
        io.md_len = len;
    }

    /// The vector of the request, for engines that hand it to the kernel. Valid while the request is owned.
    #[inline]
    pub fn iov(&self) -> &[IoVec] {
        let io = self.io();
        if io.iovcnt == 0 {
            return &[];
        }
        // SAFETY: the setters guarantee `iovcnt` valid entries for as long as the request has these buffers.
        unsafe { std::slice::from_raw_parts(io.iov, io.iovcnt as usize) }
    }

    /// Bytes of buffer 0, over all pieces.
    #[inline]
    pub fn buf_len(&self) -> usize {
        self.iov().iter().map(|v| v.iov_len).sum()
    }

    /// The pieces of buffer 0, to read from.
    #[inline]
    pub fn segments<'a>(&'a self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.iov().iter().map(|v| {
            // SAFETY: the setters guarantee that the memory is valid and that only the request's holder uses it.
            unsafe { std::slice::from_raw_parts(v.iov_base as *const u8, v.iov_len) }
        })
    }

    /// The pieces of buffer 0, to write to.
    #[inline]
    pub fn segments_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.iov().iter().map(|v| {
            // SAFETY: as in `segments`, and `&mut self` makes the access unique; pieces of one vector do not overlap.
            unsafe { std::slice::from_raw_parts_mut(v.iov_base as *mut u8, v.iov_len) }
        })
    }

    /// The pieces of buffer 0 and the separate metadata, to write to.
    pub(crate) fn memory_mut(&mut self) -> (impl Iterator<Item = &mut [u8]>, Option<&mut [u8]>) {
        let io = self.io();
        let (md, len) = (io.md, usize::from(io.md_len));
        // SAFETY: as in `metadata_mut`; metadata is separate from the data, so the two do not alias.
        let md = (!md.is_null()).then(|| unsafe { std::slice::from_raw_parts_mut(md, len) });
        (self.segments_mut(), md)
    }

    /// What a compare-and-write writes.
    #[inline]
    pub fn second_segment(&self) -> &[u8] {
        let v = &self.io().inline[1];
        if v.iov_len == 0 || v.iov_base.is_null() {
            return &[];
        }
        // SAFETY: set together with its owner by `set_buf_pair`, cleared by `take_buf1`.
        unsafe { std::slice::from_raw_parts(v.iov_base as *const u8, v.iov_len) }
    }

    /// Points this request at bytes `[off, off + len)` of the memory of `from`. False if it does not have so much. More than
    /// two pieces go to `spill`.
    ///
    /// # Safety
    /// `from` keeps its memory, and `spill` stays as it is, until this request is released or gets other buffers; nobody else
    /// uses that part of the memory meanwhile.
    pub(crate) unsafe fn share_memory(&mut self, from: &IoRef, off: usize, len: usize, spill: &mut Vec<IoVec>) -> bool {
        let (mut skip, mut left) = (off, len);
        let io = self.io_mut();
        let mut n = 0;
        spill.clear();
        for v in from.iov() {
            if left == 0 {
                break;
            }
            if skip >= v.iov_len {
                skip -= v.iov_len;
                continue;
            }
            let take = (v.iov_len - skip).min(left);
            let base = (v.iov_base as *mut u8).wrapping_add(skip);
            let piece = IoVec { iov_base: base.cast(), iov_len: take };
            match n {
                0 | 1 => io.inline[n] = piece,
                2 => spill.extend([io.inline[0], io.inline[1], piece]),
                _ => spill.push(piece),
            }
            n += 1;
            skip = 0;
            left -= take;
        }
        io.iov = if n > 2 { spill.as_ptr() } else { io.inline.as_ptr() };
        io.iovcnt = n as u32;
        left == 0
    }

    /// Points this request at the metadata of blocks `[first, first + n)` of `from`. False if it does not have so much.
    ///
    /// # Safety
    /// As [`share_memory`](IoRef::share_memory).
    pub(crate) unsafe fn share_metadata(&mut self, from: &IoRef, first: u32, n: u32, md_size: u32) -> bool {
        let (off, len) = (first as usize * md_size as usize, n as usize * md_size as usize);
        if off + len > usize::from(from.io().md_len) {
            return false;
        }
        let io = self.io_mut();
        io.md = from.io().md.wrapping_add(off);
        io.md_len = len as u16;
        true
    }

    /// True if the memory of buffer 0 from byte `off` on begins with `other`.
    pub(crate) fn memory_equals(&self, off: usize, mut other: &[u8]) -> bool {
        let mut skip = off;
        for seg in self.segments() {
            if other.is_empty() {
                break;
            }
            if skip >= seg.len() {
                skip -= seg.len();
                continue;
            }
            let n = (seg.len() - skip).min(other.len());
            if seg[skip..skip + n] != other[..n] {
                return false;
            }
            other = &other[n..];
            skip = 0;
        }
        other.is_empty()
    }

    /// Separate metadata, if the request carries any.
    pub fn metadata(&self) -> Option<&[u8]> {
        let io = self.io();
        // SAFETY: `set_metadata` guarantees `md_len` valid bytes.
        (!io.md.is_null()).then(|| unsafe { std::slice::from_raw_parts(io.md, io.md_len as usize) })
    }

    /// Separate metadata, to write to.
    pub fn metadata_mut(&mut self) -> Option<&mut [u8]> {
        let io = self.io_mut();
        // SAFETY: `set_metadata` guarantees `md_len` valid bytes, for this request alone.
        (!io.md.is_null()).then(|| unsafe { std::slice::from_raw_parts_mut(io.md, io.md_len as usize) })
    }
}
