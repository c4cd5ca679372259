//! One strip: decoded from k others and written to the member that lacks it, piece by piece.
//!
//! A filler has requests and memory of its own, got before it locks a stripe: it never waits for any while it holds the lock. What hangs on a member that
//! failed is not waited for: the filler is given up then, with its memory, and that is kept until the request ends.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use longshore_accel::{Job, JobOwner, Rebuilder};

use super::super::engine::Engine;
use super::super::layout::MAX_DATA;
use super::super::memory::Holdings;
use super::super::rows::lowest;
use super::super::txn::masked;
use super::super::txn::plan::Span;
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

/// Bytes of a strip that are decoded at once, at most.
pub(super) const PIECE: u32 = 64 << 10;

/// How the filling of a strip ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Filled,
    /// The member failed.
    MemberFailed,
    /// Too many of the others cannot be read, or are missing, of these rows.
    TooMuchLost(Span),
    /// A member failed and a request hangs on it: this filler cannot be used again.
    GivenUp,
}

/// See the module.
pub(super) struct Filler {
    engine: Rc<Engine>,
    /// The member that is filled.
    pub(super) slot: usize,
    piece: u32,
    h: RefCell<Holdings>,
    /// Of each request in flight, by its vector, the member's slot.
    out: RefCell<[Option<u8>; MAX_DATA + 1]>,
    /// Vectors whose request failed.
    bad: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Filler {
    /// A filler for the member in `slot`, if there are requests and memory.
    pub(super) fn new(engine: &Rc<Engine>, slot: usize) -> Option<Rc<Filler>> {
        let l = &engine.shared.layout;
        let piece = l.strip.min(PIECE);
        let mut h = Holdings::new(l.k + 1, l.k + 1, engine.zeroes.clone(), engine.spare.clone());
        let bufs = (0..=l.k).map(|i| (i, piece as usize));
        h.reserve(&engine.core, l.k, bufs).then(|| {
            Rc::new(Filler {
                engine: engine.clone(),
                slot,
                piece,
                h: RefCell::new(h),
                out: RefCell::new([None; MAX_DATA + 1]),
                bad: Cell::new(0),
                waker: RefCell::default(),
            })
        })
    }

    /// Somebody failed: looks whether it is worth waiting.
    pub(super) fn look(&self) {
        if let Some(w) = self.waker.borrow_mut().take() {
            w.wake();
        }
    }

    /// Fills the member's strip of `stripe`, which is locked alone, in pieces of at most `most` bytes.
    pub(super) async fn fill(self: &Rc<Self>, stripe: u64, most: u32) -> Outcome {
        let l = self.engine.shared.layout;
        let most = most.clamp(l.block, self.piece);
        let mut at = 0;
        while at < l.strip {
            let span = Span { lo: at, hi: l.strip.min(at + most) };
            let mut outcome = self.fill_rows(stripe, span).await;
            if matches!(outcome, Outcome::TooMuchLost(_)) && span.len() > l.block {
                // Not every block of the piece may have lost too much.
                for lo in (span.lo..span.hi).step_by(l.block as usize) {
                    outcome = self.fill_rows(stripe, Span { lo, hi: lo + l.block }).await;
                    if outcome != Outcome::Filled {
                        break;
                    }
                }
            }
            if outcome != Outcome::Filled {
                return outcome;
            }
            at = span.hi;
        }
        Outcome::Filled
    }

    async fn fill_rows(self: &Rc<Self>, stripe: u64, rows: Span) -> Outcome {
        let (l, pace) = (self.engine.shared.layout, &self.engine.rebuild.pace);
        let mut unreadable = 0u64;
        let sources = loop {
            let good = self.engine.up(stripe) & !unreadable;
            if (good.count_ones() as usize) < l.k {
                return Outcome::TooMuchLost(rows);
            }
            let sources = lowest(good, l.k);
            self.bad.set(0);
            pace.work(&self.engine, || {
                for (v, i) in masked(sources).enumerate() {
                    self.engine.count_read(rows.len());
                    self.send(v, l.slot_of(stripe, i), Op::Read, stripe, rows);
                }
            });
            if !self.landed().await {
                return Outcome::GivenUp;
            }
            if self.bad.get() == 0 {
                break sources;
            }
            let failed = masked(sources).enumerate().filter(|&(v, _)| self.bad.get() >> v & 1 != 0);
            unreadable |= failed.fold(0, |mask, (_, i)| mask | 1 << i);
        };
        let target = l.index_at(stripe, self.slot);
        let decoder = self.engine.decoder(1 << target, sources);
        let vectors: [usize; MAX_DATA] = std::array::from_fn(|v| v);
        self.bad.set(0);
        let len = rows.len() as usize;
        let decoded = self.decode_elsewhere(&decoder, &vectors[..l.k], len).await;
        if self.engine.until_asked().await.is_err() {
            return Outcome::GivenUp;
        }
        pace.work(&self.engine, || {
            if !decoded {
                self.h.borrow_mut().combine(&vectors[..l.k], &[(l.k, 0)], len, |src, dst| decoder.decode(src, dst));
            }
            self.engine.count_write(rows.len());
            self.send(l.k, self.slot, Op::Write, stripe, rows);
        });
        if !self.landed().await {
            return Outcome::GivenUp;
        }
        if self.bad.get() != 0 {
            // Offline, nothing is written, and nobody's fault.
            if !self.engine.shared.is_offline() {
                self.engine.fail_member(self.slot, "a write failed");
            }
            return Outcome::MemberFailed;
        }
        Outcome::Filled
    }

    /// Has an accel core decode the strip, if there is one and it is much. False: it is to be decoded here.
    async fn decode_elsewhere(self: &Rc<Self>, decoder: &Rebuilder, vectors: &[usize], len: usize) -> bool {
        let offload = self.engine.offload.as_ref().filter(|o| o.pays((vectors.len() * len) as u64, 1));
        let Some(offload) = offload else { return false };
        let result = [(vectors.len(), 0)];
        let job = self.h.borrow_mut().job_of(&self.engine.accel, decoder, vectors, &result, len);
        if let Err(mut job) = offload.submit(job, self.clone()) {
            self.engine.rebuild.pace.work(&self.engine, || job.run());
            offload.count(&job);
            self.h.borrow_mut().work_ended(job);
            return true;
        }
        poll_fn(|cx| {
            if !self.h.borrow().is_lent() {
                return Poll::Ready(true);
            }
            self.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Sends a request over buffer and vector `v`.
    fn send(self: &Rc<Self>, v: usize, slot: usize, op: Op, stripe: u64, rows: Span) {
        let member = &self.engine.members[slot];
        let lba = member.lba(self.engine.shared.layout.strip_offset(stripe) + u64::from(rows.lo));
        let (io, mark) = {
            let mut h = self.h.borrow_mut();
            h.clear(v);
            h.push_buf(v, v, 0, rows.len() as usize);
            h.launch(v, op, IoFlags::NONE, lba, member.blocks(rows.len()))
        };
        self.out.borrow_mut()[v] = Some(slot as u8);
        match member.submit(io, self, v as u32 | mark) {
            Ok(()) => self.engine.watch(),
            Err(io) => {
                self.h.borrow_mut().land(io, v, mark);
                self.out.borrow_mut()[v] = None;
                self.bad.set(self.bad.get() | 1 << v);
            }
        }
    }

    /// Ends when all requests have ended: true. False: those that have not hang on members that failed.
    async fn landed(&self) -> bool {
        poll_fn(|cx| {
            if !self.h.borrow().is_lent() {
                return Poll::Ready(true);
            }
            let out = self.out.borrow();
            if out.iter().flatten().all(|&slot| self.engine.members[usize::from(slot)].is_barred()) {
                return Poll::Ready(false);
            }
            self.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

impl JobOwner for Filler {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        self.h.borrow_mut().work_ended(job);
        self.look();
    }
}

impl Submitter for Filler {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let v = (tag & 0xffff) as usize;
        let Some(slot) = self.out.borrow()[v] else { return io.release() };
        let member = &self.engine.members[usize::from(slot)];
        let Some(io) = member.landed(io, &self, tag) else { return };
        self.out.borrow_mut()[v] = None;
        if io.status().is_err() {
            self.bad.set(self.bad.get() | 1 << v);
        } else if v == self.engine.shared.layout.k {
            member.dirty.set(true);
        }
        self.h.borrow_mut().land(io, v, tag as u32);
        self.look();
    }
}
