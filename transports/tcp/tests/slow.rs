//! Hosts behind a slow link: they take all that is sent to them, but not soon.

mod host;
mod world;

use std::io::Write;
use std::time::{Duration, Instant};

use host::*;
use longshore_nvme::wire::Sqe;
use longshore_reactor::{DmaOptions, Options};
use longshore_tcp::TcpOptions;
use world::{NQN, Setup, World, block_on};

/// Bytes of the largest command.
const LARGEST: usize = 128 << 10;
/// What the slow link takes for so many.
const PACE: Duration = Duration::from_millis(100);

/// One core, and little room in its kernel's queues: what a host does not take waits in the target.
fn narrow(stall_timeout: Duration) -> World {
    let dma = DmaOptions { max_bytes: 64 << 20, ..DmaOptions::default() };
    Setup {
        runtime: Options { cores: vec![0], pin: false, dma, ..Options::default() },
        tcp: TcpOptions { stall_timeout, send_buffer: 64 << 10, ..TcpOptions::default() },
        ..Setup::default()
    }
    .start()
}

/// Little room on the host's side, too.
fn io(w: &World, admin: &Host, qid: u16) -> Host {
    let h = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, qid, 127, 0);
    rustix::net::sockopt::set_socket_recv_buffer_size(&h.s, 16 << 10).unwrap();
    h
}

/// The capsules of `n` reads of the largest size.
fn reads(h: &mut Host, n: u64) -> Vec<u8> {
    let one = |i: u64| {
        let sqe = h.rw_sqe(2, i * 256, 256, LARGEST as u32);
        h.capsule(&sqe, &[])
    };
    (0..n).flat_map(one).collect()
}

/// What a device lends is to be copied when the host does not take it soon, and there is no memory for that.
#[test]
fn a_connection_without_memory_for_copies_ends_if_its_host_takes_nothing_and_not_if_it_is_only_slow() {
    const READS: u64 = 40;
    let w = narrow(Duration::from_secs(30));
    block_on(w.target.set_config(|c| c.host_share = 1)).unwrap();
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let (mut slow, mut stuck) = (io(&w, &admin, 1), io(&w, &admin, 2));
    for h in [&mut slow, &mut stuck] {
        let all = reads(h, READS);
        h.send(&all);
    }
    w.wait("the host has no room for copies", |w| {
        let s = &block_on(w.target.stats())[0].hosts[0];
        s.buffer_bytes > 0 && s.buffer_bytes + LARGEST as u64 > s.max_buffer_bytes
    });
    let (mut data, mut answers) = (0, 0);
    while data < READS || answers < READS {
        let p = slow.pdu();
        if p.kind == C2H_DATA {
            data += 1;
            std::thread::sleep(PACE);
        } else {
            assert!(p.cqe().status().is_ok());
            answers += 1;
        }
    }
    w.wait("who takes nothing is gone", |w| block_on(w.target.qpairs(NQN)).unwrap().len() == 2);
    assert!(slow.read(0, LARGEST).status.is_ok());
}

/// Somebody may wait to write to what is lent. A host has as long to take all of it as it may take nothing at all where nothing is lent.
#[test]
fn a_host_too_slow_for_what_it_was_lent_is_closed_where_there_is_no_memory_for_copies() {
    const READS: u64 = 100;
    let limit = Duration::from_secs(3);
    let w = narrow(limit);
    block_on(w.target.set_config(|c| c.host_share = 1)).unwrap();
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut slow = io(&w, &admin, 1);
    let (start, all) = (Instant::now(), reads(&mut slow, READS));
    slow.send(&all);
    let mut data = 0;
    while let Ok(p) = slow.try_pdu() {
        if p.kind == C2H_DATA {
            data += 1;
            assert!(data < READS, "it was served in {:?}", start.elapsed());
            std::thread::sleep(3 * PACE);
        }
    }
    assert!(data > 2 && start.elapsed() > limit, "closed after {data} reads and {:?}", start.elapsed());
}

/// The R2T of a write comes behind the data of reads: as much as is queued before nothing more is received.
#[test]
fn a_slow_host_has_its_time_for_the_data_of_a_write_from_when_it_has_the_r2t() {
    const READS: u64 = 8;
    let w = narrow(Duration::from_secs(1));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut slow = io(&w, &admin, 1);
    let all = reads(&mut slow, READS);
    slow.send(&all);
    // They were taken in together: the data of all of them is queued.
    assert_eq!(slow.pdu().kind, C2H_DATA);
    let data = pattern(1, 8192);
    let sqe = slow.rw_sqe(1, 60_000, 16, 8192);
    slow.send_cmd(&sqe, &[]);
    let (mut before, mut taken, mut answers) = (0, 1, 0);
    while answers < READS + 1 {
        let p = slow.pdu();
        match p.kind {
            C2H_DATA => {
                taken += 1;
                std::thread::sleep(4 * PACE);
            }
            R2T => {
                before = taken;
                slow.answer_r2t(&p, &data);
            }
            _ => {
                assert!(p.cqe().status().is_ok());
                answers += 1;
            }
        }
    }
    assert_eq!(before, READS, "the R2T overtook what was to delay it");
    assert!(slow.read(60_000, 8192).data == data);
}

/// Sends `n` writes of the largest size and waits for their R2Ts, in the order in which they come.
fn asked(h: &mut Host, n: u64) -> Vec<Pdu> {
    let all: Vec<u8> = (0..n)
        .flat_map(|i| {
            let sqe = h.rw_sqe(1, i * 256, 256, LARGEST as u32);
            h.capsule(&sqe, &[])
        })
        .collect();
    h.send(&all);
    let r2ts: Vec<_> = (0..n).map(|_| h.pdu()).collect();
    assert!(r2ts.iter().all(|p| p.kind == R2T));
    r2ts
}

/// All data is asked for at once: the last of it has long to come, though something always does.
#[test]
fn a_slow_host_has_time_for_each_write_from_the_data_of_those_before_it() {
    const WRITES: u64 = 12;
    let w = narrow(Duration::from_secs(2));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut slow = io(&w, &admin, 1);
    let (start, data) = (Instant::now(), pattern(7, LARGEST));
    for r2t in asked(&mut slow, WRITES) {
        // One PDU each, a part at a time.
        let pdu = slow.h2c_data(r2t.u16(8), r2t.u16(10), 0, &data, true);
        for part in pdu.chunks(LARGEST / 4) {
            slow.send(part);
            std::thread::sleep(PACE);
        }
    }
    assert!(start.elapsed() > Duration::from_secs(4), "it was not slow");
    for _ in 0..WRITES {
        assert!(slow.pdu().cqe().status().is_ok());
    }
    assert!(slow.read((WRITES - 1) * 256, LARGEST).data == data);
}

#[test]
fn a_pdu_that_takes_longer_than_the_time_limit_is_waited_for_as_long_as_more_of_it_comes() {
    let w = narrow(Duration::from_secs(1));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut slow = io(&w, &admin, 1);
    let (r2ts, data) = (asked(&mut slow, 1), pattern(8, LARGEST));
    let pdu = slow.h2c_data(r2ts[0].u16(8), r2ts[0].u16(10), 0, &data, true);
    for part in pdu.chunks(LARGEST / 16) {
        slow.send(part);
        std::thread::sleep(2 * PACE);
    }
    assert!(slow.pdu().cqe().status().is_ok());
    assert!(slow.read(0, LARGEST).data == data);
}

/// Data for a later R2T says nothing of an earlier one.
#[test]
fn a_host_that_never_sends_the_data_of_its_first_write_is_closed_whatever_else_it_sends() {
    let w = narrow(Duration::from_secs(1));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut h = io(&w, &admin, 1);
    let start = Instant::now();
    asked(&mut h, 1);
    let data = pattern(1, 8192);
    loop {
        let sqe = h.rw_sqe(1, 60_000, 16, 8192);
        let capsule = h.capsule(&sqe, &[]);
        let sent = h.s.write_all(&capsule);
        let Ok(r2t) = sent.and_then(|()| h.try_pdu()) else { break };
        let pdu = h.h2c_data(r2t.u16(8), r2t.u16(10), 0, &data, true);
        if h.s.write_all(&pdu).and_then(|()| h.try_pdu()).is_err() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it is still connected");
        std::thread::sleep(PACE);
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
}

/// The data of a write has come, but nothing is received before the host takes what it read.
#[test]
fn time_in_which_nothing_is_received_does_not_count_for_the_data_of_a_write() {
    const READS: u64 = 28;
    let w = narrow(Duration::from_secs(2));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut slow = io(&w, &admin, 1);
    let (r2ts, data) = (asked(&mut slow, 1), pattern(9, LARGEST));
    let all = reads(&mut slow, READS);
    slow.send(&all);
    assert_eq!(slow.pdu().kind, C2H_DATA);
    // With this one it is seen that too much is queued to go on.
    let one = reads(&mut slow, 1);
    slow.send(&one);
    std::thread::sleep(PACE);
    let pdu = slow.h2c_data(r2ts[0].u16(8), r2ts[0].u16(10), 0, &data, true);
    let (mut s, start) = (slow.s.try_clone().unwrap(), Instant::now());
    // There may be no room for it before it is received.
    let sender = std::thread::spawn(move || s.write_all(&pdu));
    let mut answers = 0;
    while answers < READS + 2 {
        let p = slow.pdu();
        match p.kind {
            C2H_DATA => std::thread::sleep(2 * PACE),
            _ => {
                assert!(p.cqe().status().is_ok());
                answers += 1;
            }
        }
    }
    sender.join().unwrap().unwrap();
    assert!(start.elapsed() > Duration::from_secs(4), "it was not slow");
    assert!(slow.read(0, LARGEST).data == data);
}

/// Its last queue is to end when it has taken what is left for it. When its controller ends, nobody waits for that.
#[test]
fn a_host_that_disconnects_and_takes_nothing_can_come_back_at_once() {
    let w = narrow(Duration::from_secs(30));
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut h = io(&w, &admin, 1);
    let ended = || block_on(w.target.stats())[0].completed_nvme_io;
    let before = ended();
    let all = reads(&mut h, 20);
    h.send(&all);
    w.wait("the reads are answered", |_| ended() == before + 20);
    let disconnect = Sqe::new(0x7f, h.cid(), 8);
    h.send_cmd(&disconnect, &[]);
    w.wait("so is the Disconnect", |_| ended() == before + 21);
    drop(admin);
    let start = Instant::now();
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    assert!(start.elapsed() < Duration::from_secs(3), "it was let in after {:?}", start.elapsed());
    assert!(io(&w, &admin, 1).read(0, LARGEST).status.is_ok());
}
