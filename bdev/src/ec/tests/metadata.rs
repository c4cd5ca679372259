//! Metadata that cannot be read, and how long it takes to read it.

use std::time::Duration;

use super::probe::{Act, Kind, array, array_with, ec};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::{Failed, InSync};
use crate::ec::format::{RECORD_BYTES, RecordHeader};
use crate::ec::start::engine_here;
use crate::testing::open;

#[test]
fn a_block_of_the_older_superblock_that_cannot_be_read_costs_no_member_at_an_update() {
    sim(1, |r| async move {
        let (s, judges) = array(3, 2, 8, Kind::default());
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 100, 1).await.is_ok());
            let older = Layout::superblock_at(1 - s.superblock(&r, 0).await.copy());
            // On three of five: more than may be lost.
            let spoiled = judges.spoil([0, 1, 2].map(|slot| (slot, older)));
            s.break_member(4, Op::Write, u32::MAX);
            assert!(m.write(&r, &ch, 512, 3, 90, 2).await.is_ok());
            let states: Vec<_> = (0..5).map(|slot| ec(&node).member_state(slot)).collect();
            assert_eq!(states, [InSync, InSync, InSync, InSync, Failed]);
            assert!(spoiled.lock().unwrap().is_empty(), "the update wrote them");
            m.check(&r, &ch, 512, 9).await;
        }
        drop(node);
        s.stop().await;
    });
}

#[test]
fn blocks_of_the_journal_and_the_bitmaps_that_cannot_be_read_and_hold_nothing_that_counts_are_written_anew() {
    sim(2, |r| async move {
        let (s, judges) = array(3, 2, 8, Kind::default());
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 100, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
        }
        s.stop().await;
        let l = s.layout;
        let spoiled = judges.spoil([
            (0, l.journal_at(0)),
            (1, l.journal_at(3)),
            (2, l.journal_at(7)),
            (3, l.map_page_at(0, 0)),
            (4, l.map_page_at(0, 1) + 512),
            (4, l.journal_at(5)),
        ]);
        let node = s.start(&r, &[]).await.unwrap();
        assert!((0..5).all(|slot| ec(&node).member_state(slot) == InSync));
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 9).await;
            // Both sides of the map's page are written by now.
            assert!(m.write(&r, &ch, 512, 150, 9, 5).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            assert!(m.write(&r, &ch, 512, 180, 9, 6).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            assert_eq!(*spoiled.lock().unwrap(), Default::default());
        }
        drop(node);
        s.stop().await;
        s.start(&r, &[1, 2]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 9).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_record_that_counts_and_cannot_be_read_costs_its_member_and_no_data() {
    for payload in [false, true] {
        sim(3, move |r| async move {
            let (s, judges) = array(3, 2, 8, Kind::default());
            s.create(&r).await;
            let head = s.head();
            s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(m.write(&r, &ch, 512, 0, 48, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                assert!(m.write(&r, &ch, 512, 2, 3, 9).await.is_ok());
            }
            s.stop().await;
            // The record of the last write is the newest, and was not made void by anything since.
            let session = s.superblock(&r, 0).await.journal_session;
            let mut newest: Option<(usize, RecordHeader)> = None;
            for slot in 0..5 {
                for index in 1..s.layout.journal_slots {
                    let bytes = s.get(&r, slot, s.layout.journal_at(index)).await;
                    let Ok(h) = RecordHeader::decode(&bytes[..RECORD_BYTES]) else { continue };
                    if h.check(&s.layout, head.array, session, slot, index).is_ok()
                        && newest.is_none_or(|(_, n)| n.txn < h.txn)
                    {
                        newest = Some((slot, h));
                    }
                }
            }
            let (slot, record) = newest.unwrap();
            judges.spoil([(slot, s.layout.journal_at(record.index) + if payload { 512 } else { 0 })]);
            let node = s.start(&r, &[]).await.unwrap();
            assert_eq!(ec(&node).member_state(slot), Failed);
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 9).await;
            }
            drop(node);
            s.stop().await;
        });
    }
}

#[test]
fn large_journals_are_read_quickly_and_marks_written_at_once() {
    sim(5, |r| async move {
        let (s, judges) = array_with(4, 2, 8, 512, Kind::default());
        s.create(&r).await;
        judges.set(|_, _| Act::After(Duration::from_micros(100)));
        let before = r.now();
        let node = s.start(&r, &[]).await.unwrap();
        let took = r.now() - before;
        // One after the other, the headers alone would take 307 ms.
        assert!(took < r.ticks(Duration::from_millis(70)), "{took} ticks of a nanosecond");
        let engine = engine_here(ec(&node).shared.id).unwrap();
        let before = r.now();
        engine.write_mark().await.unwrap();
        assert!(r.now() - before < r.ticks(Duration::from_micros(250)), "six, one after the other, would take 600 us");
        drop((engine, node));
        s.stop().await;
    });
}
