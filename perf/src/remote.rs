//! Namespaces of NVMe/TCP targets as what load is made on.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};

use longshore_bdev::{Data as Memory, Status};
use longshore_nvme::host::{Completer, Controller, Data, Done, IoQueue, Namespace, Rejected};
use longshore_nvme::wire::Sqe;
use longshore_nvme::wire::io::cdw12;
use longshore_nvme::wire::opcode::io;
use longshore_reactor::{DmaBuf, Reactor};

use crate::device::Device;
use crate::lane::{Kind, Lane, Port, Work};
use crate::verify::Disk;

/// A namespace that queue pairs can be made for on every core.
pub(crate) struct RemoteNamespace {
    controller: Arc<Controller>,
    nsid: u32,
    block_size: u32,
    num_blocks: u64,
    /// Queue pairs per core.
    queues: u32,
    /// Requests outstanding per core.
    depth: u32,
}

impl RemoteNamespace {
    /// A namespace of a connected controller, for `depth` requests over `queues` queue pairs per core.
    ///
    /// # Errors
    /// Its blocks cannot be used.
    pub(crate) fn new(
        controller: &Arc<Controller>,
        ns: &Namespace,
        queues: u32,
        depth: u32,
    ) -> Result<RemoteNamespace, String> {
        let at = controller.transport_id();
        let what = format!("namespace {} of {at}", ns.nsid);
        // What Identify answers for a namespace that does not exist, or is not for this host.
        if ns.data.nsze.get() == 0 {
            return Err(format!("{what} is not active: `longshore-perf identify` lists those that are"));
        }
        if ns.csi != 0 {
            return Err(format!("{what} is of I/O command set {}, not of NVM", ns.csi));
        }
        let block_size = ns.block_size().ok_or_else(|| format!("{what} has no usable block size"))?;
        match ns.format().ms.get() {
            0 => {}
            md => return Err(format!("{what} has {md} bytes of metadata per block, which is not built yet")),
        }
        let num_blocks = ns.data.nsze.get();
        Ok(RemoteNamespace { controller: controller.clone(), nsid: ns.nsid, block_size, num_blocks, queues, depth })
    }

    async fn open(&self, r: &Reactor) -> Result<Vec<IoQueue>, String> {
        let depth = u16::try_from(self.depth.div_ceil(self.queues)).unwrap_or(u16::MAX);
        let mut all = Vec::new();
        for _ in 0..self.queues {
            all.push(self.controller.io_queue(r, Some(depth)).await.map_err(|e| format!("{}: {e}", self.name()))?);
        }
        Ok(all)
    }
}

impl Device for RemoteNamespace {
    type Port = RemotePort;
    type Disk = RemoteDisk;

    fn name(&self) -> String {
        format!("{} ns {}", self.controller.transport_id(), self.nsid)
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn num_blocks(&self) -> u64 {
        self.num_blocks
    }

    async fn open_port(&self, r: &Reactor) -> Result<RemotePort, String> {
        Ok(RemotePort {
            queues: RefCell::new(self.open(r).await?),
            waiting: (0..self.queues).map(|_| RefCell::default()).collect(),
            nsid: self.nsid,
            slots: RefCell::default(),
            pieces: RefCell::default(),
            relay: OnceCell::new(),
            reactor: r.clone(),
        })
    }

    async fn open_disk(&self, r: &Reactor) -> Result<RemoteDisk, String> {
        Ok(RemoteDisk(Rc::new(Queues {
            nsid: self.nsid,
            queues: RefCell::new(self.open(r).await?),
            reactor: r.clone(),
        })))
    }
}

fn command(nsid: u32, work: Work) -> Sqe {
    let opcode = match work.kind {
        Kind::Read => io::READ,
        Kind::Write => io::WRITE,
        Kind::Flush => io::FLUSH,
    };
    let mut sqe = Sqe::new(opcode, 0, nsid);
    if work.kind != Kind::Flush {
        sqe.set_slba(work.lba);
        sqe.set_nblocks(work.blocks);
        if work.fua {
            sqe.cdw12 = (sqe.cdw12.get() | cdw12::FUA).into();
        }
    }
    sqe
}

/// A namespace on one core, for lanes. Each request has a queue pair of its own choice for life, so that the depth is spread evenly.
pub(crate) struct RemotePort {
    queues: RefCell<Vec<IoQueue>>,
    /// Requests that found their queue pair full, per queue pair: it may take fewer than -q asks for.
    waiting: Vec<RefCell<VecDeque<u32>>>,
    nsid: u32,
    slots: RefCell<Vec<Slot>>,
    /// Pieces of the request being submitted, if it has several.
    pieces: RefCell<Vec<DmaBuf>>,
    relay: OnceCell<Rc<Relay>>,
    reactor: Reactor,
}

/// One request.
struct Slot {
    memory: Vec<DmaBuf>,
    work: Work,
    tag: u64,
}

/// Tells a lane of the end of its requests.
struct Relay(Weak<Lane<RemotePort>>);

impl Completer for Relay {
    #[inline]
    fn completed(&self, done: &Done) {
        let Some(lane) = self.0.upgrade() else { return };
        RemotePort::ended(&lane, done.tag as u32, done.status);
    }
}

impl RemotePort {
    /// Submits a request as its slot describes it, or lets it wait for room in its queue pair.
    #[inline]
    fn send(&self, lane: &Rc<Lane<Self>>, request: u32) {
        let relay = self.relay.get_or_init(|| Rc::new(Relay(Rc::downgrade(lane)))).clone();
        let queues = self.queues.borrow();
        let index = request as usize % queues.len();
        let slots = self.slots.borrow();
        let Slot { memory, work, .. } = &slots[request as usize];
        let mut pieces = self.pieces.borrow_mut();
        let data = match (work.kind, &memory[..]) {
            (Kind::Flush, _) => Data::None,
            (Kind::Read, [one]) => Data::Read(one.clone()),
            (Kind::Write, [one]) => Data::Write(one.clone()),
            (kind, several) => {
                pieces.extend_from_slice(several);
                if kind == Kind::Read { Data::ReadMany(&mut pieces) } else { Data::WriteMany(&mut pieces) }
            }
        };
        match queues[index].submit(&command(self.nsid, *work), data, relay, u64::from(request)) {
            Ok(_) => {}
            Err(Rejected::Full) => {
                pieces.clear();
                self.waiting[index].borrow_mut().push_back(request);
            }
            Err(why) => {
                pieces.clear();
                // The lane expects every end after this call.
                let lane = lane.clone();
                self.reactor.defer(move |_| RemotePort::ended(&lane, request, why.status()));
            }
        }
    }

    /// A request ended: one that waited for its queue pair has room now, or is refused likewise.
    #[inline]
    fn ended(lane: &Rc<Lane<Self>>, request: u32, status: Status) {
        let port = &lane.port;
        let next = port.waiting[request as usize % port.waiting.len()].borrow_mut().pop_front();
        if let Some(next) = next {
            port.send(lane, next);
        }
        let (work, tag) = {
            let slots = port.slots.borrow();
            let s = &slots[request as usize];
            (s.work, s.tag)
        };
        lane.done(request, work, status, tag);
    }
}

impl Port for RemotePort {
    type Request = u32;

    fn request(&self, memory: Vec<DmaBuf>) -> Option<u32> {
        let mut slots = self.slots.borrow_mut();
        slots.push(Slot { memory, work: Work { kind: Kind::Read, fua: false, lba: 0, blocks: 0 }, tag: 0 });
        Some(slots.len() as u32 - 1)
    }

    #[inline]
    fn submit(lane: &Rc<Lane<Self>>, request: u32, work: Work, tag: u64) {
        {
            let slot = &mut lane.port.slots.borrow_mut()[request as usize];
            (slot.work, slot.tag) = (work, tag);
        }
        lane.port.send(lane, request);
    }

    fn release(&self, request: u32) {
        self.slots.borrow_mut()[request as usize].memory.clear();
    }

    async fn close(&self) {
        let queues = self.queues.take();
        for q in queues {
            q.disconnect().await;
        }
    }
}

/// A namespace on one core, for verification.
#[derive(Clone)]
pub(crate) struct RemoteDisk(Rc<Queues>);

struct Queues {
    nsid: u32,
    queues: RefCell<Vec<IoQueue>>,
    reactor: Reactor,
}

#[derive(Default)]
struct Waiting {
    status: Option<Status>,
    waker: Option<Waker>,
}

impl Completer for Ended {
    fn completed(&self, done: &Done) {
        let waker = {
            let mut w = self.0.borrow_mut();
            w.status = Some(done.status);
            w.waker.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}

/// The end of one command that somebody waits for.
#[derive(Default)]
struct Ended(RefCell<Waiting>);

impl RemoteDisk {
    async fn run(&self, work: Work, buf: Option<&DmaBuf>) -> Status {
        let ended = Rc::new(Ended::default());
        loop {
            {
                let queues = self.0.queues.borrow();
                let Some(queue) = queues.iter().max_by_key(|q| q.room()).filter(|q| q.is_open()) else {
                    return Status::HOST_PATHING_ERROR;
                };
                let data = match (work.kind, buf) {
                    (Kind::Read, Some(b)) => Data::Read(b.clone()),
                    (Kind::Write, Some(b)) => Data::Write(b.clone()),
                    _ => Data::None,
                };
                match queue.submit(&command(self.0.nsid, work), data, ended.clone(), 0) {
                    Ok(_) => break,
                    Err(Rejected::Full) => {}
                    Err(why) => return why.status(),
                }
            }
            self.0.reactor.yield_now().await;
        }
        poll_fn(|cx| {
            let mut w = ended.0.borrow_mut();
            match w.status {
                Some(s) => Poll::Ready(s),
                None => {
                    w.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Disk for RemoteDisk {
    async fn read(&self, lba: u64, blocks: u32, buf: DmaBuf) -> (Status, Memory) {
        let work = Work { kind: Kind::Read, fua: false, lba, blocks };
        (self.run(work, Some(&buf)).await, Some(buf))
    }

    async fn write(&self, lba: u64, blocks: u32, buf: DmaBuf, fua: bool) -> (Status, Memory) {
        let work = Work { kind: Kind::Write, fua, lba, blocks };
        (self.run(work, Some(&buf)).await, Some(buf))
    }

    async fn flush(&self) -> Status {
        self.run(Work { kind: Kind::Flush, fua: false, lba: 0, blocks: 0 }, None).await
    }

    async fn close(&self) {
        let queues = self.0.queues.take();
        for q in queues {
            q.disconnect().await;
        }
    }
}
