//! A layer that injects faults: failures, corrupted data, requests that hang or have to be tried again.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Reactor, Timer};
use uuid::Uuid;

use crate::base::Base;
use crate::channel::Channel;
use crate::device::{Bdev, Geometry, IoChannel, Layer, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::queue::IoQueue;
use crate::registry::{BdevError, Registry};
use crate::vbdev::Vbdev;

/// Product name of error devices.
pub const PRODUCT_NAME: &str = "Error Injection Disk";

/// Name of the module, in claims and configurations.
pub const MODULE: &str = "error";

/// How long a request that found "no memory" waits before it is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// What an injection does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an internal device error.
    Failure,
    /// It fails with this status.
    Nvme(Status),
    /// It hangs until it is aborted, reset, or resumed.
    Pending,
    /// It finds no memory below and is tried again a millisecond later.
    NoMemory,
    /// The byte at `offset` of its data is XORed with `value`.
    Corrupt {
        /// Byte of the request's data.
        offset: u64,
        /// Not 0.
        value: u8,
    },
}

/// Which requests an injection meets, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The operation; `None` = all of them.
    pub op: Option<Op>,
    /// What happens.
    pub fault: Fault,
    /// How many requests it happens to; 0 ends an injection.
    pub count: u32,
    /// Only while at least so many requests are in flight on the core.
    pub queue_depth: u64,
}

/// How to build an error device. Its name is that of the base behind `EE_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The device below.
    pub base: String,
    /// Its UUID; by default one derived from the base's and the name.
    pub uuid: Option<Uuid>,
}

struct Spec {
    name: String,
    options: Options,
}

/// Configures an error device; `None` if it waits for its base.
///
/// # Errors
/// The base has one already, or is in use.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Option<Arc<BdevNode>>, BdevError> {
    registry.configure(Arc::new(Spec { name: format!("EE_{}", options.base), options }))
}

/// Options of a configuration of this module.
pub fn options(spec: &dyn Vbdev) -> Option<&Options> {
    Some(&spec.as_any().downcast_ref::<Spec>()?.options)
}

impl Vbdev for Spec {
    fn module(&self) -> &'static str {
        MODULE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn base(&self) -> &str {
        &self.options.base
    }

    fn build(&self, registry: &Arc<Registry>) -> Result<Arc<BdevNode>, BdevError> {
        let o = &self.options;
        Base::build(registry, &o.base, MODULE, &self.name, o.uuid, |base| {
            Arc::new(ErrorDev { base, options: o.clone(), armed: Arc::default(), table: Arc::default() })
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

type Table = [Option<Injection>; Op::COUNT];

/// A device that fails on request.
pub struct ErrorDev {
    base: Base,
    options: Options,
    /// There is something in the table.
    armed: Arc<AtomicBool>,
    table: Arc<Mutex<Table>>,
}

fn locked(t: &Mutex<Table>) -> MutexGuard<'_, Table> {
    t.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ErrorDev {
    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.base.node().name()
    }

    /// How it was built.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Injects a fault, in place of an earlier one for the same operation.
    ///
    /// # Errors
    /// Corruption with value 0, or of an operation without data.
    pub fn inject(&self, i: Injection) -> Result<(), BdevError> {
        if let Fault::Corrupt { value, .. } = i.fault {
            if value == 0 {
                return Err(BdevError::Invalid("corrupt_value 0 would change nothing: use 1 to 255".into()));
            }
            if i.op.is_some_and(|o| !o.has_buffer()) {
                return Err(BdevError::Invalid("only operations with data can be corrupted: use read or write".into()));
            }
        }
        let mut t = locked(&self.table);
        for op in Op::ALL.into_iter().filter(|&o| i.op.map_or(o != Op::Reset, |want| want == o)) {
            t[op as usize] = (i.count != 0).then_some(i);
        }
        self.armed.store(t.iter().any(Option::is_some), Relaxed);
        Ok(())
    }

    /// Ends all injections. Requests that hang go on hanging.
    pub fn clear(&self) {
        *locked(&self.table) = Table::default();
        self.armed.store(false, Relaxed);
    }

    /// The injections of now.
    pub fn injections(&self) -> Vec<Injection> {
        locked(&self.table).iter().flatten().copied().collect()
    }

    /// Lets requests that hang go on. Ends when every core has done so.
    pub async fn resume_pending(&self) {
        if let Some(node) = self.base.upper() {
            let _ = node.notify_channels(RESUME).await;
        }
    }
}

/// The word by which channels are told to let go of requests that hang.
const RESUME: u64 = 1;

impl Bdev for ErrorDev {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn supported(&self) -> SupportedOps {
        self.base.supported()
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let lower = self.base.channel()?;
        let inner = Rc::new_cyclic(|me| Inner {
            lower,
            armed: self.armed.clone(),
            table: self.table.clone(),
            pending: IoQueue::default(),
            retry: IoQueue::default(),
            timer: RefCell::default(),
            inflight: Cell::new(0),
            reactor: reactor.clone(),
            me: me.clone(),
        });
        Ok(Box::new(ErrorChannel(inner)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ErrorChannel(Rc<Inner>);

struct Inner {
    lower: Channel,
    armed: Arc<AtomicBool>,
    table: Arc<Mutex<Table>>,
    pending: IoQueue,
    retry: IoQueue,
    timer: RefCell<Option<Timer>>,
    inflight: Cell<u64>,
    reactor: Reactor,
    me: Weak<Inner>,
}

/// The layer's word: bit 63 set if data is corrupted, the value in bits 55:48, the offset below.
const CORRUPTED: u64 = 1 << 63;

fn corrupt(io: &mut IoRef, word: u64) {
    let (mut off, value) = ((word & ((1 << 48) - 1)) as usize, (word >> 48) as u8);
    for seg in io.segments_mut() {
        if let Some(b) = seg.get_mut(off) {
            *b ^= value;
            return;
        }
        off -= seg.len();
    }
}

impl Inner {
    /// The fault that meets a request of this kind now.
    fn draw(&self, op: Op) -> Option<Fault> {
        if !self.armed.load(Relaxed) {
            return None;
        }
        let mut t = locked(&self.table);
        let slot = t.get_mut(op as usize)?;
        let i = slot.as_mut()?;
        if self.inflight.get() < i.queue_depth {
            return None;
        }
        let fault = i.fault;
        i.count -= 1;
        if i.count == 0 {
            *slot = None;
            self.armed.store(t.iter().any(Option::is_some), Relaxed);
        }
        Some(fault)
    }

    fn start(&self, mut io: IoRef) {
        match self.draw(io.op()) {
            None => self.lower.submit(io),
            Some(Fault::Failure) => io.complete_later(Status::INTERNAL_ERROR),
            Some(Fault::Nvme(status)) => io.complete_later(status),
            Some(Fault::Pending) => self.pending.push(io),
            Some(Fault::NoMemory) => {
                self.retry.push(io);
                self.retry_later();
            }
            Some(Fault::Corrupt { offset, value }) => {
                if io.op().has_buffer() {
                    let word = CORRUPTED | u64::from(value) << 48 | offset.min((1 << 48) - 1);
                    io.set_saved(word);
                    if io.op() != Op::Read {
                        corrupt(&mut io, word);
                    }
                }
                self.lower.submit(io);
            }
        }
    }

    fn retry_later(&self) {
        let me = self.me.clone();
        let t = self.reactor.timer(RETRY, move |_| {
            let Some(me) = me.upgrade() else { return };
            let all = me.retry.take();
            while let Some(io) = all.pop() {
                me.start(io);
            }
        });
        *self.timer.borrow_mut() = Some(t);
    }
}

impl IoChannel for ErrorChannel {
    fn submit(&self, io: IoRef) {
        let s = &self.0;
        s.inflight.set(s.inflight.get() + 1);
        s.start(io);
    }

    fn hooks_completion(&self) -> bool {
        true
    }

    fn completed(&self, mut io: IoRef) {
        let s = &self.0;
        s.inflight.set(s.inflight.get() - 1);
        let word = io.saved();
        if word & CORRUPTED != 0 {
            // What was read becomes wrong; what was written wrong is made right again in the submitter's memory.
            corrupt(&mut io, word);
        }
        let status = io.status();
        io.complete(status);
    }

    fn abort(&self, id: IoId) -> bool {
        for q in [&self.0.pending, &self.0.retry] {
            if let Some(io) = q.remove(id) {
                io.complete_later(Status::ABORT_REQUESTED);
                return true;
            }
        }
        self.0.lower.abort(id)
    }

    fn abort_all(&self) {
        for q in [&self.0.pending, &self.0.retry] {
            let all = q.take();
            while let Some(io) = all.pop() {
                io.complete_later(Status::ABORT_REQUESTED);
            }
        }
        self.0.lower.abort_all();
    }

    fn notify(&self, word: u64) {
        if word == RESUME {
            let all = self.0.pending.take();
            while let Some(io) = all.pop() {
                self.0.lower.submit(io);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IoFlags;
    use crate::malloc::Malloc;
    use crate::testing::{filled, open, run};

    fn setup() -> (Arc<Registry>, Arc<BdevNode>) {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let node = create(&reg, Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        (reg, node)
    }

    fn dev(node: &Arc<BdevNode>) -> &ErrorDev {
        node.device().as_any().downcast_ref().unwrap()
    }

    fn inject(op: Op, fault: Fault, count: u32) -> Injection {
        Injection { op: Some(op), fault, count, queue_depth: 0 }
    }

    #[test]
    fn so_many_requests_fail_as_were_asked_for_and_no_more() {
        run(|r| async move {
            let (reg, node) = setup();
            let (_desc, ch) = open(&reg, "EE_m");
            dev(&node).inject(inject(Op::Read, Fault::Failure, 2)).unwrap();
            dev(&node).inject(inject(Op::Write, Fault::Nvme(Status::WRITE_FAULT), 1)).unwrap();
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::INTERNAL_ERROR);
            assert_eq!(ch.write(0, 1, filled(&r, 512, 0), IoFlags::NONE).await.0, Status::WRITE_FAULT);
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::INTERNAL_ERROR);
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
            assert_eq!(ch.write(0, 1, filled(&r, 512, 0), IoFlags::NONE).await.0, Status::SUCCESS);
            assert_eq!(node.stats().errors, [(Status::INTERNAL_ERROR, 2), (Status::WRITE_FAULT, 1)]);
        });
    }

    #[test]
    fn corruption_reaches_the_reader_and_the_medium_but_not_the_writers_memory() {
        run(|r| async move {
            let (reg, node) = setup();
            let (_desc, ch) = open(&reg, "EE_m");
            let flip = Fault::Corrupt { offset: 3, value: 0x80 };
            dev(&node).inject(inject(Op::Write, flip, 1)).unwrap();
            let (_, buf) = ch.write(0, 1, filled(&r, 512, 1), IoFlags::NONE).await;
            assert!(buf.unwrap().as_slice().iter().all(|&b| b == 1));
            let (_, buf) = ch.read(0, 1, filled(&r, 512, 0)).await;
            assert_eq!(buf.unwrap().as_slice()[..5], [1, 1, 1, 0x81, 1]);
            dev(&node).inject(inject(Op::Read, flip, 1)).unwrap();
            let (_, buf) = ch.read(0, 1, filled(&r, 512, 0)).await;
            assert_eq!(buf.unwrap().as_slice()[..5], [1, 1, 1, 1, 1], "flipped twice");
            assert!(dev(&node).inject(inject(Op::Read, Fault::Corrupt { offset: 0, value: 0 }, 1)).is_err());
        });
    }

    #[test]
    fn a_hanging_request_can_be_resumed_aborted_and_reset() {
        run(|r| async move {
            let (reg, node) = setup();
            let (_desc, ch) = open(&reg, "EE_m");
            dev(&node).inject(inject(Op::Read, Fault::Pending, 3)).unwrap();
            let a = ch.read(0, 1, filled(&r, 512, 0));
            r.sleep(Duration::from_millis(1)).await;
            assert_eq!(ch.inflight(), 1);
            dev(&node).resume_pending().await;
            assert_eq!(a.await.0, Status::SUCCESS);
            let a = ch.read(0, 1, filled(&r, 512, 0));
            ch.abort_all();
            assert_eq!(a.await.0, Status::ABORT_REQUESTED);
            let a = ch.read(0, 1, filled(&r, 512, 0));
            assert_eq!(ch.reset().await.0, Status::SUCCESS);
            assert_eq!(a.await.0, Status::ABORT_REQUESTED);
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS, "usable after the reset");
        });
    }

    #[test]
    fn no_memory_is_tried_again_until_it_works() {
        run(|r| async move {
            let (reg, node) = setup();
            let (_desc, ch) = open(&reg, "EE_m");
            dev(&node).inject(inject(Op::Read, Fault::NoMemory, 3)).unwrap();
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
            assert!(dev(&node).injections().is_empty(), "three tries were refused");
        });
    }
}
