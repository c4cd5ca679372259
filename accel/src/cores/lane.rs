//! What one reactor and one accel core share: jobs on their way there and back. Made once per [`Offload`](super::Offload); a job takes none of it but
//! a place.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use longshore_reactor::{Handoff, Reactor};

use super::job::Job;
use super::{Before, Core, QUEUE};

/// See the module.
pub(super) struct Lane {
    /// Whose a place is, is said by who has its number.
    places: [AtomicPtr<Job>; QUEUE],
    /// To the accel core.
    jobs: Handoff,
    /// Back.
    answers: Handoff,
    /// Tasks that take what is handed over.
    there: OnceLock<Waker>,
    here: OnceLock<Waker>,
    /// True: nothing is run any more. Locked while a job runs, and otherwise only by who closes it: not per job by the reactor.
    closed: Mutex<bool>,
}

impl Lane {
    pub(super) fn new() -> Arc<Lane> {
        Arc::new(Lane {
            places: [const { AtomicPtr::new(std::ptr::null_mut()) }; QUEUE],
            jobs: Handoff::new(QUEUE as u32),
            answers: Handoff::new(QUEUE as u32),
            there: OnceLock::new(),
            here: OnceLock::new(),
            closed: Mutex::new(false),
        })
    }

    fn wake(waker: &OnceLock<Waker>) {
        if let Some(w) = waker.get() {
            w.wake_by_ref();
        }
    }

    fn closed(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The reactor.

    /// Gives the accel core a job to do, at a place that is free.
    pub(super) fn send(&self, at: u32, job: Box<Job>) {
        self.places[at as usize].store(Box::into_raw(job), Relaxed);
        if self.jobs.push(at) {
            Lane::wake(&self.there);
        }
    }

    /// `waker` is told of jobs that are done.
    pub(super) fn listen(&self, waker: &Waker) {
        self.here.get_or_init(|| waker.clone());
    }

    /// The task that listens has something else to look at.
    pub(super) fn nudge(&self) {
        Lane::wake(&self.here);
    }

    /// Jobs that are done, with their places, which are free again.
    pub(super) fn answers(&self) -> impl Iterator<Item = (u32, Box<Job>)> {
        self.answers.take().map(|at| {
            let job = self.places[at as usize].load(Relaxed);
            // SAFETY: `send` put a box there. The accel core had its number since and uses it no more: it pushed the number to `answers` after
            // the last use, which happens before this. Nobody else takes what is there: the number came back once.
            (at, unsafe { Box::from_raw(job) })
        })
    }

    /// Waits for the job that runs now, if one does, and lets none begin any more.
    pub(super) fn close(&self) {
        *self.closed() = true;
        Lane::wake(&self.there);
    }

    // The accel core.

    /// Runs jobs until the lane is closed.
    pub(super) async fn serve(self: Arc<Self>, r: Reactor, core: Arc<Core>, before: Option<Before>) {
        loop {
            let next = std::future::poll_fn(|cx| {
                self.there.get_or_init(|| cx.waker().clone());
                if *self.closed() {
                    return Poll::Ready(None);
                }
                let mut handed = self.jobs.take().peekable();
                if handed.peek().is_some() { Poll::Ready(Some(handed)) } else { Poll::Pending }
            });
            let Some(handed) = next.await else { return };
            for at in handed {
                if let Some(before) = &before {
                    r.sleep(before()).await;
                }
                if !self.run(at, &core) {
                    return;
                }
                if self.answers.push(at) {
                    Lane::wake(&self.here);
                }
                // Those of other reactors have their turn.
                r.yield_now().await;
            }
        }
    }

    /// Runs the job at a place. False: it is not to be run any more.
    fn run(&self, at: u32, core: &Core) -> bool {
        let closed = self.closed();
        if *closed {
            return false;
        }
        let start = longshore_reactor::rdtsc();
        // SAFETY: `send` put a box there and handed its number over, which happens before this; until the number is handed back, nobody
        // else uses the job. The lane is not closed, and cannot be before this ends: so the owner, which keeps the job's memory, is still there.
        let job = unsafe { &mut *self.places[at as usize].load(Relaxed) };
        job.run();
        core.jobs.fetch_add(1, Relaxed);
        core.bytes.fetch_add(job.bytes(), Relaxed);
        core.ticks.fetch_add(longshore_reactor::rdtsc().saturating_sub(start), Relaxed);
        true
    }
}
