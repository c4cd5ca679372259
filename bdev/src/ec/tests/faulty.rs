//! Members that answer reads with errors, which are not the medium's.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::probe::{Act, Judges, Kind, array, ec, full};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::{Failed, InSync};
use crate::testing::open;

/// Members of `slots` answer reads with `status`, and do everything else.
fn fail_reads(judges: &Judges, slots: Vec<usize>, status: Status) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counts = count.clone();
    judges.set(move |slot, io| {
        if io.op() != Op::Read || !slots.contains(&slot) {
            return Act::Pass;
        }
        counts.fetch_add(1, Relaxed);
        Act::Fail(status)
    });
    count
}

#[test]
fn a_member_that_fails_reads_and_takes_writes_fails_and_one_with_bad_blocks_does_not() {
    sim(1, |r| async move {
        let (s, judges, node, m) = full(&r, array(3, 2, 40, Kind::default())).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            let count = fail_reads(&judges, vec![1], Status::UNRECOVERED_READ_ERROR);
            m.check(&r, &ch, 512, 1).await;
            m.check(&r, &ch, 512, 10).await;
            assert!(count.load(Relaxed) > 200, "{count:?}");
            assert_eq!(ec(&node).member_state(1), InSync, "blocks that cannot be read are rewritten");
            // Reads of one block go straight to the member, others over the home core.
            for (member, step) in [(2, 1), (3, 10)] {
                let count = fail_reads(&judges, vec![member], Status::INTERNAL_ERROR);
                for _ in 0..5 {
                    m.check(&r, &ch, 512, step).await;
                }
                assert_eq!(ec(&node).member_state(member), Failed);
                assert!((64..80).contains(&count.load(Relaxed)), "{count:?}");
            }
            // A third one cannot be done without, and what the others have is enough of each block that is read.
            let count = Arc::new(AtomicU32::new(0));
            let counts = count.clone();
            judges.set(move |slot, io| match slot {
                0 if io.op() == Op::Read && counts.fetch_add(1, Relaxed).is_multiple_of(2) => {
                    Act::Fail(Status::INTERNAL_ERROR)
                }
                _ => Act::Pass,
            });
            for _ in 0..8 {
                m.check(&r, &ch, 512, 1).await;
            }
            assert!(count.load(Relaxed) > 1000, "{count:?}");
            assert_eq!((ec(&node).member_state(0), ec(&node).is_offline()), (InSync, false));
            judges.pass_all();
            m.check(&r, &ch, 512, 7).await;
        }
        drop(node);
        s.stop().await;
    });
}

#[test]
fn where_more_members_than_can_be_missing_answer_reads_with_errors_the_array_is_offline() {
    for (lba, op) in [(0, Op::Read), (3, Op::Read), (0, Op::Write), (5, Op::Write)] {
        sim(2, move |r| async move {
            let (s, judges, node, m) = full(&r, array(3, 2, 20, Kind::default())).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                // All that has data of the first stripe: what is left of it is parity.
                fail_reads(&judges, (0..3).map(|d| s.layout.slot_of(0, d)).collect(), Status::INTERNAL_ERROR);
                // Of several strips, of one strip, and again.
                for n in [14, 1, 1] {
                    let buf = filled(&r, n as usize * 512, 9);
                    let status = match op {
                        Op::Read => ch.read(lba, n, buf).await.0,
                        _ => ch.write(lba, n, buf, IoFlags::NONE).await.0,
                    };
                    assert_eq!(status, Status::NAMESPACE_NOT_READY, "{op:?} of {n} at {lba}");
                }
                assert!(ec(&node).is_offline());
                assert_eq!(ec(&node).stats().unrecovered_reads, 0);
            }
            judges.pass_all();
            drop(node);
            s.stop().await;
            // With these back, nothing is lost.
            s.start(&r, &[]).await.unwrap();
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 8).await;
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_block_that_media_lost_is_unrecovered_and_costs_only_members_that_do_not_read() {
    for op in [Op::Read, Op::Write] {
        sim(3, move |r| async move {
            let (s, judges, node, _) = full(&r, array(3, 2, 20, Kind::default())).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                let ask = async |lba: u64, n: u32| match op {
                    Op::Read => ch.read(lba, n, filled(&r, n as usize * 512, 0)).await.0,
                    _ => ch.write(lba, n, filled(&r, n as usize * 512, 9), IoFlags::NONE).await.0,
                };
                let spoiled = |strips: &[usize]| {
                    let place = |&i: &usize| (s.layout.slot_of(0, i), (s.layout.strip_offset(0) + 512) / 512);
                    strips.iter().map(place).collect::<Vec<_>>()
                };
                let (media, faulty) = (spoiled(&[0, 2, 4]), s.layout.slot_of(0, 1));
                let set = |media: Vec<(usize, u64)>, faulty: Option<usize>| {
                    judges.set(move |slot, io| {
                        let has = |b: u64| (io.lba()..io.lba() + u64::from(io.nblocks())).contains(&b);
                        match io.op() {
                            Op::Read if media.iter().any(|&(m, b)| m == slot && has(b)) => {
                                Act::Fail(Status::UNRECOVERED_READ_ERROR)
                            }
                            Op::Read if Some(slot) == faulty => Act::Fail(Status::INTERNAL_ERROR),
                            _ => Act::Pass,
                        }
                    });
                };
                set(media.clone(), None);
                assert_eq!(ask(1, 1).await, Status::UNRECOVERED_READ_ERROR);
                assert!((0..5).all(|slot| ec(&node).member_state(slot) == InSync));
                // Two of the media, and one that does not read: that one fails, and the others are too few of the block.
                set(media[..2].to_vec(), Some(faulty));
                assert_eq!(ask(1, 1).await, Status::UNRECOVERED_READ_ERROR);
                assert_eq!(ec(&node).member_state(faulty), Failed);
                assert!((0..5).all(|slot| slot == faulty || ec(&node).member_state(slot) == InSync));
                assert!(ask(2, 5).await.is_ok() && !ec(&node).is_offline());
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn a_write_asks_members_once_more_before_they_fail_by_a_read_that_it_needs() {
    for n in [1, 2, 5, 8] {
        sim(4, move |r| async move {
            let (s, judges, _, mut m) = full(&r, array(2, 1, 20, Kind::default())).await;
            s.stop().await;
            let node = s.start(&r, &[2]).await.unwrap();
            {
                let (_desc, ch) = open(&s.registry, "a");
                let count = Arc::new(AtomicU32::new(0));
                let counts = count.clone();
                // Nothing can be done without member 1, which fails every other read.
                judges.set(move |slot, io| match slot {
                    1 if io.op() == Op::Read && counts.fetch_add(1, Relaxed).is_multiple_of(2) => {
                        Act::Fail(Status::INTERNAL_ERROR)
                    }
                    _ => Act::Pass,
                });
                for lba in (0..312).step_by(8) {
                    assert_eq!(m.write(&r, &ch, 512, lba, n, lba as u8).await, Status::SUCCESS, "{n} at {lba}");
                }
                assert!(count.load(Relaxed) > 20, "{count:?}");
                assert_eq!((ec(&node).member_state(1), ec(&node).is_offline()), (InSync, false));
                judges.pass_all();
                m.check(&r, &ch, 512, 8).await;
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn a_read_whose_buffer_is_too_short_costs_no_member() {
    sim(5, |r| async move {
        let (s, _, node, m) = full(&r, array(3, 2, 20, Kind::default())).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            // Within strips, and more than 64 of each member.
            for i in 0..800 {
                let status = ch.read(i % 10 * 24, 2, filled(&r, 512, 0)).await.0;
                assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID);
            }
            assert!((0..5).all(|slot| ec(&node).member_state(slot) == InSync));
            m.check(&r, &ch, 512, 8).await;
        }
        drop(node);
        s.stop().await;
    });
}
