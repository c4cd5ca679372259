//! A command's memory, in one piece or several.
#![allow(unsafe_code)]

use longshore_reactor::DmaBuf;

/// The pieces of a command's memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    first: Option<DmaBuf>,
    /// Further pieces; keeps its capacity from one command to the next.
    rest: Vec<DmaBuf>,
}

impl Memory {
    pub(crate) fn set(&mut self, first: DmaBuf) {
        self.first = Some(first);
    }

    /// Takes the pieces out of `pieces`.
    pub(crate) fn set_many(&mut self, pieces: &mut Vec<DmaBuf>) {
        let mut all = pieces.drain(..);
        self.first = all.next();
        self.rest.extend(all);
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
    }

    /// The piece that holds byte `off`, and where in it.
    #[inline]
    pub(crate) fn at(&self, off: usize) -> Option<(&DmaBuf, usize)> {
        let first = self.first.as_ref()?;
        if off < first.len() {
            return Some((first, off));
        }
        let mut off = off - first.len();
        for b in &self.rest {
            if off < b.len() {
                return Some((b, off));
            }
            off -= b.len();
        }
        None
    }

    /// Calls `f` with each part of the `len` bytes from `off` on. False if the memory ends before.
    #[inline]
    pub(crate) fn each(&self, mut off: usize, mut len: usize, mut f: impl FnMut(DmaBuf)) -> bool {
        while len > 0 {
            let Some((buf, at)) = self.at(off) else { return false };
            let n = len.min(buf.len() - at);
            f(buf.slice(at, n));
            off += n;
            len -= n;
        }
        true
    }

    /// Copies `bytes` to byte `off` and on. False if the memory ends before.
    #[inline]
    pub(crate) fn fill(&self, mut off: usize, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some((buf, at)) = self.at(off) else { return false };
            let n = bytes.len().min(buf.len() - at);
            // SAFETY: `at + n` is within the buffer. Whoever submitted a command that reads gave its memory to the queue pair
            // until the command completes and looks at it no sooner; this is the only thread that has the buffer.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.as_ptr().add(at), n) };
            off += n;
            bytes = &bytes[n..];
        }
        true
    }
}
