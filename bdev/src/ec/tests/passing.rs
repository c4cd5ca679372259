//! Errors of members that pass: resets of their devices, ways to them that are lost for a while.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::probe::{Act, Kind, array, ec, ended};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::{Failed, InSync};
use crate::testing::{Recorder, open};

const PASSING: [Status; 3] = [Status::ABORT_REQUESTED, Status::NAMESPACE_NOT_READY, Status::HOST_PATHING_ERROR];

#[test]
fn requests_that_end_by_a_reset_of_a_members_device_are_sent_again_and_no_host_sees_it() {
    for (seed, volatile) in [(1, false), (2, true)] {
        sim(seed, move |r| async move {
            let (s, judges) = array(3, 2, 12, Kind { volatile, ..Kind::default() });
            s.create(&r).await;
            let node = s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(m.write(&r, &ch, 512, 0, 12 * 24, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                let count = AtomicU32::new(0);
                // Two of three requests to one member, with all kinds of outcomes.
                judges.set(move |slot, _| match (slot, count.fetch_add(1, Relaxed)) {
                    (1, n) if n % 3 != 0 => Act::Fail(PASSING[n as usize % 5 % 3]),
                    _ => Act::Pass,
                });
                for lba in [0, 5, 30, 70, 100, 200] {
                    assert_eq!(m.write(&r, &ch, 512, lba, 20, lba as u8).await, Status::SUCCESS);
                    m.check(&r, &ch, 512, 4).await;
                }
                assert!(ch.flush().await.0.is_ok());
                // The device itself is reset while requests are held there.
                judges.set(|slot, io| if slot == 2 && io.op() != Op::Flush { Act::Hold } else { Act::Pass });
                let all = Rc::new(Recorder::default());
                for lba in 0..40 {
                    let op = if lba % 2 == 0 { Op::Write } else { Op::Read };
                    let byte = m.0[lba as usize * 512];
                    all.submit(&ch, op, lba, 1, filled(&r, 512, byte), lba);
                }
                for _ in 0..20 {
                    r.yield_now().await;
                }
                let (_below, ch2) = open(&s.registry, "EE_m2");
                judges.pass_all();
                assert!(ch2.reset().await.0.is_ok());
                let outcome = ended(&r, &all, 40).await;
                assert!(outcome.iter().all(|e| e.1.is_ok()), "{outcome:?}");
                m.check(&r, &ch, 512, 7).await;
                assert!((0..5).all(|slot| ec(&node).member_state(slot) == InSync));
                assert_eq!(ec(&node).stats().healed_reads, 0, "nothing was wrong with what members have");
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn a_member_that_stays_out_of_reach_fails_when_its_time_is_up() {
    sim(3, |r| async move {
        let (s, judges) = array(2, 1, 6, Kind::default());
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 96, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            judges.set(|slot, _| if slot == 1 { Act::Fail(Status::HOST_PATHING_ERROR) } else { Act::Pass });
            let before = r.now();
            assert!(m.write(&r, &ch, 512, 0, 90, 2).await.is_ok());
            assert!(r.now() - before >= r.ticks(Tuning::default().write_timeout));
            assert_eq!(ec(&node).member_state(1), Failed);
            m.check(&r, &ch, 512, 7).await;
            // With nothing to spare, a read waits for the member that it needs.
            let tries = AtomicU32::new(0);
            judges.set(move |slot, io| match slot {
                0 if io.op() == Op::Read && tries.fetch_add(1, Relaxed) < 40 => Act::Fail(Status::ABORT_REQUESTED),
                _ => Act::Pass,
            });
            m.check(&r, &ch, 512, 8).await;
            assert_eq!(ec(&node).member_state(0), InSync);
        }
        drop(node);
        s.stop().await;
    });
}

#[test]
fn a_read_that_its_host_aborts_ends_as_aborted() {
    sim(4, |r| async move {
        let (s, judges) = array(2, 1, 6, Kind::default());
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 96, 1).await.is_ok());
            judges.set(|_, io| if io.op() == Op::Read { Act::Hold } else { Act::Pass });
            let all = Rc::new(Recorder::default());
            let id = all.submit(&ch, Op::Read, 3, 2, filled(&r, 1024, 0), 7);
            assert!(ch.abort(id));
            assert_eq!(ended(&r, &all, 1).await, [(7, Status::ABORT_REQUESTED)]);
            judges.pass_all();
        }
        s.stop().await;
    });
}

#[test]
fn a_read_that_nothing_can_do_any_more_ends() {
    sim(5, |r| async move {
        let (s, judges) = array(2, 1, 6, Kind::default());
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 96, 1).await.is_ok());
            s.break_member(2, Op::Write, u32::MAX);
            assert!(m.write(&r, &ch, 512, 0, 96, 2).await.is_ok());
            // First out of reach, then unreadable, and no parity is left.
            let tries = AtomicU32::new(0);
            judges.set(move |slot, io| match slot {
                0 if io.op() == Op::Read && tries.fetch_add(1, Relaxed) == 0 => Act::Fail(Status::ABORT_REQUESTED),
                0 if io.op() == Op::Read => Act::Fail(Status::UNRECOVERED_READ_ERROR),
                _ => Act::Pass,
            });
            let stripe = (0..6).find(|&stripe| s.layout.index_at(stripe, 0) < 2).unwrap();
            let lba = stripe * 16 + s.layout.index_at(stripe, 0) as u64 * 8;
            assert_eq!(ch.read(lba, 2, filled(&r, 1024, 0)).await.0, Status::UNRECOVERED_READ_ERROR);
            judges.pass_all();
        }
        s.stop().await;
    });
}
