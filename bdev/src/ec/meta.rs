//! Requests for superblocks, bitmaps and recovery, as futures. They have requests and buffers of their own: a transaction that waits
//! for them may hold all others.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use super::engine::Engine;
use super::format::{MAX_SEQUENCE, PageHeader, PageKind};
use super::layout::PAGE_BYTES;
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

/// What is set aside.
#[derive(Default)]
pub(super) struct Meta {
    ios: RefCell<Vec<IoRef>>,
    pages: RefCell<Vec<DmaBuf>>,
    waiting: RefCell<Vec<Waker>>,
    /// Requests in flight.
    out: RefCell<Vec<Rc<Request>>>,
    /// Pages given back that a request which was given up still uses.
    lent: RefCell<Vec<DmaBuf>>,
}

impl Meta {
    pub(super) fn stock(&self, io: IoRef) {
        self.ios.borrow_mut().push(io);
        self.wake();
    }

    pub(super) fn stock_page(&self, page: DmaBuf) {
        if page.is_unique() {
            self.pages.borrow_mut().push(page);
            self.wake();
        } else {
            self.lent.borrow_mut().push(page);
        }
    }

    /// A request came back with its memory.
    fn landed(&self, r: &Rc<Request>) {
        self.out.borrow_mut().retain(|o| !Rc::ptr_eq(o, r));
        let back: Vec<DmaBuf> = self.lent.borrow_mut().extract_if(.., |page| page.is_unique()).collect();
        self.pages.borrow_mut().extend(back);
        self.wake();
    }

    /// The member in `slot` failed: nobody waits for it any more. What comes back late brings only its request and its memory.
    pub(super) fn give_up(&self, slot: usize) {
        for r in self.out.borrow().iter().filter(|r| r.slot == slot) {
            if let Some(w) = r.waker.borrow_mut().take() {
                w.wake();
            }
        }
    }

    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    async fn io(&self) -> IoRef {
        poll_fn(|cx| match self.ios.borrow_mut().pop() {
            Some(io) => Poll::Ready(io),
            None => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// A buffer of a page; give it back with [`stock_page`](Meta::stock_page).
    pub(super) async fn page(&self) -> DmaBuf {
        poll_fn(|cx| match self.pages.borrow_mut().pop() {
            Some(page) => Poll::Ready(page),
            None => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// As many pages at once: whoever waits for them holds none.
    pub(super) async fn pages(&self, n: usize) -> Vec<DmaBuf> {
        poll_fn(|cx| {
            let mut pages = self.pages.borrow_mut();
            match pages.len().checked_sub(n) {
                Some(rest) => Poll::Ready(pages.split_off(rest)),
                None => {
                    self.waiting.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Gives everything back. Nothing is in flight.
    pub(super) fn close(&self) {
        self.ios.take().into_iter().for_each(IoRef::release);
        self.pages.take();
        self.lent.take();
    }
}

struct Request {
    engine: Rc<Engine>,
    slot: usize,
    outcome: RefCell<Option<Status>>,
    waker: RefCell<Option<Waker>>,
}

impl Submitter for Request {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let member = &self.engine.members[self.slot];
        let Some(mut io) = member.landed(io, &self, tag) else { return };
        let status = io.status();
        if io.op() == Op::Write && status.is_ok() {
            member.dirty.set(true);
        }
        let buf = io.take_buf();
        drop(buf);
        self.engine.meta.stock(io);
        self.engine.meta.landed(&self);
        *self.outcome.borrow_mut() = Some(status);
        if let Some(w) = self.waker.borrow_mut().take() {
            w.wake();
        }
    }
}

/// A request under way.
pub(super) struct Pending(Result<Rc<Request>, Status>);

impl Pending {
    /// Its end, or that of its member.
    pub(super) async fn done(self) -> Status {
        let r = match self.0 {
            Ok(r) => r,
            Err(status) => return status,
        };
        poll_fn(|cx| match r.outcome.borrow_mut().take() {
            Some(status) => Poll::Ready(status),
            None if r.engine.members[r.slot].is_barred() => Poll::Ready(Status::NAMESPACE_NOT_READY),
            None => {
                *r.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl Engine {
    /// Starts a request of `buf.len()` bytes at byte `at` of the member in `slot`.
    pub(super) async fn request(
        self: &Rc<Self>,
        slot: usize,
        op: Op,
        flags: IoFlags,
        at: u64,
        buf: &DmaBuf,
    ) -> Pending {
        let mut io = self.meta.io().await;
        let member = &self.members[slot];
        io.prepare(op, flags, member.lba(at), member.blocks(buf.len() as u32));
        io.set_buf(buf.clone());
        let r = Rc::new(Request { engine: self.clone(), slot, outcome: RefCell::default(), waker: RefCell::default() });
        match member.submit(io, &r, 0) {
            Ok(()) => {
                self.meta.out.borrow_mut().push(r.clone());
                self.watch();
                Pending(Ok(r))
            }
            Err(mut io) => {
                let buf = io.take_buf();
                drop(buf);
                self.meta.stock(io);
                Pending(Err(Status::NAMESPACE_NOT_READY))
            }
        }
    }

    /// Flushes the member in `slot`.
    pub(super) async fn flush_request(self: &Rc<Self>, slot: usize) -> Status {
        let none = self.meta.page().await;
        let status = self.request(slot, Op::Flush, IoFlags::NONE, 0, &none.slice(0, 0)).await.done().await;
        self.meta.stock_page(none);
        status
    }

    /// Reads `buf.len()` bytes at byte `at` of the member in `slot`.
    pub(super) async fn read_meta(self: &Rc<Self>, slot: usize, at: u64, buf: &DmaBuf) -> Status {
        self.request(slot, Op::Read, IoFlags::NONE, at, buf).await.done().await
    }

    /// The sequence with which page `index` is written next, of those that `last` were written with. None: there is none, and the array is offline.
    pub(super) fn next_sequence(self: &Rc<Self>, last: &RefCell<Vec<u64>>, index: u32) -> Option<u64> {
        let mut last = last.borrow_mut();
        let last = &mut last[index as usize];
        if *last >= MAX_SEQUENCE {
            self.go_offline("a page of its bitmaps has the highest sequence there is");
            return None;
        }
        *last += 1;
        Some(*last)
    }

    /// Writes a page of a bitmap to every member in use; it is durable when this ends. Members that fail it are failed members.
    pub(super) async fn write_page(
        self: &Rc<Self>,
        kind: PageKind,
        index: u32,
        sequence: u64,
        generation: u64,
        bits: &[u8],
    ) {
        let header = PageHeader { array: self.array, kind, index, sequence, generation };
        self.write_page_to(self.written_to(), header, bits).await;
    }

    /// Writes a page to the members of `slots`; it is durable when this ends. Members that fail it are failed members.
    pub(super) async fn write_page_to(self: &Rc<Self>, slots: u64, header: PageHeader, bits: &[u8]) {
        let mut buf = self.meta.page().await;
        if let Some(out) = buf.get_mut() {
            header.encode(bits, &mut out[..PAGE_BYTES as usize]);
        }
        let l = &self.shared.layout;
        let at = match header.kind {
            PageKind::Map => l.map_page_at(u64::from(header.index), header.side()),
            PageKind::Wib => l.wib_page_at(u64::from(header.index), header.side()),
        };
        self.write_to_all(slots, at, &buf).await;
        self.meta.stock_page(buf);
    }

    /// Writes the same bytes durably to the members of `slots`. Members that fail it are failed members.
    pub(super) async fn write_to_all(self: &Rc<Self>, slots: u64, at: u64, buf: &DmaBuf) {
        let mut pending = Vec::new();
        for slot in super::txn::masked(slots) {
            self.shared.counters.metadata_writes.add(1);
            let sent = self.request(slot, Op::Write, IoFlags::FUA, at, buf).await;
            pending.push((slot, self.members[slot].era(), sent));
        }
        for (slot, era, p) in pending {
            if p.done().await.is_err() && !self.shared.is_offline() {
                self.fail_device(slot, era, "a write of metadata failed");
            }
        }
    }
}
