//! The wire, against a scripted host with a codec of its own.

mod host;
mod world;

use host::*;
use longshore_nvme::wire::{SglDescriptor, Status};
use longshore_nvmf::{TrType, TransportOptions};
use world::{NQN, Setup, World};

/// An admin queue and an I/O queue of 32 entries.
fn queues(w: &World, ic: Ic, cattr: u8) -> (Host, Host) {
    let admin = Host::admin(w.addr, ic, NQN);
    let io = Host::io(w.addr, ic, NQN, admin.cntlid, 1, 31, cattr);
    (admin, io)
}

#[test]
fn data_written_by_every_way_is_read_back() {
    let w = World::new();
    for (n, ic) in [
        Ic::default(),
        Ic::digests(),
        Ic { hdgst: true, hpda: 31, maxr2t: 3, ..Ic::default() },
        Ic { ddgst: true, hpda: 7, ..Ic::default() },
    ]
    .into_iter()
    .enumerate()
    {
        let (_admin, mut io) = queues(&w, ic, if n % 2 == 0 { NO_FLOW_CONTROL } else { 0 });
        for (i, len) in [512, 4096, 8192, 8704, 65536, 131072].into_iter().enumerate() {
            let data = pattern((n * 10 + i) as u64, len);
            let at = (n * 2000 + i * 300) as u64;
            assert!(io.write(at, &data).status.is_ok(), "write of {len}");
            let done = io.read(at, len);
            assert!(done.status.is_ok());
            assert!(done.data == data, "{len} bytes with {ic:?} came back different");
            assert_eq!(done.implied, n % 2 == 0, "SUCCESS flag exactly where flow control is off");
        }
        for len in [512, 4096] {
            let data = pattern(77 + len as u64, len);
            assert!(io.write_in_capsule(40, &data).status.is_ok());
            assert!(io.read(40, len).data == data);
        }
    }
}

#[test]
fn large_in_capsule_data_and_no_success_flag_as_configured() {
    let mut transport = TransportOptions::new(TrType::Tcp);
    transport.in_capsule_data_size = 65536;
    transport.c2h_success = false;
    let w = Setup { transport, ..Setup::default() }.start();
    for ic in [Ic::default(), Ic::digests()] {
        let (_admin, mut io) = queues(&w, ic, NO_FLOW_CONTROL);
        for len in [512, 4096, 16384, 65536] {
            let data = pattern(len as u64, len);
            assert!(io.write_in_capsule(64, &data).status.is_ok());
            let done = io.read(64, len);
            assert!(done.data == data, "{len} bytes in the capsule came back different");
            assert!(!done.implied, "the SUCCESS flag was not permitted");
        }
    }
    // More than the queue takes: fatal, the data cannot be skipped.
    let (_admin, mut io) = queues(&w, Ic::default(), 0);
    let mut sqe = io.rw_sqe(1, 0, 256, 0);
    sqe.dptr = SglDescriptor::in_capsule(0, 131_072);
    let b = io.capsule(&sqe, &vec![0; 131_072]);
    io.send(&b[..72]);
    assert_eq!(io.pdu().kind, C2H_TERM);
    assert!(io.closed());
}

#[test]
fn a_pdu_of_wrong_length_ends_the_connection_naming_the_field() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::default(), 0);
    let sqe = io.rw_sqe(2, 0, 8, 4096);
    let mut b = io.capsule(&sqe, &[]);
    b[4..8].copy_from_slice(&71u32.to_le_bytes());
    io.send(&b);
    assert_eq!(io.pdu().fatal(), (1, 4), "invalid header field: PLEN");
    assert!(io.closed());

    let mut h = Host::raw(w.addr);
    let mut b = Ic::default().bytes();
    b[2] = 127;
    h.send(&b);
    assert_eq!(h.pdu().fatal(), (1, 2), "invalid header field: HLEN");
    assert!(h.closed());
}

#[test]
fn a_header_digest_error_ends_the_connection() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::digests(), 0);
    let sqe = io.rw_sqe(2, 0, 8, 4096);
    let mut b = io.capsule(&sqe, &[]);
    b[40] ^= 1;
    io.send(&b);
    let p = io.pdu();
    assert_eq!(p.fatal().0, 3, "header digest error");
    assert_eq!(p.data[..], b[..72], "the header in error comes back");
    assert!(io.closed());
}

#[test]
fn a_data_digest_error_fails_that_command_only() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::digests(), 0);
    let good = pattern(1, 4096);
    assert!(io.write(0, &good).status.is_ok());

    // In the capsule.
    let mut sqe = io.rw_sqe(1, 0, 8, 0);
    sqe.dptr = SglDescriptor::in_capsule(0, 4096);
    let mut b = io.capsule(&sqe, &pattern(2, 4096));
    *b.last_mut().unwrap() ^= 1;
    io.send(&b);
    assert!(io.finish(sqe.cid.get(), &[]).status.is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert!(io.read(0, 4096).data == good, "damaged data was written");

    // In H2CData, large enough to be received directly; the damage is in the data.
    let sqe = io.rw_sqe(1, 0, 128, 65536);
    io.send_cmd(&sqe, &[]);
    let r2t = io.pdu();
    let data = pattern(3, 65536);
    let mut b = io.h2c_data(sqe.cid.get(), r2t.u16(10), 0, &data, true);
    b[1000] ^= 0x80;
    io.send(&b);
    assert!(io.finish(sqe.cid.get(), &[]).status.is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert!(io.read(0, 4096).data == good, "damaged data was written");

    // Bad in the first of two H2CData: the command fails once the second is here.
    let sqe = io.rw_sqe(1, 0, 16, 8192);
    io.send_cmd(&sqe, &[]);
    let r2t = io.pdu();
    let mut b = io.h2c_data(sqe.cid.get(), r2t.u16(10), 0, &data[..4096], false);
    *b.last_mut().unwrap() ^= 1;
    io.send(&b);
    let b = io.h2c_data(sqe.cid.get(), r2t.u16(10), 4096, &data[4096..8192], true);
    io.send(&b);
    assert!(io.finish(sqe.cid.get(), &[]).status.is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert!(io.read(0, 4096).data == good, "damaged data was written");
    assert!(io.write(0, &data).status.is_ok(), "the connection lives");
}

/// A write of 8 KiB whose R2T came: (host, CID, TTAG).
fn asked(w: &World) -> (Host, Host, u16, u16) {
    let (admin, mut io) = queues(w, Ic::default(), 0);
    let sqe = io.rw_sqe(1, 0, 16, 8192);
    io.send_cmd(&sqe, &[]);
    let r2t = io.pdu();
    assert_eq!((r2t.kind, r2t.u32(12), r2t.u32(16)), (R2T, 0, 8192));
    (admin, io, sqe.cid.get(), r2t.u16(10))
}

#[test]
fn h2c_data_out_of_range_ends_the_connection() {
    let w = World::new();
    for (off, len) in [(4096, 8192), (8192, 512), (0, 12288), (0xffff_f000, 4096)] {
        let (_admin, mut io, cid, ttag) = asked(&w);
        let b = io.h2c_data(cid, ttag, off, &vec![0; len], true);
        io.send(&b);
        let (fes, _) = io.pdu().fatal();
        assert!(fes == 4 || off == 0xffff_f000, "data transfer out of range, not {fes}");
        assert!(io.closed());
    }
    // The same bytes twice.
    let (_admin, mut io, cid, ttag) = asked(&w);
    for _ in 0..2 {
        let b = io.h2c_data(cid, ttag, 0, &[0; 4096], false);
        io.send(&b);
    }
    assert_eq!(io.pdu().fatal().0, 4);
    assert!(io.closed());
    // A hole.
    let (_admin, mut io, cid, ttag) = asked(&w);
    let b = io.h2c_data(cid, ttag, 4096, &[0; 4096], true);
    io.send(&b);
    assert_eq!(io.pdu().fatal().0, 2, "sequence error");
    assert!(io.closed());
}

#[test]
fn h2c_data_with_a_wrong_tag_ends_the_connection() {
    let w = World::new();
    let (_admin, mut io, cid, ttag) = asked(&w);
    let b = io.h2c_data(cid, ttag ^ 1, 0, &[0; 8192], true);
    io.send(&b);
    assert_eq!(io.pdu().fatal(), (1, 10), "invalid header field: TTAG");
    assert!(io.closed());

    let (_admin, mut io, cid, ttag) = asked(&w);
    let b = io.h2c_data(cid ^ 1, ttag, 0, &[0; 8192], true);
    io.send(&b);
    assert_eq!(io.pdu().fatal(), (1, 8), "invalid header field: CCCID");
    assert!(io.closed());

    // A tag that is used up.
    let (_admin, mut io, cid, ttag) = asked(&w);
    let b = io.h2c_data(cid, ttag, 0, &[0; 8192], true);
    io.send(&b);
    assert!(io.finish(cid, &[]).status.is_ok());
    io.send(&b);
    assert_eq!(io.pdu().fatal(), (1, 10));
    assert!(io.closed());
}

#[test]
fn an_h2c_data_pdu_above_maxh2cdata_ends_the_connection() {
    let w = World::new();
    let (_admin, mut io, cid, ttag) = asked(&w);
    let len = io.maxh2cdata as usize + 4;
    let b = io.h2c_data(cid, ttag, 0, &vec![0; len], true);
    io.send(&b[..24]);
    assert_eq!(io.pdu().fatal().0, 5, "limit exceeded");
    assert!(io.closed());
}

#[test]
fn more_commands_than_the_queue_holds_are_served_in_order() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::default(), 0);
    let n = 500u64;
    let mut all = Vec::new();
    let mut cids = Vec::new();
    for i in 0..n {
        let sqe = io.rw_sqe(2, i, 1, 512);
        cids.push(sqe.cid.get());
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    io.send(&all);
    let mut seen = 0;
    while seen < n {
        let p = io.pdu();
        if p.kind == RESP {
            assert!(p.cqe().status().is_ok());
            seen += 1;
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_the_same_stream() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::digests(), 0);
    let data = pattern(9, 4096);
    let mut sqe = io.rw_sqe(1, 64, 8, 0);
    sqe.dptr = SglDescriptor::in_capsule(0, 4096);
    let b = io.capsule(&sqe, &data);
    for step in [1usize, 7, 71, 1000] {
        let mut n = 0;
        for part in b.chunks(step) {
            io.send(part);
            n += 1;
            if n > 300 {
                break;
            }
        }
        io.send(&b[(n * step).min(b.len())..]);
        assert!(io.finish(sqe.cid.get(), &[]).status.is_ok());
        assert!(io.read(64, 4096).data == data);
    }
}

#[test]
fn a_batch_of_commands_costs_one_receive_and_one_send() {
    let w = World::new();
    let (_admin, mut io) = queues(&w, Ic::default(), NO_FLOW_CONTROL);
    assert!(io.read(0, 4096).status.is_ok());
    let ops = || w.cores().iter().map(|c| c.stats().ops).sum::<u64>();
    let before = ops();
    let mut all = Vec::new();
    for i in 0..30u64 {
        let sqe = io.rw_sqe(2, i * 8, 8, 4096);
        all.extend_from_slice(&io.capsule(&sqe, &[]));
    }
    io.send(&all);
    for _ in 0..30 {
        assert_eq!(io.pdu().kind, C2H_DATA);
    }
    // A segment may have been cut, and a send taken in parts; but it is far from one of each per command.
    let spent = ops() - before;
    assert!(spent <= 12, "{spent} ring operations for 30 commands in one segment");
}
