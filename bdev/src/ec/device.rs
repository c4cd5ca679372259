//! The array as a device: its control plane, and a channel per core. Reads that lie in one strip of a healthy member go straight to
//! it, as the same request; everything else goes to the home core.

use std::any::Any;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Reactor, oneshot};

use super::engine::Engine;
use super::format::MemberState;
use super::lower::Lower;
use super::member::says_nothing;
use super::remote::Remote;
use super::scrub::{self, ScrubOptions, ScrubProgress};
use super::shared::Shared;
use super::start::engine_here;
use super::stats::EcStats;
use crate::device::{Bdev, Geometry, IoChannel, Layer, SupportedOps};
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Product name of erasure-coded arrays.
pub const PRODUCT_NAME: &str = "ErasureCode Volume";

/// What a direct read keeps: a bit that it is one, its number, and from this bit on its first block.
const LBA_SHIFT: u32 = 17;

/// A read that the member which has it all did not do: what the layer's word then says, with the bit clear of those that are with a
/// member. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Missed {
    /// The strip that could not be read.
    pub(super) strip: usize,
    /// The member could not read it: what it has there is to be written anew. Otherwise it was not asked, or did not answer.
    pub(super) heal: bool,
}

impl Missed {
    fn word(self) -> u64 {
        (self.strip as u64 + 1) << 2 | u64::from(self.heal) << 1
    }

    /// What a word says, if it says that.
    pub(super) fn of(word: u32) -> Option<Missed> {
        let strip = (word >> 2).checked_sub(1)? as usize;
        Some(Missed { strip, heal: word >> 1 & 1 != 0 })
    }
}

/// Reads of one core that its channel served: straight from a member, or of a stripe that holds nothing. One core writes, anyone
/// reads.
#[derive(Default)]
pub(super) struct Direct {
    pub(super) reads: AtomicU64,
    bytes: AtomicU64,
    /// Those of them that asked no member.
    empty: AtomicU64,
    empty_bytes: AtomicU64,
}

impl Direct {
    #[inline]
    fn count(&self, bytes: u64) {
        self.reads.store(self.reads.load(Relaxed) + 1, Relaxed);
        self.bytes.store(self.bytes.load(Relaxed) + bytes, Relaxed);
    }

    fn count_empty(&self, bytes: u64) {
        self.count(bytes);
        self.empty.store(self.empty.load(Relaxed) + 1, Relaxed);
        self.empty_bytes.store(self.empty_bytes.load(Relaxed) + bytes, Relaxed);
    }
}

/// An erasure-coded array.
pub struct Ec {
    pub(super) shared: Arc<Shared>,
    pub(super) geometry: Geometry,
    /// A member that takes longer than this has failed.
    patience: Duration,
    /// One that takes longer than this for a read is slow; zero: none is.
    slow: Duration,
    closed: Mutex<Option<oneshot::Receiver<()>>>,
    closing: Mutex<Option<oneshot::Sender<()>>>,
}

impl Ec {
    pub(super) fn new(shared: Arc<Shared>, geometry: Geometry, patience: Duration, slow: Duration) -> Arc<Ec> {
        let (tx, rx) = oneshot::channel();
        Arc::new(Ec { shared, geometry, patience, slow, closed: Mutex::new(Some(rx)), closing: Mutex::new(Some(tx)) })
    }

    /// What the host asked for and what that cost.
    pub fn stats(&self) -> EcStats {
        let mut s = self.shared.counters.snapshot();
        for d in self.shared.direct().iter() {
            let (reads, bytes) = (d.reads.load(Relaxed), d.bytes.load(Relaxed));
            s.host_reads += reads;
            s.host_read_bytes += bytes;
            // The core may be counting: what it counts last may be ahead of what was looked at first.
            s.member_reads += reads.saturating_sub(d.empty.load(Relaxed));
            s.member_read_bytes += bytes.saturating_sub(d.empty_bytes.load(Relaxed));
        }
        s
    }

    /// How the member in `slot` is used at present.
    pub fn member_state(&self, slot: usize) -> MemberState {
        self.shared.state(slot)
    }

    /// True if too few members are left to serve requests.
    pub fn is_offline(&self) -> bool {
        self.shared.is_offline()
    }

    /// The device in `slot` is going away: the array lets go of it, and goes on without it if it can.
    pub fn member_gone(&self, slot: usize, why: &'static str) {
        let id = self.shared.id;
        self.shared.home.send(move |_| {
            if let Some(e) = engine_here(id) {
                e.member_gone(slot, why);
            }
        });
    }

    /// As [`member_gone`](Ec::member_gone), if the device that is in `slot` when the array hears of it is being removed, or is too small: what is
    /// said of a former one comes late.
    pub(super) fn device_changed(&self, slot: usize, why: &'static str) {
        let id = self.shared.id;
        self.shared.home.send(move |_| {
            if let Some(e) = engine_here(id).filter(|e| e.shared.is_unusable(slot)) {
                e.member_gone(slot, why);
            }
        });
    }

    /// Begins to check the parity of every stripe that holds data.
    ///
    /// # Errors
    /// The array is offline, or is being scrubbed already.
    pub fn start_scrub(&self, options: ScrubOptions) -> Result<(), BdevError> {
        scrub::start(&self.shared, options)
    }

    /// Ends the scrub after the stripe it is at. False: there is none under way.
    pub fn stop_scrub(&self) -> bool {
        self.shared.scrub.stop()
    }

    /// How far the scrub is, or how the last one ended.
    pub fn scrub_progress(&self) -> ScrubProgress {
        self.shared.scrub.progress()
    }

    /// Ends, after the array was unregistered, when its members are closed. For one caller.
    pub fn closed(&self) -> Option<oneshot::Receiver<()>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Bdev for Ec {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Unmap, Op::WriteZeroes, Op::Reset])
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let direct = Arc::new(Direct::default());
        self.shared.direct().push(direct.clone());
        let home = match reactor.handle().index() == self.shared.home.index() {
            true => {
                Home::Here(engine_here(self.shared.id).ok_or_else(|| BdevError::NotFound(self.shared.name.clone()))?)
            }
            false => Home::Away(Remote::open(&self.shared, reactor)),
        };
        Ok(Box::new(EcChannel {
            lower: Lower::open(&self.shared, reactor, self.patience, self.slow),
            shared: self.shared.clone(),
            home,
            direct,
        }))
    }

    fn base_names(&self) -> Vec<String> {
        (0..self.shared.layout.n()).filter_map(|slot| self.shared.member_name(slot)).collect()
    }

    fn stack_depth(&self) -> usize {
        let below = self.shared.descs();
        1 + below.iter().flatten().map(|d| d.node().device().stack_depth()).max().unwrap_or(0)
    }

    fn destruct(&self) {
        let id = self.shared.id;
        let done = self.closing.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.home.send(move |r| super::start::stop(r, id, done));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

enum Home {
    Here(Rc<Engine>),
    Away(Rc<Remote>),
}

struct EcChannel {
    shared: Arc<Shared>,
    lower: Rc<Lower>,
    home: Home,
    direct: Arc<Direct>,
}

impl EcChannel {
    fn send_home(&self, io: IoRef) {
        match &self.home {
            Home::Here(e) => e.submit(io),
            Home::Away(r) => r.forward(io),
        }
    }

    /// Sends a read to the member that holds it all, as it is. Otherwise gives it back.
    #[inline]
    fn read_direct(&self, mut io: IoRef) -> Result<(), IoRef> {
        let l = &self.shared.layout;
        let place = l.place(io.lba());
        let bytes = u64::from(io.nblocks()) * u64::from(l.block);
        if u64::from(place.offset) + bytes > u64::from(l.strip) || self.shared.is_offline() {
            return Err(io);
        }
        if (io.buf_len() as u64) < bytes {
            // Its host's fault: a member that says so had none.
            return Err(io);
        }
        if !self.shared.is_mapped(place.stripe) {
            self.direct.count_empty(bytes);
            io.segments_mut().for_each(|s| s.fill(0));
            io.complete_later(Status::SUCCESS);
            return Ok(());
        }
        let slot = l.slot_of(place.stripe, place.data);
        if io.lba() >> (64 - LBA_SHIFT) != 0 || !self.lower.reads(slot) {
            return Err(io);
        }
        self.direct.count(bytes);
        let shift = self.lower.shift(slot);
        let at = self.lower.enter(slot, io.id());
        io.set_saved(io.lba() << LBA_SHIFT | u64::from(at) << 1 | 1);
        let lba = (l.strip_offset(place.stripe) + u64::from(place.offset)) >> shift;
        let (op, flags) = (io.op(), io.flags());
        io.prepare(op, flags, lba, (bytes >> shift) as u32);
        self.lower.submit(slot, io);
        Ok(())
    }
}

impl IoChannel for EcChannel {
    fn submit(&self, io: IoRef) {
        if io.op() == Op::Read && !io.flags().has(IoFlags::ALTERNATE) {
            if let Err(io) = self.read_direct(io) {
                self.shared.counters.host_reads.add(1);
                self.shared.counters.host_read_bytes.add(u64::from(io.nblocks()) * u64::from(self.shared.layout.block));
                self.send_home(io);
            }
            return;
        }
        self.send_home(io);
    }

    fn hooks_completion(&self) -> bool {
        true
    }

    fn offers_alternates(&self) -> bool {
        true
    }

    fn completed(&self, mut io: IoRef) {
        let (word, status) = (io.saved(), io.status());
        if word & 1 == 0 {
            return io.complete(status);
        }
        let l = &self.shared.layout;
        let lba = word >> LBA_SHIFT;
        let place = l.place(lba);
        let slot = l.slot_of(place.stripe, place.data);
        let asked = self.lower.landed(slot, (word >> 1) as u16 as u32);
        let n = io.nblocks() >> (l.block.trailing_zeros() - self.lower.shift(slot));
        let (op, flags) = (io.op(), io.flags());
        io.prepare(op, flags, lba, n);
        self.shared.note_read(slot, status);
        // A read whose end the host did not ask for is not over: the array itself may have, because the member failed, or its device was reset.
        if status.is_ok() || asked && status.is(Status::ABORT_REQUESTED) {
            return io.complete(status);
        }
        // The others have it too.
        let missed = Missed { strip: place.data, heal: !says_nothing(status) };
        io.set_saved(missed.word());
        match &self.home {
            Home::Here(e) => e.read_missed(io, missed),
            Home::Away(r) => r.forward(io),
        }
    }

    fn abort(&self, id: IoId) -> bool {
        if self.lower.abort(id) {
            return true;
        }
        match &self.home {
            Home::Here(e) => e.abort(id),
            Home::Away(r) => r.abort(id),
        }
    }
}
