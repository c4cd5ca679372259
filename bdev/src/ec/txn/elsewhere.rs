//! What an accel core computes for a transaction, if there is one and it is much. The transaction waits as it waits for reads: it has the stripe's lock,
//! and its memory is lent.

use std::rc::Rc;

use longshore_accel::{Job, JobOwner, Rebuilder};

use super::super::engine::Engine;
use super::super::memory::{Holdings, VecId};
use super::compute::{self, Computer, Here};
use super::plan::Way;
use super::state::{Kind, State};
use super::{Phase, Txn, masked};

/// An accel core, later: by steps of a job.
struct There<'a>(&'a Engine);

impl Computer for There<'_> {
    fn xor(&mut self, engine: &Engine, h: &mut Holdings, buf: usize, v: VecId) {
        let len = h.len_of(v);
        h.step(&engine.accel, &[v], &[(buf, 0)], len, |job| job.xor(len));
    }

    fn update(
        &mut self,
        engine: &Engine,
        h: &mut Holdings,
        d: usize,
        v: VecId,
        results: &[(usize, usize)],
        len: usize,
    ) {
        h.step(&engine.accel, &[v], results, len, |job| job.update(&engine.coder, d, len));
    }

    fn encode(&mut self, engine: &Engine, h: &mut Holdings, sources: &[VecId], results: &[(usize, usize)], len: usize) {
        h.step(&engine.accel, sources, results, len, |job| job.encode(&engine.coder, len));
    }

    fn decode(
        &mut self,
        decoder: &Rebuilder,
        h: &mut Holdings,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
    ) {
        h.step(&self.0.accel, sources, results, len, |job| job.decode(decoder, len));
    }
}

impl Txn {
    /// All is read: decodes what is missing, and goes on, here or on an accel core.
    #[cold]
    pub(super) fn compute_elsewhere(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.plan.way != Way::Decode {
            return self.decoded(engine, s);
        }
        let l = &engine.shared.layout;
        let read = l.k as u64 * u64::from(s.touch.rows.len());
        if !self.pays(engine, read, u64::from(s.plan.decode.count_ones())) {
            compute::decode(engine, s, &mut Here);
            return self.decoded(engine, s);
        }
        compute::decode(engine, s, &mut There(engine));
        self.phase.set(Phase::Decoding);
        self.give_away(engine, s);
    }

    /// All data are there: computes parity, and goes on.
    fn decoded(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let l = &engine.shared.layout;
        compute::data(l, s);
        let read = match s.plan.way {
            Way::Modify => masked(s.touch.touched).map(|d| u64::from(s.touch.own[d].len())).sum(),
            _ => l.k as u64 * u64::from(s.touch.rows.len()),
        };
        let no_parity = s.up >> l.k == 0 && s.kind != Kind::First;
        if no_parity || !self.pays(engine, read, l.m as u64) {
            compute::parity(engine, s, &mut Here);
            return self.computed(engine, s);
        }
        compute::parity(engine, s, &mut There(engine));
        if s.kind == Kind::Live {
            // Of all that may get a record: which do is seen when it is written.
            for i in masked(compute::written(l, s)) {
                let len = s.h.len_of(i);
                s.h.step(&engine.accel, &[i], &[], len, |job| job.crc32c(i, len));
            }
        }
        self.phase.set(Phase::Encoding);
        self.give_away(engine, s);
    }

    fn pays(&self, engine: &Engine, read: u64, results: u64) -> bool {
        engine.offload.as_ref().is_some_and(|o| o.pays(read, results))
    }

    fn give_away(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let Some(offload) = &engine.offload else { return };
        let job = s.h.work();
        if let Err(mut job) = offload.submit(job, self.clone()) {
            job.run();
            offload.count(&job);
            self.job_ended(engine, s, job);
        }
    }

    fn job_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, job: Box<Job>) {
        s.h.work_ended(job);
        match (self.phase.get(), s.kind) {
            (Phase::Decoding, _) => self.decoded(engine, s),
            (_, Kind::Live) => self.journal(engine, s, |s, i| s.h.crc(i)),
            (_, Kind::First | Kind::Fresh) => self.gate(engine, s),
        }
    }
}

impl JobOwner for Txn {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        let engine = self.engine.borrow().clone();
        let Some(engine) = engine else { return };
        self.run(&engine, |me, engine, s| me.job_ended(engine, s, job));
    }
}
