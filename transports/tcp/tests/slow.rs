//! Hosts behind a slow link: they take all that is sent to them, but not soon.

mod host;
mod world;

use std::time::{Duration, Instant};

use host::*;
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
