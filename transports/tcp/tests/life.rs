//! Connections that misbehave as a whole: they say nothing, take nothing, come in thousands, or meet a kernel short of something.

mod host;
mod world;

use host::*;
use longshore_nvmf::TargetError;
use longshore_reactor::{DmaOptions, OpKind, Options, RingOptions};
use longshore_tcp::TcpOptions;
use std::io::{BufRead, Read, Write};
use std::time::{Duration, Instant};
use world::{NQN, Setup, World};

fn short() -> TcpOptions {
    TcpOptions {
        icreq_timeout: Duration::from_millis(150),
        connect_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_secs(1),
        ..TcpOptions::default()
    }
}

/// An admin queue and an I/O queue of 128 entries.
fn queues(w: &World, ic: Ic) -> (Host, Host) {
    let admin = Host::admin(w.addr, ic, NQN);
    let io = Host::io(w.addr, ic, NQN, admin.cntlid, 1, 127, 0);
    (admin, io)
}

#[test]
fn a_connection_without_icreq_or_connect_is_closed_in_time() {
    let w = Setup { tcp: short(), ..Setup::default() }.start();
    let start = Instant::now();
    let mut silent = Host::raw(w.addr);
    let mut trickle = Host::raw(w.addr);
    trickle.send(&Ic::default().bytes()[..60]);
    assert!(silent.closed());
    assert!(trickle.closed());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(140), "closed after {took:?}");

    let start = Instant::now();
    let mut h = Host::initialised(w.addr, Ic::default());
    // Half of a Connect.
    let sqe = h.connect_sqe(0, 31, 0);
    let b = h.capsule(&sqe, &Host::connect_data(0xffff, NQN, HOSTNQN));
    h.send(&b[..500]);
    assert!(h.closed());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(380), "closed after {took:?}");
}

#[test]
fn a_connection_is_not_closed_for_being_idle_after_connect() {
    let w = Setup { tcp: short(), ..Setup::default() }.start();
    let (_admin, mut io) = queues(&w, Ic::default());
    std::thread::sleep(Duration::from_millis(2500));
    assert!(io.read(0, 4096).status.is_ok());
}

#[test]
fn a_host_that_does_not_send_what_an_r2t_asked_for_is_closed() {
    let w = Setup { tcp: short(), ..Setup::default() }.start();
    let (_admin, mut io) = queues(&w, Ic::default());
    let sqe = io.rw_sqe(1, 0, 16, 8192);
    io.send_cmd(&sqe, &[]);
    assert_eq!(io.pdu().kind, R2T);
    assert!(io.closed());
    let (_admin, mut io) = queues(&w, Ic::default());
    assert!(io.read(0, 4096).status.is_ok());
}

#[test]
fn a_host_that_reads_nothing_is_closed_and_slows_nobody_down() {
    let w = Setup { tcp: short(), ..Setup::default() }.start();
    let (_admin, mut slow) = queues(&w, Ic::default());
    let (_admin2, mut io) = queues(&w, Ic::default());
    let before = w.buffers();
    // 128 reads of 128 KiB: 16 MiB wait for a host that takes none.
    let mut all = Vec::new();
    for _ in 0..128 {
        let sqe = slow.rw_sqe(2, 0, 256, 131072);
        all.extend_from_slice(&slow.capsule(&sqe, &[]));
    }
    slow.send(&all);
    w.settled_at_least(before + 1);
    for _ in 0..200 {
        assert!(io.read(0, 4096).status.is_ok());
    }
    // Its connection is closed, and the buffer that its queue had for itself comes back too.
    w.settled(before - 1);
    let mut got = Vec::new();
    let _ = slow.s.read_to_end(&mut got);
    assert!(got.len() < 128 * 131072, "all of it came");
    assert!(io.read(0, 4096).status.is_ok());
}

#[test]
fn a_host_that_reads_a_byte_at_a_time_gets_every_byte() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::default());
    let data = pattern(5, 8192);
    assert!(io.write(0, &data).status.is_ok());
    let sqe = io.rw_sqe(2, 0, 16, 8192);
    io.send_cmd(&sqe, &[]);
    let want = 24 + 8192 + 24;
    let mut got = Vec::with_capacity(want);
    let mut b = [0u8; 1];
    while got.len() < want {
        io.s.read_exact(&mut b).unwrap();
        got.push(b[0]);
    }
    assert!(got[24..24 + 8192] == data);
}

#[test]
fn icreq_and_connect_in_one_segment_are_answered_in_order() {
    let w = World::new();
    let mut h = Host::raw(w.addr);
    let sqe = h.connect_sqe(0, 31, 0);
    let mut all = Ic::default().bytes().to_vec();
    all.extend_from_slice(&h.capsule(&sqe, &Host::connect_data(0xffff, NQN, HOSTNQN)));
    h.send(&all);
    assert_eq!(h.pdu().kind, ICRESP);
    assert!(h.finish(sqe.cid.get(), &[]).status.is_ok());
}

#[test]
fn a_first_command_that_is_not_connect_is_refused() {
    let w = World::new();
    let mut h = Host::initialised(w.addr, Ic::default());
    assert!(h.property_get(0, true).status.is_err());
}

#[test]
fn a_connection_whose_connect_was_refused_is_closed_in_time() {
    let w = Setup { tcp: short(), ..Setup::default() }.start();
    let mut h = Host::initialised(w.addr, Ic::default());
    assert!(h.connect(0, 31, 0xffff, 0, "nqn.2016-06.io.longshore:nobody", HOSTNQN).status.is_err());
    assert!(h.closed());
}

#[test]
fn a_listener_that_is_removed_takes_its_connections_along() {
    let w = World::new();
    let second = world::free_port("127.0.0.1");
    w.listen(second).unwrap();
    let mut kept = Host::admin(w.addr, Ic::default(), NQN);
    let mut gone = Host::admin(second, Ic::default(), NQN);
    let mut greeted = Host::initialised(second, Ic::default());
    w.unlisten(second).unwrap();
    assert!(gone.closed());
    assert!(greeted.closed());
    assert!(std::net::TcpStream::connect(second).is_err());
    assert!(kept.property_get(0x1c, false).status.is_ok());
    w.listen(second).unwrap();
    assert!(Host::admin(second, Ic::default(), NQN).property_get(0x1c, false).status.is_ok());
}

#[test]
fn ipv6_and_one_port_on_several_addresses() {
    let w = World::new();
    let v6 = world::free_port("::1");
    w.listen(v6).unwrap();
    let second = std::net::SocketAddr::new("127.0.0.2".parse().unwrap(), w.addr.port());
    w.listen(second).unwrap();
    for at in [w.addr, v6, second] {
        let mut admin = Host::admin(at, Ic::default(), NQN);
        assert!(admin.property_get(0x1c, false).status.is_ok(), "{at}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let e = w.listen(taken.local_addr().unwrap()).unwrap_err();
    assert!(matches!(e, TargetError::ListenFailed { errno: libc::EADDRINUSE, .. }), "{e}");
}

/// Runs in a process of its own: see the next test.
#[test]
#[ignore = "the generator of the half-open test"]
fn half_open_generator() {
    let addr: std::net::SocketAddr = std::env::var("HALF_OPEN_ADDR").unwrap().parse().unwrap();
    let n: usize = std::env::var("HALF_OPEN_COUNT").unwrap().parse().unwrap();
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: hard, maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut all = Vec::new();
    for i in 0..n {
        let mut s = std::net::TcpStream::connect(addr).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        if i % 2 == 1 {
            s.write_all(&Ic::default().bytes()).unwrap();
        }
        all.push(s);
    }
    println!("open");
    let mut closed = 0;
    for mut s in all {
        let mut b = [0; 256];
        loop {
            match s.read(&mut b) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(e) => panic!("not closed: {e}"),
            }
        }
        closed += 1;
    }
    println!("closed {closed}");
}

#[test]
fn ten_thousand_half_open_connections_keep_nobody_out() {
    const N: usize = 10_000;
    let tcp = TcpOptions {
        icreq_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(4),
        ..TcpOptions::default()
    };
    let w = Setup { tcp, ..Setup::default() }.start();
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(hard > N as u64 + 500, "the hard limit of open files, {hard}, is too low for this test");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "half_open_generator", "--ignored", "--nocapture", "--test-threads", "1"])
        .env("HALF_OPEN_ADDR", w.addr.to_string())
        .env("HALF_OPEN_COUNT", N.to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|l| l.ends_with("open")), "the generator opened its connections");
    let (_admin, mut io) = queues(&w, Ic::default());
    for i in 0..100 {
        assert!(io.read(i, 4096).status.is_ok());
    }
    assert!(lines.any(|l| l == format!("closed {N}")), "every half-open connection was closed");
    assert!(child.wait().unwrap().success());
    assert!(io.read(0, 4096).status.is_ok());
}

/// Writes and reads back over several connections at once.
fn verify(w: &World, seed: u64) {
    let (_admin, first) = queues(w, Ic::digests());
    let second = Host::io(w.addr, Ic::default(), NQN, first.cntlid, 2, 31, NO_FLOW_CONTROL);
    let threads: Vec<_> = [first, second]
        .into_iter()
        .enumerate()
        .map(|(k, mut io)| {
            std::thread::spawn(move || {
                for i in 0..60u64 {
                    let len = [512, 4096, 16384, 131072][(i % 4) as usize];
                    let at = k as u64 * 20_000 + i * 256;
                    let data = pattern(seed + i, len);
                    assert!(io.write(at, &data).status.is_ok());
                    assert!(io.read(at, len).data == data, "round {i} of connection {k}");
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
}

#[test]
fn nothing_is_lost_when_receive_buffers_run_out() {
    let w = World::new();
    for c in w.cores() {
        c.call(|r| {
            let mut n = 0u32;
            r.inject(Some(Box::new(move |k| {
                n = n.wrapping_add(1);
                (k == OpKind::Recv && n.is_multiple_of(3)).then_some(-libc::ENOBUFS)
            })));
        })
        .wait()
        .unwrap();
    }
    verify(&w, 100);
}

#[test]
fn nothing_is_lost_when_the_submission_queue_is_full() {
    let w = World::new();
    for c in w.cores() {
        c.call(|r| r.inject_sq_full(3)).wait().unwrap();
    }
    verify(&w, 200);
    let full: u64 = w.cores().iter().map(|c| c.stats().sq_full).sum();
    assert!(full > 0, "it never was full");
}

#[test]
fn nothing_is_lost_when_the_completion_queue_overflows() {
    let ring = RingOptions { sq_entries: 4, cq_entries: 8, ..RingOptions::default() };
    let runtime = Options { cores: vec![0, 1], pin: false, ring, ..Options::default() };
    let w = Setup { runtime, ..Setup::default() }.start();
    verify(&w, 300);
}

#[test]
fn damaged_streams_harm_nobody_else() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::default());
    let data = pattern(8, 4096);
    assert!(io.write(1000, &data).status.is_ok());
    let mut rng = 12345u64;
    let mut random = move |n: usize| {
        rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (rng >> 33) as usize % n
    };
    for round in 0..200 {
        let mut h = Host::raw(w.addr);
        let mut all = Ic::default().bytes().to_vec();
        let sqe = h.connect_sqe(0, 31, 0);
        all.extend_from_slice(&h.capsule(&sqe, &Host::connect_data(0xffff, NQN, HOSTNQN)));
        for i in 0..4 {
            let mut sqe = h.rw_sqe(if i % 2 == 0 { 0x06 } else { 0x02 }, 0, 8, 4096);
            sqe.cdw10 = 1.into();
            all.extend_from_slice(&h.capsule(&sqe, &[]));
            all.extend_from_slice(&h.h2c_data(sqe.cid.get(), i, 0, &data[..512], true));
        }
        let from = if round % 4 == 0 { 0 } else { 128 };
        for _ in 0..1 + random(3) {
            let at = from + random(all.len() - from);
            all[at] ^= 1 << random(8);
        }
        all.truncate(from + 1 + random(all.len() - from));
        // The target may close before all of it is sent.
        let _ = h.s.write_all(&all);
        let _ = h.s.shutdown(std::net::Shutdown::Write);
        let mut sink = Vec::new();
        let _ = h.s.read_to_end(&mut sink);
    }
    assert!(io.read(1000, 4096).data == data);
    assert!(Host::admin(w.addr, Ic::default(), NQN).property_get(0x1c, false).status.is_ok());
}

#[test]
fn writes_and_reads_wait_for_buffers_and_none_is_lost() {
    let dma = DmaOptions { max_bytes: 6 << 20, ..DmaOptions::default() };
    let runtime = Options { cores: vec![0], pin: false, dma, ..Options::default() };
    let w = Setup { runtime, ..Setup::default() }.start();
    let (_admin, mut io) = queues(&w, Ic::default());
    let (_admin2, mut other) = queues(&w, Ic::default());
    const N: usize = 100;
    let data: Vec<Vec<u8>> = (0..N).map(|i| pattern(i as u64, if i % 3 == 0 { 8192 } else { 131_072 })).collect();
    let mut all = Vec::new();
    let mut first = None;
    for (i, d) in data.iter().enumerate() {
        let sqe = io.rw_sqe(1, i as u64 * 256, (d.len() / 512) as u32, d.len() as u32);
        first.get_or_insert(sqe.cid.get());
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    let first = first.unwrap();
    io.send(&all);
    // Meanwhile all memory is promised; what the other host's queue has for itself keeps it going.
    for i in 0..20 {
        let d = pattern(1000 + i, 4096);
        assert!(other.write(60_000, &d).status.is_ok());
        assert!(other.read(60_000, 4096).data == d);
        assert!(other.write_in_capsule(61_000, &d).status.is_ok());
        assert!(other.read(61_000, 4096).data == d);
    }
    let mut ended = 0;
    while ended < N {
        let p = io.pdu();
        match p.kind {
            R2T => {
                let (cid, ttag) = (p.u16(8), p.u16(10));
                let d = &data[usize::from(cid - first)];
                // In pieces small enough to be copied, and others large enough to be received directly.
                let step = if cid % 2 == 0 { 4096 } else { 32768 };
                let mut out = Vec::new();
                for (k, part) in d.chunks(step).enumerate() {
                    let last = (k + 1) * step >= d.len();
                    out.extend_from_slice(&io.h2c_data(cid, ttag, (k * step) as u32, part, last));
                }
                io.send(&out);
            }
            _ => {
                assert!(p.cqe().status().is_ok());
                ended += 1;
            }
        }
    }
    let waits: u64 = w.cores()[0].call(|r| r.dma().stats().classes.iter().map(|c| c.waits).sum()).wait().unwrap();
    assert!(waits > 0, "nothing had to wait");
    for (i, d) in data.iter().enumerate() {
        assert!(io.read(i as u64 * 256, d.len()).data == *d, "write {i}");
    }
}

#[test]
fn commands_that_wait_for_a_buffer_can_be_aborted_and_the_queue_goes_on() {
    let dma = DmaOptions { max_bytes: 4 << 20, ..DmaOptions::default() };
    let runtime = Options { cores: vec![0], pin: false, dma, ..Options::default() };
    let w = Setup { runtime, ..Setup::default() }.start();
    let (mut admin, mut io) = queues(&w, Ic::default());
    // R2Ts that are not answered use the memory up.
    let mut all = Vec::new();
    let mut cids = Vec::new();
    for i in 0..40u64 {
        let sqe = io.rw_sqe(1, i * 256, 256, 131_072);
        cids.push(sqe.cid.get());
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    // Then a read, and a write whose data is in its capsule.
    let read = io.rw_sqe(2, 0, 256, 131_072);
    all.extend_from_slice(&io.capsule(&read, &[]));
    let data = pattern(6, 4096);
    let mut write = io.rw_sqe(1, 20_000, 8, 0);
    write.dptr = longshore_nvme::wire::SglDescriptor::in_capsule(0, 4096);
    all.extend_from_slice(&io.capsule(&write, &data));
    io.send(&all);
    let mut asked = Vec::new();
    let first = io.pdu();
    assert_eq!(first.kind, R2T);
    asked.push(first);
    for cid in cids.iter().copied().chain([read.cid.get(), write.cid.get()]) {
        let mut sqe = longshore_nvme::wire::Sqe::new(0x08, admin.cid(), 0);
        sqe.cdw10 = (1 | u32::from(cid) << 16).into();
        admin.send_cmd(&sqe, &[]);
        assert!(admin.finish(sqe.cid.get(), &[]).status.is_ok());
    }
    // Every command ends: aborted, or with its data.
    let big = pattern(7, 131_072);
    let (mut ended, mut aborted) = (0, 0);
    let answer = |io: &mut Host, p: &Pdu| io.answer_r2t(p, &big);
    for p in &asked {
        answer(&mut io, p);
    }
    while ended < cids.len() + 2 {
        let p = io.pdu();
        match p.kind {
            R2T => answer(&mut io, &p),
            RESP => {
                ended += 1;
                aborted += usize::from(p.cqe().status().is_err());
            }
            _ => {}
        }
    }
    assert!(aborted > 0, "nothing was waiting");
    assert!(io.write(30_000, &data).status.is_ok());
    assert!(io.read(30_000, 4096).data == data);
}
