//! A thousand ends: hosts connect and keep every kind of I/O in flight, then something ends, and everything that was taken is
//! given back. Each round follows from its seed, but for the moments at which threads meet.

mod host;
mod stage;
mod world;

use host::*;
use longshore_nvme::wire::{SglDescriptor, Sqe, Status};
use stage::{Rng, Stage};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use world::{BLOCKS, NQN, World};

/// Latency of what ends by an abort only.
const NEVER: Duration = Duration::from_secs(600);

/// One connection's I/O, on a thread of its own.
struct Load {
    io: Host,
    rng: Rng,
}

impl Load {
    fn namespace(&mut self, mut sqe: Sqe) -> Sqe {
        sqe.nsid = (1 + self.rng.below(3) as u32).into();
        sqe
    }

    /// A command that moves `blocks`, with its data in the capsule or not.
    fn transfer(&mut self, opcode: u8, slba: u64, blocks: usize, fuse: u8, nsid: u32) -> Vec<u8> {
        let len = blocks * 512;
        let mut sqe = self.io.rw_sqe(opcode, slba, blocks as u32, len as u32);
        sqe.nsid = nsid.into();
        sqe.flags |= fuse;
        if opcode != 0x02 && len <= 4096 && self.rng.chance(60) {
            sqe.dptr = SglDescriptor::in_capsule(0, len as u32);
            return self.io.capsule(&sqe, &vec![opcode; len]);
        }
        self.io.capsule(&sqe, &[])
    }

    fn command(&mut self) -> Vec<u8> {
        let blocks = [1, 8, 8, 32, 256][self.rng.below(5)];
        let slba = self.rng.below(BLOCKS as usize - 256) as u64;
        let nsid = 1 + self.rng.below(3) as u32;
        match self.rng.below(12) {
            0..=3 => self.transfer(0x02, slba, blocks, 0, nsid),
            4..=7 => self.transfer(0x01, slba, blocks, 0, nsid),
            // Compare-and-write, at times without its second half.
            8 => {
                let mut both = self.transfer(0x05, slba, 8, 1, nsid);
                if self.rng.chance(85) {
                    both.extend(self.transfer(0x01, slba, 8, 2, nsid));
                }
                both
            }
            9 => {
                let ranges = 1 + self.rng.below(40);
                let mut data = Vec::new();
                for i in 0..ranges as u64 {
                    data.extend_from_slice(&[0, 0, 0, 0, 3, 0, 0, 0]);
                    data.extend_from_slice(&(i * 100).to_le_bytes());
                }
                let sqe = Sqe::new(0x09, self.io.cid(), 0);
                let mut sqe = self.namespace(sqe);
                sqe.dptr = SglDescriptor::in_capsule(0, data.len() as u32);
                (sqe.cdw10, sqe.cdw11) = ((ranges as u32 - 1).into(), 4.into());
                self.io.capsule(&sqe, &data)
            }
            10 => {
                let sqe = self.io.rw_sqe(0x08, slba, blocks as u32, 0);
                let sqe = self.namespace(sqe);
                self.io.capsule(&sqe, &[])
            }
            _ => {
                let sqe = Sqe::new(0x00, self.io.cid(), 0);
                let sqe = self.namespace(sqe);
                self.io.capsule(&sqe, &[])
            }
        }
    }

    /// Answers an R2T in full, by half or not at all.
    fn answer(&mut self, r2t: &Pdu) -> std::io::Result<()> {
        let (cid, ttag, off, len) = (r2t.u16(8), r2t.u16(10), r2t.u32(12), r2t.u32(16) as usize);
        let b = self.io.h2c_data(cid, ttag, off, &vec![7; len], true);
        let n = match self.rng.below(8) {
            0 => 0,
            1 => return self.io.s.write_all(&b[..self.rng.below(b.len())]).and(Err(std::io::ErrorKind::Other.into())),
            _ => b.len(),
        };
        self.io.s.write_all(&b[..n])
    }

    /// Sends and receives until the connection ends, or it had enough. What is in flight then stays.
    fn run(&mut self) -> std::io::Result<()> {
        self.io.s.set_read_timeout(Some(Duration::from_millis(8)))?;
        for _ in 0..1 + self.rng.below(5) {
            let n = 1 + self.rng.below(30);
            let burst: Vec<u8> = (0..n).flat_map(|_| self.command()).collect();
            self.io.s.write_all(&burst)?;
            if self.rng.chance(70) {
                for _ in 0..self.rng.below(2 * n) {
                    let p = self.io.try_pdu()?;
                    if p.kind == R2T {
                        self.answer(&p)?;
                    }
                }
            }
        }
        Ok(())
    }
}

struct Hosts {
    admins: Vec<Host>,
    loads: Vec<JoinHandle<()>>,
    /// Connections that were begun only.
    begun: Vec<Host>,
    /// The loads close their connections.
    enough: Arc<AtomicBool>,
}

/// An I/O queue; `None` if others have all memory at the moment.
fn queue(w: &World, admin: &Host, qid: u16, depth: u16, cattr: u8) -> Option<Host> {
    let mut io = Host::initialised(w.addr, admin.ic);
    let done = io.connect(qid, depth, admin.cntlid, cattr, NQN, HOSTNQN);
    let busy = done.status.is(Status::CONNECT_CONTROLLER_BUSY);
    assert!(busy || done.status.is_ok(), "Connect of queue {qid}: {}", done.status);
    (!busy).then_some(io)
}

impl Hosts {
    fn connect(w: &World, rng: &mut Rng) -> Hosts {
        let mut hosts = Hosts { admins: Vec::new(), loads: Vec::new(), begun: Vec::new(), enough: Arc::default() };
        // Before there is any load: what a queue is guaranteed must be there when it connects.
        for _ in 0..1 + rng.below(3) {
            let ic = Ic { hdgst: rng.chance(50), ddgst: rng.chance(50), hpda: 0, maxr2t: rng.below(4) as u32 };
            hosts.admins.push(Host::admin(w.addr, ic, NQN));
        }
        for admin in &hosts.admins {
            for qid in 1..=1 + rng.below(3) as u16 {
                let depth = [15, 63, 127][rng.below(3)];
                let cattr = if rng.chance(50) { NO_FLOW_CONTROL } else { 0 };
                let Some(io) = queue(w, admin, qid, depth, cattr) else { continue };
                let (seed, reset, enough) = (rng.below(1 << 30) as u64, rng.chance(50), hosts.enough.clone());
                hosts.loads.push(std::thread::spawn(move || {
                    let mut load = Load { io, rng: Rng(seed) };
                    let _ = load.run();
                    while !enough.load(Ordering::SeqCst) {
                        std::thread::park_timeout(Duration::from_micros(500));
                    }
                    if reset {
                        let _ = rustix::net::sockopt::set_socket_linger(&load.io.s, Some(Duration::ZERO));
                    }
                }));
            }
        }
        for qid in 0..rng.below(5) as u16 {
            let mut h = if rng.chance(30) { Host::raw(w.addr) } else { Host::initialised(w.addr, Ic::default()) };
            if rng.chance(70) && h.maxh2cdata != 0 {
                // An I/O queue that nobody else has, or half of its Connect.
                let sqe = h.connect_sqe(9 + qid, 31, 0);
                let cntlid = hosts.admins[0].cntlid;
                let b = h.capsule(&sqe, &Host::connect_data(cntlid, NQN, HOSTNQN));
                let n = if rng.chance(50) { b.len() } else { rng.below(b.len()) };
                let _ = h.s.write_all(&b[..n]);
            }
            hosts.begun.push(h);
        }
        hosts
    }

    /// Closes every connection; the admin queues first or last.
    fn close(mut self, rng: &mut Rng) {
        if rng.chance(50) {
            self.admins.clear();
        }
        self.enough.store(true, Ordering::SeqCst);
        for l in self.loads {
            l.thread().unpark();
            l.join().expect("a load panicked");
        }
    }
}

/// Sets CC and waits until CSTS answers. False: the connection ended.
fn controller_resets(admin: &mut Host, shutdown: bool) {
    let cc: u64 = 1 | 6 << 16 | 4 << 20;
    let (value, mask, want) = if shutdown { (cc | 1 << 14, 0xc, 0x8) } else { (cc & !1, 1, 0) };
    assert!(admin.property_set(0x14, value, false).status.is_ok());
    let start = Instant::now();
    while admin.property_get(0x1c, false).dw0 & mask != want {
        assert!(start.elapsed() < Duration::from_secs(20), "the controller does not end its queues");
        std::thread::sleep(Duration::from_micros(200));
    }
    if shutdown {
        // Out of shutdown only by a reset.
        assert!(admin.property_set(0x14, 0, false).status.is_ok());
        while admin.property_get(0x1c, false).dw0 & 1 != 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "the controller is not reset");
        }
    }
}

fn write_and_read(io: &mut Host, seed: u64) {
    let data = pattern(seed, 8192);
    assert!(io.write(64, &data).status.is_ok());
    assert!(io.read(64, 8192).data == data);
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    HostKilled,
    SubsystemDeleted,
    BdevRemoved,
    ControllerReset,
    TargetStopped,
}

const ENDS: [End; 5] =
    [End::HostKilled, End::SubsystemDeleted, End::BdevRemoved, End::ControllerReset, End::TargetStopped];

fn round(stage: &mut Stage, seed: u64, rng: &mut Rng) {
    let end = ENDS[rng.below(ENDS.len())];
    stage.pace(rng, NEVER);
    let mut hosts = Hosts::connect(&stage.w, rng);
    std::thread::sleep(rng.pause());
    // At times the hosts go just while it happens.
    let meanwhile = rng.chance(30).then(|| {
        let (enough, after) = (hosts.enough.clone(), rng.pause());
        std::thread::spawn(move || {
            std::thread::sleep(after);
            enough.store(true, Ordering::SeqCst);
        })
    });
    match end {
        End::HostKilled => {}
        End::SubsystemDeleted => stage.delete_subsystem(),
        End::BdevRemoved => stage.remove_bdev(rng),
        End::ControllerReset => {
            for admin in &mut hosts.admins {
                controller_resets(admin, rng.chance(50));
                admin.enable();
                if let Some(mut io) = queue(&stage.w, admin, 1, 31, 0) {
                    write_and_read(&mut io, seed);
                }
            }
        }
        End::TargetStopped => stage.stop(rng),
    }
    hosts.close(rng);
    meanwhile.into_iter().for_each(|t| t.join().unwrap());
    if end == End::TargetStopped {
        *stage = Stage::new();
    }
    stage.settle();
    let admin = Host::admin(stage.w.addr, Ic::default(), NQN);
    write_and_read(&mut queue(&stage.w, &admin, 1, 31, 0).expect("nobody has memory"), seed);
    drop(admin);
    stage.settle();
}

#[test]
fn whatever_ends_under_load_gives_everything_back() {
    stage::rounds(1000, Stage::new, round, drop);
}
