//! Members whose reads take long.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::probe::{Act, Kind, array, ec, ended, full};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::InSync;
use crate::testing::open;

const MS: u64 = 1_000_000;

/// Reads blocks one by one all over the array, eight at a time; how long each took, sorted, in nanoseconds.
async fn latencies(r: &Reactor, ch: &Channel, blocks: u64, count: u64) -> Vec<u64> {
    let mut all = Vec::new();
    for i in 0..count / 8 {
        let (rec, before) = (Rc::new(Recorder::default()), r.now());
        for j in 0..8 {
            let n = if j == 7 { 9 } else { 1 };
            rec.submit(ch, Op::Read, (i * 8 + j) * 13 % (blocks - 8), n, filled(r, n as usize * 512, 0), j);
        }
        let mut seen = 0;
        while seen < 8 {
            r.sleep(Duration::from_micros(50)).await;
            let now = rec.0.borrow().len();
            all.extend(std::iter::repeat_n(r.now() - before, now - seen));
            seen = now;
        }
        assert!(rec.0.borrow().iter().all(|e| e.1.is_ok()));
    }
    all.sort_unstable();
    all
}

#[test]
fn reads_go_past_a_slow_member_until_it_is_fast_again() {
    for deaf in [false, true] {
        sim(1, move |r| async move {
            let (s, judges, node, mut m) = full(&r, array(3, 2, 20, Kind { deaf, ..Kind::default() })).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                let (asked, count) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
                let (asks, counts) = (asked.clone(), count.clone());
                judges.set(move |slot, io| match slot {
                    1 => {
                        asks.fetch_add(u64::from(io.op() == Op::Read), Relaxed);
                        Act::After(Duration::from_millis(100))
                    }
                    _ => Act::After(Duration::from_micros(100 + counts.fetch_add(37, Relaxed) % 50)),
                });
                let took = latencies(&r, &ch, 480, 2000).await;
                let (p99, most) = (took[took.len() * 99 / 100], took[took.len() - 1]);
                assert!(p99 < 2 * MS, "p99 {p99} ns");
                // The first that met the slow member: aborted after 50 ms to 63 ms, or done when the device has done them.
                assert!(most < if deaf { 110 * MS } else { 70 * MS }, "the slowest {most} ns");
                assert_eq!(ec(&node).member_state(1), InSync);
                assert!(asked.load(Relaxed) < 40, "reads of the slow member: {asked:?}");
                assert_eq!(ec(&node).stats().healed_reads, 0);
                // A slow member is written to, and keeps up.
                assert!(m.write(&r, &ch, 512, 5, 77, 3).await.is_ok());
                m.check(&r, &ch, 512, 5).await;
                // Without two others, it is read, slow or not.
                s.break_member(3, Op::Write, u32::MAX);
                s.break_member(4, Op::Write, u32::MAX);
                assert!(m.write(&r, &ch, 512, 7, 100, 4).await.is_ok());
                m.check(&r, &ch, 512, 24).await;
                judges.pass_all();
                r.sleep(Duration::from_secs(1)).await;
                let before = asked.load(Relaxed);
                judges.set(move |slot, io| {
                    asked.fetch_add(u64::from(slot == 1 && io.op() == Op::Read), Relaxed);
                    Act::Pass
                });
                m.check(&r, &ch, 512, 8).await;
                assert!(before > 0 && !ec(&node).shared.is_slow(1), "it is fast again");
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn a_late_read_of_a_slow_member_never_writes_to_memory_that_its_host_has_back() {
    sim(2, |r| async move {
        let (s, judges, _, m) = full(&r, array(3, 2, 20, Kind { deaf: true, ..Kind::default() })).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            judges.set(|slot, _| if slot == 1 { Act::After(Duration::from_millis(300)) } else { Act::Pass });
            for lba in (0..470).step_by(9) {
                // One block, and several strips.
                for n in [1, 10] {
                    let (status, buf) = ch.read(lba, n, filled(&r, n as usize * 512, 0)).await;
                    assert!(status.is_ok());
                    let mut buf = buf.unwrap();
                    assert_eq!(buf.as_slice(), &m.0[lba as usize * 512..][..n as usize * 512]);
                    assert!(buf.is_unique(), "nobody else has it");
                    buf.get_mut().unwrap().fill(0xcc);
                    r.sleep(Duration::from_millis(20)).await;
                    assert!(buf.as_slice().iter().all(|&b| b == 0xcc));
                }
            }
        }
        s.stop().await;
    });
}

#[test]
fn where_all_members_are_late_none_is_slow() {
    sim(3, |r| async move {
        let (s, judges, node, _) = full(&r, array(3, 2, 20, Kind::default())).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            judges.set(|_, _| Act::After(Duration::from_millis(80)));
            let all = Rc::new(Recorder::default());
            for i in 0..60 {
                all.submit(&ch, Op::Read, i * 8, 8, filled(&r, 4096, 0), i);
            }
            assert!(ended(&r, &all, 60).await.iter().all(|e| e.1.is_ok()));
            assert_eq!((ec(&node).shared.slow(), ec(&node).stats().reconstructed_reads), (0, 0));
            judges.pass_all();
        }
        drop(node);
        s.stop().await;
    });
}

#[test]
fn a_slow_member_that_a_block_cannot_do_without_is_waited_for() {
    for deaf in [false, true] {
        sim(4, move |r| async move {
            let (s, judges, node, m) = full(&r, array(2, 1, 20, Kind { deaf, ..Kind::default() })).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                // One cannot read anything, one takes its time: before it is known to be slow, and after that.
                judges.set(|slot, io| match slot {
                    0 if io.op() == Op::Read => Act::Fail(Status::UNRECOVERED_READ_ERROR),
                    1 if io.op() == Op::Read => Act::After(Duration::from_millis(200)),
                    _ => Act::Pass,
                });
                for lba in [0, 3, 8, 17, 25, 40] {
                    for n in [1, 12] {
                        let (status, buf) = ch.read(lba, n, filled(&r, n as usize * 512, 0)).await;
                        assert!(status.is_ok(), "{n} blocks at {lba}: {status}");
                        assert_eq!(buf.unwrap().as_slice(), &m.0[lba as usize * 512..][..n as usize * 512]);
                    }
                }
                assert!(ec(&node).shared.is_slow(1));
                assert!((0..3).all(|slot| ec(&node).member_state(slot) == InSync));
                assert_eq!(ec(&node).stats().unrecovered_reads, 0);
                judges.pass_all();
                m.check(&r, &ch, 512, 8).await;
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn an_array_that_is_stopped_waits_for_what_a_slow_member_has_and_for_nothing_else() {
    sim(5, |r| async move {
        let (s, judges, node, m) = full(&r, array(2, 1, 20, Kind { deaf: true, ..Kind::default() })).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            judges.set(|slot, io| match slot {
                1 if io.op() == Op::Read => Act::After(Duration::from_millis(900)),
                _ => Act::Pass,
            });
            m.check(&r, &ch, 512, 5).await;
            assert!(ec(&node).shared.is_slow(1));
            // A look at whether it is fast again is on its way.
            r.sleep(Duration::from_millis(120)).await;
        }
        let before = r.now();
        drop(node);
        s.stop().await;
        assert!(r.now() - before < 950 * MS);
        judges.pass_all();
        r.sleep(Duration::from_secs(1)).await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_slow_member_that_says_of_aborted_reads_not_to_ask_again_does_not_fail_by_that_and_nothing_is_healed() {
    sim(6, |r| async move {
        let (s, judges, node, m) = full(&r, array(3, 2, 40, Kind { dnr: true, ..Kind::default() })).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            judges.set(|slot, io| match slot {
                1 if io.op() == Op::Read => Act::After(Duration::from_millis(200)),
                _ => Act::Pass,
            });
            // Of one block, straight to the member, and of several strips, all at once: far more than 64 of either are aborted.
            let all = Rc::new(Recorder::default());
            for i in 0..960 {
                all.submit(&ch, Op::Read, i, 1, filled(&r, 512, 0), i);
            }
            for i in 0..400 {
                all.submit(&ch, Op::Read, i * 2, 17, filled(&r, 17 * 512, 0), i);
            }
            assert!(ended(&r, &all, 1360).await.iter().all(|e| e.1.is_ok()));
            r.sleep(Duration::from_millis(20)).await;
            assert!(judges.aborts() > 300, "{}", judges.aborts());
            assert!(ec(&node).shared.is_slow(1));
            assert_eq!((ec(&node).member_state(1), ec(&node).stats().healed_reads), (InSync, 0));
            judges.pass_all();
            m.check(&r, &ch, 512, 8).await;
        }
        drop(node);
        s.stop().await;
    });
}

#[test]
fn what_members_answered_while_the_process_was_stopped_is_not_late_and_what_hangs_after_it_is() {
    sim(9, |r| async move {
        let (s, judges, node, mut m) = full(&r, array(3, 2, 20, Kind::default())).await;
        {
            let (_desc, ch) = open(&s.registry, "a");
            let limit = Tuning::default().write_timeout;
            judges.set(|_, _| Act::After(Duration::from_millis(20)));
            let read = ch.read(100, 1, filled(&r, 512, 0));
            let write = ch.write(5, 77, filled(&r, 77 * 512, 3), IoFlags::NONE);
            m.0[5 * 512..82 * 512].fill(3);
            r.sleep(Duration::from_millis(10)).await;
            longshore_reactor::sim::pause(&r, limit * 2);
            assert!(read.await.0.is_ok() && write.await.0.is_ok());
            assert_eq!((0..5).map(|slot| ec(&node).member_state(slot)).collect::<Vec<_>>(), [InSync; 5]);
            // Nobody has lost its right to be called late.
            judges.set(|slot, _| if slot == 1 { Act::Hold } else { Act::Pass });
            let before = r.now();
            assert!(m.write(&r, &ch, 512, 5, 77, 4).await.is_ok());
            assert!(r.now() - before >= r.ticks(limit) && ec(&node).member_state(1) != InSync);
            m.check(&r, &ch, 512, 24).await;
        }
        drop(node);
        s.stop().await;
    });
}
