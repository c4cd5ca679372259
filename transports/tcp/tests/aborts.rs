//! Aborts of commands that are not one request in one place: a fused pair, a command of several parts, and more Aborts at once
//! than were announced.

mod host;
mod world;

use host::*;
use longshore_bdev::delay::{Delay, Latency};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::{CoreOptions, Geometry};
use longshore_nvme::wire::{SglDescriptor, Sqe, Status};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::Options;
use std::sync::mpsc;
use std::time::Duration;
use world::{NQN, Setup, World, block_on};

/// Longer than any test waits for an answer.
const FOREVER: Duration = Duration::from_secs(600);
/// Requests that commands can have from a pool of 16, a quarter of which is kept for children.
const POOL: u32 = 12;

/// One core, a small pool, and a device that answers when it is aborted.
fn stuck() -> World {
    let w = Setup {
        runtime: Options { cores: vec![0], pin: false, ..Options::default() },
        delay: Some(FOREVER),
        requests: CoreOptions { requests: 16, child_reserve: 4 },
        ..Setup::default()
    }
    .start();
    // One host may have all of them.
    block_on(w.target.set_config(|c| c.host_share = 100)).unwrap();
    w
}

fn queues(w: &World) -> (Host, Host) {
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, 1, 63, 0);
    (admin, io)
}

fn latency(w: &World, which: &[Latency], d: Duration) {
    let node = w.target.bdevs().find("Slow").unwrap();
    let delay = node.device().as_any().downcast_ref::<Delay>().unwrap();
    which.iter().for_each(|l| delay.set_latency(*l, d.as_micros() as u64));
}

const READS: [Latency; 2] = [Latency::AvgRead, Latency::P99Read];
const WRITES: [Latency; 2] = [Latency::AvgWrite, Latency::P99Write];

fn abort_sqe(admin: &mut Host, cid: u16) -> Sqe {
    let mut sqe = Sqe::new(0x08, admin.cid(), 0);
    sqe.cdw10 = (1 | u32::from(cid) << 16).into();
    sqe
}

/// Aborts a command of queue 1, which must be there to be aborted.
fn abort(admin: &mut Host, cid: u16) {
    let sqe = abort_sqe(admin, cid);
    admin.send_cmd(&sqe, &[]);
    let done = admin.finish(sqe.cid.get(), &[]);
    assert_eq!((done.status, done.dw0 & 1), (Status::SUCCESS, 0), "command {cid} was not found");
}

/// A command whose data is in its capsule.
fn with_data(io: &mut Host, opcode: u8, slba: u64, data: &[u8]) -> Sqe {
    let mut sqe = io.rw_sqe(opcode, slba, data.len().div_ceil(512) as u32, 0);
    sqe.dptr = SglDescriptor::in_capsule(0, data.len() as u32);
    sqe
}

/// Reads that take every request of the pool.
fn exhaust(w: &World, io: &mut Host) -> Vec<u16> {
    let reads: Vec<Sqe> = (0..POOL).map(|i| io.rw_sqe(2, 1000 + u64::from(i), 1, 512)).collect();
    for r in &reads {
        io.send_cmd(r, &[]);
    }
    w.wait("reads use every request", |w| w.requests() == POOL);
    reads.iter().map(|r| r.cid.get()).collect()
}

/// A compare-and-write at `slba`; its halves. It waits for a request when this returns.
fn starved_pair(w: &World, io: &mut Host, slba: u64) -> [u16; 2] {
    let before = w.request_waits();
    let (old, new) = (vec![0; 512], pattern(9, 512));
    let mut halves = [with_data(io, 0x05, slba, &old), with_data(io, 0x01, slba, &new)];
    halves[0].flags |= 1;
    halves[1].flags |= 2;
    io.send_cmd(&halves[0], &old);
    io.send_cmd(&halves[1], &new);
    w.wait("the pair waits for a request", |w| w.request_waits() == before + 1);
    halves.map(|h| h.cid.get())
}

/// The next `n` responses, by command.
fn responses(io: &mut Host, n: usize) -> Vec<(u16, Status)> {
    let mut all = Vec::new();
    while all.len() < n {
        let p = io.pdu();
        if p.kind == RESP {
            all.push((p.cqe().cid.get(), p.cqe().status()));
        }
    }
    all.sort_by_key(|r| r.0);
    all
}

#[test]
fn a_fused_pair_that_waits_for_a_request_is_aborted_as_a_whole_by_either_half() {
    let w = stuck();
    let (mut admin, mut io) = queues(&w);
    for half in [0, 1] {
        latency(&w, &READS, FOREVER);
        let reads = exhaust(&w, &mut io);
        let pair = starved_pair(&w, &mut io, 0);
        abort(&mut admin, pair[half]);
        // Which says that nothing was written.
        let ends = [Status::ABORT_REQUESTED, Status::ABORTED_FAILED_FUSED.with_dnr()];
        assert_eq!(responses(&mut io, 2), [(pair[0], ends[0]), (pair[1], ends[1])]);
        // Two writes take the slots over, and wait where the pair waited: each must run, and only once.
        let writes = [8, 9].map(|slba| {
            let data = pattern(slba, 512);
            let sqe = with_data(&mut io, 0x01, slba, &data);
            io.send_cmd(&sqe, &data);
            sqe.cid.get()
        });
        for cid in &reads {
            abort(&mut admin, *cid);
        }
        let aborted = |cids: &[u16]| -> Vec<_> { cids.iter().map(|c| (*c, Status::ABORT_REQUESTED)).collect() };
        assert_eq!(responses(&mut io, reads.len()), aborted(&reads));
        w.wait("the writes run", |w| w.requests() == 2);
        for cid in writes {
            abort(&mut admin, cid);
        }
        assert_eq!(responses(&mut io, 2), aborted(&writes));
        w.wait("every request came back", |w| w.requests() == 0);
        latency(&w, &READS, Duration::ZERO);
        assert!(io.read(0, 512).data == [0; 512], "the pair wrote");
        assert!(io.read(8, 1024).data == [pattern(8, 512), pattern(9, 512)].concat());
    }
}

#[test]
fn a_fused_pair_that_waits_for_a_request_ends_with_its_connection() {
    let w = stuck();
    let (_admin, mut io) = queues(&w);
    w.settled_at_least(2);
    let idle = w.buffers();
    exhaust(&w, &mut io);
    starved_pair(&w, &mut io, 0);
    drop(io);
    w.wait("every request came back", |w| w.requests() == 0);
    w.settled(idle - 1);
}

/// Deallocates a block each at every tenth from `from` on; answers when all parts that are started wait in the device.
fn deallocate(w: &World, io: &mut Host, from: u64, ranges: u32) -> u16 {
    let mut data = Vec::new();
    for i in 0..u64::from(ranges) {
        data.extend_from_slice(&0u32.to_le_bytes());
        data.extend_from_slice(&1u32.to_le_bytes());
        data.extend_from_slice(&(from + i * 10).to_le_bytes());
    }
    let mut sqe = with_data(io, 0x09, 0, &data);
    (sqe.cdw10, sqe.cdw11, sqe.cdw12) = ((ranges - 1).into(), 4.into(), 0.into());
    io.send_cmd(&sqe, &data);
    w.wait("the parts are started", |w| w.requests() == ranges.min(8));
    // A flush is not held up, and goes the same way behind them.
    let flush = Sqe::new(0x00, io.cid(), 1);
    io.send_cmd(&flush, &[]);
    assert!(io.finish(flush.cid.get(), &[]).status.is_ok());
    sqe.cid.get()
}

#[test]
fn an_abort_of_a_deallocation_aborts_all_of_its_parts() {
    let w = stuck();
    let (mut admin, mut io) = queues(&w);
    for ranges in [2, 6, 30] {
        latency(&w, &WRITES, Duration::ZERO);
        let (last, data) = (u64::from(ranges - 1) * 10, pattern(u64::from(ranges), 512));
        assert!(io.write_in_capsule(last, &data).status.is_ok());
        latency(&w, &WRITES, FOREVER);
        let cid = deallocate(&w, &mut io, 0, ranges);
        abort(&mut admin, cid);
        assert_eq!(responses(&mut io, 1), [(cid, Status::ABORT_REQUESTED)]);
        w.wait("every part came back", |w| w.requests() == 0);
        latency(&w, &READS, Duration::ZERO);
        let kept = io.read(last, 512).data == data;
        assert_eq!(kept, ranges > 8, "no part was started after the abort, of {ranges}");
    }
}

#[test]
fn a_deallocation_ends_with_its_connection() {
    let w = stuck();
    let (_admin, mut io) = queues(&w);
    deallocate(&w, &mut io, 0, 30);
    drop(io);
    w.wait("every part came back", |w| w.requests() == 0);
}

#[test]
fn a_deallocation_that_waits_for_a_request_does_not_keep_its_device() {
    let w = stuck();
    let bdevs = w.target.bdevs().clone();
    bdevs.register("Other", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
    let ns = NamespaceOptions { bdev_name: "Other".into(), nsid: Some(2), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    let (_admin, mut io) = queues(&w);
    exhaust(&w, &mut io);
    let waits = |w: &World| block_on(w.target.stats())[0].pending_bdev_io;
    let before = waits(&w);
    let data = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut sqe = with_data(&mut io, 0x09, 0, &data);
    (sqe.nsid, sqe.cdw10, sqe.cdw11, sqe.cdw12) = (2.into(), 0.into(), 4.into(), 0.into());
    io.send_cmd(&sqe, &data);
    w.wait("it waits for a request", |w| waits(w) > before);
    let gone = w.cores()[0].spawn(move |_| async move { bdevs.unregister("Other").await });
    gone.wait_timeout(Duration::from_secs(20)).expect("the device is given up").unwrap().unwrap();
    assert_eq!(responses(&mut io, 1), [(sqe.cid.get(), Status::ABORT_REQUESTED)]);
}

#[test]
fn more_aborts_at_once_than_were_announced_are_refused() {
    let w = World::new();
    let (mut admin, mut io) = queues(&w);
    let mut id = Sqe::new(0x06, admin.cid(), 0);
    id.cdw10 = 1.into();
    id.dptr = SglDescriptor::transport(4096);
    admin.send_cmd(&id, &[]);
    let limit = usize::from(admin.finish(id.cid.get(), &[]).data[258]) + 1;
    let core = w.core_of(1);
    for _ in 0..2 {
        // Aborts of a queue are answered by its core, which stands still.
        let (go, wait) = mpsc::channel::<()>();
        let held = w.cores()[core].call(move |_| wait.recv());
        let sent: Vec<u16> = (0..limit + 3)
            .map(|i| {
                let sqe = abort_sqe(&mut admin, 0x7000 + i as u16);
                admin.send_cmd(&sqe, &[]);
                sqe.cid.get()
            })
            .collect();
        let refused = responses(&mut admin, 3);
        go.send(()).unwrap();
        held.wait().unwrap().unwrap();
        assert_eq!(refused, [0, 1, 2].map(|i| (sent[limit + i], Status::ABORT_COMMAND_LIMIT_EXCEEDED)));
        let ended: Vec<_> = sent[..limit].iter().map(|c| (*c, Status::SUCCESS)).collect();
        assert_eq!(responses(&mut admin, limit), ended);
    }
    assert!(io.read(0, 4096).status.is_ok());
}
