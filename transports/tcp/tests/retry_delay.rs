//! Command retry delays: a host that can wait is told how long, by every status that passes. Base Specification, "Status Field
//! Definition" (CRD), "Identify Controller data structure" (CRDT1), "Host Behavior Support".

mod host;
mod world;

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use host::{Host, Ic, pattern};
use longshore_bdev::{Bdev, BdevError, BdevNode, Geometry, IoChannel, IoId, IoRef, Op, Status, SupportedOps};
use longshore_nvme::wire::{SglDescriptor, Sqe};
use longshore_reactor::Reactor;
use world::{BLOCKS, NQN, World, block_on};

/// A device that is away, and says so itself: without Do Not Retry to reads, with it to writes.
struct Away;

impl Bdev for Away {
    fn product_name(&self) -> &'static str {
        "away"
    }
    fn geometry(&self) -> Geometry {
        Geometry::plain(512, BLOCKS)
    }
    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write])
    }
    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(Away))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl IoChannel for Away {
    fn submit(&self, io: IoRef) {
        let again = io.op() == Op::Read;
        let status = Status::NAMESPACE_NOT_READY;
        io.complete_later(if again { status } else { status.with_dnr() });
    }
    fn abort(&self, _: IoId) -> bool {
        false
    }
}

/// CRDT1 to 3, in units of 100 ms.
fn crdt(admin: &mut Host) -> [u16; 3] {
    let mut sqe = Sqe::new(0x06, admin.cid(), 0);
    sqe.cdw10 = 1.into();
    sqe.dptr = SglDescriptor::transport(4096);
    admin.send_cmd(&sqe, &[]);
    let page = admin.finish(sqe.cid.get(), &[]).data;
    [128, 130, 132].map(|at| u16::from_le_bytes([page[at], page[at + 1]]))
}

/// One command of one block to namespace 2.
fn away(io: &mut Host, opcode: u8, slba: u64) -> Status {
    let mut sqe = io.rw_sqe(opcode, slba, 1, 512);
    sqe.nsid = 2.into();
    io.send_cmd(&sqe, &[]);
    io.finish(sqe.cid.get(), &pattern(1, 512)).status
}

fn connect(w: &World) -> (Host, Vec<Host>) {
    let admin = Host::admin(w.addr, Ic::default(), NQN);
    let io = |q| Host::io(w.addr, Ic::default(), NQN, admin.cntlid, q, 31, 0);
    let ios = (1..=2).map(io).collect();
    (admin, ios)
}

#[test]
fn a_namespace_that_is_not_ready_asks_hosts_that_enabled_it_for_a_delay_and_no_others() {
    let w = World::new();
    w.target.bdevs().register("Away", None, Arc::new(Away)).unwrap();
    w.add_namespace("Away");
    let (mut admin, mut ios) = connect(&w);
    let (mut other, mut others) = connect(&w);
    assert_eq!(crdt(&mut admin), [50, 0, 0], "Linux tries five times more: for 25 s");
    let all = block_on(w.target.qpairs(NQN)).unwrap();
    let cores: BTreeSet<_> = all.iter().filter(|q| q.cntlid == admin.cntlid && q.qid != 0).map(|q| q.core).collect();
    assert_eq!(cores.len(), 2, "every core knows");
    let plain = Status::NAMESPACE_NOT_READY;
    for (on, want) in [(false, plain), (true, plain.with_crd(1)), (false, plain), (true, plain.with_crd(1))] {
        assert!(admin.set_acre(on).status.is_ok());
        for io in &mut ios {
            assert_eq!(away(io, 2, 0), want);
            assert_eq!(away(io, 1, 0), plain.with_dnr(), "it is not to be tried again");
            assert_eq!(away(io, 2, BLOCKS).crd(), 0, "it does not pass");
            assert!(io.read(0, 4096).status.is_ok());
        }
        assert_eq!(away(&mut others[0], 2, 0), plain, "another controller of the same host");
    }
    assert!(other.set_acre(true).status.is_ok());
    assert_eq!(away(&mut others[0], 2, 0), plain.with_crd(1));

    // A controller reset puts it back.
    drop(ios);
    assert!(admin.property_set(0x14, 6 << 16 | 4 << 20, false).status.is_ok());
    w.wait("the controller is reset", |w| block_on(w.target.qpairs(NQN)).unwrap().len() == 4);
    admin.enable();
    let mut io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, 1, 31, 0);
    assert_eq!(away(&mut io, 2, 0), plain);
}

#[test]
fn without_a_delay_to_wait_for_none_is_asked_for() {
    let w = World::new();
    w.target.bdevs().register("Away", None, Arc::new(Away)).unwrap();
    w.add_namespace("Away");
    block_on(w.target.set_config(|c| c.crdt = [0, 7, 9])).unwrap();
    let (mut admin, mut ios) = connect(&w);
    assert_eq!(crdt(&mut admin), [0, 7, 9]);
    assert!(admin.set_acre(true).status.is_ok());
    assert_eq!(away(&mut ios[0], 2, 0), Status::NAMESPACE_NOT_READY);
}
