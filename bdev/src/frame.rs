//! Completion frames: who is told when a request ends, innermost first.
#![allow(unsafe_code)]

use std::rc::Rc;

use crate::io::IoRef;

/// Frames in one request: its submitter and up to five layers. A fan-out layer starts afresh with child requests.
pub const MAX_FRAMES: usize = 6;

/// Places for frames in a request: below those in use lies one that is never popped.
pub(crate) const FRAME_SLOTS: usize = MAX_FRAMES + 1;

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

/// What lies at the bottom while nobody has begun the request.
unsafe fn no_frame(_: *const (), mut io: IoRef, _: u64, _: u64) {
    io.clear_frames();
    std::mem::forget(io);
    panic!("a request was completed that nobody had begun");
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
    // SAFETY: `begin` put exactly this reference here with `Rc::into_raw`, and the frame was popped only now.
    let s = unsafe { Rc::from_raw(ctx as *const S) };
    s.io_done(io, tag);
}

/// Frames are reached through a pointer to the one that runs next, derived from the slot as a whole: each step costs one
/// addition. It stays inside: `push` checks the upper end, and at the bottom lies `no_frame`, which puts the pointer right.
impl IoRef {
    /// Names who is told of the request's end. The reference is held until then.
    #[inline]
    pub fn begin<S: Submitter>(&mut self, to: Rc<S>, tag: u64) {
        debug_assert!(self.is_idle(), "begin was called on a request that is under way");
        let first = self.bottom().wrapping_add(1);
        let io = self.io_mut();
        io.top = first;
        let frame = &mut io.frames[1];
        frame.func = submitter_done::<S>;
        frame.ctx = Rc::into_raw(to) as *const ();
        frame.saved = tag;
    }

    #[inline]
    fn bottom(&self) -> *mut Frame {
        // SAFETY: a place inside the slot; nothing is read.
        unsafe { (&raw mut (*self.slot()).frames).cast() }
    }

    /// True if nobody has begun the request, or its submitter was told of its end.
    pub(crate) fn is_idle(&self) -> bool {
        std::ptr::eq(self.io().top, self.bottom())
    }

    /// Forgets all frames.
    #[inline]
    pub(crate) fn clear_frames(&mut self) {
        let bottom = self.bottom();
        self.io_mut().top = bottom;
    }

    /// Pushes a frame whose own word is whatever was there before.
    #[inline]
    pub(crate) fn push_fast(&mut self, func: FrameFn, ctx: *const (), stamp: u64) {
        let top = self.io().top.wrapping_add(1);
        // The registry bounds the depth of stacks; this keeps a bug there from writing past the array.
        if std::ptr::eq(top, self.bottom().wrapping_add(FRAME_SLOTS)) {
            too_deep();
        }
        // SAFETY: below the end by the check; the slot is this handle's alone.
        unsafe {
            (*top).func = func;
            (*top).ctx = ctx;
            (*top).stamp = stamp;
        }
        self.io_mut().top = top;
    }

    pub(crate) fn push(&mut self, func: FrameFn, ctx: *const (), stamp: u64) {
        self.push_fast(func, ctx, stamp);
        self.top_mut().saved = 0;
    }

    #[inline]
    pub(crate) fn top(&self) -> &Frame {
        // SAFETY: the pointer stays inside `frames`, see above; frames are always initialised.
        unsafe { &*self.io().top }
    }

    #[inline]
    pub(crate) fn top_mut(&mut self) -> &mut Frame {
        // SAFETY: as in `top`, and `&mut self` makes the access unique.
        unsafe { &mut *self.io().top }
    }

    /// Puts the frame back on top from whose function this is called.
    #[inline]
    pub(crate) fn unpop(&mut self) {
        let io = self.io_mut();
        io.top = io.top.wrapping_add(1);
    }

    /// Pops the innermost frame and runs it.
    #[inline]
    pub(crate) fn unwind(mut self) {
        let io = self.io_mut();
        let top = io.top;
        io.top = top.wrapping_sub(1);
        // SAFETY: as in `top`. Whoever pushed the frame guarantees that its context lives until it ran: a submitter by a
        // counted reference, a channel because it is not freed while its in-flight count, which the frame is part of, is
        // not 0.
        unsafe { ((*top).func)((*top).ctx, self, (*top).stamp, (*top).saved) }
    }
}

#[cold]
#[inline(never)]
fn too_deep() -> ! {
    panic!("device stack deeper than {MAX_FRAMES} frames");
}
