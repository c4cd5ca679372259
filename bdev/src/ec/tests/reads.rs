use super::{Model, Small, sim};
use crate::ec::Ec;
use crate::testing::{Recorder, filled, open};
use crate::{IoFlags, Op, Status};
use std::rc::Rc;

#[test]
fn every_loss_within_parity_is_read_through() {
    for lost in 0u32..32 {
        if lost.count_ones() > 2 {
            continue;
        }
        sim(u64::from(lost), move |r| async move {
            let s = Small::new(3, 2, 4096, 7, &[512]);
            s.create(&r).await;
            s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(m.write(&r, &ch, 512, 0, 100, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                assert!(m.write(&r, &ch, 512, 5, 40, 9).await.is_ok());
            }
            s.stop().await;
            let absent: Vec<usize> = (0..5).filter(|i| lost >> i & 1 != 0).collect();
            s.start(&r, &absent).await.unwrap();
            {
                let (_desc, ch) = open(&s.registry, "a");
                m.check(&r, &ch, 512, 11).await;
            }
            s.stop().await;
        });
    }
}

#[test]
fn a_read_error_is_answered_from_the_others_and_healed() {
    sim(3, |r| async move {
        let s = Small::new(2, 1, 4096, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 16, 1).await.is_ok());
            let slot = s.layout.slot_of(0, 0);
            s.break_member(slot, Op::Read, 2);
            m.check(&r, &ch, 512, 8).await;
            let node = s.registry.find("a").unwrap();
            let stats = node.device().as_any().downcast_ref::<Ec>().unwrap().stats();
            assert!(stats.healed_reads >= 1 && stats.reconstructed_reads >= 1, "{stats:?}");
            // Two of three cannot be read: too much, and not the medium's fault.
            s.break_member(slot, Op::Read, 100);
            s.break_member(s.layout.slot_of(0, 2), Op::Read, 100);
            assert_eq!(ch.read(8, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS, "the other strip");
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::NAMESPACE_NOT_READY);
        }
        s.stop().await;
    });
}

#[test]
fn writes_that_wait_for_a_stripe_are_joined_in_order() {
    sim(4, |r| async move {
        let s = Small::new(2, 1, 4096, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            for round in 0..3u8 {
                let rec = Rc::new(Recorder::default());
                for i in 0..8u8 {
                    // Overlapping, with gaps: 2 blocks at 0, 3 at 1, ...
                    let n = 2 + u32::from(i % 2);
                    let buf = filled(&r, n as usize * 512, round * 16 + i + 1);
                    rec.submit(&ch, Op::Write, u64::from(i % 4) * 3, n, buf, u64::from(i));
                }
                let ended = rec.ended(&r, 8).await;
                assert!(ended.iter().all(|e| e.1.is_ok()), "{ended:?}");
                let (_, buf) = ch.read(0, 12, filled(&r, 12 * 512, 0)).await;
                let buf = buf.unwrap();
                let got: Vec<u8> = (0..12).map(|b| buf.as_slice()[b * 512]).collect();
                let v = |i: u8| round * 16 + i + 1;
                let want = [v(4), v(4), 0, v(5), v(5), v(5), v(6), v(6), 0, v(7), v(7), v(7)];
                assert_eq!(got, want);
                assert!(ch.flush().await.0.is_ok());
            }
            let node = s.registry.find("a").unwrap();
            let stats = node.device().as_any().downcast_ref::<Ec>().unwrap().stats();
            assert!(stats.joined_writes > 0, "{stats:?}");
        }
        s.stop().await;
    });
}

#[test]
fn unmap_empties_whole_stripes_and_zeroes_also_their_parts() {
    sim(5, |r| async move {
        let s = Small::new(2, 2, 4096, 6, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 96, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            assert!(ch.unmap(3, 40).await.0.is_ok());
            m.0[16 * 512..32 * 512].fill(0);
            m.check(&r, &ch, 512, 16).await;
            assert!(ch.write_zeroes(50, 40, IoFlags::FUA).await.0.is_ok());
            m.0[50 * 512..90 * 512].fill(0);
            m.check(&r, &ch, 512, 16).await;
            assert!(m.write(&r, &ch, 512, 20, 2, 7).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
        }
        s.stop().await;
        s.start(&r, &[0, 3]).await.unwrap_err();
        s.start(&r, &[0]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 13).await;
        }
        s.stop().await;
    });
}
