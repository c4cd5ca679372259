//! Rate limits and the bounds of pools.

use std::time::Duration;

use longshore_nvme::wire::Status;

use crate::malloc::Malloc;
use crate::testing::{filled, open, run};
use crate::{CoreOptions, CoreState, Geometry, IoFlags, QosLimits, QosUpdate, Registry};

#[test]
fn a_rate_limit_holds_until_it_is_removed_and_then_lets_everything_pass() {
    run(|r| async move {
        let reg = Registry::new();
        let node = reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        node.set_qos(QosUpdate { rw_ios_per_sec: Some(999), ..QosUpdate::default() }).await.unwrap();
        assert_eq!(node.qos_limits(), QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() });
        let start = r.rdtsc();
        let reads: Vec<_> = (0..22).map(|_| ch.read(0, 1, filled(&r, 512, 0))).collect();
        assert_eq!(ch.flush().await.0, Status::SUCCESS, "only reads and writes are limited");
        for f in reads {
            assert!(f.await.0.is_ok());
        }
        assert!(r.rdtsc() - start >= r.ticks(Duration::from_millis(15)), "22 requests at 1,000 a second");
        let reads: Vec<_> = (0..64).map(|_| ch.read(0, 1, filled(&r, 512, 0))).collect();
        node.set_qos(QosUpdate { rw_ios_per_sec: Some(0), ..QosUpdate::default() }).await.unwrap();
        let start = r.rdtsc();
        for f in reads {
            assert!(f.await.0.is_ok());
        }
        assert!(r.rdtsc() - start < r.ticks(Duration::from_millis(60)), "no limit any more");
    });
}

#[test]
fn what_a_rate_limit_holds_back_can_be_aborted() {
    run(|r| async move {
        let reg = Registry::new();
        let node = reg.register("m", None, Malloc::new(Geometry::plain(512, 8192)).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        node.set_qos(QosUpdate { w_mbytes_per_sec: Some(1), ..QosUpdate::default() }).await.unwrap();
        let first = ch.write(0, 4096, filled(&r, 2 << 20, 0), IoFlags::NONE);
        let second = ch.write(0, 1, filled(&r, 512, 0), IoFlags::NONE);
        assert!(first.await.0.is_ok(), "goes into debt");
        r.sleep(Duration::from_millis(1)).await;
        ch.abort_all();
        assert_eq!(second.await.0, Status::ABORT_REQUESTED);
    });
}

#[test]
fn who_finds_the_pool_dry_waits_and_is_served_in_turn() {
    run(|r| async move {
        let opts = CoreOptions { requests: 32, child_reserve: 8 };
        let core = CoreState::init(&r, opts);
        let reg = Registry::new();
        let g = Geometry { max_io_blocks: 1, ..Geometry::plain(512, 256) };
        reg.register("m", None, Malloc::new(g).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        // Each needs 16 children of a pool of 32, in which 24 parents alone leave 8.
        let all: Vec<_> = (0..100).map(|i| ch.write(i, 16, filled(&r, 8192, 1), IoFlags::NONE)).collect();
        for f in all {
            assert_eq!(f.await.0, Status::SUCCESS);
        }
        let s = core.pool_stats();
        assert!(s.waits > 0 && s.peak <= 32 && s.in_use == 0, "{s:?}");
    });
}
