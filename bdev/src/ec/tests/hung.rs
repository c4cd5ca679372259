//! Members that hang, and cannot abort what hangs.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::*;
use crate::device::{Bdev, IoChannel, SupportedOps};
use crate::ec::format::MemberState;
use crate::io::{IoId, IoRef, Op};
use crate::testing::open;

pub(in crate::ec) const NOTHING: u8 = 0;
pub(in crate::ec) const FLUSHES: u8 = 1;
/// Of an array, these are metadata.
const FUA_WRITES: u8 = 2;
const READS: u8 = 4;
/// Records, data and parity.
pub(super) const WRITES: u8 = 8;

/// A device in memory with a volatile cache, on which requests of some kind hang: nothing ends them early.
pub(in crate::ec) struct Deaf {
    below: Arc<Malloc>,
    hangs: Arc<AtomicU8>,
}

impl Deaf {
    pub(in crate::ec) fn new(below: Arc<Malloc>, hangs: Arc<AtomicU8>) -> Deaf {
        Deaf { below, hangs }
    }
}

struct DeafChannel {
    below: Box<dyn IoChannel>,
    hangs: Arc<AtomicU8>,
    held: RefCell<Vec<IoRef>>,
}

impl Bdev for Deaf {
    fn product_name(&self) -> &'static str {
        "deaf"
    }

    fn geometry(&self) -> Geometry {
        Geometry { volatile_cache: true, ..self.below.geometry() }
    }

    fn supported(&self) -> SupportedOps {
        self.below.supported()
    }

    fn open_channel(&self, r: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let below = self.below.open_channel(r, node)?;
        Ok(Box::new(DeafChannel { below, hangs: self.hangs.clone(), held: RefCell::default() }))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl IoChannel for DeafChannel {
    fn submit(&self, io: IoRef) {
        let hangs = match io.op() {
            Op::Flush => self.hangs.load(Relaxed) & FLUSHES != 0,
            Op::Read => self.hangs.load(Relaxed) & READS != 0,
            Op::Write => self.hangs.load(Relaxed) & if io.flags().has(IoFlags::FUA) { FUA_WRITES } else { WRITES } != 0,
            _ => false,
        };
        if hangs {
            return self.held.borrow_mut().push(io);
        }
        self.below.submit(io);
    }

    fn abort(&self, _: IoId) -> bool {
        false
    }

    fn notify(&self, _: u64) {
        self.held.take().into_iter().for_each(|io| self.below.submit(io));
    }
}

/// An array whose member 1 hangs as the word says, and the word.
fn array(k: usize, m: usize) -> (Small, Arc<AtomicU8>) {
    let hangs = Arc::new(AtomicU8::new(NOTHING));
    let s = Small::on(k, m, 4096, 10, &[512], |slot, g| {
        let hangs = if slot == 1 { hangs.clone() } else { Arc::default() };
        Arc::new(Deaf::new(Malloc::new(g).unwrap(), hangs))
    });
    (s, hangs)
}

async fn goes_on_without_it(what: u8, k: usize, m: usize) {
    let (s, hangs) = array(k, m);
    let r = CoreState::current().reactor().clone();
    s.create(&r).await;
    let node = s.start(&r, &[]).await.unwrap();
    let state = || node.device().as_any().downcast_ref::<super::super::Ec>().unwrap().member_state(1);
    let mut model = Model::new(&s);
    {
        let (_desc, ch) = open(&s.registry, "a");
        let blocks = s.layout.num_blocks();
        assert!(model.write(&r, &ch, 512, 0, 24, 1).await.is_ok());
        assert!(ch.flush().await.0.is_ok());
        hangs.store(what, Relaxed);
        for round in 0..3 {
            for lba in [0, 8, 30, blocks - 20] {
                assert!(model.write(&r, &ch, 512, lba, 9, 7 * round + lba as u8).await.is_ok(), "block {lba}");
            }
            assert!(ch.flush().await.0.is_ok());
        }
        assert_eq!(state(), MemberState::Failed);
        model.check(&r, &ch, 512, 5).await;
        assert!(s.superblock(&r, 0).await.in_sync() == k + m - 1, "and superblocks say so");
        // What hung lands: nobody waits for it, and nothing changes.
        hangs.store(NOTHING, Relaxed);
        s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
        assert!(model.write(&r, &ch, 512, 3, 40, 99).await.is_ok());
        assert!(ch.flush().await.0.is_ok());
        model.check(&r, &ch, 512, 8).await;
    }
    drop(node);
    s.stop().await;
    s.start(&r, &[1]).await.unwrap();
    {
        let (_desc, ch) = open(&s.registry, "a");
        model.check(&r, &ch, 512, 16).await;
    }
    s.stop().await;
}

#[test]
fn a_flush_that_hangs_and_cannot_be_aborted_costs_the_member_but_not_the_array() {
    sim(31, |_| goes_on_without_it(FLUSHES, 2, 1));
    sim(32, |_| goes_on_without_it(FLUSHES, 4, 2));
}

#[test]
fn metadata_writes_that_hang_and_cannot_be_aborted_cost_the_member_but_not_the_array() {
    sim(33, |_| goes_on_without_it(FUA_WRITES, 2, 1));
    sim(34, |_| goes_on_without_it(FUA_WRITES | FLUSHES, 3, 2));
}

#[test]
fn a_direct_read_that_hangs_is_reconstructed_and_its_member_fails_if_it_goes_on() {
    sim(35, |r| async move {
        let s = Small::new(2, 1, 4096, 10, &[512]);
        s.create(&r).await;
        let node = s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(model.write(&r, &ch, 512, 0, 64, 5).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            let dev = s.registry.find("EE_m1").unwrap();
            let dev = dev.device().as_any().downcast_ref::<error::ErrorDev>().unwrap();
            let i = error::Injection { op: Some(Op::Read), fault: error::Fault::Pending, count: 1000, queue_depth: 0 };
            dev.inject(i).unwrap();
            // Nothing but reads within strips: no request of the home core looks after the member.
            model.check(&r, &ch, 512, 4).await;
            let ec = node.device().as_any().downcast_ref::<super::super::Ec>().unwrap();
            // Reads went past it, and what it is asked to see whether it is fast again hangs too.
            assert_eq!(ec.member_state(1), MemberState::InSync);
            r.sleep(std::time::Duration::from_secs(45)).await;
            assert_eq!(ec.member_state(1), MemberState::Failed);
            model.check(&r, &ch, 512, 4).await;
            assert!(ec.stats().reconstructed_reads > 0);
        }
        drop(node);
        s.stop().await;
    });
}

/// The stripe whose data strip `d` lies on member 1.
fn stripe_with(s: &Small, d: usize) -> u64 {
    (0..s.layout.stripes).find(|&stripe| s.layout.slot_of(stripe, d) == 1).unwrap()
}

/// Writes to a strip hang on member 1. Everything else goes on, and what hung ends when it lands.
async fn writes_hang(live: bool, parity: bool) {
    let (s, hangs) = array(3, 2);
    let r = CoreState::current().reactor().clone();
    s.create(&r).await;
    s.start(&r, &[]).await.unwrap();
    let mut model = Model::new(&s);
    {
        let (_desc, ch) = open(&s.registry, "a");
        let stripe = stripe_with(&s, if parity { 3 } else { 0 });
        let first = stripe * s.layout.stripe_blocks();
        assert!(model.write(&r, &ch, 512, first, 24, 1).await.is_ok());
        if live {
            assert!(ch.flush().await.0.is_ok());
        }
        hangs.store(WRITES, Relaxed);
        let stuck = Rc::new(Recorder::default());
        stuck.submit(&ch, Op::Write, first, 4, filled(&r, 4 * 512, 66), 0);
        // Its record, or its data, hang until the member fails. It keeps its stripe no longer.
        let all = Rc::new(Recorder::default());
        all.submit(&ch, Op::Write, first + 2, 4, filled(&r, 4 * 512, 77), 1);
        all.submit(&ch, Op::Write, first + 9, 4, filled(&r, 4 * 512, 88), 2);
        assert_eq!(end_within(&r, &all, 2, 100).await.len(), 2, "what came behind it");
        all.submit(&ch, Op::Flush, 0, 0, filled(&r, 512, 0), 3);
        let ended = end_within(&r, &all, 3, 100).await;
        assert!(ended.len() == 3 && ended.iter().all(|e| e.1.is_ok()), "{ended:?}");
        // Memory that the hung device may still read is not given back; parity is not the host's.
        assert_eq!(stuck.0.borrow().len(), usize::from(parity));
        hangs.store(NOTHING, Relaxed);
        s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
        let ended = end_within(&r, &stuck, 1, 10).await;
        assert_eq!(ended, [(0, Status::SUCCESS)]);
        let at = first as usize * 512;
        model.0[at..at + 2 * 512].fill(66);
        model.0[at + 2 * 512..at + 6 * 512].fill(77);
        model.0[at + 9 * 512..at + 13 * 512].fill(88);
        model.check(&r, &ch, 512, 8).await;
    }
    s.stop().await;
    s.start(&r, &[1]).await.unwrap();
    {
        let (_desc, ch) = open(&s.registry, "a");
        model.check(&r, &ch, 512, 16).await;
    }
    s.stop().await;
}

#[test]
fn a_write_that_hangs_on_a_member_does_not_keep_its_stripe() {
    for (live, parity) in [(true, false), (true, true), (false, false), (false, true)] {
        sim(36, move |_| writes_hang(live, parity));
    }
}

#[test]
fn a_write_whose_reads_hang_on_a_member_is_done_without_them() {
    sim(37, |r| async move {
        let (s, hangs) = array(3, 2);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(model.write(&r, &ch, 512, 0, s.layout.num_blocks() as u32, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            hangs.store(READS, Relaxed);
            for stripe in 0..s.layout.stripes {
                assert!(model.write(&r, &ch, 512, stripe * 24 + stripe % 20, 2, 9).await.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            model.check(&r, &ch, 512, 8).await;
            hangs.store(NOTHING, Relaxed);
            s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
            model.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_read_that_reconstructs_goes_on_without_a_member_that_hangs() {
    sim(38, |r| async move {
        let (s, hangs) = array(3, 2);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(model.write(&r, &ch, 512, 0, s.layout.num_blocks() as u32, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
        }
        s.stop().await;
        s.start(&r, &[0]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            hangs.store(READS, Relaxed);
            // A strip of the missing member whose stripe has data on member 1, which is not read by the host itself.
            let (stripe, d) = (0..s.layout.stripes)
                .flat_map(|stripe| (0..3).map(move |d| (stripe, d)))
                .find(|&(stripe, d)| s.layout.slot_of(stripe, d) == 0 && s.layout.index_at(stripe, 1) < 3)
                .unwrap();
            let lba = stripe * 24 + d as u64 * 8;
            let (status, buf) = ch.read(lba, 8, filled(&r, 8 * 512, 0)).await;
            assert!(status.is_ok(), "{status:?}");
            assert_eq!(buf.unwrap().as_slice(), &model.0[lba as usize * 512..][..8 * 512]);
            assert!(model.write(&r, &ch, 512, stripe * 24, 20, 5).await.is_ok(), "the stripe is free");
            hangs.store(NOTHING, Relaxed);
            s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
            model.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn another_reconstruction_is_had_without_a_member_that_hangs() {
    sim(39, |r| async move {
        let (s, hangs) = array(3, 2);
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut model = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(model.write(&r, &ch, 512, 0, s.layout.num_blocks() as u32, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            hangs.store(READS, Relaxed);
            // Two strips, of which the second hangs and is decoded then.
            let stripe = stripe_with(&s, 1);
            let (lba, n) = (stripe * 24 + 2, 12);
            let (status, buf) = ch.read_alternate(lba, n, filled(&r, 12 * 512, 0), 0).await;
            assert!(status.is_ok(), "{status:?}");
            assert_eq!(buf.unwrap().as_slice(), &model.0[lba as usize * 512..][..12 * 512]);
            hangs.store(NOTHING, Relaxed);
            s.registry.find("m1").unwrap().notify_channels(0).await.unwrap();
            model.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn what_hangs_on_a_failed_member_is_aborted_again_four_times_in_a_time_out_however_often_slow_ones_are_looked_for() {
    for op in [Op::Read, Op::Write] {
        sim(40, move |r| async move {
            let (s, judges) = probe::array(3, 2, 20, probe::Kind { deaf: true, ..probe::Kind::default() });
            s.create(&r).await;
            let node = s.start(&r, &[]).await.unwrap();
            let mut model = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(model.write(&r, &ch, 512, 0, s.layout.num_blocks() as u32, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                judges
                    .set(move |slot, io| if slot == 1 && io.op() == op { probe::Act::Hold } else { probe::Act::Pass });
                // Reads of a strip go straight to the member; what it is asked to see whether it is fast again, and writes, are the home core's.
                let all = Rc::new(Recorder::default());
                let lba = stripe_with(&s, 0) * s.layout.stripe_blocks();
                all.submit(&ch, op, lba, 1, filled(&r, 512, 1), 0);
                r.sleep(std::time::Duration::from_secs(40)).await;
                assert_eq!(probe::ec(&node).member_state(1), MemberState::Failed);
                let hang = if op == Op::Read { 2 } else { 1 };
                let before = judges.aborts();
                assert!((hang..8).contains(&before), "{before}");
                r.sleep(Tuning::default().write_timeout * 4).await;
                let more = judges.aborts() - before;
                assert!((14 * hang..=16 * hang).contains(&more), "{op:?}: {more}");
                // The device is reset: what hung ends.
                judges.pass_all();
                let (_below, dev) = open(&s.registry, "EE_m1");
                assert!(dev.reset().await.0.is_ok());
                assert!(end_within(&r, &all, 1, 10).await.iter().all(|e| e.1.is_ok()));
                model.check(&r, &ch, 512, 8).await;
            }
            drop(node);
            s.stop().await;
        });
    }
}
