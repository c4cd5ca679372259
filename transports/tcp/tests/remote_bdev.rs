//! Namespaces of this crate's target as block devices of the initiator.

mod world;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use longshore_bdev::malloc::Malloc;
use longshore_bdev::nvme::{AttachError, AttachOptions, Controllers, PathFilter, TransportId};
use longshore_bdev::{
    Bdev, BdevError, BdevEvent, BdevNode, Channel, Geometry, IoChannel, IoFlags, IoId, IoRef, Op, Registry, Status,
    SupportedOps,
};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::{CoreHandle, DmaBuf, Options, Reactor, Runtime, oneshot};
use world::{BLOCKS, NQN, Setup, World, block_on};

fn filled(r: &Reactor, len: usize, byte: u8) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    b.get_mut().unwrap().fill(byte);
    b
}

struct Remote {
    registry: Arc<Registry>,
    controllers: Arc<Controllers>,
}

impl Remote {
    fn new(w: &World) -> Remote {
        Remote::on(w.cores())
    }

    fn on(cores: &[CoreHandle]) -> Remote {
        let registry = Registry::new();
        Remote { controllers: Controllers::new(registry.clone(), cores.to_vec()), registry }
    }

    /// Waits until `Nvme0n1` is there, and another device than `old`.
    fn replaced(&self, old: &BdevNode) {
        let start = Instant::now();
        while self.registry.find("Nvme0n1").is_none_or(|n| n.uuid() == old.uuid()) {
            assert!(start.elapsed() < Duration::from_secs(20), "the device of the old namespace is still there");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn attach(&self, name: &str, addr: SocketAddr) -> Result<Vec<String>, AttachError> {
        block_on(self.controllers.attach(name, TransportId::tcp(addr, NQN), AttachOptions::default()))
    }

    fn detach(&self, name: &str) -> Result<(), AttachError> {
        block_on(self.controllers.detach(name, &PathFilter::default()))
    }

    /// Runs `f` with the device's channel on core 1.
    fn on_channel<Fut: Future<Output = ()> + 'static>(
        &self,
        w: &World,
        f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static,
    ) {
        let registry = self.registry.clone();
        let run = w.cores()[1].spawn(move |r| async move {
            let desc = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
            let ch = desc.channel().unwrap();
            f(r, ch).await;
        });
        run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    }
}

#[test]
fn every_operation_reaches_the_namespace() {
    let w = World::new();
    let remote = Remote::new(&w);
    assert_eq!(remote.attach("Nvme0", w.addr).unwrap(), ["Nvme0n1"]);
    let node = remote.registry.find("Nvme0n1").unwrap();
    assert_eq!((node.num_blocks(), node.geometry().block_size), (BLOCKS, 512));
    remote.on_channel(&w, |r, ch| async move {
        let ok = Status::SUCCESS;
        assert_eq!(ch.write(7, 8, filled(&r, 4096, 0x5a), IoFlags::FUA).await.0, ok);
        let (s, b) = ch.read(7, 8, filled(&r, 4096, 0)).await;
        assert!(s == ok && b.unwrap().as_slice().iter().all(|&x| x == 0x5a));
        // Larger than a command may be.
        let mut big = filled(&r, 1 << 20, 1);
        for (i, c) in big.get_mut().unwrap().chunks_mut(512).enumerate() {
            c.fill(i as u8 ^ (i >> 8) as u8);
        }
        assert_eq!(ch.write(4096, 2048, big.clone(), IoFlags::NONE).await.0, ok);
        let (s, b) = ch.read(4096, 2048, filled(&r, 1 << 20, 0)).await;
        assert!(s == ok && b.unwrap().as_slice() == big.as_slice());
        assert_eq!(ch.compare(7, 8, filled(&r, 4096, 0x5a)).await.0, ok);
        assert_eq!(ch.compare(7, 8, filled(&r, 4096, 0x5b)).await.0.code(), Status::COMPARE_FAILURE);
        let caw = |old, new| ch.compare_and_write(7, 1, filled(&r, 512, old), filled(&r, 512, new), IoFlags::NONE);
        assert_eq!(caw(0x5a, 0x11).await.0, ok);
        assert_eq!(caw(0x5a, 0x22).await.0.code(), Status::COMPARE_FAILURE);
        let (_, b) = ch.read(7, 1, filled(&r, 512, 0)).await;
        assert!(b.unwrap().as_slice().iter().all(|&x| x == 0x11));
        assert_eq!(ch.write_zeroes(7, 8, IoFlags::NONE).await.0, ok);
        let (_, b) = ch.read(7, 8, filled(&r, 4096, 9)).await;
        assert!(b.unwrap().as_slice().iter().all(|&x| x == 0));
        assert_eq!(ch.flush().await.0, ok);
        assert_eq!(ch.unmap(4096, 2048).await.0, ok);
        if ch.supports(Op::Copy) {
            assert_eq!(ch.write(100, 1, filled(&r, 512, 0x77), IoFlags::NONE).await.0, ok);
            assert_eq!(ch.copy(100, 200, 1).await.0, ok);
            let (_, b) = ch.read(200, 1, filled(&r, 512, 0)).await;
            assert!(b.unwrap().as_slice().iter().all(|&x| x == 0x77));
        }
        assert_eq!(ch.read(BLOCKS, 1, filled(&r, 512, 0)).await.0.code(), Status::LBA_OUT_OF_RANGE);
        // More at once than the queue takes.
        let all: Vec<_> = (0..700).map(|i| ch.read(i * 8, 8, filled(&r, 4096, 0))).collect();
        for f in all {
            assert_eq!(f.await.0, ok);
        }
    });
    remote.detach("Nvme0").unwrap();
    assert!(remote.registry.find("Nvme0n1").is_none());
    w.settled(0);
}

#[test]
fn attaching_twice_or_to_nobody_is_refused_and_leaves_nothing() {
    let w = World::new();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let e = remote.attach("Nvme0", w.addr).unwrap_err();
    assert_eq!(
        (e.errno(), e.to_string().as_str()),
        (114, "A controller named Nvme0 already exists with the specified network path")
    );
    let e = remote.attach("Nvme1", world::free_port("127.0.0.1")).unwrap_err();
    assert_eq!(e.errno(), 5, "{e}");
    let all = remote.controllers.list(None).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].name.as_str(), all[0].state, &all[0].trid.subnqn[..]), ("Nvme0", "enabled", NQN));
    assert!(all[0].cntlid > 0 && all[0].hostnqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!(remote.controllers.list(Some("Nvme1")).unwrap_err().errno(), 19);
    remote.detach("Nvme0").unwrap();
    assert_eq!(remote.detach("Nvme0").unwrap_err().errno(), 19);
    remote.attach("Nvme0", w.addr).unwrap();
    remote.detach("Nvme0").unwrap();
}

#[test]
fn a_reset_under_load_holds_what_is_under_way_and_sends_it_again() {
    let w = Setup { delay: Some(Duration::from_millis(200)), ..Setup::default() }.start();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let controllers = remote.controllers.clone();
    remote.on_channel(&w, |r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        // More than the queue takes, so some wait for room.
        let under_way: Vec<_> =
            (0..600).map(|i| ch.write(i * 8, 8, filled(&r, 4096, i as u8), IoFlags::NONE)).collect();
        let pair = ch.compare_and_write(8000, 1, filled(&r, 512, 0), filled(&r, 512, 7), IoFlags::NONE);
        r.yield_now().await;
        controllers.reset("Nvme0").await.unwrap();
        for f in under_way {
            assert_eq!(f.await.0, Status::SUCCESS);
        }
        // It may have been executed: nobody knows, so it is neither sent again nor a success.
        let s = pair.await.0;
        assert!(s.is(Status::SUCCESS) || s.is_path_error() && s.dnr(), "{s}");
        let all: Vec<_> = (0..600).map(|i| ch.read(i * 8, 8, filled(&r, 4096, 0xee))).collect();
        for (i, f) in all.into_iter().enumerate() {
            let (s, b) = f.await;
            assert!(s == Status::SUCCESS && b.unwrap().as_slice().iter().all(|&x| x == i as u8), "{i}: {s}");
        }
        assert_eq!(ch.reset().await.0, Status::SUCCESS);
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
    });
    remote.detach("Nvme0").unwrap();
    w.settled(0);
}

#[test]
fn namespaces_that_go_and_come_are_followed() {
    let w = World::new();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let until = |there: bool| {
        let start = Instant::now();
        while remote.registry.find("Nvme0n1").is_some() != there {
            assert!(start.elapsed() < Duration::from_secs(20), "Nvme0n1 is not {there}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    block_on(w.target.remove_namespace(NQN, 1)).unwrap();
    until(false);
    let ns = NamespaceOptions { bdev_name: "Malloc0".into(), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    until(true);
    remote.detach("Nvme0").unwrap();
}

/// An initiator with reactors of its own.
fn initiator() -> Runtime {
    Runtime::start(Options { cores: vec![0, 1], pin: false, name: "host".into(), ..Options::default() }).unwrap()
}

/// Reactors that stand still until they are let go.
fn hold(rt: &Runtime) -> Vec<mpsc::Sender<()>> {
    let held = rt.cores().iter().map(|c| {
        let ((go, wait), (tell, stands)) = (mpsc::channel(), mpsc::channel());
        drop(c.call(move |_| {
            tell.send(()).unwrap();
            wait.recv()
        }));
        stands.recv().unwrap();
        go
    });
    held.collect()
}

#[test]
fn a_namespace_replaced_under_its_identifier_is_another_device_and_the_old_one_is_removed() {
    let w = World::new();
    let rt = initiator();
    let remote = Remote::on(rt.cores());
    remote.attach("Nvme0", w.addr).unwrap();
    let old = remote.registry.find("Nvme0n1").unwrap();
    let ((ready, is_ready), (go, replaced)) = (mpsc::channel(), oneshot::channel());
    let registry = remote.registry.clone();
    let removals = Arc::new(AtomicU32::new(0));
    let told = removals.clone();
    let user = rt.cores()[1].spawn(move |r| async move {
        let sink = move |e| {
            told.fetch_add(u32::from(e == BdevEvent::Remove), Ordering::SeqCst);
        };
        let desc = registry.open("Nvme0n1", true, Box::new(sink)).unwrap();
        let ch = desc.channel().unwrap();
        assert!(ch.write(7, 1, filled(&r, 512, 0x5a), IoFlags::NONE).await.0.is_ok());
        ready.send(()).unwrap();
        replaced.await.unwrap();
        assert!(ch.read(7, 1, filled(&r, 512, 0)).await.0.is_err(), "a read of the old device");
        assert!(ch.write(7, 1, filled(&r, 512, 0x77), IoFlags::NONE).await.0.is_err(), "a write to the old device");
        let new = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
        let (s, b) = new.channel().unwrap().read(7, 1, filled(&r, 512, 1)).await;
        assert!(s.is_ok() && b.unwrap().as_slice() == [0; 512], "the new device: {s}");
    });
    is_ready.recv().unwrap();
    // The host finds both changes at once.
    let held = hold(&rt);
    let malloc = Malloc::new(Geometry::plain(512, BLOCKS)).unwrap();
    w.target.bdevs().register("Malloc1", None, malloc).unwrap();
    block_on(w.target.remove_namespace(NQN, 1)).unwrap();
    let ns = NamespaceOptions { bdev_name: "Malloc1".into(), nsid: Some(1), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    drop(held);
    remote.replaced(&old);
    go.send(()).unwrap();
    user.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    assert_eq!(removals.load(Ordering::SeqCst), 1, "its user was told once");
    remote.detach("Nvme0").unwrap();
    rt.stop();
}

#[test]
fn nothing_meant_for_a_namespace_reaches_the_one_that_replaced_it_across_a_reset() {
    let rt = initiator();
    let remote = Remote::on(rt.cores());
    let mut w = World::new();
    let addr = w.addr;
    remote.attach("Nvme0", addr).unwrap();
    for _ in 0..4 {
        let old = remote.registry.find("Nvme0n1").unwrap();
        let (stop, registry) = (Arc::new(AtomicBool::new(false)), remote.registry.clone());
        let (end, (ready, is_ready)) = (stop.clone(), mpsc::channel());
        let writer = rt.cores()[1].spawn(move |r| async move {
            let desc = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
            let ch = desc.channel().unwrap();
            assert!(ch.write(7, 1, filled(&r, 512, 0x5a), IoFlags::NONE).await.0.is_ok());
            ready.send(()).unwrap();
            let mut last = Status::SUCCESS;
            while !end.load(Ordering::SeqCst) {
                last = ch.write(7, 1, filled(&r, 512, 0x5a), IoFlags::NONE).await.0;
                r.yield_now().await;
            }
            last
        });
        is_ready.recv().unwrap();
        // Another target, whose namespace has another identity, at the same address.
        drop(w);
        w = Setup { addr: Some(addr), ..Setup::default() }.start();
        let start = Instant::now();
        while let Err(e) = block_on(remote.controllers.reset("Nvme0")) {
            assert!(start.elapsed() < Duration::from_secs(20), "{e}");
        }
        remote.replaced(&old);
        stop.store(true, Ordering::SeqCst);
        let last = writer.wait_timeout(Duration::from_secs(20)).expect("in time").unwrap();
        assert!(last.is_err(), "the old device writes");
        let malloc = w.target.bdevs().find("Malloc0").unwrap();
        let writes = malloc.stats().op(Op::Write).ops;
        assert_eq!(writes, 0, "writes reached the namespace that they were not meant for");
    }
    remote.detach("Nvme0").unwrap();
    rt.stop();
}

/// A device that keeps reads, whoever wants them aborted, until it is told to let go.
struct Stuck(Geometry);

struct StuckChannel(RefCell<Vec<IoRef>>);

impl Bdev for Stuck {
    fn product_name(&self) -> &'static str {
        "stuck"
    }
    fn geometry(&self) -> Geometry {
        self.0.clone()
    }
    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write])
    }
    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(StuckChannel(RefCell::default())))
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl IoChannel for StuckChannel {
    fn submit(&self, io: IoRef) {
        self.0.borrow_mut().push(io);
    }
    fn abort(&self, _: IoId) -> bool {
        false
    }
    fn notify(&self, _: u64) {
        self.0.take().into_iter().for_each(|io| io.complete_later(Status::SUCCESS));
    }
}

#[test]
fn a_command_that_no_abort_ends_is_given_up_whatever_is_aborted_on_other_namespaces() {
    let w = Setup { delay: Some(Duration::from_secs(60)), ..Setup::default() }.start();
    let stuck = w.target.bdevs().register("Stuck", None, Arc::new(Stuck(Geometry::plain(512, 64)))).unwrap();
    let ns = NamespaceOptions { bdev_name: "Stuck".into(), nsid: Some(2), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    let rt = initiator();
    let remote = Remote::on(rt.cores());
    assert_eq!(remote.attach("Nvme0", w.addr).unwrap(), ["Nvme0n1", "Nvme0n2"]);
    let registry = remote.registry.clone();
    let run = rt.cores()[1].spawn(move |r| async move {
        let open = |name| registry.open(name, true, Box::new(|_| {})).unwrap();
        let (a, b) = (open("Nvme0n1"), open("Nvme0n2"));
        let (other, ch) = (a.channel().unwrap(), b.channel().unwrap());
        let read = ch.read(0, 1, filled(&r, 512, 0));
        // Behind it on the queue: when this has ended, the other was sent.
        let late = other.flush().await.0;
        assert_eq!(late, Status::SUCCESS);
        ch.abort_all();
        let rr = r.clone();
        let noise = r.spawn(async move {
            loop {
                let slow = other.read(0, 1, filled(&rr, 512, 0));
                rr.sleep(Duration::from_millis(50)).await;
                other.abort_all();
                slow.await;
            }
        });
        let end = read.await.0;
        noise.abort();
        end
    });
    let end = run.wait_timeout(Duration::from_secs(40)).expect("it is given up").unwrap();
    assert!(end.is_path_error() || end.is(Status::ABORTED_BY_HOST), "{end}");
    stuck.notify_channels(0).wait().unwrap();
    remote.detach("Nvme0").unwrap();
    rt.stop();
}

/// A device that ends all requests with a status for so many times, and then with success.
struct Moody(Status, AtomicU32);

struct MoodyChannel(Arc<BdevNode>);

impl Bdev for Moody {
    fn product_name(&self) -> &'static str {
        "moody"
    }
    fn geometry(&self) -> Geometry {
        Geometry::plain(512, 64)
    }
    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write])
    }
    fn open_channel(&self, _: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(MoodyChannel(node.clone())))
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl IoChannel for MoodyChannel {
    fn submit(&self, io: IoRef) {
        let dev = self.0.device().as_any().downcast_ref::<Moody>().unwrap();
        let left = dev.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        io.complete_later(if left.is_ok() { dev.0 } else { Status::SUCCESS });
    }
    fn abort(&self, _: IoId) -> bool {
        false
    }
}

#[test]
fn a_request_that_the_controller_aborts_unasked_is_tried_again_but_not_for_ever() {
    let w = World::new();
    // The first as a stray Abort does; the other is what a lost connection means if it comes from this side.
    for (nsid, status) in [(2, Status::ABORT_REQUESTED), (3, Status::ABORTED_BY_HOST)] {
        for (failures, end) in [(3, Status::SUCCESS), (1000, status)] {
            let moody = Arc::new(Moody(status, failures.into()));
            w.target.bdevs().register("Moody", None, moody.clone()).unwrap();
            let ns = NamespaceOptions { bdev_name: "Moody".into(), nsid: Some(nsid), ..NamespaceOptions::default() };
            block_on(w.target.add_namespace(NQN, ns)).unwrap();
            let rt = initiator();
            let remote = Remote::on(rt.cores());
            remote.attach("Nvme0", w.addr).unwrap();
            let registry = remote.registry.clone();
            let run = rt.cores()[1].spawn(move |r| async move {
                let desc = registry.open(&format!("Nvme0n{nsid}"), true, Box::new(|_| {})).unwrap();
                desc.channel().unwrap().read(0, 1, filled(&r, 512, 0)).await.0
            });
            let s = run.wait_timeout(Duration::from_secs(40)).expect("in time").unwrap();
            assert!(s.is(end), "{status}, {failures} times: {s}");
            if end != Status::SUCCESS {
                assert_eq!(failures - moody.1.load(Ordering::SeqCst), 4, "{status}");
            }
            remote.detach("Nvme0").unwrap();
            rt.stop();
            block_on(w.target.remove_namespace(NQN, nsid)).unwrap();
            drop(w.target.bdevs().remove(&w.target.bdevs().find("Moody").unwrap()));
        }
    }
}
