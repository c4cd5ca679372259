//! Pieces of a read that an accel core decodes.

use std::rc::Rc;

use longshore_accel::{Job, JobOwner, Offload};

use super::super::engine::Engine;
use super::{Phase, Read, State};

impl Read {
    /// Has the piece decoded, and goes on when it is.
    #[cold]
    pub(super) fn decode_elsewhere(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        s: &mut State,
        offload: &Offload,
        job: Box<Job>,
    ) {
        self.phase.set(Phase::Decoding);
        if let Err(mut job) = offload.submit(job, self.clone()) {
            job.run();
            offload.count(&job);
            s.h.work_ended(job);
            self.decoded(engine, s);
        }
    }
}

impl JobOwner for Read {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        let engine = self.engine.borrow().clone();
        let Some(engine) = engine else { return };
        self.run(&engine, |me, engine, s| {
            s.h.work_ended(job);
            me.decoded(engine, s);
        });
    }
}
