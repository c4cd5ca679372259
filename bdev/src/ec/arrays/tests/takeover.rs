//! Two daemons on the same members, which no lock keeps apart: those of a third one, reached by network.

use super::*;
use crate::Status;

#[test]
fn an_array_that_another_daemon_has_started_too_stops_at_its_next_update_and_says_so() {
    run(|r| async move {
        let w = World::new(&r, 4);
        w.attach(0..4);
        let node = w.create(2, 2).await.unwrap();
        w.write(&r, 1).await;
        let other = World { disks: w.disks.clone(), ..World::new(&r, 0) };
        other.attach(0..4);
        other.registry.wait_for_examine().await;
        let taken = other.registry.find("vol0").expect("nothing there keeps them apart");
        other.write(&r, 2).await;
        // The first one makes an update: one of its members goes.
        w.registry.unregister("m1").await.unwrap();
        let (_desc, ch) = open(&w.registry, "vol0");
        let (status, _) = ch.write(0, 8, filled(&r, 8 * 512, 3), IoFlags::FUA).await;
        assert_eq!(status, Status::NAMESPACE_NOT_READY);
        let info = w.arrays.describe(&w.registry, &node).unwrap();
        assert!(info.offline);
        assert_eq!(info.offline_because, Some("another writer has taken a member over"));
        let told = w.registry.notifications.since(0, 1000);
        assert!(told.iter().any(|n| n.kind == "bdev_ec_offline" && n.ctx == "vol0"), "{told:?}");
        assert!(other.reads(&r, 2).await && states(&taken, 4) == [InSync; 4], "the other one goes on");
        drop((_desc, ch, node, taken));
        w.restart(&r).await;
        other.restart(&r).await;
    });
}
