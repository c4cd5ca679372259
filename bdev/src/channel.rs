//! One device on one core: bounds, statistics, and what is in flight. The slow half (gates, splitting) is in `gate`.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use longshore_nvme::wire::Status;

use crate::core::CoreState;
use crate::device::{Geometry, IoChannel, Layer, SupportedOps};
use crate::frame::{Frame, FrameFn};
use crate::gate::{self, Drains};
use crate::io::{IoId, IoRef, Op};
use crate::job::Job;
use crate::node::BdevNode;
use crate::queue::IoQueue;
use crate::range_lock::Range;
use crate::stat::IoStat;

/// Requests in flight on one channel.
pub type Inflight = u32;

/// Stamps carry the epoch of the submission in bit 0.
const EPOCH: u64 = 1;
/// ...and in bit 1 whether the request is a piece of one that was counted already.
pub(crate) const PIECE: u64 = 2;

/// A device open on this core. Clones share it. It may be dropped at any time: what it holds goes when nothing is in flight
/// any more.
#[derive(Clone)]
pub struct Channel(ManuallyDrop<Rc<ChannelInner>>);

pub(crate) struct ChannelInner {
    pub(crate) gate: Cell<u32>,
    /// Requests larger than this many blocks go the slow way.
    max_blocks: u32,
    /// Operations that may go the fast way: the device does them itself, and they name one range.
    fast: SupportedOps,
    /// In flight, by the epoch of their submission: a drain waits for one epoch while the next goes on.
    pub(crate) inflight: [Cell<Inflight>; 2],
    pub(crate) epoch: Cell<u32>,
    done: FrameFn,
    pub(crate) node: Arc<BdevNode>,
    core: Rc<CoreState>,
    stat: Arc<IoStat>,
    module: ManuallyDrop<Box<dyn IoChannel>>,
    geometry: Geometry,
    pub(crate) native: SupportedOps,
    pub(crate) frozen: Cell<u32>,
    /// A reset of the device is one of those who froze it.
    pub(crate) resetting: Cell<bool>,
    /// Held back while frozen.
    pub(crate) held: IoQueue,
    /// Held back by rate limits.
    pub(crate) limited: IoQueue,
    pub(crate) limit_timer: RefCell<Option<longshore_reactor::Timer>>,
    /// Held back by a locked range.
    pub(crate) lock_wait: IoQueue,
    pub(crate) locked: RefCell<Vec<Range>>,
    /// Requests that wait for their turn at something of the whole device, by the ticket they drew for it.
    pub(crate) parked: RefCell<Vec<(u64, IoRef)>>,
    pub(crate) drains: RefCell<Drains>,
    pub(crate) jobs: RefCell<Vec<Rc<Job>>>,
    me: Weak<ChannelInner>,
}

unsafe fn done_plain(ctx: *const (), io: IoRef) {
    // SAFETY: the frame was pushed by `pass` or `hold` with this channel, which outlives its in-flight count.
    let ch = unsafe { &*(ctx as *const ChannelInner) };
    let io = ch.finish(io);
    // The channel is not touched any more: whoever is told next may drop it.
    io.unwind();
}

unsafe fn done_hooked(ctx: *const (), mut io: IoRef) {
    // SAFETY: as in `done_plain`. A channel that `completed` drops is freed by the core's poll, not under its feet.
    let ch = unsafe { &*(ctx as *const ChannelInner) };
    io.top_mut().func = done_plain;
    ch.module.completed(io);
}

impl Layer for IoRef {
    fn hook_again(&mut self) {
        self.top_mut().func = done_hooked;
    }
    fn saved(&self) -> u64 {
        self.top().saved
    }
    fn set_saved(&mut self, word: u64) {
        self.top_mut().saved = word;
    }
    fn emulate(self) {
        // SAFETY: the device that calls this holds the request, so the frame on top is its own channel's, as in `done_plain`.
        let ch = unsafe { &*(self.top().ctx as *const ChannelInner) };
        crate::job::emulate_held(ch, self);
    }
}

impl ChannelInner {
    #[inline]
    pub(crate) fn submit(&self, io: IoRef) {
        let (lba, n) = (io.lba(), io.nblocks());
        if self.gate.get() != 0 || n > self.max_blocks || !self.fast.has(io.op()) {
            return self.submit_slow(io);
        }
        if lba.checked_add(u64::from(n)).is_none_or(|e| e > self.node.num_blocks()) {
            return io.complete_later(Status::LBA_OUT_OF_RANGE);
        }
        self.pass(io, self.core.now() & !(EPOCH | PIECE));
    }

    /// Hands the request to the device.
    #[inline]
    pub(crate) fn pass(&self, mut io: IoRef, stamp: u64) {
        self.enter(&mut io, stamp, self.done);
        self.module.submit(io);
    }

    /// Counts the request as in flight without handing it to the device: the core works on it.
    pub(crate) fn hold(&self, io: &mut IoRef, stamp: u64) {
        self.enter(io, stamp, done_plain);
    }

    #[inline]
    fn enter(&self, io: &mut IoRef, stamp: u64, func: FrameFn) {
        let epoch = self.epoch.get() & 1;
        let n = &self.inflight[epoch as usize];
        n.set(n.get() + 1);
        io.push(Frame { func, ctx: std::ptr::from_ref(self).cast(), stamp: stamp | u64::from(epoch), saved: 0 });
    }

    /// The time of now for a request that passes the slow way.
    pub(crate) fn stamp(&self) -> u64 {
        let exact = self.gate.get() & gate::HISTOGRAM != 0;
        (if exact { self.core.reactor().rdtsc() } else { self.core.now() }) & !(EPOCH | PIECE)
    }

    #[inline]
    fn finish(&self, mut io: IoRef) -> IoRef {
        let stamp = io.top().stamp;
        io.pop();
        if stamp & PIECE == 0 {
            // A stamp may be exact, and then later than the coarse time of now.
            let ticks = self.core.now().saturating_sub(stamp);
            self.stat.record(io.op(), io.nblocks(), ticks, io.status());
        }
        let n = &self.inflight[(stamp & EPOCH) as usize];
        n.set(n.get() - 1);
        if self.gate.get() != 0 {
            self.finish_slow(&io, stamp);
        }
        io
    }

    #[cold]
    fn finish_slow(&self, io: &IoRef, stamp: u64) {
        let g = self.gate.get();
        if g & gate::HISTOGRAM != 0 && stamp & PIECE == 0 {
            self.stat.tally(io.op(), self.core.reactor().rdtsc().saturating_sub(stamp));
        }
        if g & gate::DRAINING != 0 {
            self.check_drains();
        }
    }

    pub(crate) fn core(&self) -> &Rc<CoreState> {
        &self.core
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn module(&self) -> &dyn IoChannel {
        &**self.module
    }

    pub(crate) fn stat(&self) -> &Arc<IoStat> {
        &self.stat
    }

    /// A counted handle of this channel.
    pub(crate) fn channel(&self) -> Channel {
        Channel(ManuallyDrop::new(self.me.upgrade().expect("a channel in use is alive")))
    }

    pub(crate) fn total_inflight(&self) -> Inflight {
        self.inflight[0].get() + self.inflight[1].get()
    }

    /// True if requests point here.
    pub(crate) fn busy(&self) -> bool {
        self.total_inflight() != 0
            || !self.held.is_empty()
            || !self.limited.is_empty()
            || !self.lock_wait.is_empty()
            || !self.parked.borrow().is_empty()
    }

    /// Counts with the device of another core whose stack ends; see [`BdevNode::channel_closed`].
    fn deregister(&self) {
        self.node.channel_closed(&self.stat);
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        if self.busy() {
            // Only when a core is torn down with requests in flight, which is a bug above: what they use is kept for ever.
            tracing::error!(
                bdev = self.node.name(),
                inflight = self.total_inflight(),
                "core torn down with requests in flight"
            );
            std::mem::forget(std::mem::take(&mut self.held));
            std::mem::forget(std::mem::take(&mut self.limited));
            std::mem::forget(std::mem::take(&mut self.lock_wait));
            std::mem::forget(self.parked.take());
        } else {
            // SAFETY: dropped once, here, and never used again.
            unsafe { ManuallyDrop::drop(&mut self.module) };
        }
        self.deregister();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: taken once, here; `self` is not used again.
        let inner = unsafe { ManuallyDrop::take(&mut self.0) };
        if Rc::strong_count(&inner) == 1 {
            let core = inner.core.clone();
            core.bury(inner);
        }
    }
}

impl Channel {
    pub(crate) fn open(
        core: &Rc<CoreState>,
        node: &Arc<BdevNode>,
        module: Box<dyn IoChannel>,
        stat: Arc<IoStat>,
        gate: u32,
        locked: Vec<Range>,
    ) -> Channel {
        let geometry = node.geometry().clone();
        let limits = [geometry.max_io_blocks, geometry.max_unmap_blocks, geometry.max_write_zeroes_blocks];
        let max_blocks = limits.into_iter().filter(|&m| m != 0).min().unwrap_or(u32::MAX);
        let native = node.native_ops();
        let shaped = if geometry.needs_shaping() { gate::SHAPED } else { 0 };
        Channel(ManuallyDrop::new(Rc::new_cyclic(|me| ChannelInner {
            gate: Cell::new(gate | shaped | if locked.is_empty() { 0 } else { gate::LOCKED }),
            max_blocks,
            fast: native.without(Op::Copy).without(Op::CompareAndWrite).without(Op::Reset).without(Op::Flush),
            inflight: Default::default(),
            epoch: Cell::new(0),
            done: if module.hooks_completion() { done_hooked } else { done_plain },
            node: node.clone(),
            core: core.clone(),
            stat,
            module: ManuallyDrop::new(module),
            geometry,
            native,
            frozen: Cell::new(u32::from(gate & gate::FROZEN != 0)),
            resetting: Cell::new(gate & gate::FROZEN != 0),
            held: IoQueue::default(),
            limited: IoQueue::default(),
            limit_timer: RefCell::default(),
            lock_wait: IoQueue::default(),
            locked: RefCell::new(locked),
            parked: RefCell::default(),
            drains: RefCell::default(),
            jobs: RefCell::default(),
            me: me.clone(),
        })))
    }

    pub(crate) fn downgrade(&self) -> Weak<ChannelInner> {
        Rc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(weak: &Weak<ChannelInner>) -> Option<Channel> {
        weak.upgrade().map(|c| Channel(ManuallyDrop::new(c)))
    }

    pub(crate) fn inner(&self) -> &ChannelInner {
        &self.0
    }

    /// Starts a request. Its outcome, whatever it is, arrives at its submitter from the core's poll phase.
    #[inline]
    pub fn submit(&self, io: IoRef) {
        self.0.submit(io);
    }

    /// Tries to end a request early; see [`IoChannel::abort`].
    pub fn abort(&self, id: IoId) -> bool {
        self.0.abort(id)
    }

    /// Ends everything in flight or held back as soon as possible.
    pub fn abort_all(&self) {
        self.0.abort_all();
    }

    /// Holds back new requests until [`resume`](Channel::resume) was called as often.
    pub fn freeze(&self) {
        self.0.freeze();
    }

    /// Lets requests pass again, those held back first.
    pub fn resume(&self) {
        self.0.resume();
    }

    /// Calls `then`, in a later turn, when every request that was given to the device until now has ended.
    pub fn drain(&self, then: impl FnOnce() + 'static) {
        self.0.drain(Box::new(then));
    }

    /// Requests in flight.
    pub fn inflight(&self) -> Inflight {
        self.0.total_inflight()
    }

    /// The device.
    pub fn node(&self) -> &Arc<BdevNode> {
        &self.0.node
    }

    /// The core's state.
    pub fn core(&self) -> &Rc<CoreState> {
        &self.0.core
    }

    /// True if a request of this kind can be done, natively or by emulation.
    pub fn supports(&self, op: Op) -> bool {
        self.0.node.supports(op)
    }
}
