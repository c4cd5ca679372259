//! Members that join and are rebuilt while hosts write and power fails. Every run: an array loses a member and goes on, the member returns or another one
//! takes its place, hosts write meanwhile, power fails at one chosen request to a member; then the array is started from what is left, the member rebuilt if
//! it is not, `m` others are taken away, and every block must be what an oracle admits.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use longshore_accel::Accel;
use longshore_reactor::sim::{Random, Settings, Sim};
use longshore_reactor::{DmaOptions, Reactor, RingOptions};
use uuid::Uuid;

use crate::channel::Channel;
use crate::core::{CoreOptions, CoreState};
use crate::desc::BdevDesc;
use crate::ec::assemble::{Candidate, Decision, Situation, decide};
use crate::ec::faults::{self, Mutant};
use crate::ec::format::{MemberState, PAGE_BITS_BYTES, PageHeader, PageKind, RebuildMode, Superblock};
use crate::ec::layout::{Layout, LayoutOptions};
use crate::ec::{Ec, Newcomer, Tuning, start};
use crate::node::BdevNode;
use crate::registry::Registry;
use crate::sim::{Health, Image, Oracle, SimMember, World, fill, member_name};
use crate::{IoFlags, Status};

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) k: usize,
    pub(super) m: usize,
    /// Another device takes the slot. Otherwise the member returns.
    pub(super) replaced: bool,
    /// Power fails at this request to a member after the join began.
    pub(super) crash: Option<u64>,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Went {
    /// Power failed when it was to.
    pub(super) crashed: bool,
    pub(super) mode: Option<RebuildMode>,
    /// Stripes filled before power failed, and in the life after it.
    pub(super) rebuilt: [u64; 2],
    /// Stripes that the life after it found done.
    pub(super) resumed_at: u64,
}

/// The slot that loses its member.
const LOST: usize = 1;
const STRIPES: u64 = 14;
const BLOCK: u64 = 512;

/// Simulated devices, one more than the array has members, and what hosts may find on it.
struct Rig {
    r: Reactor,
    case: Case,
    world: World,
    layout: Layout,
    oracle: Rc<RefCell<Oracle>>,
    random: RefCell<Random>,
}

/// The devices while power is on.
struct Life {
    registry: Arc<Registry>,
}

fn layout(k: usize, m: usize) -> Layout {
    let o = LayoutOptions { journal_slots: Some(6), alignment: Some(4096), region_stripes: Some(2) };
    let mut l = Layout::compute(k, m, 4096, BLOCK as u32, 16 << 20, &o).unwrap();
    l.stripes = STRIPES;
    l
}

impl Rig {
    fn new(r: &Reactor, case: Case) -> Rig {
        let layout = layout(case.k, case.m);
        let blocks = (layout.member_bytes() / BLOCK) as usize;
        let image = |i: usize| Image::new(BLOCK as usize, blocks, case.seed >> i & 1 == 0);
        let world = World::new(case.seed, (0..=layout.n()).map(image).collect(), Vec::new);
        let oracle = Rc::new(RefCell::new(Oracle::new(layout.num_blocks())));
        Rig { r: r.clone(), case, world, layout, oracle, random: RefCell::new(Random::new(case.seed ^ 0x10adu64)) }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.borrow_mut().below(n)
    }

    fn life(&self) -> Life {
        self.world.power_on();
        let registry = Registry::new();
        for i in 0..self.world.members() {
            self.world.set_health(i, Health::default());
            registry.register(&member_name(i), None, SimMember::new(&self.world, i)).unwrap();
        }
        Life { registry }
    }

    async fn put(&self, ch: &Channel, at: u64, bytes: &[u8]) {
        let mut buf = self.r.dma().alloc(bytes.len()).unwrap();
        buf.get_mut().unwrap()[..bytes.len()].copy_from_slice(bytes);
        assert!(ch.write(at / BLOCK, (bytes.len() as u64 / BLOCK) as u32, buf, IoFlags::FUA).await.0.is_ok());
    }

    async fn create(&self, life: &Life) {
        let head = super::head(self.layout);
        for slot in 0..self.layout.n() {
            let desc = life.open(slot);
            let ch = desc.channel().unwrap();
            for index in 0..self.layout.map_pages() as u32 {
                let header = PageHeader { array: head.array, kind: PageKind::Map, index, sequence: 0, generation: 0 };
                let mut page = vec![0; 4096];
                header.encode(&[0; PAGE_BITS_BYTES], &mut page);
                self.put(&ch, self.layout.map_page_at(u64::from(index), 0), &page).await;
            }
            let mut bytes = vec![0; 4096];
            head.for_slot(slot).encode(&mut bytes);
            self.put(&ch, Layout::superblock_at(head.copy()), &bytes).await;
        }
    }

    async fn superblock(&self, life: &Life, device: usize) -> Option<Superblock> {
        let desc = life.registry.open(&member_name(device), false, Box::new(|_| {})).unwrap();
        let ch = desc.channel().unwrap();
        let mut copies = Vec::new();
        for copy in 0..2 {
            let buf = self.r.dma().alloc(4096).unwrap();
            let (s, buf) = ch.read(Layout::superblock_at(copy) / BLOCK, (4096 / BLOCK) as u32, buf).await;
            copies.push(buf.filter(|_| s.is_ok()).map_or_else(Vec::new, |b| b.as_slice().to_vec()));
        }
        Superblock::select([&copies[0], &copies[1]]).ok()
    }

    /// Starts the array from the devices that are not in `absent`, as a daemon would.
    async fn start(&self, life: &Life, absent: &[usize]) -> Result<Arc<BdevNode>, String> {
        let (mut found, mut devices) = (Vec::new(), Vec::new());
        for device in (0..self.world.members()).filter(|d| !absent.contains(d)) {
            let Some(superblock) = self.superblock(life, device).await else { continue };
            let bytes = self.layout.member_bytes();
            found.push(Candidate { name: member_name(device), superblock, bytes, block: BLOCK as u32 });
            devices.push(device);
        }
        let assembly = match decide(&found, Situation { waited: true, salvage: false }) {
            Decision::Assemble(a) => a,
            other => return Err(format!("{other:?}")),
        };
        let members = assembly.members.iter().map(|c| c.map(|c| life.open(devices[c]))).collect();
        let tuning = Tuning {
            nonce: Some(self.world.below(u64::MAX - 1) + 1),
            rebuild_checkpoint: Duration::ZERO,
            ..Tuning::default()
        };
        start(&life.registry, "a", assembly.head, members, tuning, &Accel::default()).await.map_err(|e| e.to_string())
    }

    /// Writes some blocks, now and then followed by a flush.
    async fn write(&self, ch: &Channel, count: u64) {
        for _ in 0..count {
            let n = 1 + self.below(if self.below(4) == 0 { 40 } else { 6 });
            let lba = self.below(self.layout.num_blocks() - n);
            let stamp = self.oracle.borrow_mut().stamp();
            let mut buf = self.r.dma().alloc((n * BLOCK) as usize).unwrap();
            for (i, b) in buf.get_mut().unwrap().chunks_mut(BLOCK as usize).take(n as usize).enumerate() {
                fill(b, lba + i as u64, stamp);
            }
            let ticket = self.oracle.borrow_mut().write(lba, n, stamp);
            let status = ch.write(lba, n as u32, buf, IoFlags::NONE).await.0;
            if !self.world.powered() {
                return;
            }
            assert_eq!(status, Status::SUCCESS, "{:?}: a write of {n} at {lba}", self.case);
            self.oracle.borrow_mut().written(&ticket, false);
            if self.below(6) == 0 {
                self.flush(ch).await;
            }
        }
    }

    async fn flush(&self, ch: &Channel) {
        let ticket = self.oracle.borrow_mut().flush();
        if ch.flush().await.0.is_ok() && self.world.powered() {
            self.oracle.borrow_mut().flushed(&ticket);
        }
    }

    /// Reads everything. `first`: after a start, what is found is what stays.
    async fn look(&self, ch: &Channel, first: bool) {
        let mut lba = 0;
        while lba < self.layout.num_blocks() {
            let n = 16.min(self.layout.num_blocks() - lba);
            let ticket = (!first).then(|| self.oracle.borrow_mut().read(lba, n));
            let (status, buf) = ch.read(lba, n as u32, self.r.dma().alloc((n * BLOCK) as usize).unwrap()).await;
            assert_eq!(status, Status::SUCCESS, "{:?}: a read of {n} at {lba}", self.case);
            let buf = buf.unwrap();
            let right = match ticket {
                None => self.oracle.borrow_mut().recovered(lba, buf.as_slice(), BLOCK as usize),
                Some(t) => self.oracle.borrow_mut().returned(&t, buf.as_slice()),
            };
            if let Err(why) = right {
                panic!("{:?}: {why}", self.case);
            }
            lba += n;
        }
    }

    /// Gives slot [`LOST`] a member: the one that was there, or the spare device.
    async fn join(&self, life: &Life, ec: &Ec) -> Result<RebuildMode, String> {
        ec.vacated(LOST).await.map_err(|e| e.to_string())?;
        let device = if self.case.replaced { self.layout.n() } else { LOST };
        let found = self.superblock(life, device).await;
        let uuid = match (&found, self.case.replaced) {
            (Some(f), _) => f.member().uuid,
            (None, true) => Uuid::from_u128(200),
            (None, false) => Uuid::from_u128(100 + LOST as u128),
        };
        let newcomer = Newcomer { desc: life.open(device), uuid, found };
        ec.join(LOST, newcomer).await.map_err(|e| e.to_string())
    }

    /// Until the member is in sync, or power fails.
    async fn rebuilt(&self, ec: &Ec) {
        for _ in 0..200_000 {
            if !self.world.powered() || ec.member_state(LOST) == MemberState::InSync {
                return;
            }
            self.r.sleep(Duration::from_millis(1)).await;
        }
        panic!("{:?}: the rebuild does not end: {:?}", self.case, ec.rebuild_progress());
    }

    async fn stop(&self, life: Life) {
        let node = life.registry.find("a").unwrap();
        let closed = node.device().as_any().downcast_ref::<Ec>().unwrap().closed().unwrap();
        life.registry.unregister_node(&node).await.unwrap();
        drop(node);
        closed.await.unwrap();
        self.world.crash_in(None);
        self.world.cut();
        self.oracle.borrow_mut().crashed();
    }

    async fn go(&self) -> Went {
        let mut went = Went::default();
        let life = self.life();
        self.create(&life).await;
        let node = self.start(&life, &[]).await.unwrap();
        let ec = node.device().as_any().downcast_ref::<Ec>().unwrap();
        {
            let (_desc, ch) = crate::testing::open(&life.registry, "a");
            self.write(&ch, 30).await;
            self.flush(&ch).await;
            self.world.set_health(LOST, Health { gone: true, ..Health::default() });
            while ec.member_state(LOST) == MemberState::InSync {
                self.write(&ch, 1).await;
            }
            self.write(&ch, 6).await;
            self.world.set_health(LOST, Health::default());
            self.world.crash_in(self.case.crash);
            // Hosts go on while it joins.
            let done = Cell::new(false);
            let hosts = async {
                while !done.get() && self.world.powered() {
                    self.write(&ch, 1).await;
                }
            };
            let joins = async {
                let mode = self.join(&life, ec).await;
                if self.world.powered() {
                    went.mode = Some(mode.unwrap());
                    self.rebuilt(ec).await;
                }
                went.rebuilt[0] = ec.rebuild_progress().first().map_or(0, |p| p.stripes_rebuilt);
                done.set(true);
            };
            both(hosts, joins).await;
        }
        went.crashed = !self.world.powered();
        drop(node);
        self.stop(life).await;

        let life = self.life();
        let node = self.start(&life, &[]).await.unwrap_or_else(|why| panic!("{:?}: {why}", self.case));
        let ec = node.device().as_any().downcast_ref::<Ec>().unwrap();
        {
            let (_desc, ch) = crate::testing::open(&life.registry, "a");
            self.look(&ch, true).await;
            went.resumed_at = ec.rebuild_progress().first().map_or(0, |p| p.stripes_done);
            if ec.member_state(LOST) == MemberState::Failed {
                self.join(&life, ec).await.unwrap();
            }
            self.write(&ch, 10).await;
            self.rebuilt(ec).await;
            self.look(&ch, false).await;
            assert_eq!(ec.wib_status().generation, 0, "{:?}", self.case);
        }
        drop(node);
        self.stop(life).await;

        // What was filled has to be right: without it the others are not enough.
        let mut absent: Vec<usize> = Vec::new();
        while absent.len() < self.case.m {
            let slot = self.below(self.layout.n() as u64) as usize;
            if slot != LOST && !absent.contains(&slot) {
                absent.push(slot);
            }
        }
        let quorum = super::head(self.layout).quorum();
        absent.truncate(self.layout.n() - quorum);
        if self.case.replaced {
            absent.push(LOST);
        }
        let life = self.life();
        let node =
            self.start(&life, &absent).await.unwrap_or_else(|why| panic!("{:?} without {absent:?}: {why}", self.case));
        {
            let (_desc, ch) = crate::testing::open(&life.registry, "a");
            self.look(&ch, true).await;
        }
        drop(node);
        self.stop(life).await;
        went
    }
}

impl Life {
    fn open(&self, device: usize) -> BdevDesc {
        self.registry.open(&member_name(device), true, Box::new(|_| {})).unwrap()
    }
}

/// Runs both to their ends.
async fn both(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let mut left = [true, true];
    std::future::poll_fn(|cx| {
        if left[0] && a.as_mut().poll(cx).is_ready() {
            left[0] = false;
        }
        if left[1] && b.as_mut().poll(cx).is_ready() {
            left[1] = false;
        }
        if left == [false, false] { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// One run.
pub(super) fn run(case: Case) -> Went {
    let dma = DmaOptions { max_bytes: 16 << 20, huge: false, register: false };
    let ring = RingOptions { sq_entries: 16, cq_entries: 16, ..RingOptions::default() };
    let mut sim = Sim::with(case.seed, Settings { dma, ring, ..Settings::default() });
    let went = sim.block_on(move |r| async move {
        CoreState::init(&r, CoreOptions { requests: 1024, child_reserve: 256 });
        let rig = Rig::new(&r, case);
        rig.go().await
    });
    CoreState::shutdown();
    faults::close_windows();
    went
}

/// Runs `case` with a crash at every `step`-th request, until a run ends without.
fn at_every_step(case: Case, step: u64) {
    let mut crash = 1;
    let mut resumed = 0;
    loop {
        let went = run(Case { crash: Some(crash), seed: case.seed + crash % 64, ..case });
        resumed += u64::from(went.resumed_at > 0);
        if !went.crashed {
            break;
        }
        crash += step;
    }
    assert!(crash > 100 && resumed > 0, "{case:?}: {crash} requests, {resumed} times a rebuild went on where it was");
}

#[test]
fn a_replacement_that_power_fails_in_the_middle_of_leaves_the_array_with_or_without_it() {
    at_every_step(Case { seed: 1, k: 2, m: 1, replaced: true, crash: None }, 7);
    at_every_step(Case { seed: 2, k: 3, m: 2, replaced: true, crash: None }, 11);
}

#[test]
fn a_return_that_power_fails_in_the_middle_of_leaves_the_array_with_or_without_the_member() {
    at_every_step(Case { seed: 3, k: 2, m: 1, replaced: false, crash: None }, 7);
    at_every_step(Case { seed: 4, k: 4, m: 2, replaced: false, crash: None }, 11);
}

#[test]
fn a_member_that_is_rebuilt_under_load_makes_up_for_others_that_are_lost_then() {
    for seed in 0..24 {
        let (k, m) = [(5, 3), (2, 1), (2, 2), (4, 2), (1, 2), (3, 1)][seed as usize % 6];
        let went = run(Case { seed, k, m, replaced: seed % 4 < 2, crash: None });
        let mode = if seed % 4 < 2 { RebuildMode::Full } else { RebuildMode::Wib };
        assert!(!went.crashed && went.mode == Some(mode), "seed {seed}: {went:?}");
    }
}

#[test]
fn progress_that_is_stored_before_the_member_was_flushed_is_caught() {
    let caught = (0..1000).find(|&seed| {
        faults::set(Some(Mutant::RebuildProgressEarly));
        let case = Case { seed, k: 2, m: 1, replaced: true, crash: Some(60 + seed * 13 % 400) };
        let outcome = std::panic::catch_unwind(|| run(case));
        faults::set(None);
        faults::close_windows();
        outcome.is_err()
    });
    println!("caught by seed {}", caught.expect("it goes unnoticed"));
}
