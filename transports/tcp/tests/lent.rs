//! Reads that are sent from the device's own memory.

mod host;
mod world;

use host::*;
use longshore_bdev::{Geometry, Op, null::Null};
use longshore_nvmf::{TrType, TransportOptions};
use world::{BLOCKS, NQN, Setup, World};

const READ: usize = 128 << 10;

/// What block `lba` holds after its `n`th write: every 8 bytes say so.
fn block(lba: u64, n: u8) -> [u8; 512] {
    let mut b = [0; 512];
    b.as_chunks_mut::<8>().0.iter_mut().for_each(|w| *w = (lba << 8 | u64::from(n)).to_le_bytes());
    b
}

fn run(lba: u64, len: usize, n: u8) -> Vec<u8> {
    (0..len as u64 / 512).flat_map(|i| block(lba + i, n)).collect()
}

fn queue(w: &World, ic: Ic) -> (Host, Host) {
    let admin = Host::admin(w.addr, ic, NQN);
    let io = Host::io(w.addr, ic, NQN, admin.cntlid, 1, 127, 0);
    (admin, io)
}

/// More than the device keeps copies of blocks for is read by hosts that take nothing, and overwritten meanwhile.
#[test]
fn readers_that_take_nothing_do_not_hold_up_writers_and_read_no_mixture_of_two_writes() {
    for ic in [Ic::default(), Ic::digests()] {
        let w = World::new();
        let (_admin, mut writer) = queue(&w, ic);
        let all = (0..BLOCKS).step_by(READ / 512);
        for lba in all.clone() {
            assert!(writer.write(lba, &run(lba, READ, 1)).status.is_ok());
        }
        let mut readers: Vec<_> = (0..6).map(|_| queue(&w, ic)).collect();
        for (i, (_, r)) in readers.iter_mut().enumerate() {
            let capsules: Vec<u8> = (0..80)
                .flat_map(|k| {
                    let lba = (i as u64 * 80 + k) * (READ / 512) as u64 % BLOCKS;
                    let sqe = r.rw_sqe(2, lba, (READ / 512) as u32, READ as u32);
                    r.capsule(&sqe, &[])
                })
                .collect();
            r.send(&capsules);
        }
        // They have been lent what they are sent, and then got copies.
        w.settled_at_least(64);
        for lba in all.clone() {
            assert!(writer.write(lba, &run(lba, READ, 2)).status.is_ok(), "a write behind a stalled reader");
        }
        for (_, r) in &mut readers {
            let (mut data, mut answers) = (0, 0);
            while data < 80 {
                let p = r.pdu();
                if p.kind == RESP {
                    assert!(p.cqe().status().is_ok());
                    answers += 1;
                    continue;
                }
                assert_eq!((p.kind, p.data.len()), (C2H_DATA, READ));
                data += 1;
                let lba = u64::from_le_bytes(p.data[..8].try_into().unwrap()) >> 8;
                for (i, b) in p.data.chunks(512).enumerate() {
                    let lba = lba + i as u64;
                    assert!(b == block(lba, 1) || b == block(lba, 2), "block {lba} is no write's");
                }
            }
            while answers < 80 {
                answers += usize::from(r.pdu().cqe().status().is_ok());
            }
        }
        for lba in all {
            assert!(writer.read(lba, READ).data == run(lba, READ, 2), "what was written last, from block {lba} on");
        }
    }
}

#[test]
fn a_read_that_is_not_lent_anything_after_all_is_answered_and_counted_once() {
    let mut transport = TransportOptions::new(TrType::Tcp);
    transport.max_io_size = 256 << 10;
    let w = Setup { transport, ..Setup::default() }.start();
    let node = w.target.bdevs().register("Zeroes", None, Null::new(Geometry::plain(512, BLOCKS))).unwrap();
    w.add_namespace("Zeroes");
    let (_admin, mut io) = queue(&w, Ic::default());
    // Of this length, and of twice that, which is more than such a device lends.
    for (len, ops) in [(READ, 10), (2 * READ, 20)] {
        for _ in 0..10 {
            let mut sqe = io.rw_sqe(2, 0, (len / 512) as u32, len as u32);
            sqe.nsid = 2.into();
            io.send_cmd(&sqe, &[]);
            let done = io.finish(sqe.cid.get(), &[]);
            assert!(done.status.is_ok() && done.data == vec![0; len]);
        }
        let s = node.stats();
        assert_eq!((s.op(Op::Read).ops, s.errors), (ops, Vec::new()), "reads of {len} bytes");
    }
}
