//! Requests that wait: for a connection, for room, or to be tried again; and how they are aborted.

use std::time::Duration;

use longshore_nvme::wire::Status;

use super::core_queue::{CoreQueue, Link, Tag};
use super::entry::Path;
use crate::core::CoreState;
use crate::io::{IoId, IoRef, Op};
use crate::queue::IoQueue as Held;

/// Requests that do not end for so long after they should be aborted take the connection with them.
const ABORT_LIMIT: Duration = Duration::from_secs(8);
/// Requests that failed for a passing reason are tried again after this.
const PAUSE: Duration = Duration::from_millis(100);
/// A namespace that refused nothing for so long counts as ready.
const QUIET: Duration = Duration::from_secs(10);
/// How requests end whose namespace is gone.
pub(super) const GONE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
/// Of the first word: an abort was asked for.
const ABORTED: u64 = 1 << 32;

/// Whether an abort was asked for.
pub(super) fn aborted(io: &IoRef) -> bool {
    io.words()[0] & ABORTED != 0
}

/// Whether a request may be executed twice and leave what it leaves when executed once. A copy onto a part of its own source may
/// not. A compare-and-write may not either: it is asked about only if it was not executed.
fn repeatable(io: &IoRef) -> bool {
    io.op() != Op::Copy || io.lba().abs_diff(io.copy_source()) >= u64::from(io.nblocks())
}

/// Whether the controller failed a request for a reason that may pass.
fn passing(s: Status) -> bool {
    let again = [
        Status::NAMESPACE_NOT_READY,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::COMMAND_INTERRUPTED,
        Status::ABORTED_SQ_DELETION,
    ];
    !s.dnr() && (s.is_path_error() || again.iter().any(|a| s.is(*a)))
}

impl CoreQueue {
    /// A request cannot be sent now.
    #[cold]
    pub(super) fn wait(&self, io: IoRef) {
        if self.link.get() != Link::Up && !matches!(self.entry.path(), Path::Up | Path::Held) {
            return io.complete_later(Status::HOST_PATHING_ERROR);
        }
        self.held.push(io);
        self.connect();
    }

    /// A request was sent and failed: whoever sent it is told, unless it is to be tried again.
    #[cold]
    ///
    /// `late`: it was to be aborted because it took too long. That is for its user to know, as with SPDK: again and again it might
    /// take as long.
    pub(super) fn failed(&self, mut io: IoRef, status: Status, late: bool) {
        // The controller may say the same of a command that it ended itself.
        let lost = status.is(Status::ABORTED_BY_HOST) && self.queue.borrow().as_ref().is_none_or(|q| !q.is_open());
        let tag = Tag::of(&io);
        let limit = self.entry.retries;
        // Nobody asked for this one: an Abort came late, and its command's identifier was in use again.
        let stray = status.is(Status::ABORT_REQUESTED) && !aborted(&io) && !late;
        let counted = (stray || passing(status)) && (limit < 0 || i32::from(tag.retries()) < limit);
        let awaited = self.is_awaited(tag, status);
        let again = lost || awaited || counted;
        let open = matches!(self.entry.path(), Path::Up | Path::Held);
        if aborted(&io) || !again || !open || !self.entry.is_current(tag.nsid(), tag.serial()) {
            return io.complete(status);
        }
        if !repeatable(&io) {
            return io.complete(status.with_dnr());
        }
        // It is nowhere under way now.
        if lost {
            io.set_words([0, tag.0]);
            self.held.push(io);
        } else {
            io.set_words([0, if awaited { tag } else { tag.again() }.0]);
            self.later.push(io);
            self.look_again(PAUSE);
        }
    }

    /// Whether this says that a namespace is not ready, for less long than requests wait for a controller: what held them up may be
    /// what the controller was lost for, a device that hung or an array that is being started.
    fn is_awaited(&self, tag: Tag, status: Status) -> bool {
        if !status.is(Status::NAMESPACE_NOT_READY) || status.dnr() {
            return false;
        }
        let (now, quiet) = (self.reactor.rdtsc(), self.reactor.ticks(QUIET));
        let mut all = self.not_ready.borrow_mut();
        all.retain(|_, (_, last)| now.saturating_sub(*last) < quiet);
        let (since, last) = all.entry((tag.nsid(), tag.serial())).or_insert((now, now));
        *last = now;
        now.saturating_sub(*since) < self.reactor.ticks(self.entry.options.reconnect.patience())
    }

    /// Whether requests may be sent, or wait, may have changed. Where requests may not end.
    #[cold]
    pub(super) fn look(&self) {
        let (path, up) = (self.entry.path(), self.link.get() == Link::Up);
        if !up && matches!(path, Path::Failing | Path::Closing) {
            // Before their namespaces are asked for: what is wrong is the path.
            self.fail_held();
        }
        if path != Path::Closing {
            for queue in [&self.held, &self.later] {
                let all = queue.take();
                while let Some(io) = all.pop() {
                    let tag = Tag::of(&io);
                    match self.entry.is_current(tag.nsid(), tag.serial()) {
                        true => queue.push(io),
                        false => io.complete_later(GONE),
                    }
                }
            }
        }
        self.connect();
    }

    /// What waits fails.
    pub(super) fn fail_held(&self) {
        for all in [self.held.take(), self.later.take()] {
            while let Some(io) = all.pop() {
                io.complete_later(Status::HOST_PATHING_ERROR);
            }
        }
    }

    /// Looks after what waits in a while.
    pub(super) fn look_again(&self, after: Duration) {
        let mut again = self.again.borrow_mut();
        if again.is_some() {
            return;
        }
        let me = self.me.clone();
        *again = Some(self.reactor.timer(after, move |_| {
            let Some(q) = me.upgrade() else { return };
            let timer = q.again.take();
            drop(timer);
            let later = q.later.take();
            while let Some(io) = later.pop() {
                q.held.push(io);
            }
            q.connect();
            q.go_on();
        }));
    }

    /// Resets the controller: every connection ends and the controller is connected anew.
    pub(super) fn reset(&self, io: IoRef) {
        let entry = self.entry.clone();
        drop(self.reactor.spawn(async move {
            let status = match entry.reset().await {
                Ok(()) => Status::SUCCESS,
                Err(_) => Status::INTERNAL_PATH_ERROR,
            };
            io.complete(status);
        }));
    }

    pub(super) fn abort(&self, id: IoId) -> bool {
        if let Some(io) = self.held.remove(id).or_else(|| self.later.remove(id)) {
            io.complete_later(Status::ABORT_REQUESTED);
            return true;
        }
        let mark = |words: &mut [u64; 2]| {
            words[0] |= ABORTED;
            words[0] as u32
        };
        let word = CoreState::current().with_inflight(id, mark).unwrap_or(0);
        match (word.checked_sub(1).and_then(|c| u16::try_from(c).ok()), &*self.queue.borrow()) {
            (Some(cid), Some(q)) => {
                self.entry.ctrl.abort(q.qid(), cid);
                true
            }
            _ => false,
        }
    }

    /// Aborts all requests of one device; what has its namespace's identifier by now is another one's.
    pub(super) fn abort_all(&self, of: Tag) {
        let device = (of.nsid(), of.serial());
        let of = |io: &IoRef| (Tag::of(io).nsid(), Tag::of(io).serial()) == device;
        let end = |queue: &Held| {
            let all = queue.take();
            while let Some(io) = all.pop() {
                match of(&io) {
                    true => io.complete_later(Status::ABORT_REQUESTED),
                    false => queue.push(io),
                }
            }
        };
        end(&self.held);
        end(&self.later);
        let mark = |io: &mut IoRef| {
            let [word, tag] = io.words();
            io.set_words([word | ABORTED, tag]);
        };
        self.flights.borrow_mut().iter_mut().flatten().filter(|io| of(io)).for_each(mark);
        self.pairs.borrow_mut().iter_mut().map(|p| &mut p.io).filter(|io| of(io)).for_each(mark);
        let queue = self.queue.borrow();
        let Some(q) = &*queue else { return };
        let mut cids: Vec<u16> = (0u16..)
            .zip(self.flights.borrow().iter())
            .filter(|(_, f)| f.as_ref().is_some_and(of))
            .map(|(c, _)| c)
            .collect();
        cids.extend(self.pairs.borrow().iter().filter(|p| of(&p.io)).map(|p| p.cids[1]));
        if cids.is_empty() {
            return;
        }
        for &cid in &cids {
            self.entry.ctrl.abort(q.qid(), cid);
        }
        if self.deadlines.borrow().contains_key(&device) {
            return; // those of an earlier call are watched already; the next call after it watches the rest
        }
        let mut ids: Vec<IoId> = self.flights.borrow().iter().flatten().filter(|io| of(io)).map(IoRef::id).collect();
        ids.extend(self.pairs.borrow().iter().filter(|p| of(&p.io)).map(|p| p.io.id()));
        let me = self.me.clone();
        let timer = self.reactor.timer(ABORT_LIMIT, move |_| {
            let Some(this) = me.upgrade() else { return };
            this.deadlines.borrow_mut().remove(&device);
            let stuck = this.flights.borrow().iter().flatten().any(|io| ids.contains(&io.id()))
                || this.pairs.borrow().iter().any(|p| ids.contains(&p.io.id()));
            if stuck && let Some(q) = &*this.queue.borrow() {
                q.close("commands that were aborted did not end");
            }
        });
        self.deadlines.borrow_mut().insert(device, timer);
    }
}
