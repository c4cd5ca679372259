//! What one host cannot take from another: buffers and requests of a core.

mod host;
mod world;

use std::time::{Duration, Instant};

use host::{Done, Host, Ic, R2T, RESP, pattern};
use longshore_bdev::{CoreOptions, CoreState};
use longshore_nvme::wire::Status;
use longshore_nvmf::{GroupStats, HostShare};
use longshore_reactor::{CLASSES, DmaOptions, Options};
use world::{NQN, Setup, World, block_on};

const A: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000a";
const B: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000b";
const C: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000c";

/// Bytes of the largest command.
const LARGEST: usize = 128 << 10;

fn one_core(mib: usize) -> Setup {
    let dma = DmaOptions { max_bytes: mib << 20, ..DmaOptions::default() };
    Setup { runtime: Options { cores: vec![0], pin: false, dma, ..Options::default() }, ..Setup::default() }
}

/// An admin queue and `n` I/O queues of a host.
fn host(w: &World, nqn: &str, n: u16) -> (Host, Vec<Host>) {
    let admin = Host::admin_of(w.addr, Ic::default(), NQN, nqn);
    let io = (1..=n).map(|qid| {
        let mut h = Host::initialised(w.addr, Ic::default());
        let done = h.connect(qid, 127, admin.cntlid, 0, NQN, nqn);
        assert!(done.status.is_ok(), "queue {qid}: {}", done.status);
        h
    });
    let io = io.collect();
    (admin, io)
}

/// Sends `n` writes of the largest size; whoever gets an R2T has a buffer.
fn flood(h: &mut Host, n: usize) {
    let mut all = Vec::new();
    for i in 0..n as u64 {
        let sqe = h.rw_sqe(1, i * 256, 256, LARGEST as u32);
        all.extend_from_slice(&h.capsule(&sqe, &[]));
    }
    h.send(&all);
}

fn stats(w: &World) -> GroupStats {
    block_on(w.target.stats()).remove(0)
}

fn share(w: &World, nqn: &str) -> HostShare {
    stats(w).hosts.into_iter().find(|h| h.hostnqn == nqn).expect("the host is connected")
}

fn until(what: &str, f: impl Fn() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until all `n` writes of a flood have a buffer or wait for one.
fn flooded(w: &World, queues: &[Host], n: usize) {
    let waits = || stats(w).traffic.buffer_waits as usize;
    until("the flood did not arrive", || {
        let with_buffer = share(w, A).buffer_bytes as usize / LARGEST + queues.len();
        waits() + with_buffer >= n * queues.len()
    });
}

#[test]
fn a_host_holds_no_more_than_its_share_over_all_of_its_queues_and_leaves_the_rest_to_others() {
    let w = one_core(16).start();
    let (_admin, mut a) = host(&w, A, 6);
    let (_other, mut b) = host(&w, B, 1);
    for q in &mut a {
        flood(q, 100);
    }
    flooded(&w, &a, 100);
    let s = share(&w, A);
    let promised = 9 * LARGEST; // seven I/O queues, two admin queues
    assert_eq!(s.max_buffer_bytes as usize, ((16 << 20) - promised) / 2);
    assert!(s.buffer_bytes <= s.max_buffer_bytes, "{s:?}");
    assert!(s.buffer_bytes as usize + LARGEST > s.max_buffer_bytes as usize, "{s:?} leaves room");
    // Twenty at once: none of them has to wait, because the other half is there.
    let before = stats(&w).traffic.buffer_waits;
    flood(&mut b[0], 20);
    for _ in 0..20 {
        assert_eq!(b[0].pdu().kind, R2T);
    }
    assert_eq!(stats(&w).traffic.buffer_waits, before);
    // A host is one host, over whatever controller it comes: a second one gets what its queue has for itself.
    let (_again, mut more) = host(&w, A, 1);
    flood(&mut more[0], 2);
    assert_eq!(more[0].pdu().kind, R2T);
    until("the second waits", || stats(&w).traffic.buffer_waits == before + 1);
    // Nor is it another one with another host identifier.
    let mut third = Host::initialised(w.addr, Ic::default());
    third.hostid = [7; 16];
    assert!(third.connect(0, 31, 0xffff, 0, NQN, A).status.is_ok());
    assert_eq!(stats(&w).hosts.len(), 2);
    assert_eq!(share(&w, A).hostid, [7; 16], "the last one is shown");
    // All that was held comes back when the connections end.
    drop((a, more, _admin, _again, third));
    until("A is gone", || stats(&w).hosts.iter().all(|h| h.hostnqn == B));
}

/// What each queue pair has for itself is promised when it connects, whether it is used or not.
#[test]
fn a_host_that_does_nothing_but_connect_leaves_others_half_of_what_can_be_promised() {
    // Of 64 buffers 32, one of them for the admin queue; of 112 requests 56, four for each I/O queue.
    let few = CoreOptions { requests: 128, child_reserve: 16 };
    for (mib, requests, most) in [(8, CoreOptions::default(), 31), (64, few, 14)] {
        let mut setup = one_core(mib);
        setup.requests = requests;
        let w = setup.start();
        let (admin, mut a) = host(&w, A, most);
        let connect = |qid: u16| {
            let mut h = Host::initialised(w.addr, Ic::default());
            let done = h.connect(qid, 127, admin.cntlid, 0, NQN, A);
            (h, done.status)
        };
        for refused in 1..=3 {
            let (_, status) = connect(most + 1);
            assert!(status.is(Status::CONNECT_CONTROLLER_BUSY) && !status.dnr(), "{status}");
            assert_eq!(stats(&w).refused_connects, refused);
        }
        // Another host gets what it needs, and has a share of the rest.
        let (_b, mut b) = host(&w, B, 4);
        let shared = (mib << 20) - (usize::from(most) + 1 + 5) * LARGEST;
        assert_eq!(share(&w, B).max_buffer_bytes as usize, shared / 2);
        for q in &mut b {
            assert!(q.write(0, &pattern(1, LARGEST)).status.is_ok());
        }
        assert_eq!(stats(&w).refused_connects, 3);
        // It is no lasting refusal.
        a.pop();
        until("a queue is gone", || stats(&w).current_io_qpairs == usize::from(most) as u32 - 1 + 4);
        let (_again, status) = connect(most);
        assert!(status.is_ok(), "{status}");
    }
}

#[test]
fn a_connected_queue_always_goes_on_and_a_new_one_is_told_to_retry() {
    let mut setup = one_core(8);
    setup.transport.max_aq_depth = 32;
    let w = setup.start();
    let (mut admin, mut quiet) = host(&w, C, 2);
    // Two hosts, each of which may hold half: together everything.
    let (_a, mut a) = host(&w, A, 1);
    let (_b, mut b) = host(&w, B, 1);
    flood(&mut a[0], 100);
    flood(&mut b[0], 100);
    until("they wait", || stats(&w).traffic.buffer_waits > 100);
    // What is left is less than a buffer of the largest size.
    let mut new = Host::initialised(w.addr, Ic::default());
    let connect = |new: &mut Host, cntlid: u16| -> Done { new.connect(3, 127, cntlid, 0, NQN, C) };
    let mut refused = 0;
    let (kept, done) = {
        let mut kept = Vec::new();
        loop {
            let done = connect(&mut new, admin.cntlid);
            if done.status.is_err() || kept.len() > 8 {
                break (kept, done);
            }
            kept.push(std::mem::replace(&mut new, Host::initialised(w.addr, Ic::default())));
            admin = Host::admin_of(w.addr, Ic::default(), NQN, C);
        }
    };
    assert!(done.status.is(Status::CONNECT_CONTROLLER_BUSY) && !done.status.dnr(), "{}", done.status);
    refused += 1;
    assert_eq!(stats(&w).refused_connects, refused);
    // Every kind of command goes on, one at a time.
    for (i, h) in quiet.iter_mut().enumerate() {
        for k in 0..5u64 {
            let (at, data) = (60_000 + 512 * i as u64, pattern(k, LARGEST));
            assert!(h.write(at, &data).status.is_ok());
            assert!(h.read(at, LARGEST).data == data);
            assert!(h.write_in_capsule(at, &data[..4096]).status.is_ok());
        }
    }
    // It is no lasting refusal.
    drop((a, b, _a, _b, kept));
    until("they are gone", || stats(&w).hosts.len() == 1);
    assert!(connect(&mut new, admin.cntlid).status.is_ok());
}

#[test]
fn hosts_that_wait_are_served_in_turn_however_many_commands_each_has() {
    let mut setup = one_core(6);
    setup.transport.max_aq_depth = 32;
    let w = setup.start();
    block_on(w.target.set_config(|c| c.host_share = 100)).unwrap();
    let (_a, mut a) = host(&w, A, 2);
    let (_b, mut b) = host(&w, B, 1);
    a.iter_mut().for_each(|q| flood(q, 100));
    until("A has everything", || stats(&w).traffic.buffer_waits > 100);
    flood(&mut b[0], 10);
    assert_eq!(b[0].pdu().kind, R2T, "its own buffer");
    until("B waits", || {
        block_on(w.target.qpairs(NQN)).unwrap().iter().any(|q| q.hostnqn == B && q.traffic.buffer_waits == 9)
    });
    // A gives one buffer after the other back: B has to get at least every second one.
    let data = pattern(1, LARGEST);
    for _ in 0..20 {
        let r2t = loop {
            let p = a[0].pdu();
            if p.kind == R2T {
                break p;
            }
        };
        a[0].answer_r2t(&r2t, &data);
    }
    b[0].s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for i in 0..9 {
        assert_eq!(b[0].pdu().kind, R2T, "B's command {i}");
    }
}

#[test]
fn requests_are_shared_like_buffers_and_waits_are_counted_by_queue() {
    let mut setup = one_core(64);
    setup.delay = Some(Duration::from_millis(30));
    setup.requests = CoreOptions { requests: 128, child_reserve: 16 };
    let w = setup.start();
    let (_a, mut a) = host(&w, A, 2);
    let (_b, mut b) = host(&w, B, 1);
    let reads = |h: &mut Host, n: u64| {
        let mut all = Vec::new();
        for i in 0..n {
            let sqe = h.rw_sqe(2, i * 8, 8, 4096);
            all.extend_from_slice(&h.capsule(&sqe, &[]));
        }
        h.send(&all);
    };
    let drain = |h: &mut Host, n: u64| {
        let mut ended = 0;
        while ended < n {
            let p = h.pdu();
            ended += u64::from(p.kind == RESP || p.flags & host::F_SUCCESS != 0);
            assert!(p.kind != RESP || p.cqe().status().is_ok());
        }
    };
    a.iter_mut().for_each(|q| reads(q, 100));
    until("A waits for requests", || stats(&w).traffic.request_waits > 0);
    reads(&mut b[0], 20);
    a.iter_mut().for_each(|q| drain(q, 100));
    drain(&mut b[0], 20);
    let pool = w.cores()[0].call(|_| CoreState::current().pool_stats()).wait().unwrap();
    // Three I/O queues have four each; one host may have half of the rest.
    let shared = 128 - 16 - 3 * 4;
    assert_eq!(share(&w, A).max_requests, shared / 2);
    assert!(pool.peak <= 3 * 4 + shared && pool.in_use == 0, "{pool:?}");
    for q in block_on(w.target.qpairs(NQN)).unwrap().iter().filter(|q| q.qid != 0) {
        let (t, n) = (q.traffic, if q.hostnqn == A { 100 } else { 20 });
        assert_eq!((t.reads, t.read_bytes, t.writes), (n, n * 4096, 0), "{q:?}");
        assert_eq!(t.request_waits > 0, q.hostnqn == A, "{q:?}");
    }
    let all = stats(&w);
    assert_eq!((all.traffic.reads, all.hosts.iter().map(|h| h.requests).sum::<u32>()), (220, 0));
    // The counters of queues that are gone stay in the core's.
    drop((a, b));
    until("they are gone", || stats(&w).current_io_qpairs == 0);
    assert_eq!(stats(&w).traffic.reads, 220);
}

#[test]
fn a_queue_goes_on_with_requests_of_its_own_whatever_other_queues_of_its_host_wait_for() {
    let mut setup = one_core(64);
    setup.delay = Some(Duration::from_secs(5));
    setup.requests = CoreOptions { requests: 64, child_reserve: 16 };
    let w = setup.start();
    block_on(w.target.set_config(|c| c.host_share = 100)).unwrap();
    w.add_namespace("Null0");
    let (_a, mut a) = host(&w, A, 2);
    let reads = |h: &mut Host, nsid: u32, n: u64| {
        let mut all = Vec::new();
        for i in 0..n {
            let mut sqe = h.rw_sqe(2, i * 8, 8, 4096);
            sqe.nsid = nsid.into();
            all.extend_from_slice(&h.capsule(&sqe, &[]));
        }
        h.send(&all);
    };
    let start = Instant::now();
    reads(&mut a[0], 1, 100);
    until("the first queue has all requests", || stats(&w).traffic.request_waits > 40);
    for _ in 0..5 {
        reads(&mut a[1], 2, 20);
        let mut ended = 0;
        while ended < 20 {
            let p = a[1].pdu();
            ended += u64::from(p.kind == RESP || p.flags & host::F_SUCCESS != 0);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(4), "it waited for the other queue's device");
}

/// Reads of memory that the device lends are not counted while they move; what has to be copied for a host that takes nothing is.
#[test]
fn what_is_copied_for_a_host_that_takes_nothing_is_at_its_expense() {
    let w = one_core(16).start();
    let (_a, mut a) = host(&w, A, 6);
    let (_b, mut b) = host(&w, B, 1);
    for q in &mut a {
        let mut all = Vec::new();
        for i in 0..100 {
            let sqe = q.rw_sqe(2, i * 256, 256, LARGEST as u32);
            all.extend_from_slice(&q.capsule(&sqe, &[]));
        }
        q.send(&all);
    }
    until("copies are made", || share(&w, A).buffer_bytes > 0);
    for _ in 0..30 {
        let s = share(&w, A);
        assert!(s.buffer_bytes <= s.max_buffer_bytes, "{s:?}");
        assert!(b[0].write(100_000, &pattern(3, LARGEST)).status.is_ok());
        assert!(b[0].read(100_000, LARGEST).data == pattern(3, LARGEST));
    }
}

/// Those that cannot be copied come first, and are more than is copied at a time.
#[test]
fn lent_memory_that_its_host_has_no_room_for_does_not_keep_that_of_others_from_being_copied() {
    let w = one_core(64).start();
    block_on(w.target.set_config(|c| c.host_share = 1)).unwrap();
    let (_a, mut a) = host(&w, A, 8);
    let (_b, mut b) = host(&w, B, 1);
    let stall = |q: &mut Host| {
        let all: Vec<u8> = (0..100u64)
            .flat_map(|i| {
                let sqe = q.rw_sqe(2, i * 256, 256, LARGEST as u32);
                q.capsule(&sqe, &[])
            })
            .collect();
        q.send(&all);
    };
    a.iter_mut().for_each(stall);
    until("the first host has no room", || share(&w, A).buffer_bytes > 0);
    stall(&mut b[0]);
    until("copies are made for the second host", || share(&w, B).buffer_bytes > 0);
    let left = block_on(w.target.qpairs(NQN)).unwrap();
    assert_eq!(left.len(), 2 + 8 + 1, "it had to wait until connections of the first one ended");
}

/// Connections that nobody has vouched for, with as many Connects as they like and no data for them.
#[test]
fn strangers_keep_nobody_from_connecting() {
    let w = one_core(16).start();
    let mut strangers: Vec<_> = (0..300).map(|_| Host::initialised(w.addr, Ic::default())).collect();
    for h in &mut strangers {
        let all: Vec<u8> = (0..3)
            .flat_map(|_| {
                let mut sqe = h.connect_sqe(1, 127, 0);
                sqe.dptr = longshore_nvme::wire::SglDescriptor::transport(4096);
                h.capsule(&sqe, &[])
            })
            .collect();
        h.send(&all);
    }
    // The first of each asks for its data or waits, the others are refused.
    for h in strangers.iter_mut().take(100) {
        let kinds = [h.pdu().kind, h.pdu().kind];
        assert!(kinds.contains(&RESP), "{kinds:?}");
    }
    let (_a, mut a) = host(&w, A, 2);
    assert!(a[0].write(0, &pattern(1, LARGEST)).status.is_ok());
    let mut long = Host::initialised(w.addr, Ic::default());
    let mut sqe = long.connect_sqe(1, 127, 0);
    sqe.dptr = longshore_nvme::wire::SglDescriptor::transport(8192);
    long.send_cmd(&sqe, &[]);
    assert!(long.finish(sqe.cid.get(), &[]).status.is(Status::DATA_SGL_LENGTH_INVALID));
}

/// Buffers that strangers share are all asked for, and the data for them does not come.
#[test]
fn strangers_who_send_no_data_or_half_of_it_delay_nobody() {
    let mut setup = one_core(16);
    setup.tcp.connect_timeout = Duration::from_secs(60);
    let w = setup.start();
    let mut by_r2t: Vec<_> = (0..300).map(|_| Host::initialised(w.addr, Ic::default())).collect();
    for h in &mut by_r2t {
        let mut sqe = h.connect_sqe(1, 127, 0);
        sqe.dptr = longshore_nvme::wire::SglDescriptor::transport(4096);
        h.send_cmd(&sqe, &[]);
    }
    assert!(by_r2t[..3].iter_mut().all(|h| h.pdu().kind == R2T));
    // Refused, and then half of another Connect.
    let mut half = Host::initialised(w.addr, Ic::default());
    assert!(half.connect(0, 31, 0xffff, 0, "nqn.2016-06.io.longshore:none", A).status.is_err());
    let sqe = half.connect_sqe(0, 31, 0);
    let capsule = half.capsule(&sqe, &Host::connect_data(0xffff, NQN, A));
    half.send(&capsule[..capsule.len() - 500]);
    let start = Instant::now();
    let (_b, mut b) = host(&w, B, 2);
    assert!(b[0].write(0, &pattern(1, LARGEST)).status.is_ok());
    assert!(start.elapsed() < Duration::from_secs(2), "after {:?}", start.elapsed());
    // The rest of it may still come.
    half.send(&capsule[capsule.len() - 500..]);
    assert!(half.finish(sqe.cid.get(), &[]).status.is_ok());
    for h in &mut by_r2t[..3] {
        assert!(h.closed(), "a stranger whose data does not come stays");
    }
    assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
}

#[test]
fn a_share_that_is_no_percentage_is_refused() {
    let w = World::new();
    for bad in [0, 101] {
        let e = block_on(w.target.set_config(|c| c.host_share = bad)).unwrap_err();
        assert!(e.to_string().contains(&bad.to_string()), "{e}");
    }
    assert!(CLASSES.contains(&LARGEST));
}
