use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::probe::{Act, Kind, array};
use super::{Model, Small, sim};
use crate::ec::format::{PAGE_BITS_BYTES, PageHeader, PageKind, newest};
use crate::ec::start::engine_here;
use crate::malloc::Malloc;
use crate::testing::{Recorder, filled, open};
use crate::{Geometry, Op, Status};
use longshore_reactor::Reactor;

fn at(s: &Small, kind: PageKind, side: u64) -> u64 {
    match kind {
        PageKind::Map => s.layout.map_page_at(0, side),
        PageKind::Wib => s.layout.wib_page_at(0, side),
    }
}

/// The page 0 in force on a member.
async fn page(s: &Small, r: &Reactor, slot: usize, kind: PageKind) -> (PageHeader, Vec<u8>) {
    let sides = [s.get(r, slot, at(s, kind, 0)).await, s.get(r, slot, at(s, kind, 1)).await];
    let (header, bits) = newest([&sides[0], &sides[1]], s.head().array, kind, 0).unwrap();
    (header, bits.to_vec())
}

/// Live stripes, then a session without member 4 that wrote to stripe 0.
async fn degraded(r: &Reactor) -> Small {
    let s = Small::new(3, 2, 4096, 12, &[512]);
    s.create(r).await;
    for absent in [&[][..], &[4]] {
        s.start(r, absent).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(r, &ch, 512, 0, 24, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
        }
        s.stop().await;
    }
    s
}

#[test]
fn a_page_that_one_member_has_is_given_to_the_others_without_overwriting_the_one_they_have() {
    for kind in [PageKind::Map, PageKind::Wib] {
        sim(1, move |r| async move {
            let s = degraded(&r).await;
            // A crash left the next page on member 0 only.
            let (mut header, mut bits) = page(&s, &r, 0, kind).await;
            let old = (header, s.get(&r, 1, at(&s, kind, header.side())).await);
            header.sequence += 1;
            bits[1] |= 1;
            let mut bytes = vec![0; 4096];
            header.encode(&bits, &mut bytes);
            s.put(&r, 0, at(&s, kind, header.side()), &bytes).await;
            s.start(&r, &[4]).await.unwrap();
            for slot in 0..4 {
                assert_eq!(page(&s, &r, slot, kind).await, (header, bits.clone()), "member {slot}");
                assert_eq!(s.get(&r, slot, at(&s, kind, old.0.side())).await, old.1, "member {slot}");
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_lost_page_of_the_write_intent_bitmap_means_that_all_its_regions_were_written() {
    sim(2, |r| async move {
        let s = degraded(&r).await;
        for slot in 0..4 {
            s.put(&r, slot, at(&s, PageKind::Wib, 0), &[0; 4096]).await;
            s.put(&r, slot, at(&s, PageKind::Wib, 1), &[7; 4096]).await;
        }
        s.start(&r, &[4]).await.unwrap();
        let (_, bits) = page(&s, &r, 2, PageKind::Wib).await;
        let regions = s.layout.regions() as usize;
        assert!(
            (0..PAGE_BITS_BYTES * 8).all(|i| (bits[i / 8] >> (i % 8) & 1 != 0) == (i < regions)),
            "{:?}",
            &bits[..8]
        );
        s.stop().await;
    });
}

#[test]
fn a_page_that_begins_a_generation_where_one_could_not_be_read_is_not_zeroed() {
    sim(13, |r| async move {
        let (s, judges) = array(3, 2, 12, Kind::default());
        s.create(&r).await;
        let sides = [0, 1].map(|side| at(&s, PageKind::Wib, side));
        judges.spoil(sides.map(|at| (1, at)));
        s.start(&r, &[4]).await.unwrap();
        judges.pass_all();
        let (header, bits) = page(&s, &r, 0, PageKind::Wib).await;
        assert_eq!(page(&s, &r, 1, PageKind::Wib).await, (header, bits));
        assert_eq!(s.get(&r, 1, sides[1 - header.side() as usize]).await, [0; 4096], "the other one is");
        s.stop().await;
    });
}

#[test]
fn an_array_whose_map_is_lost_does_not_start_as_if_it_were_empty() {
    sim(3, |r| async move {
        let s = degraded(&r).await;
        for slot in 0..4 {
            for side in 0..2 {
                s.put(&r, slot, at(&s, PageKind::Map, side), &[0; 4096]).await;
            }
        }
        assert!(s.start(&r, &[4]).await.is_err());
    });
}

#[test]
fn the_write_intent_bitmap_is_stored_by_one_task_at_a_time() {
    sim(4, |r| async move {
        let s = degraded(&r).await;
        let node = s.start(&r, &[4]).await.unwrap();
        let id = node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap().shared.id;
        let engine = engine_here(id).unwrap();
        let ended = Rc::new(std::cell::Cell::new(0));
        for _ in 0..2 {
            let (engine, ended) = (engine.clone(), ended.clone());
            drop(r.spawn(async move {
                engine.store_intent(true).await.unwrap();
                ended.set(ended.get() + 1);
            }));
        }
        let mut most = 0;
        while ended.get() < 2 {
            r.yield_now().await;
            most = most.max(engine.members[0].inflight());
        }
        assert_eq!(most, 1, "writes of pages at once");
        drop((engine, node));
        s.stop().await;
    });
}

/// Runs `f` on a thread with little stack: what goes deep ends the process there.
fn on_small_stack(f: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(192 << 10).spawn(f).unwrap().join().unwrap();
}

/// An array of stripes that hold data, and a member of each that fails all writes from now on.
async fn failing(r: &Reactor, stripes: u64) -> Small {
    let s = Small::new(2, 1, 4096, stripes, &[512]);
    s.create(r).await;
    s.start(r, &[]).await.unwrap();
    let mut m = Model::new(&s);
    let (_desc, ch) = open(&s.registry, "a");
    for lba in (0..stripes * 16).step_by(1600) {
        assert!(m.write(r, &ch, 512, lba, 1600, 1).await.is_ok());
    }
    assert!(ch.flush().await.0.is_ok());
    s.break_member(0, Op::Write, u32::MAX);
    s.break_member(1, Op::Write, u32::MAX);
    s
}

#[test]
fn thousands_that_wait_for_slots_all_end_on_a_small_stack_when_the_array_goes_offline() {
    on_small_stack(|| {
        sim(5, |r| async move {
            let s = failing(&r, 4000).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                let all = Rc::new(Recorder::default());
                // One of each stripe, and far fewer slots of the journal.
                for i in 0..4000 {
                    all.submit(&ch, Op::Write, 16 * i, 1, filled(&r, 512, 2), i);
                }
                let ended = all.ended(&r, 4000).await;
                assert!(ended.iter().all(|e| e.1 == Status::NAMESPACE_NOT_READY), "{:?}", ended[0]);
            }
            s.stop().await;
        });
    });
}

#[test]
fn thousands_that_wait_for_a_stripe_all_end_on_a_small_stack_when_the_array_goes_offline() {
    on_small_stack(|| {
        sim(7, |r| async move {
            let s = failing(&r, 100).await;
            {
                let (_desc, ch) = open(&s.registry, "a");
                let all = Rc::new(Recorder::default());
                for i in 0..4000 {
                    // Too far apart to be joined.
                    all.submit(&ch, Op::Write, [0, 7][i as usize % 2], 1, filled(&r, 512, 2), i);
                }
                let ended = all.ended(&r, 4000).await;
                assert!(ended.iter().all(|e| e.1 == Status::NAMESPACE_NOT_READY), "{:?}", ended[0]);
            }
            s.stop().await;
        });
    });
}

#[test]
fn the_list_of_what_is_to_be_committed_has_each_stripe_once() {
    sim(8, |r| async move {
        let s = Small::new(2, 1, 4096, 10, &[512]);
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let engine = engine_here(node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap().shared.id).unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for round in 0..100 {
                assert!(m.write(&r, &ch, 512, 16, 32, round).await.is_ok());
                assert!(ch.unmap(16, 16).await.0.is_ok());
                m.0[16 * 512..32 * 512].fill(0);
                assert!(engine.map.listed() <= 2, "{} in round {round}", engine.map.listed());
            }
            m.check(&r, &ch, 512, 8).await;
            assert!(ch.flush().await.0.is_ok());
            assert_eq!(engine.map.listed(), 0);
            assert!(m.write(&r, &ch, 512, 20, 2, 5).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
        }
        drop((engine, node));
        s.stop().await;
        s.start(&r, &[2]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_large_unmap_passes_over_what_was_never_written() {
    sim(9, |r| async move {
        let s = Small::new(2, 1, 4096, 12_000, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            let blocks = s.layout.num_blocks();
            for lba in [0, 16 * 63, 16 * 64, 16 * 5000, blocks - 16] {
                assert!(m.write(&r, &ch, 512, lba, 16, 1).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            let ec = s.registry.find("a").unwrap();
            let id = ec.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap().shared.id;
            let engine = engine_here(id).unwrap();
            let first = |from| engine.first_held(from..12_000);
            assert_eq!([0, 1, 64, 65, 5001, 11_999].map(first), [0, 63, 64, 5000, 11_999, 11_999]);
            assert_eq!(engine.first_held(65..5000), 5000, "none");
            drop((engine, ec));
            let before = s.stats().metadata_writes;
            // A write is under way to a stripe that holds nothing yet: it is waited for.
            let all = Rc::new(Recorder::default());
            all.submit(&ch, Op::Write, 16 * 9000 + 3, 2, filled(&r, 1024, 7), 0);
            all.submit(&ch, Op::Unmap, 0, blocks as u32, filled(&r, 512, 0), 1);
            let mut turns = 0;
            while all.0.borrow().len() < 2 {
                r.yield_now().await;
                turns += 1;
            }
            assert!(all.0.borrow().iter().all(|e| e.1.is_ok()));
            // Not a turn for each 256 stripes.
            assert!(turns < 40, "{turns} turns");
            assert!(s.stats().metadata_writes - before <= 4 * 3);
            m.0.fill(0);
            m.check(&r, &ch, 512, 1600).await;
        }
        s.stop().await;
    });
}

#[test]
fn overwrites_go_on_when_the_only_member_with_a_volatile_cache_fails() {
    sim(6, |r| async move {
        let s = Small::on(2, 1, 4096, 12, &[512], |slot, g| {
            Malloc::new(Geometry { volatile_cache: slot == 0, ..g }).unwrap()
        });
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 12 * 16, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            for stripe in 0..3 {
                assert!(m.write(&r, &ch, 512, stripe * 16, 1, 77).await.is_ok());
            }
            s.break_member(0, Op::Write, u32::MAX);
            for stripe in 0..12 {
                assert!(m.write(&r, &ch, 512, stripe * 16, 1, 99).await.is_ok());
            }
            m.check(&r, &ch, 512, 16).await;
        }
        s.stop().await;
    });
}

#[test]
fn an_array_that_goes_offline_takes_no_write_for_durable_that_was_not_flushed() {
    sim(7, |r| async move {
        let s = Small::on(2, 2, 4096, 12, &[512], |_, g| Malloc::new(Geometry { volatile_cache: true, ..g }).unwrap());
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let engine = engine_here(node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap().shared.id).unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 12 * 16, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            assert!(m.write(&r, &ch, 512, 0, 1, 77).await.is_ok());
            let tail = engine.journal.tail();
            // The round that would retire it fails on more members than can be missing.
            s.break_member(0, Op::Flush, u32::MAX);
            s.break_member(3, Op::Flush, u32::MAX);
            assert_eq!(m.write(&r, &ch, 512, 16, 1, 99).await, Status::NAMESPACE_NOT_READY);
            for _ in 0..8 {
                r.yield_now().await;
            }
            assert_eq!(engine.journal.tail(), tail, "a record with a later tail would void that of the write");
        }
        drop((engine, node));
        s.stop().await;
    });
}

#[test]
fn a_page_that_could_not_be_read_for_a_moment_does_not_count_later() {
    for kind in [PageKind::Map, PageKind::Wib] {
        sim(12, move |r| async move {
            let (s, judges) = array(3, 2, 12, Kind::default());
            s.create(&r).await;
            let mut m = Model::new(&s);
            for absent in [&[][..], &[4]] {
                s.start(&r, absent).await.unwrap();
                {
                    let (_desc, ch) = open(&s.registry, "a");
                    assert!(m.write(&r, &ch, 512, 0, 48, 1).await.is_ok());
                    assert!(ch.flush().await.0.is_ok());
                }
                s.stop().await;
            }
            // Power failed when a page in which stripe 0 holds nothing, or was not written, had reached member 0 alone.
            let (mut header, mut bits) = page(&s, &r, 0, kind).await;
            assert_eq!(bits[0] & 1, 1);
            (header.sequence, bits[0]) = (header.sequence + 1, bits[0] & !1);
            let mut bytes = vec![0; 4096];
            header.encode(&bits, &mut bytes);
            let at = at(&s, kind, header.side());
            s.put(&r, 0, at, &bytes).await;
            judges.set(move |slot, io| {
                let here = (io.lba()..io.lba() + u64::from(io.nblocks())).contains(&(at / 512));
                match slot == 0 && here && io.op() == Op::Read {
                    true => Act::Fail(Status::UNRECOVERED_READ_ERROR),
                    false => Act::Pass,
                }
            });
            s.start(&r, &[4]).await.unwrap();
            s.stop().await;
            judges.pass_all();
            s.start(&r, &[4]).await.unwrap();
            let (_, counts) = page(&s, &r, 0, kind).await;
            assert_eq!(counts[0] & 1, 1, "{kind:?}");
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 8).await;
            }
            s.stop().await;
        });
    }
}

#[test]
fn an_array_that_is_closed_while_a_commit_runs_waits_for_it_asleep() {
    sim(13, |r| async move {
        let (s, judges) = array(2, 1, 12, Kind::default());
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let ec = node.device().as_any().downcast_ref::<crate::ec::Ec>().unwrap();
        let engine = engine_here(ec.shared.id).unwrap();
        let mut m = Model::new(&s);
        let (_desc, ch) = open(&s.registry, "a");
        assert!(m.write(&r, &ch, 512, 0, 16, 1).await.is_ok());
        let pages = [0, 1].map(|side| s.layout.map_page_at(0, side) / 512);
        judges.set(move |_, io| match io.op() == Op::Write && pages.contains(&io.lba()) {
            true => Act::After(Duration::from_millis(5)),
            false => Act::Pass,
        });
        let flush = r.spawn(async move { ch.flush().await.0 });
        while !engine.map.is_running() {
            r.sleep(Duration::from_micros(10)).await;
        }
        // Whoever turns without sleeping keeps simulated time from passing: it would do so for ever.
        let turns = Rc::new(Cell::new(0));
        let count = turns.clone();
        let watch = r.poller("watch", move |_| {
            count.set(count.get() + 1);
            assert!(count.get() < 10_000, "it spins");
            0
        });
        engine.final_commit().await;
        assert!(!engine.map.is_running() && turns.get() < 1000, "{} turns", turns.get());
        drop(watch);
        assert!(flush.await.unwrap().is_ok());
        drop((_desc, engine, node));
        s.stop().await;
    });
}
