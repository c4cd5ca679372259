//! Metadata that cannot be read, and how long it takes to read it.

use std::collections::BTreeSet;
use std::sync::Mutex;
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
fn slots_of_a_stand_ins_journal_that_cannot_be_read_are_written_anew_when_all_records_are_void() {
    for volatile in [false, true] {
        sim(4, move |r| async move {
            let (s, judges) = array(2, 1, 8, Kind { volatile, ..Kind::default() });
            s.create(&r).await;
            // A salvage took member 1 though it lacked writes; there are no more than k.
            let mut head = s.head();
            (head.predecessor, head.stamp.epoch) = (head.stamp, 4);
            head.members[1].failed_epoch = 4;
            (head.members[2].state, head.members[2].failed_epoch) = (Failed, 4);
            for slot in 0..2 {
                let mut bytes = vec![0; 4096];
                head.for_slot(slot).encode(&mut bytes);
                s.put(&r, slot, Layout::superblock_at(head.copy()), &bytes).await;
            }
            let at = |index| s.layout.journal_at(index) / 512;
            let (spoiled, written) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new((0, Vec::new()))));
            spoiled.lock().unwrap().extend([at(0), at(3), at(3) + 2, at(7)]);
            let (bad, log, first) = (spoiled.clone(), written.clone(), at(0));
            judges.set(move |slot, io| {
                if slot != 1 {
                    return Act::Pass;
                }
                let (blocks, mut log) = (io.lba()..io.lba() + u64::from(io.nblocks()), log.lock().unwrap());
                let mut bad = bad.lock().unwrap();
                if io.op() == Op::Read && bad.range(blocks.clone()).next().is_some() {
                    return Act::Fail(Status::UNRECOVERED_READ_ERROR);
                }
                if io.op() == Op::Write {
                    log.0 += u32::from(blocks.end <= first && io.nblocks() == 8 && io.lba() * 512 < 128 << 10);
                    let before = bad.len();
                    bad.retain(|b| !blocks.contains(b));
                    let updates = log.0;
                    (bad.len()..before).for_each(|_| log.1.push((updates, io.flags().has(IoFlags::FUA))));
                }
                Act::Pass
            });
            let node = s.start(&r, &[2]).await.unwrap();
            assert_eq!(ec(&node).member_state(1), InSync);
            assert!(
                spoiled.lock().unwrap().is_empty(),
                "a first record there that power cuts short would count, and not be read"
            );
            assert_eq!(written.lock().unwrap().1, [(2, true); 4], "durably, after the update with the new session");
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
