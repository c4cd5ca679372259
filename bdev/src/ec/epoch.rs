//! Superblock updates. `docs/ec.md` says what an epoch promises.

use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::assemble::is_attempt;
use super::engine::Engine;
use super::event::Event;
use super::faults::{self, Mutant, Window};
use super::flush::Offline;
use super::format::{MAX_EPOCH, MemberEntry, MemberState, Stamp, Superblock};
use super::given::on_the_way;
use super::layout::{Layout, SUPERBLOCK_BYTES};
use super::txn::masked;
use crate::io::{IoFlags, Op};

impl Engine {
    /// Establishes the present states of the members, and `change`, in a superblock that is durable on every member in use.
    pub(super) async fn establish(self: &Rc<Self>, skip: u64, change: impl Fn(&mut Superblock)) -> Result<(), Offline> {
        let _turn = self.establishing.take().await;
        self.establish_alone(skip, change).await
    }

    /// Establishes `change`; those go on who waited for the naming of members that failed meanwhile.
    pub(super) async fn update(self: &Rc<Self>, change: impl Fn(&mut Superblock)) -> Result<(), Offline> {
        self.establish(0, change).await?;
        self.named_all();
        Ok(())
    }

    /// [`establish`](Engine::establish) for whoever has the turn. `change` is made once for each attempt.
    pub(super) async fn establish_alone(
        self: &Rc<Self>,
        skip: u64,
        change: impl Fn(&mut Superblock),
    ) -> Result<(), Offline> {
        let mut skip = skip;
        let (skipped, mut degraded) = (skip != 0, false);
        loop {
            if self.shared.is_offline() {
                return Err(Offline);
            }
            let failures = self.failures.get();
            let old = self.table.borrow().clone();
            let mut new = old.clone();
            // Every member in use has the one before: those that did not take it have failed since.
            new.predecessor = old.stamp;
            new.stamp = Stamp { epoch: old.stamp.epoch + 1 + std::mem::take(&mut skip), nonce: self.nonce };
            let named = self.name_failed(&mut new);
            change(&mut new);
            let missing = new.in_sync() < new.members.len();
            if !missing {
                new.wib_generation = 0;
            } else if new.wib_generation == 0 {
                new.wib_generation = new.stamp.epoch;
            }
            if new.stamp.epoch > MAX_EPOCH {
                self.go_offline("its superblocks have the highest epoch there is");
                return Err(Offline);
            }
            if new.in_sync() < self.quorum.get() {
                self.go_offline("too few members are left");
                return Err(Offline);
            }
            faults::enter(Window::SuperblockUpdate);
            let outcome = self.store_superblocks(&old, &new).await;
            faults::leave(Window::SuperblockUpdate);
            outcome?;
            self.shared.counters.epochs.add(1);
            degraded |= named || skipped && missing;
            let (in_sync, quorum) = (new.in_sync(), new.quorum());
            self.table.replace(new);
            if self.failures.get() == failures {
                self.quorum_again(in_sync, quorum);
                if degraded {
                    self.tell(Event::Degraded { in_sync });
                }
                return Ok(());
            }
        }
    }

    /// Members `in_sync` are named by an update that was just established. After a salvage: if these are a `quorum`, the array does not do
    /// with fewer any more.
    fn quorum_again(&self, in_sync: usize, quorum: usize) {
        if self.quorum.get() < quorum && in_sync >= quorum {
            self.quorum.set(quorum);
            tracing::info!("array '{}': {in_sync} members are in sync again; it needs {quorum}", self.shared.name);
        }
    }

    /// Enters the members that failed. True: there were some.
    fn name_failed(&self, new: &mut Superblock) -> bool {
        let (epoch, given, mut any) = (new.stamp.epoch, self.given.borrow(), false);
        let used = |state| matches!(state, MemberState::InSync | MemberState::Rebuilding);
        for (slot, entry) in new.members.iter_mut().enumerate() {
            if used(entry.state) && !used(self.shared.state(slot)) {
                // One that was being rebuilt lacks more than what was written since.
                let last = if entry.state == MemberState::InSync { given[slot] } else { Stamp::default() };
                *entry = MemberEntry { state: MemberState::Failed, failed_epoch: epoch, rebuild: None, last, ..*entry };
                any = true;
            }
        }
        any
    }

    async fn store_superblocks(self: &Rc<Self>, old: &Superblock, new: &Superblock) -> Result<(), Offline> {
        // One that joins has never been given the last one.
        let used = |slot: &usize| matches!(old.members[*slot].state, MemberState::InSync | MemberState::Rebuilding);
        let known = || masked(self.written_to()).filter(used).fold(0, |mask, slot| mask | 1 << slot);
        if self.is_suspicious() {
            // Before a page of the bitmap is written over another writer's.
            self.check_writers(known(), old.stamp).await?;
        }
        // The regions that failed members may lack writes of are named before the members are.
        if new.wib_generation != 0 {
            let first = self.intent.generation.replace(new.wib_generation) != new.wib_generation;
            self.store_intent(first).await?;
        }
        let live = self.written_to();
        if !faults::is(Mutant::EpochNotChecked) {
            self.check_writers(known(), old.stamp).await?;
        }
        let mut pending = Vec::new();
        for slot in masked(live) {
            let mut buf = self.meta.page().await;
            if let Some(out) = buf.get_mut() {
                new.for_slot(slot).encode(&mut out[..SUPERBLOCK_BYTES as usize]);
            }
            self.shared.counters.metadata_writes.add(1);
            let at = Layout::superblock_at(new.copy());
            pending.push((slot, self.request(slot, Op::Write, IoFlags::FUA, at, &buf).await, buf));
        }
        for (slot, p, buf) in pending {
            if p.done().await.is_err() && !self.shared.is_offline() {
                self.fail_member(slot, "a superblock could not be written");
            } else {
                self.given.borrow_mut()[slot] = new.stamp;
            }
            self.meta.stock_page(buf);
        }
        if self.shared.is_offline() { Err(Offline) } else { Ok(()) }
    }

    /// Makes sure that nobody else has written the superblocks since `last`.
    async fn check_writers(self: &Rc<Self>, live: u64, last: Stamp) -> Result<(), Offline> {
        for slot in masked(live) {
            let (found, unread) = match self.read_superblock(slot).await {
                Ok(read) => read,
                Err(_) => {
                    self.fail_member(slot, "its superblock could not be read");
                    continue;
                }
            };
            match found {
                Some(sb) if sb.stamp == last && sb.array == self.array => {}
                // The other copy is the newer one. Of a member that joined, this one is of the session that it was lost in, or of another.
                Some(sb) if sb.array == self.array && unread && sb.stamp.epoch < last.epoch => {
                    self.fail_member(slot, "its last superblock could not be read");
                }
                Some(sb) if sb.array == self.array && sb.stamp.nonce == last.nonce && sb.stamp < last => {
                    self.fail_member(slot, "it lost a superblock that it had taken");
                }
                found => {
                    let what = found.map_or("no superblock".to_owned(), |s| s.stamp.to_string());
                    tracing::error!(
                        "array '{}': member {slot} holds {what} instead of {last}: another writer is at work",
                        self.shared.name
                    );
                    self.go_offline("another writer has taken a member over");
                    return Err(Offline);
                }
            }
        }
        Ok(())
    }

    /// The superblock that a member holds now; `None` if there is none. True: the other copy could not be read.
    ///
    /// A copy that cannot be read does not count. It is the older one, or the member is not up to date with the other; then it is written by the
    /// next update, or by [`complete_head`](Engine::complete_head). Only a second writer that wrote to just this block before it became
    /// unreadable could be missed by that.
    async fn read_superblock(self: &Rc<Self>, slot: usize) -> Result<(Option<Superblock>, bool), Status> {
        let mut pending = Vec::new();
        for copy in 0..2 {
            let buf = self.meta.page().await;
            pending.push((self.request(slot, Op::Read, IoFlags::NONE, Layout::superblock_at(copy), &buf).await, buf));
        }
        const UNREAD: &[u8] = &[0; SUPERBLOCK_BYTES as usize];
        let (mut status, mut copies) = (Status::SUCCESS, Vec::new());
        for (p, buf) in pending {
            let s = p.done().await;
            // What hangs may still write to them.
            copies.push(if s.is_ok() { buf.as_slice()[..UNREAD.len()].to_vec() } else { UNREAD.to_vec() });
            if s.is_err() {
                status = s;
            }
            self.meta.stock_page(buf);
        }
        match Superblock::select([&copies[0], &copies[1]]) {
            _ if self.members[slot].is_barred() => Err(Status::NAMESPACE_NOT_READY),
            Ok(found) => Ok((Some(found), status.is_err())),
            Err(_) if status.is_err() => Err(status),
            Err(_) => Ok((None, false)),
        }
    }

    /// Finishes an update that a crash may have cut short: writes `head` to the members in use that have the one before, or an attempt between the two.
    pub(super) async fn complete_head(self: &Rc<Self>, head: &Superblock) {
        for slot in masked(self.written_to()) {
            match self.read_superblock(slot).await {
                Ok((Some(sb), _)) if sb.stamp == head.stamp => self.given.borrow_mut()[slot] = head.stamp,
                Ok((Some(sb), _)) if sb.stamp == head.predecessor || is_attempt(sb.stamp, head) => {
                    for next in on_the_way(sb.stamp, head).iter().chain([head]) {
                        let mut buf = self.meta.page().await;
                        if let Some(out) = buf.get_mut() {
                            next.for_slot(slot).encode(&mut out[..SUPERBLOCK_BYTES as usize]);
                        }
                        self.write_to_all(1 << slot, Layout::superblock_at(next.copy()), &buf).await;
                        self.meta.stock_page(buf);
                    }
                }
                _ => self.fail_member(slot, "its superblock is not of this array's last update"),
            }
        }
    }

    /// Keeps superblocks up with the members' failures.
    pub(super) async fn epoch_task(self: Rc<Self>) {
        loop {
            self.failed.wait().await;
            if self.is_closing() || self.shared.is_offline() {
                return;
            }
            // Another update may have named it.
            if self.has_unnamed() && self.update(|_| {}).await.is_err() {
                return;
            }
        }
    }
}
