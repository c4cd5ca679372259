//! Members with blocks that cannot be read until they are written.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Mutex;

use super::*;
use crate::device::{Bdev, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::testing::open;

type Scars = Arc<Mutex<BTreeSet<u64>>>;

struct Scarred {
    below: Arc<Malloc>,
    scars: Scars,
}

struct ScarredChannel {
    below: Box<dyn IoChannel>,
    scars: Scars,
}

impl Bdev for Scarred {
    fn product_name(&self) -> &'static str {
        "scarred"
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn supported(&self) -> SupportedOps {
        self.below.supported()
    }

    fn open_channel(&self, r: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(ScarredChannel { below: self.below.open_channel(r, node)?, scars: self.scars.clone() }))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl IoChannel for ScarredChannel {
    fn submit(&self, io: IoRef) {
        let mut scars = self.scars.lock().unwrap();
        let blocks = io.lba()..io.lba() + u64::from(io.nblocks());
        if io.op() == Op::Read && scars.range(blocks.clone()).next().is_some() {
            return io.complete_later(Status::UNRECOVERED_READ_ERROR);
        }
        if io.op() == Op::Write {
            scars.retain(|b| !blocks.contains(b));
        }
        self.below.submit(io);
    }

    fn abort(&self, id: IoId) -> bool {
        self.below.abort(id)
    }
}

/// An array of 4+1 with strips of 32 blocks, and the scars of its members.
fn array() -> (Small, Vec<Scars>) {
    let scars: Vec<Scars> = (0..5).map(|_| Scars::default()).collect();
    let s = Small::on(4, 1, 16384, 4, &[512], |slot, g| {
        Arc::new(Scarred { below: Malloc::new(g).unwrap(), scars: scars[slot].clone() })
    });
    (s, scars)
}

/// Makes row `row` of strip `i` of stripe 0 unreadable.
fn scar(s: &Small, scars: &[Scars], i: usize, row: u64) {
    scars[s.layout.slot_of(0, i)].lock().unwrap().insert(s.layout.strip_offset(0) / 512 + row);
}

#[test]
fn a_write_is_done_though_blocks_that_it_does_not_touch_cannot_be_read() {
    sim(41, |r| async move {
        let (s, scars) = array();
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            for live in [false, true] {
                assert!(m.write(&r, &ch, 512, 0, 128, 1).await.is_ok());
                if live {
                    assert!(ch.flush().await.0.is_ok());
                }
                // Of no row is more lost than parity can replace; of all rows together it is.
                for (i, row) in [(4, 5), (0, 9), (2, 17), (1, 31)] {
                    scar(&s, &scars, i, row);
                }
                assert_eq!(m.write(&r, &ch, 512, 64, 32, 50).await, Status::SUCCESS);
                m.check(&r, &ch, 512, 8).await;
                assert!(ch.flush().await.0.is_ok());
            }
        }
        s.stop().await;
        // The parity is right everywhere.
        s.start(&r, &[s.layout.slot_of(0, 3)]).await.unwrap();
        {
            let (_desc, ch) = open(&s.registry, "a");
            m.check(&r, &ch, 512, 8).await;
        }
        s.stop().await;
    });
}

#[test]
fn a_write_that_cannot_be_done_does_not_fail_those_that_are_joined_with_it() {
    sim(42, |r| async move {
        let (s, scars) = array();
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 128, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            // Of row 9 two strips are lost: it can be written, but only where neither is needed.
            scar(&s, &scars, 0, 9);
            scar(&s, &scars, 4, 9);
            let all = Rc::new(Recorder::default());
            // The first is under way while the others come: they are joined.
            for (tag, lba, n) in [(0, 64 + 20, 2), (1, 64 + 4, 4), (2, 64 + 8, 3), (3, 64 + 11, 4), (4, 32 + 6, 2)] {
                all.submit(&ch, Op::Write, lba, n, filled(&r, n as usize * 512, 60 + tag as u8), tag);
                if tag != 2 {
                    m.0[lba as usize * 512..(lba as usize + n as usize) * 512].fill(60 + tag as u8);
                }
            }
            let mut ended = end_within(&r, &all, 5, 100).await;
            ended.sort_by_key(|e| e.0);
            let want = |tag| if tag == 2 { Status::UNRECOVERED_READ_ERROR } else { Status::SUCCESS };
            assert_eq!(ended, (0..5).map(|tag| (tag, want(tag))).collect::<Vec<_>>());
            assert!(s.stats().joined_writes >= 2);
            for (lba, n) in [(10, 54), (64 + 4, 4), (64 + 11, 53)] {
                let (status, buf) = ch.read(lba, n, filled(&r, n as usize * 512, 0)).await;
                assert!(status.is_ok());
                assert_eq!(buf.unwrap().as_slice(), &m.0[lba as usize * 512..][..n as usize * 512], "{lba}");
            }
        }
        s.stop().await;
    });
}

#[test]
fn of_writes_to_a_row_that_has_lost_too_much_only_those_fail_that_need_what_is_lost() {
    sim(43, |r| async move {
        let (s, scars) = array();
        s.create(&r).await;
        s.start(&r, &[]).await.unwrap();
        let mut m = Model::new(&s);
        {
            let (_desc, ch) = open(&s.registry, "a");
            assert!(m.write(&r, &ch, 512, 0, 128, 1).await.is_ok());
            assert!(ch.flush().await.0.is_ok());
            // Two data strips of row 3: the parity of the others can be kept up, that of strip 0 not.
            scar(&s, &scars, 0, 3);
            scar(&s, &scars, 1, 3);
            let all = Rc::new(Recorder::default());
            for (tag, lba) in [(0, 20), (1, 3), (2, 64 + 3), (3, 96 + 3)] {
                all.submit(&ch, Op::Write, lba, 1, filled(&r, 512, 90), tag);
            }
            let mut ended = end_within(&r, &all, 4, 100).await;
            ended.sort_by_key(|e| e.0);
            let statuses: Vec<_> = ended.iter().map(|e| e.1).collect();
            let bad = Status::UNRECOVERED_READ_ERROR;
            assert_eq!(statuses, [Status::SUCCESS, bad, Status::SUCCESS, Status::SUCCESS]);
        }
        s.stop().await;
    });
}
