//! What writes cost, which memory they need, and what one has to do with another.

use std::rc::Rc;
use std::time::Duration;

use longshore_accel::Accel;
use longshore_reactor::DmaBuf;

use super::*;
use crate::ec::EcStats;
use crate::io::Op;
use crate::testing::open;

/// Bytes moved on members for each byte that the host wrote.
fn cost(before: EcStats, after: EcStats) -> f64 {
    let moved = |s: EcStats| s.member_read_bytes + s.member_written_bytes + s.journal_written_bytes;
    (moved(after) - moved(before)) as f64 / (after.host_written_bytes - before.host_written_bytes) as f64
}

#[test]
fn a_small_write_across_the_border_of_two_strips_costs_as_little_as_two_writes() {
    sim(51, |r| async move {
        let s = Small::new(4, 2, 64 << 10, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for lba in (0..2048).step_by(512) {
                assert!(m.write(&r, &ch, 512, lba, 512, 1).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            let before = s.stats();
            for border in [128, 256, 512 + 384] {
                assert!(m.write(&r, &ch, 512, border - 8, 16, 7).await.is_ok());
            }
            let border = cost(before, s.stats());
            // Read, record and write of each byte and its two parities, and headers.
            assert!(border < 10.0, "{border:.1} bytes of members for each byte of the host");
            m.check(&r, &ch, 512, 128).await;
        }
        s.stop().await;
    });
}

#[test]
fn small_writes_far_apart_in_one_stripe_cost_as_little_as_alone() {
    sim(52, |r| async move {
        let s = Small::new(4, 2, 64 << 10, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 512, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            let before = s.stats();
            let all = Rc::new(Recorder::default());
            for i in 0..32u64 {
                let lba = i * 17 % 32 * 16;
                all.submit(&ch, Op::Write, lba, 2, filled(&r, 1024, i as u8), i);
                m.0[lba as usize * 512..][..1024].fill(i as u8);
            }
            assert!(end_within(&r, &all, 32, 60).await.iter().all(|e| e.1.is_ok()));
            let apart = cost(before, s.stats());
            assert!(apart < 14.0, "{apart:.1} bytes of members for each byte of the host");
            m.check(&r, &ch, 512, 128).await;
            // Those that lie side by side are still one.
            let (before, all) = (s.stats(), Rc::new(Recorder::default()));
            for i in 0..33u64 {
                all.submit(&ch, Op::Write, i * 2, 2, filled(&r, 1024, i as u8), i);
                m.0[i as usize * 1024..][..1024].fill(i as u8);
            }
            assert!(end_within(&r, &all, 33, 60).await.iter().all(|e| e.1.is_ok()));
            assert_eq!(s.stats().joined_writes - before.joined_writes, 31);
            m.check(&r, &ch, 512, 128).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_write_with_too_little_memory_does_not_fail_those_behind_it() {
    sim(53, |r| async move {
        let s = Small::new(2, 1, 4096, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            let all = Rc::new(Recorder::default());
            for (tag, n, bytes) in [(0, 4, 2048), (1, 4, 1024), (2, 4, 2048)] {
                all.submit(&ch, Op::Write, 4 * tag, n, filled(&r, bytes, 1), tag);
            }
            let mut ended = end_within(&r, &all, 3, 60).await;
            ended.sort_by_key(|e| e.0);
            let (good, bad) = (Status::SUCCESS, Status::DATA_SGL_LENGTH_INVALID);
            assert_eq!(ended, [(0, good), (1, bad), (2, good)]);
        }
        s.stop().await;
    });
}

fn small_pool() -> Settings {
    let mut settings = Settings::default();
    settings.dma.max_bytes = 16 << 20;
    settings
}

/// All memory of the pool.
fn hog(r: &Reactor) -> Vec<DmaBuf> {
    (12..=21).rev().flat_map(|shift| std::iter::from_fn(move || r.dma().alloc(1 << shift))).collect()
}

#[test]
fn writes_and_reads_go_on_when_hosts_hold_all_memory() {
    for fresh in [true, false] {
        sim_with(54, small_pool(), move |r| async move {
            let s = Small::new(3, 2, 64 << 10, 8, &[512]);
            s.create(&r).await;
            s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                for stripe in 0..8 {
                    assert!(m.write(&r, &ch, 512, stripe * 384, 384, 1).await.is_ok());
                }
                if !fresh {
                    assert!(ch.flush().await.0.is_ok());
                }
                let all = Rc::new(Recorder::default());
                let mut held: Vec<_> = (0..24).map(|i| filled(&r, 48 << 10, i)).collect();
                let rest = hog(&r);
                for i in 0..24u64 {
                    let lba = i % 8 * 384 + i * 100 % 280;
                    m.0[lba as usize * 512..][..48 << 10].fill(23 - i as u8);
                    all.submit(&ch, Op::Write, lba, 96, held.pop().unwrap(), i);
                    if i == 12 {
                        // A commit waits for writers of fresh stripes, others behind it for the commit.
                        all.submit(&ch, Op::Flush, 0, 0, rest[0].slice(0, 0), 99);
                    }
                }
                let ended = end_within(&r, &all, 25, 60).await;
                assert!(ended.len() == 25 && ended.iter().all(|e| e.1.is_ok()), "{} ended", ended.len());
                drop(rest);
                m.check(&r, &ch, 512, 128).await;
                s.break_member(s.layout.slot_of(0, 0), Op::Read, 1);
                let buf = filled(&r, 64 << 10, 0);
                let rest = hog(&r);
                all.submit(&ch, Op::Read, 0, 128, buf, 100);
                assert_eq!(end_within(&r, &all, 26, 60).await.last(), Some(&(100, Status::SUCCESS)));
                assert!(s.stats().reconstructed_reads > 0);
                drop(rest);
                m.check(&r, &ch, 512, 100).await;
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_write_that_needs_more_memory_than_there_is_is_done_in_pieces() {
    sim_with(55, small_pool(), |r| async move {
        let s = Small::new(16, 4, 1 << 20, 2, &[4096]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for at in (0..4096).step_by(256) {
                assert!(m.write(&r, &ch, 4096, at, 256, 1).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            // Two writes of a stripe that are joined, of all rows: with parity and old data up to 12 MiB.
            let all = Rc::new(Recorder::default());
            for (tag, lba) in [(0, 128), (1, 800)] {
                let (at, n) = (lba as usize * 4096, 400);
                m.0[at..at + n * 4096].fill(9);
                all.submit(&ch, Op::Write, lba, n as u32, filled(&r, n * 4096, 9), tag);
            }
            let ended = end_within(&r, &all, 2, 60).await;
            assert!(ended.len() == 2 && ended.iter().all(|e| e.1.is_ok()), "{ended:?}");
            m.check(&r, &ch, 4096, 128).await;
        }
        s.stop().await;
    });
}

#[test]
fn an_array_for_which_no_memory_can_be_set_aside_does_not_start_and_says_why() {
    sim_with(56, small_pool(), |r| async move {
        let s = Small::new(2, 1, 4096, 4, &[512]);
        s.create(&r).await;
        let head = s.superblock(&r, 0).await;
        let members = (0..3).map(|slot| s.open(slot).ok()).collect();
        let mut held = hog(&r);
        // Enough for everything but what is set aside.
        held.drain(..1);
        let zeroes: Vec<_> = (0..31).map(|_| r.dma().alloc(64 << 10).unwrap()).collect();
        let refused = start(&s.registry, "a", head, members, Tuning::default(), &Accel::default()).await;
        let why = refused.err().unwrap().to_string();
        assert!(why.contains("limited to 16384 KiB"), "{why}");
        drop((held, zeroes));
        r.sleep(Duration::from_millis(1)).await;
    });
}

#[test]
fn counters_say_what_each_request_of_the_host_cost_below() {
    sim(58, |r| async move {
        let s = Small::new(4, 2, 8192, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            // Nothing is there: nobody is asked.
            let before = s.stats();
            m.check(&r, &ch, 512, 16).await;
            let after = s.stats();
            assert_eq!(after.host_read_bytes - before.host_read_bytes, m.0.len() as u64);
            assert_eq!((after.member_reads, after.member_read_bytes), (before.member_reads, before.member_read_bytes));
            assert!(m.write(&r, &ch, 512, 0, 64, 1).await.is_ok() && ch.flush().await.0.is_ok());
            // A block and its two parities: each is read, recorded with a header and written.
            let before = s.stats();
            assert!(m.write(&r, &ch, 512, 3, 1, 2).await.is_ok());
            assert!(ch.write_zeroes(40, 1, IoFlags::NONE).await.0.is_ok());
            let after = s.stats();
            assert_eq!(
                (after.host_writes - before.host_writes, after.host_written_bytes - before.host_written_bytes),
                (2, 1024)
            );
            assert_eq!(
                (after.member_reads - before.member_reads, after.member_read_bytes - before.member_read_bytes),
                (6, 6 * 512)
            );
            assert_eq!(
                (after.journal_writes - before.journal_writes, after.member_writes - before.member_writes),
                (6, 6)
            );
            assert_eq!(after.journal_written_bytes - before.journal_written_bytes, 6 * 1024);
            assert_eq!(after.member_written_bytes - before.member_written_bytes, 6 * 512);
            assert_eq!(
                after.read_modify_writes - before.read_modify_writes,
                2,
                "as cheap as the alternative, which reads others"
            );
            // One strip of one member.
            assert!(ch.read(3, 4, filled(&r, 2048, 0)).await.0.is_ok());
            assert_eq!(s.stats().member_reads - after.member_reads, 1);
        }
        s.stop().await;
    });
}
