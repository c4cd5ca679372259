//! The way to the accel cores from one reactor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use longshore_reactor::Reactor;

use super::job::{Job, JobOwner};
use super::lane::Lane;
use super::{Cores, QUEUE};
use crate::stats::Counting;

/// The way to the accel cores from one reactor, which it does not leave. Not to be opened per job. Jobs that are under way when it is dropped
/// end as if it had not been.
pub struct Offload(Rc<Inner>);

struct Inner {
    cores: Arc<Cores>,
    /// One for each accel core.
    lanes: Vec<Arc<Lane>>,
    /// Of each lane the places that are free: bit `i` is place `i`.
    free: Vec<Cell<u32>>,
    /// By lane and place: who gets the job back.
    owners: RefCell<Vec<Option<Rc<dyn JobOwner>>>>,
    under_way: Cell<usize>,
    /// The accel core that is looked at first.
    first: Cell<usize>,
    dropped: Cell<bool>,
    /// The reactor stops.
    ended: Cell<bool>,
    counting: Rc<Counting>,
}

const _: () = assert!(QUEUE == u32::BITS as usize, "a bit for each place");

impl Offload {
    pub(super) fn open(cores: Arc<Cores>, counting: Rc<Counting>) -> Offload {
        let lanes: Vec<_> = cores.cores.iter().map(|_| Lane::new()).collect();
        for (core, lane) in cores.cores.iter().zip(&lanes) {
            let (lane, this, before) = (lane.clone(), core.clone(), cores.options.before.clone());
            core.handle.send(move |r| drop(r.spawn(lane.serve(r.clone(), this, before))));
        }
        let inner = Rc::new(Inner {
            free: lanes.iter().map(|_| Cell::new(u32::MAX)).collect(),
            owners: RefCell::new((0..lanes.len() * QUEUE).map(|_| None).collect()),
            under_way: Cell::new(0),
            first: Cell::new(0),
            dropped: Cell::new(false),
            ended: Cell::new(false),
            counting,
            lanes,
            cores,
        });
        drop(Reactor::current().spawn(listen(Listener(inner.clone()))));
        Offload(inner)
    }

    /// Whether a job is worth the way there and back: one that reads so many bytes, and adds each of them to so many results. (With fewer than two,
    /// memory is what it waits for.)
    #[inline]
    pub fn pays(&self, read: u64, results: u64) -> bool {
        read.saturating_mul(results.max(2)) >= self.0.cores.options.least
    }

    /// Has a job done. `owner` gets it back, never within this call.
    ///
    /// # Errors
    /// Every accel core has as many jobs as it takes: the job, to be [done](Job::run) here.
    pub fn submit(&self, job: Box<Job>, owner: Rc<dyn JobOwner>) -> Result<(), Box<Job>> {
        let Some((lane, at)) = self.0.place() else {
            job.each(|op, _| self.0.counting.full(op));
            return Err(job);
        };
        let inner = &*self.0;
        inner.owners.borrow_mut()[lane * QUEUE + at as usize] = Some(owner);
        inner.under_way.set(inner.under_way.get() + 1);
        inner.lanes[lane].send(at, job);
        Ok(())
    }

    /// Counts a job that was done here, because it was given back by [`submit`](Offload::submit).
    pub fn count(&self, job: &Job) {
        job.each(|op, bytes| self.0.counting.count(op, bytes));
    }
}

impl Inner {
    /// A place in the shortest queue; one after the other where they are alike.
    fn place(&self) -> Option<(usize, u32)> {
        if self.ended.get() {
            return None;
        }
        let n = self.lanes.len();
        let first = self.first.get();
        let lane = (0..n).map(|i| (first + i) % n).min_by_key(|&i| self.cores.cores[i].queued.load(Relaxed))?;
        let free = self.free[lane].get();
        let queued = &self.cores.cores[lane].queued;
        if free == 0 || queued.fetch_add(1, Relaxed) >= QUEUE {
            if free != 0 {
                queued.fetch_sub(1, Relaxed);
            }
            return None;
        }
        self.first.set(lane + 1);
        self.free[lane].set(free & (free - 1));
        Some((lane, free.trailing_zeros()))
    }

    fn take_answers(&self) {
        for (i, lane) in self.lanes.iter().enumerate() {
            for (at, job) in lane.answers() {
                self.free[i].set(self.free[i].get() | 1 << at);
                self.cores.cores[i].queued.fetch_sub(1, Relaxed);
                self.under_way.set(self.under_way.get() - 1);
                job.each(|op, bytes| self.counting.offloaded(op, bytes));
                let owner = self.owners.borrow_mut()[i * QUEUE + at as usize].take();
                if let Some(owner) = owner {
                    owner.job_done(job);
                }
            }
        }
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.0.dropped.set(true);
        if let Some(lane) = self.0.lanes.first() {
            lane.nudge();
        }
    }
}

/// Held by the task that takes jobs back. That ends when nobody can submit any more and all are back, or with its reactor.
struct Listener(Rc<Inner>);

async fn listen(l: Listener) {
    poll_fn(|cx| {
        l.0.lanes.iter().for_each(|lane| lane.listen(cx.waker()));
        l.0.take_answers();
        if l.0.dropped.get() && l.0.under_way.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Drop for Listener {
    fn drop(&mut self) {
        // From here on no accel core touches memory of this reactor.
        self.0.ended.set(true);
        self.0.lanes.iter().for_each(|lane| lane.close());
        for (at, owner) in self.0.owners.take().into_iter().enumerate() {
            if owner.is_some() {
                self.0.cores.cores[at / QUEUE].queued.fetch_sub(1, Relaxed);
            }
            // The reactor stops: what was not done never ends. As with other requests then, its memory is kept.
            std::mem::forget(owner);
        }
    }
}
