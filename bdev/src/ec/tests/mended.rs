use std::rc::Rc;

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

#[test]
fn thousands_that_wait_all_end_when_the_array_goes_offline() {
    sim(5, |r| async move {
        let s = Small::new(2, 1, 4096, 4000, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for lba in (0..64_000).step_by(1600) {
                assert!(m.write(&r, &ch, 512, lba, 1600, 1).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            s.break_member(0, Op::Write, u32::MAX);
            s.break_member(1, Op::Write, u32::MAX);
            let all = Rc::new(Recorder::default());
            // More than there are slots of the journal, and a long queue at one stripe.
            for i in 0..6000u64 {
                let lba = if i < 4000 { 16 * i } else { 0 };
                all.submit(&ch, Op::Write, lba, 1, filled(&r, 512, 2), i);
            }
            let ended = all.ended(&r, 6000).await;
            assert!(ended.iter().all(|e| e.1 == Status::NAMESPACE_NOT_READY), "{:?}", ended[0]);
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
