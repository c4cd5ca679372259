//! Completion frames: who is told when a request ends, innermost first.
#![allow(unsafe_code)]

use std::rc::Rc;

use crate::io::IoRef;

/// Frames in one request: its submitter and up to five layers. A fan-out layer starts afresh with child requests.
pub const MAX_FRAMES: usize = 6;

/// Called when the frame was popped, with what it held.
pub(crate) type FrameFn = unsafe fn(ctx: *const (), io: IoRef, stamp: u64, saved: u64);

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) func: FrameFn,
    pub(crate) ctx: *const (),
    /// Coarse time stamp of submission, in ticks.
    pub(crate) stamp: u64,
    /// The layer's own word.
    pub(crate) saved: u64,
}

unsafe fn no_frame(_: *const (), _: IoRef, _: u64, _: u64) {
    unreachable!("request completed without a frame");
}

impl Frame {
    pub(crate) const EMPTY: Frame = Frame { func: no_frame, ctx: std::ptr::null(), stamp: 0, saved: 0 };
}

/// Who submits requests and is told of their end, on one core.
pub trait Submitter: 'static {
    /// `io` ended with `io.status()`; `tag` is what was given at submission. Release or resubmit it.
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64);
}

unsafe fn submitter_done<S: Submitter>(ctx: *const (), io: IoRef, _: u64, tag: u64) {
    // SAFETY: `begin` put exactly this reference here with `Rc::into_raw`, and popped frames run once.
    let s = unsafe { Rc::from_raw(ctx as *const S) };
    s.io_done(io, tag);
}

#[cold]
#[inline(never)]
fn begun_twice() -> ! {
    panic!("begin was called on a request that is under way");
}

impl IoRef {
    /// Names who is told of the request's end. The reference is held until then.
    ///
    /// # Panics
    /// If that was done already.
    #[inline]
    pub fn begin<S: Submitter>(&mut self, to: Rc<S>, tag: u64) {
        let io = self.io_mut();
        if io.depth != 0 {
            begun_twice();
        }
        let frame = &mut io.frames[0];
        frame.func = submitter_done::<S>;
        frame.ctx = Rc::into_raw(to) as *const ();
        frame.saved = tag;
        io.depth = 1;
    }

    #[inline]
    pub(crate) fn push(&mut self, frame: Frame) {
        let io = self.io_mut();
        let d = io.depth as usize;
        // The registry bounds the depth of stacks; this keeps a bug there from writing past the array.
        assert!(d < MAX_FRAMES, "device stack deeper than {MAX_FRAMES} frames");
        io.frames[d] = frame;
        io.depth = d as u8 + 1;
    }

    #[inline]
    pub(crate) fn top(&self) -> &Frame {
        let io = self.io();
        &io.frames[(io.depth as usize).wrapping_sub(1)]
    }

    #[inline]
    pub(crate) fn top_mut(&mut self) -> &mut Frame {
        let io = self.io_mut();
        &mut io.frames[(io.depth as usize).wrapping_sub(1)]
    }

    /// Puts the frame that was popped last back on top.
    #[inline]
    pub(crate) fn unpop(&mut self) {
        self.io_mut().depth += 1;
    }

    /// Frames in use.
    #[inline]
    pub(crate) fn depth(&self) -> usize {
        self.io().depth as usize
    }

    /// Pops the innermost frame and runs it.
    #[inline]
    pub(crate) fn unwind(mut self) {
        let io = self.io_mut();
        let d = io.depth.wrapping_sub(1);
        let f = io.frames[d as usize];
        io.depth = d;
        // SAFETY: whoever pushed the frame guarantees that its context lives until it ran: a submitter by a counted
        // reference, a channel because it is not freed while its in-flight count, which the frame is part of, is not 0.
        unsafe { (f.func)(f.ctx, self, f.stamp, f.saved) }
    }
}
