use std::sync::Arc;
use std::time::Duration;

use longshore_reactor::Reactor;
use longshore_reactor::sim::Random;

use super::super::Ec;
use super::super::format::MemberState;
use super::super::tests::{Model, Small, sim};
use super::{ScrubOptions, ScrubProgress, ScrubState};
use crate::testing::{filled, open};
use crate::{Channel, IoFlags, Op, Status, passthru};

const FAST: ScrubOptions = ScrubOptions { stripes_per_second: 0 };

fn with<R>(s: &Small, f: impl FnOnce(&Ec) -> R) -> R {
    let node = s.registry.find("a").unwrap();
    f(node.device().as_any().downcast_ref::<Ec>().unwrap())
}

async fn ended(r: &Reactor, s: &Small) -> ScrubProgress {
    loop {
        let p = with(s, Ec::scrub_progress);
        if p.state != ScrubState::Running {
            return p;
        }
        r.sleep(Duration::from_millis(1)).await;
    }
}

async fn scrub(r: &Reactor, s: &Small) -> ScrubProgress {
    with(s, |ec| ec.start_scrub(FAST)).unwrap();
    let p = ended(r, s).await;
    assert_eq!((p.state, p.stripes_done), (ScrubState::Finished, s.layout.stripes));
    p
}

/// Reads or, with a byte, overwrites a block of strip `index` of a stripe behind the array's back.
async fn raw(r: &Reactor, s: &Small, stripe: u64, index: usize, row: u32, byte: Option<u8>) -> Vec<u8> {
    let slot = s.layout.slot_of(stripe, index);
    let desc = s.open(slot).unwrap();
    let ch = desc.channel().unwrap();
    let (bs, block) = (s.blocks[slot], s.layout.block);
    let at = (s.layout.strip_offset(stripe) + u64::from(row * block)) / u64::from(bs);
    if let Some(b) = byte {
        assert!(ch.write(at, block / bs, filled(r, block as usize, b), IoFlags::NONE).await.0.is_ok());
    }
    let (st, buf) = ch.read(at, block / bs, filled(r, block as usize, 0)).await;
    assert!(st.is_ok());
    buf.unwrap().as_slice().to_vec()
}

/// Every block of `strips` of a stripe.
async fn all_rows(r: &Reactor, s: &Small, stripe: u64, strips: &[usize], byte: Option<u8>) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for &i in strips {
        for row in 0..s.layout.strip / s.layout.block {
            out.push(raw(r, s, stripe, i, row, byte).await);
        }
    }
    out
}

async fn fill_array(r: &Reactor, s: &Small, ch: &Channel, m: &mut Model) {
    let (bs, per) = (s.layout.block, s.layout.stripe_blocks());
    for stripe in 0..s.layout.stripes - 1 {
        let st = m.write(r, ch, bs, stripe * per, per as u32, (17 * stripe + 1) as u8).await;
        assert_eq!(st, Status::SUCCESS);
    }
    assert!(ch.flush().await.0.is_ok());
}

fn notified(s: &Small, kind: &str) -> usize {
    s.registry.notifications.since(0, 10_000).iter().filter(|n| n.kind == kind && n.ctx == "a").count()
}

#[test]
fn as_many_wrong_strips_as_half_the_parity_are_found_and_made_right_and_more_are_left_as_they_are() {
    for (seed, (k, m)) in [(4, 2), (2, 3), (4, 4), (3, 1), (1, 2)].into_iter().enumerate() {
        sim(seed as u64, move |r| async move {
            let s = Small::new(k, m, 4096, 9, &[512, 1024]);
            s.create(&r).await;
            s.start(&r, &[]).await.unwrap();
            let mut model = Model::new(&s);
            let mut rng = Random::new(seed as u64);
            let (_desc, ch) = open(&s.registry, "a");
            fill_array(&r, &s, &ch, &mut model).await;
            let p = scrub(&r, &s).await;
            assert_eq!((p.checked, p.mismatches, p.unchecked), (8, 0, 0), "the last stripe holds nothing");
            let all: Vec<usize> = (0..k + m).collect();
            for wrong in 1..=m / 2 + 1 {
                let stripe = rng.below(8);
                let before = all_rows(&r, &s, stripe, &all, None).await;
                let mut strips = all.clone();
                while strips.len() > wrong {
                    strips.remove(rng.below(strips.len() as u64) as usize);
                }
                for (n, &i) in strips.iter().enumerate() {
                    all_rows(&r, &s, stripe, &[i], Some(0x30 + 7 * n as u8)).await;
                }
                let corrupt = all_rows(&r, &s, stripe, &all, None).await;
                let p = scrub(&r, &s).await;
                assert_eq!(p.mismatches, 1, "{k}+{m}: {strips:?} of stripe {stripe}");
                let after = all_rows(&r, &s, stripe, &all, None).await;
                if wrong <= m / 2 {
                    assert_eq!((p.repaired, p.ambiguous), (wrong as u64, 0), "{k}+{m}: {strips:?}");
                    assert!(after == before);
                    model.check(&r, &ch, s.layout.block, 5).await;
                    assert_eq!(scrub(&r, &s).await.mismatches, 0);
                } else {
                    assert_eq!((p.repaired, p.ambiguous), (0, 1), "{k}+{m}: {strips:?}");
                    assert!(after == corrupt, "nothing was changed");
                }
            }
            assert_eq!(notified(&s, "bdev_ec_scrub_ambiguous"), 1);
            assert_eq!(notified(&s, "bdev_ec_scrub_repaired"), m / 2);
            assert_eq!(notified(&s, "bdev_ec_scrub_finished"), notified(&s, "bdev_ec_scrub_started"));
            drop((ch, _desc));
            s.stop().await;
        });
    }
}

#[test]
fn one_row_that_cannot_be_explained_keeps_the_whole_stripe_as_it_is() {
    sim(3, |r| async move {
        let s = Small::new(4, 2, 4096, 4, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        let (_desc, ch) = open(&s.registry, "a");
        fill_array(&r, &s, &ch, &mut model).await;
        // Different rows of one stripe, a strip each: every row says which.
        raw(&r, &s, 1, 0, 2, Some(1)).await;
        raw(&r, &s, 1, 5, 6, Some(2)).await;
        let p = scrub(&r, &s).await;
        assert_eq!((p.mismatches, p.repaired, p.ambiguous), (1, 2, 0));
        model.check(&r, &ch, 512, 3).await;
        raw(&r, &s, 1, 0, 2, Some(1)).await;
        raw(&r, &s, 1, 3, 4, Some(2)).await;
        raw(&r, &s, 1, 4, 4, Some(3)).await;
        let p = scrub(&r, &s).await;
        assert_eq!((p.mismatches, p.repaired, p.ambiguous), (1, 0, 1));
        assert_eq!(raw(&r, &s, 1, 0, 2, None).await, vec![1; 512]);
        drop((ch, _desc));
        s.stop().await;
    });
}

#[test]
fn a_degraded_array_is_checked_with_what_is_left() {
    sim(4, |r| async move {
        let s = Small::new(4, 3, 4096, 6, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            fill_array(&r, &s, &ch, &mut model).await;
        }
        s.stop().await;
        s.start(&r, &[2]).await.unwrap();
        let (_desc, ch) = open(&s.registry, "a");
        // Two to spare: one wrong strip is found.
        let stripe = 3;
        let wrong = s.layout.index_at(stripe, 4);
        all_rows(&r, &s, stripe, &[wrong], Some(9)).await;
        let p = scrub(&r, &s).await;
        assert_eq!((p.mismatches, p.repaired, p.ambiguous), (1, 1, 0));
        model.check(&r, &ch, 512, 8).await;
        for (failed, unchecked) in [(0, 0), (1, 5)] {
            with(&s, |ec| ec.member_gone(failed, "it is unplugged"));
            while with(&s, |ec| ec.member_state(failed)) != MemberState::Failed {
                r.yield_now().await;
            }
            let p = scrub(&r, &s).await;
            assert_eq!((p.checked, p.unchecked, p.mismatches), (5, unchecked, 0));
        }
        assert!(notified(&s, "bdev_ec_degraded") >= 2 && notified(&s, "bdev_ec_member_failed") == 2);
        drop((ch, _desc));
        s.stop().await;
    });
}

#[test]
fn blocks_that_cannot_be_read_are_rewritten() {
    sim(5, |r| async move {
        let s = Small::new(2, 2, 4096, 3, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        let (_desc, ch) = open(&s.registry, "a");
        fill_array(&r, &s, &ch, &mut model).await;
        // The piece, and then four of its rows.
        s.break_member(1, Op::Read, 5);
        let p = scrub(&r, &s).await;
        assert_eq!((p.healed, p.mismatches, p.unreadable), (1, 0, 0));
        model.check(&r, &ch, 512, 4).await;
        // Three of four: nothing can be decoded, and nothing is changed.
        (0..3).for_each(|slot| s.break_member(slot, Op::Read, 2));
        let p = scrub(&r, &s).await;
        assert_eq!((p.healed, p.mismatches, p.unreadable), (0, 0, 1));
        model.check(&r, &ch, 512, 4).await;
        assert_eq!(scrub(&r, &s).await.unreadable, 0);
        drop((ch, _desc));
        s.stop().await;
    });
}

#[test]
fn writes_during_a_scrub_are_no_mismatch() {
    for seed in 0..6 {
        sim(seed, move |r| async move {
            let s = Small::new(3, 2, 4096, 4, &[512]);
            s.create(&r).await;
            s.start(&r, &[]).await.unwrap();
            let mut model = Model::new(&s);
            let (_desc, ch) = open(&s.registry, "a");
            fill_array(&r, &s, &ch, &mut model).await;
            let blocks = s.layout.num_blocks();
            let done = std::rc::Rc::new(std::cell::Cell::new(0));
            for writer in 0..4u64 {
                let (r2, ch, done) = (r.clone(), ch.clone(), done.clone());
                drop(r.spawn(async move {
                    let mut rng = Random::new(seed * 10 + writer);
                    for _ in 0..500 {
                        let lba = rng.below(blocks);
                        let n = (1 + rng.below(9)).min(blocks - lba);
                        let st = match rng.below(12) {
                            0 => ch.unmap(lba / 24 * 24, 24).await.0,
                            1 => ch.flush().await.0,
                            _ => {
                                let buf = filled(&r2, 512 * n as usize, rng.below(256) as u8);
                                ch.write(lba, n as u32, buf, IoFlags::NONE).await.0
                            }
                        };
                        assert_eq!(st, Status::SUCCESS);
                    }
                    done.set(done.get() + 1);
                }));
            }
            let (mut rounds, mut checked) = (0, 0);
            while done.get() < 4 {
                let p = scrub(&r, &s).await;
                assert_eq!((p.mismatches, p.unreadable, p.healed), (0, 0, 0), "seed {seed}");
                (rounds, checked) = (rounds + 1, checked + p.checked);
            }
            assert!(rounds > 2 && checked > 8, "{rounds} scrubs of {checked} stripes while hosts wrote");
            drop((ch, _desc));
            s.stop().await;
        });
    }
}

#[test]
fn a_scrub_keeps_its_rate_and_ends_when_it_is_told_to_or_the_array_is_stopped() {
    sim(6, |r| async move {
        let s = Small::new(2, 1, 4096, 41, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            fill_array(&r, &s, &ch, &mut model).await;
        }
        let slow = ScrubOptions { stripes_per_second: 10 };
        let begun = r.now();
        with(&s, |ec| ec.start_scrub(slow)).unwrap();
        assert!(with(&s, |ec| ec.start_scrub(slow)).is_err(), "one at a time");
        let p = ended(&r, &s).await;
        let took = (r.now() - begun) as f64 / r.tick_rate() as f64;
        assert!(p.state == ScrubState::Finished && p.last_finished.is_some());
        assert!((3.9..4.5).contains(&took), "40 stripes in {took} s");
        with(&s, |ec| ec.start_scrub(slow)).unwrap();
        r.sleep(Duration::from_secs(1)).await;
        assert!(with(&s, Ec::stop_scrub));
        let p = ended(&r, &s).await;
        assert!(p.state == ScrubState::Stopped && (8..13).contains(&p.checked), "{p:?}");
        assert!(!with(&s, Ec::stop_scrub));
        assert_eq!(notified(&s, "bdev_ec_scrub_stopped"), 1);
        with(&s, |ec| ec.start_scrub(slow)).unwrap();
        s.stop().await;
    });
}

/// The attempt that gives what the model says, as a layer with checksums would find it.
async fn find(r: &Reactor, ch: &Channel, model: &Model, bs: u32, lba: u64, n: u32) -> Option<u32> {
    for attempt in 0.. {
        let (st, buf) = ch.read_alternate(lba, n, filled(r, (n * bs) as usize, 0xaa), attempt).await;
        match st {
            Status::SUCCESS => {}
            crate::NO_ALTERNATE => return None,
            Status::UNRECOVERED_READ_ERROR => continue,
            other => panic!("attempt {attempt}: {other:?}"),
        }
        let at = (lba * u64::from(bs)) as usize;
        if buf.unwrap().as_slice() == &model.0[at..at + (n * bs) as usize] {
            return Some(attempt);
        }
    }
    None
}

fn right(r: &Reactor, model: &Model, bs: u32, lba: u64, n: u32) -> longshore_reactor::DmaBuf {
    let mut buf = filled(r, (n * bs) as usize, 0);
    let at = (lba * u64::from(bs)) as usize;
    buf.get_mut().unwrap().copy_from_slice(&model.0[at..at + (n * bs) as usize]);
    buf
}

#[test]
fn what_a_layer_above_finds_wrong_it_gets_right_from_the_others_up_to_as_many_as_parity_and_it_is_rewritten() {
    for (seed, (k, m)) in [(4, 2), (2, 1), (3, 3)].into_iter().enumerate() {
        sim(seed as u64, move |r| async move {
            let s = Small::new(k, m, 4096, 5, &[512, 1024]);
            s.create(&r).await;
            s.start(&r, &[]).await.unwrap();
            let bs = s.layout.block;
            let mut model = Model::new(&s);
            let top = passthru::Options { name: "p".into(), base: "a".into(), uuid: None };
            passthru::create(&s.registry, top).unwrap().unwrap();
            {
                let (_desc, ch) = open(&s.registry, "p");
                assert!(ch.offers_alternates(), "it passes them on");
                fill_array(&r, &s, &ch, &mut model).await;
                let per = s.layout.stripe_blocks();
                // All of parity's worth is wrong, the data strip that is read among them.
                for (stripe, n) in [(0u64, 1u32), (1, 3), (2, per as u32)] {
                    let d = (stripe as usize) % k;
                    let strips: Vec<usize> = (0..m).map(|i| (d + i) % (k + m)).collect();
                    all_rows(&r, &s, stripe, &strips, Some(0x77)).await;
                    let per_strip = u64::from(s.layout.strip / bs);
                    let lba = stripe * per + if n as u64 == per { 0 } else { d as u64 * per_strip };
                    let attempt = find(&r, &ch, &model, bs, lba, n).await.expect("one of them is right");
                    let st = ch.heal_alternate(lba, n, filled(&r, (n * bs) as usize, 1), attempt).await.0;
                    assert_eq!(st, Status::COMPARE_FAILURE);
                    assert_eq!(
                        ch.heal_alternate(lba, n, right(&r, &model, bs, lba, n), attempt).await.0,
                        Status::SUCCESS
                    );
                    let (st, buf) = ch.read(lba, n, filled(&r, (n * bs) as usize, 0)).await;
                    assert!(st.is_ok() && buf.unwrap().as_slice() == right(&r, &model, bs, lba, n).as_slice());
                    let again = ch.heal_alternate(lba, n, right(&r, &model, bs, lba, n), attempt).await.0;
                    assert_eq!(again, crate::NO_ALTERNATE, "once");
                }
                let empty = find(&r, &ch, &model, bs, 4 * per, 1).await;
                assert_eq!(empty, None, "what holds nothing has no alternates");
                let crossing = ch.read_alternate(per - 1, 2, filled(&r, 2 * bs as usize, 0), 0).await.0;
                assert_eq!(crossing, Status::INVALID_FIELD);
            }
            s.registry.unconfigure("passthru", "p").await.unwrap();
            s.stop().await;
        });
    }
}

#[test]
fn a_write_in_between_withdraws_what_was_to_be_made_to_stay() {
    sim(8, |r| async move {
        let s = Small::new(4, 2, 4096, 3, &[512]);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        let (_desc, ch) = open(&s.registry, "a");
        fill_array(&r, &s, &ch, &mut model).await;
        // The host writes just what is there by mistake: parity stays, and would say that the old data are right.
        raw(&r, &s, 0, 1, 3, Some(0)).await;
        let lba = 8 + 3;
        let attempt = find(&r, &ch, &model, 512, lba, 1).await.unwrap();
        let old = right(&r, &model, 512, lba, 1);
        assert!(ch.write(lba, 1, filled(&r, 512, 0), IoFlags::NONE).await.0.is_ok());
        assert_eq!(ch.heal_alternate(lba, 1, old, attempt).await.0, crate::NO_ALTERNATE);
        assert_eq!(raw(&r, &s, 0, 1, 3, None).await, vec![0; 512]);
        drop((ch, _desc));
        s.stop().await;
    });
}

#[test]
fn devices_that_have_no_alternates_refuse_to_read_one() {
    sim(9, |r| async move {
        let s = Small::new(2, 1, 4096, 3, &[512]);
        let (_desc, ch) = open(&s.registry, "EE_m0");
        assert!(!ch.offers_alternates());
        let (st, buf) = ch.read_alternate(0, 1, filled(&r, 512, 5), 0).await;
        assert_eq!((st, buf.unwrap().as_slice()[0]), (Status::INVALID_OPCODE, 5));
        assert_eq!(ch.heal_alternate(0, 1, filled(&r, 512, 5), 0).await.0, Status::INVALID_OPCODE);
    });
}

#[test]
fn requests_of_other_cores_get_alternates_too() {
    use std::sync::Mutex;

    let shared: Arc<Mutex<Option<Arc<Small>>>> = Arc::default();
    crate::testing::run_on(2, move |r| async move {
        let s = Arc::new(Small::new(3, 2, 4096, 3, &[512]));
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            fill_array(&r, &s, &ch, &mut model).await;
        }
        raw(&r, &s, 1, 2, 0, Some(0x55)).await;
        *shared.lock().unwrap() = Some(s.clone());
        let there = shared.clone();
        let away = r.peers()[1].spawn(move |r: Reactor| async move {
            let s = there.lock().unwrap().take().unwrap();
            let (_desc, ch) = open(&s.registry, "a");
            let lba = 24 + 16;
            let attempt = find(&r, &ch, &model, 512, lba, 1).await.unwrap();
            let healed = ch.heal_alternate(lba, 1, right(&r, &model, 512, lba, 1), attempt).await.0;
            assert_eq!(healed, Status::SUCCESS);
            model.check(&r, &ch, 512, 6).await;
        });
        away.await.unwrap();
        s.stop().await;
    });
}
