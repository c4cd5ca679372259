//! Devices in memory that a test is asked about at every request.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_reactor::Timer;

use super::*;
use crate::device::{Bdev, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::queue::IoQueue;
use crate::testing::{Recorder, open};

/// What becomes of a request.
#[derive(Clone, Copy)]
pub(super) enum Act {
    Pass,
    Fail(Status),
    /// It hangs until it is aborted.
    Hold,
    /// It is done so much later.
    After(Duration),
}

type Judge = Box<dyn Fn(usize, &IoRef) -> Act + Send>;

/// Says what becomes of requests to members.
pub(super) struct Judges {
    judge: Mutex<Judge>,
    aborts: AtomicU64,
}

impl Judges {
    /// From now on, `judge` does.
    pub(super) fn set(&self, judge: impl Fn(usize, &IoRef) -> Act + Send + 'static) {
        *self.judge.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(judge);
    }

    /// How often members were asked to end a request early.
    pub(super) fn aborts(&self) -> u64 {
        self.aborts.load(Relaxed)
    }

    pub(super) fn pass_all(&self) {
        self.set(|_, _| Act::Pass);
    }
}

/// Blocks of members that cannot be read until they are written: slot and block.
pub(super) type Spoiled = Arc<Mutex<BTreeSet<(usize, u64)>>>;

impl Judges {
    /// From now on, blocks at these bytes of members cannot be read until they are written.
    pub(super) fn spoil(&self, places: impl IntoIterator<Item = (usize, u64)>) -> Spoiled {
        let all: Spoiled = Arc::new(Mutex::new(places.into_iter().map(|(slot, at)| (slot, at / 512)).collect()));
        let list = all.clone();
        self.set(move |slot, io| {
            let mut list = list.lock().unwrap();
            let blocks = io.lba()..io.lba() + u64::from(io.nblocks());
            match io.op() {
                Op::Read if list.iter().any(|(s, b)| *s == slot && blocks.contains(b)) => {
                    return Act::Fail(Status::UNRECOVERED_READ_ERROR);
                }
                Op::Write => list.retain(|(s, b)| *s != slot || !blocks.contains(b)),
                _ => {}
            }
            Act::Pass
        });
        all
    }
}

/// How the devices are.
#[derive(Clone, Copy, Default)]
pub(super) struct Kind {
    pub(super) volatile: bool,
    /// Slots, a bit each, of those that have no volatile cache all the same.
    pub(super) steady: u64,
    /// What they have begun cannot be aborted.
    pub(super) deaf: bool,
    /// They say of what was aborted that it is not to be sent again.
    pub(super) dnr: bool,
}

struct Probe {
    below: Arc<Malloc>,
    slot: usize,
    kind: Kind,
    judges: Arc<Judges>,
}

/// An array of small figures on such devices.
pub(super) fn array(k: usize, m: usize, stripes: u64, kind: Kind) -> (Small, Arc<Judges>) {
    array_with(k, m, stripes, 8, kind)
}

/// As [`array`], with so many slots of the journal.
pub(super) fn array_with(k: usize, m: usize, stripes: u64, slots: u32, kind: Kind) -> (Small, Arc<Judges>) {
    let judges = Arc::new(Judges { judge: Mutex::new(Box::new(|_, _| Act::Pass)), aborts: AtomicU64::new(0) });
    let s = Small::with(k, m, 4096, stripes, &[512], slots, |slot, g| {
        Arc::new(Probe { below: Malloc::new(g).unwrap(), slot, kind, judges: judges.clone() })
    });
    (s, judges)
}

/// Makes the array and starts it; all of it is written, durably, and the same in the model.
pub(super) async fn full(r: &Reactor, (s, judges): (Small, Arc<Judges>)) -> (Small, Arc<Judges>, Arc<BdevNode>, Model) {
    s.create(r).await;
    let node = s.start(r, &[]).await.unwrap();
    let mut m = Model::new(&s);
    let (_desc, ch) = open(&s.registry, "a");
    let l = &s.layout;
    assert!(m.write(r, &ch, l.block, 0, l.num_blocks() as u32, 1).await.is_ok());
    assert!(ch.flush().await.0.is_ok());
    (s, judges, node, m)
}

impl Bdev for Probe {
    fn product_name(&self) -> &'static str {
        "probe"
    }

    fn geometry(&self) -> Geometry {
        let volatile_cache = self.kind.volatile && self.kind.steady >> self.slot & 1 == 0;
        Geometry { volatile_cache, ..self.below.geometry() }
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Reset])
    }

    fn open_channel(&self, r: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let below = self.below.open_channel(r, node)?;
        Ok(Box::new(ProbeChannel(Rc::new_cyclic(|me| Inner {
            below,
            slot: self.slot,
            kind: self.kind,
            judges: self.judges.clone(),
            reactor: r.clone(),
            held: IoQueue::default(),
            timers: RefCell::default(),
            me: me.clone(),
        }))))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct ProbeChannel(Rc<Inner>);

struct Inner {
    below: Box<dyn IoChannel>,
    slot: usize,
    kind: Kind,
    judges: Arc<Judges>,
    reactor: Reactor,
    held: IoQueue,
    timers: RefCell<Vec<Timer>>,
    me: Weak<Inner>,
}

impl IoChannel for ProbeChannel {
    fn submit(&self, io: IoRef) {
        let s = &self.0;
        let act = (s.judges.judge.lock().unwrap_or_else(PoisonError::into_inner))(s.slot, &io);
        match act {
            Act::Pass => s.below.submit(io),
            Act::Fail(status) => io.complete_later(status),
            Act::Hold => s.held.push(io),
            Act::After(time) => {
                let (me, id) = (s.me.clone(), io.id());
                s.held.push(io);
                let timer = s.reactor.timer(time, move |_| {
                    let Some(me) = me.upgrade() else { return };
                    if let Some(io) = me.held.remove(id) {
                        me.below.submit(io);
                    }
                });
                s.timers.borrow_mut().push(timer);
            }
        }
    }

    fn abort(&self, id: IoId) -> bool {
        self.0.judges.aborts.fetch_add(1, Relaxed);
        if self.0.kind.deaf {
            return false;
        }
        let dnr = self.0.kind.dnr;
        let status = if dnr { Status::ABORT_REQUESTED.with_dnr() } else { Status::ABORT_REQUESTED };
        self.0.held.remove(id).map(|io| io.complete_later(status)).is_some()
    }

    fn abort_all(&self) {
        while let Some(io) = self.0.held.pop() {
            io.complete_later(Status::ABORT_REQUESTED);
        }
    }
}

/// The array of a node.
pub(super) fn ec(node: &BdevNode) -> &crate::ec::Ec {
    node.device().as_any().downcast_ref().unwrap()
}

/// Waits, in simulated time, until `n` requests have ended.
pub(super) async fn ended(r: &Reactor, all: &Recorder, n: usize) -> Vec<(u64, Status)> {
    while all.0.borrow().len() < n {
        r.sleep(Duration::from_micros(50)).await;
    }
    all.0.borrow().clone()
}
