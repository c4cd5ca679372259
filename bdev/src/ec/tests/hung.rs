//! Members that hang, and cannot abort what hangs.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::*;
use crate::device::{Bdev, IoChannel, SupportedOps};
use crate::ec::format::MemberState;
use crate::io::{IoId, IoRef, Op};
use crate::testing::open;

const NOTHING: u8 = 0;
const FLUSHES: u8 = 1;
/// Of an array, these are metadata.
const FUA_WRITES: u8 = 2;

/// A device in memory with a volatile cache, on which requests of some kind hang: nothing ends them early.
struct Deaf {
    below: Arc<Malloc>,
    hangs: Arc<AtomicU8>,
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
            Op::Write => self.hangs.load(Relaxed) & FUA_WRITES != 0 && io.flags().has(IoFlags::FUA),
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
        Arc::new(Deaf { below: Malloc::new(g).unwrap(), hangs })
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
fn a_direct_read_that_hangs_fails_the_member_and_is_reconstructed() {
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
            assert_eq!(ec.member_state(1), MemberState::Failed);
            assert!(ec.stats().reconstructed_reads > 0);
        }
        drop(node);
        s.stop().await;
    });
}
