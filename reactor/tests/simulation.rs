//! The simulated world: determinism, durability, faults; and a small journal crash-tested in it, with mutants.

use longshore_reactor::file::{File, FileOptions};
use longshore_reactor::sim::{Faults, Settings, Sim};
use longshore_reactor::{DmaBuf, Reactor, RingOptions};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const BLOCK: usize = 4096;

fn filled(r: &Reactor, v: u8) -> DmaBuf {
    let mut b = r.dma().alloc(BLOCK).unwrap();
    b.get_mut().unwrap().fill(v);
    b
}

fn open() -> File {
    File::open("disk", &FileOptions { direct: true, ..FileOptions::default() }).unwrap()
}

#[test]
fn time_passes_only_as_far_as_something_waits_for_it() {
    let real = std::time::Instant::now();
    let mut sim = Sim::new(1);
    let order = sim.block_on(|r| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [3u64, 1, 2]
            .map(|h| {
                let (r2, order) = (r.clone(), order.clone());
                r.spawn(async move {
                    r2.sleep(Duration::from_secs(3600 * h)).await;
                    order.borrow_mut().push(h);
                })
            })
            .into();
        for t in tasks {
            t.await.unwrap();
        }
        order.take()
    });
    assert_eq!(order, [1, 2, 3]);
    assert!(sim.now() >= Duration::from_secs(3 * 3600) && sim.now() < Duration::from_secs(3 * 3600 + 1));
    assert!(real.elapsed() < Duration::from_secs(60));
}

/// Writes eight blocks at once and notes the order in which they complete, then reads one back.
fn completion_order(seed: u64) -> (Vec<usize>, Duration) {
    let mut sim = Sim::new(seed);
    sim.create("disk", 1 << 20);
    let order = sim.block_on(|r| async move {
        let (file, order) = (Rc::new(open()), Rc::new(RefCell::new(Vec::new())));
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let (r2, file, order) = (r.clone(), file.clone(), order.clone());
                r.spawn(async move {
                    let (n, _) = file.write_at(&r2, filled(&r2, i as u8), (i * BLOCK) as u64, false).await;
                    assert_eq!(n.unwrap(), BLOCK);
                    order.borrow_mut().push(i);
                })
            })
            .collect();
        for t in tasks {
            t.await.unwrap();
        }
        let (n, b) = file.read_at(&r, filled(&r, 0), 3 * BLOCK as u64).await;
        assert_eq!((n.unwrap(), b.as_slice()), (BLOCK, &[3; BLOCK][..]));
        order.take()
    });
    (order, sim.now())
}

#[test]
fn a_seed_decides_the_run_and_another_seed_another_run() {
    assert_eq!(completion_order(7), completion_order(7));
    let orders: std::collections::HashSet<_> = (0..20).map(|s| completion_order(s).0).collect();
    assert!(orders.len() > 10);
}

#[test]
fn direct_io_must_be_aligned_and_descriptors_open() {
    let mut sim = Sim::new(1);
    sim.create("disk", 1 << 20);
    sim.block_on(|r| async move {
        assert_eq!(File::open("nothing", &FileOptions::default()).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let file = open();
        assert_eq!((file.size().unwrap(), file.block_size().unwrap()), (1 << 20, 512));
        let (n, b) = file.write_at(&r, filled(&r, 1), 100, false).await;
        assert_eq!(n.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let (n, _) = file.write_at(&r, b.slice(0, 100), 0, false).await;
        assert_eq!(n.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let (n, _) = file.read_at(&r, b, (1 << 20) - 512).await;
        assert_eq!(n.unwrap(), 512, "short at the end of the file");
    });
}

#[test]
fn injected_faults_reach_the_caller() {
    let mut sim = Sim::new(3);
    sim.create("disk", 1 << 20);
    sim.set_faults(Faults {
        read_eio: 300,
        write_eio: 300,
        sync_eio: 300,
        enospc: 300,
        short: 300,
        ..Faults::default()
    });
    let seen = sim.block_on(|r| async move {
        let (file, mut seen) = (open(), [0; 6]);
        let mut note = |r: std::io::Result<usize>| match r {
            Ok(BLOCK) => seen[0] += 1,
            Ok(_) => seen[1] += 1,
            Err(e) if e.raw_os_error() == Some(libc::EIO) => seen[2] += 1,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
                seen[3] += 1;
            }
        };
        for _ in 0..200 {
            note(file.write_at(&r, filled(&r, 1), 0, false).await.0);
            note(file.read_at(&r, filled(&r, 1), 0).await.0);
        }
        for _ in 0..100 {
            match file.sync(&r).await {
                Ok(()) => seen[4] += 1,
                Err(_) => seen[5] += 1,
            }
        }
        seen
    });
    assert!(seen.iter().all(|&n| n > 10), "{seen:?}");
    // The other injector decides results before the engine sees the operation.
    sim.set_faults(Faults::default());
    sim.block_on(|r| async move {
        let file = open();
        r.inject(Some(Box::new(|_| Some(-libc::ENOBUFS))));
        assert_eq!(file.sync(&r).await.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        r.inject(None);
        file.sync(&r).await.unwrap();
    });
}

#[test]
fn rings_that_overflow_lose_no_completion() {
    let ring = RingOptions { sq_entries: 4, cq_entries: 2, ..RingOptions::default() };
    // All at the same moment.
    let latency = (Duration::from_micros(50), Duration::from_micros(50));
    let mut sim = Sim::with(1, Settings { ring, latency, ..Settings::default() });
    sim.create("disk", 1 << 20);
    sim.block_on(|r| async move {
        r.inject_sq_full(3);
        let file = Rc::new(open());
        let tasks: Vec<_> = (0..100)
            .map(|i| {
                let (r2, file) = (r.clone(), file.clone());
                r.spawn(async move { file.write_at(&r2, filled(&r2, i), 0, false).await.0.unwrap() })
            })
            .collect();
        for t in tasks {
            assert_eq!(t.await, Ok(BLOCK));
        }
        assert_eq!(r.in_flight(), 0);
    });
    let s = sim.reactor().handle().stats();
    assert!(s.sq_full > 0 && s.cq_overflow > 0, "{s:?}");
}

#[test]
#[should_panic(expected = "stuck")]
fn waiting_for_nothing_is_reported() {
    Sim::new(1).block_on(|_| std::future::pending::<()>());
}

/// What a storage engine may get wrong about durability.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    FlushIsNothing,
    FuaIgnored,
    AcknowledgedEarly,
}

/// Writes random blocks, some with FUA, flushing now and then, until power fails; then checks every block against what was
/// promised. Returns whether a promise was broken.
fn crash_run(seed: u64, mutant: Mutant) -> bool {
    const BLOCKS: usize = 16;
    #[derive(Default, Clone)]
    struct Model {
        /// Acknowledged, in order, per block: the last durable one is the base.
        durable: [u8; BLOCKS],
        /// Values that may be found.
        maybe: Vec<Vec<u8>>,
    }
    let mut sim = Sim::new(seed);
    sim.create("disk", (BLOCKS * BLOCK) as u64);
    let model = Rc::new(RefCell::new(Model { maybe: vec![Vec::new(); BLOCKS], ..Model::default() }));
    let mut random = sim.random();
    sim.crash_at(5 + random.below(300));
    let m = model.clone();
    let end = sim.run(move |r| async move {
        let (file, value) = (Rc::new(open()), Cell::new(0u8));
        loop {
            let at = random.below(BLOCKS as u64) as usize;
            let fua = random.chance(200);
            if random.chance(150) {
                let covered = m.borrow().maybe.iter().map(|v| v.len()).collect::<Vec<_>>();
                if mutant != Mutant::FlushIsNothing {
                    file.sync(&r).await.unwrap();
                }
                let mut m = m.borrow_mut();
                for (b, n) in covered.into_iter().enumerate().filter(|c| c.1 > 0) {
                    m.durable[b] = m.maybe[b][n - 1];
                    m.maybe[b].drain(..n);
                }
                continue;
            }
            value.set(value.get().wrapping_add(1));
            let v = value.get();
            m.borrow_mut().maybe[at].push(v);
            let dsync = fua && mutant != Mutant::FuaIgnored;
            let write = {
                let (r, file, buf) = (r.clone(), file.clone(), filled(&r, v));
                async move { file.write_at(&r, buf, (at * BLOCK) as u64, dsync).await.0.map(drop) }
            };
            if mutant == Mutant::AcknowledgedEarly {
                drop(r.spawn(write));
                r.yield_now().await;
            } else {
                write.await.unwrap();
            }
            if fua {
                let mut m = m.borrow_mut();
                m.durable[at] = v;
                m.maybe[at].clear();
            }
        }
    });
    assert!(end.is_none());
    sim.crash();
    let all = sim.contents("disk").unwrap();
    let m = model.borrow();
    (0..BLOCKS).any(|b| {
        let ok = |v: u8| v == m.durable[b] || m.maybe[b].contains(&v);
        all[b * BLOCK..(b + 1) * BLOCK].chunks(512).any(|s| !s.iter().all(|&v| v == s[0] && ok(v)))
    })
}

#[test]
fn what_was_flushed_survives_five_thousand_crashes() {
    for seed in 0..5000 {
        assert!(!crash_run(seed, Mutant::None), "seed {seed}");
    }
}

#[test]
fn broken_promises_are_caught_within_five_hundred_crashes() {
    for m in [Mutant::FlushIsNothing, Mutant::FuaIgnored, Mutant::AcknowledgedEarly] {
        let found = (0..500).find(|&seed| crash_run(seed, m));
        assert!(found.is_some());
    }
}
