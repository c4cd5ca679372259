//! A daemon that ends while arrays are about to start.

use super::*;
use crate::ec::tests::sim;

/// An array is made, all is closed, and its members are attached anew: it is about to start, at any of many moments at which the daemon ends.
#[test]
fn an_array_that_is_about_to_start_while_the_daemon_ends_is_closed_before_its_members_or_not_started() {
    let (mut started, mut not) = (0, 0);
    for seed in 0..60 {
        let there = sim(seed, move |r| async move {
            let w = World::new(&r, 3);
            w.attach(0..3);
            w.create(2, 1).await.unwrap();
            w.write(&r, 7).await;
            let w = w.restart(&r).await;
            w.attach(0..3);
            for _ in 0..seed {
                r.yield_now().await;
            }
            let is_there = w.registry.find("vol0").is_some();
            w.arrays.drain(&w.registry).await;
            assert!(w.registry.find("vol0").is_none(), "it is closed");
            // As the daemon does it.
            for slot in 0..3 {
                w.registry.unregister(&format!("m{slot}")).await.unwrap();
            }
            w.registry.wait_for_examine().await;
            assert!(w.registry.list().is_empty(), "nothing starts any more");
            // No member was lost on the way: all are in sync when it starts again.
            let w = World { disks: w.disks, ..World::new(&r, 0) };
            w.attach(0..3);
            w.registry.wait_for_examine().await;
            let node = w.registry.find("vol0").expect("it starts again");
            assert!(states(&node, 3) == [InSync; 3], "seed {seed}");
            drop(node);
            w.restart(&r).await;
            is_there
        });
        *(if there { &mut started } else { &mut not }) += 1;
    }
    assert!(started > 0 && not > 0, "it ended before and after: {started} had started, {not} had not");
}

#[test]
fn nothing_is_made_or_found_once_the_daemon_ends() {
    sim(1, |r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        w.create(2, 1).await.unwrap();
        let w = w.restart(&r).await;
        w.arrays.drain(&w.registry).await;
        w.attach(0..3);
        w.registry.wait_for_examine().await;
        assert!(w.registry.find("vol0").is_none());
        let e = w.create(2, 1).await.unwrap_err().to_string();
        assert!(e.contains("the daemon is ending"), "{e}");
        w.restart(&r).await;
    });
}
