//! Arrays that lost more members than they can, and are started with what is there.

use super::*;
use crate::Status;

const AT_ONCE: u32 = 64;

async fn put(w: &World, r: &Reactor, lba: u64, byte: u8) -> Status {
    let (_desc, ch) = open(&w.registry, "vol0");
    ch.write(lba, AT_ONCE, filled(r, AT_ONCE as usize * 512, byte), IoFlags::FUA).await.0
}

async fn holds(w: &World, r: &Reactor, lba: u64, byte: u8) -> bool {
    let (_desc, ch) = open(&w.registry, "vol0");
    let (status, data) = ch.read(lba, AT_ONCE, filled(r, AT_ONCE as usize * 512, !byte)).await;
    status.is_ok() && data.unwrap().as_slice().iter().all(|&b| b == byte)
}

impl World {
    async fn salvage(&self, k: u32, m: u32) -> Result<Arc<BdevNode>, BdevError> {
        self.arrays.create(&self.registry, Options { salvage_requested: true, ..self.options(k, m) }).await
    }

    /// After a restart, with the devices in these slots; members that are missing are not waited for.
    async fn again(self, r: &Reactor, slots: impl IntoIterator<Item = usize>) -> World {
        let w = self.restart(r).await;
        w.arrays.set_assemble_timeout(Duration::ZERO);
        w.attach(slots);
        w.registry.wait_for_examine().await;
        w
    }

    /// The array, which was started.
    fn started(&self) -> Arc<BdevNode> {
        self.registry.find("vol0").unwrap_or_else(|| panic!("{:?}", self.arrays.why_not_started("vol0")))
    }

    fn why_not(&self) -> String {
        assert!(self.registry.find("vol0").is_none());
        self.arrays.why_not_started("vol0").unwrap()
    }
}

async fn until(r: &Reactor, node: &BdevNode, wanted: &[MemberState]) {
    while states(node, wanted.len()) != wanted {
        r.sleep(Duration::from_millis(1)).await;
    }
}

fn as_many_as_parity(k: u32, m: u32) {
    let (half, n) = (k as usize, (k + m) as usize);
    run(move |r| async move {
        let w = World::new(&r, n);
        w.attach(0..n);
        let uuid = w.create(k, m).await.unwrap().uuid();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        let w = w.again(&r, 0..half).await;
        let few = format!("{half} members are in sync and there, {} are needed; none in slots ", half + 1);
        assert!(w.why_not().starts_with(&few), "{}", w.why_not());

        let node = w.salvage(k, m).await.unwrap();
        let alone: Vec<_> = (0..n).map(|slot| if slot < half { InSync } else { Failed }).collect();
        assert_eq!(states(&node, n), alone);
        assert!(holds(&w, &r, 0, 1).await, "what was written before");
        assert!(put(&w, &r, 0, 2).await.is_ok() && put(&w, &r, 64, 3).await.is_ok());
        drop(node);

        // Without a salvage it takes more than half of all, whoever was salvaged before, and those that were away are not believed.
        let w = w.again(&r, 0..half).await;
        assert!(w.why_not().starts_with(&few), "{}", w.why_not());
        let w = w.again(&r, 0..n).await;
        assert!(w.why_not().contains("' stale: has epoch "), "{}", w.why_not());

        let w = w.again(&r, 0..half).await;
        let node = w.salvage(k, m).await.unwrap();
        assert!(holds(&w, &r, 0, 2).await && holds(&w, &r, 64, 3).await);
        w.attach(half..n);
        w.registry.wait_for_examine().await;
        until(&r, &node, &[InSync; 4][..n]).await;
        drop(node);

        // What was filled counts like what was salvaged.
        let w = w.again(&r, 1..n).await;
        if half > 1 {
            assert!(w.started().uuid() == uuid && holds(&w, &r, 0, 2).await && holds(&w, &r, 64, 3).await);
        }
        let w = w.again(&r, half..n).await;
        w.salvage(k, m).await.unwrap();
        assert!(holds(&w, &r, 0, 2).await && holds(&w, &r, 64, 3).await);
        w.restart(&r).await;
    });
}

#[test]
fn a_mirror_of_which_one_half_is_left_is_salvaged_and_the_other_half_is_filled_when_it_returns() {
    as_many_as_parity(1, 1);
}

#[test]
fn of_two_and_two_the_two_that_are_left_are_salvaged_and_the_others_are_filled_when_they_return() {
    as_many_as_parity(2, 2);
}

#[test]
fn an_array_that_was_salvaged_needs_more_than_half_again_as_soon_as_so_many_are_in_sync() {
    run(|r| async move {
        let w = World::new(&r, 4);
        w.attach(0..4);
        w.create(2, 2).await.unwrap();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        let w = w.again(&r, 0..2).await;
        let node = w.salvage(2, 2).await.unwrap();
        w.attach([2]);
        w.registry.wait_for_examine().await;
        until(&r, &node, &[InSync, InSync, InSync, Failed]).await;
        assert!(put(&w, &r, 0, 2).await.is_ok());
        drop(w.registry.remove(&w.registry.find("m0").unwrap()));
        assert_eq!(put(&w, &r, 64, 3).await, Status::NAMESPACE_NOT_READY);
        drop(node);
        // They are enough by themselves, and nothing was acknowledged that they do not have.
        let w = w.again(&r, 0..3).await;
        assert_eq!(states(&w.started(), 4), [InSync, InSync, InSync, Failed]);
        assert!(holds(&w, &r, 0, 2).await);
        w.restart(&r).await;
    });
}

#[test]
fn an_array_that_is_offline_is_deleted_before_it_is_salvaged() {
    run(|r| async move {
        let w = World::new(&r, 2);
        w.attach(0..2);
        let node = w.create(1, 1).await.unwrap();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        w.registry.unregister("m1").await.unwrap();
        assert_eq!(put(&w, &r, 64, 2).await, Status::NAMESPACE_NOT_READY);
        let refused = w.salvage(1, 1).await.unwrap_err().to_string();
        assert!(refused.contains("offline: delete it"), "{refused}");
        let refused = w.create(1, 1).await.unwrap_err().to_string();
        assert!(refused.contains("offline: see 'Offline'"), "{refused}");
        // A configuration that is being applied does not fail for it, if it is this very array.
        let (loading, uuid) = (w.registry.load(Vec::new()), Some(node.uuid()));
        let saved = || Options { uuid, ..w.options(1, 1) };
        assert!(w.arrays.create(&w.registry, saved()).await.unwrap().uuid() == node.uuid());
        assert!(w.create(1, 1).await.is_err() && w.salvage(1, 1).await.is_err());
        drop(loading);
        assert!(w.arrays.create(&w.registry, saved()).await.is_err());
        drop(node);
        w.arrays.delete(&w.registry, "vol0", false).await.unwrap();
        w.salvage(1, 1).await.unwrap();
        assert!(holds(&w, &r, 0, 1).await && put(&w, &r, 64, 2).await.is_ok());
        w.restart(&r).await;
    });
}

#[test]
fn a_salvage_makes_no_array_where_there_is_none_to_salvage() {
    run(|r| async move {
        let w = World::new(&r, 2);
        w.attach(0..2);
        w.create(1, 1).await.unwrap();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        let w = w.again(&r, 0..1).await;
        // Other figures, by mistake; what is there is not to be destroyed either way.
        for force in [false, true] {
            let o = Options { salvage_requested: true, force, ..w.options(2, 2) };
            let refused = w.arrays.create(&w.registry, o).await.unwrap_err().to_string();
            assert!(refused.contains("nothing was written"), "{refused}");
        }
        w.salvage(1, 1).await.unwrap();
        assert!(holds(&w, &r, 0, 1).await);
        w.restart(&r).await;
    });
}

#[test]
fn what_went_on_elsewhere_is_not_believed_by_what_was_salvaged() {
    run(|r| async move {
        let w = World::new(&r, 2);
        w.attach(0..2);
        w.create(1, 1).await.unwrap();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        // Each half goes on by itself, the second one further.
        for (half, byte) in [(0, 2), (1, 3), (1, 4), (1, 5)] {
            let w = World { disks: w.disks.clone(), ..World::new(&r, 0) };
            w.attach([half]);
            w.arrays.set_assemble_timeout(Duration::ZERO);
            w.salvage(1, 1).await.unwrap();
            assert!(put(&w, &r, 0, byte).await.is_ok());
            w.restart(&r).await;
        }
        let w = w.again(&r, 0..2).await;
        assert!(w.why_not().contains("'m0' stale"), "{}", w.why_not());
        let w = w.again(&r, [0]).await;
        w.salvage(1, 1).await.unwrap();
        w.attach([1]);
        w.registry.wait_for_examine().await;
        let node = w.registry.find("vol0").unwrap();
        assert_eq!(states(&node, 2), [InSync, Failed], "the other one is newer, and is left alone");
        assert!(holds(&w, &r, 0, 2).await);
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn a_stale_member_is_taken_for_one_that_is_gone_and_the_one_that_was_gone_is_filled_when_it_returns() {
    run(|r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        let node = w.create(2, 1).await.unwrap();
        assert!(put(&w, &r, 0, 1).await.is_ok());
        drop(w.registry.remove(&w.registry.find("m1").unwrap()));
        until(&r, &node, &[InSync, Failed, InSync]).await;
        assert!(put(&w, &r, 64, 2).await.is_ok());
        drop(node);
        let w = w.again(&r, [1, 2]).await;
        assert!(w.why_not().starts_with("1 members are in sync and there, 2 are needed"), "{}", w.why_not());
        let node = w.salvage(2, 1).await.unwrap();
        assert_eq!(states(&node, 3), [Failed, InSync, InSync]);
        assert!(holds(&w, &r, 0, 1).await, "it lacks nothing of this");
        assert!(put(&w, &r, 64, 3).await.is_ok() && holds(&w, &r, 64, 3).await);
        w.attach([0]);
        w.registry.wait_for_examine().await;
        until(&r, &node, &[InSync; 3]).await;
        drop(node);
        let w = w.again(&r, [0, 2]).await;
        assert_eq!(states(&w.started(), 3), [InSync, Failed, InSync]);
        assert!(holds(&w, &r, 0, 1).await && holds(&w, &r, 64, 3).await, "what was filled is right");
        w.restart(&r).await;
    });
}
