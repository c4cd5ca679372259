//! A device in memory.
//!
//! Reads that bring no buffer are lent the device's own memory; what they see does not change until they give it back. A write
//! to a block that is lent goes elsewhere until then: see `store`.

mod lend;
mod store;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Reactor, Timer};

use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoFlags, IoId, IoRef, NOT_LENT, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;
use lend::Lender;
use store::Store;

/// Product name of malloc devices.
pub const PRODUCT_NAME: &str = "Malloc disk";

/// How often a write is tried again that found its block lent and no room elsewhere.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// A device in anonymous memory, committed as it is written. Metadata, interleaved or separate, is stored too.
pub struct Malloc {
    geometry: Geometry,
    store: Arc<Store>,
}

impl Malloc {
    /// A zeroed device of this shape.
    ///
    /// # Errors
    /// The address space for it cannot be reserved.
    pub fn new(geometry: Geometry) -> Result<Arc<Malloc>, BdevError> {
        let store = Arc::new(Store::new(&geometry)?);
        Ok(Arc::new(Malloc { geometry, store }))
    }
}

impl Bdev for Malloc {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[
            Op::Read,
            Op::Write,
            Op::Flush,
            Op::Unmap,
            Op::WriteZeroes,
            Op::Compare,
            Op::Copy,
            Op::Reset,
        ])
    }

    fn open_channel(&self, r: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(MallocChannel {
            lender: Lender::new(&self.store),
            state: Rc::new_cyclic(|me| State {
                me: me.clone(),
                reactor: r.clone(),
                store: self.store.clone(),
                scratch: RefCell::new(self.store.scratch()),
                waiting: RefCell::default(),
                timer: RefCell::default(),
                again: Cell::new(false),
            }),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct MallocChannel {
    lender: Rc<Lender>,
    state: Rc<State>,
}

struct State {
    me: Weak<State>,
    reactor: Reactor,
    store: Arc<Store>,
    /// A block on its way from one place to another.
    scratch: RefCell<Box<[u8]>>,
    /// Requests that found a block lent and no room elsewhere, each with the number of its blocks that are done.
    waiting: RefCell<VecDeque<(IoRef, u32)>>,
    timer: RefCell<Option<Timer>>,
    /// The timer is set.
    again: Cell<bool>,
}

impl State {
    /// Does a request from block `done` on.
    fn run(&self, mut io: IoRef, done: u32) {
        let (lba, n, s) = (io.lba(), io.nblocks(), &*self.store);
        let outcome = match io.op() {
            Op::Read => Ok(s.read(lba, n, &mut io)),
            Op::Write => s.write(lba, n, done, &io),
            Op::Compare => Ok(s.compare(lba, n, &io)),
            Op::Unmap | Op::WriteZeroes => s.zero(lba, n, done),
            Op::Copy => s.copy(io.copy_source(), lba, n, done, &mut self.scratch.borrow_mut()),
            Op::Flush | Op::Reset => Ok(Status::SUCCESS),
            Op::CompareAndWrite => Ok(Status::INVALID_OPCODE),
        };
        match outcome {
            Ok(status) => io.complete_later(status),
            Err(done) => self.wait(io, done),
        }
    }

    #[cold]
    fn wait(&self, io: IoRef, done: u32) {
        self.waiting.borrow_mut().push_back((io, done));
        if !self.again.replace(true) {
            let me = self.me.clone();
            let timer = self.reactor.timer(TRY_AGAIN, move |_| {
                if let Some(me) = me.upgrade() {
                    me.try_again();
                }
            });
            *self.timer.borrow_mut() = Some(timer);
        }
    }

    fn try_again(&self) {
        self.again.set(false);
        let all = std::mem::take(&mut *self.waiting.borrow_mut());
        for (io, done) in all {
            self.run(io, done);
        }
    }
}

impl IoChannel for MallocChannel {
    fn submit(&self, mut io: IoRef) {
        if io.op() == Op::Read && io.flags().has(IoFlags::LEND) {
            let Some(b) = self.lender.lend(&self.state.reactor, io.lba(), io.nblocks()) else {
                return io.complete_later(NOT_LENT);
            };
            io.set_buf(b);
            return io.complete_later(Status::SUCCESS);
        }
        self.state.run(io, 0);
    }

    fn lends(&self) -> bool {
        self.state.store.lends()
    }

    fn abort(&self, id: IoId) -> bool {
        // Every other request already has its outcome.
        let mut waiting = self.state.waiting.borrow_mut();
        let Some(i) = waiting.iter().position(|(io, _)| io.id() == id) else { return false };
        if let Some((io, _)) = waiting.remove(i) {
            io.complete_later(Status::ABORT_REQUESTED);
        }
        true
    }

    fn abort_all(&self) {
        for (io, _) in std::mem::take(&mut *self.state.waiting.borrow_mut()) {
            io.complete_later(Status::ABORT_REQUESTED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{filled, open, run};
    use crate::{IoFlags, Registry};

    #[test]
    fn what_was_written_is_read_and_what_was_not_is_zero() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            let (st, _) = ch.write(3, 2, filled(&r, 1024, 7), IoFlags::NONE).await;
            assert_eq!(st, Status::SUCCESS);
            let (st, buf) = ch.read(2, 4, filled(&r, 2048, 9)).await;
            assert_eq!(st, Status::SUCCESS);
            let buf = buf.unwrap();
            assert!(buf.as_slice()[..512].iter().all(|&b| b == 0));
            assert!(buf.as_slice()[512..1536].iter().all(|&b| b == 7));
            assert!(buf.as_slice()[1536..].iter().all(|&b| b == 0));
            assert_eq!(ch.compare(3, 1, filled(&r, 512, 7)).await.0, Status::SUCCESS);
            assert_eq!(ch.compare(3, 1, filled(&r, 512, 8)).await.0, Status::COMPARE_FAILURE);
            assert_eq!(ch.copy(3, 10, 1).await.0, Status::SUCCESS);
            assert_eq!(ch.write_zeroes(3, 1, IoFlags::NONE).await.0, Status::SUCCESS);
            let (_, buf) = ch.read(3, 8, filled(&r, 4096, 9)).await;
            let buf = buf.unwrap();
            assert!(buf.as_slice()[..512].iter().all(|&b| b == 0));
            assert!(buf.as_slice()[7 * 512..].iter().all(|&b| b == 7));
        });
    }

    /// The same for every byte of a block, another one for each block and each `n`.
    fn numbered(r: &Reactor, block: usize, blocks: usize, n: u8) -> longshore_reactor::DmaBuf {
        let mut buf = filled(r, block * blocks, 0);
        for (i, b) in buf.get_mut().expect("unshared").chunks_exact_mut(block).enumerate() {
            b.fill((i as u8).wrapping_mul(3).wrapping_add(n));
        }
        buf
    }

    #[test]
    fn a_large_write_is_read_wherever_it_begins_and_goes_around_what_is_lent() {
        run(|r| async move {
            for (bs, lba) in [(512, 0), (512, 8), (512, 3), (520, 8), (4096, 5), (8192, 1)] {
                let reg = Registry::new();
                let device = Malloc::new(Geometry::plain(bs, 2048)).unwrap();
                let lender = Lender::new(&device.store);
                reg.register("m", None, device).unwrap();
                let (_desc, ch) = open(&reg, "m");
                let blocks = (200usize << 10) / bs as usize;
                let whole = |n| numbered(&r, bs as usize, blocks, n);
                for (n, lent) in [(1, 0), (2, 0), (3, 1), (4, blocks as u32 / 2), (5, 0)] {
                    let before = whole(n - 1);
                    let loan = match lent {
                        0 => None,
                        at => Some(lender.lend(&r, lba + u64::from(at), 2).expect("nothing else is lent")),
                    };
                    assert!(ch.write(lba, blocks as u32, whole(n), IoFlags::NONE).await.0.is_ok());
                    let (st, buf) = ch.read(lba, blocks as u32, filled(&r, blocks * bs as usize, 9)).await;
                    let same = st.is_ok() && buf.unwrap().as_slice() == whole(n).as_slice();
                    assert!(same, "blocks of {bs} bytes from {lba} on, write {n}");
                    if let Some(loan) = loan {
                        let at = lent as usize * bs as usize;
                        assert_eq!(loan.as_slice(), &before.as_slice()[at..at + 2 * bs as usize], "what is lent stays");
                    }
                }
            }
        });
    }

    #[test]
    fn a_range_beyond_the_end_is_refused_and_counted() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            assert_eq!(ch.read(63, 2, filled(&r, 1024, 0)).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.read(u64::MAX, 1, filled(&r, 512, 0)).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.copy(63, 0, 2).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.read(63, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
            assert_eq!(ch.node().stats().op(crate::Op::Read).ops, 1);
        });
    }

    #[test]
    fn released_pages_read_as_zeroes_and_their_neighbours_stay() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 8192)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            for lba in (0..8192).step_by(1024) {
                assert!(ch.write(lba, 1024, filled(&r, 512 << 10, 5), IoFlags::NONE).await.0.is_ok());
            }
            assert!(ch.unmap(3, 8000).await.0.is_ok());
            for (lba, want) in [(2u64, 5u8), (3, 0), (7, 0), (8, 0), (4000, 0), (8002, 0), (8003, 5), (8191, 5)] {
                let (_, buf) = ch.read(lba, 1, filled(&r, 512, 1)).await;
                assert!(buf.unwrap().as_slice().iter().all(|&b| b == want), "block {lba}");
            }
        });
    }
}
