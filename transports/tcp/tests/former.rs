//! A host comes back while commands of its former connections are in a device that lets go of them for nobody.

mod host;
mod world;

use host::*;
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use longshore_bdev::malloc::Malloc;
use longshore_bdev::{
    Bdev, BdevDesc, BdevError, BdevNode, Channel, Geometry, IoChannel, IoId, IoRef, Status, SupportedOps,
};
use longshore_nvme::wire::{SglDescriptor, Sqe};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::{DmaOptions, Options, Reactor};
use world::{BLOCKS, NQN, Setup, World, block_on};

const OTHER: &str = "nqn.2014-08.org.nvmexpress:uuid:3b0a0f2c-6a4b-4e55-9d5f-0c9c5a6f1e02";
/// Longer than a queue pair that ends keeps its host waiting.
const LONG: Duration = Duration::from_secs(4);
/// Bytes of the largest command.
const LARGEST: u32 = 128 << 10;
/// How long the target gives a connection for its Connect.
const CONNECT: Duration = Duration::from_secs(10);

/// A device on another one. What comes while it is shut stays, whoever wants it aborted, until it is told to let go; what comes
/// while it is open goes past that.
struct Gate {
    lower: BdevDesc,
    shut: Arc<AtomicBool>,
    kept: Arc<AtomicUsize>,
}

struct GateChannel {
    lower: Channel,
    shut: Arc<AtomicBool>,
    kept: Arc<AtomicUsize>,
    held: RefCell<Vec<IoRef>>,
}

impl Bdev for Gate {
    fn product_name(&self) -> &'static str {
        "gate"
    }
    fn geometry(&self) -> Geometry {
        self.lower.node().geometry().clone()
    }
    fn supported(&self) -> SupportedOps {
        self.lower.node().device().supported()
    }
    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let (lower, held) = (self.lower.channel()?, RefCell::default());
        Ok(Box::new(GateChannel { lower, shut: self.shut.clone(), kept: self.kept.clone(), held }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl IoChannel for GateChannel {
    fn submit(&self, io: IoRef) {
        if self.shut.load(Ordering::SeqCst) {
            self.held.borrow_mut().push(io);
            self.kept.fetch_add(1, Ordering::SeqCst);
        } else {
            self.lower.submit(io);
        }
    }
    fn abort(&self, _: IoId) -> bool {
        false
    }
    fn notify(&self, _: u64) {
        self.held.take().into_iter().for_each(|io| self.lower.submit(io));
    }
}

/// A world with the device as namespace 2, shut.
struct Place {
    w: World,
    node: Arc<BdevNode>,
    shut: Arc<AtomicBool>,
    kept: Arc<AtomicUsize>,
}

impl Place {
    fn new() -> Place {
        Place::of(World::new())
    }

    /// With one core that has so much memory.
    fn small(mib: usize) -> Place {
        let dma = DmaOptions { max_bytes: mib << 20, ..DmaOptions::default() };
        let runtime = Options { cores: vec![0], pin: false, dma, ..Options::default() };
        Place::of(Setup { runtime, ..Setup::default() }.start())
    }

    fn of(w: World) -> Place {
        let bdevs = w.target.bdevs();
        bdevs.register("Malloc1", None, Malloc::new(Geometry::plain(512, BLOCKS)).unwrap()).unwrap();
        let lower = bdevs.open("Malloc1", true, Box::new(|_| {})).unwrap();
        let (shut, kept) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let gate = Gate { lower, shut: shut.clone(), kept: kept.clone() };
        let node = bdevs.register("Gate", None, Arc::new(gate)).unwrap();
        w.add_namespace("Gate");
        Place { w, node, shut, kept }
    }

    /// As the same host with another host identifier, as one that draws it anew at every start.
    fn connect_with_id(&self, hostid: [u8; 16]) -> (Host, Host) {
        let connect = |qid, cntlid| {
            let mut h = Host::initialised(self.w.addr, Ic::default());
            h.hostid = hostid;
            let done = h.connect(qid, 31, cntlid, 0, NQN, HOSTNQN);
            assert!(done.status.is_ok(), "Connect of queue {qid}: {}", done.status);
            (h, done.dw0 as u16)
        };
        let (mut admin, cntlid) = connect(0, 0xffff);
        admin.enable();
        (admin, connect(1, cntlid).0)
    }

    fn connect(&self, queues: u16) -> (Host, Vec<Host>) {
        let admin = Host::admin(self.w.addr, Ic::default(), NQN);
        let io = |q| Host::io(self.w.addr, Ic::default(), NQN, admin.cntlid, q, 31, 0);
        let ios = (1..=queues).map(io).collect();
        (admin, ios)
    }

    /// A host with an old write and a read in namespace 2 on each of its queues dies. What it sends from now on would overtake them.
    fn dies(&self, queues: u16) {
        let (admin, mut ios) = self.connect(queues);
        for (i, io) in ios.iter_mut().enumerate() {
            let mut sqe = command(io, 1, i as u64 * 8, 8);
            sqe.dptr = SglDescriptor::in_capsule(0, 4096);
            io.send_cmd(&sqe, &old(i));
            let mut sqe = command(io, 2, i as u64 * 8, 8);
            sqe.dptr = SglDescriptor::transport(4096);
            io.send_cmd(&sqe, &[]);
        }
        let want = usize::from(queues) * 2;
        self.w.wait("the device keeps all", |_| self.kept.load(Ordering::SeqCst) == want);
        self.shut.store(false, Ordering::SeqCst);
        drop((admin, ios));
    }

    /// As [`dies`](Place::dies), with two reads of the largest size on each queue.
    fn dies_with_much(&self, queues: u16) {
        let (admin, mut ios) = self.connect(queues);
        // Two rounds: the queues' own buffers are for what is beyond the host's share.
        for n in 1..=2 {
            for io in &mut ios {
                let mut sqe = command(io, 2, 0, 256);
                sqe.dptr = SglDescriptor::transport(LARGEST);
                io.send_cmd(&sqe, &[]);
            }
            let want = usize::from(queues) * n;
            self.w.wait("the device keeps all", |_| self.kept.load(Ordering::SeqCst) == want);
        }
        self.shut.store(false, Ordering::SeqCst);
        drop((admin, ios));
    }

    /// What the only host holds of what the only core shares: bytes and requests.
    fn holds(&self) -> (u64, u32) {
        let all = block_on(self.w.target.stats()).remove(0).hosts;
        assert!(all.len() <= 1, "{all:?}");
        all.first().map_or((0, 0), |h| (h.buffer_bytes, h.requests))
    }

    fn lets_go(&self) {
        self.node.notify_channels(0).wait().unwrap();
    }

    /// Ended queue pairs that are still listed, by queue.
    fn ended(&self) -> Vec<u16> {
        let all = block_on(self.w.target.qpairs(NQN)).unwrap();
        all.iter().filter(|q| !q.enabled).map(|q| q.qid).collect()
    }
}

fn old(i: usize) -> Vec<u8> {
    pattern(i as u64, 4096)
}

fn new(i: usize) -> Vec<u8> {
    pattern(100 + i as u64, 4096)
}

/// A command to namespace 2, without data.
fn command(io: &mut Host, opcode: u8, slba: u64, blocks: u32) -> Sqe {
    let mut sqe = io.rw_sqe(opcode, slba, blocks, 0);
    sqe.nsid = 2.into();
    sqe
}

fn write(io: &mut Host, slba: u64, data: &[u8]) -> Status {
    let mut sqe = command(io, 1, slba, (data.len() / 512) as u32);
    sqe.dptr = SglDescriptor::in_capsule(0, data.len() as u32);
    io.send_cmd(&sqe, data);
    io.finish(sqe.cid.get(), &[]).status
}

fn read(io: &mut Host, slba: u64) -> Done {
    let mut sqe = command(io, 2, slba, 8);
    sqe.dptr = SglDescriptor::transport(4096);
    io.send_cmd(&sqe, &[]);
    io.finish(sqe.cid.get(), &[])
}

/// Everything that a host may ask of namespace 2 is refused for now, fused or not.
fn refused(io: &mut Host) {
    let data = pattern(9, 4096);
    let not_ready = |s: Status| assert_eq!(s, Status::NAMESPACE_NOT_READY, "without Do Not Retry");
    not_ready(write(io, 0, &data));
    not_ready(read(io, 0).status);
    for (opcode, bytes) in [(0x00, 0), (0x05, 4096), (0x08, 0), (0x09, 16)] {
        let mut sqe = command(io, opcode, 0, 8);
        if opcode == 0x09 {
            (sqe.cdw10, sqe.cdw11, sqe.cdw12) = (0.into(), 4.into(), 0.into());
        }
        sqe.dptr = SglDescriptor::in_capsule(0, bytes);
        io.send_cmd(&sqe, &data[..bytes as usize]);
        not_ready(io.finish(sqe.cid.get(), &[]).status);
    }
    let (mut a, mut b) = (command(io, 0x05, 0, 8), command(io, 0x01, 0, 8));
    (a.flags, b.flags) = (a.flags | 1, b.flags | 2);
    for sqe in [&mut a, &mut b] {
        sqe.dptr = SglDescriptor::in_capsule(0, 4096);
        io.send_cmd(sqe, &data);
    }
    not_ready(io.finish(a.cid.get(), &[]).status);
    assert!(io.finish(b.cid.get(), &[]).status.is(Status::ABORTED_FAILED_FUSED));
}

/// Namespace 1 serves.
fn others_work(io: &mut Host, i: usize) {
    assert!(io.write(i as u64 * 8, &new(i)).status.is_ok());
    assert!(io.read(i as u64 * 8, 4096).data == new(i));
}

/// Writes to namespace 2 as soon as that serves again.
fn write_when_ready(io: &mut Host, slba: u64, data: &[u8]) {
    let start = Instant::now();
    loop {
        let s = write(io, slba, data);
        if s.is_ok() {
            return;
        }
        assert_eq!(s, Status::NAMESPACE_NOT_READY);
        assert!(start.elapsed() < CONNECT, "the namespace does not serve again");
        std::thread::yield_now();
    }
}

#[test]
fn a_host_whose_old_commands_cannot_be_ended_is_refused_only_their_namespace_and_only_until_they_have_left() {
    let p = Place::new();
    p.dies(3);
    let start = Instant::now();
    let (admin, mut ios) = p.connect(3);
    let took = start.elapsed();
    assert!(took >= LONG && took < CONNECT, "it was let in after {took:?}");
    assert_eq!(p.ended(), [1, 2, 3]);
    let all = block_on(p.w.target.qpairs(NQN)).unwrap();
    let cores: BTreeSet<_> = all.iter().filter(|q| q.enabled && q.qid != 0).map(|q| q.core).collect();
    assert_eq!(cores.len(), 2, "every core knows what is refused");
    assert_eq!(block_on(p.w.target.controllers(NQN)).unwrap().len(), 1);
    for (i, io) in ios.iter_mut().enumerate() {
        others_work(io, i);
        refused(io);
    }

    // Another host is not concerned.
    let other = Host::admin_of(p.w.addr, Ic::default(), NQN, OTHER);
    let mut io = Host::initialised(p.w.addr, Ic::default());
    assert!(io.connect(1, 31, other.cntlid, 0, NQN, OTHER).status.is_ok());
    assert!(write(&mut io, 1000, &old(7)).is_ok());
    assert!(read(&mut io, 1000).data == old(7));
    drop((other, io));

    // It dies again, and need not wait as long once more.
    drop((admin, ios));
    let start = Instant::now();
    let (_admin, mut ios) = p.connect(3);
    assert!(start.elapsed() < LONG, "it was let in after {:?}", start.elapsed());
    for (i, io) in ios.iter_mut().enumerate() {
        others_work(io, i);
        refused(io);
    }

    p.lets_go();
    for (i, io) in ios.iter_mut().enumerate() {
        write_when_ready(io, i as u64 * 8, &new(i));
    }
    for (i, io) in ios.iter_mut().enumerate() {
        assert!(read(io, i as u64 * 8).data == new(i), "an old write overtook a new one");
        others_work(io, i);
    }
    p.w.wait("the old queue pairs are gone", |_| p.ended().is_empty());
    drop((_admin, ios));
    p.w.settled(0);
    assert_eq!(p.w.requests(), 0);

    // Nothing is remembered.
    let (_admin, mut ios) = p.connect(1);
    assert!(write(&mut ios[0], 0, &old(0)).is_ok());
}

#[test]
fn a_host_that_comes_back_with_another_identifier_is_known_by_its_nqn() {
    let p = Place::new();
    p.dies(1);
    let start = Instant::now();
    let (mut admin, mut io) = p.connect_with_id([0xa5; 16]);
    let took = start.elapsed();
    assert!(took >= LONG && took < CONNECT, "it was let in after {took:?}");
    others_work(&mut io, 0);
    refused(&mut io);
    // If it can wait, it is told how long.
    assert!(admin.set_acre(true).status.is_ok());
    assert_eq!(write(&mut io, 0, &new(0)), Status::NAMESPACE_NOT_READY.with_crd(1));
    assert!(admin.set_acre(false).status.is_ok());
    p.lets_go();
    write_when_ready(&mut io, 0, &new(0));
    assert!(read(&mut io, 0).data == new(0), "an old write overtook a new one");
}

/// What its old queue pairs had for themselves would, with what its new ones are to have, be more than one host may be promised.
#[test]
fn queue_pairs_whose_commands_cannot_be_ended_keep_no_promise_from_those_that_come_after_them() {
    let p = Place::small(8);
    p.dies(20); // of 64 buffers it may be promised 32
    let (_admin, mut ios) = p.connect(20);
    assert_eq!(p.ended().len(), 20);
    ios.iter_mut().enumerate().for_each(|(i, io)| others_work(io, i));
    p.lets_go();
    p.w.wait("the old queue pairs are gone", |_| p.ended().is_empty());
    assert_eq!(p.holds(), (0, 0));
}

#[test]
fn what_old_commands_had_of_their_queue_pairs_own_is_their_hosts_share_from_then_on() {
    const QUEUES: u16 = 30;
    let p = Place::small(16);
    block_on(p.w.target.set_config(|c| c.host_share = 40)).unwrap(); // 51 of 128 buffers may be promised
    p.dies_with_much(QUEUES);
    let all = u32::from(QUEUES) * 2;
    let held = (u64::from(all * LARGEST), all);
    p.w.wait("what is kept is charged", |_| p.holds() == held);
    let (_admin, mut ios) = p.connect(QUEUES);
    assert_eq!((p.ended().len(), p.holds()), (usize::from(QUEUES), held));
    ios.iter_mut().enumerate().for_each(|(i, io)| others_work(io, i));
    p.lets_go();
    p.w.wait("the old queue pairs are gone", |_| p.ended().is_empty());
    assert_eq!(p.holds(), (0, 0));
    ios.iter_mut().for_each(|io| assert!(write(io, 0, &new(0)).is_ok()));
}

#[test]
fn a_host_whose_old_commands_end_soon_waits_for_them_and_lacks_nothing() {
    let p = Place::new();
    p.dies(2);
    let mut admin = Host::initialised(p.w.addr, Ic::default());
    let sqe = admin.connect_sqe(0, 31, 0);
    admin.send_cmd(&sqe, &Host::connect_data(0xffff, NQN, HOSTNQN));
    admin.s.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(admin.try_pdu().is_err(), "it has to wait");
    admin.s.set_read_timeout(Some(CONNECT)).unwrap();
    let start = Instant::now();
    p.lets_go();
    let done = admin.finish(sqe.cid.get(), &[]);
    assert!(done.status.is_ok() && start.elapsed() < Duration::from_secs(2), "{done:?} after {:?}", start.elapsed());
    assert_eq!(p.ended(), [0u16; 0]);
    admin.enable();
    for q in 1..=2 {
        let mut io = Host::io(p.w.addr, Ic::default(), NQN, done.dw0 as u16, q, 31, 0);
        let i = usize::from(q) - 1;
        assert!(read(&mut io, i as u64 * 8).data == old(i));
        assert!(write(&mut io, i as u64 * 8, &new(i)).is_ok());
        assert!(read(&mut io, i as u64 * 8).data == new(i));
    }
}

#[test]
fn a_namespace_with_old_commands_can_be_removed_and_replaced_but_not_by_the_same_device() {
    let p = Place::new();
    p.dies(1);
    let (_admin, mut ios) = p.connect(2);
    let add = |bdev: &str, nsid| {
        let o = NamespaceOptions { bdev_name: bdev.into(), nsid: Some(nsid), ..NamespaceOptions::default() };
        block_on(p.w.target.add_namespace(NQN, o)).map(drop)
    };
    let remove = || block_on(p.w.target.remove_namespace(NQN, 2)).unwrap();
    ios.iter_mut().for_each(refused);
    remove();
    assert!(read(&mut ios[0], 0).status.is(Status::INVALID_NAMESPACE_OR_FORMAT));
    assert!(add("Gate", 3).is_err(), "the old command still has it open");
    add("Null0", 2).unwrap();
    for io in &mut ios {
        assert!(write(io, 0, &new(0)).is_ok(), "another device");
    }
    remove();

    // Made anew under its name, it may be the same disk.
    let bdevs = p.w.target.bdevs();
    let gone = bdevs.remove(&p.node).expect("it was not removed before");
    bdevs.register("Gate", None, Malloc::new(Geometry::plain(512, BLOCKS)).unwrap()).unwrap();
    add("Gate", 2).unwrap();
    ios.iter_mut().for_each(refused);
    ios.iter_mut().enumerate().for_each(|(i, io)| others_work(io, i));
    p.lets_go();
    for io in &mut ios {
        write_when_ready(io, 0, &new(0));
    }
    gone.wait_timeout(CONNECT).expect("the device is closed").unwrap();
    drop((_admin, ios));
    p.w.settled(0);
    assert_eq!(p.w.requests(), 0);
}
