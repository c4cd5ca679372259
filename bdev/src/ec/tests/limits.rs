//! Counters on the members that somebody has set to the highest there is: nothing wraps, and nothing is lost by it.

use super::*;
use crate::ec::format::{MAX_EPOCH, MAX_SEQUENCE, Stamp};
use crate::testing::open;

fn small() -> Small {
    Small::new(2, 1, 4096, 20, &[512])
}

/// Gives all members superblocks of this epoch.
async fn at_epoch(s: &Small, r: &Reactor, epoch: u64) -> Superblock {
    let stamp = Stamp { epoch, nonce: 7 };
    let head = Superblock { stamp, predecessor: Stamp { epoch: epoch - 1, nonce: 7 }, ..s.head() };
    for slot in 0..3 {
        let mut bytes = vec![0; 4096];
        head.for_slot(slot).encode(&mut bytes);
        s.put(r, slot, Layout::superblock_at(head.copy()), &bytes).await;
    }
    head
}

/// Gives members the page 0 of the map with these bits and this sequence.
async fn page(s: &Small, r: &Reactor, slots: std::ops::Range<usize>, sequence: u64, bits: u8) {
    let header = PageHeader { array: s.head().array, kind: PageKind::Map, index: 0, sequence, generation: 0 };
    let mut bytes = vec![0; 4096];
    header.encode(&[bits; PAGE_BITS_BYTES], &mut bytes);
    for slot in slots {
        s.put(r, slot, s.layout.map_page_at(0, sequence & 1), &bytes).await;
    }
}

#[test]
fn an_array_of_the_highest_epoch_does_not_start_and_its_superblocks_stay() {
    for below in 0..6 {
        sim(below, move |r| async move {
            let s = small();
            s.create(&r).await;
            at_epoch(&s, &r, MAX_EPOCH - below).await;
            let started = s.start(&r, &[]).await;
            // A start takes four.
            assert_eq!(started.is_ok(), below >= 4, "{below}: {:?}", started.err());
            if let Err(e) = started {
                assert!(e.to_string().contains("its superblocks have the highest epoch there is"), "{e}");
            }
            for slot in 0..3 {
                assert!(s.superblock(&r, slot).await.stamp.epoch <= MAX_EPOCH);
            }
            if below < 4 {
                return;
            }
            // What is left is enough to name a member that fails, or it is not: then nothing is acknowledged.
            {
                let (_desc, ch) = open(&s.registry, "a");
                let mut m = Model::new(&s);
                s.break_member(1, crate::Op::Write, u32::MAX);
                let status = m.write(&r, &ch, 512, 0, 100, 1).await;
                assert_eq!(status.is_ok(), below == 5, "{status}");
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_page_of_a_sequence_beyond_the_highest_is_damaged_and_the_older_one_counts() {
    for beyond in [MAX_SEQUENCE + 1, u64::MAX] {
        sim(1, move |r| async move {
            let s = small();
            s.create(&r).await;
            page(&s, &r, 0..1, beyond, 0xff).await;
            s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 9).await;
                assert!(m.write(&r, &ch, 512, 0, 100, 1).await.is_ok() && ch.flush().await.0.is_ok());
            }
            s.stop().await;
            s.start(&r, &[]).await.unwrap();
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 9).await;
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_page_of_the_highest_sequence_is_read_and_a_flush_that_had_to_write_it_again_fails() {
    sim(2, |r| async move {
        let s = small();
        s.create(&r).await;
        page(&s, &r, 0..3, MAX_SEQUENCE, 0).await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            let mut m = Model::new(&s);
            m.check(&r, &ch, 512, 9).await;
            assert!(m.write(&r, &ch, 512, 0, 100, 1).await.is_ok());
            assert_eq!(ch.flush().await.0, Status::NAMESPACE_NOT_READY);
        }
        s.stop().await;
        for slot in 0..3 {
            let bytes = s.get(&r, slot, s.layout.map_page_at(0, MAX_SEQUENCE & 1)).await;
            assert_eq!(PageHeader::decode(&bytes).unwrap().0.sequence, MAX_SEQUENCE);
        }
    });
}
