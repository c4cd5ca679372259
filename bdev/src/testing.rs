//! What the tests of this crate share: a runtime with small pools, and blocking on a reactor's future.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{DmaBuf, Options, Reactor, Runtime};

use crate::channel::Channel;
use crate::core::CoreState;
use crate::desc::BdevDesc;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::frame::Submitter;
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::malloc::Malloc;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// Options of a runtime with so many reactors, unpinned.
pub(crate) fn options(cores: u32) -> Options {
    let mut o = Options { cores: (0..cores).collect(), pin: false, ..Options::default() };
    o.dma.max_bytes = 16 << 20;
    o
}

/// Runs the future that `f` makes on core 0 of a fresh runtime, to its end, and shuts the runtime down in order.
pub(crate) fn run<Fut: Future<Output = R> + 'static, R: Send + 'static>(
    f: impl FnOnce(Reactor) -> Fut + Send + 'static,
) -> R {
    run_on(1, f)
}

/// As [`run`], with several cores.
pub(crate) fn run_on<Fut: Future<Output = R> + 'static, R: Send + 'static>(
    cores: u32,
    f: impl FnOnce(Reactor) -> Fut + Send + 'static,
) -> R {
    let rt = Runtime::start(options(cores)).expect("runtime starts");
    let out = rt.cores()[0]
        .spawn(f)
        .wait_timeout(Duration::from_secs(60))
        .expect("test ends in time")
        .expect("not cancelled");
    for c in rt.cores() {
        // Channels dropped at the end of the test are freed by the core's next poll.
        let done = c.spawn(|r: Reactor| async move {
            r.yield_now().await;
            r.yield_now().await;
            CoreState::shutdown();
        });
        done.wait().expect("core shuts down");
    }
    rt.stop();
    out
}

/// A buffer filled with one byte.
pub(crate) fn filled(r: &Reactor, len: usize, byte: u8) -> DmaBuf {
    let mut b = r.dma().alloc(len).expect("test buffer");
    b.get_mut().expect("unshared").fill(byte);
    b
}

/// Opens a device for writing and its channel on this core.
pub(crate) fn open(reg: &Arc<Registry>, name: &str) -> (BdevDesc, Channel) {
    let desc = reg.open(name, true, Box::new(|_| {})).expect("test device opens");
    let ch = desc.channel().expect("channel opens");
    (desc, ch)
}

/// A device that reads and writes, and leaves everything else to the core.
pub(crate) struct Plain(pub(crate) Arc<Malloc>);

impl Bdev for Plain {
    fn product_name(&self) -> &'static str {
        "plain"
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Reset])
    }

    fn open_channel(&self, r: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        self.0.open_channel(r, node)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Notes the ends of requests in the order they come.
#[derive(Default)]
pub(crate) struct Recorder(pub(crate) RefCell<Vec<(u64, Status)>>);

impl Submitter for Recorder {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        self.0.borrow_mut().push((tag, io.status()));
        io.release();
    }
}

impl Recorder {
    /// Submits a request with `buf` and returns its name.
    pub(crate) fn submit(self: &Rc<Self>, ch: &Channel, op: Op, lba: u64, n: u32, buf: DmaBuf, tag: u64) -> IoId {
        let mut io = ch.core().get().expect("a request");
        io.prepare(op, IoFlags::NONE, lba, n);
        io.set_buf(buf);
        io.begin(self.clone(), tag);
        let id = io.id();
        ch.submit(io);
        id
    }

    /// Waits until `n` requests have ended.
    pub(crate) async fn ended(&self, r: &Reactor, n: usize) -> Vec<(u64, Status)> {
        while self.0.borrow().len() < n {
            r.yield_now().await;
        }
        self.0.borrow().clone()
    }
}
