//! How members leave slots and join them. `docs/ec.md` has what a crash leaves at each step.

use std::cell::Cell;
use std::rc::Rc;

use longshore_reactor::DmaBuf;
use uuid::Uuid;

use super::super::create::TAIL_BYTES;
use super::super::engine::Engine;
use super::super::faults::{self, Window};
use super::super::flush::Offline;
use super::super::format::{MemberEntry, MemberState, PageHeader, PageKind, Rebuild, RebuildMode, Superblock};
use super::super::intent::page_bits;
use super::super::layout::{PAGE_BYTES, SUPERBLOCK_SPACING};
use super::super::meta::Pending;
use super::super::start::fits;
use super::Newcomer;
use crate::io::{IoFlags, Op};
use crate::registry::BdevError;

/// Writes to a newcomer that are out at once: fewer than the pages that metadata leave.
const AT_ONCE: usize = 4;

/// Counts a task that the end of the session waits for.
struct Busy<'a>(&'a Cell<u32>);

impl<'a> Busy<'a> {
    fn new(tasks: &'a Cell<u32>) -> Busy<'a> {
        tasks.set(tasks.get() + 1);
        Busy(tasks)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Writes to a newcomer.
struct Puts {
    slot: usize,
    free: Vec<DmaBuf>,
    out: Vec<(DmaBuf, Pending)>,
}

impl Puts {
    fn of(slot: usize) -> Puts {
        Puts { slot, free: Vec::new(), out: Vec::new() }
    }
}

/// Why a device has not joined.
enum Refused {
    Offline,
    /// The device failed.
    Failed(&'static str),
}

impl From<Offline> for Refused {
    fn from(_: Offline) -> Refused {
        Refused::Offline
    }
}

impl Engine {
    fn busy(&self, why: &'static str) -> BdevError {
        BdevError::Busy { name: self.shared.name.clone(), why }
    }

    fn offline(&self) -> BdevError {
        self.busy("too few of its members are left")
    }

    /// Fails the member in `slot` on purpose; ends when superblocks say so.
    pub(super) async fn retire(self: &Rc<Self>, slot: usize) -> Result<(), BdevError> {
        let _busy = Busy::new(&self.rebuild.tasks);
        self.until_stable().await.map_err(|_| self.offline())?;
        if self.shared.state(slot) == MemberState::InSync {
            let (left, quorum) = (self.live().count_ones() as usize - 1, self.quorum.get());
            if left < quorum {
                return Err(BdevError::Invalid(format!(
                    "array '{}': without member {slot} only {left} would be in sync, and {quorum} are needed: replace or rebuild others first",
                    self.shared.name
                )));
            }
        }
        self.fail_member(slot, "it is being replaced");
        self.until_stable().await.map_err(|_| self.offline())
    }

    /// Ends when nobody uses the device any more that was in `slot`.
    pub(super) async fn vacated(self: &Rc<Self>, slot: usize) -> Result<(), BdevError> {
        loop {
            if matches!(self.shared.state(slot), MemberState::InSync | MemberState::Rebuilding) {
                return Err(self.busy("the slot's member is in use"));
            }
            if self.rebuild.is_ending() || self.is_closing() {
                return Err(self.busy("it is being closed"));
            }
            // Who asked may have given up since: what sits there now is not to go.
            if self.shared.descs()[slot].is_none() || self.rebuild.is_joining(slot) {
                return Ok(());
            }
            self.depart(slot);
            self.core.reactor().sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// See [`Ec::join`](super::Ec::join).
    pub(super) async fn join(self: &Rc<Self>, slot: usize, newcomer: Newcomer) -> Result<RebuildMode, BdevError> {
        let _busy = Busy::new(&self.rebuild.tasks);
        let _turn = self.rebuild.joins.take().await;
        self.until_stable().await.map_err(|_| self.offline())?;
        self.may_join(slot, &newcomer)?;
        let Newcomer { desc, uuid, found } = newcomer;
        let name = desc.node().name().to_owned();
        self.shared.settle_in(slot, desc);
        self.rebuild.joining.set(1 << slot);
        let outcome = match self.members[slot].open(&self.shared) {
            true => self.take_in(slot, uuid, found).await,
            false => Err(Refused::Failed("it cannot be opened")),
        };
        self.rebuild.joining.set(0);
        match outcome {
            Ok(mode) => {
                tracing::info!(
                    "array '{}': '{name}' joins as member {slot}, to be rebuilt ({mode:?})",
                    self.shared.name
                );
                self.rebuild.signal.set();
                Ok(mode)
            }
            Err(why) => {
                if self.shared.state(slot) == MemberState::Rebuilding {
                    // Offline in the middle: what superblocks say is for the next assembly.
                    self.rebuild.fillings.end(slot);
                    self.shared.set_state(slot, MemberState::Failed);
                    self.show_rebuilds();
                }
                self.depart(slot);
                Err(match why {
                    Refused::Offline => self.offline(),
                    Refused::Failed(why) => BdevError::Os {
                        errno: libc::EIO,
                        what: format!("array '{}': '{name}' has not become member {slot}: {why}", self.shared.name),
                    },
                })
            }
        }
    }

    /// What can be said against the newcomer before anything is written to it.
    fn may_join(&self, slot: usize, newcomer: &Newcomer) -> Result<(), BdevError> {
        let l = &self.shared.layout;
        let table = self.table.borrow();
        if self.rebuild.is_ending() || self.is_closing() {
            return Err(self.busy("it is being closed"));
        }
        if slot >= l.n() {
            return Err(BdevError::Invalid(format!("slot {slot}: array '{}' has {}", self.shared.name, l.n())));
        }
        if matches!(self.shared.state(slot), MemberState::InSync | MemberState::Rebuilding) {
            return Err(self.busy("the slot's member is in use"));
        }
        if self.shared.descs()[slot].is_some() {
            return Err(self.busy("the slot's former device is still in use"));
        }
        let others = table.members.iter().enumerate().filter(|&(s, _)| s != slot);
        if newcomer.uuid.is_nil() || others.clone().any(|(_, m)| m.uuid == newcomer.uuid) {
            return Err(BdevError::Invalid(format!("member UUID {} is nil or taken by another slot", newcomer.uuid)));
        }
        if let Some(found) = &newcomer.found {
            if found.array != self.array || found.slot != slot || found.member().uuid != newcomer.uuid {
                return Err(BdevError::Invalid(format!(
                    "'{}' is member {} of array {}, not member {slot} of '{}'",
                    newcomer.desc.node().name(),
                    found.slot,
                    found.array,
                    self.shared.name
                )));
            }
            if found.stamp.epoch > table.stamp.epoch {
                return Err(BdevError::Invalid(format!(
                    "'{}' has {}, newer than the array's {}: another writer has used it",
                    newcomer.desc.node().name(),
                    found.stamp,
                    table.stamp
                )));
            }
        }
        fits(&self.shared.name, l, &newcomer.desc)
    }

    /// Whether all that the member lacks is named by the write-intent bitmap.
    fn mode(&self, slot: usize, uuid: Uuid, found: Option<&Superblock>) -> RebuildMode {
        let table = self.table.borrow();
        let entry = &table.members[slot];
        // It was in sync until it was named failed, and what it holds is what it held then; since before that the bitmap has been kept.
        let proven = found
            .is_some_and(|f| f.member().state == MemberState::InSync && f.stamp == entry.last && entry.last.epoch != 0);
        let kept = table.wib_generation != 0 && table.wib_generation <= entry.failed_epoch;
        match entry.state == MemberState::Failed && entry.uuid == uuid && proven && kept {
            true => RebuildMode::Wib,
            false => RebuildMode::Full,
        }
    }

    async fn take_in(
        self: &Rc<Self>,
        slot: usize,
        uuid: Uuid,
        found: Option<Superblock>,
    ) -> Result<RebuildMode, Refused> {
        faults::enter(Window::Join);
        let outcome = self.take_in_all(slot, uuid, found).await;
        faults::leave(Window::Join);
        outcome
    }

    async fn take_in_all(
        self: &Rc<Self>,
        slot: usize,
        uuid: Uuid,
        found: Option<Superblock>,
    ) -> Result<RebuildMode, Refused> {
        // Nothing of this concerns the array: hosts go on.
        if found.is_none() {
            self.wipe(slot).await?;
        }
        self.void_journal(slot).await?;
        self.flush_newcomer(slot).await?;
        // From here on transactions wait for their stripes.
        self.drain().await?;
        let outcome = self.take_in_drained(slot, uuid, found).await;
        self.undrain();
        outcome
    }

    async fn take_in_drained(
        self: &Rc<Self>,
        slot: usize,
        uuid: Uuid,
        found: Option<Superblock>,
    ) -> Result<RebuildMode, Refused> {
        // All records are of transactions that are durable in place: they may become void.
        self.round().await?;
        let _turn = self.establishing.take().await;
        if !self.journal.is_empty() {
            return Err(Refused::Failed("transactions are under way that ended with a failure: try again"));
        }
        self.copy_bitmaps(slot).await?;
        self.flush_newcomer(slot).await?;
        if self.shared.is_offline() {
            return Err(Refused::Offline);
        }
        if self.members[slot].is_barred() {
            return Err(Refused::Failed("it went away"));
        }
        let mode = self.mode(slot, uuid, found.as_ref());
        let at = Rebuild { mode, progress: 0 };
        self.rebuild_begins(slot, at);
        let session = self.next_session();
        let joins = || self.shared.state(slot) == MemberState::Rebuilding;
        let rebuilding = MemberEntry { uuid, state: MemberState::Rebuilding, rebuild: Some(at), ..MemberEntry::EMPTY };
        let established = self
            .establish_alone(0, |sb| {
                sb.journal_session = session;
                if joins() {
                    sb.members[slot] = rebuilding;
                }
            })
            .await;
        established?;
        self.session.set(session);
        self.journal.renew();
        self.named_all();
        if joins() { Ok(mode) } else { Err(Refused::Failed("it failed as soon as it had joined")) }
    }

    /// A number that no session of this array has had.
    fn next_session(&self) -> u64 {
        let mut x = self.nonce ^ self.table.borrow().stamp.epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31).max(1)
    }

    /// Zeroes where a device says what it holds.
    async fn wipe(self: &Rc<Self>, slot: usize) -> Result<(), Refused> {
        let bytes = {
            let below = self.shared.descs();
            let node = below[slot].as_ref().map(|d| d.node().clone());
            node.map_or(0, |n| n.num_blocks().saturating_mul(u64::from(n.geometry().block_size)))
        };
        let tail = bytes.saturating_sub(TAIL_BYTES as u64) / PAGE_BYTES * PAGE_BYTES;
        let last = bytes / PAGE_BYTES * PAGE_BYTES;
        let mut puts = Puts::of(slot);
        for at in (0..2 * SUPERBLOCK_SPACING).chain(tail..last).step_by(PAGE_BYTES as usize) {
            self.put(&mut puts, at, PAGE_BYTES as usize, |page| page.fill(0)).await?;
        }
        if last < bytes {
            self.put(&mut puts, last, (bytes - last) as usize, |page| page.fill(0)).await?;
        }
        self.put_all(&mut puts).await
    }

    async fn void_journal(self: &Rc<Self>, slot: usize) -> Result<(), Refused> {
        let l = self.shared.layout;
        let mut puts = Puts::of(slot);
        for index in 0..l.journal_slots {
            self.put(&mut puts, l.journal_at(index), l.block as usize, |block| block.fill(0)).await?;
        }
        self.put_all(&mut puts).await
    }

    /// Gives the newcomer every page of both bitmaps as it counts; where the newer slot of a page would be, nothing. The array is drained.
    async fn copy_bitmaps(self: &Rc<Self>, slot: usize) -> Result<(), Refused> {
        let l = self.shared.layout;
        let mut puts = Puts::of(slot);
        let pages =
            (0..l.map_pages()).map(|p| (PageKind::Map, p)).chain((0..l.wib_pages()).map(|p| (PageKind::Wib, p)));
        for (kind, index) in pages {
            let (sequence, generation, bits) = match kind {
                PageKind::Map => (self.map.sequence.borrow()[index as usize], 0, self.map.durable_page(index as u32)),
                PageKind::Wib => (
                    self.intent.sequence.borrow()[index as usize],
                    self.intent.generation.get(),
                    page_bits(&self.intent.bits.borrow(), index as u32),
                ),
            };
            let header = PageHeader { array: self.array, kind, index: index as u32, sequence, generation };
            for side in 0..2 {
                let at = match kind {
                    PageKind::Map => l.map_page_at(index, side),
                    PageKind::Wib => l.wib_page_at(index, side),
                };
                self.put(&mut puts, at, PAGE_BYTES as usize, |page| {
                    page.fill(0);
                    if side == header.side() {
                        header.encode(&bits, page);
                    }
                })
                .await?;
            }
        }
        self.put_all(&mut puts).await
    }

    /// Starts to write `len` bytes at `at` of the newcomer.
    async fn put(
        self: &Rc<Self>,
        puts: &mut Puts,
        at: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refused> {
        if puts.free.is_empty() {
            // All or none: who holds some does not wait for others.
            self.put_all(puts).await?;
            puts.free = self.meta.pages(AT_ONCE).await;
        }
        let Some(mut buf) = puts.free.pop() else { return Ok(()) };
        if let Some(bytes) = buf.get_mut() {
            fill(&mut bytes[..len]);
        }
        self.shared.counters.metadata_writes.add(1);
        let pending = self.request(puts.slot, Op::Write, IoFlags::NONE, at, &buf.slice(0, len)).await;
        puts.out.push((buf, pending));
        Ok(())
    }

    /// Ends when all that was started has ended.
    async fn put_all(self: &Rc<Self>, puts: &mut Puts) -> Result<(), Refused> {
        let mut failed = false;
        for (buf, pending) in puts.out.drain(..) {
            failed |= pending.done().await.is_err();
            self.meta.stock_page(buf);
        }
        puts.free.drain(..).for_each(|buf| self.meta.stock_page(buf));
        if failed { Err(Refused::Failed("a write to it failed")) } else { Ok(()) }
    }

    async fn flush_newcomer(self: &Rc<Self>, slot: usize) -> Result<(), Refused> {
        if self.members[slot].volatile.get() && self.flush_request(slot).await.is_err() {
            return Err(Refused::Failed("a flush of it failed"));
        }
        Ok(())
    }
}
