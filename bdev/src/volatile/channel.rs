//! A volatile device on one core.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{DmaBuf, Reactor};

use super::Shared;
use super::cache::{Cache, Piece};
use crate::channel::Channel;
use crate::device::{IoChannel, Layer};
use crate::io::{IoFlags, IoId, IoRef, Op};

/// Most bytes of one write to the base.
const RUN: usize = 128 << 10;
/// Writes to the base under way at once.
const DEPTH: usize = 16;

/// Blocks that a read finds in the cache when it is submitted.
type Snapshot = Vec<(u64, Arc<[u8]>)>;

struct VolatileChannel(Rc<Inner>);

struct Inner {
    lower: Channel,
    shared: Arc<Shared>,
    reactor: Reactor,
    /// Requests that wait for the base, by ticket. An aborted one leaves at once; what was begun for it goes on.
    held: RefCell<HashMap<u64, IoRef>>,
    /// What reads that are below found in the cache, by ticket.
    snapshots: RefCell<HashMap<u64, Snapshot>>,
    tickets: RefCell<u64>,
    me: Weak<Inner>,
}

pub(super) fn open(reactor: &Reactor, lower: Channel, shared: Arc<Shared>) -> Box<dyn IoChannel> {
    Box::new(VolatileChannel(Rc::new_cyclic(|me| Inner {
        lower,
        shared,
        reactor: reactor.clone(),
        held: RefCell::default(),
        snapshots: RefCell::default(),
        tickets: RefCell::default(),
        me: me.clone(),
    })))
}

impl Inner {
    fn me(&self) -> Rc<Inner> {
        self.me.upgrade().expect("a channel in use is alive")
    }

    fn ticket(&self) -> u64 {
        let mut t = self.tickets.borrow_mut();
        *t += 1;
        *t
    }

    fn hold(&self, io: IoRef) -> u64 {
        let ticket = self.ticket();
        self.held.borrow_mut().insert(ticket, io);
        ticket
    }

    fn end(&self, ticket: u64, status: Status) {
        let io = self.held.borrow_mut().remove(&ticket);
        if let Some(io) = io {
            io.complete_later(status);
        }
    }

    fn read(&self, mut io: IoRef) {
        let found = self.shared.cache().held(io.lba(), io.nblocks());
        if found.len() == io.nblocks() as usize {
            overlay(&mut io, &found, self.shared.block_size);
            return io.complete_later(Status::SUCCESS);
        }
        if !found.is_empty() {
            let ticket = self.ticket();
            self.snapshots.borrow_mut().insert(ticket, found);
            io.set_saved(ticket);
        }
        self.lower.submit(io);
    }

    /// Holds the data of a write: true if the caller has to write through what is chosen. `None`: there is no room.
    fn take(&self, io: &IoRef) -> Option<bool> {
        let mut c = self.shared.cache();
        c.has_room(io.nblocks()).then(|| c.write(io))
    }

    fn write(&self, io: IoRef) {
        let durable = io.flags().has(IoFlags::FUA);
        let taken = self.take(&io);
        if taken == Some(false) && !durable {
            return io.complete_later(Status::SUCCESS);
        }
        // The write that finds something to be written through waits for it: nothing is on its way to the base when the device
        // is deleted.
        let (lba, n) = (io.lba(), io.nblocks());
        let (me, ticket) = (self.me(), self.hold(io));
        drop(self.reactor.spawn(async move {
            let through = match taken {
                Some(through) => Ok(through),
                None => me.make_room(ticket).await,
            };
            if through == Ok(true) {
                // What fails stays in the cache.
                me.write_out(Cache::take_eager).await;
            }
            let mut status = through.err().unwrap_or(Status::SUCCESS);
            if status.is_ok() && durable {
                status = me.write_out(|c| c.within(lba, n)).await;
                status = if status.is_ok() { me.flush_base().await } else { status };
            }
            me.end(ticket, status);
        }));
    }

    /// Writes out the oldest until a held write has room, and takes it.
    async fn make_room(&self, ticket: u64) -> Result<bool, Status> {
        loop {
            let status = self.write_out(|c| c.oldest()).await;
            if status.is_err() {
                return Err(status);
            }
            let Some(taken) = self.held.borrow().get(&ticket).map(|io| self.take(io)) else { return Ok(false) };
            if let Some(through) = taken {
                return Ok(through);
            }
        }
    }

    fn flush(&self, io: IoRef) {
        let mark = self.shared.cache().mark();
        let (me, ticket) = (self.me(), self.hold(io));
        drop(self.reactor.spawn(async move {
            let mut status = me.write_out(|c| c.until(mark)).await;
            if status.is_ok() {
                status = me.flush_base().await;
            }
            me.end(ticket, status);
        }));
    }

    fn unmap(&self, io: IoRef) {
        let (lba, n) = (io.lba(), io.nblocks());
        let (me, ticket) = (self.me(), self.hold(io));
        drop(self.reactor.spawn(async move {
            let Some(turn) = me.shared.turn().await else { return me.end(ticket, Status::ABORT_REQUESTED) };
            let mark = me.shared.cache().mark();
            let (status, _) = me.lower.unmap(lba, n).await;
            if status.is_ok() {
                me.shared.cache().unmapped(lba, n, mark);
            }
            drop(turn);
            me.end(ticket, status);
        }));
    }

    async fn flush_base(&self) -> Status {
        if self.lower.supports(Op::Flush) { self.lower.flush().await.0 } else { Status::SUCCESS }
    }

    /// Writes what `pick` finds to the base, when it is this core's turn. The first failure is the outcome.
    async fn write_out(&self, pick: impl FnOnce(&mut Cache) -> Vec<Piece>) -> Status {
        let Some(_turn) = self.shared.turn().await else { return Status::ABORT_REQUESTED };
        let pieces = pick(&mut self.shared.cache());
        let mut outcome = Status::SUCCESS;
        let runs: Vec<&[Piece]> = runs(&pieces, RUN / self.shared.block_size.min(RUN)).collect();
        for some in runs.chunks(DEPTH) {
            let mut under_way = Vec::with_capacity(some.len());
            for run in some {
                let buf = self.gather(run).await;
                under_way.push((run, self.lower.write(run[0].lba, run.len() as u32, buf, IoFlags::NONE)));
            }
            for (run, write) in under_way {
                match write.await.0 {
                    Status::SUCCESS => {
                        let mut c = self.shared.cache();
                        run.iter().for_each(|p| c.written(p));
                    }
                    failed if outcome.is_ok() => outcome = failed,
                    _ => {}
                }
            }
        }
        outcome
    }

    async fn gather(&self, run: &[Piece]) -> DmaBuf {
        let bs = self.shared.block_size;
        loop {
            if let Some(mut buf) = self.reactor.dma().alloc(run.len() * bs)
                && let Some(to) = buf.get_mut()
            {
                to.chunks_exact_mut(bs).zip(run).for_each(|(to, p)| to.copy_from_slice(&p.data));
                return buf;
            }
            // Others give memory back.
            self.reactor.sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Splits `pieces` where they are not neighbours, and after `most`.
fn runs(pieces: &[Piece], most: usize) -> impl Iterator<Item = &[Piece]> {
    pieces.chunk_by(|a, b| a.lba + 1 == b.lba).flat_map(move |run| run.chunks(most))
}

/// Puts blocks over what a read has brought.
fn overlay(io: &mut IoRef, blocks: &[(u64, Arc<[u8]>)], block_size: usize) {
    let first = io.lba();
    let mut at = 0;
    for seg in io.segments_mut() {
        let end = at + seg.len();
        for (lba, data) in blocks {
            let start = (lba - first) as usize * block_size;
            let (from, to) = (start.max(at), (start + block_size).min(end));
            if from < to {
                seg[from - at..to - at].copy_from_slice(&data[from - start..to - start]);
            }
        }
        at = end;
    }
}

impl IoChannel for VolatileChannel {
    fn submit(&self, mut io: IoRef) {
        io.set_saved(0);
        let s = &self.0;
        match io.op() {
            Op::Read => s.read(io),
            Op::Write => s.write(io),
            Op::Flush => s.flush(io),
            Op::Unmap => s.unmap(io),
            _ => s.lower.submit(io),
        }
    }

    fn hooks_completion(&self) -> bool {
        true
    }

    fn completed(&self, mut io: IoRef) {
        let status = io.status();
        if io.op() == Op::Read && io.saved() != 0 {
            let found = self.0.snapshots.borrow_mut().remove(&io.saved());
            if let (true, Some(found)) = (status.is_ok(), found) {
                overlay(&mut io, &found, self.0.shared.block_size);
            }
        }
        io.complete(status);
    }

    fn abort(&self, id: IoId) -> bool {
        let ticket = self.0.held.borrow().iter().find(|(_, io)| io.id() == id).map(|(&t, _)| t);
        match ticket {
            Some(t) => {
                self.0.end(t, Status::ABORT_REQUESTED);
                true
            }
            None => self.0.lower.abort(id),
        }
    }

    fn abort_all(&self) {
        let all = std::mem::take(&mut *self.0.held.borrow_mut());
        all.into_values().for_each(|io| io.complete_later(Status::ABORT_REQUESTED));
        self.0.lower.abort_all();
    }
}
