//! What the tests of this crate share: a runtime with small pools, and blocking on a reactor's future.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use longshore_reactor::{DmaBuf, Options, Reactor, Runtime};

use crate::channel::Channel;
use crate::core::CoreState;
use crate::desc::BdevDesc;
use crate::registry::Registry;

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
