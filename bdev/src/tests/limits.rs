//! Rate limits and the bounds of pools.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use longshore_nvme::wire::Status;

use crate::malloc::Malloc;
use crate::testing::{filled, open, run};
use crate::{CoreOptions, CoreState, Geometry, IoFlags, IoRef, IoWaiter, QosLimits, QosUpdate, Registry};

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
fn what_a_rate_limit_holds_back_ends_with_a_reset_a_new_limit_and_the_removal_of_the_device() {
    run(|r| async move {
        let reg = Registry::new();
        let node = reg.register("m", None, Malloc::new(Geometry::plain(512, 8192)).unwrap()).unwrap();
        let (desc, ch) = open(&reg, "m");
        let limit = |mib| QosUpdate { w_mbytes_per_sec: Some(mib), ..QosUpdate::default() };
        node.set_qos(limit(1)).await.unwrap();
        // Two seconds of debt each time.
        let debt = async |ch: &crate::Channel| {
            assert!(ch.write(0, 4096, filled(&r, 2 << 20, 0), IoFlags::NONE).await.0.is_ok());
        };
        let write = |ch: &crate::Channel| ch.write(0, 1, filled(&r, 512, 0), IoFlags::NONE);
        let start = r.rdtsc();
        debt(&ch).await;
        let one = write(&ch);
        assert_eq!(ch.reset().await.0, Status::SUCCESS);
        assert_eq!(one.await.0, Status::ABORT_REQUESTED);
        node.set_qos(limit(2)).await.unwrap();
        debt(&ch).await;
        let two = write(&ch);
        assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS, "only writes are limited");
        node.set_qos(limit(1000)).await.unwrap();
        assert_eq!(two.await.0, Status::SUCCESS);
        node.set_qos(limit(1)).await.unwrap();
        debt(&ch).await;
        let three = write(&ch);
        let gone = r.spawn({
            let reg = reg.clone();
            async move { reg.unregister("m").await }
        });
        assert_eq!(three.await.0, Status::NAMESPACE_NOT_READY);
        assert!(r.rdtsc() - start < r.ticks(Duration::from_secs(2)), "none of them waited for its turn");
        drop((desc, ch));
        assert_eq!(gone.await.expect("it ends"), Ok(()));
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

/// Notes when it is told, and takes a request if it wants one.
struct Waiter {
    number: u32,
    wants: bool,
    turn: Rc<Cell<u32>>,
    told: Rc<RefCell<Vec<(u32, u32)>>>,
    held: Rc<RefCell<Vec<IoRef>>>,
}

impl IoWaiter for Waiter {
    fn io_available(self: Rc<Self>) {
        self.told.borrow_mut().push((self.turn.get(), self.number));
        if self.wants {
            self.held.borrow_mut().push(CoreState::current().get().expect("one is free for who is told"));
        }
    }
}

#[test]
fn one_free_request_goes_in_one_turn_to_the_first_who_still_wants_one() {
    run(|r| async move {
        let core = CoreState::init(&r, CoreOptions { requests: 16, child_reserve: 0 });
        let (turn, told, held) = (Rc::new(Cell::new(0)), Rc::default(), Rc::new(RefCell::new(Vec::new())));
        held.borrow_mut().extend(std::iter::from_fn(|| core.get()));
        assert_eq!(held.borrow().len(), 16);
        for number in 0..40 {
            let (turn, told, held) = (turn.clone(), Rc::clone(&told), held.clone());
            core.wait(Rc::new(Waiter { number, wants: number >= 30, turn, told, held }));
        }
        r.yield_now().await;
        assert!(told.borrow().is_empty(), "nothing is free");
        for i in 1..=2 {
            turn.set(i);
            held.borrow_mut().pop().expect("held").release();
            assert!(core.get().is_none(), "those who wait go first");
            let before = told.borrow().len();
            while told.borrow().len() == before {
                r.yield_now().await;
            }
            turn.set(0);
            // The pool is polled once per turn: what was not told at once would be told in a later turn.
            for _ in 0..4 {
                r.yield_now().await;
            }
        }
        let want: Vec<_> = (0..=30).map(|n| (1, n)).chain([(2, 31)]).collect();
        let got = told.borrow().clone();
        // Nothing may outlive the pool.
        let all: Vec<_> = held.borrow_mut().drain(..).collect();
        all.into_iter().for_each(IoRef::release);
        while told.borrow().len() < 40 {
            r.yield_now().await;
        }
        held.borrow_mut().drain(..).for_each(IoRef::release);
        assert_eq!(got, want);
    });
}
