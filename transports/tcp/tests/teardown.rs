//! Connections, controllers and whole targets that end while requests are in the block layer: nothing is freed before it came
//! back, nothing is left over.

mod host;
mod world;

use host::*;
use std::time::{Duration, Instant};
use world::{NQN, Setup, World, block_on};

/// A world whose device answers after `ms`.
fn slow(ms: u64) -> World {
    Setup { delay: Some(Duration::from_millis(ms)), ..Setup::default() }.start()
}

/// A host with reads and writes in the block layer, in transfer and waiting: it never reads a response.
fn busy(w: &World, qid: u16, admin: &Host) -> Host {
    let mut io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, qid, 63, 0);
    let mut all = Vec::new();
    for i in 0..20u64 {
        let mut sqe = io.rw_sqe(1, i * 8, 8, 0);
        sqe.dptr = longshore_nvme::wire::SglDescriptor::in_capsule(0, 4096);
        all.extend_from_slice(&io.capsule(&sqe, &pattern(i, 4096)));
        let sqe = io.rw_sqe(2, i * 8, 256, 131_072);
        all.extend_from_slice(&io.capsule(&sqe, &[]));
        // Its R2T is never answered, or by half.
        let sqe = io.rw_sqe(1, i * 8, 256, 131_072);
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    io.send(&all);
    // R2Ts come at once: answer one by half, in the middle of a direct receive.
    let p = io.pdu();
    assert_eq!(p.kind, R2T);
    let b = io.h2c_data(p.u16(8), p.u16(10), 0, &vec![7; 131_072], true);
    io.send(&b[..100_000]);
    io
}

#[test]
fn a_connection_that_breaks_gives_everything_back() {
    let w = slow(300);
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    w.settled_at_least(1);
    let before = w.buffers();
    for round in 0..3 {
        let io = busy(&w, 1, &admin);
        if round % 2 == 0 {
            // Not closed but reset.
            rustix::net::sockopt::set_socket_linger(&io.s, Some(Duration::ZERO)).unwrap();
        }
        drop(io);
        w.settled(before);
    }
    let mut io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, 1, 31, 0);
    assert!(io.read(0, 4096).status.is_ok());
}

#[test]
fn an_admin_queue_that_breaks_takes_its_io_queues_along() {
    let w = slow(300);
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut a = busy(&w, 1, &admin);
    let mut b = busy(&w, 2, &admin);
    drop(admin);
    for h in [&mut a, &mut b] {
        let mut sink = Vec::new();
        let _ = std::io::Read::read_to_end(&mut h.s, &mut sink);
    }
    w.settled(0);
}

#[test]
fn a_target_shuts_down_with_requests_in_flight() {
    let w = slow(300);
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let _a = busy(&w, 1, &admin);
    let _b = busy(&w, 2, &admin);
    let start = Instant::now();
    block_on(w.target.shutdown());
    assert_eq!(w.buffers(), 0);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_runtime_that_stops_without_ado_takes_connections_along() {
    let mut w = slow(200);
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut a = busy(&w, 1, &admin);
    w.stop_at_once();
    let mut sink = Vec::new();
    let _ = std::io::Read::read_to_end(&mut a.s, &mut sink);
}

#[test]
fn a_namespace_removed_under_load_fails_its_commands_only() {
    let w = slow(100);
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, 1, 63, 0);
    let mut all = Vec::new();
    for i in 0..32u64 {
        let sqe = io.rw_sqe(2, i * 8, 8, 4096);
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    io.send(&all);
    block_on(w.target.remove_namespace(NQN, 1)).unwrap();
    let mut ended = 0;
    while ended < 32 {
        ended += u32::from(io.pdu().kind == RESP);
    }
    assert!(io.read(0, 4096).status.is_err(), "the namespace is gone");
}

#[test]
fn connections_come_and_go_by_the_hundred() {
    let w = World::new();
    for round in 0..30u64 {
        let admin = Host::admin(w.addr, if round % 2 == 0 { Ic::default() } else { Ic::digests() }, NQN);
        let mut ios: Vec<Host> =
            (1..=6).map(|q| Host::io(w.addr, admin.ic, NQN, admin.cntlid, q, 31, NO_FLOW_CONTROL)).collect();
        for (i, io) in ios.iter_mut().enumerate() {
            let d = pattern(round, 8192);
            assert!(io.write(i as u64 * 64, &d).status.is_ok());
            assert!(io.read(i as u64 * 64, 8192).data == d);
        }
        if round % 3 == 0 {
            drop(admin);
        }
    }
    w.settled(0);
}
