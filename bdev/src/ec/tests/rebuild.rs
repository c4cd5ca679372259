//! Members that are replaced, return and are rebuilt, step by step.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use super::hung::{Deaf, WRITES};
use super::probe::{Act, Kind, array};
use super::*;
use crate::ec::format::{MemberState, RebuildMode};
use crate::ec::start::engine_here;
use crate::ec::{Ec, Newcomer, RebuildQos, RebuildState};
use crate::testing::open;
use crate::{BdevDesc, Op};

/// An array, with a spare device `spare` under an error device `EE_spare`.
struct Rig {
    s: Small,
    r: Reactor,
    node: Arc<BdevNode>,
    model: Model,
}

impl Rig {
    async fn new(r: &Reactor, k: usize, m: usize, stripes: u64) -> Rig {
        Rig::of(r, Small::new(k, m, 4096, stripes, &[512])).await
    }

    async fn of(r: &Reactor, s: Small) -> Rig {
        s.create(r).await;
        let g = Geometry::plain(512, s.layout.member_bytes() / 512);
        s.registry.register("spare", None, Malloc::new(g).unwrap()).unwrap();
        error::create(&s.registry, error::Options { base: "spare".into(), uuid: None }).unwrap();
        let node = s.start(r, &[]).await.unwrap();
        let model = Model::new(&s);
        Rig { s, r: r.clone(), node, model }
    }

    fn ec(&self) -> &Ec {
        self.node.device().as_any().downcast_ref::<Ec>().unwrap()
    }

    fn spare(&self) -> BdevDesc {
        self.s.registry.open("EE_spare", true, Box::new(|_| {})).unwrap()
    }

    fn error(&self, device: &str, op: Op, fault: error::Fault, count: u32) {
        let node = self.s.registry.find(device).unwrap();
        let dev = node.device().as_any().downcast_ref::<error::ErrorDev>().unwrap();
        dev.inject(error::Injection { op: Some(op), fault, count, queue_depth: 0 }).unwrap();
    }

    /// Writes stripes `stripes` whole.
    async fn write(&mut self, stripes: impl IntoIterator<Item = u64>, byte: u8) {
        let (_desc, ch) = open(&self.s.registry, "a");
        let per = self.s.layout.stripe_blocks();
        for stripe in stripes {
            let (r, at) = (self.r.clone(), stripe * per);
            assert!(self.model.write(&r, &ch, 512, at, per as u32, byte.wrapping_add(stripe as u8)).await.is_ok());
        }
        assert!(ch.flush().await.0.is_ok());
    }

    async fn check(&self) {
        let (_desc, ch) = open(&self.s.registry, "a");
        self.model.check(&self.r, &ch, 512, 8).await;
    }

    async fn replace(&self, slot: usize) -> Result<RebuildMode, BdevError> {
        self.ec().retire(slot).await?;
        self.ec().vacated(slot).await?;
        self.ec().join(slot, Newcomer { desc: self.spare(), uuid: Uuid::from_u128(500), found: None }).await
    }

    async fn give_back(&self, slot: usize) -> RebuildMode {
        self.ec().vacated(slot).await.unwrap();
        let found = self.s.superblock(&self.r, slot).await;
        let uuid = found.member().uuid;
        let newcomer = Newcomer { desc: self.s.open(slot).unwrap(), uuid, found: Some(found) };
        self.ec().join(slot, newcomer).await.unwrap()
    }

    async fn until(&self, what: impl Fn(&Ec) -> bool) {
        for _ in 0..100_000 {
            if what(self.ec()) {
                return;
            }
            self.r.sleep(Duration::from_millis(1)).await;
        }
        panic!("it does not come about: {:?}", self.ec().rebuild_progress());
    }

    async fn rebuilt(&self, slot: usize) {
        self.until(|ec| ec.member_state(slot) == MemberState::InSync).await;
        assert_eq!(self.ec().rebuild_progress(), []);
    }

    async fn end(self) {
        drop(self.node);
        self.s.stop().await;
    }
}

#[test]
fn a_member_that_returns_is_given_only_the_regions_that_were_written_without_it() {
    sim(1, |r| async move {
        let mut rig = Rig::new(&r, 2, 1, 20).await;
        rig.write(0..20, 1).await;
        rig.ec().retire(1).await.unwrap();
        // Regions are two stripes.
        rig.write([3, 14, 15], 2).await;
        let wib = rig.ec().wib_status();
        assert!(wib.generation > 0 && wib.dirty_regions == 2, "{wib:?}");
        let before = rig.ec().stats().member_written_bytes;
        assert_eq!(rig.give_back(1).await, RebuildMode::Wib);
        rig.rebuilt(1).await;
        assert_eq!(rig.ec().stats().member_written_bytes - before, 4 * 4096, "stripes 2, 3, 14 and 15");
        assert_eq!((rig.ec().wib_status().generation, rig.ec().wib_status().dirty_regions), (0, 0));
        rig.ec().retire(0).await.unwrap();
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_rebuild_passes_stripes_that_hold_nothing() {
    sim(2, |r| async move {
        let mut rig = Rig::new(&r, 3, 2, 40).await;
        rig.write([0, 1, 17, 39], 1).await;
        assert_eq!((rig.ec().unmap_status().stripes, rig.ec().unmap_status().mapped), (40, 4));
        let before = rig.ec().stats().member_written_bytes;
        assert_eq!(rig.replace(2).await.unwrap(), RebuildMode::Full);
        rig.rebuilt(2).await;
        assert_eq!(rig.ec().stats().member_written_bytes - before, 4 * 4096);
        // What was empty is written to the newcomer as to all.
        rig.write([5, 16, 38], 9).await;
        for slot in [0, 4] {
            rig.ec().retire(slot).await.unwrap();
        }
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn after_a_pause_longer_than_their_patience_nothing_is_rebuilt_over_what_another_writer_has() {
    for seed in 0..12 {
        sim(seed, move |r| async move {
            let (s, judges) = array(2, 1, 30, Kind::default());
            let mut rig = Rig::of(&r, s).await;
            rig.write(0..30, 1).await;
            // Most of the time one stripe is on its way.
            judges.set(|_, _| Act::After(Duration::from_millis(7)));
            rig.ec().set_rebuild_qos(RebuildQos { max_stripes_per_sec: 100, paused: false });
            rig.replace(0).await.unwrap();
            rig.until(|ec| ec.rebuild_progress()[0].stripes_rebuilt > 4).await;
            let mut sb = rig.s.superblock(&r, 1).await;
            (sb.stamp.epoch, sb.stamp.nonce) = (sb.stamp.epoch + 1, 4711);
            let mut other = vec![0; 4096];
            sb.for_slot(1).encode(&mut other);
            rig.s.put(&r, 1, Layout::superblock_at(sb.copy()), &other).await;
            r.sleep(Duration::from_millis(seed)).await;
            let (before, rebuilding) = (rig.ec().stats().member_written_bytes, rig.ec().rebuild_progress().len());
            assert_eq!(rebuilding, 1);
            longshore_reactor::sim::pause(&r, Tuning::default().write_timeout * 2);
            rig.until(Ec::is_offline).await;
            assert_eq!(rig.ec().stats().member_written_bytes, before, "strips of before the pause");
            judges.pass_all();
            rig.end().await;
        });
    }
}

#[test]
fn a_newcomer_that_fails_in_the_middle_costs_the_array_nothing() {
    sim(3, |r| async move {
        let mut rig = Rig::new(&r, 2, 1, 30).await;
        rig.write(0..30, 1).await;
        rig.ec().set_rebuild_qos(RebuildQos { max_stripes_per_sec: 100, paused: false });
        rig.replace(0).await.unwrap();
        rig.until(|ec| ec.rebuild_progress()[0].stripes_rebuilt > 4).await;
        rig.error("EE_spare", Op::Write, error::Fault::Failure, u32::MAX);
        rig.until(|ec| ec.member_state(0) == MemberState::Failed).await;
        rig.write([1, 29], 4).await;
        rig.check().await;
        assert_eq!(rig.ec().rebuild_progress(), []);
        // It comes back whole: its own superblock proves nothing.
        let spare = rig.s.registry.find("EE_spare").unwrap();
        spare.device().as_any().downcast_ref::<error::ErrorDev>().unwrap().clear();
        drop(spare);
        rig.ec().set_rebuild_qos(RebuildQos::default());
        assert_eq!(rig.replace(0).await.unwrap(), RebuildMode::Full);
        rig.rebuilt(0).await;
        rig.ec().retire(1).await.unwrap();
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_newcomer_that_cannot_be_written_to_has_not_joined() {
    sim(4, |r| async move {
        let mut rig = Rig::new(&r, 2, 2, 10).await;
        rig.write(0..10, 1).await;
        rig.error("EE_spare", Op::Write, error::Fault::Failure, u32::MAX);
        let why = rig.replace(3).await.unwrap_err().to_string();
        assert!(why.contains("EE_spare") && why.contains("member 3"), "{why}");
        assert_eq!(rig.ec().member_state(3), MemberState::Failed);
        rig.ec().vacated(3).await.unwrap();
        rig.write([2], 8).await;
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_rebuild_goes_on_where_it_was_when_the_array_is_started_again() {
    sim(5, |r| async move {
        let mut rig = Rig::new(&r, 2, 1, 30).await;
        rig.write(0..30, 1).await;
        rig.ec().retire(1).await.unwrap();
        rig.write(0..30, 2).await;
        rig.ec().set_rebuild_qos(RebuildQos { max_stripes_per_sec: 100, paused: false });
        assert_eq!(rig.give_back(1).await, RebuildMode::Wib);
        rig.until(|ec| ec.rebuild_progress()[0].stripes_done >= 12).await;
        rig.ec().stop_rebuild().unwrap();
        rig.until(|ec| ec.rebuild_progress()[0].state == RebuildState::Stopped).await;
        rig.r.sleep(Duration::from_millis(200)).await;
        let done = rig.ec().rebuild_progress()[0].stripes_done;
        let Rig { s, node, model, .. } = rig;
        drop(node);
        s.stop().await;
        let node = s.start(&r, &[]).await.unwrap();
        let rig = Rig { s, r: r.clone(), node, model };
        let p = rig.ec().rebuild_progress()[0];
        assert!((done..30).contains(&p.stripes_done) && p.mode == RebuildMode::Wib, "{p:?} after {done}");
        let before = rig.ec().stats().member_written_bytes;
        rig.rebuilt(1).await;
        assert_eq!(rig.ec().stats().member_written_bytes - before, (30 - done) * 4096);
        rig.ec().retire(2).await.unwrap();
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_slot_is_vacated_only_when_what_hung_on_its_device_has_ended() {
    sim(6, |r| async move {
        let hangs = Arc::new(AtomicU8::new(0));
        let word = hangs.clone();
        let s = Small::on(2, 1, 4096, 10, &[512], move |slot, g| {
            let hangs = if slot == 1 { word.clone() } else { Arc::default() };
            Arc::new(Deaf::new(Malloc::new(g).unwrap(), hangs))
        });
        let mut rig = Rig::of(&r, s).await;
        rig.write(0..10, 1).await;
        hangs.store(WRITES, Relaxed);
        let per = rig.s.layout.stripe_blocks();
        let host = r.spawn({
            let registry = rig.s.registry.clone();
            let buf = filled(&r, 512, 3);
            async move {
                let (_desc, ch) = open(&registry, "a");
                // Stripe 1: whatever is written, parity or data of member 1 is.
                ch.write(per, 1, buf, IoFlags::NONE).await.0
            }
        });
        rig.until(|ec| ec.member_state(1) == MemberState::Failed).await;
        let ec = rig.node.clone();
        let vacated = r.spawn(async move {
            let ec = ec.device().as_any().downcast_ref::<Ec>().unwrap();
            ec.vacated(1).await
        });
        r.sleep(Duration::from_secs(120)).await;
        assert!(!vacated.is_finished(), "a request still hangs on it");
        let join = Newcomer { desc: rig.spare(), uuid: Uuid::from_u128(500), found: None };
        assert!(rig.ec().join(1, join).await.unwrap_err().to_string().contains("former device"));
        hangs.store(0, Relaxed);
        rig.s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
        vacated.await.unwrap().unwrap();
        assert!(host.await.is_ok());
        rig.model.0[(per * 512) as usize..][..512].fill(3);
        assert_eq!(rig.replace(1).await.unwrap(), RebuildMode::Full);
        rig.rebuilt(1).await;
        rig.ec().retire(0).await.unwrap();
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_member_is_not_retired_if_too_few_would_be_left() {
    sim(7, |r| async move {
        let mut rig = Rig::new(&r, 2, 1, 4).await;
        rig.write(0..4, 1).await;
        rig.ec().retire(1).await.unwrap();
        let why = rig.ec().retire(0).await.unwrap_err().to_string();
        assert!(why.contains("only 1 would be in sync, and 2 are needed"), "{why}");
        assert!(rig.ec().retire(9).await.unwrap_err().to_string().contains("has no slot 9"));
        assert!(rig.ec().vacated(0).await.unwrap_err().to_string().contains("in use"));
        assert!(rig.ec().start_rebuild().unwrap_err().to_string().contains("no member is being rebuilt"));
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_block_that_nothing_is_left_to_decode_from_keeps_its_stripe_and_no_other_from_being_rebuilt() {
    sim(8, |r| async move {
        let (s, judges) = array(2, 1, 20, Kind::default());
        let at = s.layout.strip_offset(7) + 512;
        let mut rig = Rig::of(&r, s).await;
        rig.write(0..20, 1).await;
        rig.ec().retire(0).await.unwrap();
        judges.spoil([(1, at)]);
        rig.replace(0).await.unwrap();
        rig.until(|ec| ec.rebuild_progress()[0].state == RebuildState::Stopped).await;
        let p = rig.ec().rebuild_progress()[0];
        assert_eq!((p.stripes_done, p.stripes_rebuilt), (7, 19));
        assert_eq!(rig.ec().member_state(0), MemberState::Rebuilding);
        // Still lost: nothing is made up.
        rig.ec().start_rebuild().unwrap();
        rig.until(|ec| ec.rebuild_progress()[0].state == RebuildState::Stopped).await;
        assert_eq!(rig.ec().rebuild_progress()[0].stripes_rebuilt, 19);
        rig.write([7, 9], 5).await;
        rig.ec().start_rebuild().unwrap();
        let before = rig.ec().stats().member_written_bytes;
        rig.rebuilt(0).await;
        assert_eq!(rig.ec().stats().member_written_bytes - before, 4096, "stripe 7");
        rig.ec().retire(2).await.unwrap();
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_page_that_only_a_member_being_rebuilt_has_counts_from_the_start_and_not_when_it_is_in_sync() {
    sim(9, |r| async move {
        let mut rig = Rig::new(&r, 2, 1, 20).await;
        rig.write(0..4, 1).await;
        rig.ec().retire(1).await.unwrap();
        rig.ec().set_rebuild_qos(RebuildQos { max_stripes_per_sec: 0, paused: true });
        rig.give_back(1).await;
        let Rig { s, node, model, .. } = rig;
        drop(node);
        s.stop().await;
        // Power fails while the page of a commit, in which stripe 2 is empty, has reached this member alone.
        let (array, mut newest) = (s.head().array, None::<(PageHeader, Vec<u8>)>);
        for side in 0..2 {
            let page = s.get(&r, 1, s.layout.map_page_at(0, side)).await;
            if let Ok((h, bits)) = PageHeader::decode_at(&page, array, PageKind::Map, 0, side)
                && newest.as_ref().is_none_or(|(n, _)| n.sequence < h.sequence)
            {
                newest = Some((h, bits.to_vec()));
            }
        }
        let (mut header, mut bits) = newest.unwrap();
        assert_eq!(bits[0], 0b1111);
        (header.sequence, bits[0]) = (header.sequence + 1, 0b1011);
        let mut page = vec![0; 4096];
        header.encode(&bits, &mut page);
        s.put(&r, 1, s.layout.map_page_at(0, header.side()), &page).await;
        let node = s.start(&r, &[]).await.unwrap();
        let rig = Rig { s, r: r.clone(), node, model };
        let mapped = rig.ec().unmap_status().mapped;
        rig.rebuilt(1).await;
        let Rig { s, node, model, .. } = rig;
        drop(node);
        s.stop().await;
        let node = s.start(&r, &[]).await.unwrap();
        let rig = Rig { s, r: r.clone(), node, model };
        assert_eq!((mapped, rig.ec().unmap_status().mapped), (3, 3));
        rig.end().await;
    });
}

#[test]
fn what_is_heard_late_of_a_slots_former_device_does_not_keep_the_next_from_joining() {
    sim(10, |r| async move {
        let (s, judges) = array(3, 2, 20, Kind::default());
        let mut rig = Rig::of(&r, s).await;
        rig.write(0..4, 1).await;
        let engine = engine_here(rig.ec().shared.id).unwrap();
        let before = engine.members[1].era();
        rig.ec().retire(1).await.unwrap();
        judges.set(|slot, io| match slot == 1 && io.op() == Op::Write {
            true => Act::After(Duration::from_millis(2)),
            false => Act::Pass,
        });
        let (late, at) = (engine.clone(), r.clone());
        let news = r.spawn(async move {
            while !late.rebuild.is_joining(1) {
                at.sleep(Duration::from_micros(100)).await;
            }
            late.fail_member(1, "heard late");
            while late.rebuild.is_joining(1) {
                at.sleep(Duration::from_micros(100)).await;
            }
            late.fail_device(1, before, "heard later still");
        });
        rig.give_back(1).await;
        assert!(news.await.is_ok());
        judges.pass_all();
        drop(engine);
        rig.rebuilt(1).await;
        rig.check().await;
        rig.end().await;
    });
}

#[test]
fn a_member_whose_last_superblock_cannot_be_read_fails_and_is_not_taken_for_another_writers() {
    sim(11, |r| async move {
        let (s, judges) = array(3, 2, 20, Kind::default());
        let Rig { s, node, .. } = Rig::of(&r, s).await;
        drop(node);
        s.stop().await;
        let node = s.start(&r, &[1]).await.unwrap();
        let model = Model::new(&s);
        let mut rig = Rig { s, r: r.clone(), node, model };
        rig.write(0..4, 1).await;
        rig.ec().set_rebuild_qos(RebuildQos { max_stripes_per_sec: 0, paused: true });
        rig.give_back(1).await;
        // The other copy is of the session before.
        let last = Layout::superblock_at(rig.s.superblock(&r, 1).await.copy()) / 512;
        judges.set(move |slot, io| match slot == 1 && io.op() == Op::Read && io.lba() == last {
            true => Act::Fail(Status::UNRECOVERED_READ_ERROR),
            false => Act::Pass,
        });
        rig.ec().retire(4).await.unwrap();
        assert_eq!(rig.ec().member_state(1), MemberState::Failed);
        assert!(!rig.ec().is_offline());
        judges.pass_all();
        rig.check().await;
        rig.end().await;
    });
}
