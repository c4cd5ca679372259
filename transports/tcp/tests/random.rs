//! Random load from several scripted hosts at once, checked against a model of the device: every way of moving data, every size,
//! queue depths, digests and alignments, PDUs cut and interleaved anywhere, with ample and with scarce memory.
//!
//! A failure names its seed; the operations of a connection depend on nothing else.

mod host;
mod world;

use host::*;
use longshore_nvme::wire::{SglDescriptor, Status};
use longshore_reactor::{DmaOptions, Options};
use std::collections::HashMap;
use std::time::Duration;
use world::{NQN, Setup, World};

const BLOCK: usize = 512;
/// Blocks of a connection's own part of the device.
const PART: usize = 4096;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Compare { equal: bool },
    Zeroes,
    Flush,
}

struct Op {
    kind: Kind,
    at: usize,
    blocks: usize,
    /// What is written or compared.
    data: Vec<u8>,
    got: Vec<u8>,
    /// An R2T asked for the data: its tag, and how much of it was sent.
    asked: Option<(u16, usize)>,
}

struct Load {
    io: Host,
    rng: Rng,
    base: usize,
    model: Vec<u8>,
    depth: usize,
    flying: HashMap<u16, Op>,
    /// Bytes to be sent.
    out: Vec<u8>,
}

impl Load {
    fn free_range(&mut self, blocks: usize) -> Option<usize> {
        let at = self.rng.below(PART - blocks);
        let clash = |o: &Op| o.kind != Kind::Flush && at < o.at + o.blocks && o.at < at + blocks;
        (!self.flying.values().any(clash)).then_some(at)
    }

    fn start(&mut self) {
        let blocks = match self.rng.below(10) {
            0..=3 => 1 + self.rng.below(8),
            4..=6 => 1 + self.rng.below(32),
            7 => 256,
            _ => 1 + self.rng.below(256),
        };
        let Some(at) = self.free_range(blocks) else { return };
        let len = blocks * BLOCK;
        let slba = (self.base + at) as u64;
        let old = &self.model[at * BLOCK..][..len];
        let (kind, opcode, data) = match self.rng.below(20) {
            0..=7 => (Kind::Read, 0x02, Vec::new()),
            8..=15 => (Kind::Write, 0x01, pattern(self.rng.below(1 << 30) as u64, len)),
            16 | 17 => {
                let mut d = old.to_vec();
                let equal = self.rng.chance(70);
                if !equal {
                    let i = self.rng.below(len);
                    d[i] ^= 0x10;
                }
                (Kind::Compare { equal }, 0x05, d)
            }
            18 => (Kind::Zeroes, 0x08, Vec::new()),
            _ => (Kind::Flush, 0x00, Vec::new()),
        };
        let moves = matches!(kind, Kind::Read | Kind::Write | Kind::Compare { .. });
        let mut sqe = self.io.rw_sqe(opcode, slba, blocks as u32, if moves { len as u32 } else { 0 });
        let cid = sqe.cid.get();
        let bytes = if !data.is_empty() && len <= 4096 && self.rng.chance(60) {
            sqe.dptr = SglDescriptor::in_capsule(0, len as u32);
            self.io.capsule(&sqe, &data)
        } else {
            self.io.capsule(&sqe, &[])
        };
        self.out.extend_from_slice(&bytes);
        self.flying.insert(cid, Op { kind, at, blocks, data, got: Vec::new(), asked: None });
    }

    /// Queues the next H2CData of some command that was asked for data.
    fn feed(&mut self) {
        let mut asked: Vec<u16> = self
            .flying
            .iter()
            .filter(|(_, o)| o.asked.is_some_and(|(_, n)| n < o.data.len()))
            .map(|(c, _)| *c)
            .collect();
        asked.sort_unstable();
        if asked.is_empty() {
            return;
        }
        let cid = asked[self.rng.below(asked.len())];
        let most = self.io.maxh2cdata as usize;
        let step = match self.rng.below(4) {
            0 => 512,
            1 => 4 + 4 * self.rng.below(2000),
            2 => 4096 * (1 + self.rng.below(8)),
            _ => most,
        };
        let op = self.flying.get_mut(&cid).unwrap();
        let (ttag, at) = op.asked.unwrap();
        let n = step.min(most).min(op.data.len() - at);
        let last = at + n == op.data.len();
        let bytes = self.io.h2c_data(cid, ttag, at as u32, &op.data[at..at + n], last);
        op.asked = Some((ttag, at + n));
        self.out.extend_from_slice(&bytes);
    }

    fn flush(&mut self) {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let n = if self.rng.chance(50) { rest.len() } else { (1 + self.rng.below(30_000)).min(rest.len()) };
            self.io.send(&rest[..n]);
            rest = &rest[n..];
        }
    }

    fn receive(&mut self) {
        let p = self.io.pdu();
        let (cid, status) = match p.kind {
            R2T => {
                let op = self.flying.get_mut(&p.u16(8)).expect("an R2T for a command in flight");
                assert!(op.asked.is_none(), "one R2T outstanding");
                assert_eq!((p.u32(12) as usize, p.u32(16) as usize), (0, op.data.len()));
                op.asked = Some((p.u16(10), 0));
                return;
            }
            C2H_DATA => {
                let cid = p.u16(8);
                let op = self.flying.get_mut(&cid).expect("data for a command in flight");
                assert_eq!(p.u32(12) as usize, op.got.len());
                op.got.extend_from_slice(&p.data);
                if p.flags & F_SUCCESS == 0 {
                    return;
                }
                (cid, Status::SUCCESS)
            }
            RESP => (p.cqe().cid.get(), p.cqe().status()),
            _ => panic!("unexpected {p:?}"),
        };
        let op = self.flying.remove(&cid).expect("a completion for a command in flight");
        let range = op.at * BLOCK..(op.at + op.blocks) * BLOCK;
        match op.kind {
            Kind::Compare { equal: false } => assert!(status.is(Status::COMPARE_FAILURE), "{status}"),
            _ => assert!(status.is_ok(), "{:?} at {}: {status}", op.kind, op.at),
        }
        match op.kind {
            Kind::Read => assert!(op.got == self.model[range], "read of {} at {} differs", op.blocks, op.at),
            Kind::Write => self.model[range].copy_from_slice(&op.data),
            Kind::Zeroes => self.model[range].fill(0),
            Kind::Compare { .. } | Kind::Flush => {}
        }
    }

    fn run(&mut self, ops: usize) {
        let mut started = 0;
        while started < ops || !self.flying.is_empty() {
            while started < ops && self.flying.len() < self.depth && self.rng.chance(80) {
                self.start();
                started += 1;
                if self.rng.chance(30) {
                    self.feed();
                }
            }
            self.feed();
            self.flush();
            let unanswered = self.flying.values().any(|o| o.asked.is_none_or(|(_, n)| n == o.data.len()));
            if unanswered {
                self.receive();
            }
        }
        for at in (0..PART).step_by(256) {
            let done = self.io.read((self.base + at) as u64, 256 * BLOCK);
            assert!(done.status.is_ok() && done.data == self.model[at * BLOCK..][..256 * BLOCK], "at the end, at {at}");
        }
    }
}

fn random_load(w: &World, seed: u64, ops: usize) {
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let cntlid = admin.cntlid;
    let addr = w.addr;
    let threads: Vec<_> = (0..4u64)
        .map(|k| {
            let body = move || {
                let mut rng = Rng(seed * 1000 + k);
                let ic = Ic {
                    hdgst: rng.chance(50),
                    ddgst: rng.chance(50),
                    hpda: rng.below(32) as u8,
                    maxr2t: rng.below(4) as u32,
                };
                let depth = [1, 4, 31, 127][rng.below(4)];
                let cattr = if rng.chance(50) { NO_FLOW_CONTROL } else { 0 };
                let io = Host::io(addr, ic, NQN, cntlid, k as u16 + 1, depth, cattr);
                let base = k as usize * PART;
                let mut load = Load {
                    io,
                    rng,
                    base,
                    model: vec![0; PART * BLOCK],
                    depth: usize::from(depth),
                    flying: HashMap::new(),
                    out: Vec::new(),
                };
                load.run(ops);
            };
            std::thread::Builder::new().name(format!("seed {seed}, connection {k}")).spawn(body).unwrap()
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
}

#[test]
fn random_load_is_what_the_model_says() {
    for seed in 1..=6 {
        random_load(&World::new(), seed, 600);
    }
}

#[test]
fn random_load_with_scarce_memory_is_what_the_model_says() {
    for seed in 11..=18 {
        // Two chunks for all sizes at times: small buffers compete with large ones.
        let dma = DmaOptions { max_bytes: (4 + 2 * (seed as usize % 2)) << 20, ..DmaOptions::default() };
        let runtime = Options { cores: vec![0, 1], pin: false, dma, ..Options::default() };
        random_load(&Setup { runtime, ..Setup::default() }.start(), seed, 400);
    }
}

#[test]
fn random_load_on_a_slow_device_is_what_the_model_says() {
    for seed in 21..=22 {
        let w = Setup { delay: Some(Duration::from_millis(2)), ..Setup::default() }.start();
        random_load(&w, seed, 300);
    }
}
