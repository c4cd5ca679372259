//! One device on one core: bounds, statistics, and what is in flight. The slow half (gates, splitting) is in `gate`.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use longshore_nvme::wire::Status;

use crate::core::CoreState;
use crate::device::{Geometry, IoChannel, Layer, SupportedOps};
use crate::frame::FrameFn;
use crate::gate::{self, Drains};
use crate::io::{IoId, IoRef, Op};
use crate::job::Job;
use crate::node::BdevNode;
use crate::qos::{self, Limited};
use crate::queue::IoQueue;
use crate::range_lock::Range;
use crate::split;
use crate::stat::{IoStat, StatReset};

/// Requests in flight on one channel.
pub type Inflight = u32;

/// Stamps of requests that went the slow way carry the epoch of the submission in bit 0.
const EPOCH: u64 = 1;
/// ...and in bit 1 whether the request is a piece of one that was counted already.
pub(crate) const PIECE: u64 = 2;

/// A device open on this core. Clones share it. It may be dropped at any time: what it holds goes when nothing is in flight
/// any more.
#[derive(Clone)]
pub struct Channel(ManuallyDrop<Rc<ChannelInner>>);

/// # Two ways
///
/// Requests go the fast way while no gate is closed, here or in a channel below that they would be forwarded to: one comparison
/// with `limits`, one of the range, and they are with the device. They share one in-flight count. Everything else goes the slow
/// way, through the gates; there, in-flight counts are kept by epoch, so that a drain can tell new requests from old ones. A
/// drain closes a gate, so that the fast way empties.
///
/// Channels that only forward are left out of the fast way: a request goes from the topmost straight to the device at the bottom,
/// and is counted for all of them in counters that they share.
#[repr(C)]
pub(crate) struct ChannelInner {
    /// Largest request of each kind that may go the fast way, in blocks; 0 = none.
    limits: [Cell<u32>; Op::COUNT],
    fast_inflight: Cell<Inflight>,
    /// Gates closed here or below, but for rate limits.
    closed: Cell<u32>,
    /// The device that fast requests go to. It belongs to this channel or to the last of `chain`.
    target: NonNull<dyn IoChannel>,
    clock: NonNull<Cell<u64>>,
    /// Counters of fast requests: `stat`, or shared with the channels that they go past.
    fast_stat: Arc<IoStat>,
    pub(crate) node: Arc<BdevNode>,
    pub(crate) gate: Cell<u32>,
    /// In flight the slow way, by epoch.
    pub(crate) inflight: [Cell<Inflight>; 2],
    pub(crate) epoch: Cell<u32>,
    done: FrameFn,
    core: Rc<CoreState>,
    stat: Arc<IoStat>,
    /// The lower channels that fast requests go past, from the nearest down.
    chain: Vec<Channel>,
    /// Channels whose fast requests go past this one.
    uppers: RefCell<Vec<Weak<ChannelInner>>>,
    /// From a box, to which it returns when the channel is dropped.
    module: NonNull<dyn IoChannel>,
    geometry: Geometry,
    pub(crate) native: SupportedOps,
    /// As `limits`, for requests that the rate limits of this channel let pass.
    admitted: [Cell<u32>; Op::COUNT],
    pub(crate) frozen: Cell<u32>,
    /// A reset of the device is one of those who froze it.
    pub(crate) resetting: Cell<bool>,
    /// Held back while frozen.
    pub(crate) held: IoQueue,
    /// Held back by rate limits.
    pub(crate) limited: Limited,
    /// Held back by a locked range.
    pub(crate) lock_wait: IoQueue,
    pub(crate) locked: RefCell<Vec<Range>>,
    /// Requests that wait for their turn at something of the whole device, by the ticket they drew for it.
    pub(crate) parked: RefCell<Vec<(u64, IoRef)>>,
    pub(crate) drains: RefCell<Drains>,
    pub(crate) jobs: RefCell<Vec<Rc<Job>>>,
    me: Weak<ChannelInner>,
}

unsafe fn done_fast(ctx: *const (), io: IoRef, stamp: u64, _: u64) {
    // SAFETY: the frame was pushed by `submit` with this channel, which outlives its in-flight count.
    let ch = unsafe { &*(ctx as *const ChannelInner) };
    if ch.closed.get() != 0 || io.status() != Status::SUCCESS {
        return ch.finish_rarely(io, stamp);
    }
    // SAFETY: as in `submit`.
    let now = unsafe { ch.clock.as_ref() }.get();
    ch.fast_stat.record_success(io.op(), io.nblocks(), now.wrapping_sub(stamp));
    ch.fast_inflight.set(ch.fast_inflight.get() - 1);
    // The channel is not touched any more: whoever is told next may drop it.
    io.unwind();
}

unsafe fn done_plain(ctx: *const (), io: IoRef, stamp: u64, _: u64) {
    // SAFETY: as in `done_fast`, for `pass` and `hold`.
    let ch = unsafe { &*(ctx as *const ChannelInner) };
    ch.finish(&io, stamp);
    io.unwind();
}

unsafe fn done_hooked(ctx: *const (), mut io: IoRef, _: u64, _: u64) {
    // SAFETY: as in `done_plain`. A channel that `completed` drops is freed by the core's poll, not under its feet.
    let ch = unsafe { &*(ctx as *const ChannelInner) };
    io.unpop();
    io.top_mut().func = done_plain;
    ch.module().completed(io);
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
    fn emulate(mut self) {
        // SAFETY: the device that calls this holds the request, so the frame on top is that of its own channel, or of one
        // that requests reach it from, as in `done_fast`.
        let ch = unsafe { &*(self.top().ctx as *const ChannelInner) };
        ch.leave_fast_way(&mut self);
        crate::job::emulate_held(ch, self);
    }
}

impl ChannelInner {
    #[inline]
    pub(crate) fn submit(&self, io: IoRef) {
        let (lba, n) = (io.lba(), io.nblocks());
        // A request of no blocks wraps and goes the slow way.
        if n.wrapping_sub(1) >= self.limits[io.op() as usize].get() {
            return self.submit_slow(io);
        }
        if lba.checked_add(u64::from(n)).is_none_or(|e| e > self.node.num_blocks()) {
            return io.complete_later(Status::LBA_OUT_OF_RANGE);
        }
        self.submit_fast(io);
    }

    /// Submits a request that may go the fast way, as `limits` or `admitted` say; its range was checked.
    #[inline]
    pub(crate) fn submit_fast(&self, mut io: IoRef) {
        // SAFETY: the reactor, and its clock, live as long as `core`.
        let stamp = unsafe { self.clock.as_ref() }.get();
        io.push_fast(done_fast, std::ptr::from_ref(self).cast(), stamp);
        self.fast_inflight.set(self.fast_inflight.get() + 1);
        // SAFETY: the device is `module` or that of a channel in `chain`; both live as long as this.
        unsafe { self.target.as_ref() }.submit(io);
    }

    /// True if nothing but rate limits stands in the fast way of `io`.
    #[inline]
    pub(crate) fn may_be_fast(&self, io: &IoRef) -> bool {
        let n = io.nblocks();
        n.wrapping_sub(1) < self.admitted[io.op() as usize].get()
            && io.lba().checked_add(u64::from(n)).is_some_and(|e| e <= self.node.num_blocks())
    }

    /// A request that failed, that was not lent anything, or that somebody waits for.
    #[cold]
    #[inline(never)]
    fn finish_rarely(&self, io: IoRef, stamp: u64) {
        if io.is_unlent() {
            qos::take_back(self, &io);
        } else {
            self.fast_stat.record(io.op(), io.nblocks(), self.core.now().saturating_sub(stamp), io.status());
        }
        self.fast_inflight.set(self.fast_inflight.get() - 1);
        if self.closed.get() != 0 {
            self.fast_way_empties();
        }
        io.unwind();
    }

    #[cold]
    fn fast_way_empties(&self) {
        self.check_drains();
        for lower in &self.chain {
            lower.inner().check_drains();
        }
    }

    /// From now on the core works on `io`, and new requests for it may come: it must not hold up a drain below.
    fn leave_fast_way(&self, io: &mut IoRef) {
        let fast: FrameFn = done_fast;
        if std::ptr::fn_addr_eq(io.top().func, fast) {
            self.fast_inflight.set(self.fast_inflight.get() - 1);
            let epoch = self.epoch.get() & 1;
            let n = &self.inflight[epoch as usize];
            n.set(n.get() + 1);
            let top = io.top_mut();
            top.func = done_plain;
            top.stamp = top.stamp & !(EPOCH | PIECE) | u64::from(epoch);
            if self.closed.get() != 0 {
                self.fast_way_empties();
            }
        }
    }

    /// Hands the request to the device.
    pub(crate) fn pass(&self, mut io: IoRef, stamp: u64) {
        self.enter(&mut io, stamp, self.done);
        self.module().submit(io);
    }

    /// Counts the request as in flight without handing it to the device: the core works on it.
    pub(crate) fn hold(&self, io: &mut IoRef, stamp: u64) {
        self.enter(io, stamp, done_plain);
    }

    fn enter(&self, io: &mut IoRef, stamp: u64, func: FrameFn) {
        let epoch = self.epoch.get() & 1;
        let n = &self.inflight[epoch as usize];
        n.set(n.get() + 1);
        io.push(func, std::ptr::from_ref(self).cast(), stamp | u64::from(epoch));
    }

    /// The time of now for a request that passes the slow way.
    pub(crate) fn stamp(&self) -> u64 {
        let exact = self.gate.get() & gate::HISTOGRAM != 0;
        (if exact { self.core.reactor().rdtsc() } else { self.core.now() }) & !(EPOCH | PIECE)
    }

    fn finish(&self, io: &IoRef, stamp: u64) {
        let counts = stamp & PIECE == 0 && !io.is_unlent();
        if counts {
            // A stamp may be exact, and then later than the coarse time of now.
            let ticks = self.core.now().saturating_sub(stamp);
            self.stat.record(io.op(), io.nblocks(), ticks, io.status());
        } else if stamp & PIECE == 0 {
            qos::take_back(self, io);
        }
        let n = &self.inflight[(stamp & EPOCH) as usize];
        n.set(n.get() - 1);
        let g = self.gate.get();
        if g & gate::HISTOGRAM != 0 && counts {
            self.stat.tally(io.op(), self.core.reactor().rdtsc().saturating_sub(stamp));
        }
        if g & gate::DRAINING != 0 {
            self.check_drains();
        }
    }

    pub(crate) fn set_gate(&self, bit: u32, on: bool) {
        let g = self.gate.get();
        self.gate.set(if on { g | bit } else { g & !bit });
        self.open_or_close();
        for upper in self.uppers.borrow().iter().filter_map(Weak::upgrade) {
            upper.open_or_close();
        }
    }

    /// Opens the fast way, or closes it, as gates here and below are now.
    fn open_or_close(&self) {
        let below = self.chain.iter().fold(0, |g, lower| g | lower.inner().gate.get());
        let own = self.gate.get();
        self.closed.set((own | below) & !gate::QOS);
        let hooks = self.module().hooks_completion();
        for op in Op::ALL {
            let simple = matches!(op, Op::Read | Op::Write | Op::Unmap | Op::WriteZeroes | Op::Compare);
            // What a lower channel would emulate must stop there.
            let native = self.native.has(op) && self.chain.iter().all(|lower| lower.inner().native.has(op));
            let limit = if simple && native && !hooks { self.limit(op) } else { 0 };
            let unless = |closed: u32| if closed == 0 { limit } else { 0 };
            self.limits[op as usize].set(unless(own | below));
            self.admitted[op as usize].set(unless(own & !gate::QOS | below));
        }
    }

    fn limit(&self, op: Op) -> u32 {
        let own = split::limit(&self.geometry, op);
        self.chain.iter().fold(own, |l, lower| l.min(split::limit(&lower.inner().geometry, op)))
    }

    /// True if nothing that went the fast way to this device is in flight.
    pub(crate) fn fast_way_empty(&self) -> bool {
        self.fast_inflight.get() == 0
            && self.uppers.borrow().iter().filter_map(Weak::upgrade).all(|u| u.fast_inflight.get() == 0)
    }

    /// Requests in flight on the device, those that went past this channel included.
    pub(crate) fn device_inflight(&self) -> Inflight {
        let past: u32 = self.uppers.borrow().iter().filter_map(Weak::upgrade).map(|u| u.fast_inflight.get()).sum();
        self.total_inflight() + past
    }

    /// Moves what the shared counters hold to every device that they count for.
    pub(crate) fn settle_shared(&self) {
        let uppers: Vec<_> = self.uppers.borrow().iter().filter_map(Weak::upgrade).collect();
        for ch in uppers.iter().map(|u| &**u).chain([self]) {
            if !ch.chain.is_empty() {
                let s = ch.fast_stat.snapshot();
                ch.node.add_closed(&s);
                ch.chain.iter().for_each(|lower| lower.node().add_closed(&s));
                ch.fast_stat.reset(StatReset::All);
            }
        }
    }

    pub(crate) fn core(&self) -> &Rc<CoreState> {
        &self.core
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn module(&self) -> &dyn IoChannel {
        // SAFETY: valid until the channel is dropped; devices are only ever used by shared reference.
        unsafe { self.module.as_ref() }
    }

    pub(crate) fn stat(&self) -> &Arc<IoStat> {
        &self.stat
    }

    /// A counted handle of this channel.
    pub(crate) fn channel(&self) -> Channel {
        Channel(ManuallyDrop::new(self.me.upgrade().expect("a channel in use is alive")))
    }

    pub(crate) fn total_inflight(&self) -> Inflight {
        self.inflight[0].get() + self.inflight[1].get() + self.fast_inflight.get()
    }

    /// True if requests point here.
    pub(crate) fn busy(&self) -> bool {
        self.total_inflight() != 0
            || !self.held.is_empty()
            || !self.limited.queue.is_empty()
            || !self.lock_wait.is_empty()
            || !self.parked.borrow().is_empty()
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
            std::mem::forget(std::mem::take(&mut self.limited.queue));
            std::mem::forget(std::mem::take(&mut self.lock_wait));
            std::mem::forget(self.parked.take());
            std::mem::forget(std::mem::take(&mut self.chain));
        } else {
            qos::give_back(self);
            if !self.chain.is_empty() {
                self.node.unshare(&self.fast_stat);
                self.chain.iter().for_each(|lower| lower.node().unshare(&self.fast_stat));
            }
            // SAFETY: it came from a box, nothing is in flight, and nobody uses it after this.
            drop(unsafe { Box::from_raw(self.module.as_ptr()) });
        }
        self.node.channel_closed(&self.stat);
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

/// The channels that requests of `module` may go past, from the nearest down.
fn forwarded(node: &BdevNode, module: &dyn IoChannel) -> Vec<Channel> {
    let Some(lower) = module.forwards() else { return Vec::new() };
    let l = lower.inner();
    if module.hooks_completion() || l.module().hooks_completion() || node.num_blocks() > l.node.num_blocks() {
        return Vec::new();
    }
    let mut chain = vec![lower.clone()];
    chain.extend(l.chain.iter().cloned());
    chain
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
        let native = node.native_ops();
        let shaped = if geometry.needs_shaping() { gate::SHAPED } else { 0 };
        let chain = forwarded(node, &*module);
        let hooks = module.hooks_completion();
        let module = NonNull::from(Box::leak(module));
        let target = chain.last().map_or(module, |leaf| leaf.0.target);
        let fast_stat = if chain.is_empty() { stat.clone() } else { Arc::new(IoStat::new()) };
        if !chain.is_empty() {
            let handle = core.reactor().handle();
            node.share(handle.clone(), &fast_stat);
            chain.iter().for_each(|lower| lower.node().share(handle.clone(), &fast_stat));
        }
        let inner = Rc::new_cyclic(|me| ChannelInner {
            limits: Default::default(),
            fast_inflight: Cell::new(0),
            closed: Cell::new(0),
            target,
            clock: core.clock(),
            fast_stat,
            node: node.clone(),
            gate: Cell::new(gate | shaped | if locked.is_empty() { 0 } else { gate::LOCKED }),
            inflight: Default::default(),
            epoch: Cell::new(0),
            done: if hooks { done_hooked } else { done_plain },
            core: core.clone(),
            stat,
            chain,
            uppers: RefCell::default(),
            module,
            geometry,
            native,
            admitted: Default::default(),
            frozen: Cell::new(u32::from(gate & gate::FROZEN != 0)),
            resetting: Cell::new(gate & gate::FROZEN != 0),
            held: IoQueue::default(),
            limited: Limited::default(),
            lock_wait: IoQueue::default(),
            locked: RefCell::new(locked),
            parked: RefCell::default(),
            drains: RefCell::default(),
            jobs: RefCell::default(),
            me: me.clone(),
        });
        for lower in &inner.chain {
            let mut uppers = lower.0.uppers.borrow_mut();
            uppers.retain(|u| u.strong_count() > 0);
            uppers.push(Rc::downgrade(&inner));
        }
        inner.open_or_close();
        Channel(ManuallyDrop::new(inner))
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

    /// True if a read may ask for the device's own memory: see [`IoFlags::LEND`](crate::IoFlags::LEND).
    pub fn lends(&self) -> bool {
        let shaped = self.0.gate.get() & gate::SHAPED != 0 || self.0.geometry.max_io_blocks != 0;
        !shaped && self.0.module().lends()
    }

    /// True if a read may ask for other reconstructions: see [`read_alternate`](Channel::read_alternate).
    pub fn offers_alternates(&self) -> bool {
        self.0.module().offers_alternates()
    }

    /// True if a request of this kind can be done, natively or by emulation.
    pub fn supports(&self, op: Op) -> bool {
        self.0.node.supports(op)
    }
}
