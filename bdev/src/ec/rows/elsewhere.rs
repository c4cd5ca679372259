//! Rows that an accel core decodes.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use longshore_accel::{Job, JobOwner, Offload, Rebuilder};
use longshore_reactor::DmaBuf;

use super::super::engine::Engine;

/// The memory of a job, which stays for as long as that is under way, whoever waits for it.
struct Decoding {
    sources: Vec<DmaBuf>,
    results: RefCell<Vec<Vec<u8>>>,
    back: RefCell<Option<Box<Job>>>,
    waker: RefCell<Option<Waker>>,
}

/// Decodes the first `len` bytes of `sources`, which nobody writes to, into the first vectors of `results`, which come back.
pub(super) async fn decode(
    engine: &Engine,
    offload: &Offload,
    decoder: &Rebuilder,
    sources: Vec<DmaBuf>,
    results: Vec<Vec<u8>>,
    len: usize,
) -> Vec<Vec<u8>> {
    let mut job = engine.accel.job();
    let (back, waker) = Default::default();
    let owner = Rc::new(Decoding { sources, results: RefCell::new(results), back, waker });
    for source in &owner.sources {
        assert!(len <= source.len(), "{len} of {} bytes", source.len());
        // SAFETY: the owner has a reference to the buffer until the job is back, and is leaked with a job that never is. Its reads have ended, and
        // who waits here sends none meanwhile; that it has other references keeps everybody else from writing.
        unsafe { job.list(std::iter::once((source.as_ptr(), len))) };
    }
    for result in &mut owner.results.borrow_mut()[..decoder.lost().len()] {
        // SAFETY: vectors of the owner, each with memory of its own, which nobody looks at before the job is back and cleared.
        unsafe { job.list(std::iter::once((result[..len].as_mut_ptr(), len))) };
    }
    job.decode(decoder, len);
    let mut job = match offload.submit(job, owner.clone()) {
        Err(mut job) => {
            job.run();
            offload.count(&job);
            job
        }
        Ok(()) => {
            poll_fn(|cx| {
                owner.waker.replace(Some(cx.waker().clone()));
                owner.back.take().map_or(Poll::Pending, Poll::Ready)
            })
            .await
        }
    };
    job.clear();
    owner.results.take()
}

impl JobOwner for Decoding {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        self.back.replace(Some(job));
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}
