//! An array whose members another writer has taken over.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::probe::{Act, Kind, array, ec, ended, full};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::InSync;
use crate::testing::{Recorder, open};

#[test]
fn nothing_is_sent_to_members_any_more_that_changes_them() {
    for seed in 0..12 {
        sim(seed, move |r| async move {
            let (s, judges) = array(3, 2, 40, Kind { volatile: seed % 2 == 0, ..Kind::default() });
            s.create(&r).await;
            let node = s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(m.write(&r, &ch, 512, 0, 30 * 24, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                let mut sb = s.superblock(&r, 1).await;
                (sb.stamp.epoch, sb.stamp.nonce) = (sb.stamp.epoch + 1, 4711);
                let mut other = vec![0; 4096];
                sb.for_slot(1).encode(&mut other);
                s.put(&r, 1, Layout::superblock_at(sb.copy()), &other).await;
                let (late, count) = (Arc::new(AtomicU32::new(0)), AtomicU64::new(seed));
                let data = s.layout.strip_offset(0);
                let (array, counted) = (node.clone(), late.clone());
                judges.set(move |slot, io| {
                    let changes = io.op() != Op::Read;
                    if changes && ec(&array).is_offline() {
                        counted.fetch_add(1, Relaxed);
                    }
                    let n = count.fetch_add(1, Relaxed);
                    match slot {
                        // It fails, and so the others' superblocks are looked at; one write alone would do.
                        4 if changes && n > 60 => Act::Fail(Status::INTERNAL_ERROR),
                        0 if io.op() == Op::Read && io.lba() * 512 >= data && n % 7 == 0 => {
                            Act::Fail(Status::UNRECOVERED_READ_ERROR)
                        }
                        _ => Act::After(Duration::from_micros(30 + 50 * (n * 7919 % 13))),
                    }
                });
                let all = Rc::new(Recorder::default());
                for i in 0..160u64 {
                    let (op, lba, n) = match i % 8 {
                        0 => (Op::Unmap, (i / 8 % 30) * 24, 24),
                        1 => (Op::Flush, 0, 0),
                        2 => (Op::Read, i * 5 % 700, 4),
                        // Stripes that hold nothing yet.
                        3 => (Op::Write, 720 + i % 200, 3),
                        _ => (Op::Write, i * 11 % 700, 5),
                    };
                    all.submit(&ch, op, lba, n, filled(&r, n as usize * 512, 2), i);
                }
                let outcome = ended(&r, &all, 160).await;
                assert!(ec(&node).is_offline());
                assert!(outcome.iter().any(|e| e.1 == Status::NAMESPACE_NOT_READY));
                r.sleep(Duration::from_secs(100)).await;
                assert_eq!(late.load(Relaxed), 0, "requests that change members after the array went offline");
                assert!((0..4).all(|slot| ec(&node).member_state(slot) == InSync), "nothing is wrong with the others");
                judges.pass_all();
            }
            drop(node);
            s.stop().await;
            assert_eq!(s.superblock(&r, 1).await.stamp.nonce, 4711);
        });
    }
}

#[test]
fn after_a_pause_longer_than_their_patience_members_are_written_only_if_nobody_else_has_taken_them_over() {
    for (seed, taken) in (0..8).flat_map(|seed| [(seed, false), (seed, true)]) {
        sim(seed, move |r| async move {
            let kind = Kind { volatile: seed % 2 == 0, ..Kind::default() };
            let (s, judges, node, mut m) = full(&r, array(3, 2, 40, kind)).await;
            let before = s.superblock(&r, 0).await.stamp;
            {
                let (_desc, ch) = open(&s.registry, "a");
                if taken {
                    let mut sb = s.superblock(&r, 1).await;
                    (sb.stamp.epoch, sb.stamp.nonce) = (sb.stamp.epoch + 1, 4711);
                    let mut other = vec![0; 4096];
                    sb.for_slot(1).encode(&mut other);
                    s.put(&r, 1, Layout::superblock_at(sb.copy()), &other).await;
                }
                let (resumed, late) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
                let (now, counted, data) = (resumed.clone(), late.clone(), s.layout.strip_offset(0));
                judges.set(move |_, io| {
                    if io.op() == Op::Write && io.lba() * 512 >= data && now.load(Relaxed) != 0 {
                        counted.fetch_add(1, Relaxed);
                    }
                    Act::After(Duration::from_millis(7))
                });
                let all = Rc::new(Recorder::default());
                for i in 0..30u64 {
                    let n = if i % 3 == 0 { 24 } else { 3 };
                    m.0[i as usize * 24 * 512..][..n * 512].fill(9);
                    all.submit(&ch, Op::Write, i * 24, n as u32, filled(&r, n * 512, 9), i);
                }
                // In the middle of any step.
                r.sleep(Duration::from_millis(3 + 4 * seed)).await;
                let ended_before = all.0.borrow().len();
                longshore_reactor::sim::pause(&r, Tuning::default().write_timeout * 2);
                resumed.store(u32::from(taken), Relaxed);
                let outcome = ended(&r, &all, 30).await;
                assert_eq!(ec(&node).is_offline(), taken);
                assert_eq!(late.load(Relaxed), 0, "written in place over what another writer has there");
                if taken {
                    let refused = |e: &(u64, Status)| e.1 == Status::NAMESPACE_NOT_READY;
                    assert!(outcome[ended_before..].iter().all(refused), "{outcome:?}");
                } else {
                    assert!(outcome.iter().all(|e| e.1.is_ok()), "{outcome:?}");
                    assert_eq!((0..5).map(|slot| ec(&node).member_state(slot)).collect::<Vec<_>>(), [InSync; 5]);
                    judges.pass_all();
                    m.check(&r, &ch, 512, 24).await;
                    let busy = ended_before < 30;
                    assert_eq!(s.superblock(&r, 0).await.stamp.epoch > before.epoch, busy, "looked by an update");
                }
                judges.pass_all();
            }
            drop(node);
            s.stop().await;
        });
    }
}
