//! Runs so many reads through a stack, for counting instructions: `hotpath null|passthru|generator COUNT`.
//!
//! The difference of two runs of different counts, divided by the difference of the counts, is what one request costs. With
//! `generator` the same loop runs without a device: that is what has to be subtracted. See `scripts/instructions.sh`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use longshore_bdev::{Channel, CoreState, Geometry, IoFlags, IoRef, Op, Registry, Status, Submitter, null, passthru};
use longshore_reactor::sim::Sim;
use longshore_reactor::{Reactor, oneshot};

const DEPTH: u64 = 128;

struct Generator {
    channel: Channel,
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
        self.lba.set((lba + 7) & 0xffff);
        Some(lba)
    }

    #[inline(always)]
    fn count(&self) {
        self.ended.set(self.ended.get() + 1);
    }

    fn start(self: Rc<Self>, mut io: IoRef) {
        if let Some(lba) = self.next_lba() {
            io.prepare(Op::Read, IoFlags::NONE, lba, 1);
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
            panic!("a read failed: {}", io.status());
        }
        let Some(lba) = self.next_lba() else { return self.finish(io) };
        io.prepare(Op::Read, IoFlags::NONE, lba, 1);
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
            panic!("a read failed: {status}");
        }
        self.next_lba().is_some()
    }
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let (kind, total) = match &args[..] {
        [_, kind, n] => (kind.clone(), n.parse().expect("a count")),
        _ => panic!("usage: hotpath null|passthru|generator COUNT"),
    };
    // A simulated world: one thread, no system calls, no spinning, and so the same count in every run.
    let mut sim = Sim::new(1);
    sim.block_on(move |_: Reactor| async move {
        let reg: Arc<Registry> = Registry::new();
        reg.register("n", None, null::Null::new(Geometry::plain(4096, 1 << 20))).expect("null");
        let mut top = "n".to_owned();
        let layers = match kind.as_str() {
            "passthru" => 2,
            "null" | "generator" => 0,
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
        let (tx, rx) = oneshot::channel();
        let g = Rc::new(Generator {
            channel,
            left: Cell::new(total),
            ended: Cell::new(0),
            lba: Cell::new(0),
            done: Cell::new(Some(tx)),
        });
        if kind == "generator" {
            let status = std::hint::black_box(Status::SUCCESS);
            while g.clone().alone(status) {}
            return;
        }
        for _ in 0..DEPTH.min(total) {
            let io = core.get().expect("a request");
            g.clone().start(io);
        }
        rx.await.expect("all requests end");
        let s = reg.find(&top).expect("still there").stats();
        assert_eq!((g.ended.get(), s.op(Op::Read).ops), (total, total), "statistics are on");
    });
    CoreState::shutdown();
}
