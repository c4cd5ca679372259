//! Runs so many reads through a stack, for counting instructions: `hotpath null|passthru|none COUNT`.
//!
//! The difference of two runs of different counts, divided by the difference of the counts, is what one request costs; the same
//! for `none`, where requests come back at once, is the generator's own part.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use longshore_bdev::{Channel, CoreState, Geometry, IoFlags, IoRef, Op, Registry, Submitter, null, passthru};
use longshore_reactor::{Options, Reactor, Runtime, oneshot};

const DEPTH: u64 = 128;

struct Generator {
    channel: Option<Channel>,
    core: Rc<CoreState>,
    left: Cell<u64>,
    ended: Cell<u64>,
    lba: Cell<u64>,
    total: u64,
    done: Cell<Option<oneshot::Sender<()>>>,
}

impl Generator {
    #[inline(always)]
    fn next(self: Rc<Self>) {
        if self.left.get() == 0 {
            return;
        }
        self.left.set(self.left.get() - 1);
        let Some(mut io) = self.core.get() else { return };
        let lba = self.lba.get();
        self.lba.set((lba + 7) & 0xffff);
        io.prepare(Op::Read, IoFlags::NONE, lba, 1);
        let me = self.clone();
        io.begin(self, 0);
        match &me.channel {
            Some(ch) => ch.submit(io),
            None => io.complete_later(longshore_bdev::Status::SUCCESS),
        }
    }
}

impl Submitter for Generator {
    #[inline(never)]
    fn io_done(self: Rc<Self>, io: IoRef, _: u64) {
        assert!(io.status().is_ok());
        io.release();
        self.ended.set(self.ended.get() + 1);
        if self.ended.get() == self.total
            && let Some(tx) = self.done.take()
        {
            let _ = tx.send(());
        }
        self.next();
    }
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let (kind, total) = match &args[..] {
        [_, kind, n] => (kind.clone(), n.parse().expect("a count")),
        _ => panic!("usage: hotpath null|passthru|none COUNT"),
    };
    let options = Options { cores: vec![0], pin: false, ..Options::default() };
    let rt = Runtime::start(options).expect("runtime");
    let end = rt.cores()[0].spawn(move |_: Reactor| async move {
        let reg: Arc<Registry> = Registry::new();
        reg.register("n", None, null::Null::new(Geometry::plain(4096, 1 << 20))).expect("null");
        let mut top = "n".to_owned();
        let layers = match kind.as_str() {
            "passthru" => 2,
            "null" | "none" => 0,
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
            channel: (kind != "none").then_some(channel),
            core,
            left: Cell::new(total),
            ended: Cell::new(0),
            lba: Cell::new(0),
            total,
            done: Cell::new(Some(tx)),
        });
        for _ in 0..DEPTH.min(total) {
            g.clone().next();
        }
        rx.await.expect("all requests end");
        if kind != "none" {
            assert_eq!(reg.find(&top).expect("still there").stats().op(Op::Read).ops, total, "statistics are on");
        }
    });
    end.wait().expect("runs to its end");
    let down = rt.cores()[0].spawn(|r: Reactor| async move {
        r.yield_now().await;
        CoreState::shutdown();
    });
    down.wait().expect("shuts down");
    rt.stop();
}
