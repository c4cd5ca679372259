//! Two connections on two reactors read and write the same few blocks of one device in memory, through send buffers that hold
//! next to nothing, so that most answers lie half sent while their blocks are written again: every block read is one write's,
//! whole, and none is older than one that was there before.
//!
//! `TORN_SECONDS` is how long (by default two seconds; 60 in the tests that are run by name), `TORN_SEED` what the commands
//! follow from.

mod host;
mod world;

use host::*;
use longshore_bdev::{Geometry, malloc::Malloc};
use longshore_nvme::wire::{SglDescriptor, Status};
use longshore_nvmf::NamespaceOptions;
use longshore_tcp::TcpOptions;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use world::{NQN, Setup, block_on};

const BLOCK: usize = 4096;
/// Blocks that are fought over.
const LBAS: usize = 64;
/// Longest command, in blocks.
const LONGEST: usize = 8;
/// Commands in flight on a connection: less than the target holds before it stops to receive.
const DEPTH: usize = 16;
const NSID: u32 = 2;
const WORDS: usize = BLOCK / 8;
const MAGIC: u64 = 0x746f_726e_626c_6b21;

/// The block that `writer` writes to `lba` as its write number `seq`: it says so itself, and every word follows from that.
fn block(writer: u64, seq: u64, lba: u64) -> [u64; WORDS] {
    let mut b = [0; WORDS];
    (b[0], b[1], b[2], b[3]) = (MAGIC, writer, seq, lba);
    let base = (seq << 20 | lba << 8 | writer).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut sum = MAGIC ^ writer ^ seq.rotate_left(20) ^ lba.rotate_left(40);
    for (i, w) in b[4..WORDS - 1].iter_mut().enumerate() {
        *w = base.wrapping_mul(2 * i as u64 + 1);
        sum = sum.rotate_left(5) ^ *w;
    }
    b[WORDS - 1] = sum;
    b
}

fn bytes(b: &[u64; WORDS]) -> impl Iterator<Item = u8> {
    b.iter().flat_map(|w| w.to_le_bytes())
}

/// Who wrote a block, and as which of its writes; panics if it is not exactly one write's.
fn origin(got: &[u8], lba: u64) -> (usize, u64) {
    let word = |i: usize| u64::from_le_bytes(got[i * 8..][..8].try_into().unwrap());
    assert_eq!((word(0), word(3)), (MAGIC, lba), "block {lba} is no block of this place");
    let (writer, seq) = (word(1), word(2));
    let whole = block(writer, seq, lba);
    if let Some(i) = (0..WORDS).find(|&i| word(i) != whole[i]) {
        panic!("block {lba} is torn: it begins as write {seq} of connection {writer}, which ends at byte {}", i * 8);
    }
    (writer as usize, seq)
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// By block and writer: the newest write that was seen to be there.
type Seen = [[u64; 2]; LBAS];

struct Flight {
    lba: usize,
    n: usize,
    /// A write's number; 0: a read.
    seq: u64,
    /// What had been there when a read was sent.
    before: Seen,
    data: Vec<u8>,
}

struct Hammer {
    io: Host,
    me: usize,
    rng: Rng,
    seen: Seen,
    seq: u64,
    flying: HashMap<u16, Flight>,
    reads: u64,
    writes: u64,
}

impl Hammer {
    fn start(&mut self) {
        let n = 1 + self.rng.below(LONGEST);
        let lba = self.rng.below(LBAS - n + 1);
        // One write of a block at a time, so that this connection's writes of it have an order.
        let busy = |f: &Flight| f.seq != 0 && lba < f.lba + f.n && f.lba < lba + n;
        let write = self.rng.below(100) < 45 && !self.flying.values().any(busy);
        self.send(lba, n, write);
    }

    fn send(&mut self, lba: usize, n: usize, write: bool) {
        let len = n * BLOCK;
        let mut sqe = self.io.rw_sqe(if write { 0x01 } else { 0x02 }, lba as u64, n as u32, len as u32);
        sqe.nsid = NSID.into();
        let mut f = Flight { lba, n, seq: 0, before: self.seen, data: Vec::new() };
        if write {
            self.seq += 1;
            f.seq = self.seq;
            let blocks = (lba..lba + n).map(|l| block(self.me as u64, self.seq, l as u64));
            f.data = blocks.flat_map(|b| bytes(&b).collect::<Vec<u8>>()).collect();
        }
        if write && n == 1 && self.rng.below(2) == 0 {
            sqe.dptr = SglDescriptor::in_capsule(0, len as u32);
            self.io.send_cmd(&sqe, &f.data);
        } else {
            self.io.send_cmd(&sqe, &[]);
        }
        self.flying.insert(sqe.cid.get(), f);
    }

    fn receive(&mut self) {
        let p = self.io.pdu();
        let (cid, status) = match p.kind {
            R2T => return self.io.answer_r2t(&p, &self.flying[&p.u16(8)].data),
            C2H_DATA => {
                let f = self.flying.get_mut(&p.u16(8)).expect("data for a read in flight");
                assert_eq!(p.u32(12) as usize, f.data.len());
                f.data.extend_from_slice(&p.data);
                if p.flags & F_SUCCESS == 0 {
                    return;
                }
                (p.u16(8), Status::SUCCESS)
            }
            RESP => (p.cqe().cid.get(), p.cqe().status()),
            _ => panic!("unexpected {p:?}"),
        };
        let f = self.flying.remove(&cid).expect("a completion for a command in flight");
        assert!(status.is_ok(), "{} blocks at {}: {status}", f.n, f.lba);
        if f.seq != 0 {
            self.writes += 1;
            for lba in f.lba..f.lba + f.n {
                self.seen[lba][self.me] = self.seen[lba][self.me].max(f.seq);
            }
            return;
        }
        self.reads += 1;
        assert_eq!(f.data.len(), f.n * BLOCK);
        for (lba, got) in (f.lba..).zip(f.data.chunks(BLOCK)) {
            let (writer, seq) = origin(got, lba as u64);
            let newest = f.before[lba][writer];
            assert!(seq >= newest, "block {lba} has write {seq} of connection {writer} again, after {newest}");
            self.seen[lba][writer] = self.seen[lba][writer].max(seq);
        }
    }

    fn run(&mut self, time: Duration) {
        let begin = Instant::now();
        loop {
            let over = begin.elapsed() >= time;
            while !over && self.flying.len() < DEPTH {
                self.start();
            }
            if self.flying.is_empty() {
                return;
            }
            // A host that takes nothing for a while: what is to be sent to it waits where it is.
            match self.rng.below(20_000) {
                0 => std::thread::sleep(Duration::from_millis(150)),
                1..20 => std::thread::sleep(Duration::from_millis(2)),
                _ => {}
            }
            self.receive();
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

fn hammer(digests: bool, seconds: u64) {
    let (seconds, seed) = (number("TORN_SECONDS", seconds), number("TORN_SEED", 1));
    let tcp = TcpOptions { send_buffer: 4096, ..TcpOptions::default() };
    let w = Setup { tcp, ..Setup::default() }.start();
    let malloc = Malloc::new(Geometry::plain(BLOCK as u32, LBAS as u64)).unwrap();
    w.target.bdevs().register("Torn", None, malloc).unwrap();
    let ns = NamespaceOptions { bdev_name: "Torn".into(), nsid: Some(NSID), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    let ic = if digests { Ic::digests() } else { Ic::default() };
    let admin = Host::admin(w.addr, ic, NQN);
    let mut hammers = [0, 1].map(|me| {
        let io = Host::io(w.addr, ic, NQN, admin.cntlid, me as u16 + 1, 63, 0);
        rustix::net::sockopt::set_socket_recv_buffer_size(&io.s, 65_536).unwrap();
        let rng = Rng((seed << 1 | me as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Hammer { io, me, rng, seen: [[0; 2]; LBAS], seq: 0, flying: HashMap::new(), reads: 0, writes: 0 }
    });
    assert_ne!(w.core_of(1), w.core_of(2), "each connection has a reactor of its own");
    for lba in (0..LBAS).step_by(LONGEST) {
        hammers[0].send(lba, LONGEST, true);
    }
    hammers[0].run(Duration::ZERO);
    std::thread::scope(|s| {
        for h in &mut hammers {
            let name = format!("TORN_SEED={seed}, connection {}, digests {digests}", h.me);
            let body = move || h.run(Duration::from_secs(seconds));
            std::thread::Builder::new().name(name).spawn_scoped(s, body).unwrap();
        }
    });
    let [a, b] = hammers;
    let met = |h: &Hammer| h.seen.iter().filter(|s| s[1 - h.me] > 0).count();
    println!(
        "NOTE digests {}: {} reads, {} writes in {seconds} s",
        if digests { "on" } else { "off" },
        a.reads + b.reads,
        a.writes + b.writes
    );
    assert!(met(&a) > LBAS / 2 && met(&b) > LBAS / 2, "{} and {} blocks of the other were seen", met(&a), met(&b));
}

#[test]
fn a_block_read_with_digests_is_exactly_one_write() {
    hammer(true, 2);
}

#[test]
fn a_block_read_without_digests_is_exactly_one_write() {
    hammer(false, 2);
}

#[test]
#[ignore = "a minute: the step `torn` of .ci/run"]
fn a_block_read_with_digests_is_exactly_one_write_for_a_minute() {
    hammer(true, 60);
}

#[test]
#[ignore = "a minute: the step `torn` of .ci/run"]
fn a_block_read_without_digests_is_exactly_one_write_for_a_minute() {
    hammer(false, 60);
}
