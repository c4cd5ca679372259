//! Commands that are wrong, as a host sends them over the wire: each is answered with the status that says so, and the connection
//! lives.

mod host;
mod world;

use host::*;
use longshore_nvme::wire::{SglDescriptor, Sqe, Status};
use world::{NQN, World, block_on};

const CATTR_NONE: u8 = 0;

fn queues(w: &World) -> (Host, Host) {
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, 1, 31, CATTR_NONE);
    (admin, io)
}

/// DW0 of a refused Connect whose data is wrong at that offset.
const fn in_data(offset: u32) -> u32 {
    1 << 16 | offset
}

#[test]
fn connect_to_an_unknown_subsystem_may_be_retried() {
    let w = World::new();
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(0, 31, 0xffff, 0, "nqn.2016-06.io.longshore:nobody", HOSTNQN);
    assert_eq!(done.status, Status::CONNECT_INVALID_PARAMETERS, "without DNR: Linux stops reconnecting on it");
    assert_eq!(done.dw0, in_data(256));
    // The same connection may try again.
    assert!(h.connect(0, 31, 0xffff, 0, NQN, HOSTNQN).status.is_ok());
}

#[test]
fn connect_with_a_wrong_controller_id_is_refused() {
    let w = World::new();
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(0, 31, 0x1234, 0, NQN, HOSTNQN);
    assert!(done.status.is(Status::CONNECT_INVALID_PARAMETERS), "admin queue of controller 1234h: {}", done.status);
    assert_eq!(done.dw0, in_data(16));

    let (admin, _io) = queues(&w);
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(1, 31, admin.cntlid ^ 0x4000, 0, NQN, HOSTNQN);
    assert!(done.status.is(Status::CONNECT_INVALID_PARAMETERS), "{}", done.status);
    assert_eq!(done.dw0, in_data(16));

    // The number of a queue that exists.
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(1, 31, admin.cntlid, 0, NQN, HOSTNQN);
    assert!(done.status.is_err(), "queue 1 twice");
}

#[test]
fn connect_of_a_host_that_is_not_allowed_is_refused() {
    let w = World::new();
    block_on(w.target.allow_any_host(NQN, false)).unwrap();
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(0, 31, 0xffff, 0, NQN, HOSTNQN);
    assert!(done.status.is(Status::CONNECT_INVALID_HOST), "{}", done.status);

    block_on(w.target.add_host(NQN, HOSTNQN)).unwrap();
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(1, 31, admin.cntlid, 0, NQN, "nqn.2014-08.org.example:other");
    assert!(done.status.is_err(), "an I/O queue of another host's controller");
    let mut h = Host::initialised(w.addr, Ic::default());
    let done = h.connect(0, 31, 0xffff, 0, NQN, "not an nqn\u{1}");
    assert!(done.status.is_err());
}

/// Two Connects whose data both came after the second was sent; `order`: which one's data first. How each ended.
fn two_connects(w: &World, qid: u16, cntlid: u16) -> (Host, [Done; 2]) {
    let mut h = Host::initialised(w.addr, Ic::default());
    let sqes = [0, 1].map(|_| {
        let mut sqe = h.connect_sqe(qid, 31, 0);
        sqe.dptr = SglDescriptor::transport(1024);
        sqe
    });
    for s in &sqes {
        h.send_cmd(s, &[]);
    }
    let asked = h.pdu();
    assert_eq!((asked.kind, asked.u16(8)), (R2T, sqes[0].cid.get()));
    let second = h.finish(sqes[1].cid.get(), &[]);
    h.answer_r2t(&asked, &Host::connect_data(cntlid, NQN, HOSTNQN));
    let first = h.finish(sqes[0].cid.get(), &[]);
    (h, [first, second])
}

#[test]
fn of_two_connects_on_one_connection_the_second_is_refused() {
    let w = World::new();
    for _ in 0..2 {
        let (mut admin, ends) = two_connects(&w, 0, 0xffff);
        assert!(ends[0].status.is_ok(), "{}", ends[0].status);
        assert!(ends[1].status.is(Status::COMMAND_SEQUENCE_ERROR), "{}", ends[1].status);
        let cntlid = ends[0].dw0 as u16;
        admin.enable();
        assert_eq!(block_on(w.target.controllers(NQN)).unwrap().len(), 1, "one controller");
        // On either core: where its controller is, and elsewhere.
        for qid in 1..=2 {
            let (mut io, ends) = two_connects(&w, qid, cntlid);
            assert!(ends[0].status.is_ok(), "{}", ends[0].status);
            assert!(ends[1].status.is(Status::COMMAND_SEQUENCE_ERROR), "{}", ends[1].status);
            assert!(io.read(0, 4096).status.is_ok());
            let done = io.connect(qid, 31, cntlid, 0, NQN, HOSTNQN);
            assert!(done.status.is(Status::COMMAND_SEQUENCE_ERROR), "a Connect on a queue that lives: {}", done.status);
            assert!(io.read(0, 4096).status.is_ok());
        }
        drop(admin);
        w.wait("the controller is gone", |w| block_on(w.target.controllers(NQN)).unwrap().is_empty());
    }
}

#[test]
fn of_connects_for_one_queue_on_several_connections_exactly_one_wins() {
    let w = World::new();
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let idle = w.buffers();
    for round in 0..20 {
        let mut hosts = [0, 1, 2, 3].map(|_| Host::initialised(w.addr, Ic::default()));
        let connects = hosts.each_mut().map(|h| {
            let sqe = h.connect_sqe(1, 31, 0);
            (sqe.cid.get(), h.capsule(&sqe, &Host::connect_data(admin.cntlid, NQN, HOSTNQN)))
        });
        for (h, (_, c)) in hosts.iter_mut().zip(&connects) {
            h.send(c);
        }
        let mut won = 0;
        for (h, (cid, _)) in hosts.iter_mut().zip(&connects) {
            let done = h.finish(*cid, &[]);
            if done.status.is_ok() {
                won += 1;
                assert!(h.read(0, 4096).status.is_ok());
            } else {
                let may_retry = (Status::CONNECT_INVALID_PARAMETERS, 42);
                assert_eq!((done.status, done.dw0), may_retry, "round {round}: QID is named");
            }
        }
        assert_eq!(won, 1, "round {round}");
        drop(hosts);
        w.settled(idle); // the queue is gone, and its number free
    }
}

#[test]
fn an_lba_out_of_range_is_refused() {
    let w = World::new();
    let (_admin, mut io) = queues(&w);
    for slba in [world::BLOCKS, world::BLOCKS - 7, 1 << 40, u64::MAX - 3] {
        assert!(io.read(slba, 4096).status.is(Status::LBA_OUT_OF_RANGE), "{slba}");
        assert!(io.write(slba, &pattern(4, 4096)).status.is(Status::LBA_OUT_OF_RANGE), "{slba}");
    }
    assert!(io.read(world::BLOCKS - 8, 4096).status.is_ok());
}

#[test]
fn a_bad_sgl_is_refused_by_its_name() {
    let w = World::new();
    let (_admin, mut io) = queues(&w);
    let good = SglDescriptor::transport(4096);
    let with = |id: u8| SglDescriptor { identifier: id, ..good };
    for (what, sgl, want) in [
        ("keyed", with(0x40), Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ("a segment", with(0x20), Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ("an address", with(0x00), Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ("unknown", with(0xff), Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ("too short", SglDescriptor::transport(2048), Status::DATA_SGL_LENGTH_INVALID),
        ("too long", SglDescriptor::transport(8192), Status::DATA_SGL_LENGTH_INVALID),
        ("more than the capsule holds", SglDescriptor::in_capsule(0, 4096), Status::DATA_SGL_LENGTH_INVALID),
        ("beyond the capsule", SglDescriptor::in_capsule(1 << 40, 4096), Status::SGL_OFFSET_INVALID),
    ] {
        let mut sqe = io.rw_sqe(1, 0, 8, 4096);
        sqe.dptr = sgl;
        io.send_cmd(&sqe, &[]);
        let done = io.finish(sqe.cid.get(), &[]);
        assert!(done.status.is(want), "{what}: {}, not {want}", done.status);
    }
    // Larger than MDTS.
    let sqe = io.rw_sqe(2, 0, 512, 262_144);
    io.send_cmd(&sqe, &[]);
    assert!(io.finish(sqe.cid.get(), &[]).status.is(Status::INVALID_FIELD));
    // A PRP.
    let mut sqe = io.rw_sqe(2, 0, 8, 4096);
    sqe.flags = 0;
    io.send_cmd(&sqe, &[]);
    assert!(io.finish(sqe.cid.get(), &[]).status.is(Status::INVALID_FIELD));
    // Data in a capsule whose command wants none.
    let sqe = Sqe::new(0x00, io.cid(), 1);
    io.send_cmd(&sqe, &pattern(1, 512));
    let _ = io.finish(sqe.cid.get(), &[]);
    assert!(io.read(0, 4096).status.is_ok(), "the connection lives");
}

#[test]
fn fused_halves_apart_are_both_refused() {
    let w = World::new();
    let (_admin, mut io) = queues(&w);
    let data = vec![0; 512];
    // A first half, then a command that is not its second.
    let mut cmp = io.rw_sqe(0x05, 0, 1, 0);
    cmp.flags |= 1;
    cmp.dptr = SglDescriptor::in_capsule(0, 512);
    io.send_cmd(&cmp, &data);
    let read = io.rw_sqe(0x02, 0, 1, 512);
    io.send_cmd(&read, &[]);
    let (mut missing, mut ok) = (0, 0);
    while missing + ok < 2 {
        let p = io.pdu();
        if p.kind == RESP {
            let c = p.cqe();
            if c.cid == cmp.cid {
                assert!(c.status().is(Status::MISSING_FUSED), "{}", c.status());
                missing += 1;
            } else {
                assert!(c.status().is_ok());
                ok += 1;
            }
        }
    }
    // A second half alone.
    let mut write = io.rw_sqe(0x01, 0, 1, 0);
    write.flags |= 2;
    write.dptr = SglDescriptor::in_capsule(0, 512);
    io.send_cmd(&write, &data);
    assert!(io.finish(write.cid.get(), &[]).status.is(Status::MISSING_FUSED));
}

#[test]
fn fused_compare_and_write_moves_both_halves_data_by_either_way() {
    let w = World::new();
    let (_admin, mut io) = queues(&w);
    let old = pattern(1, 4096);
    let new = pattern(2, 4096);
    assert!(io.write(8, &old).status.is_ok());
    for (in_capsule, expected, works) in [(true, &old, true), (false, &old, false), (false, &new, true)] {
        let mut cmp = io.rw_sqe(0x05, 8, 8, 4096);
        let mut write = io.rw_sqe(0x01, 8, 8, 4096);
        cmp.flags |= 1;
        write.flags |= 2;
        if in_capsule {
            cmp.dptr = SglDescriptor::in_capsule(0, 4096);
            write.dptr = SglDescriptor::in_capsule(0, 4096);
            io.send_cmd(&cmp, expected);
            io.send_cmd(&write, &new);
        } else {
            io.send_cmd(&cmp, &[]);
            io.send_cmd(&write, &[]);
        }
        let mut ended = 0;
        while ended < 2 {
            let p = io.pdu();
            if p.kind == R2T {
                let data = if p.u16(8) == cmp.cid.get() { expected } else { &new };
                io.answer_r2t(&p, data);
                continue;
            }
            let c = p.cqe();
            assert_eq!(c.status().is_ok(), works, "{}", c.status());
            ended += 1;
        }
        assert!(io.read(8, 4096).data == new);
    }
}

#[test]
fn two_commands_with_one_identifier_both_end() {
    let w = World::new();
    let (_admin, mut io) = queues(&w);
    let a = io.rw_sqe(0x01, 0, 16, 8192);
    let mut b = io.rw_sqe(0x01, 16, 16, 8192);
    b.cid = a.cid;
    io.send_cmd(&a, &[]);
    io.send_cmd(&b, &[]);
    let data = pattern(3, 8192);
    let mut ended = 0;
    while ended < 2 {
        let p = io.pdu();
        if p.kind == R2T {
            io.answer_r2t(&p, &data);
        } else {
            assert_eq!(p.cqe().cid, a.cid);
            ended += 1;
        }
    }
    assert!(io.read(0, 4096).status.is_ok());
}
