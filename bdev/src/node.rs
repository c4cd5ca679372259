//! A registered device: name, size, who holds it open, and its counters on every core.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use longshore_reactor::{CoreHandle, oneshot};
use uuid::Uuid;

use crate::device::{Bdev, Geometry, SupportedOps};
use crate::event::{BdevEvent, EventSink};
use crate::gate;
use crate::io::Op;
use crate::monitor::{self, Sampler};
use crate::qos::Qos;
use crate::range_lock::{LockTable, Range};
use crate::registry::BdevError;
use crate::reset::ResetQueue;
use crate::stat::{IoStat, StatReset, StatSnapshot};

/// How a device is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// One module writes; others may read.
    ExclusiveWrite,
    /// Many read, the claiming descriptor writes.
    ReadManyWriteOne,
    /// Many read, nobody writes.
    ReadManyWriteNone,
    /// Many read, many write, by agreement on a key.
    ReadManyWriteShared,
}

/// A claim and its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What the claim allows.
    pub kind: ClaimKind,
    /// Module that holds it.
    pub module: &'static str,
}

struct Open {
    id: u64,
    write: bool,
    sink: Arc<EventSink>,
}

#[derive(Default)]
struct NodeState {
    claim: Option<Claim>,
    claim_holder: u64,
    opens: Vec<Open>,
    next_id: u64,
    removing: bool,
    channels: Vec<(CoreHandle, Arc<IoStat>)>,
    /// Counters of channels of layers above whose requests go past this device's channels.
    shared: Vec<(CoreHandle, Arc<IoStat>)>,
    /// Counters of channels that were closed.
    closed: StatSnapshot,
    closed_histogram: Option<Vec<u64>>,
    /// The histogram is on, for one operation or all.
    histogram: Option<Option<Op>>,
    locks: LockTable,
    resets: ResetQueue,
    tickets: u64,
    removed: Vec<oneshot::Sender<()>>,
    gone: bool,
}

/// A registered device.
pub struct BdevNode {
    name: String,
    uuid: Uuid,
    aliases: RwLock<Vec<String>>,
    dev: Arc<dyn Bdev>,
    geometry: Geometry,
    native: SupportedOps,
    num_blocks: AtomicU64,
    read_only: bool,
    qos: Qos,
    sampler: Sampler,
    state: Mutex<NodeState>,
}

impl std::fmt::Debug for BdevNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BdevNode").field("name", &self.name).field("blocks", &self.num_blocks()).finish()
    }
}

impl BdevNode {
    pub(crate) fn new(name: String, uuid: Uuid, dev: Arc<dyn Bdev>) -> Arc<BdevNode> {
        let geometry = dev.geometry();
        let native = dev.supported();
        Arc::new(BdevNode {
            name,
            aliases: RwLock::new(vec![uuid.to_string()]),
            uuid,
            num_blocks: AtomicU64::new(geometry.num_blocks),
            geometry,
            native,
            read_only: dev.read_only(),
            dev,
            qos: Qos::default(),
            sampler: Sampler::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Unique name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Unique id.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Further names, the UUID among them.
    pub fn aliases(&self) -> Vec<String> {
        self.aliases.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Its name and all others.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = self.aliases();
        names.push(self.name().to_owned());
        names
    }

    pub(crate) fn push_alias(&self, alias: String) {
        self.aliases.write().unwrap_or_else(|e| e.into_inner()).push(alias);
    }

    /// The device behind the name.
    pub fn device(&self) -> &Arc<dyn Bdev> {
        &self.dev
    }

    /// Shape and limits at registration; for the size of now see [`num_blocks`](BdevNode::num_blocks).
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Blocks of now.
    #[inline]
    pub fn num_blocks(&self) -> u64 {
        self.num_blocks.load(Ordering::Relaxed)
    }

    /// Requests that would change it are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// True if the device is being removed.
    pub fn is_removing(&self) -> bool {
        self.state().removing
    }

    /// How many hold it open.
    pub fn open_count(&self) -> usize {
        self.state().opens.len()
    }

    pub(crate) fn native_ops(&self) -> SupportedOps {
        self.native
    }

    /// True if a request of this kind can be done, natively or by emulation.
    pub fn supports(&self, op: Op) -> bool {
        self.native.has(op)
            || match op {
                Op::WriteZeroes | Op::Compare | Op::CompareAndWrite | Op::Copy => {
                    self.native.has(Op::Write) && self.native.has(Op::Read)
                }
                _ => false,
            }
    }

    /// The claim on the device, if there is one.
    pub fn claim(&self) -> Option<Claim> {
        self.state().claim.clone()
    }

    pub(crate) fn open(&self, write: bool, sink: EventSink) -> Result<u64, BdevError> {
        let mut s = self.state();
        if s.removing {
            return Err(BdevError::NotFound(self.name.clone()));
        }
        if write && let Some(c) = &s.claim {
            return Err(BdevError::Claimed { name: self.name.clone(), by: c.module });
        }
        s.next_id += 1;
        let id = s.next_id;
        s.opens.push(Open { id, write, sink: Arc::new(sink) });
        Ok(id)
    }

    pub(crate) fn close(&self, id: u64) {
        let mut s = self.state();
        if s.claim_holder == id {
            s.claim = None;
            s.claim_holder = 0;
        }
        s.opens.retain(|o| o.id != id);
        self.finish_removal(s);
    }

    pub(crate) fn set_claim(&self, id: u64, claim: Claim) -> Result<(), BdevError> {
        let mut s = self.state();
        if let Some(c) = &s.claim {
            return Err(BdevError::Claimed { name: self.name.clone(), by: c.module });
        }
        if s.opens.iter().any(|o| o.write && o.id != id) {
            return Err(BdevError::Busy { name: self.name.clone(), why: "open for writing elsewhere" });
        }
        s.claim = Some(claim);
        s.claim_holder = id;
        Ok(())
    }

    pub(crate) fn release_claim(&self, id: u64) {
        let mut s = self.state();
        if s.claim_holder == id {
            s.claim = None;
            s.claim_holder = 0;
        }
    }

    /// Enters a core into the list; returns its counters, and the gate and locked ranges it starts with.
    pub(crate) fn channel_opened(&self, core: CoreHandle) -> Result<(Arc<IoStat>, u32, Vec<Range>), BdevError> {
        let stat = Arc::new(IoStat::new());
        let mut s = self.state();
        if s.gone {
            return Err(BdevError::NotFound(self.name.clone()));
        }
        s.channels.push((core, stat.clone()));
        let mut g = 0;
        for (bit, on) in [
            (gate::REMOVED, s.removing),
            (gate::FROZEN, s.resets.active()),
            (gate::QOS, self.qos.any()),
            (gate::HISTOGRAM, s.histogram.is_some()),
        ] {
            g |= if on { bit } else { 0 };
        }
        if let Some(op) = s.histogram {
            stat.histogram().select(op);
        }
        Ok((stat, g, s.locks.held()))
    }

    pub(crate) fn channel_closed(&self, stat: &Arc<IoStat>) {
        let mut s = self.state();
        if let Some(i) = s.channels.iter().position(|(_, c)| Arc::ptr_eq(c, stat)) {
            let (_, c) = s.channels.swap_remove(i);
            s.closed.merge(&c.snapshot());
            if s.histogram.is_some() {
                c.histogram().add_to(s.closed_histogram.get_or_insert_with(monitor::empty));
            }
        }
        self.finish_removal(s);
    }

    /// The cores that have the device open.
    pub(crate) fn cores(&self) -> Vec<CoreHandle> {
        self.state().channels.iter().map(|(c, _)| c.clone()).collect()
    }

    /// Range locks and resets, and a fresh ticket for either.
    pub(crate) fn with_locks<R>(&self, f: impl FnOnce(u64, &mut LockTable, &mut ResetQueue) -> R) -> R {
        let mut s = self.state();
        let s = &mut *s;
        s.tickets += 1;
        f(s.tickets, &mut s.locks, &mut s.resets)
    }

    pub(crate) fn qos(&self) -> &Qos {
        &self.qos
    }

    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    pub(crate) fn set_histogram(&self, of: Option<Option<Op>>) {
        let mut s = self.state();
        s.histogram = of;
        s.closed_histogram = None;
    }

    pub(crate) fn histogram_op(&self) -> Option<Option<Op>> {
        self.state().histogram
    }

    pub(crate) fn closed_histogram(&self) -> Vec<u64> {
        self.state().closed_histogram.clone().unwrap_or_else(monitor::empty)
    }

    /// Counters over all cores, closed channels included.
    pub fn stats(&self) -> StatSnapshot {
        let s = self.state();
        let mut sum = s.closed.clone();
        for (_, c) in s.channels.iter().chain(&s.shared) {
            sum.merge(&c.snapshot());
        }
        sum
    }

    /// The counters of each core that has the device open, by the core's index.
    pub fn channel_stats(&self) -> Vec<(usize, StatSnapshot)> {
        let s = self.state();
        let on = |core: &CoreHandle| {
            let mut sum = StatSnapshot::default();
            s.channels.iter().chain(&s.shared).filter(|(c, _)| c.index() == core.index()).for_each(|(_, c)| {
                sum.merge(&c.snapshot());
            });
            sum
        };
        s.channels.iter().map(|(c, _)| (c.index(), on(c))).collect()
    }

    pub(crate) fn histograms(&self) -> Vec<Arc<IoStat>> {
        self.state().channels.iter().map(|(_, s)| s.clone()).collect()
    }

    /// `stat` counts for this device too.
    pub(crate) fn share(&self, core: CoreHandle, stat: &Arc<IoStat>) {
        self.state().shared.push((core, stat.clone()));
    }

    /// `stat` counts no more.
    pub(crate) fn unshare(&self, stat: &Arc<IoStat>) {
        let mut s = self.state();
        if let Some(i) = s.shared.iter().position(|(_, c)| Arc::ptr_eq(c, stat)) {
            let (_, c) = s.shared.swap_remove(i);
            s.closed.merge(&c.snapshot());
        }
    }

    pub(crate) fn add_closed(&self, counted: &StatSnapshot) {
        self.state().closed.merge(counted);
    }

    /// Sets back the counters of closed channels; those of open ones are reset on their cores.
    pub(crate) fn reset_closed(&self, what: StatReset) {
        self.state().closed.reset(what);
    }

    pub(crate) fn notify(&self, ev: BdevEvent) {
        // Sinks run without the lock: they may close the device at once.
        let sinks: Vec<_> = self.state().opens.iter().map(|o| o.sink.clone()).collect();
        for f in sinks {
            f(ev);
        }
    }

    /// Changes the size and tells every holder. For the device itself, after its own data plane can serve the new size.
    pub fn resize(&self, num_blocks: u64) {
        if self.num_blocks.swap(num_blocks, Ordering::Relaxed) != num_blocks {
            self.notify(BdevEvent::Resize { num_blocks });
        }
    }

    /// Marks the device as going away. The receiver fires when nothing holds it any more. `None` if it is already going.
    pub(crate) fn begin_removal(self: &Arc<Self>) -> Option<oneshot::Receiver<()>> {
        let (tx, rx) = oneshot::channel();
        {
            let mut s = self.state();
            if s.removing {
                return None;
            }
            s.removing = true;
            s.removed.push(tx);
        }
        self.notify(BdevEvent::Remove);
        drop(self.on_channels(|ch, _| ch.remove()));
        self.finish_removal(self.state());
        Some(rx)
    }

    fn finish_removal(&self, mut s: MutexGuard<'_, NodeState>) {
        if !s.removing || s.gone || !s.opens.is_empty() || !s.channels.is_empty() {
            return;
        }
        s.gone = true;
        let waiters = std::mem::take(&mut s.removed);
        drop(s);
        self.dev.destruct();
        for w in waiters {
            let _ = w.send(());
        }
    }
}
