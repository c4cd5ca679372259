use super::{Model, Small, sim};
use crate::testing::open;
use crate::{IoFlags, Op, Status};

#[test]
fn what_was_written_is_read_whole_and_in_part_also_after_a_restart() {
    sim(1, |r| async move {
        let s = Small::new(4, 2, 8192, 12, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 7).await;
            for (lba, n, b) in [(0, 64, 1), (64, 1, 2), (70, 20, 3), (65, 63, 4), (3, 5, 5), (30, 100, 6), (127, 3, 7)]
            {
                assert_eq!(m.write(&r, &ch, 512, lba, n, b).await, Status::SUCCESS);
                m.check(&r, &ch, 512, 33).await;
            }
            assert_eq!(ch.flush().await.0, Status::SUCCESS);
            for (lba, n, b) in
                [(0, 64, 11), (64, 1, 12), (70, 20, 13), (65, 63, 14), (3, 5, 15), (30, 100, 16), (200, 9, 17)]
            {
                assert_eq!(m.write(&r, &ch, 512, lba, n, b).await, Status::SUCCESS);
                m.check(&r, &ch, 512, 64).await;
            }
        }
        s.stop().await;
        s.start(&r, &[]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 50).await;
        }
        s.stop().await;
    });
}

#[test]
fn members_lost_within_parity_cost_nothing_but_speed() {
    sim(2, |r| async move {
        let s = Small::new(3, 2, 4096, 10, &[512, 4096]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        let bs = s.layout.block;
        {
            let (_desc, ch) = open(&s.registry, "a");
            for lba in 0..20 {
                assert!(m.write(&r, &ch, bs, lba, 1, lba as u8).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            for failed in [1, 3] {
                s.break_member(failed, Op::Write, 1000);
                for lba in 2..26 {
                    assert_eq!(m.write(&r, &ch, bs, lba, 2, 50 + lba as u8).await, Status::SUCCESS, "block {lba}");
                }
                m.check(&r, &ch, bs, 2).await;
                assert!(ch.flush().await.0.is_ok());
            }
            let sb = s.superblock(&r, 0).await;
            assert_eq!(sb.in_sync(), 3);
            assert_ne!(sb.wib_generation, 0);
        }
        s.stop().await;
        s.start(&r, &[1, 3]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, bs, 5).await;
            s.break_member(0, Op::Write, 1000);
            let (status, _) = ch.write(0, 1, crate::testing::filled(&r, bs as usize, 1), IoFlags::FUA).await;
            assert_eq!(status, Status::NAMESPACE_NOT_READY);
        }
        s.stop().await;
    });
}
