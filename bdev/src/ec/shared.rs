//! What all cores see of an array.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_nvme::wire::Status;
use longshore_reactor::CoreHandle;

use super::device::Direct;
use super::format::MemberState;
use super::layout::Layout;
use super::member::is_fault;
use super::rebuild;
use super::scrub::Board;
use super::start::engine_here;
use super::stats::Counters;
use crate::channel::Channel;
use crate::desc::BdevDesc;
use crate::node::BdevNode;

/// What a read adds that fails through its member's fault; one that does not takes 1 away.
const FAULT: u32 = 4;
/// With so much the member has failed: 64 in a row, or some more if others succeed meanwhile.
const MOST_FAULTS: u32 = 64 * FAULT;

/// What is known of a device below.
pub(super) struct Below {
    /// Bytes of its block, as a power of two.
    pub(super) block_shift: u32,
    /// What it was given is lost at a crash unless it is flushed.
    pub(super) volatile: bool,
    pub(super) node: Arc<BdevNode>,
}

impl Below {
    fn of(desc: &BdevDesc) -> Below {
        let g = desc.node().geometry();
        Below { block_shift: g.block_size.trailing_zeros(), volatile: g.volatile_cache, node: desc.node().clone() }
    }
}

/// What all cores see of an array; the home core changes it.
pub(super) struct Shared {
    /// Names the engine in its core's table.
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) layout: Layout,
    pub(super) home: CoreHandle,
    descs: Mutex<Vec<Option<BdevDesc>>>,
    below: Mutex<Vec<Option<Below>>>,
    states: Vec<AtomicU8>,
    /// Members that reads may go to: bit `i` is slot `i`. Cleared before a write that passes a member over is acknowledged.
    readable: AtomicU64,
    /// Stripes that hold data, a bit each. Set before the first write is acknowledged.
    mapped: Box<[AtomicU64]>,
    offline: AtomicBool,
    /// Members that are slow: bit `i` is slot `i`. The home core says so.
    slow: AtomicU64,
    /// By slot, how badly the member reads: see [`note_read`](Shared::note_read).
    faults: Vec<AtomicU32>,
    /// Cores that have, or had, a channel of the array.
    cores: Mutex<Vec<CoreHandle>>,
    /// Reads that went straight to members, by channel.
    direct: Mutex<Vec<Arc<Direct>>>,
    pub(super) counters: Counters,
    pub(super) scrub: Board,
    pub(super) rebuild: rebuild::Board,
}

impl Shared {
    pub(super) fn new(
        id: u64,
        name: &str,
        layout: Layout,
        home: CoreHandle,
        descs: Vec<Option<BdevDesc>>,
    ) -> Arc<Shared> {
        let below: Vec<_> = descs.iter().map(|d| d.as_ref().map(Below::of)).collect();
        let words = layout.stripes.div_ceil(64) as usize;
        Arc::new(Shared {
            id,
            name: name.to_owned(),
            layout,
            home,
            states: (0..descs.len()).map(|_| AtomicU8::new(MemberState::Empty as u8)).collect(),
            readable: AtomicU64::new(0),
            descs: Mutex::new(descs),
            below: Mutex::new(below),
            mapped: (0..words).map(|_| AtomicU64::new(0)).collect(),
            offline: AtomicBool::new(false),
            slow: AtomicU64::new(0),
            faults: (0..layout.n()).map(|_| AtomicU32::new(0)).collect(),
            cores: Mutex::default(),
            direct: Mutex::default(),
            counters: Counters::default(),
            scrub: Board::default(),
            rebuild: rebuild::Board::default(),
        })
    }

    /// Handles of the members.
    pub(super) fn descs(&self) -> MutexGuard<'_, Vec<Option<BdevDesc>>> {
        self.descs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the member in `slot`: block shift and whether it has a volatile cache.
    pub(super) fn below(&self, slot: usize) -> Option<(u32, bool)> {
        let g = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        g[slot].as_ref().map(|b| (b.block_shift, b.volatile))
    }

    /// True if the device in `slot` is being removed, or is too small.
    pub(super) fn is_unusable(&self, slot: usize) -> bool {
        let g = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        g[slot].as_ref().is_some_and(|b| {
            let bytes = b.node.num_blocks().saturating_mul(1 << b.block_shift);
            b.node.is_removing() || bytes < self.layout.member_bytes()
        })
    }

    /// The name of the device in `slot`.
    pub(super) fn member_name(&self, slot: usize) -> Option<String> {
        let g = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        g[slot].as_ref().map(|b| b.node.name().to_owned())
    }

    /// The channel of the member in `slot` on this core.
    pub(super) fn channel(&self, slot: usize) -> Option<Channel> {
        self.descs()[slot].as_ref().and_then(|d| d.channel().ok())
    }

    /// Takes over a device for the member in `slot`, which has none.
    pub(super) fn settle_in(&self, slot: usize, desc: BdevDesc) {
        let below = Below::of(&desc);
        // What the former one did is not this one's fault.
        self.faults[slot].store(0, Ordering::Relaxed);
        self.descs()[slot] = Some(desc);
        self.below.lock().unwrap_or_else(PoisonError::into_inner)[slot] = Some(below);
    }

    /// Counters of reads that go straight to members, by channel.
    pub(super) fn direct(&self) -> MutexGuard<'_, Vec<Arc<Direct>>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests of hosts so far.
    pub(super) fn host_requests(&self) -> u64 {
        let c = &self.counters;
        let direct: u64 = self.direct().iter().map(|d| d.reads.load(Ordering::Relaxed)).sum();
        direct + c.host_reads.get() + c.host_writes.get() + c.host_flushes.get()
    }

    /// Closes the device in `slot`: nobody uses it any more.
    pub(super) fn close_member(&self, slot: usize) {
        let desc = self.descs()[slot].take();
        let below = self.below.lock().unwrap_or_else(PoisonError::into_inner)[slot].take();
        // Not under the locks: the device may go away by this.
        drop((desc, below));
    }

    /// `core` has a channel of the array from now on.
    pub(super) fn enter_core(&self, core: CoreHandle) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        if cores.iter().all(|c| c.index() != core.index()) {
            cores.push(core);
        }
    }

    /// Cores that have a channel of the array, or had one.
    pub(super) fn entered_cores(&self) -> Vec<CoreHandle> {
        self.cores.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[inline]
    pub(super) fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    /// Members that are slow.
    #[inline]
    pub(super) fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    /// True if reads go past the member in `slot`, because it is slow.
    pub(super) fn is_slow(&self, slot: usize) -> bool {
        self.slow() >> slot & 1 != 0
    }

    pub(super) fn set_slow(&self, slot: usize, on: bool) {
        if on {
            self.slow.fetch_or(1 << slot, Ordering::Relaxed);
        } else {
            self.slow.fetch_and(!(1 << slot), Ordering::Relaxed);
        }
    }

    /// Those of the members in `late` that are slow from now on: none, if what is left would not do without them. If more are late than
    /// can be done without, there is much to do, and reading several members for one would not make it less.
    pub(super) fn newly_slow(&self, late: u64) -> u64 {
        let (readable, slow) = (self.readable(), self.slow());
        let spare = (readable.count_ones() as usize).saturating_sub(self.layout.k);
        if ((late | slow) & readable).count_ones() as usize > spare { 0 } else { late & readable & !slow }
    }

    pub(super) fn set_state(&self, slot: usize, state: MemberState) {
        self.states[slot].store(state as u8, Ordering::Release);
        let bit = 1 << slot;
        if state == MemberState::InSync {
            self.readable.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.readable.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// State of a member, as it is used: a failed one is failed here before superblocks say so.
    pub(super) fn state(&self, slot: usize) -> MemberState {
        match self.states[slot].load(Ordering::Acquire) {
            1 => MemberState::InSync,
            2 => MemberState::Failed,
            3 => MemberState::Rebuilding,
            _ => MemberState::Empty,
        }
    }

    /// A read of the member in `slot` ended, on whatever core. Blocks that cannot be read are written anew, and that is that; but a member that
    /// fails whatever it is asked costs each read a reconstruction and a write, and may take writes all the same: then it fails.
    #[inline]
    pub(super) fn note_read(&self, slot: usize, status: Status) {
        let faults = &self.faults[slot];
        if status.is_ok() {
            let n = faults.load(Ordering::Relaxed);
            if n != 0 {
                // What another core adds meanwhile may go unnoticed: it will go on.
                faults.store(n - 1, Ordering::Relaxed);
            }
        } else if is_fault(status) {
            self.note_fault(slot);
        }
    }

    #[cold]
    fn note_fault(&self, slot: usize) {
        if self.faults[slot].fetch_add(FAULT, Ordering::Relaxed) + FAULT < MOST_FAULTS {
            return;
        }
        self.faults[slot].store(0, Ordering::Relaxed);
        let id = self.id;
        // Not from here: whoever found out is in the middle of something.
        self.home.send(move |_| {
            if let Some(e) = engine_here(id) {
                e.reads_badly(slot);
            }
        });
    }

    #[inline]
    pub(super) fn is_mapped(&self, stripe: u64) -> bool {
        self.mapped[(stripe / 64) as usize].load(Ordering::Acquire) >> (stripe % 64) & 1 != 0
    }

    /// The first stripe from `from` on that holds data, or where to go on looking: no more than some thousand words are looked at.
    pub(super) fn next_mapped(&self, from: u64) -> Result<u64, u64> {
        let first = (from / 64) as usize;
        let last = self.mapped.len().min(first + 4096);
        for at in first..last {
            let mut word = self.mapped[at].load(Ordering::Acquire);
            if at == first {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                return Ok(at as u64 * 64 + u64::from(word.trailing_zeros()));
            }
        }
        Err((last as u64 * 64).min(self.layout.stripes))
    }

    /// Stripes that hold data.
    pub(super) fn mapped_stripes(&self) -> u64 {
        self.mapped.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    pub(super) fn set_mapped(&self, stripe: u64, on: bool) {
        let (word, bit) = (&self.mapped[(stripe / 64) as usize], 1 << (stripe % 64));
        if on {
            word.fetch_or(bit, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    #[inline]
    pub(super) fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Acquire)
    }

    pub(super) fn set_offline(&self, on: bool) {
        self.offline.store(on, Ordering::Release);
    }
}
