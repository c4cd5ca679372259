//! The initiator of this project against the target of this project, each on reactors of its own: random load, checked against a
//! model; connections broken in the middle of it.

mod world;

use longshore_nvme::host::{Completer, Controller, Data, Done, HostOptions, IoQueue, TransportId};
use longshore_nvme::wire::{Sqe, Status};
use longshore_reactor::{DmaBuf, Options, Reactor, Runtime};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use world::{NQN, Setup, World, block_on};

const BLOCK: usize = 512;
/// Blocks of a queue's own part of the device.
const PART: usize = 8192;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn fill(&mut self, to: &mut [u8]) {
        let mut x = (self.below(1 << 31) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for c in to.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            c.copy_from_slice(&x.to_le_bytes()[..c.len()]);
        }
    }
}

/// Completions in the order they came.
#[derive(Default)]
struct Ends {
    done: RefCell<VecDeque<Done>>,
    waker: RefCell<Option<Waker>>,
    flying: Cell<usize>,
}

impl Completer for Ends {
    fn completed(&self, done: &Done) {
        self.done.borrow_mut().push_back(*done);
        let w = self.waker.borrow_mut().take();
        if let Some(w) = w {
            w.wake();
        }
    }
}

impl Ends {
    async fn next(&self) -> Done {
        let d = poll_fn(|cx| match self.done.borrow_mut().pop_front() {
            Some(d) => Poll::Ready(d),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
        self.flying.set(self.flying.get() - 1);
        d
    }
}

struct Op {
    write: bool,
    at: usize,
    blocks: usize,
    /// In pieces, in order.
    bufs: Vec<DmaBuf>,
}

impl Op {
    fn bytes(&self) -> Vec<u8> {
        self.bufs.iter().flat_map(|b| b.as_slice().to_vec()).collect()
    }
}

/// What one queue's part of the device holds: the bytes, and per block what a write that was cut off may have left instead.
struct Model {
    base: usize,
    bytes: Vec<u8>,
    maybe: HashMap<usize, Vec<Vec<u8>>>,
}

impl Model {
    fn new(part: usize) -> Model {
        Model { base: part * PART, bytes: vec![0; PART * BLOCK], maybe: HashMap::new() }
    }

    fn check(&mut self, at: usize, got: &[u8]) {
        for (i, block) in got.chunks(BLOCK).enumerate() {
            let b = at + i;
            let now = &mut self.bytes[b * BLOCK..(b + 1) * BLOCK];
            if block != now {
                let other = self.maybe.get(&b).is_some_and(|m| m.iter().any(|m| m == block));
                assert!(other, "block {} is neither what was acknowledged nor what was being written", self.base + b);
                now.copy_from_slice(block);
            }
            // It was read: from now on it is that.
            self.maybe.remove(&b);
        }
    }

    fn ended(&mut self, op: &Op, status: Status, broken: bool) {
        let data = op.bytes();
        if status.is_ok() && op.write {
            for b in op.at..op.at + op.blocks {
                self.maybe.remove(&b);
            }
            self.bytes[op.at * BLOCK..][..data.len()].copy_from_slice(&data);
        } else if status.is_ok() {
            self.check(op.at, &data);
        } else {
            assert!(
                broken,
                "{} of {} blocks at {}: {status}",
                if op.write { "write" } else { "read" },
                op.blocks,
                op.at
            );
            if op.write {
                for (i, block) in data.chunks(BLOCK).enumerate() {
                    self.maybe.entry(op.at + i).or_default().push(block.to_vec());
                }
            }
        }
    }
}

/// Buffers of `len` bytes in all, one or several.
fn buffers(r: &Reactor, rng: &mut Rng, len: usize) -> Option<Vec<DmaBuf>> {
    let pieces = [1, 1, 1, 2, 3][rng.below(5)].min(len / BLOCK);
    let first = len / pieces / 4 * 4;
    let mut bufs = Vec::new();
    for i in 0..pieces {
        let n = if i + 1 == pieces { len - first * (pieces - 1) } else { first };
        bufs.push(r.dma().alloc(n)?);
    }
    Some(bufs)
}

/// Random reads and writes until `ops` of them ended, or, if `broken`, the queue did.
async fn load(r: &Reactor, q: &IoQueue, model: &mut Model, rng: &mut Rng, depth: usize, ops: usize, broken: bool) {
    let ends = Rc::new(Ends::default());
    let mut flying: HashMap<u64, Op> = HashMap::new();
    let (mut started, mut tag) = (0, 0u64);
    loop {
        while started < ops && flying.len() < depth && q.room() > 0 && q.is_open() {
            started += 1;
            let blocks = [1 + rng.below(8), 8, 16, 1 + rng.below(64), 256][rng.below(5)];
            let at = rng.below(PART - blocks);
            if flying.values().any(|o| at < o.at + o.blocks && o.at < at + blocks) {
                continue;
            }
            let Some(mut bufs) = buffers(r, rng, blocks * BLOCK) else { break };
            let write = rng.below(2) == 0;
            if write {
                for b in &mut bufs {
                    rng.fill(b.get_mut().expect("fresh"));
                }
            }
            let mut sqe = Sqe::new(if write { 1 } else { 2 }, 0, 1);
            sqe.set_slba((model.base + at) as u64);
            sqe.set_nblocks(blocks as u32);
            tag += 1;
            let op = Op { write, at, blocks, bufs };
            let mut clones = op.bufs.clone();
            let data = match (write, clones.len()) {
                (true, 1) => Data::Write(clones.remove(0)),
                (false, 1) => Data::Read(clones.remove(0)),
                (true, _) => Data::WriteMany(&mut clones),
                (false, _) => Data::ReadMany(&mut clones),
            };
            match q.submit(&sqe, data, ends.clone(), tag) {
                Ok(_) => {
                    ends.flying.set(ends.flying.get() + 1);
                    flying.insert(tag, op);
                }
                Err(e) => {
                    assert!(broken, "{e:?}");
                    break;
                }
            }
        }
        if flying.is_empty() {
            break;
        }
        let d = ends.next().await;
        let op = flying.remove(&d.tag).expect("each command ends once");
        model.ended(&op, d.status, broken);
    }
    assert!(ends.done.borrow().is_empty());
    assert!(broken || started == ops);
}

/// Reads the whole part and compares.
async fn compare(r: &Reactor, q: &IoQueue, model: &mut Model) {
    let ends = Rc::new(Ends::default());
    for at in (0..PART).step_by(256) {
        let buf = r.dma().alloc(256 * BLOCK).expect("memory");
        let mut sqe = Sqe::new(2, 0, 1);
        sqe.set_slba((model.base + at) as u64);
        sqe.set_nblocks(256);
        ends.flying.set(1);
        q.submit(&sqe, Data::Read(buf.clone()), ends.clone(), 0).expect("room");
        let d = ends.next().await;
        assert!(d.status.is_ok(), "{}", d.status);
        model.check(at, buf.as_slice());
    }
}

fn initiator() -> Runtime {
    Runtime::start(Options { cores: vec![0, 1], pin: false, name: "host".into(), ..Options::default() }).unwrap()
}

async fn connect(rt: &Runtime, w: &World, digests: (bool, bool), flow_control: bool) -> Arc<Controller> {
    let o = HostOptions {
        hdgst: digests.0,
        ddgst: digests.1,
        disable_sq_flow_control: !flow_control,
        ..HostOptions::default()
    };
    Controller::connect(&rt.cores()[0], TransportId::tcp(w.addr, NQN), o).await.expect("connect")
}

#[test]
fn random_load_is_what_the_model_says() {
    let w = World::new();
    let rt = initiator();
    for (seed, digests) in [(1, (false, false)), (2, (true, true)), (3, (false, true)), (4, (true, false))] {
        block_on(async {
            let ctrl = connect(&rt, &w, digests, seed % 2 == 0).await;
            let loads: Vec<_> = (0..4usize)
                .map(|k| {
                    let ctrl = ctrl.clone();
                    let core = &rt.cores()[k % 2];
                    core.spawn(move |r| async move {
                        let depth = [1, 8, 32, 128][(seed as usize + k) % 4];
                        let q = ctrl.io_queue(&r, Some(depth as u16)).await.expect("a queue");
                        let mut rng = Rng(seed * 100 + k as u64);
                        let mut model = Model::new(k);
                        // What earlier rounds left is not known.
                        let ends = Rc::new(Ends::default());
                        let mut zero = Sqe::new(8, 0, 1);
                        zero.set_slba(model.base as u64);
                        zero.set_nblocks(PART as u32);
                        ends.flying.set(1);
                        q.submit(&zero, Data::None, ends.clone(), 0).expect("room");
                        assert!(ends.next().await.status.is_ok());
                        load(&r, &q, &mut model, &mut rng, depth, 500, false).await;
                        compare(&r, &q, &mut model).await;
                        q.disconnect().await;
                    })
                })
                .collect();
            for l in loads {
                l.await.expect("a load ends");
            }
            ctrl.disconnect(true).await;
        });
    }
    rt.stop();
}

#[test]
fn writes_cut_off_by_a_broken_connection_are_old_or_new() {
    let w = Setup { delay: Some(Duration::from_millis(1)), ..Setup::default() }.start();
    let rt = initiator();
    block_on(async {
        let core = &rt.cores()[1];
        let mut model = Some((Model::new(0), Rng(77)));
        for round in 0..8u64 {
            let ctrl = connect(&rt, &w, (round % 2 == 0, round % 3 == 0), false).await;
            let (m, g) = model.take().expect("put back");
            let c = ctrl.clone();
            let back = core
                .spawn(move |r| async move {
                    let (mut m, mut g) = (m, g);
                    let q = c.io_queue(&r, Some(64)).await.expect("a queue");
                    compare(&r, &q, &mut m).await;
                    let qp = q.qpair().clone();
                    let cut = Duration::from_micros(500 + 1500 * g.below(20) as u64);
                    let timer = r.timer(cut, move |_| qp.close("cut by the test"));
                    load(&r, &q, &mut m, &mut g, 64, usize::MAX, true).await;
                    drop(timer);
                    q.disconnect().await;
                    (m, g)
                })
                .await
                .expect("the load ends");
            model = Some(back);
            ctrl.disconnect(false).await;
        }
        let ctrl = connect(&rt, &w, (false, false), false).await;
        let (m, _) = model.take().expect("put back");
        let c = ctrl.clone();
        core.spawn(move |r| async move {
            let mut m = m;
            let q = c.io_queue(&r, None).await.expect("a queue");
            compare(&r, &q, &mut m).await;
            q.disconnect().await;
        })
        .await
        .expect("the comparison ends");
        ctrl.disconnect(true).await;
    });
    rt.stop();
}
