//! Devices that go away under a running array.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::Status;
use crate::testing::run_on;

/// Writes and reads what `lane` says until told to stop. What every request ended with; successes are counted.
fn load(
    w: &World,
    core: &CoreHandle,
    lane: u64,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> longshore_reactor::oneshot::Receiver<Status> {
    let (registry, stop, done) = (w.registry.clone(), stop.clone(), done.clone());
    core.spawn(move |r: Reactor| async move {
        let (_desc, ch) = open(&registry, "vol0");
        let mut turn = 0u8;
        let mut status = Status::SUCCESS;
        while !stop.load(Ordering::Acquire) && status.is_ok() {
            turn = turn.wrapping_add(1);
            let at = lane * 40;
            status = ch.write(at, 40, filled(&r, 40 * 512, turn), IoFlags::NONE).await.0;
            if status.is_ok() {
                let parts: Vec<_> = (0..20).map(|i| ch.read(at + 2 * i, 2, filled(&r, 1024, 0))).collect();
                for part in parts {
                    let (s, data) = part.await;
                    if s.is_err() {
                        status = s;
                    } else {
                        assert!(data.unwrap().as_slice().iter().all(|&b| b == turn), "what was written is read");
                    }
                }
            }
            if status.is_ok() && turn.is_multiple_of(16) {
                status = ch.flush().await.0;
            }
            done.fetch_add(u64::from(status.is_ok()), Ordering::AcqRel);
        }
        status
    })
}

async fn progress(r: &Reactor, done: &AtomicU64) {
    let until = done.load(Ordering::Acquire) + 20;
    while done.load(Ordering::Acquire) < until {
        r.yield_now().await;
    }
}

fn members_go_away_under_load(cores: u32) {
    run_on(cores, move |r| async move {
        let w = World::new(&r, 5);
        w.attach(0..5);
        let node = w.create(3, 2).await.unwrap();
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let lanes: Vec<_> =
            (0..4).map(|lane| load(&w, &r.peers()[lane as usize % cores as usize], lane, &stop, &done)).collect();
        progress(&r, &done).await;
        for slot in [2, 0] {
            let name = format!("m{slot}");
            w.registry.unregister(&name).await.unwrap();
            assert_eq!(array(&node).unwrap().member_state(slot), Failed);
            // Its name is free, and its memory too: nothing of the array holds it.
            w.registry.register(&name, None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            progress(&r, &done).await;
        }
        assert!(!array(&node).unwrap().is_offline());
        w.registry.unregister("m1").await.unwrap();
        for lane in lanes {
            assert_eq!(lane.await.unwrap(), Status::NAMESPACE_NOT_READY);
        }
        w.registry.unregister("m3").await.unwrap();
        assert!(array(&node).unwrap().is_offline());
        close(&w.registry, &node).await.unwrap();
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn removing_members_of_a_loaded_array_ends_and_the_array_runs_on_or_says_that_it_cannot() {
    members_go_away_under_load(1);
}

#[test]
fn removing_members_of_an_array_that_is_loaded_from_two_cores_ends_too() {
    members_go_away_under_load(2);
}

#[test]
fn a_member_that_failed_before_its_device_is_removed_is_let_go() {
    run(|r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        let node = w.create(2, 1).await.unwrap();
        w.write(&r, 1).await;
        let (id, home) = (array(&node).unwrap().shared.id, r.handle());
        home.spawn(move |_| async move {
            crate::ec::start::engine_here(id).unwrap().fail_member(1, "a test says so");
        })
        .await
        .unwrap();
        w.write(&r, 2).await;
        w.registry.unregister("m1").await.unwrap();
        assert!(w.reads(&r, 2).await);
        drop(node);
        w.restart(&r).await;
    });
}
