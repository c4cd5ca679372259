//! Requests that are cut, and operations that the core builds.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;

use crate::error::{self, ErrorDev, Fault, Injection};
use crate::malloc::Malloc;
use crate::testing::{Plain, Recorder, filled, open, run};
use crate::{Geometry, IoFlags, Op, Registry};

fn limited() -> Geometry {
    Geometry { max_io_blocks: 4, optimal_io_boundary: 3, ..Geometry::plain(512, 256) }
}

#[test]
fn a_request_beyond_the_limits_is_done_in_pieces_and_counted_once() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(limited()).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        let mut data = filled(&r, 100 * 512, 0);
        for (i, b) in data.get_mut().unwrap().iter_mut().enumerate() {
            *b = (i / 512) as u8 + 1;
        }
        assert_eq!(ch.write(7, 100, data.clone(), IoFlags::NONE).await.0, Status::SUCCESS);
        let (st, buf) = ch.read(7, 100, filled(&r, 100 * 512, 0)).await;
        assert_eq!(st, Status::SUCCESS);
        assert_eq!(buf.unwrap().as_slice(), data.as_slice());
        assert_eq!(ch.compare(7, 100, data).await.0, Status::SUCCESS);
        let s = ch.node().stats();
        assert_eq!((s.op(Op::Write).ops, s.op(Op::Write).blocks, s.op(Op::Read).ops), (1, 100, 1));
        assert_eq!(ch.core().pool_stats().in_use, 0);
    });
}

#[test]
fn a_piece_that_fails_fails_the_request_with_its_status() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(limited()).unwrap()).unwrap();
        let node = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        let (_desc, ch) = open(&reg, "EE_m");
        let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
        let fault = Fault::Nvme(Status::WRITE_FAULT);
        dev.inject(Injection { op: Some(Op::Write), fault, count: 1, queue_depth: 3 }).unwrap();
        assert_eq!(ch.write(0, 100, filled(&r, 51200, 1), IoFlags::NONE).await.0, Status::WRITE_FAULT);
        assert_eq!(ch.write(0, 100, filled(&r, 51200, 1), IoFlags::NONE).await.0, Status::SUCCESS);
    });
}

#[test]
fn aborting_a_split_request_ends_its_pieces_and_nothing_else() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(limited()).unwrap()).unwrap();
        let node = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        let (_desc, ch) = open(&reg, "EE_m");
        let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
        dev.inject(Injection { op: Some(Op::Write), fault: Fault::Pending, count: 100, queue_depth: 0 }).unwrap();
        let rec = Rc::new(Recorder::default());
        let other = rec.submit(&ch, Op::Write, 200, 1, filled(&r, 512, 1), 1);
        let split = rec.submit(&ch, Op::Write, 0, 100, filled(&r, 51200, 1), 2);
        r.sleep(Duration::from_millis(1)).await;
        assert!(rec.0.borrow().is_empty());
        assert!(ch.abort(split));
        assert_eq!(rec.ended(&r, 1).await, [(2, Status::ABORT_REQUESTED)]);
        assert!(!ch.abort(split), "a name of the past finds nothing");
        assert!(ch.abort(other));
        rec.ended(&r, 2).await;
        assert_eq!((ch.inflight(), ch.core().pool_stats().in_use), (0, 0));
    });
}

#[test]
fn what_a_device_lacks_is_built_from_reads_and_writes() {
    run(|r| async move {
        let reg = Registry::new();
        let g = Geometry { max_io_blocks: 16, ..Geometry::plain(512, 4096) };
        reg.register("p", None, Arc::new(Plain(Malloc::new(g).unwrap()))).unwrap();
        let (_desc, ch) = open(&reg, "p");
        let mut data = filled(&r, 600 * 512, 0);
        for (i, b) in data.get_mut().unwrap().iter_mut().enumerate() {
            *b = (i / 512 % 251) as u8 + 1;
        }
        assert!(ch.write(0, 600, data.clone(), IoFlags::NONE).await.0.is_ok());
        assert_eq!(ch.compare(0, 600, data.clone()).await.0, Status::SUCCESS);
        assert_eq!(ch.compare(1, 600, data.clone()).await.0, Status::COMPARE_FAILURE);
        // To a place that overlaps its source: what was there before arrives.
        assert_eq!(ch.copy(0, 100, 600).await.0, Status::SUCCESS);
        assert_eq!(ch.compare(100, 600, data.clone()).await.0, Status::SUCCESS);
        assert_eq!(ch.copy(100, 0, 600).await.0, Status::SUCCESS);
        assert_eq!(ch.compare(0, 600, data.clone()).await.0, Status::SUCCESS);
        assert_eq!(ch.write_zeroes(10, 580, IoFlags::NONE).await.0, Status::SUCCESS);
        let (_, buf) = ch.read(9, 582, filled(&r, 582 * 512, 9)).await;
        let buf = buf.unwrap();
        let buf = buf.as_slice();
        assert!(buf[0] == 10 && buf[512..581 * 512].iter().all(|&b| b == 0) && buf[581 * 512] != 0);
        assert_eq!(ch.unmap(0, 1).await.0, Status::INVALID_OPCODE, "cannot be built");
        assert_eq!(ch.core().pool_stats().in_use, 0);
    });
}

#[test]
fn compare_and_write_writes_only_on_a_match() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(limited()).unwrap()).unwrap();
        let (_desc, ch) = open(&reg, "m");
        let caw =
            |old, new| ch.compare_and_write(3, 9, filled(&r, 9 * 512, old), filled(&r, 9 * 512, new), IoFlags::NONE);
        assert_eq!(caw(0, 5).await.0, Status::SUCCESS);
        assert_eq!(caw(0, 6).await.0, Status::COMPARE_FAILURE);
        let (_, buf) = ch.read(3, 9, filled(&r, 9 * 512, 0)).await;
        assert!(buf.unwrap().as_slice().iter().all(|&b| b == 5));
        let short = ch.compare_and_write(3, 9, filled(&r, 512, 0), filled(&r, 9 * 512, 0), IoFlags::NONE);
        assert_eq!(short.await.0, Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(caw(5, 6).await.0, Status::SUCCESS);
    });
}

#[test]
fn a_channel_dropped_with_requests_in_flight_goes_when_they_end() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(limited()).unwrap()).unwrap();
        let node = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        let rec = Rc::new(Recorder::default());
        {
            let (_desc, ch) = open(&reg, "EE_m");
            let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
            dev.inject(Injection { op: None, fault: Fault::Pending, count: 2, queue_depth: 0 }).unwrap();
            rec.submit(&ch, Op::Read, 0, 1, filled(&r, 512, 1), 7);
        }
        let gone = reg.remove(&node).unwrap();
        r.sleep(Duration::from_millis(2)).await;
        assert!(gone.try_recv().is_none(), "a request still uses it");
        let dev = node.device().as_any().downcast_ref::<ErrorDev>().unwrap();
        dev.resume_pending().await;
        assert_eq!(rec.ended(&r, 1).await, [(7, Status::SUCCESS)]);
        gone.await.unwrap();
    });
}
