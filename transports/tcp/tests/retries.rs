//! Commands that a controller ended for a reason that may pass: which are sent again, and which may not be.

mod world;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use longshore_bdev::nvme::{
    AttachOptions, Controllers, NvmeOptions, PathFilter, Reconnect, TimeoutAction, TransportId,
};
use longshore_bdev::{
    Bdev, BdevError, BdevNode, Channel, Geometry, IoChannel, IoFlags, IoId, IoRef, Op, Registry, Status, SupportedOps,
};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::{DmaBuf, Options, Reactor, Runtime};
use world::{NQN, World, block_on};

/// A device of zeroes that ends the first requests of one kind in its own way.
struct Moody {
    ops: SupportedOps,
    op: Op,
    /// `None`: they stay until they are aborted.
    end: Option<Status>,
    left: AtomicU32,
    seen: [AtomicU32; Op::COUNT],
}

struct MoodyChannel(Arc<BdevNode>, RefCell<Vec<IoRef>>);

impl Moody {
    fn new(ops: &[Op], op: Op, end: Option<Status>, times: u32) -> Arc<Moody> {
        let seen = Default::default();
        Arc::new(Moody { ops: SupportedOps::of(ops), op, end, left: times.into(), seen })
    }

    fn seen(&self, op: Op) -> u32 {
        self.seen[op as usize].load(Ordering::SeqCst)
    }
}

impl Bdev for Moody {
    fn product_name(&self) -> &'static str {
        "moody"
    }
    fn geometry(&self) -> Geometry {
        Geometry::plain(512, 64)
    }
    fn supported(&self) -> SupportedOps {
        self.ops
    }
    fn open_channel(&self, _: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(MoodyChannel(node.clone(), RefCell::default())))
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl IoChannel for MoodyChannel {
    fn submit(&self, mut io: IoRef) {
        let dev = self.0.device().as_any().downcast_ref::<Moody>().unwrap();
        let op = io.op();
        dev.seen[op as usize].fetch_add(1, Ordering::SeqCst);
        let again = |n: u32| n.checked_sub(1);
        if op == dev.op && dev.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, again).is_ok() {
            return match dev.end {
                Some(s) => io.complete_later(s),
                None => self.1.borrow_mut().push(io),
            };
        }
        if op == Op::Read {
            io.segments_mut().for_each(|s| s.fill(0));
        }
        io.complete_later(Status::SUCCESS);
    }
    fn abort(&self, id: IoId) -> bool {
        let mut all = self.1.borrow_mut();
        let Some(i) = all.iter().position(|io| io.id() == id) else { return false };
        all.remove(i).complete_later(Status::ABORT_REQUESTED);
        true
    }
}

fn filled(r: &Reactor, byte: u8) -> DmaBuf {
    let mut b = r.dma().alloc(512).unwrap();
    b.get_mut().unwrap().fill(byte);
    b
}

/// Runs `f` on `dev` as a remote namespace.
fn remotely<Fut: Future<Output = Status> + 'static>(
    dev: Arc<Moody>,
    o: NvmeOptions,
    f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static,
) -> Status {
    remotely_with(Reconnect::default(), dev, o, f)
}

fn remotely_with<Fut: Future<Output = Status> + 'static>(
    reconnect: Reconnect,
    dev: Arc<Moody>,
    o: NvmeOptions,
    f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static,
) -> Status {
    let w = World::new();
    w.target.bdevs().register("Moody", None, dev).unwrap();
    let ns = NamespaceOptions { bdev_name: "Moody".into(), nsid: Some(2), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    let host = Options { cores: vec![0, 1], pin: false, name: "host".into(), ..Options::default() };
    let rt = Runtime::start(host).unwrap();
    let registry = Registry::new();
    let controllers = Controllers::new(registry.clone(), rt.cores().to_vec());
    controllers.set_options(o).unwrap();
    block_on(controllers.attach(
        "Nvme0",
        TransportId::tcp(w.addr, NQN),
        AttachOptions { reconnect, ..AttachOptions::default() },
    ))
    .unwrap();
    let run = rt.cores()[1].spawn(move |r| async move {
        let desc = registry.open("Nvme0n2", true, Box::new(|_| {})).unwrap();
        f(r, desc.channel().unwrap()).await
    });
    let end = run.wait_timeout(Duration::from_secs(40)).expect("in time").unwrap();
    block_on(controllers.detach("Nvme0", &PathFilter::default())).unwrap();
    rt.stop();
    end
}

async fn compare_and_write(r: Reactor, ch: Channel) -> Status {
    ch.compare_and_write(0, 1, filled(&r, 0), filled(&r, 7), IoFlags::NONE).await.0
}

const ABORTED: Option<Status> = Some(Status::ABORT_REQUESTED);

#[test]
fn a_compare_and_write_that_was_aborted_unasked_before_its_write_is_sent_again() {
    let dev = Moody::new(&[Op::Read, Op::Write], Op::Read, ABORTED, 2);
    let s = remotely(dev.clone(), NvmeOptions::default(), compare_and_write);
    assert_eq!((s, dev.seen(Op::Read), dev.seen(Op::Write)), (Status::SUCCESS, 3, 1));
    let dev = Moody::new(&[Op::Read, Op::Write], Op::Read, ABORTED, 1000);
    let s = remotely(dev.clone(), NvmeOptions::default(), compare_and_write);
    assert!(s.is(Status::ABORT_REQUESTED), "{s}");
    assert_eq!((dev.seen(Op::Read), dev.seen(Op::Write)), (4, 0), "not for ever");
}

#[test]
fn a_compare_and_write_whose_write_may_have_been_executed_is_not_sent_again_and_says_so() {
    let apart = (&[Op::Read, Op::Write][..], Op::Write);
    let at_once = (&[Op::Read, Op::Write, Op::CompareAndWrite][..], Op::CompareAndWrite);
    for (ops, op) in [apart, at_once] {
        let dev = Moody::new(ops, op, ABORTED, 1);
        let s = remotely(dev.clone(), NvmeOptions::default(), compare_and_write);
        assert!(s.is(Status::ABORTED_BY_HOST) && s.dnr(), "{op:?}: {s}");
        assert_eq!(dev.seen(op), 1, "{op:?}");
    }
}

#[test]
fn a_command_that_was_aborted_for_taking_too_long_is_not_sent_again() {
    let o = NvmeOptions {
        action_on_timeout: TimeoutAction::Abort,
        timeout: Duration::from_millis(100),
        timeout_admin: Duration::from_secs(10),
        ..NvmeOptions::default()
    };
    let dev = Moody::new(&[Op::Read, Op::Write], Op::Read, None, 1000);
    let s = remotely(dev.clone(), o, |r, ch| async move { ch.read(0, 1, filled(&r, 0)).await.0 });
    assert!(s.is(Status::ABORT_REQUESTED), "{s}");
    assert_eq!(dev.seen(Op::Read), 1);
}

#[test]
fn a_namespace_that_is_not_ready_is_awaited_as_long_as_a_lost_controller() {
    let lossy = |loss| Reconnect { ctrlr_loss_timeout_sec: loss, reconnect_delay_sec: 1, fast_io_fail_timeout_sec: 0 };
    let read = |r: Reactor, ch: Channel| async move { ch.read(0, 1, filled(&r, 0)).await.0 };
    let o = || NvmeOptions { bdev_retry_count: 0, ..NvmeOptions::default() };
    let dev = |times| Moody::new(&[Op::Read], Op::Read, Some(Status::NAMESPACE_NOT_READY), times);
    for loss in [3600, -1] {
        let dev = dev(12);
        assert_eq!(remotely_with(lossy(loss), dev.clone(), o(), read), Status::SUCCESS);
        assert_eq!(dev.seen(Op::Read), 13);
    }
    let never = dev(u32::MAX);
    assert_eq!(remotely_with(lossy(1), never.clone(), o(), read), Status::NAMESPACE_NOT_READY);
    assert!(never.seen(Op::Read) > 1);
    // Not to be tried again: told at once.
    let dnr = Moody::new(&[Op::Read], Op::Read, Some(Status::NAMESPACE_NOT_READY.with_dnr()), u32::MAX);
    let s = remotely_with(lossy(3600), dnr.clone(), o(), read);
    assert!(s.is(Status::NAMESPACE_NOT_READY) && s.dnr(), "{s}");
    assert_eq!(dnr.seen(Op::Read), 1);
}
