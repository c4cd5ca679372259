//! Arbitrary commands with arbitrary data, on the admin queue and an I/O queue of a live controller over malloc devices.
//!
//! No command may panic the target or be answered twice, none but event requests may stay without an answer, and when the
//! connections have ended no request, buffer, queue pair or controller may be left.
//!
//! Input: per command a control byte, 64 bytes of submission queue entry, and a byte that the data is made of.

#![no_main]

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use longshore_bdev::{CoreState, Geometry, Registry, malloc::Malloc};
use longshore_nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectCmd, ConnectData, PropertySetCmd};
use longshore_nvme::wire::{NqnField, SglDescriptor, Sqe, Status};
use longshore_nvmf::*;
use longshore_reactor::{CoreHandle, Options, Reactor, Runtime};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
/// Bytes of the input per command.
const STEP: usize = 66;

/// Bits of the control byte.
const TO_IO_QUEUE: u8 = 1;
const IN_CAPSULE: u8 = 2;
/// The data does not arrive before the other commands were sent.
const LATE: u8 = 4;
/// The data arrives broken.
const BROKEN: u8 = 8;
/// The entry is made plausible, so that the command gets further.
const REPAIR: u8 = 16;

struct World {
    /// Never stopped: the fuzzer ends the process.
    _runtime: Mutex<Runtime>,
    core: CoreHandle,
    target: Arc<Target>,
    options: Arc<TransportOptions>,
    address: Address,
}

struct Kind;

impl TransportKind for Kind {
    fn trtype(&self) -> TrType {
        TrType::Tcp
    }
    fn listen(
        &self,
        _: &Arc<Target>,
        _: &Arc<TransportOptions>,
        _: &Address,
    ) -> longshore_reactor::oneshot::Receiver<Result<(), ListenError>> {
        let (tx, rx) = longshore_reactor::oneshot::channel();
        let _ = tx.send(Ok(()));
        rx
    }
    fn unlisten(&self, _: &Address) -> longshore_reactor::oneshot::Receiver<()> {
        let (tx, rx) = longshore_reactor::oneshot::channel();
        let _ = tx.send(());
        rx
    }
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let mut o = Options { pin: false, raise_nofile: false, ..Options::default() };
        o.dma.max_bytes = 64 << 20;
        let runtime = Runtime::start(o).expect("runtime");
        let core = runtime.cores()[0].clone();
        let address = Address::tcp("127.0.0.1:4420".parse().expect("address"));
        let mut options = TransportOptions::new(TrType::Tcp);
        options.max_queue_depth = 32;
        let (cores, opts, at) = (vec![core.clone()], options.clone(), address.clone());
        // A reactor answers while this thread waits.
        let target = core.spawn(move |_| async move {
            let bdevs = Registry::new();
            let t = Target::start(cores, bdevs.clone()).await.expect("target");
            t.register_transport(Arc::new(Kind));
            t.create_transport(opts).await.expect("transport");
            let mut s = SubsystemOptions::new(NQN);
            (s.allow_any_host, s.ana_reporting) = (true, true);
            t.create_subsystem(s).await.expect("subsystem");
            t.add_listener(NQN, at, AnaState::Optimized).await.expect("listener");
            for (name, block) in [("M0", 512), ("M1", 4096)] {
                let m = Malloc::new(Geometry::plain(block, 1024)).expect("malloc");
                bdevs.register(name, None, m).expect("bdev");
                let ns = NamespaceOptions { bdev_name: name.into(), ..Default::default() };
                t.add_namespace(NQN, ns).await.expect("namespace");
            }
            t
        });
        World { _runtime: Mutex::new(runtime), core, target: target.wait().expect("target"), options: Arc::new(options), address }
    })
}

/// Where a command's data stands.
struct Coming {
    from_host: bool,
    control: u8,
    fill: u8,
}

struct Conn {
    qp: OnceCell<Rc<Qpair>>,
    listener: Address,
    coming: RefCell<HashMap<u16, Coming>>,
    late: RefCell<Vec<u16>>,
    /// Opcodes of commands without an answer, by slot.
    open: RefCell<HashMap<u16, u8>>,
    last: RefCell<Option<(Status, u32)>>,
    closed: OnceCell<()>,
    ended: OnceCell<()>,
}

impl Conn {
    fn new(w: &World, cmd: &ConnectCmd, data: &ConnectData) -> Rc<Conn> {
        let conn = Rc::new(Conn {
            qp: OnceCell::new(),
            listener: w.address.clone(),
            coming: RefCell::default(),
            late: RefCell::default(),
            open: RefCell::default(),
            last: RefCell::default(),
            closed: OnceCell::new(),
            ended: OnceCell::new(),
        });
        let place = w.target.place(cmd, data);
        let group = PollGroup::of(&w.target).expect("group");
        let _ = conn.qp.set(Qpair::new(&group, conn.clone(), w.options.clone(), cmd, place));
        conn
    }

    fn qp(&self) -> &Rc<Qpair> {
        self.qp.get().expect("set when made")
    }

    fn send(&self, sqe: &Sqe, control: u8, fill: u8) {
        if self.closed.get().is_some() {
            return;
        }
        let Some(slot) = self.qp().alloc_slot() else { return };
        assert!(self.open.borrow_mut().insert(slot, sqe.opcode).is_none(), "slot {slot} is in use");
        let inside = if control & IN_CAPSULE != 0 { 8192 } else { 0 };
        let coming = |from_host| Coming { from_host, control, fill };
        match self.qp().begin(slot, sqe, inside) {
            Begin::Execute => self.qp().execute(slot),
            Begin::Respond => self.respond(slot),
            Begin::NeedData { len, in_capsule } => {
                assert!(len <= self.qp().options().max_io_size && (!in_capsule || len <= inside));
                self.want(slot, coming(true));
            }
            Begin::NeedBuffer { len, lent } => {
                assert!(len > 0 && len <= self.qp().options().max_io_size);
                if lent && control & LATE == 0 {
                    self.qp().execute(slot);
                } else {
                    self.want(slot, coming(false));
                }
            }
        }
    }

    fn want(&self, slot: u16, c: Coming) {
        self.coming.borrow_mut().insert(slot, c);
        if self.qp().get_buffer(slot) {
            self.buffer_ready(slot);
        }
    }

    fn arrive(&self, slot: u16) {
        let Some(c) = self.coming.borrow_mut().remove(&slot) else { return };
        if self.closed.get().is_some() {
            return; // nothing arrives on a closed connection
        }
        if c.from_host {
            self.qp().with_buffer(slot, |b| b.fill(c.fill)).expect("the buffer is the command's own");
            if c.control & BROKEN != 0 {
                return self.qp().fail(slot, Status::TRANSIENT_TRANSPORT_ERROR);
            }
        }
        self.qp().execute(slot);
    }

    fn let_late_go(&self) {
        let late: Vec<u16> = self.late.borrow_mut().drain(..).collect();
        for slot in late {
            self.arrive(slot);
        }
    }
}

thread_local! {
    static CONNS: RefCell<Vec<Rc<Conn>>> = const { RefCell::new(Vec::new()) };
}

impl QpairTransport for Conn {
    fn respond(&self, slot: u16) {
        assert!(self.ended.get().is_none(), "an answer after the end");
        assert!(self.open.borrow_mut().remove(&slot).is_some(), "slot {slot} is answered twice");
        let cqe = self.qp().cqe(slot);
        if let Some(d) = self.qp().take_data(slot) {
            assert_eq!(d.len(), self.qp().data_len(slot) as usize);
        }
        *self.last.borrow_mut() = Some((cqe.status(), cqe.dw0.get()));
        self.qp().release(slot);
    }

    fn buffer_ready(&self, slot: u16) {
        let late = self.coming.borrow().get(&slot).is_some_and(|c| c.from_host && c.control & LATE != 0);
        if late {
            return self.late.borrow_mut().push(slot);
        }
        self.arrive(slot);
    }

    fn buffer_needed(&self, slot: u16) {
        self.want(slot, Coming { from_host: false, control: 0, fill: 0 });
    }

    fn disconnect(&self, _: Disconnect) {
        if self.closed.set(()).is_err() {
            return;
        }
        let qp = self.qp().clone();
        Reactor::current().defer(move |_| {
            let me = CONNS.with(|c| c.borrow().iter().find(|c| Rc::ptr_eq(c.qp(), &qp)).cloned());
            qp.shutdown(move || {
                if let Some(me) = me {
                    let _ = me.ended.set(());
                }
            });
        });
    }

    fn listener(&self) -> &Address {
        &self.listener
    }

    fn peer(&self) -> Address {
        self.listener.clone()
    }
}

fn connect_data(cntlid: u16) -> ConnectData {
    let mut d = ConnectData::new_zeroed();
    d.cntlid = cntlid.into();
    d.subnqn = NqnField::new(NQN).expect("short");
    d.hostnqn = NqnField::new(HOST).expect("short");
    d
}

/// Turns until `done`, or a panic: nothing here takes long.
async fn until(r: &Reactor, what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        r.yield_now().await;
    }
}

/// Connects a queue; its answer's Dword 0.
async fn connect(r: &Reactor, w: &World, qid: u16, cntlid: u16) -> (Rc<Conn>, u32) {
    let (cmd, data) = (ConnectCmd::new(1, qid, 31, 0, 0), connect_data(cntlid));
    let c = Conn::new(w, &cmd, &data);
    CONNS.with(|x| x.borrow_mut().push(c.clone()));
    let slot = c.qp().alloc_slot().expect("a slot");
    c.open.borrow_mut().insert(slot, 0x7f);
    assert!(matches!(c.qp().begin(slot, &cmd.sqe(), 1024), Begin::NeedData { len: 1024, in_capsule: true }));
    until(r, "no buffer for Connect", || c.qp().get_buffer(slot)).await;
    c.qp().with_buffer(slot, |b| b.copy_from_slice(data.as_bytes())).expect("own buffer");
    c.qp().execute(slot);
    until(r, "Connect is not answered", || c.open.borrow().is_empty()).await;
    let (status, dw0) = c.last.borrow_mut().take().expect("answered");
    assert_eq!(status, Status::SUCCESS);
    (c, dw0)
}

fn repair(sqe: &mut Sqe, io: bool, control: u8) {
    let block = if sqe.nsid.get() & 1 == 0 { 4096 } else { 512 };
    sqe.flags = sqe.flags & 3 | 0x40;
    let len = if io {
        sqe.nsid = (1 + u32::from(block == 4096)).into();
        sqe.cdw11 = (sqe.cdw11.get() & 0xf).into();
        sqe.cdw10 = (sqe.cdw10.get() & 0x3ff).into();
        sqe.cdw12 = (sqe.cdw12.get() & !0xffe0).into();
        match sqe.opcode {
            0x09 => 4096,
            _ => sqe.nblocks() * block,
        }
    } else {
        4096
    };
    sqe.dptr =
        if control & IN_CAPSULE != 0 { SglDescriptor::in_capsule(0, len) } else { SglDescriptor::transport(len) };
}

async fn run(r: Reactor, input: Vec<u8>) {
    let w = world();
    let (admin, dw0) = connect(&r, w, 0, CNTLID_DYNAMIC).await;
    admin.send(&PropertySetCmd::new(1, 0x14, 0x0046_0001).sqe(), 0, 0);
    let (io, _) = connect(&r, w, 1, dw0 as u16).await;
    for (i, step) in input.chunks_exact(STEP).enumerate() {
        let (control, fill) = (step[0], step[65]);
        let mut sqe = Sqe::read_from_bytes(&step[1..65]).expect("64 bytes");
        let conn = if control & TO_IO_QUEUE != 0 { &io } else { &admin };
        if control & REPAIR != 0 {
            repair(&mut sqe, control & TO_IO_QUEUE != 0, control);
        }
        conn.send(&sqe, control, fill);
        if i % 8 == 7 {
            r.yield_now().await;
        }
    }
    admin.let_late_go();
    io.let_late_go();
    // A first half of a fused pair waits for what follows it.
    io.send(&Sqe::new(0x00, 0, 1), 0, 0);
    let answered = |c: &Conn| c.closed.get().is_some() || c.open.borrow().values().all(|&op| op == 0x0c);
    until(&r, "a command is not answered", || {
        admin.let_late_go();
        io.let_late_go();
        answered(&admin) && answered(&io)
    })
    .await;
    assert!(admin.open.borrow().len() <= 4 || admin.closed.get().is_some(), "event requests beyond the limit");
    io.disconnect(Disconnect::Requested);
    admin.disconnect(Disconnect::Requested);
    until(&r, "a connection does not end", || io.ended.get().is_some() && admin.ended.get().is_some()).await;
    CONNS.with(|c| c.borrow_mut().clear());
    drop((admin, io));
    let group = PollGroup::of(&w.target).expect("group");
    until(&r, "something is left", || {
        let bufs: usize = r.dma().stats().classes.iter().map(|c| c.in_use).sum();
        CoreState::current().pool_stats().in_use == 0 && bufs == 0 && group.is_idle()
    })
    .await;
}

fuzz_target!(|data: &[u8]| {
    let w = world();
    let input = data[..data.len().min(256 * STEP)].to_vec();
    w.core.spawn(move |r| run(r, input)).wait().expect("the reactor lives");
});
