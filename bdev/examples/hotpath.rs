//! Runs so many requests of 4 KiB through a stack, for counting instructions: `hotpath KIND COUNT`. Kinds: reads through `null` and
//! `passthru`; `ec-read` and `ec-overwrite` of an array 4+2 on `malloc` that is full; `generator`.
//!
//! The difference of two runs of different counts, divided by the difference of the counts, is what one request costs. With
//! `generator` the same loop runs without a device: that is what has to be subtracted. See `scripts/instructions.sh`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use longshore_bdev::ec::{arrays::Arrays, create};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::{Channel, CoreState, Geometry, IoFlags, IoRef, Op, Registry, Status, Submitter, null, passthru};
use longshore_reactor::sim::Sim;
use longshore_reactor::{Reactor, oneshot};

const DEPTH: u64 = 128;

/// Blocks of the array that are used. Requests that follow each other are a stripe of 64 blocks apart.
const EC_BLOCKS: u64 = 4096;
const EC_DEPTH: u64 = 32;

struct Generator {
    channel: Channel,
    op: Op,
    stride: u64,
    mask: u64,
    left: Cell<u64>,
    ended: Cell<u64>,
    lba: Cell<u64>,
    done: Cell<Option<oneshot::Sender<()>>>,
}

impl Generator {
    /// What the generator itself does for one request: all but the calls into the block layer.
    #[inline(always)]
    fn next_lba(&self) -> Option<u64> {
        let left = self.left.get();
        if left == 0 {
            return None;
        }
        self.left.set(left - 1);
        let lba = self.lba.get();
        self.lba.set((lba + self.stride) & self.mask);
        Some(lba)
    }

    #[inline(always)]
    fn count(&self) {
        self.ended.set(self.ended.get() + 1);
    }

    fn start(self: Rc<Self>, mut io: IoRef) {
        if let Some(lba) = self.next_lba() {
            io.prepare(self.op, IoFlags::KEEP_BUFFER, lba, 1);
            io.begin(self.clone(), 0);
            self.channel.submit(io);
        } else {
            io.release();
        }
    }

    #[cold]
    fn finish(&self, io: IoRef) {
        io.release();
        if self.channel.inflight() == 0
            && let Some(tx) = self.done.take()
        {
            let _ = tx.send(());
        }
    }
}

impl Submitter for Generator {
    #[inline]
    fn io_done(self: Rc<Self>, mut io: IoRef, _: u64) {
        self.count();
        if io.status().is_err() {
            panic!("a request failed: {}", io.status());
        }
        let Some(lba) = self.next_lba() else { return self.finish(io) };
        io.prepare(self.op, IoFlags::KEEP_BUFFER, lba, 1);
        io.begin(self.clone(), 0);
        self.channel.submit(io);
    }
}

impl Generator {
    /// The generator's own part of one request: its callback without the calls into the block layer.
    #[inline(never)]
    fn alone(self: Rc<Self>, status: Status) -> bool {
        self.count();
        if status.is_err() {
            panic!("a request failed: {status}");
        }
        self.next_lba().is_some()
    }
}

/// An array 4+2 of which every block that is used was written and flushed; its name.
async fn array(reg: &Arc<Registry>, reactor: &Reactor) -> String {
    let members: Vec<_> = (0..6).map(|i| format!("m{i}")).collect();
    for m in &members {
        let device = Malloc::new(Geometry::plain(4096, 8192)).expect("malloc");
        reg.register(m, None, device).expect("a name of its own");
    }
    let options = create::Options {
        name: "ec".into(),
        data_chunk_count: 4,
        parity_chunk_count: 2,
        strip_size_kb: 64,
        base_bdevs: members,
        ..create::Options::default()
    };
    let arrays = Arrays::install(reg, vec![reactor.handle()], Arc::default());
    arrays.create(reg, options).await.expect("an array");
    let desc = reg.open("ec", true, Box::new(|_| {})).expect("opens");
    let channel = desc.channel().expect("channel");
    for stripe in (0..EC_BLOCKS).step_by(64) {
        let buf = reactor.dma().alloc(64 * 4096).expect("memory");
        assert!(channel.write(stripe, 64, buf, IoFlags::NONE).await.0.is_ok());
    }
    assert!(channel.flush().await.0.is_ok());
    "ec".into()
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let (kind, total) = match &args[..] {
        [_, kind, n] => (kind.clone(), n.parse().expect("a count")),
        _ => panic!("usage: hotpath null|passthru|ec-read|ec-overwrite|generator COUNT"),
    };
    // A simulated world: one thread, no system calls, no spinning, and so the same count in every run.
    let mut sim = Sim::new(1);
    sim.block_on(move |reactor: Reactor| async move {
        let reg: Arc<Registry> = Registry::new();
        reg.register("n", None, null::Null::new(Geometry::plain(4096, 1 << 20))).expect("null");
        let mut top = "n".to_owned();
        let layers = match kind.as_str() {
            "passthru" => 2,
            "null" | "generator" => 0,
            "ec-read" | "ec-overwrite" => {
                top = array(&reg, &reactor).await;
                0
            }
            other => panic!("no stack is called {other}"),
        };
        for i in 0..layers {
            let name = format!("p{i}");
            let o = passthru::Options { name: name.clone(), base: top, uuid: None };
            passthru::create(&reg, o).expect("passthru").expect("its base is there");
            top = name;
        }
        let desc = reg.open(&top, true, Box::new(|_| {})).expect("opens");
        let channel = desc.channel().expect("channel");
        let core = channel.core().clone();
        let is_array = kind.starts_with("ec-");
        let (depth, stride, mask) = if is_array { (EC_DEPTH, 65, EC_BLOCKS - 1) } else { (DEPTH, 7, 0xffff) };
        let op = if kind == "ec-overwrite" { Op::Write } else { Op::Read };
        let (tx, rx) = oneshot::channel();
        let g = Rc::new(Generator {
            channel,
            op,
            stride,
            mask,
            left: Cell::new(total),
            ended: Cell::new(0),
            lba: Cell::new(0),
            done: Cell::new(Some(tx)),
        });
        let before = reg.find(&top).expect("there").stats().op(op).ops;
        if kind == "generator" {
            let status = std::hint::black_box(Status::SUCCESS);
            while g.clone().alone(status) {}
            return;
        }
        for _ in 0..depth.min(total) {
            let mut io = core.get().expect("a request");
            if is_array {
                io.set_buf(reactor.dma().alloc(4096).expect("memory"));
            }
            g.clone().start(io);
        }
        rx.await.expect("all requests end");
        let s = reg.find(&top).expect("still there").stats();
        assert_eq!((g.ended.get(), s.op(op).ops), (total, total + before), "statistics are on");
    });
    CoreState::shutdown();
}
