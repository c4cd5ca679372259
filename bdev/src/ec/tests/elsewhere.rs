//! What accel cores compute for an array is what it would compute itself, and while they do its core goes on.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use longshore_accel::cores::{CoresOptions, LEAST};
use longshore_accel::{Cores, Operation};
use longshore_reactor::sim::Random;

use super::*;
use crate::testing::open;

/// An array of 5+2 with strips of 32 KiB, four stripes of them, whose jobs of `least` and more are done by two accel cores: each begins after a
/// seeded while.
fn array(r: &Reactor, seed: u64, least: u64) -> Small {
    let mut s = Small::new(5, 2, 32 << 10, 4, &[512]);
    let random = Mutex::new(Random::new(seed));
    let before = move || Duration::from_micros(random.lock().unwrap().below(300));
    let options = CoresOptions { least, before: Some(Arc::new(before)) };
    s.accel = Accel::default().with_cores(Cores::on(vec![r.handle(), r.handle()], options));
    s
}

const BLOCKS: u64 = 4 * 5 * 64;

/// Writes of all kinds, whole stripes among them, some at the same time and to the same stripe, then one life without two members, and
/// a rebuild's worth of reads. Returns all bytes of all members' strips.
async fn live(r: &Reactor, s: &Small, seed: u64) -> Vec<u8> {
    s.create(r).await;
    let mut random = Random::new(seed);
    let mut m = Model::new(s);
    for absent in [vec![], vec![s.layout.slot_of(1, 2), s.layout.slot_of(1, 5)]] {
        s.start(r, &absent).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            for i in 0..40u64 {
                let most = [8, 64, 320][random.below(3) as usize];
                let n = 1 + random.below(most);
                let lba = random.below(BLOCKS - n + 1);
                assert!(m.write(r, &ch, 512, lba, n as u32, i as u8).await.is_ok());
                if i % 8 == 0 {
                    assert!(m.write(r, &ch, 512, random.below(4) * 320, 320, i as u8).await.is_ok());
                    assert!(ch.flush().await.0.is_ok());
                }
            }
            m.check(r, &ch, 512, 100).await;
        }
        s.stop().await;
    }
    let mut all = Vec::new();
    for stripe in 0..4 {
        for slot in 0..s.layout.n() {
            for at in (0..u64::from(s.layout.strip)).step_by(4096) {
                all.extend(s.get(r, slot, s.layout.strip_offset(stripe) + at).await);
            }
        }
    }
    all
}

const DONE: [Operation; 5] =
    [Operation::EcEncode, Operation::EcUpdate, Operation::EcDecode, Operation::Xor, Operation::Crc32c];

#[test]
fn members_hold_the_same_whether_accel_cores_compute_or_not() {
    for seed in 0..4 {
        let here = sim(seed, move |r| async move {
            let mut s = array(&r, seed, 0);
            s.accel = Accel::default();
            let all = live(&r, &s, seed).await;
            (all, s.accel.stats())
        });
        for least in [0, LEAST / 32] {
            let there = sim(seed, move |r| async move {
                let s = array(&r, seed, least);
                let all = live(&r, &s, seed).await;
                (all, s.accel.stats())
            });
            assert!(here.0 == there.0, "seed {seed}, jobs from {least} on: strips differ");
            for op in DONE {
                let (h, t) = (here.1[op as usize], there.1[op as usize]);
                // Before it is known which records are written, checksums are taken of all.
                let same = if op == Operation::Crc32c { h.bytes <= t.bytes } else { h.bytes == t.bytes };
                assert!(same, "{op:?} is counted wherever it is done: {h:?}, {t:?}");
                assert_eq!(h.offloaded, 0);
                assert!(t.offloaded > 0 && t.offloaded <= t.executed && t.queue_full == 0, "{op:?}: {t:?}");
                assert!(least == 0 || op == Operation::Crc32c || t.offloaded < t.executed, "small jobs stay: {op:?}");
            }
        }
    }
}

#[test]
fn what_is_read_rebuilt_and_scrubbed_by_accel_cores_is_what_was_written() {
    sim(9, |r| async move {
        let mut s = array(&r, 9, 0);
        s.create(&r).await;
        // Written where the array is.
        let there = std::mem::take(&mut s.accel);
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for stripe in 0..4 {
                assert!(m.write(&r, &ch, 512, stripe * 320, 320, stripe as u8 + 1).await.is_ok());
            }
        }
        s.stop().await;
        s.accel = there;
        let decoded = |s: &Small| s.accel.stats()[Operation::EcDecode as usize];
        let node = s.start(&r, &[2]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 64).await;
        }
        let read = decoded(&s);
        assert!(read.offloaded == read.executed && read.offloaded >= 4, "{read:?}");
        let ec = node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap();
        let newcomer = crate::ec::Newcomer { desc: s.open(2).unwrap(), uuid: Uuid::from_u128(500), found: None };
        ec.join(2, newcomer).await.unwrap();
        while ec.member_state(2) != crate::ec::format::MemberState::InSync {
            r.sleep(Duration::from_millis(1)).await;
        }
        let rebuilt = decoded(&s);
        assert!(rebuilt.offloaded == rebuilt.executed && rebuilt.offloaded >= read.offloaded + 4, "{rebuilt:?}");
        ec.start_scrub(crate::ec::ScrubOptions { stripes_per_second: 0 }).unwrap();
        while ec.scrub_progress().state == crate::ec::ScrubState::Running {
            r.sleep(Duration::from_millis(1)).await;
        }
        let p = ec.scrub_progress();
        assert_eq!((p.state, p.mismatches, p.ambiguous, p.unreadable), (crate::ec::ScrubState::Finished, 0, 0, 0));
        let scrubbed = decoded(&s);
        assert!(scrubbed.offloaded == scrubbed.executed && scrubbed.offloaded >= rebuilt.offloaded + 4, "{scrubbed:?}");
        drop(node);
        s.stop().await;
        // All data are on the member that was filled, if two of the others go.
        s.start(&r, &[0, 5]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 64).await;
        }
        s.stop().await;
    });
}

#[test]
fn other_requests_go_on_while_a_job_is_under_way_and_the_next_write_to_its_stripe_waits() {
    sim(5, |r| async move {
        let mut s = array(&r, 5, 0);
        let hold = || Duration::from_secs(1);
        let options = CoresOptions { least: LEAST / 32, before: Some(Arc::new(hold)) };
        s.accel = Accel::default().with_cores(Cores::on(vec![r.handle()], options));
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            let ended = Rc::new(Cell::new(0));
            let large = |byte| {
                let (write, ended) = (ch.write(0, 320, filled(&r, 160 << 10, byte), IoFlags::NONE), ended.clone());
                r.spawn(async move {
                    assert!(write.await.0.is_ok());
                    ended.set(ended.get() + 1);
                })
            };
            let (first, second) = (large(1), large(2));
            r.yield_now().await;
            // Another stripe.
            for i in 0..100 {
                assert!(ch.write(320 + i, 1, filled(&r, 512, 3), IoFlags::NONE).await.0.is_ok());
                assert!(ch.read(320 + i, 1, filled(&r, 512, 0)).await.1.unwrap().as_slice() == [3; 512]);
            }
            assert_eq!(ended.get(), 0, "the job has not begun");
            let start = r.now();
            assert!(first.await.is_ok() && second.await.is_ok());
            assert!(longshore_reactor::nanos(r.now() - start) > 1_500_000_000, "one after the other");
            let all = ch.read(0, 320, filled(&r, 160 << 10, 0)).await.1.unwrap();
            assert!(all.as_slice().iter().all(|b| *b == 2));
        }
        s.stop().await;
    });
}
