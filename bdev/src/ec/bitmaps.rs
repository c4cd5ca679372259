//! The bitmaps at the start of a session: what they are, and members that differ are brought to one page.
//!
//! A page has two slots, and a write of it overwrites the one that is not in force. A crash may leave the page that was being written
//! on some members only. It counts, and the others get it *with the sequence that it has*: on them it goes to the slot where its
//! write was cut short. A higher sequence would go to the other slot, the only one that is whole there until that write is done.
//!
//! A slot that a member cannot read may hold a newer page, of a commit that a crash cut short, and may be read again some day. It has no
//! part in what counts, so it is zeroed: or else that page would count later, over all that was written since. Unless that has been overwritten
//! before, with a page that counts: the first superblocks of the session may begin a new generation of the write-intent bitmap.
//!
//! Pages of a member that a salvage took though it lacks writes do not count beside those of others: a commit that a crash cut short may have left one on
//! it alone, which nobody knew of who wrote since. It gets theirs, and what may be newer on it is zeroed.

use std::rc::Rc;

use super::engine::Engine;
use super::flush::Offline;
use super::format::{PageHeader, PageKind};
use super::layout::{PAGE_BITS, PAGE_BYTES};
use super::txn::masked;

/// What is to be written before requests are served.
#[derive(Default)]
pub(super) struct Uneven {
    pages: Vec<Page>,
    unread: Vec<Unread>,
}

/// A slot of a page that some members could not read, and that is not the one in force.
struct Unread {
    kind: PageKind,
    index: u32,
    at: u64,
    /// The page's sequence as it counted; 0: there was none.
    sequence: u64,
    members: u64,
}

/// A page as it counts.
struct Page {
    header: PageHeader,
    bits: Vec<u8>,
    /// Members, by slot, that have it.
    have: u64,
}

impl Engine {
    /// Makes durable what an earlier session left in caches of members: what is read from here on is not lost again.
    pub(super) async fn settle_members(self: &Rc<Self>) {
        for slot in masked(self.written_to()) {
            if self.members[slot].volatile.get() && self.flush_member(slot).await.is_err() {
                self.fail_member(slot, "a flush failed");
            }
        }
    }

    /// Reads both bitmaps. Of each page the newest slot of all members counts; those come back that some member lacks or
    /// cannot read, for [`level`](Engine::level).
    pub(super) async fn load_bitmaps(self: &Rc<Self>) -> Result<Uneven, Offline> {
        let l = self.shared.layout;
        let mut uneven = Uneven::default();
        for index in 0..l.map_pages() as u32 {
            let Some(page) = self.newest_page(PageKind::Map, index, 0, &mut uneven.unread).await else {
                // A new array has all of them: it was lost, and nobody knows which stripes hold data.
                tracing::error!("array '{}': page {index} of its map is whole on no member", self.shared.name);
                self.go_offline("a page of its map is whole on no member: which stripes hold data is not known");
                return Err(Offline);
            };
            self.map.sequence.borrow_mut()[index as usize] = page.header.sequence;
            self.map.load(&self.shared, index, &page.bits);
            uneven.pages.extend((self.written_to() & !page.have != 0).then_some(page));
        }
        let generation = self.table.borrow().wib_generation;
        for index in 0..l.wib_pages() as u32 {
            let page = self.newest_page(PageKind::Wib, index, generation, &mut uneven.unread).await;
            if let Some(page) = &page {
                self.intent.sequence.borrow_mut()[index as usize] = page.header.sequence;
            }
            match page {
                _ if generation == 0 => {}
                Some(page) => {
                    self.intent.load(index, &page.bits);
                    uneven.pages.extend((self.written_to() & !page.have != 0).then_some(page));
                }
                None => {
                    tracing::warn!(
                        "array '{}': page {index} of the write-intent bitmap is whole on no member: all its regions count as written",
                        self.shared.name
                    );
                    let first = u64::from(index) * PAGE_BITS;
                    (first..l.regions().min(first + PAGE_BITS)).for_each(|r| self.intent.set(r));
                }
            }
        }
        if self.shared.is_offline() { Err(Offline) } else { Ok(uneven) }
    }

    /// The page with the highest sequence; with `generation`, only pages of it count. Slots are added to `unread` that some member cannot
    /// read, except that of the page.
    async fn newest_page(
        self: &Rc<Self>,
        kind: PageKind,
        index: u32,
        generation: u64,
        unread: &mut Vec<Unread>,
    ) -> Option<Page> {
        let l = self.shared.layout;
        let at = |side| match kind {
            PageKind::Map => l.map_page_at(u64::from(index), side),
            PageKind::Wib => l.wib_page_at(u64::from(index), side),
        };
        let mut best: Option<Page> = None;
        let mut failed = [0; 2];
        // Also of those that are being rebuilt: they have every page since they joined. A newer one that only they have would otherwise count once
        // they are in sync, over all that was written since.
        let late = self.stand_ins() & self.written_to();
        let first = self.written_to() & !late;
        for slot in masked(first).chain(masked(late)) {
            let counts = first == 0 || first >> slot & 1 != 0;
            for side in 0..2 {
                let buf = self.meta.page().await;
                if self.read_meta(slot, at(side), &buf.slice(0, PAGE_BYTES as usize)).await.is_err() {
                    // Then it has no part in what counts, and is written anew by `level`.
                    failed[side as usize] |= 1 << slot;
                    if !self.members[slot].is_barred() {
                        tracing::warn!(
                            "array '{}': a page of a bitmap of member {slot} cannot be read",
                            self.shared.name
                        );
                    }
                } else if let Ok((header, bits)) =
                    PageHeader::decode_at(&buf.as_slice()[..PAGE_BYTES as usize], self.array, kind, index, side)
                    && (generation == 0 || header.generation == generation)
                {
                    match &mut best {
                        Some(b) if !counts && header.sequence > b.header.sequence => failed[side as usize] |= 1 << slot,
                        Some(b) if b.header.sequence > header.sequence => {}
                        Some(b) if b.header.sequence == header.sequence => {
                            if b.header == header && b.bits == bits {
                                b.have |= 1 << slot;
                            }
                        }
                        _ => best = Some(Page { header, bits: bits.to_vec(), have: 1 << slot }),
                    }
                }
                self.meta.stock_page(buf);
            }
        }
        let in_force = best.as_ref().map(|b| b.header.side());
        for side in (0..2).filter(|side| Some(*side) != in_force && failed[*side as usize] != 0) {
            let sequence = best.as_ref().map_or(0, |b| b.header.sequence);
            unread.push(Unread { kind, index, at: at(side), sequence, members: failed[side as usize] });
        }
        best
    }

    /// Writes pages to the members that lack them, then zeroes where a newer one may be that nobody could read: see the module.
    pub(super) async fn level(self: &Rc<Self>, uneven: Uneven) {
        for p in uneven.pages {
            self.write_page_to(self.written_to() & !p.have, p.header, &p.bits).await;
        }
        for u in uneven.unread {
            if u.kind == PageKind::Wib {
                // A new generation may have been written there meanwhile: it counts.
                let sequence = self.intent.sequence.borrow()[u.index as usize];
                if sequence != u.sequence && self.shared.layout.wib_page_at(u64::from(u.index), sequence & 1) == u.at {
                    continue;
                }
            }
            let mut buf = self.meta.page().await;
            if let Some(page) = buf.get_mut() {
                page[..PAGE_BYTES as usize].fill(0);
            }
            self.write_to_all(self.written_to() & u.members, u.at, &buf.slice(0, PAGE_BYTES as usize)).await;
            self.meta.stock_page(buf);
        }
    }
}
