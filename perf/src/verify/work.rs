//! The `verify` workload: each task writes a place, reads it back, and now and then looks at a place written earlier.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_bdev::Status;
use longshore_reactor::{DmaBuf, Reactor, rdtsc, ticks};

use super::Disk;
use super::journal::{History, Journal, Record};
use super::pattern::{Found, Stamp, inspect};
use crate::random::Random;

/// Mismatches that are printed; the rest are counted.
const PRINTED: u64 = 10;

/// The part of a verified run that one core does.
#[derive(Clone)]
pub(crate) struct VerifyPlan {
    /// First block of this core's part.
    pub(crate) first_lba: u64,
    /// Places in this core's part: no other core touches them.
    pub(crate) units: u64,
    /// Blocks per place.
    pub(crate) unit_blocks: u32,
    /// Bytes per block.
    pub(crate) block_size: u32,
    /// Places worked on at once.
    pub(crate) depth: u32,
    /// How long to go on.
    pub(crate) length: Duration,
    /// Writes to make.
    pub(crate) limit: u64,
    /// Percentage of writes with FUA.
    pub(crate) fua: u8,
    /// Flush after so many writes; 0: never.
    pub(crate) flush_every: u64,
    /// What blocks are stamped with: another for each run.
    pub(crate) run_id: u64,
    /// Seed of the order of things.
    pub(crate) seed: u64,
    /// Where writes are recorded.
    pub(crate) journal: Option<Arc<Journal>>,
    /// Requests that ended, for the progress line.
    pub(crate) progress: Arc<AtomicU64>,
}

/// What a core found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checked {
    /// Writes that were acknowledged.
    pub(crate) writes: u64,
    /// Reads that were compared.
    pub(crate) reads: u64,
    /// Flushes that were acknowledged.
    pub(crate) flushes: u64,
    /// Blocks compared.
    pub(crate) blocks: u64,
    /// Blocks that were not as expected.
    pub(crate) mismatches: u64,
    /// The request that failed and ended the run.
    pub(crate) failure: Option<String>,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// CPU it ran on.
    pub(crate) cpu: u32,
}

#[derive(Default)]
struct Unit {
    /// Newest write, whatever became of it.
    newest: u64,
    /// What is there; 0: not known.
    current: u64,
    busy: bool,
}

struct Worker<D> {
    plan: VerifyPlan,
    disk: D,
    units: RefCell<HashMap<u64, Unit>>,
    written: RefCell<Vec<u64>>,
    random: Cell<Random>,
    left: Cell<u64>,
    since_flush: Cell<u64>,
    flush_id: Cell<u64>,
    deadline: u64,
    found: RefCell<Checked>,
}

/// Runs this core's part of a verified run.
pub(crate) async fn verify<D: Disk>(
    r: Reactor,
    disk: D,
    plan: VerifyPlan,
    history: Option<Arc<History>>,
) -> Result<Checked, String> {
    let began = rdtsc();
    let w = Rc::new(Worker {
        disk,
        units: RefCell::new(known_units(&plan, history.as_deref())),
        written: RefCell::default(),
        random: Cell::new(Random::new(plan.seed)),
        left: Cell::new(plan.limit),
        since_flush: Cell::new(0),
        // Ids of several runs on one journal, and of several cores, must not meet.
        flush_id: Cell::new(Random::new(plan.seed ^ began).next()),
        deadline: began + ticks(plan.length),
        found: RefCell::default(),
        plan,
    });
    let tasks = u64::from(w.plan.depth).min(w.plan.units);
    let mut running = Vec::new();
    for _ in 0..tasks {
        let size = w.plan.unit_blocks as usize * w.plan.block_size as usize;
        let buf = r.dma().alloc(size).ok_or("out of memory for buffers: use a smaller -q or -o")?;
        let w = w.clone();
        running.push(r.spawn(async move { w.work(buf).await }));
    }
    let mut buffers = Vec::new();
    for t in running {
        buffers.extend(t.await.map_err(|_| "the reactor stopped")?);
    }
    // What was written long ago may have been overwritten by mistake since: everything is looked at once more.
    let places = Rc::new(RefCell::new(w.written.take()));
    let mut running = Vec::new();
    for buf in buffers {
        let (w, places) = (w.clone(), places.clone());
        running.push(r.spawn(async move { w.sweep(buf, places).await }));
    }
    for t in running {
        t.await.map_err(|_| "the reactor stopped")?;
    }
    let mut found = w.found.take();
    found.seconds = (rdtsc() - began) as f64 / longshore_reactor::tick_rate() as f64;
    found.cpu = r.handle().cpu();
    Ok(found)
}

fn known_units(plan: &VerifyPlan, history: Option<&History>) -> HashMap<u64, Unit> {
    let end = plan.first_lba + plan.units * u64::from(plan.unit_blocks);
    let known = history.into_iter().flat_map(|h| h.units.range(plan.first_lba..end));
    known.map(|(&lba, h)| (lba, Unit { newest: h.newest, ..Unit::default() })).collect()
}

impl<D: Disk> Worker<D> {
    fn draw<T>(&self, f: impl FnOnce(&mut Random) -> T) -> T {
        let mut r = self.random.get();
        let out = f(&mut r);
        self.random.set(r);
        out
    }

    fn over(&self) -> bool {
        self.left.get() == 0 || rdtsc() >= self.deadline || self.found.borrow().failure.is_some()
    }

    /// A place that nobody works on, marked as worked on.
    fn take_place(&self) -> u64 {
        loop {
            let lba = self.plan.first_lba + self.draw(|r| r.below(self.plan.units)) * u64::from(self.plan.unit_blocks);
            let mut units = self.units.borrow_mut();
            let u = units.entry(lba).or_default();
            if !u.busy {
                u.busy = true;
                return lba;
            }
        }
    }

    /// A place written in this run that nobody works on, marked as worked on.
    fn take_written(&self) -> Option<u64> {
        let written = self.written.borrow();
        if written.is_empty() {
            return None;
        }
        let lba = written[self.draw(|r| r.below(written.len() as u64)) as usize];
        let mut units = self.units.borrow_mut();
        let u = units.get_mut(&lba)?;
        (!std::mem::replace(&mut u.busy, true)).then_some(lba)
    }

    fn leave(&self, lba: u64) {
        if let Some(u) = self.units.borrow_mut().get_mut(&lba) {
            u.busy = false;
        }
    }

    fn fail(&self, what: String) {
        self.found.borrow_mut().failure.get_or_insert(what);
    }

    fn bytes<'a>(&self, buf: &'a mut DmaBuf) -> Option<&'a mut [u8]> {
        let bytes = buf.get_mut();
        if bytes.is_none() {
            self.fail("a device kept a buffer after its request ended".into());
        }
        bytes
    }

    fn record(&self, r: Record) -> bool {
        match self.plan.journal.as_ref().map(|j| j.add(r)) {
            Some(Err(e)) => {
                self.fail(format!("journal: {e}"));
                false
            }
            _ => true,
        }
    }

    async fn work(self: Rc<Self>, mut buf: DmaBuf) -> Option<DmaBuf> {
        while !self.over() {
            self.left.set(self.left.get() - 1);
            let lba = self.take_place();
            // The place stays marked after a failure: what is there is not known.
            buf = self.write(lba, buf).await?;
            if self.plan.flush_every != 0 {
                self.count_for_flush().await;
            }
            buf = self.read(lba, buf).await?;
            self.leave(lba);
            if self.draw(|r| r.below(4)) == 0
                && let Some(lba) = self.take_written()
            {
                buf = self.read(lba, buf).await?;
                self.leave(lba);
            }
        }
        Some(buf)
    }

    async fn write(&self, lba: u64, mut buf: DmaBuf) -> Option<DmaBuf> {
        let plan = &self.plan;
        let generation = {
            let mut units = self.units.borrow_mut();
            let u = units.entry(lba).or_default();
            u.newest += 1;
            u.newest
        };
        for (i, block) in self.bytes(&mut buf)?.chunks_mut(plan.block_size as usize).enumerate() {
            Stamp { seed: plan.run_id, lba: lba + i as u64, generation }.fill(block);
        }
        let fua = self.draw(|r| r.below(100)) < u64::from(plan.fua);
        if !self.record(Record::Submitted { lba, generation }) {
            return None;
        }
        let (status, back) = self.disk.write(lba, plan.unit_blocks, buf, fua).await;
        if status != Status::SUCCESS {
            self.fail(format!("write of {} blocks at LBA {lba} failed: {status}", plan.unit_blocks));
            return None;
        }
        if !self.record(Record::Acknowledged { lba, generation, fua }) {
            return None;
        }
        self.found.borrow_mut().writes += 1;
        self.plan.progress.fetch_add(1, Ordering::Relaxed);
        let mut units = self.units.borrow_mut();
        let u = units.entry(lba).or_default();
        if u.current == 0 {
            self.written.borrow_mut().push(lba);
        }
        u.current = generation;
        back
    }

    async fn count_for_flush(&self) {
        let n = self.since_flush.get() + 1;
        if n < self.plan.flush_every {
            return self.since_flush.set(n);
        }
        self.since_flush.set(0);
        let id = self.flush_id.get();
        self.flush_id.set(id.wrapping_add(1));
        if !self.record(Record::FlushSubmitted { id }) {
            return;
        }
        match self.disk.flush().await {
            Status::SUCCESS => {
                self.record(Record::FlushAcknowledged { id });
                self.found.borrow_mut().flushes += 1;
            }
            status => self.fail(format!("flush failed: {status}")),
        }
    }

    /// Reads a place and compares it with what was written there last.
    async fn read(&self, lba: u64, mut buf: DmaBuf) -> Option<DmaBuf> {
        let plan = &self.plan;
        // Data left over from the write must not pass for data that was read.
        self.bytes(&mut buf)?.fill(0x5a);
        let (status, back) = self.disk.read(lba, plan.unit_blocks, buf).await;
        if status != Status::SUCCESS {
            self.fail(format!("read of {} blocks at LBA {lba} failed: {status}", plan.unit_blocks));
            return None;
        }
        let back = back?;
        let want = self.units.borrow().get(&lba).map_or(0, |u| u.current);
        let mut found = self.found.borrow_mut();
        found.reads += 1;
        self.plan.progress.fetch_add(1, Ordering::Relaxed);
        for (i, block) in back.as_slice().chunks(plan.block_size as usize).enumerate() {
            let at = lba + i as u64;
            found.blocks += 1;
            let is = inspect(plan.run_id, at, block);
            if is != Found::Whole(want) {
                found.mismatches += 1;
                if found.mismatches <= PRINTED {
                    eprintln!("longshore-perf: LBA {at}: generation {want} was written, {is} was read");
                }
            }
        }
        Some(back)
    }

    async fn sweep(self: Rc<Self>, mut buf: DmaBuf, places: Rc<RefCell<Vec<u64>>>) {
        loop {
            let Some(lba) = places.borrow_mut().pop() else { return };
            if self.found.borrow().failure.is_some() {
                return;
            }
            match self.read(lba, buf).await {
                Some(b) => buf = b,
                None => return,
            }
        }
    }
}
