//! Reactors of one runtime: messages, tasks, timers, stop.

use longshore_reactor::{Options, PollMode, Runtime, StartError, oneshot};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// `n` reactors, unpinned so that tests run on any machine.
fn runtime(n: u32, poll: PollMode) -> Runtime {
    let o = Options { cores: (0..n).collect(), poll, pin: false, ..Options::default() };
    Runtime::start(o).unwrap_or_else(|e| panic!("{e}"))
}

fn adaptive(n: u32) -> Runtime {
    runtime(n, PollMode::default())
}

/// Sleeps whenever there is nothing to do: each message has to wake it.
fn sleepy(n: u32) -> Runtime {
    runtime(n, PollMode::Adaptive { spin: Duration::ZERO, linger: Duration::ZERO })
}

#[test]
fn two_cores_exchange_messages_a_thousand_times_and_wake_each_other() {
    for rt in [adaptive(2), sleepy(2), runtime(2, PollMode::Busy)] {
        let b = rt.cores()[1].clone();
        let sum = rt.cores()[0].spawn(move |r| async move {
            let mut sum = 0;
            for i in 0..1000u64 {
                sum += b.call(move |r| i * r.index() as u64).await.unwrap();
            }
            assert_eq!(r.index(), 0);
            sum
        });
        assert_eq!(sum.wait(), Ok(999 * 500));
        rt.stop();
    }
}

#[test]
fn messages_of_one_sender_arrive_in_order_even_when_the_inbox_overflows() {
    let o = Options { cores: vec![0, 1], inbox: 4, pin: false, ..Options::default() };
    let rt = Runtime::start(o).unwrap();
    let (to, (tx, rx)) = (rt.cores()[1].clone(), oneshot::channel());
    rt.cores()[0].send(move |_| {
        let seen = Arc::new(AtomicUsize::new(0));
        for i in 0..1000 {
            let seen = seen.clone();
            to.send(move |_| assert_eq!(seen.fetch_add(1, Ordering::Relaxed), i));
        }
        to.send(move |_| tx.send(seen.load(Ordering::Relaxed)).unwrap());
    });
    assert_eq!(rx.wait(), Ok(1000));
}

#[test]
fn a_plain_thread_wakes_a_sleeping_reactor() {
    let rt = sleepy(1);
    let core = &rt.cores()[0];
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut slept = 0;
    for i in 0..100 {
        while core.stats().sleeps <= slept {
            std::thread::yield_now();
            assert!(Instant::now() < deadline, "it does not go to sleep");
        }
        slept = core.stats().sleeps;
        assert_eq!(core.call(move |_| i).wait(), Ok(i));
    }
    let s = core.stats();
    assert!(s.wakeups >= 100, "{s:?}");
}

#[test]
fn an_idle_adaptive_reactor_makes_no_turns() {
    let rt = adaptive(1);
    let core = &rt.cores()[0];
    core.call(|_| ()).wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Asleep once the number of turns stands still.
    let mut last = u64::MAX;
    while core.stats().turns != last {
        last = core.stats().turns;
        std::thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < deadline, "still turning after 10 s");
    }
    assert!(core.stats().sleeps > 0);
}

#[test]
fn a_reactor_that_lingers_sleeps_where_somebody_else_wants_its_cpu() {
    let all = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|&c| all.is_set(c)).expect("a CPU");
    let done = Arc::new(AtomicUsize::new(0));
    let other = {
        let done = done.clone();
        std::thread::spawn(move || {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).unwrap();
            while done.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
        })
    };
    let poll = PollMode::Adaptive { spin: Duration::ZERO, linger: Duration::from_secs(3600) };
    let rt = Runtime::start(Options { cores: vec![cpu as u32], poll, ..Options::default() }).unwrap();
    let core = &rt.cores()[0];
    let request = core.call(|r| {
        r.serving();
        r.handle().stats().sleeps
    });
    let (slept, deadline) = (request.wait().unwrap(), Instant::now() + Duration::from_secs(30));
    while core.stats().sleeps == slept && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    done.store(1, Ordering::Relaxed);
    other.join().unwrap();
    assert!(core.stats().sleeps > slept, "it does not sleep");
}

#[test]
fn a_panic_in_a_message_resumes_where_its_answer_is_awaited() {
    let rt = adaptive(1);
    let core = rt.cores()[0].clone();
    let call = core.call(|_| -> u8 { panic!("on purpose") });
    let task = core.spawn(|r| async move {
        r.yield_now().await;
        if r.index() == 0 {
            panic!("on purpose");
        }
    });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.wait())).is_err());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task.wait())).is_err());
    assert_eq!(core.call(|_| 1).wait(), Ok(1), "the reactor lives on");
}

#[test]
fn timers_fire_in_order_and_dropped_ones_do_not() {
    let rt = sleepy(1);
    let fired = rt.cores()[0].spawn(|r| async move {
        let fired = Rc::new(Cell::new(0));
        let note = |n: u32| {
            let fired = fired.clone();
            move |_: &_| fired.set(fired.get() * 10 + n)
        };
        let _b = r.timer(Duration::from_millis(4), note(2));
        let _a = r.timer(Duration::from_millis(2), note(1));
        drop(r.timer(Duration::from_millis(3), note(9)));
        let ticks = Rc::new(Cell::new(0));
        let count = ticks.clone();
        let every = r.every(Duration::from_millis(1), move |_| count.set(count.get() + 1));
        r.sleep(Duration::from_millis(20)).await;
        drop(every);
        let n = ticks.get();
        assert!((1..=20).contains(&n), "{n} periods of 1 ms in 20 ms");
        r.sleep(Duration::from_millis(3)).await;
        assert_eq!(ticks.get(), n);
        fired.get()
    });
    assert_eq!(fired.wait(), Ok(12));
}

#[test]
fn a_poller_runs_each_turn_until_dropped_and_pending_keeps_the_reactor_awake() {
    let rt = sleepy(1);
    let runs = rt.cores()[0].spawn(|r| async move {
        let runs = Rc::new(Cell::new(0));
        let n = runs.clone();
        let p = r.poller("count", move |_| {
            n.set(n.get() + 1);
            0
        });
        p.set_pending(true);
        while runs.get() < 1000 {
            r.yield_now().await;
        }
        let stats = r.handle().pollers().await.unwrap();
        assert_eq!(stats[0].name, "count");
        assert!(stats[0].runs >= 1000 && stats[0].busy_runs == 0);
        drop(p);
        let n = runs.get();
        r.yield_now().await;
        r.yield_now().await;
        assert_eq!(r.handle().pollers().await.unwrap().len(), 0);
        runs.get() - n
    });
    assert_eq!(runs.wait(), Ok(0));
}

#[test]
fn an_aborted_task_is_dropped_and_its_handle_says_so() {
    let rt = adaptive(1);
    let done = rt.cores()[0].spawn(|r| async move {
        let alive = Rc::new(());
        let held = alive.clone();
        let r2 = r.clone();
        let task = r.spawn(async move {
            r2.sleep(Duration::from_secs(3600)).await;
            drop(held);
        });
        r.yield_now().await;
        task.abort();
        assert_eq!(Rc::strong_count(&alive), 1);
        assert_eq!(task.await, Err(oneshot::Canceled));
        assert_eq!(r.spawn(async { 5 }).await, Ok(5));
    });
    assert_eq!(done.wait(), Ok(()));
}

#[test]
fn stop_drops_what_waits_and_cancels_who_waits_for_it() {
    let rt = adaptive(2);
    let core = rt.cores()[1].clone();
    let forever = core.spawn(|r| async move { r.sleep(Duration::from_secs(3600)).await });
    core.call(|r| {
        r.every(Duration::from_millis(1), |_| ()).detach();
        std::mem::forget(r.poller("left behind", |_| 0));
    })
    .wait()
    .unwrap();
    rt.stop();
    assert_eq!(forever.wait(), Err(oneshot::Canceled));
    assert_eq!(core.call(|_| ()).wait(), Err(oneshot::Canceled), "a stopped reactor answers nobody");
}

#[test]
fn a_cpu_outside_the_mask_and_a_doubled_one_are_refused() {
    let start = |cores: Vec<u32>| Runtime::start(Options { cores, ..Options::default() });
    assert!(matches!(start(vec![1000]), Err(StartError::CpuNotAllowed { cpu: 1000, .. })));
    assert!(matches!(start(vec![0, 0]), Err(StartError::BadCores(_))));
    assert!(matches!(start(vec![]), Err(StartError::BadCores(_))));
}
