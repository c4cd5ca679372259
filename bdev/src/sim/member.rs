//! A simulated member as a device: answers on the simulated clock, late and in another order than it was asked.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Reactor, Timer};

use super::image::{Content, WriteId};
use super::world::World;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Latencies are multiples of this, so that several requests end in one turn of the reactor.
const TICK: u64 = 10_000;
/// Most of a usual latency.
const TICKS: u64 = 20;
/// One request in so many takes [`STRAGGLE`] times as long, so that flushes and later writes overtake it.
const STRAGGLER: u64 = 24;
const STRAGGLE: u64 = 20;
/// How much slower a slow member is.
const SLOWER: u64 = 100;
/// A request that hangs ends after at most so many ticks: half a second, or ten.
const HANGS: [u64; 2] = [50_000, 1_000_000];

thread_local! {
    static CHANNELS: RefCell<Vec<Weak<Inner>>> = RefCell::default();
}

/// What hangs on this thread's members ends now: power failed, or the devices are taken away.
pub(super) fn unhang() {
    let all = CHANNELS.take();
    all.iter().filter_map(Weak::upgrade).for_each(|c| c.unhang());
}

/// Member `index` of a world, during one life.
pub struct SimMember {
    world: World,
    index: usize,
    life: u64,
}

impl SimMember {
    /// The device of member `index`, until power fails.
    pub fn new(world: &World, index: usize) -> Arc<SimMember> {
        let life = world.state().life;
        Arc::new(SimMember { world: world.clone(), index, life })
    }
}

impl Bdev for SimMember {
    fn product_name(&self) -> &'static str {
        "simulated member"
    }

    fn geometry(&self) -> Geometry {
        let s = self.world.state();
        let image = &s.members[self.index].image;
        let g = Geometry::plain(image.block_size() as u32, image.len() as u64);
        Geometry { volatile_cache: image.volatile(), ..g }
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Unmap, Op::WriteZeroes])
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let inner = Rc::new_cyclic(|me: &Weak<Inner>| Inner {
            world: self.world.clone(),
            index: self.index,
            life: self.life,
            reactor: reactor.clone(),
            flying: RefCell::default(),
            timer: RefCell::default(),
            armed: Cell::new(u64::MAX),
            order: Cell::new(0),
            me: me.clone(),
        });
        CHANNELS.with_borrow_mut(|all| all.push(inner.me.clone()));
        Ok(Box::new(SimChannel(inner)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct SimChannel(Rc<Inner>);

struct Inner {
    world: World,
    index: usize,
    life: u64,
    reactor: Reactor,
    flying: RefCell<BinaryHeap<Reverse<Flight>>>,
    timer: RefCell<Option<Timer>>,
    /// When the timer fires.
    armed: Cell<u64>,
    order: Cell<u64>,
    me: Weak<Inner>,
}

/// A request on its way.
struct Flight {
    due: u64,
    order: u64,
    io: IoRef,
    work: Work,
    hangs: bool,
    /// It was to be ended early.
    aborted: bool,
}

#[derive(Clone, Copy)]
enum Work {
    /// The data is taken when it ends.
    Read,
    /// All that was to be done was done when it was submitted; false: the blocks could not be read.
    Done(bool),
    Write(WriteId),
    Flush(u64),
    Fail,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Flight) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Flight) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Flight) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl Inner {
    fn begin(&self, mut io: IoRef) {
        let (latency, shuffle, work, hangs) = {
            let mut guard = self.world.state();
            let s = &mut *guard;
            let mut latency = 1 + s.random.below(TICKS);
            if s.random.below(STRAGGLER) == 0 {
                latency *= STRAGGLE;
            }
            let dead = !s.powered || s.life != self.life || s.members[self.index].health.gone;
            let health = s.members[self.index].health;
            if health.slow {
                latency *= SLOWER;
            }
            let hangs = health.hangs != 0 && s.random.chance(health.hangs);
            if hangs {
                let most = HANGS[s.random.below(2) as usize];
                latency = most / 10 + s.random.below(most);
            }
            let early = s.random.below(2) == 0;
            let shuffle = s.random.below(1 << 20);
            let garbage = s.random.below(3);
            let image = &mut s.members[self.index].image;
            let (lba, n) = (io.lba() as usize, io.nblocks() as usize);
            let work = match io.op() {
                _ if dead => Work::Fail,
                Op::Read if early => Work::Done(read(image, &mut io)),
                Op::Read => Work::Read,
                Op::Flush => Work::Flush(image.mark()),
                Op::WriteZeroes => Work::Write(image.submit(lba, std::iter::repeat_n(Content::Fill(0), n))),
                // What a deallocated block reads is the device's choice.
                Op::Unmap if garbage == 0 => Work::Done(true),
                Op::Unmap => {
                    let byte = if garbage == 1 { 0 } else { 0xa5 };
                    Work::Write(image.submit(lba, std::iter::repeat_n(Content::Fill(byte), n)))
                }
                Op::Write => {
                    let mut data = Vec::with_capacity(io.buf_len());
                    io.segments().for_each(|b| data.extend_from_slice(b));
                    let (data, bs): (Arc<[u8]>, usize) = (data.into(), image.block_size());
                    assert_eq!(data.len(), n * bs, "a write of {n} blocks brings as many bytes");
                    Work::Write(image.submit(lba, (0..n).map(|i| Content::Data(data.clone(), (i * bs) as u32))))
                }
                _ => Work::Fail,
            };
            s.step();
            (latency * TICK, shuffle, work, hangs)
        };
        let now = self.reactor.rdtsc();
        let due = (now / TICK + 1) * TICK + latency;
        let count = self.order.get() + 1;
        self.order.set(count);
        let order = shuffle << 32 | count;
        self.flying.borrow_mut().push(Reverse(Flight { due, order, io, work, hangs, aborted: false }));
        self.arm(due, now);
    }

    fn arm(&self, due: u64, now: u64) {
        if due >= self.armed.get() {
            return;
        }
        self.armed.set(due);
        let after = Duration::from_nanos(due.saturating_sub(now));
        if self.timer.borrow().as_ref().is_some_and(|t| t.reset(after)) {
            return;
        }
        let me = self.me.clone();
        let timer = self.reactor.timer(after, move |_| {
            if let Some(me) = me.upgrade() {
                me.deliver();
            }
        });
        *self.timer.borrow_mut() = Some(timer);
    }

    fn deliver(&self) {
        self.armed.set(u64::MAX);
        let now = self.reactor.rdtsc();
        loop {
            let next = {
                let mut f = self.flying.borrow_mut();
                if f.peek().is_some_and(|Reverse(f)| f.due <= now) { f.pop() } else { None }
            };
            let Some(Reverse(flight)) = next else { break };
            self.end(flight);
        }
        let next = self.flying.borrow().peek().map(|Reverse(f)| f.due);
        if let Some(due) = next {
            self.arm(due, now);
        }
    }

    /// Lets flights end soon for which `which` is true; it may change them. False: there is none.
    fn hasten(&self, mut which: impl FnMut(&mut Flight) -> bool) -> bool {
        let now = self.reactor.rdtsc();
        let due = (now / TICK + 2) * TICK;
        let mut all = self.flying.take().into_vec();
        let mut some = false;
        for Reverse(f) in &mut all {
            if which(f) {
                f.due = f.due.min(due);
                some = true;
            }
        }
        self.flying.replace(all.into());
        if some {
            self.arm(due, now);
        }
        some
    }

    fn unhang(&self) {
        self.hasten(|f| f.hangs);
    }

    fn abort(&self, id: IoId) -> bool {
        let ends = |f: &Flight| f.hangs || f.io.op() == Op::Read;
        if !self.flying.borrow().iter().any(|Reverse(f)| f.io.id() == id) {
            return false;
        }
        let aborts = self.world.state().aborts;
        self.hasten(|f| {
            let this = aborts && ends(f) && f.io.id() == id;
            f.aborted |= this;
            this
        });
        true
    }

    fn end(&self, Flight { mut io, work, aborted, .. }: Flight) {
        let status = {
            let mut guard = self.world.state();
            let s = &mut *guard;
            // Power may fail with the request still on its way.
            s.step();
            let dead = !s.powered || s.life != self.life;
            let gone = s.members[self.index].health.gone;
            let keep = s.random.below(2) == 0;
            let image = &mut s.members[self.index].image;
            let (lba, n) = (io.lba() as usize, io.nblocks() as usize);
            match work {
                // The images are what the crash left.
                _ if dead => Status::INTERNAL_ERROR,
                // A member may have done what it does not acknowledge.
                Work::Write(id) if gone || aborted => {
                    if keep {
                        image.complete(id, lba, n, false);
                    } else {
                        image.give_up(id, lba, n);
                    }
                    if gone { Status::INTERNAL_ERROR } else { Status::ABORT_REQUESTED }
                }
                _ if gone => Status::INTERNAL_ERROR,
                _ if aborted => Status::ABORT_REQUESTED,
                Work::Fail => Status::INTERNAL_ERROR,
                // What could not be read when the data was taken was not, though a write may have mended it since.
                Work::Done(taken) if !taken || io.op() == Op::Read && image.spoiled(lba, n) => {
                    Status::UNRECOVERED_READ_ERROR
                }
                Work::Done(_) => Status::SUCCESS,
                Work::Read if read(image, &mut io) => Status::SUCCESS,
                Work::Read => Status::UNRECOVERED_READ_ERROR,
                Work::Write(id) => {
                    image.complete(id, lba, n, io.flags().has(IoFlags::FUA));
                    Status::SUCCESS
                }
                Work::Flush(mark) => {
                    image.flushed(mark);
                    Status::SUCCESS
                }
            }
        };
        io.complete(status);
    }
}

/// False: one of the blocks cannot be read.
fn read(image: &super::image::Image, io: &mut IoRef) -> bool {
    let (lba, bs) = (io.lba() as usize, image.block_size());
    let mut whole = vec![0; io.nblocks() as usize * bs];
    let mut readable = true;
    for (i, block) in whole.chunks_exact_mut(bs).enumerate() {
        readable &= image.read(lba + i, block);
    }
    if !readable {
        // Whatever the medium gave before it failed.
        whole.fill(0x5a);
    }
    let mut from = &whole[..];
    for seg in io.segments_mut() {
        let n = seg.len().min(from.len());
        seg[..n].copy_from_slice(&from[..n]);
        from = &from[n..];
    }
    readable
}

impl IoChannel for SimChannel {
    fn submit(&self, io: IoRef) {
        self.0.begin(io);
    }

    /// A write that a device has begun is not taken back: it ends when it ends. Some devices end reads, and what hangs.
    fn abort(&self, id: IoId) -> bool {
        self.0.abort(id)
    }
}
