//! Who computes for an array, and what is counted of it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use longshore_accel::erasure::{Codec, ErasureError, Kernel, MatrixKind};
use longshore_accel::{Capability, Engine, Operation};

use super::*;
use crate::ec::start::engine_here;
use crate::testing::open;

/// Computes slowly but right, and can be told from the engine that is always there.
#[derive(Default)]
struct Slow {
    added: AtomicUsize,
    summed: AtomicUsize,
}

const DONE: [Operation; 5] =
    [Operation::EcEncode, Operation::EcUpdate, Operation::EcDecode, Operation::Xor, Operation::Crc32c];

impl Engine for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn capabilities(&self) -> Vec<Capability> {
        let done = |operation| Capability {
            operation,
            algorithms: &[],
            limits: &[],
            hardware: false,
            implementation: "byte by byte",
        };
        DONE.map(done).into()
    }

    fn xor(&self, dst: &mut [u8], src: &[u8]) {
        self.added.fetch_add(dst.len(), Relaxed);
        dst.iter_mut().zip(src).for_each(|(d, s)| *d ^= s);
    }

    fn crc32c(&self, crc: u32, data: &[u8]) -> u32 {
        self.summed.fetch_add(data.len(), Relaxed);
        let bit = |crc: u32, _| crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
        !data.iter().fold(!crc, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
    }

    fn codec(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Codec, ErasureError> {
        Codec::with_kernel(kind, data, parity, Kernel::Portable)
    }
}

/// An array of four stripes of 40 KiB, 5+2, and what computes for it: everything that `slow` is assigned.
fn array(slow: &[Operation]) -> (Small, Arc<Slow>) {
    let mut s = Small::new(5, 2, 8192, 4, &[512]);
    let engine = Arc::new(Slow::default());
    s.accel = Accel::new(vec![engine.clone()]);
    for op in DONE {
        s.accel.assign(op, if slow.contains(&op) { "slow" } else { "software" }).unwrap();
    }
    (s, engine)
}

/// A life: a whole stripe, part of it, and a read without a member. Returns all bytes of the strips on members.
async fn live(r: &Reactor, s: &Small) -> Vec<u8> {
    s.create(r).await;
    s.start(r, &[]).await.unwrap();
    let mut m = Model::new(s);
    {
        let (_desc, ch) = open(&s.registry, "a");
        assert!(m.write(r, &ch, 512, 0, 80, 1).await.is_ok());
        // Only what is mapped durably needs records.
        assert!(ch.flush().await.0.is_ok());
        assert!(m.write(r, &ch, 512, 5, 3, 9).await.is_ok());
        assert!(ch.flush().await.0.is_ok());
    }
    s.stop().await;
    s.start(r, &[s.layout.slot_of(0, 0)]).await.unwrap();
    {
        let (_desc, ch) = open(&s.registry, "a");
        m.check(r, &ch, 512, 8).await;
    }
    s.stop().await;
    let mut all = Vec::new();
    for slot in 0..s.layout.n() {
        for at in (0..u64::from(s.layout.strip)).step_by(4096) {
            all.extend(s.get(r, slot, s.layout.strip_offset(0) + at).await);
        }
    }
    all
}

#[test]
fn every_operation_goes_to_its_engine_and_members_hold_the_same_whichever_that_is() {
    let by_software = sim(71, |r| async move { live(&r, &array(&[]).0).await });
    assert!(by_software.iter().any(|&b| b != 0));
    let by_slow = sim(71, |r| async move {
        let (s, slow) = array(&DONE);
        let all = live(&r, &s).await;
        assert!(slow.added.load(Relaxed) >= 1536 && slow.summed.load(Relaxed) >= 3 * 1536);
        all
    });
    assert!(by_slow == by_software, "strips differ");
}

#[test]
fn what_an_array_computes_is_counted_by_operation() {
    sim(72, |r| async move {
        let (s, _) = array(&DONE);
        live(&r, &s).await;
        let all = s.accel.stats();
        let [encode, update, decode, xor, crc] = DONE.map(|op| all[op as usize]);
        // The stripe's data.
        assert_eq!((encode.executed, encode.bytes), (1, 40 << 10));
        // Three blocks that were overwritten: their difference, its share of both parities.
        assert_eq!((update.executed, update.bytes), (1, 1536));
        assert_eq!((xor.executed, xor.bytes), (1, 1536));
        // The record of each strip that was written.
        assert_eq!((crc.executed, crc.bytes), (3, 3 * 1536));
        // A strip of 8 KiB from five others, in two reads.
        assert_eq!((decode.executed, decode.bytes), (2, 5 * 8192));
        assert!(DONE.iter().all(|op| all[*op as usize].failed == 0));
    });
}

#[test]
fn encoding_updating_and_decoding_are_assigned_one_by_one() {
    for alone in [Operation::EcEncode, Operation::EcUpdate, Operation::EcDecode] {
        sim(73, |r| async move {
            let (s, _) = array(&[alone]);
            s.create(&r).await;
            let node = s.start(&r, &[]).await.unwrap();
            let id = node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap().shared.id;
            let kernel = |op| engine_here(id).unwrap().coder.kernel(op);
            for op in [Operation::EcEncode, Operation::EcUpdate, Operation::EcDecode] {
                assert_eq!(kernel(op), Some(if op == alone { Kernel::Portable } else { Kernel::best() }), "{op:?}");
            }
            assert!(s.accel.assign(alone, "software").is_err(), "an array runs: it is too late");
            s.stop().await;
        });
    }
}
