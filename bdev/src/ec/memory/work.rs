//! Memory that is lent to a job of an accel core: all of it, from the first step that is added until the job is back.
#![allow(unsafe_code)]

use longshore_accel::{Channel as Engines, Job, Rebuilder};

use super::super::faults::{self, Window};
use super::{Holdings, VecId};

/// The job of what holds memory.
#[derive(Default)]
pub(super) struct Work {
    /// Kept to be used again. Not there before the first one, and while an accel core has it.
    job: Option<Box<Job>>,
    /// Where the one lies that an accel core has.
    out: Option<usize>,
}

impl Holdings {
    /// The vector that is lent with all memory.
    fn everything(&self) -> VecId {
        self.set.vecs.len() - 1
    }

    /// Adds a step to the job, over `len` bytes of the vectors `sources` and of the buffers `results`, each of these from the byte given on: `add` adds
    /// what is to be done with them. The rules are those of [`combine`](Holdings::combine). From now on nothing can be given back or
    /// written to, and no child may be sent, until the job [has ended](Holdings::work_ended); vectors can be changed.
    ///
    /// # Panics
    /// As `combine`.
    pub(in crate::ec) fn step(
        &mut self,
        accel: &Engines,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
        add: impl FnOnce(&mut Job),
    ) {
        let everything = self.everything();
        assert_eq!(self.set.lent & !(1 << everything), 0, "memory of requests in flight must stay as it is");
        assert!(self.work.out.is_none(), "one job at a time");
        for (i, &(id, off)) in results.iter().enumerate() {
            assert!(results[..i].iter().all(|r| r.0 != id), "a result is written once");
            self.result(sources, id, off, len);
        }
        self.set.lent |= 1 << everything;
        self.set.of[everything] = u64::MAX;
        let job = self.work.job.get_or_insert_with(|| accel.job());
        for &v in sources {
            let pieces = self.set.vecs[v].iter().map(|p| (p.iov_base.cast::<u8>(), p.iov_len));
            // SAFETY: pieces are of requests, buffers and zeroes held here. None of them is given back or written to while a vector is lent that is
            // of all hosts (`settled`, `take_hosts`, `give_back`), and this one is until `work_ended`, which clears the job first. Children write to
            // some of it when they read: none is out, as was asserted, and callers send none before `work_ended`.
            unsafe { job.list(pieces) };
        }
        for &(id, off) in results {
            let b = self.set.bufs[id].as_ref().expect("a reserved buffer");
            // SAFETY: as above. Only this refers to the buffer, each is there once, and it is apart from all sources, as was asserted.
            unsafe { job.list(std::iter::once((b.as_ptr().wrapping_add(off), len))) };
        }
        add(job);
    }

    /// A job that decodes.
    pub(in crate::ec) fn job_of(
        &mut self,
        accel: &Engines,
        decoder: &Rebuilder,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
    ) -> Box<Job> {
        self.step(accel, sources, results, len, |job| job.decode(decoder, len));
        self.work()
    }

    /// The job, for an accel core.
    pub(in crate::ec) fn work(&mut self) -> Box<Job> {
        let job = self.work.job.take().expect("steps were added");
        faults::enter(Window::Elsewhere);
        self.work.out = Some(std::ptr::from_ref(&*job) as usize);
        job
    }

    /// The job is back: nobody else uses the memory any more.
    pub(in crate::ec) fn work_ended(&mut self, mut job: Box<Job>) {
        let lies_at = std::ptr::from_ref(&*job) as usize;
        assert_eq!(self.work.out.take(), Some(lies_at), "the job that was given away comes back");
        faults::leave(Window::Elsewhere);
        job.clear();
        self.work.job = Some(job);
        let everything = self.everything();
        self.set.lent &= !(1 << everything);
        self.set.of[everything] = 0;
    }

    /// A checksum that the last job took.
    pub(in crate::ec) fn crc(&self, at: usize) -> u32 {
        self.work.job.as_ref().map_or(0, |job| job.crc(at))
    }

    /// Bytes of a vector.
    pub(in crate::ec) fn len_of(&self, v: VecId) -> usize {
        self.set.vecs[v].iter().map(|p| p.iov_len).sum()
    }
}
