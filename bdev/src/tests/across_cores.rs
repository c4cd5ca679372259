//! What several cores do to one device.

use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::Reactor;

use crate::error::{self, ErrorDev, Fault, Injection};
use crate::malloc::Malloc;
use crate::testing::{filled, open, run_on};
use crate::{Geometry, IoFlags, Op, Registry};

/// Adds one to the counter in block 0 so many times, each time by compare-and-write.
async fn count(r: Reactor, reg: Arc<Registry>, times: u32) {
    let (_desc, ch) = open(&reg, "m");
    for _ in 0..times {
        loop {
            let (st, old) = ch.read(0, 2, filled(&r, 1024, 0)).await;
            assert_eq!(st, Status::SUCCESS);
            let old = old.unwrap();
            let bytes = old.as_slice();
            assert_eq!(bytes[..512], bytes[512..], "both blocks change at once");
            let n = u32::from_le_bytes(bytes[..4].try_into().unwrap()) + 1;
            let mut new = filled(&r, 1024, 0);
            for half in new.get_mut().unwrap().chunks_mut(512) {
                half[..4].copy_from_slice(&n.to_le_bytes());
            }
            match ch.compare_and_write(0, 2, old, new, IoFlags::NONE).await.0 {
                Status::SUCCESS => break,
                s => assert_eq!(s, Status::COMPARE_FAILURE),
            }
        }
    }
}

#[test]
fn compare_and_write_is_atomic_across_cores() {
    run_on(3, |r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let tasks: Vec<_> = r
            .peers()
            .iter()
            .map(|c| {
                let reg = reg.clone();
                c.spawn(move |r: Reactor| count(r, reg, 100))
            })
            .collect();
        for t in tasks {
            t.await.unwrap();
        }
        let (_desc, ch) = open(&reg, "m");
        let (_, buf) = ch.read(0, 1, filled(&r, 512, 0)).await;
        assert_eq!(buf.unwrap().as_slice()[..4], 300u32.to_le_bytes());
    });
}

#[test]
fn a_reset_ends_what_is_in_flight_on_every_core_and_then_lets_requests_pass() {
    run_on(3, |r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let node = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
        dev.inject(Injection { op: Some(Op::Read), fault: Fault::Pending, count: 6, queue_depth: 0 }).unwrap();
        let reads: Vec<_> = r
            .peers()
            .iter()
            .map(|c| {
                let reg = reg.clone();
                c.spawn(move |r: Reactor| async move {
                    let (_desc, ch) = open(&reg, "EE_m");
                    let hung = [ch.read(0, 1, filled(&r, 512, 0)), ch.read(1, 1, filled(&r, 512, 0))];
                    let mut out = Vec::new();
                    for h in hung {
                        out.push(h.await.0);
                    }
                    out.push(ch.read(2, 1, filled(&r, 512, 0)).await.0);
                    out
                })
            })
            .collect();
        while !dev.injections().is_empty() {
            r.sleep(Duration::from_millis(1)).await;
        }
        let (_desc, ch) = open(&reg, "EE_m");
        assert_eq!(ch.reset().await.0, Status::SUCCESS);
        for t in reads {
            let aborted = Status::ABORT_REQUESTED;
            assert_eq!(t.await.unwrap(), [aborted, aborted, Status::SUCCESS]);
        }
        // Two at once: they are done one after the other.
        let (a, b) = (ch.reset(), ch.reset());
        assert_eq!((a.await.0, b.await.0), (Status::SUCCESS, Status::SUCCESS));
        assert_eq!(ch.read(2, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
    });
}

#[test]
fn histograms_counters_and_queue_depth_cover_all_cores() {
    run_on(2, |r| async move {
        let reg = Registry::new();
        let node = reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        node.enable_histogram(true, Some(Op::Read)).await.unwrap();
        for c in r.peers() {
            let reg = reg.clone();
            let done = c.spawn(move |r: Reactor| async move {
                let (_desc, ch) = open(&reg, "m");
                for _ in 0..10 {
                    assert!(ch.read(0, 1, filled(&r, 512, 0)).await.0.is_ok());
                    assert!(ch.write(0, 1, filled(&r, 512, 0), IoFlags::NONE).await.0.is_ok());
                }
            });
            done.await.unwrap();
        }
        assert_eq!(node.histogram().unwrap().buckets.iter().sum::<u64>(), 20);
        assert_eq!(node.stats().op(Op::Write).ops, 20);
        node.enable_histogram(false, None).await.unwrap();
        assert!(node.histogram().is_none());
        node.reset_stats(crate::StatReset::All).await.unwrap();
        assert_eq!(node.stats().op(Op::Write).ops, 0);
        assert!(ch.read(0, 1, filled(&r, 512, 0)).await.0.is_ok());
        assert_eq!(node.stats().op(Op::Read).ops, 1);

        let err = error::create(&reg, error::Options { base: "m".into(), uuid: None });
        assert!(err.is_err(), "open for writing");
    });
}

#[test]
fn queue_depth_is_sampled_while_it_is_asked_for() {
    run_on(2, |r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let node = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
        dev.inject(Injection { op: Some(Op::Read), fault: Fault::Pending, count: 3, queue_depth: 0 }).unwrap();
        let (_desc, ch) = open(&reg, "EE_m");
        let hung: Vec<_> = (0..3).map(|i| ch.read(i, 1, filled(&r, 512, 0))).collect();
        node.set_qd_sampling(&r.peers()[1], Duration::from_micros(200));
        while node.queue_depth().depth != 3 || node.queue_depth().io_time == 0 {
            r.sleep(Duration::from_micros(200)).await;
        }
        let q = node.queue_depth();
        assert!(q.weighted_io_time >= 3 * 200 && q.period == Duration::from_micros(200));
        node.set_qd_sampling(&r.peers()[1], Duration::ZERO);
        assert_eq!(node.queue_depth().depth, 0);
        ch.abort_all();
        for h in hung {
            h.await;
        }
    });
}
