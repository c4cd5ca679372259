//! Devices that are to leave their slots while requests hang on them, which nobody can abort.

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::ec::tests::hung::{Deaf, FLUSHES, NOTHING};

/// An array of 2+1 that has lost member 1, on which a flush hangs; `x0` is another device.
struct Hung {
    w: World,
    node: Arc<BdevNode>,
    hangs: Arc<AtomicU8>,
}

impl Hung {
    async fn new(r: &Reactor, spare: bool) -> Hung {
        let w = World::new(r, 4);
        w.arrays.set_tuning(Tuning { write_timeout: Duration::from_secs(4), ..Tuning::default() });
        w.arrays.set_replace_timeout(Duration::from_secs(3600));
        w.attach([0, 2]);
        let hangs = Arc::new(AtomicU8::new(NOTHING));
        w.registry.register("m1", None, Arc::new(Deaf::new(w.disks[1].clone(), hangs.clone()))).unwrap();
        w.registry.register("x0", None, w.disks[3].clone()).unwrap();
        let node = w.create(2, 1).await.unwrap();
        w.write(r, 1).await;
        if spare {
            w.arrays.add_spare(&w.registry, "x0", Some("vol0"), false).await.unwrap();
        }
        hangs.store(FLUSHES, Ordering::Relaxed);
        w.write(r, 2).await;
        assert_eq!(states(&node, 3), [InSync, Failed, InSync]);
        Hung { w, node, hangs }
    }

    fn replacement(&self) -> Option<Replacement> {
        let info = self.w.arrays.describe(&self.w.registry, &self.node).unwrap();
        assert!(info.replacing || info.members[1].replacement.is_none());
        info.members[1].replacement.clone()
    }

    async fn replacement_is(&self, r: &Reactor, what: Option<Replacement>) {
        while self.replacement() != what {
            r.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Who waits for the slot gives up.
    fn impatient(&self) {
        self.w.arrays.set_replace_timeout(Duration::ZERO);
    }

    async fn release(&self) {
        self.w.arrays.set_replace_timeout(Duration::from_secs(3600));
        self.hangs.store(NOTHING, Ordering::Relaxed);
        self.w.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
    }

    /// All is in sync, with `x0` in slot 1.
    async fn replaced(self, r: &Reactor) {
        while states(&self.node, 3) != [InSync; 3] {
            r.sleep(Duration::from_millis(1)).await;
        }
        let info = self.w.arrays.describe(&self.w.registry, &self.node).unwrap();
        assert_eq!(info.members[1].name.as_deref(), Some("x0"));
        assert!(info.spares.is_empty() && self.w.reads(r, 2).await);
        let Hung { w, node, .. } = self;
        drop(node);
        w.restart(r).await;
    }
}

/// An array of 2+1 that has lost member 1, on which nothing hangs; `x0` is another device.
async fn lost(r: &Reactor) -> (World, Arc<BdevNode>) {
    let w = World::new(r, 4);
    w.attach(0..3);
    w.registry.register("x0", None, w.disks[3].clone()).unwrap();
    let node = w.create(2, 1).await.unwrap();
    w.write(r, 2).await;
    w.registry.unregister("m1").await.unwrap();
    (w, node)
}

fn waiting() -> Option<Replacement> {
    Some(Replacement { name: "x0".into(), waits_for: Some("m1".into()) })
}

#[test]
fn a_replacement_says_what_it_waits_for_gives_up_and_is_done_when_that_has_ended() {
    run(|r| async move {
        let hung = Hung::new(&r, false).await;
        let (arrays, registry) = (hung.w.arrays.clone(), hung.w.registry.clone());
        let asked = r.spawn(async move { arrays.replace(&registry, "vol0", 1, "x0", false).await });
        hung.replacement_is(&r, waiting()).await;
        let info = hung.w.arrays.describe(&hung.w.registry, &hung.node).unwrap();
        assert_eq!((info.members[1].state, info.members[1].name.as_deref()), (Failed, Some("m1")));
        assert!(info.members[1].why.is_some(), "why it failed is still said");
        hung.impatient();
        let why = "requests of the array hang on it: try again when it has ended them";
        assert_eq!(asked.await.unwrap(), Err(BdevError::Busy { name: "m1".into(), why }));
        assert_eq!(hung.replacement(), None);
        assert!(hung.w.registry.find("x0").unwrap().claim().is_none(), "it is free again");
        assert!(hung.w.reads(&r, 2).await);
        hung.release().await;
        hung.w.arrays.replace(&hung.w.registry, "vol0", 1, "x0", false).await.unwrap();
        hung.replaced(&r).await;
    });
}

#[test]
fn a_spare_that_had_to_wait_too_long_takes_the_slot_when_the_old_device_lets_go() {
    run(|r| async move {
        let hung = Hung::new(&r, true).await;
        hung.replacement_is(&r, waiting()).await;
        hung.impatient();
        hung.replacement_is(&r, None).await;
        let spares = hung.w.arrays.describe(&hung.w.registry, &hung.node).unwrap().spares;
        assert_eq!((states(&hung.node, 3)[1], &spares[..]), (Failed, &["x0".to_owned()][..]));
        hung.release().await;
        hung.replaced(&r).await;
    });
}

#[test]
fn a_spare_takes_the_slot_although_the_old_device_let_go_before_the_spare_learned_that_it_was_refused() {
    run(|r| async move {
        let (w, node) = lost(&r).await;
        w.write(&r, 2).await;
        let seat = w.arrays.seats.take(&node, 1, "x0").unwrap();
        w.arrays.add_spare(&w.registry, "x0", Some("vol0"), false).await.unwrap();
        array(&node).unwrap().vacated(1).await.unwrap();
        while !w.arrays.at_spares.is_idle() {
            r.yield_now().await;
        }
        drop(seat);
        assert_eq!(states(&node, 3), [InSync, Failed, InSync]);
        w.arrays.use_spares_when_vacant(&r, &w.registry, &node, 1);
        Hung { w, node, hangs: Arc::default() }.replaced(&r).await;
    });
}

#[test]
fn a_slot_that_nothing_hangs_on_is_given_away_without_any_patience() {
    run(|r| async move {
        let (w, node) = lost(&r).await;
        let hung = Hung { w, node, hangs: Arc::default() };
        hung.impatient();
        hung.w.arrays.replace(&hung.w.registry, "vol0", 1, "x0", false).await.unwrap();
        hung.replaced(&r).await;
    });
}
