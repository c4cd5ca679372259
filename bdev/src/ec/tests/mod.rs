//! Arrays on devices in memory, on a simulated reactor.

mod basic;
mod elsewhere;
mod engines;
mod faulty;
pub(in crate::ec) mod hung;
mod joins;
mod limits;
mod mended;
mod metadata;
mod passing;
mod probe;
mod reads;
mod rebuild;
mod rounds;
mod scarred;
mod slow;
mod taken_over;
mod writes;

use std::future::Future;
use std::sync::Arc;

use longshore_accel::Accel;
use longshore_reactor::Reactor;
use longshore_reactor::sim::{Settings, Sim};
use uuid::Uuid;

use super::format::{Features, MATRIX_CAUCHY, MemberEntry, PAGE_BITS_BYTES, PageHeader, PageKind, Stamp, Superblock};
use super::layout::{Layout, LayoutOptions};
use super::{Tuning, start};
use crate::core::CoreState;
use crate::desc::BdevDesc;
use crate::malloc::Malloc;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use crate::testing::{Recorder, filled};
use crate::{Channel, Geometry, IoFlags, Status, error};

/// The first superblock of an array whose members are all in sync.
pub(in crate::ec) fn head(layout: Layout) -> Superblock {
    Superblock {
        features: Features::default(),
        array: Uuid::from_u128(77),
        name: "a".into(),
        layout,
        matrix: MATRIX_CAUCHY,
        stamp: Stamp { epoch: 1, nonce: 9 },
        predecessor: Stamp::default(),
        journal_session: 5,
        wib_generation: 0,
        created: 1,
        slot: 0,
        members: (0..layout.n()).map(|i| MemberEntry::in_sync(Uuid::from_u128(100 + i as u128))).collect(),
    }
}

/// Runs the future that `f` makes on a simulated reactor.
pub(crate) fn sim<F: Future + 'static>(seed: u64, f: impl FnOnce(Reactor) -> F) -> F::Output {
    sim_with(seed, Settings::default(), f)
}

/// As [`sim`], with other settings.
pub(crate) fn sim_with<F: Future + 'static>(seed: u64, settings: Settings, f: impl FnOnce(Reactor) -> F) -> F::Output {
    let mut sim = Sim::with(seed, settings);
    sim.block_on(|r| {
        let body = f(r.clone());
        async move {
            let out = body.await;
            for _ in 0..4 {
                r.yield_now().await;
            }
            CoreState::shutdown();
            out
        }
    })
}

/// An array of small figures on members `m0`, `m1`... in memory, each below an error device `EE_m0`...
pub(crate) struct Small {
    pub(crate) registry: Arc<Registry>,
    pub(crate) layout: Layout,
    pub(crate) blocks: Vec<u32>,
    /// What computes for it.
    pub(crate) accel: Accel,
}

impl Small {
    pub(crate) fn new(k: usize, m: usize, strip: u32, stripes: u64, blocks: &[u32]) -> Small {
        Small::on(k, m, strip, stripes, blocks, |_, g| Malloc::new(g).unwrap())
    }

    /// On the devices that `device` makes of slot and geometry.
    pub(crate) fn on(
        k: usize,
        m: usize,
        strip: u32,
        stripes: u64,
        blocks: &[u32],
        device: impl Fn(usize, Geometry) -> Arc<dyn crate::device::Bdev>,
    ) -> Small {
        Small::with(k, m, strip, stripes, blocks, 8, device)
    }

    /// With so many slots of the journal.
    pub(crate) fn with(
        k: usize,
        m: usize,
        strip: u32,
        stripes: u64,
        blocks: &[u32],
        slots: u32,
        device: impl Fn(usize, Geometry) -> Arc<dyn crate::device::Bdev>,
    ) -> Small {
        let block = *blocks.iter().max().unwrap();
        let o = LayoutOptions { journal_slots: Some(slots), alignment: Some(4096), region_stripes: Some(2) };
        let mut layout = Layout::compute(k, m, strip, block, 64 << 20, &o).unwrap();
        layout.stripes = stripes;
        let registry = Registry::new();
        let blocks: Vec<u32> = (0..k + m).map(|i| blocks[i % blocks.len()]).collect();
        for (i, &bs) in blocks.iter().enumerate() {
            let g = Geometry::plain(bs, layout.member_bytes().div_ceil(u64::from(bs)));
            registry.register(&format!("m{i}"), None, device(i, g)).unwrap();
            error::create(&registry, error::Options { base: format!("m{i}"), uuid: None }).unwrap();
        }
        Small { registry, layout, blocks, accel: Accel::default() }
    }

    pub(crate) fn head(&self) -> Superblock {
        head(self.layout)
    }

    pub(crate) async fn create(&self, r: &Reactor) {
        let head = self.head();
        for slot in 0..self.layout.n() {
            let desc = self.open(slot).unwrap();
            let mut buf = filled(r, 4096, 0);
            head.for_slot(slot).encode(buf.get_mut().unwrap());
            let bs = u64::from(self.blocks[slot]);
            let at = Layout::superblock_at(head.copy()) / bs;
            let ch = desc.channel().unwrap();
            assert!(ch.write(at, (4096 / bs) as u32, buf, IoFlags::NONE).await.0.is_ok());
            drop((ch, desc));
            for index in 0..self.layout.map_pages() as u32 {
                let header = PageHeader { array: head.array, kind: PageKind::Map, index, sequence: 0, generation: 0 };
                let mut page = vec![0; 4096];
                header.encode(&[0; PAGE_BITS_BYTES], &mut page);
                self.put(r, slot, self.layout.map_page_at(u64::from(index), 0), &page).await;
            }
        }
    }

    /// Writes 4 KiB at byte `at` of a member, past the array.
    pub(crate) async fn put(&self, r: &Reactor, slot: usize, at: u64, bytes: &[u8]) {
        let desc = self.open(slot).unwrap();
        let (ch, bs) = (desc.channel().unwrap(), u64::from(self.blocks[slot]));
        let mut buf = filled(r, 4096, 0);
        buf.get_mut().unwrap().copy_from_slice(bytes);
        assert!(ch.write(at / bs, (4096 / bs) as u32, buf, IoFlags::NONE).await.0.is_ok());
    }

    /// The 4 KiB at byte `at` of a member.
    pub(crate) async fn get(&self, r: &Reactor, slot: usize, at: u64) -> Vec<u8> {
        let desc = self.registry.open(&format!("m{slot}"), false, Box::new(|_| {})).unwrap();
        let (ch, bs) = (desc.channel().unwrap(), u64::from(self.blocks[slot]));
        let (s, buf) = ch.read(at / bs, (4096 / bs) as u32, filled(r, 4096, 0)).await;
        assert!(s.is_ok());
        buf.unwrap().as_slice().to_vec()
    }

    pub(crate) fn open(&self, slot: usize) -> Result<BdevDesc, BdevError> {
        self.registry.open(&format!("EE_m{slot}"), true, Box::new(|_| {}))
    }

    /// The newest superblock of a member.
    pub(crate) async fn superblock(&self, r: &Reactor, slot: usize) -> Superblock {
        let desc = self.registry.open(&format!("m{slot}"), false, Box::new(|_| {})).unwrap();
        let ch = desc.channel().unwrap();
        let bs = u64::from(self.blocks[slot]);
        let mut copies = Vec::new();
        for copy in 0..2 {
            let at = Layout::superblock_at(copy) / bs;
            let (s, buf) = ch.read(at, (4096 / bs) as u32, filled(r, 4096, 0)).await;
            assert!(s.is_ok());
            copies.push(buf.unwrap().as_slice().to_vec());
        }
        Superblock::select([&copies[0], &copies[1]]).unwrap()
    }

    /// What the array has counted.
    pub(crate) fn stats(&self) -> super::EcStats {
        let node = self.registry.find("a").unwrap();
        node.device().as_any().downcast_ref::<super::Ec>().unwrap().stats()
    }

    /// Starts a session with the members that are not in `absent`, believing the superblock with the highest epoch.
    pub(crate) async fn start(&self, r: &Reactor, absent: &[usize]) -> Result<Arc<BdevNode>, BdevError> {
        let mut head: Option<Superblock> = None;
        for slot in (0..self.layout.n()).filter(|s| !absent.contains(s)) {
            let sb = self.superblock(r, slot).await;
            if head.as_ref().is_none_or(|h| h.stamp < sb.stamp) {
                head = Some(sb);
            }
        }
        let members =
            (0..self.layout.n()).map(|s| if absent.contains(&s) { None } else { self.open(s).ok() }).collect();
        let head = head.unwrap();
        let tuning = Tuning { nonce: Some(1000 + head.stamp.epoch), ..Tuning::default() };
        start(&self.registry, "a", head, members, tuning, &self.accel).await
    }

    /// Ends the session in order.
    pub(crate) async fn stop(&self) {
        let node = self.registry.find("a").unwrap();
        let closed = node.device().as_any().downcast_ref::<super::Ec>().unwrap().closed().unwrap();
        self.registry.unregister("a").await.unwrap();
        closed.await.unwrap();
    }

    /// Makes every request of a kind to a member fail from now on.
    pub(crate) fn break_member(&self, slot: usize, op: crate::Op, count: u32) {
        let node = self.registry.find(&format!("EE_m{slot}")).unwrap();
        let dev = node.device().as_any().downcast_ref::<error::ErrorDev>().unwrap();
        let i = error::Injection { op: Some(op), fault: error::Fault::Failure, count, queue_depth: 0 };
        dev.inject(i).unwrap();
    }
}

/// The ends of `n` requests, if they come within `seconds`.
pub(crate) async fn end_within(r: &Reactor, all: &Recorder, n: usize, seconds: u64) -> Vec<(u64, Status)> {
    for _ in 0..seconds * 10 {
        if all.0.borrow().len() >= n {
            break;
        }
        r.sleep(std::time::Duration::from_millis(100)).await;
    }
    all.0.borrow().clone()
}

/// A model of what the array must hold.
pub(crate) struct Model(pub(crate) Vec<u8>);

impl Model {
    pub(crate) fn new(s: &Small) -> Model {
        Model(vec![0; (s.layout.num_blocks() * u64::from(s.layout.block)) as usize])
    }

    /// Writes blocks filled with `byte`, at different places differently, to the array and here.
    pub(crate) async fn write(&mut self, r: &Reactor, ch: &Channel, bs: u32, lba: u64, n: u32, byte: u8) -> Status {
        let (at, len) = ((lba * u64::from(bs)) as usize, (n * bs) as usize);
        let mut buf = r.dma().alloc(len).unwrap();
        for (i, b) in buf.get_mut().unwrap().iter_mut().enumerate() {
            *b = byte.wrapping_add(((at + i) / 512) as u8);
        }
        self.0[at..at + len].copy_from_slice(buf.as_slice());
        ch.write(lba, n, buf, IoFlags::NONE).await.0
    }

    /// Reads everything in pieces of `step` blocks and compares.
    pub(crate) async fn check(&self, r: &Reactor, ch: &Channel, bs: u32, step: u32) {
        let blocks = self.0.len() as u64 / u64::from(bs);
        let mut lba = 0;
        while lba < blocks {
            let n = (blocks - lba).min(u64::from(step)) as u32;
            let (s, buf) = ch.read(lba, n, filled(r, (n * bs) as usize, 0xee)).await;
            assert!(s.is_ok(), "read of {n} at {lba}: {s:?}");
            let at = (lba * u64::from(bs)) as usize;
            let buf = buf.unwrap();
            for i in 0..n as usize {
                let range = i * bs as usize..(i + 1) * bs as usize;
                assert_eq!(buf.as_slice()[range.clone()], self.0[at..][range], "block {}", lba + i as u64);
            }
            lba += u64::from(n);
        }
    }
}
