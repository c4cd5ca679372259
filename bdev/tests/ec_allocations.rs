//! Requests that are forwarded to an array's home core allocate nothing on the way.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use longshore_accel::Accel;
use longshore_bdev::ec::{Tuning, create, layout::LayoutOptions, start};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::{Channel, CoreState, Geometry, IoFlags, IoRef, Op, Registry, Submitter};
use longshore_reactor::{Options, Reactor, Runtime};

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: as the system's, which does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Relaxed) {
            ALLOCATED.fetch_add(1, Relaxed);
        }
        // SAFETY: what the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: what the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        if COUNTS.load(Relaxed) {
            ALLOCATED.fetch_add(1, Relaxed);
        }
        // SAFETY: what the caller promises.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Blocks of the array of 512 bytes in a strip, and in a stripe.
const STRIP: u64 = 8;
const STRIPE: u64 = 2 * STRIP;

/// Keeps so many requests under way; the last `count` of them are told how often somebody allocated meanwhile.
struct Load {
    ch: Channel,
    /// Writes, or reads across strips, which no member can do alone.
    op: Op,
    stripes: u64,
    left: Cell<u64>,
    flying: Cell<u32>,
}

impl Load {
    fn submit(self: &Rc<Self>, mut io: IoRef) {
        let n = self.left.get() - 1;
        self.left.set(n);
        let lba = n * 7 % self.stripes * STRIPE + STRIP / 2;
        io.prepare(self.op, IoFlags::NONE, lba, STRIP as u32);
        io.begin(self.clone(), 0);
        self.flying.set(self.flying.get() + 1);
        self.ch.submit(io);
    }
}

impl Submitter for Load {
    fn io_done(self: Rc<Self>, io: IoRef, _: u64) {
        assert!(io.status().is_ok(), "{:?}", io.status());
        self.flying.set(self.flying.get() - 1);
        if self.left.get() > 0 {
            return self.submit(io);
        }
        io.release();
    }
}

async fn load(r: &Reactor, ch: &Channel, op: Op, stripes: u64, count: u64) {
    let load = Rc::new(Load { ch: ch.clone(), op, stripes, left: Cell::new(count), flying: Cell::new(0) });
    for _ in 0..16 {
        let mut io = ch.core().get().expect("a request");
        io.set_buf(r.dma().alloc(STRIP as usize * 512).expect("memory"));
        load.submit(io);
    }
    while load.flying.get() > 0 {
        r.yield_now().await;
    }
}

#[test]
fn forwarded_writes_and_reads_allocate_nothing() {
    let options = Options { cores: vec![0, 1], pin: false, ..Options::default() };
    let rt = Runtime::start(options).expect("runtime starts");
    let registry = Registry::new();
    let made = registry.clone();
    let node = rt.cores()[0].spawn(move |_| async move {
        for i in 0..3 {
            made.register(&format!("m{i}"), None, Malloc::new(Geometry::plain(512, 64 << 10)).unwrap()).unwrap();
        }
        let o = create::Options {
            name: "a".into(),
            data_chunk_count: 2,
            parity_chunk_count: 1,
            strip_size_kb: 4,
            base_bdevs: (0..3).map(|i| format!("m{i}")).collect(),
            layout: LayoutOptions { journal_slots: Some(64), ..LayoutOptions::default() },
            ..create::Options::default()
        };
        let p = create::prepare(&made, &o, &(Arc::new(|_, _| {}) as create::Told)).await.unwrap();
        start(&made, "a", p.head, p.members, Tuning::default(), &Accel::default()).await.unwrap()
    });
    let node = node.wait().unwrap();
    let reg = registry.clone();
    let counted = rt.cores()[1].spawn(move |r: Reactor| async move {
        let desc = reg.open("a", true, Box::new(|_| {})).expect("open");
        let ch = desc.channel().expect("channel");
        // Written once and flushed, so that writes take records; then tables have grown as far as they do.
        load(&r, &ch, Op::Write, 64, 256).await;
        assert!(ch.flush().await.0.is_ok());
        load(&r, &ch, Op::Write, 64, 2000).await;
        load(&r, &ch, Op::Read, 64, 2000).await;
        let mut counts = Vec::new();
        for op in [Op::Write, Op::Read] {
            let before = ALLOCATED.load(Relaxed);
            COUNTS.store(true, Relaxed);
            load(&r, &ch, op, 64, 4000).await;
            COUNTS.store(false, Relaxed);
            counts.push(ALLOCATED.load(Relaxed) - before);
        }
        drop((ch, desc));
        for _ in 0..4 {
            r.yield_now().await;
        }
        counts
    });
    let counted = counted.wait().unwrap();
    drop(node);
    let reg = registry.clone();
    rt.cores()[0].spawn(move |_| async move { reg.unregister("a").await }).wait().unwrap().unwrap();
    for c in rt.cores() {
        c.spawn(|r: Reactor| async move {
            for _ in 0..8 {
                r.yield_now().await;
            }
            CoreState::shutdown();
        })
        .wait()
        .unwrap();
    }
    rt.stop();
    eprintln!("allocations in 4000 writes and in 4000 reads: {counted:?}");
    // Starting a load makes a few lists; a request that allocates makes thousands.
    assert!(counted.iter().all(|&n| n < 200), "allocations in 4000 writes and in 4000 reads: {counted:?}");
}
