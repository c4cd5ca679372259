//! Power failures at seeded moments, in a simulated world: what was acknowledged and flushed, or written with FUA, is there
//! afterwards; anything else is old or new, sector by sector. And the proof that this finds what it should: mutants.

use std::cell::RefCell;
use std::rc::Rc;

use longshore_reactor::sim::{Faults, Random, Settings, Sim};
use longshore_reactor::{DmaOptions, Reactor};

use super::mutant::{self, Mutant};
use super::*;
use crate::{Channel, CoreOptions, CoreState, IoFlags};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const BLOCKS: usize = 16;
const PER_BLOCK: usize = BLOCK / SECTOR;
const WORKERS: usize = 4;

/// What may be found in a block: versions in the order of their submission; two never overlap in time.
#[derive(Clone)]
struct Block {
    versions: Vec<u64>,
    /// Index of the newest version that was acknowledged.
    acknowledged: usize,
    /// Index of the newest version that must survive.
    durable: usize,
    busy: bool,
    /// A write failed: until the next one succeeds the block may read as anything since `acknowledged`.
    unsure: bool,
}

struct Model {
    blocks: Vec<Block>,
    next: u64,
    random: Random,
    faults: bool,
    wrong: Option<String>,
    /// A request failed although no fault was injected: wrong, unless power had failed.
    failed: Option<String>,
}

/// Bytes of a version: its number all over; 0 for zeroes and for what was there at first.
fn fill(buf: &mut [u8], version: u64) {
    for w in buf.chunks_exact_mut(8) {
        w.copy_from_slice(&version.to_le_bytes());
    }
}

fn version_of(sector: &[u8]) -> Result<u64, String> {
    let first: [u8; 8] = sector[..8].try_into().unwrap_or_default();
    if sector.chunks_exact(8).all(|w| w == first) {
        Ok(u64::from_le_bytes(first))
    } else {
        Err("a sector is torn".into())
    }
}

impl Model {
    fn new(random: Random, faults: bool) -> Model {
        let b = Block { versions: vec![0], acknowledged: 0, durable: 0, busy: false, unsure: false };
        Model { blocks: vec![b; BLOCKS], next: 1, random, faults, wrong: None, failed: None }
    }

    /// A range in which nothing is in flight.
    fn idle_range(&mut self) -> Option<(usize, usize)> {
        let start = self.random.below(BLOCKS as u64) as usize;
        let n = (1 + self.random.below(3) as usize).min(BLOCKS - start);
        self.blocks[start..start + n].iter().all(|b| !b.busy).then_some((start, n))
    }

    fn begin(&mut self, start: usize, n: usize, zero: bool) -> u64 {
        let version = if zero { 0 } else { self.next };
        self.next += 1;
        for b in &mut self.blocks[start..start + n] {
            b.busy = true;
            b.versions.push(version);
        }
        version
    }

    fn end(&mut self, start: usize, n: usize, ok: bool, durable: bool) {
        for b in &mut self.blocks[start..start + n] {
            b.busy = false;
            b.unsure = !ok;
            if ok {
                b.acknowledged = b.versions.len() - 1;
                if durable {
                    b.durable = b.acknowledged;
                }
            }
        }
    }

    /// What a flush that is submitted now promises.
    fn promise(&self) -> Vec<usize> {
        self.blocks.iter().map(|b| b.acknowledged).collect()
    }

    fn flushed(&mut self, promise: &[usize]) {
        for (b, &p) in self.blocks.iter_mut().zip(promise) {
            b.durable = b.durable.max(p);
        }
    }

    fn check_read(&mut self, start: usize, n: usize, bytes: &[u8]) {
        for (i, block) in bytes.chunks_exact(BLOCK).enumerate().take(n) {
            let b = &self.blocks[start + i];
            if b.unsure {
                continue;
            }
            let want = b.versions[b.acknowledged];
            if block.chunks_exact(SECTOR).any(|s| version_of(s) != Ok(want)) {
                self.wrong = Some(format!("block {} does not read as version {want}", start + i));
            }
        }
    }

    /// What is on the medium after a power failure.
    fn check_survivors(&self, all: &[u8]) -> Result<(), String> {
        for (i, sector) in all.chunks_exact(SECTOR).enumerate() {
            let b = &self.blocks[i / PER_BLOCK];
            let found = version_of(sector)?;
            if !b.versions[b.durable..].contains(&found) {
                return Err(format!(
                    "sector {i} holds version {found}; durable was {} of {:?}",
                    b.versions[b.durable], b.versions
                ));
            }
        }
        Ok(())
    }
}

async fn one_step(r: &Reactor, ch: &Channel, m: &Rc<RefCell<Model>>) {
    let dice = m.borrow_mut().random.below(100);
    if dice < 18 {
        let promise = m.borrow().promise();
        let ok = ch.flush().await.0.is_ok();
        if ok {
            m.borrow_mut().flushed(&promise);
        }
        return;
    }
    let Some((start, n)) = m.borrow_mut().idle_range() else { return r.yield_now().await };
    let (lba, len) = (start as u64, n as u32);
    let Some(mut buf) = r.dma().alloc(n * BLOCK) else { return r.yield_now().await };
    if dice < 28 {
        // The range stays as it is while it is read.
        m.borrow_mut().blocks[start..start + n].iter_mut().for_each(|b| b.busy = true);
        let (status, buf) = ch.read(lba, len, buf).await;
        let mut m = m.borrow_mut();
        m.blocks[start..start + n].iter_mut().for_each(|b| b.busy = false);
        if status.is_ok() {
            m.check_read(start, n, buf.as_ref().map_or(&[], |b| b.as_slice()));
        } else if !m.faults {
            m.failed = Some(format!("a read failed: {status}"));
        }
        return;
    }
    let fua = m.borrow_mut().random.below(4) == 0;
    let flags = if fua { IoFlags::FUA } else { IoFlags::NONE };
    let zero = dice >= 92;
    let version = m.borrow_mut().begin(start, n, zero);
    let status = if zero {
        drop(buf);
        ch.write_zeroes(lba, len, flags).await.0
    } else {
        if let Some(bytes) = buf.get_mut() {
            fill(bytes, version);
        }
        ch.write(lba, len, buf, flags).await.0
    };
    let mut m = m.borrow_mut();
    m.end(start, n, status.is_ok(), fua);
    if status.is_err() && !m.faults {
        m.failed = Some(format!("a write failed: {status}"));
    }
}

async fn workload(r: Reactor, m: Rc<RefCell<Model>>) {
    CoreState::init(&r, CoreOptions { requests: 64, child_reserve: 16 });
    let reg = Registry::new();
    let options = Options { block_size: BLOCK as u32, ..Options::new("f", "/disk", Family::Uring) };
    create(&reg, options).expect("the simulated file opens");
    let desc = reg.open("f", true, Box::new(|_| {})).expect("opens");
    let tasks: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (ch, m, r2) = (desc.channel().expect("channel"), m.clone(), r.clone());
            r.spawn(async move {
                for _ in 0..60 {
                    one_step(&r2, &ch, &m).await;
                    if m.borrow().wrong.is_some() {
                        return;
                    }
                }
            })
        })
        .collect();
    for t in tasks {
        let _ = t.await;
    }
}

/// One life and one power failure, with direct I/O or through the page cache.
fn run_seed(seed: u64, direct: bool) -> Result<(), String> {
    let dma = DmaOptions { max_bytes: 4 << 20, huge: false, register: false };
    let settings = Settings { dma, direct, ..Settings::default() };
    let mut sim = Sim::with(seed, settings);
    let mut random = sim.random();
    sim.create("/disk", (BLOCKS * BLOCK) as u64);
    let faults = !direct || random.below(4) == 0;
    if !direct && random.below(4) != 0 {
        sim.set_faults(Faults { write_back: 30, ..Faults::default() });
    } else if faults {
        sim.set_faults(Faults { read_eio: 5, write_eio: 10, sync_eio: 20, enospc: 5, short: 100, write_back: 30 });
    } else if random.below(2) == 0 {
        sim.set_faults(Faults { short: 200, ..Faults::default() });
    }
    sim.crash_at(10 + random.below(400));
    let model = Rc::new(RefCell::new(Model::new(random, faults)));
    let m = model.clone();
    let lived = sim.run(move |r| workload(r, m)).is_some();
    sim.set_faults(Faults::default());
    sim.crash();
    CoreState::shutdown();
    let all = sim.contents("/disk").ok_or("the file is gone")?;
    let model = model.borrow();
    match (&model.wrong, &model.failed) {
        (Some(w), _) => Err(w.clone()),
        (None, Some(f)) if lived => Err(f.clone()),
        _ => model.check_survivors(&all),
    }
}

#[test]
fn what_was_flushed_or_written_with_fua_survives_any_power_failure() {
    for seed in 0..5000 {
        if let Err(e) = run_seed(seed, true) {
            panic!("seed {seed}: {e}");
        }
    }
}

#[test]
fn a_failed_write_back_of_the_page_cache_never_passes_for_a_flush() {
    for seed in 0..3000 {
        if let Err(e) = run_seed(seed, false) {
            panic!("seed {seed}: {e}");
        }
    }
}

fn caught(m: Mutant, direct: bool) {
    mutant::set(Some(m));
    let found = (0..500).find_map(|seed| Some((seed, run_seed(seed, direct).err()?)));
    mutant::set(None);
    match found {
        Some((seed, how)) => println!("{m:?} is caught by seed {seed}: {how}"),
        None => panic!("{m:?} goes unnoticed"),
    }
}

#[test]
fn a_flush_that_does_nothing_is_caught() {
    caught(Mutant::FlushNothing, true);
}

#[test]
fn a_fua_that_is_ignored_is_caught() {
    caught(Mutant::IgnoreFua, true);
}

#[test]
fn a_write_acknowledged_before_it_is_done_is_caught() {
    caught(Mutant::AckEarly, true);
}

#[test]
fn a_fua_write_that_takes_the_report_of_a_flush_is_caught() {
    caught(Mutant::SharedReport, false);
}
